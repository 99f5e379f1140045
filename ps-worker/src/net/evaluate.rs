//! The life of an evaluator: stands outside every barrier, pulls theta now and then, measures the
//! loss on all rows, and in the end loss and accuracy on training and test rows.

use std::sync::Arc;

use ps_common::calls::{Evaluation, PullHeader, PullRequest};
use ps_common::codec::Encoding;
use ps_common::exit::ExitError;
use ps_common::job::{Metrics, Role};
use ps_common::{Dtype, Element};
use tokio::sync::watch;

use super::held::Held;
use super::link::{Link, Presence, Recovery};
use super::session::{is_final, join_request, sendable, survey};
use super::surroundings::Surroundings;
use crate::args::{Attachment, EvaluationArgs, LearnArgs};
use crate::learning::Problem;
use crate::model::{Model, Real};
use crate::samples::Samples;

/// Measures until the job ends.
///
/// # Errors
/// Whatever ends the process otherwise, with its exit code.
pub async fn evaluate(
    learn: &LearnArgs,
    attachment: &Attachment,
    evaluation: EvaluationArgs,
    surroundings: &Surroundings,
    present: watch::Sender<Option<Presence>>,
) -> Result<(), ExitError> {
    let problem = survey(learn, surroundings).await?;
    let request = join_request(&problem, attachment.dtype, Role::Observer, None);
    let Some(link) = Link::enter(attachment, surroundings, request, present).await? else {
        tracing::info!("the job has ended already");
        return Ok(());
    };
    match link.answer().dtype {
        Dtype::F32 => Evaluator::<f32>::load(link, problem, evaluation).await?.run().await,
        Dtype::F64 => Evaluator::<f64>::load(link, problem, evaluation).await?.run().await,
    }
}

struct Evaluator<T> {
    link: Link,
    model: Model,
    train: Arc<Samples<T>>,
    test: Option<Arc<Samples<T>>>,
    /// Versions between measurements.
    every: u64,
    theta: Vec<T>,
    held: Held,
}

impl<T: Real> Evaluator<T> {
    async fn load(
        link: Link,
        problem: Problem,
        evaluation: EvaluationArgs,
    ) -> Result<Self, ExitError> {
        let terms = link.answer();
        let every = evaluation
            .eval_every
            .unwrap_or_else(|| problem.updates_per_pass(terms.mode, terms.n_shards));
        let theta = vec![T::ZERO; terms.dim];
        let load = move || {
            let train = problem.load_all::<T>()?;
            let test = problem.load_test::<T>(&evaluation)?;
            Ok::<_, ExitError>((problem.model().clone(), train, test))
        };
        let (model, train, test) = link.surroundings().compute(load).await??;
        tracing::info!(n_samples = train.len(), every, "evaluating");
        let (train, test, held) = (Arc::new(train), test.map(Arc::new), Held::default());
        Ok(Self { link, model, train, test, every, theta, held })
    }

    async fn run(mut self) -> Result<(), ExitError> {
        let mut version_min = 0;
        loop {
            let wanted = move |header: &PullHeader| header.version >= version_min;
            let theta = (&mut self.theta[..], &mut self.held);
            // It measures theta as it is.
            let pulled = pull(&mut self.link, theta, Encoding::Plain, version_min, wanted).await?;
            let Some(pulled) = pulled else {
                tracing::info!("the job has ended");
                return Ok(());
            };
            if is_final(pulled.state) {
                self.measure_final(pulled).await?;
                match self.link.leave(None).await? {
                    // The server was lost at the end, and the job goes on from before it.
                    Recovery::Rejoined => continue,
                    _ => return Ok(()),
                }
            }
            let train = self.metrics(&self.train.clone()).await?;
            self.report(pulled, train, None, false).await?;
            version_min = pulled.version + self.every;
        }
    }

    async fn measure_final(&mut self, pulled: PullHeader) -> Result<(), ExitError> {
        let train = self.metrics(&self.train.clone()).await?;
        let test = match self.test.clone() {
            Some(test) => Some(self.metrics(&test).await?),
            None => None,
        };
        self.report(pulled, train, test, true).await
    }

    async fn report(
        &mut self,
        pulled: PullHeader,
        train: Metrics,
        test: Option<Metrics>,
        r#final: bool,
    ) -> Result<(), ExitError> {
        let Some(train) = sendable(train) else { return Ok(()) };
        let test = test.and_then(sendable);
        tracing::info!(
            version = pulled.version,
            objective = train.objective(),
            accuracy = train.accuracy(),
            test_accuracy = test.as_ref().and_then(Metrics::accuracy),
            r#final,
            "measured"
        );
        let PullHeader { version, seconds, .. } = pulled;
        let sent = self
            .link
            .call(async |client, caller| {
                let evaluation = Evaluation { caller, version, seconds, train, test, r#final };
                client.evaluate(evaluation).await
            })
            .await?;
        tracing::debug!(state = ?sent, "reported");
        Ok(())
    }

    async fn metrics(&mut self, samples: &Arc<Samples<T>>) -> Result<Metrics, ExitError> {
        let (model, samples) = (self.model.clone(), samples.clone());
        let theta = std::mem::take(&mut self.theta);
        let measure = move || (model.metrics(&theta, &samples), theta);
        let (metrics, theta) = self.link.surroundings().compute(measure).await?;
        self.theta = theta;
        Ok(metrics)
    }
}

/// Pulls into `theta`, of which `held` is known, until `wanted`; `None`: the job has ended without
/// saying more.
async fn pull<T: Element>(
    link: &mut Link,
    (theta, held): (&mut [T], &mut Held),
    encoding: Encoding,
    version_min: u64,
    wanted: impl Fn(&PullHeader) -> bool,
) -> Result<Option<PullHeader>, ExitError> {
    loop {
        let pulled = link
            .call(async |client, caller| {
                let (r#final, wait_max) = (false, None);
                let request = PullRequest { caller, version_min, r#final, wait_max, exchange: 0 };
                held.pull(client, request, encoding, theta).await
            })
            .await?;
        match pulled {
            Some(header) if !wanted(&header) && !is_final(header.state) => {}
            other => return Ok(other),
        }
    }
}

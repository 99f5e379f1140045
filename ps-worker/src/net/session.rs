//! The life of a worker: survey, join, load, then gradient after gradient until the job ends.
//!
//! A gradient is a pure function of theta, shard, seed and clock, so that whatever a failure took
//! is computed again with the same bits.

use std::time::Duration;

use ps_common::calls::{JoinRequest, Outcome, PullHeader, PullRequest, PushHeader, PushResult};
use ps_common::codec::Encoding;
use ps_common::exit::{Exit, ExitError};
use ps_common::job::{JobState, Metrics, PROTOCOL_VERSION, Role, WorkerStats};
use ps_common::{Dtype, Element};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::watch;
use tokio::time::Instant;

use super::held::Held;
use super::link::{Link, Presence, Recovery};
use super::steps::Steps;
use super::surroundings::Surroundings;
use super::tensor::Parcel;
use crate::args::{Attachment, LearnArgs};
use crate::coding::{Coder, Wire};
use crate::learning::{Learner, Problem};
use crate::model::{Loss, Real};

/// Gradients that take less are computed on the thread that talks: a change of threads would cost
/// more than the connection loses by the pause.
const INLINE_MAX: Duration = Duration::from_millis(2);

/// What a worker is told by its flags.
#[derive(Debug, Clone, Copy)]
pub struct Duty {
    /// The wished rank.
    pub rank: Option<u32>,
    /// Bounds of the sleep before each push, milliseconds.
    pub delay_ms: Option<(u64, u64)>,
    /// How gradients and theta are sent.
    pub wire: Wire,
}

/// Works until the job ends.
///
/// # Errors
/// Whatever ends the process otherwise, with its exit code.
pub async fn work(
    learn: &LearnArgs,
    attachment: &Attachment,
    duty: Duty,
    surroundings: &Surroundings,
    present: watch::Sender<Option<Presence>>,
) -> Result<(), ExitError> {
    let problem = survey(learn, surroundings).await?;
    let request = join_request(&problem, attachment.dtype, Role::Worker, duty.rank);
    let Some(link) = Link::enter(attachment, surroundings, request, present).await? else {
        tracing::info!("the job has ended already");
        return Ok(());
    };
    let answer = link.answer();
    tracing::info!(
        rank = answer.caller.rank,
        n_workers = answer.n_shards,
        clock = answer.clock,
        mode = %answer.mode,
        dtype = %answer.dtype,
        dim = answer.dim,
        "joined"
    );
    match answer.dtype {
        Dtype::F32 => Session::<f32>::load(link, problem, duty).await?.run().await,
        Dtype::F64 => Session::<f64>::load(link, problem, duty).await?.run().await,
    }
}

/// Looks at the data, off the thread that talks.
pub(super) async fn survey(
    learn: &LearnArgs,
    surroundings: &Surroundings,
) -> Result<Problem, ExitError> {
    let learn = learn.clone();
    surroundings.compute(move || Problem::survey(&learn)).await?
}

/// The wish to enter the job that `problem` is about.
pub(super) fn join_request(
    problem: &Problem,
    dtype: Option<Dtype>,
    role: Role,
    rank: Option<u32>,
) -> JoinRequest {
    JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        role,
        rank,
        fingerprint: problem.fingerprint(dtype),
        tables: Some(problem.tables().clone()),
        dtype,
        program: format!("ps-worker {}", crate::VERSION),
        acknowledged_clock: None,
    }
}

/// Pulls into `theta`, of which `held` is known, until `wanted`; `None`: the job has ended without
/// saying more.
pub(super) async fn pull<T: Element>(
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

/// Whether theta does not change any more.
pub(super) fn is_final(state: JobState) -> bool {
    matches!(state, JobState::Finishing | JobState::Done)
}

/// Metrics as they may be sent; none where theta has diverged.
pub(super) fn sendable(metrics: Metrics) -> Option<Metrics> {
    let finite = metrics.loss.is_finite() && metrics.penalty.is_finite();
    if !finite {
        tracing::warn!(loss = metrics.loss, "the loss is not finite: diverged, lower --lr");
    }
    finite.then_some(metrics)
}

/// A worker with its shard in memory.
struct Session<T> {
    link: Link,
    steps: Steps,
    /// Away while it computes on another thread.
    learner: Option<Learner<T>>,
    theta: Vec<T>,
    held: Held,
    /// How theta is sent for gradients.
    encoding: Encoding,
    gradient: Vec<T>,
    /// Away while it writes on another thread; none where gradients are sent as they are.
    coder: Option<Coder<T>>,
    stats: WorkerStats,
    /// Of the latest gradient.
    compute: Duration,
    delay: Option<Delay>,
}

/// Sleeps between two bounds, the same ones for the same seed.
struct Delay {
    rng: ChaCha8Rng,
    bounds_ms: (u64, u64),
}

impl<T: Real> Session<T> {
    async fn load(mut link: Link, mut problem: Problem, duty: Duty) -> Result<Self, ExitError> {
        if let Some(own) = problem.statistics_to_merge() {
            let merged = link
                .call(async |client, caller| client.merge_statistics(caller, &own).await)
                .await?
                .ok_or_else(|| {
                    ExitError::new(Exit::Failed, "the job ended before all shards were there")
                })?;
            problem.use_statistics(&merged)?;
        }
        let terms = link.answer().clone();
        let seed = problem.seed();
        let delay = duty.delay_ms.map(|bounds_ms| Delay {
            rng: ChaCha8Rng::seed_from_u64(seed ^ u64::from(terms.caller.rank).rotate_left(32)),
            bounds_ms,
        });
        let dim = terms.dim;
        let Wire { push, pull: encoding } = duty.wire;
        let coder = Coder::new(push, terms.first_keys.clone());
        if coder.is_some() {
            tracing::warn!(
                codec = %push,
                "gradients lose something on their way; it is sent with the next one, but is in no \
                 checkpoint: a run in which a process crashes does not end with the bits of one \
                 without (with --wire f32 it does)"
            );
        }
        if encoding != Encoding::Plain {
            tracing::warn!(
                encoding = encoding.name(),
                largest = encoding.largest(),
                "theta arrives rounded, and gradients are computed at that: a run differs from one at \
                 theta as it is (--wire-pull f32), and ends if an element grows beyond the largest; \
                 theta at the server, and its final loss, are exact"
            );
        }
        let load = move || problem.load_shard::<T>(&terms);
        let learner = link.surroundings().compute(load).await??;
        tracing::info!(n_samples = learner.n_samples(), "loaded");
        Ok(Self {
            steps: link.client().steps().receiving(encoding),
            link,
            learner: Some(learner),
            theta: vec![T::ZERO; dim],
            held: Held::default(),
            encoding,
            gradient: vec![T::ZERO; dim],
            coder,
            stats: WorkerStats::of_learner(),
            compute: INLINE_MAX,
            delay,
        })
    }

    async fn run(mut self) -> Result<(), ExitError> {
        // A server may have been lost at the end with rounds that nobody else will do again.
        while self.learn_from_here().await? == Recovery::Rejoined
            || self.finish().await? == Recovery::Rejoined
        {}
        Ok(())
    }

    /// Measures the final theta and leaves, unless the worker had to join again before (`Rejoined`).
    async fn finish(&mut self) -> Result<Recovery, ExitError> {
        let (theta, held) = (&mut self.theta, &mut self.held);
        let last = loop {
            let pulled = self
                .link
                .call_as_joined(async |client, caller| {
                    let (r#final, wait_max) = (true, None);
                    let request =
                        PullRequest { caller, version_min: 0, r#final, wait_max, exchange: 0 };
                    // As the server has it: it is measured for the report.
                    held.pull(client, request, Encoding::Plain, theta).await
                })
                .await?;
            match pulled {
                Ok(header) if is_final(header.state) => break header,
                Ok(_) => {}
                Err(Recovery::Rejoined) => return Ok(Recovery::Rejoined),
                Err(_) => {
                    tracing::info!("the job has ended");
                    return Ok(Recovery::Ended);
                }
            }
        };
        self.stats.wait_seconds += last.waited.as_secs_f64();
        let metrics = self.off_thread(|learner, theta, _| learner.metrics(theta)).await?;
        self.link.report(self.stats);
        tracing::info!(
            version = last.version,
            objective = metrics.objective(),
            pushes = self.stats.pushes,
            "theta is final"
        );
        self.link.leave(sendable(metrics)).await
    }

    /// Steps from the clock that the server named until the job takes no more (`Ended`), or until
    /// the worker had to join again (`Rejoined`).
    async fn learn_from_here(&mut self) -> Result<Recovery, ExitError> {
        let theta = (&mut self.theta[..], &mut self.held);
        let pulled = pull(&mut self.link, theta, self.encoding, 0, |_| true).await?;
        let Some(pulled) = pulled else { return Ok(Recovery::Ended) };
        self.stats.wait_seconds += pulled.waited.as_secs_f64();
        self.steps = self.link.client().steps().receiving(self.encoding);
        // Named by the latest join, which the pull may have had to repeat.
        let mut clock = self.link.answer().clock;
        let rounds = self.link.answer().rounds.unwrap_or(u64::MAX);
        let (mut version, mut state) = (pulled.version, pulled.state);
        while state == JobState::Running && clock < rounds {
            let loss = self.compute(clock).await?;
            let header = PushHeader {
                caller: self.link.answer().caller,
                clock,
                version_pulled: version,
                n_samples: loss.n_samples,
                loss: self.told(loss.loss),
                penalty: self.told(loss.penalty),
                wait_max: None,
                exchange: 0,
            };
            let result = match self.step(header).await? {
                Ok(result) => result,
                Err(recovery) => return Ok(recovery),
            };
            tracing::trace!(
                rank = header.caller.rank,
                clock = header.clock,
                version = result.version,
                outcome = ?result.outcome,
                "answered"
            );
            self.stats.count_push(loss.n_samples, loss.loss);
            (clock, state, version) = (result.clock, result.state, self.steps.theta_version());
            self.link.acknowledge(clock);
            self.link.report(self.stats);
        }
        Ok(Recovery::Ended)
    }

    /// The objective is told where it is that of the whole shard: then the server has the history
    /// from it. Where it is not finite the gradient says so in better words.
    fn told(&self, value: f64) -> Option<f64> {
        let whole = self.learner.as_ref().is_some_and(Learner::is_full_batch);
        (whole && value.is_finite()).then_some(value)
    }

    /// Sends one push until it is answered, however often that takes.
    async fn step(
        &mut self,
        header: PushHeader,
    ) -> Result<Result<PushResult, Recovery>, ExitError> {
        let begun = Instant::now();
        loop {
            let gradient = match &self.coder {
                None => Parcel::from(&self.gradient),
                Some(coder) => Parcel::coded(coder.written()),
            };
            self.held = Held::default();
            match self.steps.step(header, gradient, &mut self.theta).await {
                Ok(result) => {
                    self.link.succeed();
                    if result.outcome != Outcome::Waiting {
                        let version = self.steps.theta_version();
                        self.held = Held::whole(header.caller, version, self.encoding);
                    }
                    let waited = result.waited.as_secs_f64();
                    self.stats.wait_seconds += waited;
                    self.stats.comm_seconds += (begun.elapsed().as_secs_f64() - waited).max(0.0);
                    return Ok(Ok(result));
                }
                Err(failure) => match self.link.recover(failure).await? {
                    // Its name keeps it from counting twice.
                    Recovery::Again => {
                        self.steps = self.link.client().steps().receiving(self.encoding);
                    }
                    other => return Ok(Err(other)),
                },
            }
        }
    }

    /// The gradient of `clock` at theta.
    async fn compute(&mut self, clock: u64) -> Result<Loss, ExitError> {
        let begun = Instant::now();
        let inline = self.compute < INLINE_MAX;
        let loss = match &mut self.learner {
            Some(learner) if inline => learner.compute(clock, &self.theta, &mut self.gradient),
            _ => {
                self.off_thread(move |learner, theta, gradient| {
                    learner.compute(clock, theta, gradient)
                })
                .await?
            }
        };
        self.write(inline).await?;
        self.compute = begun.elapsed();
        if let Some(Delay { rng, bounds_ms: (min, max) }) = &mut self.delay {
            tokio::time::sleep(Duration::from_millis(rng.random_range(*min..=*max))).await;
        }
        self.stats.compute_seconds += begun.elapsed().as_secs_f64();
        Ok(loss)
    }

    /// Writes the gradient as it is sent.
    async fn write(&mut self, inline: bool) -> Result<(), ExitError> {
        let Some(mut coder) = self.coder.take() else { return Ok(()) };
        let gradient = std::mem::take(&mut self.gradient);
        let work = move || {
            coder.write(&gradient);
            (coder, gradient)
        };
        let (coder, gradient) = match inline {
            true => work(),
            false => self.link.surroundings().compute(work).await?,
        };
        (self.coder, self.gradient) = (Some(coder), gradient);
        Ok(())
    }

    /// Runs `work` on another thread, which has the learner, theta and gradient meanwhile.
    async fn off_thread<A: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Learner<T>, &[T], &mut [T]) -> A + Send + 'static,
    ) -> Result<A, ExitError> {
        let mut learner = self.learner.take().expect("a computation at a time");
        let theta = std::mem::take(&mut self.theta);
        let mut gradient = std::mem::take(&mut self.gradient);
        let work = move || {
            let answer = work(&mut learner, &theta, &mut gradient);
            (answer, learner, theta, gradient)
        };
        let (answer, learner, theta, gradient) = self.link.surroundings().compute(work).await?;
        (self.learner, self.theta, self.gradient) = (Some(learner), theta, gradient);
        Ok(answer)
    }
}

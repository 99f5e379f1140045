//! The life of a worker: survey, join, load, then gradient after gradient until the job ends.
//!
//! A gradient is a pure function of theta, shard, seed and clock, so that whatever a failure took
//! is computed again with the same bits (in sync mode, where a clock has one theta).

use std::time::Duration;

use ps_common::Dtype;
use ps_common::calls::{JoinRequest, Outcome, PullHeader, PullRequest, PushHeader, PushResult};
use ps_common::codec::Encoding;
use ps_common::exit::{Exit, ExitError};
use ps_common::job::{JobState, Metrics, PROTOCOL_VERSION, Role, WorkerStats};
use ps_common::rows::{Rows, n_elements};
use tokio::sync::watch;
use tokio::time::Instant;

use super::excerpt;
use super::gradients::{Delay, Gradients, Place, Ready};
use super::held::Held;
use super::link::{Link, Presence, Recovery};
use super::steps::Steps;
use super::surroundings::Surroundings;
use super::tensor::Parcel;
use crate::args::{Attachment, LearnArgs};
use crate::coding::{Coder, Wire};
use crate::learning::Problem;
use crate::model::Real;

/// What a worker is told by its flags.
#[derive(Debug, Clone, Copy)]
pub struct Duty {
    /// The wished rank.
    pub rank: Option<u32>,
    /// Bounds of the sleep before each push, milliseconds.
    pub delay_ms: Option<(u64, u64)>,
    /// How gradients and theta are sent.
    pub wire: Wire,
    /// Whether it computes the next gradient while a push is on its way.
    pub overlap: bool,
    /// Whether only rows of theta come and go, those that its batches touch.
    pub sparse: bool,
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
    if duty.sparse {
        problem.check_sparse()?;
    }
    let wish = join_request(&problem, attachment.dtype, Role::Worker, duty.rank);
    let request = JoinRequest { overlap: duty.overlap, ..wish };
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
        overlap: false,
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
    gradients: Gradients<T>,
    /// What gradients are computed at, and its version.
    theta: Vec<T>,
    version: u64,
    held: Held,
    /// Whether theta is rows of it only: those that a batch touches.
    sparse: bool,
    /// The clock whose gradient theta is for; of all of theta any will do.
    is_for: Option<u64>,
    /// How theta is sent for gradients.
    encoding: Encoding,
    /// With overlap: where the next theta arrives while a gradient is computed at this one.
    arriving: Option<Vec<T>>,
    stats: WorkerStats,
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
        let seed = problem.seed() ^ u64::from(terms.caller.rank).rotate_left(32);
        let delay = duty.delay_ms.map(|bounds_ms| Delay::new(seed, bounds_ms));
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
        let load = move || {
            let learner = problem.load_shard::<T>(&terms)?;
            Ok::<_, ExitError>(if duty.sparse { learner.sparse() } else { learner })
        };
        let learner = link.surroundings().compute(load).await??;
        tracing::info!(n_samples = learner.n_samples(), "loaded");
        Ok(Self {
            steps: link.client().steps().receiving(encoding),
            gradients: Gradients::new(link.surroundings().clone(), learner, coder, delay),
            link,
            theta: Vec::new(),
            version: 0,
            held: Held::default(),
            sparse: duty.sparse,
            is_for: None,
            encoding,
            arriving: duty.overlap.then(|| vec![T::ZERO; dim]),
            stats: WorkerStats::of_learner(),
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
        let touched = self.gradients.touched_by_shard();
        let last = loop {
            // As the server has it: it is measured for the report.
            let pulled = self.pull(touched.as_deref(), Encoding::Plain, true).await?;
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
        let metrics = self.gradients.metrics(&mut self.theta).await?;
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
        let mut clock = self.link.answer().clock;
        let mut state = match self.fetch(clock).await? {
            Ok(pulled) => pulled.state,
            Err(recovery) => return Ok(recovery),
        };
        self.steps = self.link.client().steps().receiving(self.encoding);
        let rounds = self.link.answer().rounds.unwrap_or(u64::MAX);
        let mut ahead: Option<Ready<T>> = None;
        while state == JobState::Running && clock < rounds {
            if self.sparse && self.is_for != Some(clock) {
                // The rows at hand are of a clock that was skipped.
                match self.fetch(clock).await? {
                    Ok(pulled) => state = pulled.state,
                    Err(recovery) => return Ok(recovery),
                }
                continue;
            }
            let ready = match ahead.take() {
                Some(ready) if ready.clock == clock => ready,
                // What was computed ahead is of a clock that was skipped.
                _ => self.compute(clock).await?,
            };
            let next = (clock + 1 < rounds).then_some(clock + 1);
            let (result, computed) = self.step(&ready, next).await?;
            let result = match result {
                Ok(result) => result,
                // What was computed ahead is computed again, at theta that this life is given.
                Err(recovery) => return Ok(recovery),
            };
            tracing::trace!(
                rank = self.link.answer().caller.rank,
                clock,
                version = result.version,
                outcome = ?result.outcome,
                "answered"
            );
            self.stats.count_push(ready.loss.n_samples, ready.loss.loss);
            self.gradients.recycle(ready);
            (clock, state, ahead) = (result.clock, result.state, computed);
            self.link.acknowledge(clock);
            self.link.report(self.stats);
        }
        Ok(Recovery::Ended)
    }

    /// theta for the gradient of `clock`.
    async fn fetch(&mut self, clock: u64) -> Result<Result<PullHeader, Recovery>, ExitError> {
        let touched = self.gradients.touched(clock).await?;
        let pulled = self.pull(touched.as_deref(), self.encoding, false).await?;
        if let Ok(pulled) = &pulled {
            self.stats.wait_seconds += pulled.waited.as_secs_f64();
            (self.version, self.is_for) = (pulled.version, Some(clock));
        }
        Ok(pulled)
    }

    /// Pulls these rows of theta, or all of it.
    async fn pull(
        &mut self,
        rows: Option<&[Rows]>,
        encoding: Encoding,
        r#final: bool,
    ) -> Result<Result<PullHeader, Recovery>, ExitError> {
        let Self { link, theta, held, .. } = self;
        let dim = link.answer().dim;
        theta.resize(rows.map_or(dim, n_elements), T::ZERO);
        link.call_as_joined(async |client, caller| {
            let (version_min, wait_max, exchange) = (0, None, 0);
            let request = PullRequest { caller, version_min, r#final, wait_max, exchange };
            match rows {
                None => held.pull(client, request, encoding, theta).await,
                Some(rows) => excerpt::pull(client, request, encoding, rows, (dim, theta)).await,
            }
        })
        .await
    }

    /// The gradient of `clock` at theta.
    async fn compute(&mut self, clock: u64) -> Result<Ready<T>, ExitError> {
        let place = if self.arriving.is_some() { Place::Aside } else { Place::Nearest };
        let name = (clock, self.version);
        let ready = self.gradients.make(name, &mut self.theta, place).await?;
        self.stats.compute_seconds += ready.took.as_secs_f64();
        Ok(ready)
    }

    /// One push until it is answered, and theta as the answer brings it; with overlap the gradient
    /// of the clock `next` is computed meanwhile, at theta as it was.
    async fn step(
        &mut self,
        ready: &Ready<T>,
        next: Option<u64>,
    ) -> Result<(Result<PushResult, Recovery>, Option<Ready<T>>), ExitError> {
        let header = PushHeader {
            caller: self.link.answer().caller,
            clock: ready.clock,
            version_pulled: ready.version,
            n_samples: ready.loss.n_samples,
            loss: self.gradients.told(ready.loss.loss),
            penalty: self.gradients.told(ready.loss.penalty),
            wait_max: None,
            exchange: 0,
        };
        let begun = Instant::now();
        let line = (&mut self.link, &mut self.steps, self.encoding);
        let parcel = ready.parcel(next.is_some());
        self.theta.resize(parcel.n_answered(), T::ZERO);
        (self.held, self.is_for) = (Held::default(), None);
        let (result, computed) = match (next, &mut self.arriving) {
            (Some(clock), Some(arriving)) => {
                let name = (clock, self.version);
                let (result, computed) = tokio::try_join!(
                    push(line, header, parcel, arriving),
                    self.gradients.make(name, &mut self.theta, Place::Aside),
                )?;
                std::mem::swap(&mut self.theta, arriving);
                (result, Some(computed))
            }
            _ => (push(line, header, parcel, &mut self.theta).await?, None),
        };
        let computing = computed.as_ref().map_or(Duration::ZERO, |computed| computed.took);
        self.stats.compute_seconds += computing.as_secs_f64();
        if let Ok(result) = &result {
            self.version = self.steps.theta_version();
            if result.outcome != Outcome::Waiting {
                self.is_for = next;
                if !self.sparse {
                    self.held = Held::whole(header.caller, self.version, self.encoding);
                }
            }
            count_idle(&mut self.stats, begun.elapsed() - computing, result.waited);
        }
        Ok((result, computed))
    }
}

/// Sends one push until it is answered, however often that takes.
async fn push<T: Real>(
    (link, steps, encoding): (&mut Link, &mut Steps, Encoding),
    header: PushHeader,
    parcel: Parcel<'_, T>,
    theta: &mut [T],
) -> Result<Result<PushResult, Recovery>, ExitError> {
    loop {
        match steps.step(header, parcel, theta).await {
            Ok(result) => {
                link.succeed();
                return Ok(Ok(result));
            }
            Err(failure) => match link.recover(failure).await? {
                // Its name keeps it from counting twice.
                Recovery::Again => *steps = link.client().steps().receiving(encoding),
                other => return Ok(Err(other)),
            },
        }
    }
}

/// Books the part of a step in which the worker computed nothing: `wait_seconds` as far as the server
/// held the push for others, the rest is the wire.
fn count_idle(stats: &mut WorkerStats, idle: Duration, held: Duration) {
    let waited = idle.min(held);
    stats.wait_seconds += waited.as_secs_f64();
    stats.comm_seconds += (idle - waited).as_secs_f64();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_computed_is_wait_as_far_as_the_server_held_the_push() {
        let ms = Duration::from_millis;
        for (idle, held, wait, comm) in
            [(50, 0, 0, 50), (50, 30, 30, 20), (50, 80, 50, 0), (0, 80, 0, 0)]
        {
            let mut stats = WorkerStats::default();
            count_idle(&mut stats, ms(idle), ms(held));
            let booked = (stats.wait_seconds, stats.comm_seconds);
            assert_eq!(booked, (ms(wait).as_secs_f64(), ms(comm).as_secs_f64()));
        }
    }
}

//! A fixed asynchronous schedule, carried out: each update's gradient is computed at the theta that
//! the schedule names, and pushed through the real core with that version.
//!
//! There is no time in a schedule: virtual time stands still.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ps_common::calls::{Caller, Leave, Outcome, PushHeader};
use ps_common::exit::{Exit, ExitError};
use ps_common::job::{JobState, Role, WorkerStats};
use ps_common::{Error, ErrorCode};
use ps_server::args::JobSpec;
use ps_server::core::{CallId, ConnId, Input};
use ps_server::driver::Delivery;
use ps_server::table::Snapshot;
use ps_worker::learning::Learner;
use ps_worker::model::Real;

use super::engine::{Finished, Setup};
use super::queue::Time;
use super::schedule::Turn;
use super::server::{Server, Step};
use super::watch::Watch;
use super::worker::{is_finite, join_request};

const NOW: Time = Time::ZERO;

/// A worker without a life of its own.
struct Seat<T> {
    caller: Caller,
    learner: Learner<T>,
    clock: u64,
    stats: WorkerStats,
}

struct Run<'a, T> {
    setup: Setup<'a, T>,
    server: Server,
    watch: Option<Watch<'a, T>>,
    seats: Vec<Seat<T>>,
    /// The newest thetas, oldest first.
    thetas: VecDeque<Arc<Snapshot>>,
    n_thetas_max: usize,
    n_calls: u64,
    gradient: Vec<T>,
}

/// Carries out `turns` in their order.
///
/// # Errors
/// Bad data; configuration, where the job's options hold a push back, which a schedule cannot wait
/// for. A job that diverges is a result.
pub(super) fn run<T: Real>(setup: Setup<'_, T>, turns: &[Turn]) -> Result<Finished, ExitError> {
    // The schedule says when it ends, by worker and in all.
    let mut spec: JobSpec = setup.spec.clone();
    spec.config.rounds = None;
    let longest = turns.iter().map(|turn| turn.delay).max().unwrap_or(0);
    let dim = setup.problem.tables().dim();
    let mut run = Run {
        server: Server::new(&spec),
        watch: setup.watch.map(|(rows, every)| Watch::new(rows, every)),
        seats: Vec::new(),
        thetas: VecDeque::new(),
        n_thetas_max: longest.min(turns.len() as u64) as usize + 1,
        n_calls: 0,
        gradient: vec![T::ZERO; dim],
        setup,
    };
    run.join_all()?;
    let mut diverged_at_round = None;
    for (number, turn) in turns.iter().enumerate() {
        match run.take_turn(*turn)? {
            Ok(()) => {}
            Err(error) if is_divergence(&error) => {
                let n_workers = run.seats.len() as f64;
                diverged_at_round = Some(run.server.version() as f64 / n_workers);
                break;
            }
            Err(error) => {
                let what = format!("update {number} of --schedule, by worker {}", turn.rank);
                return Err(ExitError::new(Exit::Failed, what).because(error));
            }
        }
    }
    run.leave_all()?;
    let report = run.server.report(NOW).expect("somebody has joined");
    Ok(Finished {
        pushes: report.history.iter().map(|e| run.server.pushes_at(e.version)).collect(),
        n_pushes: run.server.pushes_at(run.server.version()),
        idle_shares: Vec::new(),
        diverged_at_round,
        report,
    })
}

fn is_divergence(error: &Error) -> bool {
    matches!(error.code, ErrorCode::NonFinite | ErrorCode::UpdateOverflow)
}

impl<T: Real> Run<'_, T> {
    fn new_call(&mut self) -> CallId {
        self.n_calls += 1;
        CallId(self.n_calls)
    }

    /// Gives an input to the server and finishes the update that it begins, if any; the answer to
    /// `call`, if it has come.
    fn feed(&mut self, call: CallId, input: Input) -> Option<Delivery> {
        let mut answer = None;
        let mut step = self.server.step(NOW, input);
        loop {
            let Step { replies, begun, .. } = step;
            for (answered, delivery) in replies {
                if answered == call {
                    answer = Some(delivery);
                }
            }
            if begun.is_none() {
                return answer;
            }
            let changed;
            (step, changed) = self.server.applied(NOW);
            if changed {
                self.setup.progress.fetch_add(1, Ordering::Relaxed);
                self.keep_theta();
            }
        }
    }

    fn keep_theta(&mut self) {
        if self.thetas.len() == self.n_thetas_max {
            self.thetas.pop_front();
        }
        self.thetas.push_back(self.server.theta());
    }

    fn join(&mut self, role: Role, rank: Option<u32>) -> Result<Delivery, ExitError> {
        let call = self.new_call();
        let request = join_request::<T>(self.setup.problem, role, rank);
        let (conn, address) = (ConnId(call.0), "schedule".to_owned());
        let answer = self.feed(call, Input::Join { call, conn, address, request });
        answer.ok_or_else(|| ExitError::new(Exit::Bug, "a join that is not answered"))
    }

    fn join_all(&mut self) -> Result<(), ExitError> {
        for rank in 0..self.setup.spec.config.n_workers {
            let Delivery::Joined(terms) = self.join(Role::Worker, Some(rank))? else {
                return Err(ExitError::new(Exit::Bug, format!("rank {rank} was not let in")));
            };
            self.seats.push(Seat {
                caller: terms.caller,
                learner: self.setup.problem.load_shard(&terms)?,
                clock: terms.clock,
                stats: WorkerStats::of_learner(),
            });
        }
        if self.watch.is_some()
            && let Delivery::Joined(terms) = self.join(Role::Observer, None)?
            && let Some(watch) = &mut self.watch
        {
            watch.join(NOW, terms.caller);
        }
        self.keep_theta();
        self.observe();
        Ok(())
    }

    /// One update. The inner error is the server's.
    fn take_turn(&mut self, turn: Turn) -> Result<Result<(), Error>, ExitError> {
        let back = (turn.delay as usize).min(self.thetas.len() - 1);
        let theta = Arc::clone(&self.thetas[self.thetas.len() - 1 - back]);
        let seat = &mut self.seats[turn.rank as usize];
        let loss = seat.learner.compute(seat.clock, &theta.values::<T>(), &mut self.gradient);
        let header = PushHeader {
            caller: seat.caller,
            clock: seat.clock,
            version_pulled: theta.version,
            n_samples: loss.n_samples,
            loss: None,
            penalty: None,
            wait_max: None,
            exchange: 0,
        };
        let bytes = ps_common::dtype::as_le_bytes(&self.gradient);
        let digest = crc32fast::hash(bytes);
        let mut gradient = self.server.empty_gradient(T::DTYPE);
        if let Err(error) = gradient.append(bytes, self.gradient.len()) {
            return Ok(Err(error));
        }
        let call = self.new_call();
        self.server.hold(call, gradient);
        let conn = ConnId(call.0);
        let version_before = self.server.version();
        // The file says what it was computed at, not a pull.
        self.server.keep(turn.rank, theta);
        let push = Input::Push { call, conn, header, digest, theta: false };
        let answer = self.feed(call, push);
        if self.server.version() > version_before {
            self.observe();
        }
        let seat = &mut self.seats[turn.rank as usize];
        match answer {
            Some(Delivery::Pushed(result, _)) if result.outcome != Outcome::Waiting => {
                seat.clock = result.clock;
                seat.stats.count_push(loss.n_samples, loss.loss);
                Ok(Ok(()))
            }
            Some(Delivery::Refused(error)) => Ok(Err(error)),
            _ => Err(ExitError::config(format!(
                "--schedule: the gradient of worker {} at version {} is held back until others \
                 have pushed, which a fixed schedule cannot wait for; leave out the option that \
                 bounds delays",
                turn.rank, header.version_pulled
            ))),
        }
    }

    fn observe(&mut self) {
        let theta = self.server.theta();
        let measured = self.watch.as_mut().and_then(|watch| watch.measure(NOW, &theta, false));
        if let Some(evaluation) = measured {
            let call = self.new_call();
            self.feed(call, Input::Evaluate { call, evaluation });
        }
    }

    /// The end of the schedule is the end of the job: final metrics, goodbyes.
    fn leave_all(&mut self) -> Result<(), ExitError> {
        let call = self.new_call();
        self.feed(call, Input::Stop { reason: "the schedule is over".to_owned() });
        let theta = self.server.theta();
        let values = theta.values::<T>();
        let leaves: Vec<Leave> = self
            .seats
            .iter()
            .map(|seat| Leave {
                caller: seat.caller,
                stats: seat.stats,
                final_metrics: Some(seat.learner.metrics(&values)).filter(is_finite),
            })
            .collect();
        for leave in leaves {
            let call = self.new_call();
            self.feed(call, Input::Leave { call, leave });
        }
        let last = self.watch.as_mut().and_then(|watch| watch.measure(NOW, &theta, true));
        if let Some(evaluation) = last {
            let call = self.new_call();
            self.feed(call, Input::Evaluate { call, evaluation });
        }
        if let Some(caller) = self.watch.as_mut().and_then(Watch::leave) {
            let call = self.new_call();
            let leave = Leave { caller, stats: WorkerStats::default(), final_metrics: None };
            self.feed(call, Input::Leave { call, leave });
        }
        match self.server.state() {
            JobState::Done => Ok(()),
            state => Err(ExitError::new(Exit::Bug, format!("the schedule ended in state {state}"))),
        }
    }
}

//! One run in virtual time: workers, links and server, event after event.
//!
//! Owns the order of events and who hears what. Decides nothing about training: `server` holds the
//! real core and theta, `worker` the real learners. The same run gives the same result to the bit.

mod exchange;

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

use ps_common::calls::Caller;
use ps_common::exit::{Exit, ExitError};
use ps_common::report::Report;
use ps_server::args::JobSpec;
use ps_server::core::{CallId, ConnId, Input};
use ps_server::driver::Delivery;
use ps_worker::learning::Problem;
use ps_worker::model::Real;

use super::args::Late;
use super::faults::{Crash, Faults};
use super::network::{ApplyTime, Fate, HEADER_BYTES, Links, Network, Way};
use super::pace::{Pace, span};
use super::queue::{Queue, Time};
use super::server::Server;
use super::watch::{Rows, Watch};
use super::worker::{Action, Request, Worker};

/// The world that a job runs in.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct World {
    pub(super) pace: Pace,
    pub(super) links: Links,
    pub(super) apply_time: ApplyTime,
    pub(super) late: Late,
    /// What messages are as large as; `None`: theta.
    pub(super) theta_bytes: Option<u64>,
    pub(super) faults: Faults,
}

/// All that a run is made from.
pub(super) struct Setup<'a, T> {
    pub(super) problem: &'a Problem,
    pub(super) spec: &'a JobSpec,
    pub(super) world: &'a World,
    pub(super) sim_seed: u64,
    /// Rows to measure on, and versions between measurements, if not only of the final theta.
    /// Workers that are lost at the end leave no metrics, so that theirs do not do.
    pub(super) watch: Option<(&'a Rows<T>, Option<u64>)>,
    /// Counts gradients that have counted.
    pub(super) progress: &'a AtomicU64,
}

/// What a run has come to.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finished {
    /// The core's own.
    pub(super) report: Report,
    /// The round in which numbers left the range of floating point.
    pub(super) diverged_at_round: Option<f64>,
    /// Gradients that had counted at each entry of the report's history.
    pub(super) pushes: Vec<u64>,
    /// Gradients that have counted in all.
    pub(super) n_pushes: u64,
    /// Share of its time that each worker did not compute.
    pub(super) idle_shares: Vec<f64>,
}

enum Event {
    /// A message is sent, or sent again.
    Send(Envelope),
    /// A message arrives.
    Arrive(Envelope),
    /// A gradient's compute time is over.
    Computed { rank: u32, life: u64, attempt: u64 },
    /// A pause is over.
    Resume { rank: u32, life: u64 },
    /// A sign of life is due.
    Heartbeat { rank: u32, caller: Caller },
    /// One of the observer is.
    ObserverHeartbeat,
    /// The update under way is stored.
    Applied,
    /// The core wants to be asked.
    Tick,
    /// A process dies.
    Crash(Crash),
    /// Another takes its place.
    Return { rank: u32 },
}

/// A message on the link of a worker.
struct Envelope {
    rank: u32,
    /// Of which life of the worker.
    life: u64,
    message: Message,
}

enum Message {
    Up(Request),
    Down(Delivery),
    /// The server has gone on to this version without the worker (`--late abandon` only).
    Closed(u64),
}

/// Who waits for the answer to a call.
enum Waiting {
    Worker {
        rank: u32,
        life: u64,
    },
    Observer,
    /// Nobody looks at it.
    Nobody,
}

struct Run<'a, T> {
    setup: Setup<'a, T>,
    queue: Queue<Event>,
    server: Server,
    network: Network,
    workers: Vec<Worker<T>>,
    /// By rank: the connection, and the call that the server has not answered.
    lines: Vec<(Option<ConnId>, Option<CallId>)>,
    watch: Option<Watch<'a, T>>,
    waiting: HashMap<CallId, Waiting>,
    n_calls: u64,
    n_conns: u64,
    next_tick: Option<Time>,
    message_bytes: u64,
    diverged_at_round: Option<f64>,
    failure: Option<ExitError>,
}

/// Runs a job from the first join to the last goodbye.
///
/// # Errors
/// Bad data. A job that fails or diverges is a result.
pub(super) fn run<T: Real>(setup: Setup<'_, T>) -> Result<Finished, ExitError> {
    let n_workers = setup.spec.config.n_workers;
    let dim = setup.problem.tables().dim() as u64;
    let theta_bytes = dim * T::DTYPE.size_bytes() as u64;
    let workers =
        (0..n_workers).map(|rank| Worker::new(rank, setup.sim_seed, setup.problem)).collect();
    let run = Run {
        queue: Queue::new(),
        server: Server::new(setup.spec),
        network: Network::new(setup.world.links),
        workers,
        lines: vec![(None, None); n_workers as usize],
        watch: setup.watch.map(|(rows, every)| Watch::new(rows, every)),
        waiting: HashMap::new(),
        n_calls: 0,
        n_conns: 0,
        next_tick: None,
        message_bytes: setup.world.theta_bytes.unwrap_or(theta_bytes),
        diverged_at_round: None,
        failure: None,
        setup,
    };
    run.live()
}

impl<T: Real> Run<'_, T> {
    fn live(mut self) -> Result<Finished, ExitError> {
        for crash in &self.setup.world.faults.crashes {
            self.queue.push(crash.at, Event::Crash(crash.clone()));
        }
        for rank in 0..self.setup.spec.config.n_workers {
            let action = self.worker(rank).start(Time::ZERO);
            self.act(Time::ZERO, rank, action);
        }
        let mut now = Time::ZERO;
        while !self.server.is_over() {
            let Some((at, event)) = self.queue.pop() else {
                return Err(ExitError::new(
                    Exit::Bug,
                    format!("nothing more happens in a job that is {}", self.server.state()),
                ));
            };
            now = at;
            self.happen(now, event);
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
        }
        Ok(self.finished(now))
    }

    fn finished(&self, now: Time) -> Finished {
        let report = self.server.report(now).expect("somebody has joined");
        let pushes = report.history.iter().map(|e| self.server.pushes_at(e.version)).collect();
        let idle = |worker: &Worker<T>| {
            let (span, busy) = worker.time();
            let busy_share = busy.as_secs_f64() / span.as_secs_f64();
            if busy_share.is_finite() { (1.0 - busy_share).clamp(0.0, 1.0) } else { 0.0 }
        };
        Finished {
            pushes,
            n_pushes: self.server.pushes_at(self.server.version()),
            idle_shares: self.workers.iter().map(idle).collect(),
            diverged_at_round: self.diverged_at_round,
            report,
        }
    }

    fn happen(&mut self, now: Time, event: Event) {
        match event {
            Event::Send(envelope) => self.send(now, envelope),
            Event::Arrive(Envelope { rank, life, message }) => {
                if self.worker(rank).life == life {
                    match message {
                        Message::Up(request) => self.arrive(now, (rank, life), request),
                        Message::Down(delivery) => self.hear(now, rank, delivery),
                        Message::Closed(version) => {
                            if let Some(action) = self.worker(rank).abandon(now, version) {
                                self.act(now, rank, action);
                            }
                        }
                    }
                }
            }
            Event::Computed { rank, life, attempt } if self.worker(rank).is_at(life, attempt) => {
                let action = self.worker(rank).computed(now);
                self.act(now, rank, action);
            }
            Event::Resume { rank, life } if self.worker(rank).life == life => {
                let action = self.worker(rank).resume(now);
                self.act(now, rank, action);
            }
            Event::Heartbeat { rank, caller } => self.keep_worker(now, rank, caller),
            Event::ObserverHeartbeat => self.keep_observer(now),
            Event::Applied => self.applied(now),
            Event::Tick if self.next_tick == Some(now) => {
                self.next_tick = None;
                self.feed(now, Input::Tick);
            }
            Event::Crash(crash) => self.crash(now, &crash),
            Event::Return { rank } => {
                let action = self.worker(rank).start(now);
                self.act(now, rank, action);
            }
            // Of an earlier life, abandoned, or planned before the core wanted it sooner.
            Event::Computed { .. } | Event::Resume { .. } | Event::Tick => {}
        }
    }

    fn worker(&mut self, rank: u32) -> &mut Worker<T> {
        &mut self.workers[rank as usize]
    }

    /// Carries out what a worker wants.
    fn act(&mut self, now: Time, rank: u32, action: Action) {
        let life = self.worker(rank).life;
        match action {
            Action::Call(request) => {
                self.send(now, Envelope { rank, life, message: Message::Up(request) });
            }
            Action::Compute(n_rows) => {
                let world = self.setup.world;
                let slowdown = world.faults.slowdown(rank, now);
                let seconds = world.pace.draw(&mut self.worker(rank).draws, rank, n_rows);
                let attempt = self.worker(rank).attempt;
                let computed = Event::Computed { rank, life, attempt };
                self.queue.push(now + span(seconds * slowdown), computed);
            }
            Action::Pause(pause) => self.queue.push(now + pause, Event::Resume { rank, life }),
            Action::Diverged => {
                self.diverge(now);
                let action = self.worker(rank).give_up(now);
                self.act(now, rank, action);
            }
            Action::End => self.hang_up(now, rank),
        }
    }

    /// Puts a message on its worker's link.
    fn send(&mut self, now: Time, envelope: Envelope) {
        let Envelope { rank, life, message } = &envelope;
        if self.workers[*rank as usize].life != *life {
            return;
        }
        let (way, bytes) = match message {
            Message::Up(Request::Push(_)) => (Way::Up, self.message_bytes + HEADER_BYTES),
            Message::Up(_) => (Way::Up, HEADER_BYTES),
            Message::Down(Delivery::Pushed(..) | Delivery::Pulled(..)) => {
                (Way::Down, self.message_bytes + HEADER_BYTES)
            }
            Message::Down(_) | Message::Closed(_) => (Way::Down, HEADER_BYTES),
        };
        let fate = self.network.send(now, (*rank, way), bytes, &self.setup.world.faults);
        match fate {
            Fate::Again(at) => self.queue.push(at, Event::Send(envelope)),
            Fate::Arrives(at) => {
                let traffic = if way == Way::Up { (bytes, 0) } else { (0, bytes) };
                self.worker(envelope.rank).count_traffic(traffic.0, traffic.1);
                self.queue.push(at, Event::Arrive(envelope));
            }
        }
    }

    /// What a real run would end with is a result here: the job stops, theta is final.
    fn diverge(&mut self, now: Time) {
        if self.diverged_at_round.is_some() {
            return;
        }
        let rounds = self.server.report(now).map_or(0.0, |report| report.rounds);
        self.diverged_at_round = Some(rounds);
        self.feed(now, Input::Stop { reason: format!("diverged in round {rounds}") });
    }

    fn crash(&mut self, now: Time, crash: &Crash) {
        let rank = crash.rank;
        if self.worker(rank).has_ended() {
            return;
        }
        self.worker(rank).crash(now);
        if let Some(call) = self.lines[rank as usize].1.take() {
            self.waiting.remove(&call);
            self.feed(now, Input::Dropped { call });
        }
        self.hang_up(now, rank);
        if let Some(back) = crash.back {
            self.queue.push(back, Event::Return { rank });
        }
    }

    /// A worker's connection ends.
    fn hang_up(&mut self, now: Time, rank: u32) {
        if let Some(conn) = self.lines[rank as usize].0.take() {
            self.feed(now, Input::Disconnected { conn });
        }
    }
}

#[cfg(test)]
mod tests;

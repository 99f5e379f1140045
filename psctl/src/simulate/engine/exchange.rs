//! What goes between the server and everybody else: calls in, answers out, what the observer sees.

use std::sync::atomic::Ordering;

use ps_common::calls::{Caller, Leave};
use ps_common::job::{JobState, Role, WorkerStats};
use ps_server::core::{CallId, ConnId, Input};
use ps_server::driver::Delivery;
use ps_worker::model::Real;

use super::{Envelope, Event, Message, Run, Waiting};
use crate::simulate::args::Late;
use crate::simulate::queue::Time;
use crate::simulate::server::Step;
use crate::simulate::watch::Watch;
use crate::simulate::worker::{Request, join_request};

impl<T: Real> Run<'_, T> {
    /// A call arrives at the server.
    pub(super) fn arrive(&mut self, now: Time, (rank, life): (u32, u64), request: Request) {
        let is_heartbeat = matches!(request, Request::Heartbeat(..));
        let waiting = if is_heartbeat { Waiting::Nobody } else { Waiting::Worker { rank, life } };
        let call = self.new_call(waiting);
        if !is_heartbeat {
            self.lines[rank as usize].1 = Some(call);
        }
        let input = match request {
            Request::Join(request) => {
                // A worker that joins again does so over a new connection.
                self.hang_up(now, rank);
                let conn = self.new_conn();
                self.lines[rank as usize] = (Some(conn), Some(call));
                let address = format!("worker {rank}");
                Input::Join { call, conn, address, request: *request }
            }
            Request::Heartbeat(caller, stats) => Input::Heartbeat { call, caller, stats },
            Request::Leave(leave) => Input::Leave { call, leave },
            Request::Pull(request) => Input::Pull { call, conn: self.conn(rank), request },
            Request::Push(header) => {
                // Checked as the real server does while the bytes come in.
                let bytes = self.workers[rank as usize].gradient();
                let digest = crc32fast::hash(bytes);
                let mut gradient = self.server.empty_gradient(T::DTYPE);
                if let Err(error) = gradient.append(bytes, self.setup.problem.tables().dim()) {
                    self.waiting.remove(&call);
                    let rejected =
                        Input::Rejected { caller: Some(header.caller), code: error.code };
                    self.feed(now, rejected);
                    let message = Message::Down(Delivery::Refused(error));
                    return self.send(now, Envelope { rank, life, message });
                }
                self.server.hold(call, gradient);
                Input::Push { call, conn: self.conn(rank), header, digest, theta: true }
            }
        };
        self.feed(now, input);
    }

    fn new_call(&mut self, waiting: Waiting) -> CallId {
        self.n_calls += 1;
        let call = CallId(self.n_calls);
        self.waiting.insert(call, waiting);
        call
    }

    fn new_conn(&mut self) -> ConnId {
        self.n_conns += 1;
        ConnId(self.n_conns)
    }

    fn conn(&self, rank: u32) -> ConnId {
        self.lines[rank as usize].0.expect("connected when it joined")
    }

    /// An answer arrives at a worker.
    pub(super) fn hear(&mut self, now: Time, rank: u32, delivery: Delivery) {
        if let Delivery::Joined(terms) = &delivery {
            let problem = self.setup.problem;
            if let Err(error) = self.worker(rank).load(problem, terms) {
                self.failure = Some(error);
                return;
            }
            let caller = terms.caller;
            self.queue.push(now + terms.lease / 3, Event::Heartbeat { rank, caller });
        }
        let action = self.worker(rank).hear(now, delivery);
        self.act(now, rank, action);
    }

    /// Gives an input to the server and does what follows.
    pub(super) fn feed(&mut self, now: Time, input: Input) {
        let step = self.server.step(now, input);
        self.follow(now, step);
    }

    fn follow(&mut self, now: Time, step: Step) {
        if let Some(n_gradients) = step.begun {
            let time = self.setup.world.apply_time.of(n_gradients, self.message_bytes);
            self.queue.push(now + time, Event::Applied);
        }
        for (call, delivery) in step.replies {
            match self.waiting.remove(&call) {
                Some(Waiting::Worker { rank, life }) => {
                    let line = &mut self.lines[rank as usize].1;
                    line.take_if(|held| *held == call);
                    let message = Message::Down(delivery);
                    self.send(now, Envelope { rank, life, message });
                }
                Some(Waiting::Observer) => self.let_observer_in(now, delivery),
                Some(Waiting::Nobody) | None => {}
            }
        }
        if step.created && self.watch.is_some() {
            let call = self.new_call(Waiting::Observer);
            let conn = self.new_conn();
            let request = join_request::<T>(self.setup.problem, Role::Observer, None);
            self.feed(now, Input::Join { call, conn, address: "observer".to_owned(), request });
        }
        if let Some(deadline) = self.server.next_deadline()
            && self.next_tick.is_none_or(|tick| deadline < tick)
        {
            let at = deadline.max(now);
            self.next_tick = Some(at);
            self.queue.push(at, Event::Tick);
        }
        if self.server.state() >= JobState::Finishing {
            self.observe_the_end(now);
        }
    }

    pub(super) fn applied(&mut self, now: Time) {
        let before = self.server.pushes_at(self.server.version());
        let (step, changed) = self.server.applied(now);
        if changed {
            let counted = self.server.pushes_at(self.server.version()) - before;
            self.setup.progress.fetch_add(counted, Ordering::Relaxed);
            if self.server.state() == JobState::Running {
                self.observe(now);
            }
            if self.setup.world.late == Late::Abandon {
                self.tell_the_late(now);
            }
        }
        self.follow(now, step);
    }

    /// Tells who owes the server no answer, and so is not in the round that has closed. To a worker
    /// that is not computing at an older theta it means nothing.
    fn tell_the_late(&mut self, now: Time) {
        let version = self.server.version();
        for rank in 0..self.setup.spec.config.n_workers {
            if self.lines[rank as usize].1.is_none() {
                let life = self.worker(rank).life;
                self.send(now, Envelope { rank, life, message: Message::Closed(version) });
            }
        }
    }

    fn let_observer_in(&mut self, now: Time, delivery: Delivery) {
        let Delivery::Joined(terms) = delivery else { return };
        if let Some(watch) = &mut self.watch {
            watch.join(now, terms.caller);
            self.queue.push(now + terms.lease / 3, Event::ObserverHeartbeat);
            self.observe(now);
        }
    }

    /// Measures the published theta if that is due.
    fn observe(&mut self, now: Time) {
        let theta = self.server.theta();
        let measured = self.watch.as_mut().and_then(|watch| watch.measure(now, &theta, false));
        if let Some(evaluation) = measured {
            let call = self.new_call(Waiting::Nobody);
            self.feed(now, Input::Evaluate { call, evaluation });
        }
    }

    /// The observer's last word. After a theta that cannot be measured it just goes.
    fn observe_the_end(&mut self, now: Time) {
        let Some(watch) = self.watch.as_mut() else { return };
        let ends_well = self.server.state() != JobState::Failed;
        let theta = self.server.theta();
        let measured = watch.measure(now, &theta, true).filter(|_| ends_well);
        let Some(caller) = watch.leave() else { return };
        if let Some(evaluation) = measured {
            let call = self.new_call(Waiting::Nobody);
            self.feed(now, Input::Evaluate { call, evaluation });
        }
        let call = self.new_call(Waiting::Nobody);
        let leave = Leave { caller, stats: WorkerStats::default(), final_metrics: None };
        self.feed(now, Input::Leave { call, leave });
    }

    /// Renews the lease of who joined as `caller`, if that is still who is there.
    pub(super) fn keep_worker(&mut self, now: Time, rank: u32, caller: Caller) {
        let worker = self.worker(rank);
        let life = worker.life;
        if let Some((present, lease, stats)) = worker.presence()
            && present == caller
        {
            let message = Message::Up(Request::Heartbeat(caller, stats));
            self.send(now, Envelope { rank, life, message });
            self.queue.push(now + lease / 3, Event::Heartbeat { rank, caller });
        }
    }

    pub(super) fn keep_observer(&mut self, now: Time) {
        let caller: Option<Caller> = self.watch.as_ref().and_then(Watch::caller);
        if let Some(caller) = caller.filter(|caller| self.server.knows(*caller)) {
            let call = self.new_call(Waiting::Nobody);
            self.feed(now, Input::Heartbeat { call, caller, stats: WorkerStats::default() });
            self.queue.push(now + self.setup.spec.config.lease / 3, Event::ObserverHeartbeat);
        }
    }
}

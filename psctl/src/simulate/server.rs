//! The server in virtual time: the real core and the real theta, with time as an argument.
//!
//! What `ps_server::driver` is behind the network, without locks; an update is carried out when the
//! core orders it, but counts only after its apply time, when the engine says so. Decides nothing.

use std::sync::Arc;

use ps_common::Dtype;
use ps_common::calls::Caller;
use ps_common::dtype::CHUNK_BYTES;
use ps_common::job::JobState;
use ps_common::report::Report;
use ps_server::applier::{Applier, Fresh};
use ps_server::args::JobSpec;
use ps_server::core::{Answer, CallId, Core, Effect, Input, Unapplied};
use ps_server::driver::Delivery;
use ps_server::table::{Gradient, Snapshot};

use super::queue::Time;

/// Core and theta.
pub(super) struct Server {
    core: Core,
    applier: Applier,
    program: String,
    /// What the update under way has given.
    under_way: Option<UnderWay>,
    /// Gradients that had counted at each version of theta.
    pushes_at: Vec<u64>,
}

struct UnderWay {
    name: CallId,
    result: Result<Fresh, Unapplied>,
    n_gradients: usize,
}

/// What follows from an input.
#[derive(Default)]
pub(super) struct Step {
    /// Answers, in order.
    pub(super) replies: Vec<(CallId, Delivery)>,
    /// An update has begun, of so many gradients.
    pub(super) begun: Option<usize>,
    /// theta has just been made.
    pub(super) created: bool,
}

impl Server {
    /// A server without a job.
    pub(super) fn new(spec: &JobSpec) -> Self {
        Self {
            core: Core::new(spec.config.clone(), spec.dtype),
            applier: Applier::new(spec.optimizer, CHUNK_BYTES),
            program: format!("psctl simulate {}", ps_server::VERSION),
            under_way: None,
            pushes_at: vec![0],
        }
    }

    /// One input to the core at time `now`. Nothing is written at the end of a job, so that it is
    /// concluded at once.
    pub(super) fn step(&mut self, now: Time, input: Input) -> Step {
        let mut step = Step::default();
        let mut next = Some(input);
        while let Some(input) = next.take() {
            for effect in self.core.step(now, input) {
                match effect {
                    Effect::Reply { call, answer } => {
                        step.replies.push((call, self.complete(answer)));
                    }
                    Effect::Create { tables, dtype } => {
                        self.applier.create(&tables, dtype);
                        step.created = true;
                    }
                    Effect::Update(order) => {
                        let n_gradients = order.parts.len();
                        let result = self.applier.update(&order);
                        let name = order.name();
                        self.under_way = Some(UnderWay { name, result, n_gradients });
                        step.begun = Some(n_gradients);
                    }
                    Effect::Keep { rank } => self.keep(rank, self.theta()),
                    Effect::Forget { gradient } => self.applier.forget(gradient),
                    Effect::Capture => unreachable!("a simulated job keeps no checkpoints"),
                    Effect::Conclude => next = Some(Input::Concluded),
                }
            }
        }
        step
    }

    /// A gradient arrives whole, under the name of its call.
    pub(super) fn hold(&self, call: CallId, gradient: Gradient) {
        self.applier.hold(call, gradient);
    }

    /// Keeps theta as a worker has it, for the correction of its next gradient.
    pub(super) fn keep(&self, rank: u32, theta: Arc<Snapshot>) {
        self.applier.keep(rank, theta);
    }

    /// The apply time of the update under way is over. The flag: theta has changed.
    pub(super) fn applied(&mut self, now: Time) -> (Step, bool) {
        let UnderWay { name, result, n_gradients } =
            self.under_way.take().expect("planned when it began");
        let changed = result.is_ok();
        let result = result.map(|fresh| {
            let before = self.pushes_at.last().copied().unwrap_or(0);
            self.pushes_at.push(before + n_gradients as u64);
            self.applier.publish(fresh);
        });
        (self.step(now, Input::Updated { name, result }), changed)
    }

    /// Memory for the next gradient.
    pub(super) fn empty_gradient(&self, dtype: Dtype) -> Gradient {
        self.applier.empty_gradient(dtype)
    }

    /// What pulls get now.
    pub(super) fn theta(&self) -> Arc<Snapshot> {
        self.applier.snapshot().expect("calls about theta are refused before there is one")
    }

    /// Gradients that had counted when theta came to `version`.
    pub(super) fn pushes_at(&self, version: u64) -> u64 {
        self.pushes_at[version as usize]
    }

    /// When the core wants to be asked again.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.core.next_deadline()
    }

    /// Where the job stands.
    pub(super) fn state(&self) -> JobState {
        self.core.state()
    }

    /// Updates that have counted.
    pub(super) fn version(&self) -> u64 {
        self.core.version()
    }

    /// Whether the job has ended and nobody is left to hear of it.
    pub(super) fn is_over(&self) -> bool {
        self.core.is_over()
    }

    /// Whether a caller would be listened to.
    pub(super) fn knows(&self, caller: Caller) -> bool {
        self.core.check_caller(caller).is_ok()
    }

    /// The core's own report.
    pub(super) fn report(&self, now: Time) -> Option<Report> {
        let sha256 = self.applier.snapshot()?.sha256();
        let optimizer = self.applier.optimizer().to_string();
        self.core.report(now, &optimizer, &self.program, &sha256)
    }

    fn complete(&self, answer: Answer) -> Delivery {
        match answer {
            Answer::Joined(welcome) => {
                let answer = self.core.join_answer(&welcome, &self.program);
                Delivery::Joined(Box::new(answer.expect("who is welcome has a job to join")))
            }
            Answer::State { state, version } => Delivery::State { state, version },
            Answer::Pushed(result) => Delivery::Pushed(result, self.theta()),
            Answer::Pulled(mut header) => {
                let theta = self.theta();
                header.version = theta.version;
                Delivery::Pulled(header, theta)
            }
            Answer::Statistics => unreachable!("no simulated worker brings statistics"),
            Answer::Checkpointed { .. } => unreachable!("a simulated job keeps no checkpoints"),
            Answer::Refused(refusal) => Delivery::Refused(refusal.0),
        }
    }
}

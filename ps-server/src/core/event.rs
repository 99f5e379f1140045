//! What goes into the core and what comes out: plain, comparable, serialisable.

use std::time::Duration;

use ps_common::calls::{
    Caller, Evaluation, JoinRequest, Leave, PullHeader, PullRequest, PushHeader, PushResult,
};
use ps_common::job::{Aggregate, Durability, JobState, OnWorkerLoss, WorkerStats};
use ps_common::partition::Partition;
use ps_common::tables::Tables;
use ps_common::{Dtype, Error, ErrorCode};
use serde::Serialize;

use super::consistency::{Consistency, Order};
use super::measuring::StopRules;

/// Monotonic time since the server's start.
pub type Time = Duration;

/// One call in flight; also the name of the gradient that a push brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct CallId(pub u64);

/// One transport connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ConnId(pub u64);

/// What the core decides by; fixed for the life of a server.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// How updates are ordered, and who waits for whom.
    pub consistency: Consistency,
    /// K.
    pub n_workers: u32,
    /// Which of the job's servers this is: the one that decides, or the only one.
    pub partition: Partition,
    /// How a round is summed.
    pub aggregate: Aggregate,
    /// Clocks that a worker owes; `None`: until stopped.
    pub rounds: Option<u64>,
    /// A holder that is silent for so long is lost.
    pub lease: Duration,
    /// What becomes of a lost worker's rank.
    pub on_worker_loss: OnWorkerLoss,
    /// How long a rank may be without a holder before the job fails or goes on without it.
    pub replacement_timeout: Duration,
    /// Observers that must have measured the first theta before workers may pull it.
    pub observers: u32,
    /// Longest time that a call is held.
    pub wait_max: Duration,
    /// When the job ends before its rounds are done.
    pub stop: StopRules,
    /// Whether checkpoints are kept, and how often; `None`: nothing outlives the process.
    pub checkpoints: Option<Checkpoints>,
    /// How often a server was started on these checkpoints before: the upper half of every
    /// incarnation, so that none is given twice (rule R6).
    pub boot: u32,
}

/// When checkpoints are taken besides those that are asked for and the last one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Checkpoints {
    /// What may be lost.
    pub durability: Durability,
    /// `None`: only when asked for, and at the end.
    pub every: Option<Every>,
}

/// How often.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Every {
    /// So many rounds; version / K where there are none (rule R1).
    Rounds(u64),
    /// So long after the one before was taken, if theta has moved since.
    Time(Duration),
}

/// Why an update did not come about. theta is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unapplied {
    /// The first key that would have overflowed.
    Overflow {
        /// Of theta.
        key: u64,
    },
    /// Its record could not be written to the journal.
    NotWritten {
        /// Where and why.
        what: String,
    },
}

impl Config {
    /// How long a call is held at most.
    pub const WAIT_MAX: Duration = Duration::from_secs(30);
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A worker or observer wants in.
    Join {
        /// To be answered.
        call: CallId,
        /// That it came by.
        conn: ConnId,
        /// Peer address, for the operator.
        address: String,
        /// Its wish.
        request: JoinRequest,
    },
    /// A sign of life.
    Heartbeat {
        /// To be answered.
        call: CallId,
        /// Whose.
        caller: Caller,
        /// Its measurements.
        stats: WorkerStats,
    },
    /// A goodbye.
    Leave {
        /// To be answered.
        call: CallId,
        /// Its words.
        leave: Leave,
    },
    /// A whole, valid gradient has arrived; the driver holds it under `call`.
    Push {
        /// To be answered; names the gradient.
        call: CallId,
        /// That it came by.
        conn: ConnId,
        /// Its name and facts.
        header: PushHeader,
        /// Checksum of the gradient's bytes.
        digest: u32,
        /// theta goes with the answer: then the answer waits until the caller may have it.
        theta: bool,
    },
    /// Somebody wants theta.
    Pull {
        /// To be answered.
        call: CallId,
        /// That it came by.
        conn: ConnId,
        /// Its wish.
        request: PullRequest,
    },
    /// An observer has measured.
    Evaluate {
        /// To be answered.
        call: CallId,
        /// What.
        evaluation: Evaluation,
    },
    /// A worker's feature statistics have arrived; the driver holds them by rank.
    Statistics {
        /// To be answered.
        call: CallId,
        /// Whose.
        caller: Caller,
    },
    /// A request was refused before it reached the core.
    Rejected {
        /// Who sent it, where that was readable.
        caller: Option<Caller>,
        /// Why.
        code: ErrorCode,
    },
    /// The driver has carried out [`Effect::Update`].
    Updated {
        /// Which: [`Order::name`].
        name: CallId,
        /// Stored, or why nothing was.
        result: Result<(), Unapplied>,
    },
    /// A checkpoint is wanted now.
    Checkpoint {
        /// To be answered once one of this theta or a later one is durable; `None`: nobody waits.
        call: Option<CallId>,
    },
    /// The driver has carried out [`Effect::Capture`].
    Captured,
    /// What was captured is durable, or could not be made so.
    Saved {
        /// theta's version in it.
        version: u64,
        /// Its file and size in bytes; or where and why it failed: then older ones are as they were.
        result: Result<(String, u64), String>,
    },
    /// The driver has carried out [`Effect::Conclude`].
    Concluded,
    /// The caller of a held call is gone.
    Dropped {
        /// Which.
        call: CallId,
    },
    /// A connection is gone.
    Disconnected {
        /// Which.
        conn: ConnId,
    },
    /// An operator ends the job: theta as it is becomes final.
    Stop {
        /// For the events.
        reason: String,
    },
    /// The server is going: held calls are told so.
    Drain,
    /// Time has passed.
    Tick,
}

/// Something to be done, in order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Effect {
    /// Answer a call.
    Reply {
        /// Which.
        call: CallId,
        /// With what.
        answer: Answer,
    },
    /// Make theta.
    Create {
        /// Its tables.
        tables: Tables,
        /// Its element type.
        dtype: Dtype,
    },
    /// Update theta, whole or not at all; [`Input::Updated`] follows. At most one is under way, in
    /// hogwild mode one of each rank, which may end in any order.
    Update(Order),
    /// Take theta, what the update rule remembers and [`Core::save`] together, for a checkpoint;
    /// [`Input::Captured`] follows at once, [`Input::Saved`] when it is durable. No update is under way
    /// (in hogwild mode: they are not waited for), and none begins before [`Input::Captured`]. At most
    /// one capture is not saved yet.
    ///
    /// [`Core::save`]: super::Core::save
    Capture,
    /// Keep theta as it goes out with the next answer: a gradient of this rank will be corrected by
    /// it. What was kept for the rank before is let go.
    Keep {
        /// Whose.
        rank: u32,
    },
    /// Drop a gradient unused.
    Forget {
        /// By the call that brought it.
        gradient: CallId,
    },
    /// The job is over in all but name: write report and theta; [`Input::Concluded`] follows.
    Conclude,
}

/// The answer to a call. Where theta goes with it, the driver adds it at the
/// version that the core has.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Answer {
    /// Welcome.
    Joined(Box<Welcome>),
    /// State of the job, and theta's version.
    State {
        /// Of the job.
        state: JobState,
        /// Of theta.
        version: u64,
    },
    /// To a push.
    Pushed(PushResult),
    /// To a pull.
    Pulled(PullHeader),
    /// All ranks' statistics are in: merge and send.
    Statistics,
    /// A checkpoint is durable.
    Checkpointed {
        /// theta's version in it.
        version: u64,
        /// Its file.
        path: String,
    },
    /// No.
    Refused(Refusal),
}

/// [`ps_common::calls::JoinAnswer`] as an effect: comparable and serialisable.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Welcome {
    /// The caller's name.
    pub caller: Caller,
    /// The first clock it owes.
    pub clock: u64,
    /// Of theta.
    pub version: u64,
    /// Of the job.
    pub state: JobState,
}

/// [`Error`] as an effect.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal(pub Error);

impl Serialize for Refusal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

//! The server without its network: the core, theta, what keeps the job and the other servers, and what
//! can be asked of them. No IO, no clock. What an input brings about is in `driver/steps.rs`.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use ps_common::calls::{Caller, JoinAnswer, PullHeader, PushResult, Status};
use ps_common::import::Imported;
use ps_common::job::JobState;
use ps_common::partition::Partition;
use ps_common::report::Report;
use ps_common::statistics::Statistics;
use ps_common::tables::Tables;
use ps_common::{Dtype, Error, ErrorCode};

use crate::applier::Applier;
use crate::core::{CallId, Config, Core, Input, Order, Time, invariants};
use crate::group::{Group, Lost};
use crate::keeper::{Keeper, Late, Origin, Resumed, Resumption};
use crate::numeric::Optimizer;
use crate::storage;
use crate::table::{Gradient, Snapshot, check_room};

mod outgoing;
mod steps;
mod together;

/// An answer with all that goes with it.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// To Join.
    Joined(Box<JoinAnswer>),
    /// To Heartbeat, Leave, Evaluate.
    State {
        /// Of the job.
        state: JobState,
        /// Of theta.
        version: u64,
    },
    /// To a push, with theta as the core has it.
    Pushed(PushResult, Arc<Snapshot>),
    /// To a pull.
    Pulled(PullHeader, Arc<Snapshot>),
    /// Of all shards together.
    Statistics(Statistics),
    /// To an operator: theta's version in a durable checkpoint, and its file.
    Checkpointed(u64, String),
    /// No.
    Refused(Error),
}

/// The server without its network.
pub struct Driver {
    program: String,
    core: Mutex<Core>,
    applier: Applier,
    statistics: Mutex<BTreeMap<u32, Statistics>>,
    keeper: Option<Keeper>,
    partition: Partition,
    /// The other servers, where there are any.
    group: Option<Arc<Group>>,
    /// Delivers answers that waited for the disk.
    late: OnceLock<Late<(CallId, Delivery)>>,
    /// Gives an update to the thread that brought its gradient.
    hand_over: OnceLock<HandOver>,
}

/// Gives an update to whoever waits for the answer to a call; the error is the order, where nobody
/// does. Whoever is given it calls [`Driver::carry_out`], whatever happens.
pub type HandOver = Box<dyn Fn(CallId, Order) -> Result<(), Order> + Send + Sync>;

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("core", &self.core).finish_non_exhaustive()
    }
}

/// What [`Driver::feed`] leaves to its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aftermath {
    /// Nothing.
    None,
    /// Write report and theta, then feed [`Input::Concluded`].
    Conclude,
}

impl Driver {
    /// A server without a job.
    pub fn new(
        config: Config,
        dtype: Dtype,
        optimizer: Optimizer,
        chunk_bytes: usize,
        program: &str,
    ) -> Self {
        Self {
            program: program.to_owned(),
            partition: config.partition,
            applier: {
                let applier = Applier::new(optimizer, chunk_bytes).of_partition(config.partition);
                match config.consistency.updates_overlap() {
                    true => applier.without_locks(),
                    false => applier,
                }
            },
            core: Mutex::new(Core::new(config, dtype)),
            statistics: Mutex::default(),
            keeper: None,
            group: None,
            late: OnceLock::new(),
            hand_over: OnceLock::new(),
        }
    }

    /// Has the job outlive this process, and takes up the one that `keeper` has, if it has one.
    /// `config` and `dtype` are those that the driver was made with.
    ///
    /// # Errors
    /// [`storage::Error::NoneUsable`], [`storage::Error::Mismatch`] and what reading fails with.
    pub fn kept_by(
        self,
        keeper: Keeper,
        config: &Config,
        dtype: Dtype,
    ) -> Result<(Self, Option<Resumption>), storage::Error> {
        self.kept_from(Origin::Newest, keeper, config, dtype)
    }

    /// Like [`Driver::kept_by`], from where `origin` says.
    ///
    /// # Errors
    /// As [`Driver::kept_by`]; [`storage::Error::Bad`] if a checkpoint that was chosen is.
    pub fn kept_from(
        mut self,
        origin: Origin,
        keeper: Keeper,
        config: &Config,
        dtype: Dtype,
    ) -> Result<(Self, Option<Resumption>), storage::Error> {
        let resumed = keeper.resume(origin, config, dtype, &self.applier)?;
        let resumed = resumed.map(|Resumed { core, statistics, resumption }| {
            self.core = Mutex::new(core);
            self.statistics = Mutex::new(statistics);
            resumption
        });
        self.keeper = Some(keeper);
        Ok((self, resumed))
    }

    /// Lets what is kept begin: `late` delivers answers that waited for the disk, `tell` takes what
    /// the core has to hear of it. Once, and before [`Driver::resume`].
    pub fn keep(&self, late: Late<(CallId, Delivery)>, tell: Late<Input>) {
        if let Some(keeper) = &self.keeper {
            let first = self.late.set(late).is_ok();
            assert!(first, "it began before");
            keeper.start(match self.group.clone() {
                None => tell,
                Some(group) => Arc::new(move |input| tell(group.saved_by_all(input))),
            });
        }
    }

    /// Lets threads that wait for an answer carry out updates. Once, and before anything is fed.
    pub fn share(&self, hand_over: HandOver) {
        let first = self.hand_over.set(hand_over).is_ok();
        assert!(first, "it is shared already");
    }

    /// Has `group` follow: the other servers of the job, whose life has begun where this one's has.
    /// Before anything is kept or fed.
    #[must_use]
    pub fn followed_by(mut self, group: Arc<Group>) -> Self {
        self.group = Some(group);
        self
    }

    /// Workers that the job is for.
    pub fn n_workers(&self) -> u32 {
        self.core.lock().n_workers()
    }

    /// Which of the job's servers it is.
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// Lets theta start at `start`, which is of the job's element type, and not as the tables'
    /// initialisers say.
    #[must_use]
    pub fn starting_from(mut self, start: Imported) -> Self {
        self.applier = self.applier.starting_from(start);
        self
    }

    /// Whether theta of these tables could start as it is to. To be asked before a join, which the
    /// core makes theta by.
    ///
    /// # Errors
    /// CONFIG_MISMATCH, if it is to start from a file of other tables; OVERLOADED, if there is no
    /// memory for it, the version after it and a gradient.
    pub fn check_start(&self, tables: &Tables) -> Result<(), Error> {
        if self.shape().is_none() {
            let element_bytes = self.core.lock().dtype().size_bytes();
            let theta_bytes = self.partition.keys(tables.dim()).len() as u64 * element_bytes as u64;
            check_room("theta and its updates", theta_bytes.saturating_mul(3))?;
        }
        let n_servers = self.partition.count;
        if tables.dim() < n_servers as usize {
            let what = format!(
                "theta has {} elements for {n_servers} servers; start fewer of them",
                tables.dim()
            );
            return Err(Error::new(ErrorCode::ConfigMismatch, what)
                .with("field", "partition")
                .with("want", n_servers)
                .with("got", tables.dim()));
        }
        let Some(start) = self.applier.start() else { return Ok(()) };
        start.check_tables(tables).map_err(|differs| {
            Error::new(ErrorCode::ConfigMismatch, format!("the server's --theta-in {differs}"))
                .with("field", "tables")
                .with("want", start.dim())
                .with("got", tables.dim())
        })
    }

    /// theta's tables, by which rows are named.
    ///
    /// # Errors
    /// CONFIG_MISMATCH where several servers share theta: rows go to a lone one.
    pub fn tables_of_rows(&self) -> Result<&Tables, Error> {
        if self.partition.count > 1 {
            let n_servers = self.partition.count;
            let what = format!(
                "rows of theta go to one server that has all of it; this job has {n_servers}: push whole \
                 gradients and pull all of theta"
            );
            return Err(Error::new(ErrorCode::ConfigMismatch, what)
                .with("field", "sparse")
                .with("want", 1)
                .with("got", n_servers));
        }
        Ok(self.applier.tables().expect("who is known has joined"))
    }

    /// Keeps a rank's feature statistics until all are in.
    ///
    /// # Errors
    /// CONFIG_MISMATCH if they are of another kind or number of features than the others'.
    pub fn keep_statistics(&self, rank: u32, statistics: Statistics) -> Result<(), Error> {
        let mut all = self.statistics.lock();
        if let Some(other) = all.values().next() {
            let alike = std::mem::discriminant(other) == std::mem::discriminant(&statistics);
            if !alike || other.n_features() != statistics.n_features() {
                return Err(Error::new(
                    ErrorCode::ConfigMismatch,
                    format!(
                        "feature statistics have {} features, another worker's {}, or another \
                         --scale",
                        statistics.n_features(),
                        other.n_features()
                    ),
                )
                .with("field", "n_features")
                .with("want", other.n_features())
                .with("got", statistics.n_features()));
            }
        }
        all.insert(rank, statistics);
        Ok(())
    }

    /// Memory for the next gradient.
    pub fn empty_gradient(&self, dtype: Dtype) -> Gradient {
        self.applier.empty_gradient(dtype)
    }

    /// Gives back the memory of a gradient that was refused on its way.
    pub fn recycle(&self, gradient: Gradient) {
        self.applier.recycle(gradient);
    }

    /// Elements and type of theta, for a caller that may push.
    ///
    /// # Errors
    /// As every call of it would be refused.
    pub fn admit(&self, caller: Caller) -> Result<(usize, Dtype), Error> {
        self.core.lock().check_caller(caller)?;
        Ok(self.shape().expect("who is known has joined"))
    }

    /// Whether a caller that wants theta says by which number it takes the other servers' parts.
    ///
    /// # Errors
    /// BAD_FIELD if it does not, and there are any.
    pub fn check_exchange(&self, exchange: u64) -> Result<(), Error> {
        if exchange > 0 || self.partition.count == 1 {
            return Ok(());
        }
        let what = format!(
            "`exchange` is 0: theta is on {} servers, and its other parts are taken by this number",
            self.partition.count
        );
        Err(Error::new(ErrorCode::BadField, what).with("field", "exchange"))
    }

    /// When [`Input::Tick`] is due, and whether the server may go.
    pub fn outlook(&self) -> (Option<Time>, bool) {
        let core = self.core.lock();
        (core.next_deadline(), core.is_over())
    }

    /// Where the job stands, and why.
    pub fn state(&self) -> (JobState, String) {
        let core = self.core.lock();
        (core.state(), core.reason().to_owned())
    }

    /// Whether all holds that must hold between any two steps ([`invariants`]).
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<(), String> {
        invariants::check(&self.core.lock())
    }

    /// For an operator.
    pub fn status(&self, now: Time) -> Status {
        self.core.lock().status(now, &self.applier.optimizer().to_string(), &self.program)
    }

    /// Has the report tell of what the core knows nothing of.
    pub fn note(&self, now: Time, kind: &str, detail: String) {
        self.core.lock().note(now, kind, detail);
    }

    /// Elements and type of theta; `None` before it is made.
    pub fn shape(&self) -> Option<(usize, Dtype)> {
        self.applier.shape()
    }

    /// Whether a version of theta is always the same theta: without locks it is not (rule H3).
    pub fn has_versions(&self) -> bool {
        self.applier.has_versions()
    }

    /// The newest theta.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.applier.snapshot()
    }

    /// The report as of now; `None` before the first join. theta in it is what this server has of it:
    /// all, if it is the only one.
    pub fn report(&self, now: Time) -> Option<Report> {
        self.report_of(now, &*self.snapshot()?)
    }

    /// The report as of now, and theta, to which every server gives its part: waits for them. `None`
    /// before the first join.
    ///
    /// # Errors
    /// A server is lost.
    pub fn results(&self, now: Time) -> Result<Option<(Report, Arc<Snapshot>)>, Lost> {
        let Some(mut theta) = self.snapshot() else { return Ok(None) };
        if let Some(group) = &self.group {
            theta = Arc::new(theta.joined(group.collect()?.into_iter().flatten()));
        }
        Ok(self.report_of(now, &theta).map(|report| (report, theta)))
    }

    fn report_of(&self, now: Time, theta: &Snapshot) -> Option<Report> {
        let sha256 = theta.sha256();
        let optimizer = self.applier.optimizer().to_string();
        let report = self.core.lock().report(now, &optimizer, &self.program, &sha256)?;
        Some(Report { hogwild: self.applier.lost_updates(), ..report })
    }

    /// The job as a joiner sees it; `None` before the first join.
    pub fn job(&self) -> Option<JoinAnswer> {
        self.core.lock().description(&self.program)
    }
}

#[cfg(test)]
mod tests;

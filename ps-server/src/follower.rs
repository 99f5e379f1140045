//! A server that carries out what partition 0 decides, on its own keys, and decides nothing (rules M6
//! to M12). No IO, no clock, no network.
//!
//! Owns what such a server keeps of the job: the life that it is in, gradients that workers have staged
//! until partition 0 says what becomes of them, theta that partition 0 gives until its worker takes it,
//! the update that is prepared and not in force. A decision that does not fit is an error, which ends
//! the life: partition 0 begins another one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ps_common::calls::{Caller, PushHeader};
use ps_common::import::Imported;
use ps_common::job::{Fingerprint, JobState, PROTOCOL_VERSION};
use ps_common::partition::{
    CheckpointName, Decision, Give, Partition, PushName, Squares, Take, Word,
};
use ps_common::tables::Tables;
use ps_common::{Dtype, Error, ErrorCode};

use crate::applier::Applier;
use crate::numeric::Optimizer;
use crate::table::{Captured, Gradient, Snapshot, Store, check_room};

mod life;
mod update;

use life::{Answer, Life};

/// When a worker should ask again a server that waits for partition 0.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// What the server was started with.
#[derive(Debug)]
pub struct Spec {
    /// Which of how many servers.
    pub partition: Partition,
    /// What partition 0's must be equal to, field by field.
    pub settings: Fingerprint,
    /// How theta moves.
    pub optimizer: Optimizer,
    /// Of theta's chunks.
    pub chunk_bytes: usize,
    /// What theta starts from, all of it; `None`: as the tables' initialisers say.
    pub start: Option<Imported>,
}

/// One stream of decisions, from its beginning to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamId(u64);

/// What follows from a decision.
#[derive(Debug)]
pub enum Next {
    /// Nothing.
    Nothing,
    /// Say this.
    Say(Word),
    /// Say each, in order: [`Word::Squares`].
    TellSquares(Vec<Squares>),
    /// Find the checkpoint of this name, make newer ones count for nothing, then [`Follower::begin`].
    Load(Option<CheckpointName>),
    /// Write this down, then say [`Word::Saved`].
    Save(Box<Picture>),
    /// Say theta's chunks: [`Word::Part`].
    Tell(Arc<Snapshot>),
    /// Whoever waits for this caller's theta can have it: [`Follower::take`].
    Wake(Caller),
    /// The job is over; the server may go.
    End,
}

/// What a follower writes down.
#[derive(Debug)]
pub struct Picture {
    /// Names the checkpoint.
    pub name: CheckpointName,
    /// All of theta's.
    pub tables: Tables,
    /// This server's part, and what its update rule remembers.
    pub theta: Captured,
}

/// What a checkpoint gives back.
#[derive(Debug)]
pub struct Restored {
    /// Of the job.
    pub job: u64,
    /// All of theta's.
    pub tables: Tables,
    /// This server's part.
    pub store: Store,
}

/// theta for a worker.
#[derive(Debug, Clone)]
pub struct Given {
    /// What partition 0 said.
    pub give: Give,
    /// This server's part of theta.
    pub theta: Arc<Snapshot>,
    /// Of its first element, in all of theta.
    pub first_key: usize,
}

/// What is known of a theta that a worker asks for.
#[derive(Debug)]
pub enum Taken {
    /// Here it is; it is given once.
    Given(Given),
    /// Partition 0 has not said it yet.
    NotYet,
}

/// How a gradient that is to be staged has to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Of the first element, in all of theta.
    pub first_key: usize,
    /// Elements.
    pub dim: usize,
    /// Of its elements.
    pub dtype: Dtype,
}

/// The server without its network and its files.
#[derive(Debug)]
pub struct Follower {
    spec: Spec,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Streams so far: the newest is the one that counts.
    n_streams: u64,
    life: Option<Life>,
    /// How the job ended, and why.
    ended: Option<(JobState, String)>,
}

/// What an operator sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Of the job, as partition 0 said it last.
    pub state: JobState,
    /// Why it failed; empty otherwise.
    pub reason: String,
    /// Of theta.
    pub version: u64,
    /// Elements of theta that are here; 0 before there is theta.
    pub dim: usize,
}

impl Follower {
    /// Before the first life.
    pub fn new(spec: Spec) -> Self {
        Self { spec, state: Mutex::default() }
    }

    /// What it was started with.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// A stream of decisions begins, with [`Decision::Open`]. It takes the place of the one before, whose
    /// life ends: its sender has been started anew, or has lost the connection. [`Word::Holding`]
    /// follows.
    ///
    /// # Errors
    /// CONFIG_MISMATCH, PROTO_VERSION, if partition 0 is not set as this server is; BAD_FIELD, if the
    /// decision is another one. Then nothing has changed.
    pub fn open(&self, decision: Decision) -> Result<StreamId, Error> {
        let Decision::Open { protocol_version, partition, settings } = decision else {
            return Err(astray("the first decision of a stream is Open"));
        };
        self.spec.check(protocol_version, partition, &settings)?;
        let mut state = self.state.lock();
        state.n_streams += 1;
        state.life = None;
        Ok(StreamId(state.n_streams))
    }

    /// A stream has ended, and with it its life, unless the job has ended. Whether it was the newest.
    pub fn disconnect(&self, stream: StreamId) -> bool {
        let mut state = self.state.lock();
        let is_newest = state.n_streams == stream.0;
        if is_newest && state.ended.is_none() {
            state.life = None;
        }
        is_newest
    }

    /// Carries out a decision after the first. Decisions of one stream come one after the other.
    ///
    /// # Errors
    /// What ends the stream: another one has come (EPOCH_CHANGED), the decision does not fit what is
    /// here (BAD_FIELD), theta is not partition 0's (INTERNAL), it cannot be made as the flags say
    /// (CONFIG_MISMATCH), there is no memory for it (OVERLOADED).
    pub fn decide(&self, stream: StreamId, decision: Decision) -> Result<Next, Error> {
        match decision {
            Decision::Open { .. } => Err(astray("Open comes once")),
            Decision::Begin { epoch, checkpoint } => {
                let mut state = self.of_stream(stream)?;
                if state.life.is_some() {
                    return Err(astray("Begin comes once"));
                }
                state.life = Some(self.new_life(epoch));
                Ok(Next::Load(checkpoint))
            }
            Decision::End { state: how, reason } => {
                let mut state = self.of_stream(stream)?;
                state.ended = Some((how, reason));
                Ok(Next::End)
            }
            Decision::Create { tables, dtype, job } => self.create(stream, tables, dtype, job),
            Decision::Prepare(joint) => self.prepare(stream, &joint),
            Decision::Clip(clips) => self.clip(stream, &clips),
            Decision::Commit => self.commit(stream),
            Decision::Abort => {
                life_in(&mut *self.of_stream(stream)?)?.under_way = None;
                Ok(Next::Nothing)
            }
            Decision::Give(give) => self.give(stream, give),
            Decision::Keep(rank) => {
                let mut state = self.of_stream(stream)?;
                let life = life_in(&mut state)?;
                life.applier.keep(rank, life.theta()?);
                Ok(Next::Nothing)
            }
            Decision::Forget(name) => {
                life_in(&mut *self.of_stream(stream)?)?.forget(name);
                Ok(Next::Nothing)
            }
            Decision::Capture => self.capture(stream),
            Decision::Collect => {
                let theta = life_in(&mut *self.of_stream(stream)?)?.theta()?;
                Ok(Next::Tell(theta))
            }
        }
    }

    /// The checkpoint that a life begins from is found; `None`: it begins from nothing.
    ///
    /// # Errors
    /// As [`Follower::decide`].
    pub fn begin(&self, stream: StreamId, restored: Option<Restored>) -> Result<Word, Error> {
        let mut state = self.of_stream(stream)?;
        let life = life_in(&mut state)?;
        if let Some(Restored { job, tables, store }) = restored {
            life.applier.restore(store);
            life.job = Some((job, tables));
            life.state = JobState::Running;
        }
        Ok(Word::Ready)
    }

    /// The state, if `stream` is the newest.
    fn of_stream(&self, stream: StreamId) -> Result<parking_lot::MutexGuard<'_, State>, Error> {
        let state = self.state.lock();
        if state.n_streams == stream.0 {
            return Ok(state);
        }
        let what = "another stream of decisions has come in the place of this one";
        Err(Error::new(ErrorCode::EpochChanged, what))
    }

    fn new_life(&self, epoch: u32) -> Life {
        let Spec { partition, optimizer, chunk_bytes, .. } = self.spec;
        Life {
            epoch,
            job: None,
            applier: Arc::new(Applier::new(optimizer, chunk_bytes).of_partition(partition)),
            n_staged_ever: 0,
            staged: HashMap::new(),
            given: HashMap::new(),
            under_way: None,
            state: JobState::Empty,
        }
    }

    fn create(
        &self,
        stream: StreamId,
        tables: Tables,
        dtype: Dtype,
        job: u64,
    ) -> Result<Next, Error> {
        let Spec { partition, optimizer, chunk_bytes, ref start, .. } = self.spec;
        if tables.dim() < partition.count as usize {
            let what =
                format!("theta has {} elements for {} servers", tables.dim(), partition.count);
            return Err(Error::new(ErrorCode::ConfigMismatch, what));
        }
        let n_bytes = (partition.keys(tables.dim()).len() * dtype.size_bytes()) as u64;
        check_room("theta and its updates", n_bytes.saturating_mul(3))?;
        if let Some(start) = start {
            let checked = start.check_tables(&tables).and_then(|()| start.check_dtype(dtype));
            checked.map_err(|differs| {
                Error::new(ErrorCode::ConfigMismatch, format!("--theta-in {differs}"))
                    .with("field", "tables")
            })?;
        }
        if life_in(&mut *self.of_stream(stream)?)?.job.is_some() {
            return Err(astray("Create, and there is a theta already"));
        }
        // Drawn outside of the lock: it may take a while.
        let mut store = Store::part(&tables, partition, dtype, optimizer, chunk_bytes);
        if let Some(start) = start {
            store.start_from(start);
        }
        let mut state = self.of_stream(stream)?;
        let life = life_in(&mut state)?;
        life.applier.restore(store);
        life.job = Some((job, tables));
        life.state = JobState::Running;
        Ok(Next::Nothing)
    }

    fn give(&self, stream: StreamId, give: Give) -> Result<Next, Error> {
        let mut state = self.of_stream(stream)?;
        let life = life_in(&mut state)?;
        let theta = life.theta()?;
        if theta.version != give.version {
            let (own, partition) = (theta.version, self.spec.partition);
            let what = format!(
                "server {partition} has version {own} of theta where partition 0 gives version {}",
                give.version
            );
            let error = Error::new(ErrorCode::Internal, what);
            return Err(error.with("want", give.version).with("got", own));
        }
        life.state = give.state;
        let rank = give.caller.rank;
        let order = |give: &Give| (give.caller.incarnation, give.exchange);
        if life.given.get(&rank).is_some_and(|newest| order(&newest.give) >= order(&give)) {
            // Whom it is for has asked again since, and has been answered.
            return Ok(Next::Nothing);
        }
        life.given.insert(rank, Answer { give, theta: Some(theta) });
        Ok(Next::Wake(give.caller))
    }

    fn capture(&self, stream: StreamId) -> Result<Next, Error> {
        let mut state = self.of_stream(stream)?;
        let life = life_in(&mut state)?;
        let theta = life.applier.capture().ok_or_else(no_theta_to_decide_on)?;
        let (job, tables) = life.job.clone().ok_or_else(no_theta_to_decide_on)?;
        let name = CheckpointName { version: theta.theta().version, epoch: life.epoch, job };
        Ok(Next::Save(Box::new(Picture { name, tables, theta })))
    }

    /// How a gradient that `caller` stages has to look, and memory for it.
    ///
    /// # Errors
    /// NOT_INITIALIZED without theta, EPOCH_CHANGED for a caller of another life, JOB_ENDED.
    pub fn admit(&self, caller: Caller) -> Result<(Shape, Gradient), Error> {
        let mut state = self.state.lock();
        let life = self.life_of(&mut state, caller)?;
        let (dim, dtype) = life.applier.shape().ok_or_else(|| self.not_yet())?;
        let first_key = life.first_key(self.spec.partition);
        Ok((Shape { first_key, dim, dtype }, life.applier.empty_gradient(dtype)))
    }

    /// Keeps a gradient of the shape that [`Follower::admit`] gave, whose bytes have the CRC-32
    /// `digest`, until partition 0 says what becomes of it. The same push may come again.
    ///
    /// # Errors
    /// As [`Follower::admit`]; SEQ_REUSED for other bytes under the name of a push that is kept.
    pub fn stage(
        &self,
        header: &PushHeader,
        gradient: Gradient,
        digest: u32,
    ) -> Result<u32, Error> {
        let name = PushName { caller: header.caller, clock: header.clock };
        let mut state = self.state.lock();
        let life = self.life_of(&mut state, header.caller)?;
        let (dim, dtype) = life.applier.shape().ok_or_else(|| self.not_yet())?;
        let is_of_dtype = matches!(
            (&gradient, dtype),
            (Gradient::F32(_), Dtype::F32) | (Gradient::F64(_), Dtype::F64)
        );
        if gradient.len() != dim || !is_of_dtype {
            // Admitted in a life before.
            return Err(self.epoch_changed(header.caller, life.epoch));
        }
        life.stage(name, gradient, digest)
    }

    /// Of this server's part of theta; 0 before there is one.
    pub fn theta_bytes(&self) -> usize {
        let state = self.state.lock();
        let shape = state.life.as_ref().and_then(|life| life.applier.shape());
        shape.map_or(0, |(dim, dtype)| dim * dtype.size_bytes())
    }

    /// Gives back the memory of a gradient that was refused on its way.
    pub fn recycle(&self, gradient: Gradient) {
        if let Some(life) = &self.state.lock().life {
            life.applier.recycle(gradient);
        }
    }

    /// This server's part of the theta that partition 0 gives in an exchange.
    ///
    /// # Errors
    /// As [`Follower::admit`]; STALE_ROUND for an exchange that a newer one, of this caller or of a
    /// newer holder of its rank, has taken the place of, or whose theta was taken before.
    pub fn take(&self, take: &Take) -> Result<Taken, Error> {
        let mut state = self.state.lock();
        let is_over = state.ended.is_some();
        // Also before theta is made: who has joined may ask before this server has heard of it.
        let life = self.life_of_any(&mut state, take.caller)?;
        let wanted = (take.caller.incarnation, take.exchange);
        let first_key = life.first_key(self.spec.partition);
        if let Some(newest) = life.given.get_mut(&take.caller.rank) {
            let has = (newest.give.caller.incarnation, newest.give.exchange);
            if has == wanted
                && let Some(theta) = newest.theta.take()
            {
                return Ok(Taken::Given(Given { give: newest.give, theta, first_key }));
            }
            if has >= wanted {
                let what = format!(
                    "exchange {} of rank {} is past: theta was given in exchange {}",
                    take.exchange, take.caller.rank, newest.give.exchange
                );
                let error = Error::new(ErrorCode::StaleRound, what).with("got", take.exchange);
                return Err(error.with("want", newest.give.exchange));
            }
        }
        if is_over {
            return Err(Error::new(ErrorCode::JobEnded, "the job is over: no theta will be given"));
        }
        Ok(Taken::NotYet)
    }

    /// The life that `caller` is of, while the job lasts.
    fn life_of<'s>(&self, state: &'s mut State, caller: Caller) -> Result<&'s mut Life, Error> {
        if state.ended.is_some() {
            return Err(Error::new(ErrorCode::JobEnded, "the job is over"));
        }
        self.life_of_any(state, caller)
    }

    /// As [`Follower::life_of`], after the job, too.
    fn life_of_any<'s>(&self, state: &'s mut State, caller: Caller) -> Result<&'s mut Life, Error> {
        let life = state.life.as_mut().ok_or_else(|| self.not_yet())?;
        match caller.incarnation >> 32 == u64::from(life.epoch) {
            true => Ok(life),
            false => Err(self.epoch_changed(caller, life.epoch)),
        }
    }

    fn not_yet(&self) -> Error {
        let what = format!(
            "server {} has no theta yet: partition 0 has not begun the job on it; try again",
            self.spec.partition
        );
        Error::new(ErrorCode::NotInitialized, what).retry_after(RETRY_AFTER)
    }

    fn epoch_changed(&self, caller: Caller, epoch: u32) -> Error {
        let what = format!(
            "rank {} is of life {} of the job, server {} of life {epoch}; join partition 0 again",
            caller.rank,
            caller.incarnation >> 32,
            self.spec.partition,
        );
        let error = Error::new(ErrorCode::EpochChanged, what);
        error.with("want", epoch).with("got", caller.incarnation >> 32)
    }

    /// For an operator.
    pub fn view(&self) -> View {
        let state = self.state.lock();
        let theta = state.life.as_ref().and_then(|life| life.applier.snapshot());
        let life_state = state.life.as_ref().map_or(JobState::Empty, |life| life.state);
        let (job_state, reason) = state.ended.clone().unwrap_or((life_state, String::new()));
        View {
            state: job_state,
            reason,
            version: theta.as_ref().map_or(0, |theta| theta.version),
            dim: theta.as_ref().map_or(0, |theta| theta.dim),
        }
    }

    /// How the job ended, and why, once partition 0 has said so.
    pub fn ended(&self) -> Option<(JobState, String)> {
        self.state.lock().ended.clone()
    }
}

impl Spec {
    /// Whether partition 0 takes this server for what it is, and is set as it is.
    fn check(
        &self,
        protocol_version: u32,
        partition: Partition,
        settings: &Fingerprint,
    ) -> Result<(), Error> {
        if protocol_version != PROTOCOL_VERSION {
            let what = format!(
                "server {} speaks version {PROTOCOL_VERSION} of the wire, partition 0 \
                 {protocol_version}; run servers of one release",
                self.partition
            );
            let error = Error::new(ErrorCode::ProtoVersion, what);
            return Err(error.with("want", PROTOCOL_VERSION).with("got", protocol_version));
        }
        let own = |field: &str, want: String, got: String| {
            let what = format!(
                "server {}: its {field} is {want}, partition 0's {got}: start all servers of a job \
                 with the same flags",
                self.partition
            );
            let error = Error::new(ErrorCode::ConfigMismatch, what);
            Err(error.with("field", field).with("want", want).with("got", got))
        };
        if partition != self.partition {
            return own("--partition", self.partition.to_string(), partition.to_string());
        }
        for (field, got) in settings {
            if let Some(want) = self.settings.get(field).filter(|want| *want != got) {
                return own(&format!("--{field}"), want.clone(), got.clone());
            }
        }
        Ok(())
    }
}

fn life_in(state: &mut State) -> Result<&mut Life, Error> {
    state.life.as_mut().ok_or_else(|| astray("a decision comes before Begin"))
}

/// A decision that does not fit: partition 0 and this server are not of one mind.
fn astray(what: &str) -> Error {
    Error::new(ErrorCode::BadField, format!("out of step with partition 0: {what}"))
        .with("field", "decision")
}

fn no_theta_to_decide_on() -> Error {
    astray("a decision on theta comes before Create")
}

#[cfg(test)]
mod tests;

//! A follower with its callers and its files: who waits for theta is woken, what is written down is
//! answered when it is durable.
//!
//! The rules are in `crate::follower`; here is only who hears when.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ps_common::calls::Caller;
use ps_common::job::{Aggregate, JobState, Mode};
use ps_common::partition::{Decision, Partition, Take, Word};
use ps_common::wire::frames::plain;
use ps_common::wire::pb;
use ps_common::{Dtype, Error, ErrorCode, calls};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::answer::Out;
use super::pace::Outlet;
use crate::follower::{Follower, Given, Next, StreamId, Taken};
use crate::keeper::PartKeeper;

/// How long a Take is held that does not say for how long.
const WAIT_MAX: Duration = Duration::from_secs(35);

/// What an operator sees that is no rule's affair.
#[derive(Debug, Clone)]
pub struct Facts {
    /// How updates are ordered, by the flags of partition 0's server and of this one.
    pub mode: Mode,
    /// How a round is summed.
    pub aggregate: Aggregate,
    /// Of theta.
    pub dtype: Dtype,
    /// K.
    pub n_workers: u32,
    /// Program and version.
    pub program: String,
}

/// What all services of a follower share.
#[derive(Debug)]
pub struct Following {
    follower: Follower,
    keeper: Option<PartKeeper>,
    facts: Facts,
    waiting: Waiting,
    /// Whether there is theta.
    theta: watch::Sender<bool>,
    /// Whether the job has ended.
    over: watch::Sender<bool>,
    /// Whether this server goes before the job has ended.
    closing: watch::Sender<bool>,
}

/// Takes whose theta has not been given yet, by caller.
#[derive(Debug, Default)]
struct Waiting(Mutex<HashMap<Caller, Vec<oneshot::Sender<()>>>>);

impl Waiting {
    fn enlist(&self, caller: Caller) -> oneshot::Receiver<()> {
        let (wake, woken) = oneshot::channel();
        let mut waiting = self.0.lock();
        let of_caller = waiting.entry(caller).or_default();
        of_caller.retain(|wake| !wake.is_closed());
        of_caller.push(wake);
        woken
    }

    fn wake(&self, caller: Caller) {
        for wake in self.0.lock().remove(&caller).unwrap_or_default() {
            // Who waited may be gone.
            let _ = wake.send(());
        }
    }

    fn wake_all(&self) {
        // Dropped, they wake.
        self.0.lock().clear();
    }
}

impl Following {
    /// A follower that keeps its checkpoints with `keeper`, if it keeps any.
    pub fn new(follower: Follower, keeper: Option<PartKeeper>, facts: Facts) -> Arc<Self> {
        let [theta, over, closing] = std::array::from_fn(|_| watch::Sender::new(false));
        let waiting = Waiting::default();
        Arc::new(Self { follower, keeper, facts, waiting, theta, over, closing })
    }

    /// The rules.
    pub fn follower(&self) -> &Follower {
        &self.follower
    }

    /// Which of how many servers.
    pub fn partition(&self) -> Partition {
        self.follower.spec().partition
    }

    /// Waits until there is a theta where there was none, or none where there was one; gives which.
    pub async fn theta_changed(&self, seen: &mut watch::Receiver<bool>) -> bool {
        // The sender is this.
        let _ = seen.changed().await;
        *seen.borrow_and_update()
    }

    /// To be given to [`Following::theta_changed`].
    pub fn watch_theta(&self) -> watch::Receiver<bool> {
        let mut theta = self.theta.subscribe();
        // What is there already counts as well.
        theta.mark_changed();
        theta
    }

    /// Waits until partition 0 has said that the job is over.
    pub async fn over(&self) {
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    /// This server goes: calls that wait are told so.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    pub(super) async fn closing(&self) {
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    /// That this server goes.
    pub(super) fn draining(&self) -> Error {
        let what = format!("server {} is stopping", self.partition());
        Error::new(ErrorCode::Draining, what)
    }

    /// A new stream of decisions begins, whose name goes to `stream`; says which checkpoints there are.
    pub(super) async fn open(
        &self,
        decision: Decision,
        outlet: &Outlet,
        stream: &mut Option<StreamId>,
    ) -> Result<(), Error> {
        *stream = Some(self.follower.open(decision)?);
        self.settle();
        let names = match &self.keeper {
            None => Vec::new(),
            Some(keeper) => answered(|then| keeper.names(then)).await?,
        };
        say(outlet, Word::Holding(names)).await
    }

    /// A stream has ended.
    pub(super) fn disconnected(&self, stream: StreamId) {
        if self.follower.disconnect(stream) {
            self.settle();
        }
    }

    /// Wakes all who wait: what they wait for may be gone.
    fn settle(&self) {
        let has_theta = self.follower.view().dim > 0;
        self.theta.send_if_modified(|theta| std::mem::replace(theta, has_theta) != has_theta);
        self.waiting.wake_all();
    }

    /// Carries out a decision and all that follows from it; what is to be said goes to `outlet`.
    pub(super) async fn decide(
        &self,
        stream: StreamId,
        decision: Decision,
        outlet: &Outlet,
    ) -> Result<(), Error> {
        let makes_theta = matches!(decision, Decision::Create { .. });
        let next = self.follower.decide(stream, decision)?;
        if makes_theta {
            self.settle();
        }
        let word = match next {
            Next::Nothing => return Ok(()),
            Next::Say(word) => word,
            Next::TellSquares(squares) => {
                for of_step in squares {
                    say(outlet, Word::Squares(of_step)).await?;
                }
                return Ok(());
            }
            Next::Load(name) => {
                let restored = match (&self.keeper, name) {
                    (Some(keeper), _) => answered(|then| keeper.load(name, then)).await?,
                    (None, None) => None,
                    (None, Some(name)) => {
                        let what = format!(
                            "server {} has no --checkpoint-dir to take up version {} from",
                            self.partition(),
                            name.version
                        );
                        return Err(Error::new(ErrorCode::ConfigMismatch, what));
                    }
                };
                let ready = self.follower.begin(stream, restored)?;
                self.settle();
                ready
            }
            Next::Save(picture) => {
                let (version, words) = (picture.name.version, outlet.out.clone());
                let Some(keeper) = &self.keeper else {
                    let result =
                        Err(format!("server {} has no --checkpoint-dir", self.partition()));
                    return say(outlet, Word::Saved { version, result }).await;
                };
                keeper.save(picture, move |result| {
                    let word = Word::Saved { version, result };
                    // Its reader may be gone.
                    let _ = words.blocking_send(Out::Bytes(message(word)));
                });
                return Ok(());
            }
            Next::Tell(theta) => {
                let n_chunks = theta.n_chunks();
                for (i, chunk) in theta.chunks().enumerate() {
                    say(outlet, Word::Part(chunk.clone(), i + 1 == n_chunks)).await?;
                }
                return Ok(());
            }
            Next::Wake(caller) => {
                self.waiting.wake(caller);
                return Ok(());
            }
            Next::End => {
                self.waiting.wake_all();
                self.over.send_replace(true);
                return Ok(());
            }
        };
        say(outlet, word).await
    }

    /// Waits until partition 0 gives the theta that `take` asks for.
    ///
    /// # Errors
    /// As [`Follower::take`]; DEADLINE, if partition 0 says nothing in time; DRAINING, if this server
    /// goes.
    pub(super) async fn take(&self, take: &Take) -> Result<Given, Error> {
        let limit = take.wait_max.unwrap_or(WAIT_MAX);
        let end = Instant::now() + limit;
        loop {
            // Before it looks: what is given after that wakes it.
            let woken = self.waiting.enlist(take.caller);
            match self.follower.take(take) {
                Ok(Taken::Given(given)) => return Ok(given),
                Ok(Taken::NotYet) => {}
                // Its life has ended because of that.
                Err(_) if *self.closing.borrow() => return Err(self.draining()),
                Err(error) => return Err(error),
            }
            tokio::select! {
                _ = woken => {}
                () = self.closing() => return Err(self.draining()),
                () = tokio::time::sleep_until(end) => {
                    let what = format!(
                        "partition 0 has given no theta in exchange {} within {limit:?}",
                        take.exchange
                    );
                    return Err(Error::new(ErrorCode::Deadline, what));
                }
            }
        }
    }

    /// For an operator.
    pub(super) fn status(&self) -> calls::Status {
        let view = self.follower.view();
        let spec = self.follower.spec();
        let Facts { mode, aggregate, dtype, n_workers, program } = self.facts.clone();
        calls::Status {
            state: view.state,
            reason: view.reason,
            mode,
            aggregate,
            optimizer: spec.optimizer.to_string(),
            dtype,
            dim: view.dim as u64,
            n_workers,
            rounds: None,
            version: view.version,
            seconds: 0.0,
            last: None,
            workers: Vec::new(),
            observers: 0,
            dropped: 0,
            program: format!("{program}, server {}", spec.partition),
            fingerprint: spec.settings.clone(),
        }
    }

    /// How the job ended, and why, once partition 0 has said so.
    pub fn ended(&self) -> Option<(JobState, String)> {
        self.follower.ended()
    }
}

/// What the keeper's thread answers.
async fn answered<T: Send + 'static>(
    ask: impl FnOnce(Box<dyn FnOnce(Result<T, Error>) + Send>),
) -> Result<T, Error> {
    let (tell, told) = oneshot::channel();
    ask(Box::new(move |answer| drop(tell.send(answer))));
    let gone = || Error::new(ErrorCode::Internal, "the thread that reads checkpoints has ended");
    told.await.unwrap_or_else(|_| Err(gone()))
}

/// A reader that is gone needs to hear no more: the end of the stream follows.
async fn say(outlet: &Outlet, word: Word) -> Result<(), Error> {
    let gone = |_| Error::new(ErrorCode::Draining, "partition 0 is gone");
    outlet.send(Out::Bytes(message(word))).await.map_err(gone)
}

fn message(word: Word) -> bytes::Bytes {
    plain(&pb::Word::from(word))
}

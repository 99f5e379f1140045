//! The other servers of a job as the one that decides sees them: what they are told, in which order,
//! and what they have answered (rules M1 to M5).
//!
//! Partition 0's decisions reach every follower in the order in which the core gave them. What is told
//! inside the core's lock stands where the core put it: an answer with theta between the right
//! updates, an update in force at the same place everywhere. Knows no network: a [`Peer`] takes
//! decisions without waiting, [`Group::hear`] takes the answers. A follower that is lost ends the life
//! of the group; nothing waits for it any longer.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use ps_common::ErrorCode;
use ps_common::calls::{Caller, Outcome};
use ps_common::job::JobState;
use ps_common::partition::{Decision, Give, Joint, Partition, PushName, Squares, Word};
use ps_common::tables::Tables;

use crate::core::{Answer, CallId, Compensate, Effect, Input, Order};
use crate::table::Misfit;

#[cfg(test)]
mod tests;

/// The way to one follower.
pub trait Peer: Send + Sync {
    /// Sends a decision after those before it. Never waits; a follower that is gone is told nothing.
    fn tell(&self, decision: Decision);
}

/// A follower that is gone: of which job's servers, where, and how that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Which.
    pub partition: Partition,
    /// Where it was reached.
    pub url: String,
    /// What was seen.
    pub what: String,
    /// Why it went, where it said so itself.
    pub code: Option<ErrorCode>,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, url, what, .. } = self;
        write!(f, "lost the server of partition {partition} ({url}): {what}")
    }
}

/// Hears, once, of the first loss.
pub type Alarm = Box<dyn Fn(&Lost) + Send + Sync>;

/// The followers of one life of a job.
pub struct Group {
    /// In order of partition, the first is partition 1.
    members: Vec<Member>,
    /// How long a follower may take over what is waited for.
    patience: Duration,
    calls: Mutex<Calls>,
    heard: Mutex<Heard>,
    changed: Condvar,
    alarm: Alarm,
}

/// One follower.
pub struct Member {
    /// Where it is reached.
    pub url: String,
    /// The way there.
    pub peer: Box<dyn Peer>,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("heard", &*self.heard.lock()).finish_non_exhaustive()
    }
}

/// Calls by their names at the followers.
#[derive(Debug, Default)]
struct Calls {
    /// Who waits for theta, and by which number.
    asked: HashMap<CallId, (Caller, u64)>,
    /// Gradients that the driver holds.
    gradients: HashMap<CallId, PushName>,
    /// How many of them have one name: a push that is sent again has the name of the first.
    n_of_name: HashMap<PushName, usize>,
}

/// What the followers have said.
#[derive(Debug, Default)]
struct Heard {
    /// The job is: whoever goes now is not lost.
    is_over: bool,
    lost: Option<Lost>,
    /// By follower.
    inboxes: Vec<Inbox>,
}

/// Words that nobody has waited for yet.
#[derive(Debug, Default)]
struct Inbox {
    /// To what is answered in turn.
    answers: VecDeque<Word>,
    /// Checkpoints: their answers come between others'.
    saved: VecDeque<(u64, Result<(), String>)>,
}

impl Group {
    /// The group of partition 0 with `members`, in order of partition from 1; `alarm` hears of the
    /// first loss.
    pub fn new(members: Vec<Member>, patience: Duration, alarm: Alarm) -> Self {
        let inboxes = members.iter().map(|_| Inbox::default()).collect();
        let heard = Mutex::new(Heard { inboxes, ..Heard::default() });
        Self { members, patience, calls: Mutex::default(), heard, changed: Condvar::new(), alarm }
    }

    /// How many servers there are, partition 0 included.
    fn count(&self) -> u32 {
        self.members.len() as u32 + 1
    }

    /// Takes what the follower of `partition` says.
    pub fn hear(&self, partition: u32, word: Word) {
        let mut heard = self.heard.lock();
        let inbox = &mut heard.inboxes[partition as usize - 1];
        match word {
            Word::Saved { version, result } => inbox.saved.push_back((version, result)),
            answer => inbox.answers.push_back(answer),
        }
        self.changed.notify_all();
    }

    /// The follower of `partition` is gone: `what` was seen, `code` is why it went, where it said so.
    pub fn lose(&self, partition: u32, what: impl fmt::Display, code: Option<ErrorCode>) {
        let mut heard = self.heard.lock();
        if !heard.is_over {
            self.lose_in(&mut heard, partition, what.to_string(), code);
        }
    }

    /// Tells all that the job is over: they may go.
    pub fn end(&self, state: JobState, reason: String) {
        self.heard.lock().is_over = true;
        self.tell(&Decision::End { state, reason });
    }

    fn lose_in(
        &self,
        heard: &mut MutexGuard<'_, Heard>,
        partition: u32,
        what: String,
        code: Option<ErrorCode>,
    ) -> Lost {
        if let Some(lost) = &heard.lost {
            return lost.clone();
        }
        let lost = Lost {
            partition: Partition { index: partition, count: self.count() },
            url: self.members[partition as usize - 1].url.clone(),
            what,
            code,
        };
        heard.lost = Some(lost.clone());
        self.changed.notify_all();
        MutexGuard::unlocked(heard, || (self.alarm)(&lost));
        lost
    }

    /// The loss that has ended the group's life, if there was one.
    pub fn lost(&self) -> Option<Lost> {
        self.heard.lock().lost.clone()
    }

    /// Tells all of them.
    pub fn tell(&self, decision: &Decision) {
        for member in &self.members {
            member.peer.tell(decision.clone());
        }
    }

    /// Notes by which names an input's call and gradient go. Before the core hears of it.
    pub(crate) fn expect(&self, input: &Input) {
        let mut calls = self.calls.lock();
        match input {
            Input::Push { call, header, theta, .. } => {
                let name = PushName { caller: header.caller, clock: header.clock };
                calls.gradients.insert(*call, name);
                *calls.n_of_name.entry(name).or_default() += 1;
                if *theta {
                    calls.asked.insert(*call, (header.caller, header.exchange));
                }
            }
            Input::Pull { call, request, .. } => {
                calls.asked.insert(*call, (request.caller, request.exchange));
            }
            Input::Dropped { call } => {
                calls.asked.remove(call);
            }
            _ => {}
        }
    }

    /// Tells what follows from one step of the core, in its order. Inside the core's lock; `job` is
    /// the number of a job that begins, `seconds` the time since it began.
    pub(crate) fn follow(&self, effects: &[Effect], job: impl Fn(&Tables) -> u64, seconds: f64) {
        let mut calls = self.calls.lock();
        for effect in effects {
            let decision = match effect {
                Effect::Reply { call, answer } => {
                    let Some((caller, exchange)) = calls.asked.remove(call) else { continue };
                    let Some((version, state, seconds)) = theta_of(answer, seconds) else {
                        continue;
                    };
                    Decision::Give(Give { caller, exchange, version, state, seconds })
                }
                Effect::Create { tables, dtype } => {
                    Decision::Create { tables: tables.clone(), dtype: *dtype, job: job(tables) }
                }
                Effect::Update(order) => Decision::Prepare(calls.joint(order)),
                Effect::Capture => Decision::Capture,
                Effect::Keep { rank } => Decision::Keep(*rank),
                Effect::Forget { gradient } => match calls.let_go(*gradient) {
                    (name, 0) => Decision::Forget(name),
                    // Another call has brought the same push, which may still count.
                    _ => continue,
                },
                Effect::Conclude => continue,
            };
            self.tell(&decision);
        }
    }

    /// Waits until all have computed the update that the last [`Effect::Update`] ordered: the
    /// smallest key that would overflow anywhere.
    ///
    /// # Errors
    /// A loss.
    pub(crate) fn prepared(&self) -> Result<Option<u64>, Lost> {
        let mut overflow: Option<u64> = None;
        let patience = Some(self.patience);
        for answer in self.answers(patience, |word| matches!(word, Word::Prepared(_)))? {
            if let Word::Prepared(Some(key)) = answer {
                overflow = Some(overflow.map_or(key, |other| other.min(key)));
            }
        }
        Ok(overflow)
    }

    /// Waits until all have summed the squares of the update that the last [`Effect::Update`] ordered: of
    /// each of its `n_steps` steps, by follower; and the smallest key where a gradient would overflow
    /// anywhere, of which then nothing else follows.
    ///
    /// # Errors
    /// A loss.
    pub(crate) fn squares(&self, n_steps: usize) -> Result<(Vec<Vec<Squares>>, Option<u64>), Lost> {
        let (mut all, mut overflow) = (Vec::new(), None::<u64>);
        for index in 1..self.count() {
            let mut squares = Vec::with_capacity(n_steps);
            while squares.len() < n_steps {
                match self.answer(index, Some(self.patience))? {
                    Word::Squares(of_step) => squares.push(of_step),
                    Word::Prepared(Some(key)) if squares.is_empty() => {
                        overflow = Some(overflow.map_or(key, |other| other.min(key)));
                        break;
                    }
                    other => return Err(self.astray(index, &other)),
                }
            }
            all.push(squares);
        }
        Ok((all, overflow))
    }

    /// Tells how the gradients of the update whose squares have come are clipped.
    pub(crate) fn clip(&self, clips: &[Option<f64>]) {
        // With the lock that all that the core decides is told under: all hear it at the same place.
        let _order = self.calls.lock();
        self.tell(&Decision::Clip(clips.to_vec()));
    }

    /// A follower whose squares cannot be of its part is not relied on.
    pub(crate) fn distrust(&self, misfit: &Misfit) -> Lost {
        let what = format!("of its part of a gradient it told {}", misfit.what);
        self.lose_in(&mut self.heard.lock(), misfit.partition.index, what, None)
    }

    /// The update that was prepared is in force, or it is not. Inside the core's lock, with the core's
    /// word of it.
    pub(crate) fn settle(&self, is_in_force: bool) {
        self.tell(if is_in_force { &Decision::Commit } else { &Decision::Abort });
    }

    /// What is known of a checkpoint once all servers have said whether their part is durable: waits
    /// for them. `own` is partition 0's; other inputs come back at once.
    pub(crate) fn saved_by_all(&self, own: Input) -> Input {
        let Input::Saved { version, mut result } = own else { return own };
        for index in 1..self.count() {
            let theirs = self.wait_for(index, None, |inbox| inbox.saved.pop_front());
            let failed = match theirs {
                Err(lost) => Some(lost.to_string()),
                Ok((theirs, _)) if theirs != version => {
                    let what = format!("it saved version {theirs} where {version} was wanted");
                    Some(self.lose_in(&mut self.heard.lock(), index, what, None).to_string())
                }
                Ok((_, theirs)) => {
                    let by = |what| format!("server {index}/{}: {what}", self.count());
                    theirs.err().map(by)
                }
            };
            // The first failure is told; the others' words are taken all the same.
            if let (Some(failed), Ok(_)) = (failed, &result) {
                result = Err(failed);
            }
        }
        Input::Saved { version, result }
    }

    /// Waits until all have begun the life that they were told to begin, however long they read.
    ///
    /// # Errors
    /// A loss.
    pub fn ready(&self) -> Result<(), Lost> {
        self.answers(None, |word| matches!(word, Word::Ready)).map(drop)
    }

    /// The followers' parts of theta, in order of partition. While no update is under way.
    ///
    /// # Errors
    /// A loss.
    pub(crate) fn collect(&self) -> Result<Vec<Vec<Bytes>>, Lost> {
        self.tell(&Decision::Collect);
        let mut parts = Vec::new();
        for index in 1..self.count() {
            let mut chunks = Vec::new();
            loop {
                let word = self.answer(index, Some(self.patience))?;
                let Word::Part(bytes, is_last) = word else {
                    return Err(self.astray(index, &word));
                };
                chunks.push(bytes);
                if is_last {
                    break;
                }
            }
            parts.push(chunks);
        }
        Ok(parts)
    }

    /// One answer of each follower, in order of partition.
    fn answers(
        &self,
        patience: Option<Duration>,
        is_wanted: impl Fn(&Word) -> bool,
    ) -> Result<Vec<Word>, Lost> {
        (1..self.count())
            .map(|index| {
                let word = self.answer(index, patience)?;
                if is_wanted(&word) { Ok(word) } else { Err(self.astray(index, &word)) }
            })
            .collect()
    }

    /// The next answer of follower `index`.
    fn answer(&self, index: u32, patience: Option<Duration>) -> Result<Word, Lost> {
        self.wait_for(index, patience, |inbox| inbox.answers.pop_front())
    }

    /// A follower that says what was not asked for cannot be relied on.
    fn astray(&self, index: u32, word: &Word) -> Lost {
        let kind = match word {
            Word::Holding(_) => "its checkpoints",
            Word::Ready => "that it is ready",
            Word::Prepared(_) => "that an update is computed",
            Word::Squares(_) => "the squares of a gradient",
            Word::Saved { .. } => "that a checkpoint is written",
            Word::Part(..) => "a part of theta",
        };
        let what = format!("it told {kind} where something else was asked for");
        self.lose_in(&mut self.heard.lock(), index, what, None)
    }

    /// Waits for `take` to find something in the inbox of follower `index`, `patience` at most.
    fn wait_for<T>(
        &self,
        index: u32,
        patience: Option<Duration>,
        mut take: impl FnMut(&mut Inbox) -> Option<T>,
    ) -> Result<T, Lost> {
        let mut heard = self.heard.lock();
        loop {
            if let Some(found) = take(&mut heard.inboxes[index as usize - 1]) {
                return Ok(found);
            }
            if let Some(lost) = &heard.lost {
                return Err(lost.clone());
            }
            match patience {
                None => self.changed.wait(&mut heard),
                // Words of others wake it, too: the time runs from the last word of anybody.
                Some(patience) if self.changed.wait_for(&mut heard, patience).timed_out() => {
                    let what = format!("it has not answered for {} s", patience.as_secs_f64());
                    return Err(self.lose_in(&mut heard, index, what, None));
                }
                Some(_) => {}
            }
        }
    }
}

impl Calls {
    /// An update by the names of its gradients, which are let go.
    fn joint(&mut self, order: &Order) -> Joint {
        let part = |&(call, weight): &(CallId, f64)| (self.let_go(call).0, weight);
        let Order { parts, combine, rate_factor, compensation } = order;
        let parts = parts.iter().map(part).collect();
        let compensation = compensation
            .map(|Compensate { lambda, rank, version_pulled }| (lambda, rank, version_pulled));
        Joint { parts, combine: *combine, rate_factor: *rate_factor, compensation }
    }

    /// The name of a gradient that the driver holds no longer, and how many others have it.
    fn let_go(&mut self, gradient: CallId) -> (PushName, usize) {
        let name = self.gradients.remove(&gradient).expect("expected before the core heard of it");
        let n = self.n_of_name.get_mut(&name).expect("counted with its gradient");
        *n -= 1;
        let rest = *n;
        if rest == 0 {
            self.n_of_name.remove(&name);
        }
        (name, rest)
    }
}

/// Version, state and time of the theta that goes with an answer, if any does.
fn theta_of(answer: &Answer, seconds: f64) -> Option<(u64, JobState, f64)> {
    match answer {
        Answer::Pushed(result) if result.outcome != Outcome::Waiting => {
            Some((result.version, result.state, seconds))
        }
        Answer::Pulled(header) => Some((header.version, header.state, header.seconds)),
        _ => None,
    }
}

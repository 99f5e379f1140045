//! When a checkpoint is taken, who waits for one, and what the report says of them (rules D2, D3
//! and D7). What is in one stands in `saved.rs`; how it is written is nobody's affair here.

use ps_common::job::{Durability, JobState};
use ps_common::report::DurabilityReport;
use ps_common::{Error, ErrorCode};
use serde::{Deserialize, Serialize};

use super::joining::not_initialized;
use super::{Answer, CallId, Checkpoints, Core, Effect, Every, Time};

/// How long after a failure the first checkpoint is tried again where all waits for it.
const RETRY: Time = Time::from_secs(1);

/// The newest checkpoint, the wish for a next one, and the accounts of all.
#[derive(Debug, Clone, Default)]
pub(super) struct Captures {
    phase: Phase,
    /// Somebody wants another one, besides what intervals say.
    wanted: bool,
    /// Calls that wait for the next one.
    waiting: Vec<(CallId, Wish)>,
    /// Calls that wait for the one that is under way.
    served: Vec<(CallId, Wish)>,
    /// theta's version in the newest one.
    version: u64,
    /// When it was taken.
    taken: Time,
    /// It could not be made durable.
    failing: bool,
    /// One is durable.
    has_base: bool,
    window: Window,
    pub(super) facts: Facts,
}

/// What a call wants that waits for a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// The checkpoint.
    Checkpoint,
    /// To leave, once its last word is durable.
    Leave,
}

/// How far the newest one is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    /// Durable, or failed, or never begun.
    #[default]
    Settled,
    /// [`Effect::Capture`] is out: theta must not move.
    Ordered,
    /// Taken and not durable yet.
    Unsaved,
}

/// What a crash now would undo.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    /// The newest durable version.
    durable: u64,
    /// When the first update after it was stored.
    oldest: Option<Time>,
    /// When the first update was stored that the checkpoint under way has not.
    later: Option<Time>,
}

/// For the report; part of every checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) checkpoints: u64,
    pub(super) failed: u64,
    pub(super) restarts: u64,
    pub(super) undone: u64,
    pub(super) window_updates_max: u64,
    pub(super) window_seconds_max: f64,
}

impl Captures {
    /// Begins anew at a checkpoint that is durable.
    pub(super) fn restored(facts: Facts, version: u64) -> Self {
        let window = Window { durable: version, ..Window::default() };
        Self { facts, version, window, has_base: true, ..Self::default() }
    }

    /// Nothing is on its way to the disk.
    pub(super) fn is_settled(&self) -> bool {
        self.phase == Phase::Settled
    }

    /// One more is taken as soon as possible.
    pub(super) fn want(&mut self) {
        self.wanted = true;
    }

    /// The caller is gone.
    pub(super) fn forget(&mut self, call: CallId) {
        for calls in [&mut self.waiting, &mut self.served] {
            calls.retain(|&(waiting, _)| waiting != call);
        }
    }

    /// theta has moved.
    pub(super) fn moved(&mut self, now: Time) {
        self.window.oldest.get_or_insert(now);
        if self.phase != Phase::Settled {
            self.window.later.get_or_insert(now);
        }
    }

    /// The restored job goes on at `version`, all of which is durable.
    pub(super) fn resumed(&mut self, now: Time, version: u64) {
        (self.version, self.taken) = (version, now);
        self.window.durable = version;
    }
}

impl Facts {
    /// As long as the window is open it grows.
    fn widened(mut self, window: &Window, now: Time, version: u64) -> Self {
        let updates = version.saturating_sub(window.durable);
        self.window_updates_max = self.window_updates_max.max(updates);
        if let Some(oldest) = window.oldest {
            let seconds = now.saturating_sub(oldest).as_secs_f64();
            self.window_seconds_max = self.window_seconds_max.max(seconds);
        }
        self
    }
}

impl Core {
    /// Answers `call` once a checkpoint that is taken from now on is durable.
    pub(super) fn checkpoint(&mut self, now: Time, call: Option<CallId>, out: &mut Vec<Effect>) {
        let refusal = if self.config.checkpoints.is_none() {
            Error::new(ErrorCode::NotBuilt, "this server was started without --checkpoint-dir")
        } else if self.job.is_none() {
            not_initialized()
        } else {
            self.captures.waiting.extend(call.map(|call| (call, Wish::Checkpoint)));
            self.captures.want();
            return self.proceed(now, out);
        };
        if let Some(call) = call {
            self.refuse(now, call, None, refusal, out);
        }
    }

    /// Answers the goodbye `call`. Of a finishing job it is answered once the last word is durable: who
    /// has left does not come back, so that a server that went back further would wait in vain.
    pub(super) fn farewell(&mut self, call: CallId, out: &mut Vec<Effect>) {
        if self.state == JobState::Finishing && self.config.checkpoints.is_some() {
            self.captures.waiting.push((call, Wish::Leave));
            self.captures.want();
        } else {
            out.push(Effect::Reply { call, answer: self.state_answer() });
        }
    }

    /// Orders the next checkpoint, if one is due and theta stands still.
    pub(super) fn capture_if_due(&mut self, now: Time, out: &mut Vec<Effect>) {
        if !self.captures.is_settled() || self.job.is_none() {
            return;
        }
        let still = self.applying.is_empty() || self.config.consistency.updates_overlap();
        if still && self.is_capture_due(now) {
            self.capture(now, out);
        } else if let Some(due) = self.next_capture() {
            self.wake_at(due.max(now));
        }
    }

    /// Orders a checkpoint.
    pub(super) fn capture(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.config.checkpoints.is_none() {
            return;
        }
        let captures = &mut self.captures;
        captures.phase = Phase::Ordered;
        captures.wanted = false;
        captures.served = std::mem::take(&mut captures.waiting);
        (captures.version, captures.taken) = (self.version, now);
        out.push(Effect::Capture);
    }

    /// Whether theta must not move: it is about to be taken, or the journal has nothing to go on from
    /// yet (rule D2).
    pub(super) fn is_still(&self) -> bool {
        self.captures.phase == Phase::Ordered || self.lacks_base()
    }

    fn lacks_base(&self) -> bool {
        let always = self.config.checkpoints.is_some_and(|c| c.durability == Durability::Always);
        always && !self.captures.has_base
    }

    fn is_capture_due(&self, now: Time) -> bool {
        let Some(Checkpoints { every, .. }) = self.config.checkpoints else { return false };
        if self.captures.wanted {
            return true;
        }
        if self.state != JobState::Running {
            return false;
        }
        match every {
            _ if self.next_capture().is_some_and(|due| due <= now) => true,
            Some(Every::Rounds(n)) => {
                let mode = self.config.consistency.mode();
                let step = n.saturating_mul(mode.updates_per_round(self.config.n_workers)).max(1);
                self.version / step > self.captures.version / step
            }
            Some(Every::Time(_)) | None => false,
        }
    }

    /// When the next checkpoint is due by time; `None`: not before theta moves.
    fn next_capture(&self) -> Option<Time> {
        if self.state != JobState::Running {
            return None;
        }
        if self.lacks_base() {
            return Some(self.captures.taken.saturating_add(RETRY));
        }
        let Some(Every::Time(interval)) = self.config.checkpoints?.every else { return None };
        let moved = self.version != self.captures.version || self.captures.failing;
        moved.then(|| self.captures.taken.saturating_add(interval))
    }

    /// The driver has taken what it was asked to: theta may move again.
    pub(super) fn captured(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.captures.phase == Phase::Ordered {
            self.captures.phase = Phase::Unsaved;
        }
        self.proceed(now, out);
    }

    /// What was taken is durable, or could not be made so.
    pub(super) fn saved(
        &mut self,
        now: Time,
        version: u64,
        result: Result<(String, u64), String>,
        out: &mut Vec<Effect>,
    ) {
        let current = self.version;
        let captures = &mut self.captures;
        captures.phase = Phase::Settled;
        let served = std::mem::take(&mut captures.served);
        match result {
            Ok((path, _)) => {
                captures.failing = false;
                captures.has_base = true;
                captures.facts.checkpoints += 1;
                let covers = version > captures.window.durable;
                if self.keeps_window() && covers {
                    let captures = &mut self.captures;
                    captures.facts = captures.facts.widened(&captures.window, now, current);
                }
                let window = &mut self.captures.window;
                window.durable = window.durable.max(version);
                window.oldest = window.later.take();
                for (call, wish) in served {
                    let answer = match wish {
                        Wish::Checkpoint => Answer::Checkpointed { version, path: path.clone() },
                        Wish::Leave => self.state_answer(),
                    };
                    out.push(Effect::Reply { call, answer });
                }
            }
            Err(what) => {
                captures.facts.failed += 1;
                captures.window.later = None;
                // Of a row of failures the first is told.
                if !std::mem::replace(&mut captures.failing, true) {
                    let seconds = self.seconds(now);
                    self.record.event(seconds, "checkpoint failed", None, what.clone());
                }
                for (call, wish) in served {
                    if wish == Wish::Leave {
                        // It has said what it had to say; the end of the job tells of the disk.
                        out.push(Effect::Reply { call, answer: self.state_answer() });
                        continue;
                    }
                    let error = Error::new(
                        ErrorCode::NotDurable,
                        format!(
                            "the checkpoint could not be written, older ones are as they were: {what}"
                        ),
                    );
                    self.refuse(now, call, None, error, out);
                }
            }
        }
        self.proceed(now, out);
    }

    /// A restart undid so many acknowledged clocks. Where checkpoints are taken at intervals the next
    /// one comes soon, so that another crash does not hide them.
    pub(super) fn count_undone(&mut self, clocks: u64) {
        let undone = &mut self.captures.facts.undone;
        *undone = undone.saturating_add(clocks);
        if clocks > 0 && self.config.checkpoints.is_some_and(|c| c.every.is_some()) {
            self.captures.want();
        }
    }

    /// Whether a crash could undo what was acknowledged.
    fn keeps_window(&self) -> bool {
        self.config.checkpoints.is_some_and(|c| c.durability != Durability::Always)
    }

    /// For the report; `None` where nothing is kept.
    pub(super) fn durability_report(&self, now: Time) -> Option<DurabilityReport> {
        let Checkpoints { durability, .. } = self.config.checkpoints?;
        let mut facts = self.captures.facts;
        if self.keeps_window() {
            facts = facts.widened(&self.captures.window, now, self.version);
        }
        Some(DurabilityReport {
            setting: durability,
            checkpoints: facts.checkpoints,
            failed: facts.failed,
            restarts: facts.restarts,
            undone: facts.undone,
            window_updates_max: facts.window_updates_max,
            window_seconds_max: facts.window_seconds_max,
        })
    }
}

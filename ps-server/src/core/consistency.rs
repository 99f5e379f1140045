//! The seam between the core and its modes: what each of them decides, question by question.
//!
//! A mode answers: which update comes next, whether a rank may have theta, what becomes of a push
//! that is early or late, who is skipped. Its rules stand in its own file; everything else in the
//! core asks here and does not look at the mode.

use ps_common::Error;
use ps_common::calls::{Outcome, PushHeader, WorkerState};
use ps_common::job::{Combine, Mode, OnWorkerLoss};
use serde::Serialize;

use super::asynchronous::{self, DelayScaling, OnExcess};
use super::{CallId, Core, Effect, Time};

/// The mode with its options.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Consistency {
    /// Rounds with a barrier (rules S1 to S6).
    Sync {
        /// B: a round closes without the B slowest workers' gradients.
        backup_workers: u32,
    },
    /// Bounded staleness (rules B1 to B4).
    Ssp {
        /// S: theta is given to a worker at clock c once every awaited rank is at c - S or later.
        staleness_bound: u64,
    },
    /// Every gradient when it arrives (rules A1 to A7).
    Async {
        /// What a delay does to the learning rate or the gradient.
        delay_scaling: DelayScaling,
        /// N and what happens beyond it; `None`: delays are not bounded.
        max_gradient_delay: Option<(u64, OnExcess)>,
    },
    /// Every gradient at once, beside others that are being applied (rules H1 to H3).
    Hogwild,
}

/// One update as the core orders it: [`crate::table::Update`] with names in place of tensors.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Order {
    /// Gradients by the call that brought them, with weights, in the order in which they are
    /// combined.
    pub parts: Vec<(CallId, f64)>,
    /// How they become one step, or several.
    pub combine: Combine,
    /// Multiplies the learning rate of this update.
    pub rate_factor: f64,
    /// Corrects the gradient for the updates since it was computed.
    pub compensation: Option<Compensate>,
}

/// [`crate::table::Compensation`] with a name in place of theta.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Compensate {
    /// Its strength.
    pub lambda: f64,
    /// Whose gradient it is, and so whose kept theta.
    pub rank: u32,
    /// That the gradient was computed at.
    pub version_pulled: u64,
}

/// What a mode makes of a push of the owed clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// It waits for its turn.
    Kept,
    /// Its round is closing without it.
    Late,
}

impl Consistency {
    /// The mode's name.
    pub fn mode(&self) -> Mode {
        match self {
            Self::Sync { .. } => Mode::Sync,
            Self::Ssp { .. } => Mode::Ssp,
            Self::Async { .. } => Mode::Async,
            Self::Hogwild => Mode::Hogwild,
        }
    }

    /// Whether updates are of whole rounds, rather than of one gradient each.
    pub(super) fn has_rounds(&self) -> bool {
        self.mode().aggregates()
    }

    /// Whether several updates may be under way, so that theta has to bear it.
    pub fn updates_overlap(&self) -> bool {
        matches!(self, Self::Hogwild)
    }

    /// What becomes of a lost worker's rank where nothing else is said: behind a barrier the result
    /// depends on who is in it.
    pub fn default_on_worker_loss(&self) -> OnWorkerLoss {
        if self.has_rounds() { OnWorkerLoss::Wait } else { OnWorkerLoss::Continue }
    }

    /// Whether the workers' losses of a round are the objective over all rows.
    pub(super) fn rounds_are_whole(&self) -> bool {
        matches!(self, Self::Sync { backup_workers: 0 })
    }

    /// Whether it matters which theta each worker has.
    pub(super) fn bounds_reads(&self) -> bool {
        match self {
            Self::Sync { .. } | Self::Hogwild => false,
            Self::Ssp { .. } => true,
            Self::Async { max_gradient_delay, .. } => {
                matches!(max_gradient_delay, Some((_, OnExcess::Block)))
            }
        }
    }

    /// Whether theta as each worker last got it is kept for its next gradient.
    pub(super) fn keeps_theta(&self) -> bool {
        matches!(self, Self::Async { delay_scaling: DelayScaling::DcAsgd { .. }, .. })
    }

    /// N where pushes are held back so that no delay exceeds it.
    pub(super) fn blocked_delay(&self) -> Option<u64> {
        match self {
            Self::Async { max_gradient_delay: Some((n, OnExcess::Block)), .. } => Some(*n),
            _ => None,
        }
    }

    /// Whether a worker may compute its next gradient while a push is on its way (rule A8).
    ///
    /// # Errors
    /// Why not, and what to do, naming the flags.
    pub fn check_overlap(&self) -> Result<(), &'static str> {
        match self {
            Self::Sync { .. } => {
                Err("--overlap with --mode sync: every gradient is computed at the \
                 round's own theta, so nothing can overlap; take --mode ssp, async or hogwild")
            }
            Self::Ssp { staleness_bound: 0 } => {
                Err("--overlap with --staleness-bound 0: a gradient that is computed ahead is of \
                     theta that lacks one clock more, and there is no room for that; allow at \
                     least 1")
            }
            Self::Async { max_gradient_delay: Some((_, OnExcess::Block)), .. } => {
                Err("--overlap with --max-gradient-delay and --on-excess block: theta is given in \
                     turns for one gradient at a time; take --on-excess scale or drop")
            }
            Self::Async { delay_scaling: DelayScaling::DcAsgd { .. }, .. } => {
                Err("--overlap with --delay-scaling dc-asgd: a gradient is corrected by the theta \
                     that its worker was given last, and one that is computed ahead is of the theta \
                     before; take inverse, inverse-sqrt or exponential")
            }
            Self::Ssp { .. } | Self::Async { .. } | Self::Hogwild => Ok(()),
        }
    }

    /// What an operator should know before the job begins.
    pub fn warning(&self, n_workers: u32) -> Option<String> {
        match self {
            Self::Async { max_gradient_delay: Some((n, OnExcess::Drop)), .. } => {
                asynchronous::starvation(*n, n_workers)
            }
            _ => None,
        }
    }
}

impl Core {
    /// Starts the next update, if one is due; in hogwild mode all that are.
    pub(super) fn start_update(&mut self, now: Time, out: &mut Vec<Effect>) {
        let order = match self.config.consistency {
            Consistency::Sync { .. } => self.close_round(now),
            Consistency::Ssp { .. } => self.next_in_line(),
            Consistency::Async { delay_scaling, max_gradient_delay } => {
                self.next_within_delay(now, delay_scaling, max_gradient_delay, out)
            }
            Consistency::Hogwild => return self.start_all(out),
        };
        out.extend(order.map(Effect::Update));
    }

    /// The largest clock whose gradient may be computed now, where the mode has one.
    pub(super) fn read_limit(&self) -> u64 {
        match self.config.consistency {
            Consistency::Ssp { staleness_bound } => self.bound(staleness_bound),
            Consistency::Sync { .. } | Consistency::Async { .. } | Consistency::Hogwild => u64::MAX,
        }
    }

    /// Whether `rank` may have theta for its next gradient; `limit` is [`Core::read_limit`].
    pub(super) fn may_read(&self, rank: u32, limit: u64) -> bool {
        let clock = self.reader_clock(rank);
        match self.config.consistency {
            // Also after its last clock: the round that it is late for may yet be open again (rule D8).
            Consistency::Sync { .. } => self.owes_this_round(rank),
            _ if self.config.rounds.is_some_and(|rounds| clock >= rounds) => true,
            Consistency::Ssp { .. } => self.last_clock_of_theta(rank) <= limit,
            Consistency::Async { .. } => {
                self.config.consistency.blocked_delay().is_none_or(|n| self.has_room(rank, n))
            }
            Consistency::Hogwild => true,
        }
    }

    /// The clock of the gradient that `rank` would compute from theta that it gets now: one that
    /// is in is not computed again.
    pub(super) fn reader_clock(&self, rank: u32) -> u64 {
        self.members.ranks[rank as usize].clock + u64::from(self.pending.contains_key(&rank))
    }

    /// The last clock whose gradient `rank` would compute from theta that it gets now: who computes
    /// ahead has no newer theta for the clock after [`Core::reader_clock`] (rule B5).
    pub(super) fn last_clock_of_theta(&self, rank: u32) -> u64 {
        let clock = self.reader_clock(rank);
        let last = self.config.rounds.map_or(u64::MAX, |rounds| rounds.saturating_sub(1));
        if self.members.overlaps(rank) { (clock + 1).min(last.max(clock)) } else { clock }
    }

    /// What becomes of a push of the owed clock.
    ///
    /// # Errors
    /// STALE_ROUND if it was computed at a theta that the mode does not take any more.
    pub(super) fn admission(&self, header: &PushHeader) -> Result<Admission, Error> {
        match self.config.consistency {
            Consistency::Sync { .. } => self.admit_to_round(header),
            Consistency::Ssp { .. } | Consistency::Hogwild => Ok(Admission::Kept),
            Consistency::Async { .. } => match self.config.consistency.blocked_delay() {
                Some(n) => self.admit_within(header, n),
                None => Ok(Admission::Kept),
            },
        }
    }

    /// Skips clocks that the others have gone on without: after a join, and after an update.
    pub(super) fn skip_clocks(&mut self, now: Time, out: &mut Vec<Effect>) {
        match self.config.consistency {
            Consistency::Sync { .. } => self.skip_rounds(),
            Consistency::Ssp { staleness_bound } => self.skip_to_bound(now, staleness_bound, out),
            Consistency::Async { .. } | Consistency::Hogwild => {}
        }
    }

    /// Whether the job's clocks are done (rule L4).
    pub(super) fn all_clocks_done(&self) -> bool {
        let Some(rounds) = self.config.rounds else { return false };
        if self.config.consistency.has_rounds() {
            return self.version >= rounds;
        }
        let mut any = false;
        let done = self.members.ranks.iter().all(|seat| {
            any |= seat.clock >= rounds;
            let given_up = self.config.on_worker_loss == OnWorkerLoss::Continue
                && matches!(seat.state, WorkerState::Lost | WorkerState::Left);
            seat.clock >= rounds || given_up
        });
        done && any
    }

    /// Whether a barrier or a bound waits for this rank (rules S2, B3).
    pub(super) fn awaited(&self, rank: u32) -> bool {
        match self.config.on_worker_loss {
            OnWorkerLoss::Wait | OnWorkerLoss::Abort => true,
            OnWorkerLoss::Continue => {
                let seat = &self.members.ranks[rank as usize];
                matches!(seat.state, WorkerState::Live | WorkerState::Vacant)
            }
        }
    }

    /// The first gradient in the queue as an update of its own (rule A1).
    pub(super) fn next_in_line(&mut self) -> Option<Order> {
        let rank = self.queue.pop_front()?;
        self.applying = vec![rank];
        Some(Order::alone(self.pending[&rank].gradient))
    }

    /// Drops a pending gradient that will not count any more, and its clock (rule C6).
    pub(super) fn drop_gradient(
        &mut self,
        now: Time,
        rank: u32,
        reason: Reason,
        out: &mut Vec<Effect>,
    ) {
        let Some(pending) = self.pending.remove(&rank) else { return };
        self.queue.retain(|&queued| queued != rank);
        out.push(Effect::Forget { gradient: pending.gradient });
        let clock = pending.header.clock;
        self.members.ranks[rank as usize].skip_to(clock + 1);
        self.count_dropped(rank, clock, reason);
        let delay = self.version - pending.header.version_pulled;
        self.settle_push(now, rank, (Outcome::DroppedLate, delay), out);
    }

    /// Counts a dropped gradient, once for each clock.
    pub(super) fn count_dropped(&mut self, rank: u32, clock: u64, reason: Reason) {
        let seat = &mut self.members.ranks[rank as usize];
        if clock < seat.dropped_before {
            return;
        }
        seat.dropped_before = clock + 1;
        seat.dropped += 1;
        let dropped = &mut self.record.dropped;
        match reason {
            Reason::Late => dropped.late += 1,
            Reason::Delay => dropped.delay += 1,
            Reason::Ended => dropped.ended += 1,
        }
    }
}

/// Why a gradient does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The others went on without it.
    Late,
    /// Its delay was too large.
    Delay,
    /// theta is final.
    Ended,
}

impl Order {
    /// What the update is called while it is under way: its first gradient.
    ///
    /// # Panics
    /// If it has no gradients; the core orders none such.
    pub fn name(&self) -> CallId {
        self.parts[0].0
    }

    /// One gradient as it is.
    pub fn alone(gradient: CallId) -> Self {
        Self {
            parts: vec![(gradient, 1.0)],
            combine: Combine::Sum,
            rate_factor: 1.0,
            compensation: None,
        }
    }
}

//! Who holds which rank, for how long, and what each has done so far.
//!
//! Owns ranks, incarnations, leases and observers. Does not know rounds, versions or policies.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use ps_common::calls::{Caller, Outcome, WorkerState, WorkerStatus};
use ps_common::job::{Metrics, WorkerStats};
use ps_common::{Error, ErrorCode};

use super::{ConnId, Time};

/// So many of a rank's newest counted clocks have their digests kept (rule C6).
const DIGESTS_KEPT: usize = 8;

/// A life that holds a rank or an observer's number.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Holder {
    pub(super) incarnation: u64,
    /// `None` once the connection is gone.
    pub(super) conn: Option<ConnId>,
    pub(super) lease_end: Time,
    pub(super) last_heard: Time,
    pub(super) program: String,
    pub(super) address: String,
    /// It computes a gradient while the one before is on its way (rule A8).
    pub(super) overlaps: bool,
}

/// One rank over all its lives.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rank {
    pub(super) state: WorkerState,
    /// The newest life, also after its end.
    pub(super) holder: Option<Holder>,
    /// The clock that a restart of the server went back to, until somebody joins.
    pub(super) restored: Option<u64>,
    /// The first clock that is owed: all before have counted.
    pub(super) clock: u64,
    /// The newest clocks that counted without a gap. Those between it and `clock` were skipped:
    /// the rank was lost and its rounds closed without it.
    pub(super) counted: Range<u64>,
    /// Of the newest clocks that this life's gradients counted for: clock and digest.
    pub(super) digests: VecDeque<(u64, u32)>,
    /// How many were skipped.
    pub(super) skipped: u64,
    /// Of its gradients, how many were dropped.
    pub(super) dropped: u64,
    /// Dropped gradients of clocks below are in that count.
    pub(super) dropped_before: u64,
    /// Since when nobody holds it.
    pub(super) vacant_since: Time,
    /// Of earlier lives.
    pub(super) stats_before: WorkerStats,
    /// Of this life.
    pub(super) stats: WorkerStats,
    /// Of the shard at the final theta.
    pub(super) final_metrics: Option<Metrics>,
    /// Largest number of samples behind one gradient.
    pub(super) n_samples: u64,
}

/// An onlooker.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Observer {
    pub(super) holder: Holder,
    pub(super) evaluated: bool,
    pub(super) evaluated_final: bool,
}

/// All ranks and observers.
#[derive(Debug, Clone)]
pub(super) struct Members {
    pub(super) ranks: Vec<Rank>,
    pub(super) observers: BTreeMap<u32, Observer>,
    /// Gradients that the ranks of an earlier number of workers have counted.
    pub(super) counted_before: u64,
    /// This life of the server.
    boot: u64,
    incarnations: u64,
    pub(super) observers_ever: u32,
}

impl Members {
    pub(super) fn new(n_workers: u32, boot: u32) -> Self {
        Self {
            ranks: vec![Rank::vacant(); n_workers as usize],
            observers: BTreeMap::new(),
            counted_before: 0,
            boot: boot.into(),
            incarnations: u64::from(boot) << 32,
            observers_ever: 0,
        }
    }

    pub(super) fn next_incarnation(&mut self) -> u64 {
        self.incarnations += 1;
        self.incarnations
    }

    /// How many clocks a restart undid, by what the first one to join as this rank since then says it
    /// was acknowledged.
    pub(super) fn undone(&mut self, rank: u32, acknowledged: Option<u64>) -> u64 {
        let restored = self.ranks[rank as usize].restored.take();
        let below = |clock: u64| clock.saturating_add(1);
        acknowledged.zip(restored).map_or(0, |(clock, to)| below(clock).saturating_sub(to))
    }

    /// Gives `rank` to a new life.
    pub(super) fn seat(&mut self, rank: u32, holder: Holder) {
        let seat = &mut self.ranks[rank as usize];
        seat.stats_before = add(&seat.stats_before, &seat.stats);
        seat.stats = WorkerStats::default();
        // Another life may compute other bits.
        seat.digests.clear();
        seat.state = WorkerState::Live;
        seat.holder = Some(holder);
    }

    /// Gives an observer its number.
    pub(super) fn admit(&mut self, holder: Holder) -> u32 {
        let number = Caller::FIRST_OBSERVER + self.observers_ever;
        self.observers_ever += 1;
        let observer = Observer { holder, evaluated: false, evaluated_final: false };
        self.observers.insert(number, observer);
        number
    }

    /// Whether `caller` got its name from an earlier life of the server, and nobody has come in its
    /// place since.
    pub(super) fn is_of_earlier_boot(&self, caller: Caller) -> bool {
        let incarnation = self.holder(caller.rank).map_or(0, |h| h.incarnation);
        caller.incarnation.max(incarnation) >> 32 < self.boot
    }

    /// Whether the lease of a rank's holder was granted again by a restart and not used since.
    pub(super) fn is_regranted(&self, rank: u32) -> bool {
        let live = self.ranks[rank as usize].state == WorkerState::Live;
        live && self.holder(rank).is_some_and(|h| h.incarnation >> 32 < self.boot)
    }

    /// Checks that `caller` is the living holder of its rank; the error says what it is instead.
    pub(super) fn authenticate(&self, caller: Caller) -> Result<(), Error> {
        let who = if caller.is_observer() { "observer" } else { "rank" };
        let error = |code, what: &str| {
            Error::new(code, format!("{who} {}: {what}", caller.rank)).with("rank", caller.rank)
        };
        let seat = self.ranks.get(caller.rank as usize);
        let live = caller.is_observer() || seat.is_some_and(|s| s.state == WorkerState::Live);
        let Some(holder) = self.holder(caller.rank) else {
            return Err(error(ErrorCode::UnknownWorker, "nobody has joined as this; join first"));
        };
        if caller.incarnation < holder.incarnation {
            return Err(error(
                ErrorCode::Fenced,
                &format!(
                    "incarnation {} was replaced by {}; this process must end",
                    caller.incarnation, holder.incarnation
                ),
            ));
        }
        if caller.incarnation > holder.incarnation {
            return Err(error(ErrorCode::UnknownWorker, "this server gave no such incarnation"));
        }
        if !live {
            return Err(error(ErrorCode::LeaseExpired, "the lease has ended; join again"));
        }
        Ok(())
    }

    /// Whether the newest life of `rank` computes ahead.
    pub(super) fn overlaps(&self, rank: u32) -> bool {
        self.holder(rank).is_some_and(|holder| holder.overlaps)
    }

    fn holder(&self, rank: u32) -> Option<&Holder> {
        if rank >= Caller::FIRST_OBSERVER {
            return self.observers.get(&rank).map(|o| &o.holder);
        }
        self.ranks.get(rank as usize).and_then(|seat| seat.holder.as_ref())
    }

    fn holder_mut(&mut self, rank: u32) -> Option<&mut Holder> {
        if rank >= Caller::FIRST_OBSERVER {
            return self.observers.get_mut(&rank).map(|o| &mut o.holder);
        }
        self.ranks.get_mut(rank as usize).and_then(|seat| seat.holder.as_mut())
    }

    /// Renews a lease.
    pub(super) fn renew(&mut self, caller: Caller, now: Time, lease: std::time::Duration) {
        if let Some(holder) = self.holder_mut(caller.rank) {
            holder.lease_end = now + lease;
            holder.last_heard = now;
        }
    }

    /// A held call of `rank` has ended: its lease runs at least until `lease_end`.
    pub(super) fn touch(&mut self, rank: u32, lease_end: Time) {
        if let Some(holder) = self.holder_mut(rank) {
            holder.lease_end = holder.lease_end.max(lease_end);
        }
    }

    /// `caller` uses this connection now.
    pub(super) fn heard_by(&mut self, caller: Caller, conn: ConnId) {
        let boot = self.boot;
        if let Some(holder) = self.holder_mut(caller.rank)
            && holder.incarnation == caller.incarnation
            && holder.incarnation >> 32 == boot
        {
            holder.conn = Some(conn);
        }
    }

    pub(super) fn disconnected(&mut self, conn: ConnId) {
        let ranks = self.ranks.iter_mut().filter_map(|seat| seat.holder.as_mut());
        let observers = self.observers.values_mut().map(|o| &mut o.holder);
        for holder in ranks.chain(observers).filter(|h| h.conn == Some(conn)) {
            holder.conn = None;
        }
    }

    /// The mean loss of all samples that were learned from, before they were.
    pub(super) fn progressive_loss(&self) -> Option<f64> {
        let total =
            self.ranks.iter().map(Rank::all_stats).reduce(|sum, stats| add(&sum, &stats))?;
        let mean = total.loss_sum? / total.samples as f64;
        mean.is_finite().then_some(mean)
    }

    pub(super) fn measure(&mut self, caller: Caller, stats: WorkerStats) {
        if let Some(seat) = self.ranks.get_mut(caller.rank as usize) {
            seat.stats = stats;
        }
    }

    /// Ends a rank's life.
    pub(super) fn vacate(&mut self, rank: u32, state: WorkerState, now: Time) {
        let seat = &mut self.ranks[rank as usize];
        seat.state = state;
        seat.vacant_since = now;
    }

    /// Ranks in order whose lease has ended, `held` ones excepted: a call of theirs is being held,
    /// so it is the server that is silent.
    pub(super) fn expired(&self, now: Time, held: impl Fn(u32) -> bool) -> Vec<u32> {
        self.live()
            .filter(|&(rank, holder)| holder.lease_end <= now && !held(rank))
            .map(|(rank, _)| rank)
            .collect()
    }

    /// The next moment at which `expired` would name somebody.
    pub(super) fn next_lease_end(&self, held: impl Fn(u32) -> bool) -> Option<Time> {
        self.live().filter(|&(rank, _)| !held(rank)).map(|(_, holder)| holder.lease_end).min()
    }

    /// Living holders: ranks in order, then observers.
    pub(super) fn live(&self) -> impl Iterator<Item = (u32, &Holder)> {
        let ranks = self.ranks.iter().zip(0u32..).filter_map(|(seat, rank)| {
            seat.holder.as_ref().filter(|_| seat.state == WorkerState::Live).map(|h| (rank, h))
        });
        ranks.chain(self.observers.iter().map(|(&number, o)| (number, &o.holder)))
    }

    /// Nobody is connected who has not left.
    pub(super) fn all_gone(&self) -> bool {
        self.live().all(|(_, holder)| holder.conn.is_none())
    }

    /// Each rank for an operator.
    pub(super) fn status(&self, now: Time) -> Vec<WorkerStatus> {
        self.ranks
            .iter()
            .zip(0u32..)
            .map(|(seat, rank)| WorkerStatus {
                rank,
                incarnation: seat.holder.as_ref().map_or(0, |h| h.incarnation),
                state: seat.state,
                clock: seat.clock,
                silent: seat
                    .holder
                    .as_ref()
                    .map_or(Time::ZERO, |h| now.saturating_sub(h.last_heard)),
                stats: seat.all_stats(),
                program: seat.holder.as_ref().map_or(String::new(), |h| h.program.clone()),
                address: seat.holder.as_ref().map_or(String::new(), |h| h.address.clone()),
            })
            .collect()
    }
}

impl Holder {
    /// Of which nothing is known but its incarnation.
    pub(super) fn unheard(incarnation: u64) -> Self {
        Self {
            incarnation,
            conn: None,
            lease_end: Time::ZERO,
            last_heard: Time::ZERO,
            program: String::new(),
            address: String::new(),
            overlaps: false,
        }
    }
}

impl Rank {
    /// Nobody has had it yet.
    pub(super) fn vacant() -> Self {
        Self {
            state: WorkerState::Vacant,
            holder: None,
            restored: None,
            clock: 0,
            counted: 0..0,
            digests: VecDeque::new(),
            skipped: 0,
            dropped: 0,
            dropped_before: 0,
            vacant_since: Time::ZERO,
            stats_before: WorkerStats::default(),
            stats: WorkerStats::default(),
            final_metrics: None,
            n_samples: 0,
        }
    }

    /// `clock` has counted.
    pub(super) fn count(&mut self, clock: u64) {
        if self.counted.end != clock {
            self.counted.start = clock;
        }
        self.counted.end = clock + 1;
        self.clock = clock + 1;
    }

    /// The gradient that counted for `clock`, by `incarnation`, had these bytes.
    pub(super) fn remember(&mut self, clock: u64, incarnation: u64, digest: u32) {
        if self.holder.as_ref().is_none_or(|h| h.incarnation != incarnation) {
            return;
        }
        if self.digests.len() == DIGESTS_KEPT {
            self.digests.pop_front();
        }
        self.digests.push_back((clock, digest));
    }

    /// Whether this life's gradient of `clock` is known to have had other bytes.
    pub(super) fn had_other_bytes(&self, clock: u64, digest: u32) -> bool {
        self.digests.iter().any(|&(counted, bytes)| counted == clock && bytes != digest)
    }

    /// What became of a clock that is owed no more.
    ///
    /// # Errors
    /// SEQ_TOO_OLD before the last gap: which of those counted is not remembered.
    pub(super) fn outcome_of(&self, clock: u64) -> Result<Outcome, Error> {
        if self.counted.contains(&clock) {
            return Ok(Outcome::Duplicate);
        }
        if clock >= self.counted.end {
            return Ok(Outcome::DroppedLate);
        }
        Err(Error::new(
            ErrorCode::SeqTooOld,
            format!(
                "clock {clock} is older than what is remembered, which begins at {}",
                self.counted.start
            ),
        )
        .with("want", self.counted.start)
        .with("got", clock))
    }

    /// The rounds before `clock` have closed without this rank.
    pub(super) fn skip_to(&mut self, clock: u64) {
        self.skipped += clock.saturating_sub(self.clock);
        self.clock = self.clock.max(clock);
    }

    /// Of all lives together.
    pub(super) fn all_stats(&self) -> WorkerStats {
        add(&self.stats_before, &self.stats)
    }
}

/// Counts are a peer's word: too large ones stop at the largest.
pub(super) fn add(a: &WorkerStats, b: &WorkerStats) -> WorkerStats {
    WorkerStats {
        pushes: a.pushes.saturating_add(b.pushes),
        samples: a.samples.saturating_add(b.samples),
        compute_seconds: (a.compute_seconds + b.compute_seconds).min(f64::MAX),
        wait_seconds: (a.wait_seconds + b.wait_seconds).min(f64::MAX),
        comm_seconds: (a.comm_seconds + b.comm_seconds).min(f64::MAX),
        bytes_sent: a.bytes_sent.saturating_add(b.bytes_sent),
        bytes_received: a.bytes_received.saturating_add(b.bytes_received),
        // Who has no samples has no loss to tell.
        loss_sum: match (a.samples, b.samples) {
            (0, _) => b.loss_sum,
            (_, 0) => a.loss_sum,
            _ => a.loss_sum.zip(b.loss_sum).map(|(a, b)| a + b).filter(|sum| sum.is_finite()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_add_up_as_long_as_everybody_with_samples_tells_them() {
        let of = |samples, loss_sum| WorkerStats { samples, loss_sum, ..WorkerStats::default() };
        for (a, b, sum) in [
            (of(2, Some(3.0)), of(1, Some(0.5)), Some(3.5)),
            (of(2, Some(3.0)), of(0, None), Some(3.0)),
            (of(0, None), of(2, Some(3.0)), Some(3.0)),
            (of(2, Some(3.0)), of(1, None), None),
            (of(0, None), of(0, None), None),
        ] {
            assert_eq!(add(&a, &b).loss_sum, sum);
            let mut members = Members::new(2, 0);
            members.ranks[0].stats = a;
            members.ranks[1].stats = b;
            let mean = sum.map(|sum| sum / (a.samples + b.samples) as f64);
            assert_eq!(members.progressive_loss(), mean);
        }
    }
}

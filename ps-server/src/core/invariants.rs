//! What holds after every step, as predicates (docs/CONSISTENCY.md names them).
//!
//! Shared by debug builds, the property tests and the simulator.

use ps_common::calls::WorkerState;
use ps_common::job::{JobState, OnWorkerLoss};

use super::waits::Purpose;
use super::{Consistency, Core, OnExcess};

/// Checks every invariant; the error is the first that does not hold.
pub fn check(core: &Core) -> Result<(), String> {
    exactly_once(core)?;
    one_round(core)?;
    nobody_ahead(core)?;
    held_calls_wait_for_something(core)?;
    final_is_final(core)?;
    reads_are_bounded(core)?;
    delays_are_bounded(core)?;
    rounds_have_their_size(core)?;
    updates_take_turns(core)
}

/// I1: every committed gradient counted exactly once: the ranks' clocks, without those that rounds
/// skipped, add up to the gradients counted.
fn exactly_once(core: &Core) -> Result<(), String> {
    let clocks: u64 = core.members.ranks.iter().map(|seat| seat.clock - seat.skipped).sum();
    let counted = core.record.n_counted();
    let before = core.members.counted_before;
    ensure(clocks + before == counted, || {
        format!("I1: clocks sum to {clocks} after {before}, {counted} gradients counted")
    })?;
    let alone = !core.config.consistency.has_rounds();
    ensure(!alone || core.version == counted, || {
        format!("I1: version {} of {counted} counted gradients", core.version)
    })
}

/// I2: with rounds all pending gradients are of the clocks that are owed, and none queue; otherwise
/// each is queued once or being applied.
fn one_round(core: &Core) -> Result<(), String> {
    if !core.config.consistency.has_rounds() {
        let mut turns: Vec<u32> = core.queue.iter().chain(&core.applying).copied().collect();
        turns.sort_unstable();
        return ensure(turns.iter().eq(core.pending.keys()), || {
            format!("I2: {turns:?} have turns, {:?} are pending", core.pending.keys())
        });
    }
    ensure(core.queue.is_empty(), || format!("I2: {:?} queue in sync mode", core.queue))?;
    for (rank, pending) in &core.pending {
        let owed = core.members.ranks[*rank as usize].clock;
        ensure(pending.header.clock == owed, || {
            format!("I2: rank {rank} has clock {} pending, owes {owed}", pending.header.clock)
        })?;
    }
    let most = core.members.ranks.iter().map(|seat| seat.clock).max().unwrap_or(0);
    // Who came too late for a round that is closing, or failed while closing, owes the next one.
    let closing = !core.applying.is_empty() || core.is_still() || core.state == JobState::Failed;
    ensure(most <= core.version + u64::from(closing), || {
        format!("I2: a clock is {most}, theta is at round {}", core.version)
    })
}

/// I3: no clock exceeds the job's rounds, no pending gradient was computed at a later theta.
fn nobody_ahead(core: &Core) -> Result<(), String> {
    for (rank, seat) in core.members.ranks.iter().enumerate() {
        ensure(
            core.config.rounds.is_none_or(|rounds| seat.clock <= rounds.max(core.floor.clock)),
            || format!("I3: rank {rank} is at clock {}", seat.clock),
        )?;
    }
    for (rank, pending) in &core.pending {
        ensure(pending.header.version_pulled <= core.version, || {
            format!(
                "I3: rank {rank} pulled version {} of {}",
                pending.header.version_pulled, core.version
            )
        })?;
    }
    Ok(())
}

/// I4: a held push has its gradient pending, or waits for theta that it may not have, and is its
/// rank's only one; a held pull could not be granted.
fn held_calls_wait_for_something(core: &Core) -> Result<(), String> {
    let mut pushing = std::collections::BTreeSet::new();
    let limit = core.read_limit();
    for (call, wait) in core.waits.iter() {
        let alone = !wait.purpose.is_push() || pushing.insert(wait.caller.rank);
        ensure(alone, || format!("I4: {call:?} is not its rank's only held push"))?;
        let sound = match &wait.purpose {
            Purpose::Push { .. } => core.pending.contains_key(&wait.caller.rank),
            Purpose::Pull(_) | Purpose::Turn { .. } => !core.is_due(wait, limit),
            Purpose::Statistics => core.statistics.len() < core.config.n_workers as usize,
        };
        ensure(sound, || format!("I4: {call:?} waits for nothing: {wait:?}"))?;
    }
    Ok(())
}

/// I5: once theta is final, nothing is pending or being applied; in a failed job nothing is pending
/// that is not being applied.
fn final_is_final(core: &Core) -> Result<(), String> {
    let ended = matches!(core.state, JobState::Finishing | JobState::Done);
    ensure(!ended || (core.pending.is_empty() && core.applying.is_empty()), || {
        format!("I5: {:?} with gradients pending", core.state)
    })?;
    let idle = core.pending.keys().any(|rank| !core.applying.contains(rank));
    ensure(core.state != JobState::Failed || !idle, || {
        "I5: failed with gradients pending".to_owned()
    })
}

/// I6: in ssp mode nobody computes a gradient more than the bound of clocks ahead of an awaited
/// rank. One whose gradient is being applied may have come back too far behind: it is skipped after.
fn reads_are_bounded(core: &Core) -> Result<(), String> {
    for rank in core.given.keys() {
        let live = core.members.ranks[*rank as usize].state == WorkerState::Live;
        ensure(live, || format!("I6: rank {rank} is gone and counted on"))?;
    }
    let Consistency::Ssp { staleness_bound } = core.config.consistency else { return Ok(()) };
    let behind = |rank: u32| core.members.ranks[rank as usize].clock;
    let awaited = (0..core.config.n_workers)
        .filter(|rank| core.awaited(*rank) && !core.applying.contains(rank));
    let Some(slowest) = awaited.map(behind).min() else { return Ok(()) };
    for (rank, given) in &core.given {
        ensure(given.clock <= slowest.saturating_add(staleness_bound), || {
            format!(
                "I6: rank {rank} computes clock {}, the slowest is at {slowest}, S is                  {staleness_bound}",
                given.clock
            )
        })?;
    }
    Ok(())
}

/// I7: where pushes are held back no delay exceeds N, and all that is outstanding can be applied so
/// that none will.
fn delays_are_bounded(core: &Core) -> Result<(), String> {
    if let Consistency::Async { max_gradient_delay: Some((n, excess)), .. } =
        core.config.consistency
        && excess != OnExcess::Scale
    {
        let most = core.record.delay_max();
        ensure(most <= n.max(core.floor.delay), || {
            format!("I7: a delay of {most} has counted, N is {n}")
        })?;
    }
    let Some(n) = core.config.consistency.blocked_delay() else { return Ok(()) };
    ensure(core.is_feasible(n), || {
        format!(
            "I7: {:?} given and {:?} pending cannot all be applied from version {} within {n}",
            core.given, core.pending, core.version
        )
    })
}

/// I8: a synchronous round is of K - B gradients, or of fewer where fewer are awaited.
fn rounds_have_their_size(core: &Core) -> Result<(), String> {
    let Consistency::Sync { backup_workers } = core.config.consistency else { return Ok(()) };
    let (size, full) = (core.applying.len(), (core.config.n_workers - backup_workers) as usize);
    let fewer_do = core.config.on_worker_loss == OnWorkerLoss::Continue;
    ensure(core.pending.len() <= full, || {
        format!("I8: {} gradients are in a round of {full}", core.pending.len())
    })?;
    ensure(size == 0 || size == full || fewer_do, || {
        format!("I8: a round of {size} gradients, {full} are awaited")
    })
}

/// I9: in hogwild mode no gradient waits for an update, unless the job is about to end; in the other
/// modes without rounds one update at most is under way.
fn updates_take_turns(core: &Core) -> Result<(), String> {
    if core.config.consistency.updates_overlap() {
        return ensure(core.queue.is_empty() || core.stop.is_some() || core.is_still(), || {
            format!("I9: {:?} wait for updates in hogwild mode", core.queue)
        });
    }
    let alone = core.config.consistency.has_rounds() || core.applying.len() <= 1;
    ensure(alone, || format!("I9: {:?} are applied at once", core.applying))
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

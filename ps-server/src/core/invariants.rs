//! What holds after every step, as predicates (docs/CONSISTENCY.md names them).
//!
//! Shared by debug builds, the property tests and the simulator.

use ps_common::job::{JobState, Mode};

use super::Core;
use super::waits::Purpose;

/// Checks every invariant; the error is the first that does not hold.
pub fn check(core: &Core) -> Result<(), String> {
    exactly_once(core)?;
    one_round(core)?;
    nobody_ahead(core)?;
    held_calls_wait_for_something(core)?;
    final_is_final(core)
}

/// I1: every committed gradient counted exactly once: the ranks' clocks, without those that rounds
/// skipped, add up to the gradients counted.
fn exactly_once(core: &Core) -> Result<(), String> {
    let clocks: u64 = core.members.ranks.iter().map(|seat| seat.clock - seat.skipped).sum();
    let counted = core.record.n_counted();
    ensure(clocks == counted, || {
        format!("I1: clocks sum to {clocks}, {counted} gradients counted")
    })?;
    let updates_bound = if core.config.mode == Mode::Async { counted } else { core.version };
    ensure(core.version == updates_bound, || {
        format!("I1: version {} of {counted} counted gradients in async mode", core.version)
    })
}

/// I2: in sync mode all pending gradients are of the clocks that are owed, and none queue; in async
/// mode each is queued once or being applied.
fn one_round(core: &Core) -> Result<(), String> {
    if core.config.mode != Mode::Sync {
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
    ensure(most <= core.version, || {
        format!("I2: a clock is {most}, theta is at round {}", core.version)
    })
}

/// I3: no clock exceeds the job's rounds, no pending gradient was computed at a later theta.
fn nobody_ahead(core: &Core) -> Result<(), String> {
    for (rank, seat) in core.members.ranks.iter().enumerate() {
        ensure(core.config.rounds.is_none_or(|rounds| seat.clock <= rounds), || {
            format!("I3: rank {rank} is at clock {}", seat.clock)
        })?;
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

/// I4: a held push has its gradient pending and is its rank's only one; a held pull could not be
/// granted.
fn held_calls_wait_for_something(core: &Core) -> Result<(), String> {
    let mut pushing = std::collections::BTreeSet::new();
    for (call, wait) in core.waits.iter() {
        let alone = wait.purpose != Purpose::Push || pushing.insert(wait.caller.rank);
        ensure(alone, || format!("I4: {call:?} is not its rank's only held push"))?;
        let sound = match &wait.purpose {
            Purpose::Push => core.pending.contains_key(&wait.caller.rank),
            Purpose::Pull(request) => !core.is_granted(request),
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

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

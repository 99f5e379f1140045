//! What the simulator measures: faults by kind, lost and doubled updates, checks, times to recover.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

use super::Setting;
use super::figures::{Part, Table};
use crate::cli::whisper;
use crate::many::{all, failed, line};
use crate::outcome::{Outcome, Recoveries};
use crate::plan::Kind;

/// Of all seeds together.
#[derive(Debug, Serialize)]
pub(crate) struct Sums {
    seeds: usize,
    first_seed: u64,
    last_seed: u64,
    failed: usize,
    simulated_hours: f64,
    wall_seconds: f64,
    faults: BTreeMap<Kind, u64>,
    acknowledged: u64,
    lost: u64,
    undone_within_the_promise: u64,
    twice: u64,
    dropped: u64,
    checks: u64,
    /// Simulated milliseconds.
    recoveries: Recoveries,
}

/// Runs all seeds.
pub(super) fn measure(setting: &Setting) -> Result<Part> {
    let begun = Instant::now();
    let outcomes = all(&setting.args.many, |outcome| {
        if outcome.violation.is_some() {
            whisper(&line(outcome));
        }
    })?;
    let sums = Sums::of(&outcomes, begun);
    let mut part = Part::of(&sums);
    part.notes.push(
        "The real server and workers on a simulated network and disk. Times to recover are simulated, \
         and include the time in which a worker's links were cut."
            .to_owned(),
    );
    part.tables.push(sums.table());
    part.failures = failed(&outcomes);
    Ok(part)
}

impl Sums {
    /// Of runs that began then.
    pub(crate) fn of(outcomes: &[Outcome], begun: Instant) -> Self {
        let mut faults: BTreeMap<Kind, u64> = BTreeMap::new();
        let mut recoveries = Recoveries::default();
        for outcome in outcomes {
            for (kind, n) in &outcome.faults {
                *faults.entry(*kind).or_default() += n;
            }
            recoveries.add(&outcome.recoveries);
        }
        let total = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
        let seconds: f64 = outcomes.iter().map(|outcome| outcome.simulated_seconds).sum();
        Self {
            seeds: outcomes.len(),
            first_seed: outcomes.first().map_or(0, |outcome| outcome.seed),
            last_seed: outcomes.last().map_or(0, |outcome| outcome.seed),
            failed: outcomes.iter().filter(|outcome| outcome.violation.is_some()).count(),
            simulated_hours: seconds / 3600.0,
            wall_seconds: begun.elapsed().as_secs_f64(),
            faults,
            acknowledged: total(|o| o.acknowledged),
            lost: total(|o| o.lost),
            undone_within_the_promise: total(|o| o.undone),
            twice: total(|o| o.twice),
            dropped: total(|o| o.dropped),
            checks: total(|o| o.checks),
            recoveries,
        }
    }

    /// A row a figure.
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new(&["figure", "value"]);
        let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
        row("seeds", format!("{} ({} to {})", self.seeds, self.first_seed, self.last_seed));
        row("seeds that failed", self.failed.to_string());
        row("simulated hours", format!("{:.2}", self.simulated_hours));
        row("wall time", format!("{:.0} s", self.wall_seconds));
        row("faults", self.faults.values().sum::<u64>().to_string());
        for (kind, n) in &self.faults {
            row(&format!("- {}", kind.name()), n.to_string());
        }
        row("pushes acknowledged", self.acknowledged.to_string());
        row("- of these lost", self.lost.to_string());
        row(
            "- undone within the promise, and not redone",
            self.undone_within_the_promise.to_string(),
        );
        row("- applied twice", self.twice.to_string());
        row("pushes answered as dropped", self.dropped.to_string());
        row("checks of all invariants", self.checks.to_string());
        row("server back to first push", spread(&self.recoveries.server));
        row("worker back to its first push", spread(&self.recoveries.worker));
        row("link mended to its worker's push", spread(&self.recoveries.heal));
        table
    }
}

/// Median and maximum.
fn spread(ms: &[u64]) -> String {
    let mut ms = ms.to_vec();
    ms.sort_unstable();
    match ms.last() {
        None => "none".to_owned(),
        Some(max) => format!("median {} ms, max {max} ms (n = {})", ms[ms.len() / 2], ms.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_all_values() {
        assert_eq!(spread(&[]), "none");
        assert_eq!(spread(&[9, 1, 5]), "median 5 ms, max 9 ms (n = 3)");
    }
}

//! Many seeds, each in a process of its own, and what they have to say together.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Instant;

use parking_lot::Mutex;
use ps_common::exit::{Exit, ExitError};

use crate::cli::{ManyArgs, say};
use crate::outcome::{Outcome, Recoveries};
use crate::plan::{Fixed, Kind, Plan};

/// Runs all seeds and prints a line for each, then the sums.
///
/// # Errors
/// Where a seed failed, or its process could not run.
pub(crate) fn run(args: &ManyArgs) -> Result<(), ExitError> {
    let begun = Instant::now();
    let outcomes = all(args, |outcome| say(&line(outcome)))?;
    say(&sums(&outcomes, begun));
    verdict(&outcomes)
}

/// Runs all seeds and prints what is published.
///
/// # Errors
/// As [`run`].
pub(crate) fn report(args: &ManyArgs) -> Result<(), ExitError> {
    let begun = Instant::now();
    let outcomes = all(args, |outcome| {
        if outcome.violation.is_some() {
            say(&line(outcome));
        }
    })?;
    say(&sums(&outcomes, begun));
    verdict(&outcomes)
}

fn verdict(outcomes: &[Outcome]) -> Result<(), ExitError> {
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|outcome| {
            outcome.violation.as_ref().map(|what| format!("  seed {}: {what}", outcome.seed))
        })
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    let what =
        format!("{} of {} seeds failed\n{}", failed.len(), outcomes.len(), failed.join("\n"));
    Err(ExitError::new(Exit::Failed, what))
}

/// Every seed's outcome in order of seed; `each` hears of them as they come.
fn all(args: &ManyArgs, each: impl Fn(&Outcome) + Sync) -> Result<Vec<Outcome>, ExitError> {
    let seeds = Mutex::new(args.seeds.clone());
    let results = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| {
                loop {
                    let Some(seed) = seeds.lock().next() else { return };
                    let result = elsewhere(seed, &args.fixed);
                    if let Ok(outcome) = &result {
                        each(outcome);
                    }
                    results.lock().insert(seed, result);
                }
            });
        }
    });
    results.into_inner().into_values().collect()
}

/// Runs a seed in a process of its own. A process that breaks off has failed.
///
/// # Errors
/// The system's, where it gives no process.
fn elsewhere(seed: u64, fixed: &Fixed) -> Result<Outcome, ExitError> {
    let failed = |what: String| ExitError::new(Exit::Failed, format!("seed {seed}: {what}"));
    let program =
        std::env::current_exe().map_err(|e| failed("no program".to_owned()).because(e))?;
    let output = Command::new(program)
        .arg(format!("--seed={seed}"))
        .arg("--json")
        .args(fixed.to_string().split_whitespace())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|e| failed("cannot start a process".to_owned()).because(e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(serde_json::from_str(text.trim()).unwrap_or_else(|_| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let what = format!("the process broke off, {}: {}", output.status, stderr.trim());
        Outcome::broken_off(&Plan::draw(seed, fixed), what)
    }))
}

/// One run on one line.
pub(crate) fn line(outcome: &Outcome) -> String {
    let faults: Vec<String> =
        outcome.faults.iter().map(|(kind, n)| format!("{}={n}", kind.name())).collect();
    format!(
        "seed {:<5} {:<5} {:<6} {:>4} acknowledged {:>3} dropped {:>7.1} s simulated {:>6.2} s wall  \
         trace {}  {}{}",
        outcome.seed,
        format!("{:?}", outcome.mode).to_lowercase(),
        if outcome.violation.is_some() { "FAILED" } else { "ok" },
        outcome.acknowledged,
        outcome.dropped,
        outcome.simulated_seconds,
        outcome.wall_seconds,
        outcome.trace,
        faults.join(" "),
        outcome.violation.as_ref().map_or(String::new(), |what| format!("\n  {what}")),
    )
}

/// The figures of all runs together, as Markdown.
fn sums(outcomes: &[Outcome], begun: Instant) -> String {
    let mut kinds: BTreeMap<Kind, u64> = BTreeMap::new();
    let mut recoveries = Recoveries::default();
    for outcome in outcomes {
        for (kind, n) in &outcome.faults {
            *kinds.entry(*kind).or_default() += n;
        }
        recoveries.add(&outcome.recoveries);
    }
    let total = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    let seconds: f64 = outcomes.iter().map(|outcome| outcome.simulated_seconds).sum();
    let failed = outcomes.iter().filter(|outcome| outcome.violation.is_some()).count();
    let seeds = match (outcomes.first(), outcomes.last()) {
        (Some(first), Some(last)) => {
            format!("{} ({} to {})", outcomes.len(), first.seed, last.seed)
        }
        _ => "0".to_owned(),
    };
    let mut rows = vec![
        ("seeds".to_owned(), seeds),
        ("seeds that failed".to_owned(), failed.to_string()),
        ("simulated hours".to_owned(), format!("{:.2}", seconds / 3600.0)),
        ("wall time".to_owned(), format!("{:.0} s", begun.elapsed().as_secs_f64())),
        ("faults".to_owned(), kinds.values().sum::<u64>().to_string()),
    ];
    rows.extend(kinds.iter().map(|(kind, n)| (format!("- {}", kind.name()), n.to_string())));
    rows.extend([
        ("pushes acknowledged".to_owned(), total(|o| o.acknowledged).to_string()),
        ("- of these lost".to_owned(), total(|o| o.lost).to_string()),
        ("- undone within the promise, and not redone".to_owned(), total(|o| o.undone).to_string()),
        ("- applied twice".to_owned(), total(|o| o.twice).to_string()),
        ("pushes answered as dropped".to_owned(), total(|o| o.dropped).to_string()),
        ("checks of all invariants".to_owned(), total(|o| o.checks).to_string()),
        ("server back to first push".to_owned(), spread(recoveries.server)),
        ("worker back to its first push".to_owned(), spread(recoveries.worker)),
        ("link mended to its worker's push".to_owned(), spread(recoveries.heal)),
    ]);
    let rows: Vec<String> =
        rows.iter().map(|(what, figure)| format!("| {what} | {figure} |")).collect();
    format!("\n| figure | value |\n|---|---|\n{}", rows.join("\n"))
}

/// Median and maximum.
fn spread(mut ms: Vec<u64>) -> String {
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
        assert_eq!(spread(vec![]), "none");
        assert_eq!(spread(vec![9, 1, 5]), "median 5 ms, max 9 ms (n = 3)");
    }
}

//! Many seeds, each in a process of its own, and what they have to say together.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Instant;

use parking_lot::Mutex;
use ps_common::exit::{Exit, ExitError};

use crate::cli::{ManyArgs, say};
use crate::outcome::Outcome;
use crate::plan::{Fixed, Plan};
use crate::report::Sums;

/// Runs all seeds and prints a line for each, then the sums.
///
/// # Errors
/// Where a seed failed, or its process could not run.
pub(crate) fn run(args: &ManyArgs) -> Result<(), ExitError> {
    let begun = Instant::now();
    let outcomes = all(args, |outcome| say(&line(outcome)))?;
    say(&format!("\n{}", Sums::of(&outcomes, begun).table().markdown()));
    verdict(&outcomes)
}

fn verdict(outcomes: &[Outcome]) -> Result<(), ExitError> {
    let failed = failed(outcomes);
    if failed.is_empty() {
        return Ok(());
    }
    let what =
        format!("{} of {} seeds failed\n  {}", failed.len(), outcomes.len(), failed.join("\n  "));
    Err(ExitError::new(Exit::Failed, what))
}

/// What did not hold, seed by seed.
pub(crate) fn failed(outcomes: &[Outcome]) -> Vec<String> {
    let failed =
        outcomes.iter().filter_map(|outcome| Some((outcome.seed, outcome.violation.as_ref()?)));
    failed.map(|(seed, what)| format!("seed {seed}: {what}")).collect()
}

/// Every seed's outcome in order of seed; `each` hears of them as they come.
pub(crate) fn all(
    args: &ManyArgs,
    each: impl Fn(&Outcome) + Sync,
) -> Result<Vec<Outcome>, ExitError> {
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

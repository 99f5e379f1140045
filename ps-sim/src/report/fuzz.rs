//! The fuzz targets over changes of their valid inputs, here and now.

use anyhow::Result;
use ps_fuzz::{TARGETS, Tried, try_changes};
use serde::Serialize;

use super::Setting;
use super::figures::{Part, Table};

#[derive(Debug, Serialize)]
struct Fuzzed {
    seed: u64,
    executions: u64,
    crashes: u64,
    targets: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    target: &'static str,
    executions: u64,
    accepted: u64,
    crashes: u64,
    seconds: f64,
}

/// Runs every target.
pub(super) fn measure(setting: &Setting) -> Result<Part> {
    let (seed, n) = (*setting.args.many.seeds.start(), setting.args.fuzz_changes);
    let tried: Vec<Tried> = TARGETS.iter().map(|target| try_changes(target, seed, n)).collect();
    let targets: Vec<Line> = tried
        .iter()
        .map(|tried| Line {
            target: tried.name,
            executions: tried.executions,
            accepted: tried.n_accepted,
            crashes: tried.failures.len() as u64,
            seconds: tried.took.as_secs_f64(),
        })
        .collect();
    let figures = Fuzzed {
        seed,
        executions: targets.iter().map(|line| line.executions).sum(),
        crashes: targets.iter().map(|line| line.crashes).sum(),
        targets,
    };
    let mut table =
        Table::new(&["target", "executions", "crashes", "changes still accepted", "time"]);
    for line in &figures.targets {
        table.row([
            line.target.to_owned(),
            line.executions.to_string(),
            line.crashes.to_string(),
            line.accepted.to_string(),
            format!("{:.1} s", line.seconds),
        ]);
    }
    let seconds: f64 = figures.targets.iter().map(|line| line.seconds).sum();
    table.row([
        "all".to_owned(),
        figures.executions.to_string(),
        figures.crashes.to_string(),
        figures.targets.iter().map(|line| line.accepted).sum::<u64>().to_string(),
        format!("{seconds:.1} s"),
    ]);
    let mut part = Part::of(&figures);
    part.notes.push(format!(
        "The targets of `fuzz/src` in this process, over changes that seed {seed} draws; no \
         coverage leads them, as libFuzzer's would."
    ));
    part.failures.extend(tried.into_iter().flat_map(|tried| tried.failures));
    part.tables.push(table);
    Ok(part)
}

//! This run beside an earlier one, from the JSON of both. Pure, but for reading the file.
//!
//! Bare sockets, which both runs measured, are what pairs them: a ratio of ratios to bare sockets
//! says less of the machine than a ratio of rates.

use std::path::Path;

use ps_common::exit::{Exit, ExitError};
use ps_common::job::Mode;
use ps_common::units::show_bytes;
use serde::{Deserialize, Serialize};

use super::rows::Results;
use super::table::{CELL, whole};
use crate::show::table::{Align, Table};

/// What is read of a run's line of JSON; earlier builds did not say all of it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Run {
    program: Option<String>,
    machine: Machine,
    #[serde(default = "one")]
    servers: u32,
    #[serde(default)]
    tls: bool,
    rows: Vec<Figures>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Machine {
    cpu: String,
    cores: usize,
    memory_bytes: u64,
    kernel: String,
    congestion_control: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Figures {
    n: usize,
    workers: u32,
    mode: Mode,
    dtype: String,
    wire: Option<String>,
    ratio_to_raw: Option<f64>,
    cpu_seconds_per_gb: Option<f64>,
    server_cpu_seconds_per_gb: Option<f64>,
    raw_cpu_seconds_per_gb: f64,
    raw_server_cpu_seconds_per_gb: f64,
}

fn one() -> u32 {
    1
}

/// What became of an earlier run's figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Comparison {
    /// Versions of what was measured then.
    program: Option<String>,
    /// Settings and parts of the machine that were others then.
    differences: Vec<String>,
    /// Cells of this run without a counterpart.
    missing: Vec<String>,
    /// Cells of that run that this one does not have.
    n_more_then: usize,
    rows: Vec<Change>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Change {
    mode: Mode,
    n: usize,
    workers: u32,
    wire: String,
    /// GB/s over that of bare sockets.
    ratio_to_raw: Pair,
    cpu_seconds_per_gb: Pair,
    /// Over that of bare sockets.
    cpu_ratio_to_raw: Pair,
    /// Of the servers, over that of the bare-socket server.
    server_cpu_ratio_to_raw: Pair,
}

/// A figure of both runs; absent where a run has none or the kernel counted no time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Pair {
    then: Option<f64>,
    now: Option<f64>,
    now_over_then: Option<f64>,
}

impl Pair {
    fn of(then: Option<f64>, now: Option<f64>) -> Self {
        let known = |x: &f64| x.is_finite();
        let (then, now) = (then.filter(known), now.filter(known));
        let over = then.zip(now).map(|(then, now)| now / then).filter(known);
        Self { then, now, now_over_then: over }
    }
}

impl Run {
    /// Reads the last line of `path`.
    ///
    /// # Errors
    /// I/O where it cannot be read, bad data where it is no result of `psctl bench --json`.
    pub(super) fn read(path: &Path) -> Result<Self, ExitError> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|e| {
            ExitError::new(Exit::Io, format!("--against {shown} cannot be read")).because(e)
        })?;
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        serde_json::from_str(last).map_err(|e| {
            let what =
                format!("--against {shown} does not end with the line of psctl bench --json");
            ExitError::new(Exit::BadData, what).because(e)
        })
    }

    /// The same of a run that has just ended.
    pub(super) fn of(results: &Results) -> Self {
        let json = serde_json::to_value(results).expect("results are plain data");
        serde_json::from_value(json).expect("results say what a run is read from")
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        let machine = &self.machine;
        vec![
            ("processor", machine.cpu.clone()),
            ("cores", machine.cores.to_string()),
            ("memory", show_bytes(machine.memory_bytes)),
            ("kernel", machine.kernel.clone()),
            ("congestion control", machine.congestion_control.clone()),
            ("servers", self.servers.to_string()),
            ("TLS", (if self.tls { "yes" } else { "no" }).to_owned()),
        ]
    }
}

impl Figures {
    fn wire(&self) -> &str {
        self.wire.as_deref().unwrap_or(&self.dtype)
    }

    fn is_same_cell(&self, other: &Self) -> bool {
        let cell = |f: &Self| (f.n, f.workers, f.mode);
        // Two types of theta have two words for gradients as they are.
        let wire = |f: &Self| (f.wire() != f.dtype).then(|| f.wire().to_owned());
        cell(self) == cell(other) && wire(self) == wire(other)
    }

    fn name(&self) -> String {
        format!("{} n={} W={} wire={}", self.mode, self.n, self.workers, self.wire())
    }

    fn cpu_ratio(&self) -> Option<f64> {
        self.cpu_seconds_per_gb.map(|cpu| cpu / self.raw_cpu_seconds_per_gb)
    }

    fn server_cpu_ratio(&self) -> Option<f64> {
        self.server_cpu_seconds_per_gb.map(|cpu| cpu / self.raw_server_cpu_seconds_per_gb)
    }
}

/// `now` beside `then`, cell by cell.
pub(super) fn compare(then: &Run, now: &Run) -> Comparison {
    let mut differences: Vec<String> = then
        .settings()
        .into_iter()
        .zip(now.settings())
        .filter(|(then, now)| then != now)
        .map(|((name, then), (_, now))| format!("{name}: {then} then, {now} now"))
        .collect();
    let (mut missing, mut rows) = (Vec::new(), Vec::new());
    for figures in &now.rows {
        let counterpart = then.rows.iter().find(|row| row.is_same_cell(figures));
        let Some(before) = counterpart.filter(|row| row.ratio_to_raw.is_some()) else {
            missing.push(figures.name());
            continue;
        };
        if before.dtype != figures.dtype {
            let name = figures.name();
            differences.push(format!("{name}: {} then, {} now", before.dtype, figures.dtype));
        }
        rows.push(Change {
            mode: figures.mode,
            n: figures.n,
            workers: figures.workers,
            wire: figures.wire().to_owned(),
            ratio_to_raw: Pair::of(before.ratio_to_raw, figures.ratio_to_raw),
            cpu_seconds_per_gb: Pair::of(before.cpu_seconds_per_gb, figures.cpu_seconds_per_gb),
            cpu_ratio_to_raw: Pair::of(before.cpu_ratio(), figures.cpu_ratio()),
            server_cpu_ratio_to_raw: Pair::of(
                before.server_cpu_ratio(),
                figures.server_cpu_ratio(),
            ),
        });
    }
    let is_new = |row: &&Figures| !now.rows.iter().any(|figures| figures.is_same_cell(row));
    let n_more_then = then.rows.iter().filter(is_new).count();
    Comparison { program: then.program.clone(), differences, missing, n_more_then, rows }
}

impl Comparison {
    /// For a person.
    pub(super) fn show(&self) -> String {
        let program = self.program.as_deref().unwrap_or("a build that does not say its version");
        let mut text = format!("now beside then: {program}\n");
        for difference in &self.differences {
            text.push_str(&format!("measured otherwise: {difference}\n"));
        }
        for cell in &self.missing {
            text.push_str(&format!("not measured then: {cell}\n"));
        }
        if self.n_more_then > 0 {
            text.push_str(&format!("not measured now, of then: {} cells\n", self.n_more_then));
        }
        if self.rows.is_empty() {
            return text + "there is no cell that both runs have\n";
        }
        let figures = ["GB/s / bare", "s/GB", "s/GB / bare", "server s/GB / bare"];
        let headings = figures.into_iter().map(|name| (name, Align::Right));
        let mut table = Table::new(CELL.into_iter().chain(headings));
        for row in &self.rows {
            let name = [row.mode.to_string(), row.n.to_string(), row.workers.to_string()];
            let figures = [
                row.ratio_to_raw,
                row.cpu_seconds_per_gb,
                row.cpu_ratio_to_raw,
                row.server_cpu_ratio_to_raw,
            ];
            let cells = name.into_iter().chain([row.wire.clone()]).chain(figures.map(told));
            table.row(cells);
        }
        text + "then -> now (now / then); the runs are paired by bare sockets alone\n\n"
            + &whole(&table)
    }
}

fn told(pair: Pair) -> String {
    let figure = |x: Option<f64>, digits| x.map_or("-".to_owned(), |x| format!("{x:.digits$}"));
    let over = figure(pair.now_over_then, 2);
    format!("{} -> {} ({over})", figure(pair.then, 3), figure(pair.now, 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(rows: &str) -> Run {
        let text = format!(
            r#"{{"machine": {{"cpu": "c", "cores": 2, "memory_bytes": 1024, "kernel": "6",
                "congestion_control": "reno"}}, "servers": 1, "tls": false, "rows": [{rows}]}}"#
        );
        serde_json::from_str(&text).expect("a run")
    }

    fn cell(n: usize, ratio: f64, more: &str) -> String {
        format!(
            r#"{{"n": {n}, "workers": 2, "mode": "async", "ratio_to_raw": {ratio},
                "cpu_seconds_per_gb": 0.4, "server_cpu_seconds_per_gb": 0.2,
                "raw_cpu_seconds_per_gb": 0.2, "raw_server_cpu_seconds_per_gb": 0.1 {more}}}"#
        )
    }

    const F32: &str = r#", "dtype": "f32""#;

    #[test]
    fn cells_are_paired_and_their_ratios_divided() {
        let then = run(&[cell(10, 0.4, F32), cell(99, 0.4, F32)].join(","));
        let now = run(&[cell(10, 0.6, F32), cell(20, 0.6, F32)].join(","));
        let comparison = compare(&then, &now);
        assert_eq!(comparison.missing, ["async n=20 W=2 wire=f32"]);
        assert_eq!((comparison.n_more_then, comparison.rows.len()), (1, 1));
        assert!(comparison.differences.is_empty(), "{:?}", comparison.differences);
        let over = comparison.rows[0].ratio_to_raw.now_over_then.expect("both");
        assert!((over - 1.5).abs() < 1e-12);
        let shown = comparison.show();
        assert!(shown.contains("0.400 -> 0.600 (1.50)"), "{shown}");
        assert!(shown.contains("2.000 -> 2.000 (1.00)"), "{shown}");
        assert!(shown.contains("not measured then: async n=20 W=2 wire=f32\n"), "{shown}");
    }

    #[test]
    fn other_settings_are_named() {
        let then = run(&cell(10, 0.4, F32));
        let mut now = run(&cell(10, 0.4, r#", "dtype": "f64""#));
        now.servers = 2;
        now.tls = true;
        now.machine.congestion_control = "bbr".to_owned();
        now.machine.kernel = "7".to_owned();
        let differences = compare(&then, &now).differences;
        assert_eq!(
            differences,
            [
                "kernel: 6 then, 7 now",
                "congestion control: reno then, bbr now",
                "servers: 1 then, 2 now",
                "TLS: no then, yes now",
                "async n=10 W=2 wire=f64: f32 then, f64 now",
            ]
        );
    }

    #[test]
    fn a_codec_is_a_cell_of_its_own() {
        let int8 = r#", "dtype": "f32", "wire": "int8""#;
        let comparison = compare(&run(&cell(10, 0.4, F32)), &run(&cell(10, 0.4, int8)));
        assert_eq!(comparison.missing, ["async n=10 W=2 wire=int8"]);
        // A build from before codecs did not say it.
        let plain = r#", "dtype": "f32", "wire": "f32""#;
        assert_eq!(compare(&run(&cell(10, 0.4, F32)), &run(&cell(10, 0.4, plain))).rows.len(), 1);
    }

    #[test]
    fn time_that_the_kernel_did_not_count_gives_no_ratio() {
        let mut then = run(&cell(10, 0.4, F32));
        then.rows[0].raw_server_cpu_seconds_per_gb = 0.0;
        let comparison = compare(&then, &run(&cell(10, 0.4, F32)));
        let Pair { then, now, now_over_then } = comparison.rows[0].server_cpu_ratio_to_raw;
        assert_eq!((then, now, now_over_then), (None, Some(2.0), None));
        assert!(comparison.show().contains("- -> 2.000 (-)"));
    }

    #[test]
    fn a_file_that_is_no_result_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.json");
        assert_eq!(Run::read(&path).expect_err("it is not there").exit, Exit::Io);
        std::fs::write(&path, "{}\n").expect("writable");
        let error = Run::read(&path).expect_err("no result");
        assert!(error.exit == Exit::BadData && error.message.contains("--against"), "{error}");
    }
}

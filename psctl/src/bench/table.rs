//! Rows out of samples, for a program (serde) and for a person. Medians are taken here.

use std::fmt::Write as _;
use std::time::Duration;

use ps_common::Dtype;
use ps_common::job::Mode;
use ps_common::units::show_bytes;
use serde::Serialize;

use super::args::Job;
use super::cell::Sample;
use super::measure::{Machine, median};

/// Everything that a run of the bench says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Results {
    /// Where.
    pub(super) machine: Machine,
    /// Server processes of gRPC that shared theta.
    pub(super) servers: u32,
    /// Whether gRPC went inside TLS.
    pub(super) tls: bool,
    /// One per cell.
    pub(super) rows: Vec<Row>,
}

/// One cell: medians over its repeats. The gRPC figures are absent where it was not measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Row {
    /// Elements of theta.
    pub(super) n: usize,
    /// Worker processes.
    pub(super) workers: u32,
    /// How pushes were ordered.
    pub(super) mode: Mode,
    dtype: Dtype,
    repeats: usize,
    #[serde(flatten)]
    grpc: Option<Grpc>,
    #[serde(flatten)]
    raw: Raw,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Grpc {
    steps: f64,
    seconds: f64,
    steps_per_second: f64,
    payload_gb_per_second: f64,
    payload_gb_per_second_min: f64,
    payload_gb_per_second_max: f64,
    cpu_seconds_per_gb: f64,
    server_cpu_seconds_per_gb: f64,
    p50_us: f64,
    p50_us_min: f64,
    p50_us_max: f64,
    p99_us: f64,
    server_peak_rss_bytes: f64,
    /// Median over the repeats of the ratio of neighbouring measurements.
    ratio_to_raw: f64,
    ratio_to_raw_min: f64,
    ratio_to_raw_max: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Raw {
    raw_steps: f64,
    raw_seconds: f64,
    raw_steps_per_second: f64,
    raw_gb_per_second: f64,
    raw_gb_per_second_min: f64,
    raw_gb_per_second_max: f64,
    raw_cpu_seconds_per_gb: f64,
    raw_server_cpu_seconds_per_gb: f64,
    raw_p50_us: f64,
    raw_p50_us_min: f64,
    raw_p50_us_max: f64,
    raw_p99_us: f64,
    raw_server_peak_rss_bytes: f64,
}

impl Row {
    /// The row of `job` from its repeats; `grpc` has as many as `raw`, pair by pair, or none.
    ///
    /// # Panics
    /// If `raw` is empty or the numbers do not fit.
    pub(super) fn new(job: &Job, grpc: &[Sample], raw: &[Sample]) -> Self {
        assert!(grpc.is_empty() || grpc.len() == raw.len());
        let &Job { n, workers, mode, dtype } = job;
        let row =
            Self { n, workers, mode, dtype, repeats: raw.len(), grpc: None, raw: Raw::of(raw) };
        Self { grpc: (!grpc.is_empty()).then(|| Grpc::of(grpc, raw)), ..row }
    }

    /// gRPC's rate over that of bare sockets; `None` where gRPC was not measured.
    pub(super) fn ratio_to_raw(&self) -> Option<f64> {
        self.grpc.as_ref().map(|grpc| grpc.ratio_to_raw)
    }

    /// Payload of all workers over bare sockets.
    pub(super) fn raw_gb_per_second(&self) -> f64 {
        self.raw.raw_gb_per_second
    }
}

impl Grpc {
    fn of(grpc: &[Sample], raw: &[Sample]) -> Self {
        let of = |figure: fn(&Sample) -> f64| median(grpc.iter().map(figure));
        let ratios = || grpc.iter().zip(raw).map(|(g, r)| g.gb_per_second / r.gb_per_second);
        Self {
            steps: of(|s| s.steps as f64),
            seconds: of(|s| s.seconds),
            steps_per_second: of(|s| s.steps_per_second),
            payload_gb_per_second: of(|s| s.gb_per_second),
            payload_gb_per_second_min: smallest(grpc, |s| s.gb_per_second),
            payload_gb_per_second_max: largest(grpc, |s| s.gb_per_second),
            cpu_seconds_per_gb: of(|s| s.cpu_seconds_per_gb),
            server_cpu_seconds_per_gb: of(|s| s.server_cpu_seconds_per_gb),
            p50_us: of(|s| micros(s.p50)),
            p50_us_min: smallest(grpc, |s| micros(s.p50)),
            p50_us_max: largest(grpc, |s| micros(s.p50)),
            p99_us: of(|s| micros(s.p99)),
            server_peak_rss_bytes: of(|s| s.server_peak_rss_bytes as f64),
            ratio_to_raw: median(ratios()),
            ratio_to_raw_min: ratios().fold(f64::INFINITY, f64::min),
            ratio_to_raw_max: ratios().fold(0.0, f64::max),
        }
    }
}

impl Raw {
    fn of(raw: &[Sample]) -> Self {
        let of = |figure: fn(&Sample) -> f64| median(raw.iter().map(figure));
        Self {
            raw_steps: of(|s| s.steps as f64),
            raw_seconds: of(|s| s.seconds),
            raw_steps_per_second: of(|s| s.steps_per_second),
            raw_gb_per_second: of(|s| s.gb_per_second),
            raw_gb_per_second_min: smallest(raw, |s| s.gb_per_second),
            raw_gb_per_second_max: largest(raw, |s| s.gb_per_second),
            raw_cpu_seconds_per_gb: of(|s| s.cpu_seconds_per_gb),
            raw_server_cpu_seconds_per_gb: of(|s| s.server_cpu_seconds_per_gb),
            raw_p50_us: of(|s| micros(s.p50)),
            raw_p50_us_min: smallest(raw, |s| micros(s.p50)),
            raw_p50_us_max: largest(raw, |s| micros(s.p50)),
            raw_p99_us: of(|s| micros(s.p99)),
            raw_server_peak_rss_bytes: of(|s| s.server_peak_rss_bytes as f64),
        }
    }
}

fn smallest(samples: &[Sample], figure: fn(&Sample) -> f64) -> f64 {
    samples.iter().map(figure).fold(f64::INFINITY, f64::min)
}

fn largest(samples: &[Sample], figure: fn(&Sample) -> f64) -> f64 {
    samples.iter().map(figure).fold(f64::NEG_INFINITY, f64::max)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

const SIDES: &str = "                    ------------------ gRPC ------------------   -------------- bare sockets --------------";
const COLUMNS: &str = "mode          n   W    steps/s   GB/s   s/GB   p50 us   p99 us      steps/s   GB/s   s/GB   p50 us   p99 us   ratio (min-max)";

/// The table for a person, with what one needs to know to read it.
pub(super) fn show(results: &Results) -> String {
    let machine = &results.machine;
    let way = match (results.servers, results.tls) {
        (1, false) => String::new(),
        (1, true) => ", gRPC inside TLS 1.3".to_owned(),
        (n, _) => format!(", gRPC with {n} servers, bare sockets with one"),
    };
    let mut text = format!(
        "{}, {} cores, {}, kernel {}, load average {:.2} before the run\n\
         loopback TCP{}, congestion control {} (the system's is {})\n\n{SIDES}\n{COLUMNS}\n",
        machine.cpu,
        machine.cores,
        show_bytes(machine.memory_bytes),
        machine.kernel,
        machine.load_average,
        way,
        machine.congestion_control,
        machine.congestion_control_system,
    );
    for row in &results.rows {
        text.push_str(&line(row));
        text.push('\n');
    }
    text.push_str(
        "\nGB/s: payload, 2 n elements a step, all workers, 10^9 bytes. s/GB: processor seconds of all \
         processes.\nBare sockets apply pushes piece by piece, unvalidated; gRPC whole and validated.\n\
         Both sides' theta was checked to the last bit after every measurement.\n",
    );
    text
}

fn line(row: &Row) -> String {
    let mut text = format!("{:<5} {:>9} {:>3}", row.mode, row.n, row.workers);
    match &row.grpc {
        Some(g) => text.push_str(&side([
            g.steps_per_second,
            g.payload_gb_per_second,
            g.cpu_seconds_per_gb,
            g.p50_us,
            g.p99_us,
        ])),
        None => text.push_str(&format!("{:>43}", "not measured ")),
    }
    let r = &row.raw;
    text.push_str("  ");
    text.push_str(&side([
        r.raw_steps_per_second,
        r.raw_gb_per_second,
        r.raw_cpu_seconds_per_gb,
        r.raw_p50_us,
        r.raw_p99_us,
    ]));
    if let Some(g) = &row.grpc {
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "   {:.2} ({:.2}-{:.2})",
            g.ratio_to_raw, g.ratio_to_raw_min, g.ratio_to_raw_max
        );
    }
    text
}

fn side([steps, rate, cpu, p50, p99]: [f64; 5]) -> String {
    format!(" {steps:>10.1} {rate:>6.2} {cpu:>6.3} {p50:>8.0} {p99:>8.0}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(gb_per_second: f64) -> Sample {
        Sample {
            steps: 100,
            seconds: 2.0,
            steps_per_second: 50.0,
            gb_per_second,
            cpu_seconds_per_gb: 0.25,
            server_cpu_seconds_per_gb: 0.125,
            p50: Duration::from_micros(20),
            p99: Duration::from_micros(40),
            server_peak_rss_bytes: 1 << 20,
        }
    }

    const JOB: Job = Job { n: 1000, workers: 2, mode: Mode::Sync, dtype: Dtype::F32 };

    #[test]
    fn the_ratio_is_the_median_of_pairs_not_the_ratio_of_medians() {
        // Pairs 1/4, 2/2, 3/3: medians would give 2/3.
        let grpc = [sample(1.0), sample(2.0), sample(3.0)];
        let raw = [sample(4.0), sample(2.0), sample(3.0)];
        let row = serde_json::to_value(Row::new(&JOB, &grpc, &raw)).expect("plain data");
        assert_eq!(row["ratio_to_raw"], 1.0);
        assert_eq!(row["ratio_to_raw_min"], 0.25);
        assert_eq!(row["payload_gb_per_second"], 2.0);
        assert_eq!(row["raw_gb_per_second"], 3.0);
    }

    #[test]
    fn a_row_has_the_fields_of_the_contract() {
        let row = serde_json::to_value(Row::new(&JOB, &[sample(1.0)], &[sample(2.0)]));
        let row = row.expect("plain data");
        for name in [
            "n",
            "workers",
            "mode",
            "steps_per_second",
            "payload_gb_per_second",
            "cpu_seconds_per_gb",
            "p50_us",
            "p99_us",
            "raw_gb_per_second",
            "ratio_to_raw",
        ] {
            assert!(row.get(name).is_some(), "{name} is missing");
        }
        assert_eq!((&row["mode"], &row["dtype"]), (&"sync".into(), &"f32".into()));
        let row = serde_json::to_value(Row::new(&JOB, &[], &[sample(2.0)])).expect("plain data");
        assert!(row.get("ratio_to_raw").is_none() && row.get("raw_p99_us").is_some());
    }

    #[test]
    fn columns_stand_under_their_headings() {
        let heading = COLUMNS;
        let both = line(&Row::new(&JOB, &[sample(1.0)], &[sample(2.0)]));
        let bare = line(&Row::new(&JOB, &[], &[sample(2.0)]));
        let end = |text: &str, what: &str| text.rfind(what).map(|at| at + what.len());
        assert_eq!(end(&both, " 40"), end(heading, "p99 us"), "\n{heading}\n{both}");
        assert_eq!(end(&bare, " 40"), end(heading, "p99 us"), "\n{heading}\n{bare}");
        assert_eq!(both.find("1.00"), heading.find("GB/s"), "\n{heading}\n{both}");
        let first_column = |line: &str| line.find("---");
        assert_eq!(first_column(SIDES), heading.find("   steps/s"), "\n{SIDES}\n{heading}");
        assert_eq!(SIDES.len(), end(heading, "p99 us").unwrap_or(0), "\n{SIDES}\n{heading}");
    }
}

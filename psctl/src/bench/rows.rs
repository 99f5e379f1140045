//! Rows out of samples, for a program (serde). Medians are taken here.

use std::time::Duration;

use ps_common::Dtype;
use ps_common::job::Mode;
use serde::Serialize;

use super::against::Comparison;
use super::cell::Sample;
use super::job::Job;
use super::measure::{Machine, median};
use super::sparse::Sparse;

/// Everything that a run of the bench says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Results {
    /// Where.
    pub(super) machine: Machine,
    /// Versions of what was measured.
    pub(super) program: String,
    /// Server processes of gRPC that shared theta.
    pub(super) servers: u32,
    /// Whether gRPC went inside TLS.
    pub(super) tls: bool,
    /// One per cell.
    pub(super) rows: Vec<Row>,
    /// Versions of the other build that was measured in turn with this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) against_program: Option<String>,
    /// This run beside an earlier one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) against: Option<Comparison>,
}

/// The samples of one cell, pair by pair: `grpc` and `other` have as many as `raw`, or none.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Samples {
    /// Of bare sockets.
    pub(super) raw: Vec<Sample>,
    /// Of this build.
    pub(super) grpc: Vec<Sample>,
    /// Of another build.
    pub(super) other: Vec<Sample>,
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
    /// How gradients were written over gRPC.
    pub(super) wire: String,
    dtype: Dtype,
    repeats: usize,
    /// Of a step of one worker, both directions.
    payload_bytes_per_step: usize,
    /// Where steps were of rows.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) sparse: Option<OfRows>,
    #[serde(flatten)]
    pub(super) grpc: Option<Grpc>,
    #[serde(flatten)]
    pub(super) raw: Raw,
    /// This build over another, in the same run.
    #[serde(skip_serializing_if = "Option::is_none", rename = "against_program")]
    pub(super) other: Option<Other>,
}

/// Figures of steps of rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct OfRows {
    /// That a step pushes, and is given.
    pub(super) rows_per_step: usize,
    /// Elements of each.
    pub(super) row_width: usize,
    /// Of all workers, as pushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rows_per_second: Option<f64>,
    /// Over bare sockets.
    pub(super) raw_rows_per_second: f64,
}

impl OfRows {
    fn of(Sparse { rows, width }: Sparse, grpc: &[Sample], raw: &[Sample]) -> Self {
        let rate = |samples: &[Sample]| {
            median(samples.iter().map(|sample| sample.steps_per_second * rows as f64))
        };
        Self {
            rows_per_step: rows,
            row_width: width,
            rows_per_second: (!grpc.is_empty()).then(|| rate(grpc)),
            raw_rows_per_second: rate(raw),
        }
    }
}

/// Figures of the build that is measured, and its ratios to bare sockets: medians over the repeats of
/// the ratios of neighbouring measurements.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Grpc {
    steps: f64,
    seconds: f64,
    pub(super) steps_per_second: f64,
    pub(super) payload_gb_per_second: f64,
    payload_gb_per_second_min: f64,
    payload_gb_per_second_max: f64,
    pub(super) cpu_seconds_per_gb: f64,
    pub(super) server_cpu_seconds_per_gb: f64,
    pub(super) p50_us: f64,
    p50_us_min: f64,
    p50_us_max: f64,
    pub(super) p99_us: f64,
    server_peak_rss_bytes: f64,
    /// Of all servers together.
    pub(super) server_peak_rss_over_theta: f64,
    /// Of one worker, in messages with their heads.
    pub(super) sent_bytes_per_step: Option<f64>,
    /// Over the bytes of a gradient as it is.
    pub(super) sent_over_plain: Option<f64>,
    pub(super) ratio_to_raw: f64,
    pub(super) ratio_to_raw_min: f64,
    pub(super) ratio_to_raw_max: f64,
    cpu_ratio_to_raw: Option<f64>,
    pub(super) server_cpu_ratio_to_raw: Option<f64>,
    server_cpu_ratio_to_raw_min: Option<f64>,
    server_cpu_ratio_to_raw_max: Option<f64>,
    p50_ratio_to_raw: Option<f64>,
}

/// Figures of bare sockets.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Raw {
    raw_steps: f64,
    raw_seconds: f64,
    pub(super) raw_steps_per_second: f64,
    pub(super) raw_gb_per_second: f64,
    raw_gb_per_second_min: f64,
    raw_gb_per_second_max: f64,
    pub(super) raw_cpu_seconds_per_gb: f64,
    pub(super) raw_server_cpu_seconds_per_gb: f64,
    pub(super) raw_p50_us: f64,
    raw_p50_us_min: f64,
    raw_p50_us_max: f64,
    raw_p99_us: f64,
    raw_server_peak_rss_bytes: f64,
}

/// Figures of another build, and the ratios of this build to it, pair by pair as those to bare sockets.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Other {
    payload_gb_per_second: f64,
    cpu_seconds_per_gb: f64,
    server_cpu_seconds_per_gb: f64,
    p50_us: f64,
    p99_us: f64,
    server_peak_rss_bytes: f64,
    pub(super) gb_per_second: Option<Spread>,
    pub(super) cpu: Option<Spread>,
    pub(super) server_cpu: Option<Spread>,
    pub(super) p50: Option<Spread>,
}

/// Ratios of pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// `None` where a denominator is 0: a measurement so short that the kernel counted no time.
    fn of(above: &[Sample], below: &[Sample], figure: fn(&Sample) -> f64) -> Option<Self> {
        let ratios: Vec<f64> =
            above.iter().zip(below).map(|(a, b)| figure(a) / figure(b)).collect();
        let is_known = !ratios.is_empty() && ratios.iter().all(|ratio| ratio.is_finite());
        is_known.then(|| Self {
            median: median(ratios.iter().copied()),
            min: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            max: ratios.iter().copied().fold(0.0, f64::max),
        })
    }
}

impl Row {
    /// The row of `job` from its repeats.
    ///
    /// # Panics
    /// If there are no samples of bare sockets or the numbers do not fit.
    pub(super) fn new(job: &Job, samples: &Samples) -> Self {
        let Samples { raw, grpc, other } = samples;
        assert!([grpc, other].iter().all(|arm| arm.is_empty() || arm.len() == raw.len()));
        Self {
            n: job.n,
            workers: job.workers,
            mode: job.mode,
            wire: job.wire_name(),
            dtype: job.dtype,
            repeats: raw.len(),
            payload_bytes_per_step: job.payload_bytes_per_step(),
            sparse: job.sparse.map(|sparse| OfRows::of(sparse, grpc, raw)),
            grpc: (!grpc.is_empty()).then(|| Grpc::of(job, grpc, raw)),
            raw: Raw::of(raw),
            other: (!other.is_empty()).then(|| Other::of(grpc, other)),
        }
    }

    /// gRPC's rate over that of bare sockets; `None` where gRPC was not measured.
    pub(super) fn ratio_to_raw(&self) -> Option<f64> {
        self.grpc.as_ref().map(|grpc| grpc.ratio_to_raw)
    }

    /// Whether a codec wrote the gradients.
    pub(super) fn is_coded(&self) -> bool {
        self.wire != self.dtype.to_string()
    }

    /// Whether it is the same cell but for the codec.
    pub(super) fn is_same_work(&self, other: &Self) -> bool {
        (self.mode, self.n, self.workers) == (other.mode, other.n, other.workers)
    }

    /// Payload of all workers over bare sockets.
    pub(super) fn raw_gb_per_second(&self) -> f64 {
        self.raw.raw_gb_per_second
    }
}

impl Grpc {
    fn of(job: &Job, grpc: &[Sample], raw: &[Sample]) -> Self {
        let of = |figure: fn(&Sample) -> f64| median(grpc.iter().map(figure));
        let theta_bytes = job.theta_bytes() as f64;
        let rate = Spread::of(grpc, raw, |s| s.gb_per_second).expect("both moved bytes");
        let server_cpu = Spread::of(grpc, raw, |s| s.server_cpu_seconds_per_gb);
        let sent: Option<Vec<f64>> = grpc.iter().map(|s| s.sent_bytes_per_step).collect();
        let sent = sent.map(median);
        let peak = of(|s| s.server_peak_rss_bytes as f64);
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
            server_peak_rss_bytes: peak,
            server_peak_rss_over_theta: peak / theta_bytes,
            sent_bytes_per_step: sent,
            sent_over_plain: sent.map(|sent| sent / theta_bytes),
            ratio_to_raw: rate.median,
            ratio_to_raw_min: rate.min,
            ratio_to_raw_max: rate.max,
            cpu_ratio_to_raw: Spread::of(grpc, raw, |s| s.cpu_seconds_per_gb).map(|s| s.median),
            server_cpu_ratio_to_raw: server_cpu.map(|s| s.median),
            server_cpu_ratio_to_raw_min: server_cpu.map(|s| s.min),
            server_cpu_ratio_to_raw_max: server_cpu.map(|s| s.max),
            p50_ratio_to_raw: Spread::of(grpc, raw, |s| micros(s.p50)).map(|s| s.median),
        }
    }
}

impl Other {
    fn of(grpc: &[Sample], other: &[Sample]) -> Self {
        let of = |figure: fn(&Sample) -> f64| median(other.iter().map(figure));
        Self {
            payload_gb_per_second: of(|s| s.gb_per_second),
            cpu_seconds_per_gb: of(|s| s.cpu_seconds_per_gb),
            server_cpu_seconds_per_gb: of(|s| s.server_cpu_seconds_per_gb),
            p50_us: of(|s| micros(s.p50)),
            p99_us: of(|s| micros(s.p99)),
            server_peak_rss_bytes: of(|s| s.server_peak_rss_bytes as f64),
            gb_per_second: Spread::of(grpc, other, |s| s.gb_per_second),
            cpu: Spread::of(grpc, other, |s| s.cpu_seconds_per_gb),
            server_cpu: Spread::of(grpc, other, |s| s.server_cpu_seconds_per_gb),
            p50: Spread::of(grpc, other, |s| micros(s.p50)),
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ps_common::codec::Codec;

    pub(in crate::bench) const JOB: Job = Job {
        n: 1000,
        workers: 2,
        mode: Mode::Sync,
        dtype: Dtype::F32,
        wire: Codec::PLAIN,
        sparse: None,
    };

    pub(in crate::bench) fn sample(gb_per_second: f64) -> Sample {
        Sample {
            steps: 100,
            seconds: 2.0,
            steps_per_second: 50.0,
            gb_per_second,
            cpu_seconds_per_gb: 0.25,
            server_cpu_seconds_per_gb: 0.125,
            p50: Duration::from_micros(20),
            p99: Duration::from_micros(40),
            server_peak_rss_bytes: 10_000,
            sent_bytes_per_step: Some(4040.0),
        }
    }

    /// The row of pairs of rates: gRPC's and that of bare sockets.
    pub(in crate::bench) fn row(job: Job, pairs: &[(f64, f64)]) -> Row {
        let grpc = pairs.iter().map(|(grpc, _)| sample(*grpc)).collect();
        let raw = pairs.iter().map(|(_, raw)| sample(*raw)).collect();
        Row::new(&job, &Samples { raw, grpc, other: Vec::new() })
    }

    /// The row of bare sockets alone.
    pub(in crate::bench) fn bare(job: Job) -> Row {
        Row::new(&job, &Samples { raw: vec![sample(2.0)], ..Samples::default() })
    }

    #[test]
    fn the_ratio_is_the_median_of_pairs_not_the_ratio_of_medians() {
        // Medians would give 2/3.
        let row = row(JOB, &[(1.0, 4.0), (2.0, 2.0), (3.0, 3.0)]);
        let row = serde_json::to_value(row).expect("plain data");
        assert_eq!(row["ratio_to_raw"], 1.0);
        assert_eq!(row["ratio_to_raw_min"], 0.25);
        assert_eq!(row["payload_gb_per_second"], 2.0);
        assert_eq!(row["raw_gb_per_second"], 3.0);
    }

    #[test]
    fn the_server_is_compared_by_its_own_processor_time_and_its_memory_with_theta() {
        let dear = |seconds| Sample { server_cpu_seconds_per_gb: seconds, ..sample(1.0) };
        let grpc = vec![dear(0.3), dear(0.2), dear(0.4)];
        let raw = vec![dear(0.1), dear(0.1), dear(0.1)];
        let samples = Samples { raw, grpc, other: Vec::new() };
        let row = serde_json::to_value(Row::new(&JOB, &samples)).expect("plain data");
        let figure = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name} in {row}"));
        assert!((figure("server_cpu_ratio_to_raw") - 3.0).abs() < 1e-9);
        assert!((figure("server_cpu_ratio_to_raw_max") - 4.0).abs() < 1e-9);
        assert!((figure("server_peak_rss_over_theta") - 2.5).abs() < 1e-9);
        assert!((figure("sent_over_plain") - 1.01).abs() < 1e-9);
        // The kernel counts in hundredths of a second: a short measurement may have none.
        let samples = Samples { raw: vec![dear(0.0)], grpc: vec![dear(0.2)], other: Vec::new() };
        let row = serde_json::to_value(Row::new(&JOB, &samples)).expect("plain data");
        assert!(row["server_cpu_ratio_to_raw"].is_null(), "{row}");
    }

    #[test]
    fn another_build_is_compared_pair_by_pair() {
        let samples = Samples {
            raw: vec![sample(8.0), sample(8.0), sample(8.0)],
            grpc: vec![sample(2.0), sample(3.0), sample(4.0)],
            other: vec![sample(1.0), sample(3.0), sample(1.0)],
        };
        let other = Row::new(&JOB, &samples).other.expect("it was measured");
        let spread = Spread { median: 2.0, min: 1.0, max: 4.0 };
        assert_eq!(other.gb_per_second, Some(spread));
        assert_eq!(other.cpu.map(|cpu| cpu.median), Some(1.0));
    }

    #[test]
    fn a_row_has_the_fields_of_the_contract() {
        let row = serde_json::to_value(row(JOB, &[(1.0, 2.0)])).expect("plain data");
        for name in [
            "n",
            "workers",
            "mode",
            "wire",
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
        let row = serde_json::to_value(bare(JOB)).expect("plain data");
        assert!(row.get("ratio_to_raw").is_none() && row.get("raw_p99_us").is_some());
    }
}

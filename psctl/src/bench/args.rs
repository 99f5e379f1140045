//! The flags of `psctl bench` and the cells that they ask for. Measures nothing.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use ps_common::Dtype;
use ps_common::exit::ExitError;
use ps_common::job::Mode;
use serde::Serialize;

/// The congestion control that both sides' sockets use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Congestion {
    /// Set per socket.
    Reno,
    /// Set per socket.
    Cubic,
    /// Set per socket. On loopback it halves the rate of reno.
    Bbr,
    /// The machine's own default, whatever it is.
    System,
}

impl Congestion {
    /// The kernel's name of it; `None` where nothing is to be set.
    pub(super) const fn name(self) -> Option<&'static str> {
        match self {
            Self::Reno => Some("reno"),
            Self::Cubic => Some("cubic"),
            Self::Bbr => Some("bbr"),
            Self::System => None,
        }
    }
}

/// Flags of `psctl bench`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Every cell (size, workers, mode) is measured --repeats times, gRPC and bare sockets in turn, in
separate processes over loopback TCP. A step pushes N elements and pulls N elements back; payload
is 2 N elements a step, summed over the workers. GB are 10^9 bytes.

Examples:
  psctl bench
  psctl bench --sizes 1M --workers 2 --mode sync,async --json | tail -1")]
pub struct Args {
    /// Elements of theta, e.g. 1000,1M,25M
    #[arg(long, value_delimiter = ',', default_value = "1000,1000000,25000000",
          value_parser = parse_size)]
    pub sizes: Vec<usize>,
    /// Worker processes
    #[arg(long, value_delimiter = ',', default_value = "1,2,4",
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: Vec<u32>,
    /// Server processes that share theta; bare sockets have one server whatever this is
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub servers: u32,
    /// How pushes are ordered
    #[arg(long = "mode", value_delimiter = ',', default_value = "async")]
    pub modes: Vec<Mode>,
    /// How long one measurement lasts: more where twenty steps need more, less where theta would
    /// no longer be exact (more than 5 million pushes in f32)
    #[arg(long, default_value = "2", value_parser = parse_seconds)]
    pub seconds: Duration,
    /// Measurements per cell; figures are medians over them
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeats: u32,
    /// Element type
    #[arg(long, default_value = "f32")]
    pub dtype: Dtype,
    /// TCP congestion control of both sides' sockets
    #[arg(long, default_value = "reno")]
    pub congestion: Congestion,
    /// Put gRPC, and it alone, inside TLS 1.3, with certificates from a folder that `psctl certs` made
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
    /// End with one line of JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// File that gets the ratios against the size of theta as a picture (.svg or .png)
    #[arg(long)]
    pub plot: Option<PathBuf>,
    /// Only the bare sockets, in any build: for tests
    #[arg(long, hide = true)]
    pub raw_only: bool,
}

/// What one cell does; both sides of a comparison get the same.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Job {
    /// Elements of theta.
    #[arg(long)]
    pub(super) n: usize,
    /// Worker processes.
    #[arg(long)]
    pub(super) workers: u32,
    /// How pushes are ordered.
    #[arg(long)]
    pub(super) mode: Mode,
    /// Element type.
    #[arg(long)]
    pub(super) dtype: Dtype,
}

/// What the bytes of a cell go over.
#[derive(Debug, Clone, Default, PartialEq, Serialize, clap::Args)]
pub(super) struct Way {
    /// Congestion control to set on every socket; absent: leave the system's.
    #[arg(long)]
    pub(super) congestion: Option<String>,
    /// Folder with certificates; absent: plaintext.
    #[arg(long)]
    pub(super) tls: Option<PathBuf>,
}

impl Job {
    /// Bytes of theta.
    pub(super) fn theta_bytes(&self) -> usize {
        self.n * self.dtype.size_bytes()
    }

    /// Bytes pushed and pulled by one step of one worker, without headers.
    pub(super) fn payload_bytes_per_step(&self) -> usize {
        2 * self.theta_bytes()
    }
}

impl Args {
    /// The cells in the order of the table.
    pub(super) fn jobs(&self) -> Vec<Job> {
        let mut jobs = Vec::new();
        for &mode in &self.modes {
            for &n in &self.sizes {
                for &workers in &self.workers {
                    jobs.push(Job { n, workers, mode, dtype: self.dtype });
                }
            }
        }
        jobs
    }

    /// Refuses what would give wrong figures, a debug build or more memory than there is, and a
    /// picture of an unknown kind.
    pub(super) fn check(&self, memory_available: u64) -> Result<(), ExitError> {
        if let Some(path) = &self.plot {
            crate::show::chart::Format::of(path)?;
        }
        if let Some(mode) = self.modes.iter().find(|mode| matches!(mode, Mode::Ssp | Mode::Hogwild))
        {
            return Err(ExitError::config(format!(
                "--mode {mode}: the bench has sync and async, whose work bare sockets do as well"
            )));
        }
        if cfg!(debug_assertions) && !self.raw_only {
            return Err(ExitError::config(
                "a debug build is about thirty times slower and its figures mean nothing: \
                 run `cargo run --release --bin psctl -- bench`",
            ));
        }
        if let Some(n) = self.sizes.iter().find(|&&n| n < self.servers as usize) {
            return Err(ExitError::config(format!(
                "--servers {} with --sizes {n}: each server has at least one element",
                self.servers
            )));
        }
        if self.servers > 1 && self.tls.is_some() {
            return Err(ExitError::config(
                "--servers and --tls exclude each other: the bench has no operator's token for \
                 servers to speak to each other",
            ));
        }
        for job in self.jobs() {
            // A worker holds a gradient and theta; a server theta, and at worst a gradient held
            // back and a reply on its way for each worker.
            let copies = 4 * u64::from(job.workers) + 2;
            let need = copies * job.theta_bytes() as u64;
            if need > memory_available {
                return Err(ExitError::config(format!(
                    "--sizes {} with --workers {} may need {} of memory, {} are free: \
                     choose fewer of either",
                    job.n,
                    job.workers,
                    ps_common::units::show_bytes(need),
                    ps_common::units::show_bytes(memory_available),
                )));
            }
        }
        Ok(())
    }
}

/// Reads `1000`, `1k`, `1M` or `25M` (powers of ten).
fn parse_size(text: &str) -> Result<usize, String> {
    const N_MAX: usize = 1 << 32;
    let (digits, scale) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1_000),
        Some((at, 'm' | 'M')) => (&text[..at], 1_000_000),
        Some((at, 'g' | 'G')) => (&text[..at], 1_000_000_000),
        _ => (text, 1),
    };
    let n = digits.parse::<usize>().ok().and_then(|n| n.checked_mul(scale));
    match n {
        Some(n) if (1..=N_MAX).contains(&n) => Ok(n),
        _ => {
            Err(format!("`{text}` is not a number of elements from 1 to {N_MAX}, e.g. 1000 or 25M"))
        }
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let duration = ps_common::units::parse_duration(text)?;
    if duration < Duration::from_millis(1) || duration > Duration::from_secs(600) {
        return Err(format!("`{text}` is not between 1ms and 600s"));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Demo {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn sizes_have_decimal_suffixes() {
        assert_eq!(parse_size("1000"), Ok(1000));
        assert_eq!(parse_size("1k"), Ok(1000));
        assert_eq!(parse_size("25M"), Ok(25_000_000));
        for bad in ["", "0", "k", "-1", "1.5M", "1MM", "99999G", "µ"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_defaults_are_the_nine_cells_of_the_table() {
        let args = Demo::parse_from(["bench"]).args;
        let cells: Vec<_> = args.jobs().iter().map(|job| (job.n, job.workers)).collect();
        let sizes = [1_000, 1_000_000, 25_000_000];
        let expected: Vec<_> = sizes.iter().flat_map(|&n| [(n, 1), (n, 2), (n, 4)]).collect();
        assert_eq!(cells, expected);
        assert!(args.jobs().iter().all(|job| job.mode == Mode::Async && job.dtype == Dtype::F32));
        assert_eq!(args.jobs()[0].payload_bytes_per_step(), 8_000);
    }

    #[test]
    fn modes_without_a_counterpart_are_refused_by_name() {
        for mode in ["ssp", "hogwild"] {
            let modes = format!("--mode=async,{mode}");
            let args = Demo::parse_from(["bench", "--raw-only", &modes]).args;
            let error = args.check(u64::MAX).expect_err(mode);
            assert!(error.message.starts_with(&format!("--mode {mode}:")), "{error}");
        }
    }

    #[test]
    fn more_memory_than_there_is_gets_refused_by_name() {
        let args = Demo::parse_from(["bench", "--raw-only", "--sizes=1M", "--workers=4"]).args;
        assert!(args.check(18 * 4_000_000).is_ok());
        let error = args.check(18 * 4_000_000 - 1).expect_err("too large");
        assert!(error.message.contains("--sizes 1000000 with --workers 4"), "{error}");
    }
}

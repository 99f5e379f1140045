//! The flags of `psctl bench` and the cells that they ask for. Measures nothing.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use ps_common::Dtype;
use ps_common::codec::Codec;
use ps_common::exit::ExitError;
use ps_common::job::Mode;

use super::job::Job;
use super::sparse::Sparse;

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
Every cell (codec, mode, size, workers) is measured --repeats times, gRPC and bare sockets in turn,
in separate processes over loopback TCP. A step pushes N elements and pulls N elements back; payload
is 2 N elements a step, summed over the workers. GB are 10^9 bytes.

To judge a change on a busy machine, measure the build of before in the same run, in turn:
--against-programs FOLDER, where its psctl is. --against FILE has the ratios to what an earlier run
left; only bare sockets, which both runs measured, tell there how much of it is the machine.

Examples:
  psctl bench
  psctl bench --sizes 1M --workers 2 --mode sync,async --json | tail -1
  psctl bench --sizes 1M --wire f32 --wire int8 --wire topk,ratio=0.01
  psctl bench --sizes 16M --sparse 10000x16 --workers 1,2
  psctl bench --json >before.json; psctl bench --against before.json
  psctl bench --sizes 1M --repeats 5 --against-programs ../before/target/release
  psctl bench --idle --workers 4")]
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
    /// How gradients are written over gRPC: f32 (as they are), f16, bf16, int8 or topk,ratio=R; may be
    /// repeated. Bare sockets have no codec [default: f32]
    #[arg(long = "wire", value_name = "CODEC")]
    pub wires: Vec<Codec>,
    /// Push and pull so many rows of so many elements a step, of theta as one table, and not all of theta:
    /// ROWSxWIDTH
    #[arg(long, value_name = "ROWSxWIDTH")]
    pub sparse: Option<Sparse>,
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
    /// Also show the ratios to an earlier run: a file with the line that its --json ended with
    #[arg(long, value_name = "FILE.json", conflicts_with = "raw_only")]
    pub against: Option<PathBuf>,
    /// Also measure another build, in turn with this one, and show the ratios to it: the folder that
    /// its psctl is in
    #[arg(long, value_name = "FOLDER", conflicts_with = "raw_only")]
    pub against_programs: Option<PathBuf>,
    /// Measure nothing but the processor time of a server and workers that wait at a barrier, for so
    /// long [default: 25s]; goes with --workers and --json alone
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
          default_missing_value = "25s", value_parser = parse_seconds,
          conflicts_with_all = ["sizes", "servers", "modes", "wires", "seconds", "repeats", "dtype",
              "congestion", "sparse", "tls", "plot", "against", "against_programs", "raw_only"])]
    pub idle: Option<Duration>,
    /// Only the bare sockets, in any build: for tests
    #[arg(long, hide = true)]
    pub raw_only: bool,
    /// Everything, in any build, whatever the figures are worth: for tests
    #[arg(long, hide = true)]
    pub any_build: bool,
}

impl Args {
    /// The cells in the order of the table.
    pub(super) fn jobs(&self) -> Vec<Job> {
        let plain = [Codec::PLAIN];
        let wires = if self.wires.is_empty() { &plain[..] } else { &self.wires };
        let mut jobs = Vec::new();
        for &wire in wires {
            for &mode in &self.modes {
                for &n in &self.sizes {
                    let (dtype, sparse) = (self.dtype, self.sparse);
                    let job = |&workers| Job { n, workers, mode, dtype, wire, sparse };
                    jobs.extend(self.workers.iter().map(job));
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
        self.check_sparse()?;
        if cfg!(debug_assertions) && !self.raw_only && !self.any_build {
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
            // A worker holds a gradient and theta, and with a codec what it lost, a copy and what it
            // wrote; a server theta, and at worst a gradient held back and a reply on its way for
            // each worker.
            let a_worker = if job.wire == Codec::PLAIN { 4 } else { 7 };
            let copies = a_worker * u64::from(job.workers) + 2;
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

impl Args {
    /// Refuses rows with what has none.
    fn check_sparse(&self) -> Result<(), ExitError> {
        let Some(sparse) = self.sparse else { return Ok(()) };
        let refused = |what: String| Err(ExitError::config(format!("--sparse {sparse} {what}")));
        for (is_there, flag, why) in [
            (
                self.modes.contains(&Mode::Sync),
                "--mode sync",
                "bare sockets have rows in async alone",
            ),
            (self.servers > 1, "--servers", "rows go to one server"),
            (!self.wires.is_empty(), "--wire", "codecs are for whole gradients"),
        ] {
            if is_there {
                return refused(format!("with {flag}: {why}"));
            }
        }
        match self.sizes.iter().find_map(|&n| sparse.check(n).err().map(|what| (n, what))) {
            Some((n, what)) => refused(format!("with --sizes {n}: {what}")),
            None => Ok(()),
        }
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
    fn codecs_are_a_dimension_of_the_cells() {
        let args = ["bench", "--sizes=10", "--workers=1,2", "--wire=f32", "--wire=topk,ratio=0.5"];
        let jobs = Demo::parse_from(args).args.jobs();
        let cells: Vec<_> = jobs.iter().map(|job| (job.wire_name(), job.workers)).collect();
        let cell = |wire: &str, workers| (wire.to_owned(), workers);
        let topk = "topk,ratio=0.5";
        assert_eq!(cells, [cell("f32", 1), cell("f32", 2), cell(topk, 1), cell(topk, 2)]);
    }

    #[test]
    fn rows_go_with_what_has_them() {
        let check = |more: &[&str]| {
            let all = ["bench", "--raw-only", "--sizes=160", "--sparse=10x16"];
            Demo::parse_from([&all[..], more].concat()).args.check(u64::MAX)
        };
        check(&["--dtype=f64"]).expect("fine");
        for (more, says) in [
            (&["--mode=async,sync"][..], "--sparse 10x16 with --mode sync"),
            (&["--servers=2"], "with --servers: rows go to one server"),
            (&["--wire=f16"], "with --wire"),
        ] {
            let error = check(more).expect_err(says);
            assert!(error.message.contains(says), "{error}");
        }
        let args = Demo::parse_from(["bench", "--raw-only", "--sizes=160,159", "--sparse=10x16"]);
        let error = args.args.check(u64::MAX).expect_err("no table");
        assert!(error.message.contains("with --sizes 159: 159 elements are no table"), "{error}");
    }

    #[test]
    fn idle_goes_with_workers_alone() {
        let idle = |more: &[&str]| {
            Demo::try_parse_from([&["bench", "--idle"], more].concat()).map(|demo| demo.args.idle)
        };
        assert_eq!(idle(&["--workers=3", "--json"]).expect("fine"), Some(Duration::from_secs(25)));
        for other in ["--sizes=10", "--mode=sync", "--wire=f16", "--seconds=1", "--plot=x.svg"] {
            let error = idle(&[other]).expect_err(other).to_string();
            assert!(error.contains("cannot be used with"), "{error}");
        }
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

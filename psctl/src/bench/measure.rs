//! Reading the machine and its processes: processor time, peak memory, percentiles.
//!
//! Processor time is utime + stime of /proc/PID/stat: all threads of the process, also ended ones,
//! in user and kernel mode, in hundredths of a second. Loopback traffic is paid for where it is
//! sent and received, so that it is included; interrupts of other machines' traffic are not.

use std::fs;
use std::time::Duration;

use ps_common::exit::{Exit, ExitError};
use serde::Serialize;

/// Ticks per second of /proc on Linux, on every architecture that Rust's std supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the figures were measured on, without its name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Machine {
    /// The processor's model.
    pub(super) cpu: String,
    /// Processors that the bench may use.
    pub(super) cores: usize,
    /// Bytes of memory.
    pub(super) memory_bytes: u64,
    /// Kernel release.
    pub(super) kernel: String,
    /// Load average of the last minute before the run: what else was going on.
    pub(super) load_average: f64,
    /// Congestion control of the sockets of both sides.
    pub(super) congestion_control: String,
    /// Congestion control that the machine would have used.
    pub(super) congestion_control_system: String,
    /// Bytes free to programs before the run.
    #[serde(skip)]
    pub(super) memory_available_bytes: u64,
}

impl Machine {
    /// Describes this machine.
    pub(super) fn read(congestion_control: &str, system: &str) -> Result<Self, ExitError> {
        let cpuinfo = read("/proc/cpuinfo")?;
        let meminfo = read("/proc/meminfo")?;
        let load = read("/proc/loadavg")?;
        let bytes = |name| kib(&meminfo, name).ok_or_else(|| unreadable("/proc/meminfo", name));
        Ok(Self {
            cpu: field(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: bytes("MemTotal")?,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            load_average: load.split(' ').next().and_then(|l| l.parse().ok()).unwrap_or(0.0),
            congestion_control: congestion_control.to_owned(),
            congestion_control_system: system.to_owned(),
            memory_available_bytes: bytes("MemAvailable")?,
        })
    }
}

/// Processor time of a live process so far.
pub(super) fn cpu_time(pid: u32) -> Result<Duration, ExitError> {
    let path = format!("/proc/{pid}/stat");
    let stat = read(&path)?;
    cpu_time_of(&stat).ok_or_else(|| unreadable(&path, "utime and stime"))
}

/// The process's name (field 2) may contain anything; fields are counted after its bracket.
fn cpu_time_of(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let utime: u64 = fields.next()?.parse().ok()?;
    let stime: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_secs_f64((utime + stime) as f64 / TICKS_PER_SECOND))
}

/// Largest resident set of a live process so far, in bytes.
pub(super) fn peak_rss_bytes(pid: u32) -> Result<u64, ExitError> {
    let path = format!("/proc/{pid}/status");
    kib(&read(&path)?, "VmHWM").ok_or_else(|| unreadable(&path, "VmHWM"))
}

/// The nearest-rank percentile of ascending values: the smallest value such that at least
/// `percent` % of all are not above it.
///
/// # Panics
/// If there are no values.
pub(super) fn percentile(ascending: &[Duration], percent: f64) -> Duration {
    let rank = (percent / 100.0 * ascending.len() as f64).ceil() as usize;
    ascending[rank.clamp(1, ascending.len()) - 1]
}

/// The median; of an even number of values, the mean of the two in the middle.
///
/// # Panics
/// If there are no values.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

fn read(path: &str) -> Result<String, ExitError> {
    fs::read_to_string(path).map_err(|e| {
        ExitError::new(Exit::Io, format!("cannot read {path}; the bench needs Linux")).because(e)
    })
}

fn unreadable(path: &str, what: &str) -> ExitError {
    ExitError::new(Exit::Io, format!("{path} does not state {what}"))
}

/// The value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let number = field(text, name)?.strip_suffix("kB")?.trim();
    number.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let ms = |n: u64| Duration::from_millis(n);
        let hundred: Vec<_> = (1..=100).map(ms).collect();
        assert_eq!(percentile(&hundred, 50.0), ms(50));
        assert_eq!(percentile(&hundred, 99.0), ms(99));
        assert_eq!(percentile(&hundred[..20], 99.0), ms(20));
        assert_eq!(percentile(&hundred[..5], 50.0), ms(3));
        assert_eq!(percentile(&hundred[..1], 50.0), ms(1));
    }

    #[test]
    fn medians() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median([4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
    }

    #[test]
    fn a_process_name_with_brackets_and_spaces_shifts_nothing() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0";
        assert_eq!(cpu_time_of(stat), Some(Duration::from_secs(2)));
        assert_eq!(cpu_time_of("7 (a S 1 2"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_and_this_machine_can_be_read() {
        let pid = std::process::id();
        assert!(peak_rss_bytes(pid).expect("readable") > 100_000);
        let before = cpu_time(pid).expect("readable");
        let mut x = 1u64;
        while cpu_time(pid).expect("readable") < before + Duration::from_millis(20) {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        let machine = Machine::read("reno", "bbr").expect("readable");
        assert!(machine.memory_available_bytes <= machine.memory_bytes && machine.cores > 0);
    }
}

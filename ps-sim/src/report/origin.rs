//! Where and when figures were taken: day, commit, build, machine, and how busy it was.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Where and when.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Origin {
    /// UTC, as 2026-01-31.
    pub(crate) day: String,
    pub(crate) commit: String,
    pub(crate) program: &'static str,
    /// `release` or `debug`.
    pub(crate) build: &'static str,
    pub(crate) processors: usize,
}

/// The profile that this program is built in, and its servers with it.
pub(crate) const BUILD: &str = if cfg!(debug_assertions) { "debug" } else { "release" };

impl Origin {
    /// Here and now, of the sources at `root`, if they are there.
    pub(crate) fn here(root: Option<&Path>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Self {
            day: day(now / 86_400),
            commit: root.and_then(commit).unwrap_or_else(|| "unknown".to_owned()),
            program: ps_server::VERSION,
            build: BUILD,
            processors: std::thread::available_parallelism().map_or(0, usize::from),
        }
    }
}

/// The commit, and whether the files differ from it.
fn commit(root: &Path) -> Option<String> {
    let head = git(root, &["rev-parse", "--short", "HEAD"])?;
    let changes = git(root, &["status", "--porcelain", "--untracked-files=no"])?;
    // The figures are written into the document while they are taken.
    let is_changed = changes.lines().any(|line| !line.ends_with(super::DOC));
    Some(if is_changed { format!("{head} and changes") } else { head })
}

/// What git prints; nothing where there is no git or no repository.
pub(crate) fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").arg("-C").arg(root).args(arguments).stdin(Stdio::null()).output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Processes that want to run, averaged over a minute; nothing where the system does not tell.
pub(crate) fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// The day that begins so many days after 1970-01-01 (H. Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", civil_from_days).
fn day(days: u64) -> String {
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(day(0), "1970-01-01");
        assert_eq!(day(11_016), "2000-02-29");
        assert_eq!(day(11_017), "2000-03-01");
        assert_eq!(day(20_818), "2026-12-31");
        assert_eq!(day(20_819), "2027-01-01");
    }
}

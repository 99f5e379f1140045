//! Known bugs in the packages that are linked: as far as somebody here can ask for them.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;

use super::Setting;
use super::figures::Part;

#[derive(Debug, Serialize, PartialEq)]
struct Advisories {
    /// In Cargo.lock, the project's own not counted.
    n_packages: usize,
    /// `None`: not checked.
    n_found: Option<u64>,
    /// By what, or why not.
    by: String,
}

/// Counts packages, and asks a tool for advisories.
pub(super) fn measure(setting: &Setting) -> Result<Part> {
    let root = setting.root()?;
    let path = root.join("Cargo.lock");
    let lock = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (n_found, by) = ask(root);
    let figures = Advisories { n_packages: n_packages(&lock), n_found, by };
    let mut part = Part::of(&figures);
    part.notes.push(match figures.n_found {
        Some(n) => format!("advisories: {n} of {} packages, by {}", figures.n_packages, figures.by),
        None => {
            format!("advisories: not checked ({}), {} packages", figures.by, figures.n_packages)
        }
    });
    if let Some(n @ 1..) = figures.n_found {
        part.failures.push(format!("advisories: {n}, by {}", figures.by));
    }
    Ok(part)
}

/// Packages of others.
fn n_packages(lock: &str) -> usize {
    lock.split("[[package]]").skip(1).filter(|package| package.contains("\nsource = ")).count()
}

/// How many there are, by which tool; or why nobody knows.
fn ask(root: &Path) -> (Option<u64>, String) {
    let has = |tool: &str| run(root, &[tool, "--version"]).is_some_and(|out| out.status.success());
    if has("audit") {
        return match run(root, &["audit", "--json"]).and_then(|out| audited(&out.stdout)) {
            Some(n) => (Some(n), "cargo audit".to_owned()),
            None => (None, UNREACHABLE.to_owned()),
        };
    }
    if has("deny") {
        let output =
            run(root, &["deny", "--locked", "check", "--hide-inclusion-graph", "advisories"]);
        let text = output.map(|out| [out.stdout, out.stderr].concat()).unwrap_or_default();
        return match denied(&String::from_utf8_lossy(&text)) {
            Some(n) => (Some(n), "cargo deny".to_owned()),
            None => (None, UNREACHABLE.to_owned()),
        };
    }
    (None, "neither cargo-audit nor cargo-deny is installed".to_owned())
}

const UNREACHABLE: &str = "the database cannot be reached from here";

fn run(root: &Path, arguments: &[&str]) -> Option<Output> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).args(arguments).stdin(Stdio::null()).output().ok()
}

/// What `cargo audit --json` found, if it came to an end.
fn audited(stdout: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Value>(stdout).ok()?["vulnerabilities"]["count"].as_u64()
}

/// What `cargo deny check advisories` found, if it came to an end: its last line says so.
fn denied(text: &str) -> Option<u64> {
    if text.lines().any(|line| line.trim() == "advisories ok") {
        return Some(0);
    }
    let n = text.lines().filter(|line| line.starts_with("error[")).count() as u64;
    (n > 0 && text.lines().any(|line| line.trim() == "advisories FAILED")).then_some(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_of_others_are_counted() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1\"\n\n[[package]]\nname = \"b\"\n\
                    version = \"2\"\nsource = \"registry+x\"\n";
        assert_eq!(n_packages(lock), 1);
    }

    #[test]
    fn only_a_check_that_came_to_its_end_counts() {
        assert_eq!(audited(br#"{"vulnerabilities":{"found":true,"count":2}}"#), Some(2));
        assert_eq!(audited(b"error: couldn't fetch advisory database"), None);
        assert_eq!(denied("advisories ok\n"), Some(0));
        assert_eq!(
            denied("error[vulnerability]: x\nerror[unmaintained]: y\nadvisories FAILED"),
            Some(2)
        );
        assert_eq!(denied("ERROR failed to fetch advisory database"), None);
    }
}

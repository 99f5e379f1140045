//! The programs that are compared, and how each is run.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use ps_common::exit::{Exit, ExitError};

use super::job::Way;

/// What a program speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The real server and client.
    Grpc,
    /// The yardstick.
    Raw,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grpc => "grpc",
            Self::Raw => "raw",
        })
    }
}

/// One arm of the comparison: every cell is measured once a repeat with each.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Arm {
    /// For progress and errors.
    pub(super) name: &'static str,
    /// What it speaks.
    pub(super) side: Side,
    /// The psctl that plays server and workers.
    pub(super) program: PathBuf,
    /// Server processes that share theta.
    pub(super) servers: u32,
    /// What its bytes go over.
    pub(super) way: Way,
}

/// This program's own file.
pub(super) fn own_program() -> Result<PathBuf, ExitError> {
    std::env::current_exe().map_err(|e| {
        ExitError::new(Exit::Io, "cannot find psctl's own program file, which plays the roles")
            .because(e)
    })
}

/// The psctl of another build in `folder`, and its version on one line.
///
/// # Errors
/// Configuration where there is none that says its version.
pub(super) fn other_program(folder: &Path) -> Result<(PathBuf, String), ExitError> {
    let program = folder.join(format!("psctl{}", std::env::consts::EXE_SUFFIX));
    let refused = |what: &str| {
        ExitError::config(format!(
            "--against-programs {}: {what}; it must be a folder with the psctl of another build, \
             such as another checkout's target/release",
            folder.display()
        ))
    };
    let shown = program.display();
    let output = Command::new(&program)
        .arg(OsStr::new("--version"))
        .output()
        .map_err(|e| refused(&format!("{shown} does not start")).because(e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.strip_prefix("psctl ") {
        Some(version) if output.status.success() => Ok((program, one_line(version))),
        _ => Err(refused(&format!("{shown} does not say that it is psctl")).because(
            io::Error::other(format!("--version ended with {} and `{text}`", output.status)),
        )),
    }
}

/// The versions of psctl and of the roles that it plays.
pub(super) fn own_version() -> String {
    one_line(crate::cli::version())
}

fn one_line(version: &str) -> String {
    version.lines().map(str::trim).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_psctl_is_refused_by_the_name_of_the_flag() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = other_program(folder.path()).expect_err("it is empty");
        assert!(error.message.starts_with("--against-programs ") && error.exit == Exit::Config);
    }
}

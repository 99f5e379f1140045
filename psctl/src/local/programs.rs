//! Which programs play the server and the workers: `ps-server` and `ps-worker` of this very build
//! where they are there, else psctl itself in these roles.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ps_common::exit::{Exit, ExitError};
use tokio::process::Command;

/// A program that takes a role's arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    path: PathBuf,
    /// The subcommand, where psctl plays the role itself.
    role: Option<&'static str>,
}

impl Program {
    /// A program that needs no subcommand.
    #[cfg(test)]
    pub(super) fn at(path: &str) -> Self {
        Self { path: path.into(), role: None }
    }

    /// A command without the role's own arguments.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(self.role);
        command
    }
}

/// The programs of both roles.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    /// Keeps theta.
    pub(super) server: Program,
    /// Computes gradients.
    pub(super) worker: Program,
}

impl Programs {
    /// Finds both, asking candidates for their version.
    ///
    /// # Errors
    /// I/O, if this program's own path is unknown.
    pub(super) async fn find() -> Result<Self, ExitError> {
        let own = std::env::current_exe().map_err(|e| {
            ExitError::new(Exit::Io, "cannot find psctl's own program file, which plays the roles")
                .because(e)
        })?;
        let (server, worker) = tokio::join!(
            find("ps-server", ps_server::VERSION, &own),
            find("ps-worker", ps_worker::VERSION, &own),
        );
        Ok(Self { server, worker })
    }
}

async fn find(name: &'static str, version: &str, own: &Path) -> Program {
    let file = format!("{name}{}", std::env::consts::EXE_SUFFIX);
    for path in candidates(&file, own, std::env::var_os("PATH").as_deref()) {
        if version_of(&path).await.is_some_and(|printed| printed == format!("{name} {version}")) {
            return Program { path, role: None };
        }
        tracing::debug!(path = %path.display(), version, "not this build: passed over");
    }
    Program { path: own.to_owned(), role: Some(name) }
}

/// Beside `own` first, then along the search path; only files that exist.
fn candidates(file: &str, own: &Path, search_path: Option<&std::ffi::OsStr>) -> Vec<PathBuf> {
    let beside = own.parent().map(Path::to_owned);
    let along: Vec<_> = search_path.map(|p| std::env::split_paths(p).collect()).unwrap_or_default();
    beside.into_iter().chain(along).map(|dir| dir.join(file)).filter(|p| p.is_file()).collect()
}

/// What `--version` prints; nothing if the program does not answer.
async fn version_of(path: &Path) -> Option<String> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.ok()?.ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beside_comes_before_the_search_path() {
        let (beside, along) =
            (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        let own = beside.path().join("psctl");
        let path = along.path().as_os_str();
        assert_eq!(candidates("ps-server", &own, Some(path)), Vec::<PathBuf>::new());
        std::fs::write(along.path().join("ps-server"), "").expect("written");
        assert_eq!(candidates("ps-server", &own, Some(path)), [along.path().join("ps-server")]);
        std::fs::write(beside.path().join("ps-server"), "").expect("written");
        assert_eq!(
            candidates("ps-server", &own, Some(path)),
            [beside.path().join("ps-server"), along.path().join("ps-server")]
        );
        assert_eq!(candidates("ps-server", &own, None), [beside.path().join("ps-server")]);
    }

    #[tokio::test]
    async fn a_program_of_another_build_is_passed_over() {
        let program = find("cargo", "0.0.0", Path::new("/nowhere/psctl")).await;
        assert_eq!(program, Program { path: PathBuf::from("/nowhere/psctl"), role: Some("cargo") });
    }
}

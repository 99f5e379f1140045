//! Real programs for the measurements: which ones, servers that keep their port, callers that wait
//! for them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ps_common::exit::{Exit, ExitError};
use ps_common::wire::pb;
use ps_tests::{Caller, Process, free_port};
use tonic::Status;
use tonic::transport::Endpoint;

/// How long anything may take that should come at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at something that is awaited.
const PAUSE: Duration = Duration::from_millis(1);

/// The programs of this very build, beside this program.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    server: PathBuf,
    worker: PathBuf,
}

impl Programs {
    /// Finds both.
    ///
    /// # Errors
    /// Configuration: what is missing or of another build, and how to build it.
    pub(crate) fn find() -> Result<Self, ExitError> {
        let own = std::env::current_exe().map_err(|e| {
            ExitError::new(Exit::Io, "cannot find ps-sim's own program file").because(e)
        })?;
        Ok(Self {
            server: beside(&own, "ps-server", ps_server::VERSION)?,
            worker: beside(&own, "ps-worker", ps_worker::VERSION)?,
        })
    }

    /// Starts a server with these arguments on a free port, which is its own for all its lives.
    pub(crate) fn server(&self, arguments: &[String]) -> Server {
        let port = free_port();
        let mut all = vec![format!("--listen=127.0.0.1:{port}")];
        all.extend_from_slice(arguments);
        let address = format!("127.0.0.1:{port}");
        let process = start("ps-server", &self.server, &all);
        Server { program: self.server.clone(), arguments: all, address, process }
    }

    /// Starts a worker.
    pub(crate) fn worker(&self, arguments: &[String]) -> Process {
        start("ps-worker", &self.worker, arguments)
    }
}

fn beside(own: &Path, name: &str, version: &str) -> Result<PathBuf, ExitError> {
    let path = own.with_file_name(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    let release = if cfg!(debug_assertions) { "" } else { " --release" };
    let build = format!("build it with `cargo build{release} --workspace --bins`");
    let asked = Command::new(&path).arg("--version").stdin(Stdio::null()).output();
    let printed = asked.map_err(|e| {
        let what =
            format!("the figures need {name} at {}, which cannot be run; {build}", path.display());
        ExitError::config(what).because(e)
    })?;
    let printed = String::from_utf8_lossy(&printed.stdout).trim().to_owned();
    let expected = format!("{name} {version}");
    if printed == expected {
        return Ok(path);
    }
    Err(ExitError::config(format!(
        "the figures need {name} of this build: {} says `{printed}`, expected `{expected}`; {build}",
        path.display()
    )))
}

fn start(name: &str, program: &Path, arguments: &[String]) -> Process {
    let mut command = Command::new(program);
    command.args(arguments);
    Process::spawn(name, command)
}

/// A server; killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    program: PathBuf,
    arguments: Vec<String>,
    address: String,
    process: Process,
}

impl Server {
    /// `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Of the process.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// What it has printed.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn stop(self) -> Result<()> {
        self.process.signal("TERM");
        let (code, output) = self.process.wait();
        ensure!(code == Some(0), "the server ended with {code:?} at SIGTERM:\n{output}");
        Ok(())
    }

    /// `kill -9`, and the same server again at once; gives the moment of the kill.
    pub(crate) fn kill_and_restart(&mut self) -> Result<Instant> {
        let killed = Instant::now();
        self.process.signal("KILL");
        let next = start("ps-server", &self.program, &self.arguments);
        let (code, output) = std::mem::replace(&mut self.process, next).wait();
        if let Some(code) = code {
            bail!("the server ended by itself with {code} before it was killed:\n{output}");
        }
        Ok(killed)
    }
}

/// Connects as soon as somebody serves there.
pub(crate) async fn connect(address: &str) -> Result<Caller> {
    let end = Instant::now() + PATIENCE;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(Caller::over(channel)),
            Err(e) if Instant::now() > end => {
                return Err(e).with_context(|| format!("no server at {address} in {PATIENCE:?}"));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Joins as `rank` as soon as the server serves and lets it in.
pub(crate) async fn join(address: &str, rank: u32, dim: u64) -> Result<Caller> {
    enter(address, Caller::join_request(Some(rank), dim)).await
}

/// Joins as an observer as soon as the server serves and lets it in: the connections of peers that
/// have just gone may still stand in its queue.
pub(crate) async fn observe(address: &str) -> Result<Caller> {
    let role = pb::Role::Observer.into();
    enter(address, pb::JoinRequest { protocol_version: 1, role, ..Default::default() }).await
}

async fn enter(address: &str, request: pb::JoinRequest) -> Result<Caller> {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut caller = connect(address).await?;
        match caller.join(request.clone()).await {
            Ok(_) => return Ok(caller),
            Err(status) if Instant::now() > end => {
                bail!("nobody is let in at {address} in {PATIENCE:?}: {status:?}");
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Pushes one gradient again and again, without making its messages anew.
pub(crate) struct Pusher {
    pub(crate) caller: Caller,
    messages: Vec<pb::PushRequest>,
    /// The newest that it knows.
    pub(crate) version: u64,
}

impl Pusher {
    /// Of one who has joined.
    pub(crate) async fn new(mut caller: Caller, gradient: &[f32]) -> Result<Self> {
        let (version, _) = caller.pull().await?;
        let messages = caller.chunks(caller.clock, version, gradient);
        Ok(Self { caller, messages, version })
    }

    /// Pushes for the clock that is owed.
    pub(crate) async fn push(&mut self) -> Result<pb::PushResult, Status> {
        let mut messages = self.messages.clone();
        let header = messages[0].header.as_mut().expect("the first message has one");
        (header.clock, header.version_pulled) = (self.caller.clock, self.version);
        let result = self.caller.push_messages(messages).await?;
        self.version = result.version;
        Ok(result)
    }
}

/// A runtime for one thread's callers.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Milliseconds since then.
pub(crate) fn ms_since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_of_another_build_is_refused_by_name_with_the_command() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let own = folder.path().join("ps-sim");
        let error = beside(&own, "ps-server", "1").expect_err("nothing is there");
        assert_eq!(error.exit, Exit::Config);
        assert!(error.message.contains("ps-server") && error.message.contains("cargo build"));
        let other = beside(Path::new("/bin/ps-sim"), "true", "1").expect_err("no build of ours");
        assert!(other.message.contains("expected `true 1`"), "{other}");
    }
}

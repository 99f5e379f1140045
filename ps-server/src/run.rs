//! The program: from arguments to an exit code.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use ps_common::congestion;
use ps_common::error::Retry;
use ps_common::exit::{Exit, ExitError, conclude};
use ps_common::import::{Imported, read_theta};
use ps_common::{Dtype, ErrorCode};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::{DurabilitySpec, JobSpec, ServeSpec, ServerArgs, implied, refuse_of_several};
use crate::group::Lost;
use crate::keeper::Keeper;
use crate::net::{Protection, Ways};
use crate::outputs;

mod beginning;
mod durable;
mod follower;
mod life;

use life::End;

/// The whole program: parses `arguments` (the first is the program's name), runs, and says on
/// stderr what went wrong.
pub fn main_with(arguments: Vec<OsString>) -> ExitCode {
    conclude("ps-server", run_with(&arguments))
}

fn run_with(arguments: &[OsString]) -> Result<(), ExitError> {
    let matches = ps_common::flags::parse_task(&ServerArgs::command(), arguments, implied)?;
    let args = ServerArgs::from_arg_matches(&matches).map_err(|e| {
        ExitError::new(Exit::Bug, "the arguments were parsed but cannot be read").because(e)
    })?;
    if args.serve.program.file.print_config {
        let job = args.job.check(&args.crew)?;
        let durability = args.serve.durability.check(&job.config)?;
        args.serve.check(&args.crew)?;
        let partition = args.serve.partition()?;
        args.serve.peers.check(partition)?;
        refuse_of_several(partition, &job, durability.as_ref())?;
        print(&ps_common::flags::to_toml(&args));
        return Ok(());
    }
    ps_common::logging::init("warn", args.serve.program.log_json);
    if args.serve.program.watch_stdin {
        std::thread::spawn(exit_when_stdin_ends);
    }
    runtime()?.block_on(run(args))
}

/// The runtime that the program runs on.
///
/// # Errors
/// The system's, where it gives no threads.
pub fn runtime() -> Result<Runtime, ExitError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| ExitError::new(Exit::Io, "cannot start the runtime").because(e))
}

fn print(text: &str) {
    use std::io::Write;
    // A reader that stops early is no failure of ours.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// A child whose parent is gone has nobody to serve.
fn exit_when_stdin_ends() {
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    std::process::exit(Exit::Terminated as i32);
}

/// Serves one job until it is over or a signal comes.
///
/// # Errors
/// What ends the program with another code than 0.
pub async fn run(args: ServerArgs) -> Result<(), ExitError> {
    run_and_tell(args, |_| Ok(())).await
}

/// Like [`run`]; tells `ready` the bound address once the server serves.
///
/// # Errors
/// As [`run`], and what `ready` fails with.
pub async fn run_and_tell(
    args: ServerArgs,
    ready: impl FnOnce(SocketAddr) -> Result<(), ExitError>,
) -> Result<(), ExitError> {
    let partition = args.serve.partition()?;
    if !partition.is_authority() {
        return follower::run(args, partition, ready).await;
    }
    let mut signals = Signals::new()?;
    let mut program = Program::check(args)?;
    let mut keeper = program.open_directory(Start::First).await?;
    program.listen().await?;
    let mut ready = Some(ready);
    let mut lost: Option<Lost> = None;
    loop {
        let begun = program.begin(keeper, lost.as_ref(), &mut signals).await?;
        lost = match program.live(begun, &mut ready, &mut signals).await? {
            End::Over => return Ok(()),
            End::Lost(lost) => {
                let lost = program.survive(lost)?;
                tracing::warn!("{lost}; all servers go back to the last checkpoint that they have");
                Some(lost)
            }
        };
        keeper = program.open_directory(Start::Again).await?;
    }
}

/// What all lives of the job in this process share: one, but for a job that has lost one of several
/// servers and goes on from a checkpoint.
struct Program {
    args: ServerArgs,
    spec: JobSpec,
    serving: ServeSpec,
    durability: Option<DurabilitySpec>,
    protection: Protection,
    /// To the other servers, where there are any.
    ways: Option<Ways>,
    /// Every life accepts from a copy of it: whoever comes between two waits in its queue.
    listener: Option<std::net::TcpListener>,
}

/// Whether what lies in the directory is news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// The process begins: `--resume` says what may lie there.
    First,
    /// The life before has left what lies there.
    Again,
}

impl Program {
    fn check(args: ServerArgs) -> Result<Self, ExitError> {
        let mut spec = args.job.check(&args.crew)?;
        let serving = args.serve.check(&args.crew)?;
        let durability = args.serve.durability.check(&spec.config)?;
        let partition = args.serve.partition()?;
        spec.config.partition = partition;
        refuse_of_several(partition, &spec, durability.as_ref())?;
        let peers = args.serve.peers.check(partition)?;
        outputs::check(&args.serve)?;
        spec.config.observers = args.serve.observers;
        spec.config.checkpoints = durability.as_ref().map(|durability| durability.checkpoints);
        let protection = Protection::load(&serving.security, serving.limits)?;
        let ways = peers.map(|peers| Ways::load(&peers, &serving.security)).transpose()?;
        if let Some(warning) = &serving.security.warning {
            tracing::warn!(listen = %args.serve.listen, "{warning}");
        }
        if let Some(warning) = spec.config.consistency.warning(args.crew.workers) {
            tracing::warn!("{warning}");
        }
        Ok(Self { args, spec, serving, durability, protection, ways, listener: None })
    }

    /// Locks the checkpoint directory, if there is one, for the next life.
    async fn open_directory(&self, start: Start) -> Result<Option<Keeper>, ExitError> {
        match &self.durability {
            None => Ok(None),
            Some(durability) => durable::open(durability, &self.spec.config, start).await.map(Some),
        }
    }

    async fn listen(&mut self) -> Result<(), ExitError> {
        let listener = bind(&self.args).await?.into_std().map_err(cannot_accept)?;
        self.listener = Some(listener);
        Ok(())
    }

    /// What to do about a lost server: goes on where that is possible.
    fn survive(&self, lost: Lost) -> Result<Lost, ExitError> {
        if self.durability.is_none() {
            return Err(ExitError::new(
                Exit::Failed,
                format!(
                    "{lost}; its part of theta is gone. Start all servers with --checkpoint-dir, and \
                     the job goes on from the last checkpoint"
                ),
            ));
        }
        match lost.code {
            // It would say so again and again.
            Some(ErrorCode::ConfigMismatch) => Err(ExitError::config(lost.to_string())),
            Some(code) if code == ErrorCode::Overloaded || code.retry() != Retry::Same => {
                Err(ExitError::new(Exit::Failed, lost.to_string()))
            }
            _ => Ok(lost),
        }
    }
}

fn cannot_accept(error: std::io::Error) -> ExitError {
    ExitError::new(Exit::Io, "the listener cannot be used").because(error)
}

/// Reads `--theta-in` for a job of this element type.
///
/// # Errors
/// As [`read_theta`] and [`Imported::check_dtype`], with the flag before the file.
pub fn read_start(path: &Path, dtype: Dtype) -> Result<Imported, ExitError> {
    let read = read_theta(path).and_then(|start| start.check_dtype(dtype).map(|()| start));
    read.map_err(|mut error| {
        error.message = format!("--theta-in: {}", error.message);
        error
    })
}

fn program() -> String {
    format!("ps-server {}", crate::VERSION)
}

/// As many connections as may come at once, and wait to be accepted: all workers of a large job.
const BACKLOG: u32 = 4096;

fn listen_on(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A server that is started again need not wait for the end of old connections.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn bind(args: &ServerArgs) -> Result<TcpListener, ExitError> {
    let listen = args.serve.listen;
    let is_held = |e: &std::io::Error| e.kind() == std::io::ErrorKind::AddrInUse;
    let listener = durable::patiently(|| listen_on(listen), is_held).await.map_err(|e| {
        let hint = match e.kind() {
            std::io::ErrorKind::AddrInUse => "another program has this port; choose another one",
            std::io::ErrorKind::AddrNotAvailable => "this machine has no such address",
            _ => "choose another address or port",
        };
        ExitError::new(Exit::Unavailable, format!("cannot listen on {listen}: {hint}")).because(e)
    })?;
    if let Some(name) = &args.serve.congestion {
        // Connections inherit it.
        congestion::set((&listener).into(), name).map_err(|e| {
            ExitError::config(format!(
                "--congestion {name}: this system has or permits no such congestion control"
            ))
            .because(e)
        })?;
    }
    Ok(listener)
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, ExitError> {
        let listen = |kind| {
            signal(kind)
                .map_err(|e| ExitError::new(Exit::Io, "cannot listen for signals").because(e))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// The exit code that the next signal means.
    async fn next(&mut self) -> Exit {
        tokio::select! {
            _ = self.interrupt.recv() => Exit::Interrupted,
            _ = self.terminate.recv() => Exit::Terminated,
        }
    }
}

//! The program: from arguments to an exit code.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches};
use ps_common::Dtype;
use ps_common::calls::JoinAnswer;
use ps_common::congestion;
use ps_common::exit::{Exit, ExitError, conclude};
use ps_common::import::{Imported, read_theta};
use ps_common::job::JobState;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::args::{
    DurabilitySpec, JobSpec, ServeSpec, ServerArgs, UpdateArgs, implied, refuse_of_several,
};
use crate::core::Input;
use crate::group::Lost;
use crate::keeper::Keeper;
use crate::net::{Connections, Health, Peers, Protection, Shell, Ways, serve};
use crate::numeric::LR;
use crate::outputs;

mod beginning;
mod durable;

use beginning::Begun;

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
        args.serve.durability.check(&args.job.check(&args.crew)?.config)?;
        args.serve.check(&args.crew)?;
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
            End::Lost(lost) => Some(program.survive(lost)?),
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

/// How a life ended.
enum End {
    /// Nobody is left who should hear of the job.
    Over,
    /// Another server is gone.
    Lost(Lost),
}

impl Program {
    fn check(args: ServerArgs) -> Result<Self, ExitError> {
        let mut spec = args.job.check(&args.crew)?;
        let serving = args.serve.check(&args.crew)?;
        let durability = args.serve.durability.check(&spec.config)?;
        let partition = spec.config.partition;
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
        tracing::warn!("{lost}; all servers go back to the last checkpoint that they have");
        Ok(lost)
    }

    /// Serves one life of the job.
    async fn live(
        &self,
        Begun { driver, peers, notes }: Begun,
        ready: &mut Option<impl FnOnce(SocketAddr) -> Result<(), ExitError>>,
        signals: &mut Signals,
    ) -> Result<End, ExitError> {
        let listener = self.listener.as_ref().expect("bound before");
        let listener =
            listener.try_clone().and_then(TcpListener::from_std).map_err(cannot_accept)?;
        let address = listener.local_addr().map_err(cannot_accept)?;
        let shell = Shell::new(driver);
        for (kind, detail) in notes {
            shell.driver().note(shell.now(), kind, detail);
        }
        let connections = Connections::new(listener, Arc::clone(&shell), self.protection.limits());
        let (stop, stopped) = oneshot::channel::<()>();
        let (health_out, health_in) = oneshot::channel();
        let mut server = tokio::spawn({
            let (shell, protection) = (Arc::clone(&shell), self.protection.clone());
            async move {
                let ready = |health| drop(health_out.send(health));
                serve(shell, connections, &protection, ready, async { drop(stopped.await) }).await
            }
        });
        let health: Health = health_in
            .await
            .map_err(|_| ExitError::new(Exit::Bug, "the server ended before it served"))?;
        let timer = tokio::spawn({
            let shell = Arc::clone(&shell);
            async move { shell.keep_time().await }
        });
        health.ready().await;
        if let Some(ready) = ready.take() {
            if let Some(path) = &self.args.serve.port_file {
                outputs::write_port(path, address.port())?;
            }
            ready(address)?;
        }
        tracing::info!(%address, "serving");

        let served = serve_job(&self.args, &shell, &health, peers.as_ref(), signals).await?;
        health.draining().await;
        if let Served::Lost(_) = &served {
            // Held calls are told to come again.
            shell.tell(Input::Drain);
        } else if let Some(peers) = peers.filter(|_| ended(&shell)) {
            let (state, reason) = shell.driver().state();
            peers.end(state, reason).await;
        }
        // Who holds the other end is gone only if the server is.
        let _ = stop.send(());
        let limit = match &served {
            Served::Lost(_) => LAST_WORDS,
            Served::Over(_) => self.serving.drain_timeout,
        };
        tokio::select! {
            // How calls in flight ended is their callers' business.
            _ = &mut server => {}
            () = tokio::time::sleep(limit) => {
                tracing::warn!("calls in flight were cut");
                server.abort();
            }
            exit = signals.next() => return Err(ExitError::new(exit, "stopped at once")),
        }
        timer.abort();
        let written = match served {
            Served::Lost(lost) => return Ok(End::Lost(lost)),
            Served::Over(written) => written,
        };
        written?;
        match shell.driver().state() {
            (JobState::Failed, reason) => {
                Err(ExitError::new(Exit::Failed, format!("the job failed: {reason}")))
            }
            _ => Ok(End::Over),
        }
    }
}

/// Once a server is lost, calls in flight have so long for their answers.
const LAST_WORDS: Duration = Duration::from_millis(500);

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

/// How serving a job ended.
enum Served {
    /// The job has, or was told to stop: the result of writing its outputs.
    Over(Result<(), ExitError>),
    /// Another server is gone, and the job has not ended.
    Lost(Lost),
}

/// Waits for the end of the job, for SIGTERM, or for the loss of another server.
async fn serve_job(
    args: &ServerArgs,
    shell: &Arc<Shell>,
    health: &Health,
    peers: Option<&Peers>,
    signals: &mut Signals,
) -> Result<Served, ExitError> {
    let mut written = Ok(());
    loop {
        tokio::select! {
            () = shell.initialized() => {
                explain_rate(args, shell);
                health.initialized().await;
            }
            () = shell.conclusion() => {
                let last = durable::last_checkpoint(args, shell).await;
                let results = write_results(args, shell).await;
                if let Some(lost) = peers.and_then(|peers| peers.group().lost())
                    && !ended(shell)
                {
                    return Ok(Served::Lost(lost));
                }
                written = last.and(results);
                shell.tell(Input::Concluded);
            }
            lost = loss(peers), if !ended(shell) => return Ok(Served::Lost(lost)),
            () = shell.over() => return Ok(Served::Over(written)),
            () = tokio::time::sleep(linger(shell)), if ended(shell) => {
                return Ok(Served::Over(written));
            }
            exit = signals.next() => {
                if exit == Exit::Interrupted {
                    return Err(ExitError::new(exit, "interrupted"));
                }
                if !ended(shell) {
                    tracing::info!("stopping: SIGTERM");
                    shell.tell(Input::Drain);
                    let last = tokio::select! {
                        last = durable::last_checkpoint(args, shell) => last,
                        exit = signals.next() => {
                            return Err(ExitError::new(exit, "stopped at once"));
                        }
                    };
                    written = last.and(write_results(args, shell).await);
                }
                return Ok(Served::Over(written));
            }
        }
    }
}

/// Waits for the loss of another server; for ever where there is none.
async fn loss(peers: Option<&Peers>) -> Lost {
    match peers {
        None => std::future::pending().await,
        Some(peers) => peers.lost().await,
    }
}

/// Workers that take local steps push how far these led (rule R13), which is no gradient.
fn explain_rate(args: &ServerArgs, shell: &Shell) {
    let UpdateArgs { optimizer, lr, .. } = &args.job.update;
    let steps_are_local = |job: JoinAnswer| {
        job.fingerprint.get("local_lr").is_some_and(|local_lr| local_lr != "none")
    };
    if shell.driver().job().is_some_and(steps_are_local) && (optimizer != "sgd" || *lr != Some(1.0))
    {
        tracing::warn!(
            "the workers push their local steps (--local-lr), which --optimizer {optimizer} with \
             --lr {} takes as a gradient; federated averaging is --optimizer sgd with --lr 1",
            lr.unwrap_or(LR)
        );
    }
}

fn program() -> String {
    format!("ps-server {}", crate::VERSION)
}

fn ended(shell: &Shell) -> bool {
    matches!(shell.driver().state().0, JobState::Done | JobState::Failed)
}

/// How long a server whose job has ended waits for callers to hear of it.
fn linger(shell: &Shell) -> Duration {
    match shell.driver().state().0 {
        JobState::Failed => Duration::from_secs(5),
        _ => Duration::from_secs(60),
    }
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

async fn write_results(args: &ServerArgs, shell: &Arc<Shell>) -> Result<(), ExitError> {
    // Waits for other servers' parts, where there are others.
    let results = tokio::task::spawn_blocking({
        let shell = Arc::clone(shell);
        move || shell.driver().results(shell.now())
    });
    let results = results
        .await
        .map_err(|e| ExitError::new(Exit::Bug, "the report could not be made").because(e))?
        .map_err(|lost| ExitError::new(Exit::Failed, format!("no report: {lost}")))?;
    let Some((report, theta)) = results else { return Ok(()) };
    if let Some(path) = &args.serve.report {
        outputs::write_report(path, &report)?;
    }
    if let Some(path) = &args.serve.theta_out
        && let Some(job) = shell.driver().job()
    {
        outputs::write_snapshot(path, &job, &theta)?;
    }
    Ok(())
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

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
use ps_common::wire::CHUNK_BYTES;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::args::{JobSpec, ServerArgs, UpdateArgs};
use crate::core::Input;
use crate::driver::Driver;
use crate::keeper::Keeper;
use crate::net::{Connections, Health, Protection, Shell, serve};
use crate::numeric::LR;
use crate::outputs;
use crate::storage;

mod durable;
mod follower;

/// The whole program: parses `arguments` (the first is the program's name), runs, and says on
/// stderr what went wrong.
pub fn main_with(arguments: Vec<OsString>) -> ExitCode {
    conclude("ps-server", run_with(&arguments))
}

fn run_with(arguments: &[OsString]) -> Result<(), ExitError> {
    let matches = ps_common::flags::parse(&ServerArgs::command(), arguments)?;
    let args = ServerArgs::from_arg_matches(&matches).map_err(|e| {
        ExitError::new(Exit::Bug, "the arguments were parsed but cannot be read").because(e)
    })?;
    if args.serve.program.file.print_config {
        args.serve.durability.check(&args.job.check(&args.crew)?.config)?;
        args.serve.check(&args.crew)?;
        args.serve.partition()?;
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
    let mut spec = args.job.check(&args.crew)?;
    if args.serve.peers.check(partition)?.is_some() {
        let what =
            format!("--partition {partition}: the first of several servers is not built yet");
        return Err(ExitError::config(what));
    }
    let serving = args.serve.check(&args.crew)?;
    let durability = args.serve.durability.check(&spec.config)?;
    outputs::check(&args.serve)?;
    spec.config.observers = args.serve.observers;
    let protection = Protection::load(&serving.security, serving.limits)?;
    if let Some(warning) = &serving.security.warning {
        tracing::warn!(listen = %args.serve.listen, "{warning}");
    }
    if let Some(warning) = spec.config.consistency.warning(args.crew.workers) {
        tracing::warn!("{warning}");
    }
    let mut keeper = None;
    if let Some(durability) = &durability {
        let keeper = keeper.insert(durable::open(durability, args.crew.mode).await?);
        spec.config.checkpoints = Some(durability.checkpoints);
        spec.config.boot = keeper.boot();
    }
    let listener = bind(&args).await?;
    let address = listener
        .local_addr()
        .map_err(|e| ExitError::new(Exit::Io, "the listener has no address").because(e))?;
    let shell = Shell::new(driver(&args, spec, keeper)?);
    let connections = Connections::new(listener, Arc::clone(&shell), protection.limits());
    let mut signals = Signals::new()?;

    let (stop, stopped) = oneshot::channel::<()>();
    let (health_out, health_in) = oneshot::channel();
    let server = tokio::spawn({
        let shell = Arc::clone(&shell);
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
    if let Some(path) = &args.serve.port_file {
        outputs::write_port(path, address.port())?;
    }
    ready(address)?;
    tracing::info!(%address, "serving");

    let written = serve_job(&args, &shell, &health, &mut signals).await?;
    health.draining().await;
    // Who holds the other end is gone only if the server is.
    let _ = stop.send(());
    tokio::select! {
        // How calls in flight ended is their callers' business.
        _ = server => {}
        () = tokio::time::sleep(serving.drain_timeout) => tracing::warn!("calls in flight were cut"),
        exit = signals.next() => return Err(ExitError::new(exit, "stopped at once")),
    }
    timer.abort();
    written?;
    match shell.driver().state() {
        (JobState::Failed, reason) => {
            Err(ExitError::new(Exit::Failed, format!("the job failed: {reason}")))
        }
        _ => Ok(()),
    }
}

/// The server without its network, with the job that `keeper` has, if it has one.
fn driver(args: &ServerArgs, spec: JobSpec, keeper: Option<Keeper>) -> Result<Driver, ExitError> {
    let JobSpec { config, optimizer, dtype } = spec;
    let start = args.serve.theta_in.as_deref().map(|path| read_start(path, dtype));
    let mut driver = Driver::new(config.clone(), dtype, optimizer, CHUNK_BYTES, &program());
    if let Some(start) = start.transpose()? {
        driver = driver.starting_from(start);
    }
    let Some(keeper) = keeper else { return Ok(driver) };
    let (driver, resumption) =
        driver.kept_by(keeper, &config, dtype).map_err(storage::Error::into_exit)?;
    if let Some(resumption) = &resumption {
        durable::tell_of(resumption, args.serve.theta_in.is_some());
    }
    Ok(driver)
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

/// Waits for the end of the job, or for SIGTERM; the inner result is that of writing its outputs.
async fn serve_job(
    args: &ServerArgs,
    shell: &Shell,
    health: &Health,
    signals: &mut Signals,
) -> Result<Result<(), ExitError>, ExitError> {
    let mut written = Ok(());
    loop {
        tokio::select! {
            () = shell.initialized() => {
                explain_rate(args, shell);
                health.initialized().await;
            }
            () = shell.conclusion() => {
                let last = durable::last_checkpoint(args, shell).await;
                written = last.and(write_results(args, shell));
                shell.tell(Input::Concluded);
            }
            () = shell.over() => return Ok(written),
            () = tokio::time::sleep(linger(shell)), if ended(shell) => return Ok(written),
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
                    written = last.and(write_results(args, shell));
                }
                return Ok(written);
            }
        }
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

fn write_results(args: &ServerArgs, shell: &Shell) -> Result<(), ExitError> {
    let Some(report) = shell.driver().report(shell.now()) else { return Ok(()) };
    if let Some(path) = &args.serve.report {
        outputs::write_report(path, &report)?;
    }
    if let Some(path) = &args.serve.theta_out
        && let (Some(job), Some(theta)) = (shell.driver().job(), shell.driver().snapshot())
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

//! `psctl local`: a whole cluster on this machine, as real processes.

pub mod args;
mod outcome;
mod plan;
mod processes;
mod programs;
mod screen;
mod supervise;
mod verdict;

use ps_common::exit::{Exit, ExitError};
use ps_common::report::Report;
use tokio::sync::mpsc;

pub use args::LocalArgs;
use processes::Processes;
use programs::Programs;
pub use screen::Screen;
use supervise::{Files, Run};

/// How a run ended, and what it left.
#[derive(Debug)]
pub struct Trained {
    /// The server's, with psctl's own events. A failed job may have left one, too.
    pub report: Option<Report>,
    /// Why the run is not as it should be: the job failed, a process did, or somebody stopped it.
    pub error: Option<ExitError>,
}

/// Trains with S server processes and K worker processes, leaves none of them behind, and shows
/// and writes what was asked for.
///
/// # Errors
/// A configuration error before anything is started; else what ended the run, an interruption
/// included, with the exit code that it means.
pub async fn run(args: LocalArgs, verbose: bool) -> Result<(), ExitError> {
    if let Some(warning) = args.check()? {
        tracing::warn!("{warning}");
    }
    let update = &args.job.update;
    if args.learn.local.local_lr.is_some()
        && (update.optimizer != "sgd" || update.lr.is_some_and(|lr| lr != 1.0))
    {
        tracing::warn!(
            "the server takes the mean of the workers' local steps as a gradient of --optimizer {} \
             at its own rate; federated averaging is --optimizer sgd with --lr 1",
            update.optimizer
        );
    }
    let screen = Screen::new(args.output.quiet);
    match train(&args, screen, verbose, interrupted()).await {
        Trained { report: Some(report), error: None } => {
            outcome::write_files(&args.output, &report)?;
            outcome::print_result(&args.output, &report, &mut std::io::stdout())
        }
        Trained { report, error } => {
            if let Some(report) = report
                && let Err(second) = outcome::write_files(&args.output, &report)
            {
                tracing::warn!(%second, "the report of the failed job is lost");
            }
            Err(error.unwrap_or_else(|| ExitError::new(Exit::Bug, "the server left no report")))
        }
    }
}

/// One run of `args`, which have been checked, until it ends or `stop` says that it should; of
/// `args.output` only `theta_out` counts. Nothing of it is left running.
pub async fn train(
    args: &LocalArgs,
    mut screen: Screen,
    verbose: bool,
    stop: impl Future<Output = ExitError>,
) -> Trained {
    let directory = match tempfile::Builder::new().prefix("psctl-").tempdir() {
        Ok(directory) => directory,
        Err(e) => {
            let error = ExitError::new(Exit::CannotCreate, "cannot create a temporary directory");
            return Trained { report: None, error: Some(error.because(e)) };
        }
    };
    let files = Files::within(directory.path());
    let (send, mut lines) = mpsc::unbounded_channel();
    let mut processes = Processes::new(verbose.then_some(send));
    let mut run = None;
    let result = tokio::select! {
        result = async {
            let programs = Programs::find().await?;
            let run = run.insert(Run::new(args, programs, &mut screen, verbose));
            run.drive(&mut processes, &mut lines, &files).await
        } => result,
        interruption = stop => Err(interruption),
    };
    let events = run.map(Run::into_events).unwrap_or_default();
    screen.finish();
    let report = outcome::read_report(&files.report, events);
    processes.end().await;
    while let Ok((who, line)) = lines.try_recv() {
        screen.line(&format!("{who}: {line}"));
    }
    match (report, result) {
        (Ok(report), result) => Trained { report: Some(report), error: result.err() },
        (Err(unread), Ok(())) => Trained { report: None, error: Some(unread) },
        (Err(_), Err(error)) => Trained { report: None, error: Some(error) },
    }
}

/// Ends when somebody wants psctl to end.
pub async fn interrupted() -> ExitError {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
        if let (Ok(mut interrupt), Ok(mut terminate)) = signals {
            return tokio::select! {
                _ = interrupt.recv() => ExitError::new(Exit::Interrupted, "interrupted (SIGINT)"),
                _ = terminate.recv() => ExitError::new(Exit::Terminated, "ended (SIGTERM)"),
            };
        }
    }
    // Without handlers a signal ends psctl at once, and the children with their stdin.
    match tokio::signal::ctrl_c().await {
        Ok(()) => ExitError::new(Exit::Interrupted, "interrupted"),
        Err(_) => std::future::pending().await,
    }
}

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
use tokio::sync::mpsc;

pub use args::LocalArgs;
use processes::Processes;
use programs::Programs;
use screen::Screen;
use supervise::{Files, Run};

/// Trains with one server process and K worker processes, and leaves none of them behind.
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
    let directory = tempfile::Builder::new().prefix("psctl-").tempdir().map_err(|e| {
        ExitError::new(Exit::CannotCreate, "cannot create a temporary directory").because(e)
    })?;
    let files = Files::within(directory.path());
    let (send, mut lines) = mpsc::unbounded_channel();
    let mut processes = Processes::new(verbose.then_some(send));
    let mut screen = Screen::new(args.output.quiet);
    let mut run = None;
    let result = tokio::select! {
        result = async {
            let programs = Programs::find().await?;
            let run = run.insert(Run::new(&args, programs, &mut screen, verbose));
            run.drive(&mut processes, &mut lines, &files).await
        } => result,
        interruption = interrupted() => Err(interruption),
    };
    let events = run.map(Run::into_events).unwrap_or_default();
    screen.finish();
    let result = finish(&args, &files, events, result);
    processes.end().await;
    while let Ok((who, line)) = lines.try_recv() {
        screen.line(&format!("{who}: {line}"));
    }
    result
}

/// Writes and shows what there is. A failed job may have left a report, too.
fn finish(
    args: &LocalArgs,
    files: &Files,
    events: Vec<ps_common::report::Event>,
    result: Result<(), ExitError>,
) -> Result<(), ExitError> {
    match result {
        Ok(()) => {
            let report = outcome::read_report(&files.report, events)?;
            outcome::write_files(&args.output, &report)?;
            outcome::print_result(&args.output, &report, &mut std::io::stdout())
        }
        Err(error) => {
            if let Ok(report) = outcome::read_report(&files.report, events)
                && let Err(second) = outcome::write_files(&args.output, &report)
            {
                tracing::warn!(%second, "the report of the failed job is lost");
            }
            Err(error)
        }
    }
}

/// Ends when somebody wants psctl to end.
async fn interrupted() -> ExitError {
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

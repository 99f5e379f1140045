//! One run of a variant, whichever way it is run: the seam between a comparison and what trains.

use ps_common::exit::{Exit, ExitError};

use crate::local::{self, LocalArgs, Screen, Trained};
use crate::simulate::{self, WorldArgs};

/// How runs are made.
#[derive(Debug, Clone)]
pub(super) enum Way {
    /// A cluster of real processes on this machine.
    Processes,
    /// The same core and models in virtual time.
    Simulated(Box<WorldArgs>),
}

/// What a run may show while it lasts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loudness {
    /// No progress.
    pub(super) quiet: bool,
    /// Every line of every process.
    pub(super) verbose: bool,
}

/// Runs `args`, which have been checked, to the end, or until `stop` gives the error to end with.
pub(super) async fn train(
    way: &Way,
    args: &LocalArgs,
    loudness: Loudness,
    stop: impl Future<Output = ExitError>,
) -> Trained {
    match way {
        Way::Processes => {
            let screen = Screen::of_many(loudness.quiet, loudness.verbose);
            local::train(args, screen, loudness.verbose, stop).await
        }
        Way::Simulated(world) => {
            let (args, world) = (args.clone(), WorldArgs::clone(world));
            // Off this thread, so that an interruption is heard.
            let run = tokio::task::spawn_blocking(move || simulated(&args, world));
            tokio::select! {
                ended = run => ended.unwrap_or_else(|e| {
                    let error = ExitError::new(Exit::Bug, "the simulation panicked").because(e);
                    Trained { report: None, error: Some(error) }
                }),
                interruption = stop => Trained { report: None, error: Some(interruption) },
            }
        }
    }
}

/// One run in virtual time, told like one of processes.
fn simulated(args: &LocalArgs, world: WorldArgs) -> Trained {
    let run = match simulate::one(args, world) {
        Ok(run) => run,
        Err(error) => return Trained { report: None, error: Some(error) },
    };
    let diverged = run.diverged_at_round.map(|round| {
        ExitError::new(Exit::Failed, format!("diverged at round {round}: lower --lr"))
    });
    let failed = || {
        let reason = format!("the job failed: {}", run.outcome);
        (run.outcome != "done").then(|| ExitError::new(Exit::Failed, reason))
    };
    Trained { error: diverged.or_else(failed), report: run.report }
}

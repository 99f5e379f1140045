//! One run of a variant, whichever way it is run: the seam between a comparison and what trains.

use ps_common::exit::ExitError;

use crate::local::{self, LocalArgs, Screen, Trained};

/// How runs are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// A cluster of real processes on this machine.
    Processes,
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
    way: Way,
    args: &LocalArgs,
    loudness: Loudness,
    stop: impl Future<Output = ExitError>,
) -> Trained {
    match way {
        Way::Processes => {
            let screen = Screen::of_many(loudness.quiet, loudness.verbose);
            local::train(args, screen, loudness.verbose, stop).await
        }
    }
}

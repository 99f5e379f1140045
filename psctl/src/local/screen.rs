//! What `psctl local` says on stderr while it runs: progress, and lines about events.

use std::io::Write;
use std::time::Duration;

use ps_common::calls::Status;

use crate::observe::snapshot;
use crate::show::Look;
use crate::show::progress::Progress;

/// Where stderr is no terminal a line of progress comes so often.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// stderr during a run.
pub struct Screen {
    /// `None`: none is shown, or it is over.
    progress: Option<Progress>,
    /// Whether lines are shown.
    lines: bool,
}

impl Screen {
    /// With progress, unless `quiet`. Lines are shown in either case.
    pub fn new(quiet: bool) -> Self {
        Self { progress: (!quiet).then(|| Progress::stderr(LINE_EVERY)), lines: true }
    }

    /// For one of many runs, whose end somebody else reports: progress on a terminal unless
    /// `quiet`, lines only with `lines`.
    pub fn of_many(quiet: bool, lines: bool) -> Self {
        let shown = !quiet && console::Term::stderr().is_term();
        Self { progress: shown.then(|| Progress::stderr(LINE_EVERY)), lines }
    }

    /// Shows how the job stands.
    pub(super) fn update(&mut self, status: &Status) {
        if let Some(progress) = &mut self.progress {
            progress.update(&snapshot(status));
        }
    }

    /// Says one line.
    pub(super) fn line(&mut self, text: &str) {
        if !self.lines {
            return;
        }
        match &mut self.progress {
            Some(progress) => progress.note(text),
            None => {
                let line = format!("{}\n", Look::stderr().clean(text));
                // Nobody is left to tell when stderr itself is gone.
                let _ = std::io::stderr().write_all(line.as_bytes());
            }
        }
    }

    /// Ends the progress; lines may still follow.
    pub(super) fn finish(&mut self) {
        if let Some(mut progress) = self.progress.take() {
            progress.finish();
        }
    }
}

//! What the end of a run means for a comparison. Pure: a report or an error in, a word out.

use ps_common::exit::{Exit, ExitError};
use ps_common::report::Report;
use serde::Serialize;

use super::curve::{Point, points};
use crate::local::Trained;

/// A loss that ends this many times above the first has diverged, finite or not.
pub(super) const DIVERGED_RATIO: f64 = 10.0;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Fate {
    /// As it should.
    Done,
    /// Theta went to infinity, or is on the way: a result.
    Diverged,
    /// Otherwise.
    Failed,
}

/// One run of a variant.
#[derive(Debug)]
pub(super) struct Run {
    /// Of its data.
    pub(super) seed: u64,
    /// How it ended.
    pub(super) fate: Fate,
    /// Why, for a person; `None` if it is done.
    pub(super) reason: Option<String>,
    /// The code that this run alone would have ended `psctl local` with.
    pub(super) exit: Option<Exit>,
    /// What it left.
    pub(super) report: Option<Report>,
}

impl Run {
    /// Judges how `trained` ended.
    pub(super) fn of(seed: u64, trained: Trained) -> Self {
        let Trained { report, error } = trained;
        let (fate, reason, exit) = match (&error, &report) {
            (Some(error), _) if is_divergence(error) => {
                (Fate::Diverged, Some(error.message.clone()), Some(error.exit))
            }
            (Some(error), _) => (Fate::Failed, Some(told(error)), Some(error.exit)),
            (None, Some(report)) if report.outcome != "done" => {
                (Fate::Failed, Some(report.outcome.clone()), Some(Exit::Failed))
            }
            (None, Some(report)) => match blown_up(report) {
                Some(reason) => (Fate::Diverged, Some(reason), None),
                None => (Fate::Done, None, None),
            },
            (None, None) => (Fate::Failed, Some("it left no report".to_owned()), Some(Exit::Bug)),
        };
        Self { seed, fate, reason, exit, report }
    }

    /// The losses that were measured.
    pub(super) fn curve(&self) -> Vec<Point> {
        self.report.as_ref().map(points).unwrap_or_default()
    }
}

/// Server and worker both use this word, and no other failure does.
fn is_divergence(error: &ExitError) -> bool {
    error.exit == Exit::Failed && error.message.to_ascii_lowercase().contains("diverged")
}

/// The message with its causes, in one line.
fn told(error: &ExitError) -> String {
    let mut text = error.message.clone();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Why the losses of a finished run are none to reckon with.
fn blown_up(report: &Report) -> Option<String> {
    let last = report.r#final.loss.filter(|loss| loss.is_finite());
    // Evaluators and workers do not send a loss that is not finite.
    let Some(last) = last else { return Some("the final loss is not finite".to_owned()) };
    let first = report.history.first()?.loss;
    let grown = last > first * DIVERGED_RATIO;
    grown.then(|| {
        let show = crate::show::number::loss;
        format!("the loss went from {} to {}", show(first), show(last))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::summary::tests::report;

    fn finished(last: Option<f64>) -> Run {
        let mut report = report();
        report.history[0].loss = 2.0;
        report.r#final.loss = last;
        Run::of(7, Trained { report: Some(report), error: None })
    }

    fn failed(exit: Exit, message: &str) -> Run {
        Run::of(7, Trained { report: None, error: Some(ExitError::new(exit, message)) })
    }

    #[test]
    fn divergence_is_told_from_failure() {
        assert_eq!(finished(Some(19.0)).fate, Fate::Done);
        let blown = finished(Some(21.0));
        assert_eq!((blown.fate, blown.exit), (Fate::Diverged, None));
        assert!(blown.reason.expect("a reason").contains("2.0000"));
        assert_eq!(finished(None).fate, Fate::Diverged);
        assert_eq!(finished(Some(f64::INFINITY)).fate, Fate::Diverged);
        let overflow = failed(Exit::Failed, "worker 1: diverged, lower --lr at the server: why");
        assert_eq!(overflow.fate, Fate::Diverged);
        assert_eq!(failed(Exit::Failed, "server: DIVERGED: round 3").fate, Fate::Diverged);
        let missing = failed(Exit::BadData, "cannot read diverged.csv");
        assert_eq!((missing.fate, missing.exit), (Fate::Failed, Some(Exit::BadData)));
    }

    #[test]
    fn a_failure_is_told_with_its_causes() {
        let error = ExitError::new(Exit::Io, "cannot read x").because("no such file");
        let run = Run::of(0, Trained { report: None, error: Some(error) });
        assert_eq!(run.reason.as_deref(), Some("cannot read x: no such file"));
        let mut stopped = report();
        stopped.outcome = "stopped".to_owned();
        let run = Run::of(0, Trained { report: Some(stopped), error: None });
        assert_eq!((run.fate, run.reason.as_deref()), (Fate::Failed, Some("stopped")));
    }
}

//! What is measured of theta on the way, and the ends that follow from it (rule L7).

use std::time::Duration;

use ps_common::calls::Evaluation;
use ps_common::job::JobState;
use ps_common::report::HistoryEntry;
use ps_common::{Error, ErrorCode};
use serde::{Deserialize, Serialize};

use super::{Answer, Core, Effect, Time};

/// When a job ends besides by its rounds; nothing here: never.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StopRules {
    /// Once a measured objective is this small.
    pub target_loss: Option<f64>,
    /// This long after the first join.
    pub duration: Option<Duration>,
    /// Once the objective does not fall any more.
    pub plateau: Option<Plateau>,
}

/// An objective that does not fall.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plateau {
    /// So many measurements in a row.
    pub n_measurements: u32,
    /// By more than this below the best before.
    pub min_delta: f64,
}

/// The best objective so far, and how many measurements in a row were not better.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Best {
    #[serde(with = "super::saved::exact")]
    loss: Option<f64>,
    n_worse: u32,
}

impl Core {
    /// Takes an observer's measurement.
    pub(super) fn evaluate(&mut self, now: Time, what: Evaluation) -> Result<Answer, Error> {
        self.authenticate(now, what.caller)?;
        let Some(observer) = self.members.observers.get_mut(&what.caller.rank) else {
            return Err(
                Error::new(ErrorCode::BadField, "only an observer evaluates").with("field", "rank")
            );
        };
        if what.version > self.version {
            return Err(Error::new(
                ErrorCode::BadField,
                format!("version {} is ahead of theta's {}", what.version, self.version),
            ));
        }
        let is_final = what.version == self.version && self.state >= JobState::Finishing;
        if what.r#final && !is_final {
            return Err(Error::new(
                ErrorCode::BadField,
                format!(
                    "version {} is not final: theta is at {} and the job {}",
                    what.version, self.version, self.state
                ),
            )
            .with("field", "final"));
        }
        observer.evaluated = true;
        if what.r#final {
            observer.evaluated_final = true;
            self.record.final_train = Some(what.train);
            self.record.final_test = what.test;
        }
        self.measured(HistoryEntry {
            round: self.round_of(what.version),
            version: what.version,
            loss: what.train.objective(),
            seconds: what.seconds,
        });
        Ok(self.state_answer())
    }

    /// Rounds behind a version: itself in sync mode, version / K otherwise (rule R1).
    pub(super) fn round_of(&self, version: u64) -> f64 {
        self.config.consistency.mode().round_of(version, self.config.n_workers)
    }

    /// Books an objective; it may be one to stop at.
    pub(super) fn measured(&mut self, entry: HistoryEntry) {
        if !self.record.measured(entry) || self.state != JobState::Running {
            return;
        }
        let (loss, version) = (entry.loss, entry.version);
        if let Some(target) = self.config.stop.target_loss
            && loss <= target
        {
            let reason = format!("--target-loss {target}: {loss} at version {version}");
            self.stop.get_or_insert(reason);
        }
        let Some(Plateau { n_measurements, min_delta }) = self.config.stop.plateau else { return };
        if self.best.loss.is_none_or(|best| loss < best - min_delta) {
            self.best = Best { loss: Some(loss), n_worse: 0 };
            return;
        }
        self.best.n_worse += 1;
        if self.best.n_worse >= n_measurements {
            let best = self.best.loss.unwrap_or(loss);
            let reason = format!(
                "--plateau {n_measurements}: no objective was better than {best} by more than \
                 {min_delta}, up to version {version}"
            );
            self.stop.get_or_insert(reason);
        }
    }

    /// When the job's time is over.
    pub(super) fn time_limit(&self) -> Option<Time> {
        let job = self.job.as_ref()?;
        let running = self.state == JobState::Running && self.stop.is_none();
        let left = |duration: Time| duration.saturating_sub(job.elapsed_before);
        self.config.stop.duration.filter(|_| running).map(|duration| job.began + left(duration))
    }

    /// Ends a job whose time is over.
    pub(super) fn end_in_time(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.time_limit().is_some_and(|end| end <= now) {
            let seconds = self.config.stop.duration.unwrap_or_default().as_secs_f64();
            self.stop = Some(format!("--max-seconds {seconds}"));
            self.proceed(now, out);
        }
    }
}

//! The accounts of a job: its status at any time, its report at the end. Decides nothing.

use ps_common::calls::Status;
use ps_common::job::{JobState, Metrics};
use ps_common::report::{FinalResult, HistoryEntry, Report, WorkerReport};

use super::{Core, Time};

impl Core {
    /// The job in one answer.
    pub fn status(&self, now: Time, optimizer: &str, program: &str) -> Status {
        Status {
            state: self.state,
            reason: self.reason.clone(),
            mode: self.config.consistency.mode(),
            aggregate: self.config.aggregate,
            optimizer: optimizer.to_owned(),
            dtype: self.dtype,
            dim: self.job.as_ref().map_or(0, |job| job.tables.dim() as u64),
            n_workers: self.config.n_workers,
            rounds: self.config.rounds,
            version: self.version,
            seconds: self.record.finished_seconds.unwrap_or_else(|| self.seconds(now)),
            last: self.record.last(),
            workers: self.members.status(now),
            observers: self.members.observers.len() as u64,
            dropped: self.record.dropped.total(),
            program: program.to_owned(),
            fingerprint: self.job.as_ref().map(|job| job.fingerprint.clone()).unwrap_or_default(),
        }
    }

    /// The report of a job that is over or as far as it came; `None` before the first join.
    pub fn report(
        &self,
        now: Time,
        optimizer: &str,
        program: &str,
        theta_sha256: &str,
    ) -> Option<Report> {
        let job = self.job.as_ref()?;
        let seats = &self.members.ranks;
        let of_workers = Metrics::merge(seats.iter().filter_map(|seat| seat.final_metrics));
        let complete = seats.iter().all(|seat| seat.final_metrics.is_some());
        let train = if complete { of_workers } else { self.record.final_train.or(of_workers) };
        let test = self.record.final_test;
        let wall_seconds = self.record.finished_seconds.unwrap_or_else(|| self.seconds(now));
        let mut history: Vec<HistoryEntry> = self.record.history().collect();
        if let Some(train) = train {
            history.retain(|entry| entry.version != self.version);
            history.push(HistoryEntry {
                round: self.round_of(self.version),
                version: self.version,
                loss: train.objective(),
                seconds: wall_seconds,
            });
        }
        let n_samples = train.map_or_else(
            || seats.iter().fold(0u64, |n, s| n.saturating_add(s.n_samples)),
            |t| t.n_samples,
        );
        Some(Report {
            mode: self.config.consistency.mode(),
            n_workers: self.config.n_workers,
            n_servers: self.config.partition.count,
            model: job.fingerprint.get("model").cloned().unwrap_or_else(|| "unknown".to_owned()),
            optimizer: optimizer.to_owned(),
            dtype: job.dtype,
            dim: job.tables.dim() as u64,
            n_samples,
            seed: job.fingerprint.get("seed").and_then(|seed| seed.parse().ok()),
            wall_seconds,
            rounds: self.round_of(self.version),
            version: self.version,
            outcome: match self.state {
                JobState::Failed => self.reason.clone(),
                JobState::Finishing | JobState::Done => "done".to_owned(),
                JobState::Empty | JobState::Running => "interrupted".to_owned(),
            },
            history,
            r#final: FinalResult {
                loss: train.map(|t| t.objective()),
                train_accuracy: train.and_then(|t| t.accuracy()),
                test_loss: test.map(|t| t.loss),
                test_accuracy: test.and_then(|t| t.accuracy()),
                theta_sha256: theta_sha256.to_owned(),
            },
            progressive_loss: self.members.progressive_loss(),
            workers: seats
                .iter()
                .zip(0u32..)
                .map(|(seat, rank)| WorkerReport {
                    rank,
                    incarnation: seat.holder.as_ref().map_or(0, |h| h.incarnation),
                    stats: seat.all_stats(),
                    dropped: seat.dropped,
                })
                .collect(),
            gradient_delay: self.record.gradient_delay(),
            dropped: self.record.dropped,
            // Theta's affair: filled in where theta is known.
            hogwild: None,
            durability: self.durability_report(now),
            events: self.record.events(),
            program: program.to_owned(),
        })
    }
}

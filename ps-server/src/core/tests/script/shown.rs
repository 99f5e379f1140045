//! What a core does and what an operator would see of it, as the text of a script.

use std::time::Duration;

use ps_common::calls::{Caller, WorkerState};
use ps_common::job::Combine;
use ps_common::report::DurabilityReport;

use super::Script;
use crate::core::tests::words::Words;
use crate::core::{Answer, Effect};

impl Script {
    pub(super) fn effect(&self, effect: &Effect) -> String {
        match effect {
            Effect::Reply { call, answer } => {
                format!("{} {}", self.labels[call], answer_text(answer))
            }
            Effect::Create { tables, dtype } => format!("create {} {dtype}", tables.dim()),
            Effect::Update(order) => {
                let parts: Vec<String> = order
                    .parts
                    .iter()
                    .map(|(call, weight)| format!("{}*{weight}", self.labels[call]))
                    .collect();
                let how = match order.combine {
                    Combine::Sum => String::new(),
                    Combine::InTurn => " in turn".to_owned(),
                    Combine::Median => " by median".to_owned(),
                    Combine::TrimmedMean { k } => format!(" by trimmed mean of {k}"),
                };
                let rate = match order.rate_factor {
                    1.0 => String::new(),
                    factor => format!(" rate {factor:.4}"),
                };
                let compensation = order.compensation.map_or(String::new(), |c| {
                    format!(" lambda {} rank {} from {}", c.lambda, c.rank, c.version_pulled)
                });
                format!("update {}{how}{rate}{compensation}", parts.join(" "))
            }
            Effect::Keep { rank } => format!("keep for {rank}"),
            Effect::Forget { gradient } => format!("forget {}", self.labels[gradient]),
            Effect::Capture => "capture".to_owned(),
            Effect::Conclude => "conclude".to_owned(),
        }
    }

    /// What an operator would see of the core, in short.
    pub(super) fn show(&self, words: &mut Words<'_>) -> String {
        let report = self.core.report(self.now, "", "", "").expect("somebody has joined");
        let status = self.core.status(self.now, "", "");
        match words.next("what to show") {
            "ranks" => {
                let each = status.workers.iter().map(|worker| {
                    let state = match worker.state {
                        WorkerState::Vacant => "vacant",
                        WorkerState::Live => "live",
                        WorkerState::Lost => "lost",
                        WorkerState::Left => "left",
                    };
                    format!("{state} at {}", worker.clock)
                });
                each.collect::<Vec<_>>().join(", ")
            }
            "history" if report.history.is_empty() => "nothing".to_owned(),
            "history" => {
                let each = report.history.iter();
                each.map(|e| format!("{}:{}", e.round, e.loss)).collect::<Vec<_>>().join(" ")
            }
            "delays" => {
                let delay = &report.gradient_delay;
                format!("{:?} max {}", delay.histogram, delay.max)
            }
            "dropped" => {
                let dropped = report.dropped;
                let each: Vec<_> = report.workers.iter().map(|w| w.dropped.to_string()).collect();
                format!(
                    "{} late, {} by delay, {} at the end, by rank {}",
                    dropped.late,
                    dropped.delay,
                    dropped.ended,
                    each.join(" ")
                )
            }
            "final" => {
                let end = &report.r#final;
                format!(
                    "loss {:?} accuracy {:?} test {:?} {:?} of {} rows",
                    end.loss,
                    end.train_accuracy,
                    end.test_loss,
                    end.test_accuracy,
                    report.n_samples
                )
            }
            "events" => {
                let each = report.events.iter().map(|event| match event.rank {
                    Some(rank) if rank < Caller::FIRST_OBSERVER => {
                        format!("{} {rank} {}", event.kind, event.detail)
                    }
                    _ => format!("{} {}", event.kind, event.detail),
                });
                each.collect::<Vec<_>>().join(", ")
            }
            "outcome" => report.outcome,
            "seconds" => format!("{}", status.seconds),
            "durability" => report.durability.map_or("nothing".to_owned(), durability_text),
            "pushes" => {
                let each = status.workers.iter().map(|worker| worker.stats.pushes.to_string());
                each.collect::<Vec<_>>().join(" ")
            }
            "over" => self.core.is_over().to_string(),
            "alarm" => self.core.next_deadline().map_or("none".to_owned(), |t| format!("{t:?}")),
            other => panic!("{}: `{other}` cannot be shown", words.place),
        }
    }
}

pub(super) fn answer_text(answer: &Answer) -> String {
    let waited = |waited: Duration| match waited {
        Duration::ZERO => String::new(),
        waited => format!(" waited {waited:?}"),
    };
    match answer {
        Answer::Joined(w) => {
            format!(
                "joined rank {} clock {} version {} {}",
                place_of(w.caller),
                w.clock,
                w.version,
                w.state
            )
        }
        Answer::State { state, version } => format!("told {state} version {version}"),
        Answer::Pushed(result) => {
            let outcome = format!("{:?}", result.outcome).to_lowercase();
            let delay = match result.gradient_delay {
                0 => String::new(),
                delay => format!(" delay {delay}"),
            };
            let (version, clock, state) = (result.version, result.clock, result.state);
            let waited = waited(result.waited);
            format!("{outcome} version {version} clock {clock}{delay} {state}{waited}")
        }
        Answer::Pulled(header) => {
            format!("pulled version {} {}{}", header.version, header.state, waited(header.waited))
        }
        Answer::Statistics => "merged".to_owned(),
        Answer::Checkpointed { version, path } => format!("saved version {version} in {path}"),
        Answer::Refused(refusal) => {
            let error = &refusal.0;
            let facts: Vec<String> =
                error.facts.iter().map(|(key, value)| format!(" {key}={value}")).collect();
            let retry = error.retry_after.map(|t| format!(" retry {t:?}")).unwrap_or_default();
            format!("refused {}{}{retry}", error.code, facts.concat())
        }
    }
}

fn durability_text(d: DurabilityReport) -> String {
    format!(
        "{}, {} checkpoints, {} failed, {} restarts, {} undone, at most {} in {} s",
        d.setting,
        d.checkpoints,
        d.failed,
        d.restarts,
        d.undone,
        d.window_updates_max,
        d.window_seconds_max
    )
}

fn place_of(caller: Caller) -> String {
    if caller.is_observer() {
        format!("o{}", caller.rank - Caller::FIRST_OBSERVER)
    } else {
        caller.rank.to_string()
    }
}

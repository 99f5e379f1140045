//! The flags of durability: where checkpoints go, how often, and what a crash may undo.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ps_common::exit::ExitError;
use ps_common::job::{Durability, Mode};
use ps_common::units::{parse_bytes, show_bytes};
use serde::Serialize;

use super::duration;
use crate::core::{Checkpoints, Config, Consistency, DelayScaling, Every};

/// What outlives the server's process.
#[derive(Args, Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Durability")]
pub struct DurabilityArgs {
    /// Directory of checkpoints, which has to exist; the job goes on from the newest one in it
    /// [default: nothing outlives the process]
    #[arg(long, env = "PS_CHECKPOINT_DIR", value_name = "DIR")]
    pub checkpoint_dir: Option<PathBuf>,
    /// How often: after so many rounds (100r) or so much time (30s) [default: 30s]
    #[arg(long, env = "PS_CHECKPOINT_EVERY", value_name = "Nr|TIME")]
    pub checkpoint_every: Option<String>,
    /// How many checkpoints are kept, at least 2 [default: 3]
    #[arg(long, env = "PS_KEEP", value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub keep: Option<u32>,
    /// What to do with a job's checkpoints that are there: go on with it, refuse to start, or refuse
    /// to start without [default: auto]
    #[arg(long, env = "PS_RESUME", value_enum)]
    pub resume: Option<Resume>,
    /// What a crash may undo: all since the last checkpoint, which is taken only where asked for and
    /// at the end (none) or at intervals, or nothing that was acknowledged (always: a journal)
    /// [default: interval]
    #[arg(long, env = "PS_DURABILITY", value_enum)]
    pub durability: Option<Durability>,
    /// Size of the journal at which a checkpoint takes its place [default: 1g]
    #[arg(long, env = "PS_JOURNAL_MAX", value_name = "BYTES")]
    pub journal_max: Option<String>,
}

/// What to do with checkpoints that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Resume {
    /// Go on with the job, if there is one.
    Auto,
    /// Refuse to start: a new job wants a directory of its own.
    Never,
    /// Refuse to start without one.
    Require,
}

/// Durability, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct DurabilitySpec {
    /// Where.
    pub directory: PathBuf,
    /// When.
    pub checkpoints: Checkpoints,
    /// How many.
    pub keep: usize,
    /// What is there already.
    pub resume: Resume,
    /// Of the journal.
    pub journal_bytes_max: u64,
}

const EVERY: Every = Every::Time(Duration::from_secs(30));
const KEEP: u32 = 3;
const JOURNAL_BYTES_MAX: u64 = 1 << 30;

impl DurabilityArgs {
    /// Gives defaults their values; `None` where nothing is kept.
    ///
    /// # Errors
    /// A configuration error that names an option which has no meaning, or a value that it cannot
    /// have.
    pub fn check(&self, config: &Config) -> Result<Option<DurabilitySpec>, ExitError> {
        let Some(directory) = self.checkpoint_dir.clone() else {
            return self.refuse_all().map(|()| None);
        };
        let durability = self.durability.unwrap_or(Durability::Interval);
        let every = match (&self.checkpoint_every, durability) {
            (Some(every), Durability::None) => {
                return Err(ExitError::config(format!(
                    "--checkpoint-every {every} has no meaning with --durability none, which takes \
                     checkpoints only where asked for; leave one of the two out"
                )));
            }
            (None, Durability::None) => None,
            (Some(every), _) => Some(parse_every(every)?),
            (None, _) => Some(EVERY),
        };
        if self.journal_max.is_some() && durability != Durability::Always {
            return Err(ExitError::config(format!(
                "--journal-max has no meaning with --durability {durability}: only always has a \
                 journal"
            )));
        }
        if durability == Durability::Always {
            refuse_unrecordable(config)?;
        }
        let journal_bytes_max = match &self.journal_max {
            None => JOURNAL_BYTES_MAX,
            Some(text) => parse_bytes(text)
                .map_err(|what| ExitError::config(format!("--journal-max: {what}")))?,
        };
        Ok(Some(DurabilitySpec {
            directory,
            checkpoints: Checkpoints { durability, every },
            keep: self.keep.unwrap_or(KEEP) as usize,
            resume: self.resume.unwrap_or(Resume::Auto),
            journal_bytes_max,
        }))
    }

    fn refuse_all(&self) -> Result<(), ExitError> {
        let given = [
            ("--checkpoint-every", self.checkpoint_every.is_some()),
            ("--keep", self.keep.is_some()),
            ("--resume", self.resume.is_some()),
            ("--durability", self.durability.is_some()),
            ("--journal-max", self.journal_max.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((flag, _)) => Err(ExitError::config(format!(
                "{flag} has no meaning without --checkpoint-dir: name the directory that \
                 checkpoints go to"
            ))),
        }
    }
}

impl DurabilitySpec {
    /// What a crash of the server may undo, for a person who starts one.
    pub fn loss_window(&self, mode: Mode) -> String {
        let dir = self.directory.display();
        let since = "since the last checkpoint";
        let every = match self.checkpoints.every {
            None => "taken where asked for and at the end".to_owned(),
            Some(Every::Rounds(n)) => format!("taken every {n} rounds"),
            Some(Every::Time(time)) => format!("taken every {} s", time.as_secs_f64()),
        };
        match (self.checkpoints.durability, mode) {
            (Durability::Always, _) => format!(
                "a crash undoes nothing that was acknowledged: every update is in {dir} before its \
                 answer leaves (journal of at most {}, checkpoints {every})",
                show_bytes(self.journal_bytes_max)
            ),
            (_, Mode::Sync) => format!(
                "a crash undoes rounds {since} ({every}, in {dir}); workers compute them again, to \
                 the same bits"
            ),
            _ => format!("a crash undoes the updates {since} ({every}, in {dir})"),
        }
    }
}

/// What depends on more than the journal's records hold cannot be brought back from them.
fn refuse_unrecordable(config: &Config) -> Result<(), ExitError> {
    let what = match config.consistency {
        Consistency::Hogwild => "--mode hogwild: its updates have no order to be brought back in",
        Consistency::Async { delay_scaling: DelayScaling::DcAsgd { .. }, .. } => {
            "--delay-scaling dc-asgd: its corrections depend on the theta that each worker had, \
             which the journal does not hold"
        }
        _ => return Ok(()),
    };
    Err(ExitError::config(format!("--durability always with {what}; take --durability interval")))
}

fn parse_every(text: &str) -> Result<Every, ExitError> {
    let zero =
        || ExitError::config(format!("--checkpoint-every {text}: must be more than nothing"));
    if let Some(rounds) = text.strip_suffix('r') {
        let rounds: u64 = rounds.trim().parse().map_err(|_| {
            ExitError::config(format!(
                "--checkpoint-every {text}: expected rounds such as 100r, or a time such as 30s"
            ))
        })?;
        return if rounds == 0 { Err(zero()) } else { Ok(Every::Rounds(rounds)) };
    }
    let time = duration("--checkpoint-every", text)?;
    if time.is_zero() { Err(zero()) } else { Ok(Every::Time(time)) }
}

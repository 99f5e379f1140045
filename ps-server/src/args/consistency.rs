//! The flags of consistency: what each mode takes, which options it does not use, and what ends a
//! job besides its rounds.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use ps_common::exit::ExitError;
use ps_common::job::{Aggregate, Mode};
use serde::Serialize;

use super::CrewArgs;
use crate::core::{Consistency, DelayScaling, OnExcess, Plateau, StopRules};

/// Who waits for whom, what delays do, and when it is enough.
#[derive(Args, Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Consistency")]
pub struct ConsistencyArgs {
    /// How many clocks a worker may be ahead of the slowest (ssp only) [default: 3]
    #[arg(long, env = "PS_STALENESS_BOUND", value_name = "S")]
    pub staleness_bound: Option<u64>,
    /// A round closes without the B slowest workers, whose gradients are dropped (sync only)
    /// [default: 0]
    #[arg(long, env = "PS_BACKUP_WORKERS", value_name = "B")]
    pub backup_workers: Option<u32>,
    /// What a gradient's delay does to it (async only): none, inverse, inverse-sqrt,
    /// exponential,alpha=F or dc-asgd,lambda=F [default: none]
    #[arg(long, env = "PS_DELAY_SCALING", value_name = "NAME")]
    pub delay_scaling: Option<String>,
    /// The largest delay of a gradient (async only) [default: any]
    #[arg(long, env = "PS_MAX_GRADIENT_DELAY", value_name = "N")]
    pub max_gradient_delay: Option<u64>,
    /// What becomes of gradients beyond it: pushes are held back so that there are none, their rate
    /// is scaled by N / delay, or they are dropped [default: block]
    #[arg(long, env = "PS_ON_EXCESS", value_enum)]
    pub on_excess: Option<OnExcess>,
    /// Stop once a measured objective is this small
    #[arg(long, env = "PS_TARGET_LOSS", value_name = "F", allow_negative_numbers = true)]
    pub target_loss: Option<f64>,
    /// Stop this many seconds after the first worker has joined
    #[arg(long, env = "PS_MAX_SECONDS", value_name = "S")]
    pub max_seconds: Option<f64>,
    /// Stop once N measurements in a row were not better than the best by more than min-delta
    /// [default of min-delta: 0]
    #[arg(long, env = "PS_PLATEAU", value_name = "N[,min-delta=F]")]
    pub plateau: Option<String>,
}

/// S where nothing else is said.
const STALENESS_BOUND: u64 = 3;

impl ConsistencyArgs {
    /// The mode with its options.
    ///
    /// # Errors
    /// A configuration error that names an option which the mode does not use, or a value that it
    /// cannot have.
    pub fn check(
        &self,
        crew: &CrewArgs,
        aggregate: Option<Aggregate>,
    ) -> Result<Consistency, ExitError> {
        self.refuse_unused(crew.mode, aggregate)?;
        match crew.mode {
            Mode::Sync => self.sync(crew.workers, aggregate),
            Mode::Ssp => Ok(Consistency::Ssp {
                staleness_bound: self.staleness_bound.unwrap_or(STALENESS_BOUND),
            }),
            Mode::Async => Ok(Consistency::Async {
                delay_scaling: match &self.delay_scaling {
                    Some(text) => delay_scaling(text)?,
                    None => DelayScaling::None,
                },
                max_gradient_delay: self.bound()?,
            }),
            Mode::Hogwild => Ok(Consistency::Hogwild),
        }
    }

    fn refuse_unused(&self, mode: Mode, aggregate: Option<Aggregate>) -> Result<(), ExitError> {
        let unused = [
            ("--aggregate", aggregate.is_some(), Mode::Sync),
            ("--backup-workers", self.backup_workers.is_some(), Mode::Sync),
            ("--staleness-bound", self.staleness_bound.is_some(), Mode::Ssp),
            ("--delay-scaling", self.delay_scaling.is_some(), Mode::Async),
            ("--max-gradient-delay", self.max_gradient_delay.is_some(), Mode::Async),
            ("--on-excess", self.on_excess.is_some(), Mode::Async),
        ];
        match unused.iter().find(|(_, given, of)| *given && *of != mode) {
            None => Ok(()),
            Some((flag, _, of)) => Err(ExitError::config(format!(
                "{flag} has no meaning with --mode {mode}: it is an option of --mode {of}"
            ))),
        }
    }

    fn sync(&self, workers: u32, aggregate: Option<Aggregate>) -> Result<Consistency, ExitError> {
        let backup_workers = self.backup_workers.unwrap_or(0);
        if backup_workers >= workers {
            return Err(ExitError::config(format!(
                "--backup-workers {backup_workers} with --workers {workers}: a round needs at least \
                 one gradient, so at most {} workers can be spare",
                workers - 1
            )));
        }
        let gradients = workers - backup_workers;
        if let Some(Aggregate::TrimmedMean { k }) = aggregate
            && 2 * u64::from(k) >= u64::from(gradients)
        {
            return Err(ExitError::config(format!(
                "--aggregate trimmed-mean,k={k}: of the {gradients} gradients of a round \
                 (--workers {workers}, --backup-workers {backup_workers}) it drops {}; 2 k must be \
                 less than {gradients}",
                2 * u64::from(k)
            )));
        }
        Ok(Consistency::Sync { backup_workers })
    }

    fn bound(&self) -> Result<Option<(u64, OnExcess)>, ExitError> {
        match (self.max_gradient_delay, self.on_excess) {
            (None, Some(_)) => Err(ExitError::config(
                "--on-excess has no meaning without --max-gradient-delay: no delay is too large",
            )),
            (n, on_excess) => Ok(n.map(|n| (n, on_excess.unwrap_or(OnExcess::Block)))),
        }
    }

    /// What ends the job besides its rounds.
    ///
    /// # Errors
    /// A configuration error that names the flag.
    pub fn stop_rules(&self) -> Result<StopRules, ExitError> {
        if let Some(target) = self.target_loss.filter(|target| !target.is_finite()) {
            return Err(ExitError::config(format!("--target-loss {target}: expected a number")));
        }
        let duration = match self.max_seconds {
            None => None,
            Some(seconds) if seconds > 0.0 => Some(
                Duration::try_from_secs_f64(seconds)
                    .map_err(|e| ExitError::config(format!("--max-seconds {seconds}: {e}")))?,
            ),
            Some(seconds) => {
                return Err(ExitError::config(format!(
                    "--max-seconds {seconds}: expected more than 0"
                )));
            }
        };
        let plateau = self.plateau.as_deref().map(plateau).transpose()?;
        Ok(StopRules { target_loss: self.target_loss, duration, plateau })
    }
}

/// `NAME` or `NAME,option=F`.
fn delay_scaling(text: &str) -> Result<DelayScaling, ExitError> {
    let error = |what: &str| ExitError::config(format!("--delay-scaling {text}: {what}"));
    let (name, option) = text.split_once(',').map_or((text, None), |(n, rest)| (n, Some(rest)));
    let positive = |key: &str| {
        let example = format!("{name} takes {key}=F above 0, as in {name},{key}=0.1");
        let value = option.and_then(|o| o.strip_prefix(key)).and_then(|o| o.strip_prefix('='));
        let value: Option<f64> = value.and_then(|value| value.parse().ok());
        value.filter(|f| f.is_finite() && *f > 0.0).ok_or_else(|| error(&example))
    };
    let plain = |scaling| match option {
        None => Ok(scaling),
        Some(_) => Err(error(&format!("{name} takes no options"))),
    };
    match name {
        "none" => plain(DelayScaling::None),
        "inverse" => plain(DelayScaling::Inverse),
        "inverse-sqrt" => plain(DelayScaling::InverseSqrt),
        "exponential" => Ok(DelayScaling::Exponential { alpha: positive("alpha")? }),
        "dc-asgd" => Ok(DelayScaling::DcAsgd { lambda: positive("lambda")? }),
        _ => Err(error(
            "expected none, inverse, inverse-sqrt, exponential,alpha=F or dc-asgd,lambda=F",
        )),
    }
}

/// `N` or `N,min-delta=F`.
fn plateau(text: &str) -> Result<Plateau, ExitError> {
    let error = || {
        ExitError::config(format!(
            "--plateau {text}: expected a number of measurements above 0, as in 5 or \
             5,min-delta=1e-4"
        ))
    };
    let (n, rest) = text.split_once(',').map_or((text, None), |(n, rest)| (n, Some(rest)));
    let min_delta = match rest {
        None => 0.0,
        Some(rest) => {
            let value = rest.strip_prefix("min-delta=").ok_or_else(error)?;
            f64::from_str(value).ok().filter(|f| f.is_finite() && *f >= 0.0).ok_or_else(error)?
        }
    };
    let n_measurements = n.parse().ok().filter(|n| *n > 0).ok_or_else(error)?;
    Ok(Plateau { n_measurements, min_delta })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ServerArgs;
    use clap::Parser;
    use ps_common::exit::Exit;

    fn parsed(arguments: &str) -> ServerArgs {
        let words = std::iter::once("ps-server").chain(arguments.split_whitespace());
        ServerArgs::try_parse_from(words).expect("parsed")
    }

    #[test]
    fn each_mode_takes_its_options() {
        let check = |text: &str| {
            let args = parsed(text);
            args.job.check(&args.crew).expect(text).config.consistency
        };
        let asynchronous = |delay_scaling, max_gradient_delay| Consistency::Async {
            delay_scaling,
            max_gradient_delay,
        };
        for (text, want) in [
            ("", Consistency::Sync { backup_workers: 0 }),
            ("--backup-workers 1", Consistency::Sync { backup_workers: 1 }),
            ("--mode ssp", Consistency::Ssp { staleness_bound: 3 }),
            ("--mode ssp --staleness-bound 0", Consistency::Ssp { staleness_bound: 0 }),
            ("--mode hogwild --weight-decay 0.1 --clip-norm 2", Consistency::Hogwild),
            ("--mode async", asynchronous(DelayScaling::None, None)),
            (
                "--mode async --delay-scaling exponential,alpha=0.5 --max-gradient-delay 4",
                asynchronous(DelayScaling::Exponential { alpha: 0.5 }, Some((4, OnExcess::Block))),
            ),
            (
                "--mode async --delay-scaling dc-asgd,lambda=2 --max-gradient-delay 9 --on-excess drop",
                asynchronous(DelayScaling::DcAsgd { lambda: 2.0 }, Some((9, OnExcess::Drop))),
            ),
        ] {
            assert_eq!(check(text), want, "{text}");
        }
    }

    #[test]
    fn what_a_mode_does_not_use_is_refused_by_name() {
        for (text, says) in [
            ("--staleness-bound 2", "--staleness-bound has no meaning with --mode sync"),
            ("--delay-scaling inverse", "--delay-scaling has no meaning with --mode sync"),
            ("--mode ssp --backup-workers 1", "--backup-workers has no meaning with --mode ssp"),
            ("--mode ssp --aggregate sum", "--aggregate has no meaning with --mode ssp"),
            ("--mode ssp --max-gradient-delay 2", "--max-gradient-delay has no meaning"),
            (
                "--mode async --staleness-bound 2",
                "--staleness-bound has no meaning with --mode async",
            ),
            ("--mode hogwild --aggregate sum", "--aggregate has no meaning with --mode hogwild"),
            ("--mode hogwild --backup-workers 1", "--backup-workers has no meaning"),
            ("--mode hogwild --staleness-bound 1", "--staleness-bound has no meaning"),
            ("--mode hogwild --delay-scaling inverse", "--delay-scaling has no meaning"),
            ("--mode hogwild --max-gradient-delay 3", "--max-gradient-delay has no meaning"),
            ("--mode hogwild --optimizer momentum", "--optimizer momentum with --mode hogwild"),
            ("--mode hogwild --optimizer adamw,beta1=0.5", "--optimizer adamw with --mode hogwild"),
            ("--mode async --on-excess drop", "--on-excess has no meaning without"),
            ("--mode async --delay-scaling inverse,alpha=1", "takes no options"),
            ("--mode async --delay-scaling exponential", "alpha=F"),
            ("--mode async --delay-scaling dc-asgd,lambda=-1", "lambda=F"),
            ("--mode async --delay-scaling linear", "expected none, inverse"),
            ("--backup-workers 4", "--backup-workers 4 with --workers 4"),
            ("--aggregate trimmed-mean,k=2", "2 k must be less than 4"),
            ("--aggregate trimmed-mean,k=1 --backup-workers 2", "2 k must be less than 2"),
            ("--target-loss nan", "--target-loss"),
            ("--max-seconds 0", "--max-seconds 0"),
            ("--plateau 0", "--plateau 0"),
            ("--plateau 3,min-delta=x", "--plateau 3,min-delta=x"),
        ] {
            let args = parsed(text);
            let error = args.job.check(&args.crew).expect_err(text);
            assert_eq!(error.exit, Exit::Config, "{text}");
            assert!(error.message.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_job_may_end_in_several_ways() {
        let args = parsed("--target-loss 0.5 --max-seconds 1.5 --plateau 4,min-delta=1e-3");
        let rules = args.job.check(&args.crew).expect("fine").config.stop;
        assert_eq!(rules.target_loss, Some(0.5));
        assert_eq!(rules.duration, Some(Duration::from_millis(1500)));
        assert_eq!(rules.plateau, Some(Plateau { n_measurements: 4, min_delta: 1e-3 }));
    }
}

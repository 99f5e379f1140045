//! Local steps: what a worker does by itself between a pull and a push.
//!
//! With `--local-lr F` a worker takes H steps of SGD from the theta that it pulled, on the H batches
//! of its clock (clock c: batches c H to c H + H - 1), and pushes how far it came: theta_pulled -
//! theta_local (rule R13). A server that takes this as a gradient of `sgd` at rate 1 moves to the
//! mean of the workers' thetas: federated averaging (McMahan et al. 2017, Algorithm 1), where
//! `--aggregate weighted-mean` gives each its n_k / n.
//!
//! Every step's gradient carries the whole L2 term, whatever the aggregate: what is averaged are
//! thetas, and each of them is that of the whole objective on its own rows.
//!
//! Owns the flags and their check. Knows no data, no models and no network.

use ps_common::exit::ExitError;
use ps_common::job::{Aggregate, Mode};
use serde::Serialize;

/// Steps of a worker by itself, as typed.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Local steps")]
pub struct LocalStepsArgs {
    /// SGD steps of a worker by itself between two pushes, each on a batch of its own; it then
    /// pushes how far they led, which a server takes with `sgd` at --lr 1 (federated averaging;
    /// psctl local takes that rate by default). Needs --local-lr
    #[arg(long, env = "PS_LOCAL_STEPS", value_name = "H", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub local_steps: u32,

    /// Rate of these steps; with it even a single step is a local one [default: plain gradients]
    #[arg(long, env = "PS_LOCAL_LR", value_name = "F")]
    pub local_lr: Option<f64>,
}

/// Steps of a worker by itself, checked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LocalSteps {
    /// At least 1.
    pub n_steps: u32,
    /// Above 0 and finite.
    pub lr: f64,
}

impl LocalStepsArgs {
    /// Checks the combination; `None`: gradients are pushed as they are.
    ///
    /// # Errors
    /// Configuration, naming the flag.
    pub fn check(&self) -> Result<Option<LocalSteps>, ExitError> {
        match self.local_lr {
            None if self.local_steps > 1 => Err(ExitError::config(format!(
                "--local-steps {} needs --local-lr: the rate of the steps on the worker (--lr is \
                 the server's)",
                self.local_steps
            ))),
            None => Ok(None),
            Some(lr) if lr.is_finite() && lr > 0.0 => {
                Ok(Some(LocalSteps { n_steps: self.local_steps, lr }))
            }
            Some(lr) => {
                Err(ExitError::config(format!("--local-lr {lr} is not a finite number above 0")))
            }
        }
    }
}

impl LocalSteps {
    /// Refuses an aggregate that would add the workers' moves up.
    ///
    /// # Errors
    /// Configuration, naming the flags.
    pub fn check_aggregate(self, mode: Mode, aggregate: Aggregate) -> Result<(), ExitError> {
        if mode == Mode::Sync && aggregate == Aggregate::Sum {
            return Err(ExitError::config(
                "--local-lr and --aggregate sum exclude each other: the ways that the workers went \
                 would be added up; take --aggregate weighted-mean (federated averaging) or mean",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ps_common::exit::Exit;

    fn check(local_steps: u32, local_lr: Option<f64>) -> Result<Option<LocalSteps>, ExitError> {
        LocalStepsArgs { local_steps, local_lr }.check()
    }

    #[test]
    fn the_rate_says_whether_steps_are_local() {
        assert_eq!(check(1, None).expect("the default"), None);
        for n_steps in [1, 5] {
            let steps = check(n_steps, Some(0.5)).expect("fine");
            assert_eq!(steps, Some(LocalSteps { n_steps, lr: 0.5 }));
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (steps, lr, says) in [
            (2, None, "--local-steps 2 needs --local-lr"),
            (2, Some(0.0), "--local-lr 0 is not"),
            (1, Some(f64::NAN), "--local-lr NaN is not"),
            (1, Some(-0.1), "--local-lr -0.1 is not"),
        ] {
            let error = check(steps, lr).expect_err(says);
            assert!(error.exit == Exit::Config && error.message.starts_with(says), "{error}");
        }
        let steps = LocalSteps { n_steps: 1, lr: 0.1 };
        assert!(steps.check_aggregate(Mode::Sync, Aggregate::Sum).is_err());
        for aggregate in [Aggregate::WeightedMean, Aggregate::Mean] {
            assert!(steps.check_aggregate(Mode::Sync, aggregate).is_ok());
        }
    }
}

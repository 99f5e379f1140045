//! The model's flags: as parsed ([`ModelArgs`]) and as relied on ([`ModelSpec`]).
//!
//! Knows no data, and leaves the options of each model to `spec`.

use ps_common::exit::ExitError;
use serde::Serialize;

use super::loss::RowLoss;
use super::spec::{CLASSES_MAX, ModelChoice, ModelKind};

/// Which loss is minimised, as typed.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub struct ModelArgs {
    /// What is trained: `linear` (least squares), `logistic` (targets 0/1 or -1/+1), `softmax`
    /// (targets 0 to C-1; C is one more than the largest, or `softmax,classes=C`), `mlp`
    /// (`hidden=32`, or `64x32` for two layers; `activation=relu|tanh`;
    /// `loss=softmax|squared|logistic`, `classes=C`) or `fm`, the factorization machine
    /// (`factors=8`, `loss=squared|logistic`, `init-std=0.01`). The first value of an option is its
    /// default; what starts at random follows --seed
    #[arg(long, env = "PS_MODEL", value_name = "NAME[,OPTION=VALUE]", default_value = "linear")]
    pub model: String,

    /// Strength of the L2 term: adds (L2 / 2) * |w|^2 over all weights to the objective, biases left
    /// out
    #[arg(long, env = "PS_L2", value_name = "F", default_value_t = 0.0)]
    pub l2: f64,

    /// Whether the model has biases, which L2 does not touch: a last term, one for each unit of an
    /// mlp, w0 of an fm [default: true for mlp and fm, false for the others]
    #[arg(long, env = "PS_BIAS", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub bias: Option<bool>,
}

/// The flags, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// Which model.
    pub choice: ModelChoice,
    /// At least 0 and finite.
    pub l2: f64,
    /// Whether it has biases.
    pub bias: bool,
}

impl ModelArgs {
    /// Checks names and ranges.
    ///
    /// # Errors
    /// Configuration, naming the flag and what there is.
    pub fn check(&self) -> Result<ModelSpec, ExitError> {
        if !(self.l2.is_finite() && self.l2 >= 0.0) {
            return Err(ExitError::config(format!(
                "--l2 {} is not a finite number of at least 0",
                self.l2
            )));
        }
        let choice: ModelChoice = self
            .model
            .parse()
            .map_err(|what| ExitError::config(format!("--model {}: {what}", self.model)))?;
        let bias = self.bias.unwrap_or(choice.map.has_bias_by_default());
        Ok(ModelSpec { choice, l2: self.l2, bias })
    }
}

impl ModelSpec {
    /// With the classes that softmax leaves to the data: `n_classes` is one more than the largest
    /// target, `None` where the targets are no classes.
    ///
    /// # Errors
    /// Configuration, where softmax has no classes to count.
    pub fn with_classes(mut self, n_classes: Option<usize>) -> Result<Self, ExitError> {
        if self.choice.loss.is_none() {
            let n_classes = n_classes.filter(|&n| n <= CLASSES_MAX).ok_or_else(open_classes)?;
            self.choice.loss = Some(RowLoss::Softmax { n_classes: n_classes.max(2) });
        }
        Ok(self)
    }

    /// Which model.
    ///
    /// # Errors
    /// Configuration, as long as softmax waits for its classes.
    pub fn kind(&self) -> Result<ModelKind, ExitError> {
        let ModelChoice { map, loss } = self.choice.clone();
        Ok(ModelKind { map, loss: loss.ok_or_else(open_classes)? })
    }
}

fn open_classes() -> ExitError {
    ExitError::config(
        "--model with softmax: its classes cannot be counted from these targets; say classes=C, as \
         in softmax,classes=3, or choose another --target",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::MapKind;
    use clap::Parser;
    use ps_common::exit::Exit;

    #[derive(Parser)]
    struct Demo {
        #[command(flatten)]
        model: ModelArgs,
    }

    fn args(arguments: &[&str]) -> ModelArgs {
        let all = ["demo"].iter().chain(arguments);
        Demo::try_parse_from(all).expect("parses").model
    }

    #[test]
    fn flags_become_a_spec() {
        let linear = args(&[]).check().expect("the defaults are valid");
        let choice = ModelChoice { map: MapKind::Linear, loss: Some(RowLoss::Squared) };
        assert_eq!(linear, ModelSpec { choice, l2: 0.0, bias: false });
        let softmax = args(&["--model=softmax, classes = 10", "--l2=0.5", "--bias"]);
        let softmax = softmax.check().expect("valid");
        let loss = Some(RowLoss::Softmax { n_classes: 10 });
        let choice = ModelChoice { map: MapKind::Linear, loss };
        assert_eq!(softmax, ModelSpec { choice, l2: 0.5, bias: true });
    }

    #[test]
    fn biases_are_there_by_default_where_the_model_is_made_of_them() {
        for (arguments, bias) in [
            (&["--model=logistic"][..], false),
            (&["--model=logistic", "--bias"], true),
            (&["--model=mlp"], true),
            (&["--model=mlp", "--bias=false"], false),
            (&["--model=fm"], true),
            (&["--model=fm", "--bias", "false"], false),
        ] {
            assert_eq!(args(arguments).check().expect("valid").bias, bias, "{arguments:?}");
        }
    }

    #[test]
    fn a_flag_that_makes_no_sense_is_refused_by_name() {
        for (argument, says) in [
            ("--model=svm", "--model svm: model `svm` is unknown"),
            ("--model=fm,factors=no", "--model fm,factors=no: factors is"),
            ("--l2=-1", "--l2 -1 is not"),
            ("--l2=NaN", "--l2 NaN is not"),
            ("--l2=inf", "--l2 inf is not"),
        ] {
            let error = args(&[argument]).check().expect_err(argument);
            assert_eq!(error.exit, Exit::Config);
            assert!(error.message.starts_with(says), "{argument}: {error}");
        }
    }

    #[test]
    fn softmax_takes_its_classes_from_the_targets_unless_told() {
        for name in ["softmax", "mlp"] {
            let open = args(&["--model", name]).check().expect("fine");
            let loss =
                |n| open.clone().with_classes(n).and_then(|spec| spec.kind()).map(|k| k.loss);
            assert_eq!(loss(Some(7)).ok(), Some(RowLoss::Softmax { n_classes: 7 }));
            assert_eq!(loss(Some(1)).ok(), Some(RowLoss::Softmax { n_classes: 2 }));
            assert_eq!(loss(None).map_err(|e| e.exit), Err(Exit::Config));
            assert_eq!(open.kind().map_err(|e| e.exit), Err(Exit::Config));
        }
        let told = args(&["--model=softmax,classes=9"]).check().expect("fine");
        let told = told.with_classes(Some(7)).and_then(|spec| spec.kind());
        assert_eq!(told.ok().map(|kind| kind.loss), Some(RowLoss::Softmax { n_classes: 9 }));
    }

    #[test]
    fn arguments_round_trip() {
        let given = args(&["--model=softmax,classes=3", "--l2=0.001", "--bias=true"]);
        let again = ps_common::flags::to_arguments(&given);
        let again: Vec<&str> = again.iter().map(|a| a.to_str().expect("text")).collect();
        assert_eq!(args(&again), given);
    }
}

//! The model's flags: as parsed ([`ModelArgs`]) and as relied on ([`ModelSpec`]).
//!
//! Owns names, defaults and ranges. Knows no data: widths and targets are checked by the model.

use std::fmt;

use ps_common::exit::ExitError;
use serde::Serialize;

/// Which loss is minimised, as typed.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub struct ModelArgs {
    /// What is trained: `linear` (least squares), `logistic` (targets 0/1 or -1/+1), or
    /// `softmax` (targets 0 to C-1; C is one more than the largest, or `softmax,classes=C`)
    #[arg(long, env = "PS_MODEL", value_name = "NAME[,OPTION=VALUE]", default_value = "linear")]
    pub model: String,

    /// Strength of the L2 term: adds (L2 / 2) * |w|^2 to the objective, the bias left out
    #[arg(long, env = "PS_L2", value_name = "F", default_value_t = 0.0)]
    pub l2: f64,

    /// Whether the model has a bias, a last term that L2 does not touch
    #[arg(long, env = "PS_BIAS", value_name = "BOOL", default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub bias: bool,
}

/// A model by name and options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// Least squares.
    Linear,
    /// Two classes.
    Logistic,
    /// Several classes.
    Softmax {
        /// At least 2.
        n_classes: usize,
    },
}

/// What `--model` says: softmax may leave its classes to the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelChoice {
    /// Nothing is open.
    Known(ModelKind),
    /// softmax over as many classes as the targets name.
    SoftmaxOfTargets,
}

/// The flags, checked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelSpec {
    /// Which model.
    pub choice: ModelChoice,
    /// At least 0 and finite.
    pub l2: f64,
    /// Whether it has a bias.
    pub bias: bool,
}

/// Classes that softmax may have.
const CLASSES_MAX: usize = 1 << 24;

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
        Ok(ModelSpec { choice: parse_kind(&self.model)?, l2: self.l2, bias: self.bias })
    }
}

impl ModelSpec {
    /// With the classes that softmax leaves to the data: `n_classes` is one more than the largest
    /// target, `None` where the targets are no classes.
    ///
    /// # Errors
    /// Configuration, where softmax has no classes to count.
    pub fn with_classes(self, n_classes: Option<usize>) -> Result<Self, ExitError> {
        let choice = match (self.choice, n_classes) {
            (ModelChoice::Known(_), _) => self.choice,
            (ModelChoice::SoftmaxOfTargets, Some(n)) if n <= CLASSES_MAX => {
                ModelChoice::Known(ModelKind::Softmax { n_classes: n.max(2) })
            }
            (ModelChoice::SoftmaxOfTargets, _) => {
                return Err(ExitError::config(
                    "--model softmax: its classes cannot be counted from these targets; say \
                     softmax,classes=C, or choose another --target",
                ));
            }
        };
        Ok(Self { choice, ..self })
    }

    /// Which model.
    ///
    /// # Errors
    /// Configuration, as long as softmax waits for its classes.
    pub fn kind(&self) -> Result<ModelKind, ExitError> {
        match self.with_classes(None)?.choice {
            ModelChoice::Known(kind) => Ok(kind),
            ModelChoice::SoftmaxOfTargets => unreachable!("refused just now"),
        }
    }
}

impl fmt::Display for ModelKind {
    /// As `--model` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linear => f.write_str("linear"),
            Self::Logistic => f.write_str("logistic"),
            Self::Softmax { n_classes } => write!(f, "softmax,classes={n_classes}"),
        }
    }
}

fn parse_kind(text: &str) -> Result<ModelChoice, ExitError> {
    let refuse = |what: String| Err(ExitError::config(format!("--model {text}: {what}")));
    let mut parts = text.split(',').map(str::trim);
    let name = parts.next().unwrap_or_default();
    if !["linear", "logistic", "softmax"].contains(&name) {
        let why = if ["mlp", "fm"].contains(&name) { "is not built yet" } else { "is unknown" };
        return refuse(format!("model `{name}` {why}; there are linear, logistic and softmax"));
    }
    let mut n_classes = None;
    for option in parts {
        let Some((key, value)) = option.split_once('=') else {
            return refuse(format!("`{option}` is not of the form OPTION=VALUE"));
        };
        match (name, key.trim()) {
            ("softmax", "classes") if n_classes.is_some() => {
                return refuse("`classes` is given twice".to_owned());
            }
            ("softmax", "classes") => match value.trim().parse() {
                Ok(n) if (2..=CLASSES_MAX).contains(&n) => n_classes = Some(n),
                _ => {
                    return refuse(format!(
                        "classes is a whole number from 2 to {CLASSES_MAX}, not `{value}`"
                    ));
                }
            },
            ("softmax", other) => {
                return refuse(format!("softmax has no option `{other}`, only classes=N"));
            }
            (_, other) => return refuse(format!("{name} has no options, so not `{other}` either")),
        }
    }
    match (name, n_classes) {
        ("linear", _) => Ok(ModelChoice::Known(ModelKind::Linear)),
        ("logistic", _) => Ok(ModelChoice::Known(ModelKind::Logistic)),
        (_, Some(n_classes)) => Ok(ModelChoice::Known(ModelKind::Softmax { n_classes })),
        (_, None) => Ok(ModelChoice::SoftmaxOfTargets),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let choice = ModelChoice::Known(ModelKind::Linear);
        assert_eq!(linear, ModelSpec { choice, l2: 0.0, bias: false });
        let softmax = args(&["--model=softmax, classes = 10", "--l2=0.5", "--bias"]);
        let softmax = softmax.check().expect("valid");
        let kind = ModelKind::Softmax { n_classes: 10 };
        let choice = ModelChoice::Known(kind);
        assert_eq!(softmax, ModelSpec { choice, l2: 0.5, bias: true });
        assert_eq!(parse_kind(&kind.to_string()).expect("round trip"), choice);
    }

    #[test]
    fn a_flag_that_makes_no_sense_is_refused_by_name() {
        for (argument, says) in [
            ("--model=mlp,hidden=64", "`mlp` is not built yet; there are linear"),
            ("--model=fm", "`fm` is not built yet"),
            ("--model=svm", "`svm` is unknown; there are linear, logistic and softmax"),
            ("--model=", "`` is unknown"),
            ("--model=linear,classes=2", "linear has no options, so not `classes`"),
            ("--model=logistic,c=2", "logistic has no options, so not `c`"),
            ("--model=softmax,10", "`10` is not of the form"),
            ("--model=softmax,classes=1", "from 2 to"),
            ("--model=softmax,classes=-3", "from 2 to"),
            ("--model=softmax,classes=x", "not `x`"),
            ("--model=softmax,classes=2,classes=3", "given twice"),
            ("--model=softmax,hidden=3", "no option `hidden`"),
            ("--l2=-1", "--l2 -1 is not"),
            ("--l2=NaN", "--l2 NaN is not"),
            ("--l2=inf", "--l2 inf is not"),
        ] {
            let error = args(&[argument]).check().expect_err(argument);
            assert_eq!(error.exit, Exit::Config);
            assert!(error.message.contains(says), "{argument}: {error}");
            let flag = argument.split('=').next().expect("a flag");
            assert!(error.message.starts_with(flag), "{argument}: {error}");
        }
    }

    #[test]
    fn softmax_takes_its_classes_from_the_targets_unless_told() {
        let open = args(&["--model=softmax"]).check().expect("fine");
        let kind = |n| open.with_classes(n).and_then(|spec| spec.kind());
        assert_eq!(kind(Some(7)).ok(), Some(ModelKind::Softmax { n_classes: 7 }));
        assert_eq!(kind(Some(1)).ok(), Some(ModelKind::Softmax { n_classes: 2 }));
        assert_eq!(kind(None).map_err(|e| e.exit), Err(Exit::Config));
        let told = args(&["--model=softmax,classes=9"]).check().expect("fine");
        let told = told.with_classes(Some(7)).and_then(|spec| spec.kind());
        assert_eq!(told.ok(), Some(ModelKind::Softmax { n_classes: 9 }));
    }

    #[test]
    fn arguments_round_trip() {
        let given = args(&["--model=softmax,classes=3", "--l2=0.001", "--bias=true"]);
        let again = ps_common::flags::to_arguments(&given);
        let again: Vec<&str> = again.iter().map(|a| a.to_str().expect("text")).collect();
        assert_eq!(args(&again), given);
    }
}

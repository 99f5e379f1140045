//! Which update rule, with which options: the one place that knows all of them.
//!
//! To add one: a file with its kernel over slices, a variant here.

use ps_common::Element;
use ps_common::exit::ExitError;
use serde::Serialize;

use super::sgd;

/// How theta moves by an aggregate gradient.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum Optimizer {
    /// theta -= lr * gradient.
    Sgd {
        /// Learning rate.
        lr: f64,
    },
}

impl Optimizer {
    /// Reads `--optimizer NAME[,option=value]` and `--lr`.
    ///
    /// # Errors
    /// A configuration error that names the flag and what exists.
    pub fn parse(text: &str, lr: f64) -> Result<Self, ExitError> {
        if !lr.is_finite() || lr < 0.0 {
            return Err(ExitError::config(format!(
                "--lr is {lr}; it must be 0 or more, and finite"
            )));
        }
        let (name, options) = text.split_once(',').unwrap_or((text, ""));
        match name {
            "sgd" if options.is_empty() => Ok(Self::Sgd { lr }),
            "sgd" => Err(ExitError::config(format!(
                "--optimizer sgd has no options, `{options}` is given; its rate is --lr"
            ))),
            _ => Err(ExitError::config(format!(
                "--optimizer {name} is not built in this version, which has: sgd"
            ))),
        }
    }

    /// Writes the new theta of some keys, from the old one and the aggregate of the same keys.
    ///
    /// # Panics
    /// If lengths differ.
    pub fn update<T: Element>(&self, new: &mut [T], old: &[T], gradient: &[T]) {
        match *self {
            Self::Sgd { lr } => sgd(new, old, gradient, lr),
        }
    }
}

impl std::fmt::Display for Optimizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sgd { lr } => write!(f, "sgd, lr={lr}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        assert_eq!(Optimizer::parse("sgd", 0.1).ok(), Some(Optimizer::Sgd { lr: 0.1 }));
        for (text, lr, named) in [
            ("adam", 0.1, "adam"),
            ("sgd,mu=1", 0.1, "mu=1"),
            ("sgd", f64::NAN, "--lr"),
            ("sgd", -1.0, "--lr"),
        ] {
            let error = Optimizer::parse(text, lr).expect_err(text);
            assert!(error.message.contains(named), "{error}");
        }
    }
}

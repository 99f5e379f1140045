//! Which update rule, with which options, and what it remembers of each element: the one place that
//! knows all of them.
//!
//! To add one: a file with its kernel over slices, and here a variant, its arms and its name.

use std::fmt;

use ps_common::Element;
use ps_common::exit::ExitError;
use serde::Serialize;

use super::adagrad::adagrad;
use super::adam::{AdamStep, adam};
use super::adamw::adamw;
use super::ftrl::{FtrlStep, ftrl, ftrl_start};
use super::momentum::momentum;
use super::nesterov::nesterov;
use super::options::{Options, Range};
use super::rmsprop::rmsprop;
use super::sgd::{sgd, sgd_from};

/// Numbers that a rule remembers of an element, at most.
pub const SLOTS_MAX: usize = 2;

/// What a rule remembers of some keys: slot by slot as many numbers as keys; slots that it does not
/// have are not looked at.
pub type Slots<'a, T> = [&'a mut [T]; SLOTS_MAX];

/// Some numbers as a step leaves them, whatever was there, and as it finds them.
pub type Turn<'a, T> = (&'a mut [T], &'a [T]);

/// A rule and its options. The learning rate stands beside it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum Rule {
    /// Stochastic gradient descent.
    Sgd,
    /// Heavy ball.
    Momentum {
        /// Share of the old velocity.
        mu: f64,
    },
    /// Accelerated gradient.
    Nesterov {
        /// Share of the old velocity.
        mu: f64,
    },
    /// A rate for each element by the sum of its squares.
    Adagrad {
        /// Added to the root.
        eps: f64,
    },
    /// A rate for each element by the running mean of its squares.
    Rmsprop {
        /// Share of the old mean.
        rho: f64,
        /// Added to the root.
        eps: f64,
    },
    /// Momentum over a rate for each element.
    Adam(Betas),
    /// Adam with weight decay apart from the gradient.
    Adamw(Betas),
    /// FTRL-Proximal; the learning rate is its alpha.
    Ftrl {
        /// Steadies the rate of what has been seen little.
        beta: f64,
        /// Makes small weights 0.
        l1: f64,
        /// Shrinks weights.
        l2: f64,
    },
}

/// Options of Adam.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Betas {
    /// Share of the old first moment.
    pub beta1: f64,
    /// Share of the old second moment.
    pub beta2: f64,
    /// Added to the root.
    pub eps: f64,
}

/// A step, apart from theta and gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The learning rate, as scheduled.
    pub lr: f64,
    /// Multiplies the rate; with FTRL, whose rates are a sum over all steps, the gradient.
    pub factor: f64,
    /// Weight decay that is no part of the gradient: AdamW's.
    pub decay: f64,
    /// Steps before this one.
    pub n_before: u64,
    /// Whether the keys are penalised: decay, L1 and L2 leave the others alone.
    pub penalized: bool,
}

impl Rule {
    /// Reads `--optimizer NAME[,option=value]`; gives the learning rate too where it stands there.
    ///
    /// # Errors
    /// A configuration error that names the flag and what exists.
    pub fn parse(text: &str) -> Result<(Self, Option<f64>), ExitError> {
        const MU: [&str; 2] = ["mu", "momentum"];
        const EPS: [&str; 1] = ["eps"];
        let mut options = Options::parse("--optimizer", text)?;
        let or = |value: Option<f64>, default| value.unwrap_or(default);
        let mut alpha = None;
        let rule = match options.name() {
            "sgd" => Self::Sgd,
            "momentum" => Self::Momentum { mu: or(options.number(&MU, Range::BelowOne)?, 0.9) },
            "nesterov" => Self::Nesterov { mu: or(options.number(&MU, Range::BelowOne)?, 0.9) },
            "adagrad" => Self::Adagrad { eps: or(options.number(&EPS, Range::Positive)?, 1e-10) },
            "rmsprop" => Self::Rmsprop {
                rho: or(options.number(&["rho", "alpha"], Range::BelowOne)?, 0.99),
                eps: or(options.number(&EPS, Range::Positive)?, 1e-8),
            },
            name @ ("adam" | "adamw") => {
                let betas = Betas {
                    beta1: or(options.number(&["beta1", "b1"], Range::BelowOne)?, 0.9),
                    beta2: or(options.number(&["beta2", "b2"], Range::BelowOne)?, 0.999),
                    eps: or(options.number(&EPS, Range::Positive)?, 1e-8),
                };
                if name == "adam" { Self::Adam(betas) } else { Self::Adamw(betas) }
            }
            "ftrl" => {
                alpha = options.number(&["alpha"], Range::Positive)?;
                Self::Ftrl {
                    beta: or(options.number(&["beta"], Range::NotNegative)?, 1.0),
                    l1: or(options.number(&["l1"], Range::NotNegative)?, 0.0),
                    l2: or(options.number(&["l2"], Range::NotNegative)?, 0.0),
                }
            }
            name => {
                return Err(ExitError::config(format!(
                    "--optimizer {name} is unknown; there are sgd, momentum, nesterov, adagrad, \
                     rmsprop, adam, adamw and ftrl"
                )));
            }
        };
        options.finish()?;
        Ok((rule, alpha))
    }

    /// As on the flag.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sgd => "sgd",
            Self::Momentum { .. } => "momentum",
            Self::Nesterov { .. } => "nesterov",
            Self::Adagrad { .. } => "adagrad",
            Self::Rmsprop { .. } => "rmsprop",
            Self::Adam(_) => "adam",
            Self::Adamw(_) => "adamw",
            Self::Ftrl { .. } => "ftrl",
        }
    }

    /// The numbers that it remembers of each element, by the letters of its formula.
    pub fn slots(&self) -> &'static [&'static str] {
        match self {
            Self::Sgd => &[],
            Self::Momentum { .. } | Self::Nesterov { .. } => &["v"],
            Self::Adagrad { .. } | Self::Rmsprop { .. } => &["n"],
            Self::Adam(_) | Self::Adamw(_) => &["m", "v"],
            Self::Ftrl { .. } => &["z", "n"],
        }
    }

    /// Makes slots of zeros what they are before the first step at `theta`.
    ///
    /// # Panics
    /// If lengths differ.
    pub fn start<T: Element>(&self, theta: &[T], [z, _]: Slots<'_, T>, step: &Step) {
        if let Some(step) = self.ftrl_step(step) {
            ftrl_start(theta, z, step);
        }
    }

    /// Moves theta and what is remembered of it by the gradient of the same keys. One loop over all of them,
    /// beside what was there: a copy first would be another pass, as would a look afterwards at whether
    /// all that it wrote is finite, which is what it gives.
    ///
    /// # Panics
    /// If lengths differ.
    pub fn step_from<T: Element>(
        &self,
        theta: Turn<'_, T>,
        gradient: &[T],
        slots: [Turn<'_, T>; SLOTS_MAX],
        step: &Step,
    ) -> bool {
        let lr = step.lr * step.factor;
        match *self {
            Self::Sgd => sgd_from(theta.0, theta.1, gradient, lr),
            Self::Momentum { mu } => {
                let [v, _] = slots;
                momentum(theta, gradient, v, (lr, mu))
            }
            Self::Nesterov { mu } => {
                let [v, _] = slots;
                nesterov(theta, gradient, v, (lr, mu))
            }
            Self::Adagrad { eps } => {
                let [n, _] = slots;
                adagrad(theta, gradient, n, (lr, eps))
            }
            Self::Rmsprop { rho, eps } => {
                let [n, _] = slots;
                rmsprop(theta, gradient, n, (lr, rho, eps))
            }
            Self::Adam(betas) => adam(theta, gradient, slots, betas.at(lr, step)),
            Self::Adamw(betas) => {
                let decay = if step.penalized { step.decay } else { 0.0 };
                adamw(theta, gradient, slots, betas.at(lr, step), decay)
            }
            Self::Ftrl { .. } => {
                let step = self.ftrl_step(step).expect("this is FTRL");
                ftrl(theta, gradient, slots, step)
            }
        }
    }

    /// As [`Rule::step_from`], in place.
    ///
    /// # Panics
    /// If lengths differ.
    pub fn step<T: Element>(
        &self,
        theta: &mut [T],
        gradient: &[T],
        mut slots: Slots<'_, T>,
        step: &Step,
    ) -> bool {
        const BLOCK: usize = 256;
        if let Self::Sgd = self {
            return sgd(theta, gradient, step.lr * step.factor);
        }
        let n_slots = self.slots().len();
        let (mut old, mut before) = ([T::ZERO; BLOCK], [[T::ZERO; BLOCK]; SLOTS_MAX]);
        let cut = gradient.chunks(BLOCK).zip((0..).step_by(BLOCK));
        let mut is_finite = true;
        assert_eq!(theta.len(), gradient.len());
        for (gradient, begin) in cut {
            let keys = begin..begin + gradient.len();
            let mut turns = slots
                .iter_mut()
                .zip(&mut before)
                .take(n_slots)
                .map(|(slot, before)| turn(&mut slot[keys.clone()], before));
            let turns = std::array::from_fn(|_| turns.next().unwrap_or_default());
            let theta = turn(&mut theta[keys.clone()], &mut old);
            is_finite &= self.step_from(theta, gradient, turns, step);
        }
        is_finite
    }

    fn ftrl_step(&self, step: &Step) -> Option<FtrlStep> {
        let Self::Ftrl { beta, l1, l2 } = *self else { return None };
        let (l1, l2) = if step.penalized { (l1, l2) } else { (0.0, 0.0) };
        Some(FtrlStep { alpha: step.lr, beta, l1, l2, weight: step.factor })
    }
}

/// `values` to be written, and as they are: copied into `copy`, which has room for more.
fn turn<'a, T: Element>(values: &'a mut [T], copy: &'a mut [T]) -> Turn<'a, T> {
    let copy = &mut copy[..values.len()];
    copy.copy_from_slice(values);
    (values, copy)
}

impl Betas {
    fn at(self, lr: f64, step: &Step) -> AdamStep {
        let Self { beta1, beta2, eps } = self;
        AdamStep { lr, beta1, beta2, eps, t: step.n_before.saturating_add(1) }
    }
}

impl fmt::Display for Rule {
    /// The options, each with a comma before it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sgd => Ok(()),
            Self::Momentum { mu } | Self::Nesterov { mu } => write!(f, ", mu={mu}"),
            Self::Adagrad { eps } => write!(f, ", eps={eps:e}"),
            Self::Rmsprop { rho, eps } => write!(f, ", rho={rho}, eps={eps:e}"),
            Self::Adam(Betas { beta1, beta2, eps }) | Self::Adamw(Betas { beta1, beta2, eps }) => {
                write!(f, ", beta1={beta1}, beta2={beta2}, eps={eps:e}")
            }
            Self::Ftrl { beta, l1, l2 } => write!(f, ", beta={beta}, l1={l1}, l2={l2}"),
        }
    }
}

//! How theta moves by a gradient: the rule, its rate over time, clipping, weight decay.

use ps_common::exit::ExitError;
use serde::Serialize;

use super::options::Range;
use super::rule::{Rule, Step};
use super::schedule::Schedule;

/// The rate where none is given.
pub const LR: f64 = 0.01;
/// AdamW's decay where none is given, as in torch: without any it would be Adam.
pub const ADAMW_DECAY: f64 = 0.01;

/// Everything that the size and direction of a step depend on, besides the gradient.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Optimizer {
    /// The update rule.
    pub rule: Rule,
    /// Learning rate of step 0 (of the peak, with a warm-up).
    pub lr: f64,
    /// The rate's course.
    pub schedule: Schedule,
    /// Penalised keys are drawn to 0 with this strength.
    pub weight_decay: f64,
    /// Longer gradients are cut to this L2 norm.
    pub clip_norm: Option<f64>,
}

/// What flags say of an optimizer; see [`Optimizer::new`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wish<'a> {
    /// `--optimizer`.
    pub optimizer: &'a str,
    /// `--lr`.
    pub lr: Option<f64>,
    /// `--lr-schedule`.
    pub schedule: &'a str,
    /// `--weight-decay`.
    pub weight_decay: Option<f64>,
    /// `--clip-norm`.
    pub clip_norm: Option<f64>,
}

impl Optimizer {
    /// Gradient descent at a constant rate.
    pub const fn sgd(lr: f64) -> Self {
        let (rule, schedule) = (Rule::Sgd, Schedule::Constant);
        Self { rule, lr, schedule, weight_decay: 0.0, clip_norm: None }
    }

    /// Checks a wish and gives defaults their values.
    ///
    /// # Errors
    /// A configuration error that names the flag and what exists.
    pub fn new(wish: &Wish<'_>) -> Result<Self, ExitError> {
        let (rule, alpha) = Rule::parse(wish.optimizer)?;
        check("--lr", wish.lr, Range::NotNegative)?;
        check("--weight-decay", wish.weight_decay, Range::NotNegative)?;
        check("--clip-norm", wish.clip_norm, Range::Positive)?;
        if let (Some(lr), Some(alpha)) = (wish.lr, alpha) {
            return Err(ExitError::config(format!(
                "--lr {lr} and --optimizer {} are the same rate twice: leave out --lr or \
                 alpha={alpha}",
                wish.optimizer
            )));
        }
        let lr = alpha.or(wish.lr).unwrap_or(LR);
        let schedule = Schedule::parse(wish.schedule, lr)?;
        let is_ftrl = matches!(rule, Rule::Ftrl { .. });
        if is_ftrl && wish.weight_decay.is_some() {
            return Err(ExitError::config(
                "--weight-decay has no meaning with --optimizer ftrl, which has an option l2 of \
                 its own",
            ));
        }
        if is_ftrl && schedule != Schedule::Constant {
            return Err(ExitError::config(format!(
                "--lr-schedule {schedule} has no meaning with --optimizer ftrl, which lowers the \
                 rate of each coordinate by itself"
            )));
        }
        if is_ftrl && lr == 0.0 {
            return Err(ExitError::config("--lr 0 with --optimizer ftrl: it must be above 0"));
        }
        let decay = if matches!(rule, Rule::Adamw(_)) { ADAMW_DECAY } else { 0.0 };
        let weight_decay = wish.weight_decay.unwrap_or(decay);
        Ok(Self { rule, lr, schedule, weight_decay, clip_norm: wish.clip_norm })
    }

    /// The rate of step `t`, theta's version before it.
    pub fn rate(&self, t: u64) -> f64 {
        self.schedule.rate(self.lr, t)
    }

    /// Weight decay that belongs into the gradient of penalised keys: `g += decay * theta`.
    pub fn gradient_decay(&self) -> Option<f64> {
        let coupled = !matches!(self.rule, Rule::Adamw(_)) && self.weight_decay > 0.0;
        coupled.then_some(self.weight_decay)
    }

    /// Whether it is descent along the gradient and no more than that: what is remembered is theta, and no
    /// gradient has to be known as a whole.
    pub fn is_plain(&self) -> bool {
        matches!(self.rule, Rule::Sgd) && self.clip_norm.is_none()
    }

    /// Whether an element whose gradient is 0 stays as it is, and what is remembered of it too, so that rows
    /// without a gradient need not be looked at. Of FTRL that is so up to rounding: an element is
    /// computed from what is remembered of it.
    pub fn leaves_zeros(&self) -> bool {
        let is_lazy = matches!(self.rule, Rule::Sgd | Rule::Adagrad { .. } | Rule::Ftrl { .. });
        is_lazy && self.gradient_decay().is_none() && self.clip_norm.is_none()
    }

    /// A step at rate `lr * factor`, after `n_before` others.
    pub fn at(&self, lr: f64, factor: f64, n_before: u64) -> Step {
        Step { lr, factor, decay: self.weight_decay, n_before, penalized: true }
    }
}

fn check(flag: &str, value: Option<f64>, range: Range) -> Result<(), ExitError> {
    match value {
        Some(value) if !(value.is_finite() && range.holds(value)) => {
            Err(ExitError::config(format!("{flag} is {value}; it must be {}", range.words())))
        }
        _ => Ok(()),
    }
}

impl std::fmt::Display for Optimizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, lr={}{}", self.rule.name(), self.lr, self.rule)?;
        if self.schedule != Schedule::Constant {
            write!(f, ", lr-schedule={}", self.schedule)?;
        }
        if self.weight_decay > 0.0 {
            write!(f, ", weight-decay={}", self.weight_decay)?;
        }
        match self.clip_norm {
            Some(norm) => write!(f, ", clip-norm={norm}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(optimizer: &str) -> Wish<'_> {
        Wish { optimizer, lr: None, schedule: "constant", weight_decay: None, clip_norm: None }
    }

    #[test]
    fn names_and_options_come_out_as_they_went_in() {
        for (text, shown) in [
            ("sgd", "sgd, lr=0.01"),
            ("momentum", "momentum, lr=0.01, mu=0.9"),
            ("momentum,momentum=0.5", "momentum, lr=0.01, mu=0.5"),
            ("nesterov,mu=0", "nesterov, lr=0.01, mu=0"),
            ("adagrad", "adagrad, lr=0.01, eps=1e-10"),
            ("rmsprop,alpha=0.9,eps=1e-6", "rmsprop, lr=0.01, rho=0.9, eps=1e-6"),
            ("adam", "adam, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8"),
            (
                "adamw,beta2=0.99",
                "adamw, lr=0.01, beta1=0.9, beta2=0.99, eps=1e-8, weight-decay=0.01",
            ),
            ("ftrl,alpha=0.1,l1=1,l2=2", "ftrl, lr=0.1, beta=1, l1=1, l2=2"),
        ] {
            assert_eq!(Optimizer::new(&wish(text)).expect(text).to_string(), shown);
        }
        let all = Wish {
            lr: Some(0.5),
            schedule: "cosine,steps=10",
            weight_decay: Some(1e-3),
            clip_norm: Some(2.0),
            ..wish("sgd")
        };
        assert_eq!(
            Optimizer::new(&all).expect("fine").to_string(),
            "sgd, lr=0.5, lr-schedule=cosine,steps=10,min=0, weight-decay=0.001, clip-norm=2"
        );
        assert_eq!(Optimizer::new(&wish("sgd")).expect("fine"), Optimizer::sgd(LR));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        let lr = |lr| Wish { lr: Some(lr), ..wish("sgd") };
        let ftrl = wish("ftrl,alpha=0.1");
        for (wish, named) in [
            (wish("lion"), "--optimizer lion is unknown"),
            (wish("sgd,mu=1"), "`mu=1`"),
            (wish("adam,rho=0.9"), "`rho=0.9`"),
            (wish("adam,beta1=1"), "beta1 is `1`"),
            (wish("ftrl,alpha=0"), "alpha is `0`"),
            (lr(f64::NAN), "--lr"),
            (lr(-1.0), "--lr is -1"),
            (Wish { lr: Some(0.1), ..ftrl }, "--lr 0.1 and --optimizer ftrl,alpha=0.1"),
            (Wish { lr: Some(0.0), ..wish("ftrl") }, "--lr 0"),
            (Wish { weight_decay: Some(0.0), ..ftrl }, "--weight-decay"),
            (Wish { weight_decay: Some(-1.0), ..wish("sgd") }, "--weight-decay is -1"),
            (Wish { clip_norm: Some(0.0), ..wish("sgd") }, "--clip-norm is 0"),
            (Wish { schedule: "inv-sqrt", ..ftrl }, "--lr-schedule inv-sqrt"),
            (Wish { schedule: "x", ..wish("sgd") }, "--lr-schedule x"),
        ] {
            let error = Optimizer::new(&wish).expect_err(named);
            assert!(error.message.contains(named), "{error}");
        }
    }
}

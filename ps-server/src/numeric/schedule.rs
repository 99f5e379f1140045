//! The learning rate as a function of the step.
//!
//! A step t is the version of theta before the update, from 0. Pure: a job that is continued at a
//! version has the rate that it would have had.

use std::f64::consts::PI;
use std::fmt;

use ps_common::exit::ExitError;
use serde::Serialize;

use super::options::{Options, Range};

const FLAG: &str = "--lr-schedule";

/// How the rate goes on from `lr`, the rate of `--lr`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum Schedule {
    /// `lr`.
    Constant,
    /// `lr * gamma^floor(t / every)`.
    Step {
        /// Steps between two changes.
        every: u64,
        /// Factor of a change.
        gamma: f64,
    },
    /// `lr * rate^(t / decay_steps)`, with a real exponent.
    Exponential {
        /// Factor in `decay_steps` steps.
        rate: f64,
        /// 1 makes `rate` the factor of a step.
        decay_steps: u64,
    },
    /// `min + (lr - min) * (1 + cos(pi * min(t, steps) / steps)) / 2`; with restarts
    /// `min + (lr - min) * (1 + cos(pi * t_i / T_i)) / 2` where t_i counts from 0 in period i, and
    /// T_i = `steps` * mult^i is its length. Loshchilov and Hutter 2017, equation 5.
    Cosine {
        /// Of the way down; of the first period.
        steps: u64,
        /// Where it ends.
        min: f64,
        /// A period's length over the one before it; `None`: no restarts.
        mult: Option<u64>,
    },
    /// `lr * (t + 1) / warmup` for t < `warmup`, so from `lr / warmup` up to `lr` at `warmup` - 1;
    /// then the cosine from `lr` at t = `warmup` down to `min` at t = `steps` and after.
    WarmupCosine {
        /// Steps of the way up.
        warmup: u64,
        /// Of both ways.
        steps: u64,
        /// Where it ends.
        min: f64,
    },
    /// `lr * min(sqrt(warmup / (t + 1)), (t + 1) / warmup)`: up to `lr` at t = `warmup` - 1, then
    /// down; with a warm-up of 1 `lr / sqrt(t + 1)`. Vaswani et al. 2017, section 5.3.
    InvSqrt {
        /// Steps of the way up; 1: none.
        warmup: u64,
    },
}

impl Schedule {
    /// Reads `--lr-schedule NAME[,option=value]` for a rate of `lr`.
    ///
    /// # Errors
    /// A configuration error that names the flag and what exists.
    pub fn parse(text: &str, lr: f64) -> Result<Self, ExitError> {
        let mut options = Options::parse(FLAG, text)?;
        let schedule = match options.name() {
            "constant" => Self::Constant,
            "step" => {
                let (every, gamma) =
                    (options.count("every")?, options.number(&["gamma"], Range::Positive)?);
                let example = ",every=100,gamma=0.5";
                Self::Step {
                    every: options.required(every, example)?,
                    gamma: options.required(gamma, example)?,
                }
            }
            "exponential" => exponential(&mut options)?,
            "cosine" => {
                let (steps, min) = (options.count("steps")?, minimum(&mut options, lr)?);
                let mult = options.count("mult")?;
                Self::Cosine { steps: options.required(steps, ",steps=1000")?, min, mult }
            }
            "warmup-cosine" => {
                let (warmup, steps) = (options.count("warmup")?, options.count("steps")?);
                let min = minimum(&mut options, lr)?;
                let example = ",warmup=100,steps=1000";
                let warmup = options.required(warmup, example)?;
                let steps = options.required(steps, example)?;
                if steps <= warmup {
                    return Err(options.refuse(&format!(
                        "steps={steps} includes the {warmup} of the warm-up; it must be more"
                    )));
                }
                Self::WarmupCosine { warmup, steps, min }
            }
            "inv-sqrt" => Self::InvSqrt { warmup: options.count("warmup")?.unwrap_or(1) },
            name => {
                return Err(ExitError::config(format!(
                    "{FLAG} {name} is unknown; there are constant, step, exponential, cosine, \
                     warmup-cosine and inv-sqrt"
                )));
            }
        };
        options.finish()?;
        Ok(schedule)
    }

    /// The rate of step `t`.
    pub fn rate(&self, lr: f64, t: u64) -> f64 {
        match *self {
            Self::Constant => lr,
            Self::Step { every, gamma } => lr * gamma.powf((t / every) as f64),
            Self::Exponential { rate, decay_steps } => {
                lr * rate.powf(t as f64 / decay_steps as f64)
            }
            Self::Cosine { steps, min, mult: None } => cosine(lr, min, t.min(steps), steps),
            Self::Cosine { steps, min, mult: Some(mult) } => {
                let (t, steps) = period(t, steps, mult);
                cosine(lr, min, t, steps)
            }
            Self::WarmupCosine { warmup, .. } if t < warmup => {
                lr * ((t + 1) as f64 / warmup as f64)
            }
            Self::WarmupCosine { warmup, steps, min } => {
                let rest = steps - warmup;
                cosine(lr, min, (t - warmup).min(rest), rest)
            }
            Self::InvSqrt { warmup } => {
                let (warmup, step) = (warmup as f64, t as f64 + 1.0);
                lr * (warmup / step).sqrt().min(step / warmup)
            }
        }
    }
}

fn exponential(options: &mut Options<'_>) -> Result<Schedule, ExitError> {
    let gamma = options.number(&["gamma"], Range::Positive)?;
    let rate = options.number(&["rate"], Range::Positive)?;
    let decay_steps = options.count("decay-steps")?;
    match (gamma, rate, decay_steps) {
        (Some(gamma), None, None) => Ok(Schedule::Exponential { rate: gamma, decay_steps: 1 }),
        (None, Some(rate), Some(decay_steps)) => Ok(Schedule::Exponential { rate, decay_steps }),
        _ => Err(options.refuse(
            "say either gamma, the factor of every step, or rate and decay-steps, the factor of \
             so many",
        )),
    }
}

fn minimum(options: &mut Options<'_>, lr: f64) -> Result<f64, ExitError> {
    let min = options.number(&["min"], Range::NotNegative)?.unwrap_or(0.0);
    if min > lr {
        return Err(
            options.refuse(&format!("min={min} is above the rate that it begins with, {lr}"))
        );
    }
    Ok(min)
}

/// Half a wave from `lr` at 0 down to `min` at `steps`.
fn cosine(lr: f64, min: f64, t: u64, steps: u64) -> f64 {
    min + (lr - min) * (1.0 + (PI * t as f64 / steps as f64).cos()) / 2.0
}

/// Where step `t` is in its period, and how long that is.
fn period(t: u64, first: u64, mult: u64) -> (u64, u64) {
    if mult == 1 {
        return (t % first, first);
    }
    let (mut t, mut length) = (t, first);
    while t >= length {
        t -= length;
        length = length.saturating_mul(mult);
    }
    (t, length)
}

impl fmt::Display for Schedule {
    /// As the flag takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Constant => f.write_str("constant"),
            Self::Step { every, gamma } => write!(f, "step,every={every},gamma={gamma}"),
            Self::Exponential { rate, decay_steps: 1 } => write!(f, "exponential,gamma={rate}"),
            Self::Exponential { rate, decay_steps } => {
                write!(f, "exponential,rate={rate},decay-steps={decay_steps}")
            }
            Self::Cosine { steps, min, mult } => {
                write!(f, "cosine,steps={steps},min={min}")?;
                mult.map_or(Ok(()), |mult| write!(f, ",mult={mult}"))
            }
            Self::WarmupCosine { warmup, steps, min } => {
                write!(f, "warmup-cosine,warmup={warmup},steps={steps},min={min}")
            }
            Self::InvSqrt { warmup } => write!(f, "inv-sqrt,warmup={warmup}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn rates(text: &str, lr: f64, steps: impl Iterator<Item = u64>) -> Vec<f64> {
        let schedule = Schedule::parse(text, lr).expect(text);
        assert_eq!(Schedule::parse(&schedule.to_string(), lr).expect("its own text"), schedule);
        steps.map(|t| schedule.rate(lr, t)).collect()
    }

    #[track_caller]
    fn assert_close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (t, (got, want)) in got.iter().zip(want).enumerate() {
            assert!((got - want).abs() <= 1e-12 * want.abs(), "step {t}: {got}, not {want}");
        }
    }

    #[test]
    fn as_in_the_golden_file() {
        let text = include_str!("../../../tests/golden/schedules_public.json");
        let golden: serde_json::Value = serde_json::from_str(text).expect("JSON");
        for (name, flag) in [
            ("constant", "constant"),
            ("exponential", "exponential,gamma=0.9"),
            ("exponential_decay_steps", "exponential,rate=0.5,decay-steps=5"),
            ("cosine", "cosine,steps=20,min=0.001"),
            ("cosine_T10_clamped", "cosine,steps=10"),
        ] {
            let want = &golden["schedules"][name];
            let values: Vec<f64> = serde_json::from_value(want["values"].clone()).expect("numbers");
            let lr = want["lr0"].as_f64().expect("a number");
            assert_eq!(values.len(), 21);
            assert_close(&rates(flag, lr, 0..21), &values);
        }
    }

    #[test]
    fn steps_are_stairs() {
        let got = rates("step,every=3,gamma=0.5", 8.0, 0..8);
        assert_close(&got, &[8.0, 8.0, 8.0, 4.0, 4.0, 4.0, 2.0, 2.0]);
    }

    #[test]
    fn cosines_begin_anew() {
        let once = rates("cosine,steps=4,min=1", 3.0, 0..4);
        let equal = rates("cosine,steps=4,min=1,mult=1", 3.0, 0..12);
        assert_close(&equal, &[&once[..], &once, &once].concat());
        // Periods of 4, 8 and 16 steps.
        let longer = rates("cosine,steps=4,min=1,mult=2", 3.0, 0..28);
        assert_close(&longer[..4], &once);
        assert_close(&longer[4..12], &rates("cosine,steps=8,min=1", 3.0, 0..8));
        assert_close(&longer[12..], &rates("cosine,steps=16,min=1", 3.0, 0..16));
        assert_eq!(rates("cosine,steps=1,mult=2", 3.0, [u64::MAX].into_iter()).len(), 1);
    }

    #[test]
    fn a_warm_up_goes_up_in_equal_steps_and_then_down() {
        let got = rates("warmup-cosine,warmup=4,steps=10,min=0.5", 2.0, 0..12);
        assert_close(&got[..5], &[0.5, 1.0, 1.5, 2.0, 2.0]);
        assert_close(&got[4..], &rates("cosine,steps=6,min=0.5", 2.0, 0..8));
        assert_close(&got[10..], &[0.5, 0.5]);
    }

    #[test]
    fn inverse_square_roots() {
        let got = rates("inv-sqrt", 1.0, [0, 3, 8, 99].into_iter());
        assert_close(&got, &[1.0, 0.5, 1.0 / 3.0, 0.1]);
        let got = rates("inv-sqrt,warmup=4", 1.0, [0, 1, 3, 15].into_iter());
        assert_close(&got, &[0.25, 0.5, 1.0, 0.5]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, named) in [
            ("linear", "warmup-cosine"),
            ("constant,gamma=1", "gamma=1"),
            ("step,every=3", "gamma"),
            ("step,every=0,gamma=1", "every is `0`"),
            ("exponential", "gamma"),
            ("exponential,gamma=0.9,rate=0.5", "either"),
            ("exponential,rate=0.5", "decay-steps"),
            ("cosine,min=0", "steps"),
            ("cosine,steps=3,min=7", "min=7"),
            ("cosine,steps=3,warmup=7", "warmup=7"),
            ("warmup-cosine,warmup=3,steps=3", "steps=3"),
            ("inv-sqrt,warmup=-1", "warmup is `-1`"),
        ] {
            let error = Schedule::parse(text, 0.1).expect_err(text);
            assert!(error.message.starts_with("--lr-schedule "), "{error}");
            assert!(error.message.contains(named), "{text}: {error}");
        }
    }
}

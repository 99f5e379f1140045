//! How long a gradient takes: distributions, stragglers, slow workers; drawn from a seed for each
//! worker.
//!
//! A worker's draws depend on its rank, the seed and how many it has made before, and on nothing
//! that others do.

use std::time::Duration;

use ps_common::exit::ExitError;
use ps_common::units::parse_duration;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Longer times are cut: virtual time must not overflow.
const LONGEST_SECONDS: f64 = 1e9;

/// What `--compute-time` says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Distribution {
    /// Always the same.
    Constant { seconds: f64 },
    /// Between two bounds, each time as likely.
    Uniform { min: f64, max: f64 },
    /// exp(N(ln median, sigma^2)).
    LogNormal { median: f64, sigma: f64 },
    /// Of a mean.
    Exponential { mean: f64 },
}

/// What the times of `--compute-time` are times of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// A gradient, however many rows it is over: each worker has its own rows
    Step,
    /// A row of a gradient: workers share the rows, so more of them have less to do each
    Row,
}

/// Single steps that take longer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stragglers {
    /// Probability of each step to be one.
    pub(super) share: f64,
    /// How many times as long it takes.
    pub(super) factor: f64,
}

/// The compute times of all workers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pace {
    pub(super) distribution: Distribution,
    pub(super) per: Per,
    pub(super) stragglers: Option<Stragglers>,
    /// (rank, factor).
    pub(super) slow: Vec<(u32, f64)>,
}

/// One worker's random numbers.
#[derive(Debug, Clone)]
pub(super) struct Draws(ChaCha8Rng);

impl Draws {
    /// Of `rank` in a simulation of seed `sim_seed`.
    pub(super) fn of(sim_seed: u64, rank: u32) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&sim_seed.to_le_bytes());
        key[8..12].copy_from_slice(&rank.to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in 0 to 1, without 0.
    fn unit(&mut self) -> f64 {
        1.0 - self.0.random::<f64>()
    }

    /// Standard normal, by Box and Muller 1958, "A Note on the Generation of Random Normal
    /// Deviates".
    fn normal(&mut self) -> f64 {
        let (u, v) = (self.unit(), self.unit());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

impl Pace {
    /// How long the next gradient of `rank`, over `n_rows` rows, takes when nothing else slows it.
    pub(super) fn draw(&self, draws: &mut Draws, rank: u32, n_rows: u64) -> f64 {
        let mut seconds = match self.distribution {
            Distribution::Constant { seconds } => seconds,
            Distribution::Uniform { min, max } => min + (max - min) * draws.unit(),
            Distribution::LogNormal { median, sigma } => median * (sigma * draws.normal()).exp(),
            Distribution::Exponential { mean } => -mean * draws.unit().ln(),
        };
        if self.per == Per::Row {
            seconds *= n_rows as f64;
        }
        if let Some(Stragglers { share, factor }) = self.stragglers
            && draws.unit() <= share
        {
            seconds *= factor;
        }
        self.slow
            .iter()
            .filter(|(slow, _)| *slow == rank)
            .fold(seconds, |s, (_, factor)| s * factor)
    }
}

/// Seconds as virtual time, to the nanosecond.
pub(super) fn span(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, LONGEST_SECONDS))
}

impl Distribution {
    /// Reads `constant=10ms`, `uniform=5ms..15ms`, `log-normal,median=10ms,sigma=0.5` or
    /// `exponential,mean=10ms`.
    ///
    /// # Errors
    /// Configuration, naming the flag and what there is.
    pub(super) fn parse(text: &str) -> Result<Self, ExitError> {
        let refuse = |what: String| ExitError::config(format!("--compute-time {text}: {what}"));
        let duration = |text: &str| parse_duration(text).map(|d| d.as_secs_f64()).map_err(refuse);
        if let Some(time) = text.strip_prefix("constant=") {
            return Ok(Self::Constant { seconds: duration(time)? });
        }
        if let Some(bounds) = text.strip_prefix("uniform=") {
            let (min, max) = bounds
                .split_once("..")
                .ok_or_else(|| refuse("uniform wants two bounds, as in 5ms..15ms".to_owned()))?;
            let (min, max) = (duration(min)?, duration(max)?);
            if min > max {
                return Err(refuse("the lower bound is above the upper one".to_owned()));
            }
            return Ok(Self::Uniform { min, max });
        }
        let (name, options) = text.split_once(',').unwrap_or((text, ""));
        match name {
            "log-normal" => {
                let [median, sigma] = named(options, ["median", "sigma"]).map_err(&refuse)?;
                let sigma = sigma
                    .parse()
                    .ok()
                    .filter(|sigma: &f64| (0.0..=20.0).contains(sigma))
                    .ok_or_else(|| {
                    refuse(format!("sigma is a number from 0 to 20, not {sigma}"))
                })?;
                Ok(Self::LogNormal { median: duration(median)?, sigma })
            }
            "exponential" => {
                let [mean] = named(options, ["mean"]).map_err(&refuse)?;
                Ok(Self::Exponential { mean: duration(mean)? })
            }
            _ => Err(refuse(
                "there are constant=TIME, uniform=MIN..MAX, log-normal,median=TIME,sigma=F and \
                 exponential,mean=TIME"
                    .to_owned(),
            )),
        }
    }
}

impl Stragglers {
    /// Reads `share=0.02,factor=10`.
    ///
    /// # Errors
    /// Configuration, naming the flag.
    pub(super) fn parse(text: &str) -> Result<Self, ExitError> {
        let refuse = |what: String| ExitError::config(format!("--stragglers {text}: {what}"));
        let [share, factor] = named(text, ["share", "factor"]).map_err(&refuse)?;
        let share = share
            .parse()
            .ok()
            .filter(|share: &f64| (0.0..=1.0).contains(share))
            .ok_or_else(|| refuse(format!("share is a number from 0 to 1, not {share}")))?;
        let factor = parse_factor(factor).map_err(refuse)?;
        Ok(Self { share, factor })
    }
}

/// Reads `RANK=FACTOR` of `--slow-worker`.
///
/// # Errors
/// Configuration, naming the flag.
pub(super) fn parse_slow_worker(text: &str) -> Result<(u32, f64), ExitError> {
    let refuse = |what: String| ExitError::config(format!("--slow-worker {text}: {what}"));
    let (rank, factor) =
        text.split_once('=').ok_or_else(|| refuse("expected RANK=FACTOR, e.g. 3=10".to_owned()))?;
    let rank = rank.trim().parse().map_err(|_| refuse(format!("`{rank}` is no rank")))?;
    Ok((rank, parse_factor(factor.trim()).map_err(refuse)?))
}

/// A factor above 0.
pub(super) fn parse_factor(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|factor: &f64| factor.is_finite() && *factor > 0.0)
        .ok_or_else(|| format!("a factor is a number above 0, not `{text}`"))
}

/// The values of exactly these `name=value` pairs, in this order, however they are given.
pub(super) fn named<'a, const N: usize>(
    text: &'a str,
    names: [&str; N],
) -> Result<[&'a str; N], String> {
    let mut values = [None; N];
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) =
            part.split_once('=').ok_or_else(|| format!("`{part}` is not NAME=VALUE"))?;
        let at = names
            .iter()
            .position(|known| *known == name.trim())
            .ok_or_else(|| format!("there is no `{}`, only {}", name.trim(), names.join(", ")))?;
        if values[at].replace(value.trim()).is_some() {
            return Err(format!("`{}` is given twice", name.trim()));
        }
    }
    if let Some(at) = values.iter().position(Option::is_none) {
        return Err(format!("`{}=` is missing", names[at]));
    }
    Ok(values.map(|value| value.expect("none is missing")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(text: &str) -> Pace {
        let distribution = Distribution::parse(text).expect(text);
        Pace { distribution, per: Per::Step, stragglers: None, slow: Vec::new() }
    }

    fn mean(pace: &Pace, n: u32) -> f64 {
        let mut draws = Draws::of(1, 0);
        (0..n).map(|_| pace.draw(&mut draws, 0, 1)).sum::<f64>() / f64::from(n)
    }

    #[test]
    fn distributions_have_the_means_that_they_say() {
        for (text, expected) in [
            ("constant=10ms", 0.010),
            ("uniform=5ms..15ms", 0.010),
            ("exponential,mean=20ms", 0.020),
            // exp(mu + sigma^2 / 2).
            ("log-normal,median=10ms,sigma=0.5", 0.010 * (0.125f64).exp()),
        ] {
            let got = mean(&pace(text), 20_000);
            assert!((got / expected - 1.0).abs() < 0.02, "{text}: {got}");
        }
    }

    #[test]
    fn stragglers_slow_workers_and_rows_multiply() {
        let mut pace = pace("constant=1s");
        pace.stragglers = Some(Stragglers::parse("share=0.02,factor=10").expect("valid"));
        assert!((mean(&pace, 50_000) - 1.18).abs() < 0.02);
        pace.stragglers = None;
        pace.slow = vec![parse_slow_worker("3=4").expect("valid")];
        pace.per = Per::Row;
        let mut draws = Draws::of(1, 3);
        assert_eq!((pace.draw(&mut draws, 3, 5), pace.draw(&mut draws, 2, 5)), (20.0, 5.0));
    }

    #[test]
    fn draws_depend_on_seed_and_rank_alone() {
        let draw = |seed, rank| Draws::of(seed, rank).unit();
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for text in [
            "",
            "gauss",
            "constant=",
            "constant=3 days",
            "uniform=5ms",
            "uniform=5ms..1ms",
            "log-normal",
            "log-normal,median=1s",
            "log-normal,median=1s,sigma=-1",
            "exponential,mean=1s,mean=2s",
            "exponential,rate=3",
        ] {
            let error = Distribution::parse(text).expect_err(text);
            assert!(error.message.starts_with("--compute-time"), "{error}");
        }
        for text in ["", "share=2,factor=1", "share=0.1", "share=0.1,factor=0"] {
            assert!(Stragglers::parse(text).is_err(), "{text}");
        }
        for text in ["", "1", "x=2", "1=-2", "1=inf"] {
            assert!(parse_slow_worker(text).is_err(), "{text}");
        }
    }
}

//! What `--model` can say: maps, losses and their options, spelt and parsed.
//!
//! Owns names, defaults and ranges. Knows no data: widths and targets are checked by the model.

use std::fmt;
use std::str::FromStr;

use super::loss::RowLoss;

/// A model: how scores come about, and what they cost.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelKind {
    /// From a row to its scores.
    pub map: MapKind,
    /// From scores and target to a loss.
    pub loss: RowLoss,
}

/// A map from rows to scores.
#[derive(Debug, Clone, PartialEq)]
pub enum MapKind {
    /// `X W + b`.
    Linear,
    /// Layers of units.
    Mlp {
        /// Units of each hidden layer, from the rows on.
        hidden: Vec<usize>,
        /// Of hidden units.
        activation: Activation,
    },
    /// Factorization machine.
    Fm {
        /// Length of the vector that each feature has.
        n_factors: usize,
        /// Standard deviation of these vectors' elements at the start.
        init_std: f64,
    },
}

/// What a hidden unit makes of its sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `max(a, 0)`.
    Relu,
    /// `tanh(a)`.
    Tanh,
}

/// What `--model` says: softmax may leave its classes to the data.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelChoice {
    /// From a row to its scores.
    pub map: MapKind,
    /// `None`: softmax over as many classes as the targets name.
    pub loss: Option<RowLoss>,
}

/// Classes that softmax may have.
pub(super) const CLASSES_MAX: usize = 1 << 24;
const HIDDEN_LAYERS_MAX: usize = 64;
const UNITS_MAX: usize = 1 << 20;
const FACTORS_MAX: usize = 1 << 16;

const HIDDEN_DEFAULT: usize = 32;
const FACTORS_DEFAULT: usize = 8;
const INIT_STD_DEFAULT: f64 = 0.01;

impl MapKind {
    /// Whether the model has a bias where nobody says so: a hidden layer needs one, and the
    /// factorization machine's definition has it; linear maps have it on demand.
    pub fn has_bias_by_default(&self) -> bool {
        !matches!(self, Self::Linear)
    }
}

impl fmt::Display for ModelKind {
    /// As `--model` takes it, every option said.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.map {
            MapKind::Linear => return f.write_str(&loss_name(self.loss, "linear")),
            MapKind::Mlp { hidden, activation } => {
                let hidden: Vec<String> = hidden.iter().map(usize::to_string).collect();
                write!(f, "mlp,hidden={},activation={activation}", hidden.join("x"))?;
            }
            MapKind::Fm { n_factors, init_std } => {
                write!(f, "fm,factors={n_factors},init-std={init_std}")?;
            }
        }
        write!(f, ",loss={}", loss_name(self.loss, "squared"))
    }
}

fn loss_name(loss: RowLoss, squared: &str) -> String {
    match loss {
        RowLoss::Squared => squared.to_owned(),
        RowLoss::Logistic => "logistic".to_owned(),
        RowLoss::Softmax { n_classes } => format!("softmax,classes={n_classes}"),
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relu => "relu",
            Self::Tanh => "tanh",
        })
    }
}

/// The options after a model's name, taken one by one.
struct Options<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Options<'a> {
    fn parse(parts: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut given: Vec<(&str, &str)> = Vec::new();
        for option in parts {
            let Some((key, value)) = option.split_once('=') else {
                return Err(format!("`{option}` is not of the form OPTION=VALUE"));
            };
            let (key, value) = (key.trim(), value.trim());
            if given.iter().any(|(before, _)| *before == key) {
                return Err(format!("`{key}` is given twice"));
            }
            given.push((key, value));
        }
        Ok(Self(given))
    }

    fn take(&mut self, key: &str) -> Option<&'a str> {
        let at = self.0.iter().position(|(given, _)| *given == key)?;
        Some(self.0.remove(at).1)
    }

    /// A whole number of at least `min`.
    fn whole(&mut self, key: &str, min: usize, max: usize) -> Result<Option<usize>, String> {
        self.take(key).map(|value| whole(key, value, min, max)).transpose()
    }

    /// The loss that `loss=` and `classes=` say; `None` in it: softmax with its classes open.
    fn loss(&mut self, default: &str, possible: &[&str]) -> Result<Option<RowLoss>, String> {
        let name = self.take("loss").unwrap_or(default);
        if !possible.contains(&name) {
            return Err(format!("loss is one of {}, not `{name}`", possible.join(", ")));
        }
        let classes = self.take("classes");
        match name {
            "softmax" => {
                let n_classes = classes.map(|value| whole("classes", value, 2, CLASSES_MAX));
                Ok(n_classes.transpose()?.map(|n_classes| RowLoss::Softmax { n_classes }))
            }
            _ if classes.is_some() => Err(format!("classes goes with softmax, not with {name}")),
            "logistic" => Ok(Some(RowLoss::Logistic)),
            _ => Ok(Some(RowLoss::Squared)),
        }
    }

    /// Nothing must be left but these.
    fn finish(self, model: &str, known: &str) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) if known.is_empty() => {
                Err(format!("{model} has no options, so not `{key}` either"))
            }
            Some((key, _)) => Err(format!("{model} has no option `{key}`, only {known}")),
        }
    }
}

fn whole(key: &str, value: &str, min: usize, max: usize) -> Result<usize, String> {
    match value.parse() {
        Ok(n) if (min..=max).contains(&n) => Ok(n),
        _ => Err(format!("{key} is a whole number from {min} to {max}, not `{value}`")),
    }
}

fn hidden(value: &str) -> Result<Vec<usize>, String> {
    let layers: Vec<usize> = value
        .split('x')
        .map(|units| whole("hidden", units.trim(), 1, UNITS_MAX))
        .collect::<Result<_, _>>()
        .map_err(|what| format!("{what}, one for each hidden layer, as in hidden=64x32"))?;
    if layers.len() > HIDDEN_LAYERS_MAX {
        return Err(format!(
            "{} hidden layers, at most {HIDDEN_LAYERS_MAX} are possible",
            layers.len()
        ));
    }
    Ok(layers)
}

impl FromStr for ModelChoice {
    type Err = String;

    /// `NAME[,OPTION=VALUE...]`; the error names the option, not the flag.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let (map, loss, options, known) = match name {
            "linear" => (MapKind::Linear, Some(RowLoss::Squared), Options::parse(parts)?, ""),
            "logistic" => (MapKind::Linear, Some(RowLoss::Logistic), Options::parse(parts)?, ""),
            "softmax" => {
                let mut options = Options::parse(parts)?;
                let loss = options.loss("softmax", &["softmax"])?;
                (MapKind::Linear, loss, options, "classes=C")
            }
            "mlp" => {
                let mut options = Options::parse(parts)?;
                let map = mlp(&mut options)?;
                let loss = options.loss("softmax", &["softmax", "squared", "logistic"])?;
                (map, loss, options, "hidden, activation, loss, classes")
            }
            "fm" => {
                let mut options = Options::parse(parts)?;
                let map = fm(&mut options)?;
                let loss = options.loss("squared", &["squared", "logistic"])?;
                (map, loss, options, "factors, loss, init-std")
            }
            _ => {
                return Err(format!(
                    "model `{name}` is unknown; there are linear, logistic, softmax, mlp and fm"
                ));
            }
        };
        options.finish(name, known)?;
        Ok(Self { map, loss })
    }
}

fn mlp(options: &mut Options<'_>) -> Result<MapKind, String> {
    let hidden = options.take("hidden").map(hidden).transpose()?;
    let activation = match options.take("activation") {
        None | Some("relu") => Activation::Relu,
        Some("tanh") => Activation::Tanh,
        Some(other) => return Err(format!("activation is relu or tanh, not `{other}`")),
    };
    Ok(MapKind::Mlp { hidden: hidden.unwrap_or_else(|| vec![HIDDEN_DEFAULT]), activation })
}

fn fm(options: &mut Options<'_>) -> Result<MapKind, String> {
    let n_factors = options.whole("factors", 1, FACTORS_MAX)?.unwrap_or(FACTORS_DEFAULT);
    let init_std = match options.take("init-std") {
        None => INIT_STD_DEFAULT,
        Some(value) => value
            .parse()
            .ok()
            .filter(|std| (f64::MIN_POSITIVE..=1e6).contains(std))
            .ok_or_else(|| {
                format!(
                    "init-std is a number above 0 and at most 1e6 (at 0 the factors would never \
                     move), not `{value}`"
                )
            })?,
    };
    Ok(MapKind::Fm { n_factors, init_std })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_reads_back_from_its_own_words() {
        for (text, words) in [
            ("linear", "linear"),
            ("logistic", "logistic"),
            ("softmax, classes = 10", "softmax,classes=10"),
            ("mlp,classes=3", "mlp,hidden=32,activation=relu,loss=softmax,classes=3"),
            (
                "mlp,hidden=64x32,activation=tanh,loss=squared",
                "mlp,hidden=64x32,activation=tanh,loss=squared",
            ),
            ("mlp,loss=logistic,hidden=5", "mlp,hidden=5,activation=relu,loss=logistic"),
            ("fm", "fm,factors=8,init-std=0.01,loss=squared"),
            ("fm,loss=logistic,factors=2,init-std=0.5", "fm,factors=2,init-std=0.5,loss=logistic"),
        ] {
            let choice: ModelChoice = text.parse().expect(text);
            let loss = choice.loss.expect("nothing open");
            let kind = ModelKind { map: choice.map.clone(), loss };
            assert_eq!(kind.to_string(), words);
            assert_eq!(words.parse(), Ok(choice));
        }
        assert_eq!("softmax".parse::<ModelChoice>().expect("fine").loss, None);
        assert_eq!("mlp".parse::<ModelChoice>().expect("fine").loss, None);
    }

    #[test]
    fn options_that_make_no_sense_are_refused_by_name() {
        for (text, says) in [
            ("svm", "`svm` is unknown; there are linear, logistic, softmax, mlp and fm"),
            ("", "`` is unknown"),
            ("linear,classes=2", "linear has no options, so not `classes`"),
            ("logistic,c=2", "logistic has no options, so not `c`"),
            ("softmax,10", "`10` is not of the form"),
            ("softmax,classes=1", "classes is a whole number from 2 to"),
            ("softmax,classes=-3", "from 2 to"),
            ("softmax,classes=x", "not `x`"),
            ("softmax,classes=2,classes=3", "`classes` is given twice"),
            ("softmax,hidden=3", "no option `hidden`, only classes=C"),
            ("softmax,loss=squared", "loss is one of softmax, not `squared`"),
            ("mlp,hidden=", "hidden is a whole number from 1 to 1048576, not ``"),
            ("mlp,hidden=64x0", "not `0`, one for each hidden layer"),
            ("mlp,hidden=64x", "not ``"),
            ("mlp,activation=gelu", "activation is relu or tanh, not `gelu`"),
            ("mlp,loss=hinge", "loss is one of softmax, squared, logistic, not `hinge`"),
            ("mlp,loss=squared,classes=3", "classes goes with softmax, not with squared"),
            ("mlp,factors=3", "mlp has no option `factors`, only hidden"),
            ("fm,factors=0", "factors is a whole number from 1 to"),
            ("fm,loss=softmax", "loss is one of squared, logistic, not `softmax`"),
            ("fm,init-std=0", "init-std is a number above 0"),
            ("fm,init-std=NaN", "not `NaN`"),
            ("fm,hidden=3", "fm has no option `hidden`, only factors"),
        ] {
            let what = text.parse::<ModelChoice>().expect_err(text);
            assert!(what.contains(says), "{text}: {what}");
        }
        let deep = format!("mlp,hidden={}", vec!["2"; 65].join("x"));
        let what = deep.parse::<ModelChoice>().expect_err("too deep");
        assert!(what.contains("65 hidden layers, at most 64"), "{what}");
    }
}

//! `psctl predict`: an exported theta applied to a data file. No server, no network.

use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use ps_common::Dtype;
use ps_common::exit::{Exit, ExitError};
use ps_common::export::{Format, check_creatable, write_atomically, write_theta};
use ps_common::import::{Imported, read_theta};
use ps_common::tables::{Table, Tables};
use ps_worker::data::DataArgs;
use ps_worker::model::{ModelArgs, Real};
use ps_worker::prediction::{Predicted, Predictor, Question, Training};

use crate::cli::print;

const EXAMPLES: &str = "\
Examples:
  psctl local --data iris.csv --model softmax --bias --theta-out theta.safetensors
  psctl predict --data iris.csv --model softmax --bias --theta theta.safetensors
  psctl predict --data new.csv --unlabelled --model mlp,hidden=8,classes=3 --theta theta.csv --proba
  psctl predict --data new.csv --scale standard --train-data iris.csv --model softmax --theta theta.npy

Give model and data flags as in training. Predictions go to stdout, one line a row after a header, or
to --out; what targets make of them goes to stderr. A theta in .csv is taken as f64.";

/// Applies an exported theta to a data file
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PredictArgs {
    /// File that holds theta, as --theta-out and `psctl export` write it
    #[arg(long, env = "PS_THETA", value_name = "FILE")]
    theta: PathBuf,
    /// File that gets the predictions (.csv or .npy) [default: CSV to stdout]
    #[arg(long, env = "PS_OUT", value_name = "FILE")]
    out: Option<PathBuf>,
    /// The probability of each class, a column each, and not the class
    #[arg(long, env = "PS_PROBA", value_name = "BOOL", default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    proba: bool,
    /// The rows have no targets: every column is a feature
    #[arg(long, env = "PS_UNLABELLED", value_name = "BOOL", default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    unlabelled: bool,
    /// Files that theta was trained on: the statistics for --scale standard and minmax, the number
    /// of features and classes
    #[arg(long, env = "PS_TRAIN_DATA", value_name = "FILE", value_delimiter = ',')]
    train_data: Vec<String>,
    /// Their targets, where these are files of their own
    #[arg(long, env = "PS_TRAIN_LABELS", value_name = "FILE", value_delimiter = ',')]
    train_labels: Vec<String>,
    /// Their first N rows only, as --take in training
    #[arg(long, env = "PS_TRAIN_TAKE", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    train_take: Option<u64>,
    #[command(flatten, next_help_heading = "Model")]
    model: ModelArgs,
    #[command(flatten, next_help_heading = "Data")]
    data: DataArgs,
    /// Read options from this file; the command line and the environment win
    #[arg(long, env = "PS_CONFIG", value_name = "FILE.toml")]
    config: Option<PathBuf>,
}

/// Predicts, and says on `notes` how good it is.
///
/// # Errors
/// Configuration, naming the flag or the difference between theta and model; bad data; an output
/// that cannot be created.
pub(crate) fn run(
    args: &PredictArgs,
    out: &mut impl Write,
    notes: &mut impl Write,
) -> Result<(), ExitError> {
    let is_npy = check_out(args)?;
    let spec = args.model.check()?;
    let theta = read_theta(&args.theta).map_err(|mut error| {
        error.message = format!("--theta: {}", error.message);
        error
    })?;
    let question = Question {
        data: &args.data,
        unlabelled: args.unlabelled,
        train: training(args)?,
        n_classes: theta.metadata.get("n_classes").and_then(|n| n.parse().ok()),
    };
    let predictor = Predictor::survey(spec, &question)?;
    check_metadata(&theta, &predictor, args)?;
    if args.proba && predictor.model().kind().loss.n_classes().is_none() {
        return Err(ExitError::config(format!(
            "--proba has no meaning with --model {}: it predicts a value, no classes",
            predictor.model().kind()
        )));
    }
    match theta.dtype().unwrap_or(Dtype::F64) {
        Dtype::F32 => conclude(args, is_npy, &answer::<f32>(&predictor, theta)?, out, notes),
        Dtype::F64 => conclude(args, is_npy, &answer::<f64>(&predictor, theta)?, out, notes),
    }
}

/// Whether predictions go to an .npy file.
fn check_out(args: &PredictArgs) -> Result<bool, ExitError> {
    let Some(path) = &args.out else { return Ok(false) };
    check_creatable(path)?;
    match Format::of(path) {
        Ok(Format::Npy) => Ok(true),
        Ok(Format::Csv) => Ok(false),
        _ => Err(ExitError::config(format!(
            "--out {}: predictions are written as .csv or .npy",
            path.display()
        ))),
    }
}

fn training(args: &PredictArgs) -> Result<Option<Training<'_>>, ExitError> {
    if !args.train_data.is_empty() {
        let (data, labels) = (&args.train_data[..], &args.train_labels[..]);
        return Ok(Some(Training { data, labels, take: args.train_take }));
    }
    let alone = [
        ("--train-labels", !args.train_labels.is_empty()),
        ("--train-take", args.train_take.is_some()),
    ];
    match alone.into_iter().find(|(_, given)| *given) {
        None => Ok(None),
        Some((flag, _)) => {
            Err(ExitError::config(format!("{flag} has no meaning without --train-data")))
        }
    }
}

/// What a .safetensors file says of its job must be what the flags say.
fn check_metadata(
    theta: &Imported,
    predictor: &Predictor,
    args: &PredictArgs,
) -> Result<(), ExitError> {
    let model = predictor.model();
    for (key, flag, ours) in [
        ("model", "--model", model.kind().to_string()),
        ("bias", "--bias", model.has_bias().to_string()),
        ("scale", "--scale", args.data.scale.to_string()),
    ] {
        if let Some(theirs) = theta.metadata.get(key).filter(|theirs| **theirs != ours) {
            return Err(ExitError::config(format!(
                "{flag} is {ours}, but {} was trained with {flag} {theirs}",
                args.theta.display()
            )));
        }
    }
    Ok(())
}

fn answer<T: Real>(predictor: &Predictor, theta: Imported) -> Result<Predicted<T>, ExitError> {
    let theta = theta.into_theta::<T>(predictor.tables()).map_err(|mut error| {
        error.message = format!("--theta {}", error.message);
        error
    })?;
    predictor.predict(&theta)
}

fn conclude<T: Real>(
    args: &PredictArgs,
    is_npy: bool,
    predicted: &Predicted<T>,
    out: &mut impl Write,
    notes: &mut impl Write,
) -> Result<(), ExitError> {
    let probabilities = predicted.probabilities.as_ref().filter(|_| args.proba);
    match &args.out {
        Some(path) if is_npy => {
            let n_rows = predicted.targets.len() as u64;
            let (shape, values) = match probabilities {
                Some(p) => (vec![n_rows, p.ncols() as u64], p.iter().copied().collect()),
                None => (vec![n_rows], predicted.targets.iter().map(|y| y.to_f64()).collect()),
            };
            let values: Vec<f64> = values;
            let array = Tables::new(vec![Table::zeros("predictions", &shape, false)]);
            let array = array.map_err(|e| {
                ExitError::new(Exit::BadData, "the predictions make no array").because(e)
            })?;
            write_theta(path, &array, &values, &Default::default())?;
        }
        Some(path) => {
            write_atomically(path, |file| file.write_all(csv(predicted, args.proba).as_bytes()))?
        }
        None => print(out, &csv(predicted, args.proba))?,
    }
    print(notes, &summary(predicted))
}

/// A header, then a line for each row; numbers read back as the same floats.
fn csv<T: Real>(predicted: &Predicted<T>, proba: bool) -> String {
    let mut text = String::new();
    match predicted.probabilities.as_ref().filter(|_| proba) {
        Some(p) => {
            let header: Vec<String> = (0..p.ncols()).map(|c| format!("class_{c}")).collect();
            text.push_str(&header.join(","));
            for row in p.rows() {
                let fields: Vec<String> = row.iter().map(f64::to_string).collect();
                text.push('\n');
                text.push_str(&fields.join(","));
            }
        }
        None => {
            text.push_str("prediction");
            for y in &predicted.targets {
                write!(text, "\n{y}").expect("a String takes everything");
            }
        }
    }
    text.push('\n');
    text
}

fn summary<T: Real>(predicted: &Predicted<T>) -> String {
    let mut text = format!("{} rows", predicted.targets.len());
    if let Some(metrics) = &predicted.metrics {
        text.push_str(&format!(", loss {:.6}", metrics.loss));
        if let Some(accuracy) = metrics.accuracy() {
            text.push_str(&format!(", accuracy {:.2} %", 100.0 * accuracy));
        }
    }
    text.push('\n');
    text
}

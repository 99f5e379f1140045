//! The command line: one seed here, or many, each in a process of its own.

use std::ffi::OsString;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::panic;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use parking_lot::Mutex;
use ps_common::exit::{Exit, ExitError, conclude};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::ledger::{Answers, TARGET};
use crate::many;
use crate::plan::{Fixed, Plan};
use crate::report::{self, ReportArgs};
use crate::simulate::simulate;

/// Runs the real server and workers in a simulated network that fails
#[derive(Parser, Debug)]
#[command(name = "ps-sim", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    one: OneArgs,
    #[command(subcommand)]
    many: Option<Many>,
}

const EXAMPLES: &str = "\
Examples:
  ps-sim --seed 7                       one run; the same one, whenever it is asked for
  ps-sim --seed 7 --plan                what happens in it, without running it
  PS_LOG=ps_sim=debug ps-sim --seed 7   with every fault and every answer
  ps-sim run --seeds 1..200             many, each in a process of its own
  ps-sim report                         the figures of docs/RELIABILITY.md, measured anew
  ps-sim report --only inputs,stall     some of them";

/// One run.
#[derive(Args, Debug)]
struct OneArgs {
    /// All chance comes from it
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Only print what would happen
    #[arg(long)]
    plan: bool,
    /// Print the outcome as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    fixed: Fixed,
}

#[derive(Subcommand, Debug)]
enum Many {
    /// Runs many seeds and prints a table; fails if one of them does
    Run(ManyArgs),
    /// Measures the figures that docs/RELIABILITY.md publishes; fails if a promise does not hold
    Report(ReportArgs),
}

/// Many runs.
#[derive(Args, Debug)]
pub(crate) struct ManyArgs {
    /// From one to another, both run
    #[arg(long, value_name = "A..B", default_value = "1..100", value_parser = seeds)]
    pub(crate) seeds: RangeInclusive<u64>,
    /// Processes at a time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) jobs: u16,
    #[command(flatten)]
    pub(crate) fixed: Fixed,
}

fn seeds(text: &str) -> Result<RangeInclusive<u64>, String> {
    let expected = || "expected A..B with A at most B, as in 1..200".to_owned();
    let (first, last) = text.split_once("..").ok_or_else(expected)?;
    let (first, last) = (first.parse().ok(), last.trim_start_matches('=').parse().ok());
    match (first, last) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err(expected()),
    }
}

/// The whole program; the first argument is its name.
pub fn main_with(arguments: Vec<OsString>) -> ExitCode {
    let cli = Cli::try_parse_from(arguments).unwrap_or_else(|error| error.exit());
    let result = match &cli.many {
        None => one(&cli.one),
        Some(Many::Run(args)) => many::run(args),
        Some(Many::Report(args)) => report::report(args),
    };
    conclude("ps-sim", result)
}

/// Writes to stdout; a reader that is gone does not want it.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Writes to stderr: how far it is.
pub(crate) fn whisper(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn one(args: &OneArgs) -> Result<(), ExitError> {
    let plan = Plan::draw(args.seed, &args.fixed);
    if args.plan {
        say(&plan.to_string());
        return Ok(());
    }
    let answers = listen();
    let about = format!("{plan}\nagain: ps-sim --seed {}{}", args.seed, args.fixed);
    let panics = note_panics(about.clone());
    let mut outcome = simulate(&plan, &answers)
        .map_err(|e| ExitError::new(Exit::Io, format!("{e:#}")).because(e))?;
    // A panic in a call is answered with INTERNAL, so it need not end a program.
    if let Some(panic) = panics.lock().first() {
        let before = outcome.violation.take();
        let before = before.map_or(String::new(), |what| format!(" (after it: {what})"));
        outcome.violation = Some(format!("a panic: {panic}{before}"));
    }
    say(&match args.json {
        true => serde_json::to_string(&outcome).expect("plain data"),
        false => many::line(&outcome),
    });
    match &outcome.violation {
        None => Ok(()),
        Some(what) => Err(ExitError::new(Exit::Failed, format!("{what}\n{about}"))),
    }
}

/// Collects what workers say, and shows what `PS_LOG` asks for.
fn listen() -> Answers {
    let answers = Answers::default();
    let filter = EnvFilter::try_from_env("PS_LOG").unwrap_or_else(|_| EnvFilter::new("off"));
    let shown = tracing_subscriber::fmt::layer().with_writer(io::stderr).without_time();
    let heard = Targets::new().with_target(TARGET, tracing::Level::TRACE);
    // A second run in this process keeps the first subscriber, and hears nothing: it would say so.
    let _ = tracing_subscriber::registry()
        .with(shown.with_filter(filter))
        .with(answers.clone().with_filter(heard))
        .try_init();
    answers
}

/// Keeps what panics say. It is said at once, too, with what the run is `about`: a panic while a
/// panic is dealt with ends the process.
fn note_panics(about: String) -> Arc<Mutex<Vec<String>>> {
    let panics = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&panics);
    panic::set_hook(Box::new(move |panic| {
        let is_first = noted.lock().is_empty();
        noted.lock().push(panic.to_string());
        if is_first {
            let _ = writeln!(io::stderr(), "{panic}\n{about}");
        }
    }));
    panics
}

//! `psctl compare`: one job in several ways, one run after another, and what came of it.
//!
//! Owns the order of the runs, what is said between them, and the exit code. Trains nothing itself
//! (`runner`), judges no loss (`outcome`, `figures`).

pub mod args;
mod curve;
mod figures;
mod files;
mod outcome;
mod plot;
mod runner;
mod table;
pub mod variant;

use std::io::Write;
use std::pin::{Pin, pin};

use ps_common::exit::{Exit, ExitError};

pub use args::CompareArgs;
use figures::{Compared, Figures};
use outcome::{Fate, Run};
use runner::{Loudness, Way};

use crate::local;
use crate::show::{Look, number};

/// Runs every variant with every seed, then shows and writes what came of it; also when somebody
/// interrupts, with what there is.
///
/// # Errors
/// A configuration or usage error before anything is started; an interruption; an output that
/// cannot be written; runs that failed, with their own code if all ended with the same one.
pub async fn run(args: CompareArgs, verbose: bool) -> Result<(), ExitError> {
    let variants = args.check()?;
    let seeds = args.axes.seeds;
    let n_runs = variants.len() * seeds as usize;
    let mut compared: Vec<Compared> = variants
        .into_iter()
        .map(|variant| Compared { variant, runs: Vec::with_capacity(seeds as usize) })
        .collect();
    let loudness = Loudness { quiet: args.output.quiet, verbose };
    let way = match args.virtual_time.simulated {
        true => Way::Simulated(Box::new(args.virtual_time.world.clone())),
        false => Way::Processes,
    };
    let mut stop = pin!(local::interrupted());
    let interruption = run_all(&mut compared, (&way, seeds), loudness, stop.as_mut()).await;
    let figures = Figures::of(&compared, seeds, &args.axes.to_loss, n_runs);
    let any = compared.iter().any(|c| !c.runs.is_empty());
    let shown = if any { conclude(&args.output, &figures) } else { Ok(()) };
    match (interruption, shown) {
        (Some(interruption), shown) => {
            if let Err(error) = shown {
                tracing::warn!(%error, "what there was before the interruption is lost");
            }
            Err(interruption)
        }
        (None, shown) => shown.and_then(|()| verdict(&compared, &figures, n_runs)),
    }
}

/// One run after another; gives the error of an interruption.
async fn run_all(
    compared: &mut [Compared],
    (way, seeds): (&Way, u32),
    loudness: Loudness,
    mut stop: Pin<&mut impl Future<Output = ExitError>>,
) -> Option<ExitError> {
    let n_runs = compared.len() * seeds as usize;
    let mut n_run = 0;
    for Compared { variant, runs } in compared {
        for i in 0..seeds {
            let mut args = variant.args.clone();
            args.learn.data.seed = args.learn.data.seed.wrapping_add(i.into());
            let seed = args.learn.data.seed;
            let trained = runner::train(way, &args, loudness, stop.as_mut()).await;
            let exit = trained.error.as_ref().map(|error| error.exit);
            if matches!(exit, Some(Exit::Interrupted | Exit::Terminated)) {
                return trained.error;
            }
            let run = Run::of(seed, trained);
            n_run += 1;
            if !loudness.quiet {
                say(&format!("[{n_run}/{n_runs}] {}, seed {seed}: {}", variant.name, told(&run)));
            }
            runs.push(run);
        }
    }
    None
}

/// How a run ended, in a few words.
fn told(run: &Run) -> String {
    let reason = run.reason.as_deref().unwrap_or_default();
    let finished = run.report.as_ref().map(|r| (r.r#final.loss, r.wall_seconds));
    match (run.fate, finished) {
        (Fate::Done, Some((Some(loss), seconds))) => {
            format!("loss {} in {}", number::loss(loss), number::seconds(seconds))
        }
        (Fate::Done, _) => "done".to_owned(),
        (Fate::Diverged, _) => format!("diverged ({reason})"),
        (Fate::Failed, _) => format!("failed ({reason})"),
    }
}

fn say(text: &str) {
    let line = format!("{}\n", Look::stderr().clean(text));
    // Nobody is left to tell when stderr itself is gone.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// The files first: what is printed last says that they are there.
fn conclude(output: &args::OutputArgs, figures: &Figures) -> Result<(), ExitError> {
    let written = files::write(output, figures);
    files::show(output, figures, &mut std::io::stdout())?;
    written
}

/// The error of runs that failed.
fn verdict(compared: &[Compared], figures: &Figures, n_runs: usize) -> Result<(), ExitError> {
    let n_failed = figures.n_failed();
    let mut failed = compared.iter().flat_map(|c| {
        c.runs.iter().filter(|run| run.fate == Fate::Failed).map(|run| (&c.variant.name, run))
    });
    let Some((name, first)) = failed.next() else { return Ok(()) };
    let one = first.exit.unwrap_or(Exit::Failed);
    let all_alike = n_failed == n_runs && failed.all(|(_, run)| run.exit == Some(one));
    let exit = if all_alike { one } else { Exit::Failed };
    let reason = first.reason.as_deref().unwrap_or_default();
    Err(ExitError::new(
        exit,
        format!("{n_failed} of {n_runs} runs failed, the first of them `{name}`: {reason}"),
    ))
}

//! `ps-sim report`: the figures of docs/RELIABILITY.md by one command, section by section.
//!
//! A section measures, or reads what another program has measured and says so. What is written into
//! the document is what a run printed (`--write`).

mod abuse;
mod advisories;
mod document;
mod durability;
mod figures;
mod fuzz;
mod inputs;
mod origin;
mod real;
mod records;
mod recovery;
mod simulated;
mod stall;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use ps_common::exit::{Exit, ExitError};
use serde_json::{Value, json};

use self::figures::Part;
use self::origin::{BUILD, Origin, load};
use self::real::Programs;
pub(crate) use self::simulated::Sums;
use crate::cli::{ManyArgs, say, whisper};

/// What is published.
pub(crate) const DOC: &str = "docs/RELIABILITY.md";

/// The report.
#[derive(Args, Debug)]
pub(crate) struct ReportArgs {
    /// Only these sections [default: all]
    #[arg(long, value_name = "SECTION", value_delimiter = ',')]
    pub(crate) only: Vec<Section>,
    /// Print one JSON object
    #[arg(long, conflicts_with_all = ["as_markdown", "write"])]
    pub(crate) json: bool,
    /// Print the blocks of docs/RELIABILITY.md
    #[arg(long = "markdown")]
    as_markdown: bool,
    /// Put the blocks into docs/RELIABILITY.md, in the place of those that are there
    #[arg(long)]
    pub(crate) write: bool,
    /// Folder of the sources, for what is read from them [default: the nearest one above the current
    /// folder that has docs/RELIABILITY.md]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Simulated.
    #[command(flatten)]
    pub(crate) many: ManyArgs,
    /// recovery: kills of each kind
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = at_least_one)]
    pub(crate) repeats: usize,
    /// recovery: elements of theta where the server is killed
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) recovery_n: u64,
    /// durability: kills of the server with each setting
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    pub(crate) kills: usize,
    /// stall: elements of theta and of each push
    #[arg(long, value_name = "N", default_value_t = 4_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) stall_n: u64,
    /// abuse: seconds without and with each
    #[arg(long, value_name = "S", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) abuse_seconds: u32,
    /// fuzz: changed inputs of each target
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub(crate) fuzz_changes: u64,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a number above 0".to_owned())
}

impl ReportArgs {
    /// Whether what is printed or written belongs into the document.
    pub(crate) fn markdown(&self) -> bool {
        self.as_markdown || self.write
    }
}

/// A group of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Section {
    /// The real programs on a simulated network and disk, by seeds
    Simulated,
    /// Times until work goes on, of real processes
    Recovery,
    /// What kill -9 undoes with each --durability
    Durability,
    /// What checkpoints cost pushes
    Stall,
    /// The server's memory and good clients' steps under abuse
    Abuse,
    /// Bad inputs and their answers
    Inputs,
    /// The fuzz targets
    Fuzz,
    /// Known bugs in packages
    Advisories,
    /// What other programs have measured, from docs/RELIABILITY.md
    Records,
}

impl Section {
    fn name(self) -> String {
        self.to_possible_value().expect("no section is hidden").get_name().to_owned()
    }

    fn title(self) -> &'static str {
        match self {
            Self::Simulated => "Simulated network and disk",
            Self::Recovery => "Time to recover",
            Self::Durability => "What a crash undoes",
            Self::Stall => "Checkpoints and pushes",
            Self::Abuse => "Abuse",
            Self::Inputs => "Bad inputs",
            Self::Fuzz => "Fuzz targets",
            Self::Advisories => "Advisories",
            Self::Records => "Figures of other programs",
        }
    }

    /// Whether its figures depend on how fast programs are.
    fn is_timed(self) -> bool {
        matches!(self, Self::Recovery | Self::Stall | Self::Abuse)
    }

    fn measure(self, setting: &Setting) -> Result<Part> {
        match self {
            Self::Simulated => simulated::measure(setting),
            Self::Recovery => recovery::measure(setting),
            Self::Durability => durability::measure(setting),
            Self::Stall => stall::measure(setting),
            Self::Abuse => abuse::measure(setting),
            Self::Inputs => inputs::measure(setting),
            Self::Fuzz => fuzz::measure(setting),
            Self::Advisories => advisories::measure(setting),
            Self::Records => records::measure(setting),
        }
    }

    fn needs_programs(self) -> bool {
        use Section::{Abuse, Durability, Inputs, Recovery, Stall};
        matches!(self, Recovery | Durability | Stall | Abuse | Inputs)
    }
}

/// What sections measure with.
#[derive(Debug)]
pub(crate) struct Setting<'a> {
    args: &'a ReportArgs,
    programs: Option<Programs>,
    root: Option<PathBuf>,
}

impl Setting<'_> {
    /// The real programs.
    fn programs(&self) -> Result<Programs> {
        self.programs.clone().context("the programs were found before")
    }

    /// Of the sources.
    fn root(&self) -> Result<&Path> {
        self.root.as_deref().with_context(|| {
            format!("no {DOC} in the current folder or above it: name the sources with --root DIR")
        })
    }
}

/// A section that has been measured.
struct Done {
    section: Section,
    part: Part,
    seconds: f64,
    /// When it began and when it ended.
    load: [Option<f64>; 2],
}

/// Measures and prints what is asked for.
///
/// # Errors
/// Configuration, if programs are missing or figures would go into the document that do not belong
/// there; failed, if a promise does not hold or a figure cannot be measured.
pub(crate) fn report(args: &ReportArgs) -> Result<(), ExitError> {
    let sections = match &args.only[..] {
        [] => Section::value_variants(),
        only => only,
    };
    if args.write && BUILD == "debug" {
        let what = "--write puts figures into the document, and those of a debug build do not belong \
                    there: take `cargo run --release --bin ps-sim -- report --write`";
        return Err(ExitError::config(what));
    }
    let programs = match sections.iter().any(|section| section.needs_programs()) {
        true => Some(Programs::find()?),
        false => None,
    };
    let root = args.root.clone().or_else(document::root_above_here);
    let setting = Setting { args, programs, root };
    let origin = Origin::here(setting.root.as_deref());
    let mut done = Vec::new();
    let mut failures = Vec::new();
    for &section in sections {
        whisper(&format!("ps-sim report: {} ...", section.name()));
        let (begun, load_before) = (Instant::now(), load());
        match section.measure(&setting) {
            Ok(part) => {
                let named = part.failures.iter().map(|what| format!("{}: {what}", section.name()));
                failures.extend(named);
                let seconds = begun.elapsed().as_secs_f64();
                done.push(Done { section, part, seconds, load: [load_before, load()] });
            }
            Err(e) => failures.push(format!("{}: cannot be measured: {e:#}", section.name())),
        }
    }
    match (args.json, args.as_markdown, args.write) {
        (true, ..) => say(&as_json(&origin, &done, &failures).to_string()),
        (_, true, _) => done
            .iter()
            .for_each(|d| say(&document::block(&d.section.name(), &markdown(d, &origin)))),
        (.., true) if failures.is_empty() => write(&setting, &origin, &done)?,
        (.., true) => {}
        _ => done.iter().for_each(|done| say(&text(done, &origin))),
    }
    if failures.is_empty() {
        return Ok(());
    }
    let what = format!(
        "{} figures are not what they must be\n  {}",
        failures.len(),
        failures.join("\n  ")
    );
    Err(ExitError::new(Exit::Failed, what))
}

/// How, when and where it was measured.
fn taken(done: &Done, origin: &Origin) -> String {
    let Origin { day, commit, build, processors, .. } = origin;
    let [before, after] = done.load.map(|l| l.map_or("unknown".to_owned(), |l| format!("{l:.1}")));
    let slow = match (*build, done.section.is_timed()) {
        ("debug", true) => ": its times are not those of a release",
        _ => "",
    };
    format!(
        "Taken {day}, commit {commit}, {build} build{slow}, {processors} processors, load average \
         {before} before and {after} after, in {:.0} s.",
        done.seconds
    )
}

fn text(done: &Done, origin: &Origin) -> String {
    let tables = done.part.tables.iter().map(|table| format!("\n{}\n", table.text()));
    format!(
        "\n== {} ({})\n{}\n{}\n{}",
        done.section.title(),
        done.section.name(),
        done.part.notes.join("\n"),
        tables.collect::<String>(),
        taken(done, origin),
    )
}

fn markdown(done: &Done, origin: &Origin) -> String {
    let tables = done.part.tables.iter().map(|table| format!("\n\n{}", table.markdown()));
    format!(
        "#### {}\n\n{}{}\n\n{}",
        done.section.title(),
        done.part.notes.join("\n"),
        tables.collect::<String>(),
        taken(done, origin),
    )
}

fn as_json(origin: &Origin, done: &[Done], failures: &[String]) -> Value {
    let sections = done.iter().map(|done| {
        let value = json!({
            "figures": done.part.figures,
            "seconds": done.seconds,
            "load_before": done.load[0],
            "load_after": done.load[1],
        });
        (done.section.name(), value)
    });
    json!({
        "taken": origin,
        "sections": sections.collect::<serde_json::Map<_, _>>(),
        "failures": failures,
    })
}

fn write(setting: &Setting, origin: &Origin, done: &[Done]) -> Result<(), ExitError> {
    let failed = |e: anyhow::Error| ExitError::new(Exit::Io, format!("{e:#}"));
    let path = setting.root().map_err(failed)?.join(DOC);
    let mut text = std::fs::read_to_string(&path)
        .map_err(|e| ExitError::new(Exit::Io, path.display().to_string()).because(e))?;
    for done in done {
        let block = document::block(&done.section.name(), &markdown(done, origin));
        text = document::with_block(&text, &done.section.name(), &block).map_err(failed)?;
    }
    ps_common::export::write_atomically(&path, |file| file.write_all(text.as_bytes()))?;
    say(&format!("{} has {} new blocks", path.display(), done.len()));
    Ok(())
}

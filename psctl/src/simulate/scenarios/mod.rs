//! Published results as named scenarios: `psctl simulate --scenario NAME`.
//!
//! Owns which there are, what each re-enacts, and what may stand beside `--scenario`. A scenario is
//! calls of `psctl simulate` (or of `psctl::peers`) with flags that a person could type, and that
//! are printed; it computes nothing itself beyond picking figures from their results.

mod consistency;
mod findings;
mod lab;
mod one_server;
mod stragglers;
mod without_server;

use std::io::Write;

use clap::{Args, ValueEnum};
use ps_common::exit::{Exit, ExitError};
use ps_common::export::{check_creatable, write_atomically};
use serde::Serialize;

use self::findings::Findings;
use self::lab::Lab;
use super::args::OutputArgs;
use super::{SimulateArgs, args};
use crate::cli::print;
use crate::show::Look;
use crate::show::chart::Format;

/// What may stand beside `--scenario`.
const BESIDE: [&str; 6] = ["scenario", "sim-seed", "plot", "csv", "json", "quiet"];

/// A published result instead of runs of one's own.
#[derive(Args, Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Scenarios")]
pub struct ScenarioArgs {
    /// Re-enact a published result; beside it only --sim-seed and outputs are taken
    #[arg(long, env = "PS_SCENARIO", value_enum, value_name = "NAME", hide_possible_values = true)]
    pub scenario: Option<Scenario>,
    /// List the scenarios and exit
    #[arg(long)]
    #[serde(skip)]
    pub scenarios: bool,
}

impl ScenarioArgs {
    /// Whether a scenario or their list is asked for.
    pub fn is_asked(&self) -> bool {
        self.scenario.is_some() || self.scenarios
    }
}

/// The scenarios.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Time to a loss against the permitted gradient delay
    BoundedDelay,
    /// Idle share against the staleness bound
    SspIdle,
    /// Time to a loss against the number of spare workers
    BackupWorkers,
    /// What becomes of 32 asynchronous workers at a high rate
    StalenessRescue,
    /// Error on class-sorted shards by topology
    Topologies,
    /// Speed-up against the number of workers of one server
    OneServerSpeedup,
    /// Seconds of one exchange by its kind and the number of workers
    RoundCost,
}

/// What a scenario is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct About {
    /// Paper and figure or section.
    pub paper: &'static str,
    /// The shape.
    pub seen: &'static str,
}

impl Scenario {
    /// As `--scenario` takes it.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What it re-enacts.
    pub fn about(self) -> About {
        match self {
            Self::BoundedDelay => consistency::BOUNDED_DELAY,
            Self::SspIdle => consistency::SSP_IDLE,
            Self::BackupWorkers => stragglers::BACKUP_WORKERS,
            Self::StalenessRescue => consistency::STALENESS_RESCUE,
            Self::Topologies => without_server::TOPOLOGIES,
            Self::OneServerSpeedup => one_server::SPEEDUP,
            Self::RoundCost => without_server::ROUND_COST,
        }
    }

    /// Whether anything in it is drawn by `--sim-seed`.
    fn draws(self) -> bool {
        match self {
            Self::SspIdle | Self::BackupWorkers => true,
            // Constant compute times, or none.
            Self::BoundedDelay
            | Self::StalenessRescue
            | Self::Topologies
            | Self::OneServerSpeedup
            | Self::RoundCost => false,
        }
    }

    /// Re-enacts it.
    ///
    /// # Errors
    /// Only bugs: the flags are the scenario's own.
    fn play(self, lab: &mut Lab) -> Result<Findings, ExitError> {
        match self {
            Self::BoundedDelay => consistency::bounded_delay(lab),
            Self::SspIdle => consistency::ssp_idle(lab),
            Self::BackupWorkers => stragglers::backup_workers(lab),
            Self::StalenessRescue => consistency::staleness_rescue(lab),
            Self::Topologies => without_server::topologies(lab),
            Self::OneServerSpeedup => one_server::speedup(lab),
            Self::RoundCost => without_server::round_cost(lab),
        }
    }
}

/// What `--json` writes.
#[derive(Serialize)]
struct Whole<'a> {
    scenario: Scenario,
    #[serde(flatten)]
    about: About,
    commands: &'a [String],
    rows: Vec<serde_json::Map<String, serde_json::Value>>,
}

/// Lists the scenarios or plays the one that is asked for. `given`: the long names of all flags that
/// are not at their defaults' mercy.
///
/// # Errors
/// Configuration, naming a flag that has no meaning here; outputs that cannot be written.
pub fn run(args: &SimulateArgs, given: &[String], out: &mut impl Write) -> Result<(), ExitError> {
    if args.scenario.scenarios {
        if let Some(flag) = given.iter().find(|flag| *flag != "scenarios") {
            return Err(ExitError::config(format!("--{flag} has no meaning with --scenarios")));
        }
        return print(out, &list(&Look::stdout()));
    }
    let Some(scenario) = args.scenario.scenario else {
        return Err(ExitError::new(Exit::Bug, "no scenario is asked for"));
    };
    let output = &args.output;
    check(scenario, given, &args.runs)?;
    check_outputs(output)?;
    let mut lab = Lab::new(args.runs.sim_seed.first().copied(), output.quiet);
    let findings = scenario.play(&mut lab)?;
    if let Some(path) = &output.csv {
        let text = findings.csv();
        write_atomically(path, |out| out.write_all(text.as_bytes()))?;
    }
    if let Some(path) = &output.plot {
        findings.chart.write(path)?;
    }
    if output.json {
        let about = scenario.about();
        let whole = Whole { scenario, about, commands: lab.commands(), rows: findings.json() };
        let line = serde_json::to_string(&whole)
            .map_err(|e| ExitError::new(Exit::Bug, "the findings are no JSON").because(e))?;
        print(out, &format!("{line}\n"))
    } else if output.quiet {
        Ok(())
    } else {
        print(out, &show(scenario, &lab, &findings, &Look::stdout()))
    }
}

fn check(scenario: Scenario, given: &[String], runs: &args::RunsArgs) -> Result<(), ExitError> {
    let name = scenario.name();
    if let Some(flag) = given.iter().find(|flag| !BESIDE.contains(&flag.as_str())) {
        return Err(ExitError::config(format!(
            "--{flag} has no meaning with --scenario {name}, which brings its own flags and prints \
             them: vary those without --scenario (PS_... variables and --config count, too)"
        )));
    }
    if runs.sim_seed.len() > 1 {
        return Err(ExitError::config("--sim-seed: a scenario takes one seed"));
    }
    if !runs.sim_seed.is_empty() && !scenario.draws() {
        return Err(ExitError::config(format!(
            "--sim-seed has no meaning with --scenario {name}: nothing in it is drawn by that"
        )));
    }
    Ok(())
}

fn check_outputs(output: &OutputArgs) -> Result<(), ExitError> {
    if let Some(path) = &output.plot {
        Format::of(path)?;
    }
    for path in [&output.csv, &output.plot].into_iter().flatten() {
        check_creatable(path)?;
    }
    Ok(())
}

/// Two lines each: name and shape, then the paper.
fn list(look: &Look) -> String {
    let width = Scenario::value_variants().iter().map(|s| s.name().len()).max().unwrap_or(0);
    let mut out = String::new();
    for scenario in Scenario::value_variants() {
        let About { paper, seen } = scenario.about();
        let dash = look.pick("–", "-");
        out.push_str(&format!("{:width$}  {paper} {dash} {seen}\n", scenario.name()));
    }
    out
}

fn show(scenario: Scenario, lab: &Lab, findings: &Findings, look: &Look) -> String {
    let About { paper, seen } = scenario.about();
    let mut out = format!("{}: {paper}\n{seen}\n\n", scenario.name());
    out.push_str(&calls(lab.commands()));
    out.push_str(&findings.table().render("", look.width));
    out
}

/// What the calls share, then what each has besides: it can be typed after it.
fn calls(commands: &[String]) -> String {
    let words: Vec<Vec<&str>> = commands.iter().map(|c| c.split(' ').collect()).collect();
    let Some(first) = words.first() else { return String::new() };
    let is_shared = |at: &usize| words.iter().all(|words| words.get(*at) == first.get(*at));
    let mut n_shared = (0..first.len()).take_while(is_shared).count();
    // A value stays with its flag.
    if n_shared < first.len() && !first[n_shared].starts_with("--") {
        n_shared -= 1;
    }
    let mut out = format!("  {}\n", first[..n_shared].join(" "));
    for words in &words {
        let rest = words[n_shared..].join(" ");
        if !rest.is_empty() {
            out.push_str(&format!("    {rest}\n"));
        }
    }
    out + "\n"
}

#[cfg(test)]
mod tests;

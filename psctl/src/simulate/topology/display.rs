//! Runs of peers as text, as CSV and as a picture. Computes nothing.

use std::fmt::Write;

use super::{Results, RunResult};
use crate::peers::averaging::{Entry, Outcome};
use crate::peers::show::{self, Over};
use crate::show::chart::{Axis, Chart, Series};
use crate::show::{Look, number};

/// A single run with its course, several side by side.
pub(super) fn text(results: &Results, look: &Look) -> String {
    let mut out = match &results.runs[..] {
        [run] => show::summary(&run.topology, &run.run, look),
        runs => {
            let seeds = runs.iter().any(|run| run.sim_seed != runs[0].sim_seed);
            let name = |run: &RunResult| {
                let seed = if seeds { format!(", seed {}", run.sim_seed) } else { String::new() };
                format!("{}{seed}", run.topology)
            };
            let named: Vec<(String, &Outcome)> =
                runs.iter().map(|run| (name(run), &run.run)).collect();
            // Figures are not cut, and runs are known by their whole names.
            let table = show::comparison(&named);
            table.render("", look.width.max(table.natural_width()))
        }
    };
    // The summary of a single run says itself that theta overflowed.
    let alone = results.runs.len() == 1;
    for run in results.runs.iter().filter(|run| !alone || run.run.diverged_in_round.is_none()) {
        if let Some(round) = run.diverged_at_round {
            let (name, round) = (name(run), number::rounds(round));
            writeln!(out, "{}: diverged at round {round}: lower --lr", look.clean(&name))
                .expect("a string takes all");
        }
    }
    out
}

/// `ring, K = 4`: runs that differ in their seed only share it.
fn name(run: &RunResult) -> String {
    format!("{}, K = {}", run.topology, run.run.n_peers)
}

/// Every entry of the histories, a line each.
pub(super) fn csv(results: &Results) -> String {
    let mut out = "topology,workers,sim_seed,round,seconds,loss,loss_own,loss_worst,rank_worst,\
                   disagreement,accuracy,accuracy_own\n"
        .to_owned();
    let share = |share: Option<f64>| share.map_or_else(String::new, |share| share.to_string());
    for run in &results.runs {
        for entry in &run.run.history {
            let (name, k, seed) = (quoted(&run.topology), run.run.n_peers, run.sim_seed);
            let Entry { round, seconds, loss, loss_own, loss_worst, rank_worst, .. } = entry;
            let (accuracy, own) = (share(entry.accuracy), share(entry.accuracy_own));
            let disagreement = entry.disagreement;
            writeln!(
                out,
                "{name},{k},{seed},{round},{seconds},{loss},{loss_own},{loss_worst},{rank_worst},\
                 {disagreement},{accuracy},{own}"
            )
            .expect("a string takes all");
        }
    }
    out
}

/// A field of CSV (RFC 4180): the name of a file may have a comma.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

/// What of an entry a curve shows, and its name.
type Measure = (&'static str, fn(&Entry) -> f64);

/// With more runs only what their own thetas do is drawn: nobody could tell the curves apart.
const RUNS_DRAWN_WHOLE: usize = 4;

/// What is drawn of each run.
const MEASURES: [Measure; 4] = [
    ("own thetas", |entry| entry.loss_own),
    ("disagreement", |entry| entry.disagreement),
    ("mean theta", |entry| entry.loss),
    ("worst", |entry| entry.loss_worst),
];

/// Four curves of each run over one logarithmic axis, of many runs two.
pub(super) fn chart(results: &Results, over: Over) -> Chart {
    let n_measures = if results.runs.len() > RUNS_DRAWN_WHOLE { 2 } else { MEASURES.len() };
    let curves = |run: &RunResult| -> Vec<Series> {
        let measures = MEASURES[..n_measures].iter();
        measures
            .map(|&(what, y)| show::curve(&format!("{}: {what}", name(run)), &run.run, over, y))
            .collect()
    };
    let series: Vec<Series> = results.runs.iter().flat_map(curves).collect();
    let x = match over {
        Over::Rounds => "round",
        Over::Seconds => "virtual seconds",
    };
    Chart {
        title: format!("{}, without a server, simulated", results.subject),
        x: Axis::linear(x),
        y: Axis::log("training loss, disagreement"),
        series,
    }
}

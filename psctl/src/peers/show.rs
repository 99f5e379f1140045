//! Runs of peers and of map-reduce as text and curves.

use ps_common::units::show_bytes;

use super::averaging::{self, Entry};
use super::{map_reduce, spectrum};
use crate::show::chart::Series;
use crate::show::table::{Align, Table};
use crate::show::{Look, number};

/// Rows of a history that a table shows.
const ROWS_MAX: usize = 11;
/// Of a spectral gap: the method is exact to 1e-12, and a path of 512 peers has 1.3e-5.
const ROUNDING: f64 = 1e-11;

/// One run: what the network is, then its history in a few rows.
pub fn summary(name: &str, run: &averaging::Outcome, look: &Look) -> String {
    let parts = [
        name.to_owned(),
        plural(u64::from(run.n_peers), "peer"),
        plural(run.n_edges, "edge"),
        plural(run.n_components as u64, "component"),
        format!("spectral gap {}", gap_of(run)),
    ];
    let mut out = parts.join(look.pick(" · ", " | ")) + "\n\n";
    out.push_str(&history(&run.history).render("  ", look.width));
    out.push_str(&divergence(run.diverged_in_round));
    out
}

/// One map-reduce job: what it was, then its history in a few rows.
pub fn map_reduce_summary(run: &map_reduce::Outcome, look: &Look) -> String {
    let parts = [
        format!("map-reduce, {}", run.reduce),
        plural(u64::from(run.n_workers), "worker"),
        format!("{} sent", show_bytes(run.bytes_sent)),
    ];
    let mut out = parts.join(look.pick(" · ", " | ")) + "\n\n";
    let columns = ["round", "time", "loss"].map(|heading| (heading, Align::Right));
    let mut table = Table::new(columns);
    for entry in a_few(&run.history) {
        let cells = [number::count(entry.round), number::seconds(entry.seconds)];
        table.row(cells.into_iter().chain([number::loss(entry.loss)]));
    }
    out.push_str(&table.render("  ", look.width));
    out.push_str(&divergence(run.diverged_in_round));
    out
}

fn divergence(round: Option<u64>) -> String {
    round.map_or_else(String::new, |round| {
        format!("\nDiverged in round {round}: theta overflowed; lower --lr.\n")
    })
}

/// The first entry, the last, and what is about evenly between.
fn a_few<E>(entries: &[E]) -> impl Iterator<Item = &E> {
    let last = entries.len().saturating_sub(1);
    let rows = ROWS_MAX.min(entries.len());
    (0..rows).map(move |row| &entries[row * last / (rows - 1).max(1)])
}

fn history(entries: &[Entry]) -> Table {
    let mut table = Table::new([
        ("round", Align::Right),
        ("time", Align::Right),
        ("loss", Align::Right),
        ("own loss", Align::Right),
        ("worst", Align::Right),
        ("rank", Align::Right),
        ("disagreement", Align::Right),
    ]);
    for entry in a_few(entries) {
        table.row([
            number::count(entry.round),
            number::seconds(entry.seconds),
            number::loss(entry.loss),
            number::loss(entry.loss_own),
            number::loss(entry.loss_worst),
            entry.rank_worst.to_string(),
            number::loss(entry.disagreement),
        ]);
    }
    table
}

/// Several runs, one row each: the last entries side by side.
pub fn comparison(runs: &[(String, &averaging::Outcome)]) -> Table {
    let columns = [
        ("topology", Align::Left),
        ("K", Align::Right),
        ("edges", Align::Right),
        ("gap", Align::Right),
        ("loss", Align::Right),
        ("own loss", Align::Right),
        ("worst", Align::Right),
        ("rank", Align::Right),
        ("disagreement", Align::Right),
        ("time", Align::Right),
        ("own accuracy", Align::Right),
    ];
    let has_classes = |(_, run): &(String, &averaging::Outcome)| {
        run.history.iter().any(|entry| entry.accuracy_own.is_some())
    };
    let n_columns = columns.len() - usize::from(!runs.iter().any(has_classes));
    let mut table = Table::new(columns.into_iter().take(n_columns));
    for (name, run) in runs {
        let mut cells =
            vec![name.clone(), run.n_peers.to_string(), number::count(run.n_edges), gap_of(run)];
        let last = run.history.last().filter(|_| run.diverged_in_round.is_none());
        match last {
            Some(last) => cells.extend([
                number::loss(last.loss),
                number::loss(last.loss_own),
                number::loss(last.loss_worst),
                last.rank_worst.to_string(),
                number::loss(last.disagreement),
                number::seconds(last.seconds),
                last.accuracy_own.map_or_else(String::new, number::percent),
            ]),
            None => cells.extend(["diverged", "", "", "", "", "", ""].map(str::to_owned)),
        }
        table.row(cells.into_iter().take(n_columns));
    }
    table
}

/// What a history is drawn over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Rounds.
    Rounds,
    /// Virtual seconds.
    Seconds,
}

/// The mean of the peers' own objectives.
pub fn loss_curve(name: &str, run: &averaging::Outcome, over: Over) -> Series {
    curve(name, run, over, |entry| entry.loss_own)
}

/// How far the peers are apart; for a logarithmic axis.
pub fn disagreement_curve(name: &str, run: &averaging::Outcome, over: Over) -> Series {
    curve(name, run, over, |entry| entry.disagreement)
}

/// Whatever of a run's entries `y` takes.
pub fn curve(
    name: &str,
    run: &averaging::Outcome,
    over: Over,
    y: impl Fn(&Entry) -> f64,
) -> Series {
    let x = |entry: &Entry| match over {
        Over::Rounds => entry.round as f64,
        Over::Seconds => entry.seconds,
    };
    Series::line(name, run.history.iter().map(|entry| (x(entry), y(entry))).collect())
}

/// The objective of a map-reduce job.
pub fn map_reduce_curve(name: &str, run: &map_reduce::Outcome, over: Over) -> Series {
    let x = |entry: &map_reduce::Entry| match over {
        Over::Rounds => entry.round as f64,
        Over::Seconds => entry.seconds,
    };
    Series::line(name, run.history.iter().map(|entry| (x(entry), entry.loss)).collect())
}

/// Whether the gap is so small that what the method leaves open counts.
fn is_bound(run: &averaging::Outcome) -> bool {
    run.n_peers as usize > spectrum::STEPS_MAX
        && run.spectral_gap < 10.0 * spectrum::TOLERANCE_BEYOND
}

/// The gap as people read it. What is no more than rounding is 0: no graph that is connected comes
/// near it.
fn gap_of(run: &averaging::Outcome) -> String {
    let gap = run.spectral_gap;
    let shown = match gap {
        _ if gap < ROUNDING => "0".to_owned(),
        _ if gap < 1e-3 => format!("{gap:.2e}"),
        _ => format!("{gap:.4}"),
    };
    if is_bound(run) { format!("at most {shown}") } else { shown }
}

fn plural(n: u64, what: &str) -> String {
    format!("{} {what}{}", number::count(n), if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(n_entries: u64) -> averaging::Outcome {
        let entry = |round| Entry {
            round,
            seconds: round as f64 * 0.5,
            loss: 1.0,
            loss_own: 1.5,
            loss_worst: 2.0,
            rank_worst: 3,
            disagreement: 0.25,
            accuracy: Some(0.5),
            accuracy_own: Some(0.25),
        };
        averaging::Outcome {
            n_peers: 4,
            n_edges: 4,
            n_components: 1,
            spectral_gap: 2.0 / 3.0,
            dim: 10,
            bytes_sent: 320,
            diverged_in_round: None,
            history: (0..n_entries).map(entry).collect(),
        }
    }

    #[test]
    fn a_summary_has_the_gap_and_a_few_rows_with_the_last() {
        let text = summary("ring", &run(101), &Look::plain(false));
        let mut lines = text.lines();
        let first = "ring | 4 peers | 4 edges | 1 component | spectral gap 0.6667";
        assert_eq!(lines.next(), Some(first));
        let rows: Vec<&str> = lines.skip(2).collect();
        assert_eq!(rows.len(), ROWS_MAX);
        assert_eq!(rows[0].split_whitespace().next(), Some("0"));
        assert_eq!(rows[1].split_whitespace().next(), Some("10"));
        assert!(rows[10].starts_with("    100  50.0 s  1.0000"), "{text}");
        let large = averaging::Outcome { n_peers: 4000, spectral_gap: 6.4e-6, ..run(1) };
        let text = summary("path", &large, &Look::plain(false));
        assert!(text.contains("spectral gap at most 6.40e-6"), "{text}");
        let short = summary("ring", &run(1), &Look::plain(false));
        assert_eq!(short.lines().count(), 4, "{short}");
    }

    #[test]
    fn a_run_that_diverged_says_so() {
        let run = averaging::Outcome { diverged_in_round: Some(7), ..run(3) };
        assert!(summary("ring", &run, &Look::plain(false)).contains("Diverged in round 7"));
        let row = comparison(&[("ring".to_owned(), &run)]).render("", 80);
        assert!(row.lines().nth(1).is_some_and(|row| row.ends_with("diverged")), "{row}");
    }

    #[test]
    fn a_map_reduce_job_is_shown_alike() {
        let entry = |round| map_reduce::Entry { round, seconds: 2.0 * round as f64, loss: 0.5 };
        let run = map_reduce::Outcome {
            n_workers: 1,
            reduce: ps_common::job::Aggregate::WeightedMean,
            dim: 10,
            bytes_sent: 2048,
            diverged_in_round: Some(2),
            history: vec![entry(0), entry(1)],
            accuracy: None,
            theta_sha256: String::new(),
        };
        let text = [
            "map-reduce, weighted-mean | 1 worker | 2.0 KiB sent",
            "",
            "  round   time    loss",
            "      0    0 s  0.5000",
            "      1  2.0 s  0.5000",
            "",
            "Diverged in round 2: theta overflowed; lower --lr.",
            "",
        ]
        .join("\n");
        assert_eq!(map_reduce_summary(&run, &Look::plain(false)), text);
        let curve = map_reduce_curve("one", &run, Over::Seconds);
        assert_eq!(curve.points, [(0.0, 0.5), (2.0, 0.5)]);
    }

    #[test]
    fn curves_are_over_rounds_or_time() {
        let run = run(3);
        let over = |over| loss_curve("ring", &run, over).points;
        assert_eq!(over(Over::Rounds), [(0.0, 1.5), (1.0, 1.5), (2.0, 1.5)]);
        assert_eq!(over(Over::Seconds)[2], (1.0, 1.5));
        assert_eq!(disagreement_curve("ring", &run, Over::Rounds).points[1], (1.0, 0.25));
    }
}

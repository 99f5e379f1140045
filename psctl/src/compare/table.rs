//! The figures of a comparison as text: a row a variant, what it took to reach which loss, and how
//! runs ended that are not done. Pure.

use ps_common::units::show_bytes;

use super::curve::{Band, Effort};
use super::figures::{Figures, VariantFigures};
use super::outcome::Fate;
use crate::show::look::Tone;
use crate::show::table::{Align, Table};
use crate::show::{Look, number};

/// What a figure shows that there is not.
const NONE: &str = "-";

/// The whole text, lines ending in `\n`.
pub(super) fn render(figures: &Figures, look: &Look) -> String {
    let variants = || figures.variants.iter().filter(|variant| !variant.runs.is_empty());
    let mut out = results(figures, &variants().collect::<Vec<_>>(), look);
    if !figures.to_loss.is_empty() {
        out.push('\n');
        out.push_str(&reached(figures, &variants().collect::<Vec<_>>(), look));
    }
    let notes = notes(figures, look);
    if !notes.is_empty() {
        out.push('\n');
        out.push_str(&notes);
    }
    out
}

/// A column: its heading, and what it shows of a variant.
type Column<'a> = (&'a str, Box<dyn Fn(&VariantFigures) -> String + 'a>);

fn results(figures: &Figures, variants: &[&VariantFigures], look: &Look) -> String {
    let several = figures.seeds > 1;
    let mut columns: Vec<Column> =
        vec![("K", Box::new(|v| v.n_workers.to_string())), ("loss", Box::new(|v| loss(v, look)))];
    if several {
        let dots = look.pick("…", "..");
        let band = move |band: Band| {
            format!("{} {dots} {}", number::loss(band.min), number::loss(band.max))
        };
        columns.push(("of all seeds", Box::new(move |v| v.loss.map_or(NONE.to_owned(), band))));
    }
    let any = |figure: fn(&VariantFigures) -> Option<Band>| {
        variants.iter().any(|variant| figure(variant).is_some())
    };
    if any(|v| v.test_accuracy) {
        columns.push(("test acc.", Box::new(|v| median(v.test_accuracy, number::percent))));
    } else if any(|v| v.test_loss) {
        columns.push(("test loss", Box::new(|v| median(v.test_loss, number::loss))));
    }
    columns.push(("rounds", Box::new(|v| median(v.rounds, number::rounds))));
    columns.push(("pushes", Box::new(|v| median(v.pushes, whole))));
    columns.push(("time", Box::new(|v| median(v.wall_seconds, number::seconds))));
    columns.push(("pushes/s", Box::new(|v| median(v.pushes_per_second, whole))));
    columns.push(("delay", Box::new(|v| median(v.gradient_delay, |d| format!("{d:.1}")))));
    columns.push(("bytes/worker", Box::new(bytes)));
    let headings = columns.iter().map(|(heading, _)| (*heading, Align::Right));
    let mut table = Table::new(std::iter::once(("variant", Align::Left)).chain(headings));
    for variant in variants {
        let cells = columns.iter().map(|(_, cell)| cell(variant));
        table.row(std::iter::once(look.clean(&variant.name)).chain(cells));
    }
    // A name that is cut would be no name.
    table.render("", table.natural_width().max(look.width))
}

/// The final loss, or the word that stands in its place.
fn loss(variant: &VariantFigures, look: &Look) -> String {
    match (variant.loss, variant.fate()) {
        (Some(band), _) => look.paint(Tone::Strong, &number::loss(band.median)),
        (None, Fate::Diverged) => look.paint(Tone::Bad, "diverged"),
        (None, Fate::Failed) => look.paint(Tone::Bad, "failed"),
        (None, Fate::Done) => NONE.to_owned(),
    }
}

fn median(band: Option<Band>, show: impl Fn(f64) -> String) -> String {
    band.map_or_else(|| NONE.to_owned(), |band| show(band.median))
}

fn whole(n: f64) -> String {
    number::count(n.round() as u64)
}

/// Both ways together.
fn bytes(variant: &VariantFigures) -> String {
    match (variant.bytes_sent_per_worker, variant.bytes_received_per_worker) {
        (Some(sent), Some(received)) => show_bytes((sent.median + received.median).round() as u64),
        _ => NONE.to_owned(),
    }
}

fn reached(figures: &Figures, variants: &[&VariantFigures], look: &Look) -> String {
    let at_most = look.pick("≤", "<=");
    let headings: Vec<String> =
        figures.to_loss.iter().map(|level| format!("loss {at_most} {level}")).collect();
    let columns = headings.iter().map(|heading| (heading.as_str(), Align::Right));
    let mut table = Table::new(std::iter::once(("reached after", Align::Left)).chain(columns));
    for variant in variants {
        let cells = variant.reached.iter().map(|r| effort(r.effort.as_ref()));
        table.row(std::iter::once(look.clean(&variant.name)).chain(cells));
    }
    let words = look.paint(Tone::Faint, "rounds / pushes / time; - if never");
    format!("{}{words}\n", table.render("", table.natural_width().max(look.width)))
}

fn effort(effort: Option<&Effort>) -> String {
    effort.map_or_else(
        || NONE.to_owned(),
        |e| {
            let (pushes, time) = (whole(e.pushes), number::seconds(e.seconds));
            format!("{} / {pushes} / {time}", number::rounds(e.rounds))
        },
    )
}

/// A line for every run that is not done, and one if there should have been more.
fn notes(figures: &Figures, look: &Look) -> String {
    let mut lines = String::new();
    for variant in &figures.variants {
        for run in variant.runs.iter().filter(|run| run.outcome != Fate::Done) {
            let how = if run.outcome == Fate::Diverged { "diverged" } else { "failed" };
            let who = format!("{}, seed {}", look.clean(&variant.name), run.seed);
            let why = look.clean(run.reason.as_deref().unwrap_or_default());
            lines.push_str(&format!("{who}: {} ({why})\n", look.paint(Tone::Bad, how)));
        }
    }
    if figures.interrupted {
        let text = "interrupted: the figures are of the runs that had ended";
        lines.push_str(&format!("{}\n", look.paint(Tone::Warn, text)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::figures::Compared;
    use super::super::outcome::Run;
    use super::super::{args, variant};
    use super::*;
    use crate::local::Trained;
    use crate::show::summary::tests::report;
    use ps_common::exit::{Exit, ExitError};

    fn compared(arguments: &[&str], losses: &[&[Option<f64>]]) -> Vec<Compared> {
        let variants = variant::all(&args::tests::compare(arguments)).expect("variants");
        let run = |(seed, loss): (usize, &Option<f64>)| {
            let error = || ExitError::new(Exit::BadData, "x.csv:3: no number");
            let trained = match loss {
                None => Trained { report: None, error: Some(error()) },
                Some(loss) => {
                    let mut report = report();
                    report.r#final.loss = Some(*loss);
                    report.history[1].loss = *loss;
                    Trained { report: Some(report), error: None }
                }
            };
            Run::of(seed as u64, trained)
        };
        let runs = |losses: &&[Option<f64>]| losses.iter().enumerate().map(run).collect();
        let pairs = variants.into_iter().zip(losses);
        pairs.map(|(variant, losses)| Compared { variant, runs: runs(losses) }).collect()
    }

    #[test]
    fn a_row_a_variant_with_medians_and_bands() {
        let losses: [&[_]; 2] = [&[Some(0.5), Some(0.25), Some(0.375)], &[Some(1.0), Some(1.0)]];
        let figures = Figures::of(&compared(&["--seeds=3"], &losses), 3, &[0.5, 0.1], 6);
        let text = render(&figures, &Look { width: 120, ..Look::plain(true) });
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("variant  K    loss     of all seeds  test acc.  rounds"));
        assert!(lines[1].starts_with("sync     4  0.3750  0.2500 … 0.5000     85.3 %"), "{text}");
        assert!(lines[2].contains("1.0000 … 1.0000"), "{text}");
        assert_eq!(lines[4].split_whitespace().last(), Some("0.1"));
        // From ln 10 over 100 rounds of 2 workers: 0.5 is passed after 100, 88 and 94 rounds.
        assert!(lines[5].contains(" 94 / 188 / 0 s "), "{text}");
        assert!(lines[6].ends_with(" -"), "never: {text}");
        assert!(text.contains("interrupted"), "five of six runs: {text}");
    }

    #[test]
    fn what_is_not_done_is_told_with_its_reason() {
        let losses: [&[_]; 2] = [&[None], &[Some(100.0)]];
        let figures = Figures::of(&compared(&[], &losses), 1, &[], 2);
        assert_eq!((figures.n_failed(), figures.to_loss.len()), (1, 0));
        let text = render(&figures, &Look::plain(false));
        assert!(text.is_ascii(), "{text}");
        assert!(text.contains("sync     4    failed"), "{text}");
        assert!(text.contains("async    4  diverged"), "{text}");
        assert!(text.contains("sync, seed 0: failed (x.csv:3: no number)\n"), "{text}");
        assert!(text.contains("async, seed 0: diverged (the loss went from"), "{text}");
        assert!(!text.contains("interrupted"), "{text}");
    }

    #[test]
    fn levels_are_chosen_so_that_all_reach_all_but_the_last() {
        let losses: [&[_]; 2] = [&[Some(0.5)], &[Some(0.25)]];
        let figures = Figures::of(&compared(&[], &losses), 1, &[], 2);
        assert_eq!(figures.to_loss, [1.1, 0.5, 0.25]);
        let got: Vec<_> = figures.variants.iter().map(|v| v.reached[2].n_runs).collect();
        assert_eq!(got, [0, 1]);
        assert!(figures.variants.iter().all(|v| v.reached[1].n_runs == 1));
    }
}

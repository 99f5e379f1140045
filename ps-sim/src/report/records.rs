//! Figures that other programs took, as they stand in `docs/RELIABILITY.md`: read and counted, said to
//! be read, with the commit that their lines are from.

use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::figures::{Part, Table};
use super::origin::git;
use super::{DOC, Setting};

/// What stands in the document.
#[derive(Debug, Serialize)]
struct Records {
    source: &'static str,
    faults: Faults,
    bugs: Vec<Bug>,
    bugs_as_of: String,
    fuzz_runs: Option<FuzzRuns>,
}

/// The table that the tests of the fault list compare their lines with.
#[derive(Debug, Serialize)]
struct Faults {
    lines: usize,
    /// Rows of the fault list that they belong to.
    rows: usize,
    /// Lines in which something was disturbed.
    disturbed: usize,
    as_of: String,
}

/// A bug that the simulator has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Bug {
    seeds: String,
    what: String,
    state: String,
}

/// libFuzzer's runs.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct FuzzRuns {
    executions: u64,
    crashes: u64,
    as_of: String,
}

/// Reads them.
pub(super) fn measure(setting: &Setting) -> Result<Part> {
    let root = setting.root()?;
    let text = std::fs::read_to_string(root.join(DOC)).with_context(|| DOC.to_owned())?;
    let records = read(&text, |lines| as_of(root, &lines))?;
    let mut part = Part::of(&records);
    let faults = &records.faults;
    part.notes.push(format!("Not measured in this run: read from {DOC}."));
    let mut table = Table::new(&["figure", "value", "lines last changed in"]);
    table.row([
        "lines of the fault table, each seen by a test".to_owned(),
        format!("{}, for {} rows of the fault list", faults.lines, faults.rows),
        faults.as_of.clone(),
    ]);
    table.row([
        "- of these with theta changed or good workers disturbed".to_owned(),
        faults.disturbed.to_string(),
        faults.as_of.clone(),
    ]);
    table.row([
        "bugs found by the simulator".to_owned(),
        records.bugs.len().to_string(),
        records.bugs_as_of.clone(),
    ]);
    for (what, of) in [
        ("libFuzzer: executions", (|r| r.executions) as fn(&FuzzRuns) -> u64),
        ("libFuzzer: crashes", |r| r.crashes),
    ] {
        let runs = records.fuzz_runs.as_ref();
        table.row([
            what.to_owned(),
            runs.map_or("no run is recorded".to_owned(), |runs| of(runs).to_string()),
            runs.map_or(String::new(), |runs| runs.as_of.clone()),
        ]);
    }
    part.tables.push(table);
    // The document has this table already.
    if !setting.args.markdown() {
        let mut bugs = Table::new(&["seed", "bug", "state"]);
        for bug in &records.bugs {
            bugs.row([bug.seeds.clone(), bug.what.clone(), bug.state.clone()]);
        }
        part.tables.push(bugs);
    }
    if faults.disturbed > 0 {
        part.failures.push(format!("{} lines of the fault table are not well", faults.disturbed));
    }
    if let Some(FuzzRuns { crashes: n @ 1.., .. }) = records.fuzz_runs {
        part.failures.push(format!("libFuzzer: {n} crashes"));
    }
    Ok(part)
}

/// Everything of the document; `as_of` tells from when lines are, by their numbers.
fn read(text: &str, as_of: impl Fn(RangeInclusive<usize>) -> String) -> Result<Records> {
    let (at, lines) = table_after(text, "<!-- fault table: begin -->")?;
    let rows: std::collections::BTreeSet<&str> =
        lines.iter().map(|cells| cells[0].as_str()).collect();
    let is_well = |cells: &&Vec<String>| cells[3..].iter().all(|cell| cell != "no");
    let faults = Faults {
        lines: lines.len(),
        rows: rows.len(),
        disturbed: lines.len() - lines.iter().filter(is_well).count(),
        as_of: as_of(at),
    };
    let (at, lines) = table_after(text, "## Found by simulation")?;
    let bugs = lines
        .iter()
        .map(|cells| match &cells[..] {
            [seeds, what, state] => {
                Ok(Bug { seeds: seeds.clone(), what: what.clone(), state: state.clone() })
            }
            _ => anyhow::bail!("{DOC}: a bug has a seed, what it was, and its state: {cells:?}"),
        })
        .collect::<Result<_>>()?;
    let bugs_as_of = as_of(at);
    let fuzz_runs = match text.contains(FUZZ_RUNS) {
        true => Some(fuzz_runs(text, &as_of)?),
        false => None,
    };
    Ok(Records { source: DOC, faults, bugs, bugs_as_of, fuzz_runs })
}

/// Before the table `| target | executions | crashes | ...` of libFuzzer's runs, once there are any.
const FUZZ_RUNS: &str = "<!-- fuzz runs: begin -->";

fn fuzz_runs(text: &str, as_of: impl Fn(RangeInclusive<usize>) -> String) -> Result<FuzzRuns> {
    let (at, lines) = table_after(text, FUZZ_RUNS)?;
    let mut runs = FuzzRuns { executions: 0, crashes: 0, as_of: as_of(at) };
    for cells in &lines {
        let number = |column: usize| {
            let cell = cells.get(column).map_or("", String::as_str).replace([',', ' '], "");
            cell.parse::<u64>()
                .with_context(|| format!("{DOC}: fuzz runs: `{cell}` in {cells:?} is no count"))
        };
        runs.executions += number(1)?;
        runs.crashes += number(2)?;
    }
    Ok(runs)
}

/// The rows of the first table after `mark`, without its head, and the numbers of their lines from 1.
fn table_after(text: &str, mark: &str) -> Result<(RangeInclusive<usize>, Vec<Vec<String>>)> {
    let place = text.find(mark).with_context(|| format!("{DOC} has no `{mark}`"))?;
    let first = text[..place].lines().count() + 1;
    let lines = text[place..].lines().zip(first..);
    let table = lines
        .skip_while(|(line, _)| !line.starts_with('|'))
        .take_while(|(line, _)| line.starts_with('|'));
    let table: Vec<_> = table.skip(2).collect();
    ensure!(!table.is_empty(), "{DOC}: no table with rows after `{mark}`");
    let at = table[0].1..=table[table.len() - 1].1;
    let cells =
        |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    Ok((at, table.iter().map(|(line, _)| cells(line)).collect()))
}

/// The newest commit that changed these lines.
fn as_of(root: &Path, lines: &RangeInclusive<usize>) -> String {
    let range = format!("-L{},{}:{DOC}", lines.start(), lines.end());
    git(root, &["log", "-1", "-s", "--format=%cs, commit %h", &range])
        .unwrap_or_else(|| "unknown: no history here".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# Reliability
<!-- fault table: begin -->
| row | injected fault | answer | theta unchanged | good workers undisturbed |
|---|---|---|---|---|
| 1 | a | OK (x) | yes | yes |
| 1 | b | OK | no | yes |
| 2 | c | OK | does not apply | does not apply |
<!-- fault table: end -->
## Found by simulation

Words.

| seed | what it was | state |
|---|---|---|
| 11, 35 | it stood still | fixed: no more |

| bug | found by |
|---|---|
| another | table |
";

    #[test]
    fn what_stands_there_is_counted_with_its_lines() {
        let records = read(TEXT, |lines| format!("{lines:?}")).expect("reads");
        let faults = &records.faults;
        assert_eq!((faults.lines, faults.rows, faults.disturbed), (3, 2, 1));
        assert_eq!(faults.as_of, "5..=7");
        assert_eq!(records.bugs.len(), 1);
        assert_eq!(
            (records.bugs[0].seeds.as_str(), records.bugs_as_of.as_str()),
            ("11, 35", "15..=15")
        );
        assert_eq!(records.fuzz_runs, None);
    }

    #[test]
    fn runs_of_libfuzzer_are_added_up_and_typed_errors_are_refused() {
        let runs = |row: &str| {
            let head = "| target | executions | crashes |\n|---|---|---|\n| csv | 1,000 | 0 |";
            read(&format!("{TEXT}\n{FUZZ_RUNS}\n{head}\n{row}\n"), |_| "then".to_owned())
        };
        let read = runs("| wire | 20 | 1 | 7 s |").expect("reads").fuzz_runs;
        assert_eq!(read, Some(FuzzRuns { executions: 1020, crashes: 1, as_of: "then".to_owned() }));
        let error = runs("| wire | many | 0 |").expect_err("no count");
        assert!(error.to_string().contains("`many`"), "{error}");
        assert!(super::read("nothing", |_| String::new()).is_err());
    }

    #[test]
    fn the_document_can_be_read() {
        let text =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(DOC));
        let records = read(&text.expect("the document"), |_| String::new()).expect("reads");
        assert_eq!(records.faults.rows, 48);
        assert!(records.faults.lines > 60 && records.faults.disturbed == 0);
        assert!(records.bugs.len() >= 4);
    }
}

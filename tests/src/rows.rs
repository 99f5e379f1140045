//! The table of the fault list in `docs/RELIABILITY.md`, line by line.
//!
//! Every test of a row ends with [`stands`]: the line that follows from what it has seen must be the
//! one that stands in the table, so the table holds nothing that no test has seen. With `PS_BLESS=1`
//! the line is written instead.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::PathBuf;

use ps_common::wire::pb;
use tonic::{Code, Status};

use crate::{Caller, project_root, reason_of};

const BEGIN: &str = "<!-- fault table: begin -->";
const END: &str = "<!-- fault table: end -->";
const HEAD: &str = "| row | injected fault | answer | theta unchanged | good workers undisturbed |\n\
                    |---|---|---|---|---|";

/// Rows of the fault list.
pub const N_ROWS: u32 = 48;

/// What a test saw of theta and of those who did nothing wrong; `None` where there is nothing to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// theta's bits are those of before the fault, or at a job's end those without it.
    pub theta_unchanged: Option<bool>,
    /// Those beside the fault went on.
    pub good_undisturbed: Option<bool>,
}

impl Seen {
    /// Nobody was there but the one at fault: a program that did not start.
    pub const NOBODY: Self = Self { theta_unchanged: None, good_undisturbed: None };

    /// Compares theta with `before`, as `good` pulls it, and lets `good` push: zeros, which count
    /// and leave theta where it is.
    pub async fn by(good: &mut Caller, before: &(u64, Vec<u8>)) -> Self {
        let unchanged = good.pull().await.is_ok_and(|now| now == *before);
        let zeros = vec![0.0; before.1.len() / 4];
        let counted = good.step(&zeros).await;
        let counted = counted.is_ok_and(|result| result.outcome() == pb::Outcome::Applied);
        Self { theta_unchanged: Some(unchanged), good_undisturbed: Some(counted) }
    }

    /// All of it well, as far as there was something to see.
    #[must_use]
    pub fn is_well(self) -> bool {
        self.theta_unchanged != Some(false) && self.good_undisturbed != Some(false)
    }
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// Of the fault list.
    pub row: u32,
    /// In words.
    pub fault: String,
    rest: String,
}

impl Line {
    fn parse(text: &str) -> Option<Self> {
        let (row, rest) = text.strip_prefix("| ")?.split_once(" | ")?;
        let (fault, rest) = rest.split_once(" | ")?;
        Some(Self { row: row.parse().ok()?, fault: fault.to_owned(), rest: rest.to_owned() })
    }

    /// Whether it says that nothing was disturbed.
    pub fn is_well(&self) -> bool {
        let cells: Vec<_> = self.rest.trim_end_matches(" |").split(" | ").collect();
        matches!(cells[..], [_, theta, good] if theta != "no" && good != "no")
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "| {} | {} | {}", self.row, self.fault, self.rest)
    }
}

/// Asserts that this line stands in the table, or writes it with `PS_BLESS=1`.
///
/// # Panics
/// If it does not, or if something was disturbed.
#[track_caller]
pub fn stands(row: u32, fault: &str, answer: &str, seen: Seen) {
    assert!(seen.is_well(), "row {row}, {fault}, answered {answer}: {seen:?}");
    assert!(!fault.contains('|') && !answer.contains('|'), "{fault}: {answer}");
    let cell = |value: Option<bool>| match value {
        Some(true) => "yes",
        Some(false) => "no",
        None => "does not apply",
    };
    let rest =
        format!("{answer} | {} | {} |", cell(seen.theta_unchanged), cell(seen.good_undisturbed));
    let line = Line { row, fault: fault.to_owned(), rest };
    if std::env::var_os("PS_BLESS").is_some_and(|value| value == "1") {
        bless(&line);
    }
    let lines = table();
    assert!(
        lines.contains(&line),
        "docs/RELIABILITY.md does not have this line (PS_BLESS=1 writes it):\n{line}\nit has:\n{}",
        lines.iter().filter(|l| l.row == row).map(|l| format!("{l}\n")).collect::<String>(),
    );
}

/// A status as the table says it: `INVALID_ARGUMENT (NON_FINITE)`.
pub fn refusal(status: &Status) -> String {
    let (code, reason) = reason_of(status);
    refusal_of(code, &reason)
}

/// A code and a reason as the table says them.
pub fn refusal_of(code: Code, reason: &str) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    match reason {
        "" => name,
        reason => format!("{name} ({reason})"),
    }
}

/// A push's result as the table says it: `OK (DUPLICATE)`.
pub fn outcome(result: &pb::PushResult) -> String {
    format!("OK ({})", result.outcome().as_str_name().trim_start_matches("OUTCOME_"))
}

/// The lines of the table.
///
/// # Panics
/// If there is no table.
pub fn table() -> Vec<Line> {
    let mut file = File::open(path()).expect("docs/RELIABILITY.md is part of the repository");
    // Others may be blessing.
    file.lock_shared().expect("lockable");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("text");
    let (_, lines, _) = parts(&text);
    lines
}

fn path() -> PathBuf {
    project_root().join("docs/RELIABILITY.md")
}

fn parts(text: &str) -> (&str, Vec<Line>, &str) {
    let (before, rest) = text.split_once(BEGIN).expect("the table's begin is marked");
    let (table, after) = rest.split_once(END).expect("the table's end is marked");
    (before, table.lines().filter_map(Line::parse).collect(), after)
}

fn bless(line: &Line) {
    let mut file = OpenOptions::new().read(true).write(true).open(path()).expect("writable");
    file.lock().expect("lockable");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("text");
    let (before, mut lines, after) = parts(&text);
    lines.retain(|old| (old.row, &old.fault) != (line.row, &line.fault));
    lines.push(line.clone());
    lines.sort();
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    file.set_len(0).expect("writable");
    file.rewind().expect("seekable");
    write!(file, "{before}{BEGIN}\n{HEAD}\n{lines}{END}{after}").expect("writable");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_is_written() {
        let text = "| 7 | a fault | OK (DUPLICATE) | yes | does not apply |";
        let line = Line::parse(text).expect("a line");
        assert_eq!((line.row, line.fault.as_str(), line.is_well()), (7, "a fault", true));
        assert_eq!(line.to_string(), text);
        assert!(!Line::parse(&text.replace("yes", "no")).expect("a line").is_well());
        assert_eq!(Line::parse("|---|---|"), None);
        assert_eq!(Line::parse("| row | injected fault | answer |"), None);
        assert_eq!(refusal_of(Code::InvalidArgument, "EMPTY"), "INVALID_ARGUMENT (EMPTY)");
        assert_eq!(refusal_of(Code::Internal, ""), "INTERNAL");
    }
}

//! What a part of the report has to say: tables for readers, the same as JSON, and what did not hold.

use serde::Serialize;
use serde_json::Value;

/// Columns and rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|&cell| cell.to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row, a cell a column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(N, self.head.len(), "a cell a column");
        self.rows.push(cells.into());
    }

    /// In columns that line up.
    pub(crate) fn text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().chain([&self.head]).map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
            format!("  {}", cells.collect::<Vec<_>>().join("  ").trim_end())
        };
        let rule = widths.iter().map(|&width| "-".repeat(width)).collect();
        [&self.head, &rule].into_iter().chain(&self.rows).map(line).collect::<Vec<_>>().join("\n")
    }

    /// As Markdown.
    pub(crate) fn markdown(&self) -> String {
        let line = |row: &Vec<String>| {
            let cells: Vec<_> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |", cells.join(" | "))
        };
        let rule = format!("|{}", "---|".repeat(self.head.len()));
        let rows = self.rows.iter().map(line);
        [line(&self.head), rule].into_iter().chain(rows).collect::<Vec<_>>().join("\n")
    }
}

/// What one section has measured or read.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// How it was measured, where it was read.
    pub(crate) notes: Vec<String>,
    pub(crate) tables: Vec<Table>,
    /// The same figures, for programs.
    pub(crate) figures: Value,
    /// Promises that did not hold.
    pub(crate) failures: Vec<String>,
}

impl Part {
    /// A part with these figures and nothing else yet.
    pub(crate) fn of(figures: &impl Serialize) -> Self {
        let figures = serde_json::to_value(figures).expect("figures are plain data");
        Self { notes: Vec::new(), tables: Vec::new(), figures, failures: Vec::new() }
    }
}

/// How many times something took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) n: usize,
    pub(crate) min_ms: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

impl Spread {
    /// Of all these; `None` of none.
    pub(crate) fn of(mut ms: Vec<f64>) -> Option<Self> {
        ms.sort_by(f64::total_cmp);
        let last = ms.len().checked_sub(1)?;
        // The value that so large a share is not above.
        let at =
            |share: f64| ms[((ms.len() as f64 * share).ceil() as usize).clamp(1, ms.len()) - 1];
        Some(Self {
            n: ms.len(),
            min_ms: ms[0],
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            max_ms: ms[last],
        })
    }

    /// One of its values as text.
    pub(crate) fn show(ms: f64) -> String {
        match ms {
            ms if ms.abs() < 10.0 => format!("{ms:.2} ms"),
            ms if ms.abs() < 100.0 => format!("{ms:.1} ms"),
            ms => format!("{ms:.0} ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_all_values() {
        assert_eq!(Spread::of(vec![]), None);
        let spread = Spread::of((1..=200).rev().map(f64::from).collect()).expect("some");
        assert_eq!((spread.n, spread.min_ms, spread.p50_ms), (200, 1.0, 100.0));
        assert_eq!((spread.p99_ms, spread.max_ms), (198.0, 200.0));
        let one = Spread::of(vec![7.0]).expect("one");
        assert_eq!((one.min_ms, one.p50_ms, one.p99_ms, one.max_ms), (7.0, 7.0, 7.0, 7.0));
    }

    #[test]
    fn tables_line_up_and_escape() {
        let mut table = Table::new(&["what", "n"]);
        table.row(["a|b".to_owned(), "1".to_owned()]);
        assert_eq!(table.text(), "  what  n\n  ----  -\n  a|b   1");
        assert_eq!(table.markdown(), "| what | n |\n|---|---|\n| a\\|b | 1 |");
    }
}

//! What a scenario has found, as rows of named figures: table, CSV, JSON. Computes nothing.

use serde_json::{Map, Value};

use crate::show::chart::Chart;
use crate::show::number;
use crate::show::table::{Align, Table};

/// A figure or a word.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    /// A case, an outcome.
    Word(String),
    /// A whole number.
    Count(u64),
    /// Seconds.
    Seconds(f64),
    /// A part of 1.
    Share(f64),
    /// An objective.
    Loss(f64),
    /// Any other number.
    Ratio(f64),
    /// There is none.
    Nothing,
}

/// Rows under headings, and their picture.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Findings {
    /// As JSON and CSV name them, with units last; tables show them with blanks and without
    /// `_seconds`, `_share`.
    pub(super) columns: Vec<&'static str>,
    /// Each as long as `columns`.
    pub(super) rows: Vec<Vec<Cell>>,
    /// What the paper's figure shows.
    pub(super) chart: Chart,
}

impl Cell {
    /// For a person.
    fn text(&self) -> String {
        match self {
            Self::Word(word) => word.clone(),
            Self::Count(n) => number::count(*n),
            Self::Seconds(s) => number::seconds(*s),
            Self::Share(share) => number::percent(*share),
            Self::Loss(loss) => number::loss(*loss),
            Self::Ratio(ratio) => format!("{ratio:.2}"),
            Self::Nothing => "-".to_owned(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Word(word) => Value::from(word.clone()),
            Self::Count(n) => Value::from(*n),
            Self::Seconds(x) | Self::Share(x) | Self::Loss(x) | Self::Ratio(x) => Value::from(*x),
            Self::Nothing => Value::Null,
        }
    }
}

impl Findings {
    /// A row each, numbers to the right.
    pub(super) fn table(&self) -> Table {
        let heading = |name: &str| {
            let name = name.strip_suffix("_seconds").or_else(|| name.strip_suffix("_share"));
            name.map(str::to_owned)
        };
        let names: Vec<String> = self
            .columns
            .iter()
            .map(|name| heading(name).unwrap_or_else(|| (*name).to_owned()).replace('_', " "))
            .collect();
        let align = |column: usize| match self.rows.first().map(|row| &row[column]) {
            Some(Cell::Word(_)) => Align::Left,
            _ => Align::Right,
        };
        let aligned = names.iter().enumerate().map(|(i, name)| (name.as_str(), align(i)));
        let mut table = Table::new(aligned);
        for row in &self.rows {
            table.row(row.iter().map(Cell::text));
        }
        table
    }

    /// An object for each row.
    pub(super) fn json(&self) -> Vec<Map<String, Value>> {
        let object = |row: &Vec<Cell>| {
            let pairs = self.columns.iter().zip(row);
            pairs.map(|(name, cell)| ((*name).to_owned(), cell.json())).collect()
        };
        self.rows.iter().map(object).collect()
    }

    /// A line for each row, under a line of names. No word has a comma.
    pub(super) fn csv(&self) -> String {
        let mut out = self.columns.join(",") + "\n";
        for row in &self.rows {
            let cells: Vec<String> = row
                .iter()
                .map(|cell| match cell.json() {
                    Value::String(word) => word,
                    Value::Null => String::new(),
                    other => other.to_string(),
                })
                .collect();
            out.push_str(&(cells.join(",") + "\n"));
        }
        out
    }

    /// The figures of a column, row after row; what is none is no number.
    #[cfg(test)]
    pub(super) fn column(&self, name: &str) -> Vec<f64> {
        let at = self.columns.iter().position(|column| *column == name).expect("a column");
        self.rows.iter().map(|row| row[at].json().as_f64().unwrap_or(f64::NAN)).collect()
    }
}

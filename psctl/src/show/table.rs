//! Text tables with aligned columns. Widths are those on the screen: colour codes count nothing,
//! wide characters two.

use console::{measure_text_width, truncate_str};

/// Between two columns.
const GAP: &str = "  ";
/// A text column is never cut below this.
const COLUMN_MIN: usize = 6;

/// On which side a column's cells meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text. May be cut with a mark where the table is too wide.
    Left,
    /// Figures. Never cut.
    Right,
}

/// A table: one heading per column, any number of rows.
#[derive(Debug, Clone)]
pub struct Table {
    headings: Vec<String>,
    aligns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows. A heading may be empty; if all are, no heading line is shown.
    pub fn new<'a>(columns: impl IntoIterator<Item = (&'a str, Align)>) -> Self {
        let (headings, aligns) =
            columns.into_iter().map(|(heading, align)| (heading.to_owned(), align)).unzip();
        Self { headings, aligns, rows: Vec::new() }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// If there are not as many cells as columns: the row's writer has a bug.
    pub fn row<C: Into<String>>(&mut self, cells: impl IntoIterator<Item = C>) {
        let row: Vec<String> = cells.into_iter().map(Into::into).collect();
        assert_eq!(row.len(), self.aligns.len(), "one cell per column");
        self.rows.push(row);
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Columns that the table takes when nothing is cut.
    pub fn natural_width(&self) -> usize {
        total_width(&self.natural_widths())
    }

    /// The table as lines, each with `indent` before it and `\n` after it, nothing trailing.
    ///
    /// Where it is wider than `width` columns (indent included), text columns are cut, the widest
    /// first; figures are not, so the lines may still be wider.
    pub fn render(&self, indent: &str, width: usize) -> String {
        let widths = self.fitted_widths(width.saturating_sub(measure_text_width(indent)));
        let mut out = String::new();
        let headed = self.headings.iter().any(|heading| !heading.is_empty());
        for row in headed.then_some(&self.headings).into_iter().chain(&self.rows) {
            let mut line = indent.to_owned();
            for (i, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                if i > 0 {
                    line.push_str(GAP);
                }
                line.push_str(&aligned(cell, width, self.aligns[i]));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }

    fn natural_widths(&self) -> Vec<usize> {
        let widest = |column: usize| {
            let cells = self.rows.iter().map(|row| &row[column]);
            cells.chain([&self.headings[column]]).map(|cell| measure_text_width(cell)).max()
        };
        (0..self.aligns.len()).map(|column| widest(column).unwrap_or(0)).collect()
    }

    fn fitted_widths(&self, width: usize) -> Vec<usize> {
        let mut widths = self.natural_widths();
        while total_width(&widths) > width {
            let cuttable = (0..widths.len())
                .filter(|&i| self.aligns[i] == Align::Left && widths[i] > COLUMN_MIN)
                .max_by_key(|&i| widths[i]);
            let Some(widest) = cuttable else { break };
            widths[widest] -= 1;
        }
        widths
    }
}

fn total_width(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1)
}

/// `text` in exactly `width` columns, filled with spaces or cut with `~`.
fn aligned(text: &str, width: usize, align: Align) -> String {
    let text = truncate_str(text, width, "~");
    let fill = " ".repeat(width.saturating_sub(measure_text_width(&text)));
    match align {
        Align::Left => format!("{text}{fill}"),
        Align::Right => format!("{fill}{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table =
            Table::new([("name", Align::Left), ("n", Align::Right), ("note", Align::Left)]);
        table.row(["a", "1", ""]);
        table.row(["longer", "12,345", "a remark on the row"]);
        table
    }

    #[test]
    fn columns_line_up_and_nothing_trails() {
        assert_eq!(
            table().render("  ", 80),
            "  name         n  note\n  a            1\n  longer  12,345  a remark on the row\n"
        );
        assert_eq!(table().natural_width(), 6 + 2 + 6 + 2 + 19);
    }

    #[test]
    fn text_is_cut_figures_are_not() {
        assert_eq!(
            table().render("", 26),
            "name         n  note\na            1\nlonger  12,345  a remark ~\n"
        );
        assert!(table().render("", 3).contains("12,345"));
    }

    #[test]
    fn width_is_what_the_screen_shows() {
        let mut table = Table::new([("", Align::Left), ("", Align::Left)]);
        table.row(["\x1b[31mred\x1b[0m", "x"]);
        table.row(["東京", "y"]);
        assert_eq!(table.render("", 80), "\x1b[31mred\x1b[0m   x\n東京  y\n");
    }

    #[test]
    fn no_headings_no_heading_line() {
        let mut table = Table::new([("", Align::Left)]);
        assert!(table.is_empty());
        assert_eq!(table.render("", 80), "");
        table.row(["x"]);
        assert_eq!(table.render("", 80), "x\n");
    }

    #[test]
    #[should_panic(expected = "one cell per column")]
    fn a_short_row_is_a_bug() {
        table().row(["only one"]);
    }
}

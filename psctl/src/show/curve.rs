//! A small chart in the terminal, out of braille dots or ASCII.

use super::number;
use super::ticks::Scale;

/// A braille character's dots, by row from the top, left then right (Unicode 16, "Braille
/// Patterns": bit n is dot n + 1).
const BRAILLE_BITS: [[u32; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];
const COLUMNS_MIN: usize = 8;
const ROWS_MIN: usize = 3;

/// What the curve is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// Two by four dots a character.
    Braille,
    /// `'`, `.` and `:`, one by two dots a character.
    Ascii,
}

/// Size and labels of a terminal chart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Columns in all, labels included; at least enough for 8 of curve.
    pub width: usize,
    /// Rows of curve, the axis and its labels not counted; at least 3.
    pub height: usize,
    /// What it is made of.
    pub marks: Marks,
    /// Whether y is logarithmic; points not above 0 are skipped then.
    pub log_y: bool,
    /// Below the middle of the x axis.
    pub x_label: &'a str,
}

/// The dots of the chart, `true` where the curve passes.
struct Dots {
    columns: usize,
    rows: usize,
    set: Vec<bool>,
}

/// The points joined in their order, as lines that each end in `\n`. y labels are the largest
/// value, the middle and the smallest; below stand the first and last x. Points that are not
/// finite leave a gap. Without any point the text says so.
pub fn draw(points: &[(f64, f64)], frame: &Frame<'_>) -> String {
    let placed =
        |&&(x, y): &&(f64, f64)| x.is_finite() && y.is_finite() && (!frame.log_y || y > 0.0);
    if !points.iter().any(|point| placed(&point)) {
        return "no points to draw\n".to_owned();
    }
    let x = Scale::over(points.iter().filter(placed).map(|p| p.0), false, 0.0);
    let y = Scale::over(points.iter().filter(placed).map(|p| p.1), frame.log_y, 0.0);
    let height = frame.height.max(ROWS_MIN);
    let labels = y_labels(&y, height, frame.log_y);
    let gutter = labels.iter().map(String::len).max().unwrap_or(0);
    let width = frame.width.saturating_sub(gutter + 2).max(COLUMNS_MIN);

    let (per_column, per_row) = match frame.marks {
        Marks::Braille => (2, 4),
        Marks::Ascii => (1, 2),
    };
    let mut dots = Dots::new(width * per_column, height * per_row);
    let mut previous = None;
    for &(px, py) in points {
        let place = x.at(px).zip(y.at(py)).map(|(u, v)| dots.place(u, v));
        if let Some(to) = place {
            dots.join(previous.unwrap_or(to), to);
        }
        previous = place;
    }

    let (corner, side, tick, floor) = match frame.marks {
        Marks::Braille => ('└', '│', '┤', '─'),
        Marks::Ascii => ('+', '|', '+', '-'),
    };
    let mut out = String::new();
    for (row, label) in labels.iter().enumerate() {
        let edge = if label.is_empty() { side } else { tick };
        let cells: String = (0..width).map(|column| dots.cell(column, row, frame.marks)).collect();
        out.push_str(format!("{label:>gutter$} {edge}{}", cells.trim_end()).trim_end());
        out.push('\n');
    }
    let line = String::from(floor).repeat(width);
    out.push_str(&format!("{:gutter$} {corner}{line}\n", ""));
    out.push_str(&format!("{:gutter$}  {}\n", "", x_line(&x, frame.x_label, width)));
    out
}

fn y_labels(y: &Scale, height: usize, log: bool) -> Vec<String> {
    let (lo, hi) = y.ends();
    let middle =
        if log { 10f64.powf(lo.log10() * 0.5 + hi.log10() * 0.5) } else { lo * 0.5 + hi * 0.5 };
    let mut labels = vec![String::new(); height];
    // Only the middle row of an odd height stands for the middle value.
    if height % 2 == 1 && height >= 5 {
        labels[height / 2] = number::loss(middle);
    }
    labels[0] = number::loss(hi);
    labels[height - 1] = number::loss(lo);
    labels
}

fn x_line(x: &Scale, label: &str, width: usize) -> String {
    let (first, last) = x.ends();
    let end = |value: f64| {
        let whole = value.fract() == 0.0 && value.abs() < 1e15;
        if whole { format!("{value:.0}") } else { number::loss(value) }
    };
    let (first, last) = (end(first), end(last));
    let free = width.saturating_sub(first.len() + last.len());
    let label_width = console::measure_text_width(label);
    if label_width + 2 > free {
        return format!("{first}{}{last}", " ".repeat(free.max(1)));
    }
    // Centred below the curve as far as the ends leave room.
    let before = (width / 2).saturating_sub(label_width / 2 + first.len());
    let before = before.clamp(1, free - label_width - 1);
    let after = free - label_width - before;
    format!("{first}{}{label}{}{last}", " ".repeat(before), " ".repeat(after))
}

impl Dots {
    fn new(columns: usize, rows: usize) -> Self {
        Self { columns, rows, set: vec![false; columns * rows] }
    }

    /// The dot at a share of the width (from the left) and of the height (from the bottom).
    fn place(&self, u: f64, v: f64) -> (i64, i64) {
        let column = (u * (self.columns - 1) as f64).round();
        let row = ((1.0 - v) * (self.rows - 1) as f64).round();
        (column as i64, row as i64)
    }

    /// Sets the dots on the straight line between two.
    fn join(&mut self, from: (i64, i64), to: (i64, i64)) {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let steps = dx.abs().max(dy.abs()).max(1);
        for i in 0..=steps {
            let share = i as f64 / steps as f64;
            let column = from.0 + (dx as f64 * share).round() as i64;
            let row = from.1 + (dy as f64 * share).round() as i64;
            let inside =
                (0..self.columns as i64).contains(&column) && (0..self.rows as i64).contains(&row);
            if inside {
                self.set[row as usize * self.columns + column as usize] = true;
            }
        }
    }

    fn is_set(&self, column: usize, row: usize) -> bool {
        self.set[row * self.columns + column]
    }

    fn cell(&self, column: usize, row: usize, marks: Marks) -> char {
        match marks {
            Marks::Ascii => {
                match (self.is_set(column, row * 2), self.is_set(column, row * 2 + 1)) {
                    (false, false) => ' ',
                    (true, false) => '\'',
                    (false, true) => '.',
                    (true, true) => ':',
                }
            }
            Marks::Braille => {
                let mut bits = 0;
                for (dy, pair) in BRAILLE_BITS.iter().enumerate() {
                    for (dx, bit) in pair.iter().enumerate() {
                        if self.is_set(column * 2 + dx, row * 4 + dy) {
                            bits |= bit;
                        }
                    }
                }
                // An empty cell is a space, so that lines can be trimmed.
                if bits == 0 { ' ' } else { char::from_u32(0x2800 + bits).unwrap_or('?') }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Frame<'_> =
        Frame { width: 28, height: 5, marks: Marks::Ascii, log_y: false, x_label: "round" };

    fn falling() -> Vec<(f64, f64)> {
        (0..=20).map(|i| (f64::from(i), (1.0 - f64::from(i) / 20.0) * 2.0)).collect()
    }

    #[test]
    fn a_straight_line_in_ascii() {
        let expected = "\
2.0000 +''..
       |    ''..
1.0000 +        ''..
       |            ''..
     0 +                ''..
       +--------------------
        0       round     20
";
        assert_eq!(draw(&falling(), &SMALL), expected);
    }

    #[test]
    fn a_straight_line_in_braille() {
        let frame = Frame { width: 18, height: 3, marks: Marks::Braille, ..SMALL };
        let expected = "\
2.0000 ┤⠑⠢⢄⡀
       │   ⠈⠑⢄⡀
     0 ┤      ⠈⠑⠢⢄
       └──────────
        0 round 20
";
        assert_eq!(draw(&falling(), &frame), expected);
    }

    #[test]
    fn exponential_decay_is_straight_on_a_logarithmic_axis() {
        let steps = || (0..=5).map(|i| f64::from(i) * 4.0);
        let straight: Vec<_> = steps().map(|x| (x, 1.0 - x / 20.0)).collect();
        let decay: Vec<_> = steps().map(|x| (x, 2.0 * 10f64.powf(-x / 10.0))).collect();
        let shape = |text: String| -> Vec<String> {
            let curves = text.lines().take(5);
            curves.map(|line| line.split(['+', '|']).nth(1).unwrap_or("").to_owned()).collect()
        };
        // One column more for the longer labels.
        let log = draw(&decay, &Frame { log_y: true, width: 29, ..SMALL });
        assert!(log.starts_with(" 2.0000 +'") && log.contains("\n0.02000 +"), "{log}");
        assert_eq!(shape(log), shape(draw(&straight, &SMALL)));
    }

    #[test]
    fn gaps_single_points_and_nothing() {
        assert_eq!(draw(&[], &SMALL), "no points to draw\n");
        assert_eq!(draw(&[(f64::NAN, 1.0), (0.0, f64::INFINITY)], &SMALL), "no points to draw\n");
        let lone = draw(&[(5.0, 0.5)], &SMALL);
        assert_eq!(lone.lines().filter(|line| line.ends_with(['.', '\''])).count(), 1, "{lone}");
        let gap = [(0.0, 1.0), (1.0, 1.0), (2.0, f64::NAN), (8.0, 1.0), (9.0, 0.0)];
        let text = draw(&gap, &SMALL);
        let first = text.lines().next().expect("a line");
        assert!(first.contains("'  "), "nothing joins the two sides: {text}");
    }

    #[test]
    fn any_size_and_range_gives_lines_of_the_width() {
        let wild = [(0.0, -1e308), (1e308, 1e308), (3.0, 5e-324)];
        for marks in [Marks::Ascii, Marks::Braille] {
            for (width, height) in [(0, 0), (1, 1), (200, 40)] {
                let text = draw(&wild, &Frame { width, height, marks, ..SMALL });
                assert_eq!(text.lines().count(), height.max(ROWS_MIN) + 2);
                let widest = text.lines().map(|line| line.chars().count()).max();
                assert!(widest <= Some(width.max(40)), "{text}");
            }
        }
    }
}

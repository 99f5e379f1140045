//! Lays a chart out: title and legend above the plot (so that no curve is ever covered), grid,
//! labels, series. Gives a list of things to ink, in units of the layout, y downwards.

use std::collections::HashMap;

use super::font::Face;
use super::{Chart, Series, Style};
use crate::show::ticks::Scale;

/// Units of the layout.
pub(super) const WIDTH: f64 = 800.0;
/// Units of the layout.
pub(super) const HEIGHT: f64 = 500.0;

const MARGIN: f64 = 18.0;
const TITLE_SIZE: f64 = 16.0;
const LABEL_SIZE: f64 = 12.5;
const TICK_SIZE: f64 = 11.5;
const LINE_WIDTH: f64 = 1.8;
const POINT_RADIUS: f64 = 3.0;
/// Share of the range left free above and below the data.
const PAD: f64 = 0.05;
/// Legends of many series end here.
const LEGEND_ROWS_MAX: usize = 4;

/// Red, green, blue.
pub(super) type Colour = [u8; 3];

const INK: Colour = [0x22, 0x22, 0x22];
const LABEL: Colour = [0x55, 0x55, 0x55];
const AXIS: Colour = [0x99, 0x99, 0x99];
const GRID: Colour = [0xe4, 0xe4, 0xe4];
const GRID_MINOR: Colour = [0xf3, 0xf3, 0xf3];

/// Colours that people with any colour vision tell apart (Okabe and Ito, "Color Universal Design",
/// 2008), in an order that keeps neighbours apart in lightness too; its yellow is too faint on
/// white.
const COLOURS: [Colour; 7] = [
    [0x00, 0x72, 0xb2],
    [0xd5, 0x5e, 0x00],
    [0x00, 0x9e, 0x73],
    [0xcc, 0x79, 0xa7],
    [0x56, 0xb4, 0xe9],
    [0xe6, 0x9f, 0x00],
    [0x33, 0x33, 0x33],
];

/// When the colours are used up they come again, dashed: (on, off) in units.
const DASHES: [Option<(f64, f64)>; 3] = [None, Some((7.0, 4.0)), Some((2.0, 3.0))];

/// Where a text's position lies in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// One thing to draw.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ink {
    /// A line along the points, with round joins and ends.
    Stroke { points: Vec<(f64, f64)>, width: f64, colour: Colour, dash: Option<(f64, f64)> },
    /// The inside of a polygon.
    Area { points: Vec<(f64, f64)>, colour: Colour, opacity: f64 },
    /// Filled discs.
    Dots { centres: Vec<(f64, f64)>, radius: f64, colour: Colour },
    /// One line of text; `at` is on its baseline.
    Text { at: (f64, f64), anchor: Anchor, upward: bool, face: TextFace, text: String },
}

/// How a text is set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct TextFace {
    /// Units per em.
    pub(super) size: f64,
    pub(super) bold: bool,
    pub(super) colour: Colour,
}

const TITLE_FACE: TextFace = TextFace { size: TITLE_SIZE, bold: true, colour: INK };
const LABEL_FACE: TextFace = TextFace { size: LABEL_SIZE, bold: false, colour: LABEL };
const LEGEND_FACE: TextFace = TextFace { size: LABEL_SIZE, bold: false, colour: INK };
const TICK_FACE: TextFace = TextFace { size: TICK_SIZE, bold: false, colour: LABEL };

/// The rectangle of the data, and its axes.
struct Plot {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: Scale,
    y: Scale,
}

/// The look that a name got.
#[derive(Clone, Copy)]
struct Pen {
    colour: Colour,
    dash: Option<(f64, f64)>,
}

/// Lays `chart` out.
pub(super) fn draw(chart: &Chart) -> Vec<Ink> {
    let face = Face::load(false);
    let mut inks = Vec::new();
    let mut top = MARGIN;
    if !chart.title.is_empty() {
        top += TITLE_SIZE;
        inks.push(text((MARGIN, top), Anchor::Start, TITLE_FACE, &fit(&chart.title)));
        top += 11.0;
    }
    let pens = pens(&chart.series);
    top = legend(&mut inks, chart, &pens, &face, top) + 12.0;

    let points = || chart.series.iter().flat_map(|series| series.points.iter().copied());
    // A point counts for the ranges only if it has a place on both axes.
    let placed = |&(x, y): &(f64, f64)| {
        let ok = |v: f64, log: bool| v.is_finite() && (!log || v > 0.0);
        ok(x, chart.x.log) && ok(y, chart.y.log)
    };
    let x_pad = if chart.series.iter().any(|s| s.style == Style::Points) { 0.03 } else { 0.0 };
    let x = Scale::over(points().filter(placed).map(|p| p.0), chart.x.log, x_pad);
    let y = Scale::over(points().filter(placed).map(|p| p.1), chart.y.log, PAD);
    let widest = y.ticks(6).iter().map(|t| face.width(&t.label, TICK_SIZE)).fold(0.0, f64::max);
    let y_label = if chart.y.label.is_empty() { 0.0 } else { LABEL_SIZE + 8.0 };
    let x_label = if chart.x.label.is_empty() { 0.0 } else { LABEL_SIZE + 8.0 };
    let left = MARGIN + y_label + widest + 8.0;
    let bottom = HEIGHT - MARGIN - x_label - TICK_SIZE - 6.0;
    let plot = Plot { left, right: WIDTH - MARGIN - 8.0, top, bottom, x, y };

    axes(&mut inks, chart, &plot, &face);
    // Areas first, so that they lie behind every curve.
    for band in [true, false] {
        for series in chart.series.iter().filter(|s| (s.style == Style::Band) == band) {
            draw_series(&mut inks, series, pens[series.name.as_str()], &plot);
        }
    }
    if !points().any(|p| placed(&p)) {
        let centre = ((plot.left + plot.right) / 2.0, (plot.top + plot.bottom) / 2.0);
        inks.push(text(centre, Anchor::Middle, LABEL_FACE, "no data"));
    }
    inks
}

/// Names to looks, in the order of first use.
fn pens(series: &[Series]) -> HashMap<&str, Pen> {
    let mut pens = HashMap::new();
    for series in series {
        let i = pens.len();
        let dash = DASHES[i / COLOURS.len() % DASHES.len()];
        pens.entry(series.name.as_str())
            .or_insert(Pen { colour: COLOURS[i % COLOURS.len()], dash });
    }
    pens
}

/// The legend from `top` down, in rows; gives where it ends.
fn legend(
    inks: &mut Vec<Ink>,
    chart: &Chart,
    pens: &HashMap<&str, Pen>,
    face: &Face,
    top: f64,
) -> f64 {
    const KEY: f64 = 22.0;
    const ROW: f64 = LABEL_SIZE + 7.0;
    let mut named: Vec<&Series> = Vec::new();
    for series in chart.series.iter().filter(|series| !series.name.is_empty()) {
        if !named.iter().any(|known| known.name == series.name) {
            named.push(series);
        }
    }
    let (mut x, mut row) = (MARGIN, 0usize);
    for (i, series) in named.iter().enumerate() {
        let label = fit(&series.name);
        // Other fonts may be a little wider than the one measured.
        let width = KEY + 6.0 + face.width(&label, LABEL_SIZE) * 1.05 + 20.0;
        if x > MARGIN && x + width > WIDTH - MARGIN {
            (x, row) = (MARGIN, row + 1);
        }
        let baseline = top + row as f64 * ROW + LABEL_SIZE;
        if row >= LEGEND_ROWS_MAX {
            let rest = format!("and {} more", named.len() - i);
            inks.push(text((x, baseline), Anchor::Start, LABEL_FACE, &rest));
            break;
        }
        let middle = baseline - LABEL_SIZE * 0.34;
        inks.push(legend_key(series.style, pens[series.name.as_str()], (x, middle), KEY));
        inks.push(text((x + KEY + 6.0, baseline), Anchor::Start, LEGEND_FACE, &label));
        x += width;
    }
    if named.is_empty() { top } else { top + (row + 1) as f64 * ROW }
}

fn legend_key(style: Style, pen: Pen, (x, y): (f64, f64), width: f64) -> Ink {
    let Pen { colour, dash } = pen;
    match style {
        Style::Line => {
            let points = vec![(x + 1.0, y), (x + width - 1.0, y)];
            Ink::Stroke { points, width: LINE_WIDTH + 0.6, colour, dash }
        }
        Style::Points => {
            Ink::Dots { centres: vec![(x + width / 2.0, y)], radius: POINT_RADIUS, colour }
        }
        Style::Band => {
            let (l, r, t, b) = (x, x + width, y - 5.0, y + 5.0);
            Ink::Area { points: vec![(l, t), (r, t), (r, b), (l, b)], colour, opacity: 0.25 }
        }
    }
}

fn axes(inks: &mut Vec<Ink>, chart: &Chart, plot: &Plot, face: &Face) {
    let line =
        |from, to, colour| Ink::Stroke { points: vec![from, to], width: 1.0, colour, dash: None };
    let vertical = |at: f64, colour| {
        let x = plot.left + at * (plot.right - plot.left);
        line((x, plot.top), (x, plot.bottom), colour)
    };
    let horizontal = |at: f64, colour| {
        let y = plot.bottom - at * (plot.bottom - plot.top);
        line((plot.left, y), (plot.right, y), colour)
    };
    inks.extend(plot.x.minor().into_iter().map(|at| vertical(at, GRID_MINOR)));
    inks.extend(plot.y.minor().into_iter().map(|at| horizontal(at, GRID_MINOR)));
    let mut labels = Vec::new();
    let mut free_from = f64::NEG_INFINITY;
    for tick in plot.x.ticks(8) {
        inks.push(vertical(tick.at, GRID));
        let x = plot.left + tick.at * (plot.right - plot.left);
        let half = face.width(&tick.label, TICK_SIZE) / 2.0;
        // Labels that would touch the one before are left out.
        if x - half >= free_from {
            let at = (x, plot.bottom + TICK_SIZE + 5.0);
            labels.push(text(at, Anchor::Middle, TICK_FACE, &tick.label));
            free_from = x + half + 8.0;
        }
    }
    for tick in plot.y.ticks(6) {
        inks.push(horizontal(tick.at, GRID));
        let y = plot.bottom - tick.at * (plot.bottom - plot.top);
        let at = (plot.left - 7.0, y + TICK_SIZE * 0.35);
        labels.push(text(at, Anchor::End, TICK_FACE, &tick.label));
    }
    inks.push(line((plot.left, plot.bottom), (plot.right, plot.bottom), AXIS));
    inks.push(line((plot.left, plot.top), (plot.left, plot.bottom), AXIS));
    inks.append(&mut labels);
    let middle = ((plot.left + plot.right) / 2.0, (plot.top + plot.bottom) / 2.0);
    let x_at = (middle.0, HEIGHT - MARGIN + 2.0);
    inks.push(text(x_at, Anchor::Middle, LABEL_FACE, &fit(&chart.x.label)));
    inks.push(Ink::Text {
        at: (MARGIN + LABEL_SIZE * 0.6, middle.1),
        anchor: Anchor::Middle,
        upward: true,
        face: LABEL_FACE,
        text: fit(&chart.y.label),
    });
}

fn draw_series(inks: &mut Vec<Ink>, series: &Series, pen: Pen, plot: &Plot) {
    let Pen { colour, dash } = pen;
    let at = |&(x, y): &(f64, f64)| plot.at(x, y);
    match series.style {
        Style::Line => {
            for run in runs(&series.points, at) {
                if let [only] = run[..] {
                    inks.push(Ink::Dots { centres: vec![only], radius: POINT_RADIUS, colour });
                } else {
                    inks.push(Ink::Stroke { points: thin(run), width: LINE_WIDTH, colour, dash });
                }
            }
        }
        Style::Points => {
            let mut centres: Vec<_> = series.points.iter().filter_map(at).collect();
            // Marks at the same spot show once, however many there are.
            centres
                .dedup_by_key(|&mut (x, y)| ((x * 4.0).round() as i64, (y * 4.0).round() as i64));
            inks.push(Ink::Dots { centres, radius: POINT_RADIUS, colour });
        }
        Style::Band => {
            let corner = |&(x, y): &(f64, f64)| plot.corner(x, y);
            let points: Vec<_> = series.points.iter().filter_map(corner).collect();
            inks.push(Ink::Area { points, colour, opacity: 0.2 });
        }
    }
}

impl Plot {
    fn at(&self, x: f64, y: f64) -> Option<(f64, f64)> {
        let (x, y) = (self.x.at(x)?, self.y.at(y)?);
        Some((self.left + x * (self.right - self.left), self.bottom - y * (self.bottom - self.top)))
    }

    /// As `at`, but an edge that goes below a logarithmic axis runs along its end.
    fn corner(&self, x: f64, y: f64) -> Option<(f64, f64)> {
        if !y.is_finite() {
            return None;
        }
        self.at(x, y).or_else(|| self.at(x, self.y.ends().0).map(|(x, _)| (x, self.bottom)))
    }
}

/// The placed points, parted where one was skipped.
fn runs(
    points: &[(f64, f64)],
    at: impl Fn(&(f64, f64)) -> Option<(f64, f64)>,
) -> Vec<Vec<(f64, f64)>> {
    let mut runs = vec![Vec::new()];
    for point in points {
        match (at(point), runs.last_mut()) {
            (Some(place), Some(run)) => run.push(place),
            _ => runs.push(Vec::new()),
        }
    }
    runs.retain(|run| !run.is_empty());
    runs
}

/// The same line with at most four points per half unit of x: the first, the extremes, the last.
/// A million rounds make a picture of the size of a thousand.
fn thin(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    if points.len() <= 2000 {
        return points;
    }
    let column = |p: &(f64, f64)| (p.0 * 2.0).floor();
    let mut out = Vec::new();
    for group in points.chunk_by(|a, b| column(a) == column(b)) {
        let mut kept = [0, 0, 0, group.len() - 1];
        for (i, point) in group.iter().enumerate() {
            if point.1 < group[kept[1]].1 {
                kept[1] = i;
            }
            if point.1 > group[kept[2]].1 {
                kept[2] = i;
            }
        }
        kept.sort_unstable();
        let mut last = None;
        for i in kept {
            if last.replace(i) != Some(i) {
                out.push(group[i]);
            }
        }
    }
    out
}

fn text(at: (f64, f64), anchor: Anchor, face: TextFace, text: &str) -> Ink {
    Ink::Text { at, anchor, upward: false, face, text: text.to_owned() }
}

/// Control characters have no glyph and no place in XML; endless names have none on the page.
fn fit(name: &str) -> String {
    const CHARS_MAX: usize = 80;
    let clean = name.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut text: String = clean.take(CHARS_MAX).collect();
    if name.chars().count() > CHARS_MAX {
        text.push('…');
    }
    text
}

//! A drawing as a PNG file.
//!
//! Everything is drawn the same way: its coverage of each pixel goes to a mask, then its colour is
//! blended in once through the mask. A line that crosses itself leaves neither holes nor dark
//! spots.

use super::draw::{Anchor, Colour, HEIGHT, Ink, WIDTH};
use super::font::Face;

/// Rows of samples per row of pixels when an area is filled.
const AREA_SAMPLES: usize = 4;

/// Pixels, and the mask of what is being drawn.
struct Canvas {
    width: usize,
    height: usize,
    /// Red, green, blue; row-major.
    pixels: Vec<u8>,
    /// Coverage in [0, 1], zero outside `dirty`.
    mask: Vec<f32>,
    /// Rows of the mask that may be set, half open.
    dirty: (usize, usize),
}

/// The drawing, each unit `scale` pixels.
pub(super) fn render(inks: &[Ink], scale: u32) -> Vec<u8> {
    let faces = [Face::load(false), Face::load(true)];
    let scale = f64::from(scale);
    let (width, height) = ((WIDTH * scale) as usize, (HEIGHT * scale) as usize);
    let mut canvas = Canvas {
        width,
        height,
        pixels: vec![0xff; width * height * 3],
        mask: vec![0.0; width * height],
        dirty: (height, 0),
    };
    let up = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
        points.iter().map(|&(x, y)| (x * scale, y * scale)).collect()
    };
    for ink in inks {
        match ink {
            Ink::Stroke { points, width, colour, dash } => {
                let points = up(points);
                let dash = dash.map(|(on, off)| (on * scale, off * scale));
                for (a, b) in pieces(&points, dash) {
                    canvas.cover_capsule(a, b, width * scale / 2.0);
                }
                canvas.blend(*colour, 1.0);
            }
            Ink::Area { points, colour, opacity } => {
                canvas.cover_area(&up(points));
                canvas.blend(*colour, *opacity);
            }
            Ink::Dots { centres, radius, colour } => {
                for centre in up(centres) {
                    canvas.cover_capsule(centre, centre, radius * scale);
                }
                canvas.blend(*colour, 1.0);
            }
            Ink::Text { at, anchor, upward, face, text } => {
                let font = &faces[usize::from(face.bold)];
                let size = face.size * scale;
                let back = match anchor {
                    Anchor::Start => 0.0,
                    Anchor::Middle => font.width(text, size) / 2.0,
                    Anchor::End => font.width(text, size),
                };
                canvas.cover_text(font, text, size, up(&[*at])[0], (back, *upward));
                canvas.blend(face.colour, 1.0);
            }
        }
    }
    encode(&canvas)
}

impl Canvas {
    /// Covers what is within `radius` of the segment from `a` to `b`.
    fn cover_capsule(&mut self, a: (f64, f64), b: (f64, f64), radius: f64) {
        let reach = radius + 1.0;
        let columns = span(a.0.min(b.0) - reach, a.0.max(b.0) + reach, self.width);
        let rows = span(a.1.min(b.1) - reach, a.1.max(b.1) + reach, self.height);
        let (dx, dy) = (b.0 - a.0, b.1 - a.1);
        let length_squared = dx * dx + dy * dy;
        self.touch(rows.start, rows.end);
        for row in rows {
            for column in columns.clone() {
                let (px, py) = (column as f64 + 0.5 - a.0, row as f64 + 0.5 - a.1);
                let along = if length_squared > 0.0 {
                    ((px * dx + py * dy) / length_squared).clamp(0.0, 1.0)
                } else {
                    0.0
                };
                let distance = (px - along * dx).hypot(py - along * dy);
                let coverage = (radius + 0.5 - distance).clamp(0.0, 1.0) as f32;
                let cell = &mut self.mask[row * self.width + column];
                *cell = cell.max(coverage);
            }
        }
    }

    /// Covers the inside of a polygon (even-odd).
    fn cover_area(&mut self, corners: &[(f64, f64)]) {
        let top = corners.iter().map(|c| c.1).fold(f64::INFINITY, f64::min);
        let bottom = corners.iter().map(|c| c.1).fold(f64::NEG_INFINITY, f64::max);
        if corners.len() < 3 {
            return;
        }
        let rows = span(top, bottom + 1.0, self.height);
        self.touch(rows.start, rows.end);
        let mut crossings = Vec::new();
        for row in rows {
            for sample in 0..AREA_SAMPLES {
                let y = row as f64 + (sample as f64 + 0.5) / AREA_SAMPLES as f64;
                crossings.clear();
                for (i, &a) in corners.iter().enumerate() {
                    let b = corners[(i + 1) % corners.len()];
                    if (a.1 <= y) != (b.1 <= y) {
                        crossings.push(a.0 + (y - a.1) / (b.1 - a.1) * (b.0 - a.0));
                    }
                }
                crossings.sort_unstable_by(f64::total_cmp);
                for pair in crossings.chunks_exact(2) {
                    for column in span(pair[0], pair[1] + 1.0, self.width) {
                        let left = pair[0].max(column as f64);
                        let right = pair[1].min(column as f64 + 1.0);
                        let share = (right - left).max(0.0) / AREA_SAMPLES as f64;
                        self.mask[row * self.width + column] += share as f32;
                    }
                }
            }
        }
    }

    /// Covers a line of text that begins `back` before `at`; upward text is turned to the left.
    fn cover_text(
        &mut self,
        font: &Face,
        text: &str,
        size: f64,
        at: (f64, f64),
        (back, upward): (f64, bool),
    ) {
        let start = if upward { (at.0, at.1 + back) } else { (at.0 - back, at.1) };
        let (x0, y0) = (start.0.floor(), start.1.floor());
        let fraction = ((start.0 - x0) as f32, (start.1 - y0) as f32);
        let fraction = if upward { (-fraction.1, fraction.0) } else { fraction };
        let (x0, y0) = (x0 as i64, y0 as i64);
        font.ink(text, size, fraction, |x, y, coverage| {
            let (x, y) = (i64::from(x), i64::from(y));
            let (x, y) = if upward { (x0 + y, y0 - 1 - x) } else { (x0 + x, y0 + y) };
            let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else { return };
            if x < self.width && y < self.height {
                self.touch(y, y + 1);
                let cell = &mut self.mask[y * self.width + x];
                *cell = cell.max(coverage);
            }
        });
    }

    fn touch(&mut self, from: usize, to: usize) {
        self.dirty = (self.dirty.0.min(from), self.dirty.1.max(to));
    }

    /// Lays `colour` over the pixels as the mask says, and clears the mask.
    fn blend(&mut self, colour: Colour, opacity: f64) {
        let (from, to) = (self.dirty.0.min(self.height), self.dirty.1.min(self.height));
        self.dirty = (self.height, 0);
        if from >= to {
            return;
        }
        let cells = from * self.width..to * self.width;
        let pixels = self.pixels[cells.start * 3..cells.end * 3].chunks_exact_mut(3);
        for (cell, pixel) in self.mask[cells].iter_mut().zip(pixels) {
            let share = cell.min(1.0) * opacity as f32;
            *cell = 0.0;
            if share > 0.0 {
                for (under, over) in pixel.iter_mut().zip(colour) {
                    let mixed = f32::from(*under) * (1.0 - share) + f32::from(over) * share;
                    *under = mixed.round() as u8;
                }
            }
        }
    }
}

/// Pixels whose squares meet [from, to).
fn span(from: f64, to: f64, limit: usize) -> std::ops::Range<usize> {
    // Casts saturate: what lies outside on either side gives an empty range or the edge.
    (from.floor() as usize).min(limit)..(to.floor() as usize).min(limit)
}

/// The segments of a line, cut into dashes if it has them. Dashes run on round corners.
fn pieces(
    points: &[(f64, f64)],
    dash: Option<(f64, f64)>,
) -> impl Iterator<Item = ((f64, f64), (f64, f64))> {
    let mut pieces = Vec::new();
    let mut phase = 0.0;
    for pair in points.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        let Some((on, off)) = dash else {
            pieces.push((a, b));
            continue;
        };
        let length = (b.0 - a.0).hypot(b.1 - a.1);
        let along = |t: f64| (a.0 + (b.0 - a.0) * t / length, a.1 + (b.1 - a.1) * t / length);
        let mut done = 0.0;
        while done < length {
            let (inked, until) =
                if phase < on { (true, on - phase) } else { (false, on + off - phase) };
            let next = (done + until).min(length);
            if inked {
                pieces.push((along(done), along(next)));
            }
            phase = if next < done + until { phase + (next - done) } else { phase + until };
            if phase >= on + off - 1e-9 {
                phase = 0.0;
            }
            done = next;
        }
    }
    pieces.into_iter()
}

fn encode(canvas: &Canvas) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, canvas.width as u32, canvas.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().expect("a Vec takes everything");
    writer.write_image_data(&canvas.pixels).expect("as many bytes as the header says");
    writer.finish().expect("a Vec takes everything");
    bytes
}

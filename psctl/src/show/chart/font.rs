//! The two fonts in the program, and the measuring of text in them: Noto Sans 1.04 regular and
//! bold, Copyright 2012 Google Inc., Apache License 2.0 (so the files themselves say; the
//! `notosans` crate that carries them adds the SIL Open Font License 1.1 of later versions).

use ab_glyph::{Font, FontRef, PxScale, ScaleFont};

/// A face of the program's font.
pub(super) struct Face {
    font: FontRef<'static>,
}

impl Face {
    /// The regular face, or the bold one.
    pub(super) fn load(bold: bool) -> Self {
        let bytes = if bold { notosans::BOLD_TTF } else { notosans::REGULAR_TTF };
        let font = FontRef::try_from_slice(bytes).expect("the font in the program is a font");
        Self { font }
    }

    /// Advance of `text` set at `size` units per em.
    pub(super) fn width(&self, text: &str, size: f64) -> f64 {
        let mut width = 0.0;
        self.glyphs(text, size, |_, right| width = right);
        width
    }

    /// Calls `inked(x, y, coverage)` for the pixels of `text`, relative to the start of its
    /// baseline, y downwards; `size` is pixels per em, `start` a fraction of a pixel.
    pub(super) fn ink(
        &self,
        text: &str,
        size: f64,
        start: (f32, f32),
        mut inked: impl FnMut(i32, i32, f32),
    ) {
        let scale = self.scale(size);
        let mut outlines = Vec::new();
        self.glyphs(text, size, |mut glyph, right| {
            glyph.scale = scale;
            outlines.push((glyph, right));
        });
        for (mut glyph, _) in outlines {
            glyph.position.x += start.0;
            glyph.position.y += start.1;
            let Some(outline) = self.font.outline_glyph(glyph) else { continue };
            let corner = outline.px_bounds().min;
            outline.draw(|x, y, coverage| {
                inked(corner.x as i32 + x as i32, corner.y as i32 + y as i32, coverage);
            });
        }
    }

    /// Walks over the glyphs, each at its place on the baseline, with the x where it ends.
    fn glyphs(&self, text: &str, size: f64, mut visit: impl FnMut(ab_glyph::Glyph, f64)) {
        let font = self.font.as_scaled(self.scale(size));
        let mut x = 0.0f32;
        let mut previous = None;
        for c in text.chars() {
            let id = font.glyph_id(c);
            if let Some(previous) = previous.replace(id) {
                x += font.kern(previous, id);
            }
            let glyph = id.with_scale_and_position(font.scale(), ab_glyph::point(x, 0.0));
            x += font.h_advance(id);
            visit(glyph, f64::from(x));
        }
    }

    /// `ab_glyph` scales by the line's height; everybody else by the em.
    fn scale(&self, size: f64) -> PxScale {
        let per_em = self.font.units_per_em().map_or(1.0, |em| self.font.height_unscaled() / em);
        PxScale::from(size as f32 * per_em)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digit_is_about_half_an_em_and_widths_add_up() {
        let face = Face::load(false);
        let one = face.width("0", 100.0);
        assert!((50.0..65.0).contains(&one), "{one}");
        assert!((face.width("000", 100.0) - 3.0 * one).abs() < 0.1);
        assert_eq!(face.width("", 100.0), 0.0);
        assert!(Face::load(true).width("loss", 100.0) > face.width("loss", 100.0));
    }

    #[test]
    fn ink_is_above_the_baseline_for_a_capital() {
        let (mut top, mut bottom) = (i32::MAX, i32::MIN);
        Face::load(false).ink("H", 100.0, (0.0, 0.0), |_, y, coverage| {
            if coverage > 0.5 {
                top = top.min(y);
                bottom = bottom.max(y);
            }
        });
        assert!((-73..=-69).contains(&top), "{top}");
        assert!((-2..=0).contains(&bottom), "{bottom}");
    }
}

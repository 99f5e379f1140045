//! A drawing as an SVG document.

use std::fmt::Write;

use super::draw::{Anchor, Colour, HEIGHT, Ink, WIDTH};

/// Viewers that lack the first take the next.
const FONTS: &str = "Noto Sans, Helvetica, Arial, sans-serif";

/// The document: one element per thing drawn.
pub(super) fn render(inks: &[Ink]) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"{FONTS}\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
    );
    for ink in inks {
        element(&mut out, ink).expect("a String takes everything");
    }
    out.push_str("</svg>\n");
    out
}

fn element(out: &mut String, ink: &Ink) -> std::fmt::Result {
    match ink {
        Ink::Stroke { points, width, colour, dash } => {
            write!(out, "<polyline points=\"{}\" fill=\"none\"", coordinates(points))?;
            write!(out, " stroke=\"{}\" stroke-width=\"{width}\"", hex(*colour))?;
            write!(out, " stroke-linejoin=\"round\" stroke-linecap=\"round\"")?;
            if let Some((on, off)) = dash {
                write!(out, " stroke-dasharray=\"{on} {off}\"")?;
            }
            writeln!(out, "/>")
        }
        Ink::Area { points, colour, opacity } => {
            let points = coordinates(points);
            let colour = hex(*colour);
            writeln!(
                out,
                "<polygon points=\"{points}\" fill=\"{colour}\" fill-opacity=\"{opacity}\" \
                 fill-rule=\"evenodd\"/>"
            )
        }
        Ink::Dots { centres, radius, colour } => {
            writeln!(out, "<g fill=\"{}\">", hex(*colour))?;
            for (x, y) in centres {
                writeln!(out, "<circle cx=\"{x:.2}\" cy=\"{y:.2}\" r=\"{radius}\"/>")?;
            }
            writeln!(out, "</g>")
        }
        Ink::Text { at: (x, y), anchor, upward, face, text } => {
            let anchor = match anchor {
                Anchor::Start => "start",
                Anchor::Middle => "middle",
                Anchor::End => "end",
            };
            write!(out, "<text x=\"{x:.2}\" y=\"{y:.2}\" text-anchor=\"{anchor}\"")?;
            write!(out, " font-size=\"{}\" fill=\"{}\"", face.size, hex(face.colour))?;
            if face.bold {
                write!(out, " font-weight=\"bold\"")?;
            }
            if *upward {
                write!(out, " transform=\"rotate(-90 {x:.2} {y:.2})\"")?;
            }
            writeln!(out, ">{}</text>", escape(text))
        }
    }
}

fn coordinates(points: &[(f64, f64)]) -> String {
    let pairs: Vec<String> = points.iter().map(|(x, y)| format!("{x:.2},{y:.2}")).collect();
    pairs.join(" ")
}

fn hex([r, g, b]: Colour) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Text as XML takes it: markup escaped, characters that no XML document may hold replaced.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => out.push('?'),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

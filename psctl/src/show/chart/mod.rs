//! Pictures of curves: a small chart model, written as SVG or PNG.
//!
//! The chart knows points and names, not losses or workers. `draw` lays it out as a list of
//! strokes, areas and texts; `svg` and `bitmap` each turn that list into bytes. Fonts are in the
//! program: a container without any draws the same picture.

mod bitmap;
mod draw;
mod font;
mod svg;

use std::io::Write;
use std::path::Path;

use ps_common::exit::{Exit, ExitError};

/// Pixels of a PNG per unit of the layout: sharp on dense screens.
const PNG_SCALE: u32 = 2;

/// Curves over one pair of axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Above the picture.
    pub title: String,
    /// Along the bottom.
    pub x: Axis,
    /// Along the left.
    pub y: Axis,
    /// In the order of the legend. Series of the same name share a colour and a legend entry.
    pub series: Vec<Series>,
}

/// One axis. Its range is that of the data.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// What is measured, with its unit.
    pub label: String,
    /// Logarithmic; values that are not above 0 are skipped then.
    pub log: bool,
}

impl Axis {
    /// A linear axis.
    pub fn linear(label: impl Into<String>) -> Self {
        Self { label: label.into(), log: false }
    }

    /// A logarithmic axis.
    pub fn log(label: impl Into<String>) -> Self {
        Self { label: label.into(), log: true }
    }
}

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Points joined in their order; a gap where one is skipped; a lone point is a dot.
    Line,
    /// A mark at each point.
    Points,
    /// The area that the points enclose, going round it ([`Series::band`] orders them so).
    Band,
}

/// A named list of points.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// In the legend; a series without a name is not in it.
    pub name: String,
    /// (x, y). Points that are not finite are skipped.
    pub points: Vec<(f64, f64)>,
    /// How they are drawn.
    pub style: Style,
}

impl Series {
    /// Joined points.
    pub fn line(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, style: Style::Line }
    }

    /// Single points.
    pub fn points(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, style: Style::Points }
    }

    /// The area between two curves, given as (x, low, high) in the order of x. What is not finite
    /// is skipped.
    pub fn band(name: impl Into<String>, edges: &[(f64, f64, f64)]) -> Self {
        let whole = |e: &&(f64, f64, f64)| e.0.is_finite() && e.1.is_finite() && e.2.is_finite();
        let low = edges.iter().filter(whole).map(|&(x, low, _)| (x, low));
        let high = edges.iter().filter(whole).rev().map(|&(x, _, high)| (x, high));
        Self { name: name.into(), points: low.chain(high).collect(), style: Style::Band }
    }
}

/// What a picture is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `.svg`
    Svg,
    /// `.png`
    Png,
}

impl Format {
    /// The format that the extension of `path` names.
    ///
    /// # Errors
    /// [`Exit::Config`], naming `--plot`, if it is neither `.svg` nor `.png`. Asking before a run
    /// starts saves the user a run.
    pub fn of(path: &Path) -> Result<Self, ExitError> {
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        match extension.as_deref() {
            Some("svg") => Ok(Self::Svg),
            Some("png") => Ok(Self::Png),
            _ => Err(ExitError::config(format!(
                "--plot {}: expected a file that ends in .svg or .png",
                path.display()
            ))),
        }
    }
}

impl Chart {
    /// The picture as an SVG document, 800 by 500.
    pub fn to_svg(&self) -> String {
        svg::render(&draw::draw(self))
    }

    /// The picture as a PNG file, 1600 by 1000 pixels.
    pub fn to_png(&self) -> Vec<u8> {
        bitmap::render(&draw::draw(self), PNG_SCALE)
    }

    /// Writes the picture to `path` as its extension says. The file appears whole or not at all,
    /// in place of one of that name.
    ///
    /// # Errors
    /// [`Exit::Config`] for another extension; [`Exit::CannotCreate`], with the path, if the file
    /// cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ExitError> {
        let bytes = match Format::of(path)? {
            Format::Svg => self.to_svg().into_bytes(),
            Format::Png => self.to_png(),
        };
        replace_file(path, &bytes).map_err(|error| {
            let message = format!("cannot create {} (--plot)", path.display());
            ExitError::new(Exit::CannotCreate, message).because(error)
        })
    }
}

/// Writes aside, in the same directory, then renames.
fn replace_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".plot-");
    // As any file that a program creates: what the umask leaves of this, not the owner's alone.
    #[cfg(unix)]
    let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o666);
    #[cfg(unix)]
    builder.permissions(mode);
    let mut file = builder.tempfile_in(directory.unwrap_or(Path::new(".")))?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests;

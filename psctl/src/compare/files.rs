//! What a comparison leaves behind: the object of --json, the CSV of all curves, the picture.

use std::io::Write;

use ps_common::exit::{Exit, ExitError};
use ps_common::export::write_atomically;

use super::args::{Along, OutputArgs};
use super::figures::Figures;
use super::plot;
use super::table;
use crate::cli::print;
use crate::show::Look;

/// The columns of --csv.
const HEADER: &str = "variant,mode,workers,seed,round,version,pushes,seconds,loss\n";

/// Writes the files that were asked for, all that can be.
///
/// # Errors
/// The first: cannot-create or I/O, with the path.
pub(super) fn write(output: &OutputArgs, figures: &Figures) -> Result<(), ExitError> {
    let report = output.report.as_ref().map_or(Ok(()), |path| {
        let line = to_line(figures)?;
        write_atomically(path, |out| out.write_all(line.as_bytes()))
    });
    let table = output.csv.as_ref().map_or(Ok(()), |path| {
        let text = to_csv(figures);
        write_atomically(path, |out| out.write_all(text.as_bytes()))
    });
    let picture = output
        .plot
        .as_ref()
        .map_or(Ok(()), |path| plot::chart(figures, output.x.unwrap_or(Along::Rounds)).write(path));
    report.and(table).and(picture)
}

/// Prints the object as the last line of `out`, or the table, or nothing: as was asked for.
///
/// # Errors
/// I/O.
pub(super) fn show(
    output: &OutputArgs,
    figures: &Figures,
    out: &mut impl Write,
) -> Result<(), ExitError> {
    if output.json {
        print(out, &to_line(figures)?)
    } else if output.quiet {
        Ok(())
    } else {
        print(out, &table::render(figures, &Look::stdout()))
    }
}

fn to_line(figures: &Figures) -> Result<String, ExitError> {
    let mut line = serde_json::to_string(figures)
        .map_err(|e| ExitError::new(Exit::Bug, "the comparison is no JSON").because(e))?;
    line.push('\n');
    Ok(line)
}

/// A line for every measured loss of every run.
fn to_csv(figures: &Figures) -> String {
    let mut text = HEADER.to_owned();
    for variant in &figures.variants {
        let who = format!("{},{},{}", field(&variant.name), variant.mode, variant.n_workers);
        for run in &variant.runs {
            for point in &run.history {
                text.push_str(&format!(
                    "{who},{},{},{},{},{},{}\n",
                    run.seed, point.round, point.version, point.pushes, point.seconds, point.loss
                ));
            }
        }
    }
    text
}

/// Quoted where it must be (RFC 4180, section 2).
fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_csv_is_quoted_where_it_must_be() {
        assert_eq!(field("sync"), "sync");
        assert_eq!(field("sync, K = 2"), "\"sync, K = 2\"");
        assert_eq!(field("a \"b\""), "\"a \"\"b\"\"\"");
    }
}

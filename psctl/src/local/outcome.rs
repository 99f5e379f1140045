//! What a finished run leaves behind: the report with psctl's events, the plot, the summary.

use std::io::Write;
use std::path::Path;

use ps_common::exit::{Exit, ExitError};
use ps_common::export::write_atomically;
use ps_common::report::{Event, Report};

use super::args::OutputArgs;
use crate::cli::print;
use crate::show::loss::Against;
use crate::show::{self, Look};

/// Reads the report that the server left at `path` and adds `events`, in order of time.
///
/// # Errors
/// A bug, if there is none or it is no report: a server that ended well has written it.
pub(super) fn read_report(path: &Path, events: Vec<Event>) -> Result<Report, ExitError> {
    let bug = |what: &str| ExitError::new(Exit::Bug, format!("the server left {what}"));
    let text = std::fs::read(path).map_err(|e| bug("no report").because(e))?;
    let mut report: Report =
        serde_json::from_slice(&text).map_err(|e| bug("an unreadable report").because(e))?;
    merge_events(&mut report, events);
    Ok(report)
}

/// Where times are equal the server's events come first: psctl heard of them later.
fn merge_events(report: &mut Report, events: Vec<Event>) {
    report.events.extend(events);
    report.events.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
}

/// Writes the files that were asked for.
///
/// # Errors
/// Cannot-create or I/O, with the path.
pub(super) fn write_files(output: &OutputArgs, report: &Report) -> Result<(), ExitError> {
    if let Some(path) = &output.report {
        let line = to_line(report)?;
        write_atomically(path, |out| out.write_all(line.as_bytes()))?;
    }
    if let Some(path) = &output.plot {
        show::loss::chart(&title(report), &[("", report)], Against::Round).write(path)?;
    }
    Ok(())
}

/// Prints the report as the last line of `out`, or the summary, or nothing: as was asked for.
///
/// # Errors
/// I/O.
pub(super) fn print_result(
    output: &OutputArgs,
    report: &Report,
    out: &mut impl Write,
) -> Result<(), ExitError> {
    if output.json {
        print(out, &to_line(report)?)
    } else if output.quiet {
        Ok(())
    } else {
        let look = Look::stdout();
        let curve = show::loss::terminal(&report.history, &look);
        let gap = if curve.is_empty() { "" } else { "\n" };
        print(out, &format!("{curve}{gap}{}", show::summary::summary(report, &look)))
    }
}

fn title(report: &Report) -> String {
    format!("{}, {}, {} workers", report.model, report.mode, report.n_workers)
}

fn to_line(report: &Report) -> Result<String, ExitError> {
    let mut line = serde_json::to_string(report)
        .map_err(|e| ExitError::new(Exit::Bug, "the report is no JSON").because(e))?;
    line.push('\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seconds: f64, kind: &str) -> Event {
        Event { seconds, kind: kind.to_owned(), rank: None, detail: String::new() }
    }

    fn report() -> Report {
        serde_json::from_value(serde_json::json!({
            "mode": "sync", "n_workers": 2, "n_servers": 1, "model": "linear", "optimizer": "sgd",
            "dtype": "f32", "dim": 10, "n_samples": 1000, "seed": 0, "wall_seconds": 0.5,
            "rounds": 1.0, "version": 1, "outcome": "done",
            "history": [
                {"round": 0.0, "version": 0, "loss": 3.0, "seconds": 0.0},
                {"round": 1.0, "version": 1, "loss": 2.0, "seconds": 0.5},
            ],
            "final": {"loss": 2.0, "theta_sha256": "00"},
            "workers": [],
            "gradient_delay": {"histogram": [2], "mean": 0.0, "p99": 0, "max": 0},
            "events": [],
            "program": "ps-server",
        }))
        .expect("a report")
    }

    #[test]
    fn events_are_in_order_of_time_the_servers_first() {
        let mut report = report();
        report.events = vec![event(0.0, "joined"), event(0.2, "lost"), event(0.4, "left")];
        merge_events(&mut report, vec![event(0.3, "restarted"), event(0.2, "restarted")]);
        let kinds: Vec<_> = report.events.iter().map(|e| (e.seconds, e.kind.as_str())).collect();
        assert_eq!(
            kinds,
            [(0.0, "joined"), (0.2, "lost"), (0.2, "restarted"), (0.3, "restarted"), (0.4, "left")]
        );
    }

    #[test]
    fn the_report_is_one_line_on_stdout_and_in_its_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("left"), serde_json::to_vec(&report()).expect("JSON")).expect("written");
        let read = read_report(&at("left"), vec![event(0.1, "restarted")]).expect("a report");
        let output = OutputArgs {
            report: Some(at("report.json")),
            plot: Some(at("loss.svg")),
            json: true,
            ..OutputArgs::default()
        };
        write_files(&output, &read).expect("written");
        let mut printed = Vec::new();
        print_result(&output, &read, &mut printed).expect("printed");
        assert_eq!(printed, std::fs::read(at("report.json")).expect("there"));
        assert_eq!(printed.iter().filter(|&&b| b == b'\n').count(), 1);
        let again: Report = serde_json::from_slice(&printed).expect("JSON");
        assert_eq!((again.events.len(), again), (1, read.clone()));
        assert!(std::fs::read_to_string(at("loss.svg")).expect("there").contains("<svg"));

        printed.clear();
        let quiet = OutputArgs { quiet: true, ..OutputArgs::default() };
        print_result(&quiet, &read, &mut printed).expect("nothing");
        assert!(printed.is_empty());
        print_result(&OutputArgs::default(), &read, &mut printed).expect("printed");
        assert!(printed.iter().filter(|&&b| b == b'\n').count() > 3, "a summary");
    }

    #[test]
    fn a_server_that_leaves_no_report_has_a_bug() {
        let error = read_report(Path::new("/no/report"), Vec::new()).expect_err("none");
        assert_eq!(error.exit, Exit::Bug);
    }
}

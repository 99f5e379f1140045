//! The results as text for a person. Computes nothing.

use std::fmt::Write as _;

use ps_common::units::show_bytes;

use super::rows::{Grpc, OfRows, Other, Raw, Results, Row, Spread};
use crate::show::table::{Align, Table};

const COLUMNS: &str = "mode          n   W   steps/s   GB/s   s/GB server  p50 us  p99 us memory     GB/s   s/GB server  p50 us   GB/s (min-max)   server";

/// Columns of a cell's name, of gRPC, of bare sockets and of their ratios.
const NAME: usize = 19;
const GRPC: usize = 53;
const RAW: usize = 28;
const RATIOS: usize = 23;

/// What there is no figure for.
const NONE: &str = "-";

/// The tables, with what one needs to know to read them.
pub(super) fn show(results: &Results) -> String {
    let machine = &results.machine;
    let way = match (results.servers, results.tls) {
        (1, false) => String::new(),
        (1, true) => ", gRPC inside TLS 1.3".to_owned(),
        (n, _) => format!(", gRPC with {n} servers, bare sockets with one"),
    };
    let mut text = format!(
        "{}, {} cores, {}, kernel {}, load average {:.2} before the run\n\
         loopback TCP{}, congestion control {} (the system's is {})\n\n{}\n{COLUMNS}\n",
        machine.cpu,
        machine.cores,
        show_bytes(machine.memory_bytes),
        machine.kernel,
        machine.load_average,
        way,
        machine.congestion_control,
        machine.congestion_control_system,
        sides(),
    );
    let coded = results.rows.iter().any(Row::is_coded);
    let mut wire = None;
    for row in &results.rows {
        if coded && wire != Some(&row.wire) {
            wire = Some(&row.wire);
            put(&mut text, format_args!("--wire {}\n", row.wire));
        }
        text.push_str(&line(row));
        text.push('\n');
    }
    text.push_str(
        "\nGB/s: payload, 2 n elements a step, all workers, 10^9 bytes. s/GB: processor seconds of all \
         processes; server: of\nthe server alone, and its ratio. memory: the server's peak over the \
         bytes of theta. Bare sockets apply pushes piece\nby piece, unvalidated; gRPC whole and \
         validated. Both sides' theta was checked to the last bit after every measurement.\n",
    );
    if coded && results.rows.iter().any(|row| row.grpc.is_some()) {
        text.push_str(&codecs(&results.rows));
    }
    if results.rows.iter().any(|row| row.sparse.is_some()) {
        text.push_str(&of_rows(&results.rows));
    }
    if let Some(program) = &results.against_program {
        text.push_str(&other_build(program, &results.rows));
    }
    if let Some(comparison) = &results.against {
        text.push('\n');
        text.push_str(&comparison.show());
    }
    text
}

/// Writing to a string does not fail.
fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(what);
}

fn sides() -> String {
    format!(
        "{:NAME$} {:-^GRPC$}   {:-^RAW$}   {:-^RATIOS$}",
        "", " gRPC ", " bare sockets ", " gRPC / bare "
    )
}

fn line(row: &Row) -> String {
    let mut text = format!("{:<5} {:>9} {:>3}", row.mode, row.n, row.workers);
    match &row.grpc {
        Some(grpc) => put(&mut text, format_args!(" {}", grpc_side(grpc))),
        None => put(&mut text, format_args!(" {:>GRPC$}", "not measured")),
    }
    put(&mut text, format_args!("   {}", raw_side(&row.raw)));
    if let Some(grpc) = &row.grpc {
        let range = format!("({:.2}-{:.2})", grpc.ratio_to_raw_min, grpc.ratio_to_raw_max);
        let server = or_none(grpc.server_cpu_ratio_to_raw, |ratio| format!("{ratio:.2}"));
        put(&mut text, format_args!("   {:.2} {range:<11} {server:>6}", grpc.ratio_to_raw));
    }
    text
}

fn grpc_side(grpc: &Grpc) -> String {
    format!(
        "{:>9.1} {:>6.2} {:>6.3} {:>6.3} {:>7.0} {:>7.0} {:>6}",
        grpc.steps_per_second,
        grpc.payload_gb_per_second,
        grpc.cpu_seconds_per_gb,
        grpc.server_cpu_seconds_per_gb,
        grpc.p50_us,
        grpc.p99_us,
        times(grpc.server_peak_rss_over_theta),
    )
}

fn raw_side(raw: &Raw) -> String {
    format!(
        "{:>6.2} {:>6.3} {:>6.3} {:>7.0}",
        raw.raw_gb_per_second,
        raw.raw_cpu_seconds_per_gb,
        raw.raw_server_cpu_seconds_per_gb,
        raw.raw_p50_us,
    )
}

/// A multiple, with a decimal where it says something.
fn times(multiple: f64) -> String {
    if multiple < 100.0 { format!("{multiple:.1}") } else { format!("{multiple:.0}") }
}

fn or_none<V>(value: Option<V>, show: impl FnOnce(V) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), show)
}

/// The columns that name a cell.
pub(super) const CELL: [(&str, Align); 4] =
    [("mode", Align::Left), ("n", Align::Right), ("W", Align::Right), ("wire", Align::Left)];

fn cell(row: &Row) -> [String; 4] {
    [row.mode.to_string(), row.n.to_string(), row.workers.to_string(), row.wire.clone()]
}

/// As wide as it is.
pub(super) fn whole(table: &Table) -> String {
    table.render("", table.natural_width())
}

/// What each codec sends, and how fast steps are beside those of plain gradients.
fn codecs(rows: &[Row]) -> String {
    let figures = [("sent/step", Align::Right), ("of plain", Align::Right)];
    let speed = [("steps/s", Align::Right), ("of plain's", Align::Right)];
    let mut table = Table::new(CELL.into_iter().chain(figures).chain(speed));
    for row in rows {
        let Some(grpc) = &row.grpc else { continue };
        let plain = rows.iter().find(|plain| !plain.is_coded() && plain.is_same_work(row));
        let plain = plain.and_then(|plain| plain.grpc.as_ref());
        let speed = plain.map(|plain| grpc.steps_per_second / plain.steps_per_second);
        table.row(cell(row).into_iter().chain([
            or_none(grpc.sent_bytes_per_step, |bytes| show_bytes(bytes.round() as u64)),
            or_none(grpc.sent_over_plain, |share| format!("{share:.3}")),
            format!("{:.1}", grpc.steps_per_second),
            or_none(speed, |speed| format!("{speed:.2}")),
        ]));
    }
    format!(
        "\nsent/step: bytes of messages from one worker, and their share of a gradient as it is. The \
         worker's time to write\nthe gradient is part of a step. What topk holds back was pushed at \
         last, before theta was checked.\n\n{}",
        whole(&table)
    )
}

/// How many rows were pushed, and as many given.
fn of_rows(rows: &[Row]) -> String {
    let figures = ["rows/step", "elements", "M rows/s", "bare M rows/s"];
    let mut table = Table::new(CELL.into_iter().chain(figures.map(|name| (name, Align::Right))));
    let millions = |rate: f64| format!("{:.2}", rate / 1e6);
    for row in rows {
        let Some(OfRows { rows_per_step, row_width, rows_per_second, raw_rows_per_second }) =
            row.sparse
        else {
            continue;
        };
        table.row(cell(row).into_iter().chain([
            rows_per_step.to_string(),
            row_width.to_string(),
            or_none(rows_per_second, millions),
            millions(raw_rows_per_second),
        ]));
    }
    format!(
        "\nSteps are of rows: elements of each, and how many were pushed (and as many others given) a second \
         by all workers.\nPayload is their elements without their numbers. Memory is of all of theta.\n\n{}",
        whole(&table)
    )
}

/// This build over another one.
fn other_build(program: &str, rows: &[Row]) -> String {
    let figures = ["GB/s", "s/GB", "server s/GB", "p50"].map(|name| (name, Align::Right));
    let mut table = Table::new(CELL.into_iter().chain(figures));
    for row in rows {
        let Some(Other { gb_per_second, cpu, server_cpu, p50, .. }) = row.other else { continue };
        let figures = [gb_per_second, cpu, server_cpu, p50].map(|ratio| or_none(ratio, spread));
        table.row(cell(row).into_iter().chain(figures));
    }
    format!(
        "\nthis build over {program}\nmeasured in turn; medians of the ratios of neighbouring \
         measurements, (min-max)\n\n{}",
        whole(&table)
    )
}

fn spread(ratio: Spread) -> String {
    format!("{:.2} ({:.2}-{:.2})", ratio.median, ratio.min, ratio.max)
}

#[cfg(test)]
mod tests {
    use super::super::measure::Machine;
    use super::super::rows::Samples;
    use super::super::rows::tests::{JOB, bare, row, sample};
    use super::*;
    use crate::bench::job::Job;

    fn results(rows: Vec<Row>) -> Results {
        Results {
            machine: Machine::read("reno", "bbr").expect("readable"),
            program: "1.0".to_owned(),
            servers: 1,
            tls: false,
            rows,
            against_program: None,
            against: None,
        }
    }

    #[test]
    fn columns_stand_under_their_headings_and_fit_a_wide_terminal() {
        let both = line(&row(JOB, &[(1.0, 2.0)]));
        let lone = line(&bare(JOB));
        let shown = format!("\n{}\n{COLUMNS}\n{both}\n{lone}", sides());
        let ends = |text: &str, what: &str| -> Vec<usize> {
            text.match_indices(what).map(|(at, _)| at + what.len()).collect()
        };
        assert_eq!(ends(&both, " 20"), ends(COLUMNS, "p50 us"), "{shown}");
        assert_eq!(ends(&both, " 40"), ends(COLUMNS, "p99 us"), "{shown}");
        assert_eq!(ends(&both, " 2.5"), ends(COLUMNS, "memory"), "{shown}");
        assert_eq!(ends(&both, " 0.125"), ends(COLUMNS, "server")[..2], "{shown}");
        assert_eq!(both.find("0.50 (0.50-0.50)"), COLUMNS.find("GB/s (min"), "{shown}");
        assert_eq!(both.len(), COLUMNS.len(), "{shown}");
        assert_eq!(ends(&lone, " 20")[..], ends(COLUMNS, "p50 us")[1..], "{shown}");
        assert_eq!(sides().len(), COLUMNS.len(), "{shown}");
        assert!(COLUMNS.len() <= 130, "{shown}");
    }

    #[test]
    fn codecs_have_a_heading_each_and_a_table_of_what_they_send() {
        let int8 = Job { wire: "int8".parse().expect("a codec"), ..JOB };
        let plain = show(&results(vec![row(JOB, &[(1.0, 2.0)])]));
        assert!(!plain.contains("--wire") && !plain.contains("sent/step"), "{plain}");
        let both = results(vec![row(JOB, &[(1.0, 2.0)]), row(int8, &[(1.0, 2.0)])]);
        let shown = show(&both);
        assert!(shown.contains("\n--wire f32\n") && shown.contains("\n--wire int8\n"), "{shown}");
        let last = shown.lines().last().expect("a line");
        let words: Vec<_> = last.split_whitespace().collect();
        assert_eq!(words, ["sync", "1000", "2", "int8", "3.9", "KiB", "1.010", "50.0", "1.00"]);
    }

    #[test]
    fn another_build_has_a_table_of_its_own() {
        let (raw, grpc, other) = (vec![sample(8.0)], vec![sample(3.0)], vec![sample(2.0)]);
        let rows = vec![Row::new(&JOB, &Samples { raw, grpc, other })];
        let shown = show(&Results { against_program: Some("0.9".into()), ..results(rows) });
        assert!(shown.contains("this build over 0.9\n"), "{shown}");
        assert!(shown.contains("1.50 (1.50-1.50)  1.00 (1.00-1.00)"), "{shown}");
    }
}

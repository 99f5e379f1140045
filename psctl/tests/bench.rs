//! `psctl bench` through the real binary: the bare-socket side, and how its processes end.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const PSCTL: &str = env!("CARGO_BIN_EXE_psctl");

fn psctl(arguments: &[&str]) -> Output {
    Command::new(PSCTL).args(arguments).output().expect("psctl starts")
}

#[test]
fn bare_sockets_end_to_end() {
    // Each measurement ends with a check of theta, in both modes and on both sides of a chunk.
    let output = psctl(&[
        "bench",
        "--raw-only",
        "--json",
        "--sizes=1k,100k",
        "--workers=1,3",
        "--mode=async,sync",
        "--seconds=20ms",
        "--repeats=2",
    ]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    let results: Value = serde_json::from_str(&stdout).expect("one line of JSON");
    assert!(results["machine"]["cores"].as_u64() > Some(0), "{stdout}");
    let rows = results["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 8);
    for row in rows {
        let figure = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name} in {row}"));
        let gb_per_step = 2.0 * figure("n") * 4.0 / 1e9;
        let expected = figure("raw_steps_per_second") * gb_per_step;
        assert!((figure("raw_gb_per_second") / expected - 1.0).abs() < 0.5, "{row}");
        assert!(figure("raw_steps") >= 1.0 && figure("raw_p50_us") <= figure("raw_p99_us"));
        assert!(row.get("ratio_to_raw").is_none(), "nothing to compare with: {row}");
    }
    assert_eq!(stderr.lines().filter(|line| line.contains(" raw ")).count(), 16, "{stderr}");
}

#[test]
fn a_person_gets_a_table_and_a_picture() {
    let directory = tempfile::tempdir().expect("a directory");
    let plot = directory.path().join("bench.svg");
    let output = psctl(&[
        "bench",
        "--raw-only",
        "--sizes=10",
        "--workers=2",
        "--dtype=f64",
        "--seconds=5ms",
        "--repeats=1",
        "--congestion=system",
        &format!("--plot={}", plot.display()),
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let picture = std::fs::read_to_string(&plot).expect("a picture");
    assert!(picture.contains("async, W = 2") && picture.contains("GB/s"), "{picture}");
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(stdout.contains("congestion control"), "{stdout}");
    assert!(stdout.lines().any(|line| line.starts_with("async        10   2")), "{stdout}");
}

/// The line of JSON that a run of everything ends with, in whatever build this is.
fn results(arguments: &[&str]) -> (String, Value) {
    let fixed = ["bench", "--any-build", "--json", "--seconds=20ms"];
    let output = psctl(&[&fixed, arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    let value = serde_json::from_str(&stdout).expect("one line of JSON");
    (stdout, value)
}

#[test]
fn codecs_send_less_and_every_push_counts_once() {
    // theta is checked to the last bit after every measurement, with what top-k held back.
    let (text, results) = results(&[
        "--sizes=100k",
        "--workers=2",
        "--mode=async,sync",
        "--repeats=1",
        "--wire=f32",
        "--wire=int8",
        "--wire=topk,ratio=0.05",
    ]);
    let rows = results["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 6, "{text}");
    for row in rows {
        let share = row["sent_over_plain"].as_f64().expect("bytes are counted");
        let expected = match row["wire"].as_str().expect("a word") {
            "f32" => 1.0..1.01,
            // A byte each and four a block of 256.
            "int8" => 0.25..0.26,
            // Eight bytes each, of four.
            "topk,ratio=0.05" => 0.1..0.11,
            other => panic!("{other} was not asked for"),
        };
        assert!(expected.contains(&share), "{share} in {row}");
        assert!(row["ratio_to_raw"].as_f64() > Some(0.0), "{row}");
        assert!(row["server_peak_rss_over_theta"].as_f64() > Some(1.0), "{row}");
        assert!(row.get("server_cpu_ratio_to_raw").is_some(), "{row}");
    }
}

#[test]
fn a_run_beside_an_earlier_one_and_beside_another_build() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("before.json");
    let (before, _) = results(&["--sizes=1k,2k", "--workers=1", "--repeats=1"]);
    std::fs::write(&file, before).expect("written");
    // This very build stands in for another one.
    let programs = std::path::Path::new(PSCTL).parent().expect("a folder");
    let (text, now) = results(&[
        "--sizes=1k,3k",
        "--workers=1",
        "--repeats=2",
        "--dtype=f64",
        &format!("--against={}", file.display()),
        &format!("--against-programs={}", programs.display()),
    ]);
    let against = &now["against"];
    assert_eq!(against["program"], now["program"], "{text}");
    assert_eq!(against["missing"], serde_json::json!(["async n=3000 W=1 wire=f64"]), "{text}");
    assert_eq!(against["n_more_then"], 1, "{text}");
    let differences = against["differences"].as_array().expect("a list");
    assert_eq!(differences.len(), 1, "the same machine and settings: {text}");
    assert_eq!(differences[0], "async n=1000 W=1 wire=f64: f32 then, f64 now");
    let pair = &against["rows"][0]["ratio_to_raw"];
    let figure = |name: &str| pair[name].as_f64().unwrap_or_else(|| panic!("{name}: {text}"));
    let over = figure("now") / figure("then");
    assert!((figure("now_over_then") / over - 1.0).abs() < 1e-9, "{text}");

    assert_eq!(now["against_program"], now["program"], "{text}");
    for row in now["rows"].as_array().expect("rows") {
        let other = &row["against_program"];
        assert!(other["payload_gb_per_second"].as_f64() > Some(0.0), "{row}");
        let ratio = |name: &str| other["gb_per_second"][name].as_f64().expect("a ratio");
        assert!(ratio("min") <= ratio("median") && ratio("median") <= ratio("max"), "{row}");
    }
}

#[test]
fn who_waits_takes_no_processor() {
    let output = psctl(&["bench", "--idle=2s", "--workers=2", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results: Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
    let idle = &results["idle"][0];
    let workers = idle["worker_percent"].as_array().expect("a figure each");
    assert_eq!((workers.len(), results["idle"].as_array().map(Vec::len)), (2, Some(1)));
    for percent in workers.iter().chain([&idle["server_percent"]]) {
        // The goal is 1 % of a release build on a quiet machine; spinning would be 100.
        assert!(percent.as_f64().is_some_and(|percent| percent < 10.0), "{results}");
    }
    assert!(idle["seconds"].as_f64() >= Some(2.0), "{results}");
}

#[test]
#[cfg(debug_assertions)]
fn a_debug_build_refuses_and_says_what_to_do() {
    let output = psctl(&["bench", "--sizes=10"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--release"));
}

#[test]
fn a_child_exits_when_its_parent_is_gone() {
    let mut child = Command::new(PSCTL)
        .args(["bench-role", "raw-server", "--n=10", "--workers=1", "--mode=async", "--dtype=f32"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("psctl starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("a report");
    assert!(line.contains("listening"), "{line}");
    // As the kernel does when the parent dies.
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn no_process_outlives_a_bench_that_is_killed() {
    let mut bench = Command::new(PSCTL)
        .args(["bench", "--raw-only", "--sizes=100k", "--workers=2", "--mode=sync"])
        .args(["--seconds=50ms", "--repeats=1000", "--json"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psctl starts");
    let mut stderr = BufReader::new(bench.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains(" raw 1/1000") {
        line.clear();
        assert!(stderr.read_line(&mut line).expect("readable") > 0, "the bench ended");
    }
    bench.kill().expect("killed");
    bench.wait().expect("it ends");
    // Its children hold the same stderr: it ends when the last of them does.
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).expect("readable");
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (argument, code) in [
        ("--sizes=0", 2),
        ("--workers=0", 2),
        ("--mode=bsp", 2),
        ("--seconds=0", 2),
        ("--repeats=0", 2),
        ("--wire=zip", 2),
        // Nothing of gRPC is measured.
        ("--against=x.json", 2),
        ("--against-programs=.", 2),
        ("--idle", 2),
        // A mode, but none that the bench has.
        ("--mode=ssp", 78),
    ] {
        let output = psctl(&["bench", "--raw-only", argument]);
        assert_eq!(output.status.code(), Some(code), "{argument}");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let empty = directory.path().display();
    for (argument, code) in
        [(format!("--against={empty}/none.json"), 74), (format!("--against-programs={empty}"), 78)]
    {
        let output = psctl(&["bench", "--any-build", &argument]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{argument}: {stderr}");
        let flag = argument.split('=').next().expect("a flag");
        assert!(stderr.contains(flag), "{stderr}");
    }
}

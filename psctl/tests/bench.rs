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
        // A mode, but none that the bench has.
        ("--mode=ssp", 78),
    ] {
        let output = psctl(&["bench", "--raw-only", argument]);
        assert_eq!(output.status.code(), Some(code), "{argument}");
    }
}

//! `psctl compare` through the real binary: real clusters, small jobs.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const PSCTL: &str = env!("CARGO_BIN_EXE_psctl");

fn psctl(arguments: &[&str]) -> Output {
    let all = std::iter::once("compare").chain(arguments.iter().copied());
    Command::new(PSCTL).args(all).output().expect("psctl starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let last = stdout.lines().last().unwrap_or_else(|| panic!("no output: {}", stderr(output)));
    serde_json::from_str(last).expect("JSON")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("the file is there")
}

#[test]
fn modes_workers_and_seeds_side_by_side() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    let file = |flag: &str, name: &str| format!("--{flag}={}", at(name).display());
    let output = psctl(&[
        "--modes=sync,async",
        "--workers=1,2",
        "--seeds=2",
        "--rounds=20",
        "--batch=100",
        "--dtype=f64",
        "--to-loss=1.5,0.001",
        "--x=pushes",
        "--json",
        &file("plot", "loss.svg"),
        &file("csv", "runs.csv"),
        &file("report", "report.json"),
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().filter(|line| line.contains("/8] ")).count(), 8);
    let whole = json(&output);
    assert_eq!(serde_json::from_str::<Value>(&read(&at("report.json"))).expect("JSON"), whole);

    let variants = whole["variants"].as_array().expect("variants");
    let names: Vec<_> = variants.iter().map(|v| v["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["sync, K = 1", "sync, K = 2", "async, K = 1", "async, K = 2"]);
    for variant in variants {
        let workers = variant["n_workers"].as_u64().expect("K");
        assert_eq!(variant["n_done"], 2, "{variant}");
        assert_eq!(variant["pushes"]["median"], 20.0 * workers as f64);
        assert_eq!(variant["rounds"]["max"], 20.0);
        assert!(variant["bytes_sent_per_worker"]["min"].as_f64() > Some(0.0));
        let loss = |of: &str| variant["loss"][of].as_f64().expect("a loss");
        assert!(loss("min") < loss("max"), "batches depend on the seed: {variant}");
        let seeds: Vec<_> = variant["runs"].as_array().expect("runs").iter().collect();
        assert_eq!((&seeds[0]["seed"], &seeds[1]["seed"]), (&Value::from(0), &Value::from(1)));
        let reached = variant["reached"].as_array().expect("levels");
        let rounds = reached[0]["rounds"].as_f64().expect("1.5 is reached");
        assert!((1.0..20.0).contains(&rounds), "{variant}");
        assert!(reached[1].get("rounds").is_none() && reached[1]["n_runs"] == 0, "{variant}");
    }
    let drawn = read(&at("loss.svg"));
    assert!(drawn.contains("pushes of all workers") && drawn.contains("async, K = 2"));
    assert_eq!(drawn.matches("<polygon").count(), 4, "a band a variant");
    let csv = read(&at("runs.csv"));
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("variant,mode,workers,seed,round,version,pushes,seconds,loss"));
    assert!(lines.next().expect("a line").starts_with("\"sync, K = 1\",sync,1,0,0,0,0,"));
    let measured = |v: &Value| v["runs"].as_array().expect("runs").clone();
    let entries: usize = variants
        .iter()
        .flat_map(measured)
        .map(|run| run["history"].as_array().expect("a history").len())
        .sum();
    assert_eq!(csv.lines().count(), entries + 1);
}

#[test]
fn a_variant_is_the_local_run_of_its_options() {
    let output =
        psctl(&["--rounds=30", "--lr=0.1", "--json", "--variant=mine: --lr 0.02 --workers 3"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let whole = json(&output);
    assert_eq!(whole["variants"].as_array().map(Vec::len), Some(1));
    let run = &whole["variants"][0]["runs"][0];
    let alone = Command::new(PSCTL)
        .args(["local", "--rounds=30", "--lr=0.02", "--workers=3", "--quiet", "--json"])
        .output()
        .expect("psctl starts");
    let alone = json(&alone);
    assert_eq!(run["theta_sha256"], alone["final"]["theta_sha256"]);
    assert_eq!(run["history"].as_array().map(Vec::len), Some(31));
    assert_eq!(whole["variants"][0]["options"], "--lr 0.02 --workers 3");
}

#[test]
fn divergence_is_a_result_and_a_failure_does_not_lose_the_others() {
    let output = psctl(&["--rounds=100", "--variant=good:", "--variant=wild: --lr 50"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", stderr(&output));
    assert!(text.contains("wild, seed 0: diverged ("), "{text}");
    assert!(text.lines().any(|line| line.starts_with("good") && line.contains(" 400 ")), "{text}");

    let output = psctl(&["--rounds=5", "--variant=gone: --data /no/such.csv", "--variant=good:"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}{}", stderr(&output));
    assert!(text.contains("gone, seed 0: failed (") && text.contains("/no/such.csv"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("good") && line.contains(" 20 ")), "{text}");
    assert!(stderr(&output).contains("psctl: 1 of 2 runs failed, the first of them `gone`"));

    let alone = psctl(&["--data=/no/such.csv", "--modes=sync"]);
    let local = Command::new(PSCTL).args(["local", "--data=/no/such.csv"]).output();
    assert_eq!(alone.status.code(), local.expect("psctl starts").status.code());
}

#[test]
fn usage_and_configuration_errors_come_before_any_run() {
    for (arguments, code, says) in [
        (&["--variant=a: --nonsense"][..], 2, "variant `a`: unexpected argument '--nonsense'"),
        (&["--variant=a: --mode nothing"], 2, "variant `a`: invalid value 'nothing'"),
        (&["--x=pushes"], 78, "--x has no meaning without --plot"),
        (&["--variant=a: --optimizer nothing"], 78, "variant `a`: --optimizer"),
        (&["--csv=/no/such/place/x.csv"], 73, "/no/such/place"),
    ] {
        let output = psctl(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn the_options_in_force_read_back_from_the_file_that_they_make() {
    let given = ["--variant=a: --lr 0.1", "--variant=b: --model softmax,classes=3", "--seeds=2"];
    let printed = psctl(&[&given[..], &["--to-loss=0.5,0.25", "--print-config"]].concat());
    assert!(printed.status.success(), "{}", stderr(&printed));
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("compare.toml");
    std::fs::write(&file, &printed.stdout).expect("written");
    let again = psctl(&[&format!("--config={}", file.display()), "--print-config"]);
    assert!(again.status.success(), "{}", stderr(&again));
    assert_eq!(again.stdout, printed.stdout);
}

#[cfg(unix)]
#[test]
fn an_interruption_shows_what_there_is_and_leaves_nothing_behind() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::Stdio;

    let slow = "--variant=slow: --rounds 1000000 --compute-delay-ms 1";
    let mut child = Command::new(PSCTL)
        .args(["compare", "--rounds=5", "--variant=quick:", slow, "--variant=never:"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psctl starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    // The second run is under way, or about to be.
    while !line.starts_with("[1/3] quick") {
        line.clear();
        assert!(lines.read_line(&mut line).expect("UTF-8") > 0, "stderr ended early");
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.expect("kill starts").success());
    let mut shown = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut shown).expect("UTF-8");
    assert_eq!(child.wait().expect("ended").code(), Some(130), "{shown}");
    assert!(shown.starts_with("variant") && shown.contains("\nquick"), "{shown}");
    assert!(!shown.contains("\nslow") && !shown.contains("\nnever"), "{shown}");
    assert!(shown.contains("interrupted"), "{shown}");
    // The children hold stderr: its end means that they are gone.
    lines.read_to_string(&mut line).expect("UTF-8");
    assert!(line.contains("interrupted"), "{line}");
}

#[test]
fn simulated_variants_are_those_of_the_same_job_in_virtual_time() {
    let arguments = [
        "--simulated",
        "--modes=sync,ssp,async",
        // An option of one of the modes is that one's alone.
        "--staleness-bound=1",
        "--workers=4",
        "--dtype=f64",
        "--rounds=100",
        "--compute-time=exponential,mean=10ms",
        "--seeds=2",
        "--json",
    ];
    let output = psctl(&arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    let whole = json(&output);
    let variants = whole["variants"].as_array().expect("variants");
    let names: Vec<_> = variants.iter().map(|v| v["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["sync", "ssp", "async"]);
    let median = |variant: &Value, of: &str| variant[of]["median"].as_f64().expect("a figure");
    // The golden loss of sync_k4.json, whatever the compute times.
    assert!((median(&variants[0], "loss") - 0.04838314456840).abs() < 1e-9);
    for variant in &variants[1..] {
        assert_eq!(median(variant, "pushes"), 400.0);
        assert!(median(variant, "loss") < 0.02, "four steps a round: {variant}");
    }
    let seconds: Vec<f64> = variants.iter().map(|v| median(v, "wall_seconds")).collect();
    assert!(seconds[0] > seconds[1] && seconds[1] > seconds[2], "who waits less is done sooner");
    assert_eq!(psctl(&arguments).stdout, output.stdout, "the same bytes again");
}

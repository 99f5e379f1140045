//! `ps-sim report` as a process: what it measures of real programs, what it reads, what it refuses.

use std::collections::BTreeSet;
use std::process::Command;

use ps_tests::{Process, binary, project_root};
use serde_json::Value;

/// The figures of these sections, taken with little effort.
fn figures(sections: &str) -> Value {
    let root = project_root().display().to_string();
    let only = format!("--only={sections}");
    let flags = ["report", "--json", "--kills=1", "--fuzz-changes=100", "--root", &root, &only];
    let output = Process::start("ps-sim", &flags).expect_exit(0);
    let line = output.lines().find(|line| line.starts_with('{'));
    let report: Value = serde_json::from_str(line.unwrap_or(&output)).expect("one JSON object");
    assert_eq!(report["failures"], Value::Array(vec![]));
    let names: BTreeSet<&str> =
        report["sections"].as_object().expect("sections").keys().map(String::as_str).collect();
    assert_eq!(names, sections.split(',').collect());
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    assert_eq!(report["taken"]["build"], build);
    report
}

#[test]
fn every_bad_input_gets_its_answer_and_the_journal_loses_nothing() {
    let report = figures("inputs,durability");
    let inputs = &report["sections"]["inputs"]["figures"];
    assert_eq!(inputs["sent"], inputs["answered_right"]);
    let cases = inputs["cases"].as_array().expect("cases");
    assert_eq!(inputs["sent"].as_u64(), Some(cases.len() as u64));
    let different: BTreeSet<_> = cases.iter().map(|case| case["input"].as_str()).collect();
    assert_eq!(different.len(), cases.len(), "each input once");
    assert!(cases.len() >= 70, "{} inputs", cases.len());
    let looked = cases.iter().filter(|case| case["theta_unchanged"] == true).count();
    assert!(looked >= 60, "theta was looked at {looked} times");

    let settings = report["sections"]["durability"]["figures"].as_array().expect("settings");
    let names: Vec<_> = settings.iter().map(|setting| setting["durability"].as_str()).collect();
    assert_eq!(names, ["none", "interval", "always"].map(Some));
    for setting in settings {
        let number = |name: &str| setting[name].as_u64().expect("a count");
        let promised = setting["promised"].as_str().expect("words");
        assert!(promised.starts_with("a crash undoes"), "{promised}");
        assert!(number("acknowledged") > 0 && number("twice") == 0, "{setting}");
        match setting["durability"].as_str() {
            // No checkpoint is asked for: all of it is gone.
            Some("none") => assert_eq!(number("undone"), number("acknowledged")),
            Some("always") => assert_eq!(number("undone"), 0),
            _ => assert!(number("undone") <= number("acknowledged")),
        }
    }
}

#[test]
fn what_is_read_and_what_is_run_here_is_told_apart() {
    let report = figures("records,fuzz,advisories");
    let records = &report["sections"]["records"]["figures"];
    assert_eq!(records["source"], "docs/RELIABILITY.md");
    assert_eq!(records["faults"]["rows"], 48);
    assert_eq!(records["faults"]["disturbed"], 0);
    let fuzz = &report["sections"]["fuzz"]["figures"];
    let targets = fuzz["targets"].as_array().expect("targets");
    assert_eq!((targets.len(), &fuzz["crashes"]), (12, &Value::from(0)));
    assert!(targets.iter().all(|target| target["executions"].as_u64() > Some(100)), "{fuzz}");
    let lock = std::fs::read_to_string(project_root().join("Cargo.lock")).expect("readable");
    let n_packages = lock.lines().filter(|line| line.starts_with("source = ")).count();
    let advisories = &report["sections"]["advisories"]["figures"];
    assert_eq!(advisories["n_packages"].as_u64(), Some(n_packages as u64));
}

#[test]
fn without_the_programs_it_says_which_and_how_to_build_them() {
    let program = binary("ps-sim");
    let beside = program.parent().expect("a folder");
    let elsewhere = tempfile::tempdir_in(beside).expect("a temporary folder");
    let alone = elsewhere.path().join("ps-sim");
    std::fs::hard_link(&program, &alone).expect("the same file system");
    let mut command = Command::new(alone);
    command.args(["report", "--only=inputs"]);
    let output = Process::spawn("ps-sim", command).expect_exit(78);
    assert!(output.contains("ps-server") && output.contains("cargo build"), "{output}");
}

#[test]
#[cfg(debug_assertions)]
fn figures_of_a_debug_build_are_not_put_into_the_document() {
    let output = Process::start("ps-sim", &["report", "--write"]).expect_exit(78);
    assert!(output.contains("--write") && output.contains("--release"), "{output}");
}

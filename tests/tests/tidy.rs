//! The rules of layers and sizes, by path.

use std::fs;
use std::path::{Path, PathBuf};

use ps_tests::project_root;

/// Every Rust file that is the project's own.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("readable").map(|e| e.expect("readable").path()) {
            if entry.is_dir() && entry.file_name().is_some_and(|name| name != "target") {
                walk(&entry, found);
            } else if entry.extension().is_some_and(|ending| ending == "rs") {
                found.push(entry);
            }
        }
    }
    let root = project_root();
    let mut found = Vec::new();
    for part in ["ps-common", "ps-server", "ps-worker", "ps-sim", "psctl", "tests", "fuzz"] {
        walk(&root.join(part), &mut found);
    }
    assert!(found.len() > 50, "only {} files found", found.len());
    let name = |path: &Path| path.strip_prefix(&root).expect("inside").display().to_string();
    let text = |path: &Path| fs::read_to_string(path).expect("readable");
    found.iter().map(|path| (name(path), text(path))).collect()
}

/// The part before the file's own tests.
fn without_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod ").map_or(text, |end| &text[..end])
}

fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.contains("/tests.rs")
}

#[track_caller]
fn none(what: &str, offenders: Vec<String>) {
    assert!(offenders.is_empty(), "{what}:\n  {}", offenders.join("\n  "));
}

/// Lines of code files in `folder` that contain one of `words`.
fn lines_with(folder: &str, words: &[&str]) -> Vec<String> {
    let mut offenders = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| path.starts_with(folder)) {
        for (number, line) in without_tests(text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if let Some(word) = words.iter().find(|word| code.contains(**word)) {
                offenders.push(format!("{path}:{}: {word}", number + 1));
            }
        }
    }
    offenders
}

#[test]
fn no_file_is_longer_than_600_lines_without_its_tests() {
    let long =
        sources().into_iter().filter(|(path, _)| !is_test(path)).filter_map(|(path, text)| {
            let lines = without_tests(&text).lines().count();
            (lines > 600).then(|| format!("{path}: {lines} lines"))
        });
    none("files above 600 lines", long.collect());
}

#[test]
fn every_file_says_what_it_owns() {
    let silent =
        sources().into_iter().filter(|(_, text)| !text.starts_with("//")).map(|(path, _)| path);
    none("files that do not begin with a comment", silent.collect());
}

#[test]
fn pure_parts_know_no_runtime_network_or_clock() {
    let words = ["tokio", "tonic", "prost", "Instant", "SystemTime", "std::net", "std::thread"];
    for folder in [
        "ps-server/src/core",
        "ps-server/src/numeric",
        "ps-server/src/table",
        "ps-server/src/driver.rs",
        "ps-server/src/follower",
        "ps-worker/src/model",
        "psctl/src/peers",
    ] {
        none(folder, lines_with(folder, &words));
    }
    none(
        "numeric knows tables",
        lines_with("ps-server/src/numeric", &["crate::table", "crate::core"]),
    );
    none(
        "core knows tensors",
        lines_with("ps-server/src/core", &["crate::table", "crate::numeric", "Element"]),
    );
    none("table knows rules", lines_with("ps-server/src/table", &["crate::core", "crate::driver"]));
}

#[test]
fn simulated_time_is_the_only_time_of_a_simulation() {
    let words = ["Instant", "SystemTime", "sleep(", "tokio", "tonic", "std::net"];
    none("psctl/src/simulate", lines_with("psctl/src/simulate", &words));
}

#[test]
fn storage_knows_bytes_and_names_only() {
    let words = [
        "crate::core",
        "crate::table",
        "crate::numeric",
        "crate::driver",
        "crate::net",
        "tokio",
        "tonic",
        "wire::",
        "Instant",
        "SystemTime",
        "std::thread",
        "Element",
    ];
    // Its tests measure, and share a journal between threads.
    let mut offenders = lines_with("ps-server/src/storage", &words);
    offenders.retain(|line| !line.contains("/tests.rs:"));
    none("ps-server/src/storage", offenders);
}

#[test]
fn generated_types_stop_at_the_wire() {
    // Services speak protobuf by trade: net is where wire types are turned into calls.
    for folder in [
        "ps-server/src/core",
        "ps-server/src/table",
        "ps-server/src/driver.rs",
        "ps-worker/src/model",
        "ps-worker/src/data",
    ] {
        none(folder, lines_with(folder, &["wire::", "pb::"]));
    }
}

#[test]
fn server_and_worker_do_not_depend_on_each_other() {
    none("ps-server", lines_with("ps-server", &["ps_worker"]));
    none("ps-worker", lines_with("ps-worker", &["ps_server"]));
    none("ps-common", lines_with("ps-common", &["ps_server", "ps_worker"]));
}

#[test]
fn no_message_repeats_a_number_or_a_message_per_element() {
    let root = project_root().join("proto/ps/v1");
    let permitted = [
        "repeated Table tables",
        "repeated uint64 shape",
        "repeated WorkerStatus workers",
        // One a server, a worker's push, a step of an update, a checkpoint.
        "repeated uint64 first_keys",
        "repeated Part parts",
        "repeated double factors",
        "repeated CheckpointName checkpoints",
    ];
    let mut offenders = Vec::new();
    for entry in fs::read_dir(root).expect("readable") {
        let path = entry.expect("readable").path();
        for line in fs::read_to_string(&path).expect("readable").lines() {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains("repeated") && !permitted.iter().any(|p| code.contains(p)) {
                offenders.push(format!("{}: {code}", path.display()));
            }
        }
    }
    none("repeated fields beyond the permitted ones", offenders);
}

#[test]
fn nothing_is_left_to_be_done_later() {
    // Put together here, so that this file does not find itself.
    let marks = [
        ["TO", "DO"].concat(),
        ["FIX", "ME"].concat(),
        ["todo", "!("].concat(),
        ["unimplemented", "!("].concat(),
    ];
    let offenders = sources().into_iter().flat_map(|(path, text)| {
        let found: Vec<String> = text
            .lines()
            .enumerate()
            .filter(|(_, line)| marks.iter().any(|mark| line.contains(mark.as_str())))
            .map(|(number, _)| format!("{path}:{}", number + 1))
            .collect();
        found
    });
    none("marks of unfinished work", offenders.collect());
}

//! Every target over its valid inputs and over changes of them, the same on every machine, without
//! libFuzzer.

// What ran is said on stdout.
#![allow(clippy::print_stdout)]

use ps_fuzz::{TARGETS, Target, try_changes};

/// `PS_FUZZ_SEED=N` and `PS_FUZZ_N=N` ask for other and for more changes.
fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number"))
}

/// Resident at most, targets and test together.
const MEMORY_BYTES_MAX: u64 = 512 << 20;

#[test]
fn no_change_of_a_valid_input_breaks_a_promise() {
    let (seed, n) = (setting("PS_FUZZ_SEED", 1), setting("PS_FUZZ_N", 3000));
    println!("PS_FUZZ_SEED={seed} PS_FUZZ_N={n}");
    let failures = std::thread::scope(|scope| {
        let half = |from: usize| {
            scope.spawn(move || {
                let targets = TARGETS.iter().skip(from).step_by(2);
                targets.flat_map(|target| mutations(target, seed, n)).collect::<Vec<_>>()
            })
        };
        [half(0), half(1)].map(|half| half.join().expect("failures are caught")).concat()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    if let Some(bytes) = resident_max() {
        println!("resident at most: {} MiB", bytes >> 20);
        assert!(bytes < MEMORY_BYTES_MAX, "{bytes} bytes were resident");
    }
}

/// The first failures of a target.
fn mutations(target: &Target, seed: u64, n: u64) -> Vec<String> {
    let tried = try_changes(target, seed, n);
    println!(
        "{}: {} seeds, {n} changes, {} of them accepted, {:.1} s",
        tried.name,
        tried.n_seeds,
        tried.n_accepted,
        tried.took.as_secs_f64()
    );
    tried.failures
}

/// The most memory that was ever resident, where the system tells.
fn resident_max() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

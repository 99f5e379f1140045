//! Every target over its valid inputs and over changes of them, the same on every machine, without
//! libFuzzer.

// What ran is said on stdout.
#![allow(clippy::print_stdout)]

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use ps_fuzz::{Mutator, TARGETS, Target};

/// `PS_FUZZ_SEED=N` and `PS_FUZZ_N=N` ask for other and for more changes.
fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number"))
}

/// Longest time that one small input may take, on a slow machine too.
const PATIENCE: Duration = Duration::from_secs(20);

/// Resident at most, targets and test together.
const MEMORY_BYTES_MAX: u64 = 512 << 20;

/// Whether the input was accepted; what went wrong, with the input.
fn run(target: &Target, bytes: &[u8], name: &str) -> Result<bool, String> {
    let begin = Instant::now();
    let accepted = catch_unwind(|| (target.run)(bytes));
    let took = begin.elapsed();
    let failure =
        |what: &str| format!("{} {what} at {name}: b\"{}\"", target.name, bytes.escape_ascii());
    match accepted {
        Ok(_) if took >= PATIENCE => Err(failure(&format!("took {took:?}"))),
        accepted => accepted.map_err(|_| failure("panics")),
    }
}

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
    const SHOWN: usize = 5;
    let begin = Instant::now();
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{} has no seeds", target.name);
    let mut failures = Vec::new();
    for (index, bytes) in seeds.iter().enumerate() {
        match run(target, bytes, "a seed") {
            Ok(true) => {}
            Ok(false) => failures.push(format!("{}: seed {index} is refused", target.name)),
            Err(failure) => failures.push(failure),
        }
    }
    let mut mutator = Mutator::new(seed);
    let (mut pool, mut n_accepted) = (seeds, 0);
    let n_seeds = pool.len();
    for index in 0..n {
        let [one, other] = mutator.pick_two(pool.len());
        let bytes = mutator.mutate(&pool[one], &pool[other]);
        match run(target, &bytes, &format!("change {index} of PS_FUZZ_SEED={seed}")) {
            Ok(true) => {
                n_accepted += 1;
                // What is still valid is changed further, up to a size and number.
                if bytes.len() < 4096 && pool.len() < 20 * n_seeds {
                    pool.push(bytes);
                }
            }
            Ok(false) => {}
            Err(failure) => failures.push(failure),
        }
        if failures.len() >= SHOWN {
            break;
        }
    }
    println!(
        "{}: {n_seeds} seeds, {n} changes, {n_accepted} of them accepted, {:.1} s",
        target.name,
        begin.elapsed().as_secs_f64()
    );
    failures
}

/// The most memory that was ever resident, where the system tells.
fn resident_max() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

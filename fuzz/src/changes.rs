//! A target over its valid inputs and over changes of them, the same for the same seed.

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use crate::{Mutator, Target};

/// Longest time that one small input may take, on a slow machine too.
const PATIENCE: Duration = Duration::from_secs(20);

/// Failures after which a target is given up.
const SHOWN: usize = 5;

/// What became of a target.
#[derive(Debug, Clone)]
pub struct Tried {
    /// Of the target.
    pub name: &'static str,
    /// Valid inputs.
    pub n_seeds: usize,
    /// Inputs in all, the valid ones included.
    pub executions: u64,
    /// Changed inputs that were still valid.
    pub n_accepted: u64,
    /// What went wrong, each with its input.
    pub failures: Vec<String>,
    /// Of all inputs together.
    pub took: Duration,
}

/// Runs `target` over its valid inputs, and over `n` changes of them.
///
/// # Panics
/// If it has no valid inputs.
pub fn try_changes(target: &Target, seed: u64, n: u64) -> Tried {
    let begin = Instant::now();
    let mut pool = (target.seeds)();
    let n_seeds = pool.len();
    assert!(n_seeds > 0, "{} has no seeds", target.name);
    let mut failures = Vec::new();
    for (index, bytes) in pool.iter().enumerate() {
        match run(target, bytes, "a seed") {
            Ok(true) => {}
            Ok(false) => failures.push(format!("{}: seed {index} is refused", target.name)),
            Err(failure) => failures.push(failure),
        }
    }
    let mut mutator = Mutator::new(seed);
    let (mut executions, mut n_accepted) = (n_seeds as u64, 0);
    for index in 0..n {
        let [one, other] = mutator.pick_two(pool.len());
        let bytes = mutator.mutate(&pool[one], &pool[other]);
        executions += 1;
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
    Tried { name: target.name, n_seeds, executions, n_accepted, failures, took: begin.elapsed() }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_failure_that_names_its_input() {
        let run = |bytes: &[u8]| {
            assert!(bytes != b"good!", "found");
            true
        };
        let tried =
            try_changes(&Target { name: "bad", run, seeds: || vec![b"good!".to_vec()] }, 1, 10_000);
        assert!(tried.failures[0].contains("bad panics at a seed: b\"good!\""), "{tried:?}");
        let refusing = Target { name: "strict", run: |_| false, seeds: || vec![vec![1]] };
        let tried = try_changes(&refusing, 1, 100);
        assert_eq!((tried.executions, tried.n_accepted), (101, 0));
        assert_eq!(tried.failures, ["strict: seed 0 is refused"]);
    }
}

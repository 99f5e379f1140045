//! Update rules, and the way in of a gradient, against one pass over the bytes that they must touch.
//!
//! `cargo bench -p ps-server --bench kernels [-- FILTER]`. What a rule is measured by is
//! [`Store::update`] with one gradient, as a push in async mode causes it: checks for overflow, chunks
//! and versions are in it. Its yardstick is a plain loop that reads and writes the same bytes: the
//! gradient is read; theta and each number that the rule remembers of an element are read and written.
//! The yardstick runs on one thread, and on one per core.
//!
//! Figures mean something on a quiet machine alone. `cargo test -p ps-server --bench kernels` runs
//! everything once, small.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::Write;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};
use ps_common::Dtype;
use ps_common::dtype::as_le_bytes;
use ps_common::job::Combine;
use ps_common::tables::{Table, Tables};
use ps_server::numeric::{Optimizer, Wish};
use ps_server::table::{Gradient, Store, Update};

/// Within the caches of a server's processor, and far beyond them.
const SIZES: [usize; 2] = [1_000_000, 25_000_000];

/// Elements where the bench only has to be seen to run.
const SIZE_OF_TEST: usize = 100_000;

const RULES: [&str; 8] =
    ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "ftrl,alpha=0.1"];

/// As the server cuts theta and its clients cut gradients.
const CHUNK_BYTES: usize = 256 * 1024;

/// Times of one iteration, by what was measured; criterion keeps its own to itself.
#[derive(Default)]
struct Times(RefCell<BTreeMap<String, Vec<f64>>>);

impl Times {
    fn add(&self, name: &str, iterations: u64, time: Duration) {
        let seconds = time.as_secs_f64() / iterations as f64;
        self.0.borrow_mut().entry(name.to_owned()).or_default().push(seconds);
    }

    /// The median; `None` where a filter left it out.
    fn seconds(&self, name: &str) -> Option<f64> {
        let mut times = self.0.borrow().get(name)?.clone();
        times.sort_by(f64::total_cmp);
        Some(times[times.len() / 2])
    }
}

/// One group: things that touch the same bytes.
struct Race<'a> {
    group: BenchmarkGroup<'a, WallTime>,
    n: usize,
    times: Times,
}

impl<'a> Race<'a> {
    fn new(criterion: &'a mut Criterion, title: &str, n: usize, n_bytes: usize) -> Self {
        let mut group = criterion.benchmark_group(title);
        group.throughput(Throughput::Bytes(n_bytes as u64));
        group.sampling_mode(SamplingMode::Flat).sample_size(20);
        group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
        Self { group, n, times: Times::default() }
    }

    /// `run` does something so many times and says how long that took.
    fn lap(&mut self, name: &str, mut run: impl FnMut(u64) -> Duration) {
        let times = &self.times;
        self.group.bench_function(BenchmarkId::new(name, self.n), |bencher| {
            bencher.iter_custom(|iterations| {
                let time = run(iterations);
                times.add(name, iterations, time);
                time
            });
        });
    }

    /// Says how many times as long as each of `yardsticks` the lap `name` took.
    fn finish(self, name: &str, yardsticks: &[&str]) {
        let Self { group, n, times } = self;
        group.finish();
        if n == SIZE_OF_TEST {
            // Each was run once, perhaps in a debug build: no figures.
            return;
        }
        let Some(own) = times.seconds(name) else { return };
        for yardstick in yardsticks {
            let Some(pass) = times.seconds(yardstick) else { continue };
            say(&format!(
                "{name}, n = {n}: {:.3} ms, {:.2} of the time of {yardstick} ({:.3} ms)",
                1e3 * own,
                own / pass,
                1e3 * pass,
            ));
        }
    }
}

fn say(line: &str) {
    // Nobody is left to tell when stdout itself is gone.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn timed(iterations: u64, mut run: impl FnMut()) -> Duration {
    let began = Instant::now();
    (0..iterations).for_each(|_| run());
    began.elapsed()
}

/// Neither too small nor too large for any rule, however long it runs, and not all alike.
fn gradient(n: usize) -> Vec<f32> {
    (0..n).map(|key| if key % 2 == 0 { 1e-3 } else { -1e-3 }).collect()
}

/// Reads `gradient`, reads and writes `state`: as few operations as keep a compiler honest.
fn pass(gradient: &[f32], state: &mut [&mut [f32]]) {
    for buffer in state {
        for (x, g) in buffer.iter_mut().zip(gradient) {
            *x = *x * 0.5 + *g;
        }
    }
}

/// The same in blocks that stay in the first cache, so that the gradient is read from memory once.
fn pass_in_blocks(gradient: &[f32], state: &mut [&mut [f32]]) {
    const BLOCK: usize = 1024;
    for begin in (0..gradient.len()).step_by(BLOCK) {
        let keys = begin..gradient.len().min(begin + BLOCK);
        let mut blocks: Vec<&mut [f32]> = Vec::new();
        blocks.extend(state.iter_mut().map(|buffer| &mut buffer[keys.clone()]));
        pass(&gradient[keys], &mut blocks);
    }
}

/// [`pass_in_blocks`] on `n_threads` threads, each with its own share of the keys.
fn pass_on(
    n_threads: usize,
    gradient: &[f32],
    state: &mut [Vec<f32>],
    iterations: u64,
) -> Duration {
    let share = gradient.len().div_ceil(n_threads);
    let mut parts: Vec<Vec<&mut [f32]>> = (0..n_threads).map(|_| Vec::new()).collect();
    for buffer in state {
        for (part, piece) in parts.iter_mut().zip(buffer.chunks_mut(share)) {
            part.push(piece);
        }
    }
    let barrier = Barrier::new(n_threads);
    std::thread::scope(|scope| {
        let threads: Vec<_> = parts
            .iter_mut()
            .zip(gradient.chunks(share))
            .map(|(part, gradient)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    timed(iterations, || {
                        pass_in_blocks(black_box(gradient), black_box(part));
                        // An update has ended when all of it has.
                        barrier.wait();
                    })
                })
            })
            .collect();
        let times = threads.into_iter().map(|thread| thread.join().expect("it only computes"));
        times.max().expect("at least one thread")
    })
}

/// Buffers beside the gradient: theta and what `optimizer` remembers.
fn n_buffers(optimizer: &Optimizer) -> usize {
    1 + optimizer.rule.slots().len()
}

/// Bytes that an update by `optimizer` must read or write: the gradient once, the rest twice.
fn bytes_touched(optimizer: &Optimizer, n: usize) -> usize {
    (1 + 2 * n_buffers(optimizer)) * n * size_of::<f32>()
}

fn optimizer(name: &str) -> Optimizer {
    let wish = Wish {
        optimizer: name,
        lr: None,
        schedule: "constant",
        weight_decay: None,
        clip_norm: None,
    };
    Optimizer::new(&wish).expect("a rule")
}

fn rule(criterion: &mut Criterion, name: &str, n: usize) {
    let optimizer = optimizer(name);
    let name = optimizer.rule.name();
    let n_bytes = bytes_touched(&optimizer, n);
    let mut race = Race::new(criterion, &format!("update, {name}"), n, n_bytes);
    {
        let tables = Tables::new(vec![Table::zeros("theta", &[n as u64], true)]).expect("valid");
        let mut store = Store::new(&tables, Dtype::F32, optimizer, CHUNK_BYTES);
        let parts = [(Gradient::F32(gradient(n).into()), 1.0)];
        let update =
            Update { parts: &parts, combine: Combine::Sum, rate_factor: 1.0, compensation: None };
        race.lap(name, |iterations| {
            timed(iterations, || store.update(black_box(&update)).expect("finite"))
        });
    }
    let gradient = gradient(n);
    let mut state = vec![vec![0f32; n]; n_buffers(&optimizer)];
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let many = format!("a pass on {n_cores} threads");
    race.lap("a pass", |iterations| pass_on(1, &gradient, &mut state, iterations));
    race.lap(&many, |iterations| pass_on(n_cores, &gradient, &mut state, iterations));
    race.finish(name, &["a pass", &many]);
}

/// What is done to a push on its way in: copied out of messages into place, and checked for NaN.
fn way_in(criterion: &mut Criterion, n: usize) {
    const NAME: &str = "copy and check";
    let values = gradient(n);
    let mut race = Race::new(criterion, "gradient", n, 2 * n * size_of::<f32>());
    let mut spare = None;
    race.lap(NAME, |iterations| {
        timed(iterations, || {
            let mut gradient = Gradient::empty(Dtype::F32, spare.take());
            for chunk in as_le_bytes(black_box(&values)).chunks(CHUNK_BYTES) {
                gradient.append(chunk, n).expect("finite");
            }
            spare = Some(gradient);
        })
    });
    let mut copy = vec![0f32; n];
    race.lap("a copy", |iterations| {
        timed(iterations, || black_box(&mut copy[..]).copy_from_slice(black_box(&values)))
    });
    race.finish(NAME, &["a copy"]);
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let is_given = |flag: &str| std::env::args().any(|argument| argument == flag);
    // As criterion reads them: `cargo test` gives neither.
    let is_test = is_given("--test") || !is_given("--bench");
    let sizes = if is_test { &[SIZE_OF_TEST][..] } else { &SIZES };
    for &n in sizes {
        for name in RULES {
            rule(&mut criterion, name, n);
        }
        way_in(&mut criterion, n);
    }
    criterion.final_summary();
}

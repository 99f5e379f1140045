//! Update rules, and the way in of a gradient, against plain passes over the bytes that they must touch.
//!
//! `cargo bench -p ps-server --bench kernels [-- FILTER]`. What a rule is measured by is
//! [`Store::update`] with one gradient, as a push in async mode causes it: checks for overflow, chunks
//! and versions are in it. Its yardsticks are plain loops:
//!
//! - *beside*: reads the arrays that the update reads (gradient, theta, what the rule remembers) and
//!   writes those that it writes (the next theta, what is remembered next), which are others because an
//!   update counts whole or not at all;
//! - *in place*: writes into what it reads. No update that may have to be taken back can do that; it is
//!   the least that any server would have to touch.
//!
//! Update and yardsticks run one after the other, again and again, on one thread and on one per core:
//! criterion reports the update's time, and a table at the end compares the quickest of each, which
//! other work on the machine disturbs least.
//!
//! Figures mean something on a quiet machine alone. `cargo test -p ps-server --bench kernels` runs
//! everything once, small.

use std::cell::RefCell;
use std::hint::black_box;
use std::io::Write;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};
use ps_common::check::all_within;
use ps_common::dtype::{CHUNK_BYTES, as_le_bytes};
use ps_common::job::Combine;
use ps_common::tables::{Table, Tables};
use ps_common::{Dtype, Element, widest};
use ps_server::numeric::{Optimizer, Wish};
use ps_server::table::{Gradient, Store, Update};
use ps_server::threads::Threads;

/// Elements, beyond the caches of a server's processor and far beyond them.
const SIZES: [(Dtype, usize); 3] =
    [(Dtype::F32, 4_000_000), (Dtype::F32, 25_000_000), (Dtype::F64, 4_000_000)];

/// Of gradients on their way in: a chunk, which is in the cache, and 100 MB, which are not.
const SIZES_OF_GRADIENTS: [usize; 2] = [CHUNK_BYTES / 4, 25_000_000];

/// Elements where the bench only has to be seen to run.
const SIZE_OF_TEST: usize = 100_000;

const RULES: [&str; 8] =
    ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "ftrl,alpha=0.1"];

/// Times in seconds of one iteration, of one thing a column; criterion keeps its own to itself.
struct Times<const N: usize>(RefCell<Vec<[f64; N]>>);

impl<const N: usize> Times<N> {
    /// The quickest of one thing; infinite where a filter left all out.
    fn quickest(&self, what: usize) -> f64 {
        self.0.borrow().iter().map(|times| times[what]).fold(f64::INFINITY, f64::min)
    }
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn group<'a>(criterion: &'a mut Criterion, title: &str, n_bytes: usize) -> Group<'a> {
    let mut group = criterion.benchmark_group(title);
    group.throughput(Throughput::Bytes(n_bytes as u64));
    group.sampling_mode(SamplingMode::Flat).sample_size(15);
    group.warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_millis(1500));
    group
}

/// Runs some things in turn; criterion hears of the first.
fn race<const N: usize>(
    group: &mut Group<'_>,
    id: BenchmarkId,
    mut run: impl FnMut() -> [Duration; N],
) -> Times<N> {
    let times = Times(RefCell::default());
    group.bench_function(id, |bencher| {
        bencher.iter_custom(|iterations| {
            let mut first = Duration::ZERO;
            for _ in 0..iterations {
                let durations = run();
                first += durations[0];
                times.0.borrow_mut().push(durations.map(|time| time.as_secs_f64()));
            }
            first
        });
    });
    times
}

fn say(line: &str) {
    // Nobody is left to tell when stdout itself is gone.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn timed(run: impl FnOnce()) -> Duration {
    let began = Instant::now();
    run();
    began.elapsed()
}

/// Neither too small nor too large for any rule, however long it runs, and not all alike.
fn gradient<T: Element>(n: usize) -> Vec<T> {
    (0..n).map(|key| T::from_f64(if key % 2 == 0 { 1e-3 } else { -1e-3 })).collect()
}

/// How a yardstick writes.
#[derive(Clone, Copy)]
enum Pass {
    InPlace,
    Beside,
}

/// What a yardstick reads and writes besides the gradient: an array to be read, and one to be written
/// beside it, which take turns.
type Pair<A> = [A; 2];

impl Pass {
    /// Over a share of the keys, all arrays in one loop, with as few operations as keep a compiler honest.
    fn over<T: Element>(self, gradient: &[T], pairs: &mut [Pair<&mut [T]>]) {
        let half = T::from_f64(0.5);
        let next = |x: T, g: T| x * half + g;
        match (self, pairs) {
            (Self::InPlace, [[a, _]]) => widest(|| {
                a.iter_mut().zip(gradient).for_each(|(a, &g)| *a = next(*a, g));
            }),
            (Self::InPlace, [[a, _], [b, _]]) => widest(|| {
                for ((a, b), &g) in a.iter_mut().zip(&mut **b).zip(gradient) {
                    (*a, *b) = (next(*a, g), next(*b, g));
                }
            }),
            (Self::InPlace, [[a, _], [b, _], [c, _]]) => widest(|| {
                for (((a, b), c), &g) in a.iter_mut().zip(&mut **b).zip(&mut **c).zip(gradient) {
                    (*a, *b, *c) = (next(*a, g), next(*b, g), next(*c, g));
                }
            }),
            (Self::Beside, [[from, to]]) => widest(|| {
                let from = from.iter().zip(gradient);
                to.iter_mut().zip(from).for_each(|(to, (&a, &g))| *to = next(a, g));
            }),
            (Self::Beside, [[a, to_a], [b, to_b]]) => widest(|| {
                let from = a.iter().zip(&**b).zip(gradient);
                for ((to_a, to_b), ((&a, &b), &g)) in to_a.iter_mut().zip(&mut **to_b).zip(from) {
                    (*to_a, *to_b) = (next(a, g), next(b, g));
                }
            }),
            (Self::Beside, [[a, to_a], [b, to_b], [c, to_c]]) => widest(|| {
                let from = a.iter().zip(&**b).zip(&**c).zip(gradient);
                let to = to_a.iter_mut().zip(&mut **to_b).zip(&mut **to_c);
                for (((to_a, to_b), to_c), (((&a, &b), &c), &g)) in to.zip(from) {
                    (*to_a, *to_b, *to_c) = (next(a, g), next(b, g), next(c, g));
                }
            }),
            (_, pairs) => panic!("theta and {} slots", pairs.len() - 1),
        }
    }

    /// The same on `n_threads` threads, each with its own share of the keys.
    fn on<T: Element>(
        self,
        n_threads: usize,
        gradient: &[T],
        pairs: &mut [Pair<Vec<T>>],
    ) -> Duration {
        let share = gradient.len().div_ceil(n_threads);
        let mut parts: Vec<Vec<Pair<&mut [T]>>> = (0..n_threads).map(|_| Vec::new()).collect();
        for [from, to] in &mut *pairs {
            let pieces = from.chunks_mut(share).zip(to.chunks_mut(share));
            for (part, (from, to)) in parts.iter_mut().zip(pieces) {
                part.push([from, to]);
            }
        }
        let barrier = Barrier::new(n_threads);
        let time = std::thread::scope(|scope| {
            let threads: Vec<_> = parts
                .iter_mut()
                .zip(gradient.chunks(share))
                .map(|(part, gradient)| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        barrier.wait();
                        timed(|| {
                            self.over(black_box(gradient), black_box(part));
                            // An update has ended when all of it has.
                            barrier.wait();
                        })
                    })
                })
                .collect();
            let times = threads.into_iter().map(|thread| thread.join().expect("it only computes"));
            times.max().expect("at least one thread")
        });
        if let Self::Beside = self {
            pairs.iter_mut().for_each(|pair| pair.swap(0, 1));
        }
        time
    }
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

/// Measures a rule; gives its line of the table, if no filter left it out.
fn rule<T: Element>(
    criterion: &mut Criterion,
    name: &str,
    n: usize,
    n_cores: usize,
) -> Option<String> {
    let optimizer = optimizer(name);
    let name = optimizer.rule.name();
    // theta and what the rule remembers.
    let n_pairs = 1 + optimizer.rule.slots().len();
    let n_bytes = (1 + 2 * n_pairs) * size_of::<T>();
    let mut group = group(criterion, &format!("{name}, {}", T::DTYPE), n_bytes * n);
    let gradient = gradient::<T>(n);
    let tables = Tables::new(vec![Table::zeros("theta", &[n as u64], true)]).expect("valid");
    let pushed = Gradient::from_le_bytes(T::DTYPE, as_le_bytes(&gradient)).expect("finite");
    let parts = [(pushed, 1.0)];
    let update =
        Update { parts: &parts, combine: Combine::Sum, rate_factor: 1.0, compensation: None };
    let mut store = Store::new(&tables, T::DTYPE, optimizer, CHUNK_BYTES);
    let mut pairs = Vec::new();
    pairs.resize_with(n_pairs, || [vec![T::ZERO; n], vec![T::ZERO; n]]);
    let mut is_whole = true;
    let mut line = format!("| {name} | {} | {n} | {n_bytes} |", T::DTYPE);
    for n_threads in [1, n_cores] {
        store = store.on_threads(Threads::exactly(n_threads));
        let id = BenchmarkId::new(format!("threads={n_threads}"), n);
        let times = race(&mut group, id, || {
            let update = timed(|| store.update(black_box(&update)).expect("finite"));
            let beside = Pass::Beside.on(n_threads, &gradient, &mut pairs);
            [update, beside, Pass::InPlace.on(n_threads, &gradient, &mut pairs)]
        });
        let [update, beside, in_place] = [0, 1, 2].map(|what| times.quickest(what));
        is_whole &= update.is_finite();
        let ratios = [update / beside, update / in_place];
        line += &format!(" {:.2} | {:.2} | {:.2} |", 1e3 * update, ratios[0], ratios[1]);
    }
    group.finish();
    is_whole.then_some(line)
}

/// What is done to a push on its way in: looked at, for NaN, infinity and large numbers; its checksum
/// taken; the look with the copy out of messages into place; and all of it, as a server does it. Gives its
/// lines of the table.
fn way_in(criterion: &mut Criterion, n: usize) -> Vec<String> {
    let values = gradient::<f32>(n);
    let n_bytes = n * size_of::<f32>();
    let mut group = group(criterion, "gradient", n_bytes);
    // 2^64, as for any gradient in single precision.
    let limit = 2f32.powi(64);
    let mut copy = vec![0f32; n];
    let mut spare = None;
    let times = race(&mut group, BenchmarkId::new("look", n), || {
        // What is small is hot after the first of these, as a chunk is that was just received.
        black_box(&mut copy[..]).copy_from_slice(black_box(&values));
        let look = timed(|| assert!(all_within(black_box(&values), black_box(limit))));
        let copy = timed(|| black_box(&mut copy[..]).copy_from_slice(black_box(&values)));
        let both = timed(|| {
            let mut gradient = Gradient::empty(Dtype::F32, spare.take());
            for chunk in as_le_bytes(black_box(&values)).chunks(CHUNK_BYTES) {
                gradient.append(chunk, n).expect("finite");
            }
            spare = Some(gradient);
        });
        let checksum = timed(|| {
            black_box(crc32fast::hash(as_le_bytes(black_box(&values))));
        });
        let all = timed(|| {
            let mut gradient = Gradient::empty(Dtype::F32, spare.take());
            let mut sum = crc32fast::Hasher::new();
            for chunk in as_le_bytes(black_box(&values)).chunks(CHUNK_BYTES) {
                gradient.append_from(0, chunk, n, |block| sum.update(block)).expect("finite");
            }
            black_box(sum.finalize());
            spare = Some(gradient);
        });
        [look, copy, both, checksum, all]
    });
    group.finish();
    let line = |(what, name)| {
        let seconds = times.quickest(what);
        format!(
            "| {name} | {n_bytes} | {:.1} | {:.1} |",
            1e6 * seconds,
            n_bytes as f64 / seconds / 1e9
        )
    };
    match times.quickest(0).is_finite() {
        true => [
            (0, "look"),
            (3, "checksum"),
            (1, "copy"),
            (2, "copy and look"),
            (4, "copy, look and checksum"),
        ]
        .map(line)
        .into(),
        false => Vec::new(),
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let is_given = |flag: &str| std::env::args().any(|argument| argument == flag);
    // As criterion reads them: `cargo test` gives neither.
    let is_test = is_given("--test") || !is_given("--bench");
    let mut sizes =
        SIZES.map(|(dtype, n)| (dtype, if is_test { SIZE_OF_TEST } else { n })).to_vec();
    sizes.dedup();
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut rules, mut gradients) = (Vec::new(), Vec::new());
    for (dtype, n) in sizes {
        for name in RULES {
            rules.extend(match dtype {
                Dtype::F32 => rule::<f32>(&mut criterion, name, n, n_cores),
                Dtype::F64 => rule::<f64>(&mut criterion, name, n, n_cores),
            });
        }
    }
    for n in SIZES_OF_GRADIENTS {
        let n = if is_test { n.min(SIZE_OF_TEST) } else { n };
        gradients.extend(way_in(&mut criterion, n));
    }
    criterion.final_summary();
    if is_test {
        // Each was run once, perhaps in a debug build: no figures.
        return;
    }
    let of_threads = |n| format!(" ms on {n} | / beside | / in place |");
    say(&format!("| rule | dtype | n | bytes |{}{}", of_threads(1), of_threads(n_cores)));
    say(&format!("|{}", "---|".repeat(10)));
    rules.iter().for_each(|line| say(line));
    say("| gradient | bytes | us | GB/s |");
    say(&format!("|{}", "---|".repeat(4)));
    gradients.iter().for_each(|line| say(line));
}

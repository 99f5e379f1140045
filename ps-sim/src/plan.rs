//! What a seed means: the job and the faults. All chance is drawn here, from the seed alone.

use std::fmt;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ps_common::job::Mode;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::faults::{Action, Host, Step};

/// What may be fixed instead of drawn.
#[derive(Args, Debug, Clone, Default)]
pub(crate) struct Fixed {
    /// The job's mode: sync, ssp or async [default: drawn]
    #[arg(long, value_parser = mode)]
    pub(crate) mode: Option<Mode>,
    /// The number of workers [default: drawn from 2 to 5]
    #[arg(long, value_name = "K")]
    pub(crate) workers: Option<u32>,
    /// Clocks of each worker [default: drawn from 40 to 120]
    #[arg(long, value_name = "N")]
    pub(crate) rounds: Option<u64>,
    /// What the server keeps on its disk [default: drawn]
    #[arg(long)]
    pub(crate) durability: Option<Durability>,
    /// Only these kinds of faults [default: all]
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub(crate) faults: Vec<Kind>,
    /// How many faults; 0 is an undisturbed run [default: drawn from 3 to 9]
    #[arg(long, value_name = "N")]
    pub(crate) n_faults: Option<usize>,
    /// Workers compute ahead, in ssp mode where sync is drawn
    #[arg(long)]
    pub(crate) overlap: bool,
}

fn mode(text: &str) -> Result<Mode, String> {
    match Mode::from_str(text, true)? {
        Mode::Hogwild => Err("hogwild wants real threads; see psctl simulate".to_owned()),
        mode => Ok(mode),
    }
}

/// Kinds of faults.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
#[value(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// A worker's process is killed and started again later; the system closes its connections.
    WorkerKill,
    /// A worker's machine loses power: nobody hears of it.
    WorkerPower,
    /// The server's process is killed and started again later.
    ServerKill,
    /// The server's machine loses power.
    ServerPower,
    /// A worker's connections are reset several times in a row, now and then by an answer.
    Reset,
    /// No message between a worker and the server.
    Partition,
    /// No message from a worker to the server.
    OneWayIn,
    /// No message from the server to a worker.
    OneWayOut,
    /// Messages are kept back, and all come at the end.
    Hold,
    /// All workers are cut off by hold one after another, and let go in another order.
    SwizzleClog,
    /// Messages take up to a second and a half.
    Slow,
    /// The server's disk is full for a while.
    NoSpace,
    /// An operation of the server's disk fails.
    Io,
    /// The server loses power, and a bit of its newest checkpoint flips before it is back.
    BitRot,
}

impl Kind {
    /// As it is typed.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().expect("no kind is hidden").get_name().to_owned()
    }
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Problem {
    /// Least squares over the built-in data.
    Reference,
    /// Each push moves an element of theta that is its own from 0 to 1: theta is the ledger.
    Ledger,
}

/// What outlives the server's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Durability {
    /// Nothing.
    Memory,
    /// Checkpoints.
    Interval,
    /// Checkpoints and a journal.
    Always,
}

/// A job and its faults.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) mode: Mode,
    pub(crate) workers: u32,
    pub(crate) rounds: u64,
    pub(crate) problem: Problem,
    pub(crate) optimizer: &'static str,
    pub(crate) lr: f64,
    pub(crate) lease_ms: u32,
    pub(crate) on_worker_loss: &'static str,
    /// What the server's disk keeps.
    pub(crate) durability: Durability,
    /// How often there is a checkpoint, if any is kept.
    pub(crate) checkpoint_every: String,
    /// Of a gradient.
    pub(crate) compute_ms: (u64, u64),
    /// Of a message.
    pub(crate) latency_ms: (u64, u64),
    /// Workers compute while a push is on its way.
    pub(crate) overlap: bool,
    /// What goes wrong.
    pub(crate) kinds: Vec<Kind>,
    /// When what is done to the network and the hosts, in order.
    pub(crate) steps: Vec<Step>,
}

/// Nothing goes wrong before.
const BEGIN: u64 = 1000;
/// A fault begins at most this long after the one before.
const GAP_MS: u64 = 2500;

const ALL: [Kind; 14] = [
    Kind::WorkerKill,
    Kind::WorkerPower,
    Kind::ServerKill,
    Kind::ServerPower,
    Kind::Reset,
    Kind::Partition,
    Kind::OneWayIn,
    Kind::OneWayOut,
    Kind::Hold,
    Kind::SwizzleClog,
    Kind::Slow,
    Kind::NoSpace,
    Kind::Io,
    Kind::BitRot,
];

impl Plan {
    /// The plan of `seed`, but for what is `fixed`.
    pub(crate) fn draw(seed: u64, fixed: &Fixed) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let drawn = *[Mode::Sync, Mode::Ssp, Mode::Async].choose(&mut rng).expect("some");
        let mode = fixed.mode.unwrap_or(match drawn {
            Mode::Sync if fixed.overlap => Mode::Ssp,
            drawn => drawn,
        });
        let workers = rng.random_range(2..=5);
        let rounds = rng.random_range(40..=120);
        let (optimizer, lr) = *[
            ("sgd", 0.1),
            ("momentum", 0.02),
            ("nesterov", 0.02),
            ("adagrad", 0.3),
            ("rmsprop", 0.01),
            ("adam", 0.05),
            ("adamw", 0.05),
        ]
        .choose(&mut rng)
        .expect("some");
        let waits = rng.random_bool(0.5);
        let compute_max = rng.random_range(20..=300);
        let latency_max = rng.random_range(2..=60);
        // Longer ones outlive the time in which a dead connection is noticed.
        let lease_max = *[8000, 60_000].choose(&mut rng).expect("some");
        let lease_ms = rng.random_range(1000..=lease_max);
        let n_faults = rng.random_range(3..=9);
        let rots = rng.random_bool(0.5);
        let durability =
            *[Durability::Memory, Durability::Interval, Durability::Always, Durability::Always]
                .choose(&mut rng)
                .expect("some");
        let checkpoint_every = match rng.random_bool(0.5) {
            true => format!("{}r", rng.random_range(1..=20)),
            false => format!("{}ms", rng.random_range(200..=5000)),
        };
        let (problem, optimizer, lr) = match mode {
            // Bit for bit what the undisturbed run gives.
            Mode::Sync => (Problem::Reference, optimizer, lr),
            _ => (Problem::Ledger, "sgd", 1.0),
        };
        let mut plan = Self {
            seed,
            mode,
            workers: fixed.workers.unwrap_or(workers),
            rounds: fixed.rounds.unwrap_or(rounds),
            problem,
            optimizer,
            lr,
            lease_ms,
            on_worker_loss: if mode == Mode::Sync || waits { "wait" } else { "continue" },
            durability: fixed.durability.unwrap_or(durability),
            checkpoint_every,
            compute_ms: (compute_max / 4, compute_max),
            latency_ms: (1, latency_max),
            overlap: fixed.overlap,
            kinds: Vec::new(),
            steps: Vec::new(),
        };
        let kinds: Vec<Kind> = ALL
            .into_iter()
            .filter(|kind| fixed.faults.is_empty() || fixed.faults.contains(kind))
            .filter(|kind| plan.survives(*kind))
            // A checkpoint that has taken the place of a failed journal is the only copy.
            .filter(|kind| *kind != if rots { Kind::Io } else { Kind::BitRot })
            .collect();
        let n_faults = if kinds.is_empty() { 0 } else { fixed.n_faults.unwrap_or(n_faults) };
        plan.draw_faults(&mut rng, &kinds, n_faults);
        plan
    }

    /// The same job without faults.
    pub(crate) fn undisturbed(&self) -> Self {
        Self { kinds: Vec::new(), steps: Vec::new(), ..self.clone() }
    }

    /// Whether the job can be carried through after such a fault.
    fn survives(&self, kind: Kind) -> bool {
        let keeps = self.durability != Durability::Memory;
        match kind {
            Kind::ServerKill | Kind::ServerPower => keeps || self.mode == Mode::Sync,
            Kind::NoSpace | Kind::Io | Kind::BitRot => keeps,
            _ => true,
        }
    }

    fn draw_faults(&mut self, rng: &mut ChaCha8Rng, kinds: &[Kind], n_faults: usize) {
        // Until when something else is done to a worker or its link, and to the server.
        let mut busy = vec![BEGIN; self.workers as usize];
        let mut server_busy = BEGIN;
        let mut at = BEGIN;
        for _ in 0..n_faults {
            let kind = *kinds.choose(rng).expect("checked");
            at += rng.random_range(0..=GAP_MS);
            let rank = rng.random_range(0..self.workers);
            // Most are short, some outlive leases and keepalives.
            let longest = *[500, 3000, 12_000, 30_000].choose(rng).expect("some");
            let length = rng.random_range(50..=longest);
            let all = busy.iter().copied().max().unwrap_or(BEGIN);
            let begin = match kind {
                Kind::ServerKill | Kind::NoSpace | Kind::Io => at.max(server_busy),
                Kind::ServerPower | Kind::BitRot => at.max(server_busy).max(all),
                Kind::SwizzleClog => at.max(all),
                _ => at.max(busy[rank as usize]),
            };
            let first = self.steps.len();
            let end = match kind {
                Kind::SwizzleClog => self.swizzle(rng, begin, length),
                Kind::Reset => self.resets(rng, rank, begin),
                _ => {
                    self.fault(kind, rank, begin, begin + length, rng.random_range(100..=1500));
                    begin + length
                }
            };
            match kind {
                Kind::ServerKill | Kind::NoSpace | Kind::Io => server_busy = end + 1,
                Kind::ServerPower | Kind::BitRot => {
                    server_busy = end + 1;
                    busy.fill(end + 1);
                }
                Kind::SwizzleClog => busy.fill(end + 1),
                _ => busy[rank as usize] = end + 1,
            }
            self.mark(first, kind);
            self.kinds.push(kind);
        }
        self.steps.sort_by_key(|step| step.at);
    }

    fn at(&mut self, ms: u64, action: Action) {
        self.steps.push(Step { at: Duration::from_millis(ms), action, fault: None });
    }

    /// Says which fault begins at step `first`, by the action that cannot fail to happen.
    fn mark(&mut self, first: usize, kind: Kind) {
        let steps = &mut self.steps[first..];
        let telling = |action| matches!(action, Action::Crash(_) | Action::Rot(_));
        let crash = steps.iter().position(|step| telling(step.action));
        steps[crash.unwrap_or(0)].fault = Some(kind);
    }

    fn fault(&mut self, kind: Kind, rank: u32, begin: u64, end: u64, slow_ms: u64) {
        let worker = Host::Worker(rank);
        match kind {
            Kind::WorkerKill => {
                self.at(begin, Action::Crash(worker));
                self.at(end, Action::Start(worker));
            }
            Kind::WorkerPower => {
                self.at(begin, Action::Cut(rank));
                self.at(begin, Action::Crash(worker));
                self.at(end, Action::Mend(rank));
                self.at(end, Action::Start(worker));
            }
            Kind::ServerKill => {
                self.at(begin, Action::Crash(Host::Server));
                self.at(end, Action::Start(Host::Server));
            }
            Kind::ServerPower | Kind::BitRot => {
                self.at(begin, Action::PowerFails(slow_ms % 13));
                if kind == Kind::BitRot {
                    self.at(end, Action::Rot(slow_ms));
                }
                (0..self.workers).for_each(|rank| self.at(end, Action::Mend(rank)));
                self.at(end, Action::Start(Host::Server));
            }
            Kind::Partition => {
                self.at(begin, Action::Cut(rank));
                self.at(end, Action::Mend(rank));
            }
            Kind::OneWayIn => {
                self.at(begin, Action::CutIn(rank));
                self.at(end, Action::MendIn(rank));
            }
            Kind::OneWayOut => {
                self.at(begin, Action::CutOut(rank));
                self.at(end, Action::MendOut(rank));
            }
            Kind::Hold => {
                self.at(begin, Action::Hold(rank));
                self.at(end, Action::Release(rank));
            }
            Kind::Slow => {
                self.at(begin, Action::Latency(rank, slow_ms));
                self.at(end, Action::Latency(rank, self.latency_ms.1));
            }
            Kind::NoSpace => {
                self.at(begin, Action::Fill(slow_ms as usize));
                self.at(end, Action::Free);
            }
            Kind::Io => self.at(begin, Action::DiskError(slow_ms % 29)),
            Kind::SwizzleClog | Kind::Reset => unreachable!("they are drawn as a whole"),
        }
    }

    /// Resets a worker's connections now and then; the end.
    fn resets(&mut self, rng: &mut ChaCha8Rng, rank: u32, begin: u64) -> u64 {
        let mut now = begin;
        for _ in 0..rng.random_range(1..=12) {
            let action =
                *[Action::Reset(rank), Action::LoseAnswer(rank)].choose(rng).expect("some");
            self.at(now, action);
            now += rng.random_range(5..=2 * self.compute_ms.1);
        }
        now
    }

    /// Holds all links in one order and releases them in another; the end.
    fn swizzle(&mut self, rng: &mut ChaCha8Rng, begin: u64, length: u64) -> u64 {
        let mut ranks: Vec<u32> = (0..self.workers).collect();
        let pause = length / (2 * u64::from(self.workers)) + 1;
        let mut now = begin;
        ranks.shuffle(rng);
        for &rank in &ranks {
            self.at(now, Action::Hold(rank));
            now += pause;
        }
        ranks.shuffle(rng);
        for &rank in &ranks {
            now += pause;
            self.at(now, Action::Release(rank));
        }
        now
    }
}

impl fmt::Display for Fixed {
    /// As options, each with a space before it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(mode) = self.mode {
            write!(f, " --mode={mode}")?;
        }
        if let Some(workers) = self.workers {
            write!(f, " --workers={workers}")?;
        }
        if let Some(durability) = self.durability {
            write!(f, " --durability={}", format!("{durability:?}").to_lowercase())?;
        }
        if let Some(rounds) = self.rounds {
            write!(f, " --rounds={rounds}")?;
        }
        if !self.faults.is_empty() {
            let names: Vec<String> = self.faults.iter().map(|kind| kind.name()).collect();
            write!(f, " --faults={}", names.join(","))?;
        }
        if let Some(n_faults) = self.n_faults {
            write!(f, " --n-faults={n_faults}")?;
        }
        if self.overlap {
            f.write_str(" --overlap")?;
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {} mode, {} workers, {} rounds, {:?} problem, {} at {}, lease {} ms, lost \
             workers: {}, kept: {:?} every {}, gradients take {}..{} ms{}, messages {}..{} ms",
            self.seed,
            self.mode,
            self.workers,
            self.rounds,
            self.problem,
            self.optimizer,
            self.lr,
            self.lease_ms,
            self.on_worker_loss,
            self.durability,
            self.checkpoint_every,
            self.compute_ms.0,
            self.compute_ms.1,
            if self.overlap { " beside pushes" } else { "" },
            self.latency_ms.0,
            self.latency_ms.1,
        )?;
        let kinds: Vec<String> = self.kinds.iter().map(|kind| kind.name()).collect();
        write!(f, "faults: {}", kinds.join(", "))?;
        self.steps.iter().try_for_each(|step| write!(f, "\n  {step}"))
    }
}

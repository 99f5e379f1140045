//! What the flags of `psctl simulate` ask for, checked: the runs, and the world that they live in.

use ps_common::exit::ExitError;
use ps_common::export::check_creatable;
use ps_common::job::Mode;
use ps_common::units::parse_duration;
use ps_server::args::{CrewArgs, JobSpec};

use crate::local::args::needs_evaluator;

use super::args::{OutputArgs, SimulateArgs, WorldArgs, X};
use super::engine::World;
use super::faults::Faults;
use super::mode::RunMode;
use super::network::{ApplyTime, Links, parse_bandwidth, parse_theta_bytes};
use super::pace::{Distribution, Pace, Per, Stragglers, parse_slow_worker};
use super::schedule::{self, Turn};

/// One run of those that were asked for.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) mode: RunMode,
    pub(super) n_workers: u32,
    pub(super) sim_seed: u64,
    pub(super) spec: JobSpec,
    pub(super) history: History,
}

/// Where a run's history is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum History {
    /// The workers' losses make it up: full batches behind a barrier.
    Workers,
    /// An observer measures it.
    Observer,
    /// Nobody looks at it.
    Nobody,
}

/// What was asked for, checked.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) members: Vec<Member>,
    /// Runs of one worker that only serve to compare with.
    pub(super) baselines: Vec<Member>,
    pub(super) world: World,
    pub(super) schedule: Option<Vec<Turn>>,
}

impl SimulateArgs {
    /// Checks what can be known before anything runs with a server. `rounds_given`: whether
    /// `--rounds` was.
    ///
    /// # Errors
    /// Configuration, naming the flag; a bad schedule or file of faults; an output that cannot be
    /// created.
    pub(super) fn check(&self, rounds_given: bool) -> Result<Plan, ExitError> {
        self.check_combinations(rounds_given)?;
        // Without a graph: only whether it has options, which it must not.
        self.peers.check(1, self.learn.data.seed)?;
        self.check_map_reduce()?;
        self.learn.data.check()?;
        self.learn.model.check()?;
        self.output.check(&self.runs.workers)?;
        let world = self.world.check()?;
        let schedule = match &self.runs.schedule {
            Some(path) => Some(schedule::read(path, self.runs.fixed_delay, self.runs.workers[0])?),
            None => None,
        };
        let mut members = Vec::new();
        for mode in self.modes() {
            for &n_workers in &self.runs.workers {
                for sim_seed in self.sim_seeds() {
                    members.push(self.member(mode, n_workers, sim_seed)?);
                }
            }
        }
        let most = self.runs.workers.iter().max().copied().unwrap_or(0);
        world.check_ranks(most)?;
        let is_observed = |member: &Member| member.history == History::Observer;
        if self.evaluation.eval_every.is_some() && !members.iter().any(is_observed) {
            return Err(ExitError::config(
                "--eval-every has no meaning with --mode sync, --batch full and no --test-data: \
                 the workers' own losses give every round an entry",
            ));
        }
        let baselines = if schedule.is_some() { Vec::new() } else { self.baselines(&members) };
        Ok(Plan { members, baselines, world, schedule })
    }

    pub(super) fn modes(&self) -> Vec<RunMode> {
        match (&self.runs.modes[..], &self.runs.schedule) {
            ([], Some(_)) => vec![RunMode::Async],
            ([], None) => vec![RunMode::Sync, RunMode::Async],
            (modes, _) => modes.to_vec(),
        }
    }

    pub(super) fn sim_seeds(&self) -> Vec<u64> {
        if self.runs.sim_seed.is_empty() { vec![0] } else { self.runs.sim_seed.clone() }
    }

    fn member(&self, mode: RunMode, n_workers: u32, sim_seed: u64) -> Result<Member, ExitError> {
        let modes: Vec<Mode> = self.modes().into_iter().map(RunMode::rules).collect();
        let job = self.job.in_one_of(mode.rules(), &modes);
        let spec = job.check(&CrewArgs { mode: mode.rules(), workers: n_workers })?;
        let observed = needs_evaluator(mode.rules(), &job, &self.learn, &self.evaluation);
        let history = if observed { History::Observer } else { History::Workers };
        Ok(Member { mode, n_workers, sim_seed, spec, history })
    }

    /// The runs of one worker that are missing. Where the job's options permit none there is
    /// nothing to compare with.
    fn baselines(&self, members: &[Member]) -> Vec<Member> {
        let mut baselines: Vec<Member> = Vec::new();
        for member in members {
            let serves = |m: &&Member| {
                m.n_workers == 1 && m.mode == member.mode && m.sim_seed == member.sim_seed
            };
            if members.iter().chain(&baselines).find(serves).is_none()
                && let Ok(alone) = self.member(member.mode, 1, member.sim_seed)
            {
                baselines.push(Member { history: History::Nobody, ..alone });
            }
        }
        baselines
    }

    pub(super) fn check_combinations(&self, rounds_given: bool) -> Result<(), ExitError> {
        if self.learn.data.data_is_shard {
            return Err(ExitError::config(
                "--data-is-shard has no meaning with psctl simulate: its workers all get the same \
                 files and each takes its share of the rows",
            ));
        }
        if !self.evaluation.test_labels.is_empty() && self.evaluation.test_data.is_empty() {
            return Err(ExitError::config(
                "--test-labels has no meaning without --test-data: name the file of the rows, too",
            ));
        }
        if self.runs.modes.contains(&RunMode::Hogwild) {
            return Err(ExitError::config(
                "--mode hogwild has no meaning with psctl simulate: what it loses is lost between \
                 real threads, and virtual time has none; psctl local runs it",
            ));
        }
        if self.runs.schedule.is_some() {
            return self.check_beside_schedule(rounds_given);
        }
        if self.runs.fixed_delay.is_some() {
            return Err(ExitError::config(
                "--fixed-delay has no meaning without --schedule: delays come of compute times",
            ));
        }
        if self.world.late.is_some() && self.job.consistency.backup_workers.unwrap_or(0) == 0 {
            return Err(ExitError::config(
                "--late has no meaning without --backup-workers: no round closes without anybody",
            ));
        }
        if self.job.rounds == 0 {
            return Err(ExitError::config(
                "--rounds 0 never ends, and nobody can stop virtual time: give a number",
            ));
        }
        Ok(())
    }

    /// A schedule takes the place of time, and is one asynchronous run.
    fn check_beside_schedule(&self, rounds_given: bool) -> Result<(), ExitError> {
        let world = &self.world;
        let meaningless = [
            ("--rounds", rounds_given),
            ("--sim-seed", !self.runs.sim_seed.is_empty()),
            ("--compute-time", world.compute_time.is_some()),
            ("--compute-per", world.compute_per.is_some()),
            ("--stragglers", world.stragglers.is_some()),
            ("--slow-worker", !world.slow_worker.is_empty()),
            ("--latency", world.latency.is_some()),
            ("--bandwidth", world.bandwidth.is_some()),
            ("--server-bandwidth", world.server_bandwidth.is_some()),
            ("--theta-bytes", world.theta_bytes.is_some()),
            ("--apply-time", world.apply_time.is_some()),
            ("--late", world.late.is_some()),
            ("--fault", !world.fault.is_empty()),
            ("--faults", world.faults.is_some()),
            ("--plot-speedup", self.output.plot_speedup.is_some()),
            ("--x seconds", self.output.x == Some(X::Seconds)),
        ];
        if let Some((flag, _)) = meaningless.iter().find(|(_, given)| *given) {
            return Err(ExitError::config(format!(
                "{flag} has no meaning with --schedule: the file says which updates there are, and \
                 no time passes"
            )));
        }
        if self.modes() != [RunMode::Async] {
            return Err(ExitError::config(
                "--mode: a --schedule is asynchronous; leave --mode out or say async",
            ));
        }
        if self.runs.workers.len() != 1 {
            return Err(ExitError::config(
                "--workers: a --schedule is for one number of workers; give that",
            ));
        }
        Ok(())
    }
}

impl WorldArgs {
    pub(super) fn check(&self) -> Result<World, ExitError> {
        let or = |text: &Option<String>, default: &str| {
            text.clone().unwrap_or_else(|| default.to_owned())
        };
        let latency = parse_duration(&or(&self.latency, "1ms"))
            .map_err(|what| ExitError::config(format!("--latency: {what}")))?;
        let server_bandwidth = self.server_bandwidth.as_deref();
        let slow = self.slow_worker.iter().map(|text| parse_slow_worker(text));
        Ok(World {
            pace: Pace {
                distribution: Distribution::parse(&or(&self.compute_time, "constant=10ms"))?,
                per: self.compute_per.unwrap_or(Per::Step),
                stragglers: self.stragglers.as_deref().map(Stragglers::parse).transpose()?,
                slow: slow.collect::<Result<_, _>>()?,
            },
            links: Links {
                latency,
                bandwidth: parse_bandwidth("--bandwidth", &or(&self.bandwidth, "1Gbit/s"))?,
                server_bandwidth: server_bandwidth
                    .map(|text| parse_bandwidth("--server-bandwidth", text))
                    .transpose()?,
            },
            apply_time: ApplyTime::parse(&or(&self.apply_time, "0.1ms"))?,
            late: self.late.unwrap_or_default(),
            theta_bytes: self.theta_bytes.as_deref().map(parse_theta_bytes).transpose()?,
            faults: Faults::parse(&self.fault, self.faults.as_deref())?,
        })
    }
}

impl World {
    /// Every rank that is named must be in a run. In runs of fewer workers a rank's misfortune is
    /// nobody's.
    pub(super) fn check_ranks(&self, n_workers_max: u32) -> Result<(), ExitError> {
        let named = [
            ("--slow-worker", self.pace.slow.iter().map(|(rank, _)| *rank).max()),
            ("--fault or --faults", self.faults.rank_max()),
        ];
        for (flag, rank) in named {
            if let Some(rank) = rank.filter(|rank| *rank >= n_workers_max) {
                return Err(ExitError::config(format!(
                    "{flag}: there is no rank {rank} among {n_workers_max} workers (0 to {}); give \
                     --workers {} or more",
                    n_workers_max - 1,
                    u64::from(rank) + 1
                )));
            }
        }
        Ok(())
    }

    /// The same without what happens to single workers.
    pub(super) fn without_misfortunes(&self) -> Self {
        let pace = Pace { slow: Vec::new(), ..self.pace.clone() };
        Self { pace, faults: Faults::default(), ..self.clone() }
    }
}

impl OutputArgs {
    pub(super) fn check(&self, workers: &[u32]) -> Result<(), ExitError> {
        if self.x.is_some() && self.plot.is_none() {
            return Err(ExitError::config(
                "--x has no meaning without --plot: name the picture's file, too",
            ));
        }
        if self.plot_speedup.is_some() && workers.len() < 2 {
            return Err(ExitError::config(
                "--plot-speedup needs several numbers of --workers, e.g. 1,2,4,8",
            ));
        }
        for path in [&self.plot, &self.plot_speedup].into_iter().flatten() {
            crate::show::chart::Format::of(path)?;
        }
        for path in [&self.csv, &self.plot, &self.plot_speedup].into_iter().flatten() {
            check_creatable(path)?;
        }
        Ok(())
    }
}

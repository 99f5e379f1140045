//! The programs on the simulated hosts: the real server and the real workers, in the way in which
//! `ps-server` and `ps-worker` run them, but for signals and files.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Parser;
use ps_common::ErrorCode;
use ps_common::dtype::CHUNK_BYTES;
use ps_common::exit::{Exit, ExitError};
use ps_common::job::JobState;
use ps_common::partition::Partition;
use ps_server::args::{DurabilitySpec, JobSpec, ServerArgs};
use ps_server::core::Input;
use ps_server::driver::Driver;
use ps_server::keeper::{Keeper, Settings};
use ps_server::net::{Connections, Health, Listener, Protection, Shell, serve};
use ps_server::storage;
use ps_worker::args::{Part, WorkerArgs};
use ps_worker::net::Surroundings;
use ps_worker::net::link::keep_alive;
use ps_worker::net::session::{Duty, work};
use tokio::sync::{oneshot, watch};

use crate::disk::{DIRECTORY, Disk};
use crate::faults::Host;
use crate::net::{Breaker, Dialer, PORT, Port};
use crate::plan::{Durability, Plan, Problem};

/// A program that failed is started again after this.
const RESTART: Duration = Duration::from_millis(500);
/// Time for a program's connections to be closed behind it.
const FAREWELL: Duration = Duration::from_millis(100);

/// How the job ended, as the server says.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) version: u64,
    pub(crate) sha256: String,
}

/// What the programs leave where the simulation sees it.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) plan: Plan,
    /// Rows of the ledger problem.
    data: PathBuf,
    /// Of the server's machine.
    pub(crate) disk: Disk,
    /// Of the server that lives, or lived last.
    pub(crate) shell: RefCell<Option<Arc<Shell>>>,
    pub(crate) end: RefCell<Option<End>>,
    /// Of the workers' connections, by rank.
    pub(crate) breakers: Vec<Breaker>,
    /// Workers that are done, by rank.
    pub(crate) done: RefCell<Vec<bool>>,
    /// Why programs failed.
    pub(crate) failures: RefCell<Vec<String>>,
    n_lives: Cell<u64>,
}

impl Stage {
    /// A stage for `plan`, with `data` for the ledger problem.
    pub(crate) fn new(plan: &Plan, data: PathBuf) -> Rc<Self> {
        Rc::new(Self {
            plan: plan.clone(),
            data,
            disk: Disk::new(),
            shell: RefCell::default(),
            end: RefCell::default(),
            breakers: (0..plan.workers).map(|_| Breaker::default()).collect(),
            done: RefCell::new(vec![false; plan.workers as usize]),
            failures: RefCell::default(),
            n_lives: Cell::new(0),
        })
    }

    /// Whether everybody has ended well.
    pub(crate) fn is_over(&self) -> bool {
        self.end.borrow().is_some() && self.done.borrow().iter().all(|done| *done)
    }

    fn server_args(&self) -> anyhow::Result<ServerArgs> {
        let plan = &self.plan;
        let dtype = "f64";
        let mut arguments = vec![
            "ps-server".to_owned(),
            format!("--mode={}", plan.mode),
            format!("--workers={}", plan.workers),
            format!("--rounds={}", plan.rounds),
            format!("--dtype={dtype}"),
            format!("--optimizer={}", plan.optimizer),
            format!("--lr={}", plan.lr),
            format!("--lease-ms={}", plan.lease_ms),
            format!("--on-worker-loss={}", plan.on_worker_loss),
        ];
        if plan.durability != Durability::Memory {
            let durability = format!("{:?}", plan.durability).to_lowercase();
            arguments.push(format!("--checkpoint-dir={DIRECTORY}"));
            arguments.push(format!("--checkpoint-every={}", plan.checkpoint_every));
            arguments.push(format!("--durability={durability}"));
        }
        ServerArgs::try_parse_from(arguments).context("the server's arguments")
    }

    fn worker_args(&self, rank: u32) -> anyhow::Result<WorkerArgs> {
        let plan = &self.plan;
        let (min, max) = plan.compute_ms;
        let mut arguments = vec![
            "ps-worker".to_owned(),
            format!("--server=http://{}:{PORT}", Host::Server),
            format!("--rank={rank}"),
            format!("--compute-delay-ms={min}..{max}"),
            "--connect-timeout=90s".to_owned(),
            format!("--overlap={}", plan.overlap),
        ];
        if plan.problem == Problem::Ledger {
            arguments.push(format!("--data={}", self.data.display()));
            arguments.push("--batch=1".to_owned());
            arguments.push("--shuffle=false".to_owned());
        }
        WorkerArgs::try_parse_from(arguments).context("a worker's arguments")
    }

    /// One life of the server.
    pub(crate) async fn server(self: Rc<Self>) -> turmoil::Result {
        let served = self.serve().await;
        if let Err(error) = &served {
            self.failures.borrow_mut().push(format!("server: {error:#}"));
        }
        Ok(())
    }

    async fn serve(&self) -> anyhow::Result<()> {
        let args = self.server_args()?;
        let mut spec = args.job.check(&args.crew)?;
        let serving = args.serve.check(&args.crew)?;
        let protection = Protection::load(&serving.security, serving.limits)?;
        let listener = Listener::Other(Box::new(Port::open().await?));
        let durability = args.serve.durability.check(&spec.config)?;
        let keeper = durability.map(|durability| self.open(&mut spec, &durability)).transpose()?;
        let JobSpec { config, optimizer, dtype } = spec;
        let mut driver = Driver::new(config.clone(), dtype, optimizer, CHUNK_BYTES, "ps-sim");
        if let Some(keeper) = keeper {
            let kept = driver.kept_by(keeper, &config, dtype);
            driver = kept.map_err(storage::Error::into_exit)?.0;
        }
        let shell = Shell::new(driver);
        *self.shell.borrow_mut() = Some(Arc::clone(&shell));
        let connections = Connections::new(listener, Arc::clone(&shell), protection.limits());
        let (stop, stopped) = oneshot::channel::<()>();
        let (health_out, health_in) = oneshot::channel();
        let server = tokio::spawn({
            let shell = Arc::clone(&shell);
            async move {
                let ready = |health| drop(health_out.send(health));
                serve(shell, connections, &protection, ready, async { drop(stopped.await) }).await
            }
        });
        let health: Health = health_in.await?;
        let timer = tokio::spawn({
            let shell = Arc::clone(&shell);
            async move { shell.keep_time().await }
        });
        health.ready().await;
        self.see_through(&shell, &health).await?;
        health.draining().await;
        let _ = stop.send(());
        let _ = tokio::time::timeout(serving.drain_timeout, server).await;
        timer.abort();
        tokio::time::sleep(FAREWELL).await;
        Ok(())
    }

    /// Locks the directory of checkpoints.
    fn open(&self, spec: &mut JobSpec, durability: &DurabilitySpec) -> anyhow::Result<Keeper> {
        let DurabilitySpec { directory, checkpoints, keep, journal_bytes_max, .. } = durability;
        let settings = Settings {
            partition: Partition::WHOLE,
            durability: checkpoints.durability,
            keep: *keep,
            journal_bytes_max: *journal_bytes_max,
            threads: false,
        };
        let keeper = Keeper::open(Arc::new(self.disk.0.clone()), directory, settings)
            .map_err(storage::Error::into_exit)?;
        spec.config.checkpoints = Some(*checkpoints);
        spec.config.boot = keeper.boot();
        Ok(keeper)
    }

    /// Waits for the end of the job.
    async fn see_through(&self, shell: &Shell, health: &Health) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                biased;
                () = shell.initialized() => health.initialized().await,
                () = shell.conclusion() => {
                    self.last_checkpoint(shell).await?;
                    self.conclude(shell)?;
                    shell.tell(Input::Concluded);
                }
                () = shell.over() => break,
            }
        }
        match shell.driver().state() {
            (JobState::Done, _) => Ok(()),
            (state, reason) => Err(anyhow!("the job is {state:?}: {reason}")),
        }
    }

    /// Where it cannot be written the program ends with exit code 74, but with its results.
    async fn last_checkpoint(&self, shell: &Shell) -> anyhow::Result<()> {
        if self.plan.durability == Durability::Memory {
            return Ok(());
        }
        match shell.checkpoint().await {
            Err(error) if error.code != ErrorCode::NotDurable => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn conclude(&self, shell: &Shell) -> anyhow::Result<()> {
        let report = shell.driver().report(shell.now()).context("a job that ends has a report")?;
        *self.end.borrow_mut() =
            Some(End { version: report.version, sha256: report.r#final.theta_sha256 });
        Ok(())
    }

    /// Lives of a worker until one ends well, or finds that the server is done and gone.
    pub(crate) async fn worker(self: Rc<Self>, rank: u32) -> turmoil::Result {
        while let Err(error) = self.work(rank).await {
            let unreachable = error
                .downcast_ref::<ExitError>()
                .is_some_and(|error| error.exit == Exit::Unavailable);
            if unreachable && self.end.borrow().is_some() {
                break;
            }
            self.failures.borrow_mut().push(format!("{}: {error:#}", Host::Worker(rank)));
            tokio::time::sleep(RESTART).await;
        }
        self.done.borrow_mut()[rank as usize] = true;
        tokio::time::sleep(FAREWELL).await;
        Ok(())
    }

    async fn work(&self, rank: u32) -> anyhow::Result<()> {
        let args = self.worker_args(rank)?;
        let breaker = self.breakers[rank as usize].clone();
        let attachment = args.check()?;
        let Part::Work { rank, delay_ms, wire, overlap, sparse } = attachment.part else {
            return Err(anyhow!("a worker works"));
        };
        let life = self.n_lives.get();
        self.n_lives.set(life + 1);
        let surroundings = Surroundings {
            dialer: Some(Arc::new(Dialer(breaker))),
            seed: self.plan.seed.rotate_left(32) ^ life,
            has_threads: false,
        };
        let (present, presence) = watch::channel(None);
        let duty = Duty { rank, delay_ms, wire, overlap, sparse };
        tokio::select! {
            biased;
            result = work(&args.learn, &attachment, duty, &surroundings, present) => Ok(result?),
            never = keep_alive(presence) => match never {},
        }
    }
}

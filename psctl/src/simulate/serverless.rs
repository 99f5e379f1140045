//! Which options have no meaning without a server: map-reduce and topologies refuse them by name.

use clap::{Args, Command};
use ps_common::exit::ExitError;
use ps_server::args::JobArgs;
use ps_server::numeric::Optimizer;

use super::args::{SimulateArgs, X};
use super::mode::RunMode;

impl SimulateArgs {
    /// What only a server, its links and its leases use, and whether it was given.
    fn of_a_server(&self) -> [(&'static str, bool); 19] {
        let (job, world) = (&self.job, &self.world);
        let consistency = &job.consistency;
        [
            ("--staleness-bound", consistency.staleness_bound.is_some()),
            ("--backup-workers", consistency.backup_workers.is_some()),
            ("--delay-scaling", consistency.delay_scaling.is_some()),
            ("--max-gradient-delay", consistency.max_gradient_delay.is_some()),
            ("--on-excess", consistency.on_excess.is_some()),
            ("--target-loss", consistency.target_loss.is_some()),
            ("--max-seconds", consistency.max_seconds.is_some()),
            ("--plateau", consistency.plateau.is_some()),
            ("--lease-ms", !is_default_lease(job.lease_ms)),
            ("--on-worker-loss", job.on_worker_loss.is_some()),
            ("--replacement-timeout", job.replacement_timeout.is_some()),
            ("--schedule", self.runs.schedule.is_some()),
            ("--fixed-delay", self.runs.fixed_delay.is_some()),
            ("--server-bandwidth", world.server_bandwidth.is_some()),
            ("--apply-time", world.apply_time.is_some()),
            ("--fault", !world.fault.is_empty()),
            ("--faults", world.faults.is_some()),
            ("--test-data", !self.evaluation.test_data.is_empty()),
            ("--test-labels", !self.evaluation.test_labels.is_empty()),
        ]
    }

    /// Refuses what no run beside a map-reduce job may have, and a deal that other runs do not know.
    ///
    /// # Errors
    /// Configuration, naming the flag.
    pub(super) fn check_map_reduce(&self) -> Result<(), ExitError> {
        let modes = self.modes();
        let is_map_reduce = |mode: &RunMode| *mode == RunMode::Mapreduce;
        if self.peers.deal.is_some() && !modes.iter().all(is_map_reduce) {
            return Err(ExitError::config(
                "--deal has no meaning with a server, which deals rows as they are read: give it with \
                 --topology, --graph or --mode mapreduce alone",
            ));
        }
        if !modes.iter().any(is_map_reduce) {
            return Ok(());
        }
        refuse(
            &self.of_a_server(),
            "--mode mapreduce: its rounds are a formula, without calls, leases and faults, at the \
             --latency and --bandwidth of the workers' links (docs/TOPOLOGIES.md)",
        )
    }

    /// Refuses what peers without a server have no use for.
    ///
    /// # Errors
    /// Configuration, naming the flag.
    pub(super) fn check_beside_topology(&self) -> Result<(), ExitError> {
        let update = &self.job.update;
        let optimizer = update.check()?;
        let plain = Optimizer::sgd(optimizer.lr);
        let name = if self.peers.topologies.is_empty() { "--graph" } else { "--topology" };
        let of_updates = [
            ("--mode", !self.runs.modes.is_empty()),
            ("--aggregate", self.job.aggregate.is_some()),
            ("--optimizer", optimizer.rule != plain.rule),
            ("--lr-schedule", optimizer.schedule != plain.schedule),
            ("--weight-decay", update.weight_decay.is_some()),
            ("--clip-norm", update.clip_norm.is_some()),
            ("--plot-speedup", self.output.plot_speedup.is_some()),
            ("--x pushes", self.output.x == Some(X::Pushes)),
        ];
        let why = format!(
            "{name}: there is no server, and every peer steps by itself, by sgd at a constant --lr"
        );
        refuse(&of_updates, &why)?;
        refuse(&self.of_a_server(), &why)
    }
}

/// Whether a lease is that which the flag has by itself: a printed configuration says it, too.
fn is_default_lease(lease_ms: u32) -> bool {
    let job = JobArgs::augment_args(Command::new("job"));
    let flag = job.get_arguments().find(|flag| flag.get_id() == "lease_ms");
    let default = flag.and_then(|flag| flag.get_default_values().first());
    default.is_some_and(|default| default.to_str() == Some(lease_ms.to_string().as_str()))
}

/// The first of `options` that was given is refused.
fn refuse(options: &[(&str, bool)], beside: &str) -> Result<(), ExitError> {
    match options.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((flag, _)) => Err(ExitError::config(format!("{flag} has no meaning with {beside}"))),
    }
}

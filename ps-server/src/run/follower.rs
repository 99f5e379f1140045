//! The program of a server that carries out what partition 0 decides: its start, its lives, its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ps_common::dtype::CHUNK_BYTES;
use ps_common::exit::{Exit, ExitError};
use ps_common::job::JobState;
use ps_common::partition::Partition;
use tokio::sync::oneshot;

use super::{Signals, bind, durable, program, read_start};
use crate::args::{DurabilitySpec, JobSpec, ServerArgs, refuse_of_several};
use crate::follower::{Follower, Spec};
use crate::keeper::{Kept, PartKeeper};
use crate::net::{Connections, Facts, Following, Health, Protection, serve_follower};
use crate::outputs;
use crate::storage::{self, RealDisk};

/// What all servers of a job are given, and only the first one uses.
const LEFT_TO_THE_FIRST: &str = "--workers, --rounds, --aggregate, --lease-ms, --on-worker-loss, \
     --replacement-timeout, --resume, --checkpoint-every, --observers, --report, --theta-out and what \
     belongs to --mode";

/// For the Takes that are in flight when the job has ended.
const LAST_TAKES: Duration = Duration::from_secs(5);

/// Serves this server's part of theta until partition 0 says that the job is over, or a signal comes;
/// tells `ready` the bound address once it serves.
///
/// # Errors
/// What ends the program with another code than 0.
pub(super) async fn run(
    args: ServerArgs,
    partition: Partition,
    ready: impl FnOnce(SocketAddr) -> Result<(), ExitError>,
) -> Result<(), ExitError> {
    let job = args.job.check(&args.crew)?;
    let serving = args.serve.check(&args.crew)?;
    let durability = args.serve.durability.check(&job.config)?;
    refuse_of_several(partition, &job, durability.as_ref())?;
    args.serve.peers.check(partition)?;
    outputs::check(&args.serve)?;
    let protection = Protection::load(&serving.security, serving.limits)?;
    if let Some(warning) = &serving.security.warning {
        tracing::warn!(listen = %args.serve.listen, "{warning}");
    }
    durable::say(&format!(
        "server {partition} keeps its part of theta and decides nothing: {LEFT_TO_THE_FIRST} are left \
         to partition 0"
    ));
    let keeper = match &durability {
        None => None,
        Some(durability) => Some(open(durability, partition, &job).await?),
    };
    let mut signals = Signals::new()?;
    let listener = bind(&args).await?;
    let address = listener
        .local_addr()
        .map_err(|e| ExitError::new(Exit::Io, "the listener has no address").because(e))?;
    let following = Following::new(follower(&args, partition, &job)?, keeper, facts(&args, &job));
    let connections = Connections::of_follower(listener, protection.limits());

    let (stop, stopped) = oneshot::channel::<()>();
    let (health_out, health_in) = oneshot::channel();
    let server = tokio::spawn({
        let following = Arc::clone(&following);
        async move {
            let ready = |health| drop(health_out.send(health));
            let stop = async { drop(stopped.await) };
            serve_follower(following, connections, &protection, ready, stop).await
        }
    });
    let health: Health = health_in
        .await
        .map_err(|_| ExitError::new(Exit::Bug, "the server ended before it served"))?;
    health.ready().await;
    if let Some(path) = &args.serve.port_file {
        outputs::write_port(path, address.port())?;
    }
    ready(address)?;
    tracing::info!(%address, %partition, "serving");

    let is_over = follow(&following, &health, &mut signals).await?;
    health.draining().await;
    let limit = match is_over {
        true => LAST_TAKES.min(serving.drain_timeout),
        false => {
            following.close();
            serving.drain_timeout
        }
    };
    // Who holds the other end is gone only if the server is.
    let _ = stop.send(());
    tokio::select! {
        // How calls in flight ended is their callers' business.
        _ = server => {}
        () = tokio::time::sleep(limit) => tracing::warn!("calls in flight were cut"),
        exit = signals.next() => return Err(ExitError::new(exit, "stopped at once")),
    }
    match following.ended() {
        Some((JobState::Failed, reason)) => {
            Err(ExitError::new(Exit::Failed, format!("the job failed: {reason}")))
        }
        _ => Ok(()),
    }
}

/// Waits for the end of the job, `true`, or for SIGTERM.
async fn follow(
    following: &Following,
    health: &Health,
    signals: &mut Signals,
) -> Result<bool, ExitError> {
    let mut theta = following.watch_theta();
    loop {
        tokio::select! {
            biased;
            exit = signals.next() => {
                if exit == Exit::Interrupted {
                    return Err(ExitError::new(exit, "interrupted"));
                }
                tracing::info!("stopping: SIGTERM");
                return Ok(false);
            }
            () = following.over() => return Ok(true),
            is_there = following.theta_changed(&mut theta) => match is_there {
                true => health.initialized().await,
                false => health.uninitialized().await,
            },
        }
    }
}

fn follower(args: &ServerArgs, partition: Partition, job: &JobSpec) -> Result<Follower, ExitError> {
    let start = args.serve.theta_in.as_deref().map(|path| read_start(path, job.dtype));
    Ok(Follower::new(Spec {
        partition,
        settings: job.settings(&args.serve),
        optimizer: job.optimizer,
        chunk_bytes: CHUNK_BYTES,
        start: start.transpose()?,
    }))
}

fn facts(args: &ServerArgs, job: &JobSpec) -> Facts {
    Facts {
        mode: args.crew.mode,
        aggregate: job.config.aggregate,
        dtype: job.dtype,
        n_workers: args.crew.workers,
        program: program(),
    }
}

/// Locks the directory; what lies there partition 0 asks for.
async fn open(
    durability: &DurabilitySpec,
    partition: Partition,
    job: &JobSpec,
) -> Result<PartKeeper, ExitError> {
    let kept =
        Kept { partition, optimizer: job.optimizer, dtype: job.dtype, chunk_bytes: CHUNK_BYTES };
    let DurabilitySpec { directory, keep, .. } = durability;
    let opened = durable::patiently(
        || PartKeeper::open(Arc::new(RealDisk), directory, *keep, kept),
        |error| matches!(error, storage::Error::Locked { .. }),
    );
    opened.await.map_err(storage::Error::into_exit)
}

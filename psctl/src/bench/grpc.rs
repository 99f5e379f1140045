//! The side that is measured: the real server, and a worker that uses the real client.
//!
//! Nothing here knows how it is measured: a worker gets its gradient and a buffer for theta.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::{CommandFactory, FromArgMatches};
use ps_common::Element;
use ps_common::calls::{Caller, JoinRequest, Outcome, PullRequest, PushHeader};
use ps_common::exit::{Exit, ExitError};
use ps_common::job::{Fingerprint, JobState, Mode, PROTOCOL_VERSION, Role};
use ps_common::partition::Partition;
use ps_common::shared::Shared;
use ps_common::tables::{Table, Tables};
use ps_common::wire::status::Failure;
use ps_server::args::ServerArgs as RealServerArgs;
use ps_worker::coding::Coder;
use ps_worker::credentials::CredentialArgs;
use ps_worker::net::{Approach, Client, Credentials, Parcel, Steps};

use super::job::Way;
use super::role::{ServerArgs, WorkerArgs};
use super::sparse::Batches;
use super::work::LEARNING_RATE;

/// A worker is silent while others work: this is longer than any of them takes.
const LEASE_MS: u32 = 3_600_000;

/// The server listens before any worker starts.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// A worker's place in the job.
pub(super) struct Connection<T> {
    caller: Caller,
    clock: u64,
    version: u64,
    steps: Steps,
    coder: Option<Coder<T>>,
    /// Counts what is sent, and keeps the connection when no stream is open.
    client: Client,
}

/// Serves theta of `args.job.n` zeros with plain SGD of `work::LEARNING_RATE`, gradients summed
/// (not averaged) in sync mode; calls `announce` once bound. Returns when the job cannot go on.
pub(super) fn serve(
    args: &ServerArgs,
    announce: impl FnOnce(SocketAddr) -> io::Result<()>,
) -> Result<(), ExitError> {
    let args = real_args(args)?;
    let announce = |address| {
        announce(address)
            .map_err(|e| ExitError::new(Exit::Io, "cannot report to the bench").because(e))
    };
    ps_server::run::runtime()?.block_on(ps_server::run::run_and_tell(args, announce))
}

/// The server's flags: all but these as a user has them who gives none. The environment is not
/// asked, so that two runs of the bench measure the same.
fn real_args(args: &ServerArgs) -> Result<RealServerArgs, ExitError> {
    let job = &args.job;
    let mut arguments: Vec<OsString> = vec![
        "ps-server".into(),
        "--listen=127.0.0.1:0".into(),
        format!("--mode={}", job.mode).into(),
        format!("--workers={}", job.workers).into(),
        format!("--dtype={}", job.dtype).into(),
        format!("--lr={LEARNING_RATE}").into(),
        format!("--lease-ms={LEASE_MS}").into(),
        "--optimizer=sgd".into(),
        "--rounds=0".into(),
    ];
    if job.mode == Mode::Sync {
        arguments.push("--aggregate=sum".into());
    }
    let Way { congestion, tls } = &args.way;
    arguments.extend(congestion.as_ref().map(|name| format!("--congestion={name}").into()));
    if let Some(folder) = tls {
        for (flag, file) in [("--tls-cert", "server.pem"), ("--tls-key", "server-key.pem")] {
            arguments.extend([flag.into(), folder.join(file).into_os_string()]);
        }
    }
    arguments.extend(args.partition.as_ref().map(|of| format!("--partition={of}").into()));
    if !args.peers.is_empty() {
        let urls: Vec<_> = args.peers.iter().map(|at| format!("http://{at}")).collect();
        arguments.push(format!("--peers={}", urls.join(",")).into());
    }
    RealServerArgs::command()
        .mut_args(|arg| arg.env(clap::builder::Resettable::Reset))
        .try_get_matches_from(arguments)
        .and_then(|matches| RealServerArgs::from_arg_matches(&matches))
        .map_err(|e| ExitError::new(Exit::Bug, "the server does not take these flags").because(e))
}

/// Joins as rank `args.rank`.
pub(super) async fn connect<T: Element>(args: &WorkerArgs) -> Result<Connection<T>, ExitError> {
    let Way { congestion, tls } = args.way.clone();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let urls: Vec<_> = args.address.iter().map(|at| format!("{scheme}://{at}")).collect();
    let tls_ca = tls.map(|folder| folder.join("ca.pem"));
    let credentials =
        Credentials::load(&CredentialArgs { tls_ca, ..CredentialArgs::default() }, &urls)?;
    let approach = Approach { congestion, credentials, ..Approach::default() };
    let client = Client::connect_with(&urls, CONNECT_PATIENCE, &approach).await?;
    let tables = match args.job.sparse {
        Some(sparse) => sparse.tables(args.job.n),
        None => Tables::new(vec![Table::zeros("theta", &[args.job.n as u64], false)])
            .map_err(|e| ExitError::config("--sizes makes no theta").because(e))?,
    };
    let request = JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        role: Role::Worker,
        rank: Some(args.rank),
        fingerprint: Fingerprint::default(),
        tables: Some(tables),
        dtype: Some(args.job.dtype),
        program: "psctl bench".to_owned(),
        acknowledged_clock: None,
        overlap: false,
    };
    let answer = client.join(request).await.map_err(|e| failed("Join", e))?;
    if args.address.len() > 1 {
        meet::<T>(&client, answer.caller, args.job.n).await?;
    }
    Ok(Connection {
        caller: answer.caller,
        clock: answer.clock,
        version: answer.version,
        steps: client.steps(),
        coder: Coder::new(args.job.wire, first_keys(args)),
        client,
    })
}

/// Pulls once: the first server lets a worker in before the others have heard of the job.
async fn meet<T: Element>(client: &Client, caller: Caller, n: usize) -> Result<(), ExitError> {
    let began = Instant::now();
    let mut theta = vec![T::ZERO; n];
    loop {
        let request =
            PullRequest { caller, version_min: 0, r#final: false, wait_max: None, exchange: 0 };
        match client.pull(request, &mut theta).await {
            Ok(_) => return Ok(()),
            Err(Failure::Transport(_)) if began.elapsed() < CONNECT_PATIENCE => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(failure) => return Err(failed("the first Pull", failure)),
        }
    }
}

/// Of each server's part of theta.
fn first_keys(args: &WorkerArgs) -> Vec<usize> {
    let count = u32::try_from(args.address.len()).expect("a command line holds fewer");
    (0..count).map(|index| Partition { index, count }.keys(args.job.n).start).collect()
}

/// Pushes `gradient` and pulls into `theta`, `steps` times; how long each took, with the time that
/// the codec needs to write the gradient.
///
/// # Errors
/// What a step failed with: a rate with retries in it would not be a rate.
pub(super) async fn steps<T: Element>(
    connection: &mut Connection<T>,
    gradient: &Shared<T>,
    theta: &mut [T],
    steps: u64,
) -> Result<Vec<Duration>, ExitError> {
    let mut times = Vec::with_capacity(steps as usize);
    let mut coder = connection.coder.take();
    for _ in 0..steps {
        let began = Instant::now();
        let written = coder.as_mut().map(|coder| coder.write(gradient));
        let parcel = match &written {
            None => Parcel::from(gradient),
            Some(written) => Parcel::coded(written),
        };
        step(connection, parcel, theta).await?;
        times.push(began.elapsed());
    }
    connection.coder = coder;
    Ok(times)
}

/// Pushes rows and is given those of the next step in `theta`, `steps` times; how long each took.
///
/// # Errors
/// As [`steps`].
pub(super) async fn steps_of_rows<T: Element>(
    connection: &mut Connection<T>,
    batches: &mut Batches<T>,
    theta: &mut [T],
    steps: u64,
) -> Result<Vec<Duration>, ExitError> {
    let mut times = Vec::with_capacity(steps as usize);
    for _ in 0..steps {
        let (rows, values, asked) = batches.next();
        let began = Instant::now();
        step(connection, Parcel::from(values).of_rows(rows, asked), theta).await?;
        times.push(began.elapsed());
    }
    Ok(times)
}

/// Pushes what the codec holds back of earlier steps, as it is. Later steps do without a codec.
///
/// # Errors
/// As [`steps`].
pub(super) async fn settle<T: Element>(
    connection: &mut Connection<T>,
    theta: &mut [T],
) -> Result<(), ExitError> {
    match connection.coder.take() {
        Some(coder) => step(connection, Parcel::from(coder.lost()), theta).await,
        None => Ok(()),
    }
}

/// Bytes of all messages that the worker has sent.
pub(super) fn sent_bytes<T>(connection: &Connection<T>) -> u64 {
    connection.client.traffic().sent()
}

async fn step<T: Element>(
    connection: &mut Connection<T>,
    gradient: Parcel<'_, T>,
    theta: &mut [T],
) -> Result<(), ExitError> {
    let header = PushHeader {
        caller: connection.caller,
        clock: connection.clock,
        version_pulled: connection.version,
        n_samples: 1,
        loss: None,
        penalty: None,
        wait_max: None,
        exchange: 0,
    };
    let result = connection.steps.step(header, gradient, theta).await;
    let result = result.map_err(|e| failed("a step", e))?;
    if result.outcome != Outcome::Applied || result.state != JobState::Running {
        return Err(ExitError::new(
            Exit::Bug,
            format!(
                "push {} did not count: {:?}, the job is {}",
                connection.clock, result.outcome, result.state
            ),
        ));
    }
    connection.clock = result.clock;
    connection.version = connection.steps.theta_version();
    Ok(())
}

fn failed(what: &str, failure: Failure) -> ExitError {
    ExitError::new(Exit::Failed, format!("{what} over gRPC failed")).because(failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::job::Job;
    use crate::bench::work;
    use ps_common::Dtype;
    use ps_common::codec::Codec;

    /// theta as the last worker pulls it after `pushes`, one worker after the other.
    fn theta_after<T: Element>(job: Job, pushes: &[u64]) -> Vec<T> {
        let (told, address) = std::sync::mpsc::channel();
        // It serves until the test's process ends.
        std::thread::spawn(move || {
            let lone = ServerArgs { job, way: Way::default(), partition: None, peers: Vec::new() };
            serve(&lone, |address| told.send(address).map_err(io::Error::other))
        });
        let address = address.recv().expect("the server serves");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let mut workers = Vec::new();
            for rank in 0..job.workers {
                let args = WorkerArgs { job, way: Way::default(), address: vec![address], rank };
                workers.push(connect(&args).await.expect("joins"));
            }
            let mut theta = vec![T::ZERO; job.n];
            for (rank, worker) in (0..).zip(&mut workers) {
                let gradient = work::gradient::<T>(job.n, rank, job.wire);
                let n_steps = pushes[rank as usize];
                let sent_before = sent_bytes(worker);
                let times = steps(worker, &gradient, &mut theta, n_steps).await.expect("steps");
                assert_eq!(times.len() as u64, n_steps);
                let sent = sent_bytes(worker) - sent_before;
                let plain = n_steps * job.theta_bytes() as u64;
                assert_eq!(sent > plain, job.wire == Codec::PLAIN, "{sent} of {plain} bytes");
                settle(worker, &mut theta).await.expect("settled");
            }
            theta
        })
    }

    #[test]
    fn every_push_counts_once() {
        let (wire, sparse) = (Codec::PLAIN, None);
        let job = |n, workers, mode, dtype| Job { n, workers, mode, dtype, wire, sparse };
        for n in [1, 1000, 65_536, 65_537, 200_000] {
            let pushes = [3, 5, 1];
            let theta = theta_after::<f32>(job(n, 3, Mode::Async, Dtype::F32), &pushes);
            assert_eq!(work::first_difference(&theta, &pushes, Codec::PLAIN), None, "{n}");
            let theta = theta_after::<f64>(job(n, 1, Mode::Sync, Dtype::F64), &[4]);
            assert_eq!(work::first_difference(&theta, &[4], Codec::PLAIN), None, "{n} sync");
        }
    }

    #[test]
    fn every_push_counts_once_through_every_codec() {
        for name in ["f16", "bf16", "int8", "topk,ratio=0.05"] {
            let wire = name.parse().expect("a codec");
            let (mode, dtype, sparse) = (Mode::Async, Dtype::F32, None);
            let job = Job { n: 70_001, workers: 2, mode, dtype, wire, sparse };
            let pushes = [6, 4];
            let theta = theta_after::<f32>(job, &pushes);
            assert_eq!(work::first_difference(&theta, &pushes, wire), None, "{name}");
        }
    }
}

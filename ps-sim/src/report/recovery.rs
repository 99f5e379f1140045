//! How soon work goes on: after a server is killed, after a worker is killed, after a partition.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ps_common::wire::pb;
use ps_common::wire::pb::worker_status::State;
use ps_tests::{Caller, Proxy};
use serde::Serialize;

use super::Setting;
use super::figures::{Part, Spread, Table};
use super::real::{PATIENCE, Programs, Pusher, connect, join, ms_since, runtime};

/// Of the workers that are killed or cut off.
const LEASE: Duration = Duration::from_millis(1000);

#[derive(Debug, Serialize)]
struct Recovery {
    /// Elements of theta where the server is killed.
    n: u64,
    repeats: usize,
    lease_ms: u64,
    /// `--durability always`: from kill -9 to the first acknowledged push.
    server_kill: Option<Spread>,
    /// `--on-worker-loss continue`: from kill -9 to the round that closes without the worker, less
    /// the lease.
    worker_kill_beyond_lease: Option<Spread>,
    /// From the end of a partition to the worker's next push that counts.
    partition_heal: Option<Spread>,
}

/// Kills and cuts real processes.
pub(super) fn measure(setting: &Setting) -> Result<Part> {
    let (n, repeats) = (setting.args.recovery_n, setting.args.repeats);
    let programs = setting.programs()?;
    let runtime = runtime()?;
    let mut beyond = Vec::new();
    for _ in 0..repeats {
        beyond.push(runtime.block_on(freed_after(&programs))? - LEASE.as_secs_f64() * 1e3);
    }
    let figures = Recovery {
        n,
        repeats,
        lease_ms: LEASE.as_millis() as u64,
        server_kill: Spread::of(runtime.block_on(server_kills(&programs, n, repeats))?),
        worker_kill_beyond_lease: Spread::of(beyond),
        partition_heal: Spread::of(runtime.block_on(partitions(&programs, repeats))?),
    };
    let mut table = Table::new(&["from", "to", "p50", "max", "runs"]);
    let rows = [
        (
            format!("kill -9 of the server (N = {n}, f32, always), started again at once"),
            "first acknowledged push of a whole gradient",
            figures.server_kill,
        ),
        (
            format!("kill -9 of a worker, less the lease of {} ms (continue)", figures.lease_ms),
            "the round closes without it",
            figures.worker_kill_beyond_lease,
        ),
        (
            format!(
                "end of a partition of {} ms between a worker and the server",
                2 * LEASE.as_millis()
            ),
            "the worker's next push that counts",
            figures.partition_heal,
        ),
    ];
    for (from, to, spread) in rows {
        let spread = spread.context("at least one run")?;
        table.row([
            from,
            to.to_owned(),
            Spread::show(spread.p50_ms),
            Spread::show(spread.max_ms),
            spread.n.to_string(),
        ]);
    }
    let mut part = Part::of(&figures);
    part.notes.push(
        "Real processes on the loopback. Less than nothing beyond the lease is possible: it runs from \
         the worker's last call, not from its end."
            .to_owned(),
    );
    part.tables.push(table);
    Ok(part)
}

/// From kill -9 to the first acknowledged push, for each of `repeats` lives.
async fn server_kills(programs: &Programs, n: u64, repeats: usize) -> Result<Vec<f64>> {
    let folder = tempfile::tempdir()?;
    let mut server = programs.server(&[
        "--mode=async".to_owned(),
        "--workers=1".to_owned(),
        "--rounds=0".to_owned(),
        "--durability=always".to_owned(),
        format!("--checkpoint-dir={}", folder.path().display()),
    ]);
    let gradient = vec![1f32; usize::try_from(n)?];
    let mut times = Vec::new();
    let mut killed = None;
    for life in 0..=repeats as u64 {
        let caller = join(server.address(), 0, n).await?;
        ensure!(caller.clock == 3 * life, "clock {} after {life} lives", caller.clock);
        let mut pusher = Pusher::new(caller, &gradient).await?;
        pusher.push().await?;
        times.extend(killed.map(ms_since));
        // The journal has something to replay.
        pusher.push().await?;
        pusher.push().await?;
        if life < repeats as u64 {
            killed = Some(server.kill_and_restart()?);
        }
    }
    Ok(times)
}

const DIM: u64 = 10;
const ZEROS: [f32; DIM as usize] = [0.0; DIM as usize];

/// From a worker's kill -9 to the answer of the round that closes without it.
async fn freed_after(programs: &Programs) -> Result<f64> {
    let server = programs.server(&[
        "--workers=2".to_owned(),
        "--rounds=0".to_owned(),
        "--on-worker-loss=continue".to_owned(),
        format!("--lease-ms={}", LEASE.as_millis()),
        "--lr=0.01".to_owned(),
    ]);
    let lost = programs.worker(&[
        format!("--server=http://{}", server.address()),
        "--rank=1".to_owned(),
        "--compute-delay-ms=3".to_owned(),
    ]);
    let mut onlooker = connect(server.address()).await?;
    // The worker makes the job: its tables, its fingerprint.
    until(&mut onlooker, "the worker", |s| {
        s.workers.len() == 2 && s.workers[1].state() == State::Live
    })
    .await?;
    let mut good = join(server.address(), 0, DIM).await?;
    for _ in 0..20 {
        good.step(&ZEROS).await?;
    }
    let killed = Instant::now();
    lost.signal("KILL");
    // A gradient of the lost one may be in the first of these rounds; the next one waits for it.
    loop {
        let begun = Instant::now();
        let result = good.step(&ZEROS).await?;
        ensure!(result.outcome() == pb::Outcome::Applied, "{result:?}");
        if begun.elapsed() >= LEASE / 3 {
            return Ok(ms_since(killed));
        }
        ensure!(killed.elapsed() < PATIENCE, "no round waited for the lost worker: {lost:?}");
    }
}

/// From the end of a partition to the next push of the worker that was cut off.
async fn partitions(programs: &Programs, repeats: usize) -> Result<Vec<f64>> {
    let server = programs.server(&[
        "--mode=async".to_owned(),
        "--workers=2".to_owned(),
        "--rounds=0".to_owned(),
        format!("--lease-ms={}", LEASE.as_millis()),
        "--lr=0.001".to_owned(),
    ]);
    let mut onlooker = connect(server.address()).await?;
    let proxy = Proxy::to(server.address());
    let worker = programs.worker(&[
        format!("--server={}", proxy.url()),
        "--rank=1".to_owned(),
        "--compute-delay-ms=3".to_owned(),
    ]);
    let clock = |status: &pb::StatusResponse| status.workers.get(1).map_or(0, |w| w.clock);
    let mut times = Vec::new();
    for _ in 0..repeats {
        let before = clock(&onlooker.status().await?);
        until(&mut onlooker, "progress", |s| clock(s) > before + 3).await?;
        proxy.part();
        tokio::time::sleep(2 * LEASE).await;
        let before = clock(&onlooker.status().await?);
        let healed = Instant::now();
        proxy.heal();
        until(&mut onlooker, "progress", |s| clock(s) > before)
            .await
            .with_context(|| format!("{worker:?}"))?;
        times.push(ms_since(healed));
    }
    Ok(times)
}

/// Waits for `condition` of the job's status.
async fn until(
    onlooker: &mut Caller,
    what: &str,
    condition: impl Fn(&pb::StatusResponse) -> bool,
) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = onlooker.status().await?;
        if condition(&status) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{what}: not within {PATIENCE:?}: {status:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

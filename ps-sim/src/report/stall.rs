//! What a checkpoint every second costs pushes: two servers, one with and one without, take turns.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::Setting;
use super::figures::{Part, Spread, Table};
use super::real::{Programs, Pusher, Server, join, ms_since, runtime};

/// One turn of one server, a few checkpoints long.
const TURN: Duration = Duration::from_secs(4);
const TURNS: usize = 5;

#[derive(Debug, Serialize)]
struct Stall {
    /// Elements of theta and of each push, f32.
    n: u64,
    checkpoint_every_ms: u64,
    with: Spread,
    without: Spread,
    p50_ratio: f64,
    p99_ratio: f64,
    /// Whole checkpoints that the server wrote meanwhile.
    checkpoints: u64,
}

/// Pushes to both in turns.
pub(super) fn measure(setting: &Setting) -> Result<Part> {
    let n = setting.args.stall_n;
    let stall = runtime()?.block_on(take_turns(&setting.programs()?, n))?;
    let mut table = Table::new(&["pushes of a whole gradient", "p50", "p99", "max", "pushes"]);
    for (what, spread) in [
        (format!("with a checkpoint every second ({} written)", stall.checkpoints), stall.with),
        ("without checkpoints".to_owned(), stall.without),
    ] {
        table.row([
            what,
            Spread::show(spread.p50_ms),
            Spread::show(spread.p99_ms),
            Spread::show(spread.max_ms),
            spread.n.to_string(),
        ]);
    }
    table.row([
        "ratio".to_owned(),
        format!("{:.2}", stall.p50_ratio),
        format!("{:.2}", stall.p99_ratio),
        format!("{:.2}", stall.with.max_ms / stall.without.max_ms),
        String::new(),
    ]);
    let mut part = Part::of(&stall);
    part.notes.push(format!(
        "N = {n} (f32, {} MB a push), sgd, async, one client; two servers take turns of {} s, {TURNS} \
         each. `--stall-n 25000000` measures pushes of 100 MB.",
        n * 4 / 1_000_000,
        TURN.as_secs()
    ));
    part.tables.push(table);
    Ok(part)
}

async fn take_turns(programs: &Programs, n: u64) -> Result<Stall> {
    let folder = tempfile::tempdir()?;
    let job = ["--mode=async", "--workers=1", "--rounds=0", "--lr=0.001"].map(str::to_owned);
    let report = folder.path().join("report.json");
    let directory = folder.path().join("checkpoints");
    std::fs::create_dir(&directory)?;
    let every = [
        "--checkpoint-every=1s".to_owned(),
        format!("--checkpoint-dir={}", directory.display()),
        format!("--report={}", report.display()),
    ];
    let kept = programs.server(&[&job[..], &every].concat());
    let bare = programs.server(&job);
    let gradient: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut pushers = Vec::new();
    for server in [&kept, &bare] {
        pushers.push(Pusher::new(join(server.address(), 0, n).await?, &gradient).await?);
    }
    let mut times = [Vec::new(), Vec::new()];
    for turn in 0..=TURNS {
        for (pusher, times) in pushers.iter_mut().zip(&mut times) {
            let end = Instant::now() + TURN;
            while Instant::now() < end {
                let begun = Instant::now();
                pusher.push().await?;
                // The first turn warms up.
                if turn > 0 {
                    times.push(ms_since(begun));
                }
            }
        }
    }
    let [with, without] = times.map(|ms| Spread::of(ms).context("pushes were made"));
    let (with, without) = (with?, without?);
    Ok(Stall {
        n,
        checkpoint_every_ms: 1000,
        with,
        without,
        p50_ratio: with.p50_ms / without.p50_ms,
        p99_ratio: with.p99_ms / without.p99_ms,
        checkpoints: checkpoints(kept, &report)?,
    })
}

/// Ends the server and reads in its report how many it wrote; the last one is that of its end.
fn checkpoints(server: Server, report: &Path) -> Result<u64> {
    server.stop()?;
    let text = std::fs::read_to_string(report).context("the server's report")?;
    let report: Value = serde_json::from_str(&text).context("the server's report")?;
    let n = report["durability"]["checkpoints"].as_u64();
    let n = n.with_context(|| format!("no count of checkpoints in {text}"))?;
    ensure!(n > 1, "the server wrote {n} checkpoints: there was nothing to measure");
    Ok(n - 1)
}

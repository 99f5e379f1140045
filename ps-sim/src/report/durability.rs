//! What a kill -9 of the server undoes, setting by setting: what it promises, and what is gone.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ps_common::wire::pb;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::Setting;
use super::figures::{Part, Table};
use super::real::{Programs, Pusher, Server, connect, join, runtime};

/// Elements of theta; each rank moves the one of its number.
const DIM: u64 = 1000;
const N_PUSHING: u32 = 2;
/// Of checkpoints, where there are intervals.
const EVERY: Duration = Duration::from_secs(1);

/// One setting, over all its kills.
#[derive(Debug, Serialize)]
struct Window {
    durability: &'static str,
    /// As the server says it at its start.
    promised: String,
    kills: usize,
    acknowledged: u64,
    /// Acknowledged, and undone by a kill.
    undone: u64,
    /// Of the kill that undid most.
    undone_max: u64,
    /// How long before its kill the oldest undone update was acknowledged, at most.
    window_ms_max: f64,
    /// Counted more than once.
    twice: u64,
}

/// Kills servers under load.
pub(super) fn measure(setting: &Setting) -> Result<Part> {
    let programs = setting.programs()?;
    let mut rng = ChaCha8Rng::seed_from_u64(*setting.args.many.seeds.start());
    let mut windows = Vec::new();
    for durability in ["none", "interval", "always"] {
        windows.push(window(&programs, durability, setting.args.kills, &mut rng)?);
    }
    let mut table = Table::new(&[
        "--durability",
        "promised, in the server's words",
        "kill -9",
        "acknowledged",
        "undone, of these",
        "undone by one kill, at most",
        "measured window, at most",
        "applied twice",
    ]);
    let mut part = Part::of(&windows);
    for window in &windows {
        table.row([
            window.durability.to_owned(),
            window.promised.clone(),
            window.kills.to_string(),
            window.acknowledged.to_string(),
            window.undone.to_string(),
            window.undone_max.to_string(),
            if window.undone == 0 {
                "nothing".to_owned()
            } else {
                format!("{:.2} s", window.window_ms_max / 1e3)
            },
            window.twice.to_string(),
        ]);
        if window.durability == "always" && window.undone > 0 {
            part.failures.push(format!("always: {} acknowledged updates are lost", window.undone));
        }
        if window.twice > 0 {
            part.failures
                .push(format!("{}: {} updates count twice", window.durability, window.twice));
        }
    }
    part.notes.push(format!(
        "{N_PUSHING} asynchronous clients push as fast as they are answered, each with a ledger of its \
         own; the server is killed at a moment of chance, started again on its directory, and its \
         clocks and theta are compared with the ledgers."
    ));
    part.tables.push(table);
    Ok(part)
}

fn window(
    programs: &Programs,
    durability: &'static str,
    kills: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Window> {
    let folder = tempfile::tempdir()?;
    let mut arguments = vec![
        "--mode=async".to_owned(),
        format!("--workers={N_PUSHING}"),
        "--rounds=0".to_owned(),
        "--lr=1".to_owned(),
        format!("--durability={durability}"),
        format!("--checkpoint-dir={}", folder.path().display()),
    ];
    if durability != "none" {
        arguments.push(format!("--checkpoint-every={}ms", EVERY.as_millis()));
    }
    let mut server = programs.server(&arguments);
    runtime()?.block_on(connect(server.address()))?;
    let promised = promise(&server.output()).context("the server says what a crash may undo")?;
    // The folder is another one in each run.
    let promised = promised.replace(&folder.path().display().to_string(), "its directory");
    let mut window = Window {
        durability,
        promised,
        kills,
        acknowledged: 0,
        undone: 0,
        undone_max: 0,
        window_ms_max: 0.0,
        twice: 0,
    };
    for _ in 0..kills {
        let load = EVERY + EVERY.mul_f64(rng.random_range(0.2..1.2));
        kill_under_load(&mut server, load, &mut window)?;
    }
    Ok(window)
}

/// The line in which the server says what a crash may undo, from these words on.
fn promise(output: &str) -> Option<String> {
    let words = "a crash undoes";
    output.lines().find_map(|line| Some(line[line.find(words)?..].trim().to_owned()))
}

/// When each push of a rank was acknowledged, from the clock that it began with.
struct Ledger {
    first_clock: u64,
    acknowledged: Vec<Instant>,
}

fn kill_under_load(server: &mut Server, load: Duration, window: &mut Window) -> Result<()> {
    let address = server.address().to_owned();
    let pushing: Vec<_> = (0..N_PUSHING)
        .map(|rank| {
            let address = address.clone();
            std::thread::spawn(move || runtime()?.block_on(push_until_gone(&address, rank)))
        })
        .collect();
    std::thread::sleep(load);
    let killed = server.kill_and_restart()?;
    let ledgers: Result<Vec<Ledger>> =
        pushing.into_iter().map(|thread| thread.join().expect("no panic while pushing")).collect();
    let mut undone_here = 0;
    for (rank, ledger) in ledgers?.iter().enumerate() {
        ensure!(!ledger.acknowledged.is_empty(), "rank {rank} never got to push in {load:?}");
        let (clock, moved) = runtime()?.block_on(come_back(&address, rank as u32))?;
        window.acknowledged += ledger.acknowledged.len() as u64;
        let n_acknowledged = ledger.first_clock + ledger.acknowledged.len() as u64;
        // What was under way when the server died may have counted without an answer: not undone.
        let undone = n_acknowledged.saturating_sub(clock);
        undone_here += undone;
        // Each push that counts moves the rank's element by one.
        window.twice += moved.saturating_sub(clock);
        ensure!(moved >= clock, "rank {rank}: theta has {moved} of {clock} updates");
        // What an earlier life had acknowledged is older than this ledger: its first entry stands for it.
        let oldest = clock.saturating_sub(ledger.first_clock) as usize;
        if let Some(&at) = ledger.acknowledged.get(oldest) {
            let ms = killed.saturating_duration_since(at).as_secs_f64() * 1e3;
            window.window_ms_max = window.window_ms_max.max(ms);
        }
    }
    window.undone += undone_here;
    window.undone_max = window.undone_max.max(undone_here);
    Ok(())
}

/// Pushes as fast as it is answered, until the server is gone.
async fn push_until_gone(address: &str, rank: u32) -> Result<Ledger> {
    let caller = join(address, rank, DIM).await?;
    let mut ledger = Ledger { first_clock: caller.clock, acknowledged: Vec::new() };
    let mut gradient = vec![0f32; DIM as usize];
    gradient[rank as usize] = 1.0;
    let mut pusher = Pusher::new(caller, &gradient).await?;
    while let Ok(result) = pusher.push().await {
        ensure!(result.outcome() == pb::Outcome::Applied, "rank {rank}: {result:?}");
        ledger.acknowledged.push(Instant::now());
    }
    Ok(ledger)
}

/// The rank's clock in the server's next life, and how far theta's element of this rank has moved.
async fn come_back(address: &str, rank: u32) -> Result<(u64, u64)> {
    let mut caller = join(address, rank, DIM).await?;
    let clock = caller.clock;
    let moved = -caller.theta().await[rank as usize];
    ensure!(moved >= 0.0 && moved.fract() == 0.0, "rank {rank}: theta is at {moved}");
    Ok((clock, moved as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_promise_is_what_the_server_says() {
        let output = "INFO listening\nps-server: a crash undoes nothing (journal)\nmore\n";
        assert_eq!(promise(output).as_deref(), Some("a crash undoes nothing (journal)"));
        assert_eq!(promise("nothing of the kind"), None);
    }
}

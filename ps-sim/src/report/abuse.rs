//! What good workers and the server's memory feel of a peer that means harm: each abuse against a
//! server of its own, beside two good clients.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ps_common::wire::pb;
use ps_tests::{frames, hostile, resident_kib_max};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tonic::{Code, Status};

use super::Setting;
use super::figures::{Part, Spread, Table};
use super::real::{PATIENCE, Pusher, join, ms_since, observe, runtime};

const N_GOOD: u32 = 2;
const N_BAD: u32 = 3;
/// Between two steps of a good client.
const THINKING: Duration = Duration::from_millis(5);
/// Elements of theta where nothing else is said.
const DIM: u64 = 100_000;
/// More than the windows and buffers on the way to a reader that does not read.
const DIM_UNREAD: u64 = 2_000_000;

/// What each of the bad peers does until it is told to stop; it counts what it has sent.
type Abuser = fn(&Scene, u32) -> Result<()>;

/// An abuse.
struct Abuse {
    name: &'static str,
    dim: u64,
    abuser: Abuser,
}

const ABUSES: [Abuse; 9] = [
    Abuse { name: "garbage for HTTP/2 of 20 kinds", dim: DIM, abuser: garbage },
    Abuse {
        name: "rapid reset",
        dim: DIM,
        abuser: |scene, i| connections(scene, i, &["rapid reset"]),
    },
    Abuse {
        name: "floods of frames: PING, SETTINGS, empty DATA, CONTINUATION, PRIORITY",
        dim: DIM,
        abuser: floods,
    },
    Abuse {
        name: "header bombs, large headers",
        dim: DIM,
        abuser: |scene, i| connections(scene, i, &["header bomb", "large headers"]),
    },
    Abuse {
        name: "messages that claim up to 4 GiB",
        dim: DIM,
        abuser: |scene, i| connections(scene, i, &["a message that claims much"]),
    },
    Abuse {
        name: "half-open connections: half a preface, then silence",
        dim: DIM,
        abuser: half_open,
    },
    Abuse { name: "more connections than are let in", dim: DIM, abuser: many_connections },
    Abuse {
        name: "readers that do not read (theta of 8 MB)",
        dim: DIM_UNREAD,
        abuser: slow_readers,
    },
    Abuse { name: "pushes with NaN, as fast as they are refused", dim: DIM, abuser: bad_pushes },
];

/// One abuse at work.
struct Scene {
    address: String,
    dim: u64,
    stop: AtomicBool,
    /// Connections or calls made.
    sent: AtomicU64,
}

impl Scene {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn count(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Serialize)]
struct Felt {
    abuse: &'static str,
    /// Connections or calls of the bad peers.
    sent: u64,
    /// Of the server, before and at most.
    resident_kib_before: u64,
    resident_kib_max: u64,
    /// Steps of good clients, a pull and a push each.
    calm: Spread,
    abused: Spread,
    theta_unchanged: bool,
}

/// Lets every abuse loose in turn.
pub(super) fn measure(setting: &Setting) -> Result<Part> {
    let mut all = Vec::new();
    for abuse in &ABUSES {
        all.push(felt(setting, abuse).with_context(|| abuse.name)?);
    }
    let mut table = Table::new(&[
        "abuse",
        "sent",
        "resident before",
        "resident, at most",
        "step of good clients, calm: p50, p99",
        "abused: p50, p99",
        "theta unchanged",
    ]);
    let mut part = Part::of(&all);
    for felt in &all {
        let mib = |kib: u64| format!("{:.0} MiB", kib as f64 / 1024.0);
        let times = |s: &Spread| format!("{}, {}", Spread::show(s.p50_ms), Spread::show(s.p99_ms));
        table.row([
            felt.abuse.to_owned(),
            felt.sent.to_string(),
            mib(felt.resident_kib_before),
            mib(felt.resident_kib_max),
            times(&felt.calm),
            times(&felt.abused),
            if felt.theta_unchanged { "yes" } else { "no" }.to_owned(),
        ]);
        if !felt.theta_unchanged {
            part.failures.push(format!("{}: theta has changed", felt.abuse));
        }
    }
    part.notes.push(format!(
        "{N_BAD} bad peers and {N_GOOD} good clients (async, N = {DIM} where nothing else is said, a \
         pull and a push a step, refusals tried again as workers do, {} ms between steps) share this machine's processors with the server: \
         what the bad ones take to make their load, the good ones lack, too. {} s calm, then {} s of \
         abuse, a server of its own each. Resident is VmHWM, set back before the abuse.",
        THINKING.as_millis(),
        setting.args.abuse_seconds,
        setting.args.abuse_seconds,
    ));
    part.tables.push(table);
    Ok(part)
}

const CALM: u8 = 0;
const ABUSED: u8 = 1;
const OVER: u8 = 2;

fn felt(setting: &Setting, abuse: &Abuse) -> Result<Felt> {
    let lasts = Duration::from_secs(u64::from(setting.args.abuse_seconds));
    let mut server = setting.programs()?.server(&[
        "--mode=async".to_owned(),
        format!("--workers={}", N_GOOD + N_BAD),
        "--rounds=0".to_owned(),
    ]);
    let before = runtime()?.block_on(async {
        let mut caller = join(server.address(), 0, abuse.dim).await?;
        Ok::<_, anyhow::Error>(caller.pull().await?.1)
    })?;
    let scene = Scene {
        address: server.address().to_owned(),
        dim: abuse.dim,
        stop: AtomicBool::new(false),
        sent: AtomicU64::new(0),
    };
    let phase = AtomicU8::new(CALM);
    let (steps, resident_kib_before, resident_kib_max) = std::thread::scope(|scope| {
        let (scene, phase) = (&scene, &phase);
        let good: Vec<_> =
            (0..N_GOOD).map(|rank| scope.spawn(move || steps(scene, rank, phase))).collect();
        std::thread::sleep(lasts);
        let resident_before = reset_resident(server.id());
        phase.store(ABUSED, Ordering::Relaxed);
        let bad: Vec<_> =
            (0..N_BAD).map(|i| scope.spawn(move || (abuse.abuser)(scene, i))).collect();
        std::thread::sleep(lasts);
        let resident_max = resident_kib_max(server.id());
        phase.store(OVER, Ordering::Relaxed);
        // Good clients first: the end of the abuse is not measured.
        let good: Result<Vec<_>> = good.into_iter().map(|t| t.join().expect("no panic")).collect();
        scene.stop.store(true, Ordering::Relaxed);
        let bad: Result<Vec<_>> = bad.into_iter().map(|t| t.join().expect("no panic")).collect();
        bad?;
        let resident_max = resident_max.context("the server's memory can be read")?;
        Ok::<_, anyhow::Error>((good?, resident_before?, resident_max))
    })?;
    ensure!(server.is_running(), "the server ended: {}", server.output());
    let after = runtime()?.block_on(async {
        Ok::<_, anyhow::Error>(observe(server.address()).await?.pull().await?.1)
    })?;
    let (mut calm, mut abused) = (Vec::new(), Vec::new());
    for (of_calm, of_abused) in steps {
        calm.extend(of_calm);
        abused.extend(of_abused);
    }
    Ok(Felt {
        abuse: abuse.name,
        sent: scene.sent.into_inner(),
        resident_kib_before,
        resident_kib_max,
        calm: Spread::of(calm).context("no good step while calm")?,
        abused: Spread::of(abused).context("no good step under abuse")?,
        theta_unchanged: after == before,
    })
}

/// Resident now; from now on the most that was ever resident is counted anew.
fn reset_resident(id: u32) -> Result<u64> {
    std::fs::write(format!("/proc/{id}/clear_refs"), "5")
        .context("the server's memory peak is set back")?;
    resident_kib_max(id).context("the server's memory can be read")
}

/// Steps of a good client that leave theta where it is, calm and abused.
fn steps(scene: &Scene, rank: u32, phase: &AtomicU8) -> Result<(Vec<f64>, Vec<f64>)> {
    runtime()?.block_on(async {
        let zeros = vec![0f32; usize::try_from(scene.dim)?];
        let mut pusher = Pusher::new(join(&scene.address, rank, scene.dim).await?, &zeros).await?;
        let (mut calm, mut abused) = (Vec::new(), Vec::new());
        // The first ones warm up.
        for _ in 0..10 {
            pusher.push().await?;
        }
        loop {
            let begun_in = phase.load(Ordering::Relaxed);
            let begun = Instant::now();
            while let Err(status) = step(&mut pusher).await {
                // As a worker does: what asks to come again is tried again, within the same step.
                let again = status.code() == Code::ResourceExhausted;
                ensure!(again && begun.elapsed() < PATIENCE, "a good step: {status:?}");
                tokio::time::sleep(THINKING).await;
            }
            match begun_in {
                CALM => calm.push(ms_since(begun)),
                ABUSED => abused.push(ms_since(begun)),
                _ => return Ok((calm, abused)),
            }
            tokio::time::sleep(THINKING).await;
        }
    })
}

/// A pull and a push that counts.
async fn step(pusher: &mut Pusher) -> Result<(), Status> {
    (pusher.version, _) = pusher.caller.pull().await?;
    match pusher.push().await?.outcome() {
        pb::Outcome::Applied => Ok(()),
        other => Err(Status::internal(format!("{other:?}"))),
    }
}

fn garbage(scene: &Scene, i: u32) -> Result<()> {
    connections(scene, i, &hostile::KINDS)
}

fn floods(scene: &Scene, i: u32) -> Result<()> {
    let kinds = [
        "PING flood",
        "SETTINGS flood",
        "empty DATA flood",
        "CONTINUATION flood",
        "PRIORITY flood",
    ];
    connections(scene, i, &kinds)
}

/// Connection after connection of these kinds of garbage.
fn connections(scene: &Scene, i: u32, kinds: &[&str]) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(u64::from(i));
    while scene.goes_on() {
        let Ok(mut stream) = TcpStream::connect(&scene.address) else { continue };
        let timeout = Some(Duration::from_millis(100));
        stream.set_read_timeout(timeout)?;
        stream.set_write_timeout(timeout)?;
        let kind = kinds[rng.random_range(0..kinds.len())];
        // Refused in the middle is as good as refused at the end.
        let _ = stream.write_all(&hostile::connection(kind, "Bearer x", &mut rng));
        scene.count();
        let mut answer = Vec::new();
        let _ = (&mut stream).take(1 << 20).read_to_end(&mut answer);
    }
    Ok(())
}

/// As many connections as are let in, and more, that say half a preface; the oldest give way.
fn half_open(scene: &Scene, _: u32) -> Result<()> {
    let mut open = std::collections::VecDeque::new();
    while scene.goes_on() {
        let Ok(mut stream) = TcpStream::connect(&scene.address) else { continue };
        let _ = stream.write_all(&frames::PREFACE[..12]);
        scene.count();
        open.push_back(stream);
        if open.len() > 100 {
            open.pop_front();
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// Connection after connection that begins well and asks for nothing, as fast as they come.
fn many_connections(scene: &Scene, _: u32) -> Result<()> {
    let mut open = std::collections::VecDeque::new();
    while scene.goes_on() {
        let Ok(mut stream) = TcpStream::connect(&scene.address) else { continue };
        let _ = stream.write_all(&frames::greeting());
        scene.count();
        open.push_back(stream);
        if open.len() > 200 {
            open.pop_front();
        }
    }
    Ok(())
}

/// Observers that ask for theta and read nothing of it.
fn slow_readers(scene: &Scene, _: u32) -> Result<()> {
    runtime()?.block_on(async {
        let mut unread = Vec::new();
        while scene.goes_on() {
            // Above the limit they are turned away.
            let asked = async {
                let observer = observe(&scene.address).await?;
                let request = pb::PullRequest {
                    rank: observer.rank,
                    incarnation: observer.incarnation,
                    ..Default::default()
                };
                Ok::<_, anyhow::Error>(
                    observer.parameters.clone().pull(request).await?.into_inner(),
                )
            };
            if let Ok(Ok(theta)) = tokio::time::timeout(Duration::from_millis(200), asked).await {
                scene.count();
                unread.push(theta);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    })
}

/// A worker whose gradients are refused.
fn bad_pushes(scene: &Scene, i: u32) -> Result<()> {
    runtime()?.block_on(async {
        let mut gradient = vec![0f32; usize::try_from(scene.dim)?];
        // The last element: all of it is read before it is refused.
        *gradient.last_mut().context("theta has elements")? = f32::NAN;
        let caller = join(&scene.address, N_GOOD + i, scene.dim).await?;
        let mut pusher = Pusher::new(caller, &gradient).await?;
        while scene.goes_on() {
            let refused = pusher.push().await;
            ensure!(refused.is_err(), "a gradient with NaN counted: {refused:?}");
            scene.count();
        }
        Ok(())
    })
}

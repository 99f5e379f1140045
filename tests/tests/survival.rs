//! `kill -9`, anywhere and often: a synchronous job ends in the same bits, an asynchronous one with
//! a journal counts what it acknowledged once, and servers are back soon.
//!
//! `PS_KILLS=100 cargo test -p ps-tests --test survival` kills that often in each run.

// Seeds and figures are said on stdout.
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use ps_common::wire::pb;
use ps_tests::{Caller, Process, data, data_dir, free_port, theta_sha256, wait_until};
use serde_json::Value;

/// Held for reading by tests that keep the machine busy, for writing by the one that measures.
static QUIET: RwLock<()> = RwLock::new(());

/// Kills in each run where nothing else is said.
const KILLS: u32 = 10;

fn n_kills() -> u32 {
    match std::env::var("PS_KILLS") {
        Ok(text) => text.parse().expect("PS_KILLS is a number"),
        Err(_) => KILLS,
    }
}

/// Numbers that a seed repeats, from a generator of Marsaglia 2003, "Xorshift RNGs", section 3.
struct Chance(u64);

impl Chance {
    /// Of a seed that is printed: another one in each run.
    fn new(what: &str) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = now.expect("after 1970").subsec_nanos();
        println!("{what}: seed {seed}");
        Self(u64::from(seed) << 20 | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// A server at `port` that keeps its job in `folder`.
fn kept_server(folder: &Path, port: u16, arguments: &[&str]) -> Process {
    let listen = format!("--listen=127.0.0.1:{port}");
    let checkpoints = format!("--checkpoint-dir={}", folder.join("checkpoints").display());
    let report = format!("--report={}", folder.join("report.json").display());
    Process::start("ps-server", &[&[&listen[..], &checkpoints, &report], arguments].concat())
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir(folder.path().join("checkpoints")).expect("a folder");
    folder
}

fn report_in(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("report.json")).expect("a report");
    serde_json::from_str(&text).expect("JSON")
}

/// A synchronous job of three workers; `kills` times one of the processes, the server every other
/// time, is killed and started again.
fn train(job: &[&str], learn: &[String], kills: u32, chance: &mut Chance) -> Value {
    let folder = folder();
    let port = free_port();
    let server = || kept_server(folder.path(), port, job);
    let worker = |rank: usize| {
        let url = format!("--server=http://127.0.0.1:{port}");
        let rank = format!("--rank={rank}");
        let mut arguments = vec![&url[..], &rank, "--connect-timeout=60s"];
        arguments.extend(learn.iter().map(String::as_str));
        Process::start("ps-worker", &arguments)
    };
    let mut keeper = server();
    let mut workers: Vec<Process> = (0..3).map(worker).collect();
    for kill in 0..kills {
        std::thread::sleep(Duration::from_millis(20 + chance.below(400)));
        assert!(keeper.is_running(), "the job is long enough for {kills} kills, not for {kill}");
        if kill % 2 == 0 {
            keeper.signal("KILL");
            assert_eq!(std::mem::replace(&mut keeper, server()).wait().0, None);
        } else {
            let rank = chance.below(3) as usize;
            workers[rank].signal("KILL");
            let killed = std::mem::replace(&mut workers[rank], worker(rank));
            assert_eq!(killed.wait().0, None);
        }
    }
    keeper.expect_exit(0);
    for worker in workers {
        worker.expect_exit(0);
    }
    report_in(folder.path())
}

/// Fashion-MNIST where it is, else a problem that every worker makes itself.
fn problem() -> Vec<String> {
    let delay = "--compute-delay-ms=5..25".to_owned();
    let Some(folder) = data_dir("fashion-mnist") else {
        println!("in its place: the built-in clusters");
        return vec!["--data=clusters".to_owned(), "--model=softmax".to_owned(), delay];
    };
    let file = |name: &str| folder.join(name).display().to_string();
    let images = (0..5).map(|part| file(&format!("train-images-part{part}-idx3-ubyte.gz")));
    vec![
        format!("--data={}", images.collect::<Vec<_>>().join(",")),
        format!("--labels={}", file("train-labels-idx1-ubyte.gz")),
        "--model=softmax,classes=10".to_owned(),
        "--scale=divide=255".to_owned(),
        "--take=1000".to_owned(),
        delay,
    ]
}

/// Rows of which each has a few features, and workers that push and pull theta's rows of these alone.
fn sparse_problem() -> Vec<String> {
    let data = format!("--data={}", data("agaricus/agaricus.txt.train"));
    let flags =
        ["--model=logistic", "--bias", "--take=900", "--sparse", "--compute-delay-ms=5..25"];
    std::iter::once(data).chain(flags.map(str::to_owned)).collect()
}

fn kills_leave_the_same_theta(optimizer: &str, mut learn: Vec<String>, more: &[&str]) {
    let _busy = QUIET.read().unwrap_or_else(PoisonError::into_inner);
    learn.extend(more.iter().map(|flag| (*flag).to_owned()));
    let kills = n_kills();
    // Twice what there is time for between the kills.
    let rounds = format!("--rounds={}", 100 + 20 * kills);
    let job = ["--workers=3", "--lr=0.01", "--checkpoint-every=7r", &rounds, optimizer];
    let mut chance = Chance::new(optimizer);
    let undisturbed = train(&job, &learn, 0, &mut chance);
    let killed = train(&job, &learn, kills, &mut chance);
    assert_eq!(theta_sha256(&killed), theta_sha256(&undisturbed));
    let losses = |report| ps_tests::losses(report);
    assert_eq!(losses(&killed), losses(&undisturbed), "every round is measured once");
    assert_eq!(killed["version"], undisturbed["version"]);
    let durability = &killed["durability"];
    println!("{optimizer}: {kills} kills, {durability}");
    assert!(
        durability["restarts"].as_u64() >= Some(u64::from(kills.div_ceil(2)) / 2),
        "{durability}"
    );
}

#[test]
fn a_synchronous_job_ends_in_the_same_bits_whoever_is_killed_with_rows() {
    kills_leave_the_same_theta("--optimizer=adagrad", sparse_problem(), &[]);
}

#[test]
fn a_synchronous_job_ends_in_the_same_bits_whoever_is_killed_with_sgd() {
    kills_leave_the_same_theta("--optimizer=sgd", problem(), &[]);
}

#[test]
fn a_synchronous_job_ends_in_the_same_bits_whoever_is_killed_with_adam() {
    kills_leave_the_same_theta("--optimizer=adam", problem(), &[]);
}

#[test]
fn a_synchronous_job_ends_in_the_same_bits_whoever_is_killed_with_theta_in_two_bytes() {
    kills_leave_the_same_theta("--optimizer=momentum", problem(), &["--wire-pull=f16"]);
}

/// What a caller knows of its own pushes, outside the server.
#[derive(Debug, Default)]
struct Ledger {
    acknowledged: u64,
    sent: u64,
    repeats: u64,
}

const LEDGER_DIM: u64 = 1000;

/// Pushes clock after clock, joining again whenever the server is gone, up to `clocks`. Clock c adds
/// -(c + 1) to the element of its rank, so that the sum tells whether each has counted once.
async fn push_all(address: &str, rank: u32, clocks: u64) -> Ledger {
    let mut ledger = Ledger::default();
    let end = Instant::now() + ps_tests::PATIENCE * 3;
    while ledger.acknowledged < clocks {
        assert!(Instant::now() < end, "rank {rank} has come to {ledger:?}");
        if push_until_gone(address, rank, clocks, &mut ledger).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    ledger
}

async fn push_until_gone(
    address: &str,
    rank: u32,
    clocks: u64,
    ledger: &mut Ledger,
) -> Result<(), Box<dyn std::error::Error>> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?;
    let mut caller = Caller::over(endpoint.tcp_nodelay(true).connect().await?);
    let joined = caller.join(Caller::join_request(Some(rank), LEDGER_DIM)).await?;
    let mut clock = joined.clock;
    assert!(clock >= ledger.acknowledged, "rank {rank}: clock {clock} after {ledger:?}");
    assert!(clock <= ledger.sent, "rank {rank}: clock {clock} after {ledger:?}");
    ledger.acknowledged = clock;
    let gradient = |clock: u64| {
        let mut gradient = vec![0f32; LEDGER_DIM as usize];
        gradient[rank as usize] = (clock + 1) as f32;
        gradient
    };
    while clock < clocks {
        let version = caller.pull().await?.0;
        ledger.sent = ledger.sent.max(clock + 1);
        let result = caller.push(clock, version, &gradient(clock)).await?;
        assert_eq!(result.outcome(), pb::Outcome::Applied, "rank {rank}, clock {clock}");
        ledger.acknowledged = clock + 1;
        if clock % 5 == 0 {
            let again = caller.push(clock, version, &gradient(clock)).await?;
            assert_eq!(again.outcome(), pb::Outcome::Duplicate, "rank {rank}, clock {clock}");
            ledger.repeats += 1;
        }
        clock += 1;
    }
    Ok(())
}

#[test]
fn with_a_journal_every_acknowledged_push_has_counted_once() {
    // Their sum has to be exact in f32; as many as it takes some kills to get through.
    const CLOCKS: u64 = 1500;
    let _busy = QUIET.read().unwrap_or_else(PoisonError::into_inner);
    let kills = n_kills();
    let mut chance = Chance::new("journal");
    let folder = folder();
    let port = free_port();
    let job = [
        "--mode=async",
        "--workers=2",
        "--rounds=0",
        "--lr=1",
        "--durability=always",
        "--checkpoint-every=150r",
        "--journal-max=200k",
    ];
    let mut server = kept_server(folder.path(), port, &job);
    let address = format!("127.0.0.1:{port}");
    let pushing = [0, 1].map(|rank| {
        let address = address.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(push_all(&address, rank, CLOCKS))
        })
    });
    let mut n_killed = 0;
    while n_killed < kills && pushing.iter().any(|thread| !thread.is_finished()) {
        std::thread::sleep(Duration::from_millis(10 + chance.below(250)));
        server.signal("KILL");
        assert_eq!(server.wait().0, None);
        server = kept_server(folder.path(), port, &job);
        n_killed += 1;
    }
    let ledgers = pushing.map(|thread| thread.join().expect("no promise was broken"));
    println!("{n_killed} kills, {ledgers:?}");
    assert!(n_killed >= kills.min(3), "the server was killed {n_killed} times");
    // The last life of the server takes theta from the disk alone.
    server.signal("KILL");
    assert_eq!(server.wait().0, None);
    let server = kept_server(folder.path(), port, &job);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        wait_until("the server", || std::net::TcpStream::connect(&address).ok());
        let mut caller = Caller::joined(&address, 0, LEDGER_DIM).await;
        let (version, _) = caller.pull().await.expect("theta");
        assert_eq!(version, 2 * CLOCKS);
        let theta = caller.theta().await;
        let sum = -((CLOCKS * (CLOCKS + 1) / 2) as f32);
        assert_eq!(theta[..2], [sum, sum]);
        assert!(theta[2..].iter().all(|x| *x == 0.0));
    });
    server.signal("TERM");
    server.expect_exit(0);
}

/// Pushes a large gradient, computed at the version that is the clock, in chunks.
async fn push_whole(caller: &mut Caller, clock: u64, gradient: &[f32]) -> ps_tests::Sent {
    const CHUNK_LEN: usize = 1 << 16;
    let mut messages = Vec::new();
    for (chunk, key) in gradient.chunks(CHUNK_LEN).zip((0..).step_by(CHUNK_LEN)) {
        let mut message = caller.message(clock, clock, chunk);
        message.key = key;
        message.last = key + chunk.len() as u64 == gradient.len() as u64;
        if key > 0 {
            message.header = None;
        }
        messages.push(message);
    }
    caller.push_messages(messages).await
}

/// Wall time, because that is the promise; a machine that is busy elsewhere adds to it, so the best life
/// counts, and more lives are tried where none of the first was quick enough.
#[test]
fn a_server_is_back_and_takes_the_first_push_within_a_second() {
    const DIM: u64 = 1_000_000;
    const LIVES: usize = 6;
    const LIVES_MAX: usize = 20;
    let _alone = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    let folder = folder();
    let port = free_port();
    let job = ["--mode=async", "--workers=1", "--rounds=0", "--durability=always"];
    let address = format!("127.0.0.1:{port}");
    let gradient = vec![1f32; DIM as usize];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut server = kept_server(folder.path(), port, &job);
    let mut seconds = Vec::new();
    // The first life made theta, the others found it.
    let is_quick = |seconds: &[f64]| seconds[1..].iter().any(|&x| x < 1.0);
    while seconds.len() < LIVES || seconds.len() < LIVES_MAX && !is_quick(&seconds) {
        let life = seconds.len() as u64;
        let begin = Instant::now();
        wait_until("the server", || std::net::TcpStream::connect(&address).ok());
        runtime.block_on(async {
            let mut caller = Caller::connect(&address).await;
            let request = Caller::join_request(Some(0), DIM);
            let clock = caller.join(request).await.expect("a rank is free").clock;
            assert_eq!(clock, 2 * life, "both pushes of each life have counted");
            push_whole(&mut caller, clock, &gradient).await.expect("taken");
            seconds.push(begin.elapsed().as_secs_f64());
            push_whole(&mut caller, clock + 1, &gradient).await.expect("taken");
        });
        server.signal("KILL");
        assert_eq!(server.wait().0, None);
        server = kept_server(folder.path(), port, &job);
    }
    let mut back = seconds.split_off(1);
    back.sort_by(f64::total_cmp);
    println!(
        "from the start of the process to the first acknowledged push of 4 MB, seconds: {back:.3?}"
    );
    assert!(back[0] < 1.0, "at best {back:?} s");
}

/// What a checkpoint every second costs pushes of 100 MB: two servers, one with and one without, take
/// turns.
#[test]
#[ignore = "a measurement for a quiet machine: cargo test --release -p ps-tests --test survival -- --ignored --nocapture"]
fn measure_checkpoints_every_second_at_25_million() {
    const DIM: u64 = 25_000_000;
    const PUSHES: u64 = 40;
    let folder = folder();
    let job = ["--mode=async", "--workers=1", "--rounds=0", "--lr=0.001"];
    let ports = [free_port(), free_port()];
    let kept =
        kept_server(folder.path(), ports[0], &[&job[..], &["--checkpoint-every=1s"]].concat());
    let listen = format!("--listen=127.0.0.1:{}", ports[1]);
    let bare = Process::start("ps-server", &[&[&listen[..]], &job[..]].concat());
    let gradient: Vec<f32> = (0..DIM).map(|i| (i as f32 * 0.37).sin()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let mut seconds = [Vec::new(), Vec::new()];
    runtime.expect("a runtime").block_on(async {
        let mut callers = Vec::new();
        for port in ports {
            let address = format!("127.0.0.1:{port}");
            wait_until("the server", || std::net::TcpStream::connect(&address).ok());
            callers.push(Caller::joined(&address, 0, DIM).await);
        }
        for turn in 0..6 {
            for (caller, seconds) in callers.iter_mut().zip(&mut seconds) {
                for clock in turn * PUSHES..(turn + 1) * PUSHES {
                    let begin = Instant::now();
                    push_whole(caller, clock, &gradient).await.expect("taken");
                    seconds.push(begin.elapsed().as_secs_f64());
                }
            }
        }
    });
    for server in [kept, bare] {
        server.signal("TERM");
        server.expect_exit(0);
    }
    let [with, without] = seconds.map(|mut seconds| {
        seconds.sort_by(f64::total_cmp);
        let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share) as usize];
        (at(0.5), at(0.99), seconds[seconds.len() - 1])
    });
    println!("seconds a push, p50, p99, max: with checkpoints {with:.3?}, without {without:.3?}");
    println!("p99 ratio {:.2}", with.1 / without.1);
    assert!(with.1 < 2.0 * without.1);
}

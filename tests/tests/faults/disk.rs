//! Servers that die, and disks that fail, under a job that is kept in a directory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ps_common::wire::pb;
use ps_tests::rows::{Seen, refusal, stands};
use ps_tests::{Caller, Killed, Process, Shim, binary, wait_until};
use tempfile::TempDir;
use tonic::Code;

use super::{DIM, ONES};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;
/// Of every push of ones: a power of two, so that theta counts them without rounding.
const STEP: f32 = 1.0 / 1024.0;

/// An asynchronous job in a directory of its own, and the shim that its servers run under.
struct Kept {
    folder: TempDir,
    shim: Shim,
}

impl Kept {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder"), shim: Shim::new() }
    }

    fn folder(&self) -> PathBuf {
        self.folder.path().canonicalize().expect("it exists")
    }

    fn flags(&self, more: &[&str]) -> Vec<String> {
        let mut flags = vec![
            "--workers=2".to_owned(),
            "--rounds=0".to_owned(),
            format!("--lr={STEP}"),
            format!("--checkpoint-dir={}", self.folder().display()),
        ];
        flags.extend(more.iter().map(|&flag| flag.to_owned()));
        if !more.iter().any(|flag| flag.starts_with("--mode")) {
            flags.push("--mode=async".to_owned());
        }
        flags
    }

    fn command(&self) -> Command {
        let mut command = Command::new(binary("ps-server"));
        self.shim.put_under(&mut command, Some(&self.folder()));
        command.env("PS_LOG", "info");
        command
    }

    fn server(&self, more: &[&str]) -> (Process, String) {
        let flags = self.flags(more);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        Process::server_by(self.command(), &flags)
    }

    /// A server that cannot start.
    fn refused(&self, more: &[&str], code: i32) -> String {
        let mut command = self.command();
        command.args(["--listen", "127.0.0.1:0"]).args(self.flags(more));
        Process::spawn("ps-server", command).expect_exit(code)
    }

    /// Checkpoints, the newest last.
    fn checkpoints(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder()).expect("readable");
        let paths = entries.map(|entry| entry.expect("readable").path());
        let mut paths: Vec<_> =
            paths.filter(|path| path.extension().is_some_and(|ending| ending == "psck")).collect();
        paths.sort();
        paths
    }
}

/// Pushes that theta has had, which says each of them.
async fn counted(caller: &mut Caller) -> u64 {
    let (version, _) = caller.pull().await.expect("theta");
    let theta = caller.theta().await;
    let pushes = -theta[0] / STEP;
    assert!(theta.iter().all(|&x| x == theta[0]), "half an update: {theta:?}");
    assert_eq!(pushes, version as f32, "theta and its version disagree");
    version
}

/// Pushes ones until the server is gone; gives how many it has acknowledged.
async fn push_until_gone(caller: &mut Caller) -> u64 {
    let mut n_acknowledged = 0;
    while let Ok(result) = caller.step(&ONES).await {
        assert_eq!(result.outcome(), pb::Outcome::Applied);
        n_acknowledged += 1;
    }
    n_acknowledged
}

#[tokio::test]
async fn row_34_what_was_acknowledged_survives_a_killed_server() {
    let kept = Kept::new();
    let always = ["--durability=always", "--checkpoint-every=1h"];
    // Acknowledged before this life of the server, and counted at its start.
    let (mut acknowledged, mut before) = (0, 0);
    let points = [Killed::BeforeWrite, Killed::BeforeSync, Killed::AfterSync];
    let mut answers = Vec::new();
    for life in 0..14 {
        kept.shim.kill(None);
        let (server, address) = kept.server(&always);
        let mut caller = Caller::joined(&address, 0, DIM).await;
        let at_start = counted(&mut caller).await;
        assert!(at_start >= before + acknowledged, "life {life}: lost acknowledged pushes");
        assert!(at_start <= before + acknowledged + 1, "life {life}: counted twice");
        assert_eq!(at_start, caller.clock, "life {life}");
        before = at_start;
        if let Some(&point) = points.get(life) {
            let n = caller.step(&ONES).await.map(|_| 1).expect("undisturbed so far");
            kept.shim.kill(Some(point));
            let status = caller.step(&ONES).await.expect_err("the server dies");
            answers.push(status.code());
            acknowledged = n;
        } else {
            // From then on it dies at any moment.
            caller.step(&ONES).await.expect("undisturbed so far");
            let id = server.id().to_string();
            let delay = Duration::from_micros(700 * (life as u64) * (life as u64));
            let killer = std::thread::spawn(move || {
                std::thread::sleep(delay);
                Command::new("kill").args(["-9", &id]).status().expect("kill runs")
            });
            acknowledged = 1 + push_until_gone(&mut caller).await;
            assert!(killer.join().expect("no panic").success());
        }
        assert_eq!(server.wait().0, None, "by the signal");
    }
    kept.shim.kill(None);
    let (_server, address) = kept.server(&always);
    let mut good = Caller::joined(&address, 0, DIM).await;
    let version = counted(&mut good).await;
    assert!(version >= before + acknowledged && version >= 14, "{version}");
    assert!(
        answers
            .iter()
            .all(|code| matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled)),
        "{answers:?}"
    );
    let state = good.pull().await.expect("theta");
    let seen = Seen::by(&mut good, &state).await;
    let fault = "kill -9 of the server before the journal's write, before and after its sync, at any moment";
    let answer =
        "the connection breaks; after the restart no acknowledged push is lost, none counts twice";
    stands(34, fault, answer, seen);
}

#[tokio::test]
async fn row_35_sigterm_leaves_a_last_checkpoint() {
    let kept = Kept::new();
    let (server, address) = kept.server(&["--checkpoint-every=1h"]);
    let mut caller = Caller::joined(&address, 0, DIM).await;
    for _ in 0..5 {
        caller.step(&ONES).await.expect("a push");
    }
    let before = caller.pull().await.expect("theta");
    drop(caller);
    server.signal("TERM");
    server.expect_exit(0);
    let (_server, address) = kept.server(&["--checkpoint-every=1h"]);
    let mut caller = Caller::joined(&address, 0, DIM).await;
    let theta_unchanged = Some(caller.pull().await.expect("theta") == before);
    let seen = Seen { theta_unchanged, good_undisturbed: None };
    stands(35, "SIGTERM to a server with a directory", "a last checkpoint, exit 0", seen);
}

/// Pushes until one counts, or for so long; gives whether one did.
async fn eventually(caller: &mut Caller) -> bool {
    let end = Instant::now() + ps_tests::PATIENCE;
    while Instant::now() < end {
        if caller.step(&ONES).await.is_ok() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

#[tokio::test]
async fn row_39_a_full_disk_stops_checkpoints_and_what_needs_the_journal() {
    let kept = Kept::new();
    let (server, address) = kept.server(&["--checkpoint-every=100ms", "--keep=2"]);
    let mut good = Caller::joined(&address, 0, DIM).await;
    good.step(&ONES).await.expect("a push");
    wait_until("a checkpoint", || (kept.checkpoints().len() > 1).then_some(()));
    kept.shim.fail_writes(ENOSPC);
    // A checkpoint is due once theta has moved.
    let mut went_on = good.step(&ONES).await.is_ok();
    wait_until("the failure in the log", || {
        server.output().contains("No space left").then_some(())
    });
    let (old, bytes) = newest(&kept);
    for _ in 0..5 {
        went_on &= good.step(&ONES).await.is_ok();
    }
    let intact = std::fs::read(&old).expect("still there") == bytes;
    kept.shim.fail_writes(0);
    let last = counted(&mut good).await;
    wait_until("a checkpoint with room", || (version_of(&newest(&kept).0) >= last).then_some(()));
    let seen = Seen { theta_unchanged: Some(intact), good_undisturbed: Some(went_on) };
    let fault = "the disk is full at a checkpoint";
    let answer = "pushes go on, logged, the old checkpoint stays, tried again until there is room";
    stands(39, fault, answer, seen);

    let kept = Kept::new();
    let (_server, address) = kept.server(&["--durability=always", "--checkpoint-every=1h"]);
    let mut good = Caller::joined(&address, 0, DIM).await;
    good.step(&ONES).await.expect("a push");
    let before = good.pull().await.expect("theta");
    kept.shim.fail_writes(ENOSPC);
    let status = good.step(&ONES).await.expect_err("nothing can be recorded");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let theta_unchanged = Some(good.pull().await.expect("theta") == before);
    kept.shim.fail_writes(0);
    let good_undisturbed = Some(eventually(&mut good).await);
    assert_eq!(counted(&mut good).await, before.0 + 1, "once");
    let fault = "the disk is full at a record of the journal (--durability always)";
    let answer = format!("{}; counted once there is room", refusal(&status));
    stands(39, fault, &answer, Seen { theta_unchanged, good_undisturbed });
}

fn newest(kept: &Kept) -> (PathBuf, Vec<u8>) {
    // It may be removed between the two.
    wait_until("a checkpoint", || {
        let path = kept.checkpoints().pop()?;
        let bytes = std::fs::read(&path).ok()?;
        Some((path, bytes))
    })
}

fn version_of(checkpoint: &Path) -> u64 {
    let name = checkpoint.file_stem().and_then(|stem| stem.to_str()).expect("a name");
    name.trim_start_matches("checkpoint-").parse().expect("a version")
}

#[tokio::test]
async fn row_40_a_sync_that_failed_is_not_tried_again_on_its_file() {
    let kept = Kept::new();
    let always = ["--durability=always", "--checkpoint-every=1h"];
    let (server, address) = kept.server(&always);
    let mut good = Caller::joined(&address, 0, DIM).await;
    good.step(&ONES).await.expect("a push");
    let before = good.pull().await.expect("theta");
    kept.shim.fail_syncs(EIO);
    let status = good.step(&ONES).await.expect_err("nothing can be made durable");
    kept.shim.fail_syncs(0);
    // The very same push: it was recorded, and nobody was told that it is durable.
    let good_undisturbed = Some(eventually(&mut good).await);
    assert_eq!(good_undisturbed, Some(true), "{server:?}");
    let acknowledged = counted(&mut good).await;
    assert_eq!(acknowledged, before.0 + 1, "once");
    let journals = std::fs::read_dir(kept.folder()).expect("readable");
    let is_journal = |path: &Path| path.extension().is_some_and(|ending| ending == "psjl");
    let n_journals = journals.filter(|e| is_journal(&e.as_ref().expect("readable").path())).count();
    assert!(n_journals > 1, "the journal went on in the file whose sync failed: {server:?}");
    server.signal("KILL");
    server.wait();
    let (_server, address) = kept.server(&always);
    let mut again = Caller::joined(&address, 0, DIM).await;
    assert_eq!(counted(&mut again).await, acknowledged);
    let answer = format!("{}; sent again it counts once, in a new file", refusal(&status));
    let seen = Seen { theta_unchanged: None, good_undisturbed };
    stands(40, "EIO from a sync of the journal (--durability always)", &answer, seen);
}

#[tokio::test]
async fn row_41_a_damaged_checkpoint_is_put_aside_and_none_is_no_start() {
    let kept = Kept::new();
    let often = ["--durability=none"];
    let (server, address) = kept.server(&often);
    let mut caller = Caller::joined(&address, 0, DIM).await;
    let mut thetas = Vec::new();
    for _ in 0..3 {
        caller.step(&ONES).await.expect("a push");
        caller.operator.checkpoint(pb::CheckpointRequest {}).await.expect("a checkpoint");
        thetas.push(caller.pull().await.expect("theta"));
    }
    drop(caller);
    server.signal("KILL");
    server.wait();
    let (path, good) = newest(&kept);
    let mut damaged: Vec<(String, Vec<u8>)> = Vec::new();
    for part in 0..6 {
        let at = good.len() * part / 6;
        damaged.push((format!("cut at {at}"), good[..at].to_vec()));
        let mut flipped = good.clone();
        flipped[at] ^= 1 << part;
        damaged.push((format!("bit {part} of byte {at}"), flipped));
    }
    damaged.push(("zeros".to_owned(), vec![0; good.len()]));
    let mut same = true;
    for (what, bytes) in damaged {
        std::fs::write(&path, bytes).expect("damaged");
        let (server, address) = kept.server(&often);
        let mut caller = Caller::joined(&address, 0, DIM).await;
        same &= caller.pull().await.expect("theta") == thetas[1];
        wait_until(&format!("{what}: what is said of it"), || {
            let output = server.output();
            (output.contains("put aside") && output.contains("version 2")).then_some(())
        });
        drop(caller);
        server.signal("KILL");
        server.wait();
        let aside = path.with_extension("psck.refused");
        std::fs::remove_file(&aside).unwrap_or_else(|e| panic!("{what}: {aside:?}: {e}"));
    }
    assert!(same, "the generation before is used, to the bit");
    let seen = Seen { theta_unchanged: Some(same), good_undisturbed: None };
    let fault = "the newest checkpoint cut off, zeroed, or with a bit flipped, anywhere";
    stands(41, fault, "the one before is used and it is said; the damaged one is put aside", seen);

    for path in kept.checkpoints() {
        std::fs::write(&path, &good[..good.len() / 2]).expect("damaged");
    }
    let output = kept.refused(&often, 65);
    assert!(output.contains("checkpoint-"), "{output}");
    let fault = "no checkpoint that is not damaged";
    stands(41, fault, "exit 65, the files named; no start from zero", Seen::NOBODY);
}

/// CRC-32 (IEEE), as the format's description says.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

#[tokio::test]
async fn row_43_a_checkpoint_of_another_job_or_format_is_refused_with_both_values() {
    let kept = Kept::new();
    let (server, address) = kept.server(&[]);
    let mut caller = Caller::joined(&address, 0, DIM).await;
    caller.step(&ONES).await.expect("a push");
    caller.operator.checkpoint(pb::CheckpointRequest {}).await.expect("a checkpoint");
    server.signal("KILL");
    server.wait();
    for (flag, values) in [
        ("--dtype=f64", ["f32", "f64"]),
        ("--mode=sync", ["async", "sync"]),
        ("--optimizer=adam", ["sgd", "adam"]),
    ] {
        let output = kept.refused(&[flag], 78);
        assert!(values.iter().all(|value| output.contains(value)), "{flag}: {output}");
    }
    let (server, address) = kept.server(&[]);
    let mut other = Caller::connect(&address).await;
    let status = other.join(Caller::join_request(Some(1), DIM + 1)).await.expect_err("another dim");
    assert!(status.message().contains("[10]") && status.message().contains("[11]"), "{status:?}");
    server.signal("KILL");
    server.wait();
    let fault = "a checkpoint of another element type, mode or optimizer";
    stands(43, fault, "exit 78 with both values", Seen::NOBODY);
    let fault = "a worker whose tables are not those of the checkpoint";
    stands(43, fault, &format!("{} with both values", refusal(&status)), Seen::NOBODY);

    let (path, mut bytes) = newest(&kept);
    bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
    let crc = crc32(&bytes[..28]);
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(path, bytes).expect("written");
    let output = kept.refused(&[], 78);
    assert!(output.contains("format") && output.contains('2') && output.contains('1'), "{output}");
    stands(43, "a checkpoint of a later format", "exit 78 with both numbers", Seen::NOBODY);
}

#[tokio::test]
async fn row_44_a_directory_has_one_server() {
    let kept = Kept::new();
    let (first, address) = kept.server(&[]);
    let mut good = Caller::joined(&address, 0, DIM).await;
    good.step(&ONES).await.expect("a push");
    let before = good.pull().await.expect("theta");
    let output = kept.refused(&[], 75);
    assert!(output.contains(&kept.folder().display().to_string()), "{output}");
    let seen = Seen::by(&mut good, &before).await;
    first.signal("KILL");
    first.wait();
    let (_second, address) = kept.server(&[]);
    Caller::connect(&address).await.status().await.expect("kill -9 gives the directory free");
    stands(44, "a second server on one directory", "exit 75, the directory named", seen);
}

//! A server's life on a real disk, ended by kill -9 again and again.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::checkpoint::Compression;
use super::{Directory, Error, Journal, RealDisk, journal};

const JOB: u64 = 77;
const DIRECTORY: &str = "PS_TEST_STORAGE_DIRECTORY";

/// What stands for theta: a number that every update changes.
fn updated(theta: u64, version: u64) -> u64 {
    theta.wrapping_mul(31).wrapping_add(version)
}

/// theta of a version by itself.
fn theta_of(version: u64) -> u64 {
    (1..=version).fold(0, updated)
}

/// Opens what there is and gives the version and theta that it leads to.
fn resume(place: &Path) -> Result<(Directory, u64, u64), Error> {
    let directory = Directory::open(Arc::new(RealDisk), place, 2)?;
    let loaded = directory.load(|reader| {
        let mut theta = [0; 8];
        reader.next_section()?.expect("theta").fill(&mut theta)?;
        Ok(u64::from_le_bytes(theta))
    })?;
    let (from, mut theta) = loaded.map_or((0, 0), |loaded| {
        assert_eq!(loaded.refused, []);
        (loaded.version, loaded.value)
    });
    let recovered = journal::recover(&RealDisk, place, JOB, from, |version, payload| {
        assert_eq!(payload, version.to_le_bytes());
        theta = updated(theta, version);
        Ok(())
    })?;
    Ok((directory, recovered.version, theta))
}

/// Updates, and says each version on stdout once it is durable, without end.
fn live(place: &Path) -> Result<(), Error> {
    let (directory, mut version, mut theta) = resume(place)?;
    let journal = Journal::start(Arc::new(RealDisk), place, JOB, version)?;
    loop {
        let ticket = journal.append(version + 1, &[&(version + 1).to_le_bytes()])?;
        version += 1;
        theta = updated(theta, version);
        journal.wait(ticket)?;
        // A parent that is gone ends this, too.
        writeln!(std::io::stdout(), "durable {version}").map_err(Error::io("tell", place))?;
        if version.is_multiple_of(5) {
            journal.rotate()?;
            let saved = directory.save(version, Compression::Zstd, b"", |writer| {
                writer.section("theta", [theta.to_le_bytes()])
            })?;
            journal.remove_covered(saved.oldest_kept_version)?;
        }
    }
}

/// The child of the test below; by itself it has nothing to do.
#[test]
fn child_that_lives_until_it_is_killed() {
    if let Some(place) = std::env::var_os(DIRECTORY) {
        live(Path::new(&place)).expect("lives");
    }
}

#[test]
fn row_34_kill_9_at_any_moment_loses_nothing_that_was_said_to_be_durable() {
    let place = tempfile::tempdir().expect("temporary directory");
    let mut durable = 0;
    for n_lines in [1, 2, 3, 5, 7, 11, 13, 4, 6, 9] {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "storage::tests::child_that_lives_until_it_is_killed", "--nocapture"])
            .env(DIRECTORY, place.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut said = lines
            .map_while(Result::ok)
            .filter_map(|line| line.split_once("durable ")?.1.parse::<u64>().ok());
        let last = said.by_ref().take(n_lines).last().expect("it lives");
        child.kill().expect("killed");
        child.wait().expect("dead");
        // It may have said more before it died.
        durable = said.last().unwrap_or(last).max(durable);
        let (_, version, theta) = resume(place.path()).expect("unlocked and whole");
        assert!(version >= durable, "{version} is there, {durable} was durable");
        assert_eq!(theta, theta_of(version), "each update once");
    }
    assert!(durable >= 61, "{durable} updates in ten lives");
    let n_files = std::fs::read_dir(place.path()).expect("listed").count();
    assert!(n_files < 10, "{n_files} files are left");
}

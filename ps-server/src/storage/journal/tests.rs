//! The journal through every crash, every failed operation, every length and every flipped bit.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::layout::RECORD_HEADER_BYTES;
use super::*;
use crate::storage::disk::RealDisk;
use crate::storage::faulty::{Fault, FaultyDisk, Loss};
use ps_common::exit::Exit;

const PLACE: &str = "/ckpt";
const JOB: u64 = 0xfeed;

fn disk() -> FaultyDisk {
    FaultyDisk::new(Path::new(PLACE))
}

fn start(disk: &FaultyDisk, version: u64) -> Result<Journal, Error> {
    Journal::start(Arc::new(disk.clone()), Path::new(PLACE), JOB, version)
}

/// What the record of a version holds: longer than a sector for some, empty for others.
fn payload(version: u64) -> Vec<u8> {
    let n = [700, 40, 0, 1300][version as usize % 4];
    (0..n).map(|i: u64| (i * 3 + version * 29) as u8).collect()
}

fn append(journal: &Journal, version: u64) -> Result<Ticket, Error> {
    let bytes = payload(version);
    let (head, tail) = bytes.split_at(bytes.len() / 3);
    journal.append(version, &[head, &[], tail])
}

/// The versions after `version` that are found, their bytes checked.
fn recovered(disk: &FaultyDisk, version: u64) -> Result<(Vec<u64>, Recovered), Error> {
    let mut found = Vec::new();
    let recovered = recover(disk, Path::new(PLACE), JOB, version, |version, bytes| {
        assert_eq!(bytes, payload(version), "version {version} has other bytes");
        found.push(version);
        Ok(())
    })?;
    assert_eq!(recovered.n_records, found.len() as u64);
    assert_eq!(found, (version + 1..=recovered.version).collect::<Vec<_>>(), "in order, no gap");
    Ok((found, recovered))
}

fn segment(start: u64) -> PathBuf {
    path_of(Path::new(PLACE), start)
}

#[test]
fn records_come_back_in_order_over_segments_and_from_any_checkpoint() {
    let disk = disk();
    let journal = start(&disk, 10).expect("started");
    for version in 11..=14 {
        append(&journal, version).expect("appended");
    }
    assert_eq!(journal.rotate().expect("rotated"), 14);
    assert_eq!(journal.rotate().expect("nothing new"), 14);
    for version in 15..=16 {
        append(&journal, version).expect("appended");
    }
    journal.rotate().expect("rotated");
    let ticket = append(&journal, 17).expect("appended");
    assert_eq!(journal.versions(), (17, 16));
    journal.wait(ticket).expect("durable");
    assert_eq!((journal.versions(), ticket.version()), ((17, 17), 17));

    for from in 10..=17 {
        let (found, recovered) = recovered(&disk, from).expect("good");
        assert_eq!(found.len() as u64, 17 - from);
        assert_eq!(recovered.cut, None);
    }
    let size: u64 =
        [10, 14, 16].map(|s| disk.bytes(&segment(s)).expect("there").len() as u64).iter().sum();
    assert_eq!(journal.size_bytes(), size);
    assert!(journal.bytes_since_rotation() < size);
    let error = recovered(&disk, 9).expect_err("10 is missing");
    assert_eq!(error.exit(), Exit::BadData);
    assert!(error.to_string().contains("begins at version 10, the checkpoint is of 9"), "{error}");
}

#[test]
fn covered_segments_go_and_what_a_kept_checkpoint_needs_stays() {
    let disk = disk();
    let journal = start(&disk, 0).expect("started");
    for version in 1..=9 {
        append(&journal, version).expect("appended");
        if version % 3 == 0 {
            journal.rotate().expect("rotated");
        }
    }
    assert_eq!(journal.remove_covered(2).expect("no error"), 0, "2 needs the record of 3");
    assert_eq!(journal.remove_covered(6).expect("no error"), 2);
    assert_eq!((disk.bytes(&segment(3)), disk.bytes(&segment(6)).is_some()), (None, true));
    assert_eq!(recovered(&disk, 6).expect("good").0, [7, 8, 9]);
    assert_eq!(journal.remove_covered(100).expect("no error"), 1, "the present one stays");
    assert_eq!(recovered(&disk, 9).expect("good").0, [0; 0]);
}

#[test]
fn a_journal_goes_on_after_a_restart() {
    let disk = disk();
    let mut version = 0;
    for life in 0..4 {
        let (_, found) = recovered(&disk, 0).expect("good");
        assert_eq!(found.version, version, "life {life}");
        let journal = start(&disk, version).expect("started");
        // A life without a record leaves a segment whose name is wanted again.
        for _ in 0..[2, 0, 1, 3][life] {
            version += 1;
            journal.wait(append(&journal, version).expect("appended")).expect("durable");
        }
        drop(journal);
        disk.restart(Loss::Everything);
    }
    assert_eq!(recovered(&disk, 0).expect("good").1.version, 6);
    let error = start(&disk, 2).expect_err("4 records would be lost");
    assert_eq!(error.exit(), Exit::Config);
    let error = recover(&disk, Path::new(PLACE), 1, 0, |_, _| Ok(())).expect_err("another job's");
    assert!(matches!(error, Error::OtherJob { found: JOB, expected: 1, .. }), "{error}");
}

/// A segment of `n` records, each committed by itself if `commits`.
fn one_segment(n: u64, commits: bool) -> FaultyDisk {
    let disk = disk();
    let journal = start(&disk, 5).expect("started");
    for version in 6..6 + n {
        append(&journal, version).expect("appended");
        if commits {
            journal.commit().expect("durable");
        }
    }
    disk
}

/// Where each record begins, and the segment's end.
fn places(n: u64) -> Vec<usize> {
    let mut places = vec![SEGMENT_HEADER_BYTES];
    for version in 6..6 + n {
        places.push(places[places.len() - 1] + RECORD_HEADER_BYTES + payload(version).len());
    }
    places
}

#[test]
fn row_41_a_segment_cut_anywhere_gives_its_whole_records_and_says_the_cut() {
    let whole = one_segment(5, true);
    let bytes = whole.bytes(&segment(5)).expect("there");
    let places = places(5);
    assert_eq!(places[5], bytes.len());
    for length in 0..=bytes.len() {
        let disk = disk();
        let file = disk.create(&segment(5)).expect("created");
        file.write(&mut [IoSlice::new(&bytes[..length])]).expect("written");
        let (found, recovered_) = recovered(&disk, 5).expect("a torn end is no damage");
        let n_whole = places[1..].iter().filter(|end| **end <= length).count();
        assert_eq!(found.len(), n_whole, "cut to {length} bytes");
        let is_torn = !places.contains(&length);
        assert_eq!(recovered_.cut.is_some(), is_torn, "cut to {length} bytes");
        if let Some(cut) = recovered_.cut {
            assert_eq!((cut.path, cut.kept_bytes + cut.cut_bytes), (segment(5), length as u64));
        }
        // What was cut is gone, and the journal goes on.
        assert_eq!(recovered(&disk, 5).expect("good").1.cut, None);
        let next = 6 + n_whole as u64;
        let journal = start(&disk, next - 1).expect("started");
        append(&journal, next).expect("appended");
        journal.commit().expect("durable");
        assert_eq!(recovered(&disk, 5).expect("good").1.version, next);
    }
}

#[test]
fn row_41_a_flipped_bit_never_gives_a_wrong_record_and_is_refused_where_it_was_durable() {
    let disk = one_segment(5, true);
    let places = places(5);
    let mut n_refused = 0;
    for byte in 0..places[5] {
        // The last record has no later one that vouches for it: it may count as torn.
        let is_last = byte >= places[4];
        for bit in 0..8 {
            disk.flip(&segment(5), byte, bit);
            let mut found = 0;
            let bytes = disk.bytes(&segment(5)).expect("there");
            let read = replay(&segment(5), &bytes[..], 5, |version, bytes| {
                assert_eq!(bytes, payload(version));
                found += 1;
                Ok(())
            });
            match read {
                Ok(end) => {
                    assert!(is_last && found == 4 && end.torn.is_some(), "bit {bit} of {byte}");
                }
                Err(Error::Bad { path, offset, .. }) => {
                    n_refused += 1;
                    assert!(!is_last && path == segment(5), "bit {bit} of {byte}");
                    assert!(offset as usize <= byte, "bit {bit} of {byte} found at {offset}");
                }
                Err(error) => panic!("bit {bit} of byte {byte}: {error}"),
            }
            disk.flip(&segment(5), byte, bit);
        }
    }
    assert_eq!(n_refused, places[4] * 8);
}

#[test]
fn a_flipped_bit_in_what_was_never_durable_is_a_torn_end() {
    let disk = one_segment(3, false);
    let places = places(3);
    disk.flip(&segment(5), places[1] + 50, 1);
    let (found, recovered) = recovered(&disk, 5).expect("no one was told that these are durable");
    assert_eq!(found, [6]);
    let cut = recovered.cut.expect("said");
    assert_eq!((cut.kept_bytes, cut.cut_bytes), (places[1] as u64, (places[3] - places[1]) as u64));
}

#[test]
fn a_missing_segment_or_record_is_refused() {
    let disk = disk();
    let journal = start(&disk, 0).expect("started");
    for version in 1..=6 {
        append(&journal, version).expect("appended");
        if version % 2 == 0 {
            journal.rotate().expect("rotated");
        }
    }
    assert_eq!(recovered(&disk, 0).expect("good").1.version, 6);
    disk.remove(&segment(2)).expect("removed");
    let error = recovered(&disk, 0).expect_err("3 and 4 are missing");
    assert!(error.to_string().contains("records up to version 4 are missing"), "{error}");
    assert_eq!(recovered(&disk, 4).expect("nobody needs them").1.version, 6);
}

#[test]
fn a_newer_format_is_not_damage() {
    let mut header = segment_header(JOB, 5);
    header[8] = 2;
    let crc = crc32fast::hash(&header[..36]);
    header[36..].copy_from_slice(&crc.to_le_bytes());
    let error = replay(&segment(5), &header[..], 5, |_, _| Ok(())).expect_err("format 2");
    assert!(matches!(error, Error::NewerFormat { found: 2, .. }) && error.exit() == Exit::Config);
}

#[test]
fn a_record_that_claims_much_costs_little() {
    for claimed in [u64::MAX, 1 << 60, 1 << 40] {
        let mut header = RecordHeader::of(6, &[]);
        header.bytes = claimed;
        let mut bytes = segment_header(JOB, 5).to_vec();
        bytes.extend(header.bytes(5, bytes.len() as u64));
        bytes.extend([0; 100]);
        let end = replay(&segment(5), &bytes[..], 5, |_, _| Ok(())).expect("torn");
        assert_eq!((end.version, end.good_bytes), (5, SEGMENT_HEADER_BYTES as u64));
    }
}

proptest! {
    #[test]
    fn garbage_gives_no_record(
        garbage in proptest::collection::vec(any::<u8>(), 0..3000), headed in any::<bool>(),
    ) {
        let mut bytes = if headed { segment_header(JOB, 5).to_vec() } else { Vec::new() };
        bytes.extend(garbage);
        let mut n_records = 0;
        let _ = replay(&segment(5), &bytes[..], 5, |_, _| {
            n_records += 1;
            Ok(())
        });
        prop_assert_eq!(n_records, 0);
    }
}

/// What was said of each version before the power failed.
#[derive(Default)]
struct Said {
    checkpoint: u64,
    durable: u64,
    appended: u64,
}

/// A server's life in small: records, commits, a rotation with each checkpoint. Checkpoints are
/// taken for granted: `checkpoint` is what a restart would begin from.
fn live_until_dark(disk: &FaultyDisk, from: u64) -> Said {
    let mut said = Said { checkpoint: 0, durable: from, appended: from };
    let Ok(journal) = start(disk, from) else { return said };
    let _: Result<(), Error> = (|| {
        for version in from + 1..=from + 12 {
            // Even a failed append may be found: the crash may have come after the write.
            said.appended = version;
            let ticket = append(&journal, version)?;
            if version % 2 == 0 {
                journal.wait(ticket)?;
                said.durable = version;
            }
            if version % 5 == 0 {
                let rotated = journal.rotate()?;
                said.durable = version;
                said.checkpoint = rotated;
            }
            if version % 7 == 0 {
                journal.remove_covered(said.checkpoint)?;
            }
        }
        said.durable = journal.close()?;
        Ok(())
    })();
    said
}

#[test]
fn row_34_after_a_crash_at_any_operation_every_durable_record_is_found() {
    let n_operations = {
        let disk = disk();
        assert_eq!(live_until_dark(&disk, 0).durable, 12);
        disk.n_operations()
    };
    assert!(n_operations > 30, "only {n_operations} operations");
    let losses = [Loss::Everything, Loss::Nothing].into_iter().chain((0..60).map(Loss::Some));
    let (mut n_crashes, mut n_cuts) = (0, 0);
    for loss in losses {
        for crash_at in 0..=n_operations {
            let disk = disk();
            disk.order(crash_at, Fault::Crash);
            let first = live_until_dark(&disk, 0);
            disk.restart(loss);
            let what = format!("crash at {crash_at}, {loss:?}");
            let (_, found) =
                recovered(&disk, first.checkpoint).unwrap_or_else(|e| panic!("{what}: {e}"));
            let durable = first.durable.max(first.checkpoint);
            assert!(found.version >= durable, "{what}: {} < {durable}", found.version);
            assert!(found.version <= first.appended, "{what}");
            n_cuts += u64::from(found.cut.is_some());
            // A second life, and a second crash somewhere in it.
            disk.order(disk.n_operations() + crash_at % 17, Fault::Crash);
            let second = live_until_dark(&disk, found.version);
            disk.restart(loss);
            let checkpoint = first.checkpoint.max(second.checkpoint);
            let (_, again) = recovered(&disk, checkpoint).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(again.version >= second.durable, "{what}, second life");
            n_crashes += 2;
        }
    }
    assert!(n_cuts > 100, "only {n_cuts} torn ends");
    println!("{n_crashes} crashes, {n_cuts} torn ends");
}

#[test]
fn row_39_a_full_disk_refuses_the_record_and_takes_it_later() {
    let disk = disk();
    let journal = start(&disk, 0).expect("started");
    append(&journal, 1).expect("appended");
    disk.limit_free_bytes(Some(100));
    append(&journal, 2).expect("a small one fits");
    for _ in 0..3 {
        let error = append(&journal, 3).expect_err("full");
        assert!(error.is_no_space() && error.exit() == Exit::Io, "{error}");
        disk.limit_free_bytes(Some(60));
    }
    assert_eq!(journal.versions().0, 2);
    disk.limit_free_bytes(None);
    journal.wait(append(&journal, 3).expect("there is space")).expect("durable");
    disk.restart(Loss::Everything);
    let (_, found) = recovered(&disk, 0).expect("good");
    assert_eq!((found.version, found.cut), (3, None));
}

#[test]
fn row_40_after_a_failed_sync_nothing_is_durable_until_a_checkpoint_replaces_it() {
    let disk = disk();
    let journal = start(&disk, 0).expect("started");
    journal.wait(append(&journal, 1).expect("appended")).expect("durable");
    let told = Arc::new(Mutex::new(Vec::new()));
    let ticket = append(&journal, 2).expect("appended");
    let teller = told.clone();
    journal.on_durable(ticket, move |outcome| teller.lock().push(outcome.is_ok()));
    disk.order(disk.n_operations(), Fault::Io);
    let error = journal.wait(ticket).expect_err("not durable");
    assert_eq!(error.exit(), Exit::Io);
    assert!(error.to_string().contains("journal-00000000000000000000.psjl"), "{error}");
    assert!(
        journal.wait(ticket).is_err() && journal.commit().is_err() && journal.rotate().is_err()
    );
    assert!(append(&journal, 3).is_err(), "nothing comes after a hole");
    assert_eq!(*told.lock(), [false]);

    // The checkpoint of 2 is durable now.
    journal.restart(2).expect("a new file");
    journal.wait(ticket).expect("the checkpoint has it");
    journal.wait(append(&journal, 3).expect("appended")).expect("durable");
    disk.restart(Loss::Everything);
    assert_eq!(recovered(&disk, 2).expect("good").0, [3]);
    let error = recovered(&disk, 1).expect_err("2 is in the checkpoint only");
    assert!(error.to_string().contains("records up to version 2 are missing"), "{error}");
}

#[test]
fn row_40_a_record_that_failed_does_not_come_back_beside_its_successor() {
    let disk = disk();
    let journal = start(&disk, 0).expect("started");
    append(&journal, 1).expect("appended");
    journal.commit().expect("durable");
    // Written, not synced, but on the disk all the same.
    append(&journal, 2).expect("appended");
    append(&journal, 3).expect("appended");
    disk.order(disk.n_operations(), Fault::Io);
    journal.commit().expect_err("ordered");
    journal.restart(3).expect("a new file");
    journal.wait(append(&journal, 4).expect("appended")).expect("durable");
    assert_eq!(recovered(&disk, 0).expect("each once").0, [1, 2, 3, 4]);
}

#[test]
fn half_a_record_or_segment_that_cannot_be_taken_back_ends_the_journal() {
    // A record: the write and then the cut fail.
    let disk = disk();
    let journal = start(&disk, 0).expect("started");
    append(&journal, 1).expect("appended");
    let begun = disk.n_operations();
    (0..2).for_each(|n| disk.order(begun + n, Fault::NoSpace));
    assert!(append(&journal, 2).expect_err("full").is_no_space());
    let failed = append(&journal, 2).expect_err("nothing may follow half a record");
    assert!(matches!(failed, Error::JournalFailed { .. }), "{failed}");
    journal.restart(1).expect("a new file");
    // A segment: its sync and then its removal fail. Its name would hide what comes after it.
    append(&journal, 2).expect("appended");
    journal.commit().expect("durable");
    let begun = disk.n_operations();
    (2..4).for_each(|n| disk.order(begun + n, Fault::Io));
    journal.rotate().expect_err("ordered");
    let failed = append(&journal, 3).expect_err("it would not count");
    assert!(matches!(failed, Error::JournalFailed { .. }), "{failed}");
    journal.restart(2).expect("the name is free again");
    journal.wait(append(&journal, 3).expect("appended")).expect("durable");
    disk.restart(Loss::Everything);
    assert_eq!(recovered(&disk, 2).expect("good").0, [3]);
}

#[test]
fn a_record_whose_place_a_checkpoint_took_does_not_count_beside_its_successor() {
    // 3 failed, though all of it reached the disk; the checkpoint of 2 took over, and 3 came anew.
    let disk = disk();
    let journal = start(&disk, 0).expect("started");
    (1..=3).for_each(|version| {
        journal.append(version, &[b"old"]).expect("appended");
    });
    journal.commit().expect("durable");
    let elsewhere = FaultyDisk::new(Path::new(PLACE));
    let journal = start(&elsewhere, 2).expect("started");
    (3..=4).for_each(|version| {
        journal.append(version, &[b"new"]).expect("appended");
    });
    let file = disk.create(&segment(2)).expect("created");
    let bytes = elsewhere.bytes(&segment(2)).expect("there");
    file.write(&mut [IoSlice::new(&bytes)]).expect("written");
    let mut found = Vec::new();
    let recovered = recover(&disk, Path::new(PLACE), JOB, 0, |version, bytes| {
        found.push((version, bytes.to_vec()));
        Ok(())
    });
    assert_eq!(recovered.expect("good").version, 4);
    let expected = [(1, b"old"), (2, b"old"), (3, b"new"), (4, b"new")];
    assert_eq!(found, expected.map(|(version, bytes)| (version, bytes.to_vec())));
}

#[test]
fn row_39_40_any_operation_may_fail_and_what_was_said_to_be_durable_is() {
    for fault in [Fault::NoSpace, Fault::Io] {
        for n_before in 0.. {
            let disk = disk();
            let journal = start(&disk, 0).expect("started");
            let begun = disk.n_operations();
            disk.order(begun + n_before, fault);
            let (mut version, mut checkpoint) = (0, 0);
            for step in 0..20 {
                let next = append(&journal, version + 1).and_then(|ticket| {
                    version += 1;
                    journal.wait(ticket)
                });
                let rotated = if step % 5 == 4 { journal.rotate() } else { Ok(0) };
                checkpoint = rotated.as_ref().map_or(checkpoint, |v| checkpoint.max(*v));
                let has_failed =
                    matches!(next, Err(Error::JournalFailed { .. })) || journal.commit().is_err();
                if has_failed {
                    // As the server does: a checkpoint of what there is, then a new file.
                    checkpoint = version;
                    journal.restart(version).expect("only one operation fails");
                }
            }
            assert!(version >= 18, "{fault:?} after {n_before}: only {version}");
            assert_eq!(journal.versions(), (version, version));
            let n_operations = disk.n_operations();
            disk.restart(Loss::Everything);
            let (_, found) = recovered(&disk, checkpoint)
                .unwrap_or_else(|e| panic!("{fault:?} after {n_before}: {e}"));
            assert_eq!((found.version, found.cut), (version, None), "{fault:?} after {n_before}");
            if n_operations <= begun + n_before {
                assert!(n_before > 40, "only {n_before} operations");
                break;
            }
        }
    }
}

#[test]
fn many_threads_share_commits_and_all_is_found() {
    let place = tempfile::tempdir().expect("temporary directory");
    let open = |version| Journal::start(Arc::new(RealDisk), place.path(), JOB, version);
    let journal = Arc::new(open(0).expect("started"));
    let next = Arc::new(Mutex::new(0_u64));
    let told = Arc::new(Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        let committer = scope.spawn(|| journal.commit_until_closed());
        let appenders: Vec<_> = (0..8)
            .map(|number| {
                let (journal, next, told) = (journal.clone(), next.clone(), told.clone());
                scope.spawn(move || {
                    for step in 0..25 {
                        let ticket = {
                            let mut next = next.lock();
                            *next += 1;
                            append(&journal, *next).expect("appended")
                        };
                        if (number + step) % 2 == 0 {
                            journal.wait(ticket).expect("durable");
                            assert!(journal.versions().1 >= ticket.version());
                        }
                        let told = told.clone();
                        journal.on_durable(ticket, move |outcome| {
                            told.lock().insert(ticket.version(), outcome.is_ok());
                        });
                        if number == 0 && step % 10 == 5 {
                            let _alone = next.lock();
                            journal.rotate().expect("rotated");
                        }
                    }
                })
            })
            .collect();
        appenders.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert_eq!(journal.close().expect("durable"), 200);
        committer.join().expect("no panic");
    });
    let told = told.lock();
    assert!(told.len() == 200 && told.values().all(|ok| *ok), "{} were told", told.len());
    let mut found = 0;
    let all = recover(&RealDisk, place.path(), JOB, 0, |version, bytes| {
        found += 1;
        assert_eq!((version, bytes), (found, &payload(version)[..]));
        Ok(())
    });
    assert_eq!(all.expect("good").version, 200);
    assert!(journal.n_commits() < 210, "{} commits for 200 records", journal.n_commits());
}

/// Prints what the journal costs on this disk: `cargo test -p ps-server --lib -- --ignored
/// --nocapture measure_the_journal`.
#[test]
#[ignore = "measures, and decides nothing"]
fn measure_the_journal() {
    for (bytes, n_threads, n) in
        [(400, 1, 400_u64), (400, 8, 3200), (4 << 20, 1, 60), (4 << 20, 4, 120), (100 << 20, 1, 6)]
    {
        let place = tempfile::tempdir_in(".").expect("temporary directory");
        let journal = Journal::start(Arc::new(RealDisk), place.path(), JOB, 0).expect("started");
        let data = vec![7; bytes];
        let chunks: Vec<&[u8]> = data.chunks(1 << 18).collect();
        let next = Mutex::new(0_u64);
        let begun = std::time::Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..n_threads {
                scope.spawn(|| {
                    loop {
                        let ticket = {
                            let mut next = next.lock();
                            if *next == n {
                                return;
                            }
                            *next += 1;
                            journal.append(*next, &chunks).expect("appended")
                        };
                        journal.wait(ticket).expect("durable");
                    }
                });
            }
        });
        let seconds = begun.elapsed().as_secs_f64();
        println!(
            "{bytes} bytes a record, {n_threads} threads: {:.0} records/s, {:.0} commits/s, {:.0} MB/s",
            n as f64 / seconds,
            journal.n_commits() as f64 / seconds,
            (n as usize * bytes) as f64 / seconds / 1e6
        );
    }
}

//! A directory through every crash, every failure of the disk, and all that may lie in it.

use super::*;
use crate::storage::disk::{Entry, RealDisk};
use crate::storage::faulty::{Fault, FaultyDisk, Loss};
use ps_common::exit::Exit;
use ps_tests::rows::{Seen, stands};

pub(super) const PLACE: &str = "/ckpt";
const JOB: &[u8] = b"job";

pub(super) fn open(disk: &FaultyDisk, keep: usize) -> Result<Directory, Error> {
    Directory::open(Arc::new(disk.clone()), Path::new(PLACE), keep)
}

pub(super) fn disk() -> FaultyDisk {
    FaultyDisk::new(Path::new(PLACE))
}

/// theta of a version: longer than a sector, different in each.
fn theta(version: u64) -> Vec<u8> {
    (0..1500_u64).map(|i| (i * 7 + version * 13) as u8).collect()
}

fn save(directory: &Directory, version: u64) -> Result<Saved, Error> {
    let parts = theta(version);
    directory
        .save(version, Compression::Zstd, JOB, |writer| writer.section("theta", parts.chunks(100)))
}

/// What the newest good one holds, checked against its version.
fn load(directory: &Directory) -> Result<Option<Loaded<()>>, Error> {
    directory.load(|reader| {
        let version = reader.version();
        let mut section = reader.next_section()?.expect("theta");
        let bytes = section.read_all(1 << 20)?;
        assert_eq!(bytes, theta(version), "version {version} has other bytes");
        Ok(())
    })
}

pub(super) fn names(disk: &FaultyDisk) -> Vec<String> {
    let entries = disk.list(Path::new(PLACE)).expect("listed");
    entries.into_iter().map(|entry| entry.name).collect()
}

fn path_of(version: u64) -> PathBuf {
    Path::new(PLACE).join(format!("checkpoint-{version:020}.psck"))
}

#[test]
fn the_newest_are_kept_and_the_newest_is_loaded() {
    let disk = disk();
    let directory = open(&disk, 3).expect("opened");
    assert!(load(&directory).expect("no error").is_none(), "an empty directory");
    for version in [0, 5, 10, 1234, 2000] {
        let saved = save(&directory, version).expect("saved");
        assert_eq!(saved.path, path_of(version));
        assert!(saved.not_deleted.is_empty());
        assert_eq!(saved.bytes, disk.bytes(&saved.path).expect("there").len() as u64);
    }
    assert_eq!(directory.versions().expect("listed"), [2000, 1234, 10]);
    assert_eq!(names(&disk)[0], "checkpoint-00000000000000000010.psck");
    assert_eq!(save(&directory, 2000).expect("again").oldest_kept_version, 10);
    let loaded = load(&directory).expect("good").expect("there");
    assert_eq!((loaded.version, loaded.refused), (2000, vec![]));
}

#[test]
fn fewer_than_two_are_never_kept() {
    let disk = disk();
    let directory = open(&disk, 0).expect("opened");
    let oldest: Vec<u64> =
        (1..=4).map(|v| save(&directory, v).expect("saved").oldest_kept_version).collect();
    assert_eq!(oldest, [1, 1, 2, 3]);
    assert_eq!(directory.versions().expect("listed"), [4, 3]);
}

#[test]
fn row_44_a_second_server_is_told_to_try_later() {
    let disk = disk();
    let first = open(&disk, 2).expect("opened");
    let error = open(&disk, 2).expect_err("locked");
    assert_eq!(error.exit(), Exit::TryLater);
    assert!(error.to_string().starts_with("/ckpt/LOCK: locked by another server"), "{error}");
    drop(first);
    open(&disk, 2).expect("free again");

    let place = tempfile::tempdir().expect("temporary directory");
    let real = || Directory::open(Arc::new(RealDisk), place.path(), 2);
    let first = real().expect("opened");
    assert_eq!(real().expect_err("locked").exit(), Exit::TryLater);
    drop(first);
    let directory = real().expect("free again");
    save(&directory, 7).expect("saved");
    assert_eq!(load(&directory).expect("good").expect("there").version, 7);
    let mut left: Vec<Entry> = RealDisk.list(place.path()).expect("listed");
    left.sort_by(|a, b| a.name.cmp(&b.name));
    let left: Vec<_> = left.iter().map(|entry| &entry.name[..]).collect();
    assert_eq!(left, ["LOCK", "checkpoint-00000000000000000007.psck"]);
}

#[test]
fn row_45_a_missing_or_read_only_directory_is_named() {
    let place = tempfile::tempdir().expect("temporary directory");
    let missing = place.path().join("missing");
    let file = place.path().join("file");
    std::fs::write(&file, b"").expect("written");
    for path in [&missing, &file] {
        let error = Directory::open(Arc::new(RealDisk), path, 2).expect_err("no directory");
        assert_eq!(error.exit(), Exit::CannotCreate);
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
    // The lock file may exist already and open: then the probe finds it out.
    for n_before in [0, 1] {
        let disk = disk();
        disk.order(n_before, Fault::ReadOnly);
        let error = open(&disk, 2).expect_err("read-only");
        assert_eq!(error.exit(), Exit::CannotCreate, "after {n_before}: {error}");
    }
}

#[test]
fn leftovers_are_cleared_at_open_and_strangers_stay() {
    let disk = disk();
    let aside = format!("checkpoint-{:020}.psck.tmp", 9);
    let strangers = ["notes.tmp", "checkpoint-9.psck", "checkpoint-0000000000000000000x.psck"];
    for name in strangers.iter().copied().chain([&aside[..], "boot.tmp", "probe.tmp"]) {
        disk.create(&Path::new(PLACE).join(name)).expect("created");
    }
    let directory = open(&disk, 2).expect("opened");
    let mut expected: Vec<&str> = strangers.to_vec();
    expected.sort_unstable();
    assert_eq!(names(&disk), expected);
    assert!(directory.versions().expect("listed").is_empty(), "strangers are no checkpoints");
}

#[test]
fn row_41_damaged_ones_are_refused_by_name_put_aside_and_the_one_before_is_used() {
    let disk = disk();
    {
        let directory = open(&disk, 4).expect("opened");
        (1..=4).for_each(|version| drop(save(&directory, version).expect("saved")));
    }
    disk.flip(&path_of(4), 60, 3);
    disk.cut(&path_of(3), 77).expect("cut");
    let directory = open(&disk, 2).expect("opened");
    let loaded = load(&directory).expect("one is good").expect("there");
    assert_eq!(loaded.version, 2);
    let refused: Vec<u64> = loaded.refused.iter().map(|one| one.version).collect();
    assert_eq!(refused, [4, 3]);
    for one in &loaded.refused {
        assert!(one.reason.contains(&one.path.display().to_string()), "{}", one.reason);
    }
    assert_eq!(directory.versions().expect("listed"), [2, 1]);
    assert!(names(&disk).iter().any(|name| name.ends_with("4.psck.refused")));

    // The job goes on from 2, and may reach the refused versions again.
    save(&directory, 3).expect("saved");
    assert!(names(&disk).iter().any(|name| name.ends_with("3.psck.refused")), "still evidence");
    assert_eq!(directory.versions().expect("listed"), [3, 2], "2 of them, both known as good");
    save(&directory, 5).expect("saved");
    save(&directory, 6).expect("saved");
    assert_eq!(
        names(&disk),
        [5, 6].map(|version| format!("checkpoint-{version:020}.psck")),
        "what was refused goes when it is older than all that is kept"
    );
}

#[test]
fn row_41_none_good_is_said_and_changes_nothing() {
    let disk = disk();
    {
        let directory = open(&disk, 2).expect("opened");
        (1..=2).for_each(|version| drop(save(&directory, version).expect("saved")));
    }
    (1..=2).for_each(|version| disk.flip(&path_of(version), 200, 0));
    let before = names(&disk);
    let directory = open(&disk, 2).expect("opened");
    let error = load(&directory).expect_err("none is good");
    assert_eq!(error.exit(), Exit::BadData);
    let text = error.to_string();
    assert!(text.contains("2.psck: bad at byte") && text.contains("1.psck: bad at byte"), "{text}");
    assert_eq!(names(&disk), before);
}

#[test]
fn row_41_unread_ones_do_not_count_as_kept() {
    let disk = disk();
    {
        let directory = open(&disk, 4).expect("opened");
        (1..=4).for_each(|version| drop(save(&directory, version).expect("saved")));
    }
    // 3 rots unnoticed: 4 is loaded, so nobody looks.
    disk.flip(&path_of(3), 60, 3);
    let directory = open(&disk, 2).expect("opened");
    assert_eq!(load(&directory).expect("good").expect("there").version, 4);
    save(&directory, 5).expect("saved");
    assert_eq!(directory.versions().expect("listed"), [5, 4]);
    // Without a load nothing on the disk is known to be good, so nothing is deleted for long.
    drop(directory);
    let directory = open(&disk, 2).expect("opened");
    assert_eq!(save(&directory, 6).expect("saved").oldest_kept_version, 4);
    assert_eq!(directory.versions().expect("listed"), [6, 5, 4]);
    save(&directory, 7).expect("saved");
    assert_eq!(directory.versions().expect("listed"), [7, 6]);
}

#[test]
fn row_43_a_mismatch_or_newer_format_ends_the_search() {
    let disk = disk();
    let directory = open(&disk, 2).expect("opened");
    (1..=2).for_each(|version| drop(save(&directory, version).expect("saved")));
    let mut n_tried = 0;
    let error = directory
        .load(|reader| -> Result<(), Error> {
            n_tried += 1;
            assert_eq!(reader.job(), JOB);
            Err(reader.mismatch("dim is 10 there and 7 here"))
        })
        .expect_err("another job's");
    assert_eq!((n_tried, error.exit()), (1, Exit::Config));
    assert!(error.to_string().contains("2.psck: does not fit this job: dim is 10"), "{error}");
    assert_eq!(directory.versions().expect("listed"), [2, 1]);
}

#[test]
fn a_checkpoint_under_another_name_is_refused() {
    let disk = disk();
    let directory = open(&disk, 2).expect("opened");
    save(&directory, 1).expect("saved");
    disk.rename(&path_of(1), &path_of(8)).expect("renamed");
    let error = load(&directory).expect_err("version 1 is not 8");
    assert!(error.to_string().contains("of version 1, its name says otherwise"), "{error}");
}

#[test]
fn an_earlier_job_is_in_the_way_and_stays() {
    let disk = disk();
    let directory = open(&disk, 2).expect("opened");
    save(&directory, 1000).expect("saved");
    let error = save(&directory, 0).expect_err("it would be deleted as the older one");
    assert_eq!(error.exit(), Exit::Config);
    assert!(error.to_string().contains("01000.psck: is in the way of version 0"), "{error}");
    assert_eq!(directory.versions().expect("listed"), [1000]);
}

#[test]
fn row_39_40_a_failed_save_leaves_what_was_and_the_next_one_is_a_new_file() {
    for fault in [Fault::NoSpace, Fault::Io] {
        let mut n_failed = 0;
        for n_before in 0.. {
            let disk = disk();
            let directory = open(&disk, 2).expect("opened");
            (1..=2).for_each(|version| drop(save(&directory, version).expect("saved")));
            let begun = disk.n_operations();
            disk.order(begun + n_before, fault);
            let failed = save(&directory, 3);
            if disk.n_operations() <= begun + n_before {
                break;
            }
            let loaded = load(&directory).expect("good").expect("there");
            match failed {
                Err(error) => {
                    n_failed += 1;
                    assert_eq!(error.exit(), Exit::Io, "{error}");
                    assert_eq!(error.is_no_space(), fault == Fault::NoSpace, "{error}");
                    assert!(loaded.version >= 2);
                    assert!(directory.versions().expect("listed").contains(&2));
                }
                // Only the cleaning up before or after it failed.
                Ok(_) => assert_eq!(loaded.version, 3),
            }
            assert_eq!(loaded.refused, []);
            save(&directory, 4).expect("the next one works");
            disk.restart(Loss::Everything);
            let directory = open(&disk, 2).expect("opened");
            assert_eq!(load(&directory).expect("good").expect("there").version, 4);
        }
        assert!(n_failed > 5, "only {n_failed} saves failed");
    }
}

#[test]
fn row_39_a_full_disk_is_said_as_such() {
    let disk = disk();
    let directory = open(&disk, 2).expect("opened");
    save(&directory, 1).expect("saved");
    disk.limit_free_bytes(Some(100));
    let error = save(&directory, 2).expect_err("full");
    assert!(error.is_no_space(), "{error}");
    assert_eq!(names(&disk).len(), 1, "nothing half is left: {:?}", names(&disk));
    disk.limit_free_bytes(None);
    save(&directory, 2).expect("saved");
}

/// Saves 1, 2, 3, ... until the power fails; gives the last one that was reported durable.
fn save_until_dark(disk: &FaultyDisk, n_saves: u64) -> u64 {
    let Ok(directory) = open(disk, 2) else { return 0 };
    (1..=n_saves).take_while(|version| save(&directory, *version).is_ok()).last().unwrap_or(0)
}

#[test]
fn row_42_after_a_crash_at_any_operation_the_last_durable_one_or_a_newer_is_loaded() {
    let n_operations = {
        let disk = disk();
        assert_eq!(save_until_dark(&disk, 4), 4);
        disk.n_operations()
    };
    assert!(n_operations > 40, "only {n_operations} operations");
    let losses = [Loss::Everything, Loss::Nothing].into_iter().chain((0..40).map(Loss::Some));
    let mut n_crashes = 0;
    for loss in losses {
        for crash_at in 0..=n_operations {
            let disk = disk();
            disk.order(crash_at, Fault::Crash);
            let durable = save_until_dark(&disk, 4);
            disk.restart(loss);
            let directory = open(&disk, 2).expect("the lock is free after a crash");
            let loaded = load(&directory).unwrap_or_else(|error| {
                panic!("crash at {crash_at}, {loss:?}, durable {durable}: {error}")
            });
            let (version, refused) =
                loaded.map_or((0, vec![]), |loaded| (loaded.version, loaded.refused));
            assert!(version >= durable, "crash at {crash_at}, {loss:?}: {version} < {durable}");
            assert_eq!(refused, [], "crash at {crash_at}, {loss:?}");
            assert!(!names(&disk).iter().any(|name| name.ends_with(".tmp")), "leftovers");
            save(&directory, 9).expect("it goes on");
            n_crashes += 1;
        }
    }
    println!("{n_crashes} crashes");
    // `load` has compared the bytes with those of its version.
    let seen = Seen { theta_unchanged: Some(n_crashes > 0), good_undisturbed: None };
    let fault = "the power fails at any operation of a save; files and names not synced are lost";
    stands(42, fault, "the last durable checkpoint is loaded, or a newer one", seen);
}

/// A disk that says it has synced names, and has not: the bug of row 42.
#[derive(Debug)]
pub(super) struct ForgetsDirectories(pub(super) FaultyDisk);

impl Disk for ForgetsDirectories {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn OutputFile>> {
        self.0.create(path)
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        self.0.open(path)
    }
    fn cut(&self, path: &Path, bytes: u64) -> io::Result<()> {
        self.0.cut(path, bytes)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        self.0.list(directory)
    }
    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        self.0.try_lock(path)
    }
}

#[test]
fn row_42_the_faulty_disk_would_notice_a_directory_that_is_not_synced() {
    let disk = disk();
    let careless = Arc::new(ForgetsDirectories(disk.clone()));
    let directory = Directory::open(careless, Path::new(PLACE), 2).expect("opened");
    save(&directory, 1).expect("reported durable");
    disk.restart(Loss::Everything);
    let directory = open(&disk, 2).expect("opened");
    assert!(load(&directory).expect("no error").is_none(), "the name survived unsynced");
}

/// Prints what a save and a load cost on this disk: `cargo test -p ps-server --lib -- --ignored
/// --nocapture measure_a_save`.
#[test]
#[ignore = "measures, and decides nothing"]
fn measure_a_save() {
    let place = tempfile::tempdir_in(".").expect("temporary directory");
    let directory = Directory::open(Arc::new(RealDisk), place.path(), 2).expect("opened");
    let theta: Vec<u8> = (0..25_000_000_u32)
        .flat_map(|i| {
            (f32::from_bits(0x3c00_0000 | i.wrapping_mul(2_654_435_761) >> 8)).to_le_bytes()
        })
        .collect();
    for version in 1..=4 {
        let compression = if version % 2 == 0 { Compression::None } else { Compression::Zstd };
        let begun = std::time::Instant::now();
        let saved = directory
            .save(version, compression, JOB, |writer| {
                writer.section("theta", theta.chunks(1 << 18))
            })
            .expect("saved");
        let seconds = begun.elapsed().as_secs_f64();
        let begun = std::time::Instant::now();
        let mut read = vec![0; theta.len()];
        directory
            .load(|reader| reader.next_section()?.expect("theta").fill(&mut read))
            .expect("good");
        assert!(read == theta);
        println!(
            "{compression:?}: {} bytes, saved in {seconds:.3} s, loaded in {:.3} s",
            saved.bytes,
            begun.elapsed().as_secs_f64()
        );
    }
}

#[test]
fn a_chosen_checkpoint_is_the_one_that_is_loaded_and_newer_ones_never_are_again() {
    let disk = disk();
    let directory = open(&disk, 3).expect("opened");
    for version in [1, 2, 3, 4] {
        save(&directory, version).expect("saved");
    }
    let heads = directory.heads().expect("read");
    assert_eq!(heads, [4, 3, 2].map(|version| (version, JOB.to_vec())));
    let load_chosen = |version| directory.load_chosen(version, |reader| Ok(reader.version()));
    let missing = load_chosen(7).expect_err("there is no such file");
    assert!(matches!(missing, Error::Io { .. }), "{missing}");
    let bad = directory.load_chosen(2, |reader| Err::<(), _>(reader.refusal("no")));
    assert!(matches!(bad, Err(Error::Bad { .. })), "{bad:?}");
    assert_eq!(directory.versions().expect("listed"), [4, 3, 2], "nothing was put aside");

    let loaded = load_chosen(3).expect("good");
    assert_eq!((loaded.version, loaded.value), (3, 3));
    assert_eq!(load(&directory).expect("good").expect("there").version, 3);
    assert!(names(&disk).contains(&"checkpoint-00000000000000000004.psck.undone".to_owned()));
    // What did not happen is not in the way of what happens, and goes when it is old.
    for version in [4, 5, 6, 7] {
        save(&directory, version).expect("saved");
    }
    assert!(!names(&disk).iter().any(|name| name.ends_with(".undone")), "{:?}", names(&disk));

    directory.undo_after(None).expect("renamed");
    assert!(load(&directory).expect("no error").is_none(), "nothing to go back to");
}

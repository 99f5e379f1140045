//! A disk in memory that fails, tears and forgets on demand: for tests and simulation.
//!
//! It keeps two states of everything: what programs see, and what would be found after a power
//! cut. A write moves only the first, [`OutputFile::sync`] carries a file's bytes over,
//! [`Disk::sync_directory`] the names. After a failed sync the bytes count as written though they
//! are lost, as with Linux's page cache: a second sync on that file succeeds and means nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Cursor, IoSlice, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{Disk, Entry, Lock, OutputFile};

/// What happens instead of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Half of a write is done, then the disk is full; any other operation does nothing.
    NoSpace,
    /// EIO. A failed sync loses what it was to save.
    Io,
    /// The power fails before the operation; of a write the first half got as far as the cache.
    Crash,
    /// The file system is read-only.
    ReadOnly,
}

/// What a crash does to what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// All of it is gone.
    Everything,
    /// All of it had reached the disk.
    Nothing,
    /// Each 512 bytes and each name may have or not, by this seed.
    Some(u64),
}

/// Bytes that reach a disk whole or not at all.
const SECTOR_BYTES: usize = 512;

#[derive(Debug, Default, Clone)]
struct Inode {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// From and to, of writes that no sync has seen.
    dirty: Vec<(usize, usize)>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Create(PathBuf, usize),
    Rename(PathBuf, PathBuf, usize),
    Remove(PathBuf),
}

impl NameChange {
    fn directory(&self) -> Option<&Path> {
        match self {
            Self::Create(path, _) | Self::Rename(path, ..) | Self::Remove(path) => path.parent(),
        }
    }

    fn apply(self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Create(path, inode) => {
                names.insert(path, inode);
            }
            Self::Rename(from, to, inode) => {
                names.remove(&from);
                names.insert(to, inode);
            }
            Self::Remove(path) => {
                names.remove(&path);
            }
        }
    }
}

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    seen: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    /// Since the last sync of their directory, in order.
    changes: Vec<NameChange>,
    directories: BTreeSet<PathBuf>,
    locked: BTreeSet<PathBuf>,
    n_operations: u64,
    faults: BTreeMap<u64, Fault>,
    free_bytes: Option<usize>,
    crashed: bool,
    /// Told apart so that a lock of before a crash releases nothing after it.
    life: u64,
}

impl State {
    /// Counts an operation and gives the fault that was ordered for it.
    fn operation(&mut self) -> io::Result<Option<Fault>> {
        if self.crashed {
            return Err(power_is_off());
        }
        let fault = self.faults.remove(&self.n_operations);
        self.n_operations += 1;
        if fault == Some(Fault::Crash) {
            self.crashed = true;
        }
        Ok(fault)
    }

    /// An operation that is done or not.
    fn whole_operation(&mut self) -> io::Result<()> {
        self.operation()?.map_or(Ok(()), |fault| Err(error_of(fault)))
    }

    fn inode(&self, path: &Path) -> io::Result<usize> {
        if self.crashed {
            return Err(power_is_off());
        }
        self.seen.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn in_directory(&self, directory: Option<&Path>) -> io::Result<()> {
        match directory.is_some_and(|directory| self.directories.contains(directory)) {
            true => Ok(()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

fn power_is_off() -> io::Error {
    io::Error::other("the power is off")
}

fn error_of(fault: Fault) -> io::Error {
    match fault {
        Fault::NoSpace => io::ErrorKind::StorageFull.into(),
        Fault::Io => io::Error::other("EIO"),
        Fault::Crash => power_is_off(),
        Fault::ReadOnly => io::ErrorKind::ReadOnlyFilesystem.into(),
    }
}

/// A disk in memory. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct FaultyDisk {
    state: Arc<Mutex<State>>,
}

impl FaultyDisk {
    /// An empty disk with one directory.
    pub fn new(directory: &Path) -> Self {
        let disk = Self::default();
        disk.state.lock().directories.insert(directory.to_owned());
        disk
    }

    /// How many operations that change something or sync were tried.
    pub fn n_operations(&self) -> u64 {
        self.state.lock().n_operations
    }

    /// Orders a fault for the operation that comes after `n_operations` others, counted from the
    /// disk's making.
    pub fn order(&self, n_operations: u64, fault: Fault) {
        self.state.lock().faults.insert(n_operations, fault);
    }

    /// Lets at most so many bytes more be written; `None` is no limit.
    pub fn limit_free_bytes(&self, free_bytes: Option<usize>) {
        self.state.lock().free_bytes = free_bytes;
    }

    /// Flips one bit of a file, where it lies and where it is seen.
    ///
    /// # Panics
    /// If there is no such file or byte.
    pub fn flip(&self, path: &Path, byte: usize, bit: u8) {
        let mut state = self.state.lock();
        let inode = state.seen[path];
        let inode = &mut state.inodes[inode];
        inode.seen[byte] ^= 1 << bit;
        if let Some(durable) = inode.durable.get_mut(byte) {
            *durable ^= 1 << bit;
        }
    }

    /// A file's bytes as programs see them.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state.lock();
        state.seen.get(path).map(|inode| state.inodes[*inode].seen.clone())
    }

    /// Cuts the power, if it is not off yet, and turns it on again: locks are free, `loss` says
    /// what is left of what was not synced, and open files are of no use.
    pub fn restart(&self, loss: Loss) {
        let mut state = self.state.lock();
        let mut coin = Coin(match loss {
            Loss::Some(seed) => seed,
            Loss::Everything | Loss::Nothing => 0,
        });
        let mut survives = move || match loss {
            Loss::Everything => false,
            Loss::Nothing => true,
            Loss::Some(_) => coin.heads(),
        };
        let changes = std::mem::take(&mut state.changes);
        for change in changes {
            if survives() {
                change.apply(&mut state.durable);
            }
        }
        for inode in &mut state.inodes {
            for (from, to) in std::mem::take(&mut inode.dirty) {
                save(inode, from, to, &mut survives);
            }
            inode.seen.clone_from(&inode.durable);
        }
        // A copy for each name: a file that was open before the crash writes to nothing.
        let kept = state.durable.clone();
        state.durable.clear();
        for (path, inode) in kept {
            let copy = Inode { dirty: Vec::new(), ..state.inodes[inode].clone() };
            state.inodes.push(copy);
            let inode = state.inodes.len() - 1;
            state.durable.insert(path, inode);
        }
        state.seen = state.durable.clone();
        state.locked.clear();
        state.faults.clear();
        state.crashed = false;
        state.life += 1;
    }
}

/// Carries sectors between `from` and `to` over to the durable state.
fn save(inode: &mut Inode, from: usize, to: usize, mut survives: impl FnMut() -> bool) {
    let mut at = from;
    // What was cut off since is not there to be saved.
    let to = to.min(inode.seen.len());
    while at < to {
        let next = (at / SECTOR_BYTES + 1).saturating_mul(SECTOR_BYTES).min(to);
        if survives() {
            if inode.durable.len() < next {
                // Sectors between that did not make it read as zeros.
                inode.durable.resize(next, 0);
            }
            inode.durable[at..next].copy_from_slice(&inode.seen[at..next]);
        }
        at = next;
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014, figure 16): a crash has to replay by its seed.
struct Coin(u64);

impl Coin {
    fn heads(&mut self) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) & 1 == 1
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn OutputFile>> {
        let mut state = self.state.lock();
        state.in_directory(path.parent())?;
        if state.seen.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.whole_operation()?;
        state.inodes.push(Inode::default());
        let inode = state.inodes.len() - 1;
        state.seen.insert(path.to_owned(), inode);
        state.changes.push(NameChange::Create(path.to_owned(), inode));
        Ok(Arc::new(FaultyFile { disk: self.clone(), inode, life: state.life }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        let state = self.state.lock();
        let inode = state.inode(path)?;
        Ok(Box::new(Cursor::new(state.inodes[inode].seen.clone())))
    }

    fn cut(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let inode = state.inode(path)?;
        state.whole_operation()?;
        let inode = &mut state.inodes[inode];
        inode.seen.truncate(bytes as usize);
        inode.durable.clone_from(&inode.seen);
        inode.dirty.clear();
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let inode = state.inode(from)?;
        state.whole_operation()?;
        let change = NameChange::Rename(from.to_owned(), to.to_owned(), inode);
        change.clone().apply(&mut state.seen);
        state.changes.push(change);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.inode(path)?;
        state.whole_operation()?;
        state.seen.remove(path);
        state.changes.push(NameChange::Remove(path.to_owned()));
        Ok(())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        let state = self.state.lock();
        if state.crashed {
            return Err(power_is_off());
        }
        state.in_directory(Some(directory))?;
        let files = state.seen.iter().filter(|(path, _)| path.parent() == Some(directory));
        Ok(files
            .filter_map(|(path, inode)| {
                let name = path.file_name()?.to_str()?.to_owned();
                Some(Entry { name, bytes: state.inodes[*inode].seen.len() as u64 })
            })
            .collect())
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.in_directory(Some(directory))?;
        let fault = state.operation()?;
        if matches!(fault, Some(Fault::Crash | Fault::ReadOnly)) {
            return fault.map_or(Ok(()), |fault| Err(error_of(fault)));
        }
        let (synced, others): (Vec<_>, Vec<_>) = std::mem::take(&mut state.changes)
            .into_iter()
            .partition(|change| change.directory() == Some(directory));
        state.changes = others;
        if let Some(fault) = fault {
            return Err(error_of(fault));
        }
        for change in synced {
            change.apply(&mut state.durable);
        }
        Ok(())
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let mut state = self.state.lock();
        state.in_directory(path.parent())?;
        state.whole_operation()?;
        if !state.locked.insert(path.to_owned()) {
            return Ok(None);
        }
        let life = state.life;
        Ok(Some(Box::new(FaultyLock { disk: self.clone(), path: path.to_owned(), life })))
    }
}

#[derive(Debug)]
struct FaultyLock {
    disk: FaultyDisk,
    path: PathBuf,
    life: u64,
}

impl Lock for FaultyLock {}

impl Drop for FaultyLock {
    fn drop(&mut self) {
        let mut state = self.disk.state.lock();
        if state.life == self.life {
            state.locked.remove(&self.path);
        }
    }
}

#[derive(Debug)]
struct FaultyFile {
    disk: FaultyDisk,
    inode: usize,
    life: u64,
}

impl FaultyFile {
    /// Counts an operation on a file that the present life of the disk has opened.
    fn operation(&self, state: &mut State) -> io::Result<Option<Fault>> {
        if state.life == self.life { state.operation() } else { Err(power_is_off()) }
    }
}

impl OutputFile for FaultyFile {
    fn write(&self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        let fault = self.operation(&mut state)?;
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let mut n = match fault {
            None => bytes.len(),
            Some(Fault::NoSpace | Fault::Crash) => bytes.len() / 2,
            Some(Fault::Io | Fault::ReadOnly) => 0,
        };
        let mut outcome = fault.map_or(Ok(()), |fault| Err(error_of(fault)));
        if let Some(free) = &mut state.free_bytes {
            if *free < n {
                n = *free;
                outcome = Err(error_of(Fault::NoSpace));
            }
            *free -= n;
        }
        let inode = &mut state.inodes[self.inode];
        let from = inode.seen.len();
        inode.seen.extend_from_slice(&bytes[..n]);
        inode.dirty.push((from, from + n));
        outcome
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        if let Some(fault) = self.operation(&mut state)? {
            return Err(error_of(fault));
        }
        let inode = &mut state.inodes[self.inode];
        inode.seen.truncate(bytes as usize);
        // Cutting off what was durable is not what anybody here does; the rest is in the cache.
        inode.durable.truncate(bytes as usize);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        let fault = self.operation(&mut state)?;
        if matches!(fault, Some(Fault::Crash)) {
            return Err(power_is_off());
        }
        let inode = &mut state.inodes[self.inode];
        let dirty = std::mem::take(&mut inode.dirty);
        if let Some(fault) = fault {
            return Err(error_of(fault));
        }
        for (from, to) in dirty {
            save(inode, from, to, || true);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: &str = "/d";

    fn disk() -> FaultyDisk {
        FaultyDisk::new(Path::new(DIRECTORY))
    }

    fn path(name: &str) -> PathBuf {
        Path::new(DIRECTORY).join(name)
    }

    fn written(disk: &FaultyDisk, name: &str, bytes: &[u8]) -> Arc<dyn OutputFile> {
        let file = disk.create(&path(name)).expect("created");
        file.write(&mut [IoSlice::new(bytes)]).expect("written");
        file
    }

    #[test]
    fn a_file_synced_without_its_directory_is_lost() {
        let disk = disk();
        written(&disk, "a", b"abc").sync().expect("synced");
        disk.restart(Loss::Everything);
        assert_eq!(disk.bytes(&path("a")), None);
    }

    #[test]
    fn a_name_synced_without_its_file_is_empty() {
        let disk = disk();
        written(&disk, "a", b"abc");
        disk.sync_directory(Path::new(DIRECTORY)).expect("synced");
        disk.restart(Loss::Everything);
        assert_eq!(disk.bytes(&path("a")), Some(vec![]));
    }

    #[test]
    fn both_synced_survive_and_a_rename_needs_the_directory_again() {
        let disk = disk();
        written(&disk, "a", b"abc").sync().expect("synced");
        disk.sync_directory(Path::new(DIRECTORY)).expect("synced");
        disk.rename(&path("a"), &path("b")).expect("renamed");
        assert_eq!(disk.bytes(&path("b")), Some(b"abc".to_vec()));
        disk.restart(Loss::Everything);
        assert_eq!(disk.bytes(&path("b")), None);
        assert_eq!(disk.bytes(&path("a")), Some(b"abc".to_vec()));
    }

    #[test]
    fn what_a_failed_sync_lost_a_second_sync_does_not_bring_back() {
        let disk = disk();
        let file = written(&disk, "a", b"abc");
        disk.sync_directory(Path::new(DIRECTORY)).expect("synced");
        disk.order(disk.n_operations(), Fault::Io);
        file.sync().expect_err("ordered");
        file.sync().expect("the lie of the page cache");
        disk.restart(Loss::Everything);
        assert_eq!(disk.bytes(&path("a")), Some(vec![]));
    }

    #[test]
    fn a_crash_tears_by_sectors_and_replays_by_its_seed() {
        let torn = |seed| {
            let disk = disk();
            written(&disk, "a", &[7; 20 * SECTOR_BYTES]);
            disk.sync_directory(Path::new(DIRECTORY)).expect("synced");
            disk.restart(Loss::Some(seed));
            disk.bytes(&path("a")).expect("its name is durable")
        };
        let one = torn(1);
        assert_eq!(one, torn(1));
        assert_ne!(one, torn(2));
        let sevens = one.iter().filter(|byte| **byte == 7).count();
        assert!(sevens > 0 && sevens < 20 * SECTOR_BYTES && sevens.is_multiple_of(SECTOR_BYTES));
    }

    #[test]
    fn a_full_disk_takes_what_fits_and_an_off_one_nothing() {
        let disk = disk();
        disk.limit_free_bytes(Some(5));
        let file = written(&disk, "a", b"abc");
        let error = file.write(&mut [IoSlice::new(b"defg")]).expect_err("full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.bytes(&path("a")), Some(b"abcde".to_vec()));
        disk.limit_free_bytes(None);
        disk.order(disk.n_operations(), Fault::Crash);
        file.write(&mut [IoSlice::new(b"hi")]).expect_err("crash");
        assert!(file.sync().is_err() && disk.open(&path("a")).is_err(), "off");
        disk.restart(Loss::Nothing);
        assert_eq!(disk.bytes(&path("a")), Some(b"abcdeh".to_vec()));
        assert!(file.sync().is_err(), "a file of before the crash");
    }

    #[test]
    fn locks_are_free_after_a_crash_and_old_ones_release_nothing() {
        let disk = disk();
        let old = disk.try_lock(&path("L")).expect("no error").expect("free");
        assert!(disk.try_lock(&path("L")).expect("no error").is_none());
        disk.restart(Loss::Nothing);
        let new = disk.try_lock(&path("L")).expect("no error").expect("free again");
        drop(old);
        assert!(disk.try_lock(&path("L")).expect("no error").is_none());
        drop(new);
    }
}

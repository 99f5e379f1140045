//! A directory of checkpoints: one server at a time, the newest good one, a few kept, and in
//! `boot.rs` a number for each server's life.
//!
//! Owns the files' names, the order of syncs and renames, which files may be deleted and which are
//! put aside. Knows nothing of what a checkpoint's sections hold. Its file names are also what
//! keeps the journal's segments out of the way.

use std::collections::BTreeSet;
use std::io::{self, IoSlice, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::checkpoint::{Compression, Reader, Writer};
use super::disk::{Disk, Lock, OutputFile};
use super::error::Error;

mod boot;
mod chosen;
use boot::BOOT_ASIDE;

const LOCK: &str = "LOCK";
const PROBE: &str = "probe.tmp";
const ASIDE: &str = ".tmp";
const REFUSED: &str = ".refused";
/// Of a future that did not happen: servers of one job went back further.
const UNDONE: &str = ".undone";

/// Fewer would leave nothing to go back to when the newest is damaged.
const KEEP_MIN: usize = 2;

/// A checkpoint that was not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// theta's version, by its name.
    pub version: u64,
    /// Where it was found.
    pub path: PathBuf,
    /// Why, with path and place.
    pub reason: String,
}

/// A checkpoint that was written and is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Its file.
    pub path: PathBuf,
    /// Its size on disk.
    pub bytes: u64,
    /// theta's version of the oldest checkpoint that could be gone back to: what the journal has
    /// to begin at or before.
    pub oldest_kept_version: u64,
    /// Old files that could not be deleted: a nuisance, not a loss.
    pub not_deleted: Vec<String>,
}

/// What [`Directory::load`] found.
#[derive(Debug)]
pub struct Loaded<T> {
    /// theta's version.
    pub version: u64,
    /// The file.
    pub path: PathBuf,
    /// What was made of it.
    pub value: T,
    /// Newer ones that were damaged, newest first. Their files end in `.refused` now.
    pub refused: Vec<Refused>,
}

/// A checkpoint's file in reading.
pub type FileReader = Reader<io::BufReader<Box<dyn Read + Send>>>;

/// A locked directory of checkpoints. Unlocked by drop, and by the process's end.
#[derive(Debug)]
pub struct Directory {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    keep: usize,
    /// Versions of checkpoints that were read whole or written durably in this life. Its lock is
    /// held through a save: there is one at a time.
    good: Mutex<BTreeSet<u64>>,
    _lock: Box<dyn Lock>,
}

impl Directory {
    /// Locks the directory and clears away what an interrupted save left. `keep` checkpoints are
    /// kept from now on, at least 2.
    ///
    /// # Errors
    /// [`Error::CannotCreate`] if the directory is missing or read-only, [`Error::Locked`] if
    /// another live server has it, [`Error::Io`].
    pub fn open(disk: Arc<dyn Disk>, path: &Path, keep: usize) -> Result<Self, Error> {
        let cannot = |source| Error::CannotCreate { path: path.to_owned(), source };
        let lock_path = path.join(LOCK);
        let lock =
            disk.try_lock(&lock_path).map_err(cannot)?.ok_or(Error::Locked { path: lock_path })?;
        for entry in disk.list(path).map_err(Error::io("list", path))? {
            if [PROBE, BOOT_ASIDE].contains(&&*entry.name) || is_aside(&entry.name) {
                disk.remove(&path.join(&entry.name)).map_err(cannot)?;
            }
        }
        // An old lock file can be opened where nothing new can be made.
        disk.create(&path.join(PROBE)).map_err(cannot)?;
        disk.remove(&path.join(PROBE)).map_err(cannot)?;
        // Names that a killed server could no longer sync: what is seen from here on stays.
        disk.sync_directory(path).map_err(Error::io("sync", path))?;
        let good = Mutex::default();
        Ok(Self { disk, path: path.to_owned(), keep: keep.max(KEEP_MIN), good, _lock: lock })
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Versions of theta that there are checkpoints of, good or not, newest first.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn versions(&self) -> Result<Vec<u64>, Error> {
        let entries = self.disk.list(&self.path).map_err(Error::io("list", &self.path))?;
        let mut versions: Vec<u64> =
            entries.iter().filter_map(|entry| version_of(&entry.name, "")).collect();
        versions.sort_unstable_by(|a, b| b.cmp(a));
        Ok(versions)
    }

    /// Loads the newest good checkpoint through `load`, `None` if there is no checkpoint at all.
    ///
    /// `load` gets one reader after the other, newest first. If it gives [`Error::Bad`] or
    /// [`Error::Io`] on one, or the rest of the file turns out to be bad after it, its value is
    /// dropped and the one before is tried. Any other error ends the search: a mismatch with the
    /// job is nothing that an older checkpoint would cure.
    ///
    /// # Errors
    /// [`Error::NoneUsable`] if all are damaged, nothing is changed then; those of `load`.
    pub fn load<T>(
        &self,
        mut load: impl FnMut(&mut FileReader) -> Result<T, Error>,
    ) -> Result<Option<Loaded<T>>, Error> {
        let mut refused = Vec::new();
        for version in self.versions()? {
            let path = self.path_of(version);
            match self.load_one(version, &path, &mut load) {
                Ok(value) => {
                    self.put_aside(&refused)?;
                    self.good.lock().insert(version);
                    return Ok(Some(Loaded { version, path, value, refused }));
                }
                Err(error @ (Error::Bad { .. } | Error::Io { .. })) => {
                    let reason = in_full(&error);
                    refused.push(Refused { version, path, reason });
                }
                Err(error) => return Err(error),
            }
        }
        if refused.is_empty() {
            return Ok(None);
        }
        Err(Error::NoneUsable { path: self.path.clone(), refused })
    }

    fn load_one<T>(
        &self,
        version: u64,
        path: &Path,
        load: &mut impl FnMut(&mut FileReader) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut reader = self.open_one(version, path)?;
        let value = load(&mut reader)?;
        reader.finish()?;
        Ok(value)
    }

    fn open_one(&self, version: u64, path: &Path) -> Result<FileReader, Error> {
        let source = self.disk.open(path).map_err(Error::io("open", path))?;
        let reader = Reader::open(path, io::BufReader::with_capacity(1 << 18, source))?;
        if reader.version() != version {
            let what = format!("it is of version {}, its name says otherwise", reader.version());
            return Err(Error::Bad { path: path.to_owned(), offset: 16, section: None, what });
        }
        Ok(reader)
    }

    /// Gives refused checkpoints another name, so that none is taken for the newest again once
    /// the job has gone on from an older one.
    fn put_aside(&self, refused: &[Refused]) -> Result<(), Error> {
        for Refused { path, .. } in refused {
            let aside = PathBuf::from(format!("{}{REFUSED}", path.display()));
            self.disk.rename(path, &aside).map_err(Error::io("rename", path))?;
        }
        if !refused.is_empty() {
            self.disk.sync_directory(&self.path).map_err(Error::io("sync", &self.path))?;
        }
        Ok(())
    }

    /// Writes the checkpoint of theta's `version`: aside, synced, renamed, the directory synced;
    /// then deletes what is older than the newest that are to be kept. `write` adds the sections
    /// after the job's. When this returns, the checkpoint is durable.
    ///
    /// After an error nothing that existed is changed or deleted, and it may be tried again: that
    /// writes a new file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Occupied`] if there is a checkpoint of a later version, which would
    /// be taken for the newest.
    pub fn save(
        &self,
        version: u64,
        compression: Compression,
        job: &[u8],
        write: impl FnOnce(&mut Writer<'_>) -> io::Result<()>,
    ) -> Result<Saved, Error> {
        let mut good = self.good.lock();
        if let Some(later) = self.versions()?.into_iter().find(|found| *found > version) {
            return Err(Error::Occupied { path: self.path_of(later), version });
        }
        let path = self.path_of(version);
        let aside = PathBuf::from(format!("{}{ASIDE}", path.display()));
        let written = self.write_aside(&aside, |out| {
            let mut writer = Writer::begin(out, version, compression, job)?;
            write(&mut writer)?;
            writer.end()
        });
        let bytes = match written {
            Ok(bytes) => bytes,
            Err(error) => {
                // The first error is the one to report; the next open clears up what stays.
                let _ = self.disk.remove(&aside);
                return Err(error);
            }
        };
        // Its name may be lost again until the directory is synced: no good one in between.
        good.remove(&version);
        self.put_in_place(&aside, &path)?;
        good.insert(version);
        let (oldest_kept_version, not_deleted) = self.delete_old(&mut good);
        Ok(Saved { path, bytes, oldest_kept_version, not_deleted })
    }

    /// Writes a new file and syncs it.
    fn write_aside<R>(
        &self,
        aside: &Path,
        write: impl FnOnce(&mut dyn Write) -> io::Result<R>,
    ) -> Result<R, Error> {
        // Left by a save that failed, and could not remove it either.
        match self.disk.remove(aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", aside)(error));
            }
            _ => {}
        }
        let file = self.disk.create(aside).map_err(Error::io("create", aside))?;
        let result = write(&mut FileWriter(&*file)).map_err(Error::io("write", aside))?;
        file.sync().map_err(Error::io("sync", aside))?;
        Ok(result)
    }

    /// Gives a synced file its name, durably.
    fn put_in_place(&self, aside: &Path, path: &Path) -> Result<(), Error> {
        self.disk.rename(aside, path).map_err(Error::io("rename", aside))?;
        self.disk.sync_directory(&self.path).map_err(Error::io("sync", &self.path))
    }

    /// Deletes what is older than the last of the newest good ones; gives that one's version.
    /// Files that nobody has read count for nothing: they may be bad.
    fn delete_old(&self, good: &mut BTreeSet<u64>) -> (u64, Vec<String>) {
        let oldest_kept = good.iter().rev().nth(self.keep - 1).copied();
        let Some(oldest_kept) = oldest_kept else {
            // Fewer than are to be kept: older ones, though unread, may serve.
            let listed = self.versions().unwrap_or_default();
            return (listed.last().copied().unwrap_or(0), Vec::new());
        };
        good.retain(|version| *version >= oldest_kept);
        let is_old = |name: &str| {
            let version = ["", REFUSED, UNDONE].iter().find_map(|end| version_of(name, end));
            version.is_some_and(|v| v < oldest_kept)
        };
        let entries = self.disk.list(&self.path);
        let mut not_deleted = Vec::new();
        for entry in entries.iter().flatten().filter(|entry| is_old(&entry.name)) {
            if let Err(error) = self.disk.remove(&self.path.join(&entry.name)) {
                not_deleted.push(format!("{}: {error}", entry.name));
            }
        }
        if let Err(error) = entries {
            not_deleted.push(format!("{}: {error}", self.path.display()));
        }
        (oldest_kept, not_deleted)
    }

    fn path_of(&self, version: u64) -> PathBuf {
        self.path.join(format!("checkpoint-{version:020}.psck"))
    }
}

/// The error with its cause, for a list that has no chain.
fn in_full(error: &Error) -> String {
    match error {
        Error::Io { source, .. } => format!("{error}: {source}"),
        _ => error.to_string(),
    }
}

fn is_aside(name: &str) -> bool {
    name.strip_suffix(ASIDE).is_some_and(|name| version_of(name, "").is_some())
}

/// The version in a checkpoint's name that ends in `ending`.
fn version_of(name: &str, ending: &str) -> Option<u64> {
    let number = name.strip_suffix(ending)?.strip_prefix("checkpoint-")?.strip_suffix(".psck")?;
    (number.len() == 20 && number.bytes().all(|digit| digit.is_ascii_digit()))
        .then(|| number.parse().ok())?
}

/// An output file as a sink.
struct FileWriter<'a>(&'a dyn OutputFile);

impl Write for FileWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&mut [IoSlice::new(bytes)])?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;

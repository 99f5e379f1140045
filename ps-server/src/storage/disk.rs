//! The one seam to the file system: the operations that durability is made of.
//!
//! [`RealDisk`] is std's files. [`super::FaultyDisk`] is a disk in memory that fails, tears and
//! forgets on demand. Nothing here knows what the files are for.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, Read, Write};
use std::path::Path;
use std::sync::Arc;

/// A file of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Without the directory.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// A lock that lasts as long as this and its process.
pub trait Lock: Send + Sync + fmt::Debug {}

/// A disk. Paths are whole paths; directories exist already.
///
/// A change to a file is durable after [`OutputFile::sync`], a change of names (create, rename,
/// remove) after [`Disk::sync_directory`], and neither implies the other.
pub trait Disk: Send + Sync + fmt::Debug {
    /// A new empty file, for appending.
    ///
    /// # Errors
    /// As the system says; also if the file exists.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn OutputFile>>;

    /// The bytes of a file, from its start.
    ///
    /// # Errors
    /// As the system says.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>>;

    /// Cuts a file to `bytes`, durably.
    ///
    /// # Errors
    /// As the system says.
    fn cut(&self, path: &Path, bytes: u64) -> io::Result<()>;

    /// Gives a file another name in one step; what had that name is replaced.
    ///
    /// # Errors
    /// As the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// As the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The files of a directory, in any order.
    ///
    /// # Errors
    /// As the system says.
    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// As the system says.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;

    /// Locks the file at `path`, made if need be; `None` if a live process has it.
    ///
    /// # Errors
    /// As the system says.
    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>>;
}

/// A file that is written from its start to its end.
pub trait OutputFile: Send + Sync + fmt::Debug {
    /// Appends all bytes of all parts. After an error the end of the file is not known.
    ///
    /// # Errors
    /// As the system says.
    fn write(&self, parts: &mut [IoSlice<'_>]) -> io::Result<()>;

    /// Cuts the file to `bytes`; not durable yet.
    ///
    /// # Errors
    /// As the system says.
    fn truncate(&self, bytes: u64) -> io::Result<()>;

    /// Makes what was written durable. After an error it never will be by this file: the system
    /// may have dropped the bytes and forgotten the error. Write them to another file.
    ///
    /// # Errors
    /// As the system says.
    fn sync(&self) -> io::Result<()>;
}

/// The file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn OutputFile>> {
        Ok(Arc::new(OpenOptions::new().append(true).create_new(true).open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(File::open(path)?))
    }

    fn cut(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(bytes)?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            // A name that is not UTF-8 is not one of ours.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let metadata = entry.metadata()?;
            if metadata.is_file() {
                entries.push(Entry { name, bytes: metadata.len() });
            }
        }
        Ok(entries)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// The lock is the open file: closed by drop, and by the system when the process dies.
impl Lock for File {}

impl OutputFile for File {
    fn write(&self, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        // Empty parts at the front would read as "nothing more can be written".
        IoSlice::advance_slices(&mut parts, 0);
        let mut file = self;
        while !parts.is_empty() {
            match file.write_vectored(parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => IoSlice::advance_slices(&mut parts, n),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        // Data and size; times do not matter. Syncing a name is the directory's affair.
        self.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_disk_writes_many_and_empty_parts_cuts_and_lists() {
        let place = tempfile::tempdir().expect("temporary directory");
        let path = place.path().join("a");
        let file = RealDisk.create(&path).expect("created");
        let many: Vec<[u8; 3]> = (0..3000_u32).map(|i| [i as u8, (i >> 8) as u8, 7]).collect();
        let mut parts = vec![IoSlice::new(&[]), IoSlice::new(&[])];
        parts.extend(many.iter().map(|part| IoSlice::new(part)));
        parts.push(IoSlice::new(&[]));
        file.write(&mut parts).expect("written");
        file.sync().expect("synced");
        assert_eq!(fs::read(&path).expect("read"), many.concat());

        file.truncate(4).expect("truncated");
        file.write(&mut [IoSlice::new(b"xy")]).expect("written at the new end");
        RealDisk.cut(&path, 5).expect("cut");
        assert_eq!(fs::read(&path).expect("read"), [0, 0, 7, 1, b'x']);
        fs::create_dir(place.path().join("folder")).expect("made");
        let listed = RealDisk.list(place.path()).expect("listed");
        assert_eq!(listed, [Entry { name: "a".into(), bytes: 5 }]);

        let again = RealDisk.create(&path).expect_err("exists");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        RealDisk.sync_directory(place.path()).expect("synced");
    }

    #[test]
    fn a_lock_is_held_until_it_is_dropped() {
        let place = tempfile::tempdir().expect("temporary directory");
        let path = place.path().join("LOCK");
        let held = RealDisk.try_lock(&path).expect("no error").expect("free");
        assert!(RealDisk.try_lock(&path).expect("no error").is_none(), "taken twice");
        drop(held);
        assert!(RealDisk.try_lock(&path).expect("no error").is_some(), "not released");
    }
}

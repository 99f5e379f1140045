//! The journal: one record for each update of theta between two checkpoints.
//!
//! Owns the order of records, their checksums, the commits (many records, one sync) and the
//! segments' files. Knows nothing of what a record holds; has no threads: whoever waits for a record
//! does the sync, or a thread of the caller's in [`Journal::commit_until_closed`].
//!
//! A record is named by the version of theta that its update makes. Versions go up by one, so a
//! record that is missing is noticed. A segment named V holds V + 1 and what follows, and is begun
//! when the checkpoint of V is. Every record says up to where its segment was durable when it was
//! written: that tells a damaged record, which is refused, from a torn end, which is cut.

use std::fmt;
use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::disk::{Disk, OutputFile};
use super::error::Error;

mod layout;
mod replay;
#[cfg(test)]
mod tests;

pub use layout::FORMAT;
pub use replay::{Cut, Recovered, SegmentEnd, recover, replay};

use layout::{RecordHeader, SEGMENT_HEADER_BYTES, path_of, segment_header};

/// A record on its way to the disk: the version that its update makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

impl Ticket {
    /// The version that the record's update makes.
    pub fn version(self) -> u64 {
        self.0
    }
}

/// What is called once it is known whether a record is durable.
type Callback = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// A journal that is being written. All methods may be called from any thread.
#[derive(Debug)]
pub struct Journal {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    job: u64,
    state: Mutex<State>,
    /// Something was appended, or the journal closed.
    appended: Condvar,
    /// A commit has ended, well or not.
    committed: Condvar,
}

struct State {
    segment: Arc<dyn OutputFile>,
    path: PathBuf,
    /// Version that the segment starts at.
    start: u64,
    /// Its bytes, and how many of them are durable.
    end: u64,
    durable_end: u64,
    version: u64,
    durable_version: u64,
    /// Start and bytes of the segments before, oldest first.
    older: Vec<(u64, u64)>,
    failed: Option<String>,
    callbacks: Vec<(Ticket, Callback)>,
    /// A sync is under way, without the lock: there is one at a time.
    is_committing: bool,
    is_closed: bool,
    n_commits: u64,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("path", &self.path)
            .field("end", &self.end)
            .field("version", &self.version)
            .field("durable_version", &self.durable_version)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl State {
    fn failure(&self) -> Option<Error> {
        let why = self.failed.clone()?;
        Some(Error::JournalFailed { path: self.path.clone(), why })
    }

    /// What is known of a record, `None` before its sync.
    fn outcome(&self, ticket: Ticket) -> Option<Result<(), Error>> {
        if ticket.0 <= self.durable_version {
            return Some(Ok(()));
        }
        self.failure().map(Err)
    }
}

impl Journal {
    /// Begins a journal at theta's `version`, the newest that [`recover`] gave, or the checkpoint's
    /// if there is no journal. `job` is a number that other jobs do not have; [`recover`] checks it.
    /// The directory has to be locked by the caller's [`super::Directory`].
    ///
    /// # Errors
    /// [`Error::Occupied`] if there are records beyond `version`; [`Error::Io`].
    pub fn start(
        disk: Arc<dyn Disk>,
        directory: &Path,
        job: u64,
        version: u64,
    ) -> Result<Self, Error> {
        let mut older = replay::segments(&*disk, directory)?;
        if let Some((start, bytes)) = older.last().copied()
            && start >= version
        {
            let path = path_of(directory, start);
            if start > version || bytes > SEGMENT_HEADER_BYTES as u64 {
                return Err(Error::Occupied { path, version });
            }
            // Begun, and nothing was ever written to it.
            disk.remove(&path).map_err(Error::io("remove", &path))?;
            older.pop();
        }
        let segment = begin_segment(&*disk, directory, job, version)?;
        let state = State {
            segment,
            path: path_of(directory, version),
            start: version,
            end: SEGMENT_HEADER_BYTES as u64,
            durable_end: SEGMENT_HEADER_BYTES as u64,
            version,
            durable_version: version,
            older,
            failed: None,
            callbacks: Vec::new(),
            is_committing: false,
            is_closed: false,
            n_commits: 0,
        };
        Ok(Self {
            disk,
            directory: directory.to_owned(),
            job,
            state: Mutex::new(state),
            appended: Condvar::new(),
            committed: Condvar::new(),
        })
    }

    /// Writes the record of the update that makes `version`: the concatenation of `parts`. It is
    /// durable when [`Journal::wait`] or [`Journal::on_durable`] says so, not before.
    ///
    /// Append before the update is applied: after an error theta must be as it was, and the next
    /// record is of this version again.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written, the disk being full perhaps: the journal is as it was,
    /// try again later. [`Error::JournalFailed`]: only [`Journal::restart`] helps.
    ///
    /// # Panics
    /// If `version` is not one more than the last.
    pub fn append(&self, version: u64, parts: &[&[u8]]) -> Result<Ticket, Error> {
        let mut header = RecordHeader::of(version, parts);
        let mut state = self.state.lock();
        if let Some(failure) = state.failure() {
            return Err(failure);
        }
        assert_eq!(version, state.version + 1, "an update makes the next version");
        header.durable_end = state.durable_end;
        let header = header.bytes(state.start, state.end);
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(parts.len() + 1);
        slices.push(IoSlice::new(&header));
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        if let Err(error) = state.segment.write(&mut slices) {
            let path = state.path.clone();
            if let Err(second) = state.segment.truncate(state.end) {
                // Half a record that cannot be taken back: nothing may come after it.
                let why = format!("{error}, and then, taking back what was written: {second}");
                self.fail(state, why);
            }
            return Err(Error::Io { doing: "write", path, source: error });
        }
        state.end += bytes as u64;
        state.version = version;
        drop(state);
        self.appended.notify_all();
        Ok(Ticket(version))
    }

    /// Waits until the record is durable, doing the sync if nobody else does.
    ///
    /// # Errors
    /// [`Error::JournalFailed`]: it is not known whether a restart would find it.
    pub fn wait(&self, ticket: Ticket) -> Result<(), Error> {
        let mut state = self.state.lock();
        loop {
            if let Some(outcome) = state.outcome(ticket) {
                return outcome;
            }
            if state.is_committing {
                // All that wait are woken together, and the next sync is for all that came since.
                self.committed.wait(&mut state);
                continue;
            }
            drop(state);
            // Whatever becomes of it, for this record too, is in the state.
            let _ = self.commit();
            state = self.state.lock();
        }
    }

    /// Calls `then` once the record is durable or the journal has failed: at once, or in the thread
    /// that commits. Somebody has to commit: see [`Journal::commit_until_closed`]. `then` is short
    /// and calls nothing of the journal.
    pub fn on_durable(
        &self,
        ticket: Ticket,
        then: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) {
        let mut state = self.state.lock();
        match state.outcome(ticket) {
            None => state.callbacks.push((ticket, Box::new(then))),
            Some(outcome) => {
                drop(state);
                then(outcome);
            }
        }
    }

    /// Calls `then` once all that has been appended so far is durable, as [`Journal::on_durable`].
    pub fn on_all_durable(&self, then: impl FnOnce(Result<(), Error>) + Send + 'static) {
        let ticket = Ticket(self.state.lock().version);
        self.on_durable(ticket, then);
    }

    /// Whether it takes nothing until [`Journal::restart`].
    pub fn has_failed(&self) -> bool {
        self.state.lock().failed.is_some()
    }

    /// Makes durable whatever was appended before the call, with one sync, and gives the version
    /// that a restart would now reach. Appends go on meanwhile.
    ///
    /// # Errors
    /// [`Error::JournalFailed`].
    pub fn commit(&self) -> Result<u64, Error> {
        let mut state = self.quiet();
        if let Some(failure) = state.failure() {
            return Err(failure);
        }
        if state.version == state.durable_version {
            return Ok(state.version);
        }
        state.is_committing = true;
        let (segment, end, version) = (state.segment.clone(), state.end, state.version);
        drop(state);
        let synced = segment.sync();
        let mut state = self.state.lock();
        state.is_committing = false;
        if let Err(error) = synced {
            return Err(self.fail(state, format!("sync: {error}")));
        }
        let is_in_order = Arc::ptr_eq(&segment, &state.segment) && version > state.durable_version;
        assert!(is_in_order, "there is one sync at a time, and no segment begins meanwhile");
        // It may have failed otherwise meanwhile; these records are durable all the same.
        state.durable_end = end;
        state.durable_version = version;
        state.n_commits += 1;
        self.tell_settled(state);
        Ok(version)
    }

    /// The state while no sync is under way; none begins while it is held.
    fn quiet(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        while state.is_committing {
            self.committed.wait(&mut state);
        }
        state
    }

    /// Commits as soon as there is something to commit, until [`Journal::close`]: a thread's work.
    /// A failure is told to those who wait for records, and to the next append.
    pub fn commit_until_closed(&self) {
        loop {
            {
                let mut state = self.state.lock();
                while !state.is_closed
                    && (state.version == state.durable_version || state.failed.is_some())
                {
                    self.appended.wait(&mut state);
                }
                if state.is_closed {
                    return;
                }
            }
            // The journal keeps its failure, so nothing is lost here.
            let _ = self.commit();
        }
    }

    /// Commits what there is and ends [`Journal::commit_until_closed`].
    ///
    /// # Errors
    /// As [`Journal::commit`].
    pub fn close(&self) -> Result<u64, Error> {
        let committed = self.commit();
        self.state.lock().is_closed = true;
        self.appended.notify_all();
        committed
    }

    /// Commits, and begins the segment for what comes after the present version, which is given:
    /// call it when the checkpoint of that version is begun, with no append in between.
    ///
    /// Appends wait meanwhile, for three short syncs.
    ///
    /// # Errors
    /// [`Error::JournalFailed`]; [`Error::Io`] if the file cannot be made: the journal goes on in
    /// the old segment, or has failed if what was made of the file cannot be taken back.
    pub fn rotate(&self) -> Result<u64, Error> {
        // Most of it without holding up appends.
        self.commit()?;
        let mut state = self.quiet();
        if let Some(failure) = state.failure() {
            return Err(failure);
        }
        // Appends of since the commit: the new segment must not be durable before the old one.
        if state.version != state.durable_version {
            if let Err(error) = state.segment.sync() {
                return Err(self.fail(state, format!("sync: {error}")));
            }
            state.durable_version = state.version;
            state.durable_end = state.end;
            state.n_commits += 1;
        }
        let version = state.version;
        if version != state.start {
            let segment = match self.begin_or_undo(version) {
                Ok(segment) => segment,
                Err((error, None)) => return Err(error),
                Err((error, Some(why))) => {
                    self.fail(state, why);
                    return Err(error);
                }
            };
            let closed = (state.start, state.end);
            state.older.push(closed);
            self.enter(&mut state, segment, version);
        }
        self.tell_settled(state);
        Ok(version)
    }

    /// Goes on after a failure in a new file. The checkpoint of `version`, which has to hold every
    /// update that was appended, must be durable already: it stands for the records that were lost.
    ///
    /// # Errors
    /// [`Error::Io`]; it may be tried again.
    ///
    /// # Panics
    /// If `version` is older than the last record that was appended.
    pub fn restart(&self, version: u64) -> Result<(), Error> {
        let mut state = self.quiet();
        assert!(version >= state.version, "the checkpoint has to hold every update");
        let path = path_of(&self.directory, version);
        // What may be there is of no record that counts, and its name is needed.
        remove_if_there(&*self.disk, &path)?;
        let segment = begin_segment(&*self.disk, &self.directory, self.job, version)?;
        let closed = (state.start, state.end);
        if state.start != version {
            state.older.push(closed);
        }
        self.enter(&mut state, segment, version);
        state.failed = None;
        self.tell_settled(state);
        Ok(())
    }

    /// Removes the segments that nobody needs who starts from a checkpoint of `version` or later:
    /// [`super::Saved::oldest_kept_version`]. Gives how many.
    ///
    /// # Errors
    /// [`Error::Io`]; what is left is removed by a later call.
    pub fn remove_covered(&self, version: u64) -> Result<usize, Error> {
        let mut state = self.state.lock();
        let mut n_removed = 0;
        while let Some((start, _)) = state.older.first().copied() {
            let next = state.older.get(1).map_or(state.start, |(start, _)| *start);
            if next > version {
                break;
            }
            let path = path_of(&self.directory, start);
            remove_if_there(&*self.disk, &path)?;
            state.older.remove(0);
            n_removed += 1;
        }
        Ok(n_removed)
    }

    /// Bytes of all segments on the disk.
    pub fn size_bytes(&self) -> u64 {
        let state = self.state.lock();
        state.end + state.older.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }

    /// Bytes since the present segment was begun: what a new checkpoint would make needless, and so
    /// what `--journal-max` is held against.
    pub fn bytes_since_rotation(&self) -> u64 {
        self.state.lock().end
    }

    /// The last version appended, and the last one durable.
    pub fn versions(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.version, state.durable_version)
    }

    /// Commits so far.
    pub fn n_commits(&self) -> u64 {
        self.state.lock().n_commits
    }

    /// A new segment. If it cannot be made and its name may nevertheless be found after a restart,
    /// says why: records that go on in the old segment would then not count.
    fn begin_or_undo(&self, version: u64) -> Result<Arc<dyn OutputFile>, (Error, Option<String>)> {
        begin_segment(&*self.disk, &self.directory, self.job, version).map_err(|error| {
            let path = path_of(&self.directory, version);
            let undone = remove_if_there(&*self.disk, &path).and_then(|()| {
                let synced = self.disk.sync_directory(&self.directory);
                synced.map_err(Error::io("sync", &self.directory))
            });
            let why = undone.err().map(|second| format!("{error}, and then: {second}"));
            (error, why)
        })
    }

    /// Goes on in a new, empty segment.
    fn enter(&self, state: &mut State, segment: Arc<dyn OutputFile>, version: u64) {
        state.segment = segment;
        state.path = path_of(&self.directory, version);
        state.start = version;
        state.end = SEGMENT_HEADER_BYTES as u64;
        state.durable_end = state.end;
        state.version = version;
        state.durable_version = version;
    }

    /// Nothing more is taken, and who waits for a record is told.
    fn fail(&self, mut state: MutexGuard<'_, State>, why: String) -> Error {
        let path = state.path.clone();
        state.failed = Some(why.clone());
        let callbacks = std::mem::take(&mut state.callbacks);
        drop(state);
        let failure = || Error::JournalFailed { path: path.clone(), why: why.clone() };
        for (_, then) in callbacks {
            then(Err(failure()));
        }
        self.committed.notify_all();
        failure()
    }

    /// Tells who waits for records that are durable now.
    fn tell_settled(&self, mut state: MutexGuard<'_, State>) {
        let durable = Ticket(state.durable_version);
        let (settled, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut state.callbacks)
            .into_iter()
            .partition(|(ticket, _)| *ticket <= durable);
        state.callbacks = waiting;
        drop(state);
        self.committed.notify_all();
        for (_, then) in settled {
            then(Ok(()));
        }
    }
}

/// A new segment whose header and name are durable before a record can be.
fn begin_segment(
    disk: &dyn Disk,
    directory: &Path,
    job: u64,
    version: u64,
) -> Result<Arc<dyn OutputFile>, Error> {
    let path = path_of(directory, version);
    let file = disk.create(&path).map_err(Error::io("create", &path))?;
    file.write(&mut [IoSlice::new(&segment_header(job, version))])
        .and_then(|()| file.sync())
        .and_then(|()| disk.sync_directory(directory))
        .map_err(Error::io("begin", &path))?;
    Ok(file)
}

fn remove_if_there(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    match disk.remove(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

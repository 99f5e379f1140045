//! What makes a job outlive its server's process: checkpoints and the journal between them, on
//! their way from the driver to the disk.
//!
//! Knows the files ([`crate::storage`]) and what goes into them; when a checkpoint is due and what
//! has counted is the core's affair. Two threads do what would hold up pushes: one writes
//! checkpoints, one commits the journal, many records with one sync. In a simulation, which has no
//! threads, both happen at once where they are asked for.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock, mpsc};

use parking_lot::Mutex;
use ps_common::job::Durability;
use ps_common::partition::{CheckpointName, Partition};
use ps_common::statistics::Statistics;
use ps_common::tables::Tables;
use ps_common::{Dtype, Error, ErrorCode};
use sha2::{Digest, Sha256};

use crate::applier::{Applier, Parts};
use crate::core::{Config, Counted, Input, Order, Saved};
use crate::numeric::Optimizer;
use crate::storage::checkpoint::{Compression, Writer};
use crate::storage::{self, Directory, Disk, FileReader, Journal, journal};
use crate::table::{Captured, Restoring};

mod job;
mod part;
mod record;
mod resume;
#[cfg(test)]
mod tests;

use job::JobSection;
pub use part::{Kept, PartKeeper};
pub use resume::{Origin, Resumed, Resumption};

/// How a keeper keeps.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// What a crash may undo.
    pub durability: Durability,
    /// Which of the job's servers it keeps for.
    pub partition: Partition,
    /// How many checkpoints are kept.
    pub keep: usize,
    /// Size of the journal at which a checkpoint takes its place.
    pub journal_bytes_max: u64,
    /// Whether slow work has threads of its own.
    pub threads: bool,
}

/// Called with what is known later than it is asked for.
pub type Late<T> = Arc<dyn Fn(T) + Send + Sync>;

/// A locked directory and what is written to it. Its threads end with it.
#[derive(Debug)]
pub struct Keeper {
    settings: Settings,
    boot: u32,
    files: Arc<Files>,
    checkpoints: Mutex<Option<mpsc::Sender<Picture>>>,
    /// Of the job, once there is one.
    job: OnceLock<u64>,
}

/// What both threads write to.
#[derive(Debug)]
struct Files {
    disk: Arc<dyn Disk>,
    directory: Directory,
    /// With durability always, from the first checkpoint on.
    journal: OnceLock<Journal>,
}

/// All that goes into a checkpoint.
#[derive(Debug)]
pub struct Picture {
    job: Vec<u8>,
    theta: Captured,
}

impl Keeper {
    /// Locks the directory for this life of the server.
    ///
    /// # Errors
    /// As [`Directory::open`] and [`Directory::next_boot`].
    pub fn open(
        disk: Arc<dyn Disk>,
        path: &Path,
        settings: Settings,
    ) -> Result<Self, storage::Error> {
        let directory = Directory::open(Arc::clone(&disk), path, settings.keep)?;
        let boot = directory.next_boot()?;
        let files = Arc::new(Files { disk, directory, journal: OnceLock::new() });
        let (checkpoints, job) = (Mutex::default(), OnceLock::new());
        Ok(Self { settings, boot, files, checkpoints, job })
    }

    /// How many lives a server on this directory had before.
    pub fn boot(&self) -> u32 {
        self.boot
    }

    /// Starts the threads; `tell` hears when a checkpoint is durable, or cannot be made so. Nothing
    /// without threads.
    pub fn start(&self, tell: Late<Input>) {
        if !self.settings.threads {
            return;
        }
        let (sender, pictures) = mpsc::channel::<Picture>();
        let files = Arc::clone(&self.files);
        spawn("checkpoints", move || {
            for picture in pictures {
                tell(files.save(&picture));
            }
        });
        *self.checkpoints.lock() = Some(sender);
        if self.files.journal.get().is_some() {
            self.commit_in_a_thread();
        }
    }

    fn commit_in_a_thread(&self) {
        let files = Arc::clone(&self.files);
        spawn("journal", move || {
            files.journal.get().expect("begun before").commit_until_closed();
        });
    }

    /// Puts together what a checkpoint holds.
    pub(crate) fn picture(
        &self,
        saved: Saved,
        theta: Captured,
        optimizer: &Optimizer,
        statistics: &BTreeMap<u32, Statistics>,
    ) -> Picture {
        let id = self.job_of(saved.tables());
        let partition = self.settings.partition;
        let job = JobSection::new(id, partition, saved, optimizer, statistics).to_bytes();
        Picture { job, theta }
    }

    /// The number of the job, which begins with `tables` if it is new: no other one in this directory
    /// has had it.
    pub(crate) fn job_of(&self, tables: &Tables) -> u64 {
        *self.job.get_or_init(|| self.new_job(tables))
    }

    fn new_job(&self, tables: &Tables) -> u64 {
        let mut hash = Sha256::new();
        hash.update(self.boot.to_le_bytes());
        hash.update(serde_json::to_vec(tables).expect("tables are plain"));
        let digest = hash.finalize();
        u64::from_le_bytes(digest[..8].try_into().expect("32 bytes"))
    }

    /// Takes a picture on its way to the disk. No update may be applied meanwhile: what the journal
    /// gets from now on comes after it. Gives the end, where that is known at once: the first
    /// checkpoint of a job is waited for, because the journal begins at it.
    pub(crate) fn save(&self, picture: Picture) -> Option<Input> {
        let is_first =
            self.settings.durability == Durability::Always && self.files.journal.get().is_none();
        if let Some(journal) = self.files.journal.get()
            && let Err(error) = journal.rotate()
        {
            // The journal goes on in the old segment, or has failed: then this checkpoint cures it.
            tracing::warn!("{}", in_full(error));
        }
        let threads = self.checkpoints.lock().clone();
        match threads.filter(|_| !is_first) {
            Some(thread) => {
                thread.send(picture).expect("the thread lives as long as the keeper");
                None
            }
            None => {
                let end = self.files.save(&picture);
                if is_first && matches!(end, Input::Saved { result: Ok(_), .. }) {
                    self.begin_journal(picture.theta.theta().version);
                }
                Some(end)
            }
        }
    }

    fn begin_journal(&self, version: u64) {
        let Files { disk, directory, .. } = &*self.files;
        let job = *self.job.get().expect("its checkpoint was written");
        match Journal::start(Arc::clone(disk), directory.path(), job, version) {
            Ok(journal) => {
                self.files.journal.set(journal).expect("begun once");
                if self.settings.threads {
                    self.commit_in_a_thread();
                }
            }
            // The next checkpoint tries again; until then updates are refused.
            Err(error) => tracing::error!("the journal cannot begin: {}", in_full(error)),
        }
    }

    /// Whether updates have to be recorded.
    pub(crate) fn records(&self) -> bool {
        self.settings.durability == Durability::Always
    }

    /// Writes the record of an update that is about to be stored.
    ///
    /// # Errors
    /// In words; then the update must not be stored.
    pub(crate) fn record(
        &self,
        order: &Order,
        counted: &[Counted],
        gradients: Parts<'_>,
    ) -> Result<(), String> {
        let Some(journal) = self.files.journal.get() else {
            return Err("there is no journal yet: the first checkpoint failed".to_owned());
        };
        let version = journal.versions().0 + 1;
        let append = |parts: &[&[u8]]| journal.append(version, parts).map(drop).map_err(in_full);
        record::with_bytes(order, counted, gradients, append)
    }

    /// Whether a checkpoint should take the journal's place: it is long, or has failed.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        let Some(journal) = self.files.journal.get() else { return self.records() };
        journal.has_failed() || journal.bytes_since_rotation() >= self.settings.journal_bytes_max
    }

    /// Calls `then` once all that is recorded is durable, or it is known that it will not be: at
    /// once where there is no journal.
    pub(crate) fn when_durable(&self, then: impl FnOnce(Result<(), Error>) + Send + 'static) {
        let Some(journal) = self.files.journal.get() else { return then(Ok(())) };
        if !self.settings.threads {
            // The outcome is what `on_all_durable` tells.
            let _ = journal.commit();
        }
        journal.on_all_durable(|outcome| then(outcome.map_err(not_durable)));
    }

    /// Takes up the job of the directory at `origin`, `None` if there is none: its theta goes into
    /// `applier`, whose optimizer has to be the job's.
    ///
    /// # Errors
    /// [`storage::Error::NoneUsable`], [`storage::Error::Mismatch`] and what reading fails with;
    /// [`storage::Error::Bad`] if a checkpoint that was chosen is.
    pub(crate) fn resume(
        &self,
        origin: Origin,
        config: &Config,
        dtype: Dtype,
        applier: &Applier,
    ) -> Result<Option<Resumed>, storage::Error> {
        let resumed = resume::resume(&self.files, origin, config, dtype, applier)?;
        let Some((job, resumed)) = resumed else { return Ok(None) };
        self.job.set(job).expect("resumed before anything is kept");
        if self.records() {
            let Files { disk, directory, .. } = &*self.files;
            let version = resumed.core.version();
            let journal = Journal::start(Arc::clone(disk), directory.path(), job, version)?;
            self.files.journal.set(journal).expect("resumed before anything is kept");
        }
        Ok(Some(resumed))
    }

    /// The checkpoints that the servers of one job may go back to, newest first, as far as this one
    /// has them.
    ///
    /// # Errors
    /// [`storage::Error::Mismatch`], if one is of another server, or of another number of them;
    /// [`storage::Error::Io`].
    pub fn names(&self) -> Result<Vec<CheckpointName>, storage::Error> {
        resume::names(&self.files, self.settings.partition)
    }

    /// Versions of theta that there are checkpoints of, newest first.
    ///
    /// # Errors
    /// [`storage::Error::Io`].
    pub fn versions(&self) -> Result<Vec<u64>, storage::Error> {
        self.files.directory.versions()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(journal) = self.files.journal.get() {
            // Who waited for what was not durable is gone, too.
            let _ = journal.close();
        }
    }
}

impl Files {
    /// Writes a checkpoint, and what follows from it for the journal.
    fn save(&self, picture: &Picture) -> Input {
        let theta = picture.theta.theta();
        let version = theta.version;
        let saved = self
            .directory
            .save(version, Compression::Zstd, &picture.job, |out| write_theta(out, &picture.theta));
        let saved = saved.map_err(|error| {
            let what = in_full(error);
            tracing::error!(version, "a checkpoint could not be written: {what}");
            what
        });
        let result = saved.map(|saved| {
            for what in &saved.not_deleted {
                tracing::warn!("an old checkpoint could not be deleted: {what}");
            }
            if let Some(journal) = self.journal.get() {
                self.settle(journal, version, saved.oldest_kept_version);
            }
            (saved.path.display().to_string(), saved.bytes)
        });
        Input::Saved { version, result }
    }

    /// A durable checkpoint makes old records needless, and takes the place of those that a failed
    /// journal lost.
    fn settle(&self, journal: &Journal, version: u64, oldest_kept_version: u64) {
        if journal.has_failed() && version >= journal.versions().0 {
            match journal.restart(version) {
                Ok(()) => tracing::warn!("the journal goes on in a new file at version {version}"),
                Err(error) => tracing::error!("{}", in_full(error)),
            }
        }
        if let Err(error) = journal.remove_covered(oldest_kept_version) {
            tracing::warn!("{}", in_full(error));
        }
    }
}

/// theta's sections.
fn write_theta(out: &mut Writer<'_>, theta: &Captured) -> std::io::Result<()> {
    let chunks: Vec<_> = theta.theta().chunks().collect();
    out.section("theta", &chunks)?;
    for (slot, parts) in theta.slots() {
        out.section(&format!("optimizer/{slot}"), parts)?;
    }
    Ok(())
}

/// The way back from [`write_theta`].
fn read_theta(reader: &mut FileReader, restoring: &mut Restoring) -> Result<(), storage::Error> {
    while let Some(mut section) = reader.next_section()? {
        let name = section.name().to_owned();
        // Of a later program, perhaps.
        if name != "theta" && !name.starts_with("optimizer/") {
            continue;
        }
        let mut appended = Ok(());
        while let Some(block) = section.next_block()? {
            appended = restoring.append(&name, block);
            if appended.is_err() {
                break;
            }
        }
        appended.map_err(|what| reader.refusal(&what))?;
    }
    Ok(())
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(work).expect("a server that cannot start a thread cannot go on");
}

fn not_durable(error: storage::Error) -> Error {
    let what =
        format!("it is not known whether this push would survive a crash: {}", in_full(error));
    Error::new(ErrorCode::NotDurable, what).retry_after(std::time::Duration::from_secs(1))
}

/// The error with its cause, for a line.
fn in_full(error: storage::Error) -> String {
    let error = error.into_exit();
    match std::error::Error::source(&error) {
        Some(cause) => format!("{}: {cause}", error.message),
        None => error.message,
    }
}

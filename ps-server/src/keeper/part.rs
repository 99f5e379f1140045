//! The checkpoints of a server that keeps one part of theta for partition 0: their names, the way to the
//! disk and back.
//!
//! One thread does all of it, one thing after the other, so that what a life has still to write is
//! written before the next one asks which checkpoints there are.

use std::path::Path;
use std::sync::{Arc, mpsc};

use ps_common::partition::{CheckpointName, Partition};
use ps_common::tables::Tables;
use ps_common::{Dtype, Error, ErrorCode};
use serde::{Deserialize, Serialize};

use super::job::rule_of;
use super::{in_full, spawn};
use crate::follower::{Picture, Restored};
use crate::numeric::Optimizer;
use crate::storage::checkpoint::Compression;
use crate::storage::{self, Directory, Disk, FileReader};
use crate::table::Store;

/// What is kept, and how it is put back.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// Whose keys.
    pub partition: Partition,
    /// That moves them.
    pub optimizer: Optimizer,
    /// Of theta.
    pub dtype: Dtype,
    /// Of theta's chunks.
    pub chunk_bytes: usize,
}

/// A locked directory and the thread that works on it, which ends with this.
#[derive(Debug)]
pub struct PartKeeper {
    work: mpsc::Sender<Work>,
}

type Work = Box<dyn FnOnce(&Files) + Send>;

#[derive(Debug)]
struct Files {
    directory: Directory,
    kept: Kept,
}

/// The first section of such a checkpoint: all that names it, in JSON.
#[derive(Debug, Serialize, Deserialize)]
struct PartSection {
    /// The job's number.
    id: u64,
    /// The life of the job that wrote it.
    epoch: u32,
    partition: Partition,
    /// The update rule with its options.
    rule: String,
    dtype: Dtype,
    tables: Tables,
}

impl PartKeeper {
    /// Locks the directory for this process and starts the thread; `keep` checkpoints are kept, at least
    /// 2.
    ///
    /// # Errors
    /// As [`Directory::open`].
    pub fn open(
        disk: Arc<dyn Disk>,
        path: &Path,
        keep: usize,
        kept: Kept,
    ) -> Result<Self, storage::Error> {
        let files = Files { directory: Directory::open(disk, path, keep)?, kept };
        let (work, queue) = mpsc::channel::<Work>();
        spawn("checkpoints", move || {
            for work in queue {
                work(&files);
            }
        });
        Ok(Self { work })
    }

    /// Tells `then` which checkpoints there are, newest first.
    pub fn names(&self, then: impl FnOnce(Result<Vec<CheckpointName>, Error>) + Send + 'static) {
        self.ask(move |files| then(files.names()));
    }

    /// Reads the checkpoint of this name and tells `then` what is in it; newer ones count for nothing
    /// from now on. `None` is before all of them.
    pub fn load(
        &self,
        name: Option<CheckpointName>,
        then: impl FnOnce(Result<Option<Restored>, Error>) + Send + 'static,
    ) {
        self.ask(move |files| then(files.load(name)));
    }

    /// Writes a checkpoint and tells `then` once it is durable, or why it cannot be.
    pub fn save(
        &self,
        picture: Box<Picture>,
        then: impl FnOnce(Result<(), String>) + Send + 'static,
    ) {
        self.ask(move |files| then(files.save(&picture)));
    }

    fn ask(&self, work: impl FnOnce(&Files) + Send + 'static) {
        self.work.send(Box::new(work)).expect("the thread lives as long as the keeper");
    }
}

impl Files {
    fn names(&self) -> Result<Vec<CheckpointName>, Error> {
        let mut names = Vec::new();
        for (version, section) in self.directory.heads().map_err(unusable)? {
            let Ok(section) = serde_json::from_slice::<PartSection>(&section) else {
                tracing::warn!(version, "a checkpoint here is no part of theta: it is left alone");
                continue;
            };
            let PartSection { id, epoch, partition, .. } = section;
            if partition != self.kept.partition {
                let what = format!(
                    "--checkpoint-dir {}: version {version} is of server {partition}, this is \
                     {}; give each server a directory of its own",
                    self.directory.path().display(),
                    self.kept.partition
                );
                return Err(Error::new(ErrorCode::ConfigMismatch, what));
            }
            names.push(CheckpointName { version, epoch, job: id });
        }
        Ok(names)
    }

    fn load(&self, name: Option<CheckpointName>) -> Result<Option<Restored>, Error> {
        let Some(name) = name else {
            return self.directory.undo_after(None).map(|()| None).map_err(unusable);
        };
        let loaded = self.directory.load_chosen(name.version, |reader| self.read(name, reader));
        loaded.map(|loaded| Some(loaded.value)).map_err(unusable)
    }

    fn read(
        &self,
        name: CheckpointName,
        reader: &mut FileReader,
    ) -> Result<Restored, storage::Error> {
        let section: PartSection = serde_json::from_slice(reader.job())
            .map_err(|e| reader.refusal(&format!("the job's section: {e}")))?;
        let PartSection { id, epoch, partition, rule, dtype, tables } = section;
        let Kept { partition: here, optimizer, chunk_bytes, .. } = self.kept;
        let found = CheckpointName { version: reader.version(), epoch, job: id };
        if found != name {
            return Err(reader.refusal("it is not the one that all servers have"));
        }
        let own = rule_of(&optimizer);
        for (what, has, wants) in [
            ("--partition", partition.to_string(), here.to_string()),
            ("--optimizer", rule, own),
            ("--dtype", dtype.to_string(), self.kept.dtype.to_string()),
        ] {
            if has != wants {
                return Err(
                    reader.mismatch(format!("its {what} is `{has}`, this server's `{wants}`"))
                );
            }
        }
        let part = (&tables, here);
        let mut restoring = Store::restoring(part, dtype, optimizer, chunk_bytes, name.version);
        super::read_theta(reader, &mut restoring)?;
        let store = restoring.finish().map_err(|what| reader.refusal(&what))?;
        Ok(Restored { job: id, tables, store })
    }

    fn save(&self, picture: &Picture) -> Result<(), String> {
        let Picture { name, tables, theta } = picture;
        let section = PartSection {
            id: name.job,
            epoch: name.epoch,
            partition: self.kept.partition,
            rule: rule_of(&self.kept.optimizer),
            dtype: self.kept.dtype,
            tables: tables.clone(),
        };
        let section = serde_json::to_vec(&section).expect("all of it is plain data");
        let saved = self
            .directory
            .save(name.version, Compression::Zstd, &section, |out| super::write_theta(out, theta));
        let saved = saved.map_err(|error| {
            let what = in_full(error);
            tracing::error!(version = name.version, "a checkpoint could not be written: {what}");
            what
        })?;
        for what in &saved.not_deleted {
            tracing::warn!("an old checkpoint could not be deleted: {what}");
        }
        Ok(())
    }
}

/// A checkpoint that cannot be gone back to: partition 0 chooses another one, if the flags are not
/// what is wrong.
fn unusable(error: storage::Error) -> Error {
    let code = match error {
        storage::Error::Mismatch { .. } => ErrorCode::ConfigMismatch,
        _ => ErrorCode::NotDurable,
    };
    Error::new(code, in_full(error))
}

//! A checkpoint that others have chosen: which ones there are, that one and no other, and newer ones
//! out of the way. One server of several goes on where all of them can.

use std::path::PathBuf;

use super::{Directory, Error, FileReader, Loaded, UNDONE};

impl Directory {
    /// The version and the job's section of every checkpoint whose head can be read, newest first.
    ///
    /// # Errors
    /// [`Error::Io`], where the directory cannot be listed.
    pub fn heads(&self) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let mut heads = Vec::new();
        for version in self.versions()? {
            match self.open_one(version, &self.path_of(version)) {
                Ok(reader) => heads.push((version, reader.job().to_vec())),
                // It cannot be gone back to: whoever chooses need not know of it.
                Err(error) => tracing::warn!("{error}"),
            }
        }
        Ok(heads)
    }

    /// Loads the checkpoint of `version` through `load`, and no other. Newer ones are of a future that
    /// did not happen: they get another name, and are deleted once they are old.
    ///
    /// # Errors
    /// [`Error::Bad`] and [`Error::Io`] if it cannot be used; those of `load`. Newer ones keep their
    /// names then.
    pub fn load_chosen<T>(
        &self,
        version: u64,
        mut load: impl FnMut(&mut FileReader) -> Result<T, Error>,
    ) -> Result<Loaded<T>, Error> {
        let path = self.path_of(version);
        let value = self.load_one(version, &path, &mut load)?;
        self.undo_after(Some(version))?;
        self.good.lock().insert(version);
        Ok(Loaded { version, path, value, refused: Vec::new() })
    }

    /// Gives all checkpoints that are newer than `version` (all, if there is none) another name, so
    /// that none is taken for the newest again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn undo_after(&self, version: Option<u64>) -> Result<(), Error> {
        let newer = |found: &u64| version.is_none_or(|version| *found > version);
        let undone: Vec<u64> = self.versions()?.into_iter().filter(newer).collect();
        for version in &undone {
            let path = self.path_of(*version);
            let aside = PathBuf::from(format!("{}{UNDONE}", path.display()));
            self.disk.rename(&path, &aside).map_err(Error::io("rename", &path))?;
            self.good.lock().remove(version);
        }
        if !undone.is_empty() {
            self.disk.sync_directory(&self.path).map_err(Error::io("sync", &self.path))?;
        }
        Ok(())
    }
}

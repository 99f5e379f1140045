//! The server's disk: what is left of it after a crash, and how it decays.

use std::path::{Path, PathBuf};

use ps_server::storage::{Disk as _, Fault, FaultyDisk, Loss};

/// The directory of checkpoints.
pub(crate) const DIRECTORY: &str = "/checkpoints";

/// A disk in memory that outlives its server.
#[derive(Debug, Clone)]
pub(crate) struct Disk(pub(crate) FaultyDisk);

impl Disk {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self(FaultyDisk::new(Path::new(DIRECTORY)))
    }

    /// Nothing that the dying program does from now on reaches it.
    pub(crate) fn stop(&self) {
        self.0.order(self.0.n_operations(), Fault::Crash);
    }

    /// Flips a bit of the newest checkpoint, if there is an older one to go back to.
    pub(crate) fn rot(&self, chance: u64) {
        let entries = self.0.list(Path::new(DIRECTORY)).unwrap_or_default();
        let mut names: Vec<_> =
            entries.into_iter().filter(|entry| entry.name.ends_with(".psck")).collect();
        names.sort_by(|a, b| a.name.cmp(&b.name));
        if let [.., _, newest] = &names[..]
            && newest.bytes > 0
        {
            let path = PathBuf::from(DIRECTORY).join(&newest.name);
            let byte = chance.wrapping_mul(0x9e37_79b9_7f4a_7c15) % newest.bytes;
            self.0.flip(&path, byte as usize, (chance % 8) as u8);
        }
    }

    /// What is found after the crash.
    pub(crate) fn restart(&self, loss: Loss) {
        self.0.restart(loss);
        self.0.limit_free_bytes(None);
    }
}

//! The files that make a server durable: checkpoints, the journal between them, and the one seam
//! to the file system.
//!
//! Knows bytes, names and the version of theta that they belong to; knows nothing of the core, of
//! theta, of workers or of gRPC. Has no threads and no clock: who calls decides when.
//!
//! Start with [`Directory`] (save, load) and [`Journal`] (append, commit, [`journal::recover`]).
//! The layout of both files and what each setting may lose: `docs/STORAGE.md`.

pub mod checkpoint;
mod directory;
pub mod disk;
mod error;
mod faulty;
pub mod journal;
#[cfg(test)]
mod tests;

pub use directory::{Directory, FileReader, Loaded, Refused, Saved};
pub use disk::{Disk, RealDisk};
pub use error::Error;
pub use faulty::{Fault, FaultyDisk, Loss};
pub use journal::{Journal, Ticket};

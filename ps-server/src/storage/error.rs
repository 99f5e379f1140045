//! Why a checkpoint or journal cannot be written or used, and the exit code that it means.

use std::io;
use std::path::{Path, PathBuf};

use ps_common::exit::{Exit, ExitError};

use super::directory::Refused;

/// What storage refuses or fails at. Every variant names the file or directory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that is damaged or not what its name says.
    #[error("{}: bad at byte {offset}{}: {what}", path.display(), in_section(.section.as_ref()))]
    Bad {
        /// The file.
        path: PathBuf,
        /// Where in the file, bytes from its start.
        offset: u64,
        /// The section of a checkpoint.
        section: Option<String>,
        /// What was found, and what was expected.
        what: String,
    },
    /// A file that a newer program wrote.
    #[error(
        "{}: has format {found}, this program reads up to {supported}; use the program that wrote it",
        path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format known here.
        supported: u32,
    },
    /// A good checkpoint that is not this job's.
    #[error("{}: does not fit this job: {what}", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What differs, with both values.
        what: String,
    },
    /// A journal that another job wrote.
    #[error(
        "{}: belongs to job {found:016x}, this is job {expected:016x}; use another directory",
        path.display()
    )]
    OtherJob {
        /// The file.
        path: PathBuf,
        /// Its job.
        found: u64,
        /// The job that it was opened for.
        expected: u64,
    },
    /// The directory has files that a write would be mistaken with or lose.
    #[error(
        "{}: is in the way of version {version}: resume from it, or use an empty directory",
        path.display()
    )]
    Occupied {
        /// The file in the way.
        path: PathBuf,
        /// What was to be written.
        version: u64,
    },
    /// Another server has the directory.
    #[error(
        "{}: locked by another server that runs; stop it, or give this one another directory",
        path.display()
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// Nothing can be created in the directory.
    #[error(
        "{}: cannot create files in it; give an existing directory that can be written to",
        path.display()
    )]
    CannotCreate {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There are checkpoints, and none is good.
    #[error(
        "{}: none of its {} checkpoints is usable: {}",
        path.display(), .refused.len(), listed(.refused)
    )]
    NoneUsable {
        /// The directory.
        path: PathBuf,
        /// Each with its reason, newest first; never empty.
        refused: Vec<Refused>,
    },
    /// Reading or writing failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was done to it: "write", "sync".
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The journal failed earlier, and what was not durable then cannot become so.
    #[error(
        "{}: the journal has failed and takes nothing until a checkpoint replaces it: {why}",
        path.display()
    )]
    JournalFailed {
        /// The segment.
        path: PathBuf,
        /// The failure.
        why: String,
    },
}

fn in_section(section: Option<&String>) -> String {
    section.map_or_else(String::new, |name| format!(" (section {name:?})"))
}

fn listed(refused: &[Refused]) -> String {
    refused.iter().map(|one| one.reason.as_str()).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// The exit code of a program that ends because of this.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Bad { .. } | Self::NoneUsable { .. } => Exit::BadData,
            Self::NewerFormat { .. }
            | Self::Mismatch { .. }
            | Self::OtherJob { .. }
            | Self::Occupied { .. } => Exit::Config,
            Self::Locked { .. } => Exit::TryLater,
            Self::CannotCreate { .. } => Exit::CannotCreate,
            Self::Io { .. } | Self::JournalFailed { .. } => Exit::Io,
        }
    }

    /// Whether the disk is full: what failed may be tried again when there is space.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ))
    }

    /// Makes an [`Error::Io`] of what the system said.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// As the error that a program ends with, its cause kept.
    pub fn into_exit(self) -> ExitError {
        let message = ExitError::new(self.exit(), self.to_string());
        match self {
            Self::CannotCreate { source, .. } | Self::Io { source, .. } => message.because(source),
            _ => message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_ends_with_the_place_the_code_and_the_cause() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let error = Error::io("write", Path::new("/c/x.psck"))(full());
        assert!(error.is_no_space());
        let exit = error.into_exit();
        assert_eq!((exit.exit, &exit.message[..]), (Exit::Io, "cannot write /c/x.psck"));
        let cause = std::error::Error::source(&exit).expect("kept").to_string();
        assert_eq!(cause, full().to_string());

        let (path, section) = (PathBuf::from("/c/x.psck"), Some("theta".to_owned()));
        let bad = Error::Bad { path, offset: 60, section, what: "torn".to_owned() };
        assert_eq!(bad.to_string(), "/c/x.psck: bad at byte 60 (section \"theta\"): torn");
        let exit = bad.into_exit();
        assert!(exit.exit == Exit::BadData && std::error::Error::source(&exit).is_none());
    }
}

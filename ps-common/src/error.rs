//! Why a peer's request was refused: a small stable set of codes, each with its facts.
//!
//! The codes are the `reason` of google.rpc.ErrorInfo on the wire. Their gRPC status stands in
//! `wire/status.rs`, and nowhere else.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// The stable name of a refusal.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ErrorCode { $($(#[$doc])* $variant,)* }

        impl ErrorCode {
            /// All codes.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name on the wire.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

error_codes! {
    /// NaN or an infinity in a gradient.
    NonFinite = "NON_FINITE";
    /// A finite gradient whose update would overflow theta.
    UpdateOverflow = "UPDATE_OVERFLOW";
    /// A tensor of another length than theta's.
    DimMismatch = "DIM_MISMATCH";
    /// Bytes that are no whole number of elements.
    BadLength = "BAD_LENGTH";
    /// A dtype that is unknown, not the job's, or too narrow for theta.
    BadDtype = "BAD_DTYPE";
    /// A message that carries nothing.
    Empty = "EMPTY";
    /// A chunk that does not begin where the one before it ended.
    BadKey = "BAD_KEY";
    /// A row beyond its table's last.
    RowRange = "ROW_RANGE";
    /// A field that is absent or out of its range.
    BadField = "BAD_FIELD";
    /// A clock whose round has closed without this push.
    StaleRound = "STALE_ROUND";
    /// A clock ahead of the server's: the server went back.
    EpochChanged = "EPOCH_CHANGED";
    /// The name of an earlier push with other bytes.
    SeqReused = "SEQ_REUSED";
    /// Older than what the server remembers of this worker.
    SeqTooOld = "SEQ_TOO_OLD";
    /// A rank that never joined.
    UnknownWorker = "UNKNOWN_WORKER";
    /// The caller's lease ended.
    LeaseExpired = "LEASE_EXPIRED";
    /// The rank has a newer incarnation.
    Fenced = "FENCED";
    /// The rank's holder is alive.
    RankTaken = "RANK_TAKEN";
    /// Every rank has a live holder.
    NoVacancy = "NO_VACANCY";
    /// Nobody has joined yet: there is no theta.
    NotInitialized = "NOT_INITIALIZED";
    /// The request disagrees with the running job.
    ConfigMismatch = "CONFIG_MISMATCH";
    /// Another version of the wire.
    ProtoVersion = "PROTO_VERSION";
    /// Named in the wire, not built in this server.
    NotBuilt = "NOT_BUILT";
    /// Needs a job that still takes updates.
    JobEnded = "JOB_ENDED";
    /// The server is stopping.
    Draining = "DRAINING";
    /// Too much at once.
    Overloaded = "OVERLOADED";
    /// The update could not be written to the journal, so it was not applied.
    NotDurable = "NOT_DURABLE";
    /// No token, or one that the server does not know.
    Unauthenticated = "UNAUTHENTICATED";
    /// A good token of a role that may not make this call.
    PermissionDenied = "PERMISSION_DENIED";
    /// A call that was not answered in time.
    Deadline = "DEADLINE";
    /// A bug.
    Internal = "INTERNAL";
}

impl ErrorCode {
    /// What a worker may do about it.
    pub const fn retry(self) -> Retry {
        match self {
            Self::Draining
            | Self::Overloaded
            | Self::NotDurable
            | Self::NotInitialized
            | Self::Deadline => Retry::Same,
            Self::StaleRound
            | Self::EpochChanged
            | Self::SeqTooOld
            | Self::UnknownWorker
            | Self::LeaseExpired => Retry::Rejoin,
            Self::NonFinite
            | Self::UpdateOverflow
            | Self::DimMismatch
            | Self::BadLength
            | Self::BadDtype
            | Self::Empty
            | Self::BadKey
            | Self::RowRange
            | Self::BadField
            | Self::SeqReused
            | Self::Fenced
            | Self::RankTaken
            | Self::NoVacancy
            | Self::ConfigMismatch
            | Self::ProtoVersion
            | Self::NotBuilt
            | Self::JobEnded
            | Self::Unauthenticated
            | Self::PermissionDenied
            | Self::Internal => Retry::Never,
        }
    }

    /// The code of a name on the wire.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.name() == name)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a worker may do after a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Nothing will help.
    Never,
    /// Send the same again, later.
    Same,
    /// Join again and go on from there.
    Rejoin,
}

/// A refusal: its code, a sentence for a person, facts for a program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} [{code}]")]
pub struct Error {
    /// Which refusal.
    pub code: ErrorCode,
    /// What happened, what was expected, what to do.
    pub message: String,
    /// The facts by name: `want`, `got`, `field`, `index`, ...
    pub facts: BTreeMap<String, String>,
    /// When to try again, where that is known.
    pub retry_after: Option<Duration>,
}

impl Error {
    /// A refusal without facts.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), facts: BTreeMap::new(), retry_after: None }
    }

    /// Adds a fact.
    #[must_use]
    pub fn with(mut self, fact: &str, value: impl ToString) -> Self {
        self.facts.insert(fact.to_owned(), value.to_string());
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_round_trip() {
        for &code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_name(code.name()), Some(code));
        }
        assert_eq!(ErrorCode::from_name("nothing"), None);
    }
}

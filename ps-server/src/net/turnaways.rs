//! Who was not let in: counted for the report, logged with the peer, though not once for each of a
//! flood.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use parking_lot::Mutex;
use ps_common::ErrorCode;
use tokio::time::Instant;

use super::connections::Ear;
use crate::core::Input;

/// The log has at most one line of each kind in this time.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// Why somebody was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// More connections than `--connections-max`.
    Full,
    /// TLS did not come about: no certificate, a bad one, another protocol, or nothing in time.
    Handshake,
    /// No HTTP/2 in time, or something else.
    Preface,
    /// A call without a token, or with a wrong one.
    Token,
    /// A call that the token's role may not make.
    Role,
    /// More calls than can be under way at once.
    Busy,
    /// A peer that stopped reading or sending.
    Stalled,
}

impl Why {
    const N: usize = 7;

    const fn text(self) -> &'static str {
        match self {
            Self::Full => "closed a connection beyond --connections-max",
            Self::Handshake => "turned away: no TLS handshake",
            Self::Preface => "turned away: no HTTP/2",
            Self::Token => "turned away: no token that this server knows",
            Self::Role => "turned away: not with this token",
            Self::Busy => "turned away: too many calls at once",
            Self::Stalled => "cut off: the peer stands still",
        }
    }

    /// As the report counts it.
    const fn code(self) -> ErrorCode {
        match self {
            Self::Full | Self::Busy => ErrorCode::Overloaded,
            Self::Handshake | Self::Token => ErrorCode::Unauthenticated,
            Self::Role => ErrorCode::PermissionDenied,
            Self::Preface | Self::Stalled => ErrorCode::Deadline,
        }
    }
}

/// The count of one kind, and when the log last had it.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    n_total: u64,
    said: Option<Instant>,
}

/// The counts.
#[derive(Debug)]
pub(super) struct Turnaways {
    ear: Ear,
    tallies: Mutex<[Tally; Why::N]>,
}

impl Turnaways {
    pub(super) fn new(ear: impl Into<Ear>) -> Self {
        Self { ear: ear.into(), tallies: Mutex::default() }
    }

    /// Notes that the peer at `address` was turned away; `detail` is for the log.
    pub(super) fn note(&self, why: Why, address: SocketAddr, detail: impl Display) {
        if let Some(n_total) = self.count(why, Instant::now()) {
            tracing::warn!(%address, n_total, %detail, "{}", why.text());
        }
        self.ear.tell(Input::Rejected { caller: None, code: why.code() });
    }

    /// The count so far, where the log should have it.
    fn count(&self, why: Why, now: Instant) -> Option<u64> {
        let tally = &mut self.tallies.lock()[why as usize];
        tally.n_total += 1;
        if tally.said.is_some_and(|said| now < said + SAY_EVERY) {
            return None;
        }
        tally.said = Some(now);
        Some(tally.n_total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing;

    #[tokio::test]
    async fn a_flood_is_counted_whole_and_said_once_a_second() {
        let turnaways = Turnaways::new(testing::shell());
        let begun = Instant::now();
        assert_eq!(turnaways.count(Why::Token, begun), Some(1));
        for _ in 0..9 {
            assert_eq!(turnaways.count(Why::Token, begun + SAY_EVERY / 2), None);
        }
        assert_eq!(turnaways.count(Why::Role, begun), Some(1), "each kind has its own");
        assert_eq!(turnaways.count(Why::Token, begun + SAY_EVERY), Some(11));
    }
}

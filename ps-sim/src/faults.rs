//! What can be done to hosts and links, and doing it.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use turmoil::Sim;

use ps_server::storage::Fault;

use crate::disk::Disk;
use crate::net::Breaker;
use crate::plan::Kind;

/// A simulated machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Host {
    Server,
    Worker(u32),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server => f.write_str("server"),
            Self::Worker(rank) => write!(f, "worker-{rank}"),
        }
    }
}

/// One change of the world. Ranks stand for the link between that worker and the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Action {
    /// Ends a host's program; its connections are closed as far as messages get through.
    Crash(Host),
    /// Starts its program anew.
    Start(Host),
    /// Breaks the worker's connections, which hears of it at once.
    Reset(u32),
    /// Loses the next answer to the worker, and breaks the connection that it came on.
    LoseAnswer(u32),
    /// Loses all messages.
    Cut(u32),
    /// Undoes it.
    Mend(u32),
    /// Loses those to the server.
    CutIn(u32),
    /// Undoes it.
    MendIn(u32),
    /// Loses those from the server.
    CutOut(u32),
    /// Undoes it.
    MendOut(u32),
    /// Keeps messages back.
    Hold(u32),
    /// Lets them go.
    Release(u32),
    /// Messages take up to so many milliseconds.
    Latency(u32, u64),
    /// The server's machine loses power at its disk's n-th operation from now.
    PowerFails(u64),
    /// A bit of the newest checkpoint flips, drawn from this.
    Rot(u64),
    /// The disk has room for so many bytes more.
    Fill(usize),
    /// Undoes it.
    Free,
    /// The disk's n-th operation from now fails.
    DiskError(u64),
}

/// An action and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Step {
    pub(crate) at: Duration,
    pub(crate) action: Action,
    /// Of a fault's first action: which it is.
    pub(crate) fault: Option<Kind>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>8} ms  {:?}", self.at.as_millis(), self.action)
    }
}

impl Action {
    /// Does it.
    pub(crate) fn apply(self, sim: &mut Sim<'_>, breakers: &[Breaker], disk: &Disk) {
        let server = Host::Server.to_string();
        let server = server.as_str();
        let worker = |rank| Host::Worker(rank).to_string();
        match self {
            Self::PowerFails(_) => {}
            Self::Rot(chance) => disk.rot(chance),
            Self::Fill(bytes) => disk.0.limit_free_bytes(Some(bytes)),
            Self::Free => disk.0.limit_free_bytes(None),
            Self::DiskError(n) => disk.0.order(disk.0.n_operations() + n, Fault::Io),
            Self::Crash(host) => sim.crash(host.to_string().as_str()),
            Self::Start(host) => sim.bounce(host.to_string().as_str()),
            Self::LoseAnswer(rank) => breakers[rank as usize].arm(),
            Self::Reset(rank) => breakers[rank as usize].trip(),
            Self::Cut(rank) => sim.partition(worker(rank).as_str(), server),
            Self::Mend(rank) => sim.repair(worker(rank).as_str(), server),
            Self::CutIn(rank) => sim.partition_oneway(worker(rank).as_str(), server),
            Self::MendIn(rank) => sim.repair_oneway(worker(rank).as_str(), server),
            Self::CutOut(rank) => sim.partition_oneway(server, worker(rank).as_str()),
            Self::MendOut(rank) => sim.repair_oneway(server, worker(rank).as_str()),
            Self::Hold(rank) => sim.hold(worker(rank).as_str(), server),
            Self::Release(rank) => sim.release(worker(rank).as_str(), server),
            Self::Latency(rank, ms) => sim.set_link_max_message_latency(
                worker(rank).as_str(),
                server,
                Duration::from_millis(ms),
            ),
        }
    }
}

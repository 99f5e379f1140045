//! Threads that serve connections, each with a runtime of its own.
//!
//! All that a connection needs happens on one thread: what arrived is still in that core's cache
//! when it is used, and no scheduler passes it on. Connections that are not the system's have one
//! lane, on the runtime that accepts them. Knows no calls: what a lane runs is given.

use std::io;
use std::sync::Arc;

use ps_common::exit::{Exit, ExitError};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;

use super::connections::{Accepted, Connection};
use super::entrance::Entrance;

/// Applying a push keeps a thread busy, so there are more of them than processors.
const LANES_PER_CORE: usize = 2;
const LANES_MIN: usize = 4;
const LANES_MAX: usize = 64;

/// The threads. Dropped, they cut their connections and end.
#[derive(Debug)]
pub(super) struct Lanes(Vec<Lane>);

#[derive(Debug)]
struct Lane {
    connections: mpsc::UnboundedSender<Accepted>,
    /// Shared by the connections that are open.
    open: Arc<()>,
    ended: oneshot::Receiver<()>,
    _hold: oneshot::Sender<()>,
}

impl Lanes {
    /// Starts threads that let connections in by `entrance` and run what `serve` makes of them. Where that ends while
    /// connections still come, they are closed.
    ///
    /// # Errors
    /// The system's, where it gives no threads.
    pub(super) fn start<F: Future<Output = ()>>(
        entrance: &Entrance,
        serve: impl Fn(Incoming) -> F + Clone + Send + 'static,
    ) -> Result<Self, ExitError> {
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        let n_lanes = (n_cores * LANES_PER_CORE).clamp(LANES_MIN, LANES_MAX);
        (0..n_lanes)
            .map(|i| Lane::start(i, entrance.clone(), serve.clone()))
            .collect::<io::Result<_>>()
            .map(Self)
            .map_err(|e| ExitError::new(Exit::Io, "cannot start the server's threads").because(e))
    }

    /// One lane that is no thread but a task of the runtime that calls it.
    pub(super) fn here<F: Future<Output = ()> + Send + 'static>(
        entrance: &Entrance,
        serve: impl FnOnce(Incoming) -> F,
    ) -> Self {
        let (lane, Ends { accepted, end, dropped }) = Lane::new();
        let serving = serve(entrance.clone().pass(accepted));
        tokio::spawn(async move {
            tokio::select! {
                biased;
                _ = dropped => {}
                () = serving => {}
            }
            let _ = end.send(());
        });
        Self(vec![lane])
    }

    /// Gives a connection to the lane that has the fewest.
    pub(super) fn take(&self, mut accepted: Accepted) {
        let lane = self.0.iter().min_by_key(|lane| Arc::strong_count(&lane.open));
        let lane = lane.expect("there are lanes");
        accepted.belongs_to(&lane.open);
        // A lane that has ended closes it.
        let _ = lane.connections.send(accepted);
    }

    /// Lets no further connection in and waits until all lanes are done with theirs.
    pub(super) async fn finish(self) {
        let mut rest = Vec::new();
        for Lane { connections, open: _, ended, _hold } in self.0 {
            drop(connections);
            rest.push((ended, _hold));
        }
        for (ended, _hold) in rest {
            // An error means that it has ended as well.
            let _ = ended.await;
        }
    }
}

/// What a lane's own side holds of it.
struct Ends {
    accepted: mpsc::UnboundedReceiver<Accepted>,
    end: oneshot::Sender<()>,
    dropped: oneshot::Receiver<()>,
}

impl Lane {
    fn new() -> (Self, Ends) {
        let (connections, accepted) = mpsc::unbounded_channel();
        let (end, ended) = oneshot::channel();
        let (hold, dropped) = oneshot::channel();
        let lane = Self { connections, open: Arc::new(()), ended, _hold: hold };
        (lane, Ends { accepted, end, dropped })
    }

    fn start<F: Future<Output = ()>>(
        i: usize,
        entrance: Entrance,
        serve: impl FnOnce(Incoming) -> F + Send + 'static,
    ) -> io::Result<Self> {
        let (lane, Ends { accepted, end, dropped }) = Self::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(format!("lane-{i}")).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(entrance.pass(accepted)) => {}
                    _ = dropped => {}
                }
            });
            // What is cut is cut before anybody hears of the end.
            drop(runtime);
            let _ = end.send(());
        })?;
        Ok(lane)
    }
}

/// The connections of one lane, for ever.
pub(super) type Incoming = std::pin::Pin<Box<dyn Stream<Item = io::Result<Connection>> + Send>>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing;
    use crate::net::turnaways::Turnaways;
    use tokio_stream::StreamExt;

    #[tokio::test]
    async fn finishing_waits_and_dropping_cuts() {
        let drained = |incoming: Incoming| async move {
            let mut incoming = incoming;
            while incoming.next().await.is_some() {}
        };
        let turnaways = Arc::new(Turnaways::new(testing::shell()));
        let entrance = testing::unprotected().entrance(turnaways);
        Lanes::start(&entrance, drained).expect("threads").finish().await;

        let (hold, mut cut) = mpsc::channel::<()>(1);
        let lanes = Lanes::start(&entrance, move |_| {
            let hold = hold.clone();
            async move {
                let _hold = hold;
                std::future::pending().await
            }
        });
        drop(lanes.expect("threads"));
        assert_eq!(cut.recv().await, None, "every lane has let go");
    }
}

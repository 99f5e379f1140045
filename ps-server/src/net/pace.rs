//! Bodies that go on, and are let go of: a request must not stand still half-way, a call is under
//! way until its answer's last byte.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use ps_common::wire::status::to_status;
use ps_common::{Error, ErrorCode};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Sleep, sleep, timeout, timeout_at};
use tonic::Status;
use tonic::body::Body;

use super::answer::{Out, Outgoing, Parts};
use super::connections::Peer;
use super::turnaways::{Turnaways, Why};

/// A request's body that fails where nothing comes for too long.
pub(super) struct Paced {
    inner: Body,
    limit: Duration,
    /// Runs while nothing comes.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    pub(super) fn new(inner: Body, limit: Duration) -> Self {
        Self { inner, limit, waiting: None }
    }
}

impl HttpBody for Paced {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            self.waiting = None;
            return Poll::Ready(frame);
        }
        let limit = self.limit;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(limit)));
        waiting.as_mut().poll(cx).map(|()| {
            let what = format!("the request stood still for {limit:?}");
            Some(Err(to_status(&Error::new(ErrorCode::Deadline, what))))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer's body that counts as a call under way until it is dropped.
pub(super) struct Held {
    inner: Body,
    _permit: OwnedSemaphorePermit,
}

impl Held {
    pub(super) fn new(inner: Body, permit: OwnedSemaphorePermit) -> Self {
        Self { inner, _permit: permit }
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Messages between a call and its connection.
const MESSAGES_AHEAD: usize = 8;

/// Where an answer goes, and how long its reader may leave it lying.
pub(super) struct Outlet {
    pub(super) out: mpsc::Sender<Out>,
    pub(super) peer: Peer,
    pub(super) stall: Duration,
    turnaways: Arc<Turnaways>,
}

/// The reader is gone, or was cut off.
#[derive(Debug)]
pub(super) struct ReaderGone;

impl Outlet {
    /// The way out of an answer to `peer`, and what it is read from.
    pub(super) fn new(peer: Peer, stall: Duration, turnaways: &Arc<Turnaways>) -> (Self, Outgoing) {
        let (out, outgoing) = mpsc::channel(MESSAGES_AHEAD);
        (Self { out, peer, stall, turnaways: Arc::clone(turnaways) }, outgoing)
    }

    /// Sends `out` on. A reader that takes nothing for too long loses its connection: there is no
    /// other way to get back what lies in its buffers.
    ///
    /// # Errors
    /// [`ReaderGone`].
    pub(super) async fn send(&self, out: Out) -> Result<(), ReaderGone> {
        match timeout(self.stall, self.out.send(out)).await {
            Ok(sent) => sent.map_err(|_| ReaderGone),
            Err(_) => Err(self.cut()),
        }
    }

    /// As [`Outlet::send`], of parts that are made when the reader has room for them; waits until all
    /// are taken. An error among them ends the answer.
    ///
    /// # Errors
    /// [`ReaderGone`], also where a part ended the answer.
    pub(super) async fn send_all(
        &self,
        mut parts: impl Iterator<Item = Result<Bytes, Error>> + Send + 'static,
    ) -> Result<(), ReaderGone> {
        let rest = match (parts.next(), parts.next()) {
            // A small answer need not be waited for.
            (Some(Ok(only)), None) => return self.send(Out::Bytes(only)).await,
            (first, second) => first.into_iter().chain(second).chain(parts),
        };
        let (parts, mut progress) = Parts::new(rest);
        self.send(Out::Parts(parts)).await?;
        loop {
            let limit = *progress.wanted_at.lock() + self.stall;
            match timeout_at(limit, &mut progress.taken).await {
                Ok(taken) => return taken.map_err(|_| ReaderGone),
                Err(_) if *progress.wanted_at.lock() + self.stall > limit => {}
                Err(_) => return Err(self.cut()),
            }
        }
    }

    fn cut(&self) -> ReaderGone {
        let detail = format!("it read nothing of an answer for {:?}", self.stall);
        self.turnaways.note(Why::Stalled, self.peer.address, detail);
        self.peer.line.cut();
        ReaderGone
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};

    use tokio::time::Instant;

    use super::*;
    use crate::core::ConnId;
    use crate::net::answer::streamed;
    use crate::net::testing;

    const N: u8 = 4;

    fn outlet(stall: Duration) -> (Outlet, Outgoing) {
        let address = ([127, 0, 0, 1], 1).into();
        let peer = Peer { conn: ConnId(1), address, line: Arc::default() };
        Outlet::new(peer, stall, &Arc::new(Turnaways::new(testing::shell())))
    }

    fn parts(n: u8) -> impl Iterator<Item = Result<Bytes, Error>> {
        (0..n).map(|i| Ok(Bytes::copy_from_slice(&[i])))
    }

    /// Sends `N` parts to a reader that takes so many of them, one after each `pause`, and no more.
    async fn send_to(n_read: u8, stall: Duration, pause: Duration) -> Result<(), ReaderGone> {
        let (outlet, outgoing) = outlet(stall);
        let mut body = streamed(outgoing).into_body();
        let reading = async {
            for i in 0..n_read {
                sleep(pause).await;
                let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
                let frame = frame.expect("not over").expect("made");
                assert_eq!(frame.into_data().expect("no trailers"), [i][..]);
            }
            pending::<()>().await
        };
        tokio::select! {
            sent = outlet.send_all(parts(N)) => sent,
            () = reading => unreachable!("it never ends"),
        }
    }

    #[tokio::test]
    async fn a_slow_reader_is_given_all() {
        let (stall, pause) = (Duration::from_secs(2), Duration::from_millis(500));
        let begun = Instant::now();
        // One more than there are: it finds out that there are no more.
        assert!(send_to(N + 1, stall, pause).await.is_ok());
        assert!(begun.elapsed() > stall, "in all");
    }

    #[tokio::test]
    async fn a_reader_that_stands_still_is_cut_off() {
        let stall = Duration::from_millis(50);
        for n_read in 0..=N {
            let begun = Instant::now();
            assert!(send_to(n_read, stall, Duration::ZERO).await.is_err(), "{n_read}");
            assert!(begun.elapsed() >= stall);
        }
    }

    #[tokio::test]
    async fn a_small_answer_is_not_waited_for_and_none_goes_to_whom_is_gone() {
        let (outlet, outgoing) = outlet(Duration::from_secs(60));
        assert!(outlet.send_all(parts(1)).await.is_ok());
        drop(outgoing);
        assert!(outlet.send_all(parts(1)).await.is_err());
        assert!(outlet.send_all(parts(2)).await.is_err());
    }
}

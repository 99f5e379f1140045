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
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

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

/// Where an answer's bytes go, and how long their reader may leave them lying.
pub(super) struct Outlet {
    pub(super) bytes: mpsc::Sender<Result<Bytes, Status>>,
    pub(super) peer: Peer,
    pub(super) stall: Duration,
    pub(super) turnaways: Arc<Turnaways>,
}

/// The reader is gone, or was cut off.
#[derive(Debug)]
pub(super) struct ReaderGone;

impl Outlet {
    /// Sends `bytes` on, or the status that ends the answer. A reader that takes nothing for too long
    /// loses its connection: there is no other way to get back what lies in its buffers.
    ///
    /// # Errors
    /// [`ReaderGone`].
    pub(super) async fn send(&self, bytes: Result<Bytes, Status>) -> Result<(), ReaderGone> {
        match tokio::time::timeout(self.stall, self.bytes.send(bytes)).await {
            Ok(sent) => sent.map_err(|_| ReaderGone),
            Err(_) => {
                let detail = format!("it read nothing of an answer for {:?}", self.stall);
                self.turnaways.note(Why::Stalled, self.peer.address, detail);
                self.peer.line.cut();
                Err(ReaderGone)
            }
        }
    }
}

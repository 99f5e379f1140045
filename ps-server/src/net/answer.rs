//! A call's answer on its way out: bytes as they are, or made when the connection has room for them, and the
//! status after the last.
//!
//! Knows no field of any message.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use ps_common::Error;
use ps_common::wire::status::to_status;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Response, header};
use tonic::metadata::GRPC_CONTENT_TYPE;

/// What of an answer goes out next.
pub(super) enum Out {
    /// These bytes.
    Bytes(Bytes),
    /// Bytes that are yet to be made.
    Parts(Parts),
    /// Nothing: the status, OK or not, ends it.
    End(Status),
}

/// Bytes that are made one by one, when the connection has room for more: what has just been computed
/// goes out while it is in the cache.
pub(super) struct Parts {
    parts: Box<dyn Iterator<Item = Result<Bytes, Error>> + Send>,
    wanted_at: Arc<Mutex<Instant>>,
    taken: oneshot::Sender<()>,
}

/// What whoever sends [`Parts`] sees of them.
pub(super) struct Progress {
    /// When one was wanted last, or before the first, when they were given.
    pub(super) wanted_at: Arc<Mutex<Instant>>,
    /// Done when the last was; an error, if nobody wants any more, or one could not be made.
    pub(super) taken: oneshot::Receiver<()>,
}

impl Parts {
    /// All that `parts` gives; an error ends the answer.
    pub(super) fn new(
        parts: impl Iterator<Item = Result<Bytes, Error>> + Send + 'static,
    ) -> (Self, Progress) {
        let (taken, is_taken) = oneshot::channel();
        let wanted_at = Arc::new(Mutex::new(Instant::now()));
        let progress = Progress { wanted_at: Arc::clone(&wanted_at), taken: is_taken };
        (Self { parts: Box::new(parts), wanted_at, taken }, progress)
    }

    fn next(&mut self) -> Option<Result<Bytes, Status>> {
        *self.wanted_at.lock() = Instant::now();
        let next = catch_unwind(AssertUnwindSafe(|| self.parts.next()));
        match next {
            Ok(next) => next.map(|part| part.map_err(|error| to_status(&error))),
            Err(_) => Some(Err(failed_inside())),
        }
    }
}

/// An answer in the order in which it is to go out.
pub(super) type Outgoing = mpsc::Receiver<Out>;

/// The answer to a call that is given through `outgoing`.
pub(super) fn streamed(outgoing: Outgoing) -> Response<Body> {
    response(Body::new(Answer { outgoing, parts: None, is_over: false }))
}

/// The answer of one message, prefix included.
pub(super) fn single(message: Bytes) -> Response<Body> {
    let (sender, outgoing) = mpsc::channel(2);
    for out in [Out::Bytes(message), Out::End(Status::ok(""))] {
        assert!(sender.try_send(out).is_ok(), "there is room for both");
    }
    streamed(outgoing)
}

/// The end of a call in which the server panicked.
pub(super) fn failed_inside() -> Status {
    Status::internal("the server failed inside this call; its log says where")
}

fn response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

struct Answer {
    outgoing: Outgoing,
    /// Before all that comes through `outgoing`.
    parts: Option<Parts>,
    is_over: bool,
}

impl Answer {
    /// The next bytes, or the status after the last.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
        loop {
            if let Some(parts) = &mut self.parts {
                if let Some(part) = parts.next() {
                    return Poll::Ready(part);
                }
                if let Some(Parts { taken, .. }) = self.parts.take() {
                    // Whoever does not wait for it need not know.
                    let _ = taken.send(());
                }
            }
            return Poll::Ready(match ready!(self.outgoing.poll_recv(cx)) {
                Some(Out::Bytes(bytes)) => Ok(bytes),
                Some(Out::Parts(parts)) => {
                    self.parts = Some(parts);
                    continue;
                }
                Some(Out::End(status)) => Err(status),
                None => Err(failed_inside()),
            });
        }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let status = match ready!(self.poll_next(cx)) {
            Ok(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Err(status) => status,
        };
        self.is_over = true;
        self.parts = None;
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use ps_common::ErrorCode;
    use ps_common::wire::frames::plain;
    use ps_common::wire::pb::PushRequest;
    use tonic::Code;

    use super::*;

    fn push(key: u64) -> Bytes {
        plain(&PushRequest { key, data: Bytes::from_static(b"gradient"), ..Default::default() })
    }

    /// The answer's bytes and the status in its trailers.
    async fn read(answer: Response<Body>) -> (Vec<u8>, Code) {
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/grpc");
        let (mut body, mut bytes) = (answer.into_body(), Vec::new());
        loop {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            match frame.expect("trailers come last").expect("no error").into_data() {
                Ok(data) => bytes.extend(data),
                Err(frame) => {
                    let trailers = frame.into_trailers().expect("the only other kind");
                    let status = Status::from_header_map(&trailers).expect("there is a status");
                    assert!(body.is_end_stream());
                    return (bytes, status.code());
                }
            }
        }
    }

    #[tokio::test]
    async fn an_answer_ends_with_its_status() {
        assert_eq!(read(single(push(3))).await, (push(3).to_vec(), Code::Ok));
        let (sender, outgoing) = mpsc::channel(2);
        assert!(sender.try_send(Out::End(Status::aborted("late"))).is_ok());
        assert_eq!(read(streamed(outgoing)).await, (vec![], Code::Aborted));
    }

    #[tokio::test]
    async fn an_answer_without_a_word_on_its_end_is_not_taken_for_whole() {
        let (sender, outgoing) = mpsc::channel(2);
        assert!(sender.try_send(Out::Bytes(push(3))).is_ok());
        drop(sender);
        assert_eq!(read(streamed(outgoing)).await, (push(3).to_vec(), Code::Internal));
    }

    #[tokio::test]
    async fn parts_are_made_when_they_are_wanted() {
        let (sender, outgoing) = mpsc::channel(2);
        let made = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&made);
        let (parts, mut progress) = Parts::new((0..3).map(move |i: u8| {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(Bytes::copy_from_slice(&[i]))
        }));
        assert!(sender.try_send(Out::Parts(parts)).is_ok());
        assert!(sender.try_send(Out::End(Status::ok(""))).is_ok());
        let mut answer = streamed(outgoing);
        for i in 0..3 {
            assert_eq!(made.load(Ordering::Relaxed), u64::from(i));
            let (body, asked_at) = (answer.body_mut(), Instant::now());
            let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
            let frame = frame.expect("one more").expect("made");
            assert_eq!(frame.into_data().expect("no trailers"), [i][..]);
            let wanted_at = *progress.wanted_at.lock();
            assert!((asked_at..=Instant::now()).contains(&wanted_at));
        }
        assert!(progress.taken.try_recv().is_err(), "nobody has asked for a fourth");
        assert_eq!(read(answer).await, (vec![], Code::Ok));
        assert_eq!(progress.taken.try_recv(), Ok(()));
    }

    #[tokio::test]
    async fn a_part_that_panics_ends_the_answer_alone() {
        let (sender, outgoing) = mpsc::channel(2);
        let (parts, _) = Parts::new((0..2).map(|i| match i {
            0 => Ok(push(3)),
            _ => panic!("a test of what a panic does"),
        }));
        assert!(sender.try_send(Out::Parts(parts)).is_ok());
        assert_eq!(read(streamed(outgoing)).await, (push(3).to_vec(), Code::Internal));
    }

    #[tokio::test]
    async fn a_part_that_cannot_be_made_ends_the_answer() {
        let (sender, outgoing) = mpsc::channel(2);
        let error = Error::new(ErrorCode::BadDtype, "too large for it");
        let code = to_status(&error).code();
        let (parts, mut progress) = Parts::new([Ok(push(3)), Err(error), Ok(push(4))].into_iter());
        assert!(sender.try_send(Out::Parts(parts)).is_ok());
        assert!(sender.try_send(Out::Bytes(push(5))).is_ok());
        assert_eq!(read(streamed(outgoing)).await, (push(3).to_vec(), code));
        assert_eq!(progress.taken.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }
}

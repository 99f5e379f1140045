//! A call of the `Parameters` service as HTTP/2 carries it: messages straight out of the request's
//! body, and an answer's body that hands on what it is given.
//!
//! It stands where tonic's generated service would, for the sake of `wire::frames`: that service
//! copies each message on its way in and out. Statuses, limits and trailers are those of tonic, and
//! no client can tell. Knows no field of any message.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use prost::Message;
use ps_common::Error;
use ps_common::wire::PARAMETERS_MESSAGE_BYTES_MAX;
use ps_common::wire::frames::{Arrived, Inbox};
use ps_common::wire::pb::PushRequest;
use ps_common::wire::status::to_status;
use tokio::sync::{mpsc, oneshot};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderName, Request, Response, header};
use tonic::metadata::{GRPC_CONTENT_TYPE, MetadataValue};
use tonic::{Code, Status};

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// A call's messages, in order.
#[derive(Debug)]
pub(super) struct Incoming {
    body: Body,
    inbox: Inbox,
}

impl Incoming {
    /// The messages of `request`.
    ///
    /// # Errors
    /// UNIMPLEMENTED where they are compressed.
    pub(super) fn of(request: Request<Body>) -> Result<Self, Status> {
        if let Some(encoding) = request.headers().get(ENCODING)
            && encoding != "identity"
        {
            let mut status = Status::unimplemented(format!(
                "Content is compressed with `{}` which isn't supported",
                String::from_utf8_lossy(encoding.as_bytes())
            ));
            let accepted = MetadataValue::from_static("identity");
            status.metadata_mut().insert("grpc-accept-encoding", accepted);
            return Err(status);
        }
        Ok(Self { body: request.into_body(), inbox: Inbox::default() })
    }

    /// The next message of a push; `None` where the caller has ended the stream. Nothing
    /// is lost when the future is dropped.
    pub(super) async fn chunk(&mut self) -> Result<Option<Arrived<PushRequest>>, Status> {
        loop {
            if let Some(arrived) = self.inbox.next_chunk(PARAMETERS_MESSAGE_BYTES_MAX)? {
                return Ok(Some(arrived));
            }
            if !self.more().await? {
                return Ok(None);
            }
        }
    }

    /// The next message, of at most `bytes_max`; `None` where the caller has ended the stream. Nothing is
    /// lost when the future is dropped.
    pub(super) async fn message<M: Message + Default>(
        &mut self,
        bytes_max: usize,
    ) -> Result<Option<M>, Status> {
        loop {
            if let Some(message) = self.inbox.next_message(bytes_max)? {
                return Ok(Some(message));
            }
            if !self.more().await? {
                return Ok(None);
            }
        }
    }

    /// The only message of a call that has one.
    pub(super) async fn only<M: Message + Default>(&mut self) -> Result<M, Status> {
        let mut only = None;
        loop {
            // Read to the end, so that the stream closes in order.
            while let Some(message) = self.inbox.next_message(PARAMETERS_MESSAGE_BYTES_MAX)? {
                only.get_or_insert(message);
            }
            if !self.more().await? {
                return only.ok_or_else(|| Status::internal("Missing request message."));
            }
        }
    }

    /// Waits for more to arrive; `false`: there is no more.
    async fn more(&mut self) -> Result<bool, Status> {
        match std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.inbox.put(data);
                    return Ok(true);
                }
                Err(_trailers) => {}
            },
            // The caller has taken the call back.
            Some(Err(status)) if status.code() == Code::Cancelled => return Ok(false),
            Some(Err(status)) => return Err(status),
            None => {}
        }
        match self.inbox.is_empty() {
            true => Ok(false),
            false => Err(Status::internal("Unexpected EOF decoding stream.")),
        }
    }
}

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
    n_wanted: Arc<AtomicU64>,
    taken: oneshot::Sender<()>,
}

/// What whoever sends [`Parts`] sees of them.
pub(super) struct Progress {
    /// How many were wanted so far.
    pub(super) n_wanted: Arc<AtomicU64>,
    /// Done when the last was; an error, if nobody wants any more, or one could not be made.
    pub(super) taken: oneshot::Receiver<()>,
}

impl Parts {
    /// All that `parts` gives; an error ends the answer.
    pub(super) fn new(
        parts: impl Iterator<Item = Result<Bytes, Error>> + Send + 'static,
    ) -> (Self, Progress) {
        let (taken, is_taken) = oneshot::channel();
        let n_wanted = Arc::default();
        let progress = Progress { n_wanted: Arc::clone(&n_wanted), taken: is_taken };
        (Self { parts: Box::new(parts), n_wanted, taken }, progress)
    }

    fn next(&mut self) -> Option<Result<Bytes, Status>> {
        self.n_wanted.fetch_add(1, Ordering::Relaxed);
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
    use super::*;
    use ps_common::ErrorCode;
    use ps_common::wire::frames::plain;
    use ps_common::wire::pb::PullRequest;
    use std::collections::VecDeque;

    /// A body that has arrived already.
    struct Fixed(VecDeque<Result<Frame<Bytes>, Status>>);

    impl HttpBody for Fixed {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front())
        }
    }

    fn incoming(frames: Vec<Result<Frame<Bytes>, Status>>) -> Incoming {
        let request = Request::new(Body::new(Fixed(frames.into())));
        Incoming::of(request).expect("not compressed")
    }

    fn data(bytes: &[u8]) -> Result<Frame<Bytes>, Status> {
        Ok(Frame::data(Bytes::copy_from_slice(bytes)))
    }

    fn trailers() -> Result<Frame<Bytes>, Status> {
        Ok(Frame::trailers(HeaderMap::new()))
    }

    fn push(key: u64) -> Bytes {
        plain(&PushRequest { key, data: Bytes::from_static(b"gradient"), ..Default::default() })
    }

    #[tokio::test]
    async fn messages_end_where_the_caller_ends_the_stream() {
        let both = [&push(1)[..], &push(2)].concat();
        let cancelled = || Err(Status::cancelled("taken back"));
        for end in [vec![], vec![trailers()], vec![cancelled()], vec![data(&[]), trailers()]] {
            let mut frames = vec![data(&both[..9]), data(&both[9..])];
            frames.extend(end);
            let mut incoming = incoming(frames);
            for key in [1, 2] {
                let arrived = incoming.chunk().await.expect("valid").expect("one more");
                assert_eq!(arrived.fields.key, key);
            }
            assert!(incoming.chunk().await.expect("an end").is_none());
        }
    }

    #[tokio::test]
    async fn an_end_inside_a_message_is_an_error() {
        for cut in [1, 5, 8] {
            let mut incoming = incoming(vec![data(&push(1)[..cut]), trailers()]);
            let status = incoming.chunk().await.expect_err("half a message");
            assert_eq!(status.code(), Code::Internal, "{cut}");
        }
        let mut incoming = incoming(vec![Err(Status::unknown("broken"))]);
        assert_eq!(incoming.chunk().await.expect_err("broken").code(), Code::Unknown);
    }

    #[tokio::test]
    async fn a_call_of_one_message_takes_the_first_and_wants_one() {
        let pull = |rank| plain(&PullRequest { rank, ..Default::default() });
        let mut two = incoming(vec![data(&pull(7)), data(&pull(8))]);
        assert_eq!(two.only::<PullRequest>().await.expect("there is one").rank, 7);
        let none = incoming(vec![]).only::<PullRequest>().await.expect_err("there is none");
        assert_eq!(none.code(), Code::Internal);
    }

    #[test]
    fn compression_is_refused_by_name() {
        for (encoding, is_refused) in [("identity", false), ("gzip", true), ("x", true)] {
            let mut request = Request::new(Body::empty());
            request.headers_mut().insert(ENCODING, encoding.parse().expect("a value"));
            match Incoming::of(request) {
                Ok(_) => assert!(!is_refused, "{encoding}"),
                Err(status) => {
                    assert!(is_refused && status.code() == Code::Unimplemented, "{status}");
                    assert!(status.message().contains(encoding), "{status}");
                    assert_eq!(
                        status.metadata().get("grpc-accept-encoding").expect("set"),
                        "identity"
                    );
                }
            }
        }
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
            let body = answer.body_mut();
            let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
            let frame = frame.expect("one more").expect("made");
            assert_eq!(frame.into_data().expect("no trailers"), [i][..]);
            assert_eq!(progress.n_wanted.load(Ordering::Relaxed), u64::from(i) + 1);
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

//! A call's messages as HTTP/2 carries them, straight out of the request's body. How its answer goes out is
//! the business of `answer.rs`.
//!
//! Both stand where tonic's generated service would, for the sake of `wire::frames`: that service
//! copies each message on its way in and out. Statuses, limits and trailers are those of tonic, and
//! no client can tell. Knows no field of any message.

use std::pin::Pin;

use http_body::Body as HttpBody;
use prost::Message;
use ps_common::wire::PARAMETERS_MESSAGE_BYTES_MAX;
use ps_common::wire::frames::{Arrived, Inbox};
use ps_common::wire::pb::PushRequest;
use tonic::body::Body;
use tonic::codegen::http::{HeaderName, Request};
use tonic::metadata::MetadataValue;
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use http_body::Frame;
    use ps_common::wire::frames::plain;
    use ps_common::wire::pb::PullRequest;
    use tonic::codegen::http::HeaderMap;

    use super::*;

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
}

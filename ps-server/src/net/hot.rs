//! A call of the `Parameters` service as HTTP/2 carries it: messages straight out of the request's
//! body, and an answer's body that hands on what it is given.
//!
//! It stands where tonic's generated service would, for the sake of `wire::frames`: that service
//! copies each message on its way in and out. Statuses, limits and trailers are those of tonic, and
//! no client can tell. Knows no field of any message.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use prost::Message;
use ps_common::wire::PARAMETERS_MESSAGE_BYTES_MAX;
use ps_common::wire::frames::{Arrived, Inbox};
use ps_common::wire::pb::PushRequest;
use tokio::sync::mpsc;
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

/// An answer's bytes in the order in which they are to go out; the status, OK or not, ends it.
pub(super) type Outgoing = mpsc::Receiver<Result<Bytes, Status>>;

/// The answer to a call whose messages come through `outgoing`.
pub(super) fn streamed(outgoing: Outgoing) -> Response<Body> {
    response(Body::new(Answer { outgoing, is_over: false }))
}

/// The answer of one message, prefix included.
pub(super) fn single(message: Bytes) -> Response<Body> {
    let (sender, outgoing) = mpsc::channel(2);
    for part in [Ok(message), Err(Status::ok(""))] {
        sender.try_send(part).expect("there is room for both");
    }
    streamed(outgoing)
}

fn response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

struct Answer {
    outgoing: Outgoing,
    is_over: bool,
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
        let status = match ready!(self.outgoing.poll_recv(cx)) {
            Some(Ok(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Some(Err(status)) => status,
            None => Status::internal("the server failed inside this call; its log says where"),
        };
        self.is_over = true;
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

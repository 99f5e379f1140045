//! One gRPC call as bytes out and messages in, without the copies of the generated codec.
//!
//! Owns headers, trailers and the status in them; how messages lie in bytes is the business of
//! `wire::frames`. Knows no field of any message.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame};
use prost::Message;
use ps_common::wire::PARAMETERS_MESSAGE_BYTES_MAX;
use ps_common::wire::frames::{Arrived, Carrier, Inbox};
use ps_common::wire::status::{Failure, from_status};
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::{Code, Status};

use super::connect::Line;
use super::tensor::broken;

type Opening = Pin<Box<dyn Future<Output = Result<Body, Failure>> + Send>>;

/// What the server sends. It may hold back its headers until it has read something, so that
/// opening goes on while the caller sends.
pub(super) enum Incoming {
    /// The headers have not arrived.
    Opening(Opening),
    /// They have.
    Open {
        /// The rest of the answer.
        body: Body,
        /// What of it has arrived.
        inbox: Inbox,
    },
    /// Nothing more comes.
    Ended,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening(_) => "Opening",
            Self::Open { .. } => "Open",
            Self::Ended => "Ended",
        })
    }
}

impl Incoming {
    /// The next message; `None`: the call has ended well. Nothing is lost when the future is dropped.
    pub(super) async fn next<M: Carrier>(&mut self) -> Result<Option<Arrived<M>>, Failure> {
        self.next_by(|inbox| inbox.next_chunk(PARAMETERS_MESSAGE_BYTES_MAX)).await
    }

    /// As [`Incoming::next`], of a message that carries no tensor.
    pub(super) async fn next_message<M: Message + Default>(
        &mut self,
    ) -> Result<Option<M>, Failure> {
        self.next_by(|inbox| inbox.next_message(PARAMETERS_MESSAGE_BYTES_MAX)).await
    }

    async fn next_by<A>(
        &mut self,
        mut next: impl FnMut(&mut Inbox) -> Result<Option<A>, Status>,
    ) -> Result<Option<A>, Failure> {
        if let Self::Opening(opening) = self {
            let body = opening.await?;
            *self = Self::Open { body, inbox: Inbox::default() };
        }
        let Self::Open { body, inbox } = self else { return Ok(None) };
        loop {
            if let Some(arrived) = next(inbox).map_err(|status| broken(status.message()))? {
                return Ok(Some(arrived));
            }
            let frame = match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
                None => return Err(Failure::Transport("the stream broke off".to_owned())),
                Some(Err(status)) => return Err(from_status(&status)),
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(data) => inbox.put(data),
                Err(frame) => {
                    check_status(&frame.into_trailers().unwrap_or_default())?;
                    let is_empty = inbox.is_empty();
                    *self = Self::Ended;
                    return match is_empty {
                        true => Ok(None),
                        false => Err(broken("the call ended inside a message")),
                    };
                }
            }
        }
    }
}

/// Calls `path`. The messages of `queue` go out with their prefixes, each as a frame; when its
/// sender is dropped the request ends. Nothing happens before the first [`Incoming::next`].
pub(super) fn open(mut line: Line, path: &'static str, queue: mpsc::Receiver<Bytes>) -> Incoming {
    Incoming::Opening(Box::pin(async move {
        let mut request = http::Request::new(Body::new(Outgoing(queue)));
        *request.method_mut() = http::Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        *request.uri_mut() = http::Uri::from_static(path);
        let headers = request.headers_mut();
        headers.insert(http::header::TE, http::HeaderValue::from_static("trailers"));
        headers
            .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
        let broken = |error| from_status(&Status::from_error(error));
        poll_fn(|cx| line.poll_ready(cx)).await.map_err(broken)?;
        let (head, body) = line.call(request).await.map_err(broken)?.into_parts();
        if head.status != http::StatusCode::OK {
            let what = format!("HTTP status {} instead of a gRPC answer", head.status);
            return Err(Failure::Other(Code::Unknown, what));
        }
        // An error without a body stands in the headers.
        check_status(&head.headers)?;
        Ok(body)
    }))
}

fn check_status(headers: &http::HeaderMap) -> Result<(), Failure> {
    match Status::from_header_map(headers) {
        Some(status) if status.code() != Code::Ok => Err(from_status(&status)),
        _ => Ok(()),
    }
}

/// The request's body: what comes through a channel.
struct Outgoing(mpsc::Receiver<Bytes>);

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.poll_recv(cx).map(|message| message.map(|message| Ok(Frame::data(message))))
    }
}

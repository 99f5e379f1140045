//! The standing stream of a worker: gradient out, next theta in, over one PushPull call.
//!
//! Owns the order of messages on the stream. A failure ends the stream; the caller opens another
//! and sends the same push again, which its name keeps from counting twice.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use ps_common::Element;
use ps_common::calls::{Outcome, PushHeader, PushResult};
use ps_common::job::JobState;
use ps_common::wire::pb;
use ps_common::wire::pb::parameters_client::ParametersClient;
use ps_common::wire::status::{Failure, from_status};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use super::client::{CALL_DEADLINE, Traffic, WAIT_MAX, messages, within};
use super::tensor::{Assembly, ChunkHead, broken};

/// Chunks between the copy out of the gradient and the connection: enough to keep it busy, few
/// enough to stay in cache.
const CHUNKS_QUEUED: usize = 4;

type Opening =
    Pin<Box<dyn Future<Output = Result<Response<Streaming<pb::PushPullResponse>>, Status>> + Send>>;

/// A stream of steps. After an error every further step fails: open another.
#[derive(Debug)]
pub struct Steps {
    requests: mpsc::Sender<pb::PushRequest>,
    answers: Answers,
    traffic: Arc<Traffic>,
}

/// The server may hold back its headers until it has read something, so that opening and sending go
/// on at the same time.
enum Answers {
    Opening(Opening),
    Open(Box<Streaming<pb::PushPullResponse>>),
    Ended,
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening(_) => "Opening",
            Self::Open(_) => "Open",
            Self::Ended => "Ended",
        })
    }
}

impl Answers {
    /// The next message. Nothing is lost when the future is dropped.
    async fn next(&mut self) -> Result<Option<pb::PushPullResponse>, Status> {
        if let Self::Opening(opening) = self {
            let answers = opening.await?.into_inner();
            *self = Self::Open(Box::new(answers));
        }
        match self {
            Self::Open(answers) => answers.message().await,
            Self::Opening(_) | Self::Ended => Ok(None),
        }
    }
}

impl Steps {
    pub(super) fn new(mut stub: ParametersClient<Channel>, traffic: Arc<Traffic>) -> Self {
        let (requests, queue) = mpsc::channel(CHUNKS_QUEUED);
        let opening = async move { stub.push_pull(ReceiverStream::new(queue)).await };
        Self { requests, answers: Answers::Opening(Box::pin(opening)), traffic }
    }

    /// Pushes `gradient` and fills `theta` with the next version.
    ///
    /// While the server answers `Waiting` (rule R7: kept, others are missing) the same push is sent
    /// again here; `waited` of the result is the sum. A result that is `Waiting` all the same says
    /// that the job does not run any more; theta is then as it was. Where `header` names no longest
    /// wait it is [`WAIT_MAX`], and the deadline lies [`CALL_DEADLINE`] behind it.
    ///
    /// # Errors
    /// The server's refusal, a failed connection, or an answer that is none. theta may hold a part
    /// of the answer then, and the stream is of no more use.
    ///
    /// # Panics
    /// If gradient and theta differ in length or are empty.
    pub async fn step<T: Element>(
        &mut self,
        mut header: PushHeader,
        gradient: &[T],
        theta: &mut [T],
    ) -> Result<PushResult, Failure> {
        assert_eq!(gradient.len(), theta.len(), "gradient and theta are of one length");
        let limit = *header.wait_max.get_or_insert(WAIT_MAX) + CALL_DEADLINE;
        let mut waited = Duration::ZERO;
        loop {
            let answer = self.attempt(limit, header, gradient, theta).await;
            let mut result = answer.inspect_err(|_| self.answers = Answers::Ended)?;
            waited += result.waited;
            if result.outcome != Outcome::Waiting || result.state != JobState::Running {
                result.waited = waited;
                return Ok(result);
            }
        }
    }

    /// One push and its answer, read while it is written: an error may come at any moment.
    async fn attempt<T: Element>(
        &mut self,
        limit: Duration,
        header: PushHeader,
        gradient: &[T],
        theta: &mut [T],
    ) -> Result<PushResult, Failure> {
        let Self { requests, answers, traffic } = self;
        let send = async {
            for message in messages(header, gradient) {
                let bytes = message.encoded_len();
                match tokio::time::timeout(CALL_DEADLINE, requests.send(message)).await {
                    Ok(Ok(())) => traffic.count_sent(bytes),
                    // The call has ended: its answer says why.
                    Ok(Err(_)) => std::future::pending().await,
                    Err(_) => {
                        let what = format!("no chunk could be sent for {CALL_DEADLINE:?}");
                        return Err(Failure::Transport(what));
                    }
                }
            }
            Ok(())
        };
        tokio::select! {
            biased;
            sent = send => sent?,
            early = answers.next() => match early {
                Err(status) => return Err(from_status(&status)),
                Ok(None) => return Err(ended()),
                Ok(Some(_)) => return Err(broken("an answer before the push was whole")),
            },
        }
        receive(limit, answers, traffic, theta).await
    }
}

/// A server that drains closes the stream without a word; the push may be sent over another one.
fn ended() -> Failure {
    Failure::Transport("the server closed the stream of steps".to_owned())
}

/// The answer to one push; `limit` runs anew with each message.
async fn receive<T: Element>(
    limit: Duration,
    answers: &mut Answers,
    traffic: &Traffic,
    theta: &mut [T],
) -> Result<PushResult, Failure> {
    let mut assembly = Assembly::new(theta);
    let mut result = None;
    loop {
        let Some(message) = within(limit, answers.next()).await? else {
            return Err(ended());
        };
        traffic.count_received(message.encoded_len());
        let result = match (result, message.result) {
            (None, Some(first)) => *result.insert(PushResult::try_from(first).map_err(broken)?),
            (Some(result), None) => result,
            (None, None) => return Err(broken("an answer that begins without a result")),
            (Some(_), Some(_)) => return Err(broken("two results in one answer")),
        };
        if result.outcome == Outcome::Waiting && message.last && message.data.is_empty() {
            return Ok(result);
        }
        let head = ChunkHead {
            dtype: message.dtype,
            version: message.version,
            key: message.key,
            last: message.last,
        };
        if assembly.accept(head, &message.data)? {
            return Ok(result);
        }
    }
}

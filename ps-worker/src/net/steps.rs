//! The standing stream of a worker: gradient out, next theta in, over one PushPull call.
//!
//! Owns the order of messages on the stream. A failure ends the stream; the caller opens another
//! and sends the same push again, which its name keeps from counting twice.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use ps_common::calls::{Outcome, PushHeader, PushResult};
use ps_common::job::JobState;
use ps_common::wire::frames::{Arrived, PREFIX_BYTES, with_data};
use ps_common::wire::pb;
use ps_common::wire::status::Failure;
use ps_common::{Element, dtype};
use tokio::sync::mpsc;

use super::client::{CALL_DEADLINE, Traffic, WAIT_MAX, within};
use super::connect::Line;
use super::stream::{Incoming, open};
use super::tensor::{Assembly, ChunkHead, broken, chunks};

/// Chunks between the copy out of the gradient and the connection: enough to keep it busy, few
/// enough to stay in cache.
const CHUNKS_QUEUED: usize = 4;

/// A stream of steps. After an error every further step fails: open another.
#[derive(Debug)]
pub struct Steps {
    requests: mpsc::Sender<Bytes>,
    answers: Incoming,
    traffic: Arc<Traffic>,
    theta_version: u64,
}

impl Steps {
    pub(super) fn new(line: Line, traffic: Arc<Traffic>) -> Self {
        let (requests, queue) = mpsc::channel(CHUNKS_QUEUED);
        let answers = open(line, "/ps.v1.Parameters/PushPull", queue);
        Self { requests, answers, traffic, theta_version: 0 }
    }

    /// Version of the theta that the latest step gave: at least that of its result, and more where
    /// other updates came in between.
    pub fn theta_version(&self) -> u64 {
        self.theta_version
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
            let mut result = answer.inspect_err(|_| self.answers = Incoming::Ended)?;
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
        let Self { requests, answers, traffic, theta_version } = self;
        let send = async {
            for chunk in chunks(gradient) {
                let fields = pb::PushRequest {
                    header: (chunk.key == 0).then(|| header.into()),
                    dtype: pb::Dtype::from(T::DTYPE).into(),
                    key: chunk.key,
                    last: chunk.last,
                    staged: None,
                    data: Bytes::new(),
                };
                let message = with_data(&fields, dtype::as_le_bytes(chunk.values));
                let n_bytes = message.len() - PREFIX_BYTES;
                match tokio::time::timeout(CALL_DEADLINE, requests.send(message)).await {
                    Ok(Ok(())) => traffic.count_sent(n_bytes),
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
            early = answers.next::<pb::PushPullResponse>() => return Err(match early {
                Err(failure) => failure,
                Ok(None) => ended(),
                Ok(Some(_)) => broken("an answer before the push was whole"),
            }),
        }
        let (result, version) = receive(limit, answers, traffic, theta).await?;
        *theta_version = version.unwrap_or(*theta_version);
        Ok(result)
    }
}

/// A server that drains closes the stream without a word; the push may be sent over another one.
fn ended() -> Failure {
    Failure::Transport("the server closed the stream of steps".to_owned())
}

/// The next message, if it arrives within `limit`.
async fn next(
    limit: Duration,
    answers: &mut Incoming,
) -> Result<Arrived<pb::PushPullResponse>, Failure> {
    within(limit, answers.next()).await?.ok_or_else(ended)
}

/// The answer to one push, and the version of the theta that came with it, if one came; `limit` runs
/// anew with each chunk.
async fn receive<T: Element>(
    limit: Duration,
    answers: &mut Incoming,
    traffic: &Traffic,
    theta: &mut [T],
) -> Result<(PushResult, Option<u64>), Failure> {
    let mut assembly = Assembly::new(theta);
    let mut result = None;
    loop {
        let Arrived { fields, data, message_bytes } = next(limit, answers).await?;
        traffic.count_received(message_bytes);
        let result = match (result, fields.result) {
            (None, Some(first)) => *result.insert(PushResult::try_from(first).map_err(broken)?),
            (Some(result), None) => result,
            (None, None) => return Err(broken("an answer that begins without a result")),
            (Some(_), Some(_)) => return Err(broken("two results in one answer")),
        };
        if result.outcome == Outcome::Waiting && fields.last && !data.has_remaining() {
            return Ok((result, None));
        }
        let head = ChunkHead {
            dtype: fields.dtype,
            version: fields.version,
            key: fields.key,
            last: fields.last,
        };
        if assembly.accept(head, data)? {
            return Ok((result, Some(head.version)));
        }
    }
}

//! One server as a worker sees it: every call of the wire, with its deadline.
//!
//! Turns domain values into messages and statuses into [`Failure`]s. Decides nothing: what to do
//! about a failure is `retry`'s and the session's business.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::Message;
use ps_common::Element;
use ps_common::calls::{
    Caller, Evaluation, JoinAnswer, JoinRequest, Leave, PullHeader, PullRequest, PushHeader,
    PushResult, Status,
};
use ps_common::exit::{Exit, ExitError};
use ps_common::job::{JobState, WorkerStats};
use ps_common::statistics::Statistics;
use ps_common::wire::frames::{Arrived, PREFIX_BYTES};
use ps_common::wire::pb::membership_client::MembershipClient;
use ps_common::wire::pb::operator_client::OperatorClient;
use ps_common::wire::pb::parameters_client::ParametersClient;
use ps_common::wire::status::{Failure, from_status};
use ps_common::wire::{self, frames, parameters, pb};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::connect::{Approach, Line, NoConnection, Route};
use super::retry::Budget;
use super::steps::Steps;
use super::stream::open;
use super::tensor::{Assembly, ChunkHead, broken, chunks};

/// An unanswered call is given up after this long; one that waits by its nature has this much on
/// top of its wait.
pub const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// A checkpoint is as long under way as the disk takes to write theta.
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(600);

/// Longest wait that is asked of the server where the caller names none.
pub const WAIT_MAX: Duration = Duration::from_secs(20);

/// Statistics are merged once the slowest worker has read its data.
const MERGE_DEADLINE: Duration = Duration::from_secs(600);

/// A status lists every worker, so it may exceed what other answers may: gRPC's own default.
const STATUS_BYTES_MAX: usize = 4 << 20;

/// Bytes of all messages through one client, each with its five-byte prefix.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    /// Counts a message of `message_bytes` that goes out.
    pub(super) fn count_sent(&self, message_bytes: usize) {
        self.sent.fetch_add((message_bytes + PREFIX_BYTES) as u64, Ordering::Relaxed);
    }

    /// Counts a message of `message_bytes` that came in.
    pub(super) fn count_received(&self, message_bytes: usize) {
        self.received.fetch_add((message_bytes + PREFIX_BYTES) as u64, Ordering::Relaxed);
    }

    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// A connection to one server. Clones share it; it reconnects by itself at the next call after it
/// was cut.
#[derive(Debug, Clone)]
pub struct Client {
    membership: MembershipClient<Line>,
    parameters: ParametersClient<Line>,
    operator: OperatorClient<Line>,
    line: Line,
    traffic: Arc<Traffic>,
}

impl Client {
    /// Connects to `url` (`http://HOST:PORT`, or `HOST:PORT`), trying again for `patience`.
    ///
    /// # Errors
    /// Configuration where `url` is none; unavailable, with the last cause, where nobody answers.
    pub async fn connect(url: &str, patience: Duration) -> Result<Self, ExitError> {
        Self::connect_with(url, patience, &Approach::default()).await
    }

    /// Like [`Client::connect`], as `approach` says; `https://HOST:PORT` wants TLS there.
    ///
    /// # Errors
    /// As [`Client::connect`], and configuration where TLS fails for good. A congestion control that
    /// the system does not know looks like a server that is not reachable, with the kernel's word
    /// for it as the cause.
    pub async fn connect_with(
        url: &str,
        patience: Duration,
        approach: &Approach,
    ) -> Result<Self, ExitError> {
        let route = Route::new(url, approach)?;
        let mut budget = Budget::new(patience, approach.surroundings.seed);
        loop {
            let begun = Instant::now();
            let error = match route.connect().await {
                Ok(line) => return Ok(Self::over(line)),
                Err(NoConnection::Hopeless(error)) => return Err(error),
                Err(NoConnection::Failed(error)) => error,
            };
            // The time that the attempt took counts against the patience as well.
            let Some(pause) = budget.spend(begun, None) else {
                return Err(ExitError::new(
                    Exit::Unavailable,
                    format!("server {url} is not reachable within {patience:?}; is it up?"),
                )
                .because(error));
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Calls over a line that is already there.
    pub fn over(line: impl Into<Line>) -> Self {
        let line = line.into();
        Self {
            membership: MembershipClient::new(line.clone())
                .max_decoding_message_size(wire::CONTROL_MESSAGE_BYTES_MAX)
                .max_encoding_message_size(wire::CONTROL_MESSAGE_BYTES_MAX),
            parameters: ParametersClient::new(line.clone())
                .max_decoding_message_size(wire::PARAMETERS_MESSAGE_BYTES_MAX)
                .max_encoding_message_size(wire::PARAMETERS_MESSAGE_BYTES_MAX),
            operator: OperatorClient::new(line.clone())
                .max_decoding_message_size(STATUS_BYTES_MAX)
                .max_encoding_message_size(wire::CONTROL_MESSAGE_BYTES_MAX),
            line,
            traffic: Arc::default(),
        }
    }

    /// Goes on counting where an earlier client stopped.
    #[must_use]
    pub fn counting(self, traffic: Arc<Traffic>) -> Self {
        Self { traffic, ..self }
    }

    /// What went over this client and its clones, in bytes.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// Enters the job.
    ///
    /// # Errors
    /// The server's refusal, or a failed connection; so for all calls below.
    pub async fn join(&self, request: JoinRequest) -> Result<JoinAnswer, Failure> {
        let request = pb::JoinRequest::from(request);
        let mut stub = self.membership.clone();
        let answer = self.unary(CALL_DEADLINE, request, async move |r| stub.join(r).await).await?;
        JoinAnswer::try_from(answer).map_err(broken)
    }

    /// Renews the lease; `(version of theta, state of the job)`.
    pub async fn heartbeat(
        &self,
        caller: Caller,
        stats: WorkerStats,
    ) -> Result<(u64, JobState), Failure> {
        let request = pb::HeartbeatRequest {
            rank: caller.rank,
            incarnation: caller.incarnation,
            stats: Some(stats.into()),
        };
        let mut stub = self.membership.clone();
        let answer =
            self.unary(CALL_DEADLINE, request, async move |r| stub.heartbeat(r).await).await?;
        Ok((answer.version, parameters::state_from(answer.state).map_err(broken)?))
    }

    /// Says goodbye.
    pub async fn leave(&self, leave: Leave) -> Result<JobState, Failure> {
        let request = pb::LeaveRequest::from(leave);
        let mut stub = self.membership.clone();
        let answer = self.unary(CALL_DEADLINE, request, async move |r| stub.leave(r).await).await?;
        parameters::state_from(answer.state).map_err(broken)
    }

    /// Reports an observer's measurement.
    pub async fn evaluate(&self, evaluation: Evaluation) -> Result<JobState, Failure> {
        let request = pb::EvaluateRequest::from(evaluation);
        let mut stub = self.parameters.clone();
        let answer =
            self.unary(CALL_DEADLINE, request, async move |r| stub.evaluate(r).await).await?;
        parameters::state_from(answer.state).map_err(broken)
    }

    /// Contributes this shard's statistics and waits for those of all shards.
    pub async fn merge_statistics(
        &self,
        caller: Caller,
        statistics: &Statistics,
    ) -> Result<Statistics, Failure> {
        let request = parameters::merge_request(caller, statistics);
        let mut stub = self.parameters.clone();
        let answer = self
            .unary(MERGE_DEADLINE, request, async move |r| stub.merge_statistics(r).await)
            .await?;
        parameters::merged_from(statistics, &answer).map_err(broken)
    }

    /// How the job stands.
    pub async fn status(&self) -> Result<Status, Failure> {
        let mut stub = self.operator.clone();
        let request = pb::StatusRequest {};
        let answer =
            self.unary(CALL_DEADLINE, request, async move |r| stub.status(r).await).await?;
        Status::try_from(answer).map_err(broken)
    }

    /// Has the server write a checkpoint; once it is durable, theta's version in it and its file.
    pub async fn checkpoint(&self) -> Result<(u64, String), Failure> {
        let mut stub = self.operator.clone();
        let request = pb::CheckpointRequest {};
        let deadline = CHECKPOINT_DEADLINE;
        let answer = self.unary(deadline, request, async move |r| stub.checkpoint(r).await).await?;
        Ok((answer.version, answer.path))
    }

    /// Ends the job with theta as it is.
    pub async fn stop(&self, reason: &str) -> Result<JobState, Failure> {
        let mut stub = self.operator.clone();
        let request = pb::StopRequest { reason: reason.to_owned() };
        let answer = self.unary(CALL_DEADLINE, request, async move |r| stub.stop(r).await).await?;
        parameters::state_from(answer.state).map_err(broken)
    }

    /// Fills `theta`, all of one version. Where `request` names no longest wait it is [`WAIT_MAX`].
    pub async fn pull<T: Element>(
        &self,
        mut request: PullRequest,
        theta: &mut [T],
    ) -> Result<PullHeader, Failure> {
        let wait = *request.wait_max.get_or_insert(WAIT_MAX);
        let request = frames::plain(&pb::PullRequest::from(request));
        self.traffic.count_sent(request.len() - PREFIX_BYTES);
        let (requests, queue) = mpsc::channel(1);
        requests.try_send(request).expect("there is room for it");
        drop(requests);
        let limit = wait + CALL_DEADLINE;
        let mut answers = open(self.line.clone(), "/ps.v1.Parameters/Pull", queue);
        let dim = theta.len() as u64;
        let mut assembly = Assembly::new(theta);
        let mut header = None;
        loop {
            let arrived = within(limit, answers.next::<pb::PullResponse>()).await?;
            let Some(Arrived { fields: chunk, data, message_bytes }) = arrived else {
                return Err(broken("theta ends before its last chunk"));
            };
            self.traffic.count_received(message_bytes);
            if chunk.dim != dim {
                return Err(broken(format!("theta of {} elements, not {dim}", chunk.dim)));
            }
            if header.is_none() {
                header = Some(PullHeader::try_from(&chunk).map_err(broken)?);
            }
            let head = ChunkHead {
                dtype: chunk.dtype,
                version: chunk.version,
                key: chunk.key,
                last: chunk.last,
            };
            if assembly.accept(head, data)? {
                // Reading to the end lets the stream close in order.
                while within(limit, answers.next::<pb::PullResponse>()).await?.is_some() {}
                return header.ok_or_else(|| broken("theta without a header"));
            }
        }
    }

    /// Sends one gradient in a call of its own. The answer may be `Waiting`: then the same push is
    /// to be sent again (rule R7). Where `header` names no longest wait it is [`WAIT_MAX`].
    ///
    /// # Panics
    /// If the gradient has no elements.
    pub async fn push<T: Element>(
        &self,
        mut header: PushHeader,
        gradient: &[T],
    ) -> Result<PushResult, Failure> {
        let wait = *header.wait_max.get_or_insert(WAIT_MAX);
        let messages: Vec<_> = messages(header, gradient).collect();
        messages.iter().for_each(|message| self.traffic.count_sent(message.encoded_len()));
        let mut stub = self.parameters.clone();
        let answer = answered(stub.push(tokio_stream::iter(messages)));
        let answer = within(wait + CALL_DEADLINE, answer).await?.into_inner();
        self.traffic.count_received(answer.encoded_len());
        let result = answer.result.ok_or_else(|| broken("a push answered without a result"))?;
        PushResult::try_from(result).map_err(broken)
    }

    /// A standing stream of steps; it is opened with the first one.
    pub fn steps(&self) -> Steps {
        Steps::new(self.line.clone(), self.traffic.clone())
    }

    async fn unary<Q: Message, A: Message>(
        &self,
        limit: Duration,
        request: Q,
        call: impl AsyncFnOnce(Q) -> Result<tonic::Response<A>, tonic::Status>,
    ) -> Result<A, Failure> {
        self.traffic.count_sent(request.encoded_len());
        let answer = within(limit, answered(call(request))).await?.into_inner();
        self.traffic.count_received(answer.encoded_len());
        Ok(answer)
    }
}

/// The messages of one push. Each chunk is copied once, out of the gradient.
pub(super) fn messages<T: Element>(
    header: PushHeader,
    gradient: &[T],
) -> impl Iterator<Item = pb::PushRequest> {
    chunks(gradient).map(move |chunk| pb::PushRequest {
        header: (chunk.key == 0).then(|| header.into()),
        dtype: pb::Dtype::from(T::DTYPE).into(),
        key: chunk.key,
        last: chunk.last,
        staged: None,
        data: bytes::Bytes::copy_from_slice(ps_common::dtype::as_le_bytes(chunk.values)),
    })
}

/// The call's answer, or a failed connection where none came in time.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer,
        Err(_) => Err(Failure::Transport(format!("no answer within {limit:?}"))),
    }
}

async fn answered<T>(call: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, Failure> {
    call.await.map_err(|status| from_status(&status))
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;

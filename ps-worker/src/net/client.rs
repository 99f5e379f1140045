//! A job's servers as a worker sees them, mostly one: every call of the wire, with its deadline.
//!
//! Turns domain values into messages and statuses into [`Failure`]s. Decides nothing: what to do
//! about a failure is `retry`'s and the session's business.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::try_join_all;
use prost::Message;
use ps_common::calls::{
    Caller, Evaluation, Form, JoinAnswer, JoinRequest, Leave, PullHeader, PullRequest, PushHeader,
    PushResult, Status,
};
use ps_common::codec::Encoding;
use ps_common::exit::{Exit, ExitError};
use ps_common::job::{JobState, WorkerStats};
use ps_common::partition::Partition;
use ps_common::rows::{NUMBER_BYTES, Rows, n_elements, to_bytes};
use ps_common::statistics::Statistics;
use ps_common::tables::Tables;
use ps_common::wire::frames::PREFIX_BYTES;
use ps_common::wire::pb::membership_client::MembershipClient;
use ps_common::wire::pb::operator_client::OperatorClient;
use ps_common::wire::pb::parameters_client::ParametersClient;
use ps_common::wire::status::{Failure, from_status};
use ps_common::wire::{self, parameters, pb};
use ps_common::{Element, Error, ErrorCode};
use tokio::time::Instant;

use super::connect::{Approach, Line, NoConnection, Route};
use super::others::{Others, call, end, next_of_theta};
use super::retry::Budget;
use super::steps::{Steps, together};
use super::tensor::{Assembly, Parcel, broken};

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

/// Rows that a pull can ask for: their numbers are part of one message, of at most 1 MiB.
pub const ROWS_ASKED_MAX: usize = 250_000;

/// Beside these numbers a request has those of tables, and some fields.
const _: () = {
    let n_bytes = ROWS_ASKED_MAX * NUMBER_BYTES + Tables::COUNT_MAX * 2 * NUMBER_BYTES + 1024;
    assert!(n_bytes <= wire::PARAMETERS_MESSAGE_BYTES_MAX);
};

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

/// Connections to the servers of a job: all that is decided is asked of the first, and theta is cut
/// among all. Clones share them; each reconnects by itself at the next call after it was cut.
#[derive(Debug, Clone)]
pub struct Client {
    membership: MembershipClient<Line>,
    parameters: ParametersClient<Line>,
    operator: OperatorClient<Line>,
    line: Line,
    others: Others,
    traffic: Arc<Traffic>,
}

impl Client {
    /// Connects to `url` (`http://HOST:PORT`, or `HOST:PORT`), trying again for `patience`.
    ///
    /// # Errors
    /// Configuration where `url` is none; unavailable, with the last cause, where nobody answers.
    pub async fn connect(url: &str, patience: Duration) -> Result<Self, ExitError> {
        Self::connect_with(&[url], patience, &Approach::default()).await
    }

    /// Connects to the servers of a job, in order of partition, each as [`Client::connect`] and as
    /// `approach` says; `https://HOST:PORT` wants TLS there.
    ///
    /// # Errors
    /// As [`Client::connect`], and configuration where TLS fails for good. A congestion control that
    /// the system does not know looks like a server that is not reachable, with the kernel's word
    /// for it as the cause.
    ///
    /// # Panics
    /// If there is no server.
    pub async fn connect_with(
        urls: &[impl AsRef<str>],
        patience: Duration,
        approach: &Approach,
    ) -> Result<Self, ExitError> {
        let lines = urls.iter().map(|url| dial(url.as_ref(), patience, approach));
        let mut lines = try_join_all(lines).await?;
        let first = lines.remove(0);
        Ok(Self { others: Others::over(lines), ..Self::over(first) })
    }

    /// Calls over a line that is already there, to a lone server.
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
            others: Others::default(),
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

    /// Enters the job. Where it has another number of servers than this client knows, the caller is
    /// out of it again, and the failure names both.
    ///
    /// # Errors
    /// The server's refusal, or a failed connection; so for all calls below.
    pub async fn join(&self, request: JoinRequest) -> Result<JoinAnswer, Failure> {
        let request = pb::JoinRequest::from(request);
        let mut stub = self.membership.clone();
        let answer = self.unary(CALL_DEADLINE, request, async move |r| stub.join(r).await).await?;
        let answer = JoinAnswer::try_from(answer).map_err(broken)?;
        let (here, there) = (self.others.n_servers(), answer.first_keys.len());
        if here as usize != there {
            let stats = WorkerStats::default();
            // It was no member that the job has any use for.
            let _ = self.leave(Leave { caller: answer.caller, stats, final_metrics: None }).await;
            let what = format!(
                "--server names {here}, the job has {there} servers: name them all, in order of \
                 partition"
            );
            return Err(Error::new(ErrorCode::ConfigMismatch, what).into());
        }
        let whole = Partition { index: 0, count: here };
        if answer.first_keys != whole.first_keys(answer.dim) {
            let what = format!("theta is cut at keys {:?}", answer.first_keys);
            return Err(broken(format!("{what}, not {:?}", whole.first_keys(answer.dim))));
        }
        Ok(answer)
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
        request: PullRequest,
        theta: &mut [T],
    ) -> Result<PullHeader, Failure> {
        self.pull_in(Form::PLAIN, request, theta).await
    }

    /// As [`Client::pull`], theta sent in `form`: where that names the version that there is, `theta`
    /// stays as it is. After a failure it may hold a part of the answer.
    pub async fn pull_in<T: Element>(
        &self,
        form: Form,
        mut request: PullRequest,
        theta: &mut [T],
    ) -> Result<PullHeader, Failure> {
        let limit = *request.wait_max.get_or_insert(WAIT_MAX) + CALL_DEADLINE;
        let exchange = self.others.next_exchange(request.caller, form);
        let request = pb::PullRequest {
            exchange: exchange.number,
            theta_dtype: parameters::theta_encoding_into(form.encoding),
            version_have: form.version_have,
            ..request.into()
        };
        let dim = theta.len();
        let (own, rest) = theta.split_at_mut(self.others.own_len(dim));
        let receive = async {
            let header = self.receive(&request, limit, Assembly::new(form, own)).await?;
            Ok((header, Some(header.version)))
        };
        let (header, _) = match self.others.is_empty() {
            true => receive.await?,
            false => {
                let take = self.others.take(exchange, limit, (dim, rest), &self.traffic);
                together(receive, take).await?
            }
        };
        Ok(header)
    }

    /// As [`Client::pull`], these rows of it, one after the other, each element
    /// sent in `encoding`. One request names them all, so that [`ROWS_ASKED_MAX`] are possible.
    ///
    /// # Panics
    /// If `theta` has another length than these rows, or there are several servers.
    pub async fn pull_rows<T: Element>(
        &self,
        encoding: Encoding,
        mut request: PullRequest,
        rows: &[Rows],
        theta: &mut [T],
    ) -> Result<PullHeader, Failure> {
        assert_eq!(n_elements(rows), theta.len(), "theta has the length of its rows");
        assert!(self.others.is_empty(), "rows come from a lone server");
        let limit = *request.wait_max.get_or_insert(WAIT_MAX) + CALL_DEADLINE;
        let request = pb::PullRequest {
            theta_dtype: parameters::theta_encoding_into(encoding),
            asked: to_bytes(rows).into(),
            ..request.into()
        };
        let form = Form { encoding, version_have: None };
        self.receive(&request, limit, Assembly::new(form, theta)).await
    }

    /// The first server's part of theta.
    async fn receive<T: Element>(
        &self,
        request: &pb::PullRequest,
        limit: Duration,
        mut assembly: Assembly<'_, T>,
    ) -> Result<PullHeader, Failure> {
        let mut answers = call(self.line.clone(), "/ps.v1.Parameters/Pull", request, &self.traffic);
        let mut header = None;
        loop {
            let (chunk, whole) =
                next_of_theta(&mut answers, limit, &mut assembly, &self.traffic).await?;
            if header.is_none() {
                header = Some(PullHeader::try_from(&chunk).map_err(broken)?);
            }
            if whole {
                end(&mut answers).await?;
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
        assert!(!gradient.is_empty(), "theta has at least one element");
        let gradient = Parcel::from(gradient);
        let staged = self.others.stage(header, gradient, &self.traffic).await?;
        let own = gradient.part(0..self.others.own_len(gradient.len()));
        let messages: Vec<_> = messages(header, own, staged).collect();
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
        Steps::new(self.line.clone(), self.others.clone(), self.traffic.clone())
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

/// A connection to `url`, tried again for `patience`.
async fn dial(url: &str, patience: Duration, approach: &Approach) -> Result<Line, ExitError> {
    let route = Route::new(url, approach)?;
    let mut budget = Budget::new(patience, approach.surroundings.seed);
    loop {
        let begun = Instant::now();
        let error = match route.connect().await {
            Ok(line) => return Ok(line),
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

/// The messages of one push. Each chunk is copied once, out of the gradient.
fn messages<T: Element>(
    header: PushHeader,
    gradient: Parcel<'_, T>,
    staged: Option<u32>,
) -> impl Iterator<Item = pb::PushRequest> {
    gradient.chunks().map(move |chunk| pb::PushRequest {
        header: (chunk.key == 0).then(|| header.into()),
        dtype: chunk.dtype,
        key: chunk.key,
        last: chunk.last,
        staged: staged.filter(|_| chunk.last),
        data: chunk.bytes,
        ..Default::default()
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

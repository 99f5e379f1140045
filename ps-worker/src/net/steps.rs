//! The standing stream of a worker: gradient out, next theta in, over one PushPull call. With several
//! servers that call goes to the first one, and the others' parts come and go beside it (`others`).
//!
//! Owns the order of messages on the stream. A failure ends the stream; the caller opens another
//! and sends the same push again, which its name keeps from counting twice.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use ps_common::Element;
use ps_common::calls::{Form, Outcome, PushHeader, PushResult};
use ps_common::codec::Encoding;
use ps_common::job::JobState;
use ps_common::wire::frames::Arrived;
use ps_common::wire::parameters::theta_encoding_into;
use ps_common::wire::pb;
use ps_common::wire::status::Failure;
use tokio::sync::mpsc;

use super::client::{CALL_DEADLINE, Traffic, WAIT_MAX, within};
use super::connect::Line;
use super::others::{Others, PARTS_QUEUED, send_chunk};
use super::stream::{Incoming, open};
use super::tensor::{Assembly, ChunkHead, Parcel, broken};

/// A stream of steps. After an error every further step fails: open another.
#[derive(Debug)]
pub struct Steps {
    requests: mpsc::Sender<Bytes>,
    answers: Incoming,
    others: Others,
    traffic: Arc<Traffic>,
    theta_version: u64,
    /// How theta is sent.
    encoding: Encoding,
}

impl Steps {
    pub(super) fn new(line: Line, others: Others, traffic: Arc<Traffic>) -> Self {
        let (requests, queue) = mpsc::channel(PARTS_QUEUED);
        let answers = open(line, "/ps.v1.Parameters/PushPull", queue);
        let encoding = Encoding::Plain;
        Self { requests, answers, others, traffic, theta_version: 0, encoding }
    }

    /// Has theta sent in this encoding, and not as it is.
    #[must_use]
    pub fn receiving(self, encoding: Encoding) -> Self {
        Self { encoding, ..self }
    }

    /// Version of the theta that the latest step gave: at least that of its result, and more where
    /// other updates came in between.
    pub fn theta_version(&self) -> u64 {
        self.theta_version
    }

    /// Pushes `gradient` and fills `theta` with the next version: all of it, or of a gradient of rows
    /// ([`Parcel::of_rows`]) the rows that were asked for, perhaps none.
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
    /// If theta has another length than the answer, or is empty where it is all of it; if a gradient of
    /// rows is to go to several servers.
    pub async fn step<'a, T: Element>(
        &mut self,
        mut header: PushHeader,
        gradient: impl Into<Parcel<'a, T>>,
        theta: &mut [T],
    ) -> Result<PushResult, Failure> {
        let gradient = gradient.into();
        assert_eq!(gradient.n_answered(), theta.len(), "theta has the length of the answer");
        match gradient.is_sparse() {
            true => assert!(self.others.is_empty(), "rows go to a lone server"),
            false => assert!(!theta.is_empty(), "theta has at least one element"),
        }
        let limit = *header.wait_max.get_or_insert(WAIT_MAX) + CALL_DEADLINE;
        let (mut waited, mut staged) = (Duration::ZERO, None);
        loop {
            let answer = self.attempt(limit, header, &mut staged, gradient, theta).await;
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
        staged: &mut Option<u32>,
        gradient: Parcel<'_, T>,
        theta: &mut [T],
    ) -> Result<PushResult, Failure> {
        let Self { requests, answers, traffic, others, theta_version, encoding } = self;
        let form = Form { encoding: *encoding, version_have: None };
        let dim = theta.len();
        let exchange = others.next_exchange(header.caller, form);
        let push = async {
            let stage = async {
                match *staged {
                    // What was staged for a push that waits is kept with it.
                    Some(_) => Ok(()),
                    None => {
                        others.stage(header, gradient, traffic).await.map(|digest| *staged = digest)
                    }
                }
            };
            let mut first = Some(pb::PushHeader {
                exchange: exchange.number,
                theta_dtype: theta_encoding_into(*encoding),
                sparse: gradient.is_sparse(),
                ..header.into()
            });
            let mut last = None;
            let send = async {
                for chunk in gradient.part(0..others.own_len(gradient.len())).chunks() {
                    match chunk.last {
                        true => last = Some(chunk),
                        false => send_chunk(requests, first.take(), chunk, None, traffic).await?,
                    }
                }
                Ok(())
            };
            tokio::try_join!(stage, send)?;
            let last = last.expect("a part has a last chunk");
            send_chunk(requests, first.take(), last, *staged, traffic).await
        };
        tokio::select! {
            biased;
            sent = push => sent?,
            early = answers.next::<pb::PushPullResponse>() => return Err(match early {
                Err(failure) => failure,
                Ok(None) => ended(),
                Ok(Some(_)) => broken("an answer before the push was whole"),
            }),
        }
        let (own, rest) = theta.split_at_mut(others.own_len(dim));
        let receive = receive(limit, answers, traffic, Assembly::new(form, own));
        let (result, version) = match others.is_empty() {
            true => receive.await?,
            false => together(receive, others.take(exchange, limit, (dim, rest), traffic)).await?,
        };
        *theta_version = version.unwrap_or(*theta_version);
        Ok(result)
    }
}

/// The first server's answer with the parts of the others, which are of the same version if it has
/// theta at all.
pub(super) async fn together<A>(
    receive: impl Future<Output = Result<(A, Option<u64>), Failure>>,
    take: impl Future<Output = Result<u64, Failure>>,
) -> Result<(A, Option<u64>), Failure> {
    let (mut receive, mut take) = (pin!(receive), pin!(take));
    let mut taken = None;
    let (answer, version) = tokio::select! {
        answer = &mut receive => answer?,
        version = &mut take => {
            taken = Some(version?);
            receive.await?
        }
    };
    // Without theta nobody gives anything.
    let Some(version) = version else { return Ok((answer, None)) };
    let theirs = match taken {
        Some(version) => version,
        None => take.await?,
    };
    if theirs != version {
        let what = format!("theta's parts are of versions {version} and {theirs}");
        return Err(broken(what));
    }
    Ok((answer, Some(version)))
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
    mut assembly: Assembly<'_, T>,
) -> Result<(PushResult, Option<u64>), Failure> {
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
        let brings_theta = result.outcome != Outcome::Waiting && !assembly.is_empty();
        if !brings_theta && fields.last && !data.has_remaining() {
            return Ok((result, None));
        }
        let head = ChunkHead {
            dtype: fields.dtype,
            version: fields.version,
            key: fields.key,
            last: fields.last,
            unchanged: false,
        };
        if assembly.accept(head, data)? {
            return Ok((result, Some(head.version)));
        }
    }
}

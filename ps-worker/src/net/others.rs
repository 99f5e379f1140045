//! The servers besides the first, where theta is cut among several: a push's parts go to them, and
//! theta's parts come from them (`proto/ps/v1/partition.proto`).
//!
//! Owns which keys go where and the two calls `Stage` and `Take`. When they are made, and what is
//! done about failures, is the business of `client` and `steps`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use ps_common::calls::{Caller, Form, PushHeader};
use ps_common::partition::{Partition, staged_digest};
use ps_common::wire::frames::{Arrived, PREFIX_BYTES, parts, plain};
use ps_common::wire::parameters::theta_encoding_into;
use ps_common::wire::pb;
use ps_common::wire::status::Failure;
use ps_common::{Element, ErrorCode};
use tokio::sync::mpsc;

use super::client::{CALL_DEADLINE, Traffic, within};
use super::connect::Line;
use super::stream::{Incoming, open};
use super::tensor::{Assembly, Chunk, ChunkHead, Parcel, broken};

/// Parts of messages between the gradient and a connection: enough to keep it busy. A chunk is two of
/// them, or one where it is short.
pub(super) const PARTS_QUEUED: usize = 8;

/// The servers besides the first; none where the first is alone. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Others {
    /// In order of partition, from 1.
    lines: Arc<[Line]>,
    /// The latest exchange.
    exchange: Arc<AtomicU64>,
}

/// What partition 0 and a taker agree by: theta as it is in one of its answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exchange {
    /// Whose.
    pub(super) caller: Caller,
    /// Larger each time; 0 with a lone server, which has no use for it.
    pub(super) number: u64,
    /// In which theta is wanted.
    pub(super) form: Form,
}

impl Others {
    /// Over lines that are there, in order of partition.
    pub(super) fn over(lines: Vec<Line>) -> Self {
        Self { lines: lines.into(), exchange: Arc::default() }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Servers in all, the first included.
    pub(super) fn n_servers(&self) -> u32 {
        u32::try_from(self.lines.len() + 1).expect("a command line holds fewer")
    }

    /// Where the first server's part of a theta of `dim` elements ends.
    pub(super) fn own_len(&self, dim: usize) -> usize {
        Partition { index: 0, count: self.n_servers() }.keys(dim).len()
    }

    /// The next exchange.
    pub(super) fn next_exchange(&self, caller: Caller, form: Form) -> Exchange {
        let number = match self.is_empty() {
            true => 0,
            false => self.exchange.fetch_add(1, Ordering::Relaxed) + 1,
        };
        Exchange { caller, number, form }
    }

    /// Stages what of `gradient` is not the first server's, at all others at the same time; gives
    /// what the first one wants to see of it, `None` where it is alone.
    ///
    /// # Errors
    /// The first failure, with the partition's number.
    pub(super) async fn stage<T: Element>(
        &self,
        header: PushHeader,
        gradient: Parcel<'_, T>,
        traffic: &Traffic,
    ) -> Result<Option<u32>, Failure> {
        if self.is_empty() {
            return Ok(None);
        }
        let count = self.n_servers();
        let staging = (1..).zip(&self.lines[..]).map(|(index, line)| async move {
            let keys = Partition { index, count }.keys(gradient.len());
            let part = gradient.part(keys).chunks();
            let digest = stage(line.clone(), header, part, traffic).await;
            digest.map_err(|failure| of_partition(index, failure))
        });
        Ok(Some(staged_digest(&try_join_all(staging).await?)))
    }

    /// Fills `rest`, what of a theta of `dim` elements is not the first server's, with theta as it
    /// is in the first server's answer to `exchange`; its version. `limit` is for each message.
    ///
    /// # Errors
    /// The first failure, with the partition's number; parts of more than one version.
    ///
    /// # Panics
    /// If there are none.
    pub(super) async fn take<T: Element>(
        &self,
        exchange: Exchange,
        limit: Duration,
        (dim, mut rest): (usize, &mut [T]),
        traffic: &Traffic,
    ) -> Result<u64, Failure> {
        let count = self.n_servers();
        let mut takes = Vec::with_capacity(self.lines.len());
        for (index, line) in (1..).zip(&self.lines[..]) {
            let keys = Partition { index, count }.keys(dim);
            let (part, after) = rest.split_at_mut(keys.len());
            rest = after;
            takes.push(async move {
                let assembly = Assembly::from_key(keys.start, exchange.form, part);
                let version = take(line.clone(), exchange, limit, assembly, traffic).await;
                version.map_err(|failure| of_partition(index, failure))
            });
        }
        let versions = try_join_all(takes).await?;
        match versions.iter().all(|version| *version == versions[0]) {
            true => Ok(versions[0]),
            false => Err(broken(format!("theta's parts are of versions {versions:?}"))),
        }
    }
}

/// One server's part of a push; the digest that it answers with.
async fn stage(
    line: Line,
    header: PushHeader,
    part: impl Iterator<Item = Chunk>,
    traffic: &Traffic,
) -> Result<u32, Failure> {
    let (requests, queue) = mpsc::channel(PARTS_QUEUED);
    let mut answer = open(line, "/ps.v1.Partition/Stage", queue);
    let send = async move {
        let mut header = Some(pb::PushHeader::from(header));
        for chunk in part {
            send_chunk(&requests, header.take(), chunk, None, traffic).await?;
        }
        // The request ends with its sender.
        drop(requests);
        std::future::pending::<Result<(), Failure>>().await
    };
    let receive = async {
        let response: Option<pb::StageResponse> = answer.next_message().await?;
        let response = response.ok_or_else(|| broken("a part was staged without a digest"))?;
        traffic.count_received(prost::Message::encoded_len(&response));
        end(&mut answer).await?;
        Ok(response.digest)
    };
    tokio::select! {
        digest = receive => digest,
        failed = send => Err(failed.expect_err("it waits after the last chunk")),
    }
}

/// Puts a chunk on its way, at the latest [`CALL_DEADLINE`] after the one before it.
///
/// Where the call has ended it waits for ever: the call's answer says why.
pub(super) async fn send_chunk(
    requests: &mpsc::Sender<Bytes>,
    header: Option<pb::PushHeader>,
    chunk: Chunk,
    staged: Option<u32>,
    traffic: &Traffic,
) -> Result<(), Failure> {
    let fields = pb::PushRequest {
        header,
        dtype: chunk.dtype,
        key: chunk.key,
        last: chunk.last,
        staged,
        table: chunk.table,
        part: chunk.part.into(),
        ..Default::default()
    };
    let mut n_bytes = 0;
    let send = async {
        for part in parts(&fields, chunk.bytes) {
            n_bytes += part.len();
            requests.send(part).await?;
        }
        Ok::<_, mpsc::error::SendError<Bytes>>(())
    };
    match tokio::time::timeout(CALL_DEADLINE, send).await {
        Ok(Ok(())) => {
            traffic.count_sent(n_bytes - PREFIX_BYTES);
            Ok(())
        }
        Ok(Err(_)) => std::future::pending().await,
        Err(_) => Err(Failure::Transport(format!("no chunk could be sent for {CALL_DEADLINE:?}"))),
    }
}

/// One server's part of theta; its version.
async fn take<T: Element>(
    line: Line,
    exchange: Exchange,
    limit: Duration,
    mut assembly: Assembly<'_, T>,
    traffic: &Traffic,
) -> Result<u64, Failure> {
    let request = pb::TakeRequest {
        rank: exchange.caller.rank,
        incarnation: exchange.caller.incarnation,
        exchange: exchange.number,
        wait_ms_max: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
        theta_dtype: theta_encoding_into(exchange.form.encoding),
        version_have: exchange.form.version_have,
    };
    let mut answers = call(line, "/ps.v1.Partition/Take", &request, traffic);
    loop {
        // The server keeps its own time; this is for one that does not answer at all.
        let within = limit + CALL_DEADLINE;
        let (chunk, whole) = next_of_theta(&mut answers, within, &mut assembly, traffic).await?;
        if whole {
            end(&mut answers).await?;
            return Ok(chunk.version);
        }
    }
}

/// The answer to a call of one message.
pub(super) fn call(
    line: Line,
    path: &'static str,
    request: &impl prost::Message,
    traffic: &Traffic,
) -> Incoming {
    let request = plain(request);
    traffic.count_sent(request.len() - PREFIX_BYTES);
    let (requests, queue) = mpsc::channel(1);
    requests.try_send(request).expect("there is room for it");
    open(line, path, queue)
}

/// The next chunk of theta at its place; what else it says, and whether theta is whole.
pub(super) async fn next_of_theta<T: Element>(
    answers: &mut Incoming,
    limit: Duration,
    assembly: &mut Assembly<'_, T>,
    traffic: &Traffic,
) -> Result<(pb::PullResponse, bool), Failure> {
    let arrived = within(limit, answers.next::<pb::PullResponse>()).await?;
    let Some(Arrived { fields, data, message_bytes }) = arrived else {
        return Err(broken("theta ends before its last chunk"));
    };
    traffic.count_received(message_bytes);
    if fields.dim != assembly.dim() {
        return Err(broken(format!("theta of {} elements, not {}", fields.dim, assembly.dim())));
    }
    let head = ChunkHead {
        dtype: fields.dtype,
        version: fields.version,
        key: fields.key,
        last: fields.last,
        unchanged: fields.unchanged,
    };
    let whole = assembly.accept(head, data)?;
    Ok((fields, whole))
}

/// Reads a call that has said all to its end, so that the stream closes in order.
pub(super) async fn end(answers: &mut Incoming) -> Result<(), Failure> {
    while within(CALL_DEADLINE, answers.next::<pb::PullResponse>()).await?.is_some() {}
    Ok(())
}

/// A failure at the server of this partition.
fn of_partition(index: u32, failure: Failure) -> Failure {
    match failure {
        Failure::Transport(what) => Failure::Transport(format!("partition {index}: {what}")),
        // Partition 0 has let the caller in: this server has not heard of the job yet.
        Failure::Refused(error) if error.code == ErrorCode::NotInitialized => {
            Failure::Transport(format!("partition {index} is not there yet: {error}"))
        }
        Failure::Refused(mut error) => {
            error.message = format!("partition {index}: {}", error.message);
            Failure::Refused(error)
        }
        Failure::Other(code, what) => Failure::Other(code, format!("partition {index}: {what}")),
    }
}

#[cfg(test)]
#[path = "others_tests.rs"]
mod tests;

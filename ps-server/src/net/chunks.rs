//! theta on its way out: one message a chunk, without a copy of its bytes on our side.

use std::sync::Arc;

use ps_common::calls::{PullHeader, PushResult};
use ps_common::wire::pb;

use crate::table::Snapshot;

/// The chunks of an answer to Pull.
pub(super) fn of_pull(
    header: PullHeader,
    theta: Arc<Snapshot>,
) -> impl Iterator<Item = pb::PullResponse> + Send + 'static {
    let (dim, size) = (theta.dim as u64, theta.dtype.size_bytes());
    let dtype = pb::Dtype::from(theta.dtype).into();
    let mut bytes_before = 0usize;
    let n_chunks = theta.chunks.len();
    (0..n_chunks).map(move |i| {
        let data = theta.chunks[i].clone();
        let key = (bytes_before / size) as u64;
        bytes_before += data.len();
        pb::PullResponse {
            version: theta.version,
            state: pb::JobState::from(header.state).into(),
            dtype,
            dim,
            seconds: header.seconds,
            waited_us: u64::try_from(header.waited.as_micros()).unwrap_or(u64::MAX),
            key,
            last: i + 1 == n_chunks,
            data,
        }
    })
}

/// The messages of an answer to one step of PushPull; without theta, its result alone.
pub(super) fn of_step(
    result: PushResult,
    theta: Option<Arc<Snapshot>>,
) -> impl Iterator<Item = pb::PushPullResponse> + Send + 'static {
    let n_chunks = theta.as_ref().map_or(0, |theta| theta.chunks.len());
    let mut bytes_before = 0usize;
    (0..n_chunks.max(1)).map(move |i| {
        let mut message = pb::PushPullResponse {
            result: (i == 0).then(|| result.into()),
            last: i + 1 >= n_chunks,
            ..Default::default()
        };
        if let Some(theta) = &theta {
            message.dtype = pb::Dtype::from(theta.dtype).into();
            message.version = theta.version;
            message.key = (bytes_before / theta.dtype.size_bytes()) as u64;
            message.data = theta.chunks[i].clone();
            bytes_before += message.data.len();
        }
        message
    })
}

//! theta on its way out: one message a chunk, in two parts, its head and its chunk as theta has it.

use std::sync::Arc;

use bytes::Bytes;
use ps_common::calls::{PullHeader, PushResult};
use ps_common::wire::frames::parts;
use ps_common::wire::pb;

use crate::table::Snapshot;

/// The parts of an answer to Pull, or, of the keys from `first_key` on, to Take.
pub(super) fn of_pull(
    header: PullHeader,
    theta: Arc<Snapshot>,
    first_key: usize,
) -> impl Iterator<Item = Bytes> + Send + 'static {
    let (dim, size) = (theta.dim as u64, theta.dtype.size_bytes());
    let dtype = pb::Dtype::from(theta.dtype).into();
    let mut bytes_before = 0usize;
    let n_chunks = theta.n_chunks();
    (0..n_chunks).flat_map(move |i| {
        let data = theta.chunk(i);
        let key = (first_key + bytes_before / size) as u64;
        bytes_before += data.len();
        let fields = pb::PullResponse {
            version: theta.version,
            state: pb::JobState::from(header.state).into(),
            dtype,
            dim,
            seconds: header.seconds,
            waited_us: u64::try_from(header.waited.as_micros()).unwrap_or(u64::MAX),
            key,
            last: i + 1 == n_chunks,
            data: Bytes::new(),
        };
        parts(&fields, data)
    })
}

/// The parts of an answer to one step of PushPull; without theta, its result alone.
pub(super) fn of_step(
    result: PushResult,
    theta: Option<Arc<Snapshot>>,
) -> impl Iterator<Item = Bytes> + Send + 'static {
    let n_chunks = theta.as_ref().map_or(0, |theta| theta.n_chunks());
    let mut bytes_before = 0usize;
    (0..n_chunks.max(1)).flat_map(move |i| {
        let mut fields = pb::PushPullResponse {
            result: (i == 0).then(|| result.into()),
            last: i + 1 >= n_chunks,
            ..Default::default()
        };
        let mut data = Bytes::new();
        if let Some(theta) = &theta {
            fields.dtype = pb::Dtype::from(theta.dtype).into();
            fields.version = theta.version;
            fields.key = (bytes_before / theta.dtype.size_bytes()) as u64;
            data = theta.chunk(i);
            bytes_before += data.len();
        }
        parts(&fields, data)
    })
}

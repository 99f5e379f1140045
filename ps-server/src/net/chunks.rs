//! theta on its way out: one message a chunk, in two parts, its head and its bytes.

use bytes::Bytes;
use ps_common::Error;
use ps_common::calls::{PullHeader, PushResult};
use ps_common::wire::frames::{Carrier, parts, plain};
use ps_common::wire::parameters::encoding_into;
use ps_common::wire::pb;

use super::encoder::WireTheta;

/// The parts of an answer to Pull, or, of the keys from `first_key` on, to Take. An error, where an
/// element cannot be written as it was asked for, ends it.
pub(super) fn of_pull(
    header: PullHeader,
    theta: WireTheta,
    first_key: usize,
) -> impl Iterator<Item = Result<Bytes, Error>> + Send + 'static {
    let dtype = encoding_into(theta.encoding(), theta.theta().dtype);
    let mut key = first_key as u64;
    let n_chunks = theta.theta().n_chunks();
    (0..n_chunks).flat_map(move |i| {
        let data = theta.chunk(i, key);
        let fields = pb::PullResponse {
            dtype,
            key,
            last: i + 1 == n_chunks,
            ..without_data(header, &theta)
        };
        key += theta.theta().chunk_len(i) as u64;
        whole_or_error(&fields, data)
    })
}

/// The answer to Pull or Take of a caller that has this theta.
pub(super) fn unchanged(header: PullHeader, theta: &WireTheta, first_key: usize) -> Bytes {
    let fields = pb::PullResponse {
        dtype: encoding_into(theta.encoding(), theta.theta().dtype),
        key: first_key as u64,
        last: true,
        unchanged: true,
        ..without_data(header, theta)
    };
    plain(&fields)
}

/// What stands in every message of an answer.
fn without_data(header: PullHeader, theta: &WireTheta) -> pb::PullResponse {
    pb::PullResponse {
        version: theta.theta().version,
        state: pb::JobState::from(header.state).into(),
        dim: theta.theta().dim as u64,
        seconds: header.seconds,
        waited_us: u64::try_from(header.waited.as_micros()).unwrap_or(u64::MAX),
        ..Default::default()
    }
}

/// The parts of an answer to one step of PushPull; without theta, its result alone. An error as
/// [`of_pull`].
pub(super) fn of_step(
    result: PushResult,
    theta: Option<WireTheta>,
) -> impl Iterator<Item = Result<Bytes, Error>> + Send + 'static {
    let n_chunks = theta.as_ref().map_or(0, |theta| theta.theta().n_chunks());
    let mut key = 0;
    (0..n_chunks.max(1)).flat_map(move |i| {
        let mut fields = pb::PushPullResponse {
            result: (i == 0).then(|| result.into()),
            last: i + 1 >= n_chunks,
            ..Default::default()
        };
        let mut data = Ok(Bytes::new());
        if let Some(theta) = &theta {
            fields.dtype = encoding_into(theta.encoding(), theta.theta().dtype);
            fields.version = theta.theta().version;
            fields.key = key;
            // Nothing, where no rows were asked for.
            if i < n_chunks {
                data = theta.chunk(i, key);
                key += theta.theta().chunk_len(i) as u64;
            }
        }
        whole_or_error(&fields, data)
    })
}

fn whole_or_error<M: Carrier>(
    fields: &M,
    data: Result<Bytes, Error>,
) -> impl Iterator<Item = Result<Bytes, Error>> + use<M> {
    let (parts, error) = match data {
        Ok(data) => (Some(parts(fields, data)), None),
        Err(error) => (None, Some(Err(error))),
    };
    parts.into_iter().flatten().map(Ok).chain(error)
}

//! Push, Pull, PushPull, Evaluate, MergeStatistics: everything but the tensors' bytes.

use std::time::Duration;

use bytes::Bytes;

use super::enums::Parse;
use super::{bad_field, finite, micros, millis, pb, required, seconds, wait_max};
use crate::calls::{Caller, Evaluation, PullHeader, PullRequest, PushHeader, PushResult};
use crate::codec::Encoding;
use crate::dtype::{Dtype, as_le_bytes, copy_from_le_bytes};
use crate::error::{Error, ErrorCode};
use crate::job::{JobState, Metrics};
use crate::statistics::Statistics;

/// How a chunk of this dtype number is written, where theta is of type `theta`; `None`: no such chunk
/// belongs to it.
pub fn encoding_from(number: i32, theta: Dtype) -> Option<Encoding> {
    match pb::Dtype::try_from(number).ok()? {
        pb::Dtype::F32 => (theta == Dtype::F32).then_some(Encoding::Plain),
        pb::Dtype::F64 => (theta == Dtype::F64).then_some(Encoding::Plain),
        pb::Dtype::F16 => Some(Encoding::F16),
        pb::Dtype::Bf16 => Some(Encoding::Bf16),
        pb::Dtype::Int8 => Some(Encoding::Int8),
        pb::Dtype::TopK => Some(Encoding::TopK),
        pb::Dtype::Unspecified => None,
    }
}

/// The dtype number of a chunk that is written so.
pub fn encoding_into(encoding: Encoding, theta: Dtype) -> i32 {
    let dtype = match encoding {
        Encoding::Plain => pb::Dtype::from(theta),
        Encoding::F16 => pb::Dtype::F16,
        Encoding::Bf16 => pb::Dtype::Bf16,
        Encoding::Int8 => pb::Dtype::Int8,
        Encoding::TopK => pb::Dtype::TopK,
    };
    dtype.into()
}

/// How theta, which is of type `theta`, is to be written for a caller that asks for it with this dtype
/// number; 0: as it is.
///
/// # Errors
/// BAD_DTYPE where it cannot be written so.
pub fn theta_encoding_from(number: i32, theta: Dtype) -> Result<Encoding, Error> {
    if number == i32::from(pb::Dtype::Unspecified) {
        return Ok(Encoding::Plain);
    }
    let what = match encoding_from(number, theta) {
        Some(encoding) if encoding.suits_theta() => return Ok(encoding),
        Some(encoding) => format!(
            "theta is not sent as {}: what that leaves out of a gradient comes with the next one, of \
             theta it would never arrive; ask for f16, for bf16, or for theta as it is",
            encoding.name()
        ),
        None => format!(
            "theta of {theta} is not sent in dtype number {number}; ask for f16, for bf16, or for \
             theta as it is"
        ),
    };
    Err(Error::new(ErrorCode::BadDtype, what).with("field", "theta_dtype").with("got", number))
}

/// The dtype number by which theta is asked for in this encoding.
pub fn theta_encoding_into(encoding: Encoding) -> i32 {
    match encoding {
        Encoding::Plain => pb::Dtype::Unspecified.into(),
        // Theta's type is told by a plain chunk alone.
        other => encoding_into(other, Dtype::F32),
    }
}

impl TryFrom<pb::PushHeader> for PushHeader {
    type Error = Error;
    fn try_from(header: pb::PushHeader) -> Result<Self, Error> {
        Ok(Self {
            caller: Caller { rank: header.rank, incarnation: header.incarnation },
            clock: header.clock,
            version_pulled: header.version_pulled,
            n_samples: header.n_samples,
            loss: header.loss.map(|x| finite("loss", x)).transpose()?,
            penalty: header.penalty.map(|x| finite("penalty", x)).transpose()?,
            wait_max: wait_max(header.wait_ms_max),
            exchange: header.exchange,
        })
    }
}

impl From<PushHeader> for pb::PushHeader {
    fn from(header: PushHeader) -> Self {
        Self {
            rank: header.caller.rank,
            incarnation: header.caller.incarnation,
            clock: header.clock,
            version_pulled: header.version_pulled,
            n_samples: header.n_samples,
            loss: header.loss,
            penalty: header.penalty,
            wait_ms_max: header.wait_max.map_or(0, millis),
            exchange: header.exchange,
            ..Self::default()
        }
    }
}

impl TryFrom<pb::PushResult> for PushResult {
    type Error = Error;
    fn try_from(result: pb::PushResult) -> Result<Self, Error> {
        Ok(Self {
            outcome: result.outcome.parse()?,
            version: result.version,
            gradient_delay: result.gradient_delay,
            clock: result.clock,
            state: result.state.parse()?,
            waited: Duration::from_micros(result.waited_us),
        })
    }
}

impl From<PushResult> for pb::PushResult {
    fn from(result: PushResult) -> Self {
        Self {
            outcome: pb::Outcome::from(result.outcome).into(),
            version: result.version,
            gradient_delay: result.gradient_delay,
            clock: result.clock,
            state: pb::JobState::from(result.state).into(),
            waited_us: micros(result.waited),
        }
    }
}

impl From<pb::PullRequest> for PullRequest {
    fn from(request: pb::PullRequest) -> Self {
        Self {
            caller: Caller { rank: request.rank, incarnation: request.incarnation },
            version_min: request.version_min,
            r#final: request.r#final,
            wait_max: wait_max(request.wait_ms_max),
            exchange: request.exchange,
        }
    }
}

impl From<PullRequest> for pb::PullRequest {
    fn from(request: PullRequest) -> Self {
        Self {
            rank: request.caller.rank,
            incarnation: request.caller.incarnation,
            version_min: request.version_min,
            r#final: request.r#final,
            wait_ms_max: request.wait_max.map_or(0, millis),
            exchange: request.exchange,
            ..Self::default()
        }
    }
}

impl TryFrom<&pb::PullResponse> for PullHeader {
    type Error = Error;
    fn try_from(chunk: &pb::PullResponse) -> Result<Self, Error> {
        Ok(Self {
            version: chunk.version,
            state: chunk.state.parse()?,
            seconds: seconds("seconds", chunk.seconds)?,
            waited: Duration::from_micros(chunk.waited_us),
        })
    }
}

impl TryFrom<pb::EvaluateRequest> for Evaluation {
    type Error = Error;
    fn try_from(request: pb::EvaluateRequest) -> Result<Self, Error> {
        Ok(Self {
            caller: Caller { rank: request.rank, incarnation: request.incarnation },
            version: request.version,
            seconds: seconds("seconds", request.seconds)?,
            train: Metrics::try_from(required("train", request.train)?)?,
            test: request.test.map(Metrics::try_from).transpose()?,
            r#final: request.r#final,
        })
    }
}

impl From<Evaluation> for pb::EvaluateRequest {
    fn from(evaluation: Evaluation) -> Self {
        Self {
            rank: evaluation.caller.rank,
            incarnation: evaluation.caller.incarnation,
            version: evaluation.version,
            seconds: evaluation.seconds,
            train: Some(evaluation.train.into()),
            test: evaluation.test.map(Into::into),
            r#final: evaluation.r#final,
        }
    }
}

/// The state in an answer that carries nothing else.
pub fn state_from(number: i32) -> Result<JobState, Error> {
    number.parse()
}

impl TryFrom<pb::MergeStatisticsRequest> for (Caller, Statistics) {
    type Error = Error;
    fn try_from(request: pb::MergeStatisticsRequest) -> Result<Self, Error> {
        let caller = Caller { rank: request.rank, incarnation: request.incarnation };
        let statistics =
            statistics_from(&request.kind, request.n_samples, &request.first, &request.second)?;
        Ok((caller, statistics))
    }
}

/// The request that carries `statistics`.
pub fn merge_request(caller: Caller, statistics: &Statistics) -> pb::MergeStatisticsRequest {
    let (kind, first, second) = columns(statistics);
    pb::MergeStatisticsRequest {
        rank: caller.rank,
        incarnation: caller.incarnation,
        n_samples: statistics.n_samples(),
        kind: kind.to_owned(),
        first,
        second,
    }
}

/// The answer that carries `statistics`.
pub fn merge_response(statistics: &Statistics) -> pb::MergeStatisticsResponse {
    let (_, first, second) = columns(statistics);
    pb::MergeStatisticsResponse { n_samples: statistics.n_samples(), first, second }
}

/// The merger of all shards' statistics, of the kind that was asked for.
pub fn merged_from(
    like: &Statistics,
    response: &pb::MergeStatisticsResponse,
) -> Result<Statistics, Error> {
    statistics_from(columns(like).0, response.n_samples, &response.first, &response.second)
}

fn columns(statistics: &Statistics) -> (&'static str, Bytes, Bytes) {
    let bytes = |values: &[f64]| Bytes::copy_from_slice(as_le_bytes(values));
    match statistics {
        Statistics::Moments { mean, deviations, .. } => ("moments", bytes(mean), bytes(deviations)),
        Statistics::Range { min, max, .. } => ("range", bytes(min), bytes(max)),
    }
}

fn statistics_from(
    kind: &str,
    n_samples: u64,
    first: &Bytes,
    second: &Bytes,
) -> Result<Statistics, Error> {
    if !first.len().is_multiple_of(8) || first.len() != second.len() {
        return Err(bad_field(
            "first, second",
            format!("have {} and {} bytes, not the same number of f64", first.len(), second.len()),
        ));
    }
    let numbers = |bytes: &Bytes| {
        let mut values = vec![0f64; bytes.len() / 8];
        copy_from_le_bytes(&mut values, bytes);
        values
    };
    let (first, second) = (numbers(first), numbers(second));
    let no_rows = n_samples == 0;
    if !no_rows && first.iter().chain(&second).any(|x| !x.is_finite()) {
        return Err(bad_field("first, second", "hold a number that is not finite"));
    }
    match kind {
        "moments" => Ok(Statistics::Moments { n_samples, mean: first, deviations: second }),
        "range" => Ok(Statistics::Range { n_samples, min: first, max: second }),
        other => Err(bad_field("kind", format!("is `{other}`, not moments or range"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn theta_is_asked_for_in_its_own_type_or_in_one_that_writes_every_element() {
        use pb::Dtype::{Bf16, F16, F32, F64, Int8, TopK, Unspecified};
        let encoding = |number: pb::Dtype, theta| theta_encoding_from(number.into(), theta);
        for theta in [Dtype::F32, Dtype::F64] {
            for wanted in [Encoding::Plain, Encoding::F16, Encoding::Bf16] {
                assert_eq!(theta_encoding_from(theta_encoding_into(wanted), theta), Ok(wanted));
            }
            assert_eq!(encoding(theta.into(), theta), Ok(Encoding::Plain));
            assert_eq!(encoding(Unspecified, theta), Ok(Encoding::Plain));
        }
        assert_eq!(encoding(F16, Dtype::F32), Ok(Encoding::F16));
        assert_eq!(encoding(Bf16, Dtype::F32), Ok(Encoding::Bf16));
        for (number, theta, says) in [
            (Int8, Dtype::F32, "theta is not sent as int8: what that leaves out"),
            (TopK, Dtype::F64, "theta is not sent as topk"),
            (F64, Dtype::F32, "theta of f32 is not sent in dtype number 2"),
            (F32, Dtype::F64, "theta of f64 is not sent in dtype number 1"),
        ] {
            let error = encoding(number, theta).expect_err(says);
            assert_eq!(
                (error.code, &error.facts["field"][..]),
                (ErrorCode::BadDtype, "theta_dtype")
            );
            assert!(error.message.contains(says), "{error}");
        }
        let error = theta_encoding_from(77, Dtype::F32).expect_err("unknown");
        assert_eq!((error.code, &error.facts["got"][..]), (ErrorCode::BadDtype, "77"));
    }
}

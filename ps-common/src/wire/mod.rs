//! The wire: generated protobuf types, their conversions, the status table, the limits.
//!
//! Generated types stop here: a conversion parses into a checked value of [`crate::calls`] or gives
//! a typed [`crate::Error`], and nothing downstream validates again.

mod enums;
pub mod frames;
mod membership;
mod operator;
pub mod parameters;
pub mod partition;
pub mod status;

/// The generated types and services of package `ps.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod pb {
    tonic::include_proto!("ps.v1");
}

/// The encoded descriptor set of `proto/`, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/ps_descriptor.bin"));

/// Largest message of the `Parameters` service.
pub const PARAMETERS_MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Largest message of the other services. Small, because a repeated field of empty messages costs a
/// hundred times its bytes once decoded.
pub const CONTROL_MESSAGE_BYTES_MAX: usize = 64 << 10;

use crate::error::{Error, ErrorCode};
use std::time::Duration;

fn bad_field(field: &str, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::BadField, format!("field `{field}` {what}")).with("field", field)
}

fn required<T>(field: &str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| bad_field(field, "is required"))
}

/// A number. -0 is read as 0: the wire leaves out a field that is either, and whoever is told it next reads 0.
fn finite(field: &str, value: f64) -> Result<f64, Error> {
    if value.is_finite() {
        Ok(value + 0.0)
    } else {
        Err(bad_field(field, format!("is {value}, not finite")))
    }
}

/// Seconds that a clock can have measured; -0 as [`finite`] has it.
fn seconds(field: &str, value: f64) -> Result<f64, Error> {
    if value.is_finite() && value >= 0.0 {
        Ok(value + 0.0)
    } else {
        Err(bad_field(field, format!("is {value}, not a time in seconds")))
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// 0 on the wire is "not said".
fn wait_max(ms: u32) -> Option<Duration> {
    (ms != 0).then(|| Duration::from_millis(ms.into()))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::partition::Decision;

    #[test]
    fn a_zero_has_no_sign() {
        for read in [finite, seconds] {
            assert!(read("x", -0.0).expect("a number").is_sign_positive());
            assert_eq!(read("x", 1.5).expect("a number"), 1.5);
            assert!(read("x", f64::NAN).is_err() && read("x", f64::INFINITY).is_err());
        }
        assert_eq!(finite("x", -1.5).expect("a number"), -1.5);
        assert!(seconds("x", -1.5).is_err());
        // What a fuzzer found: -0 seconds came in, and went on to others as 0.
        let bytes = [58, 19, 8, 1, 16, 7, 24, 5, 32, 4, 40, 2, 49, 0, 0, 0, 0, 0, 0, 0, 128];
        let there = |bytes: &[u8]| {
            Decision::try_from(pb::Decision::decode(bytes).expect("a message")).expect("valid")
        };
        let decision = there(&bytes);
        let again = there(&pb::Decision::from(decision.clone()).encode_to_vec());
        assert_eq!(format!("{again:?}"), format!("{decision:?}"));
    }
}

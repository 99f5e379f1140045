//! The one table between [`ErrorCode`] and gRPC status, both ways.
//!
//! The code travels as `google.rpc.ErrorInfo.reason`, its facts as `metadata`, the delay as
//! `RetryInfo`. What arrives without one comes from the stack below and is read by
//! [`from_status`] with tonic's habits in mind.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::error::{Error, ErrorCode};

/// The `domain` of every ErrorInfo.
pub const DOMAIN: &str = "ps.v1";

/// The gRPC status code of a refusal.
pub const fn grpc_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::NonFinite
        | ErrorCode::UpdateOverflow
        | ErrorCode::DimMismatch
        | ErrorCode::BadLength
        | ErrorCode::BadDtype
        | ErrorCode::Empty
        | ErrorCode::BadKey
        | ErrorCode::BadField => Code::InvalidArgument,
        ErrorCode::RowRange => Code::OutOfRange,
        ErrorCode::StaleRound => Code::Aborted,
        ErrorCode::SeqReused | ErrorCode::RankTaken => Code::AlreadyExists,
        ErrorCode::UnknownWorker => Code::NotFound,
        ErrorCode::EpochChanged
        | ErrorCode::SeqTooOld
        | ErrorCode::LeaseExpired
        | ErrorCode::Fenced
        | ErrorCode::NotInitialized
        | ErrorCode::ConfigMismatch
        | ErrorCode::ProtoVersion
        | ErrorCode::JobEnded => Code::FailedPrecondition,
        ErrorCode::NoVacancy | ErrorCode::Overloaded | ErrorCode::NotDurable => {
            Code::ResourceExhausted
        }
        ErrorCode::NotBuilt => Code::Unimplemented,
        ErrorCode::Draining => Code::Unavailable,
        ErrorCode::Unauthenticated => Code::Unauthenticated,
        ErrorCode::PermissionDenied => Code::PermissionDenied,
        ErrorCode::Deadline => Code::DeadlineExceeded,
        ErrorCode::Internal => Code::Internal,
    }
}

/// The status that carries `error`.
pub fn to_status(error: &Error) -> Status {
    let mut details = ErrorDetails::new();
    let facts: HashMap<String, String> =
        error.facts.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    details.set_error_info(error.code.name(), DOMAIN, facts);
    if let Some(delay) = error.retry_after {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(grpc_code(error.code), error.message.clone(), details)
}

/// What a caller learns from a status: a refusal of ours, or word from the stack below.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The server refused.
    #[error(transparent)]
    Refused(#[from] Error),
    /// The connection is gone or was never there; the server may or may not have seen the call.
    #[error("the connection failed: {0}")]
    Transport(String),
    /// Some other status, with its code.
    #[error("{1} (gRPC status {0:?})")]
    Other(Code, String),
}

/// Reads a status. tonic reports a cut connection as UNKNOWN or CANCELLED and a local timeout as
/// CANCELLED; both mean that the call may be sent again under its name.
pub fn from_status(status: &Status) -> Failure {
    if let Some(info) = status.get_details_error_info()
        && info.domain == DOMAIN
        && let Some(code) = ErrorCode::from_name(&info.reason)
    {
        return Failure::Refused(Error {
            code,
            message: status.message().to_owned(),
            facts: info.metadata.into_iter().collect(),
            retry_after: status.get_details_retry_info().and_then(|r| r.retry_delay),
        });
    }
    let from_below = std::error::Error::source(status).is_some();
    match status.code() {
        Code::Unavailable => Failure::Transport(whole_message(status)),
        Code::Unknown | Code::Cancelled | Code::Internal
            if from_below || status.message().contains("transport error") || is_reset(status) =>
        {
            Failure::Transport(whole_message(status))
        }
        Code::Cancelled if status.message().contains("Timeout expired") => {
            Failure::Transport("no answer in time".to_owned())
        }
        code => Failure::Other(code, whole_message(status)),
    }
}

fn is_reset(status: &Status) -> bool {
    status.message().contains("h2 protocol error") && status.code() != Code::Internal
}

/// The message with its causes, which tonic keeps apart.
fn whole_message(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_code_survives_the_wire() {
        for &code in ErrorCode::ALL {
            let error = Error::new(code, "what happened")
                .with("want", 3)
                .retry_after(Duration::from_millis(1500));
            let status = to_status(&error);
            assert_ne!(status.code(), Code::Ok);
            assert_eq!(from_status(&status), Failure::Refused(error));
        }
    }

    #[test]
    fn word_from_below_is_told_apart_from_refusals() {
        let cut = Status::unknown("transport error");
        assert!(matches!(from_status(&cut), Failure::Transport(_)));
        let late = Status::cancelled("Timeout expired");
        assert!(matches!(from_status(&late), Failure::Transport(_)));
        let foreign = Status::invalid_argument("no details");
        assert!(matches!(from_status(&foreign), Failure::Other(Code::InvalidArgument, _)));
    }
}

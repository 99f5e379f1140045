//! Enumerations, both ways. An unknown number is refused by name, never mapped to a default.

use super::{bad_field, pb};
use crate::calls::{Outcome, WorkerState};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorCode};
use crate::job::{Aggregate, JobState, Mode, Role};

macro_rules! enums {
    ($($domain:ty, $pb:ty, $field:literal { $($here:ident = $there:ident),* $(,)? })*) => {$(
        impl From<$domain> for $pb {
            fn from(value: $domain) -> Self {
                match value { $(<$domain>::$here => <$pb>::$there,)* }
            }
        }

        impl Parse<$domain> for i32 {
            fn parse(self) -> Result<$domain, Error> {
                match <$pb>::try_from(self) {
                    $(Ok(<$pb>::$there) => Ok(<$domain>::$here),)*
                    _ => Err(bad_field($field, format!("has no value number {self} in this version"))),
                }
            }
        }
    )*};
}

/// From a number on the wire to a checked value.
pub(super) trait Parse<T> {
    fn parse(self) -> Result<T, Error>;
}

enums! {
    Mode, pb::Mode, "mode" { Sync = Sync, Ssp = Ssp, Async = Async, Hogwild = Hogwild }
    Role, pb::Role, "role" { Worker = Worker, Observer = Observer }
    JobState, pb::JobState, "state" {
        Empty = Empty, Running = Running, Finishing = Finishing, Done = Done, Failed = Failed,
    }
    Outcome, pb::Outcome, "outcome" {
        Applied = Applied, Duplicate = Duplicate, DroppedLate = DroppedLate, Waiting = Waiting,
    }
    WorkerState, pb::worker_status::State, "state" {
        Vacant = Vacant, Live = Live, Lost = Lost, Left = Left,
    }
}

/// Number and `trimmed` of an aggregate: the second is 0 but for a trimmed mean.
pub(super) fn aggregate_into(aggregate: Aggregate) -> (i32, u32) {
    let (number, trimmed) = match aggregate {
        Aggregate::WeightedMean => (pb::Aggregate::WeightedMean, 0),
        Aggregate::Mean => (pb::Aggregate::Mean, 0),
        Aggregate::Sum => (pb::Aggregate::Sum, 0),
        Aggregate::Collect => (pb::Aggregate::Collect, 0),
        Aggregate::Median => (pb::Aggregate::Median, 0),
        Aggregate::TrimmedMean { k } => (pb::Aggregate::TrimmedMean, k),
    };
    (number.into(), trimmed)
}

/// The way back from [`aggregate_into`].
pub(super) fn aggregate_from((number, trimmed): (i32, u32)) -> Result<Aggregate, Error> {
    match pb::Aggregate::try_from(number) {
        Ok(pb::Aggregate::WeightedMean) => Ok(Aggregate::WeightedMean),
        Ok(pb::Aggregate::Mean) => Ok(Aggregate::Mean),
        Ok(pb::Aggregate::Sum) => Ok(Aggregate::Sum),
        Ok(pb::Aggregate::Collect) => Ok(Aggregate::Collect),
        Ok(pb::Aggregate::Median) => Ok(Aggregate::Median),
        Ok(pb::Aggregate::TrimmedMean) => Ok(Aggregate::TrimmedMean { k: trimmed }),
        Ok(pb::Aggregate::Unspecified) | Err(_) => {
            Err(bad_field("aggregate", format!("has no value number {number} in this version")))
        }
    }
}

impl From<Dtype> for pb::Dtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F64 => Self::F64,
        }
    }
}

impl Parse<Dtype> for i32 {
    fn parse(self) -> Result<Dtype, Error> {
        match pb::Dtype::try_from(self) {
            Ok(pb::Dtype::F32) => Ok(Dtype::F32),
            Ok(pb::Dtype::F64) => Ok(Dtype::F64),
            _ => Err(Error::new(
                ErrorCode::BadDtype,
                format!("dtype number {self} is unknown; this version has 1 (f32) and 2 (f64)"),
            )
            .with("got", self)),
        }
    }
}

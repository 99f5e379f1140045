//! Several servers: partition 0's decisions, the others' answers, a worker's wish for a part of theta.

use bytes::Bytes;

use super::enums::Parse;
use super::membership::{fingerprint_from, tables_from, tables_into};
use super::{bad_field, finite, millis, pb, required, seconds, wait_max};
use crate::calls::Caller;
use crate::dtype::{as_le_bytes, copy_from_le_bytes};
use crate::error::Error;
use crate::job::Combine;
use crate::partition::{
    CheckpointName, Decision, Give, Joint, Partition, PushName, Squares, Take, Word,
};

/// Largest message of the `Partition` service: an update names every worker's gradient.
pub const PARTITION_MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Most servers of a job.
const COUNT_MAX: u32 = 1 << 16;

impl TryFrom<pb::TakeRequest> for Take {
    type Error = Error;
    fn try_from(request: pb::TakeRequest) -> Result<Self, Error> {
        Ok(Self {
            caller: Caller { rank: request.rank, incarnation: request.incarnation },
            exchange: exchange_from(request.exchange)?,
            wait_max: wait_max(request.wait_ms_max),
        })
    }
}

impl From<Take> for pb::TakeRequest {
    fn from(take: Take) -> Self {
        Self {
            rank: take.caller.rank,
            incarnation: take.caller.incarnation,
            exchange: take.exchange,
            wait_ms_max: take.wait_max.map_or(0, millis),
            ..Self::default()
        }
    }
}

impl From<pb::PushName> for PushName {
    fn from(name: pb::PushName) -> Self {
        let caller = Caller { rank: name.rank, incarnation: name.incarnation };
        Self { caller, clock: name.clock }
    }
}

impl From<PushName> for pb::PushName {
    fn from(name: PushName) -> Self {
        let PushName { caller: Caller { rank, incarnation }, clock } = name;
        Self { rank, incarnation, clock }
    }
}

impl From<pb::CheckpointName> for CheckpointName {
    fn from(name: pb::CheckpointName) -> Self {
        Self { job: name.job, epoch: name.epoch, version: name.version }
    }
}

impl From<CheckpointName> for pb::CheckpointName {
    fn from(name: CheckpointName) -> Self {
        Self { job: name.job, epoch: name.epoch, version: name.version }
    }
}

impl TryFrom<pb::Prepare> for Joint {
    type Error = Error;
    fn try_from(prepare: pb::Prepare) -> Result<Self, Error> {
        let part = |part: pb::prepare::Part| {
            let push = required("prepare.parts.push", part.push)?;
            Ok((push.into(), finite("prepare.parts.weight", part.weight)?))
        };
        let compensation = |wanted: pb::prepare::Compensation| {
            let lambda = finite("prepare.compensation.lambda", wanted.lambda)?;
            Ok((lambda, wanted.rank, wanted.version_pulled))
        };
        Ok(Self {
            combine: combine_from(prepare.combine, prepare.trimmed)?,
            rate_factor: finite("prepare.rate_factor", prepare.rate_factor)?,
            compensation: prepare.compensation.map(compensation).transpose()?,
            parts: prepare.parts.into_iter().map(part).collect::<Result<_, Error>>()?,
        })
    }
}

impl From<Joint> for pb::Prepare {
    fn from(joint: Joint) -> Self {
        let (combine, trimmed) = combine_into(joint.combine);
        let part =
            |(push, weight): (PushName, f64)| pb::prepare::Part { push: Some(push.into()), weight };
        Self {
            parts: joint.parts.into_iter().map(part).collect(),
            combine: combine.into(),
            trimmed,
            rate_factor: joint.rate_factor,
            compensation: joint.compensation.map(|(lambda, rank, version_pulled)| {
                pb::prepare::Compensation { lambda, rank, version_pulled }
            }),
        }
    }
}

fn combine_from(number: i32, trimmed: u32) -> Result<Combine, Error> {
    use pb::prepare::Combine as There;
    let combine = match There::try_from(number) {
        Ok(There::Sum) => Combine::Sum,
        Ok(There::InTurn) => Combine::InTurn,
        Ok(There::Median) => Combine::Median,
        Ok(There::TrimmedMean) => return Ok(Combine::TrimmedMean { k: trimmed }),
        Ok(There::Unspecified) | Err(_) => {
            let what = format!("has no value number {number} in this version");
            return Err(bad_field("prepare.combine", what));
        }
    };
    match trimmed {
        0 => Ok(combine),
        _ => Err(bad_field("prepare.trimmed", format!("is {trimmed} without a trimmed mean"))),
    }
}

fn combine_into(combine: Combine) -> (pb::prepare::Combine, u32) {
    match combine {
        Combine::Sum => (pb::prepare::Combine::Sum, 0),
        Combine::InTurn => (pb::prepare::Combine::InTurn, 0),
        Combine::Median => (pb::prepare::Combine::Median, 0),
        Combine::TrimmedMean { k } => (pb::prepare::Combine::TrimmedMean, k),
    }
}

impl TryFrom<pb::Give> for Give {
    type Error = Error;
    fn try_from(give: pb::Give) -> Result<Self, Error> {
        Ok(Self {
            caller: Caller { rank: give.rank, incarnation: give.incarnation },
            exchange: exchange_from(give.exchange)?,
            version: give.version,
            state: give.state.parse()?,
            seconds: seconds("give.seconds", give.seconds)?,
        })
    }
}

impl From<Give> for pb::Give {
    fn from(give: Give) -> Self {
        Self {
            rank: give.caller.rank,
            incarnation: give.caller.incarnation,
            exchange: give.exchange,
            version: give.version,
            state: pb::JobState::from(give.state).into(),
            seconds: give.seconds,
        }
    }
}

/// 0 is no exchange.
fn exchange_from(exchange: u64) -> Result<u64, Error> {
    match exchange {
        0 => Err(bad_field("exchange", "is 0; exchanges are counted from 1")),
        _ => Ok(exchange),
    }
}

impl TryFrom<pb::Decision> for Decision {
    type Error = Error;
    fn try_from(decision: pb::Decision) -> Result<Self, Error> {
        use pb::decision::Decision as There;
        Ok(match required("decision", decision.decision)? {
            There::Open(open) => open_from(open)?,
            There::Begin(begin) => {
                Self::Begin { epoch: begin.epoch, checkpoint: begin.checkpoint.map(Into::into) }
            }
            There::Create(create) => Self::Create {
                tables: required("create.tables", tables_from(create.tables)?)?,
                dtype: create.dtype.parse()?,
                job: create.job,
            },
            There::Prepare(prepare) => Self::Prepare(prepare.try_into()?),
            There::Clip(clip) => Self::Clip(clips_from(clip.factors)?),
            There::Commit(_) => Self::Commit,
            There::Abort(_) => Self::Abort,
            There::Give(give) => Self::Give(give.try_into()?),
            There::Keep(rank) => Self::Keep(rank),
            There::Forget(name) => Self::Forget(name.into()),
            There::Capture(_) => Self::Capture,
            There::Collect(_) => Self::Collect,
            There::End(end) => Self::End { state: end.state.parse()?, reason: end.reason },
        })
    }
}

fn open_from(open: pb::Open) -> Result<Decision, Error> {
    let partition = Partition { index: open.partition, count: open.n_partitions };
    if partition.index >= partition.count || partition.count > COUNT_MAX {
        let what = format!("is {partition}: of at most {COUNT_MAX} servers, counted from 0");
        return Err(bad_field("open.partition", what));
    }
    Ok(Decision::Open {
        protocol_version: open.protocol_version,
        partition,
        settings: fingerprint_from("open.settings", open.settings)?,
    })
}

impl From<Decision> for pb::Decision {
    fn from(decision: Decision) -> Self {
        use pb::decision::Decision as There;
        let there = match decision {
            Decision::Open { protocol_version, partition, settings } => There::Open(pb::Open {
                protocol_version,
                partition: partition.index,
                n_partitions: partition.count,
                settings,
            }),
            Decision::Begin { epoch, checkpoint } => {
                There::Begin(pb::Begin { epoch, checkpoint: checkpoint.map(Into::into) })
            }
            Decision::Create { tables, dtype, job } => There::Create(pb::Create {
                tables: tables_into(&tables),
                dtype: pb::Dtype::from(dtype).into(),
                job,
            }),
            Decision::Prepare(joint) => There::Prepare(joint.into()),
            Decision::Clip(clips) => {
                let factors = clips.into_iter().map(|clip| clip.unwrap_or(1.0));
                There::Clip(pb::Clip { factors: factors.collect() })
            }
            Decision::Commit => There::Commit(pb::Empty {}),
            Decision::Abort => There::Abort(pb::Empty {}),
            Decision::Give(give) => There::Give(give.into()),
            Decision::Keep(rank) => There::Keep(rank),
            Decision::Forget(name) => There::Forget(name.into()),
            Decision::Capture => There::Capture(pb::Empty {}),
            Decision::Collect => There::Collect(pb::Empty {}),
            Decision::End { state, reason } => {
                There::End(pb::End { state: pb::JobState::from(state).into(), reason })
            }
        };
        Self { decision: Some(there) }
    }
}

/// A factor of 1 leaves a gradient as it is.
fn clips_from(factors: Vec<f64>) -> Result<Vec<Option<f64>>, Error> {
    let clip = |factor: f64| match (0.0..=1.0).contains(&factor) {
        true => Ok((factor < 1.0).then_some(factor)),
        false => Err(bad_field("clip.factors", format!("has {factor}, which is not in [0, 1]"))),
    };
    factors.into_iter().map(clip).collect()
}

impl TryFrom<pb::Squares> for Squares {
    type Error = Error;
    fn try_from(squares: pb::Squares) -> Result<Self, Error> {
        let elements = doubles_from("squares.elements", &squares.elements)?;
        for element in &elements {
            finite("squares.elements", *element)?;
        }
        let sums = doubles_from("squares.sums", &squares.sums)?;
        let (sums, rest) = sums.as_chunks();
        if !rest.is_empty() {
            return Err(bad_field("squares.sums", "has half a pair at its end"));
        }
        let sum = |&[plain, scaled]: &[f64; 2]| match plain >= 0.0 && scaled >= 0.0 {
            true if scaled.is_finite() => Ok((plain, scaled)),
            _ => {
                let what = format!("has {plain} and scaled {scaled}, which no sums of squares are");
                Err(bad_field("squares.sums", what))
            }
        };
        Ok(Self { elements, sums: sums.iter().map(sum).collect::<Result<_, _>>()? })
    }
}

impl From<Squares> for pb::Squares {
    fn from(Squares { elements, sums }: Squares) -> Self {
        let sums: Vec<f64> = sums.into_iter().flat_map(|(plain, scaled)| [plain, scaled]).collect();
        let bytes = |doubles: &[f64]| Bytes::copy_from_slice(as_le_bytes(doubles));
        Self { elements: bytes(&elements), sums: bytes(&sums) }
    }
}

fn doubles_from(field: &str, bytes: &[u8]) -> Result<Vec<f64>, Error> {
    let mut doubles = vec![0.0; bytes.len() / size_of::<f64>()];
    if bytes.len() != doubles.len() * size_of::<f64>() {
        let what = format!("has {} bytes, which are no whole doubles", bytes.len());
        return Err(bad_field(field, what));
    }
    copy_from_le_bytes(&mut doubles, bytes);
    Ok(doubles)
}

impl TryFrom<pb::Word> for Word {
    type Error = Error;
    fn try_from(word: pb::Word) -> Result<Self, Error> {
        use pb::word::Word as There;
        Ok(match required("word", word.word)? {
            There::Holding(holding) => {
                Self::Holding(holding.checkpoints.into_iter().map(Into::into).collect())
            }
            There::Ready(_) => Self::Ready,
            There::Prepared(prepared) => Self::Prepared(prepared.overflow),
            There::Squares(squares) => Self::Squares(squares.try_into()?),
            There::Saved(saved) => Self::Saved {
                version: saved.version,
                result: if saved.error.is_empty() { Ok(()) } else { Err(saved.error) },
            },
            There::Part(part) => Self::Part(part.data, part.last),
        })
    }
}

impl From<Word> for pb::Word {
    fn from(word: Word) -> Self {
        use pb::word::Word as There;
        let there = match word {
            Word::Holding(names) => There::Holding(pb::Holding {
                checkpoints: names.into_iter().map(Into::into).collect(),
                program: String::new(),
            }),
            Word::Ready => There::Ready(pb::Empty {}),
            Word::Prepared(overflow) => There::Prepared(pb::Prepared { overflow }),
            Word::Squares(squares) => There::Squares(squares.into()),
            Word::Saved { version, result } => {
                There::Saved(pb::Saved { version, error: result.err().unwrap_or_default() })
            }
            Word::Part(data, last) => There::Part(pb::TensorPart { last, data }),
        };
        Self { word: Some(there) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dtype::Dtype;
    use crate::error::ErrorCode;
    use crate::job::JobState;
    use crate::tables::{Table, Tables};

    const CALLER: Caller = Caller { rank: 3, incarnation: 7 << 32 };

    fn joint(combine: Combine) -> Joint {
        let push = |clock| PushName { caller: CALLER, clock };
        Joint {
            parts: vec![(push(2), 0.25), (push(3), 0.75)],
            combine,
            rate_factor: 0.5,
            compensation: Some((0.04, 3, 11)),
        }
    }

    fn decisions() -> Vec<Decision> {
        let tables = Tables::new(vec![Table::zeros("w", &[5], true)]).expect("valid");
        let give = Give {
            caller: CALLER,
            exchange: 9,
            version: 4,
            state: JobState::Finishing,
            seconds: 1.5,
        };
        let mut decisions = vec![
            Decision::Open {
                protocol_version: 1,
                partition: Partition { index: 1, count: 3 },
                settings: [("lr".to_owned(), "0.1".to_owned())].into(),
            },
            Decision::Begin { epoch: 2, checkpoint: None },
            Decision::Begin {
                epoch: u32::MAX,
                checkpoint: Some(CheckpointName { version: 5, epoch: 1, job: u64::MAX }),
            },
            Decision::Create { tables, dtype: Dtype::F64, job: 77 },
            Decision::Clip(vec![Some(0.25), None, Some(0.0)]),
            Decision::Commit,
            Decision::Abort,
            Decision::Give(give),
            Decision::Keep(2),
            Decision::Forget(PushName { caller: CALLER, clock: 8 }),
            Decision::Capture,
            Decision::Collect,
            Decision::End { state: JobState::Failed, reason: "diverged".to_owned() },
        ];
        let combines =
            [Combine::Sum, Combine::InTurn, Combine::Median, Combine::TrimmedMean { k: 2 }];
        decisions.extend(combines.map(|combine| Decision::Prepare(joint(combine))));
        decisions
    }

    #[test]
    fn decisions_words_and_takes_round_trip() {
        for decision in decisions() {
            let there = pb::Decision::from(decision.clone());
            assert_eq!(Decision::try_from(there).expect("its own"), decision);
        }
        let name = CheckpointName { version: 5, epoch: 1, job: 6 };
        for word in [
            Word::Holding(vec![name, CheckpointName { epoch: 2, ..name }]),
            Word::Ready,
            Word::Prepared(None),
            Word::Prepared(Some(0)),
            Word::Squares(Squares {
                elements: vec![-1.5, f64::MAX],
                sums: vec![(9.0, 1e-300), (f64::INFINITY, 3.0)],
            }),
            Word::Squares(Squares::default()),
            Word::Saved { version: 3, result: Ok(()) },
            Word::Saved { version: 3, result: Err("no room".to_owned()) },
            Word::Part(Bytes::from_static(b"theta"), true),
        ] {
            let there = pb::Word::from(word.clone());
            assert_eq!(Word::try_from(there).expect("its own"), word);
        }
        for wait_max in [None, Some(Duration::from_millis(20))] {
            let take = Take { caller: CALLER, exchange: 1, wait_max };
            assert_eq!(Take::try_from(pb::TakeRequest::from(take)).expect("its own"), take);
        }
    }

    /// The refused field of a decision that is changed on its way.
    #[track_caller]
    fn refused(decision: pb::decision::Decision) -> String {
        let there = pb::Decision { decision: Some(decision) };
        let error = Decision::try_from(there).expect_err("refused");
        assert_eq!(error.code, ErrorCode::BadField, "{error}");
        error.facts["field"].clone()
    }

    #[test]
    fn what_means_nothing_is_refused_by_field() {
        use pb::decision::Decision as There;
        let nothing = Decision::try_from(pb::Decision { decision: None }).expect_err("nothing");
        assert_eq!(
            (nothing.code, nothing.facts["field"].as_str()),
            (ErrorCode::BadField, "decision")
        );
        let nothing = Word::try_from(pb::Word { word: None }).expect_err("nothing");
        assert_eq!((nothing.code, nothing.facts["field"].as_str()), (ErrorCode::BadField, "word"));

        let good = pb::Prepare::from(joint(Combine::Sum));
        let prepare = |change: &dyn Fn(&mut pb::Prepare)| {
            let mut prepare = good.clone();
            change(&mut prepare);
            refused(There::Prepare(prepare))
        };
        assert_eq!(prepare(&|p| p.combine = 0), "prepare.combine");
        assert_eq!(prepare(&|p| p.combine = 5), "prepare.combine");
        assert_eq!(prepare(&|p| p.trimmed = 1), "prepare.trimmed");
        assert_eq!(prepare(&|p| p.rate_factor = f64::NAN), "prepare.rate_factor");
        assert_eq!(prepare(&|p| p.parts[1].push = None), "prepare.parts.push");
        assert_eq!(prepare(&|p| p.parts[0].weight = f64::INFINITY), "prepare.parts.weight");
        let lambda = |p: &mut pb::Prepare| p.compensation.as_mut().expect("set").lambda = f64::NAN;
        assert_eq!(prepare(&lambda), "prepare.compensation.lambda");

        let open = |partition, n_partitions| {
            refused(There::Open(pb::Open { partition, n_partitions, ..Default::default() }))
        };
        assert_eq!(open(0, 0), "open.partition");
        assert_eq!(open(2, 2), "open.partition");
        assert_eq!(open(2, u32::MAX), "open.partition");
        let dtype = pb::Dtype::F32.into();
        let create = pb::Create { tables: Vec::new(), dtype, job: 1 };
        assert_eq!(refused(There::Create(create)), "create.tables");
        assert_eq!(refused(There::End(pb::End::default())), "state");
        let give = pb::Give { state: pb::JobState::Running.into(), ..Default::default() };
        assert_eq!(refused(There::Give(give)), "exchange");
        let give = pb::Give { exchange: 1, seconds: -1.0, ..give };
        assert_eq!(refused(There::Give(give)), "give.seconds");
        for factor in [f64::NAN, -0.5, 1.5, f64::INFINITY] {
            let clip = pb::Clip { factors: vec![0.5, factor] };
            assert_eq!(refused(There::Clip(clip)), "clip.factors", "{factor}");
        }
        let squares = |elements: &[f64], sums: &[f64]| {
            let bytes = |doubles| Bytes::copy_from_slice(as_le_bytes(doubles));
            pb::Squares { elements: bytes(elements), sums: bytes(sums) }
        };
        let refused = |squares: pb::Squares| {
            let word = pb::Word { word: Some(pb::word::Word::Squares(squares)) };
            Word::try_from(word).expect_err("refused").facts["field"].clone()
        };
        assert_eq!(refused(squares(&[f64::NAN], &[])), "squares.elements");
        assert_eq!(refused(squares(&[1.0, f64::INFINITY], &[])), "squares.elements");
        let cut = pb::Squares { elements: Bytes::from_static(&[0; 9]), ..Default::default() };
        assert_eq!(refused(cut), "squares.elements");
        assert_eq!(refused(squares(&[], &[1.0])), "squares.sums");
        for (sum, scaled) in [
            (f64::NAN, 0.0),
            (-1.0, 0.0),
            (1.0, f64::NAN),
            (1.0, -1.0),
            (f64::INFINITY, f64::INFINITY),
        ] {
            assert_eq!(refused(squares(&[], &[sum, scaled])), "squares.sums", "{sum} {scaled}");
        }
        let take = Take::try_from(pb::TakeRequest::default()).expect_err("no exchange");
        assert_eq!(take.facts["field"], "exchange");
    }
}

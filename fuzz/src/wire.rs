//! Every message of the wire: bytes to protobuf to checked values, and back.

use std::fmt::Debug;

use prost::Message;
use ps_common::calls::{
    Caller, Evaluation, JoinAnswer, JoinRequest, Leave, PullHeader, PullRequest, PushHeader,
    PushResult, Status,
};
use ps_common::job::WorkerStats;
use ps_common::partition::{Decision, Take, Word};
use ps_common::statistics::Statistics;
use ps_common::wire::parameters::{merge_request, merge_response, merged_from};
use ps_common::wire::pb;

use crate::pushes::join_request;

/// Decodes what follows the first byte as the message that the byte names.
pub(crate) fn decode(input: &[u8]) -> bool {
    let Some((&kind, bytes)) = input.split_first() else { return false };
    match kind % 16 {
        0 => there_and_back::<pb::JoinRequest, JoinRequest>(bytes),
        1 => there_and_back::<pb::LeaveRequest, Leave>(bytes),
        2 => there_and_back::<pb::PushHeader, PushHeader>(bytes),
        3 => there_and_back::<pb::EvaluateRequest, Evaluation>(bytes),
        4 => there_and_back::<pb::JoinResponse, JoinAnswer>(bytes),
        5 => there_and_back::<pb::StatusResponse, Status>(bytes),
        6 => there_and_back::<pb::PushResult, PushResult>(bytes),
        7 => pb::PullRequest::decode(bytes).is_ok_and(|message| {
            let value = PullRequest::from(message);
            let again = pb::PullRequest::from(value);
            assert_eq!(PullRequest::from(again), value);
            true
        }),
        8 => pb::HeartbeatRequest::decode(bytes)
            .is_ok_and(|message| <(Caller, WorkerStats)>::try_from(message).is_ok()),
        9 => pb::PullResponse::decode(bytes)
            .is_ok_and(|message| PullHeader::try_from(&message).is_ok()),
        10 => pb::PushRequest::decode(bytes).is_ok_and(|message| {
            let again = pb::PushRequest::decode(&message.encode_to_vec()[..]);
            // A loss that is NaN has to come back as well.
            assert_eq!(format!("{again:?}"), format!("{:?}", Ok::<_, prost::DecodeError>(message)));
            true
        }),
        11 => pb::StopRequest::decode(bytes).is_ok(),
        13 => there_and_back::<pb::Decision, Decision>(bytes),
        14 => there_and_back::<pb::Word, Word>(bytes),
        15 => there_and_back::<pb::TakeRequest, Take>(bytes),
        _ => statistics(bytes),
    }
}

fn there_and_back<M, V>(bytes: &[u8]) -> bool
where
    M: Message + Default + From<V>,
    V: TryFrom<M, Error = ps_common::Error> + Debug,
{
    let Ok(message) = M::decode(bytes) else { return false };
    let Ok(value) = V::try_from(message) else { return false };
    // What NaN there is has to come back as well.
    let want = format!("{value:?}");
    let bytes = M::from(value).encode_to_vec();
    let again = V::try_from(M::decode(&bytes[..]).expect("our own bytes")).expect("our own value");
    assert_eq!(format!("{again:?}"), want);
    true
}

fn statistics(bytes: &[u8]) -> bool {
    let Ok(message) = pb::MergeStatisticsRequest::decode(bytes) else { return false };
    let Ok((caller, value)) = <(Caller, Statistics)>::try_from(message) else { return false };
    let want = format!("{value:?}");
    let again = merge_request(caller, &value);
    let (_, again) = <(Caller, Statistics)>::try_from(again).expect("our own value");
    assert_eq!(format!("{again:?}"), want);
    let merged = merged_from(&value, &merge_response(&value)).expect("our own answer");
    assert_eq!(format!("{merged:?}"), want);
    true
}

const CALLER: Caller = Caller { rank: 1, incarnation: 7 };

fn welcome(tables: Vec<pb::Table>) -> pb::JoinResponse {
    pb::JoinResponse {
        rank: CALLER.rank,
        incarnation: CALLER.incarnation,
        n_shards: 2,
        dim: crate::pushes::DIM as u64,
        dtype: pb::Dtype::F32.into(),
        mode: pb::Mode::Sync.into(),
        aggregate: pb::Aggregate::TrimmedMean.into(),
        trimmed: 1,
        state: pb::JobState::Running.into(),
        tables,
        ..pb::JoinResponse::default()
    }
}

fn status(stats: pb::WorkerStats) -> pb::StatusResponse {
    let worker = pb::WorkerStatus {
        rank: CALLER.rank,
        incarnation: CALLER.incarnation,
        state: pb::worker_status::State::Live.into(),
        stats: Some(stats),
        ..pb::WorkerStatus::default()
    };
    pb::StatusResponse {
        state: pb::JobState::Running.into(),
        mode: pb::Mode::Sync.into(),
        aggregate: pb::Aggregate::Mean.into(),
        dtype: pb::Dtype::F32.into(),
        last: Some(pb::HistoryEntry { round: 1.0, version: 1, loss: 0.5, seconds: 0.25 }),
        workers: vec![worker; 2],
        ..pb::StatusResponse::default()
    }
}

/// One message of each kind, with all fields that there are.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let Caller { rank, incarnation } = CALLER;
    let stats = pb::WorkerStats {
        pushes: 3,
        samples: 30,
        compute_seconds: 0.5,
        loss_sum: Some(1.5),
        ..pb::WorkerStats::default()
    };
    let metrics = pb::Metrics { n_samples: 30, loss: 0.5, penalty: 0.25, n_correct: Some(7) };
    let header = pb::PushHeader {
        rank,
        incarnation,
        clock: 2,
        loss: Some(0.5),
        ..pb::PushHeader::default()
    };
    let join = pb::JoinRequest {
        fingerprint: [("seed".to_owned(), "0".to_owned())].into(),
        program: "fuzz".to_owned(),
        acknowledged_clock: Some(3),
        ..join_request(Some(1))
    };
    let answer = welcome(join.tables.clone());
    let status = status(stats);
    let outcome = pb::Outcome::Applied.into();
    let result = pb::PushResult { outcome, state: answer.state, ..pb::PushResult::default() };
    let evaluate = pb::EvaluateRequest {
        rank,
        incarnation,
        train: Some(metrics),
        test: Some(metrics),
        ..pb::EvaluateRequest::default()
    };
    let leave =
        pb::LeaveRequest { rank, incarnation, stats: Some(stats), final_metrics: Some(metrics) };
    let pulled = pb::PullResponse { state: answer.state, ..pb::PullResponse::default() };
    let push = pb::PushRequest {
        header: Some(header),
        dtype: pb::Dtype::F32.into(),
        last: true,
        data: vec![1; 24].into(),
        ..pb::PushRequest::default()
    };
    let moments =
        Statistics::Moments { n_samples: 3, mean: vec![1.0; 2], deviations: vec![2.0; 2] };
    let messages = [
        join.encode_to_vec(),
        leave.encode_to_vec(),
        header.encode_to_vec(),
        evaluate.encode_to_vec(),
        answer.encode_to_vec(),
        status.encode_to_vec(),
        result.encode_to_vec(),
        pb::PullRequest { rank, incarnation, wait_ms_max: 5, ..Default::default() }.encode_to_vec(),
        pb::HeartbeatRequest { rank, incarnation, stats: Some(stats) }.encode_to_vec(),
        pulled.encode_to_vec(),
        push.encode_to_vec(),
        pb::StopRequest { reason: "enough".to_owned() }.encode_to_vec(),
        merge_request(CALLER, &moments).encode_to_vec(),
    ];
    let numbered = (0u8..).zip(messages).chain(between_servers(join.tables));
    numbered.map(|(kind, bytes)| [&[kind], &bytes[..]].concat()).collect()
}

/// What servers of one job tell each other, and what a worker asks the others for: by kind.
fn between_servers(tables: Vec<pb::Table>) -> Vec<(u8, Vec<u8>)> {
    use pb::decision::Decision;
    use pb::word::Word;
    let Caller { rank, incarnation } = CALLER;
    let push = pb::PushName { rank, incarnation, clock: 2 };
    let checkpoint = pb::CheckpointName { job: 9, epoch: 1, version: 4 };
    let state = pb::JobState::Running.into();
    let settings = [("lr".to_owned(), "0.1".to_owned())].into();
    let compensation = pb::prepare::Compensation { lambda: 0.04, rank, version_pulled: 3 };
    let decisions = [
        Decision::Open(pb::Open { protocol_version: 1, partition: 1, n_partitions: 2, settings }),
        Decision::Begin(pb::Begin { epoch: 2, checkpoint: Some(checkpoint) }),
        Decision::Create(pb::Create { tables, dtype: pb::Dtype::F32.into(), job: 9 }),
        Decision::Prepare(pb::Prepare {
            parts: vec![pb::prepare::Part { push: Some(push), weight: 0.5 }; 2],
            combine: pb::prepare::Combine::TrimmedMean.into(),
            trimmed: 1,
            rate_factor: 1.0,
            compensation: Some(compensation),
        }),
        Decision::Clip(pb::Clip { factors: vec![0.5, 1.0] }),
        Decision::Commit(pb::Empty {}),
        Decision::Give(pb::Give {
            rank,
            incarnation,
            exchange: 5,
            version: 4,
            state,
            seconds: 0.5,
        }),
        Decision::Keep(rank),
        Decision::Forget(push),
        Decision::End(pb::End { state, reason: "enough".to_owned() }),
    ];
    let words = [
        Word::Holding(pb::Holding { checkpoints: vec![checkpoint; 2], program: String::new() }),
        Word::Prepared(pb::Prepared { overflow: Some(3) }),
        Word::Squares(pb::Squares { elements: vec![1; 16].into(), sums: vec![1; 32].into() }),
        Word::Saved(pb::Saved { version: 4, error: "no room".to_owned() }),
        Word::Part(pb::TensorPart { last: true, data: vec![1; 8].into() }),
    ];
    let take = pb::TakeRequest {
        rank,
        incarnation,
        exchange: 5,
        wait_ms_max: 20,
        theta_dtype: pb::Dtype::F16.into(),
        version_have: Some(4),
    };
    let decision = |it| (13, pb::Decision { decision: Some(it) }.encode_to_vec());
    let word = |it| (14, pb::Word { word: Some(it) }.encode_to_vec());
    let take = (15, take.encode_to_vec());
    decisions.map(decision).into_iter().chain(words.map(word)).chain([take]).collect()
}

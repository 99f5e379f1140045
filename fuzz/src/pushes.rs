//! The assembler of pushes: streams of messages against a naive twin that says which are a gradient.

use std::time::Duration;

use arbitrary::Unstructured;
use ps_common::calls::Caller;
use ps_common::dtype::CHUNK_BYTES;
use ps_common::job::{Aggregate, OnWorkerLoss};
use ps_common::wire::pb;
use ps_common::{Dtype, ErrorCode};
use ps_server::core::{CallId, Config, ConnId, Consistency, DelayScaling, Input, StopRules, Time};
use ps_server::driver::{Delivery, Driver};
use ps_server::net::{Assembly, Progress, Push};
use ps_server::numeric::Optimizer;
use ps_server::table::{Gradient, Pushed};

/// Elements of theta.
pub(crate) const DIM: usize = 6;

/// A server with one worker in it, which has this name.
pub(crate) fn server(config: Config) -> Driver {
    let sgd = Optimizer::sgd(0.5);
    Driver::new(config, Dtype::F32, sgd, CHUNK_BYTES, "fuzz")
}

/// One worker, asynchronous, for ever.
pub(crate) fn config() -> Config {
    Config {
        consistency: Consistency::Async {
            delay_scaling: DelayScaling::None,
            max_gradient_delay: None,
        },
        n_workers: 1,
        partition: ps_common::partition::Partition::WHOLE,
        aggregate: Aggregate::Mean,
        rounds: None,
        lease: Duration::from_secs(10),
        on_worker_loss: OnWorkerLoss::Wait,
        replacement_timeout: Duration::from_secs(600),
        observers: 0,
        wait_max: Config::WAIT_MAX,
        stop: StopRules::default(),
        checkpoints: None,
        boot: 0,
    }
}

/// A wish to join with a theta of [`DIM`] elements.
pub(crate) fn join_request(rank: Option<u32>) -> pb::JoinRequest {
    let kind = pb::initializer::Kind::Zeros.into();
    let initializer = Some(pb::Initializer { kind, ..pb::Initializer::default() });
    let (name, shape) = ("w".to_owned(), vec![DIM as u64]);
    pb::JoinRequest {
        protocol_version: 1,
        role: pb::Role::Worker.into(),
        rank,
        tables: vec![pb::Table { name, shape, initializer, penalized: true }],
        dtype: pb::Dtype::F32.into(),
        ..pb::JoinRequest::default()
    }
}

/// The name of who joins so.
pub(crate) fn joined(driver: &Driver, request: pb::JoinRequest) -> Caller {
    let request = request.try_into().expect("a good request");
    let input = Input::Join { call: CallId(0), conn: ConnId(0), address: String::new(), request };
    let mut caller = None;
    driver.feed(&|| Time::ZERO, input, &mut |_, delivery| match delivery {
        Delivery::Joined(answer) => caller = Some(answer.caller),
        other => panic!("{other:?}"),
    });
    caller.expect("answered at once")
}

/// Assembles the messages that the bytes stand for; whether a push came out.
pub(crate) fn assemble(input: &[u8]) -> bool {
    let driver = server(config());
    let caller = joined(&driver, join_request(Some(0)));
    let mut source = Unstructured::new(input);
    let mut messages = Vec::new();
    let mut key = 0u64;
    while !source.is_empty() {
        let Ok(message) = message(&mut source, key, messages.is_empty(), caller) else { break };
        key += message.data.len() as u64 / 4;
        messages.push(message);
    }
    let got = push_of(&driver, messages.clone());
    let want = twin(&messages, caller);
    match (&got, &want) {
        (Some(Ok(push)), Some(Ok(values))) => {
            let values = Gradient::F32(values.clone().into());
            assert_eq!(push.gradient, Pushed::Whole(values));
            let n_messages = messages.iter().position(|m| m.last).expect("it is whole") + 1;
            let bytes = messages[..n_messages].iter().flat_map(|m| m.data.to_vec());
            assert_eq!(push.digest, crc32fast::hash(&bytes.collect::<Vec<u8>>()));
        }
        (Some(Err(got)), Some(Err(want))) => assert_eq!(got, want),
        (None, None) => {}
        _ => panic!("got {got:?}, the twin {want:?}, of {messages:?}"),
    }
    matches!(got, Some(Ok(_)))
}

/// A message: a byte of flags, a number of elements, the elements. 0 is all as it should be but that
/// more follows.
fn message(
    source: &mut Unstructured<'_>,
    key: u64,
    is_first: bool,
    caller: Caller,
) -> arbitrary::Result<pb::PushRequest> {
    let flags: u8 = source.arbitrary()?;
    let Caller { rank, incarnation } = caller;
    let due = pb::PushHeader { rank, incarnation, n_samples: 1, ..pb::PushHeader::default() };
    let header = match flags & 3 {
        0 => is_first.then_some(due),
        1 => None,
        2 => {
            let (rank, incarnation) = (source.arbitrary::<u8>()?.into(), source.arbitrary()?);
            Some(pb::PushHeader { rank, incarnation, ..due })
        }
        _ => Some(pb::PushHeader { loss: Some(f64::NAN), ..due }),
    };
    let dtype = if flags & 8 == 0 { 1 } else { source.arbitrary::<i8>()?.into() };
    let skipped = if flags & 16 == 0 { 0 } else { source.arbitrary::<i8>()? };
    let n_odd = if flags & 32 == 0 { 0 } else { source.arbitrary::<u8>()? % 4 };
    let mut data = Vec::new();
    for _ in 0..source.arbitrary::<u8>()? % 10 {
        let element = match flags & 64 {
            0 => f32::from(source.arbitrary::<i8>()?),
            _ => source.arbitrary()?,
        };
        data.extend(element.to_le_bytes());
    }
    data.extend(vec![0; usize::from(n_odd)]);
    let key = key.wrapping_add_signed(skipped.into());
    let (last, data) = (flags & LAST != 0, data.into());
    Ok(pb::PushRequest { header, dtype, key, last, data, ..Default::default() })
}

const LAST: u8 = 4;

/// What the server makes of the messages: `None` while more has to come.
pub(crate) fn push_of(
    driver: &Driver,
    messages: Vec<pb::PushRequest>,
) -> Option<Result<Push, ErrorCode>> {
    let mut messages = messages.into_iter();
    let mut first = messages.next()?;
    let Some(header) = first.header.take() else { return Some(Err(ErrorCode::BadField)) };
    let begun = Assembly::begin(driver, header);
    let mut assembly = match begun {
        Ok(assembly) => assembly,
        Err(error) => return Some(Err(error.code)),
    };
    for mut message in std::iter::once(first).chain(messages) {
        let data = std::mem::take(&mut message.data);
        assembly = match assembly.take(&message, data.into()) {
            Ok(Progress::More(assembly)) => assembly,
            Ok(Progress::Whole(push)) => return Some(Ok(push)),
            Err(error) => return Some(Err(error.code)),
        };
    }
    None
}

/// The elements of a chunk, at most `room`, written once more by the words of `types.proto`.
fn decoded(dtype: i32, data: &[u8], room: usize) -> Result<Vec<f32>, ErrorCode> {
    let word = |at: usize| data.get(at..at + 4).map(|b| [b[0], b[1], b[2], b[3]]);
    let float = |at: usize| word(at).map_or(f32::NAN, f32::from_le_bytes);
    let half = |at: usize| u16::from_le_bytes([data[at], data[at + 1]]);
    let n = match dtype {
        1 => data.len().is_multiple_of(4).then_some(data.len() / 4),
        3 | 4 => data.len().is_multiple_of(2).then_some(data.len() / 2),
        5 => (data.len().is_multiple_of(260) || data.len() % 260 > 4)
            .then(|| data.len() - 4 * data.len().div_ceil(260)),
        _ => word(0).map(u32::from_le_bytes).map(|n| n as usize).filter(|&n| {
            let entries = data.len() - 4;
            entries.is_multiple_of(8) && (entries / 8..=1 << 18).contains(&n) && n > 0
        }),
    };
    let n = n.ok_or(ErrorCode::BadLength)?;
    if n > room {
        return Err(ErrorCode::DimMismatch);
    }
    let mut values = vec![0f32; n];
    if dtype == 6 {
        let n_entries = (data.len() - 4) / 8;
        let mut next = 0;
        for entry in 0..n_entries {
            let place = word(4 + 4 * entry).map(u32::from_le_bytes).expect("counted") as usize;
            if place < next || place >= n {
                return Err(ErrorCode::BadKey);
            }
            values[place] = float(4 + 4 * (n_entries + entry));
            next = place + 1;
        }
    } else {
        for (i, value) in values.iter_mut().enumerate() {
            *value = match dtype {
                1 => float(4 * i),
                3 => f16(half(2 * i)),
                4 => f32::from_bits(u32::from(half(2 * i)) << 16),
                _ => {
                    let block = i / 256 * 260;
                    float(block) * f32::from(data[block + 4 + i % 256].cast_signed())
                }
            };
        }
    }
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => Err(ErrorCode::NonFinite),
    }
}

/// Half precision by its definition.
fn f16(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 => f32::INFINITY,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

/// The same, said once more and simply.
fn twin(messages: &[pb::PushRequest], caller: Caller) -> Option<Result<Vec<f32>, ErrorCode>> {
    let header = match messages.first()?.header {
        Some(header) => header,
        None => return Some(Err(ErrorCode::BadField)),
    };
    if header.loss.is_some_and(|loss| !loss.is_finite()) {
        return Some(Err(ErrorCode::BadField));
    }
    if header.rank != caller.rank {
        return Some(Err(ErrorCode::UnknownWorker));
    }
    if header.incarnation != caller.incarnation {
        return Some(Err(if header.incarnation > caller.incarnation {
            ErrorCode::UnknownWorker
        } else {
            ErrorCode::Fenced
        }));
    }
    let mut values: Vec<f32> = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        let refused = [
            (index > 0 && message.header.is_some(), ErrorCode::BadField),
            (message.data.is_empty(), ErrorCode::Empty),
            (![1, 3, 4, 5, 6].contains(&message.dtype), ErrorCode::BadDtype),
            (message.key != values.len() as u64, ErrorCode::BadKey),
        ];
        if let Some((_, code)) = refused.iter().find(|(is_so, _)| *is_so) {
            return Some(Err(*code));
        }
        match decoded(message.dtype, &message.data, DIM - values.len()) {
            Ok(new) => values.extend(new),
            Err(code) => return Some(Err(code)),
        }
        if message.last {
            return Some(if values.len() == DIM {
                Ok(values)
            } else {
                Err(ErrorCode::DimMismatch)
            });
        }
    }
    None
}

/// A push in one message, in two, in six, and with any floats.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let six = (0..6).flat_map(|i| [if i == 5 { LAST } else { 0 }, 1, i]).collect();
    let floats = [1e-30f32, 1.5, -0.0, f32::MAX, 1e30, 2.0].map(f32::to_le_bytes).concat();
    vec![
        vec![LAST, 6, 1, 2, 3, 4, 5, 255],
        vec![0, 2, 1, 2, LAST, 4, 3, 4, 5, 6],
        six,
        [&[LAST | 64, 6], &floats[..]].concat(),
    ]
}

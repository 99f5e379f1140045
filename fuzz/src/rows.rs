//! Pushes of rows: streams of messages against a naive twin that says which are a gradient, and of what.

use arbitrary::Unstructured;
use ps_common::ErrorCode;
use ps_common::calls::Caller;
use ps_common::dtype::as_le_bytes;
use ps_common::rows::{are_in_order, elements};
use ps_common::wire::pb;
use ps_server::net::Push;
use ps_server::table::Pushed;

use crate::pushes::{config, join_request, joined, push_of, server};

/// theta's tables: how many rows, and elements of each.
const TABLES: [(u32, usize); 2] = [(4, 2), (3, 1)];
const DIM: usize = 11;

/// Of `message`: it ends the push, odd bytes, another element type, another key, a header.
const LAST: u8 = 4;
const ODD: u8 = 8;
const OTHER_DTYPE: u8 = 16;
const SKIPS: u8 = 32;
const HEADER: u8 = 64;
const ANY_FLOATS: u8 = 128;

/// Assembles the messages that the bytes stand for; whether a push came out.
pub(crate) fn assemble(input: &[u8]) -> bool {
    let driver = server(config());
    let table = |(i, (rows, width)): (usize, (u32, usize))| pb::Table {
        name: format!("t{i}"),
        shape: vec![rows.into(), width as u64],
        ..join_request(None).tables[0].clone()
    };
    let tables = TABLES.into_iter().enumerate().map(table).collect();
    let caller = joined(&driver, pb::JoinRequest { tables, ..join_request(Some(0)) });
    let mut source = Unstructured::new(input);
    let mut messages: Vec<pb::PushRequest> = Vec::new();
    let mut key = 0;
    while !source.is_empty() {
        let Ok(message) = message(&mut source, key, messages.is_empty(), caller) else { break };
        if message.part == 0 {
            key += message.data.len() as u64 / 4;
        }
        messages.push(message);
    }
    let got = push_of(&driver, messages.clone());
    let want = Twin::default().read(&messages);
    match (&got, &want) {
        (Some(Ok(push)), Some(Ok(want))) => assert_same(push, want),
        (Some(Err(got)), Some(Err(want))) => assert_eq!(got, want, "{messages:?}"),
        (None, None) => {}
        _ => panic!("got {got:?}, the twin {want:?}, of {messages:?}"),
    }
    matches!(got, Some(Ok(_)))
}

/// A message: a byte of flags and its part, a table, how many numbers or elements, and these.
fn message(
    source: &mut Unstructured<'_>,
    key: u64,
    is_first: bool,
    Caller { rank, incarnation }: Caller,
) -> arbitrary::Result<pb::PushRequest> {
    let flags: u8 = source.arbitrary()?;
    let part = i32::from(flags & 3);
    let table = u32::from(source.arbitrary::<u8>()? % 3);
    let mut data = Vec::new();
    for _ in 0..source.arbitrary::<u8>()? % 8 {
        data.extend(match (part, flags & ANY_FLOATS) {
            (0, 0) => f32::from(source.arbitrary::<i8>()?).to_le_bytes(),
            (0, _) => source.arbitrary::<f32>()?.to_le_bytes(),
            _ => u32::from(source.arbitrary::<u8>()? % 5).to_le_bytes(),
        });
    }
    data.extend(vec![0; if flags & ODD == 0 { 0 } else { 3 }]);
    let due =
        pb::PushHeader { rank, incarnation, n_samples: 1, sparse: true, ..Default::default() };
    Ok(pb::PushRequest {
        header: (is_first || flags & HEADER != 0).then_some(due),
        dtype: if flags & OTHER_DTYPE == 0 { 1 } else { 3 },
        key: key + u64::from(flags & SKIPS != 0),
        last: flags & LAST != 0,
        staged: None,
        table,
        part,
        data: data.into(),
    })
}

/// The same, said once more and simply.
#[derive(Debug, Default)]
struct Twin {
    /// Keys of elements, in order.
    brought: Vec<usize>,
    asked: Vec<usize>,
    values: Vec<f32>,
}

impl Twin {
    fn read(mut self, messages: &[pb::PushRequest]) -> Option<Result<Self, ErrorCode>> {
        for (index, message) in messages.iter().enumerate() {
            if index > 0 && message.header.is_some() {
                return Some(Err(ErrorCode::BadField));
            }
            let taken = match message.part {
                0 => self.elements(message),
                1 if self.values.is_empty() => names(message, &mut self.brought),
                2 => names(message, &mut self.asked),
                _ => Err(ErrorCode::BadField),
            };
            if let Err(code) = taken {
                return Some(Err(code));
            }
            if message.last {
                return Some(match self.values.len() == self.brought.len() {
                    true if self.sums().iter().all(|sum| sum.is_finite()) => Ok(self),
                    true => Err(ErrorCode::NonFinite),
                    false => Err(ErrorCode::DimMismatch),
                });
            }
        }
        None
    }

    fn elements(&mut self, message: &pb::PushRequest) -> Result<(), ErrorCode> {
        let n_bytes = message.data.len();
        let new: Vec<f32> = words(message).map(f32::from_le_bytes).collect();
        let refused = [
            (n_bytes == 0 && !message.last, ErrorCode::Empty),
            (n_bytes > 0 && message.dtype != 1, ErrorCode::BadDtype),
            (n_bytes > 0 && message.key != self.values.len() as u64, ErrorCode::BadKey),
            (!n_bytes.is_multiple_of(4), ErrorCode::BadLength),
            (self.values.len() + new.len() > self.brought.len(), ErrorCode::DimMismatch),
            (new.iter().any(|value| !value.is_finite()), ErrorCode::NonFinite),
        ];
        self.values.extend(new);
        refused.iter().find(|(is_so, _)| *is_so).map_or(Ok(()), |(_, code)| Err(*code))
    }

    /// The gradient with its zeros.
    fn sums(&self) -> [f32; DIM] {
        let (mut sums, mut seen) = ([0.0; DIM], [false; DIM]);
        for (&key, value) in self.brought.iter().zip(&self.values) {
            sums[key] = if seen[key] { sums[key] + value } else { *value };
            seen[key] = true;
        }
        sums
    }
}

fn words(message: &pb::PushRequest) -> impl Iterator<Item = [u8; 4]> {
    message.data.chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]])
}

fn names(message: &pb::PushRequest, keys: &mut Vec<usize>) -> Result<(), ErrorCode> {
    if message.data.is_empty() {
        return Err(ErrorCode::Empty);
    }
    if !message.data.len().is_multiple_of(4) {
        return Err(ErrorCode::BadLength);
    }
    let (first, (n_rows, width)) = match message.table {
        0 => (0, TABLES[0]),
        1 => (8, TABLES[1]),
        _ => return Err(ErrorCode::BadField),
    };
    for row in words(message).map(u32::from_le_bytes) {
        if row >= n_rows {
            return Err(ErrorCode::RowRange);
        }
        let key = first + row as usize * width;
        keys.extend(key..key + width);
    }
    if keys.len() > DIM { Err(ErrorCode::DimMismatch) } else { Ok(()) }
}

fn assert_same(push: &Push, want: &Twin) {
    let Pushed::Rows(gradient) = &push.gradient else { panic!("rows stay rows: {push:?}") };
    assert_eq!(gradient.filled(DIM).as_le_bytes(), as_le_bytes(&want.sums()));
    assert!(are_in_order(gradient.rows()), "{gradient:?}");
    let asked = push.asked.as_ref().expect("a push of rows asks for rows, or none");
    assert_eq!(elements(asked).collect::<Vec<_>>(), want.asked);
}

/// Rows in one message and in several, out of order and twice, others asked for, and none at all.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    vec![
        vec![1, 0, 2, 3, 1, 2, 1, 1, 2, LAST, 0, 4, 1, 2, 3, 255],
        vec![1, 1, 1, 2, 1, 0, 3, 1, 0, 1, 2, 1, 2, 0, 1, 0, 0, 3, 5, 6, 7, LAST, 0, 4, 1, 2, 3, 4],
        vec![2, 0, 1, 3, LAST, 0, 0],
        [&[1, 1, 1, 0, LAST | ANY_FLOATS, 0, 1], &1e30f32.to_le_bytes()[..]].concat(),
        vec![LAST, 0, 0],
    ]
}

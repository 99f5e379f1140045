//! gRPC messages that carry a chunk, between HTTP/2's own buffers and checked fields: no copy of a
//! tensor in either direction.
//!
//! It exists for one reason: the generated codec copies every message into one buffer on its way in
//! and into another on its way out, and a tensor's bytes are nearly all of the traffic. Here a
//! message comes out of the buffers that it arrived in: its small fields decoded, its tensor as the
//! pieces that HTTP/2 gave. On its way out a message is a few bytes of head, then the tensor's
//! bytes, wherever they lie. What travels is the same to the last byte.
//!
//! Whatever is not laid out as our own side does it (other order of fields, a tensor in two fields,
//! odd encodings) is put together and given to the generated decoder: what is a message, and what
//! is none, is decided there alone.
//!
//! Knows no sockets, no calls and no meaning of any field.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use tonic::Status;

use super::pb;

/// Bytes of gRPC before each message: whether it is compressed, and its length.
pub const PREFIX_BYTES: usize = 5;
/// Field 15, length-delimited: `data` of every message that carries a chunk.
const DATA_TAG: u8 = 15 << 3 | 2;
/// Of one number of protobuf.
const VARINT_BYTES_MAX: usize = 10;
/// Shorter pieces are copied together on their way in: each one kept as it came keeps alive the buffer
/// that it is part of, and a message may come in as many pieces as it has bytes. A frame of HTTP/2's
/// default size is not shorter.
pub const PIECE_BYTES_MIN: usize = 16 << 10;

/// A message with a tensor's bytes as its last field.
pub trait Carrier: Message + Default {
    /// These bytes: field 15.
    fn data(&mut self) -> &mut Bytes;
}

macro_rules! carrier {
    ($($message:ty),*) => {$(
        impl Carrier for $message {
            fn data(&mut self) -> &mut Bytes {
                &mut self.data
            }
        }
    )*};
}

carrier!(pb::PushRequest, pb::PullResponse, pb::PushPullResponse);

/// Bytes in order, in the pieces that they came in.
#[derive(Debug, Clone, Default)]
pub struct Pieces {
    pieces: VecDeque<Bytes>,
    len: usize,
}

impl Pieces {
    /// Adds bytes at the end.
    fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Takes off the first `n` bytes.
    fn split_to(&mut self, n: usize) -> Self {
        let mut front = Self::default();
        while front.len < n {
            let missing = n - front.len;
            let first = self.pieces.front_mut().expect("there are n bytes");
            let piece = match first.len() <= missing {
                true => self.pieces.pop_front().expect("the first"),
                false => first.split_to(missing),
            };
            self.len -= piece.len();
            front.push(piece);
        }
        front
    }

    /// The pieces; none is empty.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.pieces.iter()
    }
}

impl From<Bytes> for Pieces {
    fn from(bytes: Bytes) -> Self {
        let mut pieces = Self::default();
        pieces.push(bytes);
        pieces
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn advance(&mut self, n: usize) {
        self.len = self.len.checked_sub(n).expect("not beyond the end");
        let mut rest = n;
        while rest > 0 {
            let first = self.pieces.front_mut().expect("there are n bytes");
            let step = rest.min(first.len());
            first.advance(step);
            if first.is_empty() {
                self.pieces.pop_front();
            }
            rest -= step;
        }
    }

    fn copy_to_bytes(&mut self, n: usize) -> Bytes {
        assert!(n <= self.len, "not beyond the end");
        let mut front = self.split_to(n);
        if front.pieces.len() > 1 {
            let mut bytes = BytesMut::with_capacity(n);
            front.pieces.iter().for_each(|piece| bytes.put_slice(piece));
            return bytes.freeze();
        }
        front.pieces.pop_front().unwrap_or_default()
    }
}

/// A message that has arrived.
#[derive(Debug, Clone)]
pub struct Arrived<M> {
    /// All fields but the data, which are empty.
    pub fields: M,
    /// The data.
    pub data: Pieces,
    /// Of the message on the wire, without its prefix.
    pub message_bytes: usize,
}

/// What has arrived of a call's messages.
#[derive(Debug, Default)]
pub struct Inbox {
    pieces: Pieces,
    /// What came in short pieces, after all of `pieces`.
    short: BytesMut,
    /// Of the message that is arriving, once its prefix is in.
    message_bytes: Option<usize>,
}

impl Inbox {
    /// Takes in what came next.
    pub fn put(&mut self, piece: Bytes) {
        if piece.len() < PIECE_BYTES_MIN {
            self.short.extend_from_slice(&piece);
        } else {
            self.gather();
            self.pieces.push(piece);
        }
    }

    /// Whether nothing lies here.
    pub fn is_empty(&self) -> bool {
        self.message_bytes.is_none() && self.pieces.len == 0 && self.short.is_empty()
    }

    /// The next message, of at most `bytes_max`, with its data apart; `None`: it is not all here.
    ///
    /// # Errors
    /// What tonic says of a message that is compressed, too long or none; nothing can follow it.
    pub fn next_chunk<M: Carrier>(
        &mut self,
        bytes_max: usize,
    ) -> Result<Option<Arrived<M>>, Status> {
        self.next(bytes_max)?.map(split).transpose()
    }

    /// The next message as it is, of at most `bytes_max`; `None`: it is not all here.
    ///
    /// # Errors
    /// As [`Inbox::next_chunk`].
    pub fn next_message<M: Message + Default>(
        &mut self,
        bytes_max: usize,
    ) -> Result<Option<M>, Status> {
        self.next(bytes_max)?.map(|pieces| M::decode(pieces).map_err(no_message)).transpose()
    }

    fn next(&mut self, bytes_max: usize) -> Result<Option<Pieces>, Status> {
        let message_bytes = match self.message_bytes {
            Some(message_bytes) => message_bytes,
            None if self.pieces.len + self.short.len() < PREFIX_BYTES => return Ok(None),
            None => {
                self.gather();
                let compressed = self.pieces.get_u8();
                let message_bytes = self.pieces.get_u32() as usize;
                check_prefix(compressed, message_bytes, bytes_max)?;
                *self.message_bytes.insert(message_bytes)
            }
        };
        if self.pieces.len + self.short.len() < message_bytes {
            return Ok(None);
        }
        self.message_bytes = None;
        self.gather();
        Ok(Some(self.pieces.split_to(message_bytes)))
    }

    /// Moves what came in short pieces behind the others.
    fn gather(&mut self) {
        if !self.short.is_empty() {
            self.pieces.push(self.short.split().freeze());
        }
    }
}

fn check_prefix(compressed: u8, message_bytes: usize, bytes_max: usize) -> Result<(), Status> {
    match compressed {
        0 => {}
        1 => {
            return Err(Status::internal(
                "protocol error: received message with compressed-flag but no grpc-encoding was \
                 specified",
            ));
        }
        flag => {
            return Err(Status::internal(format!(
                "protocol error: received message with invalid compression flag: {flag} (valid \
                 flags are 0 and 1)"
            )));
        }
    }
    if message_bytes > bytes_max {
        return Err(Status::out_of_range(format!(
            "a message of {message_bytes} bytes; the limit is {bytes_max} bytes"
        )));
    }
    Ok(())
}

fn no_message(error: prost::DecodeError) -> Status {
    Status::internal(error.to_string())
}

/// A whole message into its fields and its data.
fn split<M: Carrier>(mut message: Pieces) -> Result<Arrived<M>, Status> {
    let message_bytes = message.len;
    if let Some((fields_len, head_len)) = find_data(message.chunk(), message_bytes) {
        let fields = M::decode(&message.chunk()[..fields_len]).map_err(no_message)?;
        message.advance(head_len);
        return Ok(Arrived { fields, data: message, message_bytes });
    }
    let mut fields = M::decode(message.copy_to_bytes(message_bytes)).map_err(no_message)?;
    let data = std::mem::take(fields.data()).into();
    Ok(Arrived { fields, data, message_bytes })
}

/// Where the fields before the data end and where the data begin, if the data are the rest of the
/// message, whose first piece is `first`.
fn find_data(first: &[u8], message_bytes: usize) -> Option<(usize, usize)> {
    let mut at = 0;
    loop {
        let fields_len = at;
        let tag = varint(first, &mut at)?;
        if tag == u64::from(DATA_TAG) {
            let data_len = varint(first, &mut at)?;
            return (data_len == (message_bytes - at) as u64).then_some((fields_len, at));
        }
        let skipped = match tag & 7 {
            0 => varint(first, &mut at).map(|_| 0)?,
            1 => 8,
            2 => varint(first, &mut at)?,
            5 => 4,
            _ => return None,
        };
        at = at.checked_add(usize::try_from(skipped).ok()?)?;
    }
}

/// The number at `at`, which moves behind it; `None` where there is none or it is cut.
fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for (i, &byte) in bytes.get(*at..)?.iter().take(VARINT_BYTES_MAX).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            // The tenth has one bit of 64 left.
            let fits = i + 1 < VARINT_BYTES_MAX || byte <= 1;
            *at += i + 1;
            return fits.then_some(value);
        }
    }
    None
}

/// A message with its prefix, in the pieces that go out. Long data go as they lie, behind their head;
/// short ones are copied behind it: a frame of their own costs more.
pub fn parts<M: Carrier>(fields: &M, data: Bytes) -> impl Iterator<Item = Bytes> + use<M> {
    let is_short = data.len() < PIECE_BYTES_MIN;
    let mut first = put(fields, data.len(), if is_short { data.len() } else { 0 });
    if is_short {
        first.put_slice(&data);
    }
    std::iter::once(first.freeze()).chain((!is_short).then_some(data))
}

/// A message with its prefix.
pub fn plain(message: &impl Message) -> Bytes {
    put(message, 0, 0).freeze()
}

fn put(fields: &impl Message, data_len: usize, room: usize) -> BytesMut {
    let head_bytes_max = PREFIX_BYTES + fields.encoded_len() + 1 + VARINT_BYTES_MAX;
    let mut bytes = BytesMut::with_capacity(head_bytes_max + room);
    bytes.put_bytes(0, PREFIX_BYTES);
    fields.encode(&mut bytes).expect("the buffer grows as needed");
    if data_len > 0 {
        bytes.put_u8(DATA_TAG);
        prost::encoding::encode_varint(data_len as u64, &mut bytes);
    }
    let message_bytes = u32::try_from(bytes.len() - PREFIX_BYTES + data_len);
    let message_bytes = message_bytes.expect("a message is far below 4 GiB");
    bytes[1..PREFIX_BYTES].copy_from_slice(&message_bytes.to_be_bytes());
    bytes
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;

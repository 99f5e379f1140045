//! gRPC messages that carry a chunk, at the level of bytes: a prefix of five bytes, the small fields
//! as protobuf, then the tensor's bytes as the last field.
//!
//! It exists for one reason: the generated codec copies every tensor once more in each direction.
//! On the wire nothing is different. Knows no tensors and no streams.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use ps_common::wire::status::Failure;
use ps_common::wire::{PARAMETERS_MESSAGE_BYTES_MAX, pb};

use super::tensor::broken;

/// Bytes of gRPC before each message: whether it is compressed, and its length.
pub(super) const PREFIX_BYTES: usize = 5;
/// Field 15, length-delimited: `data` of every message that carries a chunk.
const DATA_TAG: u8 = 15 << 3 | 2;
/// Room for a length.
const VARINT_BYTES_MAX: usize = 10;

/// One message with its prefix, ready for the wire: `fields` without data, then `data`, the only
/// copy.
pub(super) fn encode(fields: &pb::PushRequest, data: &[u8]) -> Bytes {
    debug_assert!(fields.data.is_empty(), "the data comes last");
    let fields_len = fields.encoded_len();
    let mut bytes =
        BytesMut::with_capacity(PREFIX_BYTES + fields_len + 1 + VARINT_BYTES_MAX + data.len());
    bytes.put_bytes(0, PREFIX_BYTES);
    fields.encode(&mut bytes).expect("the buffer grows as needed");
    bytes.put_u8(DATA_TAG);
    prost::encoding::encode_varint(data.len() as u64, &mut bytes);
    bytes.put_slice(data);
    let len = u32::try_from(bytes.len() - PREFIX_BYTES).expect("a chunk is far below 4 GiB");
    bytes[1..PREFIX_BYTES].copy_from_slice(&len.to_be_bytes());
    bytes.freeze()
}

/// A message up to its data.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Head {
    /// All fields but the data.
    pub(super) fields: pb::PushPullResponse,
    /// Bytes up to the data, the prefix included.
    pub(super) head_len: usize,
    /// Bytes of data that follow; they end the message.
    pub(super) data_len: usize,
}

/// Reads a message up to its data; `None`: `bytes` do not reach that far yet.
pub(super) fn decode_head(bytes: &[u8]) -> Result<Option<Head>, Failure> {
    let Some((prefix, message)) = bytes.split_first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    let [compressed, len @ ..] = *prefix;
    let len = u32::from_be_bytes(len) as usize;
    if compressed != 0 {
        return Err(broken("a compressed message, where none was asked for"));
    }
    if len > PARAMETERS_MESSAGE_BYTES_MAX {
        return Err(broken(format!(
            "a message of {len} bytes; at most {PARAMETERS_MESSAGE_BYTES_MAX} are possible"
        )));
    }
    let message = &message[..message.len().min(len)];
    let mut walk = Walk { bytes: message, at: 0 };
    let (fields_len, data_len) = loop {
        if walk.at == len {
            break (len, 0);
        }
        let fields_len = walk.at;
        let Some(tag) = walk.varint()? else { return Ok(None) };
        if tag == u64::from(DATA_TAG) {
            let Some(data_len) = walk.varint()? else { return Ok(None) };
            if data_len != (len - walk.at) as u64 {
                return Err(broken("a chunk whose data are not its last field"));
            }
            break (fields_len, data_len as usize);
        }
        let skipped = match tag & 7 {
            0 => walk.varint()?.map(|_| 0),
            1 => Some(8),
            2 => walk.varint()?,
            5 => Some(4),
            _ => return Err(broken(format!("a field of wire type {}", tag & 7))),
        };
        let Some(skipped) = skipped else { return Ok(None) };
        if skipped > (len - walk.at) as u64 {
            return Err(broken("a field that is longer than its message"));
        }
        walk.at += skipped as usize;
        if walk.at > message.len() {
            return Ok(None);
        }
    };
    let fields = pb::PushPullResponse::decode(&message[..fields_len]).map_err(broken)?;
    Ok(Some(Head { fields, head_len: PREFIX_BYTES + walk.at, data_len }))
}

/// A place in the fields of a message, which may not be whole yet.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Walk<'_> {
    /// The next number; `None`: its end has not arrived.
    fn varint(&mut self) -> Result<Option<u64>, Failure> {
        let mut value = 0u64;
        for (i, &byte) in self.bytes[self.at..].iter().take(VARINT_BYTES_MAX).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.at += i + 1;
                return Ok(Some(value));
            }
        }
        if self.bytes.len() - self.at >= VARINT_BYTES_MAX {
            return Err(broken("a number of more than ten bytes"));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> pb::PushPullResponse {
        pb::PushPullResponse {
            result: Some(pb::PushResult { version: 300, waited_us: 5, ..Default::default() }),
            dtype: 1,
            version: 300,
            key: 1 << 33,
            last: true,
            data: Bytes::from_static(b"12345678"),
        }
    }

    fn framed(message: &pb::PushPullResponse) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(message.encoded_len()).expect("short").to_be_bytes());
        bytes.extend(message.encode_to_vec());
        bytes
    }

    #[test]
    fn what_is_written_here_is_what_the_generated_codec_writes() {
        let fields = pb::PushRequest {
            header: Some(pb::PushHeader { rank: 3, loss: Some(0.5), ..Default::default() }),
            dtype: 2,
            key: 77,
            last: true,
            data: Bytes::new(),
        };
        let bytes = encode(&fields, b"gradient");
        let whole = pb::PushRequest { data: Bytes::from_static(b"gradient"), ..fields };
        assert_eq!(&bytes[PREFIX_BYTES..], whole.encode_to_vec());
        assert_eq!(bytes[..PREFIX_BYTES], [0, 0, 0, 0, whole.encoded_len() as u8]);
    }

    #[test]
    fn a_head_is_read_wherever_the_bytes_are_cut() {
        let message = message();
        let bytes = framed(&message);
        let head_len = bytes.len() - message.data.len();
        let wanted = Head {
            fields: pb::PushPullResponse { data: Bytes::new(), ..message },
            head_len,
            data_len: 8,
        };
        for cut in 0..head_len {
            assert_eq!(decode_head(&bytes[..cut]), Ok(None), "cut at {cut}");
        }
        for cut in head_len..=bytes.len() {
            assert_eq!(decode_head(&bytes[..cut]), Ok(Some(wanted.clone())), "cut at {cut}");
        }
    }

    #[test]
    fn a_message_without_data_is_all_head() {
        let message = pb::PushPullResponse { data: Bytes::new(), ..message() };
        let mut bytes = framed(&message);
        let n = bytes.len();
        // The next message has begun already.
        bytes.extend([0, 0, 0]);
        let head = decode_head(&bytes).expect("valid").expect("whole");
        assert_eq!((head.head_len, head.data_len, head.fields), (n, 0, message));
    }

    #[test]
    fn nonsense_is_refused() {
        let claim = |len: u32, rest: &[u8]| [&[0], &len.to_be_bytes()[..], rest].concat();
        for (bytes, says) in [
            (vec![1, 0, 0, 0, 0], "compressed"),
            (claim(u32::MAX, &[]), "at most"),
            (claim(20, &[DATA_TAG, 3, 1, 2, 3]), "not its last field"),
            (claim(4, &[0x0a, 9, 0, 0]), "longer than its message"),
            (claim(4, &[0x0b, 9, 0, 0]), "wire type 3"),
            (claim(30, &[0xff; 30]), "ten bytes"),
            (claim(2, &[0x08, 0x01]), "breaks the protocol"),
        ] {
            let failure = decode_head(&bytes).expect_err(says);
            assert!(failure.to_string().contains(says), "{failure}");
        }
    }
}

//! Messages as the generated codec writes them, cut in every way, against what comes out.

use super::*;

const BYTES_MAX: usize = 1 << 20;

/// A tensor's bytes, no two stretches of them alike.
fn data(n: usize) -> Bytes {
    (0..n).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn request(n: usize) -> pb::PushRequest {
    pb::PushRequest {
        header: Some(pb::PushHeader { rank: 3, loss: Some(0.5), ..Default::default() }),
        dtype: 2,
        key: 1 << 40,
        last: true,
        table: 2,
        part: pb::Part::Rows.into(),
        staged: None,
        data: data(n),
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).expect("short");
    [&[0], &len.to_be_bytes()[..], message].concat()
}

/// All messages of `bytes`, which arrive in pieces of `piece_bytes`.
fn arrive(bytes: &[u8], piece_bytes: usize) -> Result<Vec<Arrived<pb::PushRequest>>, Status> {
    let (mut inbox, mut arrived) = (Inbox::default(), Vec::new());
    for piece in bytes.chunks(piece_bytes) {
        inbox.put(Bytes::copy_from_slice(piece));
        while let Some(message) = inbox.next_chunk(BYTES_MAX)? {
            arrived.push(message);
        }
    }
    assert!(inbox.is_empty(), "{inbox:?}");
    Ok(arrived)
}

#[track_caller]
fn equal(arrived: &Arrived<pb::PushRequest>, wanted: &pb::PushRequest) {
    assert_eq!(arrived.fields, pb::PushRequest { data: Bytes::new(), ..wanted.clone() });
    let mut pieces = arrived.data.clone();
    assert_eq!(pieces.copy_to_bytes(pieces.remaining()), wanted.data);
    assert_eq!(arrived.message_bytes, wanted.encoded_len());
}

#[test]
fn what_is_written_here_is_what_the_generated_codec_writes() {
    for n in [0, 1, 127, 128, 300_000] {
        let whole = request(n);
        let fields = pb::PushRequest { data: Bytes::new(), ..whole.clone() };
        let wanted = framed(&whole.encode_to_vec());
        let parts: Vec<_> = parts(&fields, whole.data.clone()).collect();
        assert_eq!(parts.concat(), wanted, "{n}");
        let is_copied = parts.last().expect("there is one").as_ptr() != whole.data.as_ptr();
        assert_eq!(
            (parts.len(), is_copied),
            if n < PIECE_BYTES_MIN { (1, true) } else { (2, false) }
        );
        assert_eq!(plain(&whole), wanted, "{n}");
    }
}

#[test]
fn messages_arrive_however_they_are_cut() {
    let messages = [request(10), request(0), request(40_000), pb::PushRequest::default()];
    let bytes: Vec<u8> = messages.iter().flat_map(|m| framed(&m.encode_to_vec())).collect();
    let short = (1..=64).chain([100, 1000]);
    for piece_bytes in short.chain([PIECE_BYTES_MIN, PIECE_BYTES_MIN + 1, 20_000, bytes.len()]) {
        let arrived = arrive(&bytes, piece_bytes).expect("valid");
        assert_eq!(arrived.len(), messages.len());
        arrived.iter().zip(&messages).for_each(|(arrived, wanted)| equal(arrived, wanted));
    }
}

#[test]
fn a_tensor_is_not_copied() {
    let message = request(100_000);
    let bytes = Bytes::from(framed(&message.encode_to_vec()));
    for cut in [bytes.len(), 50_000] {
        let mut inbox = Inbox::default();
        inbox.put(bytes.slice(..cut));
        inbox.put(bytes.slice(cut..));
        let arrived = inbox.next_chunk::<pb::PushRequest>(BYTES_MAX).expect("valid");
        let pieces = arrived.expect("whole").data;
        let within = |piece: &Bytes| bytes.as_ptr_range().contains(&piece.as_ptr());
        assert!(pieces.iter().all(within), "cut at {cut}");
    }
}

#[test]
fn short_pieces_do_not_pile_up() {
    let bytes = framed(&request(100_000).encode_to_vec());
    let mut inbox = Inbox::default();
    bytes[..bytes.len() - 1].chunks(1).for_each(|piece| inbox.put(Bytes::copy_from_slice(piece)));
    assert!(inbox.next_chunk::<pb::PushRequest>(BYTES_MAX).expect("so far").is_none());
    assert!(inbox.pieces.pieces.len() < 3, "{} pieces", inbox.pieces.pieces.len());
}

/// One field on the wire: its tag, then its bytes.
fn field(number: u64, wire_type: u64, rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(number << 3 | wire_type, &mut bytes);
    bytes.extend(rest);
    bytes
}

/// Whatever protobuf allows comes out as the generated decoder reads it, and what it refuses is
/// refused: this side decides nothing of its own.
#[test]
fn any_layout_is_read_as_the_generated_decoder_reads_it() {
    let blob = field(15, 2, &[3, b'a', b'b', b'c']);
    let empty = field(15, 2, &[0]);
    let dtype = field(2, 0, &[1]);
    let unknown = [
        field(20, 0, &[0x80, 1]),
        field(21, 1, &[0; 8]),
        field(22, 2, &[2, 9, 9]),
        field(23, 5, &[0; 4]),
        // A group with a field in it.
        [field(24, 3, &[]), field(1, 0, &[1]), field(24, 4, &[])].concat(),
    ];
    let mut layouts = vec![
        vec![],
        [&blob[..], &dtype].concat(),
        [&blob[..], &empty].concat(),
        [&field(15, 2, &[1, b'z'])[..], &blob].concat(),
        [&field(1, 2, &[2, 8, 3])[..], &field(1, 2, &[2, 16, 4]), &blob].concat(),
        // A tag of more bytes than it needs.
        [&[0xfa, 0x80, 0x00][..], &[1, b'x']].concat(),
        // Refused: a tag of more than 64 bits, one of field 0, a length beyond the message, a type
        // that is not the field's, a group that ends before it begins, half a number.
        [&[0xfa, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02][..], &[1, b'x']].concat(),
        [&field(0, 0, &[1])[..], &blob].concat(),
        field(15, 2, &[9, b'a']),
        field(22, 2, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
        [&field(15, 0, &[1])[..], &blob].concat(),
        [&field(2, 2, &[1, 1])[..], &blob].concat(),
        field(24, 4, &[]),
        vec![0x10, 0x80],
        vec![0xff; 30],
    ];
    for unknown in &unknown {
        layouts.push([&unknown[..], &dtype, &blob].concat());
        layouts.push([&dtype[..], &blob, unknown].concat());
    }
    let mut n_refused = 0;
    for layout in layouts {
        let wanted = pb::PushRequest::decode(&layout[..]);
        for piece_bytes in [1, 3, 1000] {
            match (arrive(&framed(&layout), piece_bytes), &wanted) {
                (Ok(arrived), Ok(wanted)) => {
                    assert_eq!(arrived.len(), 1);
                    let Arrived { fields, mut data, message_bytes } = arrived[0].clone();
                    assert_eq!(fields, pb::PushRequest { data: Bytes::new(), ..wanted.clone() });
                    assert_eq!(data.copy_to_bytes(data.remaining()), wanted.data);
                    assert_eq!(message_bytes, layout.len());
                }
                (Err(status), Err(error)) => {
                    n_refused += 1;
                    assert_eq!(status.code(), tonic::Code::Internal);
                    assert_eq!(status.message(), error.to_string());
                }
                (got, wanted) => panic!("{layout:02x?}: {got:?}, not {wanted:?}"),
            }
        }
    }
    assert_eq!(n_refused, 9 * 3, "as many as the list says");
}

#[test]
fn a_prefix_that_is_none_is_refused_before_its_message() {
    let mut inbox = Inbox::default();
    for (prefix, code, says) in [
        ([1, 0, 0, 0, 1], tonic::Code::Internal, "no grpc-encoding"),
        ([2, 0, 0, 0, 1], tonic::Code::Internal, "invalid compression flag: 2"),
        ([0, 0, 16, 0, 1], tonic::Code::OutOfRange, "1048577 bytes; the limit is 1048576"),
    ] {
        inbox.put(Bytes::copy_from_slice(&prefix));
        let status = inbox.next_chunk::<pb::PushRequest>(BYTES_MAX).expect_err(says);
        assert_eq!(status.code(), code);
        assert!(status.message().contains(says), "{status}");
    }
}

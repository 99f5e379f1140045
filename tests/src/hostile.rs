//! Connections whose HTTP/2 is garbage: what a peer sends that no library would be.

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use crate::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, PRIORITY,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, claiming, frame,
};

/// Everything that [`connection`] knows how to send.
pub const KINDS: [&str; 20] = [
    "preface: noise",
    "preface: HTTP/1.1",
    "preface: a part",
    "preface: TLS",
    "PING flood",
    "SETTINGS flood",
    "rapid reset",
    "CONTINUATION flood",
    "empty DATA flood",
    "oversized frame",
    "window overflow",
    "DATA on a half-closed stream",
    "header bomb",
    "large headers",
    "streams left open",
    "a message that claims much",
    "PRIORITY flood",
    "GOAWAY, then more",
    "HPACK noise",
    "frames of noise",
];

/// All that one connection of this kind sends; what may vary comes from `rng`. Where it calls, it
/// brings `token`.
///
/// # Panics
/// If the kind is none of [`KINDS`].
pub fn connection(kind: &str, token: &str, rng: &mut ChaCha8Rng) -> Vec<u8> {
    match kind {
        "preface: noise" => {
            let mut noise = vec![0; rng.random_range(0..4096)];
            rng.fill_bytes(&mut noise);
            noise
        }
        "preface: HTTP/1.1" => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        "preface: a part" => PREFACE[..rng.random_range(0..24)].to_vec(),
        "preface: TLS" => [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3], &[7; 300][..]].concat(),
        _ => [frames::greeting(), after_greeting(kind, token, rng)].concat(),
    }
}

/// What comes after a good beginning.
fn after_greeting(kind: &str, token: &str, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let n = rng.random_range(100..5000);
    let block = frames::call("/ps.v1.Parameters/Push", Some(token));
    let open = |stream: u32, flags: u8| frame(HEADERS, END_HEADERS | flags, stream, &block);
    let streams = (0..n as u32).map(|i| 2 * i + 1);
    match kind {
        "PING flood" => frame(PING, 0, 0, &[1; 8]).repeat(n),
        "SETTINGS flood" => frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]).repeat(n),
        "rapid reset" => {
            let reset = |i| [open(i, 0), frame(RST_STREAM, 0, i, &[0, 0, 0, 8])].concat();
            streams.flat_map(reset).collect()
        }
        "CONTINUATION flood" => {
            let begun = frame(HEADERS, 0, 1, &block);
            let more = frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b']).repeat(n);
            [begun, more].concat()
        }
        "empty DATA flood" => [open(1, 0), frame(DATA, 0, 1, &[]).repeat(n)].concat(),
        "oversized frame" => {
            let length = [1 << 20, (1 << 24) - 1][rng.random_range(0..2)];
            let kind = [DATA, HEADERS, SETTINGS, PING][rng.random_range(0..4)];
            claiming(length, kind, 0, 1, &vec![0; 100_000])
        }
        "window overflow" => {
            let stream = rng.random_range(0..2);
            let grow = frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]).repeat(2);
            [open(1, 0), grow].concat()
        }
        "DATA on a half-closed stream" => {
            let late = frame(DATA, 0, 1, &frames::message(3, b"abc"));
            [open(1, END_STREAM), late].concat()
        }
        "header bomb" => frame(HEADERS, END_HEADERS, 1, &header_bomb(block)),
        "large headers" => large_headers(block, rng),
        "streams left open" => streams.flat_map(|i| open(i, 0)).collect(),
        "a message that claims much" => {
            let claimed = [u32::MAX, 1 << 30, 2 << 20, 1 << 20][rng.random_range(0..4)];
            [open(1, 0), frame(DATA, 0, 1, &frames::message(claimed, &[0; 10]))].concat()
        }
        "PRIORITY flood" => frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 9]).repeat(n),
        "GOAWAY, then more" => [frame(GOAWAY, 0, 0, &[0; 8]), open(1, 0)].concat(),
        "HPACK noise" => frame(HEADERS, END_HEADERS, 1, &noise(rng)),
        "frames of noise" => frames_of_noise(rng),
        other => panic!("no such garbage: {other}"),
    }
}

/// A field that is kept in the table once, then named again and again.
fn header_bomb(mut block: Vec<u8>) -> Vec<u8> {
    block.push(0x40);
    let mut kept = Vec::new();
    frames::field(&mut kept, "x", &"y".repeat(4000));
    block.extend(&kept[1..]);
    block.extend([0xbe].repeat(10_000));
    block
}

fn large_headers(mut block: Vec<u8>, rng: &mut ChaCha8Rng) -> Vec<u8> {
    (0..rng.random_range(1..4)).for_each(|_| {
        frames::field(&mut block, "x", &"y".repeat(15_000));
    });
    let chunks: Vec<&[u8]> = block.chunks(16_000).collect();
    let mut frames = frame(HEADERS, 0, 1, chunks[0]);
    chunks[1..].iter().for_each(|c| frames.extend(frame(CONTINUATION, 0, 1, c)));
    frames.extend(frame(CONTINUATION, END_HEADERS, 1, &[]));
    frames
}

fn frames_of_noise(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut frames = Vec::new();
    for _ in 0..rng.random_range(1..50) {
        let (kind, flags) = (rng.random_range(0..12), rng.random());
        let stream = rng.random_range(0..6);
        frames.extend(frame(kind, flags, stream, &noise(rng)));
    }
    frames
}

fn noise(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..64)];
    rng.fill_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn every_kind_can_be_sent() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for kind in
            KINDS.iter().filter(|kind| !matches!(**kind, "preface: noise" | "preface: a part"))
        {
            let bytes = connection(kind, "Bearer x", &mut rng);
            assert!(bytes.len() > 20, "{kind}: {} bytes", bytes.len());
            assert_eq!(bytes.starts_with(PREFACE), !kind.starts_with("preface"), "{kind}");
        }
    }
}

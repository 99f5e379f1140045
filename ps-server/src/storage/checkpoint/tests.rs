//! Every byte and every length of small checkpoints, and what reading may cost.

use std::io::Write;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::storage::Error;

const NAME: &str = "/d/checkpoint";

fn written(compression: Compression, sections: &[(&str, Vec<Vec<u8>>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::begin(&mut bytes, 1234, compression, b"{\"dim\":7}").expect("begun");
    for (name, parts) in sections {
        writer.section(name, parts).expect("written");
    }
    let n = writer.end().expect("ended");
    assert_eq!(n, bytes.len() as u64);
    bytes
}

/// Bytes that do not compress.
fn noise(seed: u64, n: usize) -> Vec<u8> {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..n).map(|_| next()).collect()
}

fn small(compression: Compression) -> Vec<u8> {
    let sections = [
        ("theta", vec![noise(1, 100), vec![], noise(2, 33)]),
        ("state", vec![vec![7; 300]]),
        ("empty", vec![]),
    ];
    written(compression, &sections)
}

type Content = Vec<(String, Vec<u8>)>;

/// All there is, and nothing if any of it is bad.
fn content(bytes: &[u8]) -> Result<(u64, Vec<u8>, Content), Error> {
    let mut reader = Reader::open(NAME, bytes)?;
    let mut sections = Vec::new();
    while let Some(mut section) = reader.next_section()? {
        let name = section.name().to_owned();
        sections.push((name, section.read_all(1 << 30)?));
    }
    Ok((reader.version(), reader.job().to_vec(), sections))
}

fn is_bad(error: &Error) -> bool {
    matches!(error, Error::Bad { path, .. } if path == Path::new(NAME))
}

#[test]
fn what_was_written_is_read_whole_or_in_pieces() {
    for compression in [Compression::None, Compression::Zstd] {
        let bytes = small(compression);
        let (version, job, sections) = content(&bytes).expect("good");
        assert_eq!((version, &job[..]), (1234, &b"{\"dim\":7}"[..]));
        let names: Vec<_> = sections.iter().map(|(name, _)| &name[..]).collect();
        assert_eq!(names, ["theta", "state", "empty"]);
        assert_eq!(sections[0].1, [noise(1, 100), noise(2, 33)].concat());
        assert_eq!(sections[1].1, [7; 300]);

        let mut reader = Reader::open(NAME, &bytes[..]).expect("good");
        let mut theta = reader.next_section().expect("good").expect("there");
        let (mut first, mut second) = ([0; 50], [0; 83]);
        theta.fill(&mut first).expect("enough");
        theta.fill(&mut second).expect("enough");
        theta.end().expect("nothing is left");
        assert_eq!([&first[..], &second[..]].concat(), sections[0].1);
        let mut state = reader.next_section().expect("good").expect("there");
        state.fill(&mut first).expect("enough");
        assert!(is_bad(&state.fill(&mut [0; 251]).expect_err("only 250 are left")));
        let summary = verify(Path::new(NAME), &bytes[..]).expect("good");
        let sizes: Vec<u64> = summary.sections.iter().map(|(_, bytes)| *bytes).collect();
        assert_eq!((summary.version, sizes), (1234, vec![9, 133, 300, 0]));
    }
}

#[test]
fn sections_that_nobody_knows_are_passed_over_and_checked_all_the_same() {
    let bytes = small(Compression::Zstd);
    let mut reader = Reader::open(NAME, &bytes[..]).expect("good");
    let mut names = Vec::new();
    while let Some(section) = reader.next_section().expect("good") {
        names.push(section.name().to_owned());
    }
    assert_eq!(names, ["theta", "state", "empty"]);
    let place = bytes.windows(5).position(|window| window == b"state").expect("there") + 40;
    let mut damaged = bytes;
    damaged[place] ^= 1;
    let mut reader = Reader::open(NAME, &damaged[..]).expect("the job is good");
    let Err(Error::Bad { section, .. }) = reader.finish() else { panic!("damage was not seen") };
    assert_eq!(section.as_deref(), Some("state"));
}

#[test]
fn row_41_a_checkpoint_cut_anywhere_is_refused() {
    for compression in [Compression::None, Compression::Zstd] {
        let bytes = small(compression);
        for length in 0..bytes.len() {
            let error = content(&bytes[..length]).expect_err("cut");
            assert!(is_bad(&error), "cut to {length} bytes: {error}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(is_bad(&content(&longer).expect_err("longer")));
    }
}

#[test]
fn row_41_a_flipped_bit_anywhere_is_refused() {
    for compression in [Compression::None, Compression::Zstd] {
        let mut bytes = small(compression);
        for byte in 0..bytes.len() {
            for bit in 0..8 {
                bytes[byte] ^= 1 << bit;
                let error = content(&bytes).expect_err("damaged");
                assert!(is_bad(&error), "bit {bit} of byte {byte}: {error}");
                bytes[byte] ^= 1 << bit;
            }
        }
        content(&bytes).expect("as it was");
    }
}

#[test]
fn row_41_zeros_from_anywhere_on_are_refused() {
    let bytes = small(Compression::Zstd);
    for from in 0..bytes.len() - 1 {
        let mut zeroed = bytes.clone();
        zeroed[from..].fill(0);
        if zeroed != bytes {
            assert!(is_bad(&content(&zeroed).expect_err("zeroed")), "from {from}");
        }
    }
    assert!(is_bad(&content(&[]).expect_err("empty")));
    assert!(is_bad(&content(&vec![0; 1 << 20]).expect_err("zeros")));
}

#[test]
fn row_43_a_newer_format_is_not_damage() {
    let mut bytes = small(Compression::None);
    bytes[8] = 9;
    let crc = crc32fast::hash(&bytes[..28]);
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    let error = content(&bytes).expect_err("format 9");
    assert!(matches!(error, Error::NewerFormat { found: 9, supported: FORMAT, .. }), "{error}");
    assert_eq!(error.exit(), ps_common::exit::Exit::Config);
}

#[test]
fn blocks_that_change_places_are_refused() {
    let sections = [("theta", vec![noise(3, 2 * BLOCK_BYTES_MAX)])];
    let bytes = written(Compression::None, &sections);
    let first = bytes.len() - SECTION_HEADER_BYTES - BLOCK_HEADER_BYTES;
    let block = BLOCK_HEADER_BYTES + BLOCK_BYTES_MAX;
    let (first, second) = (first - 2 * block, first - block);
    let mut swapped = bytes.clone();
    swapped[first..second].copy_from_slice(&bytes[second..second + block]);
    swapped[second..second + block].copy_from_slice(&bytes[first..second]);
    assert!(content(&bytes).is_ok() && is_bad(&content(&swapped).expect_err("swapped")));
}

#[test]
fn a_block_that_claims_much_costs_little() {
    let bytes = written(Compression::None, &[]);
    let place = bytes.len() - SECTION_HEADER_BYTES;
    for (fields, expected) in [
        ([ZSTD, 8, u32::MAX, 0], "a block cannot have 4294967295 bytes in 8"),
        ([PLAIN, u32::MAX, u32::MAX, 0], "a block cannot have"),
        ([ZSTD, u32::MAX - 1, u32::MAX, 0], "a block cannot have"),
        ([PLAIN, 8, 9, 0], "a block cannot have"),
        ([PLAIN, 0, 0, 0], "a block cannot have"),
        ([PLAIN, 8, 8, 1], "the checksum of a block does not match"),
        ([ZSTD, 8, 9, crc32fast::hash(&[0; 8])], "a block does not unpack"),
        ([SECTION_END, u32::MAX, u32::MAX, 0], "the section has 0 bytes"),
        ([SECTION_END, 0, 0, 1], "the section's checksum does not match"),
        ([4, 8, 8, 0], "no kind of block 4"),
    ] {
        let mut claimed = bytes[..place].to_vec();
        let mut section = Vec::from(SECTION_TAG);
        section.extend(1_u64.to_le_bytes());
        let crc = section_crc(1, &section, b"x");
        section.extend(crc.to_le_bytes());
        claimed.extend(section);
        claimed.extend(b"x");
        let block: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
        claimed.extend(&block);
        claimed.extend(header_crc(1, 0, &block).to_le_bytes());
        claimed.extend([0; 64]);
        let mut reader = Reader::open(NAME, &claimed[..]).expect("the job is good");
        let error = reader.finish().expect_err("a lie");
        assert!(is_bad(&error), "{fields:?}");
        let Error::Bad { what, .. } = error else { unreachable!("it is bad") };
        assert!(what.contains(expected), "{fields:?}: {what}");
    }
}

#[test]
fn a_bomb_is_refused_by_its_reader() {
    let bytes = written(Compression::Zstd, &[("theta", vec![vec![0; 64 << 20]])]);
    assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
    let mut reader = Reader::open(NAME, &bytes[..]).expect("good");
    let mut section = reader.next_section().expect("good").expect("there");
    let error = section.read_all(1 << 20).expect_err("too much");
    assert!(is_bad(&error) && error.to_string().contains("more than 1048576"), "{error}");
}

proptest! {
    #[test]
    fn any_sections_in_any_pieces_come_back(
        parts in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..3000), 0..6),
        big in 0_usize..3 * BLOCK_BYTES_MAX,
        zeros in any::<bool>(),
    ) {
        let big = if zeros { vec![0; big] } else { noise(big as u64, big) };
        let sections = [("a", parts.clone()), ("b", vec![big.clone()])];
        for compression in [Compression::None, Compression::Zstd] {
            let (_, _, read) = content(&written(compression, &sections)).expect("good");
            prop_assert_eq!(&read[0].1, &parts.concat());
            prop_assert!(read[1].1 == big);
        }
    }

    #[test]
    fn garbage_is_refused(
        garbage in proptest::collection::vec(any::<u8>(), 0..2000), from in 0_usize..800,
    ) {
        prop_assert!(content(&garbage).is_err());
        let mut bytes = small(Compression::Zstd);
        let from = from.min(bytes.len() - 1);
        let tail = bytes.split_off(from);
        prop_assume!(tail != garbage);
        bytes.extend(garbage);
        prop_assert!(content(&bytes).is_err());
    }
}

/// Prints what compression costs and gains: `cargo test -p ps-server --lib -- --ignored --nocapture
/// measure_compression`.
#[test]
#[ignore = "measures, and decides nothing"]
fn measure_compression() {
    struct Count(u64);
    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let n = 25_000_000_usize;
    let uniform = noise(5, 4 * n);
    // Sums of bytes are near enough to the normal shape of trained parameters.
    let trained: Vec<u8> = uniform
        .chunks_exact(4)
        .flat_map(|b| (b.iter().map(|x| f32::from(*x)).sum::<f32>() / 5100.0 - 0.1).to_le_bytes())
        .collect();
    let gaussian: Vec<u8> = uniform
        .chunks_exact(4)
        .flat_map(|b| {
            let [u, v] = [(b[0], b[1]), (b[2], b[3])]
                .map(|(x, y)| (f32::from(x) + f32::from(y) / 256.0 + 0.001) / 256.01);
            ((-2.0 * u.ln()).sqrt() * (v * std::f32::consts::TAU).cos() * 0.05).to_le_bytes()
        })
        .collect();
    let sparse: Vec<u8> = gaussian
        .chunks_exact(4)
        .enumerate()
        .flat_map(|(i, b)| if i % 10 == 0 { b.to_vec() } else { vec![0; 4] })
        .collect();
    let sets = [("coarse", &trained), ("normal", &gaussian), ("9 of 10 zero", &sparse)];
    for (what, data) in sets.into_iter().chain([("zeros", &vec![0; 4 * n])]) {
        for compression in [Compression::None, Compression::Zstd] {
            let mut count = Count(0);
            let begun = std::time::Instant::now();
            let mut writer = Writer::begin(&mut count, 1, compression, b"").expect("begun");
            writer.section("theta", data.chunks(1 << 18)).expect("written");
            writer.end().expect("ended");
            let seconds = begun.elapsed().as_secs_f64();
            println!(
                "{what}: {compression:?}: {:.0} MB/s, {:.1} % of the size",
                data.len() as f64 / seconds / 1e6,
                count.0 as f64 / data.len() as f64 * 100.0
            );
        }
    }
}

//! The checkpoint reader and the journal reader, over bytes as they are, and over files whose
//! checksums are right around contents that are not.
//!
//! Headers are written here once more, from docs/STORAGE.md: changed bytes under their old checksum
//! would go no further than the checksum.

use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use ps_server::storage::checkpoint::{Compression, Reader, Writer, verify};
use ps_server::storage::{Error, journal};

/// What nothing that is read may be called.
const NAMED: &str = "under-test";

/// Reads a checkpoint. The first byte says whether the rest is the file, or a plan of all of it or of
/// what follows a good beginning.
pub(crate) fn checkpoint(input: &[u8]) -> bool {
    let Some((&kind, rest)) = input.split_first() else { return false };
    if kind == 0 {
        return read_checkpoint(rest);
    }
    let mut source = Unstructured::new(rest);
    let mut pieces = match kind {
        1 => Vec::new(),
        _ => beginning(),
    };
    while !source.is_empty() {
        let Ok(piece) = Piece::arbitrary(&mut source) else { break };
        pieces.push(piece);
    }
    read_checkpoint(&planned(&pieces))
}

fn beginning() -> Vec<Piece> {
    let job = Piece::Block { kind: 1, stored: b"{}".to_vec(), raw_bytes: 2 };
    let header = Piece::Header { format: 1, version: 7 };
    vec![header, Piece::Section(b"job".to_vec()), job, Piece::Close { error: 0 }]
}

fn read_checkpoint(file: &[u8]) -> bool {
    let path = Path::new(NAMED);
    let found = verify(path, file);
    let again = read_in_pieces(path, file);
    match (&found, &again) {
        (Ok(summary), Ok((version, sections))) => {
            assert_eq!((summary.version, &summary.sections), (*version, sections));
        }
        (Err(error), Err(_)) => assert!(error.to_string().contains(NAMED), "{error}"),
        _ => panic!("verify says {found:?}, reading {again:?}"),
    }
    found.is_ok()
}

/// Reads all sections in pieces of odd lengths.
fn read_in_pieces(path: &Path, file: &[u8]) -> Result<(u64, Vec<(String, u64)>), Error> {
    let mut reader = Reader::open(path, file)?;
    let mut sections = vec![("job".to_owned(), reader.job().len() as u64)];
    while let Some(mut section) = reader.next_section()? {
        let name = section.name().to_owned();
        let mut piece = [0; 7];
        let mut bytes = 0;
        while let Some(block) = section.next_block()? {
            bytes += block.len() as u64;
            if bytes < 64 && section.fill(&mut piece).is_ok() {
                bytes += piece.len() as u64;
            }
        }
        section.end()?;
        sections.push((name, bytes));
    }
    reader.finish()?;
    Ok((reader.version(), sections))
}

/// A part of a checkpoint's plan.
#[derive(Debug, Arbitrary)]
enum Piece {
    Header {
        format: u8,
        version: u64,
    },
    Section(Vec<u8>),
    /// A block of the kind, its stored bytes, and what it says of its raw length.
    Block {
        kind: u8,
        stored: Vec<u8>,
        raw_bytes: u32,
    },
    /// A zstd block of so many bytes, the length told with an error.
    Zeros {
        bytes: u32,
        error: i8,
    },
    /// The end of a section, its length told with an error.
    Close {
        error: i8,
    },
    End {
        error: i8,
    },
    Bytes(Vec<u8>),
}

/// The file of a plan, every checksum right.
fn planned(pieces: &[Piece]) -> Vec<u8> {
    let mut file = Vec::new();
    let (mut n_sections, mut n_blocks) = (0u64, 0u64);
    let (mut raw_bytes, mut hash) = (0u64, crc32fast::Hasher::new());
    let block = |file: &mut Vec<u8>, fields: [u32; 4], places: (u64, u64)| {
        let header: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
        let place = [places.0.to_le_bytes(), places.1.to_le_bytes()].concat();
        file.extend([&header[..], &crc(&[&place, &header])].concat());
    };
    for piece in pieces {
        match piece {
            Piece::Header { format, version } => {
                let mut header = b"PSCKPT\x1a\n".to_vec();
                header.extend([*format, 0, 0, 0, 0, 0, 0, 0]);
                header.extend(version.to_le_bytes());
                header.extend([0; 4]);
                file.extend([&header[..], &crc(&[&header])].concat());
            }
            Piece::Section(name) => {
                section(&mut file, b"SECT", name.len() as u64, n_sections, name);
                (n_sections, n_blocks, raw_bytes) = (n_sections + 1, 0, 0);
                hash = crc32fast::Hasher::new();
            }
            Piece::Block { kind, stored, raw_bytes: claimed } => {
                let kind = u32::from(*kind % 4);
                let raw = if kind == 1 { stored.len() as u32 } else { *claimed };
                let fields = [kind, stored.len() as u32, raw, crc32fast::hash(stored)];
                block(&mut file, fields, (n_sections.wrapping_sub(1), n_blocks));
                file.extend(stored);
                hash.update(stored);
                (n_blocks, raw_bytes) = (n_blocks + 1, raw_bytes + stored.len() as u64);
            }
            Piece::Zeros { bytes, error } => {
                let raw = vec![0; (*bytes % (3 << 19)) as usize];
                let stored = zstd::bulk::compress(&raw, 1).expect("zeros compress");
                let claimed = (raw.len() as u32).wrapping_add_signed((*error).into());
                let fields = [2, stored.len() as u32, claimed, crc32fast::hash(&stored)];
                block(&mut file, fields, (n_sections.wrapping_sub(1), n_blocks));
                file.extend(stored);
                hash.update(&raw);
                (n_blocks, raw_bytes) = (n_blocks + 1, raw_bytes + raw.len() as u64);
            }
            Piece::Close { error } => {
                let told = raw_bytes.wrapping_add_signed((*error).into());
                let fields = [3, told as u32, (told >> 32) as u32, hash.clone().finalize()];
                block(&mut file, fields, (n_sections.wrapping_sub(1), n_blocks));
            }
            Piece::End { error } => {
                let told = n_sections.wrapping_add_signed((*error).into());
                section(&mut file, b"DONE", told, n_sections, &[]);
            }
            Piece::Bytes(bytes) => file.extend(bytes),
        }
    }
    file
}

fn section(file: &mut Vec<u8>, tag: &[u8; 4], number: u64, index: u64, name: &[u8]) {
    let fields = [&tag[..], &number.to_le_bytes()].concat();
    let crc = crc(&[&index.to_le_bytes(), &fields, name]);
    file.extend([&fields[..], &crc, name].concat());
}

fn crc(parts: &[&[u8]]) -> [u8; 4] {
    let mut hash = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().to_le_bytes()
}

/// Checkpoints as the server writes them, and plans of some.
pub(crate) fn checkpoint_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for compression in [Compression::None, Compression::Zstd] {
        let mut file = vec![0];
        let mut writer = Writer::begin(&mut file, 7, compression, b"{}").expect("memory");
        writer.section("theta", [[1u8; 300], [2; 300]]).expect("memory");
        writer.section("adam.m", [[0u8; 100]; 2]).expect("memory");
        writer.section("empty", [[0u8; 0]]).expect("memory");
        writer.end().expect("memory");
        seeds.push(file);
    }
    seeds
}

/// Reads a journal's segment of version 5. The first byte says whether the rest is the file or a
/// plan of it.
pub(crate) fn journal(input: &[u8]) -> bool {
    let Some((&kind, rest)) = input.split_first() else { return false };
    if kind == 0 {
        return read_segment(rest);
    }
    let mut source = Unstructured::new(rest);
    let mut records = Vec::new();
    while !source.is_empty() {
        let Ok(record) = Record::arbitrary(&mut source) else { break };
        records.push(record);
    }
    read_segment(&segment(&records))
}

const START: u64 = 5;

fn read_segment(file: &[u8]) -> bool {
    let path = Path::new(NAMED);
    let (found, records) = replayed(path, file);
    for (index, (version, _)) in records.iter().enumerate() {
        assert_eq!(*version, START + 1 + index as u64, "records come once and in order");
    }
    let end = match found {
        Ok(end) => end,
        Err(error) => {
            assert!(error.to_string().contains(NAMED), "{error}");
            return false;
        }
    };
    assert_eq!(end.version, START + records.len() as u64);
    let good = end.good_bytes as usize;
    assert!(good <= file.len() && (end.torn.is_some() || good == file.len()), "{end:?}");
    if good > 0 {
        // A torn end is cut off, and then nothing is torn.
        let (again, kept) = replayed(path, &file[..good]);
        let again = again.expect("what was good is good");
        assert_eq!((again.version, again.good_bytes, again.torn), (end.version, good as u64, None));
        assert_eq!(kept, records);
    }
    end.torn.is_none()
}

type Records = Vec<(u64, Vec<u8>)>;

fn replayed(path: &Path, file: &[u8]) -> (Result<journal::SegmentEnd, Error>, Records) {
    let mut records = Vec::new();
    let end = journal::replay(path, file, START, |version, payload| {
        records.push((version, payload.to_vec()));
        Ok(())
    });
    (end, records)
}

/// A record of a plan, right but for what it says.
#[derive(Debug, Arbitrary)]
struct Record {
    payload: Vec<u8>,
    /// Added to the version that is due.
    skipped: i8,
    /// Added to the payload's length.
    claimed: i64,
    durable_end: u64,
    /// Whether the payload's checksum is wrong.
    damaged: bool,
    /// Bytes that are no record, before it.
    noise: Vec<u8>,
}

/// The segment of a plan: its header, and records whose headers check.
fn segment(records: &[Record]) -> Vec<u8> {
    let mut file = b"PSJRNL\x1a\n".to_vec();
    file.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([START.to_le_bytes(), 1u64.to_le_bytes()].concat());
    file.extend([0; 4]);
    file.extend(crc(&[&file.clone()]));
    let mut version = START;
    for record in records {
        file.extend(&record.noise);
        version = version.wrapping_add(1).wrapping_add_signed(record.skipped.into());
        let bytes = (record.payload.len() as u64).wrapping_add_signed(record.claimed);
        let numbers = [bytes, version, record.durable_end].map(u64::to_le_bytes).concat();
        let payload_crc = crc32fast::hash(&record.payload) ^ u32::from(record.damaged);
        let fields = [&numbers[..], &payload_crc.to_le_bytes(), &[0; 4]].concat();
        let offset = file.len() as u64;
        let header_crc = crc(&[&START.to_le_bytes(), &offset.to_le_bytes(), &fields]);
        file.extend([&b"\xf1PSR"[..], &header_crc, &fields, &record.payload].concat());
    }
    file
}

/// Segments as the server writes them.
pub(crate) fn journal_seeds() -> Vec<Vec<u8>> {
    [0usize, 1, 3]
        .map(|n| {
            let record = |i: usize| Record {
                payload: vec![i as u8; 10 * i],
                skipped: 0,
                claimed: 0,
                durable_end: 40,
                damaged: false,
                noise: Vec::new(),
            };
            let records: Vec<Record> = (0..n).map(record).collect();
            [&[0], &segment(&records)[..]].concat()
        })
        .to_vec()
}

//! The bytes of a segment: its header, its records' headers, its name.

use std::path::{Path, PathBuf};

/// The newest format that this program reads, and the one it writes.
pub const FORMAT: u32 = 1;

pub(super) const SEGMENT_MAGIC: [u8; 8] = *b"PSJRNL\x1a\n";
pub(super) const SEGMENT_HEADER_BYTES: usize = 40;
pub(super) const RECORD_MAGIC: [u8; 4] = *b"\xf1PSR";
pub(super) const RECORD_HEADER_BYTES: usize = 40;

/// Where the segment of `start` lies.
pub(super) fn path_of(directory: &Path, start: u64) -> PathBuf {
    directory.join(format!("journal-{start:020}.psjl"))
}

/// The version in a segment's name.
pub(super) fn start_of(name: &str) -> Option<u64> {
    let number = name.strip_prefix("journal-")?.strip_suffix(".psjl")?;
    (number.len() == 20 && number.bytes().all(|digit| digit.is_ascii_digit()))
        .then(|| number.parse().ok())?
}

pub(super) fn segment_header(job: u64, start: u64) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    header[..8].copy_from_slice(&SEGMENT_MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    header[16..24].copy_from_slice(&start.to_le_bytes());
    header[24..32].copy_from_slice(&job.to_le_bytes());
    let crc = crc32fast::hash(&header[..36]);
    header[36..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// What stands before a record's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    /// Of the payload.
    pub(super) bytes: u64,
    /// That the update makes.
    pub(super) version: u64,
    /// Bytes of the segment that were durable when the record was written.
    pub(super) durable_end: u64,
    /// Checksum of the payload.
    pub(super) payload_crc: u32,
}

impl RecordHeader {
    pub(super) fn of(version: u64, parts: &[&[u8]]) -> Self {
        let mut hash = crc32fast::Hasher::new();
        parts.iter().for_each(|part| hash.update(part));
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        Self { bytes, version, durable_end: 0, payload_crc: hash.finalize() }
    }

    /// As written at `offset` of the segment of `start`. The checksum covers both, so that a record
    /// is taken for one only where it was written.
    pub(super) fn bytes(&self, start: u64, offset: u64) -> [u8; RECORD_HEADER_BYTES] {
        let mut header = [0; RECORD_HEADER_BYTES];
        header[..4].copy_from_slice(&RECORD_MAGIC);
        header[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        header[16..24].copy_from_slice(&self.version.to_le_bytes());
        header[24..32].copy_from_slice(&self.durable_end.to_le_bytes());
        header[32..36].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = record_crc(&header, start, offset);
        header[4..8].copy_from_slice(&crc.to_le_bytes());
        header
    }

    /// The header at `offset`, `None` if there is none.
    pub(super) fn parse(
        header: &[u8; RECORD_HEADER_BYTES],
        start: u64,
        offset: u64,
    ) -> Option<Self> {
        let crc = u32_at(header, 4);
        if header[..4] != RECORD_MAGIC || record_crc(header, start, offset) != crc {
            return None;
        }
        Some(Self {
            bytes: u64_at(header, 8),
            version: u64_at(header, 16),
            durable_end: u64_at(header, 24),
            payload_crc: u32_at(header, 32),
        })
    }
}

fn record_crc(header: &[u8; RECORD_HEADER_BYTES], start: u64, offset: u64) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(&start.to_le_bytes());
    hash.update(&offset.to_le_bytes());
    hash.update(&header[8..]);
    hash.finalize()
}

pub(super) fn u32_at(bytes: &[u8], place: usize) -> u32 {
    u32::from_le_bytes(bytes[place..place + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_at(bytes: &[u8], place: usize) -> u64 {
    u64::from_le_bytes(bytes[place..place + 8].try_into().expect("eight bytes"))
}

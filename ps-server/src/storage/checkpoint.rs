//! A checkpoint as a stream of bytes: named sections in checked, perhaps compressed, blocks.
//!
//! Owns the layout (`docs/STORAGE.md` draws it) and writing; `read` is the other direction. Knows
//! nothing of files' names, of directories, or of what the sections hold. The first section is
//! always [`JOB`], so that a reader can refuse another job's checkpoint before the gigabytes.

use std::collections::BTreeSet;
use std::io::{self, Write};

use zstd::bulk::Compressor;

mod read;
#[cfg(test)]
mod tests;

pub use read::{Reader, Section, Summary, verify};

/// The first section of every checkpoint: what the caller knows the job by.
pub const JOB: &str = "job";

/// The newest format that this program reads, and the one it writes.
pub const FORMAT: u32 = 1;

const MAGIC: [u8; 8] = *b"PSCKPT\x1a\n";
const HEADER_BYTES: usize = 32;
const SECTION_TAG: [u8; 4] = *b"SECT";
const END_TAG: [u8; 4] = *b"DONE";
/// Tag, length of the name or number of sections, spare, checksum.
const SECTION_HEADER_BYTES: usize = 16;
/// Kind, stored length, raw length, checksum of what is stored, checksum of this.
const BLOCK_HEADER_BYTES: usize = 20;
/// A reader never holds more than a block, stored and raw.
const BLOCK_BYTES_MAX: usize = 1 << 20;
const NAME_BYTES_MAX: usize = 255;
const JOB_BYTES_MAX: usize = 16 << 20;

const PLAIN: u32 = 1;
const ZSTD: u32 = 2;
const SECTION_END: u32 = 3;

/// Whether blocks are compressed where that pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Every block as it is.
    None,
    /// zstd, level 1; a section whose blocks do not shrink by an eighth is tried only now and then.
    #[default]
    Zstd,
}

/// Of a section whose last tried block did not shrink enough, every so many blocks one is tried.
const TRIED_EVERY: u64 = 16;

/// The checksum of a small header, bound to its place so that a moved one is noticed.
fn header_crc(section: u64, block: u64, fields: &[u8]) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(&section.to_le_bytes());
    hash.update(&block.to_le_bytes());
    hash.update(fields);
    hash.finalize()
}

/// Writes a checkpoint to any sink.
pub struct Writer<'a> {
    out: &'a mut (dyn Write + 'a),
    compressor: Option<Compressor<'static>>,
    written_bytes: u64,
    names: BTreeSet<String>,
    raw: Vec<u8>,
    stored: Vec<u8>,
}

impl std::fmt::Debug for Writer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("written_bytes", &self.written_bytes).finish_non_exhaustive()
    }
}

impl<'a> Writer<'a> {
    /// Begins the checkpoint of theta's `version` with its section [`JOB`].
    ///
    /// # Errors
    /// Those of `out`.
    ///
    /// # Panics
    /// If `job` has more than 16 MiB.
    pub fn begin(
        out: &'a mut (dyn Write + 'a),
        version: u64,
        compression: Compression,
        job: &[u8],
    ) -> io::Result<Self> {
        assert!(job.len() <= JOB_BYTES_MAX, "a job is described in {JOB_BYTES_MAX} bytes");
        let compressor = match compression {
            Compression::None => None,
            Compression::Zstd => Some(Compressor::new(1)?),
        };
        let mut writer = Self {
            out,
            compressor,
            written_bytes: 0,
            names: BTreeSet::new(),
            raw: Vec::with_capacity(BLOCK_BYTES_MAX),
            stored: Vec::with_capacity(zstd::zstd_safe::compress_bound(BLOCK_BYTES_MAX)),
        };
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        header[16..24].copy_from_slice(&version.to_le_bytes());
        let crc = crc32fast::hash(&header[..28]);
        header[28..].copy_from_slice(&crc.to_le_bytes());
        writer.put(&header)?;
        writer.section(JOB, [job])?;
        Ok(writer)
    }

    /// Writes a section: the concatenation of `parts`, taken one by one.
    ///
    /// # Errors
    /// Those of the sink; the checkpoint is then of no use.
    ///
    /// # Panics
    /// If the name is empty, has more than 255 bytes, or was used before.
    pub fn section<P: AsRef<[u8]>>(
        &mut self,
        name: &str,
        parts: impl IntoIterator<Item = P>,
    ) -> io::Result<()> {
        assert!((1..=NAME_BYTES_MAX).contains(&name.len()), "a name has 1 to 255 bytes: {name:?}");
        let index = self.names.len() as u64;
        assert!(self.names.insert(name.to_owned()), "a section is written once: {name:?}");
        self.put_section_header(SECTION_TAG, name.len() as u64, index, name.as_bytes())?;
        let mut section =
            Blocks { index, n_blocks: 0, raw_bytes: 0, hash: crc32fast::Hasher::new(), pays: true };
        for part in parts {
            let mut part = part.as_ref();
            while !part.is_empty() {
                let (head, rest) = part.split_at(part.len().min(BLOCK_BYTES_MAX - self.raw.len()));
                self.raw.extend_from_slice(head);
                part = rest;
                if self.raw.len() == BLOCK_BYTES_MAX {
                    self.put_block(&mut section)?;
                }
            }
        }
        if !self.raw.is_empty() {
            self.put_block(&mut section)?;
        }
        let (low, high) = (section.raw_bytes as u32, (section.raw_bytes >> 32) as u32);
        let crc = section.hash.clone().finalize();
        self.put_block_header(&section, [SECTION_END, low, high, crc])
    }

    /// Ends the checkpoint and gives its size. Nothing may come after it in the sink.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn end(mut self) -> io::Result<u64> {
        let n_sections = self.names.len() as u64;
        self.put_section_header(END_TAG, n_sections, n_sections, &[])?;
        self.out.flush()?;
        Ok(self.written_bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written_bytes += bytes.len() as u64;
        Ok(())
    }

    fn put_section_header(
        &mut self,
        tag: [u8; 4],
        number: u64,
        index: u64,
        name: &[u8],
    ) -> io::Result<()> {
        let mut header = [0; SECTION_HEADER_BYTES];
        header[..4].copy_from_slice(&tag);
        header[4..12].copy_from_slice(&number.to_le_bytes());
        let crc = section_crc(index, &header[..12], name);
        header[12..].copy_from_slice(&crc.to_le_bytes());
        self.put(&header)?;
        self.put(name)
    }

    /// Writes the block in `self.raw` and empties it.
    fn put_block(&mut self, section: &mut Blocks) -> io::Result<()> {
        let mut raw = std::mem::take(&mut self.raw);
        let mut stored = std::mem::take(&mut self.stored);
        section.hash.update(&raw);
        section.raw_bytes += raw.len() as u64;
        let mut kind = PLAIN;
        if let Some(compressor) = &mut self.compressor
            && (section.pays || section.n_blocks.is_multiple_of(TRIED_EVERY))
        {
            stored.clear();
            compressor.compress_to_buffer(&raw, &mut stored)?;
            section.pays = stored.len() <= raw.len() - raw.len() / 8;
            if section.pays && stored.len() < raw.len() {
                kind = ZSTD;
            }
        }
        let bytes = if kind == ZSTD { &stored } else { &raw };
        let lengths = (bytes.len() as u32, raw.len() as u32);
        let crc = crc32fast::hash(bytes);
        self.put_block_header(section, [kind, lengths.0, lengths.1, crc])?;
        self.put(bytes)?;
        section.n_blocks += 1;
        raw.clear();
        (self.raw, self.stored) = (raw, stored);
        Ok(())
    }

    fn put_block_header(&mut self, section: &Blocks, fields: [u32; 4]) -> io::Result<()> {
        let mut header = [0; BLOCK_HEADER_BYTES];
        for (field, place) in fields.iter().zip(header.chunks_exact_mut(4)) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let crc = header_crc(section.index, section.n_blocks, &header[..16]);
        header[16..].copy_from_slice(&crc.to_le_bytes());
        self.put(&header)
    }
}

/// A section on its way out.
struct Blocks {
    index: u64,
    n_blocks: u64,
    raw_bytes: u64,
    hash: crc32fast::Hasher,
    pays: bool,
}

fn section_crc(index: u64, fields: &[u8], name: &[u8]) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(&index.to_le_bytes());
    hash.update(fields);
    hash.update(name);
    hash.finalize()
}

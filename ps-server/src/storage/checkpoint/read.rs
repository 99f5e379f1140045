//! A checkpoint read back: sections as streams of blocks, each checked before it is given out.
//!
//! Holds one block at a time whatever the lengths in the file say, so that a damaged or hostile
//! file costs at most a few MiB. A section is whole only once its end was seen, the checkpoint only
//! after [`Reader::finish`]: what was read before an error must be dropped.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use zstd::bulk::Decompressor;

use super::{
    BLOCK_BYTES_MAX, BLOCK_HEADER_BYTES, END_TAG, FORMAT, HEADER_BYTES, JOB, JOB_BYTES_MAX, MAGIC,
    NAME_BYTES_MAX, PLAIN, SECTION_END, SECTION_HEADER_BYTES, SECTION_TAG, ZSTD, header_crc,
    section_crc,
};
use crate::storage::Error;

/// What a checkpoint holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// theta's version.
    pub version: u64,
    /// Names and sizes in order, uncompressed.
    pub sections: Vec<(String, u64)>,
}

/// Reads all of a checkpoint, keeps nothing of it, and says what it holds.
///
/// # Errors
/// As [`Reader::open`] and [`Reader::next_section`].
pub fn verify(path: &Path, source: impl Read) -> Result<Summary, Error> {
    let mut reader = Reader::open(path, source)?;
    let mut sections = vec![(JOB.to_owned(), reader.job().len() as u64)];
    while let Some(mut section) = reader.next_section()? {
        let mut bytes = 0;
        while let Some(block) = section.next_block()? {
            bytes += block.len() as u64;
        }
        sections.push((section.name().to_owned(), bytes));
    }
    Ok(Summary { version: reader.version(), sections })
}

/// A checkpoint that is being read.
pub struct Reader<R> {
    path: PathBuf,
    source: R,
    version: u64,
    job: Vec<u8>,
    offset: u64,
    names: BTreeSet<String>,
    /// The section that is being read; its index is `names.len() - 1`.
    section: Option<Open>,
    ended: bool,
    decompressor: Decompressor<'static>,
    stored: Vec<u8>,
    raw: Vec<u8>,
    /// How much of `raw` was given out.
    used: usize,
}

/// A section whose end was not seen yet.
struct Open {
    name: String,
    n_blocks: u64,
    raw_bytes: u64,
    hash: crc32fast::Hasher,
}

impl<R> std::fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("path", &self.path)
            .field("version", &self.version)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

impl<R: Read> Reader<R> {
    /// Reads the header and the section [`JOB`]. `path` is what errors name.
    ///
    /// # Errors
    /// [`Error::Bad`] for a damaged file, [`Error::NewerFormat`], [`Error::Io`].
    pub fn open(path: impl Into<PathBuf>, source: R) -> Result<Self, Error> {
        let path = path.into();
        let decompressor = Decompressor::new().map_err(Error::io("read", &path))?;
        let mut reader = Self {
            path,
            source,
            version: 0,
            job: Vec::new(),
            offset: 0,
            names: BTreeSet::new(),
            section: None,
            ended: false,
            decompressor,
            stored: Vec::new(),
            raw: Vec::new(),
            used: 0,
        };
        let header: [u8; HEADER_BYTES] = reader.take("the header")?;
        if header[..8] != MAGIC {
            return Err(reader.bad(0, "it does not begin as a checkpoint does"));
        }
        if crc32fast::hash(&header[..28]) != u32_at(&header, 28) {
            return Err(reader.bad(0, "the header's checksum does not match"));
        }
        let format = u32_at(&header, 8);
        if format > FORMAT {
            return Err(Error::NewerFormat { path: reader.path, found: format, supported: FORMAT });
        }
        if format == 0 {
            return Err(reader.bad(8, "there is no format 0"));
        }
        reader.version = u64_at(&header, 16);
        let job = match reader.next_section()? {
            Some(mut section) if section.name() == JOB => section.read_all(JOB_BYTES_MAX)?,
            _ => return Err(reader.bad(HEADER_BYTES as u64, "the first section is not the job's")),
        };
        reader.job = job;
        Ok(reader)
    }

    /// theta's version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The section [`JOB`], whole.
    pub fn job(&self) -> &[u8] {
        &self.job
    }

    /// The next section, or `None` at the checkpoint's end. What is left of the one before is
    /// read and checked first.
    ///
    /// # Errors
    /// [`Error::Bad`], [`Error::Io`].
    pub fn next_section(&mut self) -> Result<Option<Section<'_, R>>, Error> {
        while self.load_block()? {}
        if self.ended {
            return Ok(None);
        }
        let at = self.offset;
        let header: [u8; SECTION_HEADER_BYTES] = self.take("a section's header")?;
        let index = self.names.len() as u64;
        let (tag, number) = (&header[..4], u64_at(&header, 4));
        let is_section = tag == SECTION_TAG && (1..=NAME_BYTES_MAX as u64).contains(&number);
        if !is_section && tag != END_TAG {
            return Err(self.bad(at, "no section begins here, and it is not the end either"));
        }
        let mut name = vec![0; if is_section { number as usize } else { 0 }];
        self.fill("a section's name", &mut name)?;
        if section_crc(index, &header[..12], &name) != u32_at(&header, 12) {
            return Err(self.bad(at, "the checksum of a section's header does not match"));
        }
        if tag == END_TAG {
            return self.end(at, number).map(|()| None);
        }
        let name = match String::from_utf8(name) {
            Ok(name) if self.names.insert(name.clone()) => name,
            Ok(name) => return Err(self.bad(at, &format!("there is a second section {name:?}"))),
            Err(_) => return Err(self.bad(at, "a section's name is not UTF-8")),
        };
        let hash = crc32fast::Hasher::new();
        self.section = Some(Open { name: name.clone(), n_blocks: 0, raw_bytes: 0, hash });
        Ok(Some(Section { reader: self, name }))
    }

    /// The refusal of a file whose bytes are as they were written, but make no sense.
    pub fn refusal(&self, what: &str) -> Error {
        self.bad(self.offset, what)
    }

    /// The refusal of a good checkpoint that does not fit; `what` has both values.
    pub fn mismatch(&self, what: impl Into<String>) -> Error {
        Error::Mismatch { path: self.path.clone(), what: what.into() }
    }

    /// Reads and checks what is left, to the end of the file.
    ///
    /// # Errors
    /// [`Error::Bad`], [`Error::Io`].
    pub fn finish(&mut self) -> Result<(), Error> {
        while self.next_section()?.is_some() {}
        Ok(())
    }

    fn end(&mut self, at: u64, n_sections: u64) -> Result<(), Error> {
        let seen = self.names.len() as u64;
        if n_sections != seen {
            return Err(self.bad(at, &format!("it has {seen} sections, its end says {n_sections}")));
        }
        let mut rest = Vec::new();
        let more = (&mut self.source).take(1).read_to_end(&mut rest);
        if more.map_err(Error::io("read", &self.path))? != 0 {
            return Err(self.bad(self.offset, "there are bytes after its end"));
        }
        self.ended = true;
        Ok(())
    }

    /// Reads the section's next block into `raw`; false at the section's end.
    fn load_block(&mut self) -> Result<bool, Error> {
        let Some(section) = &self.section else { return Ok(false) };
        let n_blocks = section.n_blocks;
        let at = self.offset;
        let header: [u8; BLOCK_HEADER_BYTES] = self.take("a block's header")?;
        let index = self.names.len() as u64 - 1;
        if header_crc(index, n_blocks, &header[..16]) != u32_at(&header, 16) {
            return Err(self.bad(at, "the checksum of a block's header does not match"));
        }
        let [kind, stored, raw, crc] = [0, 4, 8, 12].map(|place| u32_at(&header, place));
        if kind == SECTION_END {
            return self.close_section(at, u64_at(&header, 4), crc).map(|()| false);
        }
        let [stored, raw] = [stored, raw].map(|bytes| bytes as usize);
        let lengths_fit = match kind {
            PLAIN => stored == raw,
            ZSTD => stored < raw,
            _ => return Err(self.bad(at, &format!("there is no kind of block {kind}"))),
        };
        if !lengths_fit || raw == 0 || raw > BLOCK_BYTES_MAX {
            return Err(self.bad(at, &format!("a block cannot have {raw} bytes in {stored}")));
        }
        self.load_payload(kind, stored, raw, crc)?;
        let section = self.section.as_mut().expect("looked at above");
        section.n_blocks += 1;
        section.raw_bytes += self.raw.len() as u64;
        section.hash.update(&self.raw);
        Ok(true)
    }

    fn load_payload(&mut self, kind: u32, bytes: usize, raw: usize, crc: u32) -> Result<(), Error> {
        let at = self.offset;
        let mut stored = std::mem::take(&mut self.stored);
        stored.resize(bytes, 0);
        self.fill("a block", &mut stored)?;
        if crc32fast::hash(&stored) != crc {
            return Err(self.bad(at, "the checksum of a block does not match"));
        }
        self.used = 0;
        if kind == PLAIN {
            self.stored = std::mem::replace(&mut self.raw, stored);
            return Ok(());
        }
        self.raw.clear();
        self.raw.reserve_exact(raw);
        // The capacity may be more than `raw`, never much more: the length is looked at, too.
        let unpacked = self.decompressor.decompress_to_buffer(&stored, &mut self.raw);
        self.stored = stored;
        match unpacked {
            Ok(n) if n == raw => Ok(()),
            Ok(n) => Err(self.bad(at, &format!("a block unpacks to {n} bytes, not {raw}"))),
            Err(error) => Err(self.bad(at, &format!("a block does not unpack: {error}"))),
        }
    }

    fn close_section(&mut self, at: u64, raw_bytes: u64, crc: u32) -> Result<(), Error> {
        let section = self.section.as_ref().expect("only a section in reading is closed");
        let seen = section.raw_bytes;
        if seen != raw_bytes {
            let what = format!("the section has {seen} bytes, its end says {raw_bytes}");
            return Err(self.bad(at, &what));
        }
        if section.hash.clone().finalize() != crc {
            return Err(self.bad(at, "the section's checksum does not match"));
        }
        self.section = None;
        self.raw.clear();
        self.used = 0;
        Ok(())
    }

    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.fill(what, &mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, what: &str, bytes: &mut [u8]) -> Result<(), Error> {
        match self.source.read_exact(bytes) {
            Ok(()) => {
                self.offset += bytes.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.bad(self.offset, &format!("the file ends within {what}")))
            }
            Err(error) => Err(Error::io("read", &self.path)(error)),
        }
    }

    fn bad(&self, offset: u64, what: &str) -> Error {
        let section = self.section.as_ref().map(|section| section.name.clone());
        Error::Bad { path: self.path.clone(), offset, section, what: what.to_owned() }
    }
}

/// A section that is being read.
#[derive(Debug)]
pub struct Section<'a, R> {
    reader: &'a mut Reader<R>,
    name: String,
}

impl<R: Read> Section<'_, R> {
    /// Its name. A reader passes over what it does not know.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is left of the current block, else the next one, at most 1 MiB; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Bad`], [`Error::Io`].
    pub fn next_block(&mut self) -> Result<Option<&[u8]>, Error> {
        let reader = &mut *self.reader;
        if reader.used == reader.raw.len() && !reader.load_block()? {
            return Ok(None);
        }
        let from = std::mem::replace(&mut reader.used, reader.raw.len());
        Ok(Some(&reader.raw[from..]))
    }

    /// Fills `place` with the section's next bytes.
    ///
    /// # Errors
    /// [`Error::Bad`] if the section ends before `place` is full, and as [`Section::next_block`].
    pub fn fill(&mut self, place: &mut [u8]) -> Result<(), Error> {
        let mut filled = 0;
        while filled < place.len() {
            let reader = &mut *self.reader;
            if reader.used == reader.raw.len() && !reader.load_block()? {
                let what = format!(
                    "section {:?} ends {} bytes before it is expected to",
                    self.name,
                    place.len() - filled
                );
                return Err(reader.bad(reader.offset, &what));
            }
            let ready = &reader.raw[reader.used..];
            let n = ready.len().min(place.len() - filled);
            place[filled..filled + n].copy_from_slice(&ready[..n]);
            reader.used += n;
            filled += n;
        }
        Ok(())
    }

    /// Checks that nothing is left of the section.
    ///
    /// # Errors
    /// [`Error::Bad`] if there is more, and as [`Section::next_block`].
    pub fn end(mut self) -> Result<(), Error> {
        if self.next_block()?.is_some() {
            let what = format!("section {:?} is longer than expected", self.name);
            return Err(self.reader.bad(self.reader.offset, &what));
        }
        Ok(())
    }

    /// The rest of the section.
    ///
    /// # Errors
    /// [`Error::Bad`] if it has more than `bytes_max`, and as [`Section::next_block`].
    pub fn read_all(&mut self, bytes_max: usize) -> Result<Vec<u8>, Error> {
        let mut all = Vec::new();
        while let Some(block) = self.next_block()? {
            if all.len() + block.len() > bytes_max {
                let what = format!("section {:?} has more than {bytes_max} bytes", self.name);
                return Err(self.reader.bad(self.reader.offset, &what));
            }
            all.extend_from_slice(block);
        }
        Ok(all)
    }
}

fn u32_at(bytes: &[u8], place: usize) -> u32 {
    u32::from_le_bytes(bytes[place..place + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], place: usize) -> u64 {
    u64::from_le_bytes(bytes[place..place + 8].try_into().expect("eight bytes"))
}

//! The journal read back: every durable record once and in order, a torn end cut, anything else
//! refused by name.
//!
//! A record that does not check is damaged if a later one says that this part of the file was
//! durable, and the file is refused. If none says so, no record from there on was waited for
//! successfully by anyone who appended after it: the end is torn, and it is cut. Memory is
//! bounded by what the file really has, whatever its length fields say.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::layout::{
    FORMAT, RECORD_HEADER_BYTES, RECORD_MAGIC, RecordHeader, SEGMENT_HEADER_BYTES, SEGMENT_MAGIC,
    path_of, start_of, u32_at, u64_at,
};
use crate::storage::Error;
use crate::storage::disk::Disk;

/// A torn end of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub path: PathBuf,
    /// What is left of it.
    pub kept_bytes: u64,
    /// What went.
    pub cut_bytes: u64,
    /// What was found there.
    pub what: String,
}

/// What [`recover`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// theta's version after the last record: where [`super::Journal::start`] goes on.
    pub version: u64,
    /// Records given out.
    pub n_records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// What was cut off the last segment.
    pub cut: Option<Cut>,
}

/// How a segment ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentEnd {
    /// The version that the last record makes; the segment's start if there is none.
    pub version: u64,
    /// Bytes up to the end of the last good record; 0 if not even the header is whole.
    pub good_bytes: u64,
    /// What is there instead of the next record, if the segment does not simply end.
    pub torn: Option<String>,
}

/// Gives `each` the records after the checkpoint of `version`, in order: the version that the
/// update makes, and the payload. Cuts a torn end off, durably.
///
/// # Errors
/// [`Error::Bad`] if a record is damaged or missing; [`Error::OtherJob`], [`Error::NewerFormat`],
/// [`Error::Io`]; those of `each`.
pub fn recover(
    disk: &dyn Disk,
    directory: &Path,
    job: u64,
    version: u64,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), Error>,
) -> Result<Recovered, Error> {
    let mut segments = segments(disk, directory)?;
    let mut recovered = Recovered { version, n_records: 0, payload_bytes: 0, cut: None };
    let Some((first, _)) = segments.first().copied() else { return Ok(recovered) };
    if first > version {
        let path = path_of(directory, first);
        let what = format!(
            "the journal begins at version {first}, the checkpoint is of {version}: the updates \
             between are missing"
        );
        return Err(Error::Bad { path, offset: 0, section: None, what });
    }
    let n_covered = segments.iter().rposition(|(start, _)| *start <= version).unwrap_or(0);
    segments.drain(..n_covered);
    for (index, (start, bytes)) in segments.iter().copied().enumerate() {
        let path = path_of(directory, start);
        let next = segments.get(index + 1).map(|(start, _)| *start);
        let source = disk.open(&path).map_err(Error::io("open", &path))?;
        let source = BufReader::with_capacity(1 << 18, source);
        let mut give = |made: u64, payload: &[u8]| {
            if made > version {
                recovered.n_records += 1;
                recovered.payload_bytes += payload.len() as u64;
                each(made, payload)?;
            }
            // What comes after the next segment's start was never acknowledged: a checkpoint took
            // its place when the disk had failed.
            Ok(next != Some(made))
        };
        let end = read_segment(&path, source, start, Some(job), &mut give)?;
        recovered.version = recovered.version.max(end.version);
        if let Some(next) = next.filter(|next| end.version < *next) {
            let found = end.torn.unwrap_or_else(|| "the file ends".to_owned());
            let what = format!("records up to version {next} are missing: {found}");
            return Err(Error::Bad { path, offset: end.good_bytes, section: None, what });
        }
        if next.is_none()
            && let Some(what) = end.torn
        {
            let (kept_bytes, cut_bytes) = (end.good_bytes, bytes.saturating_sub(end.good_bytes));
            cut(disk, directory, &path, kept_bytes)?;
            recovered.cut = Some(Cut { path, kept_bytes, cut_bytes, what });
        }
    }
    Ok(recovered)
}

/// Cuts the last segment, or removes it if not even its header is whole.
fn cut(disk: &dyn Disk, directory: &Path, path: &Path, kept_bytes: u64) -> Result<(), Error> {
    if kept_bytes > 0 {
        return disk.cut(path, kept_bytes).map_err(Error::io("cut", path));
    }
    disk.remove(path)
        .and_then(|()| disk.sync_directory(directory))
        .map_err(Error::io("remove", path))
}

/// Start and size of each segment, oldest first.
pub(super) fn segments(disk: &dyn Disk, directory: &Path) -> Result<Vec<(u64, u64)>, Error> {
    let entries = disk.list(directory).map_err(Error::io("list", directory))?;
    let mut segments: Vec<(u64, u64)> =
        entries.iter().filter_map(|entry| Some((start_of(&entry.name)?, entry.bytes))).collect();
    segments.sort_unstable();
    Ok(segments)
}

/// Reads one segment, the one that starts at version `start`, and gives `each` its records:
/// version and payload. `path` is what errors name.
///
/// # Errors
/// As [`recover`].
pub fn replay(
    path: &Path,
    source: impl Read,
    start: u64,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), Error>,
) -> Result<SegmentEnd, Error> {
    read_segment(path, source, start, None, &mut |version, payload| {
        each(version, payload).map(|()| true)
    })
}

/// Takes a version and a payload, and says whether to go on.
type Each<'a> = dyn FnMut(u64, &[u8]) -> Result<bool, Error> + 'a;

/// As [`replay`]; ends when `each` gives false.
fn read_segment(
    path: &Path,
    source: impl Read,
    start: u64,
    job: Option<u64>,
    each: &mut Each<'_>,
) -> Result<SegmentEnd, Error> {
    let mut segment = Segment { path, source, start, offset: 0 };
    let mut version = start;
    if let Some(what) = segment.header(job)? {
        return Ok(SegmentEnd { version, good_bytes: 0, torn: Some(what) });
    }
    let mut payload = Vec::new();
    loop {
        let at = segment.offset;
        let torn = match segment.record(&mut payload)? {
            Found::Record(header) => {
                if header.version != version + 1 {
                    let what = format!("version {} follows {version}", header.version);
                    return Err(segment.bad(at, what));
                }
                version = header.version;
                if each(version, &payload)? {
                    continue;
                }
                None
            }
            Found::End => None,
            Found::Torn(what) => Some(what.to_owned()),
        };
        let good_bytes = if torn.is_some() { at } else { segment.offset };
        return Ok(SegmentEnd { version, good_bytes, torn });
    }
}

enum Found {
    Record(RecordHeader),
    End,
    Torn(&'static str),
}

struct Segment<'a, R> {
    path: &'a Path,
    source: R,
    start: u64,
    offset: u64,
}

impl<R: Read> Segment<'_, R> {
    /// Checks the header; what is wrong with it if it is torn.
    fn header(&mut self, job: Option<u64>) -> Result<Option<String>, Error> {
        let mut header = Vec::new();
        self.read(SEGMENT_HEADER_BYTES as u64, &mut header)?;
        if header.len() < SEGMENT_HEADER_BYTES {
            return Ok(Some("the file ends within its header".to_owned()));
        }
        let is_whole =
            header[..8] == SEGMENT_MAGIC && crc32fast::hash(&header[..36]) == u32_at(&header, 36);
        if !is_whole {
            self.refuse_if_durable(0, &header)?;
            return Ok(Some("its header does not check".to_owned()));
        }
        let (format, start, found) = (u32_at(&header, 8), u64_at(&header, 16), u64_at(&header, 24));
        let path = self.path.to_owned();
        if format > FORMAT {
            return Err(Error::NewerFormat { path, found: format, supported: FORMAT });
        }
        if format == 0 {
            return Err(self.bad(8, "there is no format 0".to_owned()));
        }
        if start != self.start {
            let what = format!("it starts at version {start}, its name says {}", self.start);
            return Err(self.bad(16, what));
        }
        match job {
            Some(expected) if expected != found => Err(Error::OtherJob { path, found, expected }),
            _ => Ok(None),
        }
    }

    fn record(&mut self, payload: &mut Vec<u8>) -> Result<Found, Error> {
        let at = self.offset;
        let mut bytes = Vec::with_capacity(RECORD_HEADER_BYTES);
        self.read(RECORD_HEADER_BYTES as u64, &mut bytes)?;
        if bytes.is_empty() {
            return Ok(Found::End);
        }
        let Ok(header) = <&[u8; RECORD_HEADER_BYTES]>::try_from(&bytes[..]) else {
            return Ok(Found::Torn("the file ends within a record's header"));
        };
        let Some(header) = RecordHeader::parse(header, self.start, at) else {
            self.refuse_if_durable(at, &bytes)?;
            return Ok(Found::Torn("no record begins there"));
        };
        payload.clear();
        self.read(header.bytes, payload)?;
        if (payload.len() as u64) < header.bytes {
            return Ok(Found::Torn("the file ends within a record"));
        }
        if crc32fast::hash(payload) != header.payload_crc {
            self.refuse_if_durable(at, &[])?;
            return Ok(Found::Torn("a record's checksum does not match"));
        }
        Ok(Found::Record(header))
    }

    /// Looks for a record behind the bad one at `bad_at` which says that the bad one was durable.
    /// `seen` is what was read last, and may hold the beginning of one.
    fn refuse_if_durable(&mut self, bad_at: u64, seen: &[u8]) -> Result<(), Error> {
        const WINDOW_BYTES: u64 = 1 << 16;
        let mut window = seen.to_vec();
        loop {
            let n_read = self.read(WINDOW_BYTES, &mut window)?;
            let base = self.offset - window.len() as u64;
            for (place, header) in window.array_windows::<RECORD_HEADER_BYTES>().enumerate() {
                if header[..4] != RECORD_MAGIC {
                    continue;
                }
                let at = base + place as u64;
                let later = RecordHeader::parse(header, self.start, at);
                if later.is_some_and(|later| later.durable_end > bad_at) {
                    let what = format!("a damaged record; the one at byte {at} came after it");
                    return Err(self.bad(bad_at, what));
                }
            }
            if n_read == 0 {
                return Ok(());
            }
            let rest = window.len().saturating_sub(RECORD_HEADER_BYTES - 1);
            window.drain(..rest);
        }
    }

    /// Appends up to `bytes_max` bytes; fewer only at the file's end. Memory grows with what is
    /// there, not with what is asked for.
    fn read(&mut self, bytes_max: u64, into: &mut Vec<u8>) -> Result<usize, Error> {
        let read = (&mut self.source).take(bytes_max).read_to_end(into);
        let n = read.map_err(Error::io("read", self.path))?;
        self.offset += n as u64;
        Ok(n)
    }

    fn bad(&self, offset: u64, what: String) -> Error {
        Error::Bad { path: self.path.to_owned(), offset, section: None, what }
    }
}

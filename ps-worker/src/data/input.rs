//! Opens a file for one pass: gzip undone, its format told from its first bytes.
//!
//! Owns the words for a bad place in a file. Knows no format beyond its first bytes.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use ps_common::exit::{Exit, ExitError};

use super::spec::Format;

/// Bytes looked at to tell a format and a delimiter.
const HEAD_BYTES: u64 = 64 << 10;
const BUFFER_BYTES: usize = 128 << 10;
/// Longest line of a text file: a few kilobytes of gzip may stand for gigabytes without a line's end.
const LINE_BYTES_MAX: usize = 64 << 20;
/// Features of a row that is held whole: a file of a few bytes may speak of any number of them.
pub(super) const DENSE_FEATURES_MAX: usize = 1 << 22;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A file being read from its beginning, uncompressed.
pub(super) struct Input {
    name: String,
    head: Vec<u8>,
    /// All of it, the head included.
    reader: BufReader<Box<dyn Read + Send>>,
}

impl Input {
    /// Opens `path`.
    ///
    /// # Errors
    /// Bad data, naming the path: absent, not a regular file (data is read more than once), or
    /// damaged gzip.
    pub(super) fn open(path: &str) -> Result<Self, ExitError> {
        let cannot =
            |e: io::Error| ExitError::new(Exit::BadData, format!("{path}: cannot be opened: {e}"));
        let file = File::open(path).map_err(cannot)?;
        if !file.metadata().map_err(cannot)?.is_file() {
            return Err(ExitError::new(
                Exit::BadData,
                format!("{path}: not a regular file; data is read more than once, so give a file"),
            ));
        }
        let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
        let gzipped = file.fill_buf().map_err(cannot)?.starts_with(&GZIP_MAGIC);
        if gzipped {
            Self::from_reader(path, Box::new(MultiGzDecoder::new(file)))
        } else {
            Self::from_reader(path, Box::new(file))
        }
    }

    /// Bytes that are part of the program.
    pub(super) fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self, ExitError> {
        Self::from_reader(name, Box::new(bytes))
    }

    fn from_reader(name: &str, mut reader: Box<dyn Read + Send>) -> Result<Self, ExitError> {
        let mut head = Vec::new();
        if let Err(e) = (&mut reader).take(HEAD_BYTES).read_to_end(&mut head) {
            return Err(damaged(name, head.len() as u64, e));
        }
        if head.starts_with(BYTE_ORDER_MARK) {
            head.drain(..BYTE_ORDER_MARK.len());
        }
        let whole: Box<dyn Read + Send> = Box::new(Cursor::new(head.clone()).chain(reader));
        let reader = BufReader::with_capacity(BUFFER_BYTES, whole);
        Ok(Self { name: name.to_owned(), head, reader })
    }

    /// The path, for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The first lines, as far as they are whole or the file ends with them, blank ones left out.
    pub(super) fn head_lines(&self) -> impl Iterator<Item = &[u8]> {
        self.head.split(|&b| b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty())
    }

    /// The format by content; never `Auto`.
    pub(super) fn format(&self) -> Format {
        if self.head.starts_with(super::npy::MAGIC) {
            return Format::Npy;
        }
        if super::idx::is_magic(&self.head) {
            return Format::Idx;
        }
        let line = self.head_lines().find(|line| !line.starts_with(b"#")).unwrap_or_default();
        let mut tokens = line.split(u8::is_ascii_whitespace).filter(|token| !token.is_empty());
        match tokens.nth(1) {
            Some(token) if token.contains(&b':') => Format::Libsvm,
            _ => Format::Csv,
        }
    }

    /// Reads up to `n_bytes` into `bytes`, which is cleared first and grows only as they arrive.
    pub(super) fn read_up_to(
        &mut self,
        n_bytes: usize,
        offset: u64,
        bytes: &mut Vec<u8>,
    ) -> Result<(), ExitError> {
        bytes.clear();
        match (&mut self.reader).take(n_bytes as u64).read_to_end(bytes) {
            Ok(_) => Ok(()),
            Err(e) => Err(damaged(&self.name, offset + bytes.len() as u64, e)),
        }
    }

    /// Reads a line with its end into `line`, which is cleared first; `false` at the file's end.
    pub(super) fn read_line(&mut self, offset: u64, line: &mut Vec<u8>) -> Result<bool, ExitError> {
        line.clear();
        match (&mut self.reader).take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', line) {
            Ok(n) if n > LINE_BYTES_MAX => Err(bad_file(
                &self.name,
                format!(
                    "the line at byte {offset} of its uncompressed content has more than {} MiB, \
                     the longest that is read",
                    LINE_BYTES_MAX >> 20
                ),
            )),
            Ok(n) => Ok(n > 0),
            Err(e) => Err(damaged(&self.name, offset + line.len() as u64, e)),
        }
    }
}

/// A read that failed after `offset` bytes of content: a damaged or truncated gzip stream, or the
/// disk.
pub(super) fn damaged(name: &str, offset: u64, e: io::Error) -> ExitError {
    ExitError::new(
        Exit::BadData,
        format!(
            "{name}: cannot be read beyond byte {offset} of its uncompressed content: the file is \
             truncated or damaged"
        ),
    )
    .because(e)
}

/// Something wrong in a text file; `line` and `column` count from 1.
pub(super) fn bad_text(name: &str, line: u64, column: usize, what: impl Display) -> ExitError {
    ExitError::new(Exit::BadData, format!("{name}:{line}:{column}: {what}"))
}

/// Something wrong in a file as a whole, or at a place that `what` names.
pub(super) fn bad_file(name: &str, what: impl Display) -> ExitError {
    ExitError::new(Exit::BadData, format!("{name}: {what}"))
}

/// Parses a finite number; `None` for anything else.
pub(super) fn finite(text: &[u8]) -> Option<f64> {
    number(text).filter(|value| value.is_finite())
}

/// Parses a number, NaN and infinities included.
pub(super) fn number(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `text` for a message: quoted, shortened, printable.
pub(super) fn quoted(text: &[u8]) -> String {
    const SHOWN: usize = 40;
    let text = String::from_utf8_lossy(text);
    let shown: String = text.chars().take(SHOWN).flat_map(char::escape_default).collect();
    let more = if text.chars().nth(SHOWN).is_some() { "..." } else { "" };
    format!("`{shown}{more}`")
}

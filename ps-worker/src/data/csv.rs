//! CSV: numbers separated by commas, semicolons, tabs or blanks.
//!
//! The delimiter and the presence of a header are found per file: the first line is a header if
//! one of its fields is neither a number nor a mark of a missing value; it may then have another
//! number of fields than the rows, but its names cannot be used. Fields may be quoted (RFC 4180),
//! lines may end in CRLF, blank lines are skipped.
//!
//! Lines are split here and not by the csv crate: its line numbers are off after blank lines and
//! CRLF, and it does not join several blanks into one delimiter.

use std::ops::Range;

use ps_common::exit::ExitError;

use super::input::{Input, bad_text, finite, number, quoted};
use super::spec::Target;

/// A quoted field may run over several lines, but not over more bytes than this.
const RECORD_BYTES_MAX: usize = 1 << 20;
/// Nor over more lines: with each the record is split again from its beginning.
const RECORD_LINES_MAX: u64 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delimiter {
    Byte(u8),
    /// Any number of spaces and tabs.
    Blanks,
}

/// Reads rows one by one.
pub(super) struct CsvReader {
    input: Input,
    delimiter: Delimiter,
    /// The record read last, and where its fields stand in it.
    record: Vec<u8>,
    fields: Vec<Range<usize>>,
    /// Of the record's first line, from 1.
    line: u64,
    lines_read: u64,
    offset: u64,
    /// The record holds a row that was not given out yet.
    pending: bool,
    n_fields: usize,
    target: Option<usize>,
}

impl CsvReader {
    /// Reads header and first row; `target` is the column that is no feature.
    ///
    /// # Errors
    /// Bad data, or configuration if there is no such column.
    pub(super) fn open(input: Input, target: Option<&Target>) -> Result<Self, ExitError> {
        let delimiter = delimiter(&input);
        let mut reader = Self {
            input,
            delimiter,
            record: Vec::new(),
            fields: Vec::new(),
            line: 0,
            lines_read: 0,
            offset: 0,
            pending: false,
            n_fields: 0,
            target: None,
        };
        reader.pending = reader.read_record()?;
        let mut names = Vec::new();
        if reader.pending && reader.is_header() {
            names = reader.fields.iter().map(|f| name(&reader.record[f.clone()])).collect();
            reader.pending = reader.read_record()?;
        }
        reader.n_fields = if reader.pending { reader.fields.len() } else { names.len() };
        if reader.n_fields > 0 {
            reader.target = target.map(|target| reader.column(target, &names)).transpose()?;
        }
        Ok(reader)
    }

    /// Fields of a row but the target: known from the header if there are no rows.
    pub(super) fn n_features(&self) -> usize {
        self.n_fields - usize::from(self.target.is_some())
    }

    /// Where the row given last stands.
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.input.name(), self.line)
    }

    /// Puts the next row's features into `values` and its target, if a column was named, into
    /// `target`; `false` after the last one.
    pub(super) fn next(
        &mut self,
        values: &mut Vec<f64>,
        target: &mut f64,
    ) -> Result<bool, ExitError> {
        if !std::mem::take(&mut self.pending) && !self.read_record()? {
            return Ok(false);
        }
        if self.fields.len() != self.n_fields {
            let at = self.fields.get(self.n_fields).map_or(self.record.len(), |f| f.start);
            return Err(bad_text(
                self.input.name(),
                self.line,
                at + 1,
                format!(
                    "{} fields, expected {} as in the first row",
                    self.fields.len(),
                    self.n_fields
                ),
            ));
        }
        values.clear();
        for (index, field) in self.fields.iter().enumerate() {
            let text = &self.record[field.clone()];
            let Some(value) = finite(text) else { return Err(self.not_a_number(index)) };
            if self.target == Some(index) {
                *target = value;
            } else {
                values.push(value);
            }
        }
        Ok(true)
    }

    fn not_a_number(&self, index: usize) -> ExitError {
        let field = self.fields[index].clone();
        bad_text(
            self.input.name(),
            self.line,
            field.start + 1,
            format!(
                "field {} is {}, expected a finite number",
                index + 1,
                quoted(&self.record[field])
            ),
        )
    }

    fn is_header(&self) -> bool {
        self.fields.iter().any(|field| {
            let text = &self.record[field.clone()];
            number(text).is_none() && !is_missing(text)
        })
    }

    fn column(&self, target: &Target, names: &[String]) -> Result<usize, ExitError> {
        let n = self.n_fields;
        let refuse = |what: String| {
            Err(ExitError::config(format!("--target {target}: {}: {what}", self.input.name())))
        };
        match target {
            Target::First => Ok(0),
            Target::Last => Ok(n - 1),
            Target::Index(index) if *index < n => Ok(*index),
            Target::Index(_) => refuse(format!("rows have {n} fields, the last is {}", n - 1)),
            Target::Name(_) if names.is_empty() => refuse("the file has no header".into()),
            Target::Name(_) if names.len() != n => {
                refuse(format!("the header has {} fields, the rows have {n}", names.len()))
            }
            Target::Name(name) => match names.iter().position(|n| n == name) {
                Some(index) => Ok(index),
                None => refuse(format!("the columns are {}", names.join(", "))),
            },
        }
    }

    /// Reads and splits the next record that is not blank.
    fn read_record(&mut self) -> Result<bool, ExitError> {
        loop {
            if !self.append_line(0)? {
                return Ok(false);
            }
            self.line = self.lines_read;
            if self.record.trim_ascii().is_empty() {
                continue;
            }
            while let Err(column) = split(&self.record, self.delimiter, &mut self.fields) {
                let length = self.record.len();
                let is_long =
                    length > RECORD_BYTES_MAX || self.lines_read - self.line >= RECORD_LINES_MAX;
                if is_long || !self.append_line(length)? {
                    return Err(bad_text(
                        self.input.name(),
                        self.line,
                        column + 1,
                        "a quoted field that does not end, or goes on after its closing quote",
                    ));
                }
            }
            return Ok(true);
        }
    }

    /// Appends the next line, with its end, to the first `keep` bytes of the record.
    fn append_line(&mut self, keep: usize) -> Result<bool, ExitError> {
        let mut line = Vec::new();
        let read = if keep == 0 {
            self.input.read_line(self.offset, &mut self.record)?
        } else {
            let read = self.input.read_line(self.offset, &mut line)?;
            self.record.extend_from_slice(&line);
            read
        };
        self.offset += (self.record.len() - keep) as u64;
        self.lines_read += u64::from(read);
        Ok(read)
    }
}

/// What stands for a missing value: it does not make a header of the line it is in.
fn is_missing(text: &[u8]) -> bool {
    [&b""[..], b"?", b"na", b"n/a", b"null", b"none", b"-"]
        .iter()
        .any(|mark| text.eq_ignore_ascii_case(mark))
}

fn name(text: &[u8]) -> String {
    String::from_utf8_lossy(text).replace("\"\"", "\"")
}

/// The delimiter of the second line, which is a row even where the first is a header.
fn delimiter(input: &Input) -> Delimiter {
    let line = input.head_lines().take(2).last().unwrap_or_default();
    let mut outside_quotes = true;
    let mut found = [false; 4];
    for &byte in line {
        outside_quotes ^= byte == b'"';
        let kind = b";,\t ".iter().position(|&d| d == byte).filter(|_| outside_quotes);
        if let Some(kind) = kind {
            found[kind] = true;
        }
    }
    match found {
        [true, ..] => Delimiter::Byte(b';'),
        [_, true, ..] => Delimiter::Byte(b','),
        [_, _, true, _] => Delimiter::Byte(b'\t'),
        [_, _, _, true] => Delimiter::Blanks,
        [false, false, false, false] => Delimiter::Byte(b','),
    }
}

/// Finds the fields of a record, blanks around them left out and quotes taken off.
///
/// `Err` is the position of a quoted field that does not end properly.
fn split(record: &[u8], delimiter: Delimiter, fields: &mut Vec<Range<usize>>) -> Result<(), usize> {
    fields.clear();
    let end = record.trim_ascii_end().len();
    let mut at = 0;
    match delimiter {
        Delimiter::Blanks => loop {
            at = skip_blanks(record, at, end, None);
            if at == end {
                return Ok(());
            }
            let field = field(record, at, end, |b| b == b' ' || b == b'\t')?;
            at = field.next;
            fields.push(field.inside);
        },
        Delimiter::Byte(delimiter) => {
            // A tab that ends a row announces an empty last field, although it is white space.
            let end = trim_end(record, delimiter);
            loop {
                at = skip_blanks(record, at, end, Some(delimiter));
                let field = field(record, at, end, |b| b == delimiter)?;
                fields.push(field.inside);
                if field.next == end {
                    return Ok(());
                }
                at = field.next + 1;
            }
        }
    }
}

fn trim_end(record: &[u8], delimiter: u8) -> usize {
    let last = record.iter().rposition(|&b| b == delimiter || !b.is_ascii_whitespace());
    last.map_or(0, |last| last + 1)
}

fn skip_blanks(record: &[u8], mut at: usize, end: usize, but: Option<u8>) -> usize {
    while at < end && matches!(record[at], b' ' | b'\t') && Some(record[at]) != but {
        at += 1;
    }
    at
}

struct Field {
    inside: Range<usize>,
    /// The delimiter after it, or the record's end.
    next: usize,
}

fn field(
    record: &[u8],
    at: usize,
    end: usize,
    is_delimiter: impl Fn(u8) -> bool,
) -> Result<Field, usize> {
    if record[at..end].first() != Some(&b'"') {
        let length = record[at..end].iter().position(|&b| is_delimiter(b));
        let next = length.map_or(end, |length| at + length);
        let inside = at..at + record[at..next].trim_ascii_end().len();
        return Ok(Field { inside, next });
    }
    let mut close = at + 1;
    loop {
        match (record[..end].get(close), record[..end].get(close + 1)) {
            (None, _) => return Err(at),
            (Some(b'"'), Some(b'"')) => close += 2,
            (Some(b'"'), _) => break,
            _ => close += 1,
        }
    }
    let mut next = close + 1;
    while next < end && !is_delimiter(record[next]) {
        if !record[next].is_ascii_whitespace() {
            return Err(at);
        }
        next += 1;
    }
    Ok(Field { inside: at + 1..close, next })
}

//! LibSVM text: `label index:value index:value ...`, zeros left out.
//!
//! Indices increase strictly within a row and are given out as they stand; whether they count from
//! 0 or from 1 is settled elsewhere. `#` begins a comment; `qid:N` after the label is ignored.

use ps_common::exit::ExitError;

use super::input::{Input, bad_text, finite, quoted};

/// Reads rows one by one.
pub(super) struct LibsvmReader {
    input: Input,
    bytes: Vec<u8>,
    /// Of the row given last, from 1.
    line: u64,
    offset: u64,
    allowed: Allowed,
}

/// Which indices a file may have, as they stand in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowed {
    /// 1 where features are known to count from 1.
    pub(super) first: u32,
    /// The last index, where the number of features is known.
    pub(super) last: Option<u32>,
}

impl LibsvmReader {
    pub(super) fn new(input: Input, allowed: Allowed) -> Self {
        Self { input, bytes: Vec::new(), line: 0, offset: 0, allowed }
    }

    /// Where the row given last stands.
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.input.name(), self.line)
    }

    /// Puts the next row into `indices` and `values`, its label into `target`; `false` after the
    /// last one.
    pub(super) fn next(
        &mut self,
        indices: &mut Vec<u32>,
        values: &mut Vec<f64>,
        target: &mut f64,
    ) -> Result<bool, ExitError> {
        indices.clear();
        values.clear();
        loop {
            if !self.input.read_line(self.offset, &mut self.bytes)? {
                return Ok(false);
            }
            self.offset += self.bytes.len() as u64;
            self.line += 1;
            let line = self.bytes.split(|&b| b == b'#').next().unwrap_or_default();
            let mut tokens = Tokens { line, at: 0 };
            let Some((at, label)) = tokens.next() else { continue };
            *target = finite(label)
                .ok_or_else(|| self.wrong(at, label, "a label, which is a finite number"))?;
            for (n, (at, token)) in tokens.enumerate() {
                if n == 0 && token.starts_with(b"qid:") {
                    continue;
                }
                let (index, value) = self.entry(at, token)?;
                if let Some(&before) = indices.last()
                    && index <= before
                {
                    let expected = format!("an index above {before}, the one before it");
                    return Err(self.wrong(at, token, &expected));
                }
                indices.push(index);
                values.push(value);
            }
            return Ok(true);
        }
    }

    fn entry(&self, at: usize, token: &[u8]) -> Result<(u32, f64), ExitError> {
        let wrong = || self.wrong(at, token, "index:value such as 12:0.5, the value finite");
        let colon = token.iter().position(|&b| b == b':').ok_or_else(wrong)?;
        let (index, value) = (&token[..colon], &token[colon + 1..]);
        let digits = index.iter().all(u8::is_ascii_digit);
        let index = std::str::from_utf8(index).ok().filter(|_| digits);
        let index: u32 = index.and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
        let value = finite(value).ok_or_else(wrong)?;
        if index < self.allowed.first {
            return Err(self.wrong(at, token, "indices from 1, as --index-base or the data say"));
        }
        if let Some(last) = self.allowed.last.filter(|&last| index > last) {
            let expected = format!("indices up to {last}, for the number of features is known");
            return Err(self.wrong(at, token, &expected));
        }
        Ok((index, value))
    }

    fn wrong(&self, at: usize, token: &[u8], expected: &str) -> ExitError {
        let what = format!("{}: expected {expected}", quoted(token));
        bad_text(self.input.name(), self.line, at + 1, what)
    }
}

/// Words of a line with their positions.
struct Tokens<'a> {
    line: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = (usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.at + self.line[self.at..].iter().position(|b| !b.is_ascii_whitespace())?;
        let length = self.line[start..].iter().position(u8::is_ascii_whitespace);
        let end = length.map_or(self.line.len(), |length| start + length);
        self.at = end;
        Some((start, &self.line[start..end]))
    }
}

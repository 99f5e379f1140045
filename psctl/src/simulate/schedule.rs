//! A fixed asynchronous schedule as a file: whose gradient is which update, and how old it is.
//!
//! Line by line or as JSON. Only reads: `fixed` carries it out.

use std::fmt;
use std::path::{Path, PathBuf};

use ps_common::exit::{Exit, ExitError};
use serde::Deserialize;

/// One update of the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    /// Whose gradient it is.
    pub(super) rank: u32,
    /// By how many updates the theta is older that it is computed at.
    pub(super) delay: u64,
}

/// What a JSON file may be.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a list of ranks, or {\"workers\": [...], \"delay\": N}")]
enum Json {
    Ranks(Vec<u32>),
    Named(Named),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    #[serde(alias = "order")]
    workers: Vec<u32>,
    delay: Option<u64>,
}

/// Where something stands in the file.
#[derive(Debug, Clone)]
struct Place(PathBuf, Option<usize>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(line) => write!(f, "{}:{line}", self.0.display()),
            None => write!(f, "{}", self.0.display()),
        }
    }
}

impl Place {
    fn bad(&self, what: impl fmt::Display) -> ExitError {
        ExitError::new(Exit::BadData, format!("{self}: {what}"))
    }
}

/// Reads a schedule for `n_workers`; `fixed_delay` is that of turns which name none.
///
/// # Errors
/// I/O; bad data, naming file and line; configuration where flag and file contradict each other.
pub(super) fn read(
    path: &Path,
    fixed_delay: Option<u64>,
    n_workers: u32,
) -> Result<Vec<Turn>, ExitError> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        ExitError::new(Exit::Io, format!("cannot read --schedule {}", path.display())).because(e)
    })?;
    let turns = if text.trim_start().starts_with(['[', '{']) {
        from_json(path, &text, fixed_delay, n_workers)?
    } else {
        from_lines(path, &text, fixed_delay.unwrap_or(0), n_workers)?
    };
    if turns.is_empty() {
        return Err(Place(path.to_owned(), None).bad("the schedule has no updates"));
    }
    Ok(turns)
}

fn from_lines(
    path: &Path,
    text: &str,
    fixed_delay: u64,
    n_workers: u32,
) -> Result<Vec<Turn>, ExitError> {
    let mut turns = Vec::new();
    let mut may_be_header = true;
    for (number, line) in text.lines().enumerate() {
        let place = Place(path.to_owned(), Some(number + 1));
        let line = line.split('#').next().unwrap_or_default();
        let cells: Vec<&str> =
            line.split([',', ' ', '\t', ';']).filter(|cell| !cell.is_empty()).collect();
        let Some(first) = cells.first() else { continue };
        let is_header = std::mem::take(&mut may_be_header)
            && cells.iter().all(|cell| cell.chars().all(|c| c.is_ascii_alphabetic() || c == '_'));
        if is_header {
            continue;
        }
        if cells.len() > 2 {
            let n = cells.len();
            return Err(place.bad(format!("{n} columns; expected a worker and perhaps a delay")));
        }
        let rank = first
            .parse()
            .map_err(|_| place.bad(format!("`{first}` is no worker; expected a rank from 0")))?;
        let delay = match cells.get(1) {
            None => fixed_delay,
            Some(cell) => cell.parse().map_err(|_| {
                place.bad(format!("`{cell}` is no delay; expected a whole number from 0"))
            })?,
        };
        check_rank(&place, rank, n_workers)?;
        turns.push(Turn { rank, delay });
    }
    Ok(turns)
}

fn from_json(
    path: &Path,
    text: &str,
    fixed_delay: Option<u64>,
    n_workers: u32,
) -> Result<Vec<Turn>, ExitError> {
    // Syntax first: its errors know their line, those of an untagged enum do not.
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|e| Place(path.to_owned(), Some(e.line())).bad(e))?;
    let whole = Place(path.to_owned(), None);
    let json: Json = serde_json::from_value(value).map_err(|e| whole.bad(e))?;
    let (ranks, delay) = match json {
        Json::Ranks(ranks) => (ranks, None),
        Json::Named(Named { workers, delay }) => (workers, delay),
    };
    if let (Some(flag), Some(file)) = (fixed_delay, delay)
        && flag != file
    {
        return Err(ExitError::config(format!(
            "--fixed-delay {flag}: {} has a delay of {file}; leave one of them out",
            path.display()
        )));
    }
    let delay = delay.or(fixed_delay).unwrap_or(0);
    for (number, rank) in ranks.iter().enumerate() {
        check_rank(&whole, *rank, n_workers)
            .map_err(|e| ExitError::new(e.exit, format!("{}, in update {number}", e.message)))?;
    }
    Ok(ranks.into_iter().map(|rank| Turn { rank, delay }).collect())
}

fn check_rank(place: &Place, rank: u32, n_workers: u32) -> Result<(), ExitError> {
    if rank < n_workers {
        return Ok(());
    }
    Err(place.bad(format!(
        "worker {rank} is none of the {n_workers} of --workers, which are 0 to {}; give --workers \
         {} or more",
        n_workers - 1,
        u64::from(rank) + 1
    )))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read_text(text: &str, fixed_delay: Option<u64>) -> Result<Vec<(u32, u64)>, ExitError> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        let turns = read(file.path(), fixed_delay, 3)?;
        Ok(turns.into_iter().map(|turn| (turn.rank, turn.delay)).collect())
    }

    #[test]
    fn lines_columns_and_json_are_read_alike() {
        let same = [(0, 2), (2, 2), (1, 2)];
        for (text, delay) in [
            ("0\n2\n1\n", Some(2)),
            ("# order\n0 2\n2,2 # late\n\n1\t2\n", None),
            ("worker,delay\n0,2\n2,2\n1, 2", Some(7)),
            ("worker\n0\n2\n1", Some(2)),
            ("[0, 2, 1]", Some(2)),
            (" {\"workers\": [0, 2, 1], \"delay\": 2}", None),
            ("{\"order\": [0, 2, 1], \"delay\": 2}", Some(2)),
            ("{\"order\": [0, 2, 1]}", Some(2)),
        ] {
            assert_eq!(read_text(text, delay).expect(text), same, "{text}");
        }
        assert_eq!(read_text("1", None).expect("one"), [(1, 0)]);
    }

    #[test]
    fn a_bad_file_is_refused_with_its_line() {
        for (text, says) in [
            ("", "no updates"),
            ("0\n3\n", ":2: worker 3 is none of the 3 of --workers"),
            ("0\nx\n", ":2: `x` is no worker"),
            ("0\n-1\n", ":2: `-1` is no worker"),
            ("0 1\n1 x\n", ":2: `x` is no delay"),
            ("0 1 2\n", ":1: 3 columns"),
            ("[0,\n1,\n", ":3: "),
            ("[0, 5]", "worker 5 is none of the 3"),
            ("{\"delay\": 1}", "expected a list of ranks"),
        ] {
            let error = read_text(text, None).expect_err(text);
            assert_eq!(error.exit, Exit::BadData, "{error}");
            assert!(error.message.contains(says), "{text}: {error}");
        }
        let error = read_text("{\"order\": [0], \"delay\": 1}", Some(2)).expect_err("two delays");
        assert!(error.exit == Exit::Config && error.message.contains("--fixed-delay"), "{error}");
    }
}

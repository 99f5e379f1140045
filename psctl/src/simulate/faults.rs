//! What goes wrong, and when: crashes, slow spells, partitions; from flags and from a file.
//!
//! Only a plan: the engine carries it out.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use ps_common::exit::{Exit, ExitError};
use ps_common::units::parse_duration;
use serde::Deserialize;

use super::pace::parse_factor;
use super::queue::Time;

/// The plan.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Faults {
    pub(super) crashes: Vec<Crash>,
    slow: Vec<Slow>,
    partitions: Vec<Partition>,
}

/// A worker's process dies, and perhaps another takes its place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Crash {
    pub(super) rank: u32,
    pub(super) at: Time,
    /// When a new process joins in its rank.
    pub(super) back: Option<Time>,
}

/// Gradients begun in this time take longer.
#[derive(Debug, Clone, PartialEq)]
struct Slow {
    rank: u32,
    from: Time,
    to: Time,
    factor: f64,
}

/// No message gets through between these ranks and the server.
#[derive(Debug, Clone, PartialEq)]
struct Partition {
    ranks: RangeInclusive<u32>,
    from: Time,
    to: Time,
}

/// As `--faults FILE.toml` has them: the same names as in `--fault`, one table for each.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    crash: Vec<toml::Table>,
    #[serde(default)]
    slow: Vec<toml::Table>,
    #[serde(default)]
    partition: Vec<toml::Table>,
}

impl Faults {
    /// Reads every `--fault` and the file of `--faults`.
    ///
    /// # Errors
    /// Configuration, naming the flag; bad data, naming the file and the place; I/O.
    pub(super) fn parse(flags: &[String], file: Option<&Path>) -> Result<Self, ExitError> {
        let mut all = Self::default();
        for text in flags {
            let refuse = |what: String| ExitError::config(format!("--fault {text}: {what}"));
            for (kind, pairs) in split(text).map_err(refuse)? {
                all.add(&kind, pairs).map_err(refuse)?;
            }
        }
        if let Some(path) = file {
            all.read(path)?;
        }
        Ok(all)
    }

    fn read(&mut self, path: &Path) -> Result<(), ExitError> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            ExitError::new(Exit::Io, format!("cannot read --faults {}", path.display())).because(e)
        })?;
        let bad =
            |what: String| ExitError::new(Exit::BadData, format!("{}: {what}", path.display()));
        let file: File = toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            let what = e.message().to_owned();
            ExitError::new(Exit::BadData, format!("{}:{line}: {what}", path.display()))
        })?;
        for (kind, tables) in
            [("crash", file.crash), ("slow", file.slow), ("partition", file.partition)]
        {
            for (number, table) in tables.into_iter().enumerate() {
                let pairs = table.into_iter().map(|(name, value)| match value {
                    toml::Value::String(text) => (name, text),
                    other => (name, other.to_string()),
                });
                self.add(kind, pairs.collect())
                    .map_err(|what| bad(format!("[[{kind}]] number {}: {what}", number + 1)))?;
            }
        }
        Ok(())
    }

    fn add(&mut self, kind: &str, pairs: Vec<(String, String)>) -> Result<(), String> {
        let mut pairs = Pairs(pairs);
        match kind {
            "crash" => {
                let (rank, at) = (pairs.rank()?, pairs.time("at")?);
                let back = pairs.time_if_given("back")?;
                if back.is_some_and(|back| back <= at) {
                    return Err("`back` is a time, and must be after `at`".to_owned());
                }
                self.crashes.push(Crash { rank, at, back });
            }
            "slow" => {
                let rank = pairs.rank()?;
                let (from, to) = pairs.spell(Some(Time::MAX))?;
                let factor = parse_factor(&pairs.take("factor")?)?;
                self.slow.push(Slow { rank, from, to, factor });
            }
            "partition" => {
                let ranks = parse_ranks(&pairs.take("ranks")?)?;
                let (from, to) = pairs.spell(None)?;
                self.partitions.push(Partition { ranks, from, to });
            }
            _ => return Err(format!("`{kind}` is none of crash, slow, partition")),
        }
        pairs.end(kind)
    }

    /// The largest rank that a fault names.
    pub(super) fn rank_max(&self) -> Option<u32> {
        let crashes = self.crashes.iter().map(|crash| crash.rank);
        let slow = self.slow.iter().map(|slow| slow.rank);
        let partitions = self.partitions.iter().map(|partition| *partition.ranks.end());
        crashes.chain(slow).chain(partitions).max()
    }

    /// By how much a gradient of `rank` that begins now takes longer.
    pub(super) fn slowdown(&self, rank: u32, now: Time) -> f64 {
        let current = |slow: &&Slow| slow.rank == rank && slow.from <= now && now < slow.to;
        self.slow.iter().filter(current).map(|slow| slow.factor).product()
    }

    /// The end of a partition of `rank` that is on at any time from `from` to `to`, both included.
    pub(super) fn partition_end(&self, rank: u32, from: Time, to: Time) -> Option<Time> {
        let hit = |p: &&Partition| p.ranks.contains(&rank) && p.from <= to && from < p.to;
        self.partitions.iter().filter(hit).map(|p| p.to).max()
    }
}

/// A kind of fault with its options.
type Named = (String, Vec<(String, String)>);

/// The faults of one `--fault`: several may follow each other, as a configuration file has them.
fn split(text: &str) -> Result<Vec<Named>, String> {
    let mut faults: Vec<Named> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let pair = match part.split_once(':') {
            Some((kind, first)) => {
                faults.push((kind.trim().to_owned(), Vec::new()));
                first
            }
            None => part,
        };
        let (_, pairs) =
            faults.last_mut().ok_or("expected crash:, slow: or partition:, then NAME=VALUE,...")?;
        let (name, value) =
            pair.split_once('=').ok_or_else(|| format!("`{pair}` is not NAME=VALUE"))?;
        pairs.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    Ok(faults)
}

/// Options of one fault, taken one by one.
struct Pairs(Vec<(String, String)>);

impl Pairs {
    fn take_if_given(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(given, _)| given == name)?;
        Some(self.0.remove(at).1)
    }

    fn take(&mut self, name: &str) -> Result<String, String> {
        self.take_if_given(name).ok_or_else(|| format!("`{name}=` is missing"))
    }

    fn rank(&mut self) -> Result<u32, String> {
        let text = self.take("rank")?;
        text.parse().map_err(|_| format!("`{text}` is no rank"))
    }

    fn time_if_given(&mut self, name: &str) -> Result<Option<Duration>, String> {
        self.take_if_given(name).map(|text| parse_duration(&text)).transpose()
    }

    fn time(&mut self, name: &str) -> Result<Duration, String> {
        parse_duration(&self.take(name)?)
    }

    /// `from` and `to`, which may be left out if there is an `otherwise`.
    fn spell(&mut self, otherwise: Option<Time>) -> Result<(Time, Time), String> {
        let from = self.time("from")?;
        let to = self.time_if_given("to")?.or(otherwise).ok_or("`to=` is missing")?;
        if to <= from { Err("`to` must be after `from`".to_owned()) } else { Ok((from, to)) }
    }

    /// Nothing may be left over.
    fn end(self, kind: &str) -> Result<(), String> {
        match self.0.first() {
            Some((name, _)) => Err(format!("{kind} has no `{name}`, or it is given twice")),
            None => Ok(()),
        }
    }
}

/// `3` or `0-3`.
fn parse_ranks(text: &str) -> Result<RangeInclusive<u32>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok(first..=last),
        _ => Err(format!("`{text}` is neither a rank nor a range of ranks such as 0-3")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        file
    }

    fn parse(flags: &[&str]) -> Result<Faults, ExitError> {
        Faults::parse(&flags.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(), None)
    }

    #[test]
    fn flags_and_file_say_the_same() {
        let flags = [
            "crash:rank=2,at=1.5s,back=3s",
            "slow:rank=1,from=1s,to=2s,factor=10",
            "partition:ranks=0-3,from=1s,to=2s",
        ];
        let by_flags = parse(&flags).expect("valid");
        assert_eq!(parse(&[&flags.join(",")]).expect("valid"), by_flags);
        let text = "[[partition]]\nranks = '0-3'\nfrom = '1s'\nto = 2\n[[crash]]\nrank = 2\n\
                    at = 1.5\nback = '3s'\n[[slow]]\nrank = 1\nfrom = '1s'\nto = '2s'\nfactor = 10\n";
        let path = file(text);
        assert_eq!(Faults::parse(&[], Some(path.path())).expect("valid"), by_flags);

        assert_eq!(by_flags.rank_max(), Some(3));
        let s = Duration::from_secs;
        assert_eq!([0, 1, 2].map(|t| by_flags.slowdown(1, s(t))), [1.0, 10.0, 1.0]);
        assert_eq!(by_flags.partition_end(3, s(0), s(1)), Some(s(2)));
        assert_eq!(by_flags.partition_end(3, s(2), s(9)), None);
        assert_eq!(by_flags.partition_end(4, s(0), s(9)), None);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for text in [
            "",
            "crash",
            "crash:",
            "melt:rank=1",
            "crash:rank=1",
            "crash:rank=x,at=1s",
            "crash:rank=1,at=2s,back=1s",
            "crash:rank=1,at=2s,for=1s",
            "slow:rank=1,from=1s,to=2s",
            "slow:rank=1,from=1s,to=2s,factor=0",
            "partition:ranks=3-1,from=1s,to=2s",
            "partition:ranks=1,from=1s",
            "partition:ranks=1,from=2s,to=1s",
        ] {
            let error = parse(&[text]).expect_err(text);
            assert!(error.exit == Exit::Config && error.message.starts_with("--fault"), "{error}");
        }
    }

    #[test]
    fn a_bad_file_is_named_with_the_place() {
        for (text, says) in [
            ("[[crash]]\nrank = 1\n", "[[crash]] number 1: `at=` is missing"),
            ("\n\n[[melt]]\n", ":3: unknown field `melt`"),
            ("crash = [\n", ":"),
        ] {
            let path = file(text);
            let error = Faults::parse(&[], Some(path.path())).expect_err(text);
            assert!(error.exit == Exit::BadData && error.message.contains(says), "{error}");
        }
    }
}

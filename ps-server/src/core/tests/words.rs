//! The words of a script's line, parsed.

use std::time::Duration;

use clap::ValueEnum;
use ps_common::job::Mode;
use ps_common::units::parse_duration;

use crate::core::{Checkpoints, Consistency, DelayScaling, Every, OnExcess};

/// The words of a line: some by place, the rest `key=value` or flags in any order.
pub(super) struct Words<'a> {
    pub(super) place: &'a str,
    words: Vec<&'a str>,
}

impl<'a> Words<'a> {
    pub(super) fn new(place: &'a str, line: &'a str) -> Self {
        Self { place, words: line.split_whitespace().collect() }
    }

    pub(super) fn next(&mut self, what: &str) -> &'a str {
        assert!(!self.words.is_empty(), "{}: {what} is missing", self.place);
        self.words.remove(0)
    }

    /// What is left, if it is a word.
    pub(super) fn last(&mut self) -> Option<&'a str> {
        self.words.pop()
    }

    pub(super) fn option(&mut self, key: &str) -> Option<&'a str> {
        let found = |word: &&str| word.split_once('=').is_some_and(|(k, _)| k == key);
        let index = self.words.iter().position(found)?;
        self.words.remove(index).split_once('=').map(|(_, value)| value)
    }

    pub(super) fn flag(&mut self, name: &str) -> bool {
        let index = self.words.iter().position(|word| *word == name);
        index.map(|index| self.words.remove(index)).is_some()
    }

    pub(super) fn rest(&mut self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let place = self.place;
        let each = std::mem::take(&mut self.words).into_iter();
        each.map(move |w| w.split_once('=').unwrap_or_else(|| panic!("{place}: `{w}`?")))
    }

    pub(super) fn parse<T: std::str::FromStr>(&self, text: &str) -> T {
        text.parse().unwrap_or_else(|_| panic!("{}: `{text}` is no such value", self.place))
    }

    pub(super) fn number<T: std::str::FromStr>(&mut self, key: &str) -> Option<T> {
        self.option(key).map(|text| self.parse(text))
    }

    pub(super) fn duration(&mut self, key: &str) -> Option<Duration> {
        let text = self.option(key)?;
        Some(parse_duration(text).unwrap_or_else(|error| panic!("{}: {error}", self.place)))
    }

    pub(super) fn consistency(&mut self, mode: &str) -> Consistency {
        match self.value::<Mode>(mode) {
            Mode::Sync => Consistency::Sync { backup_workers: self.number("backups").unwrap_or(0) },
            Mode::Ssp => {
                Consistency::Ssp { staleness_bound: self.number("bound").expect("ssp has bound=S") }
            }
            Mode::Async => {
                let strength = self.number("strength").unwrap_or(0.0);
                let scaling = match self.option("scaling").unwrap_or("none") {
                    "none" => DelayScaling::None,
                    "inverse" => DelayScaling::Inverse,
                    "inverse-sqrt" => DelayScaling::InverseSqrt,
                    "exponential" => DelayScaling::Exponential { alpha: strength },
                    "dc-asgd" => DelayScaling::DcAsgd { lambda: strength },
                    other => panic!("{}: scaling={other}?", self.place),
                };
                let excess = self.option("excess").unwrap_or("block");
                let excess = self.value::<OnExcess>(excess);
                Consistency::Async {
                    delay_scaling: scaling,
                    max_gradient_delay: self.number("delay").map(|n| (n, excess)),
                }
            }
            Mode::Hogwild => Consistency::Hogwild,
        }
    }

    pub(super) fn checkpoints(&mut self) -> Option<Checkpoints> {
        let durability = self.option("checkpoints")?;
        let durability = self.value(durability);
        let every = self.option("every").map(|text| match text.strip_suffix('r') {
            Some(rounds) => Every::Rounds(self.parse(rounds)),
            None => Every::Time(
                parse_duration(text).unwrap_or_else(|error| panic!("{}: {error}", self.place)),
            ),
        });
        Some(Checkpoints { durability, every })
    }

    pub(super) fn value<T: ValueEnum>(&self, text: &str) -> T {
        T::from_str(text, true).unwrap_or_else(|_| panic!("{}: `{text}`?", self.place))
    }

    pub(super) fn end(&self) {
        assert!(self.words.is_empty(), "{}: {:?} means nothing here", self.place, self.words);
    }
}

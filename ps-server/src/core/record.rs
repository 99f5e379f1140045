//! What the report will say: history, delays, events, evaluations. Bounded in memory, but for the
//! history, which has an entry for each round that was measured.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use ps_common::ErrorCode;
use ps_common::job::Metrics;
use ps_common::report::{Dropped, Event, GradientDelay, HistoryEntry};
use serde::{Deserialize, Serialize};

/// Cells of the delay histogram; larger delays are counted in the last.
const DELAY_CELLS: usize = 4096;
/// Events that are kept one by one; the rest are counted.
const EVENTS_MAX: usize = 10_000;

/// The facts of a run so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(with = "rows")]
    history: BTreeMap<u64, HistoryEntry>,
    delays: BTreeMap<u64, u64>,
    delay_sum: u128,
    delay_max: u64,
    pub(super) dropped: Dropped,
    events: Vec<Event>,
    events_dropped: u64,
    #[serde(with = "counts")]
    rejections: BTreeMap<(Option<u32>, ErrorCode), u64>,
    /// By an observer, of the final theta.
    pub(super) final_train: Option<Metrics>,
    pub(super) final_test: Option<Metrics>,
    pub(super) finished_seconds: Option<f64>,
}

impl Record {
    /// The first measurement of a version stands: whether this is the one.
    pub(super) fn measured(&mut self, entry: HistoryEntry) -> bool {
        match self.history.entry(entry.version) {
            Entry::Vacant(place) => {
                place.insert(entry);
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    pub(super) fn last(&self) -> Option<HistoryEntry> {
        self.history.values().next_back().copied()
    }

    pub(super) fn history(&self) -> impl Iterator<Item = HistoryEntry> {
        self.history.values().copied()
    }

    pub(super) fn delayed(&mut self, gradient_delay: u64) {
        *self.delays.entry(gradient_delay.min(DELAY_CELLS as u64 - 1)).or_default() += 1;
        self.delay_sum += u128::from(gradient_delay);
        self.delay_max = self.delay_max.max(gradient_delay);
    }

    pub(super) fn event(&mut self, seconds: f64, kind: &str, rank: Option<u32>, detail: String) {
        if self.events.len() == EVENTS_MAX {
            self.events_dropped += 1;
            return;
        }
        self.events.push(Event { seconds, kind: kind.to_owned(), rank, detail });
    }

    /// One event for each pair of sender and reason, with a count that goes on.
    pub(super) fn rejected(&mut self, seconds: f64, rank: Option<u32>, code: ErrorCode) {
        let rank = rank.filter(|_| self.rejections.len() < EVENTS_MAX);
        let count = self.rejections.entry((rank, code)).or_default();
        *count += 1;
        if *count == 1 {
            self.event(seconds, "rejected", rank, code.name().to_owned());
        }
    }

    /// The events in order, rejections with their counts.
    pub(super) fn events(&self) -> Vec<Event> {
        let mut events = self.events.clone();
        for event in events.iter_mut().filter(|e| e.kind == "rejected") {
            let count = self
                .rejections
                .iter()
                .find(|((rank, code), _)| *rank == event.rank && code.name() == event.detail)
                .map_or(1, |(_, &n)| n);
            event.detail = format!("{} ({count} times)", event.detail);
        }
        if self.events_dropped > 0 {
            let seconds = events.last().map_or(0.0, |e| e.seconds);
            let detail = format!("{} more events were not kept", self.events_dropped);
            events.push(Event { seconds, kind: "dropped".to_owned(), rank: None, detail });
        }
        events
    }

    pub(super) fn gradient_delay(&self) -> GradientDelay {
        let count: u64 = self.delays.values().sum();
        let Some((&last, _)) = self.delays.last_key_value() else {
            return GradientDelay::default();
        };
        let mut histogram = vec![0; last as usize + 1];
        for (&delay, &n) in &self.delays {
            histogram[delay as usize] = n;
        }
        let nearest_rank = (count * 99).div_ceil(100);
        let mut seen = 0;
        let p99 = self.delays.iter().find(|&(_, n)| {
            seen += n;
            seen >= nearest_rank
        });
        GradientDelay {
            histogram,
            mean: self.delay_sum as f64 / count as f64,
            p99: p99.map_or(last, |(&d, _)| d),
            max: self.delay_max,
        }
    }

    /// The largest delay of a gradient that has counted.
    pub(super) fn delay_max(&self) -> u64 {
        self.delay_max
    }

    /// Gradients that have counted.
    pub(super) fn n_counted(&self) -> u64 {
        self.delays.values().sum()
    }
}

/// The history as rows of a table: a long one has many.
mod rows {
    use std::collections::BTreeMap;

    use ps_common::report::HistoryEntry;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::core::saved::exact;

    #[derive(Serialize, Deserialize)]
    struct Row(u64, f64, #[serde(with = "exact")] Option<f64>, f64);

    pub(super) fn serialize<S: Serializer>(
        history: &BTreeMap<u64, HistoryEntry>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer
            .collect_seq(history.values().map(|e| Row(e.version, e.round, Some(e.loss), e.seconds)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<u64, HistoryEntry>, D::Error> {
        let entry = |Row(version, round, loss, seconds)| {
            let loss =
                loss.ok_or_else(|| serde::de::Error::custom("a measurement without loss"))?;
            Ok((version, HistoryEntry { round, version, loss, seconds }))
        };
        Vec::<Row>::deserialize(deserializer)?.into_iter().map(entry).collect()
    }
}

/// Rejections as a list: JSON has no keys of two parts.
mod counts {
    use std::collections::BTreeMap;

    use ps_common::ErrorCode;
    use serde::{Deserialize, Deserializer, Serializer};

    type Counts = BTreeMap<(Option<u32>, ErrorCode), u64>;

    pub(super) fn serialize<S: Serializer>(
        counts: &Counts,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(counts.iter().map(|((rank, code), n)| (rank, code.name(), n)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Counts, D::Error> {
        let list = Vec::<(Option<u32>, String, u64)>::deserialize(deserializer)?;
        let entry = |(rank, name, n): (Option<u32>, String, u64)| {
            let code = ErrorCode::from_name(&name);
            let unknown = || serde::de::Error::custom(format!("no code is called {name}"));
            Ok(((rank, code.ok_or_else(unknown)?), n))
        };
        list.into_iter().map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_summed_up() {
        let mut record = Record::default();
        assert_eq!(record.gradient_delay(), GradientDelay::default());
        for delay in std::iter::repeat_n(1, 98).chain([0, 5]) {
            record.delayed(delay);
        }
        let delay = record.gradient_delay();
        assert_eq!(delay.histogram, [1, 98, 0, 0, 0, 1]);
        assert_eq!((delay.mean, delay.p99, delay.max), (1.03, 1, 5));
    }

    #[test]
    fn rejections_are_counted_not_listed() {
        let mut record = Record::default();
        for _ in 0..3 {
            record.rejected(1.0, Some(2), ErrorCode::NonFinite);
        }
        let events = record.events();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].detail, "NON_FINITE (3 times)");
    }
}

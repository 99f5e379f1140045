//! What of the core outlives its process: taken for a checkpoint, put back at a start (rules D1 to
//! D6). Pure data; how it is written is the caller's affair. How the job goes on from there stands in
//! `resuming.rs`.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use ps_common::calls::{PushHeader, WorkerState};
use ps_common::job::{Aggregate, Fingerprint, JobState, Metrics, Mode, WorkerStats};
use ps_common::tables::Tables;
use ps_common::{Dtype, Error};
use serde::{Deserialize, Serialize};

use super::checkpoints::{Captures, Facts};
use super::joining::mismatch;
use super::measuring::Best;
use super::members::{Holder, Rank, add};
use super::record::Record;
use super::{Config, Core, Floor, Job, Time};

/// Everything that has counted, and nothing that has not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    mode: Mode,
    aggregate: Aggregate,
    dtype: Dtype,
    tables: Tables,
    fingerprint: Fingerprint,
    boot: u32,
    version: u64,
    /// theta is final.
    finishing: bool,
    /// Since the first join.
    elapsed: Duration,
    ranks: Vec<Seat>,
    /// Gradients that ranks of an earlier number of workers have counted.
    counted_before: u64,
    observers_ever: u32,
    statistics: BTreeSet<u32>,
    stop: Option<String>,
    best: Best,
    record: Record,
    facts: Facts,
}

/// One rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Seat {
    state: WorkerState,
    incarnation: u64,
    program: String,
    address: String,
    clock: u64,
    counted: Range<u64>,
    skipped: u64,
    dropped: u64,
    dropped_before: u64,
    /// Of all lives.
    stats: WorkerStats,
    final_metrics: Option<Metrics>,
    n_samples: u64,
}

/// A gradient that an update counts, as the journal keeps it beside the gradient itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    /// Its name and facts.
    pub header: PushHeader,
    /// Checksum of the gradient's bytes.
    pub digest: u32,
}

impl Saved {
    /// Of theta.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Of theta.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Of theta's elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// K, as it was.
    pub fn n_workers(&self) -> u32 {
        self.ranks.len() as u32
    }

    /// What all workers had to agree on.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Since the first join.
    pub fn elapsed_seconds(&self) -> f64 {
        self.elapsed.as_secs_f64()
    }

    /// The life of the server that took it (`Config::boot`).
    pub fn boot(&self) -> u32 {
        self.boot
    }

    /// Ranks whose feature statistics were in. They count as in after a restore with the same number
    /// of workers, and are not asked for again.
    pub fn statistics(&self) -> &BTreeSet<u32> {
        &self.statistics
    }
}

impl Seat {
    fn of(rank: &Rank) -> Self {
        let holder = rank.holder.as_ref();
        let text = |of: fn(&Holder) -> &String| holder.map_or(String::new(), |h| of(h).clone());
        Self {
            state: rank.state,
            incarnation: holder.map_or(0, |h| h.incarnation),
            program: text(|h| &h.program),
            address: text(|h| &h.address),
            clock: rank.clock,
            counted: rank.counted.clone(),
            skipped: rank.skipped,
            dropped: rank.dropped,
            dropped_before: rank.dropped_before,
            stats: rank.all_stats(),
            final_metrics: rank.final_metrics,
            n_samples: rank.n_samples,
        }
    }

    /// The rank in a new life of the server: without a connection; its lease begins with the job.
    fn restored(self) -> Rank {
        let unheard = Holder::unheard(self.incarnation);
        let holder = (self.incarnation > 0).then_some(Holder {
            program: self.program,
            address: self.address,
            ..unheard
        });
        Rank {
            state: self.state,
            holder,
            restored: Some(self.clock),
            clock: self.clock,
            counted: self.counted,
            skipped: self.skipped,
            dropped: self.dropped,
            dropped_before: self.dropped_before,
            stats_before: self.stats,
            final_metrics: self.final_metrics,
            n_samples: self.n_samples,
            ..Rank::vacant()
        }
    }
}

impl Core {
    /// What a checkpoint of this moment has to hold; `None` before the first join. Gradients that
    /// have not counted are not in it: their workers send them again. A failed job is saved as it
    /// ran, so that it can be taken up again.
    pub fn save(&self, now: Time) -> Option<Saved> {
        let job = self.job.as_ref()?;
        let mut record = self.record.clone();
        let elapsed = match record.finished_seconds {
            Some(seconds) => Duration::try_from_secs_f64(seconds).unwrap_or_default(),
            None => job.elapsed(now),
        };
        let finishing = matches!(self.state, JobState::Finishing | JobState::Done);
        if !finishing {
            record.finished_seconds = None;
        }
        Some(Saved {
            mode: self.config.consistency.mode(),
            aggregate: self.config.aggregate,
            dtype: job.dtype,
            tables: job.tables.clone(),
            fingerprint: job.fingerprint.clone(),
            boot: self.config.boot,
            version: self.version,
            finishing,
            elapsed,
            ranks: self.members.ranks.iter().map(Seat::of).collect(),
            counted_before: self.members.counted_before,
            observers_ever: self.members.observers_ever,
            statistics: self.statistics.clone(),
            stop: self.stop.clone(),
            best: self.best,
            record,
            facts: self.captures.facts,
        })
    }

    /// The job of a checkpoint, in a new life of the server. Every rank that was held keeps its
    /// lease for another term (rule D5), and every old incarnation has to join again, which tells
    /// it where its clock stands now. `config.boot` is larger than in any life before.
    ///
    /// Where the number of workers is another one, all ranks begin anew at the clock that the
    /// version means (version / K).
    ///
    /// # Errors
    /// CONFIG_MISMATCH if the mode, the aggregation or the element type is another one, with both
    /// values.
    pub fn restore(config: Config, dtype: Dtype, saved: Saved) -> Result<Self, Error> {
        let mode = config.consistency.mode();
        if mode != saved.mode {
            return Err(differs("mode", saved.mode, mode));
        }
        if config.aggregate != saved.aggregate {
            return Err(differs("aggregate", saved.aggregate, config.aggregate));
        }
        if dtype != saved.dtype {
            return Err(differs("dtype", saved.dtype, dtype));
        }
        let mut core = Self::new(config, dtype);
        core.state = if saved.finishing { JobState::Finishing } else { JobState::Running };
        core.version = saved.version;
        core.stop = saved.stop;
        core.best = saved.best;
        core.record = saved.record;
        core.members.observers_ever = saved.observers_ever;
        core.members.counted_before = saved.counted_before;
        // It was not counted yet when it was taken; a life that took none came back, too.
        let facts = Facts {
            checkpoints: saved.facts.checkpoints + 1,
            restarts: saved.facts.restarts
                + u64::from(core.config.boot.saturating_sub(saved.boot).max(1)),
            ..saved.facts
        };
        core.captures = Captures::restored(facts, saved.version);
        if saved.ranks.len() == core.members.ranks.len() {
            core.members.ranks = saved.ranks.into_iter().map(Seat::restored).collect();
            core.statistics = saved.statistics;
        } else {
            core.begin_with_other_ranks(saved.ranks);
        }
        core.job = Some(Job {
            fingerprint: saved.fingerprint,
            tables: saved.tables,
            dtype: saved.dtype,
            began: Time::ZERO,
            elapsed_before: saved.elapsed,
        });
        core.reopen_round();
        core.floor = core.reached();
        Ok(core)
    }

    /// A restored job, before its life begins, with another number of workers: all ranks begin anew
    /// at the clock that the version means (version / K).
    #[must_use]
    pub fn dealt_anew(mut self, config: Config) -> Self {
        let old = self.members.ranks.iter().map(Seat::of).collect();
        self.members.ranks = vec![Rank::vacant(); config.n_workers as usize];
        self.statistics.clear();
        self.config = config;
        self.begin_with_other_ranks(old);
        self.reopen_round();
        self.floor = self.reached();
        self
    }

    /// The job has another number of workers than before: none of the old ranks means anything any
    /// more, but what they did has counted.
    fn begin_with_other_ranks(&mut self, old: Vec<Seat>) {
        let per_round =
            self.config.consistency.mode().updates_per_round(self.config.n_workers).max(1);
        let clock = self.version / per_round;
        let metrics = old.iter().map(|seat| seat.final_metrics);
        if let Some(all) = metrics.collect::<Option<Vec<_>>>() {
            self.record.final_train = self.record.final_train.or(Metrics::merge(all));
        }
        let n_workers = self.members.ranks.len();
        for seat in &mut self.members.ranks {
            // Nobody has counted what lies before.
            *seat = Rank { clock, counted: clock..clock, skipped: clock, ..Rank::vacant() };
            seat.dropped_before = clock;
            seat.restored = self.config.consistency.has_rounds().then_some(clock);
        }
        for (place, seat) in old.iter().enumerate() {
            self.members.counted_before += seat.clock - seat.skipped;
            // The totals over all ranks stay what they were.
            let rank = &mut self.members.ranks[place % n_workers];
            rank.stats_before = add(&rank.stats_before, &seat.stats);
            rank.dropped += seat.dropped;
        }
    }

    /// What invariants may find from before: the options may have been others then.
    pub(super) fn reached(&self) -> Floor {
        let clock = self.members.ranks.iter().map(|seat| seat.clock).max().unwrap_or(0);
        Floor { clock, delay: self.record.delay_max() }
    }
}

/// Numbers that JSON has no words for: a diverging run's loss is one.
pub(super) mod exact {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Number {
        Finite(f64),
        Other(String),
    }

    pub(in crate::core) fn serialize<S: Serializer>(
        number: &Option<f64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let told = |x: f64| match x.is_finite() {
            true => Number::Finite(x),
            false => Number::Other(x.to_string()),
        };
        number.map(told).serialize(serializer)
    }

    pub(in crate::core) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<f64>, D::Error> {
        match Option::<Number>::deserialize(deserializer)? {
            None => Ok(None),
            Some(Number::Finite(x)) => Ok(Some(x)),
            Some(Number::Other(text)) => text.parse().map(Some).map_err(serde::de::Error::custom),
        }
    }
}

fn differs(field: &str, want: impl ToString, got: impl ToString) -> Error {
    let (want, got) = (want.to_string(), got.to_string());
    let mut error = mismatch(field, &want, &got);
    error.message = format!(
        "`{field}` is `{want}` in the checkpoint, `{got}` by this server's options; start it with \
         --{field} {want}, or with another --checkpoint-dir"
    );
    error
}

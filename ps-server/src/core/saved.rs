//! What of the core outlives its process: taken for a checkpoint, put back at a start (rules D1 to
//! D5). Pure data; how it is written is the caller's affair.

use ps_common::calls::PushHeader;
use ps_common::tables::Tables;
use ps_common::{Dtype, Error};
use serde::{Deserialize, Serialize};

use super::{Config, Core, Effect, Order, Time};

/// Everything that has counted, and nothing that has not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    version: u64,
    tables: Tables,
    dtype: Dtype,
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
}

impl Core {
    /// What a checkpoint of this moment has to hold; `None` before the first join. Gradients that
    /// have not counted are not in it: their workers send them again. A failed job is saved as it
    /// ran, so that it can be taken up again.
    pub fn save(&self, now: Time) -> Option<Saved> {
        let _ = now;
        unimplemented!()
    }

    /// The job of a checkpoint, in a new life of the server. Every rank that was held keeps its
    /// lease for another term (rule R6), and every old incarnation has to join again, which tells
    /// it where its clock stands now. `config.boot` is larger than in any life before.
    ///
    /// Where the number of workers is another one, all ranks begin anew at the clock that the
    /// version means (version / K).
    ///
    /// # Errors
    /// CONFIG_MISMATCH if the mode, the aggregation or the element type is another one, with both
    /// values.
    pub fn restore(config: Config, dtype: Dtype, saved: Saved) -> Result<Self, Error> {
        let _ = (config, dtype, saved);
        unimplemented!()
    }

    /// What an update that was ordered will count, in order of its parts; for the journal.
    pub fn counted_by(&self, order: &Order) -> Vec<Counted> {
        let _ = order;
        unimplemented!()
    }

    /// Counts the next update as the journal has it. Only after [`Core::restore`], before any step.
    ///
    /// # Errors
    /// In words, if it does not follow from the state: a rank that does not exist, a clock that is
    /// behind. A journal of this program has none such.
    pub fn replay(&mut self, counted: &[Counted]) -> Result<(), String> {
        let _ = counted;
        unimplemented!()
    }

    /// Begins the restored job's life; gives what follows at once, as [`Core::step`] does: a job
    /// that had ended is concluded again.
    pub fn resume(&mut self, now: Time) -> Vec<Effect> {
        let _ = now;
        unimplemented!()
    }
}

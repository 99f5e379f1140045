//! An update of theta that is on several servers: all of them compute their parts, and it is in force on
//! all or on none (rule M2).

use super::Driver;
use crate::applier::{Fresh, Measured};
use crate::core::{Order, Unapplied};
use crate::group::{Group, Lost};

impl Driver {
    /// The followers prepare their parts since the core gave the order; waits for all of them.
    pub(super) fn update_together(&self, group: &Group, order: &Order) -> Result<Fresh, Unapplied> {
        let own = match self.applier.optimizer().clip_norm {
            None => self.applier.prepare(order),
            Some(_) => {
                let (measured, clips) = self.measure_together(group, order)?;
                group.clip(&clips);
                self.applier.prepare_clipped(&measured, &clips)
            }
        };
        let prepared = all_well(own, group.prepared().map_err(not_applied)?)?;
        Ok(self.applier.commit(prepared))
    }

    /// This server's part of an update, and how all parts of it are clipped.
    fn measure_together(
        &self,
        group: &Group,
        order: &Order,
    ) -> Result<(Measured, Vec<Option<f64>>), Unapplied> {
        let own = self.applier.measure(order);
        let n_steps = order.combine.n_steps(order.parts.len());
        let (others, overflow) = group.squares(n_steps).map_err(not_applied)?;
        let own = all_well(own, overflow)?;
        let clips = self.applier.clips(&own, &others);
        let clips = clips.map_err(|misfit| not_applied(group.distrust(&misfit)))?;
        Ok((own, clips))
    }
}

/// What this server has made of an update, if no other says that a key of it would overflow.
fn all_well<T>(own: Result<T, Unapplied>, overflow: Option<u64>) -> Result<T, Unapplied> {
    match (own, overflow) {
        (Ok(_), Some(key)) => Err(Unapplied::Overflow { key }),
        (Err(Unapplied::Overflow { key }), Some(other)) => {
            Err(Unapplied::Overflow { key: key.min(other) })
        }
        (own, _) => own,
    }
}

fn not_applied(lost: Lost) -> Unapplied {
    Unapplied::NotWritten { what: lost.to_string() }
}

//! Updates without locks (rules H1 to H3): every gradient is an update at once, whatever else is
//! being applied.
//!
//! Recht, Re, Wright, Niu 2011, "Hogwild!: A Lock-Free Approach to Parallelizing Stochastic Gradient
//! Descent", section 3. Here is only the order of things: who may begin, and which update has ended.
//! What concurrent updates do to theta is the store's affair.

use super::consistency::Order;
use super::{CallId, Core, Effect};

impl Core {
    /// Begins an update by each gradient that waits for one (rule H1).
    pub(super) fn start_all(&mut self, out: &mut Vec<Effect>) {
        while let Some(rank) = self.queue.pop_front() {
            self.applying.push(rank);
            out.push(Effect::Update(Order::alone(self.pending[&rank].gradient)));
        }
    }

    /// The ranks behind the update called `name`, which has ended; others may still be under way.
    ///
    /// # Panics
    /// If no such update is.
    pub(super) fn end_update(&mut self, name: CallId) -> Vec<u32> {
        let is_named = |rank: &u32| self.pending.get(rank).is_some_and(|p| p.gradient == name);
        let place = self.applying.iter().position(is_named);
        let place = place.expect("an update ends that was never begun");
        if self.config.consistency.updates_overlap() {
            return vec![self.applying.remove(place)];
        }
        std::mem::take(&mut self.applying)
    }
}

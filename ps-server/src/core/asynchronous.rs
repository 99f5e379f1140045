//! Asynchronous updates (rules A1 to A3): every gradient is an update of its own, in order of
//! arrival.
//!
//! Dean et al. 2012, "Large Scale Distributed Deep Networks", section 4.1 (Downpour SGD).

use super::{Core, Effect};

impl Core {
    /// Starts the next gradient's update, if one waits.
    pub(super) fn apply_next(&mut self, out: &mut Vec<Effect>) {
        let Some(rank) = self.queue.pop_front() else { return };
        let pending = &self.pending[&rank];
        self.applying = vec![rank];
        out.push(Effect::Update { parts: vec![(pending.gradient, 1.0)] });
    }
}

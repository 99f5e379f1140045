//! What the update rule remembers of each element, chunk by chunk.
//!
//! Kept twice, like theta itself: an update writes the next state beside the one in force, and only
//! if all of theta is finite do they change places. That costs a second state in memory (theta's
//! size for momentum, twice that for Adam and FTRL), and saves undoing: nothing of a failed update
//! is left. While somebody holds a captured state, there is a third.

use std::ops::Range;

use bytes::Bytes;
use ps_common::Element;
use ps_common::check::first_non_finite;
use ps_common::shared::Shared;

use super::motion::runs_of;
use crate::numeric::{Rule, SLOTS_MAX, Slots, Step, Turn};

/// The state of a chunk.
#[derive(Debug)]
pub(super) struct State<T> {
    n_slots: usize,
    now: [Shared<T>; SLOTS_MAX],
    /// Until it is written somebody may hold it, who captured it when it was in force.
    next: [Shared<T>; SLOTS_MAX],
}

impl<T: Element> State<T> {
    /// Before the first step at the `theta` of a chunk that begins at `key`.
    pub(super) fn start(
        rule: &Rule,
        step: &Step,
        (theta, key): (&[T], usize),
        penalized: &[Range<usize>],
    ) -> Self {
        let n_slots = rule.slots().len();
        let zeros = |slot| vec![T::ZERO; if slot < n_slots { theta.len() } else { 0 }];
        let mut state = Self::from_slots(n_slots, std::array::from_fn(zeros));
        for (keys, penalized) in runs_of(penalized, key..key + theta.len()) {
            let run = keys.start - key..keys.end - key;
            let slots = slots_of(&mut state.now, n_slots, run.clone());
            rule.start(&theta[run], slots, &Step { penalized, ..*step });
        }
        state
    }

    /// With `slots` in force; those beyond `n_slots` are empty.
    pub(super) fn from_slots(n_slots: usize, slots: [Vec<T>; SLOTS_MAX]) -> Self {
        let now = slots.map(Shared::from);
        let next = std::array::from_fn(|slot| Shared::zeros(now[slot].len()));
        Self { n_slots, now, next }
    }

    /// Lets the next state of some elements be the one in force.
    pub(super) fn stay(&mut self, block: Range<usize>) {
        for (next, now) in self.turns(block) {
            next.copy_from_slice(now);
        }
    }

    /// The next state of some elements, to be written, and the one in force.
    pub(super) fn turns(&mut self, block: Range<usize>) -> [Turn<'_, T>; SLOTS_MAX] {
        let used = self.next.iter_mut().zip(&self.now).take(self.n_slots);
        let mut turns =
            used.map(|(next, now)| (&mut next.renewed()[block.clone()], &now[block.clone()]));
        std::array::from_fn(|_| turns.next().unwrap_or_default())
    }

    /// The next state of some elements, after it was written.
    pub(super) fn next(&mut self, block: Range<usize>) -> Slots<'_, T> {
        slots_of(&mut self.next, self.n_slots, block)
    }

    /// The first of some elements whose next state is not finite, counted from the first of them.
    pub(super) fn first_non_finite(&self, block: &Range<usize>) -> Option<usize> {
        let slots = self.next.iter().take(self.n_slots);
        slots.filter_map(|slot| first_non_finite(&slot[block.clone()])).min()
    }

    /// What was next is in force.
    pub(super) fn commit(&mut self) {
        std::mem::swap(&mut self.now, &mut self.next);
    }

    /// The bytes of a slot in force, without a copy.
    pub(super) fn bytes(&self, slot: usize) -> Bytes {
        self.now[slot].bytes()
    }

    /// A slot in force.
    pub(super) fn slot(&self, slot: usize) -> &[T] {
        &self.now[slot]
    }

    /// A slot in force, to be written where it lies.
    pub(super) fn slot_mut(&mut self, slot: usize) -> &mut Shared<T> {
        &mut self.now[slot]
    }
}

fn slots_of<T: Element>(
    slots: &mut [Shared<T>; SLOTS_MAX],
    n_slots: usize,
    block: Range<usize>,
) -> Slots<'_, T> {
    let mut used = slots.iter_mut().take(n_slots);
    std::array::from_fn(|_| {
        used.next().map_or(&mut [][..], |slot| &mut unshared(slot)[block.clone()])
    })
}

fn unshared<T: Element>(slot: &mut Shared<T>) -> &mut [T] {
    slot.unshared().expect("nobody can hold it yet")
}

//! Updates of some rows: these are taken out of theta, moved, and written back in place.
//!
//! A chunk is written where it lies, unless somebody reads it: then a copy of it takes its place.

use ps_common::Element;
use ps_common::rows::{self, Rows};
use ps_common::shared::Shared;

use super::{Motion, Theta};
use crate::numeric::{SLOTS_MAX, Step};

/// Some rows of theta, and what its rule remembers of them, as an update leaves them; not in force yet.
#[derive(Debug)]
pub(in crate::table) struct Moved<T> {
    rows: Vec<Rows>,
    theta: Vec<T>,
    slots: [Vec<T>; SLOTS_MAX],
}

impl<T: Element> Theta<T> {
    /// Computes `rows`, which are in order, as `gradient` moves them. If that would overflow one, or what the
    /// rule remembers of it, the error is the first such key.
    ///
    /// # Panics
    /// If a row is beyond theta, or the gradient is not one of these rows.
    pub(in crate::table) fn prepare_rows(
        &mut self,
        rows: Vec<Rows>,
        gradient: &[T],
        motion: &Motion<'_>,
    ) -> Result<Moved<T>, usize> {
        let Self { now, work, chunk_len, .. } = self;
        let chunks = now.settle();
        work.start(chunks, motion);
        let n_slots = motion.optimizer.rule.slots().len();
        let of_slot = |slot: usize| match slot < n_slots {
            true => gather(&rows, *chunk_len, |chunk| work.states[chunk].slot(slot)),
            false => Vec::new(),
        };
        let theta = gather(&rows, *chunk_len, |chunk| &chunks[chunk][..]);
        let mut moved = Moved { theta, slots: std::array::from_fn(of_slot), rows };
        let step = motion.optimizer.at(motion.lr, motion.factor, work.n_steps);
        match moved.step(gradient, motion, &step) {
            true => Ok(moved),
            false => Err(moved.first_non_finite().expect("the step has seen it")),
        }
    }

    /// Puts rows in force that [`Theta::prepare_rows`] gave; theta has not moved since.
    pub(in crate::table) fn commit_rows(&mut self, moved: &Moved<T>) {
        let Moved { rows, theta, slots } = moved;
        let (chunks, states) = (self.now.settle(), &mut self.work.states);
        scatter(rows, theta, self.chunk_len, chunks, |chunk| chunk);
        for (slot, values) in slots.iter().enumerate().filter(|(_, values)| !values.is_empty()) {
            scatter(rows, values, self.chunk_len, states, |state| state.slot_mut(slot));
        }
        self.bound = None;
        self.work.n_steps += 1;
    }
}

impl<T: Element> Moved<T> {
    /// Gives whether all is finite.
    fn step(&mut self, gradient: &[T], motion: &Motion<'_>, step: &Step) -> bool {
        let Self { rows, theta, slots } = self;
        let mut is_finite = true;
        let mut end = 0;
        for of_table in &*rows {
            let Some(first) = of_table.keys().next() else { continue };
            let place = end..end + of_table.n_elements();
            end = place.end;
            let penalized = motion.penalized.iter().any(|keys| keys.contains(&first));
            let slots = slots.each_mut().map(|slot| match slot.is_empty() {
                true => &mut [][..],
                false => &mut slot[place.clone()],
            });
            let (theta, gradient) = (&mut theta[place.clone()], &gradient[place]);
            let rule = &motion.optimizer.rule;
            is_finite &= rule.step(theta, gradient, slots, &Step { penalized, ..*step });
        }
        is_finite
    }

    fn first_non_finite(&self) -> Option<usize> {
        let all = std::iter::once(&self.theta).chain(&self.slots);
        let place = all.filter_map(|values| ps_common::check::first_non_finite(values)).min()?;
        rows::elements(&self.rows).nth(place)
    }
}

/// The elements of rows out of chunks of `chunk_len`.
fn gather<'a, T: Element>(
    rows: &[Rows],
    chunk_len: usize,
    chunk: impl Fn(usize) -> &'a [T],
) -> Vec<T> {
    let mut values = Vec::with_capacity(rows::n_elements(rows));
    rows::visit(rows, (chunk_len, 1), chunk, |piece| values.extend_from_slice(piece));
    values
}

/// Writes the elements of rows into chunks of `chunk_len`.
fn scatter<T: Element, C>(
    rows: &[Rows],
    values: &[T],
    chunk_len: usize,
    chunks: &mut [C],
    memory: impl Fn(&mut C) -> &mut Shared<T>,
) {
    let mut rest = values;
    let mut pieces = rows::pieces(rows, chunk_len).peekable();
    while let Some((chunk, first)) = pieces.next() {
        let open = memory(&mut chunks[chunk]).owned();
        let mut place = Some(first);
        while let Some(to) = place {
            let (piece, others) = rest.split_at(to.len());
            open[to].copy_from_slice(piece);
            rest = others;
            place = pieces.next_if(|(next, _)| *next == chunk).map(|(_, to)| to);
        }
    }
}

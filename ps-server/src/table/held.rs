//! Gradients that an update keeps until it is computed, and the memory that they leave behind.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::Mutex;
use ps_common::Dtype;

use super::gradient::Gradient;

/// Gradients that are kept for their memory, at most.
const SPARES_MAX: usize = 8;

/// Gradients that nobody uses now, kept for their memory.
#[derive(Debug, Default)]
pub struct Spares(Mutex<Vec<Gradient>>);

impl Spares {
    /// An empty gradient, in memory of an earlier one if there is some.
    pub fn empty(&self, dtype: Dtype) -> Gradient {
        let spare = self.0.lock().pop();
        Gradient::empty(dtype, spare)
    }

    /// Takes a gradient back.
    pub fn recycle(&self, gradient: Gradient) {
        let mut spares = self.0.lock();
        if spares.len() < SPARES_MAX {
            spares.push(gradient);
        }
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// Gradients of an update with their weights; let go, their memory goes home.
#[derive(Debug)]
pub struct Held {
    parts: Vec<(Gradient, f64)>,
    home: Arc<Spares>,
}

impl Held {
    /// `parts`, whose memory goes to `home` in the end.
    pub fn new(parts: Vec<(Gradient, f64)>, home: &Arc<Spares>) -> Self {
        Self { parts, home: Arc::clone(home) }
    }
}

impl Deref for Held {
    type Target = [(Gradient, f64)];

    fn deref(&self) -> &[(Gradient, f64)] {
        &self.parts
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut [(Gradient, f64)] {
        &mut self.parts
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.parts.drain(..).for_each(|(gradient, _)| self.home.recycle(gradient));
    }
}

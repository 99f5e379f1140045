//! theta and what the update rule remembers, taken out for a checkpoint and put back.
//!
//! Taken out without a copy: updates go on and leave what was captured as it is. Put back piece by
//! piece, as a file is read. Knows the sections' names and lengths, not the file.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use bytes::Bytes;
use ps_common::partition::Partition;
use ps_common::tables::Tables;
use ps_common::{Dtype, Element};

use super::norm::Grid;
use super::state::State;
use super::store::{AnyTheta, Snapshot, Store, penalized};
use super::theta::Theta;
use crate::numeric::Optimizer;

const THETA: &str = "theta";
/// What a slot's name is preceded by.
const OPTIMIZER: &str = "optimizer/";
/// How many steps the slots have seen: more than the version where gradients are applied in turn.
const N_STEPS: &str = "n_steps";

/// One version of theta and of what its update rule remembers, immutable.
#[derive(Debug, Clone)]
pub struct Captured {
    theta: Arc<Snapshot>,
    slots: Vec<(&'static str, Vec<Bytes>)>,
}

impl Captured {
    /// theta without what any rule remembers.
    pub(crate) fn bare(theta: Arc<Snapshot>) -> Self {
        Self { theta, slots: Vec::new() }
    }

    /// theta; its section is named `theta`.
    pub fn theta(&self) -> &Arc<Snapshot> {
        &self.theta
    }

    /// What the update rule remembers: each slot's name and its bytes, little-endian, in order of
    /// key; last, as `n_steps`, the number of steps that they have seen. Nothing before the first
    /// update, or where the rule remembers nothing. A section is named `optimizer/`, then the name.
    pub fn slots(&self) -> impl Iterator<Item = (&str, &[Bytes])> {
        self.slots.iter().map(|(name, parts)| (*name, &parts[..]))
    }
}

impl Store {
    /// The current version for a checkpoint, without a copy. As long as it is held, there is one
    /// more copy of theta and of what the rule remembers, from the second update on.
    pub fn capture(&self) -> Captured {
        let names = self.optimizer.rule.slots();
        let state = match &self.theta {
            AnyTheta::F32(theta) => theta.state_bytes(names.len()),
            AnyTheta::F64(theta) => theta.state_bytes(names.len()),
        };
        let slots = state.map_or_else(Vec::new, |(n_steps, slots)| {
            let n_steps = vec![Bytes::copy_from_slice(&n_steps.to_le_bytes())];
            names.iter().copied().zip(slots).chain([(N_STEPS, n_steps)]).collect()
        });
        Captured { theta: self.snapshot(), slots }
    }

    /// Begins to put `version` of the keys of `partition` back, as it was captured, in chunks of
    /// `chunk_bytes`, whatever they were before.
    pub fn restoring(
        (tables, partition): (&Tables, Partition),
        dtype: Dtype,
        optimizer: Optimizer,
        chunk_bytes: usize,
        version: u64,
    ) -> Restoring {
        let keys = partition.keys(tables.dim());
        let dim = keys.len();
        let chunk_len = (chunk_bytes / dtype.size_bytes()).max(1);
        let n_slots = optimizer.rule.slots().len();
        let name = |name| format!("{OPTIMIZER}{name}");
        Restoring {
            version,
            optimizer,
            penalized: penalized(tables, &keys),
            keys,
            grid: Grid { dim: tables.dim(), chunk_len },
            parts: match dtype {
                Dtype::F32 => AnyParts::F32(Parts::new(&optimizer, (dim, chunk_len))),
                Dtype::F64 => AnyParts::F64(Parts::new(&optimizer, (dim, chunk_len))),
            },
            n_steps: (n_slots > 0).then(|| Part::new(name(N_STEPS), (1, 1))),
        }
    }
}

/// A store that is being put back, section by section.
#[derive(Debug)]
pub struct Restoring {
    keys: Range<usize>,
    grid: Grid,
    version: u64,
    optimizer: Optimizer,
    penalized: Arc<[Range<usize>]>,
    parts: AnyParts,
    /// None if the rule remembers nothing.
    n_steps: Option<Part<u64>>,
}

#[derive(Debug)]
enum AnyParts {
    F32(Parts<f32>),
    F64(Parts<f64>),
}

#[derive(Debug)]
struct Parts<T> {
    theta: Part<T>,
    slots: Vec<Part<T>>,
}

/// Numbers of one section, as far as they are in.
#[derive(Debug)]
struct Part<T> {
    name: String,
    len: usize,
    chunk_len: usize,
    n_bytes: usize,
    chunks: Vec<Vec<T>>,
}

impl Restoring {
    /// Puts the next bytes of a section behind those that it has; they may be cut anywhere, also
    /// within an element.
    ///
    /// # Errors
    /// If there is no such section for this update rule, or it would be too long.
    pub fn append(&mut self, section: &str, bytes: &[u8]) -> Result<(), String> {
        if let Some(n_steps) = self.n_steps.as_mut().filter(|part| part.name == section) {
            return n_steps.append(bytes);
        }
        let found = match &mut self.parts {
            AnyParts::F32(parts) => parts.find(section).map(|part| part.append(bytes)),
            AnyParts::F64(parts) => parts.find(section).map(|part| part.append(bytes)),
        };
        found.unwrap_or_else(|| {
            let rule = self.optimizer.rule.name();
            Err(format!("section {section:?}: optimizer {rule} has none of this name"))
        })
    }

    /// The store, once all sections are in. Those of the rule may be missing only as a whole, and
    /// only of version 0: then it has not begun.
    ///
    /// # Errors
    /// The first section that is too short, with both lengths.
    pub fn finish(self) -> Result<Store, String> {
        let Self { keys, grid, version, optimizer, penalized, parts, n_steps } = self;
        let (dtype, theta) = match parts {
            AnyParts::F32(parts) => (Dtype::F32, AnyTheta::F32(parts.finish(version, n_steps)?)),
            AnyParts::F64(parts) => (Dtype::F64, AnyTheta::F64(parts.finish(version, n_steps)?)),
        };
        let (dim, first_key) = (keys.len(), keys.start);
        Ok(Store { dim, first_key, grid, dtype, version, theta, optimizer, penalized })
    }
}

impl<T: Element> Parts<T> {
    fn new(optimizer: &Optimizer, shape: (usize, usize)) -> Self {
        let slots = optimizer.rule.slots().iter();
        let slots = slots.map(|slot| Part::new(format!("{OPTIMIZER}{slot}"), shape)).collect();
        Self { theta: Part::new(THETA.to_owned(), shape), slots }
    }

    fn find(&mut self, section: &str) -> Option<&mut Part<T>> {
        std::iter::once(&mut self.theta).chain(&mut self.slots).find(|part| part.name == section)
    }

    fn finish(self, version: u64, n_steps: Option<Part<u64>>) -> Result<Theta<T>, String> {
        let chunk_len = self.theta.chunk_len;
        let theta = self.theta.finish()?;
        let Some(n_steps) = n_steps else {
            return Ok(Theta::restored(chunk_len, theta, (Vec::new(), 0)));
        };
        let is_begun = n_steps.n_bytes > 0 || self.slots.iter().any(|slot| slot.n_bytes > 0);
        if version == 0 && !is_begun {
            return Ok(Theta::restored(chunk_len, theta, (Vec::new(), 0)));
        }
        let n_slots = self.slots.len();
        let slots: Result<Vec<_>, _> = self.slots.into_iter().map(Part::finish).collect();
        let mut slots: Vec<_> = slots?.into_iter().map(Vec::into_iter).collect();
        let n_steps = n_steps.finish()?[0][0];
        let state = |_: &Vec<T>| {
            let mut of_chunk = slots.iter_mut().filter_map(Iterator::next);
            State::from_slots(n_slots, std::array::from_fn(|_| of_chunk.next().unwrap_or_default()))
        };
        let states = theta.iter().map(state).collect();
        Ok(Theta::restored(chunk_len, theta, (states, n_steps)))
    }
}

impl<T: Pod> Part<T> {
    fn new(name: String, (len, chunk_len): (usize, usize)) -> Self {
        Self { name, len, chunk_len, n_bytes: 0, chunks: Vec::new() }
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        let (want, got) = (self.len * size_of::<T>(), self.n_bytes + bytes.len());
        if got > want {
            return Err(format!("section {:?}: want {want} bytes, got at least {got}", self.name));
        }
        while !bytes.is_empty() {
            let place = self.n_bytes % (self.chunk_len * size_of::<T>());
            if place == 0 {
                let len = self.chunk_len.min(self.len - self.chunks.len() * self.chunk_len);
                self.chunks.push(vec![T::zeroed(); len]);
            }
            let chunk = self.chunks.last_mut().expect("pushed at its first byte");
            let free = &mut bytemuck::cast_slice_mut::<T, u8>(chunk)[place..];
            let (now, later) = bytes.split_at(bytes.len().min(free.len()));
            free[..now.len()].copy_from_slice(now);
            self.n_bytes += now.len();
            bytes = later;
        }
        Ok(())
    }

    /// All of it, chunk by chunk.
    fn finish(self) -> Result<Vec<Vec<T>>, String> {
        let (want, got) = (self.len * size_of::<T>(), self.n_bytes);
        match got == want {
            true => Ok(self.chunks),
            false => Err(format!("section {:?}: want {want} bytes, got {got}", self.name)),
        }
    }
}

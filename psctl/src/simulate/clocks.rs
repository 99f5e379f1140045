//! Compute times of rounds without events: what a world's pace says of each gradient, drawn as the
//! events of a server's job draw it.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use super::engine::World;
use super::pace::{Draws, span};
use crate::peers::Links;

/// The workers' clocks. Draws go on from gradient to gradient, so that the n-th of a rank is that of
/// the n-th gradient of the same rank in a job with a server.
pub(super) struct Clocks<'a> {
    world: &'a World,
    /// Counts gradients.
    progress: &'a AtomicU64,
    /// By rank: what is drawn next from, and the seconds computed.
    workers: RefCell<Vec<(Draws, f64)>>,
}

impl<'a> Clocks<'a> {
    pub(super) fn new(
        world: &'a World,
        sim_seed: u64,
        n_workers: u32,
        progress: &'a AtomicU64,
    ) -> Self {
        let workers = (0..n_workers).map(|rank| (Draws::of(sim_seed, rank), 0.0)).collect();
        Self { world, progress, workers: RefCell::new(workers) }
    }

    /// Of the next gradient of `rank`, over `n_rows` rows; to the nanosecond, as virtual time is.
    pub(super) fn compute_seconds(&self, rank: u32, n_rows: u64) -> f64 {
        let (draws, busy) = &mut self.workers.borrow_mut()[rank as usize];
        let seconds = span(self.world.pace.draw(draws, rank, n_rows)).as_secs_f64();
        *busy += seconds;
        self.progress.fetch_add(1, Ordering::Relaxed);
        seconds
    }

    /// Share of so many seconds that each worker did not compute.
    pub(super) fn idle_shares(&self, seconds: f64) -> Vec<f64> {
        let idle = |(_, busy): &(Draws, f64)| {
            if seconds > 0.0 { (1.0 - busy / seconds).clamp(0.0, 1.0) } else { 0.0 }
        };
        self.workers.borrow().iter().map(idle).collect()
    }
}

impl World {
    /// The workers' links, as formulas take them.
    pub(super) fn peer_links(&self) -> Links {
        Links {
            bytes_per_second: self.links.bandwidth / 8.0,
            latency_seconds: self.links.latency.as_secs_f64(),
        }
    }
}

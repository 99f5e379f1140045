//! theta as it goes out with the answers of one step of the core: all of it, or the rows that a call has asked
//! for.

use std::sync::Arc;

use parking_lot::RwLockReadGuard;
use ps_common::rows::Rows;

use crate::applier::{Applier, View};
use crate::core::{Answer, CallId, Effect};
use crate::table::Snapshot;

/// What the answers of one step bring of theta, in the version that the core had then.
pub(super) struct Outgoing<'a> {
    theta: Option<View>,
    /// Whether an answer brings all of theta.
    brings_whole: bool,
    asked: Vec<(CallId, Vec<Rows>)>,
    /// Held while rows are copied, so that none is written meanwhile.
    reading: Option<RwLockReadGuard<'a, ()>>,
    /// The copies.
    rows: Vec<(CallId, Arc<Snapshot>)>,
}

impl<'a> Outgoing<'a> {
    /// To be asked inside the core's lock.
    pub(super) fn with(effects: &[Effect], applier: &'a Applier) -> Self {
        let (mut brings_whole, mut asked) = (false, Vec::new());
        for effect in effects {
            match effect {
                Effect::Reply { call, answer } => match (answer, applier.asked(*call)) {
                    (Answer::Pushed(_) | Answer::Pulled(_), Some(rows)) => {
                        asked.push((*call, rows))
                    }
                    (Answer::Pushed(_) | Answer::Pulled(_), None) => brings_whole = true,
                    _ => {}
                },
                Effect::Keep { .. } => brings_whole = true,
                _ => {}
            }
        }
        // Whoever holds theta without need makes the next update of rows copy its chunks.
        let theta = (brings_whole || !asked.is_empty()).then(|| applier.view()).flatten();
        let reading = (!asked.is_empty()).then(|| applier.reading());
        Self { theta, brings_whole, asked, reading, rows: Vec::new() }
    }

    /// Copies the rows; outside of the core's lock.
    pub(super) fn read(mut self) -> Self {
        if !self.asked.is_empty() {
            let theta = self.theta.as_ref().expect("who pushes or pulls has joined");
            let copied =
                self.asked.drain(..).map(|(call, rows)| (call, Arc::new(theta.rows(&rows))));
            self.rows = copied.collect();
        }
        if !self.brings_whole {
            self.theta = None;
        }
        self.reading = None;
        self
    }

    /// All of theta.
    ///
    /// # Panics
    /// If nobody wanted it.
    pub(super) fn whole(&self) -> Arc<Snapshot> {
        let theta = self.theta.as_ref();
        theta.expect("calls about theta are refused before there is one").snapshot()
    }

    /// What the answer to a call brings.
    ///
    /// # Panics
    /// As [`Outgoing::whole`].
    pub(super) fn of(&mut self, call: CallId) -> Arc<Snapshot> {
        match self.rows.iter().position(|(of, _)| *of == call) {
            Some(place) => self.rows.swap_remove(place).1,
            None => self.whole(),
        }
    }
}

//! The observer of a simulation: measures the objective on published thetas, at no virtual cost.
//!
//! It joins the real core as an observer does, and what it measures becomes the report's history.

use std::sync::Arc;

use ps_common::calls::{Caller, Evaluation};
use ps_common::job::Metrics;
use ps_server::table::Snapshot;
use ps_worker::model::{Model, Real};
use ps_worker::samples::Samples;

use super::queue::Time;
use super::worker::is_finite;

/// The rows that are measured on, shared by all runs.
pub(super) struct Rows<T> {
    pub(super) model: Model,
    pub(super) train: Samples<T>,
    pub(super) test: Option<Samples<T>>,
}

/// An observer.
pub(super) struct Watch<'a, T> {
    rows: &'a Rows<T>,
    /// Versions between measurements; `None`: only the final theta is measured.
    every: Option<u64>,
    next: u64,
    /// When the job began, and as whom it was joined.
    joined: Option<(Time, Caller)>,
}

impl<'a, T: Real> Watch<'a, T> {
    pub(super) fn new(rows: &'a Rows<T>, every: Option<u64>) -> Self {
        Self { rows, every, next: 0, joined: None }
    }

    /// It has been let in.
    pub(super) fn join(&mut self, now: Time, caller: Caller) {
        self.joined = Some((now, caller));
    }

    /// As whom, while it is in the job.
    pub(super) fn caller(&self) -> Option<Caller> {
        self.joined.map(|(_, caller)| caller)
    }

    /// It has said its last word.
    pub(super) fn leave(&mut self) -> Option<Caller> {
        self.joined.take().map(|(_, caller)| caller)
    }

    /// The measurement of this theta, if it is due or the last one and can be told in numbers.
    pub(super) fn measure(
        &mut self,
        now: Time,
        theta: &Arc<Snapshot>,
        r#final: bool,
    ) -> Option<Evaluation> {
        let (began, caller) = self.joined?;
        if !r#final {
            let every = self.every.filter(|_| theta.version >= self.next)?;
            self.next = theta.version + every;
        }
        let values = theta.values::<T>();
        let train = self.rows.model.metrics(&values, &self.rows.train);
        let test = self.rows.test.as_ref().filter(|_| r#final);
        let test: Option<Metrics> = test.map(|rows| self.rows.model.metrics(&values, rows));
        let seconds = (now - began).as_secs_f64();
        is_finite(&train).then_some(Evaluation {
            caller,
            version: theta.version,
            seconds,
            train,
            test: test.filter(is_finite),
            r#final,
        })
    }
}

//! An update at a server that decides nothing: computed beside theta, clipped as partition 0 says, in
//! force when it says so (rule M10).

use std::sync::Arc;

use ps_common::Error;
use ps_common::job::Combine;
use ps_common::partition::{Joint, Word};

use super::life::UnderWay;
use super::{Follower, Next, StreamId, astray, life_in};
use crate::core::Unapplied;

impl Follower {
    pub(super) fn prepare(&self, stream: StreamId, joint: &Joint) -> Result<Next, Error> {
        check_combine(joint)?;
        let (applier, order) = {
            let mut state = self.of_stream(stream)?;
            let life = life_in(&mut state)?;
            life.theta()?;
            if life.under_way.is_some() {
                return Err(astray("Prepare, and an update is under way already"));
            }
            (Arc::clone(&life.applier), life.order(joint)?)
        };
        // Outside of the lock: meanwhile workers stage and take.
        let made = match self.spec.optimizer.clip_norm {
            None => applier.prepare(&order).map(UnderWay::Prepared),
            Some(_) => applier.measure(&order).map(UnderWay::Measured),
        };
        self.proceed(stream, made)
    }

    pub(super) fn clip(&self, stream: StreamId, clips: &[Option<f64>]) -> Result<Next, Error> {
        let (applier, measured) = {
            let mut state = self.of_stream(stream)?;
            let life = life_in(&mut state)?;
            let Some(UnderWay::Measured(measured)) = life.under_way.take() else {
                return Err(astray("Clip without an update whose squares were told"));
            };
            (Arc::clone(&life.applier), measured)
        };
        let (got, n_steps) = (clips.len(), measured.squares().len());
        if got != n_steps {
            return Err(astray(&format!("Clip has {got} factors for {n_steps} steps")));
        }
        let made = applier.prepare_clipped(&measured, clips).map(UnderWay::Prepared);
        self.proceed(stream, made)
    }

    /// An update has come so far, or would overflow.
    fn proceed(&self, stream: StreamId, made: Result<UnderWay, Unapplied>) -> Result<Next, Error> {
        let next = match &made {
            Ok(UnderWay::Measured(measured)) => Next::TellSquares(measured.squares().to_vec()),
            Ok(UnderWay::Prepared(_)) => Next::Say(Word::Prepared(None)),
            Err(Unapplied::Overflow { key }) => Next::Say(Word::Prepared(Some(*key))),
            Err(Unapplied::NotWritten { what }) => return Err(astray(what)),
        };
        let mut state = self.of_stream(stream)?;
        life_in(&mut state)?.under_way = made.ok();
        Ok(next)
    }

    pub(super) fn commit(&self, stream: StreamId) -> Result<Next, Error> {
        let mut state = self.of_stream(stream)?;
        let life = life_in(&mut state)?;
        let Some(UnderWay::Prepared(pending)) = life.under_way.take() else {
            return Err(astray("Commit without an update prepared"));
        };
        life.applier.publish(life.applier.commit(pending));
        Ok(Next::Nothing)
    }
}

/// There must be enough to combine.
fn check_combine(joint: &Joint) -> Result<(), Error> {
    let n_parts = joint.parts.len() as u64;
    let enough = match joint.combine {
        Combine::Sum | Combine::InTurn => true,
        Combine::Median => n_parts > 0,
        Combine::TrimmedMean { k } => n_parts > 2 * u64::from(k),
    };
    match enough {
        true => Ok(()),
        false => Err(astray(&format!("{n_parts} gradients are too few for {:?}", joint.combine))),
    }
}

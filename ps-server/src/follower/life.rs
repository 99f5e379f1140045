//! One life of the job at a server that decides nothing: what is staged, given and prepared in it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ps_common::job::JobState;
use ps_common::partition::{Give, Joint, Partition, PushName};
use ps_common::tables::Tables;
use ps_common::{Error, ErrorCode};

use super::{astray, no_theta_to_decide_on};
use crate::applier::{Applier, Measured, Pending};
use crate::core::{CallId, Compensate, Order};
use crate::table::{Gradient, Snapshot};

/// Pushes of one rank that are kept: the one that partition 0 knows of, and the next.
const STAGED_PER_RANK_MAX: usize = 2;

/// One life of the job, from Begin on.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) epoch: u32,
    /// Once there is theta: the job's number and tables.
    pub(super) job: Option<(u64, Tables)>,
    pub(super) applier: Arc<Applier>,
    pub(super) n_staged_ever: u64,
    /// By rank, the oldest first.
    pub(super) staged: HashMap<u32, VecDeque<Staged>>,
    /// By rank, the newest.
    pub(super) given: HashMap<u32, Answer>,
    pub(super) under_way: Option<UnderWay>,
    /// As partition 0 said it last.
    pub(super) state: JobState,
}

/// An update that is not in force.
#[derive(Debug)]
pub(super) enum UnderWay {
    /// How its gradients are clipped is to be said.
    Measured(Measured),
    Prepared(Pending),
}

#[derive(Debug)]
pub(super) struct Staged {
    pub(super) name: PushName,
    pub(super) digest: u32,
    /// That the applier knows it by.
    pub(super) gradient: CallId,
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) give: Give,
    /// None once it is taken.
    pub(super) theta: Option<Arc<Snapshot>>,
}

impl Life {
    /// Of the part of `partition`; 0 before there is theta.
    pub(super) fn first_key(&self, partition: Partition) -> usize {
        let dim = self.job.as_ref().map_or(0, |(_, tables)| tables.dim());
        partition.keys(dim).start
    }

    pub(super) fn theta(&self) -> Result<Arc<Snapshot>, Error> {
        self.applier.snapshot().ok_or_else(no_theta_to_decide_on)
    }

    pub(super) fn stage(
        &mut self,
        name: PushName,
        gradient: Gradient,
        digest: u32,
    ) -> Result<u32, Error> {
        let of_rank = self.staged.entry(name.caller.rank).or_default();
        if let Some(staged) = of_rank.iter().find(|staged| staged.name == name) {
            self.applier.recycle(gradient);
            if staged.digest == digest {
                return Ok(digest);
            }
            let what = format!(
                "rank {} has staged other bytes as its push of clock {} (CRC-32 {:08x}, now \
                 {digest:08x})",
                name.caller.rank, name.clock, staged.digest
            );
            return Err(Error::new(ErrorCode::SeqReused, what).with("clock", name.clock));
        }
        self.n_staged_ever += 1;
        let call = CallId(self.n_staged_ever);
        self.applier.hold(call, gradient);
        of_rank.push_back(Staged { name, digest, gradient: call });
        if of_rank.len() > STAGED_PER_RANK_MAX
            && let Some(oldest) = of_rank.pop_front()
        {
            self.applier.forget(oldest.gradient);
        }
        Ok(digest)
    }

    /// Lets go of what was staged under this name, if it was.
    pub(super) fn unstage(&mut self, name: PushName) -> Option<CallId> {
        let of_rank = self.staged.get_mut(&name.caller.rank)?;
        let place = of_rank.iter().position(|staged| staged.name == name)?;
        of_rank.remove(place).map(|staged| staged.gradient)
    }

    pub(super) fn forget(&mut self, name: PushName) {
        if let Some(gradient) = self.unstage(name) {
            self.applier.forget(gradient);
        }
    }

    /// An update by the gradients that are here, which are the order's from now on.
    pub(super) fn order(&mut self, joint: &Joint) -> Result<Order, Error> {
        let mut parts = Vec::with_capacity(joint.parts.len());
        for (name, weight) in &joint.parts {
            let gradient = self.unstage(*name).ok_or_else(|| {
                astray(&format!(
                    "Prepare names the push of rank {} and clock {}, which is not staged here",
                    name.caller.rank, name.clock
                ))
            })?;
            parts.push((gradient, *weight));
        }
        Ok(Order {
            parts,
            combine: joint.combine,
            rate_factor: joint.rate_factor,
            compensation: joint.compensation.map(|(lambda, rank, version_pulled)| Compensate {
                lambda,
                rank,
                version_pulled,
            }),
        })
    }
}

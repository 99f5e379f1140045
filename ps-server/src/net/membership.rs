//! The `Membership` service: join, stay, leave.

use std::sync::Arc;

use ps_common::calls::{Caller, JoinRequest, Leave};
use ps_common::job::{JobState, WorkerStats};
use ps_common::wire::pb;
use ps_common::wire::pb::membership_server::Membership;
use ps_common::wire::status::to_status;
use tonic::{Request, Response, Status};

use super::connections::Peer;
use super::shell::{Brought, Shell};
use crate::core::Input;
use crate::driver::Delivery;

/// The service over the shell.
#[derive(Debug, Clone)]
pub(super) struct MembershipService {
    pub(super) shell: Arc<Shell>,
}

#[tonic::async_trait]
impl Membership for MembershipService {
    async fn join(
        &self,
        request: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinResponse>, Status> {
        let Peer { conn, address, .. } = Peer::of(&request);
        let request = JoinRequest::try_from(request.into_inner()).map_err(|e| to_status(&e))?;
        if let Some(tables) = &request.tables {
            self.shell.driver().check_start(tables).map_err(|e| to_status(&e))?;
        }
        let input = |call| Input::Join { call, conn, address: address.to_string(), request };
        match self.shell.call(Brought::default(), input).await.map_err(|e| to_status(&e))? {
            Delivery::Joined(answer) => {
                tracing::info!(
                    rank = answer.caller.rank,
                    incarnation = answer.caller.incarnation,
                    clock = answer.clock,
                    %address,
                    "joined"
                );
                Ok(Response::new((*answer).into()))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatResponse>, Status> {
        let (caller, stats) =
            <(Caller, WorkerStats)>::try_from(request.into_inner()).map_err(|e| to_status(&e))?;
        let input = |call| Input::Heartbeat { call, caller, stats };
        let delivery =
            self.shell.call(Brought::default(), input).await.map_err(|e| to_status(&e))?;
        let (state, version) = state_of(&delivery)?;
        Ok(Response::new(pb::HeartbeatResponse {
            version,
            state: pb::JobState::from(state).into(),
        }))
    }

    async fn leave(
        &self,
        request: Request<pb::LeaveRequest>,
    ) -> Result<Response<pb::LeaveResponse>, Status> {
        let leave = Leave::try_from(request.into_inner()).map_err(|e| to_status(&e))?;
        tracing::info!(rank = leave.caller.rank, "left");
        let input = |call| Input::Leave { call, leave };
        let delivery =
            self.shell.call(Brought::default(), input).await.map_err(|e| to_status(&e))?;
        let (state, _) = state_of(&delivery)?;
        Ok(Response::new(pb::LeaveResponse { state: pb::JobState::from(state).into() }))
    }
}

pub(super) fn state_of(delivery: &Delivery) -> Result<(JobState, u64), Status> {
    match delivery {
        Delivery::State { state, version } => Ok((*state, *version)),
        other => Err(unexpected(other)),
    }
}

/// The core answered a call with another call's answer: a bug.
pub(super) fn unexpected(delivery: &Delivery) -> Status {
    tracing::error!(?delivery, "a call got another call's answer");
    Status::internal("the server answered a call with another call's answer")
}

//! The `Operator` service: status, checkpoint, stop.

use std::sync::Arc;

use ps_common::wire::pb;
use ps_common::wire::pb::operator_server::Operator;
use ps_common::wire::status::to_status;
use tonic::{Request, Response, Status};

use super::shell::Shell;
use crate::core::Input;

/// The service over the shell.
#[derive(Debug, Clone)]
pub(super) struct OperatorService {
    pub(super) shell: Arc<Shell>,
}

#[tonic::async_trait]
impl Operator for OperatorService {
    async fn status(
        &self,
        _: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let status = self.shell.driver().status(self.shell.now());
        Ok(Response::new(status.into()))
    }

    async fn checkpoint(
        &self,
        _: Request<pb::CheckpointRequest>,
    ) -> Result<Response<pb::CheckpointResponse>, Status> {
        tracing::info!("an operator asks for a checkpoint");
        let (version, path) = self.shell.checkpoint().await.map_err(|e| to_status(&e))?;
        Ok(Response::new(pb::CheckpointResponse { path, version }))
    }

    async fn stop(
        &self,
        request: Request<pb::StopRequest>,
    ) -> Result<Response<pb::StopResponse>, Status> {
        let reason = request.into_inner().reason;
        tracing::info!(reason, "an operator stops the job");
        self.shell.tell(Input::Stop { reason });
        let (state, _) = self.shell.driver().state();
        Ok(Response::new(pb::StopResponse { state: pb::JobState::from(state).into() }))
    }
}

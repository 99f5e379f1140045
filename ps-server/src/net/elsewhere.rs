//! What a server that decides nothing is asked and cannot answer: partition 0 can. And its operator's
//! view of itself.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

use ps_common::partition::Partition;
use ps_common::wire::pb;
use ps_common::wire::pb::operator_server::Operator;
use ps_common::wire::status::to_status;
use ps_common::{Error, ErrorCode};
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use tower::Service;

use super::following::Following;

/// The place of service `S`, all of whose calls are refused.
#[derive(Debug)]
pub(super) struct Elsewhere<S> {
    partition: Partition,
    of: PhantomData<fn() -> S>,
}

impl<S> Elsewhere<S> {
    /// At the server `partition`.
    pub(super) fn new(partition: Partition) -> Self {
        Self { partition, of: PhantomData }
    }
}

impl<S> Clone for Elsewhere<S> {
    fn clone(&self) -> Self {
        Self::new(self.partition)
    }
}

impl<S: NamedService> NamedService for Elsewhere<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Elsewhere<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = request.uri().path().trim_start_matches('/');
        ready(Ok(refusal(self.partition, call).into_http()))
    }
}

/// The refusal of a call that only partition 0 answers.
fn refusal(partition: Partition, call: &str) -> Status {
    let what =
        format!("{call}: server {partition} decides nothing; ask the first one, partition 0");
    let error = Error::new(ErrorCode::ConfigMismatch, what);
    let error = error.with("call", call).with("partition", partition.index);
    to_status(&error.with("n_partitions", partition.count))
}

/// The `Operator` service: what this server has of the job. The job itself is partition 0's.
#[derive(Debug, Clone)]
pub(super) struct FollowerOperator {
    pub(super) following: Arc<Following>,
}

#[tonic::async_trait]
impl Operator for FollowerOperator {
    async fn status(
        &self,
        _: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        Ok(Response::new(self.following.status().into()))
    }

    async fn checkpoint(
        &self,
        _: Request<pb::CheckpointRequest>,
    ) -> Result<Response<pb::CheckpointResponse>, Status> {
        Err(refusal(self.following.partition(), "ps.v1.Operator/Checkpoint"))
    }

    async fn stop(
        &self,
        _: Request<pb::StopRequest>,
    ) -> Result<Response<pb::StopResponse>, Status> {
        Err(refusal(self.following.partition(), "ps.v1.Operator/Stop"))
    }
}

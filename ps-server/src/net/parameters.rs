//! The `Parameters` service: gradients in, theta out.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ps_common::calls::{Caller, Evaluation, Outcome, PullRequest, PushResult};
use ps_common::statistics::Statistics;
use ps_common::wire::parameters::merge_response;
use ps_common::wire::pb;
use ps_common::wire::pb::parameters_server::Parameters;
use ps_common::wire::status::to_status;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::assemble::{Failure, Push, read_push};
use super::chunks;
use super::connections::Peer;
use super::membership::{state_of, unexpected};
use super::pace::Outlet;
use super::shell::Shell;
use super::turnaways::Turnaways;
use crate::core::{ConnId, Input};
use crate::driver::Delivery;
use crate::table::Snapshot;

/// Messages between theta and the connection: enough to keep it busy, few enough to stay in cache.
const MESSAGES_AHEAD: usize = 4;

/// The service over the shell.
#[derive(Debug, Clone)]
pub(super) struct ParametersService {
    pub(super) shell: Arc<Shell>,
    /// Of a peer inside a push or an answer.
    pub(super) stall: Duration,
    pub(super) turnaways: Arc<Turnaways>,
}

impl ParametersService {
    /// The way out of an answer to `peer`, and what it is read from.
    fn outlet<T: Send + 'static>(&self, peer: Peer) -> (Outlet<T>, Messages<T>) {
        let (messages, receiver) = mpsc::channel(MESSAGES_AHEAD);
        let turnaways = Arc::clone(&self.turnaways);
        let outlet = Outlet { messages, peer, stall: self.stall, turnaways };
        (outlet, Box::pin(ReceiverStream::new(receiver)))
    }
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Parameters for ParametersService {
    type PullStream = Messages<pb::PullResponse>;
    type PushPullStream = Messages<pb::PushPullResponse>;

    async fn push(
        &self,
        request: Request<Streaming<pb::PushRequest>>,
    ) -> Result<Response<pb::PushResponse>, Status> {
        let conn = Peer::of(&request).conn;
        let mut stream = request.into_inner();
        let push = match read_push(&self.shell, &mut stream, self.stall).await {
            Ok(Some(push)) => push,
            Ok(None) => return Err(to_status(&nothing())),
            Err(failure) => return Err(status_of(failure)),
        };
        let (result, _) = deliver(&self.shell, conn, push, false).await?;
        Ok(Response::new(pb::PushResponse { result: Some(result.into()) }))
    }

    async fn pull(
        &self,
        request: Request<pb::PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let peer = Peer::of(&request);
        let conn = peer.conn;
        let request = PullRequest::from(request.into_inner());
        let input = |call| Input::Pull { call, conn, request };
        match self.shell.call(None, input).await.map_err(|e| to_status(&e))? {
            Delivery::Pulled(header, theta) => {
                let (outlet, messages) = self.outlet(peer);
                tokio::spawn(async move {
                    for message in chunks::of_pull(header, theta) {
                        if outlet.send(Ok(message)).await.is_err() {
                            return;
                        }
                    }
                });
                Ok(Response::new(messages))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn push_pull(
        &self,
        request: Request<Streaming<pb::PushRequest>>,
    ) -> Result<Response<Self::PushPullStream>, Status> {
        let peer = Peer::of(&request);
        let conn = peer.conn;
        let stream = request.into_inner();
        let (outlet, messages) = self.outlet(peer);
        let shell = Arc::clone(&self.shell);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                result = steps(&shell, conn, stream, &outlet) => {
                    if let Err(status) = result {
                        // The caller may be gone: then nobody needs to know.
                        let _ = outlet.send(Err(status)).await;
                    }
                }
                // Withdraws the held call of a caller that is gone.
                () = outlet.messages.closed() => {}
            }
        });
        Ok(Response::new(messages))
    }

    async fn evaluate(
        &self,
        request: Request<pb::EvaluateRequest>,
    ) -> Result<Response<pb::EvaluateResponse>, Status> {
        let evaluation = Evaluation::try_from(request.into_inner()).map_err(|e| to_status(&e))?;
        let input = |call| Input::Evaluate { call, evaluation };
        let delivery = self.shell.call(None, input).await.map_err(|e| to_status(&e))?;
        let (state, _) = state_of(&delivery)?;
        Ok(Response::new(pb::EvaluateResponse { state: pb::JobState::from(state).into() }))
    }

    async fn merge_statistics(
        &self,
        request: Request<pb::MergeStatisticsRequest>,
    ) -> Result<Response<pb::MergeStatisticsResponse>, Status> {
        let (caller, statistics) =
            <(Caller, Statistics)>::try_from(request.into_inner()).map_err(|e| to_status(&e))?;
        let driver = self.shell.driver();
        driver.admit(caller).map_err(|e| to_status(&e))?;
        driver.keep_statistics(caller.rank, statistics).map_err(|e| to_status(&e))?;
        let input = |call| Input::Statistics { call, caller };
        match self.shell.call(None, input).await.map_err(|e| to_status(&e))? {
            Delivery::Statistics(merged) => Ok(Response::new(merge_response(&merged))),
            other => Err(unexpected(&other)),
        }
    }
}

/// Serves step after step until the caller ends the stream.
async fn steps(
    shell: &Shell,
    conn: ConnId,
    mut stream: Streaming<pb::PushRequest>,
    outlet: &Outlet<pb::PushPullResponse>,
) -> Result<(), Status> {
    while let Some(push) = read_push(shell, &mut stream, outlet.stall).await.map_err(status_of)? {
        let (result, theta) = deliver(shell, conn, push, true).await?;
        let theta = (result.outcome != Outcome::Waiting).then_some(theta);
        for message in chunks::of_step(result, theta) {
            if outlet.send(Ok(message)).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn deliver(
    shell: &Shell,
    conn: ConnId,
    push: Push,
    theta: bool,
) -> Result<(PushResult, Arc<Snapshot>), Status> {
    let Push { header, gradient, digest } = push;
    let input = |call| Input::Push { call, conn, header, digest, theta };
    match shell.call(Some(gradient), input).await.map_err(|e| to_status(&e))? {
        Delivery::Pushed(result, theta) => Ok((result, theta)),
        other => Err(unexpected(&other)),
    }
}

fn nothing() -> ps_common::Error {
    ps_common::Error::new(ps_common::ErrorCode::Empty, "the stream carries no push")
}

fn status_of(failure: Failure) -> Status {
    match failure {
        Failure::Refused(error) => to_status(&error),
        Failure::Broken(status) => status,
    }
}

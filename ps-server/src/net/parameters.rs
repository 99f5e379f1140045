//! The `Parameters` service: gradients in, theta out.
//!
//! Not the generated one: the messages that carry chunks go by `hot`, and so that there is one way
//! for all of a service, the two small calls do as well.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use ps_common::calls::{Caller, Evaluation, Outcome, PullRequest, PushResult};
use ps_common::statistics::Statistics;
use ps_common::wire::parameters::merge_response;
use ps_common::wire::pb::parameters_server::SERVICE_NAME;
use ps_common::wire::status::to_status;
use ps_common::wire::{frames, pb};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tower::Service;

use super::assemble::{Failure, Push, read_push};
use super::chunks;
use super::connections::Peer;
use super::hot::{self, Incoming};
use super::membership::{state_of, unexpected};
use super::pace::Outlet;
use super::shell::Shell;
use super::turnaways::Turnaways;
use crate::core::{ConnId, Input};
use crate::driver::Delivery;
use crate::table::Snapshot;

/// Parts of messages between theta and the connection: enough to keep it busy, few enough to stay in
/// cache. A chunk is two of them.
pub(super) const PARTS_AHEAD: usize = 8;

/// The service over the shell.
#[derive(Debug, Clone)]
pub(super) struct ParametersService {
    pub(super) shell: Arc<Shell>,
    /// Of a peer inside a push or an answer.
    pub(super) stall: Duration,
    pub(super) turnaways: Arc<Turnaways>,
}

impl NamedService for ParametersService {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<Request<Body>> for ParametersService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let answer = service.answer(request).await;
            Ok(answer.unwrap_or_else(Status::into_http))
        })
    }
}

impl ParametersService {
    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let peer = request.extensions().get::<Peer>();
        let peer = peer.expect("every connection has a peer").clone();
        let path = request.uri().path().to_owned();
        let method = path.rsplit_once('/').map_or("", |(_, method)| method);
        let incoming = Incoming::of(request)?;
        match method {
            "Push" => self.push(peer, incoming).await,
            "PushPull" => Ok(self.push_pull(peer, incoming)),
            "Pull" => self.pull(peer, incoming).await,
            "Evaluate" => self.evaluate(incoming).await,
            "MergeStatistics" => self.merge_statistics(incoming).await,
            _ => Err(Status::unimplemented("")),
        }
    }

    /// The way out of an answer to `peer`, and what it is read from.
    fn outlet(&self, peer: Peer) -> (Outlet, hot::Outgoing) {
        let (bytes, outgoing) = mpsc::channel(PARTS_AHEAD);
        let turnaways = Arc::clone(&self.turnaways);
        (Outlet { bytes, peer, stall: self.stall, turnaways }, outgoing)
    }

    async fn push(&self, peer: Peer, mut incoming: Incoming) -> Result<Response<Body>, Status> {
        let push = match read_push(&self.shell, &mut incoming, self.stall).await {
            Ok(Some(push)) => push,
            Ok(None) => return Err(to_status(&nothing())),
            Err(failure) => return Err(status_of(failure)),
        };
        let (result, _) = deliver(&self.shell, peer.conn, push, false).await?;
        let answer = pb::PushResponse { result: Some(result.into()) };
        Ok(hot::single(frames::plain(&answer)))
    }

    async fn pull(&self, peer: Peer, mut incoming: Incoming) -> Result<Response<Body>, Status> {
        let request = PullRequest::from(incoming.only::<pb::PullRequest>().await?);
        self.shell.driver().check_exchange(request.exchange).map_err(|e| to_status(&e))?;
        let conn = peer.conn;
        let input = |call| Input::Pull { call, conn, request };
        match self.shell.call(None, input).await.map_err(|e| to_status(&e))? {
            Delivery::Pulled(header, theta) => {
                let (outlet, outgoing) = self.outlet(peer);
                tokio::spawn(async move {
                    if send_all(&outlet, chunks::of_pull(header, theta, 0)).await {
                        // Whoever is gone does not need to know.
                        let _ = outlet.send(Err(Status::ok(""))).await;
                    }
                });
                Ok(hot::streamed(outgoing))
            }
            other => Err(unexpected(&other)),
        }
    }

    fn push_pull(&self, peer: Peer, incoming: Incoming) -> Response<Body> {
        let conn = peer.conn;
        let (outlet, outgoing) = self.outlet(peer);
        let shell = Arc::clone(&self.shell);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                result = steps(&shell, conn, incoming, &outlet) => {
                    let status = result.err().unwrap_or_else(|| Status::ok(""));
                    // The caller may be gone: then nobody needs to know.
                    let _ = outlet.send(Err(status)).await;
                }
                // Withdraws the held call of a caller that is gone.
                () = outlet.bytes.closed() => {}
            }
        });
        hot::streamed(outgoing)
    }

    async fn evaluate(&self, mut incoming: Incoming) -> Result<Response<Body>, Status> {
        let request = incoming.only::<pb::EvaluateRequest>().await?;
        let evaluation = Evaluation::try_from(request).map_err(|e| to_status(&e))?;
        let input = |call| Input::Evaluate { call, evaluation };
        let delivery = self.shell.call(None, input).await.map_err(|e| to_status(&e))?;
        let (state, _) = state_of(&delivery)?;
        let answer = pb::EvaluateResponse { state: pb::JobState::from(state).into() };
        Ok(hot::single(frames::plain(&answer)))
    }

    async fn merge_statistics(&self, mut incoming: Incoming) -> Result<Response<Body>, Status> {
        let request = incoming.only::<pb::MergeStatisticsRequest>().await?;
        let (caller, statistics) =
            <(Caller, Statistics)>::try_from(request).map_err(|e| to_status(&e))?;
        let driver = self.shell.driver();
        driver.admit(caller).map_err(|e| to_status(&e))?;
        driver.keep_statistics(caller.rank, statistics).map_err(|e| to_status(&e))?;
        let input = |call| Input::Statistics { call, caller };
        match self.shell.call(None, input).await.map_err(|e| to_status(&e))? {
            Delivery::Statistics(merged) => {
                Ok(hot::single(frames::plain(&merge_response(&merged))))
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// Serves step after step until the caller ends the stream.
async fn steps(
    shell: &Shell,
    conn: ConnId,
    mut incoming: Incoming,
    outlet: &Outlet,
) -> Result<(), Status> {
    while let Some(push) = read_push(shell, &mut incoming, outlet.stall).await.map_err(status_of)? {
        let (result, theta) = deliver(shell, conn, push, true).await?;
        let theta = (result.outcome != Outcome::Waiting).then_some(theta);
        if !send_all(outlet, chunks::of_step(result, theta)).await {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether the reader was there to the end.
pub(super) async fn send_all(outlet: &Outlet, parts: impl Iterator<Item = Bytes>) -> bool {
    for part in parts {
        if outlet.send(Ok(part)).await.is_err() {
            return false;
        }
    }
    true
}

async fn deliver(
    shell: &Shell,
    conn: ConnId,
    push: Push,
    theta: bool,
) -> Result<(PushResult, Arc<Snapshot>), Status> {
    let Push { header, gradient, digest } = push;
    if theta && let Err(error) = shell.driver().check_exchange(header.exchange) {
        shell.driver().recycle(gradient);
        return Err(to_status(&error));
    }
    let input = |call| Input::Push { call, conn, header, digest, theta };
    match shell.call(Some(gradient), input).await.map_err(|e| to_status(&e))? {
        Delivery::Pushed(result, theta) => Ok((result, theta)),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn nothing() -> ps_common::Error {
    ps_common::Error::new(ps_common::ErrorCode::Empty, "the stream carries no push")
}

pub(super) fn status_of(failure: Failure) -> Status {
    match failure {
        Failure::Refused(error) => to_status(&error),
        Failure::Broken(status) => status,
    }
}

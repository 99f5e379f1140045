//! The `Partition` service: parts of gradients in, this server's part of theta out, partition 0's
//! decisions.
//!
//! Not the generated one, for the reason that `parameters` gives. What a decision means is not known
//! here.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ps_common::calls::PullHeader;
use ps_common::partition::{Decision, Take};
use ps_common::wire::parameters::theta_encoding_from;
use ps_common::wire::partition::PARTITION_MESSAGE_BYTES_MAX;
use ps_common::wire::pb::partition_server::SERVICE_NAME;
use ps_common::wire::status::to_status;
use ps_common::wire::{frames, pb};
use ps_common::{Error, ErrorCode};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tower::Service;

use super::answer::{self, Out};
use super::assemble::{Host, read_push_for};
use super::connections::Peer;
use super::encoder::Encoder;
use super::following::Following;
use super::hot::Incoming;
use super::pace::Outlet;
use super::parameters::{nothing, send_theta, status_of};
use super::turnaways::Turnaways;
use crate::follower::{Given, StreamId};
use crate::table::Pushed;

/// The service of a server that decides nothing.
#[derive(Debug, Clone)]
pub(super) struct PartitionService {
    pub(super) following: Arc<Following>,
    /// Of a peer inside a push or an answer.
    pub(super) stall: Duration,
    pub(super) turnaways: Arc<Turnaways>,
    pub(super) encoder: Arc<Encoder>,
}

impl NamedService for PartitionService {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<Request<Body>> for PartitionService {
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

impl PartitionService {
    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let peer = request.extensions().get::<Peer>();
        let peer = peer.expect("every connection has a peer").clone();
        let path = request.uri().path().to_owned();
        let method = path.rsplit_once('/').map_or("", |(_, method)| method);
        let incoming = Incoming::of(request)?;
        match method {
            "Stage" => self.stage(incoming).await,
            "Take" => self.take(peer, incoming).await,
            "Follow" => Ok(self.follow(peer, incoming)),
            _ => Err(Status::unimplemented("")),
        }
    }

    async fn stage(&self, mut incoming: Incoming) -> Result<Response<Body>, Status> {
        let follower = self.following.follower();
        let host = Host::Follower(follower);
        // There is no report to count it in.
        let rejected = |_, _| {};
        let push = match read_push_for(host, &mut incoming, self.stall, rejected).await {
            Ok(Some(push)) => push,
            Ok(None) => return Err(to_status(&nothing())),
            Err(failure) => return Err(status_of(failure)),
        };
        let Pushed::Whole(gradient) = push.gradient else {
            unreachable!("rows are refused as soon as they are announced")
        };
        let digest = follower.stage(&push.header, gradient, push.digest);
        let digest = digest.map_err(|e| to_status(&e))?;
        Ok(answer::single(frames::plain(&pb::StageResponse { digest })))
    }

    async fn take(&self, peer: Peer, mut incoming: Incoming) -> Result<Response<Body>, Status> {
        let begun = Instant::now();
        let request = incoming.only::<pb::TakeRequest>().await?;
        let (theta_dtype, version_have) = (request.theta_dtype, request.version_have);
        let take = Take::try_from(request).map_err(|e| to_status(&e))?;
        let given = self.following.take(&take).await.map_err(|e| to_status(&e))?;
        let Given { give, theta, first_key } = given;
        let waited = begun.elapsed();
        let header =
            PullHeader { version: give.version, state: give.state, seconds: give.seconds, waited };
        // Partition 0 refuses the same number before it gives anything.
        let encoding = theta_encoding_from(theta_dtype, theta.dtype).map_err(|e| to_status(&e))?;
        let theta = self.encoder.encode(theta, encoding);
        let (outlet, outgoing) = Outlet::new(peer, self.stall, &self.turnaways);
        send_theta(outlet, header, (theta, first_key), version_have);
        Ok(answer::streamed(outgoing))
    }

    fn follow(&self, peer: Peer, mut incoming: Incoming) -> Response<Body> {
        let address = peer.address;
        let (outlet, outgoing) = Outlet::new(peer, self.stall, &self.turnaways);
        let following = Arc::clone(&self.following);
        tokio::spawn(async move {
            let mut stream = None;
            let status = tokio::select! {
                biased;
                end = decisions(&following, &mut incoming, &outlet, &mut stream) => {
                    end.err().unwrap_or_else(|| Status::ok(""))
                }
                () = following.closing() => to_status(&following.draining()),
                () = outlet.out.closed() => Status::cancelled("partition 0 is gone"),
            };
            if let Some(stream) = stream {
                following.disconnected(stream);
                if following.ended().is_none() {
                    let why = status.message();
                    tracing::warn!(%address, why, "partition 0's decisions have ended");
                }
            }
            // Partition 0 may be gone: then nobody needs to know.
            let _ = outlet.send(Out::End(status)).await;
        });
        answer::streamed(outgoing)
    }
}

/// Carries out decisions in their order until the stream ends; its name goes to `stream`.
async fn decisions(
    following: &Following,
    incoming: &mut Incoming,
    outlet: &Outlet,
    stream: &mut Option<StreamId>,
) -> Result<(), Status> {
    loop {
        let next = incoming.message::<pb::Decision>(PARTITION_MESSAGE_BYTES_MAX);
        let next = match *stream {
            Some(_) => next.await?,
            // Afterwards it may be silent for as long as nothing is decided.
            None => tokio::time::timeout(outlet.stall, next).await.map_err(|_| {
                let what = format!("no decision came within {:?}", outlet.stall);
                to_status(&Error::new(ErrorCode::Deadline, what))
            })??,
        };
        let Some(decision) = next else { return Ok(()) };
        let decision = Decision::try_from(decision).map_err(|e| to_status(&e))?;
        let done = match *stream {
            Some(stream) => following.decide(stream, decision, outlet).await,
            None => following.open(decision, outlet, stream).await,
        };
        done.map_err(|e| to_status(&e))?;
        // The stream lasts as long as the job: its connection has no age.
        outlet.peer.line.keep();
        if following.ended().is_some() {
            // Nothing can follow.
            return Ok(());
        }
    }
}

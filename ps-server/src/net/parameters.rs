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

use ps_common::calls::{Caller, Evaluation, Outcome, PullHeader, PullRequest, PushResult};
use ps_common::codec::Encoding;
use ps_common::rows::{self, Rows};
use ps_common::statistics::Statistics;
use ps_common::wire::parameters::{merge_response, theta_encoding_from};
use ps_common::wire::pb::parameters_server::SERVICE_NAME;
use ps_common::wire::status::to_status;
use ps_common::wire::{frames, pb};
use ps_common::{Error, ErrorCode};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tower::Service;

use super::answer::{self, Out};
use super::assemble::{Failure, Push, read_push};
use super::chunks;
use super::connections::Peer;
use super::encoder::{Encoder, WireTheta};
use super::hot::Incoming;
use super::membership::{state_of, unexpected};
use super::pace::Outlet;
use super::shell::{Brought, Shell};
use super::turnaways::Turnaways;
use crate::core::{ConnId, Input};
use crate::driver::Delivery;
use crate::table::Snapshot;

/// The service over the shell.
#[derive(Debug, Clone)]
pub(super) struct ParametersService {
    pub(super) shell: Arc<Shell>,
    /// Of a peer inside a push or an answer.
    pub(super) stall: Duration,
    pub(super) turnaways: Arc<Turnaways>,
    pub(super) encoder: Arc<Encoder>,
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

    async fn push(&self, peer: Peer, mut incoming: Incoming) -> Result<Response<Body>, Status> {
        let push = match read_push(&self.shell, &mut incoming, self.stall).await {
            Ok(Some(push)) => push,
            Ok(None) => return Err(to_status(&nothing())),
            Err(failure) => return Err(status_of(failure)),
        };
        let (result, _) = deliver(&self.shell, peer.conn, push, false).await?;
        let answer = pb::PushResponse { result: Some(result.into()) };
        Ok(answer::single(frames::plain(&answer)))
    }

    async fn pull(&self, peer: Peer, mut incoming: Incoming) -> Result<Response<Body>, Status> {
        let message = incoming.only::<pb::PullRequest>().await?;
        let (theta_dtype, version_have) = (message.theta_dtype, message.version_have);
        let asked = message.asked.clone();
        let request = PullRequest::from(message);
        let driver = self.shell.driver();
        driver.check_exchange(request.exchange).map_err(|e| to_status(&e))?;
        let form = match driver.admit(request.caller) {
            Ok((_, dtype)) => theta_encoding_from(theta_dtype, dtype)
                .and_then(|encoding| Ok((encoding, self.rows_of(&asked, version_have)?))),
            // The core refuses the call, and counts it.
            Err(_) => Ok((Encoding::Plain, None)),
        };
        let (encoding, asked) = form.map_err(|error| {
            let (caller, code) = (Some(request.caller), error.code);
            self.shell.tell(Input::Rejected { caller, code });
            to_status(&error)
        })?;
        let conn = peer.conn;
        let input = |call| Input::Pull { call, conn, request };
        let brought = Brought { gradient: None, asked };
        match self.shell.call(brought, input).await.map_err(|e| to_status(&e))? {
            Delivery::Pulled(header, theta) => {
                // Without locks a version is the name of no single theta.
                let version_have = version_have.filter(|_| driver.has_versions());
                let theta = self.encoder.encode(theta, encoding);
                let (outlet, outgoing) = Outlet::new(peer, self.stall, &self.turnaways);
                send_theta(outlet, header, (theta, 0), version_have);
                Ok(answer::streamed(outgoing))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// The rows that a pull asks for; `None`: all of theta.
    fn rows_of(&self, asked: &[u8], version_have: Option<u64>) -> Result<Option<Vec<Rows>>, Error> {
        if asked.is_empty() {
            return Ok(None);
        }
        if version_have.is_some() {
            let what = "`version_have` is of all of theta; it does not go with rows";
            return Err(Error::new(ErrorCode::BadField, what).with("field", "version_have"));
        }
        let rows = rows::from_bytes(self.shell.driver().tables_of_rows()?, asked)?;
        if rows::n_elements(&rows) == 0 {
            return Err(Error::new(ErrorCode::Empty, "`asked` names no rows"));
        }
        Ok(Some(rows))
    }

    fn push_pull(&self, peer: Peer, incoming: Incoming) -> Response<Body> {
        let conn = peer.conn;
        let (outlet, outgoing) = Outlet::new(peer, self.stall, &self.turnaways);
        let (shell, encoder) = (Arc::clone(&self.shell), Arc::clone(&self.encoder));
        tokio::spawn(async move {
            tokio::select! {
                biased;
                result = steps((&shell, &encoder), conn, incoming, &outlet) => {
                    let status = result.err().unwrap_or_else(|| Status::ok(""));
                    // The caller may be gone: then nobody needs to know.
                    let _ = outlet.send(Out::End(status)).await;
                }
                // Withdraws the held call of a caller that is gone.
                () = outlet.out.closed() => {}
            }
        });
        answer::streamed(outgoing)
    }

    async fn evaluate(&self, mut incoming: Incoming) -> Result<Response<Body>, Status> {
        let request = incoming.only::<pb::EvaluateRequest>().await?;
        let evaluation = Evaluation::try_from(request).map_err(|e| to_status(&e))?;
        let input = |call| Input::Evaluate { call, evaluation };
        let delivery =
            self.shell.call(Brought::default(), input).await.map_err(|e| to_status(&e))?;
        let (state, _) = state_of(&delivery)?;
        let answer = pb::EvaluateResponse { state: pb::JobState::from(state).into() };
        Ok(answer::single(frames::plain(&answer)))
    }

    async fn merge_statistics(&self, mut incoming: Incoming) -> Result<Response<Body>, Status> {
        let request = incoming.only::<pb::MergeStatisticsRequest>().await?;
        let (caller, statistics) =
            <(Caller, Statistics)>::try_from(request).map_err(|e| to_status(&e))?;
        let driver = self.shell.driver();
        driver.admit(caller).map_err(|e| to_status(&e))?;
        driver.keep_statistics(caller.rank, statistics).map_err(|e| to_status(&e))?;
        let input = |call| Input::Statistics { call, caller };
        match self.shell.call(Brought::default(), input).await.map_err(|e| to_status(&e))? {
            Delivery::Statistics(merged) => {
                Ok(answer::single(frames::plain(&merge_response(&merged))))
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// Serves step after step until the caller ends the stream.
async fn steps(
    (shell, encoder): (&Shell, &Encoder),
    conn: ConnId,
    mut incoming: Incoming,
    outlet: &Outlet,
) -> Result<(), Status> {
    while let Some(push) = read_push(shell, &mut incoming, outlet.stall).await.map_err(status_of)? {
        let encoding = push.theta_encoding;
        let (result, theta) = deliver(shell, conn, push, true).await?;
        let theta = (result.outcome != Outcome::Waiting).then(|| encoder.encode(theta, encoding));
        if outlet.send_all(chunks::of_step(result, theta)).await.is_err() {
            // It is over, whatever would end it now.
            return Ok(());
        }
    }
    Ok(())
}

/// Sends theta, whose first element has `first_key`, or where the caller has it already, that.
pub(super) fn send_theta(
    outlet: Outlet,
    header: PullHeader,
    (theta, first_key): (WireTheta, usize),
    version_have: Option<u64>,
) {
    tokio::spawn(async move {
        let sent = match version_have == Some(header.version) {
            true => outlet.send(Out::Bytes(chunks::unchanged(header, &theta, first_key))).await,
            false => outlet.send_all(chunks::of_pull(header, theta, first_key)).await,
        };
        if sent.is_ok() {
            // Whoever is gone does not need to know.
            let _ = outlet.send(Out::End(Status::ok(""))).await;
        }
    });
}

async fn deliver(
    shell: &Shell,
    conn: ConnId,
    push: Push,
    theta: bool,
) -> Result<(PushResult, Arc<Snapshot>), Status> {
    let Push { header, gradient, asked, digest, .. } = push;
    let refusal = match (theta, &asked) {
        (true, _) => shell.driver().check_exchange(header.exchange).err(),
        (false, Some(asked)) if !asked.is_empty() => {
            let what = "Push is answered without theta; rows are asked for by PushPull or Pull";
            Some(Error::new(ErrorCode::BadField, what).with("field", "part"))
        }
        (false, _) => None,
    };
    if let Some(error) = refusal {
        shell.driver().recycle(gradient.into_values());
        return Err(to_status(&error));
    }
    let brought = Brought { gradient: Some(gradient), asked };
    let input = |call| Input::Push { call, conn, header, digest, theta };
    match shell.call(brought, input).await.map_err(|e| to_status(&e))? {
        Delivery::Pushed(result, theta) => Ok((result, theta)),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn nothing() -> Error {
    Error::new(ps_common::ErrorCode::Empty, "the stream carries no push")
}

pub(super) fn status_of(failure: Failure) -> Status {
    match failure {
        Failure::Refused(error) => to_status(&error),
        Failure::Broken(status) => status,
    }
}

//! What stands before every call: its token, its deadline, its place among the calls under way, and
//! its pace. A call that is refused here has not been read.
//!
//! Knows the paths of calls and which role may make them; no message and no rule of training.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ps_common::exit::ExitError;
use ps_common::secrets::{AUTHORIZATION, BEARER, Token, TokenDigest};
use ps_common::wire::status::to_status;
use ps_common::{Error, ErrorCode};
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};

use super::connections::Peer;
use super::pace::{Held, Paced};
use super::turnaways::{Turnaways, Why};
use crate::security::TokenFiles;

/// Health is open to all: probes have no tokens, and it tells no more than an open port.
const HEALTH: &str = "/grpc.health.v1.Health/";
const REFLECTION: &str = "/grpc.reflection.";
const OPERATOR: &str = "/ps.v1.Operator/";
const PARAMETERS: &str = "/ps.v1.Parameters/";
const PULL: &str = "/ps.v1.Parameters/Pull";
const PARTITION: &str = "/ps.v1.Partition/";
/// The other servers' parts of what a pull gives.
const TAKE: &str = "/ps.v1.Partition/Take";
/// Partition 0's standing stream: silent while nothing is decided.
const FOLLOW: &str = "/ps.v1.Partition/Follow";
/// A worker's standing stream: silent while it computes.
const PUSH_PULL: &str = "/ps.v1.Parameters/PushPull";

/// When an overloaded server should be asked again.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Whose token it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Worker,
    Operator,
}

/// The tokens that open the server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys {
    worker: TokenDigest,
    operator: TokenDigest,
}

impl Keys {
    /// Reads the files.
    ///
    /// # Errors
    /// As [`Token::read`]; configuration where both roles have one token.
    pub(super) fn read(files: &TokenFiles) -> Result<Self, ExitError> {
        let worker = Token::read("--worker-token-file", &files.worker)?;
        let operator = Token::read("--operator-token-file", &files.operator)?;
        if worker == operator {
            return Err(ExitError::config(
                "--worker-token-file and --operator-token-file hold the same token: the roles could \
                 not be told apart",
            ));
        }
        Ok(Self { worker: worker.digest(), operator: operator.digest() })
    }

    /// Looks at both, so that the time taken says nothing.
    fn role(&self, presented: &[u8]) -> Option<Role> {
        let presented = TokenDigest::of(presented);
        match (self.worker.equals(&presented), self.operator.equals(&presented)) {
            (true, _) => Some(Role::Worker),
            (false, true) => Some(Role::Operator),
            (false, false) => None,
        }
    }

    /// Whether a call of `path` with these headers may be made.
    fn check(&self, path: &str, headers: &HeaderMap) -> Result<(), Error> {
        if path.starts_with(HEALTH) {
            return Ok(());
        }
        let refuse = |what: &str| Err(Error::new(ErrorCode::Unauthenticated, what));
        let Some(value) = headers.get(AUTHORIZATION) else {
            return refuse(
                "this server wants a token: --token-file FILE (header `authorization: Bearer TOKEN`)",
            );
        };
        let value = value.as_bytes();
        let token = match value.split_at_checked(BEARER.len()) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(BEARER.as_bytes()) => token,
            _ => return refuse("the authorization header is not `Bearer TOKEN`"),
        };
        match self.role(token) {
            None => refuse(
                "this server does not know the token; --token-file must hold that of its \
                 --worker-token-file or --operator-token-file",
            ),
            Some(role) if may(role, path) => Ok(()),
            Some(role) => Err(not_allowed(role, path)),
        }
    }
}

/// Workers train; operators look, take theta and stop, and partition 0 speaks to other servers as one
/// of them. Neither needs more for reflection.
fn may(role: Role, path: &str) -> bool {
    let trains = path.starts_with(PARAMETERS) || path.starts_with(PARTITION);
    match role {
        Role::Worker => !path.starts_with(OPERATOR) && path != FOLLOW,
        Role::Operator => !trains || matches!(path, PULL | TAKE | FOLLOW),
    }
}

fn not_allowed(role: Role, path: &str) -> Error {
    let (own, other) = match role {
        Role::Worker => ("a worker", "an operator"),
        Role::Operator => ("an operator", "a worker"),
    };
    let call = path.trim_start_matches('/');
    Error::new(
        ErrorCode::PermissionDenied,
        format!("{call} needs the token of {other}; --token-file holds that of {own}"),
    )
    .with("call", call)
}

/// What all calls of a server go by.
#[derive(Debug)]
pub(super) struct Rules {
    /// None: everybody may call everything.
    pub(super) keys: Option<Keys>,
    /// A permit for each call under way.
    pub(super) calls: Arc<Semaphore>,
    /// Longest silence inside a request.
    pub(super) stall: Duration,
    pub(super) turnaways: Arc<Turnaways>,
}

impl Rules {
    fn check(&self, request: &Request<Body>) -> Result<(), Error> {
        let Some(keys) = &self.keys else { return Ok(()) };
        let path = request.uri().path();
        let checked = keys.check(path, request.headers());
        if let Err(error) = &checked {
            let why = match error.code {
                ErrorCode::PermissionDenied => Why::Role,
                _ => Why::Token,
            };
            self.note(request, why);
        }
        checked
    }

    fn note(&self, request: &Request<Body>, why: Why) {
        if let Some(peer) = request.extensions().get::<Peer>() {
            self.turnaways.note(why, peer.address, request.uri().path());
        }
    }
}

/// Puts a [`Gate`] before the services.
#[derive(Debug, Clone)]
pub(super) struct GateLayer(pub(super) Arc<Rules>);

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner, rules: Arc::clone(&self.0) }
    }
}

/// The services behind the rules.
#[derive(Debug, Clone)]
pub(super) struct Gate<S> {
    inner: S,
    rules: Arc<Rules>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        if let Err(error) = self.rules.check(&request) {
            return refused(&error);
        }
        let deadline = match deadline(request.headers()) {
            Ok(deadline) => deadline,
            Err(error) => return refused(&error),
        };
        let Ok(permit) = Arc::clone(&self.rules.calls).try_acquire_owned() else {
            self.rules.note(&request, Why::Busy);
            let what = "too many calls are under way; try again";
            let error = Error::new(ErrorCode::Overloaded, what).retry_after(RETRY_AFTER);
            return refused(&error);
        };
        let path = request.uri().path();
        let is_standing = path == PUSH_PULL || path == FOLLOW;
        let is_paced = !is_standing && !path.starts_with(REFLECTION);
        let stall = self.rules.stall;
        let request = match is_paced {
            true => request.map(|body| Body::new(Paced::new(body, stall))),
            false => request,
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answered = match deadline {
                None => answer.await,
                Some(limit) => match tokio::time::timeout(limit, answer).await {
                    Ok(answered) => answered,
                    Err(_) => {
                        let what = format!("not answered within the caller's deadline, {limit:?}");
                        return Ok(to_status(&Error::new(ErrorCode::Deadline, what)).into_http());
                    }
                },
            };
            answered.map(|response| response.map(|body| Body::new(Held::new(body, permit))))
        })
    }
}

fn refused(error: &Error) -> Answer {
    let response = to_status(error).into_http();
    Box::pin(std::future::ready(Ok(response)))
}

/// The time that the caller gives (header `grpc-timeout`), less a fiftieth: tonic's own timer lies
/// outside and would answer CANCELLED.
fn deadline(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let time = value.to_str().ok().and_then(parse_timeout).ok_or_else(|| {
        let what = "the header grpc-timeout is not digits and one of H, M, S, m, u, n";
        Error::new(ErrorCode::BadField, what).with("field", "grpc-timeout")
    })?;
    Ok(Some(time * 49 / 50))
}

/// At most eight digits and a unit, as gRPC over HTTP/2 has it.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u32 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(u64::from(n) * 3600)),
        "M" => Some(Duration::from_secs(u64::from(n) * 60)),
        "S" => Some(Duration::from_secs(n.into())),
        "m" => Some(Duration::from_millis(n.into())),
        "u" => Some(Duration::from_micros(n.into())),
        "n" => Some(Duration::from_nanos(n.into())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys { worker: TokenDigest::of(b"work"), operator: TokenDigest::of(b"operate") }
    }

    fn code(path: &str, authorization: Option<&str>) -> Option<ErrorCode> {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, value.parse().expect("a header"));
        }
        keys().check(path, &headers).err().map(|error| error.code)
    }

    #[test]
    fn each_role_makes_its_own_calls() {
        let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        let (both, none) = ([true, true], [false, false]);
        for (path, [worker, operator]) in [
            ("/ps.v1.Membership/Join", both),
            ("/ps.v1.Membership/Heartbeat", both),
            ("/ps.v1.Membership/Leave", both),
            ("/ps.v1.Parameters/Pull", both),
            ("/ps.v1.Parameters/Push", [true, false]),
            ("/ps.v1.Parameters/PushPull", [true, false]),
            ("/ps.v1.Parameters/Evaluate", [true, false]),
            ("/ps.v1.Parameters/MergeStatistics", [true, false]),
            ("/ps.v1.Partition/Stage", [true, false]),
            ("/ps.v1.Partition/Take", [true, true]),
            ("/ps.v1.Partition/Follow", [false, true]),
            ("/ps.v1.Operator/Status", [false, true]),
            ("/ps.v1.Operator/Stop", [false, true]),
            ("/ps.v1.Operator/Checkpoint", [false, true]),
            (reflection, both),
        ] {
            for (token, may) in [("Bearer work", worker), ("bearer operate", operator)] {
                let want = (!may).then_some(ErrorCode::PermissionDenied);
                assert_eq!(code(path, Some(token)), want, "{path} {token}");
            }
            let unauthenticated = Some(ErrorCode::Unauthenticated);
            for bad in
                ["Bearer ", "Bearer wor", "Bearer work ", "Bearer workk", "Basic work", "work"]
            {
                assert_eq!(code(path, Some(bad)), unauthenticated, "{path} {bad:?}");
            }
            assert_eq!(code(path, None), unauthenticated, "{path}");
            assert_ne!([worker, operator], none);
        }
        assert_eq!(code("/grpc.health.v1.Health/Check", None), None);
    }

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        for (text, want) in [
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("250m", Some(Duration::from_millis(250))),
            ("7u", Some(Duration::from_micros(7))),
            ("9n", Some(Duration::from_nanos(9))),
            ("2M", Some(Duration::from_secs(120))),
            ("soon", None),
            ("", None),
            ("S", None),
            ("-1S", None),
            ("123456789S", None),
            ("1", None),
            ("1é", None),
        ] {
            assert_eq!(parse_timeout(text), want, "{text}");
        }
    }
}

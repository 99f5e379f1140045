//! All services on one listener, with limits, health, reflection; served until told to stop.

use std::any::Any;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ps_common::dtype::CHUNK_BYTES;
use ps_common::exit::ExitError;
use ps_common::wire::pb::membership_server::MembershipServer;
use ps_common::wire::pb::operator_server::OperatorServer;
use ps_common::wire::{CONTROL_MESSAGE_BYTES_MAX, FILE_DESCRIPTOR_SET};
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower_http::catch_panic::CatchPanicLayer;

use super::answer;
use super::connections::Connections;
use super::elsewhere::{Elsewhere, FollowerOperator};
use super::following::Following;
use super::gate::GateLayer;
use super::lanes::{Incoming, Lanes};
use super::membership::MembershipService;
use super::operator::OperatorService;
use super::parameters::ParametersService;
use super::partition::PartitionService;
use super::protection::Protection;
use super::shell::Shell;
use super::turnaways::Turnaways;

/// Bytes that may be on their way in one stream or connection. Large enough to keep the pipe full
/// and h2's guard against small frames quiet, small enough that data is still in cache when it is
/// used.
const WINDOW_BYTES: u32 = 2 << 20;
/// A chunk and its header in one HTTP/2 frame.
const FRAME_BYTES_MAX: u32 = (CHUNK_BYTES as u32) * 2;
const KEEPALIVE: Duration = Duration::from_secs(10);
const STREAMS_MAX: u32 = 256;
const HEADER_BYTES_MAX: u32 = 16 << 10;

const MEMBERSHIP: &str = <MembershipServer<MembershipService> as NamedService>::NAME;
const PARAMETERS: &str = ParametersService::NAME;
const PARTITION: &str = PartitionService::NAME;
const OPERATOR: &str = <OperatorServer<OperatorService> as NamedService>::NAME;

/// What the health service says.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
    /// That serve from the start.
    from_start: &'static [&'static str],
    /// That serve while there is a theta.
    with_theta: &'static [&'static str],
}

impl Health {
    /// The server takes calls; there is no theta yet, so what is about theta does not serve.
    pub async fn ready(&self) {
        self.set(self.from_start, ServingStatus::Serving).await;
        self.uninitialized().await;
    }

    /// There is a theta.
    pub async fn initialized(&self) {
        self.set(self.with_theta, ServingStatus::Serving).await;
    }

    /// There is none, or none any more.
    pub async fn uninitialized(&self) {
        self.set(self.with_theta, ServingStatus::NotServing).await;
    }

    /// The server is going.
    pub async fn draining(&self) {
        self.set(self.from_start, ServingStatus::NotServing).await;
        self.uninitialized().await;
    }

    async fn set(&self, services: &[&str], status: ServingStatus) {
        for service in services {
            self.reporter.set_service_status(*service, status).await;
        }
    }
}

/// `routes` with what every server serves besides.
fn with_common(routes: Routes) -> (Routes, HealthReporter) {
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = |builder: tonic_reflection::server::Builder<'static>| {
        builder
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let new = tonic_reflection::server::Builder::configure;
    let v1 = reflection(new()).build_v1().expect("our own descriptor set is valid");
    let v1alpha = reflection(new()).build_v1alpha().expect("our own descriptor set is valid");
    (routes.add_service(health).add_service(v1).add_service(v1alpha), reporter)
}

/// The services, and a hold on their health; not serving yet.
fn routes(shell: &Arc<Shell>, stall: Duration, turnaways: Arc<Turnaways>) -> (Routes, Health) {
    let shell = || Arc::clone(shell);
    let parameters =
        ParametersService { shell: shell(), stall, turnaways, encoder: Arc::default() };
    let membership = MembershipServer::new(MembershipService { shell: shell() })
        .max_decoding_message_size(CONTROL_MESSAGE_BYTES_MAX);
    let operator = OperatorServer::new(OperatorService { shell: shell() })
        .max_decoding_message_size(CONTROL_MESSAGE_BYTES_MAX);
    let routes = Routes::new(parameters).add_service(membership).add_service(operator);
    let (routes, reporter) = with_common(routes);
    let (from_start, with_theta) = (&["", MEMBERSHIP, OPERATOR][..], &[PARAMETERS][..]);
    (routes, Health { reporter, from_start, with_theta })
}

/// The services of a server that decides nothing: what only partition 0 can answer is refused.
fn routes_of_follower(
    following: &Arc<Following>,
    stall: Duration,
    turnaways: Arc<Turnaways>,
) -> (Routes, Health) {
    let partition = following.partition();
    let following = || Arc::clone(following);
    let service =
        PartitionService { following: following(), stall, turnaways, encoder: Arc::default() };
    let operator = OperatorServer::new(FollowerOperator { following: following() })
        .max_decoding_message_size(CONTROL_MESSAGE_BYTES_MAX);
    let routes = Routes::new(service)
        .add_service(operator)
        .add_service(Elsewhere::<ParametersService>::new(partition))
        .add_service(Elsewhere::<MembershipServer<MembershipService>>::new(partition));
    let (routes, reporter) = with_common(routes);
    let (from_start, with_theta) = (&["", OPERATOR][..], &[PARTITION, PARAMETERS][..]);
    (routes, Health { reporter, from_start, with_theta })
}

/// What every lane serves.
#[derive(Clone)]
struct Served {
    routes: Routes,
    gate: GateLayer,
    /// Of a connection, before it is asked to end.
    age: Duration,
}

/// Serves `connections` until `stop` ends and calls in flight are done. The health that `ready`
/// gets is not serving yet.
///
/// # Errors
/// The system's, where it gives no threads.
pub async fn serve(
    shell: Arc<Shell>,
    connections: Connections,
    protection: &Protection,
    ready: impl FnOnce(Health),
    stop: impl Future<Output = ()>,
) -> Result<(), ExitError> {
    let routes = routes(&shell, protection.limits().stall, connections.turnaways());
    serve_routes(routes, connections, protection, ready, stop).await
}

/// As [`serve`], a server that carries out what partition 0 decides.
///
/// # Errors
/// As [`serve`].
pub async fn serve_follower(
    following: Arc<Following>,
    connections: Connections,
    protection: &Protection,
    ready: impl FnOnce(Health),
    stop: impl Future<Output = ()>,
) -> Result<(), ExitError> {
    let stall = protection.limits().stall;
    let routes = routes_of_follower(&following, stall, connections.turnaways());
    serve_routes(routes, connections, protection, ready, stop).await
}

async fn serve_routes(
    (routes, health): (Routes, Health),
    connections: Connections,
    protection: &Protection,
    ready: impl FnOnce(Health),
    stop: impl Future<Output = ()>,
) -> Result<(), ExitError> {
    let turnaways = connections.turnaways();
    let limits = *protection.limits();
    let entrance = protection.entrance(Arc::clone(&turnaways));
    let gate = GateLayer(Arc::new(protection.rules(turnaways)));
    let served = Served { routes, gate, age: limits.age };
    let lanes = match connections.may_move() {
        true => Lanes::start(&entrance, move |incoming| served.clone().on_lane(incoming))?,
        false => Lanes::here(&entrance, |incoming| served.on_lane(incoming)),
    };
    ready(health);
    tokio::select! {
        biased;
        never = connections.hand_out(&lanes) => match never {},
        () = stop => {}
    }
    lanes.finish().await;
    Ok(())
}

impl Served {
    /// Serves the connections of one lane until no more come and their calls in flight are done.
    async fn on_lane(self, incoming: Incoming) {
        let served = Server::builder()
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_concurrent_streams(STREAMS_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .http2_max_header_list_size(HEADER_BYTES_MAX)
            // Asks it to end; `Connection` cuts what has not ended by the end of its grace.
            .max_connection_age(self.age)
            .layer(CatchPanicLayer::custom(internal_error))
            .layer(self.gate)
            .add_routes(self.routes)
            // The end of `incoming` stops it; only with a signal does it then wait for its calls.
            .serve_with_incoming_shutdown(incoming, std::future::pending())
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "a thread stopped serving");
        }
    }
}

/// A panic ends its call with INTERNAL, not the process (row 48).
#[allow(clippy::needless_pass_by_value)]
fn internal_error(panic: Box<dyn Any + Send + 'static>) -> http::Response<Body> {
    let what = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    tracing::error!(panic = what, "a call panicked");
    answer::failed_inside().into_http()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing;
    use ps_common::wire::pb;
    use ps_common::wire::pb::operator_client::OperatorClient;
    use ps_common::wire::pb::operator_server::Operator;
    use ps_tests::rows::{Seen, stands};
    use tonic::{Request, Response, Status};

    /// An operator service that has a bug.
    struct Buggy;

    #[tonic::async_trait]
    impl Operator for Buggy {
        async fn status(
            &self,
            _: Request<pb::StatusRequest>,
        ) -> Result<Response<pb::StatusResponse>, Status> {
            panic!("a bug")
        }

        async fn checkpoint(
            &self,
            _: Request<pb::CheckpointRequest>,
        ) -> Result<Response<pb::CheckpointResponse>, Status> {
            Ok(Response::new(pb::CheckpointResponse::default()))
        }

        async fn stop(
            &self,
            _: Request<pb::StopRequest>,
        ) -> Result<Response<pb::StopResponse>, Status> {
            Ok(Response::new(pb::StopResponse::default()))
        }
    }

    #[tokio::test]
    async fn row_48_a_panic_ends_its_call_and_nothing_else() {
        let shell = testing::shell();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let protection = testing::unprotected();
        let limits = *protection.limits();
        let connections = Connections::new(listener, shell, &limits);
        let turnaways = connections.turnaways();
        let entrance = protection.entrance(Arc::clone(&turnaways));
        let gate = GateLayer(Arc::new(protection.rules(turnaways)));
        let routes = Routes::new(OperatorServer::new(Buggy));
        let served = Served { routes, gate, age: limits.age };
        let lanes = Lanes::start(&entrance, move |incoming| served.clone().on_lane(incoming));
        let lanes = lanes.expect("threads");
        let server = tokio::spawn(async move { connections.hand_out(&lanes).await });

        let mut client = OperatorClient::connect(format!("http://{address}")).await.expect("up");
        for _ in 0..3 {
            let status = client.status(pb::StatusRequest {}).await.expect_err("it panics");
            assert_eq!(status.code(), tonic::Code::Internal);
            client.checkpoint(pb::CheckpointRequest {}).await.expect("the connection lives");
        }
        let seen = Seen { theta_unchanged: None, good_undisturbed: Some(true) };
        stands(48, "a call of the server panics", "INTERNAL; connection and process live", seen);
        server.abort();
    }
}

//! `psctl health`: the standard health check (grpc.health.v1) as an exit code, for containers.

use std::time::Duration;

use clap::Args;
use ps_common::exit::{Exit, ExitError};
use ps_common::units::parse_duration;
use ps_common::wire::status::{Failure, from_status};
use ps_worker::args::check_servers;
use ps_worker::credentials::CredentialArgs;
use ps_worker::net::connect::{NoConnection, Route};
use ps_worker::net::{Approach, Credentials};
use tokio::time::timeout;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::cli::print;

/// Asks a server, or each of several, whether it serves: exit code 0 if so, 1 if not, 69 if it is not
/// reachable
#[derive(Args, Debug)]
pub struct HealthArgs {
    /// URL of the server, https://HOST:PORT with TLS
    #[arg(
        long,
        env = "PS_SERVER",
        default_value = "http://127.0.0.1:50051",
        value_name = "URL",
        value_delimiter = ','
    )]
    server: Vec<String>,
    /// Service asked about, such as ps.v1.Parameters; empty: the server as a whole
    #[arg(long, default_value = "", value_name = "NAME")]
    service: String,
    /// How long the answer may take in all
    #[arg(long, default_value = "3s", value_name = "TIME", value_parser = parse_duration)]
    timeout: Duration,
    /// TLS; a token is not needed for this call.
    #[command(flatten)]
    credentials: CredentialArgs,
}

/// Asks once: a health check that tries again hides what it should show.
///
/// # Errors
/// Failed where a server says that it does not serve; unavailable where it does not answer.
pub async fn health(args: HealthArgs) -> Result<(), ExitError> {
    check_servers(&args.server)?;
    let credentials = Credentials::load(&args.credentials, &args.server)?;
    let approach = Approach { credentials, ..Approach::default() };
    for server in &args.server {
        check(&args, server, &approach).await?;
    }
    print(&mut std::io::stdout(), "serving\n")
}

async fn check(args: &HealthArgs, server: &str, approach: &Approach) -> Result<(), ExitError> {
    let route = Route::new(server, approach)?;
    let unreachable =
        |what: &str| ExitError::new(Exit::Unavailable, format!("server {server}: {what}"));
    let check = async {
        let line = route.connect().await.map_err(|why| match why {
            NoConnection::Hopeless(error) => error,
            NoConnection::Failed(error) => unreachable("not reachable").because(error),
        })?;
        let request = HealthCheckRequest { service: args.service.clone() };
        Ok(HealthClient::new(line).check(request).await)
    };
    let answer = timeout(args.timeout, check)
        .await
        .map_err(|_| unreachable(&format!("no answer within {:?}", args.timeout)))??;
    match answer {
        Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Ok(()),
        Ok(answer) => Err(ExitError::new(
            Exit::Failed,
            format!("server {server} answers {}", answer.get_ref().status().as_str_name()),
        )),
        Err(status) if status.code() == Code::NotFound => Err(ExitError::new(
            Exit::Failed,
            format!("server {server} has no service `{}`", args.service),
        )),
        Err(status) => Err(match from_status(&status) {
            Failure::Refused(error) => {
                ExitError::config(format!("server {server}: {}", error.message))
            }
            failure => unreachable("the health check failed").because(failure),
        }),
    }
}

//! What an operator asks a running server: how it stands, whether it serves, its theta, a
//! checkpoint, its end.

mod checkpoint;
mod export;
mod health;
mod status;
mod stop;

use std::time::Duration;

use clap::Args;
use ps_common::ErrorCode;
use ps_common::exit::{Exit, ExitError};
use ps_common::units::parse_duration;
use ps_common::wire::status::Failure;
use ps_worker::args::check_servers;
use ps_worker::credentials::CredentialArgs;
use ps_worker::net::{Approach, Client, Credentials};

pub use checkpoint::{CheckpointArgs, checkpoint};
pub use export::{ExportArgs, export};
pub use health::{HealthArgs, health};
pub use status::{StatusArgs, status};
pub use stop::{StopArgs, stop};

/// Which servers.
#[derive(Args, Debug, Clone)]
pub struct ServerAddress {
    /// URL of the server, https://HOST:PORT with TLS; where several share theta, of all of them in order
    /// of partition: the first one decides, and is enough where theta is not asked for
    #[arg(
        long,
        env = "PS_SERVER",
        default_value = "http://127.0.0.1:50051",
        value_name = "URL",
        value_delimiter = ','
    )]
    pub server: Vec<String>,
    /// How long to try to reach it
    #[arg(long, env = "PS_CONNECT_TIMEOUT", default_value = "2s", value_name = "TIME", value_parser = parse_duration)]
    pub connect_timeout: Duration,
    /// Who asks.
    #[command(flatten)]
    pub credentials: CredentialArgs,
}

impl ServerAddress {
    /// The server that decides.
    async fn connect(&self) -> Result<Client, ExitError> {
        self.connect_to(&self.server[..1]).await
    }

    /// All servers.
    async fn connect_to_all(&self) -> Result<Client, ExitError> {
        self.connect_to(&self.server).await
    }

    async fn connect_to(&self, servers: &[String]) -> Result<Client, ExitError> {
        check_servers(&self.server)?;
        let credentials = Credentials::load(&self.credentials, &self.server)?;
        let approach = Approach { credentials, ..Approach::default() };
        Client::connect_with(servers, self.connect_timeout, &approach).await
    }

    /// A call failed.
    fn failed(&self, call: &str, failure: Failure) -> ExitError {
        let exit = match &failure {
            Failure::Transport(_) => Exit::Unavailable,
            Failure::Refused(error) if is_about_credentials(error.code) => Exit::Config,
            Failure::Refused(_) | Failure::Other(..) => Exit::Failed,
        };
        ExitError::new(exit, format!("server {}: {call} failed", self.server.join(",")))
            .because(failure)
    }
}

/// What another file or flag would mend, and no second attempt.
fn is_about_credentials(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Unauthenticated | ErrorCode::PermissionDenied | ErrorCode::ConfigMismatch
    )
}

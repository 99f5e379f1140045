//! `psctl stop`: ends a job, with its report.

use clap::Args;
use ps_common::exit::ExitError;

use super::ServerAddress;
use crate::cli::print;

/// Ends a job: theta as it is becomes final, final losses are collected, the report is written
#[derive(Args, Debug)]
pub struct StopArgs {
    #[command(flatten)]
    address: ServerAddress,
    /// Why, for the report
    #[arg(long, default_value = "stopped by an operator", value_name = "TEXT")]
    reason: String,
}

/// Asks the server to end its job and prints the state that it is in then.
///
/// # Errors
/// Unavailable where the server is not reached; failed where it refuses.
pub async fn stop(args: StopArgs) -> Result<(), ExitError> {
    let client = args.address.connect().await?;
    let state = client.stop(&args.reason).await.map_err(|f| args.address.failed("Stop", f))?;
    print(&mut std::io::stdout(), &format!("{state}\n"))
}

//! `psctl checkpoint`: has a server write a checkpoint now.

use clap::Args;
use ps_common::exit::ExitError;

use super::ServerAddress;
use crate::cli::print;

/// Has a server that was started with --checkpoint-dir write a checkpoint now
#[derive(Args, Debug)]
pub struct CheckpointArgs {
    #[command(flatten)]
    address: ServerAddress,
}

/// Waits until the checkpoint is durable and prints theta's version in it and its file, which is on
/// the server's machine.
///
/// # Errors
/// Unavailable where the server is not reached; failed where it keeps no checkpoints, or could not
/// write this one.
pub async fn checkpoint(args: CheckpointArgs) -> Result<(), ExitError> {
    let client = args.address.connect().await?;
    let (version, path) =
        client.checkpoint().await.map_err(|f| args.address.failed("Checkpoint", f))?;
    print(&mut std::io::stdout(), &format!("version {version}: {path}\n"))
}

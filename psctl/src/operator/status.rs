//! `psctl status`: how a job stands, once or again and again.

use std::time::Duration;

use clap::Args;
use ps_common::calls::Status;
use ps_common::exit::{Exit, ExitError};
use ps_common::job::JobState;

use super::ServerAddress;
use crate::cli::print;
use crate::observe::{facts, snapshot};
use crate::show::{self, Look};

/// Shows how a job stands: state, loss, workers
#[derive(Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    address: ServerAddress,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    /// Go on every second until the job has ended; exit code 1 if it failed
    #[arg(long)]
    watch: bool,
}

const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Asks the server and prints its answer.
///
/// # Errors
/// Unavailable where the server is not reached; with `--watch` failed where the job has failed.
pub async fn status(args: StatusArgs) -> Result<(), ExitError> {
    let client = args.address.connect().await?;
    let mut out = std::io::stdout();
    let look = Look::stdout();
    loop {
        let status = client.status().await.map_err(|f| args.address.failed("Status", f))?;
        let text = match args.json {
            true => line(&status)?,
            false => {
                let facts = facts(&status, &args.address.server);
                show::status::status(&snapshot(&status), &facts, &look)
            }
        };
        print(&mut out, &text)?;
        if !args.watch {
            return Ok(());
        }
        match status.state {
            JobState::Done => return Ok(()),
            JobState::Failed => {
                return Err(ExitError::new(
                    Exit::Failed,
                    format!("the job has failed: {}", status.reason),
                ));
            }
            JobState::Empty | JobState::Running | JobState::Finishing => {}
        }
        tokio::time::sleep(WATCH_EVERY).await;
        if !args.json {
            print(&mut out, "\n")?;
        }
    }
}

fn line(status: &Status) -> Result<String, ExitError> {
    let mut line = serde_json::to_string(status)
        .map_err(|e| ExitError::new(Exit::Bug, "the status is no JSON").because(e))?;
    line.push('\n');
    Ok(line)
}

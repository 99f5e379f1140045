//! `psctl status`: how a job stands, once or again and again.

use std::time::Duration;

use clap::Args;
use ps_common::calls::Status;
use ps_common::exit::{Exit, ExitError};
use ps_common::job::JobState;
use serde::Serialize;

use super::ServerAddress;
use crate::cli::print;
use crate::observe::{facts, snapshot};
use crate::show::status::ServerLine;
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

/// Asks the server that decides, and the others in short, and prints the answers.
///
/// # Errors
/// Unavailable where the server is not reached; with `--watch` failed where the job has failed.
pub async fn status(args: StatusArgs) -> Result<(), ExitError> {
    let client = args.address.connect().await?;
    let mut out = std::io::stdout();
    let look = Look::stdout();
    loop {
        let status = client.status().await.map_err(|f| args.address.failed("Status", f))?;
        let others = others(&args.address, &status).await?;
        let text = match args.json {
            true => line(&status, &others)?,
            false => {
                let facts = facts(&status, &args.address.server[0]);
                let job = show::status::status(&snapshot(&status), &facts, &look);
                job + &show::status::servers(&others, &look)
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

/// How all servers stand, the first included; nothing where there is one. One that does not answer is
/// no reason to say nothing of the others.
async fn others(address: &ServerAddress, first: &Status) -> Result<Vec<ServerLine>, ExitError> {
    if address.server.len() == 1 {
        return Ok(Vec::new());
    }
    let line = |url: &String, status: &Status| ServerLine {
        address: url.clone(),
        state: Some(status.state),
        version: status.version,
        dim: status.dim,
        trouble: String::new(),
    };
    let mut lines = vec![line(&address.server[0], first)];
    for url in &address.server[1..] {
        let asked = match address.connect_to(std::slice::from_ref(url)).await {
            Ok(client) => client.status().await.map_err(|failure| failure.to_string()),
            Err(error) if error.exit == Exit::Unavailable => Err("not reachable".to_owned()),
            Err(error) => return Err(error),
        };
        lines.push(match asked {
            Ok(status) => line(url, &status),
            Err(trouble) => {
                ServerLine { address: url.clone(), state: None, version: 0, dim: 0, trouble }
            }
        });
    }
    Ok(lines)
}

/// The first server's status, with a list of all servers where there are several.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    status: &'a Status,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    servers: &'a [ServerLine],
}

fn line(status: &Status, servers: &[ServerLine]) -> Result<String, ExitError> {
    let mut line = serde_json::to_string(&Line { status, servers })
        .map_err(|e| ExitError::new(Exit::Bug, "the status is no JSON").because(e))?;
    line.push('\n');
    Ok(line)
}

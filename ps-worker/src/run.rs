//! The program `ps-worker`: from flags to the exit code, signals included.

use std::ffi::OsString;
use std::io::{self, Read, Write};

use clap::{CommandFactory, FromArgMatches};
use ps_common::exit::{Exit, ExitError};
use ps_common::{flags, logging};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::args::{Part, WorkerArgs, implied};
use crate::net::Surroundings;
use crate::net::evaluate::evaluate;
use crate::net::link::keep_alive;
use crate::net::session::{Duty, work};

/// The whole program. `arguments` begin with the program's name.
///
/// # Errors
/// What the program ends with. Usage errors, `--help` and `--version` end the process here.
pub fn main(arguments: &[OsString]) -> Result<(), ExitError> {
    let matches = flags::parse_task(&WorkerArgs::command(), arguments, implied)?;
    let args = WorkerArgs::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if args.attach.program.file.print_config {
        // Somebody who closed stdout does not want it.
        let _ = io::stdout().write_all(flags::to_toml(&args).as_bytes());
        return Ok(());
    }
    logging::init("info", args.attach.program.log_json);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ExitError::new(Exit::Io, "cannot start the runtime").because(error))?;
    let result = runtime.block_on(run(args));
    // A computation that nobody waits for any more must not hold up the end.
    runtime.shutdown_background();
    result
}

/// Takes part in a job until it ends, the process is told to, or all hope is lost.
///
/// SIGINT ends it at once, SIGTERM after a goodbye to the server, and with `--watch-stdin` so does
/// the end of stdin.
///
/// # Errors
/// What the program ends with.
pub async fn run(args: WorkerArgs) -> Result<(), ExitError> {
    let attachment = args.check()?;
    let cannot = |error| ExitError::new(Exit::Io, "cannot listen to signals").because(error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let stdin = watch_stdin(args.attach.program.watch_stdin)?;
    let (present, presence) = watch::channel(None);
    let surroundings = Surroundings::default();
    let life = async {
        match attachment.part.clone() {
            Part::Work { rank, delay_ms, wire, overlap, sparse } => {
                let duty = Duty { rank, delay_ms, wire, overlap, sparse };
                work(&args.learn, &attachment, duty, &surroundings, present).await
            }
            Part::Evaluate(evaluation) => {
                evaluate(&args.learn, &attachment, evaluation, &surroundings, present).await
            }
        }
    };
    let why = tokio::select! {
        result = life => return result,
        never = keep_alive(presence.clone()) => match never {},
        _ = interrupt.recv() => {
            return Err(ExitError::new(Exit::Interrupted, "interrupted"));
        }
        _ = terminate.recv() => "terminated",
        () = end_of_stdin(stdin) => "stdin has ended: nobody is left to work for",
    };
    let presence = presence.borrow().clone();
    if let Some(presence) = presence {
        presence.leave().await;
    }
    Err(ExitError::new(Exit::Terminated, why))
}

/// Watches stdin on a thread of its own, if it is to be watched.
fn watch_stdin(watch: bool) -> Result<Option<oneshot::Receiver<()>>, ExitError> {
    if !watch {
        return Ok(None);
    }
    let (ended, wait) = oneshot::channel();
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            let mut buffer = [0; 64];
            // An error is an end as well: whoever held the other side is gone.
            while io::stdin().read(&mut buffer).is_ok_and(|n| n > 0) {}
            let _ = ended.send(());
        })
        .map_err(|error| ExitError::new(Exit::Io, "cannot watch stdin").because(error))?;
    Ok(Some(wait))
}

/// Done when stdin ends; never, if nobody watches.
async fn end_of_stdin(watched: Option<oneshot::Receiver<()>>) {
    match watched {
        Some(wait) => drop(wait.await),
        None => std::future::pending().await,
    }
}

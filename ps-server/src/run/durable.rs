//! The program of a server that outlives its process: the directory it is given, what it says of a job
//! that it takes up again, its last checkpoint.

use std::sync::Arc;
use std::time::Duration;

use ps_common::ErrorCode;
use ps_common::exit::{Exit, ExitError};
use tokio::time::Instant;

use super::Start;
use crate::args::{DurabilitySpec, Resume, ServerArgs};
use crate::core::Config;
use crate::keeper::{Keeper, Resumption, Settings};
use crate::net::Shell;
use crate::storage::{self, RealDisk};

/// How long what the server before holds may take to come free.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the directory may take that the life before had in this process: a checkpoint may be on its
/// way.
const PATIENCE_AGAIN: Duration = Duration::from_secs(300);

/// Tries again while `is_held` says that another one holds what is wanted: who starts a server right
/// after he killed one need not know how long the system takes to end it.
pub(super) async fn patiently<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    is_held: impl Fn(&E) -> bool,
) -> Result<T, E> {
    patiently_for(PATIENCE, &mut attempt, is_held).await
}

async fn patiently_for<T, E>(
    patience: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
    is_held: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let end = Instant::now() + patience;
    loop {
        match attempt() {
            Err(error) if is_held(&error) && Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            result => return result,
        }
    }
}

/// Says what a crash may undo, and locks the directory, if what lies there is as `--resume` wants it.
pub(super) async fn open(
    durability: &DurabilitySpec,
    config: &Config,
    start: Start,
) -> Result<Keeper, ExitError> {
    let patience = match start {
        Start::First => {
            say(&durability.loss_window(config.consistency.mode()));
            PATIENCE
        }
        Start::Again => PATIENCE_AGAIN,
    };
    let DurabilitySpec { directory, checkpoints, keep, resume, journal_bytes_max } = durability;
    let settings = Settings {
        durability: checkpoints.durability,
        partition: config.partition,
        keep: *keep,
        journal_bytes_max: *journal_bytes_max,
        threads: true,
    };
    let keeper = patiently_for(
        patience,
        || Keeper::open(Arc::new(RealDisk), directory, settings),
        |error| matches!(error, storage::Error::Locked { .. }),
    );
    let keeper = keeper.await.map_err(storage::Error::into_exit)?;
    let versions = keeper.versions().map_err(storage::Error::into_exit)?;
    match (resume, versions.first()) {
        _ if start == Start::Again => Ok(keeper),
        (Resume::Never, Some(version)) => Err(ExitError::config(format!(
            "--resume never: {} has a job's checkpoints, the newest of version {version}; give a new \
             job another directory, or delete them",
            directory.display()
        ))),
        (Resume::Require, None) => Err(ExitError::new(
            Exit::BadData,
            format!("--resume require: {} has no checkpoint", directory.display()),
        )),
        _ => Ok(keeper),
    }
}

/// What a person wants to know of a job that was taken up again.
pub(super) fn tell_of(resumption: &Resumption, has_theta_in: bool) {
    let Resumption { path, version, refused, recovered } = resumption;
    for refused in refused {
        tracing::warn!("a damaged checkpoint was put aside: {}", refused.reason);
    }
    say(&format!("goes on from {}, version {version} of theta", path.display()));
    if recovered.n_records > 0 {
        say(&format!(
            "the journal had {} updates more: theta is at version {}",
            recovered.n_records, recovered.version
        ));
    }
    if let Some(cut) = &recovered.cut {
        tracing::warn!(
            "{}: cut its torn end of {} bytes, which nobody was told is durable: {}",
            cut.path.display(),
            cut.cut_bytes,
            cut.what
        );
    }
    if has_theta_in {
        tracing::warn!("--theta-in is of no use here: the job has a theta already");
    }
}

/// The last checkpoint of this life, where any are kept.
pub(super) async fn last_checkpoint(args: &ServerArgs, shell: &Shell) -> Result<(), ExitError> {
    if args.serve.durability.checkpoint_dir.is_none() {
        return Ok(());
    }
    match shell.checkpoint().await {
        Ok((version, path)) => tracing::info!(version, path, "the last checkpoint is durable"),
        // Nobody has joined: there is nothing to keep.
        Err(error) if error.code == ErrorCode::NotInitialized => {}
        Err(error) => {
            let what = format!("the last checkpoint could not be written: {}", error.message);
            return Err(ExitError::new(Exit::Io, what));
        }
    }
    Ok(())
}

/// A line for whoever looks on.
pub(super) fn say(text: &str) {
    use std::io::Write;
    // Nobody may look on.
    let _ = writeln!(std::io::stderr(), "ps-server: {text}");
}

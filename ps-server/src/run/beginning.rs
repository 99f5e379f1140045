//! How a life of the job begins: the other servers are gathered, if there are any, all take up the
//! newest checkpoint that every one of them has, and the driver is made from it (rule R3).
//!
//! While servers are awaited the port is bound and nothing is served: who calls waits in its queue.

use std::sync::Arc;
use std::time::Duration;

use ps_common::ErrorCode;
use ps_common::dtype::CHUNK_BYTES;
use ps_common::exit::{Exit, ExitError};
use ps_common::job::PROTOCOL_VERSION;
use ps_common::partition::{CheckpointName, Decision, Partition};
use tokio::time::Instant;

use super::{Program, Signals, Start, durable, program, read_start};
use crate::args::Resume;
use crate::core::Config;
use crate::driver::Driver;
use crate::group::Lost;
use crate::keeper::{Keeper, Origin};
use crate::net::{NotGathered, Peers, Ways};
use crate::storage;

/// Between two attempts to begin with the same servers.
const PAUSE: Duration = Duration::from_millis(200);

/// What a life begins with.
pub(super) struct Begun {
    /// With theta, where the job had one.
    pub(super) driver: Driver,
    /// The other servers, which have begun.
    pub(super) peers: Option<Peers>,
    /// What the report should tell of the beginning.
    pub(super) notes: Vec<(&'static str, String)>,
}

/// What one attempt came to that did not begin a life.
enum Stumble {
    /// Not with this checkpoint.
    Unusable(CheckpointName, String),
    /// A server went while it began.
    Lost(Lost),
}

impl Program {
    /// Begins a life with the job that `keeper` has, if it has one; `lost` ended the one before.
    pub(super) async fn begin(
        &self,
        keeper: Option<Keeper>,
        lost: Option<&Lost>,
        signals: &mut Signals,
    ) -> Result<Begun, ExitError> {
        let Some(ways) = &self.ways else {
            let config = self.config_of(keeper.as_ref());
            let driver = self.driver(&config, keeper, Origin::Newest)?;
            let driver = driver.map_err(storage::Error::into_exit)?;
            return Ok(Begun { driver, peers: None, notes: Vec::new() });
        };
        tokio::select! {
            begun = self.begin_together(ways, keeper, lost) => begun,
            exit = signals.next() => {
                Err(ExitError::new(exit, "stopped while it waited for the other servers"))
            }
        }
    }

    fn config_of(&self, keeper: Option<&Keeper>) -> Config {
        Config { boot: keeper.map_or(0, Keeper::boot), ..self.spec.config.clone() }
    }

    /// Tries until a life has begun on all servers.
    async fn begin_together(
        &self,
        ways: &Ways,
        mut keeper: Option<Keeper>,
        lost: Option<&Lost>,
    ) -> Result<Begun, ExitError> {
        let until = Instant::now() + self.spec.config.replacement_timeout;
        let mut unusable = Vec::new();
        loop {
            let config = self.config_of(keeper.as_ref());
            let peers = self.gather(ways, until).await?;
            let origin = self.choose(keeper.as_ref(), &peers, &unusable, lost.is_none())?;
            let begin = Decision::Begin { epoch: config.boot, checkpoint: origin };
            let stumble = match self.all_begin(&peers, begin, origin).await? {
                Some(stumble) => stumble,
                None => match self.driver(&config, keeper.take(), Origin::Chosen(origin))? {
                    Ok(driver) => {
                        let driver = driver.followed_by(Arc::clone(peers.group()));
                        let notes = notes(lost, origin);
                        return Ok(Begun { driver, peers: Some(peers), notes });
                    }
                    Err(error) => match origin {
                        Some(name) => Stumble::Unusable(name, error.into_exit().message),
                        None => return Err(error.into_exit()),
                    },
                },
            };
            // Those that have begun go back to where they wait.
            drop(peers);
            match stumble {
                Stumble::Unusable(name, what) => {
                    tracing::warn!(version = name.version, "a checkpoint cannot be used: {what}");
                    unusable.push(name);
                }
                Stumble::Lost(lost) if Instant::now() + PAUSE >= until => {
                    return Err(self.not_there(&lost));
                }
                Stumble::Lost(lost) => tracing::warn!("{lost}; trying again"),
            }
            tokio::time::sleep(PAUSE).await;
            if keeper.is_none() {
                keeper = self.open_directory(Start::Again).await?;
            }
        }
    }

    async fn gather(&self, ways: &Ways, until: Instant) -> Result<Peers, ExitError> {
        let settings = self.spec.settings(&self.args.serve);
        let open = |partition: Partition| Decision::Open {
            protocol_version: PROTOCOL_VERSION,
            partition,
            settings: settings.clone(),
        };
        Peers::gather(ways, until, open).await.map_err(|failure| match failure {
            NotGathered::Refused(error) => error,
            NotGathered::Missing(lost) => self.not_there(&lost),
        })
    }

    fn not_there(&self, lost: &Lost) -> ExitError {
        let timeout = self.spec.config.replacement_timeout.as_secs_f64();
        let Lost { partition, url, what, .. } = lost;
        ExitError::new(
            Exit::Failed,
            format!(
                "server {partition} ({url}) was not there within --replacement-timeout ({timeout} s): \
                 {what}"
            ),
        )
    }

    /// The newest checkpoint that all servers have; `None`: they begin from nothing.
    fn choose(
        &self,
        keeper: Option<&Keeper>,
        peers: &Peers,
        unusable: &[CheckpointName],
        is_first: bool,
    ) -> Result<Option<CheckpointName>, ExitError> {
        let Some(keeper) = keeper else { return Ok(None) };
        let own = keeper.names().map_err(storage::Error::into_exit)?;
        let all_have = |name: &CheckpointName| {
            peers.holding().iter().all(|theirs| theirs.contains(name)) && !unusable.contains(name)
        };
        let newest = own.iter().copied().filter(all_have).max();
        let wants = self.durability.as_ref().map(|durability| durability.resume);
        if newest.is_none() && is_first && wants == Some(Resume::Require) {
            return Err(ExitError::new(
                Exit::BadData,
                "--resume require: there is no checkpoint that all servers have",
            ));
        }
        if let (None, Some(lone)) = (newest, own.first()) {
            tracing::warn!(
                version = lone.version,
                "no checkpoint is on all servers: the job begins from nothing, and those that are \
                 here are put aside"
            );
        }
        Ok(newest)
    }

    /// Has all others begin.
    async fn all_begin(
        &self,
        peers: &Peers,
        begin: Decision,
        origin: Option<CheckpointName>,
    ) -> Result<Option<Stumble>, ExitError> {
        peers.group().tell(&begin);
        let group = Arc::clone(peers.group());
        let ready = tokio::task::spawn_blocking(move || group.ready())
            .await
            .map_err(|e| ExitError::new(Exit::Bug, "nobody waited for the servers").because(e))?;
        let Err(lost) = ready else { return Ok(None) };
        Ok(Some(match (lost.code, origin) {
            (Some(ErrorCode::ConfigMismatch), _) => {
                return Err(ExitError::config(lost.to_string()));
            }
            // It says so of a file that it cannot read.
            (Some(ErrorCode::NotDurable), Some(name)) => Stumble::Unusable(name, lost.to_string()),
            _ => Stumble::Lost(lost),
        }))
    }

    /// The server without its network, with the job that `keeper` has, if it has one. The inner
    /// result is that of reading a checkpoint.
    fn driver(
        &self,
        config: &Config,
        keeper: Option<Keeper>,
        origin: Origin,
    ) -> Result<Result<Driver, storage::Error>, ExitError> {
        let (dtype, optimizer) = (self.spec.dtype, self.spec.optimizer);
        let theta_in = self.args.serve.theta_in.as_deref();
        let start = theta_in.map(|path| read_start(path, dtype)).transpose()?;
        let mut driver = Driver::new(config.clone(), dtype, optimizer, CHUNK_BYTES, &program());
        if let Some(start) = start {
            driver = driver.starting_from(start);
        }
        let Some(keeper) = keeper else { return Ok(Ok(driver)) };
        let (driver, resumption) = match driver.kept_from(origin, keeper, config, dtype) {
            Ok(kept) => kept,
            Err(error @ (storage::Error::Bad { .. } | storage::Error::Io { .. })) => {
                return Ok(Err(error));
            }
            Err(error) => return Err(error.into_exit()),
        };
        if let Some(resumption) = &resumption {
            durable::tell_of(resumption, theta_in.is_some());
        }
        Ok(Ok(driver))
    }
}

/// What the report says of a life that follows a loss.
fn notes(lost: Option<&Lost>, origin: Option<CheckpointName>) -> Vec<(&'static str, String)> {
    let Some(lost) = lost else { return Vec::new() };
    let version = origin.map_or(0, |name| name.version);
    let began = format!("all servers began anew at version {version} of theta");
    vec![("server lost", lost.to_string()), ("group began anew", began)]
}

//! A member's standing with the server: joined, kept alive, found again, joined again.
//!
//! Owns what is done about failures; what the calls are for is the business of `session` and
//! `evaluate`.

use std::convert::Infallible;
use std::time::Duration;

use ps_common::ErrorCode;
use ps_common::calls::{Caller, JoinAnswer, JoinRequest, Leave};
use ps_common::exit::{Exit, ExitError};
use ps_common::job::{Metrics, Role, WorkerStats};
use ps_common::wire::status::Failure;
use tokio::sync::watch;
use tokio::time::Instant;

use super::client::Client;
use super::connect::{Approach, Credentials};
use super::retry::{Budget, Remedy};
use super::surroundings::Surroundings;
use crate::args::Attachment;

/// A goodbye on the way out may take this long.
const LEAVE_DEADLINE: Duration = Duration::from_secs(2);

/// What the rest of the process needs to speak for the member: heartbeats, a goodbye.
#[derive(Debug, Clone)]
pub struct Presence {
    client: Client,
    caller: Caller,
    lease: Duration,
    stats: WorkerStats,
}

impl Presence {
    /// Says goodbye without final metrics, as well as that goes.
    pub async fn leave(&self) {
        let leave = Leave { caller: self.caller, stats: self.stats, final_metrics: None };
        match tokio::time::timeout(LEAVE_DEADLINE, self.client.leave(leave)).await {
            Ok(Ok(_)) => {}
            Ok(Err(failure)) => tracing::debug!(%failure, "no goodbye"),
            Err(_) => tracing::debug!("no goodbye: no answer"),
        }
    }
}

/// Renews the lease of whoever is present, three times in each lease, until dropped.
pub async fn keep_alive(mut present: watch::Receiver<Option<Presence>>) -> Infallible {
    loop {
        let presence = present.borrow_and_update().clone();
        let Some(presence) = presence else {
            if present.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            continue;
        };
        tokio::time::sleep(presence.lease / 3).await;
        // As it is now: the member may have joined again meanwhile.
        let Some(Presence { client, caller, stats, .. }) = present.borrow().clone() else {
            continue;
        };
        // What it means is found out, and mended, by the member's next call.
        if let Err(failure) = client.heartbeat(caller, stats).await {
            tracing::debug!(%failure, "no heartbeat");
        }
    }
}

/// What has become of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recovery {
    /// The same call may be made again.
    Again,
    /// The member has joined again: clock and theta are what the server says.
    Rejoined,
    /// The job has ended, and not by failing.
    Ended,
}

/// A member of a job.
pub(super) struct Link {
    servers: Vec<String>,
    /// The servers, for a person.
    url: String,
    approach: Approach,
    client: Client,
    request: JoinRequest,
    answer: JoinAnswer,
    budget: Budget,
    present: watch::Sender<Option<Presence>>,
    stats: WorkerStats,
}

impl Link {
    /// Connects and joins. `None`: the job has ended already.
    pub(super) async fn enter(
        attachment: &Attachment,
        surroundings: &Surroundings,
        request: JoinRequest,
        present: watch::Sender<Option<Presence>>,
    ) -> Result<Option<Self>, ExitError> {
        let servers = attachment.servers.clone();
        let url = servers.join(",");
        let credentials = Credentials::load(&attachment.credentials, &servers)?;
        let surroundings = surroundings.clone();
        let approach = Approach { credentials, surroundings, congestion: None };
        let client = Client::connect_with(&servers, attachment.patience, &approach).await?;
        let mut budget = Budget::new(attachment.patience, approach.surroundings.seed);
        if let Some(workers) = attachment.workers {
            check_workers(workers, &client, &mut budget, &url).await?;
        }
        let Some(answer) = join(&client, &request, &mut budget, &url, false).await? else {
            return Ok(None);
        };
        budget.succeed();
        let stats = WorkerStats::default();
        if let Some(workers) = attachment.workers.filter(|&workers| workers != answer.n_shards) {
            // With tokens only an operator may ask before the join.
            let leave = Leave { caller: answer.caller, stats, final_metrics: None };
            if let Err(failure) = client.leave(leave).await {
                tracing::debug!(%failure, "no goodbye");
            }
            return Err(other_workers(workers, answer.n_shards, &url));
        }
        let link = Self { servers, url, approach, client, request, answer, budget, present, stats };
        link.publish();
        Ok(Some(link))
    }

    /// The terms of the latest join.
    pub(super) fn answer(&self) -> &JoinAnswer {
        &self.answer
    }

    /// What there is outside.
    pub(super) fn surroundings(&self) -> &Surroundings {
        &self.approach.surroundings
    }

    /// The connection.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// States totals, for heartbeats and the goodbye; bytes are filled in.
    pub(super) fn report(&mut self, stats: WorkerStats) {
        let traffic = self.client.traffic();
        self.stats =
            WorkerStats { bytes_sent: traffic.sent(), bytes_received: traffic.received(), ..stats };
        self.publish();
    }

    /// The server has acknowledged all clocks below this one (rule R4).
    pub(super) fn acknowledge(&mut self, clock: u64) {
        self.request.acknowledged_clock = clock.checked_sub(1);
    }

    /// Calls until it succeeds; `None`: the job has ended, and not by failing.
    pub(super) async fn call<A>(
        &mut self,
        mut call: impl AsyncFnMut(&Client, Caller) -> Result<A, Failure>,
    ) -> Result<Option<A>, ExitError> {
        loop {
            match self.call_as_joined(&mut call).await? {
                Ok(answer) => return Ok(Some(answer)),
                Err(Recovery::Ended) => return Ok(None),
                Err(Recovery::Again | Recovery::Rejoined) => {}
            }
        }
    }

    /// Calls until it succeeds, or until the member had to join again or the job has ended.
    pub(super) async fn call_as_joined<A>(
        &mut self,
        mut call: impl AsyncFnMut(&Client, Caller) -> Result<A, Failure>,
    ) -> Result<Result<A, Recovery>, ExitError> {
        loop {
            match call(&self.client, self.answer.caller).await {
                Ok(answer) => {
                    self.succeed();
                    return Ok(Ok(answer));
                }
                Err(failure) => match self.recover(failure).await? {
                    Recovery::Again => {}
                    other => return Ok(Err(other)),
                },
            }
        }
    }

    /// A call has worked: patience begins anew.
    pub(super) fn succeed(&mut self) {
        self.budget.succeed();
    }

    /// Does what may be done about `failure`, pauses included.
    pub(super) async fn recover(&mut self, failure: Failure) -> Result<Recovery, ExitError> {
        if let Failure::Refused(error) = &failure {
            if is_ended(error) {
                return Ok(Recovery::Ended);
            }
            if error.code == ErrorCode::Deadline {
                // The server is well and waits for others.
                self.budget.succeed();
            }
        }
        // A server that was started anew knows neither the job nor this member.
        let forgotten =
            matches!(&failure, Failure::Refused(e) if e.code == ErrorCode::NotInitialized);
        let rejoin = forgotten || Remedy::of(&failure) == Remedy::Rejoin;
        tracing::warn!(%failure, rejoin, "trying again");
        pause_after(&mut self.budget, &self.url, failure).await?;
        if !rejoin {
            return Ok(Recovery::Again);
        }
        // Over a new connection: the server sees by the end of the old one that the rank is free.
        self.present.send_replace(None);
        let traffic = self.client.traffic().clone();
        let patience = self.budget.patience();
        let client = Client::connect_with(&self.servers, patience, &self.approach).await?;
        self.client = client.counting(traffic);
        if self.request.role == Role::Worker {
            // The shard in memory goes with the rank.
            self.request.rank = Some(self.answer.caller.rank);
        }
        let answer = join(&self.client, &self.request, &mut self.budget, &self.url, true).await?;
        let Some(answer) = answer else { return Ok(Recovery::Ended) };
        // What a restart has undone is said once (rule D6).
        self.acknowledge(answer.clock);
        self.answer = answer;
        self.publish();
        Ok(Recovery::Rejoined)
    }

    /// Says goodbye with the last measurements. `Rejoined`: nothing was said, because the job is not
    /// at its end any more.
    pub(super) async fn leave(
        &mut self,
        final_metrics: Option<Metrics>,
    ) -> Result<Recovery, ExitError> {
        let stats = self.stats;
        let left = self
            .call_as_joined(async |client, caller| {
                client.leave(Leave { caller, stats, final_metrics }).await
            })
            .await?;
        if let Err(Recovery::Rejoined) = left {
            return Ok(Recovery::Rejoined);
        }
        self.present.send_replace(None);
        Ok(Recovery::Ended)
    }

    fn publish(&self) {
        self.present.send_replace(Some(Presence {
            client: self.client.clone(),
            caller: self.answer.caller,
            lease: self.answer.lease,
            stats: self.stats,
        }));
    }
}

/// Asked before the join, so that a misled worker takes nobody's rank. A server that lets only
/// operators ask says it with the join.
async fn check_workers(
    workers: u32,
    client: &Client,
    budget: &mut Budget,
    url: &str,
) -> Result<(), ExitError> {
    let status = loop {
        match client.status().await {
            Ok(status) => break status,
            Err(Failure::Refused(error)) if error.code == ErrorCode::PermissionDenied => {
                return Ok(());
            }
            Err(failure) => pause_after(budget, url, failure).await?,
        }
    };
    match status.n_workers == workers {
        true => Ok(()),
        false => Err(other_workers(workers, status.n_workers, url)),
    }
}

fn other_workers(here: u32, there: u32, url: &str) -> ExitError {
    ExitError::config(format!("--workers is {here} here, {there} at server {url}"))
}

/// Joins, trying again where that may help. `None`: the job has ended.
async fn join(
    client: &Client,
    request: &JoinRequest,
    budget: &mut Budget,
    url: &str,
    again: bool,
) -> Result<Option<JoinAnswer>, ExitError> {
    loop {
        let failure = match client.join(request.clone()).await {
            Ok(answer) => return Ok(Some(answer)),
            Err(failure) => failure,
        };
        if let Failure::Refused(error) = &failure {
            if is_ended(error) {
                return Ok(None);
            }
            // A rank may be on its way to freedom: its lease runs out, or (on a rejoin) the server
            // has not yet seen the end of this worker's own earlier connection.
            let taken = matches!(error.code, ErrorCode::RankTaken | ErrorCode::NoVacancy);
            if taken
                && (again || error.retry_after.is_some())
                && let Some(pause) = budget.spend(Instant::now(), error.retry_after)
            {
                tracing::info!(%failure, ?pause, "waiting for a rank");
                tokio::time::sleep(pause).await;
                continue;
            }
        }
        pause_after(budget, url, failure).await?;
    }
}

/// Whether a refusal says that the job has ended, and not by failing.
fn is_ended(error: &ps_common::Error) -> bool {
    error.code == ErrorCode::JobEnded
        && error.facts.get("state").is_none_or(|state| state != "failed")
}

/// Waits before another attempt, or says why there is none.
async fn pause_after(budget: &mut Budget, url: &str, failure: Failure) -> Result<(), ExitError> {
    let at_least = match Remedy::of(&failure) {
        Remedy::None => return Err(explain(failure)),
        Remedy::Again(delay) => delay,
        Remedy::Reconnect | Remedy::Rejoin => None,
    };
    let Some(pause) = budget.spend(Instant::now(), at_least) else {
        let patience = budget.patience();
        let what = format!("server {url} was lost and not to be had again within {patience:?}");
        return Err(ExitError::new(Exit::Unavailable, what).because(failure));
    };
    tokio::time::sleep(pause).await;
    Ok(())
}

/// A failure that nothing can be done about, as the end of this process.
pub(super) fn explain(failure: Failure) -> ExitError {
    let Failure::Refused(error) = &failure else {
        return ExitError::new(Exit::Failed, "the server's answer is of no use").because(failure);
    };
    let (exit, what) = match error.code {
        ErrorCode::ConfigMismatch
        | ErrorCode::ProtoVersion
        | ErrorCode::NotBuilt
        | ErrorCode::Unauthenticated
        | ErrorCode::PermissionDenied => (Exit::Config, error.to_string()),
        ErrorCode::NonFinite | ErrorCode::UpdateOverflow => {
            (Exit::Failed, format!("diverged, lower --lr at the server: {error}"))
        }
        ErrorCode::Fenced => {
            (Exit::Failed, format!("another process has taken this worker's rank over: {error}"))
        }
        // The message says it all: whose rank it is, or why the job failed.
        _ => (Exit::Failed, error.to_string()),
    };
    ExitError::new(exit, what)
}

//! One life of the job as it is served: from the first connection to the job's end, a signal, or the
//! loss of another server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ps_common::calls::JoinAnswer;
use ps_common::exit::{Exit, ExitError};
use ps_common::job::JobState;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::beginning::Begun;
use super::{Program, Signals, cannot_accept, durable};
use crate::args::{ServerArgs, UpdateArgs};
use crate::core::Input;
use crate::group::Lost;
use crate::net::{Connections, Health, Peers, Shell, serve};
use crate::numeric::LR;
use crate::outputs;

/// Once a server is lost, calls in flight have so long for their answers.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How a life ended.
pub(super) enum End {
    /// Nobody is left who should hear of the job.
    Over,
    /// Another server is gone.
    Lost(Lost),
}

impl Program {
    /// Serves one life of the job.
    pub(super) async fn live(
        &self,
        Begun { driver, peers, notes }: Begun,
        ready: &mut Option<impl FnOnce(SocketAddr) -> Result<(), ExitError>>,
        signals: &mut Signals,
    ) -> Result<End, ExitError> {
        let listener = self.listener.as_ref().expect("bound before");
        let listener =
            listener.try_clone().and_then(TcpListener::from_std).map_err(cannot_accept)?;
        let address = listener.local_addr().map_err(cannot_accept)?;
        let shell = Shell::new(driver);
        for (kind, detail) in notes {
            shell.driver().note(shell.now(), kind, detail);
        }
        let connections = Connections::new(listener, Arc::clone(&shell), self.protection.limits());
        let (stop, stopped) = oneshot::channel::<()>();
        let (health_out, health_in) = oneshot::channel();
        let mut server = tokio::spawn({
            let (shell, protection) = (Arc::clone(&shell), self.protection.clone());
            async move {
                let ready = |health| drop(health_out.send(health));
                serve(shell, connections, &protection, ready, async { drop(stopped.await) }).await
            }
        });
        let health: Health = health_in
            .await
            .map_err(|_| ExitError::new(Exit::Bug, "the server ended before it served"))?;
        let timer = tokio::spawn({
            let shell = Arc::clone(&shell);
            async move { shell.keep_time().await }
        });
        health.ready().await;
        if let Some(ready) = ready.take() {
            if let Some(path) = &self.args.serve.port_file {
                outputs::write_port(path, address.port())?;
            }
            ready(address)?;
        }
        tracing::info!(%address, "serving");

        let served = serve_job(&self.args, &shell, &health, peers.as_ref(), signals).await?;
        health.draining().await;
        let over = self.last_word(&shell, &served);
        if let (Some(peers), Some((state, reason))) = (peers, over) {
            peers.end(state, reason).await;
        }
        // Who holds the other end is gone only if the server is.
        let _ = stop.send(());
        let limit = match &served {
            Served::Lost(_) => LAST_WORDS,
            Served::Over(_) => self.serving.drain_timeout,
        };
        tokio::select! {
            // How calls in flight ended is their callers' business.
            _ = &mut server => {}
            () = tokio::time::sleep(limit) => {
                tracing::warn!("calls in flight were cut");
                server.abort();
            }
            exit = signals.next() => return Err(ExitError::new(exit, "stopped at once")),
        }
        timer.abort();
        let written = match served {
            Served::Lost(lost) => return Ok(End::Lost(lost)),
            Served::Over(written) => written,
        };
        written?;
        match shell.driver().state() {
            (JobState::Failed, reason) => {
                Err(ExitError::new(Exit::Failed, format!("the job failed: {reason}")))
            }
            _ => Ok(End::Over),
        }
    }

    /// What other servers should hear of the job's end; `None`: it has not ended. Held calls are told to
    /// come again where a server is lost.
    fn last_word(&self, shell: &Shell, served: &Served) -> Option<(JobState, String)> {
        match served {
            Served::Lost(lost) => {
                shell.tell(Input::Drain);
                // Without checkpoints nobody goes on.
                self.survive(lost.clone()).is_err().then(|| (JobState::Failed, lost.to_string()))
            }
            Served::Over(_) => ended(shell).then(|| shell.driver().state()),
        }
    }
}

/// How serving a job ended.
enum Served {
    /// The job has, or was told to stop: the result of writing its outputs.
    Over(Result<(), ExitError>),
    /// Another server is gone, and the job has not ended.
    Lost(Lost),
}

/// Waits for the end of the job, for SIGTERM, or for the loss of another server.
async fn serve_job(
    args: &ServerArgs,
    shell: &Arc<Shell>,
    health: &Health,
    peers: Option<&Peers>,
    signals: &mut Signals,
) -> Result<Served, ExitError> {
    let mut written = Ok(());
    loop {
        tokio::select! {
            () = shell.initialized() => {
                explain_rate(args, shell);
                health.initialized().await;
            }
            () = shell.conclusion() => {
                let last = durable::last_checkpoint(args, shell).await;
                let results = write_results(args, shell).await;
                if let Some(lost) = peers.and_then(|peers| peers.group().lost())
                    && !ended(shell)
                {
                    return Ok(Served::Lost(lost));
                }
                written = last.and(results);
                shell.tell(Input::Concluded);
            }
            lost = loss(peers), if !ended(shell) => return Ok(Served::Lost(lost)),
            () = shell.over() => return Ok(Served::Over(written)),
            () = tokio::time::sleep(linger(shell)), if ended(shell) => {
                return Ok(Served::Over(written));
            }
            exit = signals.next() => {
                if exit == Exit::Interrupted {
                    return Err(ExitError::new(exit, "interrupted"));
                }
                if !ended(shell) {
                    tracing::info!("stopping: SIGTERM");
                    shell.tell(Input::Drain);
                    let last = tokio::select! {
                        last = durable::last_checkpoint(args, shell) => last,
                        exit = signals.next() => {
                            return Err(ExitError::new(exit, "stopped at once"));
                        }
                    };
                    written = last.and(write_results(args, shell).await);
                }
                return Ok(Served::Over(written));
            }
        }
    }
}

/// Waits for the loss of another server; for ever where there is none.
async fn loss(peers: Option<&Peers>) -> Lost {
    match peers {
        None => std::future::pending().await,
        Some(peers) => peers.lost().await,
    }
}

/// Workers that take local steps push how far these led (rule R13), which is no gradient.
fn explain_rate(args: &ServerArgs, shell: &Shell) {
    let UpdateArgs { optimizer, lr, .. } = &args.job.update;
    let steps_are_local = |job: JoinAnswer| {
        job.fingerprint.get("local_lr").is_some_and(|local_lr| local_lr != "none")
    };
    if shell.driver().job().is_some_and(steps_are_local) && (optimizer != "sgd" || *lr != Some(1.0))
    {
        tracing::warn!(
            "the workers push their local steps (--local-lr), which --optimizer {optimizer} with \
             --lr {} takes as a gradient; federated averaging is --optimizer sgd with --lr 1",
            lr.unwrap_or(LR)
        );
    }
}

fn ended(shell: &Shell) -> bool {
    matches!(shell.driver().state().0, JobState::Done | JobState::Failed)
}

/// How long a server whose job has ended waits for callers to hear of it.
fn linger(shell: &Shell) -> Duration {
    match shell.driver().state().0 {
        JobState::Failed => Duration::from_secs(5),
        _ => Duration::from_secs(60),
    }
}

async fn write_results(args: &ServerArgs, shell: &Arc<Shell>) -> Result<(), ExitError> {
    // Waits for other servers' parts, where there are others.
    let results = tokio::task::spawn_blocking({
        let shell = Arc::clone(shell);
        move || shell.driver().results(shell.now())
    });
    let results = results
        .await
        .map_err(|e| ExitError::new(Exit::Bug, "the report could not be made").because(e))?
        .map_err(|lost| ExitError::new(Exit::Failed, format!("no report: {lost}")))?;
    let Some((report, theta)) = results else { return Ok(()) };
    if let Some(path) = &args.serve.report {
        outputs::write_report(path, &report)?;
    }
    if let Some(path) = &args.serve.theta_out
        && let Some(job) = shell.driver().job()
    {
        outputs::write_snapshot(path, &job, &theta)?;
    }
    Ok(())
}

//! One run from the first process to the last: starts them, replaces the dead, follows the job.
//!
//! What a death means is `verdict`'s business, what is shown `screen`'s, what is left behind
//! `outcome`'s.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ps_common::calls::Status;
use ps_common::exit::{Exit, ExitError};
use ps_common::job::JobState;
use ps_common::report::Event;
use ps_worker::net::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, timeout};

use super::args::LocalArgs;
use super::plan::{Who, server_arguments, worker_arguments, workers};
use super::processes::{Ended, Processes};
use super::programs::Programs;
use super::screen::Screen;
use super::verdict::{Verdict, describe, failure, judge, judge_server};

/// A server that does not serve by then never will.
const START_PATIENCE: Duration = Duration::from_secs(30);
const PORT_POLL: Duration = Duration::from_millis(2);

/// Progress is asked for so often; the first time sooner, because a small job is over by then.
const STATUS_FIRST: Duration = Duration::from_millis(30);
const STATUS_EVERY: Duration = Duration::from_millis(100);

/// On the way to a verdict about a dead worker the server has this long to answer.
const ASK_PATIENCE: Duration = Duration::from_millis(500);

/// If it does not answer, its own end should be seen within this time.
const GONE_PATIENCE: Duration = Duration::from_millis(200);

/// Where the server leaves what psctl reads.
#[derive(Debug)]
pub(super) struct Files {
    /// The port that it listens on.
    pub(super) port: PathBuf,
    /// The report.
    pub(super) report: PathBuf,
}

impl Files {
    /// In a directory that belongs to this run.
    pub(super) fn within(directory: &Path) -> Self {
        Self { port: directory.join("port"), report: directory.join("report.json") }
    }
}

/// A run and what has happened to it.
pub(super) struct Run<'a> {
    args: &'a LocalArgs,
    programs: Programs,
    screen: &'a mut Screen,
    verbose: bool,
    restarts: u32,
    events: Vec<Event>,
    /// Others that ended while the server was coming back.
    early: Vec<Ended>,
    /// The job's own time, when it was last heard of.
    heard: Option<(Instant, f64)>,
}

impl<'a> Run<'a> {
    /// Nothing has been started yet. `verbose`: every line of every process is shown as it comes,
    /// so that its last ones need not be shown again.
    pub(super) fn new(
        args: &'a LocalArgs,
        programs: Programs,
        screen: &'a mut Screen,
        verbose: bool,
    ) -> Self {
        Self {
            args,
            programs,
            screen,
            verbose,
            restarts: 0,
            events: Vec::new(),
            early: Vec::new(),
            heard: None,
        }
    }

    /// What psctl itself did on the way.
    pub(super) fn into_events(self) -> Vec<Event> {
        self.events
    }

    /// Starts everything and returns once the server has ended with exit code 0.
    ///
    /// # Errors
    /// What ended the run, with the exit code that it means.
    pub(super) async fn drive(
        &mut self,
        processes: &mut Processes,
        lines: &mut mpsc::UnboundedReceiver<(Who, String)>,
        files: &Files,
    ) -> Result<(), ExitError> {
        let port = self.start_server(processes, lines, files, self.args.cluster.port).await?;
        for who in workers(self.args) {
            self.start(processes, who, port)?;
        }
        let (send, mut statuses) = mpsc::channel(1);
        let mut poll = JoinSet::new();
        poll.spawn(follow(port, send));
        loop {
            tokio::select! {
                Some((who, line)) = lines.recv() => self.screen.line(&format!("{who}: {line}")),
                Some((at, status)) = statuses.recv() => {
                    self.heard = Some((at, status.seconds));
                    self.screen.update(&status);
                }
                Some(ended) = processes.next() => {
                    let (mut all, job) = gather(processes, ended, port).await;
                    if let Some(server) = all.iter().position(|ended| ended.who == Who::Server) {
                        if !self.server_may_come_back(&all.swap_remove(server))? {
                            return Ok(());
                        }
                        // At the same address, where workers look for it.
                        self.start_server(processes, lines, files, port).await?;
                        let (send, fresh) = mpsc::channel(1);
                        statuses = fresh;
                        poll.spawn(follow(port, send));
                        all.append(&mut self.early);
                    }
                    for ended in &all {
                        self.worker_ended(processes, ended, job, port)?;
                    }
                }
            }
        }
    }

    /// Starts the server at `port` and waits until it serves; gives the port that it has.
    async fn start_server(
        &mut self,
        processes: &mut Processes,
        lines: &mut mpsc::UnboundedReceiver<(Who, String)>,
        files: &Files,
        port: u16,
    ) -> Result<u16, ExitError> {
        loop {
            // Of the one before.
            let _ = std::fs::remove_file(&files.port);
            let arguments = server_arguments(self.args, port, &files.port, &files.report);
            processes.start(Who::Server, &self.programs.server, &arguments)?;
            if let Some(port) = self.port(processes, lines, &files.port).await? {
                return Ok(port);
            }
        }
    }

    /// Waits until the server has written its port; `None` if it was lost and is to be started again.
    async fn port(
        &mut self,
        processes: &mut Processes,
        lines: &mut mpsc::UnboundedReceiver<(Who, String)>,
        file: &Path,
    ) -> Result<Option<u16>, ExitError> {
        let deadline = Instant::now() + START_PATIENCE;
        let mut tick = interval(PORT_POLL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some((who, line)) = lines.recv() => self.screen.line(&format!("{who}: {line}")),
                Some(ended) = processes.next() => match ended.who {
                    Who::Server if self.server_may_come_back(&ended)? => return Ok(None),
                    Who::Server => {
                        let what = "the server ended before it served";
                        return Err(ExitError::new(Exit::Failed, what));
                    }
                    Who::Worker(_) | Who::Evaluator => self.early.push(ended),
                },
                _ = tick.tick() => {
                    if let Some(port) = read_port(file) {
                        return Ok(Some(port));
                    }
                    if Instant::now() > deadline {
                        return Err(ExitError::new(
                            Exit::Unavailable,
                            format!("the server does not serve after {START_PATIENCE:?}"),
                        ));
                    }
                }
            }
        }
    }

    fn start(&self, processes: &mut Processes, who: Who, port: u16) -> Result<(), ExitError> {
        processes.start(who, &self.programs.worker, &worker_arguments(self.args, who, port))
    }

    /// Whether another one is to be started in its place; else it is done.
    fn server_may_come_back(&mut self, ended: &Ended) -> Result<bool, ExitError> {
        let code = ended.status.and_then(|s| s.code());
        let is_kept = self.args.durability.checkpoint_dir.is_some();
        match judge_server(code, is_kept, self.args.cluster.restarts - self.restarts) {
            Verdict::GoOn => Ok(false),
            Verdict::Fail(exit) => Err(self.failed(exit, ended)),
            Verdict::Restart => {
                self.restarts += 1;
                self.note_restart(ended);
                Ok(true)
            }
        }
    }

    fn worker_ended(
        &mut self,
        processes: &mut Processes,
        ended: &Ended,
        job: Option<JobState>,
        port: u16,
    ) -> Result<(), ExitError> {
        let code = ended.status.and_then(|s| s.code());
        match judge(code, job, self.args.cluster.restarts - self.restarts) {
            Verdict::GoOn => Ok(()),
            Verdict::Fail(exit) => Err(self.failed(exit, ended)),
            Verdict::Restart => {
                self.restarts += 1;
                self.note_restart(ended);
                self.start(processes, ended.who, port)
            }
        }
    }

    fn note_restart(&mut self, ended: &Ended) {
        let (n, all) = (self.restarts, self.args.cluster.restarts);
        let detail = format!("{}; started again ({n} of {all})", describe(ended.status));
        self.screen.line(&format!("{} {detail}", ended.who));
        self.events.push(Event {
            seconds: self.heard.map_or(0.0, |(at, seconds)| seconds + at.elapsed().as_secs_f64()),
            kind: "restarted".to_owned(),
            rank: ended.who.rank(),
            // Of what has no rank, the detail must say what it is.
            detail: match ended.who.rank() {
                Some(_) => detail,
                None => format!("{} {detail}", ended.who),
            },
        });
    }

    /// The error that `ended` means; what else it said is shown.
    fn failed(&mut self, exit: Exit, ended: &Ended) -> ExitError {
        let (error, said) = failure(exit, ended.who, ended.status, &ended.tail);
        if !self.verbose {
            for line in said {
                self.screen.line(&format!("{}: {line}", ended.who));
            }
        }
        error
    }
}

/// A worker that fails may do so because the server is gone, whose end is then the one that
/// counts: unless the server can say how the job stands, further ends are waited for a moment.
async fn gather(
    processes: &mut Processes,
    first: Ended,
    port: u16,
) -> (Vec<Ended>, Option<JobState>) {
    if first.who == Who::Server || first.status.is_some_and(|s| s.success()) {
        return (vec![first], None);
    }
    let job = timeout(ASK_PATIENCE, state_of_job(port)).await.ok().flatten();
    let mut all = vec![first];
    if job.is_none() {
        let deadline = Instant::now() + GONE_PATIENCE;
        while let Ok(Some(ended)) = tokio::time::timeout_at(deadline, processes.next()).await {
            let is_server = ended.who == Who::Server;
            all.push(ended);
            if is_server {
                break;
            }
        }
    }
    (all, job)
}

async fn connect(port: u16) -> Option<Client> {
    Client::connect(&format!("http://127.0.0.1:{port}"), Duration::ZERO).await.ok()
}

async fn state_of_job(port: u16) -> Option<JobState> {
    connect(port).await?.status().await.ok().map(|status| status.state)
}

/// Sends the job's status again and again, as long as the server answers.
async fn follow(port: u16, statuses: mpsc::Sender<(Instant, Status)>) {
    let mut tick = interval_at(Instant::now() + STATUS_FIRST, STATUS_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.tick().await;
    let Some(client) = connect(port).await else { return };
    while let Ok(status) = client.status().await {
        if statuses.send((Instant::now(), status)).await.is_err() {
            return;
        }
        tick.tick().await;
    }
}

/// The server writes the file whole, so that what is there is all of it.
fn read_port(file: &Path) -> Option<u16> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

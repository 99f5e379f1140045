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
use super::plan::{Post, Who, checkpoint_dir, server_arguments, worker_arguments, workers};
use super::processes::{Ended, Processes};
use super::programs::Programs;
use super::screen::Screen;
use super::verdict::{Verdict, describe, failure, judge, judge_follower, judge_server};

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

/// Who decides.
const FIRST: Who = Who::Server(0);

/// Where the servers leave what psctl reads.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    /// The report.
    pub(super) report: PathBuf,
}

impl Files {
    /// In a directory that belongs to this run.
    pub(super) fn within(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), report: directory.join("report.json") }
    }

    /// The port that a server listens on.
    fn port(&self, index: u32) -> PathBuf {
        self.directory.join(format!("port-{index}"))
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
    /// Of each server, in order of partition; 0 until it has one.
    ports: Vec<u16>,
    /// Others that ended while a server was coming back.
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
        let mut ports = vec![0; args.cluster.servers as usize];
        ports[0] = args.cluster.port;
        Self {
            args,
            programs,
            ports,
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

    /// Starts everything and returns once the first server has ended with exit code 0.
    ///
    /// # Errors
    /// What ended the run, with the exit code that it means.
    pub(super) async fn drive(
        &mut self,
        processes: &mut Processes,
        lines: &mut mpsc::UnboundedReceiver<(Who, String)>,
        files: &Files,
    ) -> Result<(), ExitError> {
        self.start_servers(processes, lines, files).await?;
        for who in workers(self.args) {
            self.start(processes, who)?;
        }
        let (send, mut statuses) = mpsc::channel(1);
        let mut poll = JoinSet::new();
        poll.spawn(follow(self.port(), send));
        loop {
            tokio::select! {
                Some((who, line)) = lines.recv() => self.screen.line(&format!("{who}: {line}")),
                Some((at, status)) = statuses.recv() => {
                    self.heard = Some((at, status.seconds));
                    self.screen.update(&status);
                }
                Some(ended) = processes.next() => {
                    let (all, job) = gather(processes, ended, self.port()).await;
                    let (servers, mut others): (Vec<_>, Vec<_>) =
                        all.into_iter().partition(|ended| matches!(ended.who, Who::Server(_)));
                    let first = servers.iter().find(|ended| ended.who == FIRST);
                    if let Some(first) = first && !self.server_may_come_back(first, None)? {
                        return Ok(());
                    }
                    // At their old addresses, where workers look for them; and all of them before the
                    // first one is waited for, which serves once it has found the others.
                    for ended in &servers {
                        if let Who::Server(index) = ended.who
                            && (index == 0 || self.server_may_come_back(ended, job)?)
                        {
                            self.start_server(processes, files, index)?;
                        }
                    }
                    if first.is_some() {
                        self.await_server(processes, lines, files, 0).await?;
                        let (send, fresh) = mpsc::channel(1);
                        statuses = fresh;
                        poll.spawn(follow(self.port(), send));
                        others.append(&mut self.early);
                    }
                    for ended in &others {
                        self.worker_ended(processes, ended, job)?;
                    }
                }
            }
        }
    }

    /// The first server's port.
    fn port(&self) -> u16 {
        self.ports[0]
    }

    /// Starts all servers, the first one last because it calls the others, and waits until it serves.
    async fn start_servers(
        &mut self,
        processes: &mut Processes,
        lines: &mut mpsc::UnboundedReceiver<(Who, String)>,
        files: &Files,
    ) -> Result<(), ExitError> {
        let n_servers = self.args.cluster.servers;
        for index in 0..n_servers {
            if let Some(path) = checkpoint_dir(self.args, index).filter(|_| n_servers > 1) {
                create_folder(&path)?;
            }
        }
        for index in 1..n_servers {
            self.start_server(processes, files, index)?;
        }
        for index in 1..n_servers {
            self.await_server(processes, lines, files, index).await?;
        }
        self.start_server(processes, files, 0)?;
        self.await_server(processes, lines, files, 0).await
    }

    /// Starts a server at its port.
    fn start_server(
        &self,
        processes: &mut Processes,
        files: &Files,
        index: u32,
    ) -> Result<(), ExitError> {
        let port_file = files.port(index);
        // Of the one before.
        let _ = std::fs::remove_file(&port_file);
        let post = Post {
            index,
            port: self.ports[index as usize],
            others: &self.ports[1..],
            port_file: &port_file,
            report: &files.report,
        };
        let arguments = server_arguments(self.args, post);
        processes.start(Who::Server(index), &self.programs.server, &arguments)
    }

    /// Waits until a server has written its port, and notes it. Servers that are lost meanwhile are
    /// started again.
    async fn await_server(
        &mut self,
        processes: &mut Processes,
        lines: &mut mpsc::UnboundedReceiver<(Who, String)>,
        files: &Files,
        index: u32,
    ) -> Result<(), ExitError> {
        let mut deadline = Instant::now() + START_PATIENCE;
        let mut tick = interval(PORT_POLL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some((who, line)) = lines.recv() => self.screen.line(&format!("{who}: {line}")),
                Some(ended) = processes.next() => match ended.who {
                    Who::Server(lost) if self.server_may_come_back(&ended, None)? => {
                        self.start_server(processes, files, lost)?;
                        deadline = Instant::now() + START_PATIENCE;
                    }
                    Who::Server(_) => {
                        let what = format!("{} ended before it served", ended.who);
                        return Err(ExitError::new(Exit::Failed, what));
                    }
                    Who::Worker(_) | Who::Evaluator => self.early.push(ended),
                },
                _ = tick.tick() => {
                    if let Some(port) = read_port(&files.port(index)) {
                        self.ports[index as usize] = port;
                        return Ok(());
                    }
                    if Instant::now() > deadline {
                        let who = Who::Server(index);
                        return Err(ExitError::new(
                            Exit::Unavailable,
                            format!("the {who} does not serve after {START_PATIENCE:?}"),
                        ));
                    }
                }
            }
        }
    }

    fn start(&self, processes: &mut Processes, who: Who) -> Result<(), ExitError> {
        processes.start(who, &self.programs.worker, &worker_arguments(self.args, who, &self.ports))
    }

    /// Whether another one is to be started in its place; else it is done.
    fn server_may_come_back(
        &mut self,
        ended: &Ended,
        job: Option<JobState>,
    ) -> Result<bool, ExitError> {
        let code = ended.status.and_then(|s| s.code());
        let is_kept = self.args.durability.checkpoint_dir.is_some();
        let left = self.args.cluster.restarts - self.restarts;
        let verdict = match ended.who {
            FIRST => judge_server(code, is_kept, left),
            _ => judge_follower(code, job, is_kept, left),
        };
        match verdict {
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
    ) -> Result<(), ExitError> {
        let code = ended.status.and_then(|s| s.code());
        match judge(code, job, self.args.cluster.restarts - self.restarts) {
            Verdict::GoOn => Ok(()),
            Verdict::Fail(exit) => Err(self.failed(exit, ended)),
            Verdict::Restart => {
                self.restarts += 1;
                self.note_restart(ended);
                self.start(processes, ended.who)
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

/// A server's own folder of checkpoints, in one that has to exist.
fn create_folder(path: &Path) -> Result<(), ExitError> {
    match std::fs::create_dir(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            let what = format!("--checkpoint-dir: cannot create {}", path.display());
            Err(ExitError::new(Exit::CannotCreate, what).because(e))
        }
        _ => Ok(()),
    }
}

/// A worker that fails may do so because the server is gone, whose end is then the one that
/// counts: unless the server can say how the job stands, further ends are waited for a moment.
async fn gather(
    processes: &mut Processes,
    first: Ended,
    port: u16,
) -> (Vec<Ended>, Option<JobState>) {
    if first.who == FIRST || first.status.is_some_and(|s| s.success()) {
        return (vec![first], None);
    }
    let job = timeout(ASK_PATIENCE, state_of_job(port)).await.ok().flatten();
    let mut all = vec![first];
    if job.is_none() {
        let deadline = Instant::now() + GONE_PATIENCE;
        while let Ok(Some(ended)) = tokio::time::timeout_at(deadline, processes.next()).await {
            let is_server = ended.who == FIRST;
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

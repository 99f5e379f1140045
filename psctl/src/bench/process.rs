//! Starting the processes of one measurement, giving them orders, hearing them, ending them.
//!
//! Every process is killed when its `Fleet` is dropped, and exits by itself when the bench is
//! gone, because its standard input ends then.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ps_common::exit::{Exit, ExitError};
use ps_common::flags;
use ps_common::job::Mode;

use super::arm::Arm;
use super::job::Job;
use super::protocol::{Order, Report, say};

/// How long a process may take to connect or to report.
const PATIENCE: Duration = Duration::from_secs(60);

struct Process {
    name: String,
    child: Child,
    stdin: ChildStdin,
}

/// What a process said, and when the bench heard it. `None`: it has closed its output.
struct Heard {
    from: usize,
    at: Instant,
    report: Option<Report>,
}

/// Server processes, mostly one, and worker processes, connected.
pub(super) struct Fleet {
    /// They stand before the workers.
    n_servers: usize,
    processes: Vec<Process>,
    heard: mpsc::Receiver<Heard>,
    speaker: mpsc::Sender<Heard>,
}

impl Fleet {
    /// Starts all processes and returns when every worker is connected.
    pub(super) fn start(arm: &Arm, job: &Job) -> Result<Self, ExitError> {
        let (speaker, heard) = mpsc::channel();
        let n_servers = arm.servers as usize;
        let mut fleet = Self { n_servers, processes: Vec::new(), heard, speaker };
        let common = [flags::to_arguments(job), flags::to_arguments(&arm.way)].concat();
        let address = fleet.serve(arm, &common)?;
        for rank in 0..job.workers {
            let mut arguments = common.clone();
            arguments.push(format!("--address={address}").into());
            arguments.push(format!("--rank={rank}").into());
            fleet.spawn(arm, "worker", &arguments, &format!(" {rank}"))?;
        }
        fleet.hear_each(job.workers as usize, PATIENCE, |report| {
            expect(report, &Report::Connected)
        })?;
        Ok(fleet)
    }

    /// Starts the servers, the first one last because it calls the others; their addresses, in order
    /// of partition.
    fn serve(&mut self, arm: &Arm, common: &[OsString]) -> Result<String, ExitError> {
        let n_servers = self.n_servers;
        let mut addresses: Vec<String> = Vec::new();
        for index in (1..n_servers).chain([0]) {
            let mut arguments = common.to_vec();
            if n_servers > 1 {
                arguments.push(format!("--partition={index}/{n_servers}").into());
            }
            if index == 0 && n_servers > 1 {
                arguments.push(format!("--peers={}", addresses.join(",")).into());
            }
            let which = if index == 0 { String::new() } else { format!(" {index}") };
            self.spawn(arm, "server", &arguments, &which)?;
            match self.hear(PATIENCE)? {
                (_, Report::Listening { address }) if index == 0 => {
                    addresses.insert(0, address.to_string());
                }
                (_, Report::Listening { address }) => addresses.push(address.to_string()),
                (heard, other) => return Err(self.unexpected(heard.from, &other)),
            }
        }
        Ok(addresses.join(","))
    }

    fn spawn(
        &mut self,
        arm: &Arm,
        role: &str,
        arguments: &[OsString],
        which: &str,
    ) -> Result<(), ExitError> {
        let name = format!("{}-{role}{which}", arm.name);
        let failed = |e| ExitError::new(Exit::Failed, format!("cannot start {name}")).because(e);
        let mut child = Command::new(&arm.program)
            .args(["bench-role", &format!("{}-{role}", arm.side)])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let stdin = child.stdin.take().expect("piped above");
        let stdout = BufReader::new(child.stdout.take().expect("piped above"));
        let (from, speaker) = (self.processes.len(), self.speaker.clone());
        std::thread::spawn(move || {
            for line in stdout.lines() {
                let report = line.ok().and_then(|line| serde_json::from_str(&line).ok());
                let at = Instant::now();
                if report.is_none() || speaker.send(Heard { from, at, report }).is_err() {
                    break;
                }
            }
            // Nobody listens any more when the fleet is being dropped.
            let _ = speaker.send(Heard { from, at: Instant::now(), report: None });
        });
        self.processes.push(Process { name, child, stdin });
        Ok(())
    }

    /// Process ids of the servers, and of the workers by rank.
    pub(super) fn pids(&self) -> (Vec<u32>, Vec<u32>) {
        let mut servers: Vec<_> = self.processes.iter().map(|p| p.child.id()).collect();
        let workers = servers.split_off(self.n_servers);
        (servers, workers)
    }

    /// Has every worker do `steps` steps; the time from the first order to the last report.
    pub(super) fn steps(&mut self, steps: u64, patience: Duration) -> Result<Duration, ExitError> {
        let began = Instant::now();
        self.order_all(&Order::Steps { steps })?;
        let n_workers = self.n_workers();
        let ended = self.hear_each(n_workers, patience, |report| expect(report, &Report::Done))?;
        let ended = ended.into_iter().map(|(at, ())| at).max().unwrap_or(began);
        Ok(ended - began)
    }

    /// The times of the last steps of all workers, and the bytes that all sent in them, if they
    /// say so.
    pub(super) fn times(&mut self) -> Result<(Vec<Duration>, Option<u64>), ExitError> {
        self.order_all(&Order::Times)?;
        let n_workers = self.n_workers();
        let told = self.hear_each(n_workers, PATIENCE, |report| match report {
            Report::Times { nanos, sent_bytes } => Ok((nanos, sent_bytes)),
            other => Err(other),
        })?;
        let sent_bytes = told.iter().map(|(_, (_, sent_bytes))| *sent_bytes).sum();
        let nanos = told.into_iter().flat_map(|(_, (nanos, _))| nanos);
        Ok((nanos.map(Duration::from_nanos).collect(), sent_bytes))
    }

    /// Has every worker push what its codec holds back: in sync mode together, which is one round,
    /// else worker 0 after the others, so that it pulls what all pushes have come to.
    pub(super) fn settle(&mut self, mode: Mode, patience: Duration) -> Result<(), ExitError> {
        let (first, end) = (self.n_servers, self.processes.len());
        let turns = match mode {
            Mode::Sync => [first..end, end..end],
            _ => [first + 1..end, first..first + 1],
        };
        for workers in turns {
            workers.clone().try_for_each(|worker| self.order(worker, &Order::Settle))?;
            self.hear_each(workers.len(), patience, |report| expect(report, &Report::Done))?;
        }
        Ok(())
    }

    /// One more step of worker 0 alone, whose pull then shows what all pushes have come to.
    pub(super) fn last_step(&mut self, patience: Duration) -> Result<(), ExitError> {
        self.order(self.n_servers, &Order::Steps { steps: 1 })?;
        self.hear_each(1, patience, |report| expect(report, &Report::Done))?;
        Ok(())
    }

    /// Has worker 0 compare theta as it last pulled it with what `pushes` make of zeros.
    pub(super) fn check(&mut self, pushes: Vec<u64>) -> Result<(), ExitError> {
        self.order(self.n_servers, &Order::Check { pushes })?;
        match self.hear(PATIENCE)? {
            (_, Report::Checked) => Ok(()),
            (_, Report::Different { key, expected, got }) => Err(ExitError::new(
                Exit::Bug,
                format!(
                    "{} pulled {got} at key {key} where all pushes make {expected}: \
                     its figures would mean nothing",
                    self.processes[self.n_servers].name
                ),
            )),
            (heard, other) => Err(self.unexpected(heard.from, &other)),
        }
    }

    fn n_workers(&self) -> usize {
        self.processes.len() - self.n_servers
    }

    fn order_all(&mut self, order: &Order) -> Result<(), ExitError> {
        (self.n_servers..self.processes.len()).try_for_each(|process| self.order(process, order))
    }

    fn order(&mut self, process: usize, order: &Order) -> Result<(), ExitError> {
        if say(&mut self.processes[process].stdin, order).is_err() {
            return Err(self.lost(process));
        }
        Ok(())
    }

    fn hear(&mut self, patience: Duration) -> Result<(Heard, Report), ExitError> {
        let Ok(mut heard) = self.heard.recv_timeout(patience) else {
            let names: Vec<_> = self.processes.iter().map(|p| p.name.as_str()).collect();
            return Err(ExitError::new(
                Exit::Failed,
                format!("nothing heard for {} s from {}", patience.as_secs(), names.join(", ")),
            ));
        };
        match heard.report.take() {
            Some(report) => Ok((heard, report)),
            None => Err(self.lost(heard.from)),
        }
    }

    /// Waits for `count` reports that `read` accepts, with the time at which each was heard.
    fn hear_each<R>(
        &mut self,
        count: usize,
        patience: Duration,
        read: impl Fn(Report) -> Result<R, Report>,
    ) -> Result<Vec<(Instant, R)>, ExitError> {
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            let (heard, report) = self.hear(patience)?;
            match read(report) {
                Ok(value) => all.push((heard.at, value)),
                Err(other) => return Err(self.unexpected(heard.from, &other)),
            }
        }
        Ok(all)
    }

    fn unexpected(&self, process: usize, report: &Report) -> ExitError {
        let name = &self.processes[process].name;
        ExitError::new(Exit::Bug, format!("{name} reported {report:?} out of turn"))
    }

    /// The error for a process that has ended; why stands on stderr, which it shares with us.
    fn lost(&mut self, process: usize) -> ExitError {
        let Process { name, child, .. } = &mut self.processes[process];
        let _ = child.kill();
        let how = child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        ExitError::new(Exit::Failed, format!("{name} ended early ({how})"))
    }
}

/// A report that carries nothing but that it is `wanted`.
fn expect(report: Report, wanted: &Report) -> Result<(), Report> {
    if report == *wanted { Ok(()) } else { Err(report) }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Workers first, so that no worker complains about a server that is gone.
        for process in self.processes.iter_mut().rev() {
            // An error means that it has ended already.
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

//! What a server and workers cost that only wait: the real programs, a job whose barrier is held up.
//!
//! One worker more than is asked for trains with the others and is killed; a synchronous job waits
//! for its replacement. Longer than a held call lasts, so that its renewal counts as well.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ps_common::calls::Status;
use ps_common::cluster::TF_CONFIG;
use ps_common::exit::{Exit, ExitError};
use ps_common::job::JobState;
use ps_worker::net::Client;
use serde::Serialize;

use super::measure::{Machine, cpu_time};
use crate::show::table::{Align, Table};

/// Everything has happened long before, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Rounds take milliseconds: a job whose version has not moved for so long stands.
const STANDS_AFTER: Duration = Duration::from_secs(1);

/// Everything that a run says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Results {
    /// Where.
    pub(super) machine: Machine,
    /// Versions of what was measured.
    pub(super) program: String,
    /// One for each number of workers.
    pub(super) idle: Vec<Idle>,
}

/// Processor time of processes that wait, in percent of a core.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Idle {
    workers: u32,
    seconds: f64,
    server_percent: f64,
    worker_percent: Vec<f64>,
}

/// Processes that end with it.
struct Crew {
    program: OsString,
    processes: Vec<(String, Child)>,
}

impl Crew {
    fn start(&mut self, name: String, role: &str, arguments: &[OsString]) -> Result<(), ExitError> {
        let mut command = Command::new(&self.program);
        command.arg(role).args(arguments).arg("--watch-stdin");
        // Two runs measure the same, whatever the environment says.
        for (variable, _) in std::env::vars_os() {
            let is_ours = |name: &str| name.starts_with("PS_") || name == TF_CONFIG;
            if variable.to_str().is_some_and(is_ours) {
                command.env_remove(variable);
            }
        }
        command.env("PS_LOG", "warn").stdin(Stdio::piped()).stdout(Stdio::null());
        let child = command.spawn().map_err(|e| {
            ExitError::new(Exit::Failed, format!("cannot start the {name}")).because(e)
        })?;
        self.processes.push((name, child));
        Ok(())
    }

    /// # Errors
    /// A process that has ended; why stands on stderr, which it shares with us.
    fn all_live(&mut self) -> Result<(), ExitError> {
        for (name, child) in &mut self.processes {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(ExitError::new(Exit::Failed, format!("the {name} ended ({status})")));
            }
        }
        Ok(())
    }

    /// Kills the process that was started last.
    fn kill_last(&mut self) {
        let (_, mut child) = self.processes.pop().expect("some are started");
        end(&mut child);
    }

    /// Processor seconds of each process so far.
    fn cpu_seconds(&self) -> Result<Vec<f64>, ExitError> {
        let seconds = |(_, child): &(String, Child)| Ok(cpu_time(child.id())?.as_secs_f64());
        self.processes.iter().map(seconds).collect()
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        // Workers first, so that no worker complains about a server that is gone.
        for (_, child) in self.processes.iter_mut().rev() {
            end(child);
        }
    }
}

fn end(child: &mut Child) {
    // An error means that it has ended already.
    let _ = child.kill();
    let _ = child.wait();
}

/// Lets a server of `program` and `workers` workers wait for `time`.
///
/// # Errors
/// A process that ends, a job that does not come to a stand, or that goes on meanwhile.
pub(super) fn measure(program: &Path, workers: u32, time: Duration) -> Result<Idle, ExitError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| ExitError::new(Exit::Io, "cannot start a tokio runtime").because(e))?;
    runtime.block_on(wait(program, workers, time))
}

async fn wait(program: &Path, workers: u32, time: Duration) -> Result<Idle, ExitError> {
    let folder = tempfile::tempdir()
        .map_err(|e| ExitError::new(Exit::Io, "cannot make a temporary folder").because(e))?;
    let mut crew = Crew { program: program.into(), processes: Vec::new() };
    let port_file = folder.path().join("port");
    crew.start("server".to_owned(), "ps-server", &server_arguments(workers + 1, &port_file))?;
    let url = format!("http://127.0.0.1:{}", port(&mut crew, &port_file).await?);
    for index in 0..=workers {
        let arguments = [format!("--server={url}").into()];
        crew.start(format!("worker {index}"), "ps-worker", &arguments)?;
    }
    let client = Client::connect(&url, PATIENCE).await?;
    // All have joined and compute.
    until(&mut crew, &client, |status, _| status.version >= 3).await?;
    crew.kill_last();
    let (before, _) = until(&mut crew, &client, |_, unmoved| unmoved >= STANDS_AFTER).await?;

    let (began, cpu_before) = (Instant::now(), crew.cpu_seconds()?);
    tokio::time::sleep(time).await;
    let (seconds, cpu_after) = (began.elapsed().as_secs_f64(), crew.cpu_seconds()?);
    crew.all_live()?;
    let after = status(&client).await?;
    if after.version != before.version || after.state != JobState::Running {
        return Err(ExitError::new(
            Exit::Bug,
            format!(
                "the job did not wait: version {} then, {} now, it is {}",
                before.version, after.version, after.state
            ),
        ));
    }
    let percent = cpu_after.iter().zip(&cpu_before).map(|(after, before)| after - before);
    let mut percent = percent.map(|cpu| 100.0 * cpu / seconds);
    let server_percent = percent.next().expect("the server was started first");
    Ok(Idle { workers, seconds, server_percent, worker_percent: percent.collect() })
}

/// As a user has them who gives none, but for an end that does not come.
fn server_arguments(workers: u32, port_file: &Path) -> Vec<OsString> {
    let mut port_flag = OsString::from("--port-file=");
    port_flag.push(port_file);
    let workers = format!("--workers={workers}");
    let fixed = ["--listen=127.0.0.1:0", "--mode=sync", "--rounds=0", "--replacement-timeout=1h"];
    let texts = fixed.into_iter().chain([workers.as_str()]);
    texts.map(|text| OsStr::new(text).to_owned()).chain([port_flag]).collect()
}

async fn port(crew: &mut Crew, path: &Path) -> Result<String, ExitError> {
    let began = Instant::now();
    loop {
        // It is written whole.
        if let Ok(text) = std::fs::read_to_string(path) {
            return Ok(text.trim().to_owned());
        }
        crew.all_live()?;
        patient(began)?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Asks until `is_so` of the status and of the time for which the version has not moved.
async fn until(
    crew: &mut Crew,
    client: &Client,
    is_so: impl Fn(&Status, Duration) -> bool,
) -> Result<(Status, Duration), ExitError> {
    let began = Instant::now();
    let (mut version, mut moved) = (None, began);
    loop {
        let status = status(client).await?;
        if version.replace(status.version) != Some(status.version) {
            moved = Instant::now();
        }
        if is_so(&status, moved.elapsed()) {
            return Ok((status, moved.elapsed()));
        }
        crew.all_live()?;
        patient(began)?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn patient(began: Instant) -> Result<(), ExitError> {
    if began.elapsed() < PATIENCE {
        return Ok(());
    }
    let what = format!("after {} s the job does not wait at its barrier", PATIENCE.as_secs());
    Err(ExitError::new(Exit::Failed, what))
}

async fn status(client: &Client) -> Result<Status, ExitError> {
    let failed = |e| ExitError::new(Exit::Failed, "Status of the waiting server failed").because(e);
    client.status().await.map_err(failed)
}

/// The table for a person.
pub(super) fn show(results: &Results) -> String {
    let mut table = Table::new(
        ["W", "seconds", "server", "each worker"].map(|heading| (heading, Align::Right)),
    );
    for idle in &results.idle {
        let workers: Vec<_> = idle.worker_percent.iter().map(|x| format!("{x:.2}")).collect();
        table.row([
            idle.workers.to_string(),
            format!("{:.1}", idle.seconds),
            format!("{:.2}", idle.server_percent),
            workers.join(" "),
        ]);
    }
    format!(
        "{}, {} cores, kernel {}, load average {:.2} before the run\n\
         Percent of a core that a server and W workers take that wait at a barrier, all of them with \
         default settings.\nThe kernel counts hundredths of a second.\n\n{}",
        results.machine.cpu,
        results.machine.cores,
        results.machine.kernel,
        results.machine.load_average,
        table.render("", table.natural_width()),
    )
}

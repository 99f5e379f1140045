//! The text of `psctl status`: the job in a few lines, then its workers.

use ps_common::dtype::Dtype;
use ps_common::job::{Aggregate, Fingerprint, JobState};

use super::look::Tone;
use super::table::{Align, Table};
use super::{Look, Snapshot, WorkerLine, WorkerState, number};

/// Values of the fingerprint are shown up to this length; digests are longer.
const VALUE_CHARS_MAX: usize = 24;

/// What does not change while a job runs, and why it ended.
#[derive(Debug, Clone, PartialEq)]
pub struct JobFacts {
    /// Of the server that answered.
    pub address: String,
    /// Program and build of that server.
    pub program: String,
    /// Why the job failed; empty if it did not.
    pub reason: String,
    /// How a round's gradients become one; `None` in asynchronous modes.
    pub aggregate: Option<Aggregate>,
    /// Name and options.
    pub optimizer: String,
    /// Of theta.
    pub dtype: Dtype,
    /// Elements of theta; 0 before there is one.
    pub dim: u64,
    /// Observers connected.
    pub observers: u64,
    /// What the workers agreed on.
    pub fingerprint: Fingerprint,
}

/// The whole text, lines ending in `\n`.
pub fn status(snapshot: &Snapshot, facts: &JobFacts, look: &Look) -> String {
    let mut out = job(snapshot, facts, look);
    if !snapshot.workers.is_empty() {
        out.push('\n');
        out.push_str(&workers(snapshot, look));
    }
    out
}

fn job(snapshot: &Snapshot, facts: &JobFacts, look: &Look) -> String {
    let mut table = Table::new([("", Align::Left), ("", Align::Left)]);
    let mut row = |label: &str, text: String| table.row([look.paint(Tone::Faint, label), text]);
    let tone = match snapshot.state {
        JobState::Running | JobState::Finishing | JobState::Done => Tone::Good,
        JobState::Empty => Tone::Warn,
        JobState::Failed => Tone::Bad,
    };
    let mut state = look.paint(tone, &snapshot.state.to_string());
    if !facts.reason.is_empty() {
        state.push_str(&format!(": {}", look.clean(&facts.reason)));
    }
    row("state", state);
    row("server", look.clean(&format!("{}  {}", facts.address, facts.program)));
    let mut workers = snapshot.workers_text();
    if facts.observers > 0 {
        workers.push_str(&format!(", {} watching", number::count(facts.observers)));
    }
    let mode = match facts.aggregate.filter(|_| snapshot.mode.aggregates()) {
        Some(aggregate) => format!("{}, {aggregate}", snapshot.mode),
        None => snapshot.mode.to_string(),
    };
    row("mode", format!("{mode}, {workers}"));
    if facts.dim > 0 {
        row("theta", format!("{} elements of {}", number::count(facts.dim), facts.dtype));
    }
    row("optimizer", look.clean(&facts.optimizer));
    let mut progress = snapshot.round_text();
    if let Some(loss) = snapshot.loss {
        let loss = look.paint(Tone::Strong, &number::loss(loss));
        progress.push_str(&format!("  loss {loss}"));
    }
    row("progress", progress);
    let updates = snapshot.version as f64 / snapshot.seconds;
    let mut time = number::seconds(snapshot.seconds);
    if snapshot.seconds > 0.0 {
        time.push_str(&format!("  {} updates/s", number::rate(updates)));
    }
    row("time", time);
    for (key, value) in &facts.fingerprint {
        row(&look.clean(key), look.clean(&shortened(value)));
    }
    table.render("", look.width)
}

/// One of several servers.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ServerLine {
    /// Where it is.
    pub address: String,
    /// How its job stands; `None`: it does not answer.
    pub state: Option<JobState>,
    /// Of its part of theta.
    pub version: u64,
    /// Elements of its part.
    pub dim: u64,
    /// Why it does not answer; empty if it does.
    pub trouble: String,
}

/// All servers in order of partition; nothing where there are none to tell apart.
pub fn servers(lines: &[ServerLine], look: &Look) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let mut table = Table::new([
        ("server", Align::Right),
        ("state", Align::Left),
        ("version", Align::Right),
        ("elements", Align::Right),
        ("address", Align::Left),
    ]);
    for (index, line) in lines.iter().enumerate() {
        let state = line.state.map_or_else(|| line.trouble.clone(), |state| state.to_string());
        let known = |number: u64| line.state.map_or(String::new(), |_| number::count(number));
        table.row([
            index.to_string(),
            look.clean(&state),
            known(line.version),
            known(line.dim),
            look.clean(&line.address),
        ]);
    }
    format!("\n{}", table.render("", look.width))
}

fn workers(snapshot: &Snapshot, look: &Look) -> String {
    let mut table = Table::new([
        ("worker", Align::Right),
        ("state", Align::Left),
        ("clock", Align::Right),
        ("samples", Align::Right),
        ("compute", Align::Right),
        ("wait", Align::Right),
        ("wire", Align::Right),
        ("silent", Align::Right),
        ("address", Align::Left),
    ]);
    for worker in &snapshot.workers {
        table.row(worker_row(worker, look));
    }
    table.render("", look.width)
}

fn worker_row(worker: &WorkerLine, look: &Look) -> [String; 9] {
    let share = |i: usize| {
        worker.shares().map_or(String::new(), |shares| format!("{:.0} %", shares[i] * 100.0))
    };
    let vacant = worker.state == WorkerState::Vacant;
    let filled = |text: String| if vacant { String::new() } else { text };
    [
        worker.rank.to_string(),
        look.paint(tone(worker.state), worker.state.name()),
        filled(number::count(worker.clock)),
        filled(number::count(worker.stats.samples)),
        share(0),
        share(1),
        share(2),
        filled(number::seconds(worker.silent_ms as f64 / 1e3)),
        look.clean(&worker.address),
    ]
}

/// The colour of a worker's state.
pub(super) fn tone(state: WorkerState) -> Tone {
    match state {
        WorkerState::Live => Tone::Good,
        WorkerState::Lost => Tone::Bad,
        WorkerState::Vacant => Tone::Warn,
        WorkerState::Left => Tone::Faint,
    }
}

fn shortened(value: &str) -> String {
    if value.chars().count() <= VALUE_CHARS_MAX {
        return value.to_owned();
    }
    let head: String = value.chars().take(VALUE_CHARS_MAX - 3).collect();
    format!("{head}...")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::progress::tests::snapshot;

    fn facts() -> JobFacts {
        JobFacts {
            address: "127.0.0.1:50051".into(),
            program: "ps-server 0.1.0".into(),
            reason: String::new(),
            aggregate: Some(Aggregate::WeightedMean),
            optimizer: "sgd,lr=0.1".into(),
            dtype: Dtype::F32,
            dim: 7850,
            observers: 1,
            fingerprint: [("model", "softmax"), ("data", &"ab12".repeat(16))]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        }
    }

    #[test]
    fn a_running_job() {
        let mut snapshot = snapshot();
        snapshot.workers[0].address = "127.0.0.1:40001".into();
        let expected = "\
state      running
server     127.0.0.1:50051  ps-server 0.1.0
mode       sync, weighted-mean, 1 of 3 workers, 1 lost, 1 watching
theta      7,850 elements of f32
optimizer  sgd,lr=0.1
progress   round 40/100  loss 0.8123
time       1.2 s  33.3 updates/s
data       ab12ab12ab12ab12ab12a...
model      softmax

worker  state   clock  samples  compute  wait  wire  silent  address
     0  live       40   60,000     60 %  30 %  10 %  5.0 ms  127.0.0.1:40001
     1  lost       39   60,000     60 %  30 %  10 %   2.5 s
     2  vacant
";
        assert_eq!(status(&snapshot, &facts(), &Look::plain(true)), expected);
    }

    #[test]
    fn several_servers_stand_in_order_and_one_that_is_gone_says_so() {
        let line = |address: &str, state, version, dim, trouble: &str| ServerLine {
            address: address.to_owned(),
            state,
            version,
            dim,
            trouble: trouble.to_owned(),
        };
        let lines = [
            line("a:1", Some(JobState::Running), 40, 3925, ""),
            line("b:2", None, 0, 0, "not reachable"),
        ];
        let expected = "
server  state          version  elements  address
     0  running             40     3,925  a:1
     1  not reachable                     b:2
";
        assert_eq!(servers(&lines, &Look::plain(true)), expected);
        assert_eq!(servers(&[], &Look::plain(true)), "");
    }

    #[test]
    fn a_failed_job_says_why_and_foreign_text_is_harmless() {
        let mut snapshot = snapshot();
        snapshot.state = JobState::Failed;
        snapshot.workers.clear();
        let facts = JobFacts { reason: "diverged\x1b[2J\nat round 3".into(), ..facts() };
        let text = status(&snapshot, &facts, &Look::plain(true));
        assert!(text.starts_with("state      failed: diverged?[2J?at round 3\n"), "{text}");
        assert!(!text.contains("worker  state"), "{text}");
    }
}

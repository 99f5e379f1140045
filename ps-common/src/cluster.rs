//! A cluster as people of TensorFlow write it down: `--cluster FILE.json`, or the variable `TF_CONFIG`,
//! with the tasks of the job, and which of them a process is.
//!
//! Reads text and gives flags; opens no file, looks up no address. Where what it gives goes is the
//! business of [`crate::flags`] and of the two programs.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::exit::{Exit, ExitError};
use crate::partition::Partition;

/// The variable that holds cluster and task.
pub const TF_CONFIG: &str = "TF_CONFIG";

/// Which task of which cluster a process is.
#[derive(clap::Args, Debug, Clone, Default, PartialEq, Eq)]
#[command(next_help_heading = "Cluster")]
pub struct TaskArgs {
    /// File with the addresses of all tasks, {"ps": ["HOST:PORT", ...], "worker": [...]}; it says what
    /// the flags of addresses, ranks and numbers would [default: what the variable TF_CONFIG says]
    #[arg(long, env = "PS_CLUSTER", value_name = "FILE.json")]
    pub cluster: Option<PathBuf>,
    /// Kind of this task: ps, worker, chief or evaluator
    #[arg(long, env = "PS_JOB_NAME", value_name = "NAME")]
    pub job_name: Option<String>,
    /// Number of this task among those of its kind
    #[arg(long, env = "PS_TASK_INDEX", value_name = "I")]
    pub task_index: Option<u32>,
}

/// What a process does in a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Keeps a part of theta.
    Server(Partition),
    /// Has this rank; `n_workers` in all.
    Worker(u32),
    /// Looks on.
    Evaluator,
}

/// A cluster and the task that a process is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `HOST:PORT` of each server, in order of partition.
    pub servers: Vec<String>,
    /// K.
    pub n_workers: u32,
    /// Which one this is.
    pub task: Task,
}

/// A job's kind of task, by the names that are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Ps,
    Worker,
    /// The first worker.
    #[serde(alias = "master")]
    Chief,
    Evaluator,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ps => "ps",
            Self::Worker => "worker",
            Self::Chief => "chief",
            Self::Evaluator => "evaluator",
        })
    }
}

/// `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Address(String);

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let good = text.rsplit_once(':').is_some_and(|(host, port)| {
            let is_host = !host.is_empty()
                && (host.starts_with('[') && host.ends_with(']') || !host.contains(':'))
                && !host.contains(['/', ' ', ',']);
            is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        match good {
            true => Ok(Self(text)),
            false => Err(format!("`{text}` is no address; expected HOST:PORT")),
        }
    }
}

/// The addresses of all tasks by their kind.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Jobs {
    ps: Option<Vec<Address>>,
    worker: Option<Vec<Address>>,
    #[serde(alias = "master")]
    chief: Option<Vec<Address>>,
    evaluator: Option<Vec<Address>>,
}

/// Which task a process is, as `TF_CONFIG` says it.
#[derive(Debug, Clone, Copy, Deserialize)]
struct TaskEntry {
    r#type: Kind,
    #[serde(default, deserialize_with = "index")]
    index: u32,
}

/// Some write the number in quotes.
fn index<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Plain(u32),
        Quoted(String),
    }
    let wrong = || serde::de::Error::custom("the index is no number; expected 0, 1, ...");
    match Number::deserialize(deserializer) {
        Ok(Number::Plain(index)) => Ok(index),
        Ok(Number::Quoted(text)) => text.parse().map_err(|_| wrong()),
        Err(_) => Err(wrong()),
    }
}

/// All that may stand in such a text: the kinds themselves, or `cluster` around them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    cluster: Option<Jobs>,
    task: Option<TaskEntry>,
    ps: Option<Vec<Address>>,
    worker: Option<Vec<Address>>,
    #[serde(alias = "master")]
    chief: Option<Vec<Address>>,
    evaluator: Option<Vec<Address>>,
    /// Written by others for others.
    #[serde(rename = "environment")]
    _environment: Option<IgnoredAny>,
    #[serde(rename = "rpc_layer")]
    _rpc_layer: Option<IgnoredAny>,
    #[serde(rename = "job")]
    _job: Option<IgnoredAny>,
}

/// The place that a process is given by `text`, which was found at `from` (a file or
/// [`TF_CONFIG`]), and by its flags, which win over a task in the text where that says nothing else.
/// `None`: a `TF_CONFIG` without a cluster, which means none.
///
/// # Errors
/// Bad data, with line and column; configuration where flags and text do not go together.
pub fn place(text: &str, from: &str, flags: &TaskArgs) -> Result<Option<Place>, ExitError> {
    if from == TF_CONFIG && text.trim().is_empty() {
        return Ok(None);
    }
    let document: Document = serde_json::from_str(text).map_err(|error| bad(from, &error))?;
    let Document { cluster, task, ps, worker, chief, evaluator, .. } = document;
    let direct = Jobs { ps, worker, chief, evaluator };
    let jobs = match cluster {
        None if from == TF_CONFIG => return Ok(None),
        None => direct,
        Some(_) if direct.is_given() => {
            return Err(refuse(from, "has tasks both inside of `cluster` and beside it"));
        }
        Some(jobs) => jobs,
    };
    let (kind, index) = which(task, from, flags)?;
    let (servers, n_workers, n_chiefs) = jobs.check(from)?;
    let beyond = |n: usize, of: &str| {
        let what = match n {
            0 => format!("{from} names no {of}"),
            n => format!("{from} names {n} of {of}: the last is task {}", n - 1),
        };
        Err(ExitError::config(format!("task {index} of {kind}: {what}")))
    };
    let count = u32::try_from(servers.len()).expect("a text holds fewer");
    let task = match kind {
        Kind::Ps if index < count => Task::Server(Partition { index, count }),
        Kind::Ps => return beyond(servers.len(), "ps"),
        Kind::Chief if index < n_chiefs => Task::Worker(index),
        Kind::Chief => return beyond(n_chiefs as usize, "chief"),
        Kind::Worker if n_chiefs + index < n_workers => Task::Worker(n_chiefs + index),
        Kind::Worker => return beyond((n_workers - n_chiefs) as usize, "worker"),
        Kind::Evaluator => Task::Evaluator,
    };
    Ok(Some(Place { servers, n_workers, task }))
}

impl Jobs {
    fn is_given(&self) -> bool {
        [&self.ps, &self.worker, &self.chief, &self.evaluator].iter().any(|job| job.is_some())
    }

    /// The servers, the number of workers, and how many of these are chiefs.
    fn check(self, from: &str) -> Result<(Vec<String>, u32, u32), ExitError> {
        let addresses = |job: &Option<Vec<Address>>| -> Vec<String> {
            job.iter().flatten().map(|Address(text)| text.clone()).collect()
        };
        let [ps, workers, chiefs] = [&self.ps, &self.worker, &self.chief].map(addresses);
        if chiefs.len() > 1 {
            return Err(refuse(from, "names more than one chief, who is worker 0"));
        }
        if ps.is_empty() {
            return Err(refuse(from, "names no `ps`: expected \"ps\": [\"HOST:PORT\", ...]"));
        }
        if workers.is_empty() && chiefs.is_empty() {
            return Err(refuse(
                from,
                "names no `worker`: expected \"worker\": [\"HOST:PORT\", ...]",
            ));
        }
        for (i, address) in ps.iter().enumerate() {
            if ps[..i].contains(address) {
                return Err(refuse(from, &format!("names the ps {address} twice")));
            }
        }
        let number = |n: usize| u32::try_from(n).expect("a text holds fewer");
        Ok((ps, number(workers.len() + chiefs.len()), number(chiefs.len())))
    }
}

/// The task by the flags, by the text, or by both where they say the same.
fn which(entry: Option<TaskEntry>, from: &str, flags: &TaskArgs) -> Result<(Kind, u32), ExitError> {
    let by_flag = match flags.job_name.as_deref() {
        None => None,
        Some("ps") => Some(Kind::Ps),
        Some("worker") => Some(Kind::Worker),
        Some("chief" | "master") => Some(Kind::Chief),
        Some("evaluator") => Some(Kind::Evaluator),
        Some(name) => {
            return Err(ExitError::config(format!(
                "--job-name {name}: expected ps, worker, chief or evaluator"
            )));
        }
    };
    let kind = match (by_flag, entry) {
        (Some(flag), Some(entry)) if flag != entry.r#type => {
            return Err(ExitError::config(format!(
                "--job-name {flag}, but {from} says that this task is {}",
                entry.r#type
            )));
        }
        (Some(kind), _) => kind,
        (None, Some(entry)) => entry.r#type,
        (None, None) => {
            return Err(ExitError::config(format!(
                "{from} does not say which task this is: --job-name ps|worker|evaluator"
            )));
        }
    };
    match (flags.task_index, entry) {
        (Some(flag), Some(entry)) if flag != entry.index => Err(ExitError::config(format!(
            "--task-index {flag}, but {from} says that this is task {}",
            entry.index
        ))),
        (Some(index), _) => Ok((kind, index)),
        (None, Some(entry)) => Ok((kind, entry.index)),
        // There is mostly one of these.
        (None, None) if matches!(kind, Kind::Chief | Kind::Evaluator) => Ok((kind, 0)),
        (None, None) => Err(ExitError::config(format!(
            "--job-name {kind} needs --task-index: the place in the list of {from}"
        ))),
    }
}

/// The flags have no meaning without a cluster.
///
/// # Errors
/// Configuration, if one is given.
pub fn refuse_alone(flags: &TaskArgs) -> Result<(), ExitError> {
    let given = match flags {
        TaskArgs { job_name: Some(name), .. } => format!("--job-name {name}"),
        TaskArgs { task_index: Some(index), .. } => format!("--task-index {index}"),
        TaskArgs { job_name: None, task_index: None, .. } => return Ok(()),
    };
    Err(ExitError::config(format!(
        "{given} has no meaning without --cluster FILE.json or the variable {TF_CONFIG}"
    )))
}

/// The JSON is none, or not of this shape.
fn bad(from: &str, error: &serde_json::Error) -> ExitError {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let place = format!(" at line {line} column {column}");
    let what = text.strip_suffix(&place).unwrap_or(&text);
    ExitError::new(
        Exit::BadData,
        format!(
            "{from}:{line}:{column}: {what}; a cluster is {{\"ps\": [\"HOST:PORT\", ...], \
             \"worker\": [\"HOST:PORT\", ...]}}"
        ),
    )
}

fn refuse(from: &str, what: &str) -> ExitError {
    ExitError::new(Exit::BadData, format!("{from}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = r#"{"ps": ["a:1", "b:2"], "worker": ["c:3", "d:4", "e:5"]}"#;

    fn flags(job: &str, index: u32) -> TaskArgs {
        TaskArgs { cluster: None, job_name: Some(job.to_owned()), task_index: Some(index) }
    }

    fn task(text: &str, flags: &TaskArgs) -> Result<Task, ExitError> {
        place(text, "c.json", flags).map(|place| place.expect("a file means it").task)
    }

    #[test]
    fn every_task_finds_its_place() {
        let place = place(CLUSTER, "c.json", &flags("worker", 1)).expect("good").expect("a place");
        assert_eq!(place.servers, ["a:1", "b:2"]);
        assert_eq!((place.n_workers, place.task), (3, Task::Worker(1)));
        let server = Task::Server(Partition { index: 1, count: 2 });
        assert_eq!(task(CLUSTER, &flags("ps", 1)).expect("good"), server);
        assert_eq!(task(CLUSTER, &flags("evaluator", 0)).expect("good"), Task::Evaluator);
        let enclosed = format!(r#"{{"cluster": {CLUSTER}, "environment": "cloud"}}"#);
        assert_eq!(task(&enclosed, &flags("ps", 1)).expect("good"), server);
    }

    #[test]
    fn a_chief_is_worker_0() {
        for name in ["chief", "master"] {
            let text =
                format!(r#"{{"ps": ["a:1"], "{name}": ["b:2"], "worker": ["c:3", "[::1]:4"]}}"#);
            let place = place(&text, "c.json", &flags(name, 0)).expect("good").expect("a place");
            assert_eq!((place.n_workers, place.task), (3, Task::Worker(0)));
            assert_eq!(task(&text, &flags("worker", 1)).expect("good"), Task::Worker(2));
        }
        let alone = r#"{"ps": ["a:1"], "chief": ["b:2"]}"#;
        let chief = TaskArgs { job_name: Some("chief".to_owned()), ..TaskArgs::default() };
        assert_eq!(task(alone, &chief).expect("good"), Task::Worker(0));
    }

    #[test]
    fn the_variable_says_who_one_is_and_flags_may_only_agree() {
        let none = TaskArgs::default();
        for index in ["1", r#""1""#] {
            let text = format!(
                r#"{{"cluster": {CLUSTER}, "task": {{"type": "worker", "index": {index}}}}}"#
            );
            let by_variable = place(&text, TF_CONFIG, &none).expect("good").expect("a place");
            assert_eq!(by_variable.task, Task::Worker(1));
            let same = place(&text, TF_CONFIG, &flags("worker", 1)).expect("good");
            assert_eq!(same, Some(by_variable));
            for (flags, says) in [
                (flags("ps", 1), "--job-name ps, but TF_CONFIG says that this task is worker"),
                (flags("worker", 2), "--task-index 2, but TF_CONFIG says that this is task 1"),
            ] {
                let error = place(&text, TF_CONFIG, &flags).expect_err(says);
                assert!(error.exit == Exit::Config && error.message.contains(says), "{error}");
            }
        }
        for nothing in ["", "{}", r#"{"task": {"type": "worker", "index": 0}}"#] {
            assert_eq!(place(nothing, TF_CONFIG, &none).expect("none"), None);
        }
    }

    #[test]
    fn what_is_malformed_is_refused_with_its_place() {
        for (text, says) in [
            ("", "c.json:1:0: EOF"),
            ("{\n  \"ps\": [\"a:1\",]\n}", "c.json:2:16: trailing comma"),
            ("{\"ps\": [\"a:1\"],\n \"worker\": \"b:2\"}", "c.json:2:16: invalid type: string"),
            ("{\"ps\": [\"a:1\"],\n\"wroker\": []}", "c.json:2:8: unknown field `wroker`"),
            ("{\"ps\": [\n\"a\"], \"worker\": []}", "`a` is no address; expected HOST:PORT"),
            ("{\"ps\": [\n\"a\"], \"worker\": []}", "c.json:2:"),
            (r#"{"ps": ["a:0"]}"#, "`a:0` is no address"),
            (r#"{"ps": ["http://a:1"]}"#, "is no address"),
            (r#"{"ps": [":1"]}"#, "is no address"),
            (r#"{"worker": ["a:1"]}"#, "c.json: names no `ps`"),
            (r#"{"ps": ["a:1"]}"#, "c.json: names no `worker`"),
            (r#"{"ps": ["a:1", "a:1"], "worker": ["b:1"]}"#, "names the ps a:1 twice"),
            (r#"{"ps": ["a:1"], "chief": ["b:1", "c:1"]}"#, "more than one chief"),
            (r#"{"cluster": {"ps": []}, "ps": ["a:1"]}"#, "inside of `cluster` and beside it"),
            (r#"{"cluster": {}, "task": {"type": "boss"}}"#, "unknown variant `boss`"),
            (r#"{"cluster": {}, "task": {"type": "ps", "index": -1}}"#, "the index is no number"),
        ] {
            let error = place(text, "c.json", &flags("ps", 0)).expect_err(says);
            assert!(error.exit == Exit::BadData && error.message.contains(says), "{says}: {error}");
        }
    }

    #[test]
    fn a_task_that_is_not_there_is_a_matter_of_configuration() {
        for (flags, says) in [
            (flags("ps", 2), "task 2 of ps: c.json names 2 of ps: the last is task 1"),
            (flags("worker", 3), "c.json names 3 of worker"),
            (flags("chief", 0), "c.json names no chief"),
            (flags("boss", 0), "--job-name boss: expected ps"),
            (TaskArgs::default(), "does not say which task this is: --job-name"),
            (
                TaskArgs { job_name: Some("worker".to_owned()), ..TaskArgs::default() },
                "--job-name worker needs --task-index",
            ),
        ] {
            let error = task(CLUSTER, &flags).expect_err(says);
            assert!(error.exit == Exit::Config && error.message.contains(says), "{error}");
        }
        assert!(refuse_alone(&TaskArgs::default()).is_ok());
        let error = refuse_alone(&flags("ps", 0)).expect_err("no cluster");
        assert!(error.message.contains("--job-name ps has no meaning without --cluster"));
    }
}

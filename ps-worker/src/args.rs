//! The worker's flags as parsed, and what the program may rely on once they are checked.
//!
//! What is learned, and from which files, are the flags of `model` and `data`.

use std::time::Duration;

use clap::{ArgMatches, Args, Parser};
use ps_common::Dtype;
use ps_common::cluster::{Place, Task, TaskArgs};
use ps_common::exit::ExitError;
use ps_common::flags::{Implied, ProgramArgs};
use ps_common::units::parse_duration;
use serde::Serialize;

use crate::coding::{Wire, WireArgs};
use crate::credentials::CredentialArgs;
use crate::data::DataArgs;
use crate::local_steps::LocalStepsArgs;
use crate::model::ModelArgs;
use crate::overlap::OverlapArgs;
use crate::sparse::SparseArgs;

/// Computes gradients on its shard of the data and pushes them to a server
#[derive(Parser, Debug, Clone, Serialize)]
#[command(name = "ps-worker", version = crate::VERSION, after_help = EXAMPLES)]
#[serde(rename_all = "kebab-case")]
pub struct WorkerArgs {
    /// What is learned.
    #[command(flatten)]
    #[serde(flatten)]
    pub learn: LearnArgs,
    /// Where it takes part.
    #[command(flatten)]
    #[serde(flatten)]
    pub attach: AttachArgs,
    /// What an evaluator does.
    #[command(flatten)]
    #[serde(flatten)]
    pub evaluation: EvaluationArgs,
}

const EXAMPLES: &str = "\
Examples:
  ps-worker                                             the built-in problem, a server here
  ps-worker --server http://10.0.0.5:50051 --rank 2     a certain rank of a server elsewhere
  ps-worker --server https://ps:50051 --tls-ca ca.pem --token-file worker.token
  ps-worker --server http://a:50051,http://b:50051      two servers that share theta, in order
  ps-worker --cluster cluster.json --job-name worker --task-index 1
  ps-worker --evaluate --eval-every 10                  looks on and measures the loss

Every option is also a PS_... environment variable and a key of --config FILE.toml.
Logs go to stderr; PS_LOG=debug shows more.";

/// What is learned, from what: shared by `ps-worker` and `psctl local`.
#[derive(Args, Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LearnArgs {
    /// The model.
    #[command(flatten, next_help_heading = "Model")]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// The data.
    #[command(flatten, next_help_heading = "Data")]
    #[serde(flatten)]
    pub data: DataArgs,
    /// What a worker does between pushes.
    #[command(flatten, next_help_heading = "Local steps")]
    #[serde(flatten)]
    pub local: LocalStepsArgs,
}

/// What an evaluator measures, and how often: shared by `ps-worker` and `psctl local`.
#[derive(Args, Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Evaluation")]
pub struct EvaluationArgs {
    /// Measure the loss every N rounds (sync) or pushes (async) [default: one pass over the data]
    #[arg(long, env = "PS_EVAL_EVERY", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub eval_every: Option<u64>,
    /// Rows to measure the final theta on, which no gradient has seen
    #[arg(long, env = "PS_TEST_DATA", value_name = "FILE", value_delimiter = ',')]
    pub test_data: Vec<String>,
    /// Their targets, where these are files of their own
    #[arg(long, env = "PS_TEST_LABELS", value_name = "FILE", value_delimiter = ',')]
    pub test_labels: Vec<String>,
}

/// Where and how a worker takes part.
#[derive(Args, Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Worker")]
pub struct AttachArgs {
    /// URL of the server; of all of them, in order of partition, where several share theta
    #[arg(
        long,
        env = "PS_SERVER",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:50051"
    )]
    pub server: Vec<String>,
    /// Take this rank, and the shard that goes with it [default: the lowest vacant one]
    #[arg(long, env = "PS_RANK")]
    pub rank: Option<u32>,
    /// Join only a job of K workers
    #[arg(long, env = "PS_WORKERS", value_name = "K")]
    pub workers: Option<u32>,
    /// Join only a job with this element type [default: any]
    #[arg(long, env = "PS_DTYPE", value_enum)]
    pub dtype: Option<Dtype>,
    /// How long to try to reach the server, at the start and whenever it is lost
    #[arg(long, env = "PS_CONNECT_TIMEOUT", value_name = "TIME", default_value = "30s")]
    pub connect_timeout: String,
    /// Join as an observer: measure the loss on all rows, push nothing
    #[arg(long, env = "PS_EVALUATE", value_name = "BOOL", default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub evaluate: bool,
    /// Who it is.
    #[command(flatten)]
    #[serde(flatten)]
    pub credentials: CredentialArgs,
    /// How gradients and theta travel.
    #[command(flatten)]
    #[serde(flatten)]
    pub wire: WireArgs,
    /// Whether it computes ahead.
    #[command(flatten, next_help_heading = "Worker")]
    #[serde(flatten)]
    pub overlap: OverlapArgs,
    /// Whether only rows of theta come and go.
    #[command(flatten, next_help_heading = "Worker")]
    #[serde(flatten)]
    pub sparse: SparseArgs,
    /// Its place in a cluster; the flags above are what follows from it.
    #[command(flatten)]
    #[serde(skip)]
    pub task: TaskArgs,
    /// As every program.
    #[command(flatten)]
    #[serde(flatten)]
    pub program: ProgramArgs,
    /// Sleep so long before each push, drawn between two bounds: delays for tests
    #[arg(long, hide = true, value_name = "MIN[..MAX]")]
    pub compute_delay_ms: Option<String>,
}

/// Where and how, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Attachment {
    /// `http://HOST:PORT`, `https://HOST:PORT` or `HOST:PORT` of each server, in order of partition.
    pub servers: Vec<String>,
    /// TLS and the token, as they go with the URL.
    pub credentials: CredentialArgs,
    /// K, where the user insists.
    pub workers: Option<u32>,
    /// Of theta, where the user insists.
    pub dtype: Option<Dtype>,
    /// For an unreachable server.
    pub patience: Duration,
    /// As what.
    pub part: Part,
}

/// What a process does in the job.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Gradients.
    Work {
        /// Wished.
        rank: Option<u32>,
        /// Bounds of the sleep before each push, milliseconds.
        delay_ms: Option<(u64, u64)>,
        /// How gradients and theta are sent.
        wire: Wire,
        /// Whether the next gradient is computed while a push is on its way.
        overlap: bool,
        /// Whether only the rows of theta come and go that its batches touch.
        sparse: bool,
    },
    /// Measurements.
    Evaluate(EvaluationArgs),
}

/// The flags that follow from a place in a cluster.
///
/// # Errors
/// Configuration where the place is a server's.
pub fn implied(place: &Place, given: &ArgMatches) -> Result<Vec<Implied>, ExitError> {
    let scheme = match given.contains_id("tls_ca") {
        true => "https",
        false => "http",
    };
    let urls: Vec<String> = place.servers.iter().map(|at| format!("{scheme}://{at}")).collect();
    let evaluate = match place.task {
        Task::Worker(_) => false,
        Task::Evaluator => true,
        Task::Server(partition) => {
            return Err(ExitError::config(format!(
                "task {} of ps is a server: start ps-server for it",
                partition.index
            )));
        }
    };
    let mut implied = vec![
        Implied { flag: "server", value: urls.join(",") },
        Implied { flag: "workers", value: place.n_workers.to_string() },
        Implied { flag: "evaluate", value: evaluate.to_string() },
    ];
    if let Task::Worker(rank) = place.task {
        implied.push(Implied { flag: "rank", value: rank.to_string() });
    }
    Ok(implied)
}

impl WorkerArgs {
    /// Checks combinations.
    ///
    /// # Errors
    /// Configuration, naming the flags.
    pub fn check(&self) -> Result<Attachment, ExitError> {
        let attach = &self.attach;
        let part = if attach.evaluate { self.check_evaluator()? } else { self.check_worker()? };
        let patience = parse_duration(&attach.connect_timeout)
            .map_err(|what| ExitError::config(format!("--connect-timeout: {what}")))?;
        check_servers(&attach.server)?;
        attach.credentials.check(&attach.server)?;
        Ok(Attachment {
            servers: attach.server.clone(),
            credentials: attach.credentials.clone(),
            workers: attach.workers,
            dtype: attach.dtype,
            patience,
            part,
        })
    }

    fn check_evaluator(&self) -> Result<Part, ExitError> {
        let refuse = |what: &str| Err(ExitError::config(format!("--evaluate {what}")));
        if self.attach.rank.is_some() {
            return refuse("and --rank exclude each other: an evaluator has no rank");
        }
        if self.attach.compute_delay_ms.is_some() {
            return refuse("and --compute-delay-ms exclude each other: an evaluator never pushes");
        }
        let wire = self.attach.wire.check()?;
        if wire.push != Wire::PLAIN.push {
            return refuse("and --wire exclude each other: an evaluator never pushes");
        }
        if wire.pull != Wire::PLAIN.pull {
            return refuse(
                "and --wire-pull exclude each other: an evaluator measures theta as it is",
            );
        }
        if self.attach.overlap.overlap {
            return refuse("and --overlap exclude each other: an evaluator never pushes");
        }
        if self.attach.sparse.sparse {
            return refuse("and --sparse exclude each other: an evaluator measures all of theta");
        }
        if self.learn.data.data_is_shard {
            return refuse(
                "and --data-is-shard exclude each other: name the files of all shards in --data",
            );
        }
        if self.evaluation.test_data.is_empty() && !self.evaluation.test_labels.is_empty() {
            return Err(ExitError::config("--test-labels needs the rows in --test-data"));
        }
        Ok(Part::Evaluate(self.evaluation.clone()))
    }

    fn check_worker(&self) -> Result<Part, ExitError> {
        let EvaluationArgs { eval_every, test_data, test_labels } = &self.evaluation;
        for (flag, given) in [
            ("--eval-every", eval_every.is_some()),
            ("--test-data", !test_data.is_empty()),
            ("--test-labels", !test_labels.is_empty()),
        ] {
            if given {
                return Err(ExitError::config(format!(
                    "{flag} has no meaning without --evaluate: only an evaluator measures"
                )));
            }
        }
        let delay_ms = self.attach.compute_delay_ms.as_deref().map(parse_range).transpose()?;
        let wire = self.attach.wire.check()?;
        let AttachArgs { rank, server, overlap, sparse, .. } = &self.attach;
        let servers = ("several URLs in --server", server.len());
        let sparse = sparse.check(&self.learn, &self.attach.wire, overlap, servers)?;
        Ok(Part::Work { rank: *rank, delay_ms, wire, overlap: overlap.overlap, sparse })
    }
}

/// Checks that no server is named twice, and that there is one.
///
/// # Errors
/// Configuration, naming the flag and the URL.
pub fn check_servers(urls: &[String]) -> Result<(), ExitError> {
    for (i, url) in urls.iter().enumerate() {
        if url.is_empty() {
            return Err(ExitError::config("--server: a URL is empty; expected URL[,URL...]"));
        }
        if urls[..i].contains(url) {
            return Err(ExitError::config(format!("--server names {url} twice")));
        }
    }
    Ok(())
}

/// Reads `MIN..MAX` or `MIN`, whole numbers.
fn parse_range(text: &str) -> Result<(u64, u64), ExitError> {
    let (min, max) = text.split_once("..").unwrap_or((text, text));
    match (min.parse(), max.parse()) {
        (Ok(min), Ok(max)) if min <= max => Ok((min, max)),
        _ => Err(ExitError::config(format!(
            "--compute-delay-ms {text} is not MIN or MIN..MAX in whole milliseconds"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use ps_common::exit::Exit;

    fn args(arguments: &[&str]) -> WorkerArgs {
        WorkerArgs::try_parse_from(["ps-worker"].iter().chain(arguments)).expect("parses")
    }

    #[test]
    fn the_command_is_well_formed() {
        WorkerArgs::command().debug_assert();
        assert!(crate::VERSION.starts_with(concat!(env!("CARGO_PKG_VERSION"), " (build ")));
    }

    #[test]
    fn defaults_are_a_worker_of_a_local_server() {
        let spec = args(&[]).check().expect("valid");
        assert_eq!(spec.servers, ["http://127.0.0.1:50051"]);
        assert_eq!(spec.patience, Duration::from_secs(30));
        let wire = Wire::PLAIN;
        assert_eq!(
            spec.part,
            Part::Work { rank: None, delay_ms: None, wire, overlap: false, sparse: false }
        );
        let part = |arguments: &[&str]| args(arguments).check().expect("valid").part;
        assert_eq!(
            part(&["--rank=3", "--compute-delay-ms=2..5", "--overlap"]),
            Part::Work {
                rank: Some(3),
                delay_ms: Some((2, 5)),
                wire,
                overlap: true,
                sparse: false
            }
        );
        assert_eq!(
            part(&["--sparse"]),
            Part::Work { rank: None, delay_ms: None, wire, overlap: false, sparse: true }
        );
    }

    #[test]
    fn an_option_without_a_meaning_is_refused_by_name() {
        for (arguments, says) in [
            (&["--eval-every=3"][..], "--eval-every has no meaning without --evaluate"),
            (&["--test-data=x"], "--test-data has no meaning"),
            (&["--test-labels=x"], "--test-labels has no meaning"),
            (&["--evaluate", "--rank=1"], "--rank"),
            (&["--evaluate", "--compute-delay-ms=1"], "--compute-delay-ms"),
            (&["--evaluate", "--overlap=true"], "--overlap"),
            (&["--evaluate", "--sparse"], "--evaluate and --sparse exclude each other"),
            (&["--sparse", "--server=a:1,b:2"], "several URLs in --server (there are 2)"),
            (&["--evaluate", "--wire-pull=f16"], "--wire-pull exclude each other"),
            (&["--wire-pull=int8"], "--wire-pull: `int8` is for gradients alone"),
            (&["--evaluate", "--test-labels=x"], "--test-data"),
            (&["--evaluate", "--data-is-shard=true"], "--data-is-shard"),
            (&["--compute-delay-ms=5..2"], "--compute-delay-ms 5..2"),
            (&["--connect-timeout=soon"], "--connect-timeout: "),
            (&["--server=a:1,b:2,a:1"], "--server names a:1 twice"),
            (&["--server=a:1,"], "--server: a URL is empty"),
        ] {
            let error = args(arguments).check().expect_err(says);
            assert!(error.exit == Exit::Config && error.message.contains(says), "{error}");
        }
    }

    #[test]
    fn a_place_in_a_cluster_means_flags() {
        let text = r#"{"ps": ["a:1", "b:2"], "chief": ["c:3"], "worker": ["d:4"]}"#;
        let of = |job: &str, more: &[&str]| {
            let task =
                TaskArgs { job_name: Some(job.to_owned()), task_index: Some(0), cluster: None };
            let place =
                ps_common::cluster::place(text, "c", &task).expect("good").expect("a place");
            let command = WorkerArgs::command();
            let given = command.get_matches_from(["ps-worker"].iter().chain(more));
            let flags = implied(&place, &given)?;
            let flags: Vec<_> = flags.iter().map(|f| format!("--{}={}", f.flag, f.value)).collect();
            let flags: Vec<_> = flags.iter().map(String::as_str).chain(more.to_vec()).collect();
            args(&flags).check()
        };
        let worker = of("worker", &[]).expect("fine");
        assert_eq!(worker.servers, ["http://a:1", "http://b:2"]);
        assert_eq!(worker.workers, Some(2));
        assert_eq!(
            worker.part,
            Part::Work {
                rank: Some(1),
                delay_ms: None,
                wire: Wire::PLAIN,
                overlap: false,
                sparse: false
            }
        );
        let secure = of("chief", &["--tls-ca=ca.pem"]).expect("fine");
        assert_eq!(secure.servers, ["https://a:1", "https://b:2"]);
        assert!(matches!(of("evaluator", &[]).expect("fine").part, Part::Evaluate(_)));
        let error = of("ps", &[]).expect_err("another program");
        assert!(error.exit == Exit::Config && error.message.contains("ps-server"), "{error}");
    }

    #[test]
    fn arguments_round_trip() {
        let given = args(&["--evaluate", "--eval-every=7", "--test-data=a,b", "--dtype=f64"]);
        let again = ps_common::flags::to_arguments(&given);
        let again: Vec<&str> = again.iter().map(|a| a.to_str().expect("text")).collect();
        let again = args(&again);
        assert_eq!(again.check().expect("valid"), given.check().expect("valid"));
        assert_eq!(ps_common::flags::to_toml(&again), ps_common::flags::to_toml(&given));
    }
}

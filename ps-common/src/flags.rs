//! Flags from three places: the command line, then `PS_...` variables, then `--config FILE.toml`. A
//! process that is a task of a cluster has some of them from there.
//!
//! A configuration file is turned into arguments, so that clap checks it like the rest; the way
//! back (`to_arguments`, `to_toml`) goes through serde, so that no flag can be forgotten.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use serde::Serialize;
use serde_json::Value;

use crate::cluster::{self, Place, TF_CONFIG, TaskArgs};
use crate::exit::{Exit, ExitError};

/// Options from a file, and back.
#[derive(clap::Args, Debug, Clone, Default)]
#[command(next_help_heading = "Program")]
pub struct ConfigArgs {
    /// Read options from this file; the command line and the environment win
    #[arg(long, env = "PS_CONFIG", value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Print the options in force as TOML and exit
    #[arg(long)]
    pub print_config: bool,
}

/// What every long-running program takes.
#[derive(clap::Args, Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Program")]
pub struct ProgramArgs {
    /// Options from a file.
    #[command(flatten)]
    #[serde(skip)]
    pub file: ConfigArgs,
    /// Write logs as JSON, one object a line
    #[arg(long, env = "PS_LOG_JSON", value_name = "BOOL", default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub log_json: bool,
    /// End when stdin ends: a child dies with its parent
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub watch_stdin: bool,
}

/// Parses `arguments` (the first is the program's name), filling in what neither they nor the
/// environment say from the file that `--config` names. A subcommand's options may stand there
/// too: the file belongs to the innermost subcommand that is called.
///
/// Usage errors, `--help` and `--version` end the process as clap does it.
pub fn parse(command: &Command, arguments: &[OsString]) -> Result<ArgMatches, ExitError> {
    Ok(command.clone().get_matches_from(with_file(command, arguments)?))
}

/// A flag that follows from the place of a process in a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Implied {
    /// Its long name.
    pub flag: &'static str,
    /// As it would be given.
    pub value: String,
}

/// As [`parse`]; then fills in what follows from the place that `--cluster` or the variable
/// [`TF_CONFIG`] gives the process, which `implied` says. What is given besides must be the same.
///
/// # Errors
/// As [`parse`]; I/O and bad data of the cluster; configuration, naming both, where a flag
/// contradicts it.
pub fn parse_task(
    command: &Command,
    arguments: &[OsString],
    implied: impl FnOnce(&Place, &ArgMatches) -> Result<Vec<Implied>, ExitError>,
) -> Result<ArgMatches, ExitError> {
    let mut all = with_file(command, arguments)?;
    let matches = command.clone().get_matches_from(&all);
    let flags = TaskArgs::from_arg_matches(&matches)
        .map_err(|e| ExitError::new(Exit::Bug, "the cluster's flags cannot be read").because(e))?;
    let Some((place, from)) = read_place(&flags)? else {
        cluster::refuse_alone(&flags)?;
        return Ok(matches);
    };
    for Implied { flag, value } in implied(&place, &matches)? {
        match given(command, &matches, flag) {
            None => all.push(format!("--{flag}={value}").into()),
            Some(given) if plain_urls(&given) == plain_urls(&value) => {}
            Some(given) => {
                return Err(ExitError::config(format!(
                    "--{flag} {given}, but {from} means --{flag} {value}"
                )));
            }
        }
    }
    Ok(command.clone().get_matches_from(all))
}

/// Where the cluster says that this process is, and who says so.
fn read_place(flags: &TaskArgs) -> Result<Option<(Place, String)>, ExitError> {
    let (text, from) = match &flags.cluster {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| {
                let what = format!("cannot read --cluster {}", path.display());
                ExitError::new(Exit::Io, what).because(e)
            })?;
            (text, path.display().to_string())
        }
        None => match std::env::var(TF_CONFIG) {
            Ok(text) => (text, TF_CONFIG.to_owned()),
            Err(_) => return Ok(None),
        },
    };
    Ok(cluster::place(&text, &from, flags)?.map(|place| (place, from)))
}

/// What the command line, the environment or the configuration file says, as text.
fn given(command: &Command, matches: &ArgMatches, flag: &str) -> Option<String> {
    let argument = command.get_arguments().find(|a| a.get_long() == Some(flag))?;
    let id = argument.get_id().as_str();
    let source = matches.value_source(id);
    if !matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
        return None;
    }
    let texts = matches.get_raw(id)?.map(|text| text.to_string_lossy().into_owned());
    Some(texts.collect::<Vec<_>>().join(","))
}

/// `HOST:PORT` and `http://HOST:PORT` are the same.
fn plain_urls(text: &str) -> String {
    text.replace("http://", "")
}

/// The arguments with what stands in the file that `--config` names.
fn with_file(command: &Command, arguments: &[OsString]) -> Result<Vec<OsString>, ExitError> {
    let first = command.clone().ignore_errors(true).try_get_matches_from(arguments).ok();
    let (command_called, given) = innermost(command, first.as_ref());
    let config =
        given.and_then(|m| m.try_get_one::<std::path::PathBuf>("config").ok().flatten().cloned());
    let Some(path) = config else { return Ok(arguments.to_vec()) };
    let table = read_toml(&path)?;
    let mut all = arguments.to_vec();
    for (key, value) in &table {
        let known = command_called.get_arguments().find(|a| a.get_long() == Some(key.as_str()));
        let Some(known) = known.filter(|_| key != "config") else {
            return Err(ExitError::config(format!(
                "{}: `{key}` is not an option of {}; see --help for their names",
                path.display(),
                command_called.get_name()
            )));
        };
        let source = given.and_then(|m| m.value_source(known.get_id().as_str()));
        if matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
            continue;
        }
        all.extend(
            arguments_of(known, value).map_err(|what| {
                ExitError::config(format!("{}: `{key}` is {what}", path.display()))
            })?,
        );
    }
    Ok(all)
}

/// The subcommand that the arguments arrive at, with its part of the matches.
fn innermost<'a>(
    mut command: &'a Command,
    mut matches: Option<&'a ArgMatches>,
) -> (&'a Command, Option<&'a ArgMatches>) {
    while let Some((name, inner)) = matches.and_then(ArgMatches::subcommand)
        && let Some(found) = command.find_subcommand(name)
    {
        (command, matches) = (found, Some(inner));
    }
    (command, matches)
}

fn read_toml(path: &Path) -> Result<toml::Table, ExitError> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        ExitError::new(Exit::Io, format!("cannot read --config {}", path.display())).because(e)
    })?;
    text.parse().map_err(|e: toml::de::Error| {
        ExitError::config(format!("--config {} is not TOML", path.display())).because(e)
    })
}

/// One argument, or one for each item of a list whose flag is repeated instead of delimited.
fn arguments_of(flag: &Arg, value: &toml::Value) -> Result<Vec<OsString>, &'static str> {
    let scalar = |value: &toml::Value| match value {
        toml::Value::String(s) => Ok(s.clone()),
        toml::Value::Integer(i) => Ok(i.to_string()),
        toml::Value::Float(f) => Ok(f.to_string()),
        toml::Value::Boolean(b) => Ok(b.to_string()),
        _ => Err("neither a string, a number, a boolean nor a list of these"),
    };
    let texts = match value {
        // An empty list is how `to_toml` writes an option that was not given.
        toml::Value::Array(items) if items.is_empty() => return Ok(Vec::new()),
        toml::Value::Array(items) => {
            let texts = items.iter().map(scalar).collect::<Result<Vec<_>, _>>()?;
            let repeated = matches!(flag.get_action(), ArgAction::Append)
                && flag.get_value_delimiter().is_none();
            if repeated { texts } else { vec![texts.join(",")] }
        }
        other => vec![scalar(other)?],
    };
    let key = flag.get_long().unwrap_or_default();
    Ok(texts.into_iter().map(|text| format!("--{key}={text}").into()).collect())
}

/// The arguments that give `flags` back when parsed: one `--name=value` for each field that is set.
///
/// `flags` is a struct of scalars, strings, lists and options, its serde names in kebab-case equal
/// to the long names of the flags.
pub fn to_arguments(flags: &impl Serialize) -> Vec<OsString> {
    fields(flags).map(|(key, text)| format!("--{key}={text}").into()).collect()
}

/// `flags` as the TOML that `--config` reads.
pub fn to_toml(flags: &impl Serialize) -> String {
    let value = toml::Value::try_from(flags).expect("flags are plain data");
    toml::to_string(&value).expect("flags are plain data")
}

fn fields(flags: &impl Serialize) -> impl Iterator<Item = (String, String)> {
    let Value::Object(map) = serde_json::to_value(flags).expect("flags are plain data") else {
        panic!("flags are a struct")
    };
    map.into_iter().filter_map(|(key, value)| Some((key, text_of(&value)?)))
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(s) => Some(s.clone()),
        Value::Array(items) if items.is_empty() => None,
        Value::Array(items) => Some(items.iter().filter_map(text_of).collect::<Vec<_>>().join(",")),
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, CommandFactory, Parser};

    #[derive(Parser, Debug, PartialEq, Serialize)]
    #[command(name = "demo")]
    #[serde(rename_all = "kebab-case")]
    struct Demo {
        #[arg(long)]
        #[serde(skip)]
        config: Option<std::path::PathBuf>,
        #[arg(long, default_value_t = 4)]
        workers: u32,
        #[arg(long, env = "PS_FLAGS_TEST_LR")]
        lr: Option<f64>,
        #[arg(long, value_delimiter = ',')]
        data: Vec<String>,
        #[arg(long, value_delimiter = ',')]
        more: Vec<String>,
        #[command(flatten)]
        #[serde(flatten)]
        flat: More,
    }

    #[derive(Args, Debug, PartialEq, Serialize)]
    #[serde(rename_all = "kebab-case")]
    struct More {
        #[arg(long, action = clap::ArgAction::Set, default_value_t = false)]
        bias: bool,
    }

    fn demo(arguments: &[&str]) -> Result<Demo, ExitError> {
        let arguments: Vec<OsString> =
            std::iter::once("demo").chain(arguments.iter().copied()).map(Into::into).collect();
        Ok(Demo::from_arg_matches(&parse(&Demo::command(), &arguments)?).expect("parsed"))
    }

    #[test]
    fn arguments_round_trip() {
        let flags = demo(&["--workers=3", "--lr=0.25", "--data=a,b", "--bias=true"]).expect("ok");
        let again: Vec<String> =
            to_arguments(&flags).iter().map(|a| a.to_string_lossy().into_owned()).collect();
        let again: Vec<&str> = again.iter().map(String::as_str).collect();
        assert_eq!(demo(&again).expect("ok"), flags);
    }

    #[derive(Parser, Debug)]
    #[command(name = "task")]
    struct Tasked {
        #[command(flatten)]
        task: TaskArgs,
        #[arg(long, default_value_t = 4)]
        workers: u32,
        #[arg(long, value_delimiter = ',')]
        server: Vec<String>,
    }

    fn tasked(arguments: &[&str]) -> Result<Tasked, ExitError> {
        let arguments: Vec<OsString> =
            std::iter::once("task").chain(arguments.iter().copied()).map(Into::into).collect();
        let implied = |place: &Place, _: &ArgMatches| {
            let urls: Vec<_> = place.servers.iter().map(|a| format!("http://{a}")).collect();
            Ok(vec![
                Implied { flag: "workers", value: place.n_workers.to_string() },
                Implied { flag: "server", value: urls.join(",") },
            ])
        };
        let matches = parse_task(&Tasked::command(), &arguments, implied)?;
        Ok(Tasked::from_arg_matches(&matches).expect("parsed"))
    }

    #[test]
    fn a_cluster_fills_in_what_follows_and_is_not_contradicted() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), r#"{"ps": ["a:1", "b:2"], "worker": ["c:3"]}"#)
            .expect("written");
        let cluster = format!("--cluster={}", file.path().display());
        let job = [&cluster[..], "--job-name=worker", "--task-index=0"];
        for more in [&[][..], &["--workers=1"], &["--server=a:1,http://b:2"]] {
            let args = tasked(&[&job[..], more].concat()).expect("fine");
            assert_eq!((args.workers, args.server.len()), (1, 2));
            assert_eq!(args.task.cluster.as_deref(), Some(file.path()));
        }
        for (more, says) in [
            ("--workers=4", "--workers 4, but "),
            ("--server=b:2,a:1", "means --server http://a:1,http://b:2"),
        ] {
            let error = tasked(&[&job[..], &[more]].concat()).expect_err(says);
            assert!(error.exit == Exit::Config && error.message.contains(says), "{error}");
        }
        let error = tasked(&["--cluster=/no/such.json"]).expect_err("no file");
        assert!(error.exit == Exit::Io && error.message.contains("/no/such.json"), "{error}");
        let error = tasked(&["--task-index=1"]).expect_err("no cluster");
        assert!(error.message.contains("--task-index 1 has no meaning"), "{error}");
        assert_eq!(tasked(&[]).expect("fine").workers, 4);
    }

    #[test]
    fn a_file_fills_in_what_the_command_line_leaves_open() {
        let path = std::env::temp_dir().join(format!("ps-flags-{}.toml", std::process::id()));
        std::fs::write(
            &path,
            "workers = 7\nlr = 0.5\ndata = [\"x\", \"y\"]\nmore = []\nbias = true\n",
        )
        .expect("written");
        let config = format!("--config={}", path.display());
        let flags = demo(&[&config, "--lr=0.1"]).expect("ok");
        assert_eq!((flags.workers, flags.lr, flags.flat.bias), (7, Some(0.1), true));
        assert_eq!(flags.data, ["x", "y"]);
        let command = clap::Command::new("outer").subcommand(Demo::command());
        let inner: Vec<OsString> =
            ["outer", "demo", config.as_str(), "--workers=2"].map(Into::into).to_vec();
        let matches = parse(&command, &inner).expect("ok");
        let (_, demo_matches) = matches.subcommand().expect("demo");
        let flags = Demo::from_arg_matches(demo_matches).expect("parsed");
        assert_eq!((flags.workers, flags.lr), (2, Some(0.5)));
        std::fs::write(&path, "wrokers = 7\n").expect("written");
        let error = demo(&[&config]).expect_err("unknown key");
        assert!(error.exit == Exit::Config && error.message.contains("wrokers"), "{error}");
        std::fs::remove_file(&path).expect("removed");
    }
}

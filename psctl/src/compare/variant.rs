//! A variant: one way to run the job, as all flags of a local run. Pure but for clap.
//!
//! A `--variant` is parsed by the flags' own definitions: what it does not say comes from the
//! command line that it stands on, regenerated as arguments.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use ps_common::exit::{Exit, ExitError};
use ps_common::flags::{ConfigArgs, to_arguments};
use ps_common::job::Mode;
use ps_server::args::{CrewArgs, DurabilityArgs, JobArgs};
use ps_worker::args::{EvaluationArgs, LearnArgs};

use super::args::CompareArgs;
use crate::local::LocalArgs;
use crate::local::args::{ClusterArgs, OutputArgs};

/// One way to run the job.
#[derive(Debug, Clone)]
pub struct Variant {
    /// Unique among the variants.
    pub name: String,
    /// Its options as `--variant` gave them; empty for a pair of --modes and --workers.
    pub options: String,
    /// All flags.
    pub args: LocalArgs,
}

/// What a variant may say: all but what is shown and left behind.
#[derive(Args, Debug, Clone)]
struct Flags {
    #[command(flatten)]
    crew: CrewArgs,
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    learn: LearnArgs,
    #[command(flatten)]
    evaluation: EvaluationArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// As psctl local's.
    #[arg(long, value_name = "FILE")]
    theta_in: Option<PathBuf>,
}

/// The modes that are compared if nothing is said.
const MODES: [Mode; 2] = [Mode::Sync, Mode::Async];

/// All variants that `args` asks for: the pairs of --modes and --workers, then each --variant.
///
/// # Errors
/// Usage or configuration, naming the variant.
pub(super) fn all(args: &CompareArgs) -> Result<Vec<Variant>, ExitError> {
    let axes = &args.axes;
    let modes = match axes.modes.as_slice() {
        [] if axes.variants.is_empty() => &MODES,
        given => given,
    };
    let several = axes.workers.len() > 1;
    let named = |name: &str, workers: u32| match several {
        true => format!("{name}, K = {workers}"),
        false => name.to_owned(),
    };
    let mut variants = Vec::new();
    for mode in modes {
        for workers in counts(args) {
            let own = words_of_pair(mode.to_string(), workers);
            let mut flags = resolve(args, &own).map_err(|what| usage(&mode.to_string(), &what))?;
            flags.job = flags.job.in_one_of(*mode, modes);
            let name = named(&mode.to_string(), flags.crew.workers);
            variants.push(variant(name, "", flags, false));
        }
    }
    for text in &axes.variants {
        let (name, options) = parse_name(text)?;
        let own = split(options).map_err(|what| usage(name, &what))?;
        let given = given_by(&own).map_err(|what| usage(name, &what))?;
        let own_workers = given.iter().any(|flag| flag == "workers");
        let runs = if own_workers { vec![None] } else { counts(args) };
        for workers in runs {
            let mut words = own.clone();
            words.extend(workers.map(|k| OsString::from(format!("--workers={k}"))));
            let flags = resolve(args, &words).map_err(|what| usage(name, &what))?;
            let label = if own_workers { name.to_owned() } else { named(name, flags.crew.workers) };
            let keep = given.iter().any(|flag| flag == "eval-every");
            variants.push(variant(label, options, flags, keep));
        }
    }
    for (i, variant) in variants.iter().enumerate() {
        if variants[..i].iter().any(|earlier| earlier.name == variant.name) {
            return Err(ExitError::config(format!(
                "there are two variants `{}`: give each a name of its own, and --modes and \
                 --workers each value once",
                variant.name
            )));
        }
    }
    Ok(variants)
}

/// The numbers of workers; a lone `None` is the default.
fn counts(args: &CompareArgs) -> Vec<Option<u32>> {
    match args.axes.workers.as_slice() {
        [] => vec![None],
        given => given.iter().copied().map(Some).collect(),
    }
}

fn words_of_pair(mode: String, workers: Option<u32>) -> Vec<OsString> {
    let workers = workers.map(|k| format!("--workers={k}"));
    [Some(format!("--mode={mode}")), workers].into_iter().flatten().map(OsString::from).collect()
}

/// `keep_eval_every`: the variant itself says it, so that it is refused where it means nothing.
fn variant(name: String, options: &str, flags: Flags, keep_eval_every: bool) -> Variant {
    let mut args = LocalArgs {
        crew: flags.crew,
        job: flags.job,
        learn: flags.learn,
        evaluation: flags.evaluation,
        theta_in: flags.theta_in,
        durability: DurabilityArgs::default(),
        output: OutputArgs::default(),
        cluster: flags.cluster,
        file: ConfigArgs::default(),
    };
    args.settle();
    if !keep_eval_every && !args.needs_evaluator() {
        args.evaluation.eval_every = None;
    }
    Variant { name, options: options.to_owned(), args }
}

/// The flags of `own`, and for what they do not say those of `args`.
fn resolve(args: &CompareArgs, own: &[OsString]) -> Result<Flags, String> {
    let given = given_by(own)?;
    let is_free = |argument: &OsString| {
        let text = argument.to_string_lossy();
        let name = text.trim_start_matches("--").split('=').next().unwrap_or_default();
        !given.iter().any(|flag| flag == name)
    };
    let base = [
        to_arguments(&args.job),
        to_arguments(&args.learn),
        to_arguments(&args.evaluation),
        to_arguments(&args.cluster),
    ];
    let words: Vec<OsString> = base.into_iter().flatten().filter(is_free).collect();
    let matches = matches(words.iter().chain(own))?;
    Flags::from_arg_matches(&matches).map_err(|error| reason(&error))
}

/// The long names of the flags that stand in `words`.
fn given_by(words: &[OsString]) -> Result<Vec<String>, String> {
    let matches = matches(words.iter())?;
    let command = command();
    let given = command.get_arguments().filter(|argument| {
        matches.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine)
    });
    Ok(given.filter_map(|argument| argument.get_long().map(str::to_owned)).collect())
}

fn matches<'a>(words: impl Iterator<Item = &'a OsString>) -> Result<ArgMatches, String> {
    let all = std::iter::once(OsString::from("variant")).chain(words.cloned());
    command().try_get_matches_from(all).map_err(|error| reason(&error))
}

/// The environment has had its say in the command line that the variant stands on.
fn command() -> Command {
    let command = Flags::augment_args(Command::new("variant")).disable_help_flag(true);
    command.mut_args(|argument| argument.env(None::<&'static str>))
}

/// What clap says, without its usage: that of the whole program is another one.
fn reason(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let said = text.split("\n\nUsage:").next().unwrap_or_default();
    let said = said.split("\n\nFor more").next().unwrap_or_default();
    let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    said.join("; ").trim_start_matches("error: ").to_owned()
}

fn usage(name: &str, what: &str) -> ExitError {
    ExitError::new(Exit::Usage, format!("variant `{name}`: {what}"))
}

/// `NAME: OPTIONS`.
fn parse_name(text: &str) -> Result<(&str, &str), ExitError> {
    let parts = text.split_once(':').map(|(name, options)| (name.trim(), options.trim()));
    match parts {
        Some((name, options)) if !name.is_empty() && !name.starts_with('-') => Ok((name, options)),
        _ => Err(ExitError::new(
            Exit::Usage,
            format!(
                "--variant `{text}` is not NAME: OPTIONS, as in \"fast: --lr 0.3 --mode async\""
            ),
        )),
    }
}

/// Words as a shell makes them from spaces and quotes, without its escapes.
fn split(text: &str) -> Result<Vec<OsString>, String> {
    let mut words: Vec<OsString> = Vec::new();
    let (mut word, mut quote): (Option<String>, Option<char>) = (None, None);
    for c in text.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take().map(OsString::from)),
            _ => word.get_or_insert_default().push(c),
        }
    }
    if let Some(open) = quote {
        return Err(format!("a quote {open} is not closed"));
    }
    words.extend(word.map(OsString::from));
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::super::args::tests::compare;
    use super::*;

    fn names(arguments: &[&str]) -> Vec<String> {
        let variants = all(&compare(arguments)).expect("variants");
        variants.into_iter().map(|variant| variant.name).collect()
    }

    #[test]
    fn lists_make_pairs_and_variants_take_the_place_of_modes() {
        assert_eq!(names(&[]), ["sync", "async"]);
        assert_eq!(names(&["--modes=async", "--workers=8"]), ["async"]);
        assert_eq!(names(&["--modes=async", "--workers=1,2"]), ["async, K = 1", "async, K = 2"]);
        assert_eq!(names(&["--variant=a:", "--variant=b: --lr 1"]), ["a", "b"]);
        let both = ["--workers=1,2", "--modes=sync", "--variant=a: --workers 3", "--variant=b:"];
        assert_eq!(names(&both), ["sync, K = 1", "sync, K = 2", "a", "b, K = 1", "b, K = 2"]);
    }

    #[test]
    fn a_variant_goes_before_the_command_line() {
        let args = compare(&[
            "--lr=0.5",
            "--data=x,y",
            "--rounds=7",
            "--workers=2",
            "--variant=a: --lr 0.25 --data 'z w' --mode=async --compute-delay-ms 1",
            "--variant=b: --workers=9",
        ]);
        let variants = all(&args).expect("variants");
        let a = &variants[0].args;
        assert_eq!((a.job.update.lr, a.job.rounds, a.crew.workers), (Some(0.25), 7, 2));
        assert_eq!((a.crew.mode, a.learn.data.data.as_slice()), (Mode::Async, &["z w".into()][..]));
        assert_eq!(a.cluster.compute_delay_ms.as_deref(), Some("1"));
        let b = &variants[1].args;
        assert_eq!((b.job.update.lr, b.crew.workers, b.learn.data.data.len()), (Some(0.5), 9, 2));
    }

    #[test]
    fn errors_name_the_variant() {
        for (text, says) in [
            ("a: --lr fast", "variant `a`: invalid value 'fast' for '--lr"),
            ("a: --learning 1", "variant `a`: unexpected argument '--learning'"),
            ("a: --report x.json", "variant `a`: unexpected argument '--report'"),
            ("a: 'x", "variant `a`: a quote ' is not closed"),
            ("--lr 0.1", "is not NAME: OPTIONS"),
            (": --lr 0.1", "is not NAME: OPTIONS"),
        ] {
            let error = all(&compare(&[&format!("--variant={text}")])).expect_err(says);
            assert!(error.message.contains(says), "{error}");
            assert!(error.exit == Exit::Usage && !error.message.contains('\n'), "{error}");
        }
        let twice = all(&compare(&["--modes=sync,sync"])).expect_err("twice");
        assert!(twice.exit == Exit::Config && twice.message.contains("`sync`"), "{twice}");
    }

    #[test]
    fn words_are_split_at_spaces_outside_of_quotes() {
        let words = split("  --a 'b c'd \"e 'f'\" '' ").expect("words");
        assert_eq!(words, ["--a", "b cd", "e 'f'", ""]);
        assert_eq!(split("").expect("none"), Vec::<OsString>::new());
    }
}

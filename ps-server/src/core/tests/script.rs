//! Runs `scripts/*.txt`: timelines of what happens to a core and what it does.
//!
//! How to write one stands in `scripts/README.md`. With `PS_BLESS=1` the expectations are written
//! anew from what the core does: read the difference before you commit it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use ps_common::calls::{
    Caller, Evaluation, JoinRequest, Leave, PullRequest, PushHeader, WorkerState,
};
use ps_common::job::{
    Aggregate, Combine, Metrics, Mode, OnWorkerLoss, PROTOCOL_VERSION, Role, WorkerStats,
};
use ps_common::tables::{Table, Tables};
use ps_common::units::parse_duration;
use ps_common::{Dtype, ErrorCode};

use super::ledger::Ledger;
use crate::core::{
    Answer, CallId, Config, ConnId, Consistency, Core, DelayScaling, Effect, Input, OnExcess,
    Plateau, StopRules, Time, Unapplied,
};

#[test]
fn scripts_run_as_written() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/core/tests/scripts");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&directory)
        .expect("scripts are in the source")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "txt"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 30, "{} scripts in {}", paths.len(), directory.display());
    let mut failures = String::new();
    for path in &paths {
        let text = std::fs::read_to_string(path).expect("readable");
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let Ok((rewritten, wrong)) = std::panic::catch_unwind(|| run(&name, &text)) else {
            let _ = writeln!(failures, "{name}: panicked, see above");
            continue;
        };
        if std::env::var_os("PS_BLESS").is_some() {
            std::fs::write(path, rewritten).expect("writable");
        } else {
            failures.push_str(&wrong);
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn a_wrong_expectation_is_shown_with_its_line() {
    let text = "config sync workers=1\nat 0ms join a\n  => create 4 f32; a joined rank 1\n";
    let (_, wrong) = run("wrong.txt", text);
    assert!(wrong.contains("wrong.txt:2: at 0ms join a"), "{wrong}");
    assert!(wrong.contains("expected a joined rank 1"), "{wrong}");
    assert!(wrong.contains("got      a joined rank 0"), "{wrong}");
    assert_eq!(run("empty.txt", "config sync\nat 0s tick =>\n").1, "");
}

/// One `at` line with what follows from it.
struct Step<'a> {
    line: usize,
    action: &'a str,
    expected: Vec<&'a str>,
}

/// The script with the expectations that hold, and a description of those that do not.
fn run(name: &str, text: &str) -> (String, String) {
    let mut rewritten = String::new();
    let mut wrong = String::new();
    let mut script: Option<Script> = None;
    let mut lines = text.lines().enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let place = format!("{name}:{}", index + 1);
        if line.trim().is_empty() || line.starts_with('#') {
            rewritten.push_str(line);
            rewritten.push('\n');
            continue;
        }
        if let Some(words) = line.strip_prefix("config ") {
            assert!(script.is_none(), "{place}: a second config");
            script = Some(Script::new(&place, words));
            rewritten.push_str(line);
            rewritten.push('\n');
            continue;
        }
        let mut expected = Vec::new();
        let (action, first) = line.split_once("=>").unwrap_or((line, ""));
        let mut step = Step { line: index + 1, action: action.trim_end(), expected: vec![first] };
        while let Some((_, more)) = lines.next_if(|(_, l)| l.trim_start().starts_with("=>")) {
            step.expected.push(more.trim_start().trim_start_matches("=>"));
        }
        for effects in &step.expected {
            expected.extend(effects.split(';').map(str::trim).filter(|e| !e.is_empty()));
        }
        let script = script.as_mut().unwrap_or_else(|| panic!("{place}: config comes first"));
        let got = script.step(&place, step.action);
        rewrite(&mut rewritten, step.action, &got);
        if got != expected {
            let _ = writeln!(wrong, "{name}:{}: {}", step.line, step.action);
            for i in 0..got.len().max(expected.len()) {
                let at = |list: &[&str]| list.get(i).map_or("(nothing)", |e| *e).to_owned();
                let got: Vec<&str> = got.iter().map(String::as_str).collect();
                let mark = if at(&expected) == at(&got) { "  " } else { "! " };
                let _ = writeln!(wrong, "{mark}expected {}", at(&expected));
                let _ = writeln!(wrong, "{mark}got      {}", at(&got));
            }
        }
    }
    (rewritten, wrong)
}

fn rewrite(out: &mut String, action: &str, effects: &[String]) {
    let one_line = format!("{action} => {}", effects.join("; "));
    if one_line.len() <= 90 {
        out.push_str(one_line.trim_end());
        out.push('\n');
        return;
    }
    out.push_str(action);
    out.push('\n');
    for effect in effects {
        let _ = writeln!(out, "  => {effect}");
    }
}

/// A core with names for everything that it numbers.
struct Script {
    core: Core,
    ledger: Ledger,
    callers: BTreeMap<String, Caller>,
    connections: BTreeMap<String, ConnId>,
    labels: BTreeMap<CallId, String>,
    now: Time,
}

impl Script {
    fn new(place: &str, words: &str) -> Self {
        let mut words = Words::new(place, words);
        let (mode, dtype) = (words.next("a mode"), words.option("dtype"));
        let config = Config {
            checkpoints: None,
            boot: 0,
            consistency: words.consistency(mode),
            n_workers: words.number("workers").unwrap_or(2),
            aggregate: words
                .option("aggregate")
                .map_or(Aggregate::WeightedMean, |text| words.parse(text)),
            rounds: words.number("rounds"),
            lease: words.duration("lease").unwrap_or(Duration::from_secs(10)),
            on_worker_loss: words
                .option("loss")
                .map_or(OnWorkerLoss::Wait, |text| words.value(text)),
            replacement_timeout: words.duration("replacement").unwrap_or(Duration::from_secs(600)),
            observers: words.number("observers").unwrap_or(0),
            wait_max: words.duration("hold").unwrap_or(Config::WAIT_MAX),
            stop: StopRules {
                target_loss: words.number("target"),
                duration: words.duration("time"),
                plateau: words.number("plateau").map(|n_measurements| Plateau {
                    n_measurements,
                    min_delta: words.number("min-delta").unwrap_or(0.0),
                }),
            },
        };
        let dtype = dtype.map_or(Dtype::F32, |text| words.value(text));
        words.end();
        Self {
            core: Core::new(config.clone(), dtype),
            ledger: Ledger::new(config),
            callers: BTreeMap::new(),
            connections: BTreeMap::new(),
            labels: BTreeMap::new(),
            now: Time::ZERO,
        }
    }

    /// Carries out one `at` line; gives the effects as text.
    fn step(&mut self, place: &str, line: &str) -> Vec<String> {
        let mut words = Words::new(place, line);
        assert_eq!(words.next("at"), "at", "{place}: a line begins with `at` or `config`");
        let time = words.next("a time");
        let time = parse_duration(time).unwrap_or_else(|error| panic!("{place}: {error}"));
        assert!(time >= self.now, "{place}: time goes back");
        self.now = time;
        let verb = words.next("an action");
        if verb == "show" {
            let shown = self.show(&mut words);
            words.end();
            return vec![shown.replace(';', ",")];
        }
        let input = self.input(verb, &mut words);
        words.end();
        let effects = self
            .ledger
            .step(&mut self.core, self.now, input)
            .unwrap_or_else(|broken| panic!("{place}: {line}\n{broken}"));
        for effect in &effects {
            if let Effect::Reply { call, answer: Answer::Joined(welcome) } = effect {
                let name = self.labels[call].split('#').next().unwrap_or_default().to_owned();
                self.callers.insert(name, welcome.caller);
            }
        }
        effects.iter().map(|effect| self.effect(effect)).collect()
    }

    /// Names a new call: `a` or, where `a` has several, `a#2`.
    fn call(&mut self, label: &str) -> CallId {
        let call = CallId(self.labels.len() as u64);
        self.labels.insert(call, label.to_owned());
        call
    }

    fn connection(&mut self, name: &str) -> ConnId {
        let next = ConnId(self.connections.len() as u64);
        *self.connections.entry(name.to_owned()).or_insert(next)
    }

    fn caller(&self, words: &Words<'_>, label: &str) -> Caller {
        let name = label.split('#').next().unwrap_or_default();
        if let Some(caller) = self.callers.get(name) {
            return *caller;
        }
        // A stranger: `?RANK.INCARNATION`.
        let parts = name.strip_prefix('?').and_then(|rest| rest.split_once('.'));
        let (rank, incarnation) =
            parts.unwrap_or_else(|| panic!("{}: {name} has not joined", words.place));
        Caller { rank: words.parse(rank), incarnation: words.parse(incarnation) }
    }

    /// The update that a line speaks of: by the label of its first gradient, or the only one.
    fn update(&self, words: &mut Words<'_>) -> CallId {
        let place = words.place;
        let mut under_way: Vec<CallId> = self.ledger.updates().collect();
        if let Some(label) = words.last() {
            under_way.retain(|name| self.labels[name] == label);
        }
        assert_eq!(under_way.len(), 1, "{place}: which update?");
        under_way[0]
    }

    fn input(&mut self, verb: &str, words: &mut Words<'_>) -> Input {
        match verb {
            "updated" => return Input::Updated { name: self.update(words), result: Ok(()) },
            "overflow" => {
                let key = words.number("key").unwrap_or(0);
                return Input::Updated {
                    name: self.update(words),
                    result: Err(Unapplied::Overflow { key }),
                };
            }
            "concluded" => return Input::Concluded,
            "drain" => return Input::Drain,
            "tick" => return Input::Tick,
            "stop" => return Input::Stop { reason: words.next("a reason").to_owned() },
            _ => {}
        }
        let label = words.next("a name");
        match verb {
            "disconnect" => return Input::Disconnected { conn: self.connection(label) },
            "drop" => {
                let newest = self.labels.iter().rfind(|(_, l)| *l == label);
                let (&call, _) = newest.unwrap_or_else(|| panic!("{}: no call", words.place));
                return Input::Dropped { call };
            }
            "join" => return self.join(label, words),
            _ => {}
        }
        let caller = self.caller(words, label);
        if verb == "reject" {
            let code = ErrorCode::from_name(words.next("a code"));
            let code = code.unwrap_or_else(|| panic!("{}: unknown code", words.place));
            return Input::Rejected { caller: Some(caller), code };
        }
        let call = self.call(label);
        let conn = self.connection(label.split('#').next().unwrap_or_default());
        match verb {
            "heartbeat" => Input::Heartbeat { call, caller, stats: stats(words) },
            "statistics" => Input::Statistics { call, caller },
            "leave" => {
                let leave =
                    Leave { caller, stats: stats(words), final_metrics: metrics(words, "") };
                Input::Leave { call, leave }
            }
            "push" => self.push(call, conn, caller, words),
            "pull" => {
                let request = PullRequest {
                    caller,
                    version_min: words.number("version").unwrap_or(0),
                    r#final: words.flag("final"),
                    wait_max: words.duration("within"),
                };
                Input::Pull { call, conn, request }
            }
            "evaluate" => {
                let evaluation = Evaluation {
                    caller,
                    version: words.number("version").unwrap_or(self.core.version()),
                    seconds: self.now.as_secs_f64(),
                    train: metrics(words, "").unwrap_or_default(),
                    test: metrics(words, "test-"),
                    r#final: words.flag("final"),
                };
                Input::Evaluate { call, evaluation }
            }
            other => panic!("{}: `{other}` is no action", words.place),
        }
    }

    fn push(&self, call: CallId, conn: ConnId, caller: Caller, words: &mut Words<'_>) -> Input {
        let header = PushHeader {
            caller,
            clock: words.number("clock").unwrap_or_else(|| panic!("{}: clock=?", words.place)),
            version_pulled: words.number("pulled").unwrap_or(self.core.version()),
            n_samples: words.number("n").unwrap_or(1),
            loss: words.number("loss"),
            penalty: words.number("penalty"),
            wait_max: words.duration("within"),
        };
        let digest = words.number("bytes").unwrap_or(0);
        Input::Push { call, conn, header, digest, theta: !words.flag("bare") }
    }

    fn join(&mut self, label: &str, words: &mut Words<'_>) -> Input {
        let role = if words.flag("observer") { Role::Observer } else { Role::Worker };
        let dim = words.number("dim").or((role == Role::Worker).then_some(4u64));
        let tables = dim.map(|dim| {
            Tables::new(vec![Table::zeros("w", &[dim], true)]).expect("a script's table is sane")
        });
        let dtype = words.option("dtype").map(|text| words.value(text));
        let rank = words.number("rank");
        let acknowledged_clock = words.number("acknowledged");
        let fingerprint =
            words.rest().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let request = JoinRequest {
            protocol_version: PROTOCOL_VERSION,
            role,
            rank,
            fingerprint,
            tables,
            dtype,
            program: "script".to_owned(),
            acknowledged_clock,
        };
        let call = self.call(label);
        let conn = self.connection(label);
        Input::Join { call, conn, address: label.to_owned(), request }
    }

    fn effect(&self, effect: &Effect) -> String {
        match effect {
            Effect::Reply { call, answer } => {
                format!("{} {}", self.labels[call], answer_text(answer))
            }
            Effect::Create { tables, dtype } => format!("create {} {dtype}", tables.dim()),
            Effect::Update(order) => {
                let parts: Vec<String> = order
                    .parts
                    .iter()
                    .map(|(call, weight)| format!("{}*{weight}", self.labels[call]))
                    .collect();
                let how = match order.combine {
                    Combine::Sum => String::new(),
                    Combine::InTurn => " in turn".to_owned(),
                    Combine::Median => " by median".to_owned(),
                    Combine::TrimmedMean { k } => format!(" by trimmed mean of {k}"),
                };
                let rate = match order.rate_factor {
                    1.0 => String::new(),
                    factor => format!(" rate {factor:.4}"),
                };
                let compensation = order.compensation.map_or(String::new(), |c| {
                    format!(" lambda {} rank {} from {}", c.lambda, c.rank, c.version_pulled)
                });
                format!("update {}{how}{rate}{compensation}", parts.join(" "))
            }
            Effect::Keep { rank } => format!("keep for {rank}"),
            Effect::Forget { gradient } => format!("forget {}", self.labels[gradient]),
            Effect::Capture => "capture".to_owned(),
            Effect::Conclude => "conclude".to_owned(),
        }
    }

    /// What an operator would see of the core, in short.
    fn show(&self, words: &mut Words<'_>) -> String {
        let report = self.core.report(self.now, "", "", "").expect("somebody has joined");
        let status = self.core.status(self.now, "", "");
        match words.next("what to show") {
            "ranks" => {
                let each = status.workers.iter().map(|worker| {
                    let state = match worker.state {
                        WorkerState::Vacant => "vacant",
                        WorkerState::Live => "live",
                        WorkerState::Lost => "lost",
                        WorkerState::Left => "left",
                    };
                    format!("{state} at {}", worker.clock)
                });
                each.collect::<Vec<_>>().join(", ")
            }
            "history" if report.history.is_empty() => "nothing".to_owned(),
            "history" => {
                let each = report.history.iter();
                each.map(|e| format!("{}:{}", e.round, e.loss)).collect::<Vec<_>>().join(" ")
            }
            "delays" => {
                let delay = &report.gradient_delay;
                format!("{:?} max {}", delay.histogram, delay.max)
            }
            "dropped" => {
                let dropped = report.dropped;
                let each: Vec<_> = report.workers.iter().map(|w| w.dropped.to_string()).collect();
                format!(
                    "{} late, {} by delay, {} at the end, by rank {}",
                    dropped.late,
                    dropped.delay,
                    dropped.ended,
                    each.join(" ")
                )
            }
            "final" => {
                let end = &report.r#final;
                format!(
                    "loss {:?} accuracy {:?} test {:?} {:?} of {} rows",
                    end.loss,
                    end.train_accuracy,
                    end.test_loss,
                    end.test_accuracy,
                    report.n_samples
                )
            }
            "events" => {
                let each = report.events.iter().map(|event| match event.rank {
                    Some(rank) if rank < Caller::FIRST_OBSERVER => {
                        format!("{} {rank} {}", event.kind, event.detail)
                    }
                    _ => format!("{} {}", event.kind, event.detail),
                });
                each.collect::<Vec<_>>().join(", ")
            }
            "outcome" => report.outcome,
            "pushes" => {
                let each = status.workers.iter().map(|worker| worker.stats.pushes.to_string());
                each.collect::<Vec<_>>().join(" ")
            }
            "over" => self.core.is_over().to_string(),
            "alarm" => self.core.next_deadline().map_or("none".to_owned(), |t| format!("{t:?}")),
            other => panic!("{}: `{other}` cannot be shown", words.place),
        }
    }
}

fn answer_text(answer: &Answer) -> String {
    let waited = |waited: Duration| match waited {
        Duration::ZERO => String::new(),
        waited => format!(" waited {waited:?}"),
    };
    match answer {
        Answer::Joined(w) => {
            format!(
                "joined rank {} clock {} version {} {}",
                place_of(w.caller),
                w.clock,
                w.version,
                w.state
            )
        }
        Answer::State { state, version } => format!("told {state} version {version}"),
        Answer::Pushed(result) => {
            let outcome = format!("{:?}", result.outcome).to_lowercase();
            let delay = match result.gradient_delay {
                0 => String::new(),
                delay => format!(" delay {delay}"),
            };
            let (version, clock, state) = (result.version, result.clock, result.state);
            let waited = waited(result.waited);
            format!("{outcome} version {version} clock {clock}{delay} {state}{waited}")
        }
        Answer::Pulled(header) => {
            format!("pulled version {} {}{}", header.version, header.state, waited(header.waited))
        }
        Answer::Statistics => "merged".to_owned(),
        Answer::Checkpointed { version, path } => format!("saved version {version} in {path}"),
        Answer::Refused(refusal) => {
            let error = &refusal.0;
            let facts: Vec<String> =
                error.facts.iter().map(|(key, value)| format!(" {key}={value}")).collect();
            let retry = error.retry_after.map(|t| format!(" retry {t:?}")).unwrap_or_default();
            format!("refused {}{}{retry}", error.code, facts.concat())
        }
    }
}

fn place_of(caller: Caller) -> String {
    if caller.is_observer() {
        format!("o{}", caller.rank - Caller::FIRST_OBSERVER)
    } else {
        caller.rank.to_string()
    }
}

fn stats(words: &mut Words<'_>) -> WorkerStats {
    WorkerStats { pushes: words.number("pushes").unwrap_or(0), ..WorkerStats::default() }
}

/// Metrics if a loss is given: `loss=1.5 n=10 correct=7 penalty=0.1`.
fn metrics(words: &mut Words<'_>, prefix: &str) -> Option<Metrics> {
    let loss = words.number(&format!("{prefix}loss"))?;
    Some(Metrics {
        loss,
        n_samples: words.number(&format!("{prefix}n")).unwrap_or(1),
        penalty: words.number(&format!("{prefix}penalty")).unwrap_or(0.0),
        n_correct: words.number(&format!("{prefix}correct")),
    })
}

/// The words of a line: some by place, the rest `key=value` or flags in any order.
struct Words<'a> {
    place: &'a str,
    words: Vec<&'a str>,
}

impl<'a> Words<'a> {
    fn new(place: &'a str, line: &'a str) -> Self {
        Self { place, words: line.split_whitespace().collect() }
    }

    fn next(&mut self, what: &str) -> &'a str {
        assert!(!self.words.is_empty(), "{}: {what} is missing", self.place);
        self.words.remove(0)
    }

    /// What is left, if it is a word.
    fn last(&mut self) -> Option<&'a str> {
        self.words.pop()
    }

    fn option(&mut self, key: &str) -> Option<&'a str> {
        let found = |word: &&str| word.split_once('=').is_some_and(|(k, _)| k == key);
        let index = self.words.iter().position(found)?;
        self.words.remove(index).split_once('=').map(|(_, value)| value)
    }

    fn flag(&mut self, name: &str) -> bool {
        let index = self.words.iter().position(|word| *word == name);
        index.map(|index| self.words.remove(index)).is_some()
    }

    fn rest(&mut self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let place = self.place;
        let each = std::mem::take(&mut self.words).into_iter();
        each.map(move |w| w.split_once('=').unwrap_or_else(|| panic!("{place}: `{w}`?")))
    }

    fn parse<T: std::str::FromStr>(&self, text: &str) -> T {
        text.parse().unwrap_or_else(|_| panic!("{}: `{text}` is no such value", self.place))
    }

    fn number<T: std::str::FromStr>(&mut self, key: &str) -> Option<T> {
        self.option(key).map(|text| self.parse(text))
    }

    fn duration(&mut self, key: &str) -> Option<Duration> {
        let text = self.option(key)?;
        Some(parse_duration(text).unwrap_or_else(|error| panic!("{}: {error}", self.place)))
    }

    fn consistency(&mut self, mode: &str) -> Consistency {
        match self.value::<Mode>(mode) {
            Mode::Sync => Consistency::Sync { backup_workers: self.number("backups").unwrap_or(0) },
            Mode::Ssp => {
                Consistency::Ssp { staleness_bound: self.number("bound").expect("ssp has bound=S") }
            }
            Mode::Async => {
                let strength = self.number("strength").unwrap_or(0.0);
                let scaling = match self.option("scaling").unwrap_or("none") {
                    "none" => DelayScaling::None,
                    "inverse" => DelayScaling::Inverse,
                    "inverse-sqrt" => DelayScaling::InverseSqrt,
                    "exponential" => DelayScaling::Exponential { alpha: strength },
                    "dc-asgd" => DelayScaling::DcAsgd { lambda: strength },
                    other => panic!("{}: scaling={other}?", self.place),
                };
                let excess = self.option("excess").unwrap_or("block");
                let excess = self.value::<OnExcess>(excess);
                Consistency::Async {
                    delay_scaling: scaling,
                    max_gradient_delay: self.number("delay").map(|n| (n, excess)),
                }
            }
            Mode::Hogwild => Consistency::Hogwild,
        }
    }

    fn value<T: ValueEnum>(&self, text: &str) -> T {
        T::from_str(text, true).unwrap_or_else(|_| panic!("{}: `{text}`?", self.place))
    }

    fn end(&self) {
        assert!(self.words.is_empty(), "{}: {:?} means nothing here", self.place, self.words);
    }
}

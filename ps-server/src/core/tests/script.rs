//! Runs `scripts/*.txt`: timelines of what happens to a core and what it does.
//!
//! How to write one stands in `scripts/README.md`. With `PS_BLESS=1` the expectations are written
//! anew from what the core does: read the difference before you commit it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ps_common::calls::{Caller, Evaluation, JoinRequest, Leave, PullRequest, PushHeader};
use ps_common::job::{
    Aggregate, Durability, Metrics, OnWorkerLoss, PROTOCOL_VERSION, Role, WorkerStats,
};
use ps_common::tables::{Table, Tables};
use ps_common::units::parse_duration;
use ps_common::{Dtype, ErrorCode};

use super::ledger::Ledger;
use super::words::Words;
use crate::core::{
    Answer, CallId, Config, ConnId, Core, Counted, Effect, Input, Order, Plateau, Refusal, Saved,
    StopRules, Time, Unapplied,
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

mod shown;

use shown::answer_text;

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

/// What outlives the server.
#[derive(Default)]
struct Disk {
    kept: Option<Saved>,
    unsaved: Option<Saved>,
    /// With `checkpoints=always`: what each update counted, by theta's version before it.
    journal: BTreeMap<u64, Vec<Counted>>,
}

/// A core with names for everything that it numbers.
struct Script {
    core: Core,
    config: Config,
    dtype: Dtype,
    disk: Disk,
    orders: BTreeMap<CallId, Order>,
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
            checkpoints: words.checkpoints(),
            boot: 0,
            consistency: words.consistency(mode),
            n_workers: words.number("workers").unwrap_or(2),
            partition: ps_common::partition::Partition::WHOLE,
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
            ledger: Ledger::new(config.clone()),
            config,
            dtype,
            disk: Disk::default(),
            orders: BTreeMap::new(),
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
        let verb = words.next("an action");
        if verb == "restart" {
            self.now = time;
            let effects = self.restart(&mut words);
            words.end();
            return effects;
        }
        assert!(time >= self.now, "{place}: time goes back");
        self.now = time;
        if verb == "show" {
            let shown = self.show(&mut words);
            words.end();
            return vec![shown.replace(';', ",")];
        }
        let input = self.input(verb, &mut words);
        words.end();
        self.write(&input);
        let effects = self
            .ledger
            .step(&mut self.core, self.now, input)
            .unwrap_or_else(|broken| panic!("{place}: {line}\n{broken}"));
        for effect in &effects {
            if let Effect::Update(order) = effect {
                self.orders.insert(order.name(), order.clone());
            }
            if let Effect::Reply { call, answer: Answer::Joined(welcome) } = effect {
                let name = self.labels[call].split('#').next().unwrap_or_default().to_owned();
                self.callers.insert(name, welcome.caller);
            }
        }
        effects.iter().map(|effect| self.effect(effect)).collect()
    }

    /// What reaches the disk before the core hears of it.
    fn write(&mut self, input: &Input) {
        let always = self.config.checkpoints.is_some_and(|c| c.durability == Durability::Always);
        match input {
            Input::Captured => self.disk.unsaved = self.core.save(self.now),
            Input::Saved { result: Ok(_), .. } => self.disk.kept = self.disk.unsaved.take(),
            Input::Updated { name, result: Ok(()) } if always => {
                let counted = self.core.counted_by(&self.orders[name]);
                self.disk.journal.insert(self.core.version(), counted);
            }
            _ => {}
        }
    }

    /// The server is killed, and started again with what is durable, perhaps with other options.
    fn restart(&mut self, words: &mut Words<'_>) -> Vec<String> {
        self.config.boot += 1;
        if let Some(n_workers) = words.number("workers") {
            self.config.n_workers = n_workers;
        }
        if let Some(rounds) = words.number("rounds") {
            self.config.rounds = Some(rounds);
        }
        if let Some(mode) = words.option("mode") {
            self.config.consistency = words.consistency(mode);
        }
        if let Some(aggregate) = words.option("aggregate") {
            self.config.aggregate = words.parse(aggregate);
        }
        let dtype = words.option("dtype").map_or(self.dtype, |text| words.value(text));
        let place = words.place;
        let saved = self.disk.kept.clone().unwrap_or_else(|| panic!("{place}: nothing is saved"));
        self.disk.journal.retain(|&version, _| version >= saved.version());
        self.disk.unsaved = None;
        let core = Core::restore(self.config.clone(), dtype, saved);
        let mut core = match core {
            Ok(core) => core,
            Err(error) => return vec![answer_text(&Answer::Refused(Refusal(error)))],
        };
        for counted in self.disk.journal.values() {
            core.replay(counted).unwrap_or_else(|error| panic!("{place}: {error}"));
        }
        self.ledger.restart(self.config.clone(), &core);
        self.core = core;
        self.orders.clear();
        self.connections.clear();
        let effects = self.ledger.resume(&mut self.core, self.now);
        let effects = effects.unwrap_or_else(|broken| panic!("{place}: {broken}"));
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

    /// What the driver or an operator says.
    fn word(&mut self, verb: &str, words: &mut Words<'_>) -> Option<Input> {
        let input = match verb {
            "updated" => Input::Updated { name: self.update(words), result: Ok(()) },
            "overflow" => {
                let key = words.number("key").unwrap_or(0);
                Input::Updated {
                    name: self.update(words),
                    result: Err(Unapplied::Overflow { key }),
                }
            }
            "unwritten" => {
                let result = Err(Unapplied::NotWritten { what: "no space left".to_owned() });
                Input::Updated { name: self.update(words), result }
            }
            "captured" => Input::Captured,
            "saved" => {
                let saved = self.disk.unsaved.as_ref();
                let version = saved.unwrap_or_else(|| panic!("{}: what?", words.place)).version();
                let result = match words.flag("fails") {
                    true => Err("no space left".to_owned()),
                    false => Ok((format!("checkpoint-{version}"), 1)),
                };
                Input::Saved { version, result }
            }
            "concluded" => Input::Concluded,
            "drain" => Input::Drain,
            "tick" => Input::Tick,
            "stop" => Input::Stop { reason: words.next("a reason").to_owned() },
            _ => return None,
        };
        Some(input)
    }

    fn input(&mut self, verb: &str, words: &mut Words<'_>) -> Input {
        if let Some(input) = self.word(verb, words) {
            return input;
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
            "checkpoint" => return Input::Checkpoint { call: Some(self.call(label)) },
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
                    exchange: 0,
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
            exchange: 0,
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
        let overlap = words.flag("overlap");
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
            overlap,
        };
        let call = self.call(label);
        let conn = self.connection(label);
        Input::Join { call, conn, address: label.to_owned(), request }
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

//! Theta cut among several servers (rules R2, R3): the same answer as from one, every push once, and
//! nothing lost whoever is killed.

use std::process::Command;
use std::time::{Duration, Instant};

use ps_common::wire::pb;
use ps_tests::{
    Group, GroupCaller, PATIENCE, Process, binary, free_port, local, losses, theta_sha256,
    wait_until,
};
use serde_json::Value;

/// Asserts that two reports tell of the same training, bit by bit.
#[track_caller]
fn assert_same(got: &Value, want: &Value, what: &str) {
    assert_eq!(theta_sha256(got), theta_sha256(want), "{what}");
    assert_eq!(losses(got), losses(want), "{what}");
    assert_eq!(got["version"], want["version"], "{what}");
}

#[test]
fn several_servers_give_the_same_bits_as_one() {
    for job in [
        &["--optimizer=sgd", "--dtype=f64"][..],
        &["--optimizer=adam", "--lr=0.01"],
        &["--aggregate=median", "--workers=3"],
        &["--aggregate=trimmed-mean,k=1", "--dtype=f64"],
    ] {
        let job = [job, &["--rounds=40"]].concat();
        let one = local(&job);
        assert_eq!(one["n_servers"], 1);
        for servers in ["--servers=2", "--servers=3"] {
            let several = local(&[&job[..], &[servers, "--compute-delay-ms=0..2"]].concat());
            assert_same(&several, &one, &format!("{servers} {job:?}"));
            assert_eq!(several["n_servers"], servers[10..].parse::<u32>().expect("a number"));
            assert_eq!(several["dim"], one["dim"], "of all of theta");
        }
    }
}

#[test]
fn a_norm_over_several_servers_has_the_bits_that_it_has_on_one() {
    let large = ["--data=clusters", "--model=mlp,hidden=20000", "--take=40", "--workers=2"];
    for (job, rounds) in [
        (&["--optimizer=sgd", "--dtype=f64"][..], "--rounds=40"),
        (&["--optimizer=adam", "--lr=0.01"], "--rounds=40"),
        (&["--aggregate=median", "--workers=3"], "--rounds=40"),
        // One gradient at a time; with one worker their order is one.
        (&["--mode=async", "--workers=1", "--optimizer=momentum"], "--rounds=40"),
        // Cut within chunks and blocks.
        (&large, "--rounds=3"),
    ] {
        let job = [job, &[rounds]].concat();
        let clipped = [&job[..], &["--clip-norm=0.05"]].concat();
        let one = local(&clipped);
        assert_ne!(theta_sha256(&one), theta_sha256(&local(&job)), "{job:?}: nothing was clipped");
        for servers in ["--servers=2", "--servers=3"] {
            let several = local(&[&clipped[..], &[servers]].concat());
            assert_eq!(theta_sha256(&several), theta_sha256(&one), "{servers} {clipped:?}");
            assert_eq!(several["version"], one["version"], "{servers} {clipped:?}");
        }
    }
}

#[test]
fn parts_of_many_chunks_give_the_same_bits_as_one() {
    let job = [
        "--data=clusters",
        "--model=mlp,hidden=20000",
        "--take=40",
        "--rounds=3",
        "--workers=2",
        "--optimizer=momentum",
    ];
    let one = local(&job);
    let two_chunks = ps_common::dtype::CHUNK_BYTES as u64 / 4 * 2;
    assert!(one["dim"].as_u64() > Some(2 * two_chunks), "several chunks a part: {}", one["dim"]);
    assert_same(&local(&[&job[..], &["--servers=2"]].concat()), &one, "a large theta");
}

#[test]
fn an_evaluator_sees_theta_of_all_servers() {
    let job = ["--batch=50", "--rounds=30", "--dtype=f64", "--eval-every=10"];
    let one = local(&job);
    let two = local(&[&job[..], &["--servers=2"]].concat());
    assert_eq!(theta_sha256(&two), theta_sha256(&one));
    let at = |report: &Value| {
        let history = report["history"].as_array().expect("a history").clone();
        let entry = |e: &Value| (e["version"].as_u64(), e["loss"].as_f64());
        (entry(&history[0]), entry(&history[history.len() - 1]))
    };
    assert_eq!(at(&two), at(&one), "the first and the final theta are measured");
}

#[test]
fn without_a_barrier_several_servers_end_well() {
    for mode in ["--mode=async", "--mode=ssp"] {
        let job = [mode, "--servers=3", "--dtype=f64", "--rounds=50"];
        let report = local(&[&job[..], &["--optimizer=adam", "--lr=0.01"]].concat());
        assert_eq!(report["version"], 200, "{mode}: every push of four workers counts");
        let losses = losses(&report);
        assert!(losses.iter().all(|loss| loss.is_finite()), "{mode}: {losses:?}");
        assert!(losses[losses.len() - 1] < losses[0], "{mode}: {losses:?}");
        let delays = ps_tests::numbers(&report["gradient_delay"]["histogram"]);
        assert_eq!(delays.iter().sum::<f64>(), 200.0, "{mode}: every push has a delay");
    }
    for scaling in ["--delay-scaling=dc-asgd,lambda=0.1", "--delay-scaling=inverse"] {
        for clip in [&[][..], &["--clip-norm=0.05"]] {
            let job = ["--mode=async", "--servers=2", "--rounds=20", scaling];
            let report = local(&[&job[..], clip].concat());
            assert_eq!(report["version"], 80, "{scaling} {clip:?}");
        }
    }
}

const LEDGER_DIM: u64 = 1000;

/// What the pushes up to `clocks` come to: clock c takes c + 1 off an element.
fn sum(clocks: u64) -> f32 {
    -((clocks * (clocks + 1) / 2) as f32)
}

/// Pushes `clocks` times, each push to an element of the first and one of the last server, every third
/// one twice; what is pulled must tell the same of both.
async fn push_all(addresses: &[String], rank: u32, clocks: u64) {
    let mut caller = GroupCaller::join(addresses, rank, LEDGER_DIM).await.expect("joins");
    let (near, far) = (rank as usize, (LEDGER_DIM - 1) as usize - rank as usize);
    for clock in 0..clocks {
        let (version, theta) = caller.pull().await.expect("theta");
        assert_eq!(theta[near], sum(clock), "rank {rank}: what it has pushed is in");
        for other in 0..2 {
            let both = (theta[other], theta[LEDGER_DIM as usize - 1 - other]);
            assert_eq!(both.0, both.1, "version {version} is one on all servers");
        }
        let mut gradient = vec![0f32; LEDGER_DIM as usize];
        (gradient[near], gradient[far]) = ((clock + 1) as f32, (clock + 1) as f32);
        let result = caller.push(clock, version, &gradient).await.expect("taken");
        assert_eq!(result.outcome(), pb::Outcome::Applied);
        if clock % 3 == 0 {
            let again = caller.push(clock, version, &gradient).await.expect("known");
            assert_eq!(again.outcome(), pb::Outcome::Duplicate, "rank {rank}, clock {clock}");
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The line of `psctl` with these arguments.
fn psctl(arguments: &[&str]) -> String {
    Process::start("psctl", arguments).expect_exit(0)
}

#[test]
fn every_push_counts_once_on_all_servers_and_every_pull_is_one_version() {
    const CLOCKS: u64 = 60;
    let job = ["--mode=async", "--workers=2", "--rounds=0", "--lr=1"];
    let group = Group::start(3, &job, false);
    let addresses = group.addresses();
    for address in &addresses {
        wait_until("a server", || std::net::TcpStream::connect(address).ok());
    }
    let pushing = [0, 1].map(|rank| {
        let addresses = addresses.clone();
        std::thread::spawn(move || runtime().block_on(push_all(&addresses, rank, CLOCKS)))
    });
    for thread in pushing {
        thread.join().expect("no promise was broken");
    }
    // An operator sees all servers, and theta of all of them in one file.
    let urls = group.urls();
    let status = psctl(&["status", "--json", "--server", &urls]);
    let status: Value = serde_json::from_str(status.trim()).expect("JSON");
    let servers = status["servers"].as_array().expect("all of them").clone();
    assert_eq!(servers.len(), 3, "{status}");
    assert!(servers.iter().all(|server| server["version"] == 2 * CLOCKS), "{status}");
    let dims: Vec<u64> = servers.iter().filter_map(|server| server["dim"].as_u64()).collect();
    assert_eq!(dims.iter().sum::<u64>(), LEDGER_DIM, "{status}");
    let out = group.file("theta.csv");
    psctl(&["export", "--server", &urls, "--out", &out]);
    let text = std::fs::read_to_string(&out).expect("written");
    let value = |key: u64| {
        let line = text.lines().find(|line| line.starts_with(&format!("w,{key},")));
        let line = line.unwrap_or_else(|| panic!("no key {key} in\n{text}"));
        line.rsplit(',').next().expect("a field").parse::<f32>().expect("a number")
    };
    for key in [0, 1, LEDGER_DIM - 2, LEDGER_DIM - 1] {
        assert_eq!(value(key), sum(CLOCKS), "key {key}");
    }
    assert_eq!(value(500), 0.0);
    assert!(psctl(&["health", "--server", &urls]).contains("serving"));
    let (first, _) = urls.split_once(',').expect("three");
    let error = Process::start("psctl", &["export", "--server", first, "--out", &out]);
    let error = error.expect_exit(78);
    assert!(error.contains("--server names 1, the job has 3 servers"), "{error}");
    assert!(psctl(&["stop", "--server", &urls]).contains("finishing"));
    let report = group.end();
    assert_eq!((&report["n_servers"], &report["version"]), (&3.into(), &(2 * CLOCKS).into()));
}

/// A job of three workers on `n` servers that `disturb` interferes with while it runs.
fn train(
    n: usize,
    job: &[&str],
    learn: &[&str],
    disturb: impl FnOnce(&mut Group, &mut Vec<Process>),
) -> Value {
    let mut group = Group::start(n, job, true);
    let mut workers: Vec<Process> = (0..3).map(|rank| group.worker(rank, learn)).collect();
    disturb(&mut group, &mut workers);
    for worker in workers {
        worker.expect_exit(0);
    }
    group.end()
}

/// Waits until theta has moved on by `updates` since whatever it is now.
fn wait_for_updates(group: &Group, updates: u64) {
    let url = group.addresses()[0].clone();
    let version = || {
        let answer = Process::start("psctl", &["status", "--json", "--server", &url]).wait();
        let line = answer.1.lines().find(|line| line.starts_with('{'))?.to_owned();
        serde_json::from_str::<Value>(&line).ok()?["version"].as_u64()
    };
    let from = wait_until("a version", version);
    wait_until("the job moves on", || version().filter(|v| *v >= from + updates));
}

#[test]
fn whoever_is_killed_the_bits_are_the_same() {
    let job =
        ["--workers=3", "--rounds=200", "--checkpoint-every=7r", "--optimizer=adam", "--lr=0.01"];
    let learn = ["--compute-delay-ms=10..30"];
    let want = local(&["--workers=3", "--rounds=200", "--optimizer=adam", "--lr=0.01"]);
    let killed = train(2, &job, &learn, |group, workers| {
        wait_for_updates(group, 10);
        group.kill(1);
        wait_for_updates(group, 10);
        group.kill(0);
        wait_for_updates(group, 10);
        workers[1].signal("KILL");
        let again = group.worker(1, &learn);
        assert_eq!(std::mem::replace(&mut workers[1], again).wait().0, None);
        wait_for_updates(group, 10);
        group.kill(1);
        group.kill(0);
        wait_for_updates(group, 10);
        assert!(group.process(0).is_running(), "the job is long enough");
    });
    assert_same(&killed, &want, "a follower, partition 0, a worker, both servers");
    assert!(killed["durability"]["restarts"].as_u64() >= Some(2), "{}", killed["durability"]);
}

#[test]
fn a_follower_that_is_killed_while_gradients_are_clipped_changes_no_bit() {
    let rule = ["--workers=3", "--rounds=150", "--optimizer=adam", "--lr=0.01"];
    let clipped = [&rule[..], &["--clip-norm=0.05"]].concat();
    let want = local(&clipped);
    assert_ne!(theta_sha256(&want), theta_sha256(&local(&rule)), "nothing was clipped");
    let job = [&clipped[..], &["--checkpoint-every=7r"]].concat();
    let killed = train(3, &job, &["--compute-delay-ms=5..15"], |group, _| {
        for victim in [1, 2, 0] {
            wait_for_updates(group, 10);
            group.kill(victim);
        }
        wait_for_updates(group, 10);
        assert!(group.process(0).is_running(), "the job is long enough");
    });
    assert_same(&killed, &want, "both followers, then partition 0");
}

#[test]
fn without_checkpoints_a_lost_server_ends_the_job_by_name() {
    let mut group = Group::start(2, &["--workers=1", "--rounds=0", "--mode=async"], false);
    let worker = group.worker(0, &["--compute-delay-ms=5"]);
    wait_for_updates(&group, 5);
    group.process(1).signal("KILL");
    let end = Instant::now() + PATIENCE;
    while group.process(0).is_running() {
        assert!(Instant::now() < end, "{:?}", group.process(0));
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = wait_until("its last word", || {
        let output = group.process(0).output();
        output.contains("--checkpoint-dir").then_some(output)
    });
    assert!(output.contains("partition 1"), "{output}");
    drop((worker, group));
}

#[test]
fn psctl_starts_a_killed_server_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let checkpoints = format!("--checkpoint-dir={}", folder.path().display());
    let job = ["--rounds=150", "--servers=2", "--compute-delay-ms=15..25", "--checkpoint-every=5r"];
    let port = free_port();
    let port_flag = format!("--port={port}");
    let arguments = [&["local", "--json", "--quiet", &checkpoints, &port_flag][..], &job].concat();
    let run = Process::start("psctl", &arguments);
    for victim in ["--partition=1/2", "--partition=0/2"] {
        let url = format!("http://127.0.0.1:{port}");
        let version = || {
            let answer = Process::start("psctl", &["status", "--json", "--server", &url]).wait().1;
            let line = answer.lines().find(|line| line.starts_with('{'))?.to_owned();
            serde_json::from_str::<Value>(&line).ok()?["version"].as_u64()
        };
        let from = wait_until("a version", version);
        wait_until("the job moves on", || version().filter(|v| *v > from + 6));
        let server = child_with(run.id(), victim);
        assert!(Command::new("kill").args(["-KILL", &server]).status().expect("runs").success());
        wait_until("it is gone", || (!alive(&server)).then_some(()));
    }
    let output = run.expect_exit(0);
    let line = output.lines().rfind(|line| line.starts_with('{')).expect("a report");
    let report: Value = serde_json::from_str(line).expect("JSON");
    assert_same(&report, &local(&["--rounds=150"]), "two kills");
    let events = report["events"].as_array().expect("events");
    let restarts: Vec<_> = events.iter().filter(|e| e["kind"] == "restarted").collect();
    assert_eq!(restarts.len(), 2, "{events:?}");
    assert!(restarts[0]["detail"].as_str().expect("text").starts_with("server 1 "), "{restarts:?}");
    for index in 0..2 {
        assert!(folder.path().join(format!("partition-{index}")).is_dir());
    }
}

/// The process that `parent` has started with this argument.
fn child_with(parent: u32, argument: &str) -> String {
    wait_until(argument, || {
        std::fs::read_dir("/proc").expect("Linux").find_map(|entry| {
            let pid = entry.ok()?.file_name().to_string_lossy().into_owned();
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let its_parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<u32>().ok()?;
            let has = words.split(|byte| *byte == 0).any(|word| word == argument.as_bytes());
            (has && its_parent == parent).then_some(pid)
        })
    })
}

fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}

#[test]
fn a_worker_that_knows_another_number_of_servers_is_told_both() {
    let group = Group::start(2, &["--workers=1", "--rounds=0", "--mode=async"], false);
    let urls = group.urls();
    let (first, _) = urls.split_once(',').expect("two");
    let refused = Process::start("ps-worker", &["--server", first, "--rank=0"]).expect_exit(78);
    assert!(refused.contains("--server names 1, the job has 2 servers"), "{refused}");
    // Its rank is as free as before.
    let worker = group.worker(0, &[]);
    wait_for_updates(&group, 3);
    drop(worker);

    let (_lone, address) = Process::server(&["--workers=1"]);
    let (_other, more) = Process::server(&["--workers=1"]);
    let both = format!("{address},{more}");
    let refused = Process::start("ps-worker", &["--server", &both]).expect_exit(78);
    assert!(refused.contains("--server names 2, the job has 1 server"), "{refused}");
    let refused = Process::start("ps-worker", &["--server", &format!("{more},{more}")]);
    assert!(refused.expect_exit(78).contains("twice"));
}

#[test]
fn what_several_servers_cannot_do_is_refused_by_name() {
    for (flags, code, says) in [
        (&["--servers=30"][..], 78, "30 servers"),
        (&["--servers=2", "--mode=hogwild"], 78, "--mode hogwild"),
        (&["--servers=0"], 2, "--servers"),
    ] {
        let refused = Process::start("psctl", &[&["local", "--quiet"][..], flags].concat());
        let output = refused.expect_exit(code);
        assert!(output.contains(says), "{flags:?}: {output}");
    }
    // More URLs than there are others, and fewer.
    for peers in [&[][..], &["--peers=http://a:1,http://b:2"]] {
        let refused = Process::start("ps-server", &[&["--partition=0/2"][..], peers].concat());
        let output = refused.expect_exit(78);
        assert!(output.contains("--partition 0/2 has 1 other"), "{output}");
    }
}

#[test]
fn two_servers_speak_tls_to_workers_and_to_each_other() {
    let want = local(&["--workers=2", "--rounds=30"]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let certs = folder.path().join("certs");
    psctl(&["certs", "--out", &certs.to_string_lossy(), "--host", "ps.test"]);
    let file = |flag: &str, name: &str| format!("--{flag}={}", certs.join(name).display());
    let ports = [free_port(), free_port()];
    let urls = ports.map(|port| format!("https://127.0.0.1:{port}"));
    let report = folder.path().join("report.json");
    let secure = [
        file("tls-cert", "server.pem"),
        file("tls-key", "server-key.pem"),
        file("tls-client-ca", "ca.pem"),
        file("worker-token-file", "worker.token"),
        file("operator-token-file", "operator.token"),
    ];
    let server = |index: usize, more: &[String]| {
        let mut flags = vec![
            format!("--listen=127.0.0.1:{}", ports[index]),
            format!("--partition={index}/2"),
            "--workers=2".to_owned(),
            "--rounds=30".to_owned(),
        ];
        flags.extend(secure.iter().chain(more).cloned());
        Process::start("ps-server", &flags.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let peers = [
        format!("--peers={}", urls[1]),
        file("peer-ca", "ca.pem"),
        format!("--report={}", report.display()),
    ];
    let servers = [server(1, &[]), server(0, &peers)];
    let shown_by = |role: &str| {
        [
            format!("--server={}", urls.join(",")),
            "--connect-timeout=60s".to_owned(),
            file("tls-ca", "ca.pem"),
            file("tls-cert", &format!("{role}.pem")),
            file("tls-key", &format!("{role}-key.pem")),
            file("token-file", &format!("{role}.token")),
        ]
    };
    let start = |program: &str, first: &str, role: &str| {
        let flags = shown_by(role);
        let words = std::iter::once(first).chain(flags.iter().map(String::as_str));
        Process::start(program, &words.collect::<Vec<_>>())
    };
    let first = start("ps-worker", "--rank=0", "worker");
    // The job waits for the second worker; an operator may take theta from both servers meanwhile.
    let out = format!("--out={}", folder.path().join("theta.npy").display());
    wait_until("theta, for an operator", || {
        let flags = shown_by("operator");
        let words = ["export", &out].into_iter().chain(flags.iter().map(String::as_str));
        let (code, output) = Process::start("psctl", &words.collect::<Vec<_>>()).wait();
        assert!(!output.contains("PERMISSION_DENIED"), "{output}");
        (code == Some(0)).then_some(())
    });
    let second = start("ps-worker", "--rank=1", "worker");
    for process in [first, second].into_iter().chain(servers) {
        process.expect_exit(0);
    }
    let text = std::fs::read_to_string(report).expect("a report");
    assert_same(&serde_json::from_str(&text).expect("JSON"), &want, "TLS both ways, tokens");
}

/// A process that gets `TF_CONFIG`.
fn with_variable(program: &str, config: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new(binary(program));
    command.env("TF_CONFIG", config).args(arguments);
    Process::spawn(program, command)
}

#[test]
fn a_cluster_as_tensorflow_writes_it_starts_a_whole_job() {
    let want = local(&["--workers=3", "--rounds=30"]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cluster = || {
        let at = || format!("\"127.0.0.1:{}\"", free_port());
        format!(
            "{{\"ps\": [{}, {}], \"chief\": [{}], \"worker\": [{}, {}]}}",
            at(),
            at(),
            at(),
            at(),
            at()
        )
    };
    let report = folder.path().join("report.json");
    let report_flag = format!("--report={}", report.display());
    let job = ["--rounds=30", &report_flag];
    let tasks = [("ps", 1), ("ps", 0), ("chief", 0), ("worker", 0), ("worker", 1)];
    let read = || -> Value {
        let text = std::fs::read_to_string(&report).expect("a report");
        serde_json::from_str(&text).expect("JSON")
    };
    let flags_of = |kind: &str, index: u32| -> Vec<&str> {
        match (kind, index) {
            ("ps", 0) => job.to_vec(),
            ("ps", _) => job[..1].to_vec(),
            _ => Vec::new(),
        }
    };

    // By the variable.
    let text = cluster();
    let processes = tasks.map(|(kind, index)| {
        let program = if kind == "ps" { "ps-server" } else { "ps-worker" };
        let config =
            format!(r#"{{"cluster": {text}, "task": {{"type": "{kind}", "index": {index}}}}}"#);
        with_variable(program, &config, &flags_of(kind, index))
    });
    for process in processes {
        process.expect_exit(0);
    }
    assert_same(&read(), &want, "TF_CONFIG");
    assert_eq!((&read()["n_servers"], &read()["n_workers"]), (&2.into(), &3.into()));
    std::fs::remove_file(&report).expect("it is there");

    // By a file and flags.
    let file = folder.path().join("cluster.json");
    std::fs::write(&file, format!("{{\"cluster\": {}}}", cluster())).expect("written");
    let file_flag = format!("--cluster={}", file.display());
    let processes = tasks.map(|(kind, index)| {
        let program = if kind == "ps" { "ps-server" } else { "ps-worker" };
        let task = [format!("--job-name={kind}"), format!("--task-index={index}")];
        let own = [&file_flag[..], &task[0], &task[1]];
        Process::start(program, &[&own[..], &flags_of(kind, index)].concat())
    });
    for process in processes {
        process.expect_exit(0);
    }
    assert_same(&read(), &want, "cluster.json");
}

#[test]
fn a_cluster_that_is_malformed_or_contradicted_is_refused_with_its_place() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("cluster.json");
    std::fs::write(&file, "{\n  \"ps\": [\"127.0.0.1\"]\n}").expect("written");
    let cluster = format!("--cluster={}", file.display());
    for (program, job) in [("ps-server", "--job-name=ps"), ("ps-worker", "--job-name=worker")] {
        let output = Process::start(program, &[&cluster, job, "--task-index=0"]).expect_exit(65);
        assert!(output.contains("cluster.json:2:"), "{output}");
        assert!(output.contains("expected HOST:PORT"), "{output}");
    }
    let good = r#"{"ps": ["127.0.0.1:7001", "127.0.0.1:7002"], "worker": ["127.0.0.1:7003"]}"#;
    std::fs::write(&file, good).expect("written");
    for (program, flags, says) in [
        ("ps-server", &["--job-name=ps", "--task-index=0", "--workers=3"][..], "--workers 3, but "),
        ("ps-server", &["--job-name=ps", "--task-index=1", "--partition=0/2"], "--partition 1/2"),
        ("ps-server", &["--job-name=worker", "--task-index=0"], "start ps-worker"),
        ("ps-worker", &["--job-name=worker", "--task-index=0", "--rank=1"], "--rank 1, but "),
        ("ps-worker", &["--job-name=worker", "--task-index=4"], "names 1 of worker"),
        ("ps-worker", &["--job-name=worker"], "needs --task-index"),
    ] {
        let output = Process::start(program, &[&[&cluster[..]], flags].concat()).expect_exit(78);
        assert!(output.contains(says), "{flags:?}: {output}");
    }
    let output = Process::start("ps-worker", &["--task-index=0"]).expect_exit(78);
    assert!(output.contains("--task-index 0 has no meaning without --cluster"), "{output}");
}

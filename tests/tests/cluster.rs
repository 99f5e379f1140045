//! Servers and workers started by hand, on ports of their own: same answer, nobody hangs.

use std::path::Path;

use ps_common::wire::pb;
use ps_common::wire::pb::operator_client::OperatorClient;
use ps_common::wire::pb::worker_status::State;
use ps_tests::{Caller, Process, local, losses, theta_sha256};
use serde_json::Value;

fn report_in(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("report.json")).expect("a report");
    serde_json::from_str(&text).expect("JSON")
}

/// A server that reports into `folder`, and its address.
fn server(folder: &Path, arguments: &[&str]) -> (Process, String) {
    let report = folder.join("report.json").to_string_lossy().into_owned();
    Process::server(&[&["--report", &report][..], arguments].concat())
}

fn worker(address: &str, arguments: &[&str]) -> Process {
    let url = format!("http://{address}");
    Process::start("ps-worker", &[&["--server", &url][..], arguments].concat())
}

/// Updates committed so far.
fn version(address: &str) -> u64 {
    status(address).expect("the server serves").version
}

/// `None` once the server has gone.
fn status(address: &str) -> Option<pb::StatusResponse> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let client = OperatorClient::connect(format!("http://{address}")).await;
        let status = client.ok()?.status(pb::StatusRequest {}).await;
        Some(status.ok()?.into_inner())
    })
}

#[test]
fn twenty_runs_with_any_timing_end_in_the_same_bits() {
    let first = local(&["--dtype=f64"]);
    let want = theta_sha256(&first);
    for run in 0..18 {
        // Every other run, workers wait a random while before each push.
        let delay: &[&str] = if run % 2 == 0 { &[] } else { &["--compute-delay-ms=0..3"] };
        let report = local(&[&["--dtype=f64"][..], delay].concat());
        assert_eq!(theta_sha256(&report), want, "run {run}");
        assert_eq!(losses(&report), losses(&first), "run {run}");
    }
    // One worker first, three more later, ranks in another order, on a port of its own.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (server, address) = server(folder.path(), &["--dtype=f64"]);
    let one = worker(&address, &["--rank=3", "--compute-delay-ms=0..2"]);
    let rest = ["1", "0", "2"].map(|rank| worker(&address, &["--rank", rank]));
    server.expect_exit(0);
    one.expect_exit(0);
    for worker in rest {
        worker.expect_exit(0);
    }
    let report = report_in(folder.path());
    assert_eq!(theta_sha256(&report), want);
    assert_eq!(losses(&report), losses(&first));
}

#[test]
fn more_workers_than_rows_is_the_same_as_numpy_deals() {
    // 1000 rows over 4 workers, and over 7: another rounding, the same descent.
    let (four, seven) = (local(&["--dtype=f64"]), local(&["--dtype=f64", "--workers=7"]));
    ps_tests::assert_close(&losses(&seven), &losses(&four), 1e-12);
    let few = local(&["--dtype=f64", "--take=3", "--workers=5", "--rounds=3"]);
    assert_eq!(few["n_samples"], 3);
    let samples: Vec<u64> = few["workers"]
        .as_array()
        .expect("workers")
        .iter()
        .map(|w| w["samples"].as_u64().expect("a count"))
        .collect();
    assert_eq!(samples, [3, 3, 3, 0, 0], "one row each for the first three");
}

#[test]
fn asynchronous_pushes_at_full_rate_get_further_than_rounds() {
    let sync = local(&["--dtype=f64"]);
    let report = local(&["--dtype=f64", "--mode=async"]);
    let last = |report: &Value| report["final"]["loss"].as_f64().expect("a loss");
    assert!(last(&report) < last(&sync), "{} and {}", last(&report), last(&sync));
    assert_eq!(report["version"], 400);
    let delays = ps_tests::numbers(&report["gradient_delay"]["histogram"]);
    assert_eq!(delays.iter().sum::<f64>(), 400.0, "every push has a delay");
    let first = losses(&report)[0];
    assert!((first - losses(&sync)[0]).abs() < 1e-12, "the history begins before the first update");
}

#[test]
fn updates_without_locks_get_as_far_and_tell_what_they_lost() {
    for dtype in ["--dtype=f32", "--dtype=f64"] {
        let report = local(&[dtype, "--mode=hogwild"]);
        let loss = report["final"]["loss"].as_f64().expect("a loss");
        assert!(loss < 0.03, "{dtype}: {loss}");
        assert_eq!((&report["mode"], &report["version"]), (&"hogwild".into(), &400.into()));
        let delays = ps_tests::numbers(&report["gradient_delay"]["histogram"]);
        assert_eq!(delays.iter().sum::<f64>(), 400.0, "every push has a delay");
        let figure = |name: &str| report["hogwild"][name].as_f64().expect("measured");
        let dim = report["dim"].as_f64().expect("a number");
        assert_eq!(figure("checked"), 400.0 * dim, "a small theta is checked as a whole");
        assert!(figure("lost") < figure("checked"));
        assert_eq!(figure("lost_rate"), figure("lost") / figure("checked"));
    }
    let report = local(&["--mode=async", "--rounds=2"]);
    assert!(report.get("hogwild").is_none(), "nothing is lost where updates take turns");
}

#[test]
fn an_asynchronous_worker_that_is_killed_stops_nobody() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let job = ["--mode=async", "--rounds=60", "--lease-ms=4000"];
    let (server, address) = server(folder.path(), &job);
    let start = |rank, delay| worker(&address, &["--rank", rank, "--compute-delay-ms", delay]);
    // Far from done when the others are half-way.
    let victim = start("3", "150");
    let others = ["0", "1", "2"].map(|rank| start(rank, "20"));
    ps_tests::wait_until("half of the pushes", || {
        let status = status(&address).expect("the server serves");
        let of_victim = status.workers.iter().find(|worker| worker.rank == 3)?.clock;
        (status.version > 90 && of_victim > 0).then_some(())
    });
    victim.signal("KILL");
    for worker in others {
        worker.expect_exit(0);
    }
    server.expect_exit(0);
    let report = report_in(folder.path());
    let version = report["version"].as_u64().expect("a version");
    assert!((180..240).contains(&version), "three ran to the end: {version}");
    let lost = |event: &Value| event["kind"] == "lost" && event["rank"] == 3;
    assert!(report["events"].as_array().expect("events").iter().any(lost), "{report}");
    for worker in &report["workers"].as_array().expect("workers")[..3] {
        assert_eq!(worker["pushes"], 60);
    }
}

#[test]
fn a_replacement_brings_a_synchronous_run_to_the_same_bits() {
    let undisturbed = local(&["--dtype=f64"]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (server, address) = server(folder.path(), &["--dtype=f64", "--lease-ms=4000"]);
    let start = |rank, delay| worker(&address, &["--rank", rank, "--compute-delay-ms", delay]);
    // So slow that the job is far from done when it is killed.
    let victim = start("1", "100");
    let others = ["0", "2", "3"].map(|rank| start(rank, "2"));
    ps_tests::wait_until("some rounds", || (version(&address) > 5).then_some(()));
    victim.signal("KILL");
    let replacement = start("1", "2");
    for worker in others {
        worker.expect_exit(0);
    }
    replacement.expect_exit(0);
    server.expect_exit(0);
    assert_eq!(theta_sha256(&report_in(folder.path())), theta_sha256(&undisturbed));
}

#[test]
fn a_lost_worker_ends_or_frees_the_barrier_as_the_policy_says() {
    let run = |policy: &str| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // Longer than a busy machine keeps a worker waiting that lives.
        let job = ["--lease-ms=4000", "--rounds=200", "--on-worker-loss", policy];
        let (server, address) = server(folder.path(), &job);
        let start = |rank, delay| worker(&address, &["--rank", rank, "--compute-delay-ms", delay]);
        // So slow that the job is far from done when it is killed.
        let victim = start("1", "100");
        let others = ["0", "2", "3"].map(|rank| start(rank, "2"));
        ps_tests::wait_until("a start", || (version(&address) > 5).then_some(()));
        victim.signal("KILL");
        let others = others.map(|worker| worker.wait().0);
        let (server, output) = server.wait();
        (others, server, output, report_in(folder.path()))
    };
    let (others, server, _, report) = run("continue");
    assert_eq!((others, server), ([Some(0); 3], Some(0)));
    assert_eq!(report["version"], 200);
    let (others, server, output, report) = run("abort");
    assert_eq!((others, server), ([Some(1); 3], Some(1)), "{output}");
    assert!(output.contains("rank 1 lost"), "{output}");
    assert!(report["outcome"].as_str().expect("text").contains("rank 1"), "{report}");
}

#[test]
fn statistics_of_shards_in_separate_files_are_merged() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = ps_tests::data("iris/iris.csv");
    let text = std::fs::read_to_string(source).expect("part of the repository");
    let rows: Vec<&str> = text.lines().skip(1).collect();
    // 150 rows dealt to 4: 38, 38, 37, 37.
    let ends = [38, 76, 113, 150];
    let files: Vec<String> = ends
        .iter()
        .zip([0].iter().chain(&ends))
        .map(|(&end, &start)| {
            let path = folder.path().join(format!("part{start}.csv"));
            std::fs::write(&path, rows[start..end].join("\n") + "\n").expect("written");
            path.to_string_lossy().into_owned()
        })
        .collect();
    let learn = ["--model=softmax,classes=3", "--bias=true", "--scale=standard"];
    let (server, address) = server(folder.path(), &["--dtype=f64", "--lr=0.5"]);
    let workers: Vec<Process> = files
        .iter()
        .zip(["0", "1", "2", "3"])
        .map(|(file, rank)| {
            let own = ["--rank", rank, "--data", file, "--data-is-shard"];
            worker(&address, &[&own[..], &learn].concat())
        })
        .collect();
    for worker in workers {
        worker.expect_exit(0);
    }
    server.expect_exit(0);
    let want = ps_tests::golden("iris_softmax.json");
    let want = ps_tests::numbers(&want["full_batch_gd"]["loss_history"]);
    ps_tests::assert_close(&losses(&report_in(folder.path())), &want, 1e-9);
}

#[test]
fn a_server_that_is_told_to_stop_says_so_and_goes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (server, address) = server(folder.path(), &["--rounds=0", "--workers=1", "--mode=async"]);
    let worker = worker(&address, &["--connect-timeout=5s", "--compute-delay-ms=1"]);
    ps_tests::wait_until("a start", || (version(&address) > 5).then_some(()));
    server.signal("TERM");
    server.expect_exit(0);
    assert_eq!(report_in(folder.path())["outcome"], "interrupted");
    let output = worker.expect_exit(69);
    assert!(output.contains(&address), "{output}");

    let (server, address) = Process::server(&["--rounds=0", "--workers=1", "--mode=async"]);
    let worker = crate::worker(&address, &["--compute-delay-ms=1"]);
    ps_tests::wait_until("a start", || (version(&address) > 5).then_some(()));
    let url = format!("http://{address}");
    Process::start("psctl", &["stop", "--server", &url, "--reason=enough"]).expect_exit(0);
    worker.expect_exit(0);
    server.expect_exit(0);
}

#[test]
fn bounded_staleness_keeps_workers_within_the_bound() {
    const S: u64 = 1;
    const ROUNDS: u64 = 40;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bound = S.to_string();
    let rounds = ROUNDS.to_string();
    let job = ["--mode=ssp", "--staleness-bound", &bound, "--rounds", &rounds, "--dtype=f64"];
    let (server, address) = server(folder.path(), &job);
    let slow = worker(&address, &["--rank=3", "--compute-delay-ms=60"]);
    let fast = ["0", "1", "2"].map(|rank| worker(&address, &["--rank", rank]));
    // A gradient that was begun within the bound may count one clock beyond it.
    let mut ahead = 0;
    while let Some(status) = status(&address) {
        let clocks = || status.workers.iter().map(|worker| worker.clock);
        let (most, least) = (clocks().max().unwrap_or(0), clocks().min().unwrap_or(0));
        assert!(most <= least + S + 1, "{:?}", clocks().collect::<Vec<_>>());
        ahead = ahead.max(most - least);
        if least == ROUNDS {
            break;
        }
    }
    assert_eq!(ahead, S + 1, "the fast ones use the bound, which is what holds them");
    for worker in fast {
        worker.expect_exit(0);
    }
    slow.expect_exit(0);
    server.expect_exit(0);
    let report = report_in(folder.path());
    assert_eq!((&report["mode"], &report["version"]), (&"ssp".into(), &(4 * ROUNDS).into()));
    assert_eq!(report["rounds"], 40.0);
    let waited = |rank: usize| report["workers"][rank]["wait_seconds"].as_f64().expect("seconds");
    assert!(waited(0) > 0.1, "the fast ones wait: {}", waited(0));
    // Between a pull at clock c and its push, another worker gets from c - S to c + S + 1 at most.
    let delay_max = report["gradient_delay"]["max"].as_u64().expect("a delay");
    assert!(delay_max <= 3 * (2 * S + 1), "{delay_max}");
    assert_eq!(report["dropped"]["late"], 0);
}

#[test]
fn rounds_with_backup_workers_do_not_wait_for_the_slowest() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let job = ["--backup-workers=1", "--rounds=100", "--on-worker-loss=wait"];
    let (server, address) = server(folder.path(), &job);
    let slow = worker(&address, &["--rank=3", "--compute-delay-ms=80"]);
    // Three are enough for a round: without it the job could be over before it comes.
    ps_tests::wait_until("the slow one", || {
        let status = status(&address).expect("the server serves");
        status.workers.iter().any(|worker| worker.state() == State::Live).then_some(())
    });
    let fast =
        ["0", "1", "2"].map(|rank| worker(&address, &["--rank", rank, "--compute-delay-ms=10"]));
    for worker in fast {
        worker.expect_exit(0);
    }
    slow.expect_exit(0);
    server.expect_exit(0);
    let report = report_in(folder.path());
    assert_eq!((&report["version"], &report["outcome"]), (&100.into(), &"done".into()));
    let dropped = |rank: usize| report["workers"][rank]["dropped"].as_u64().expect("a count");
    let late = report["dropped"]["late"].as_u64().expect("a count");
    assert!(dropped(3) > 0, "the slow one comes too late: {report}");
    assert_eq!(late, (0..4).map(dropped).sum::<u64>());
    let counted = ps_tests::numbers(&report["gradient_delay"]["histogram"]);
    assert_eq!(counted, [300.0], "three gradients a round");
}

#[test]
fn delays_are_held_below_their_bound() {
    let report = local(&["--mode=async", "--max-gradient-delay=2", "--dtype=f64", "--rounds=50"]);
    assert_eq!(report["version"], 200);
    let delay_max = report["gradient_delay"]["max"].as_u64().expect("a delay");
    assert!(delay_max <= 2, "{delay_max}");
}

#[test]
fn a_job_stops_at_its_target_and_in_its_time() {
    let all = losses(&local(&["--dtype=f64"]));
    let report = local(&["--dtype=f64", "--target-loss", &all[40].to_string()]);
    assert_eq!(report["version"], 40, "theta is that of the first loss that is small enough");
    assert_eq!(losses(&report), all[..=40]);
    let stopped = |report: &Value| {
        let events = report["events"].as_array().expect("events");
        let event = events.iter().find(|event| event["kind"] == "stopped").expect("an event");
        event["detail"].as_str().expect("text").to_owned()
    };
    assert!(stopped(&report).starts_with("--target-loss"), "{}", stopped(&report));

    let job = ["--mode=async", "--rounds=0", "--max-seconds=1", "--compute-delay-ms=1"];
    let report = local(&job);
    assert_eq!(stopped(&report), "--max-seconds 1");
    let seconds = report["wall_seconds"].as_f64().expect("seconds");
    assert!((1.0..30.0).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn a_median_survives_a_worker_that_sends_garbage() {
    // (Aggregate, whether it survives.)
    for (aggregate, survives) in [("median", true), ("trimmed-mean,k=1", true), ("mean", false)] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let arguments = ["--lr=0.05", "--rounds=60", "--aggregate", aggregate];
        let (server, address) = server(folder.path(), &arguments);
        let workers = ["1", "2", "3"].map(|rank| worker(&address, &["--rank", rank]));
        let mut garbage = Caller::joined(&address, 0, 10).await;
        for clock in 0..60 {
            // Finite, or it would be refused; of another sign every round.
            let value = if clock % 2 == 0 { 1e9 } else { -3e8 };
            garbage.push(clock, clock, &[value; 10]).await.expect("well-formed");
        }
        let (rank, incarnation) = (garbage.rank, garbage.incarnation);
        let goodbye = pb::LeaveRequest { rank, incarnation, ..Default::default() };
        garbage.membership.leave(goodbye).await.expect("left");
        for worker in workers {
            worker.expect_exit(0);
        }
        server.expect_exit(0);
        let loss = report_in(folder.path())["final"]["loss"].as_f64().expect("a loss");
        assert_eq!(loss < 0.1, survives, "{aggregate}: {loss}");
    }
}

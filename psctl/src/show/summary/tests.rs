//! Summaries of fixed reports.

use ps_common::dtype::Dtype;
use ps_common::job::{Mode, WorkerStats};
use ps_common::report::{FinalResult, HistoryEntry};

use super::*;

/// A synchronous run of two workers without trouble.
pub(crate) fn report() -> Report {
    let worker = |rank, compute_seconds, wait_seconds| WorkerReport {
        rank,
        incarnation: 1,
        stats: WorkerStats {
            pushes: 100,
            samples: 3_000_000,
            compute_seconds,
            wait_seconds,
            comm_seconds: 0.25,
            bytes_sent: 3_145_728,
            bytes_received: 3_250_586,
            loss_sum: Some(1_500_000.0),
        },
        dropped: 0,
    };
    let entry =
        |round: f64, loss| HistoryEntry { round, version: round as u64, loss, seconds: 0.0 };
    Report {
        mode: Mode::Sync,
        n_workers: 2,
        n_servers: 1,
        model: "softmax".into(),
        optimizer: "sgd,lr=0.1".into(),
        dtype: Dtype::F32,
        dim: 7850,
        n_samples: 60_000,
        seed: Some(1),
        wall_seconds: 1.24,
        rounds: 100.0,
        version: 100,
        outcome: "done".into(),
        history: vec![entry(0.0, 10f64.ln()), entry(100.0, 0.431_2)],
        r#final: FinalResult {
            loss: Some(0.431_2),
            train_accuracy: Some(0.8712),
            test_loss: Some(0.4711),
            test_accuracy: Some(0.8531),
            theta_sha256: "3f2a91b0c4d1e5f60718293a4b5c6d7e8f".into(),
        },
        progressive_loss: Some(0.5),
        workers: vec![worker(0, 0.75, 0.0), worker(1, 0.5, 0.25)],
        dropped: Dropped::default(),
        hogwild: None,
        gradient_delay: GradientDelay::default(),
        durability: None,
        events: vec![event(0.0, "joined", Some(0), ""), event(0.0, "joined", Some(1), "")],
        program: "ps-server 0.1.0".into(),
    }
}

fn event(seconds: f64, kind: &str, rank: Option<u32>, detail: &str) -> Event {
    Event { seconds, kind: kind.into(), rank, detail: detail.into() }
}

/// An asynchronous run with a loss, a restart and a refused push.
fn trouble() -> Report {
    let mut report = report();
    report.mode = Mode::Async;
    report.version = 200;
    report.outcome = "done".into();
    report.gradient_delay =
        GradientDelay { histogram: vec![1, 20, 80, 60, 30, 8, 0, 1], mean: 2.61, p99: 5, max: 7 };
    report.events.extend([
        event(0.41, "lost", Some(1), "lease ended after 500 ms"),
        event(0.62, "joined", Some(1), "incarnation 2"),
        event(0.7, "rejected", None, "push of 3 elements\u{1b}[2J, expected 7850"),
        event(0.8, "observer joined", Some((1 << 31) + 1), "from 127.0.0.1:1"),
        event(0.9, "observer lost", Some((1 << 31) + 1), "lease ended"),
        event(1.2, "left", Some(0), ""),
    ]);
    report.r#final.test_loss = None;
    report.r#final.test_accuracy = None;
    report.workers[1].incarnation = 2;
    report
}

#[test]
fn a_plain_run() {
    let expected = "\
done · sync · softmax · sgd,lr=0.1 · 2 workers · 1 server

  loss            2.3026 → 0.4312
  train accuracy  87.1 %
  test accuracy   85.3 %  loss 0.4711
  progressive     0.5000  mean loss at each push
  rounds          100  100 updates
  time            1.2 s  80.6 updates/s
  traffic         6.0 MiB sent, 6.2 MiB received
  data            60,000 samples  seed 1
  theta           7,850 elements of f32  sha256 3f2a91b0c4d1e5f6

  rank  pushes  samples  compute    wait    wire  share            sent     recv
     0     100   3.00 M   750 ms     0 s  250 ms  █████████░░░  3.0 MiB  3.1 MiB
     1     100   3.00 M   500 ms  250 ms  250 ms  ██████▒▒▒░░░  3.0 MiB  3.1 MiB
  share of time: █ compute  ▒ wait  ░ wire
";
    assert_eq!(summary(&report(), &Look::plain(true)), expected);
}

#[test]
fn an_asynchronous_run_with_trouble_in_ascii() {
    let expected = "\
done | async | softmax | sgd,lr=0.1 | 2 workers | 1 server

  loss            2.3026 -> 0.4312
  train accuracy  87.1 %
  progressive     0.5000  mean loss at each push
  rounds          100  200 updates
  time            1.2 s  161 updates/s
  traffic         6.0 MiB sent, 6.2 MiB received
  data            60,000 samples  seed 1
  theta           7,850 elements of f32  sha256 3f2a91b0c4d1e5f6
  gradient delay  mean 2.6, p99 5, max 7  0 [.:@*-. .] 7

  rank  pushes  samples  compute    wait    wire  share            sent     recv
     0     100   3.00 M   750 ms     0 s  250 ms  #########...  3.0 MiB  3.1 MiB
     1     100   3.00 M   500 ms  250 ms  250 ms  ######===...  3.0 MiB  3.1 MiB
  share of time: # compute  = wait  . wire

  410 ms  lost          worker 1    lease ended after 500 ms
  620 ms  joined again  worker 1    incarnation 2
  700 ms  rejected                  push of 3 elements?[2J, expected 7850
  900 ms  lost          observer 1  lease ended
";
    assert_eq!(summary(&trouble(), &Look::plain(false)), expected);
}

#[test]
fn what_was_not_measured_is_not_made_up() {
    let mut report = report();
    report.history.clear();
    report.workers.clear();
    report.r#final.loss = None;
    report.progressive_loss = None;
    report.r#final.train_accuracy = None;
    report.r#final.test_accuracy = None;
    report.version = 0;
    report.wall_seconds = 0.0;
    report.outcome = "diverged at round 3".into();
    let text = summary(&report, &Look::plain(true));
    assert!(text.starts_with("diverged at round 3 · sync"), "{text}");
    assert!(text.contains("loss       not measured\n"), "{text}");
    assert!(text.contains("time       0 s  ? updates/s\n"), "{text}");
    assert!(text.contains("test loss  0.4711\n"), "{text}");
    assert!(!text.contains("accuracy") && !text.contains("progressive"), "{text}");
    assert!(!text.contains("rank"), "{text}");
}

#[test]
fn narrow_terminals_lose_traffic_then_bars_but_no_figures() {
    let report = trouble();
    let at = |width| summary(&report, &Look { width, ..Look::plain(true) });
    assert!(at(100).contains("recv") && at(100).contains('█'));
    assert!(!at(70).contains("recv") && at(70).contains('█'));
    assert!(!at(50).contains("recv") && !at(50).contains("share"));
    assert!(at(40).contains("250 ms"));
    for width in [100, 70, 60] {
        let widest = at(width).lines().map(console::measure_text_width).max();
        assert!(widest <= Some(width), "{width}: {}", at(width));
    }
}

#[test]
fn colours_change_nothing_but_the_colours() {
    let colour = Look { colour: true, ..Look::plain(true) };
    let coloured = summary(&trouble(), &colour);
    assert_ne!(coloured, summary(&trouble(), &Look::plain(true)));
    assert_eq!(console::strip_ansi_codes(&coloured), summary(&trouble(), &Look::plain(true)));
}

#[test]
fn what_updates_without_locks_lost_has_a_line() {
    let mut report = report();
    report.mode = Mode::Hogwild;
    report.hogwild = Some(LostUpdates::new(44_000, 66));
    let text = summary(&report, &Look::plain(true));
    let line = text.lines().find(|line| line.contains("lost updates")).expect("a line");
    assert_eq!(line.trim(), "lost updates    0.15 %  66 of 44,000 stores checked");
}

#[test]
fn share_bars_always_fill_their_width() {
    for width in [8, 12, 24] {
        for shares in [[1.0, 0.0, 0.0], [0.333, 0.333, 0.334], [0.0, 0.02, 0.98], [0.1, 0.9, 0.0]] {
            let bar = share_bar(shares, width, &Look::plain(false));
            assert_eq!(bar.len(), width, "{shares:?} {bar}");
        }
    }
    assert_eq!(share_bar([0.5, 0.25, 0.25], 8, &Look::plain(false)), "####==..");
}

#[test]
fn wide_histograms_are_gathered_into_cells() {
    let wide = GradientDelay { histogram: vec![1; 100], mean: 49.5, p99: 98, max: 99 };
    let text = delay(&wide, &Look::plain(false));
    assert_eq!(text, format!("mean 49.5, p99 98, max 99  0 [{}] 99", "@".repeat(25)));
    let one = GradientDelay { histogram: vec![9, 0, 0], mean: 0.0, p99: 0, max: 0 };
    assert_eq!(delay(&one, &Look::plain(false)), "mean 0.0, p99 0, max 0");
}

#[test]
fn only_notable_events_are_listed_and_not_without_end() {
    let joins = [event(0.0, "joined", Some(0), ""), event(1.0, "left", Some(0), "")];
    assert_eq!(events(&joins, &Look::plain(false)), "");
    let many: Vec<Event> = (0..20).map(|i| event(f64::from(i), "lost", Some(1), "x")).collect();
    let text = events(&many, &Look::plain(false));
    assert_eq!(text.lines().count(), EVENTS_MAX + 1);
    assert!(text.ends_with("  and 8 more events\n"), "{text}");
}

#[test]
fn dropped_gradients_are_shown_by_reason_and_worker_and_only_if_there_are_some() {
    let look = Look::plain(true);
    assert!(!summary(&report(), &look).contains("dropped"));
    let mut report = report();
    report.dropped = Dropped { late: 3, delay: 0, ended: 1 };
    report.workers[1].dropped = 4;
    let text = summary(&report, &look);
    assert!(text.contains("4 gradients: 3 late, 1 at the end (4 of worker 1)"), "{text}");
}

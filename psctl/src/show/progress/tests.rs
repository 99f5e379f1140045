//! Lines and bars on fixed snapshots.

use std::io;
use std::sync::{Arc, Mutex};

use ps_common::job::{Mode, WorkerStats};

use super::*;
use crate::show::WorkerState;

/// Three ranks, one of them lost, one vacant, in round 40 of 100.
pub(in crate::show) fn snapshot() -> Snapshot {
    let worker = |rank, state, clock, silent_ms| WorkerLine {
        rank,
        incarnation: 1,
        state,
        clock,
        silent_ms,
        stats: if clock == 0 {
            WorkerStats::default()
        } else {
            WorkerStats {
                pushes: clock,
                samples: 60_000,
                compute_seconds: 0.6,
                wait_seconds: 0.3,
                comm_seconds: 0.1,
                bytes_sent: 1 << 20,
                bytes_received: 1 << 20,
                loss_sum: None,
            }
        },
        address: String::new(),
    };
    Snapshot {
        state: JobState::Running,
        mode: Mode::Sync,
        version: 40,
        rounds: 100,
        seconds: 1.2,
        loss: Some(0.8123),
        workers: vec![
            worker(0, WorkerState::Live, 40, 5),
            worker(1, WorkerState::Lost, 39, 2500),
            worker(2, WorkerState::Vacant, 0, 0),
        ],
    }
}

/// Keeps what is written; a terminal as well as a pipe.
#[derive(Clone, Debug, Default)]
struct Screen(Arc<Mutex<String>>);

impl Screen {
    fn text(&self) -> String {
        self.0.lock().expect("screen").clone()
    }

    fn push(&self, text: &str) -> io::Result<()> {
        self.0.lock().expect("screen").push_str(text);
        Ok(())
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(std::str::from_utf8(bytes).expect("text"))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl indicatif::TermLike for Screen {
    fn width(&self) -> u16 {
        80
    }
    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn write_line(&self, text: &str) -> io::Result<()> {
        self.push(&format!("{text}\n"))
    }
    fn write_str(&self, text: &str) -> io::Result<()> {
        self.push(text)
    }
    fn clear_line(&self) -> io::Result<()> {
        self.push("<clear>")
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// As when stderr is closed.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

fn at(version: u64, seconds: f64, state: JobState) -> Snapshot {
    Snapshot { version, seconds, state, ..snapshot() }
}

#[test]
fn head_lines_of_every_state() {
    let look = Look::plain(false);
    let line = |state| head_line(&at(40, 1.2, state), Some(33.3), &look);
    let rest = "loss 0.8123  1 of 3 workers, 1 lost  1.2 s";
    assert_eq!(
        line(JobState::Running),
        "round 40/100  loss 0.8123  33.3 updates/s  1 of 3 workers, 1 lost  1.2 s"
    );
    assert_eq!(line(JobState::Empty), format!("waiting for workers  {rest}"));
    let finishing = format!("round 40/100  collecting final losses  {rest}");
    assert_eq!(line(JobState::Finishing), finishing);
    assert_eq!(line(JobState::Done), format!("done  round 40/100  {rest}"));
    assert_eq!(line(JobState::Failed), format!("failed  round 40/100  {rest}"));
}

#[test]
fn all_workers_there_and_no_last_round() {
    let mut snapshot = snapshot();
    snapshot.workers.truncate(1);
    snapshot.rounds = 0;
    snapshot.loss = None;
    let look = Look::plain(false);
    assert_eq!(head_line(&snapshot, None, &look), "round 40  1 worker  1.2 s");
    assert_eq!(worker_lines(&snapshot, &look), ["worker 0  clock 40  live    computing 60 %"]);
}

#[test]
fn rounds_of_asynchronous_jobs_count_per_worker() {
    let snapshot = Snapshot { mode: Mode::Async, version: 50, ..snapshot() };
    assert_eq!(snapshot.round_text(), "round 16.7/100");
}

#[test]
fn a_line_per_worker() {
    assert_eq!(
        worker_lines(&snapshot(), &Look::plain(false)),
        [
            "worker 0  #########---------------  40/100  live    computing 60 %",
            "worker 1  #########---------------  39/100  lost    computing 60 %",
            "worker 2  ------------------------   0/100  vacant",
        ]
    );
    assert!(worker_lines(&snapshot(), &Look::plain(true))[0].contains("━━━━━━━━━───"));
}

#[test]
fn many_workers_share_a_line() {
    let mut snapshot = snapshot();
    let one = snapshot.workers[0].clone();
    snapshot.workers =
        (0..40).map(|i| WorkerLine { rank: i, clock: u64::from(i), ..one.clone() }).collect();
    let lines = worker_lines(&snapshot, &Look::plain(false));
    assert_eq!(lines.len(), BARS_MAX);
    assert!(lines[3].starts_with("worker  3  "), "{}", lines[3]);
    assert_eq!(lines[15], "and 25 more, clocks 15 to 39");
}

#[test]
fn a_pipe_gets_a_line_per_interval_and_the_last_one() {
    let screen = Screen::default();
    let mut progress = Progress::lines(Box::new(screen.clone()), Duration::from_secs(2));
    let start = Instant::now();
    let after = |ms| start + Duration::from_millis(ms);
    progress.update_at(&at(0, 0.0, JobState::Running), after(0));
    progress.update_at(&at(10, 1.0, JobState::Running), after(1000));
    progress.update_at(&at(20, 2.0, JobState::Running), after(2000));
    progress.update_at(&at(30, 3.0, JobState::Running), after(3000));
    progress.note("worker 1 is started again");
    progress.update_at(&at(31, 3.1, JobState::Finishing), after(3100));
    progress.update_at(&at(31, 3.2, JobState::Finishing), after(3200));
    progress.finish();
    progress.finish();
    progress.note("not shown");
    let starts: Vec<String> = screen
        .text()
        .lines()
        .map(|line| line.split("  ").take(2).collect::<Vec<_>>().join("  "))
        .collect();
    assert_eq!(
        starts,
        [
            "round 0/100  loss 0.8123",
            "round 20/100  loss 0.8123",
            "worker 1 is started again",
            "round 31/100  collecting final losses",
            "round 31/100  collecting final losses",
        ]
    );
    assert!(screen.text().ends_with("  3.2 s\n"), "{}", screen.text());
}

#[test]
fn a_terminal_gets_bars_that_are_cleared() {
    let screen = Screen::default();
    let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
    let mut progress = Progress::bars(target, Look::plain(true));
    progress.update(&snapshot());
    progress.note("a note\x1b[2J");
    progress.update(&at(41, 1.3, JobState::Running));
    let text = screen.text();
    for expected in ["round 40/100", "worker 2", "━━━", "a note?[2J"] {
        assert!(text.contains(expected), "{expected:?} is not in {text}");
    }
    progress.finish();
    let rest = screen.text().split_off(text.len());
    assert!(rest.contains("<clear>"), "{rest}");
}

#[test]
fn a_closed_stream_is_no_reason_to_stop() {
    let mut progress = Progress::lines(Box::new(Closed), Duration::ZERO);
    progress.update(&snapshot());
    progress.note("x");
    progress.finish();
}

#[test]
fn the_rate_is_that_of_the_last_seconds_and_survives_a_restore() {
    let mut progress = Progress::quiet();
    let mut rate =
        |version, seconds| progress.updates_per_second(&at(version, seconds, JobState::Running));
    assert_eq!(rate(0, 0.0), None);
    assert_eq!(rate(100, 1.0), Some(100.0));
    assert_eq!(rate(110, 11.0), Some(1.0));
    assert_eq!(rate(50, 12.0), None, "the server went back to a checkpoint");
    assert_eq!(rate(60, 13.0), Some(10.0));
}

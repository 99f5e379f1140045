//! A running job's progress on stderr: bars that stay in place on a terminal, a plain line now
//! and then elsewhere. Only shows what it is given; asks nobody.
//!
//! Never fails and never panics: a run does not end because nobody reads its progress.

use std::collections::VecDeque;
use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use ps_common::job::JobState;

use super::look::Tone;
use super::status::tone;
use super::{Look, Snapshot, WorkerLine, number};

/// More workers than this share one line of text.
const BARS_MAX: usize = 16;
/// Columns of a worker's bar.
const BAR_WIDTH: usize = 24;
/// Updates per second are those of the last so many seconds.
const RATE_WINDOW_SECONDS: f64 = 5.0;

/// Shows snapshots as they come.
pub struct Progress {
    kind: Kind,
    look: Look,
    /// (seconds, version), oldest first.
    recent: VecDeque<(f64, u64)>,
}

enum Kind {
    Quiet,
    Lines(Lines),
    Bars(Bars),
}

struct Lines {
    out: Box<dyn Write + Send>,
    interval: Duration,
    /// When the newest line was written, and in what state the job was.
    last: Option<(Instant, JobState)>,
    /// Newest line, if it has not been written.
    held: Option<String>,
}

struct Bars {
    multi: MultiProgress,
    head: ProgressBar,
    workers: Vec<ProgressBar>,
}

impl Progress {
    /// On stderr: bars if it is a terminal that can move its cursor, otherwise a line every
    /// `interval`.
    pub fn stderr(interval: Duration) -> Self {
        let look = Look::stderr();
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if console::Term::stderr().is_term() && !dumb {
            Self::bars(ProgressDrawTarget::stderr(), look)
        } else {
            Self::lines(Box::new(std::io::stderr()), interval)
        }
    }

    /// Nothing at all (`--quiet`).
    pub fn quiet() -> Self {
        Self::of(Kind::Quiet, Look::plain(false))
    }

    /// Plain lines, one every `interval` and one whenever the job's state changes.
    pub fn lines(out: Box<dyn Write + Send>, interval: Duration) -> Self {
        let lines = Lines { out, interval, last: None, held: None };
        Self::of(Kind::Lines(lines), Look::plain(false))
    }

    fn bars(target: ProgressDrawTarget, look: Look) -> Self {
        let multi = MultiProgress::with_draw_target(target);
        let head = multi.add(text_bar());
        Self::of(Kind::Bars(Bars { multi, head, workers: Vec::new() }), look)
    }

    fn of(kind: Kind, look: Look) -> Self {
        Self { kind, look, recent: VecDeque::new() }
    }

    /// Shows the job as it is now.
    pub fn update(&mut self, snapshot: &Snapshot) {
        self.update_at(snapshot, Instant::now());
    }

    fn update_at(&mut self, snapshot: &Snapshot, now: Instant) {
        let rate = self.updates_per_second(snapshot);
        match &mut self.kind {
            Kind::Quiet => {}
            Kind::Lines(lines) => lines.update(snapshot, now),
            Kind::Bars(bars) => bars.update(snapshot, rate, &self.look),
        }
    }

    /// Says one line beside the progress, at once: a worker was lost, a process is started again.
    /// Control characters in it are not obeyed.
    pub fn note(&mut self, text: &str) {
        let text = self.look.clean(text);
        match &mut self.kind {
            Kind::Quiet => {}
            Kind::Lines(lines) => lines.write(&text),
            // Nobody is left to tell when stderr is gone.
            Kind::Bars(bars) => drop(bars.multi.println(text)),
        }
    }

    /// Clears the bars, or writes the newest line if it has not been. Further calls do nothing.
    pub fn finish(&mut self) {
        match &mut self.kind {
            Kind::Quiet => {}
            Kind::Lines(lines) => {
                if let Some(line) = lines.held.take() {
                    lines.write(&line);
                }
            }
            Kind::Bars(bars) => {
                for bar in bars.workers.iter().chain([&bars.head]) {
                    bar.finish_and_clear();
                }
                drop(bars.multi.clear());
            }
        }
        self.kind = Kind::Quiet;
    }

    /// Over the last seconds; `None` before anything has happened.
    fn updates_per_second(&mut self, snapshot: &Snapshot) -> Option<f64> {
        // A server that was restored counts on from its checkpoint: begin anew.
        if self.recent.back().is_some_and(|&(s, v)| snapshot.seconds < s || snapshot.version < v) {
            self.recent.clear();
        }
        self.recent.push_back((snapshot.seconds, snapshot.version));
        while self.recent.len() > 2 && self.recent[1].0 < snapshot.seconds - RATE_WINDOW_SECONDS {
            self.recent.pop_front();
        }
        let &(seconds, version) = self.recent.front()?;
        let elapsed = snapshot.seconds - seconds;
        (elapsed > 0.0).then(|| (snapshot.version - version) as f64 / elapsed)
    }
}

impl Drop for Progress {
    /// Bars left behind by an error would be drawn over by what is said about it.
    fn drop(&mut self) {
        if matches!(self.kind, Kind::Bars(_)) {
            self.finish();
        }
    }
}

impl Lines {
    fn update(&mut self, snapshot: &Snapshot, now: Instant) {
        let line = head_line(snapshot, None, &Look::plain(false));
        let due = self.last.is_none_or(|(then, state)| {
            now.saturating_duration_since(then) >= self.interval || state != snapshot.state
        });
        if due {
            self.last = Some((now, snapshot.state));
            self.held = None;
            self.write(&line);
        } else {
            self.held = Some(line);
        }
    }

    fn write(&mut self, line: &str) {
        // One write, so that lines of several processes do not mix. Nobody is left to tell when
        // stderr is gone.
        let written = self.out.write_all(format!("{line}\n").as_bytes());
        drop(written.and_then(|()| self.out.flush()));
    }
}

impl Bars {
    fn update(&mut self, snapshot: &Snapshot, rate: Option<f64>, look: &Look) {
        self.head.set_message(head_line(snapshot, rate, look));
        let lines = worker_lines(snapshot, look);
        while self.workers.len() < lines.len() {
            self.workers.push(self.multi.add(text_bar()));
        }
        for (bar, line) in self.workers.iter().zip(lines) {
            bar.set_message(line);
        }
    }
}

/// A bar that is the line of text it is given, cut at the terminal's edge.
fn text_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_msg}").expect("a valid template");
    ProgressBar::new_spinner().with_style(style)
}

/// `round 40/100  loss 0.8123  4 workers  1.2 s`, with the rate before the workers if given.
fn head_line(snapshot: &Snapshot, rate: Option<f64>, look: &Look) -> String {
    let mut parts = match snapshot.state {
        JobState::Empty => vec!["waiting for workers".to_owned()],
        JobState::Running => vec![snapshot.round_text()],
        JobState::Finishing => vec![snapshot.round_text(), "collecting final losses".to_owned()],
        JobState::Done => vec![look.paint(Tone::Good, "done"), snapshot.round_text()],
        JobState::Failed => vec![look.paint(Tone::Bad, "failed"), snapshot.round_text()],
    };
    if let Some(loss) = snapshot.loss {
        parts.push(format!("loss {}", look.paint(Tone::Strong, &number::loss(loss))));
    }
    if let Some(rate) = rate.filter(|_| snapshot.state == JobState::Running) {
        parts.push(format!("{} updates/s", number::rate(rate)));
    }
    parts.push(snapshot.workers_text());
    parts.push(number::seconds(snapshot.seconds));
    parts.join("  ")
}

/// A line per worker; beyond [`BARS_MAX`] the last one counts the rest.
fn worker_lines(snapshot: &Snapshot, look: &Look) -> Vec<String> {
    let all = &snapshot.workers;
    let shown = if all.len() > BARS_MAX { BARS_MAX - 1 } else { all.len() };
    let rank_width = shown.saturating_sub(1).to_string().len();
    let mut lines: Vec<String> = all[..shown]
        .iter()
        .map(|worker| worker_line(worker, snapshot.rounds, rank_width, look))
        .collect();
    let rest = &all[shown..];
    if let (Some(slowest), Some(fastest)) =
        (rest.iter().map(|w| w.clock).min(), rest.iter().map(|w| w.clock).max())
    {
        lines.push(format!(
            "and {} more, clocks {} to {}",
            rest.len(),
            number::count(slowest),
            number::count(fastest)
        ));
    }
    lines
}

/// `worker 0 ######------ 40/100 live  computing 62 %`
fn worker_line(worker: &WorkerLine, rounds: u64, rank_width: usize, look: &Look) -> String {
    let rank = format!("worker {:>rank_width$}", worker.rank);
    let place = if rounds == 0 {
        format!("clock {}", number::count(worker.clock))
    } else {
        let all = number::count(rounds);
        let digits = all.len();
        let bar = bar(worker.clock as f64 / rounds as f64, look);
        format!("{bar} {:>digits$}/{all}", number::count(worker.clock))
    };
    let state = look.paint(tone(worker.state), &format!("{:<6}", worker.state.name()));
    let share = worker
        .shares()
        .map_or(String::new(), |shares| format!("  computing {:.0} %", shares[0] * 100.0));
    format!("{rank}  {place}  {state}{share}").trim_end().to_owned()
}

fn bar(share: f64, look: &Look) -> String {
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    // Full only when all is done.
    let full = (share * BAR_WIDTH as f64).floor() as usize;
    let done = look.pick("━", "#").repeat(full);
    let rest = look.pick("─", "-").repeat(BAR_WIDTH - full);
    format!("{}{}", look.paint(Tone::Compute, &done), look.paint(Tone::Faint, &rest))
}

#[cfg(test)]
pub(super) mod tests;

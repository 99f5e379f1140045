//! The summary of a finished run: what was done, how well, where the time went, what happened.

use ps_common::calls::Caller;
use ps_common::report::{Dropped, Event, GradientDelay, LostUpdates, Report, WorkerReport};
use ps_common::units::show_bytes;

use super::look::Tone;
use super::snapshot::shares;
use super::table::{Align, Table};
use super::{Look, number};

/// The bar of a worker's time has this many columns at most, and is left out below the least.
const SHARE_BAR_MAX: usize = 24;
const SHARE_BAR_MIN: usize = 8;
/// Characters of a digest that are shown.
const DIGEST_CHARS: usize = 16;
/// Columns of the gradient delay's histogram.
const HISTOGRAM_CELLS_MAX: usize = 32;
/// More events than this are counted only.
const EVENTS_MAX: usize = 12;

/// The whole text, lines ending in `\n`.
pub fn summary(report: &Report, look: &Look) -> String {
    let mut out = headline(report, look);
    out.push('\n');
    out.push_str(&results(report, look));
    if !report.workers.is_empty() {
        out.push('\n');
        out.push_str(&workers(&report.workers, look));
    }
    let events = events(&report.events, look);
    if !events.is_empty() {
        out.push('\n');
        out.push_str(&events);
    }
    out
}

/// How it ended, and what it was.
fn headline(report: &Report, look: &Look) -> String {
    let plural = |n: u32, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let tone = if report.outcome == "done" { Tone::Good } else { Tone::Bad };
    let parts = [
        look.paint(tone, &look.clean(&report.outcome)),
        report.mode.to_string(),
        look.clean(&report.model),
        look.clean(&report.optimizer),
        plural(report.n_workers, "worker"),
        plural(report.n_servers, "server"),
    ];
    parts.join(look.pick(" · ", " | ")) + "\n"
}

fn results(report: &Report, look: &Look) -> String {
    let mut table = Table::new([("", Align::Left), ("", Align::Left)]);
    let mut row = |label: &str, text: String| table.row([look.paint(Tone::Faint, label), text]);
    let strong = |text: String| look.paint(Tone::Strong, &text);
    let last = &report.r#final;
    let first = report.history.first().map(|entry| entry.loss);
    match (first, last.loss) {
        (Some(first), Some(loss)) => {
            let arrow = look.pick("→", "->");
            let to = strong(number::loss(loss));
            row("loss", format!("{} {arrow} {to}", number::loss(first)));
        }
        (None, Some(loss)) => row("loss", strong(number::loss(loss))),
        (_, None) => row("loss", "not measured".to_owned()),
    }
    if let Some(accuracy) = last.train_accuracy {
        row("train accuracy", strong(number::percent(accuracy)));
    }
    match (last.test_accuracy, last.test_loss) {
        (Some(accuracy), Some(loss)) => {
            let accuracy = strong(number::percent(accuracy));
            row("test accuracy", format!("{accuracy}  loss {}", number::loss(loss)));
        }
        (Some(accuracy), None) => row("test accuracy", strong(number::percent(accuracy))),
        (None, Some(loss)) => row("test loss", strong(number::loss(loss))),
        (None, None) => {}
    }
    if let Some(loss) = report.progressive_loss {
        row("progressive", format!("{}  mean loss at each push", number::loss(loss)));
    }
    let updates = number::count(report.version);
    row("rounds", format!("{}  {updates} updates", number::rounds(report.rounds)));
    let rate = number::rate(report.version as f64 / report.wall_seconds);
    let time = number::seconds(report.wall_seconds);
    row("time", format!("{}  {rate} updates/s", strong(time)));
    let sum = |bytes: fn(&WorkerReport) -> u64| report.workers.iter().map(bytes).sum();
    let (sent, received) = (sum(|w| w.stats.bytes_sent), sum(|w| w.stats.bytes_received));
    row("traffic", format!("{} sent, {} received", show_bytes(sent), show_bytes(received)));
    let seed = report.seed.map_or(String::new(), |seed| format!("  seed {seed}"));
    row("data", format!("{} samples{seed}", number::count(report.n_samples)));
    let digest: String = look.clean(&last.theta_sha256).chars().take(DIGEST_CHARS).collect();
    let dim = number::count(report.dim);
    row("theta", format!("{dim} elements of {}  sha256 {digest}", report.dtype));
    if report.gradient_delay.histogram.iter().any(|&n| n > 0) {
        row("gradient delay", delay(&report.gradient_delay, look));
    }
    if report.dropped.total() > 0 {
        row("dropped", dropped(report));
    }
    if let Some(lost) = &report.hogwild {
        row("lost updates", lost_updates(lost));
    }
    table.render("  ", look.width)
}

/// `0.12 %  5 of 4,400 stores checked`.
fn lost_updates(lost: &LostUpdates) -> String {
    let (n_lost, n_checked) = (number::count(lost.lost), number::count(lost.checked));
    format!("{:.2} %  {n_lost} of {n_checked} stores checked", lost.lost_rate * 100.0)
}

/// `5 gradients: 3 late, 2 by delay (1 of worker 0, 4 of worker 2)`.
fn dropped(report: &Report) -> String {
    let Dropped { late, delay, ended } = report.dropped;
    let reasons = [(late, "late"), (delay, "by delay"), (ended, "at the end")];
    let reasons = reasons.iter().filter(|(n, _)| *n > 0);
    let reasons: Vec<String> =
        reasons.map(|(n, why)| format!("{} {why}", number::count(*n))).collect();
    let whose = report.workers.iter().filter(|w| w.dropped > 0);
    let whose: Vec<String> =
        whose.map(|w| format!("{} of worker {}", number::count(w.dropped), w.rank)).collect();
    let total = report.dropped.total();
    let noun = if total == 1 { "gradient" } else { "gradients" };
    format!("{} {noun}: {} ({})", number::count(total), reasons.join(", "), whose.join(", "))
}

/// `mean 2.9, p99 5, max 7` and the histogram from 0 up.
fn delay(delay: &GradientDelay, look: &Look) -> String {
    let figures = format!("mean {:.1}, p99 {}, max {}", delay.mean, delay.p99, delay.max);
    let used = delay.histogram.iter().rposition(|&n| n > 0).map_or(0, |last| last + 1);
    if used < 2 {
        return figures;
    }
    // Wide histograms are drawn with several delays in a cell.
    let per_cell = used.div_ceil(HISTOGRAM_CELLS_MAX);
    let cells: Vec<u64> =
        delay.histogram[..used].chunks(per_cell).map(|c| c.iter().sum()).collect();
    let largest = cells.iter().copied().max().unwrap_or(0).max(1);
    let levels: Vec<char> = look.pick(" ▁▂▃▄▅▆▇█", " .:-=+*#@").chars().collect();
    let steps = levels.len() - 1;
    // A cell that is not empty shows, however small its share.
    let level = |n: u64| (n as f64 / largest as f64 * steps as f64).ceil() as usize;
    let drawn: String = cells.iter().map(|&n| levels[level(n).min(steps)]).collect();
    format!("{figures}  0 [{drawn}] {}", used - 1)
}

/// A row per worker. The bars get what the figures leave of the width; where that is too little
/// the traffic goes first, then the bars.
fn workers(workers: &[WorkerReport], look: &Look) -> String {
    let fits = |traffic: bool| {
        let bare = "  ".len() + worker_table(workers, 0, traffic, look).natural_width();
        let room = look.width.saturating_sub(bare + "  ".len()).min(SHARE_BAR_MAX);
        (room >= SHARE_BAR_MIN).then_some((room, traffic))
    };
    let (bar_width, traffic) = fits(true).or_else(|| fits(false)).unwrap_or((0, false));
    let mut out = worker_table(workers, bar_width, traffic, look).render("  ", look.width);
    if bar_width > 0 {
        let [compute, wait, wire] = share_marks(look);
        let key = [
            (Tone::Compute, compute, "compute"),
            (Tone::Wait, wait, "wait"),
            (Tone::Wire, wire, "wire"),
        ];
        let key = key.map(|(tone, mark, name)| format!("{} {name}", look.paint(tone, mark)));
        out.push_str(&format!("  share of time: {}\n", key.join("  ")));
    }
    out
}

fn worker_table(workers: &[WorkerReport], bar_width: usize, traffic: bool, look: &Look) -> Table {
    const COLUMNS: [(&str, Align); 9] = [
        ("rank", Align::Right),
        ("pushes", Align::Right),
        ("samples", Align::Right),
        ("compute", Align::Right),
        ("wait", Align::Right),
        ("wire", Align::Right),
        ("share", Align::Left),
        ("sent", Align::Right),
        ("recv", Align::Right),
    ];
    let shown = |(name, _): &(&str, Align)| match *name {
        "share" => bar_width > 0,
        "sent" | "recv" => traffic,
        _ => true,
    };
    let mut table = Table::new(COLUMNS.into_iter().filter(shown));
    for worker in workers {
        let stats = &worker.stats;
        let bar = shares(stats).map_or(String::new(), |s| share_bar(s, bar_width, look));
        let cells = [
            worker.rank.to_string(),
            number::count(stats.pushes),
            number::compact(stats.samples),
            number::seconds(stats.compute_seconds),
            number::seconds(stats.wait_seconds),
            number::seconds(stats.comm_seconds),
            bar,
            show_bytes(stats.bytes_sent),
            show_bytes(stats.bytes_received),
        ];
        let row = COLUMNS.iter().zip(cells).filter(|(column, _)| shown(column));
        table.row(row.map(|(_, cell)| cell));
    }
    table
}

/// Compute, wait, wire.
fn share_marks(look: &Look) -> [&'static str; 3] {
    if look.unicode { ["█", "▒", "░"] } else { ["#", "=", "."] }
}

/// `width` columns parted as the shares are; the parts' ends are rounded, so they always fill it.
fn share_bar(shares: [f64; 3], width: usize, look: &Look) -> String {
    let end = |share: f64| ((share * width as f64).round() as usize).min(width);
    let ends = [end(shares[0]), end(shares[0] + shares[1]), width];
    let mut from = 0;
    let mut out = String::new();
    let tones = [Tone::Compute, Tone::Wait, Tone::Wire];
    for ((to, mark), tone) in ends.into_iter().zip(share_marks(look)).zip(tones) {
        out.push_str(&look.paint(tone, &mark.repeat(to.saturating_sub(from))));
        from = from.max(to);
    }
    out
}

/// What a person would want to know of: all but first joins and orderly leaves.
fn events(events: &[Event], look: &Look) -> String {
    let mut joined = std::collections::HashSet::new();
    let notable: Vec<&Event> = events
        .iter()
        .filter(|event| match plain_kind(event) {
            // Whoever takes a rank again was started again; every observer gets a number of its own.
            "joined" => event.rank.is_some_and(|rank| !joined.insert(rank)),
            "left" => false,
            _ => true,
        })
        .collect();
    let mut table =
        Table::new([("", Align::Right), ("", Align::Left), ("", Align::Left), ("", Align::Left)]);
    for event in notable.iter().take(EVENTS_MAX) {
        let (kind, tone) = match plain_kind(event) {
            "joined" => ("joined again".to_owned(), Tone::Good),
            "lost" => ("lost".to_owned(), Tone::Bad),
            other => (look.clean(other), Tone::Warn),
        };
        table.row([
            number::seconds(event.seconds),
            look.paint(tone, &kind),
            event.rank.map_or(String::new(), member),
            look.clean(&event.detail),
        ]);
    }
    let mut out = table.render("  ", look.width);
    if notable.len() > EVENTS_MAX {
        out.push_str(&format!("  and {} more events\n", notable.len() - EVENTS_MAX));
    }
    out
}

/// What happened, without the role, which the member's name says.
fn plain_kind(event: &Event) -> &str {
    event.kind.strip_prefix("observer ").unwrap_or(&event.kind)
}

/// Who a rank of the report is: observers are numbered apart from workers.
fn member(rank: u32) -> String {
    match rank.checked_sub(Caller::FIRST_OBSERVER) {
        Some(number) => format!("observer {number}"),
        None => format!("worker {rank}"),
    }
}

#[cfg(test)]
pub(crate) mod tests;

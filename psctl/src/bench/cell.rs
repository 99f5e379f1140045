//! One measurement: a fleet started, warmed up, calibrated, timed and checked.

use std::time::Duration;

use ps_common::Dtype;
use ps_common::exit::ExitError;
use ps_common::job::Mode;

use super::arm::{Arm, Side};
use super::job::Job;
use super::process::Fleet;
use super::{measure, work};

/// Steps that a measurement has at least, unless they would take ten times as long as asked for.
const STEPS_MIN: f64 = 20.0;

/// What one measurement gave.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    /// Steps of each worker.
    pub(super) steps: u64,
    /// From the order to start to the last worker's end.
    pub(super) seconds: f64,
    /// Of all workers.
    pub(super) steps_per_second: f64,
    /// Of all workers, both directions, 10^9 bytes.
    pub(super) gb_per_second: f64,
    /// Of all processes, per 10^9 bytes of payload.
    pub(super) cpu_seconds_per_gb: f64,
    /// Of the server processes alone.
    pub(super) server_cpu_seconds_per_gb: f64,
    /// Half of all workers' steps are not longer.
    pub(super) p50: Duration,
    /// 99 % of all workers' steps are not longer.
    pub(super) p99: Duration,
    /// Of the server processes, from their start.
    pub(super) server_peak_rss_bytes: u64,
    /// Of a worker, in messages, by a step; absent where its build does not say.
    pub(super) sent_bytes_per_step: Option<f64>,
}

/// Measures `arm` at `job` for about `aim`.
///
/// # Errors
/// A process that fails or falls silent, or a theta that is not what the pushes amount to.
pub(super) fn measure(arm: &Arm, job: &Job, aim: Duration) -> Result<Sample, ExitError> {
    let mut fleet = Fleet::start(arm, job)?;
    let (warmed_up, seconds_per_step) = warm_up(&mut fleet, job, aim)?;
    // One push is kept for the check.
    let steps = choose_steps(aim, seconds_per_step).min(pushes_max(job) - warmed_up - 1);

    let cpu_before = cpu_times(&fleet)?;
    let wall = fleet.steps(steps, patience(seconds_per_step * steps as f64))?;
    let cpu_after = cpu_times(&fleet)?;
    let mut server_peak_rss_bytes = 0;
    for pid in fleet.pids().0 {
        server_peak_rss_bytes += measure::peak_rss_bytes(pid)?;
    }

    let (mut times, sent_bytes) = fleet.times()?;
    times.sort_unstable();
    check(&mut fleet, arm.side, job, (warmed_up + steps, patience(seconds_per_step)))?;

    let n_steps = steps as f64 * f64::from(job.workers);
    let gb = n_steps * job.payload_bytes_per_step() as f64 / 1e9;
    let seconds = wall.as_secs_f64();
    let server_cpu = cpu_after.0 - cpu_before.0;
    let worker_cpu = cpu_after.1 - cpu_before.1;
    Ok(Sample {
        steps,
        seconds,
        steps_per_second: n_steps / seconds,
        gb_per_second: gb / seconds,
        cpu_seconds_per_gb: (server_cpu + worker_cpu) / gb,
        server_cpu_seconds_per_gb: server_cpu / gb,
        p50: measure::percentile(&times, 50.0),
        p99: measure::percentile(&times, 99.0),
        server_peak_rss_bytes,
        sent_bytes_per_step: sent_bytes.map(|bytes| bytes as f64 / n_steps),
    })
}

/// Steps until caches, buffers and windows have settled; how many, and seconds per step at last.
fn warm_up(fleet: &mut Fleet, job: &Job, aim: Duration) -> Result<(u64, f64), ExitError> {
    let target = aim.as_secs_f64() / 8.0;
    // The first takes up to a hundred times as long as others: it says nothing of them.
    fleet.steps(1, patience(10.0))?;
    let (mut steps, mut total) = (2, 1);
    loop {
        let seconds = fleet.steps(steps, patience(10.0))?.as_secs_f64();
        total += steps;
        let seconds_per_step = seconds / steps as f64;
        if seconds >= target / 2.0 || total >= pushes_max(job) / 8 {
            return Ok((total, seconds_per_step));
        }
        // The first steps are slow: grow towards the target, not to it at once.
        steps = ((target / seconds_per_step) as u64).clamp(steps, steps * 8);
        steps = steps.min(pushes_max(job) / 8);
    }
}

fn choose_steps(aim: Duration, seconds_per_step: f64) -> u64 {
    let aim = aim.as_secs_f64();
    let at_least = STEPS_MIN.min(10.0 * aim / seconds_per_step);
    (aim / seconds_per_step).max(at_least).max(1.0) as u64
}

/// Pushes per worker for which the check is exact; in f64 what a bench could ever do.
fn pushes_max(job: &Job) -> u64 {
    match job.dtype {
        Dtype::F32 => work::pushes_max(job.workers, job.wire),
        Dtype::F64 => 1 << 40,
    }
}

/// Every push has counted exactly once.
fn check(
    fleet: &mut Fleet,
    side: Side,
    job: &Job,
    (pushes_each, patience): (u64, Duration),
) -> Result<(), ExitError> {
    let mut pushes = vec![pushes_each; job.workers as usize];
    if side == Side::Grpc && !work::is_exact(job.wire) {
        fleet.settle(job.mode, patience)?;
    } else if job.mode == Mode::Async {
        fleet.last_step(patience)?;
        pushes[0] += 1;
    }
    fleet.check(pushes)
}

/// Seconds of the servers, and of the workers.
fn cpu_times(fleet: &Fleet) -> Result<(f64, f64), ExitError> {
    let sum = |pids: Vec<u32>| -> Result<f64, ExitError> {
        pids.into_iter().map(|pid| Ok(measure::cpu_time(pid)?.as_secs_f64())).sum()
    };
    let (servers, workers) = fleet.pids();
    Ok((sum(servers)?, sum(workers)?))
}

/// Far more than what is expected, so that only a hang is taken for one.
fn patience(expected_seconds: f64) -> Duration {
    Duration::from_secs_f64(30.0 + 20.0 * expected_seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_lasts_as_asked_but_has_twenty_steps() {
        let two = Duration::from_secs(2);
        assert_eq!(choose_steps(two, 0.001), 2000);
        assert_eq!(choose_steps(two, 0.5), 20, "ten seconds, but twenty steps");
        assert_eq!(choose_steps(two, 4.0), 5, "not more than ten times as long");
        assert_eq!(choose_steps(two, 100.0), 1);
    }
}

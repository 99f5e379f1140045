//! `psctl bench`: dense push-pull of the real server against the same work over bare sockets.
//!
//! Both sides run in processes of their own, over loopback TCP with the same congestion control,
//! in turn, in one run, so that their ratio means something where absolute figures drift. The
//! result of every measurement is checked: a rate of lost or doubled pushes is not a rate.

mod against;
mod args;
mod arm;
mod cell;
mod grpc;
mod idle;
mod job;
mod measure;
mod plot;
mod process;
mod protocol;
mod raw;
mod role;
mod rows;
mod socket;
mod sparse;
mod table;
mod work;

use std::io::Write;
use std::path::PathBuf;

use ps_common::codec::Codec;
use ps_common::exit::{Exit, ExitError};
use serde::Serialize;

use arm::{Arm, Side};
use cell::Sample;
use job::{Job, Way};
use measure::Machine;
use rows::{Results, Row, Samples};
use socket::Chosen;

pub use args::{Args, Congestion};
pub use role::{RoleArgs, play};

/// Above it, somebody else is using the machine.
const LOAD_AVERAGE_QUIET: f64 = 0.5;

/// Measures what `args` ask for and writes the tables, or with `--json` one line, to `out`; what is
/// going on meanwhile to `progress`.
///
/// # Errors
/// A debug build, cells that do not fit into memory, no program to measure beside (78), an earlier
/// run that cannot be read (65, 74), a process that failed (1), a wrong theta (70), a picture that
/// cannot be written (73).
pub fn run(args: &Args, out: &mut impl Write, progress: &mut impl Write) -> Result<(), ExitError> {
    let no_socket = |e| ExitError::new(Exit::Io, "cannot make a TCP socket").because(e);
    let congestion = socket::choose(args.congestion).map_err(no_socket)?;
    let system = socket::choose(Congestion::System).map_err(no_socket)?;
    // A closed stderr is no reason to stop measuring.
    let mut note = |text: &str| drop(writeln!(progress, "{text}"));
    if let Some(time) = args.idle {
        if cfg!(debug_assertions) {
            note("this is a debug build, which takes more processor time than a release build");
        }
        let machine = Machine::read(&system.name, &system.name)?;
        let program = arm::own_version();
        let mut results = idle::Results { machine, program, idle: Vec::new() };
        for &workers in &args.workers {
            note(&format!("W={workers}: waiting for {} s", time.as_secs_f64()));
            results.idle.push(idle::measure(&arm::own_program()?, workers, time)?);
        }
        return write_results(&results, args.json, idle::show, out);
    }
    let machine = Machine::read(&congestion.name, &system.name)?;
    args.check(machine.memory_available_bytes)?;
    let then = args.against.as_deref().map(against::Run::read).transpose()?;
    let other = args.against_programs.as_deref().map(arm::other_program).transpose()?;
    if let Some(text) = &congestion.note {
        note(text);
    }
    if machine.load_average > LOAD_AVERAGE_QUIET {
        note(&format!(
            "the load average is {:.2}: other work takes its share of the processors, and figures \
             are lower and scatter more than on a quiet machine",
            machine.load_average
        ));
    }

    let (other, against_program) = other.unzip();
    let arms = arms(args, congestion, other)?;
    let mut rows = Vec::new();
    for job in args.jobs() {
        rows.push(Row::new(&job, &measure_cell(&arms, &job, args, &mut note)?));
    }
    let mut results = Results {
        machine,
        program: arm::own_version(),
        servers: args.servers,
        tls: args.tls.is_some(),
        rows,
        against_program,
        against: None,
    };
    results.against = then.map(|then| against::compare(&then, &against::Run::of(&results)));
    write_results(&results, args.json, table::show, out)?;
    args.plot.as_ref().map_or(Ok(()), |path| plot::chart(&results).write(path))
}

/// Bare sockets first; `other` is another build's psctl.
fn arms(args: &Args, congestion: Chosen, other: Option<PathBuf>) -> Result<Vec<Arm>, ExitError> {
    let own = arm::own_program()?;
    let plain = Way { congestion: congestion.set, tls: None };
    let way = Way { tls: args.tls.clone(), ..plain.clone() };
    let raw = Arm { name: "raw", side: Side::Raw, program: own.clone(), servers: 1, way: plain };
    let grpc = Arm { name: "grpc", side: Side::Grpc, program: own, servers: args.servers, way };
    let other = other.map(|program| Arm { name: "against", program, ..grpc.clone() });
    let grpc = (!args.raw_only).then_some(grpc);
    Ok([Some(raw), grpc, other].into_iter().flatten().collect())
}

/// Every arm once a repeat, side by side in time.
fn measure_cell(
    arms: &[Arm],
    job: &Job,
    args: &Args,
    note: &mut impl FnMut(&str),
) -> Result<Samples, ExitError> {
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); arms.len()];
    for repeat in 1..=args.repeats {
        // Whoever goes first may find the machine cooler or the caches colder: take turns.
        let first = (repeat as usize - 1) % arms.len();
        for index in (first..arms.len()).chain(0..first) {
            let sample = cell::measure(&arms[index], job, args.seconds)?;
            note(&progress_line(&arms[index], job, (repeat, args.repeats), &sample));
            samples[index].push(sample);
        }
    }
    let mut samples = samples.into_iter();
    let mut next = || samples.next().unwrap_or_default();
    Ok(Samples { raw: next(), grpc: next(), other: next() })
}

fn progress_line(arm: &Arm, job: &Job, (repeat, repeats): (u32, u32), sample: &Sample) -> String {
    let wire = if job.wire == Codec::PLAIN { String::new() } else { format!(" {}", job.wire) };
    format!(
        "{} n={} W={}{wire} {} {repeat}/{repeats}: {:.2} GB/s, p50 {:.0} us, {} steps each in {:.1} s",
        job.mode,
        job.n,
        job.workers,
        arm.name,
        sample.gb_per_second,
        sample.p50.as_secs_f64() * 1e6,
        sample.steps,
        sample.seconds,
    )
}

fn write_results<R: Serialize>(
    results: &R,
    json: bool,
    show: impl FnOnce(&R) -> String,
    out: &mut impl Write,
) -> Result<(), ExitError> {
    let written = match json {
        true => protocol::say(out, results),
        false => out.write_all(show(results).as_bytes()).and_then(|()| out.flush()),
    };
    written.map_err(|e| ExitError::new(Exit::Io, "cannot write the results").because(e))
}

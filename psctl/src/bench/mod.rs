//! `psctl bench`: dense push-pull of the real server against the same work over bare sockets.
//!
//! Both sides run in processes of their own, over loopback TCP with the same congestion control,
//! in turn, in one run, so that their ratio means something where absolute figures drift. The
//! result of every measurement is checked: a rate of lost or doubled pushes is not a rate.

mod args;
mod cell;
mod grpc;
mod measure;
mod plot;
mod process;
mod protocol;
mod raw;
mod role;
mod socket;
mod table;
mod work;

use std::fmt;
use std::io::{self, Write};

use ps_common::exit::{Exit, ExitError};

use args::{Job, Way};
use cell::Sample;
use measure::Machine;
use table::{Results, Row};

pub use args::{Args, Congestion};
pub use role::{RoleArgs, play};

/// The two programs that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Grpc,
    Raw,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grpc => "grpc",
            Self::Raw => "raw",
        })
    }
}

/// Above it, somebody else is using the machine.
const LOAD_AVERAGE_QUIET: f64 = 0.5;

/// Measures every cell that `args` asks for and writes the table, or with `--json` one line, to
/// `out`; what is going on meanwhile to `progress`.
///
/// # Errors
/// A debug build, cells that do not fit into memory (78), a process that failed (1), a wrong
/// theta (70), a picture that cannot be written (73).
pub fn run(args: &Args, out: &mut impl Write, progress: &mut impl Write) -> Result<(), ExitError> {
    let no_socket = |e| ExitError::new(Exit::Io, "cannot make a TCP socket").because(e);
    let congestion = socket::choose(args.congestion).map_err(no_socket)?;
    let system = socket::choose(Congestion::System).map_err(no_socket)?;
    let machine = Machine::read(&congestion.name, &system.name)?;
    args.check(machine.memory_available_bytes)?;
    // A closed stderr is no reason to stop measuring.
    let mut note = |text: &str| drop(writeln!(progress, "{text}"));
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

    let plain = Way { congestion: congestion.set, tls: None };
    let way = Way { tls: args.tls.clone(), ..plain.clone() };
    let mut rows = Vec::new();
    for job in args.jobs() {
        let (mut grpc, mut raw) = (Vec::new(), Vec::new());
        for repeat in 1..=args.repeats {
            // Whoever goes first may find the machine cooler or the caches colder: take turns.
            let order =
                if repeat % 2 == 1 { [Side::Raw, Side::Grpc] } else { [Side::Grpc, Side::Raw] };
            for side in order {
                if side == Side::Grpc && args.raw_only {
                    continue;
                }
                let (way, n_servers) =
                    if side == Side::Grpc { (&way, args.servers) } else { (&plain, 1) };
                let sample = cell::measure((side, n_servers), &job, way, args.seconds)?;
                note(&progress_line(side, &job, repeat, args.repeats, &sample));
                match side {
                    Side::Grpc => grpc.push(sample),
                    Side::Raw => raw.push(sample),
                }
            }
        }
        rows.push(Row::new(&job, &grpc, &raw));
    }
    let results = Results { machine, servers: args.servers, tls: args.tls.is_some(), rows };
    write_results(&results, args.json, out)
        .map_err(|e| ExitError::new(Exit::Io, "cannot write the results").because(e))?;
    args.plot.as_ref().map_or(Ok(()), |path| plot::chart(&results).write(path))
}

fn progress_line(side: Side, job: &Job, repeat: u32, repeats: u32, sample: &Sample) -> String {
    format!(
        "{} n={} W={} {side} {repeat}/{repeats}: {:.2} GB/s, p50 {:.0} us, {} steps each in {:.1} s",
        job.mode,
        job.n,
        job.workers,
        sample.gb_per_second,
        sample.p50.as_secs_f64() * 1e6,
        sample.steps,
        sample.seconds,
    )
}

fn write_results(results: &Results, json: bool, out: &mut impl Write) -> io::Result<()> {
    if json {
        protocol::say(out, results)
    } else {
        out.write_all(table::show(results).as_bytes())?;
        out.flush()
    }
}

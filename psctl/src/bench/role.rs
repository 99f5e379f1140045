//! The child processes of the bench: servers and workers of either side. Not for people.

use std::io::{self, BufRead};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use clap::Subcommand;
use ps_common::exit::{Exit, ExitError};
use ps_common::shared::Shared;
use ps_common::{Dtype, Element};
use tokio::runtime::Runtime;

use super::job::{Job, Way};
use super::protocol::{Order, Report, say};
use super::sparse::Batches;
use super::{grpc, raw, socket, work};

/// Arguments of the hidden subcommand that is one process of a bench.
#[derive(Debug, Clone, clap::Args)]
pub struct RoleArgs {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Clone, Subcommand)]
enum Role {
    RawServer(ServerArgs),
    RawWorker(WorkerArgs),
    GrpcServer(ServerArgs),
    GrpcWorker(WorkerArgs),
}

/// What a server of either side is told.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ServerArgs {
    #[command(flatten)]
    pub(super) job: Job,
    #[command(flatten)]
    pub(super) way: Way,
    /// Which of several servers, as i/S.
    #[arg(long)]
    pub(super) partition: Option<String>,
    /// The other servers, for the first one.
    #[arg(long, value_delimiter = ',')]
    pub(super) peers: Vec<SocketAddr>,
}

/// What a worker of either side is told.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct WorkerArgs {
    #[command(flatten)]
    pub(super) job: Job,
    #[command(flatten)]
    pub(super) way: Way,
    /// Of the servers, in order of partition.
    #[arg(long, value_delimiter = ',', required = true)]
    pub(super) address: Vec<SocketAddr>,
    /// Among the workers, from 0.
    #[arg(long)]
    pub(super) rank: u32,
}

/// Plays the role until standard input ends, and then ends the process.
///
/// # Errors
/// What kept it from its work.
pub fn play(args: &RoleArgs) -> Result<(), ExitError> {
    let orders = follow_stdin();
    match &args.role {
        Role::RawServer(server) => match server.job.dtype {
            Dtype::F32 => raw_server::<f32>(server),
            Dtype::F64 => raw_server::<f64>(server),
        },
        Role::GrpcServer(server) => grpc::serve(server, announce),
        Role::RawWorker(worker) => match worker.job.dtype {
            Dtype::F32 => obey::<f32>(worker, &orders, Link::raw(worker)?),
            Dtype::F64 => obey::<f64>(worker, &orders, Link::raw(worker)?),
        },
        Role::GrpcWorker(worker) => match worker.job.dtype {
            Dtype::F32 => obey::<f32>(worker, &orders, Link::grpc(worker)?),
            Dtype::F64 => obey::<f64>(worker, &orders, Link::grpc(worker)?),
        },
    }
}

/// Reads orders on a thread of its own, so that the end of standard input ends the process at
/// once, whatever else it is doing.
fn follow_stdin() -> mpsc::Receiver<Order> {
    let (sender, orders) = mpsc::channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let Ok(order) = line.map_err(drop).and_then(|l| serde_json::from_str(&l).map_err(drop))
            else {
                std::process::exit(i32::from(Exit::Bug as u8));
            };
            // The receiver is gone when the role has failed; its error is being reported.
            let _ = sender.send(order);
        }
        std::process::exit(0);
    });
    orders
}

fn announce(address: SocketAddr) -> io::Result<()> {
    say(&mut io::stdout(), &Report::Listening { address })
}

fn raw_server<T: Element>(args: &ServerArgs) -> Result<(), ExitError> {
    let served = socket::listen(args.way.congestion.as_deref()).and_then(|listener| {
        announce(listener.local_addr()?)?;
        raw::server::serve::<T>(&listener, &args.job)
    });
    served
        .map(drop)
        .map_err(|e| ExitError::new(Exit::Io, "the bare-socket server failed").because(e))
}

/// A worker's connection to the server of its side.
enum Link<T> {
    Raw(TcpStream),
    Grpc(Runtime, Box<grpc::Connection<T>>),
}

/// What a worker pushes.
enum Load<T> {
    /// The same gradient in every step.
    Whole(Shared<T>),
    /// Some rows, others in each step.
    Rows(Batches<T>),
}

impl<T: Element> Load<T> {
    fn new(Job { n, wire, sparse, .. }: Job, rank: u32) -> Self {
        match sparse {
            None => Self::Whole(work::gradient(n, rank, wire)),
            Some(sparse) => Self::Rows(Batches::new(sparse, n, rank)),
        }
    }

    /// Where `theta`, as it was given last, is not what `pushes` amount to: the key, and what was expected and got.
    fn first_difference(
        &self,
        Job { n, wire, sparse, .. }: Job,
        theta: &[T],
        pushes: &[u64],
    ) -> Option<(usize, T, T)> {
        match (self, sparse) {
            (Self::Rows(batches), Some(sparse)) => batches
                .first_difference((sparse, n), theta, pushes)
                .map(|(key, expected, place)| (key, expected, theta[place])),
            _ => work::first_difference(theta, pushes, wire)
                .map(|(key, expected)| (key, expected, theta[key])),
        }
    }
}

/// What some steps came to.
#[derive(Default)]
struct Stretch {
    times: Vec<Duration>,
    sent_bytes: u64,
}

impl<T: Element> Link<T> {
    /// Over bare sockets.
    fn raw(args: &WorkerArgs) -> Result<Self, ExitError> {
        let control = args.way.congestion.as_deref();
        let stream = raw::worker::connect(args.address[0], args.rank, control);
        Ok(Self::Raw(stream.map_err(raw_failed)?))
    }

    /// Over gRPC.
    fn grpc(args: &WorkerArgs) -> Result<Self, ExitError> {
        // As workers do it: the whole of a connection's work on one thread.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| ExitError::new(Exit::Io, "cannot start a tokio runtime").because(e))?;
        let connection = runtime.block_on(grpc::connect(args))?;
        Ok(Self::Grpc(runtime, Box::new(connection)))
    }

    fn steps(&mut self, load: &mut Load<T>, theta: &mut [T], n: u64) -> Result<Stretch, ExitError> {
        match self {
            Self::Raw(stream) => {
                let times = match load {
                    Load::Whole(gradient) => raw::worker::steps(stream, gradient, theta, n),
                    Load::Rows(batches) => raw::rows::steps(stream, batches, theta, n),
                };
                let sent_bytes = n * size_of_val(theta) as u64;
                Ok(Stretch { times: times.map_err(raw_failed)?, sent_bytes })
            }
            Self::Grpc(runtime, connection) => {
                let before = grpc::sent_bytes(connection);
                let times = match load {
                    Load::Whole(gradient) => {
                        runtime.block_on(grpc::steps(connection, gradient, theta, n))?
                    }
                    Load::Rows(batches) => {
                        runtime.block_on(grpc::steps_of_rows(connection, batches, theta, n))?
                    }
                };
                Ok(Stretch { times, sent_bytes: grpc::sent_bytes(connection) - before })
            }
        }
    }

    /// Bare sockets hold nothing back.
    fn settle(&mut self, theta: &mut [T]) -> Result<(), ExitError> {
        match self {
            Self::Raw(_) => Ok(()),
            Self::Grpc(runtime, connection) => runtime.block_on(grpc::settle(connection, theta)),
        }
    }
}

fn raw_failed(cause: io::Error) -> ExitError {
    ExitError::new(Exit::Io, "the bare-socket worker failed").because(cause)
}

/// Follows orders until they end.
fn obey<T: Element>(
    args: &WorkerArgs,
    orders: &mpsc::Receiver<Order>,
    mut link: Link<T>,
) -> Result<(), ExitError> {
    let mut load = Load::new(args.job, args.rank);
    let mut theta = vec![T::ZERO; args.job.n_of_step()];
    let mut last = Stretch::default();
    let report = |report: &Report| {
        say(&mut io::stdout(), report)
            .map_err(|e| ExitError::new(Exit::Io, "cannot report to the bench").because(e))
    };
    report(&Report::Connected)?;
    for order in orders {
        match order {
            Order::Steps { steps } => {
                last = link.steps(&mut load, &mut theta, steps)?;
                report(&Report::Done)?;
            }
            Order::Settle => {
                link.settle(&mut theta)?;
                report(&Report::Done)?;
            }
            Order::Times => {
                let nanos = last.times.iter().map(|t| t.as_nanos() as u64).collect();
                report(&Report::Times { nanos, sent_bytes: Some(last.sent_bytes) })?;
            }
            Order::Check { pushes } => {
                report(&match load.first_difference(args.job, &theta, &pushes) {
                    None => Report::Checked,
                    Some((key, expected, got)) => {
                        let (expected, got) = (expected.to_f64(), got.to_f64());
                        Report::Different { key, expected, got }
                    }
                })?;
            }
        }
    }
    Ok(())
}

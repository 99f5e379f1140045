//! The bare-socket worker: pushes and pulls, and takes the time of each step.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ps_common::Element;

use super::super::socket;
use super::CHUNK_BYTES;

/// Connects and says which rank this is.
pub(in crate::bench) fn connect(
    address: SocketAddr,
    rank: u32,
    congestion: Option<&str>,
) -> io::Result<TcpStream> {
    let mut stream = socket::connect(address, congestion)?;
    stream.write_all(&rank.to_le_bytes())?;
    Ok(stream)
}

/// Pushes `gradient` and receives `theta`, `steps` times, one after the other.
///
/// A step lasts from its first byte out to its last byte in.
pub(in crate::bench) fn steps<T: Element>(
    stream: &TcpStream,
    gradient: &[T],
    theta: &mut [T],
    steps: u64,
) -> io::Result<Vec<Duration>> {
    assert_eq!(gradient.len(), theta.len());
    let gradient: &[u8] = bytemuck::cast_slice(gradient);
    let theta: &mut [u8] = bytemuck::cast_slice_mut(theta);
    if gradient.len() <= CHUNK_BYTES {
        steps_in_turn(stream, gradient, theta, steps)
    } else {
        steps_full_duplex(stream, gradient, theta, steps)
    }
}

/// One chunk: the server answers nothing before it has everything, so one thread is enough.
fn steps_in_turn(
    mut stream: &TcpStream,
    gradient: &[u8],
    theta: &mut [u8],
    steps: u64,
) -> io::Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(steps as usize);
    for _ in 0..steps {
        let began = Instant::now();
        stream.write_all(gradient)?;
        stream.read_exact(theta)?;
        times.push(began.elapsed());
    }
    Ok(times)
}

/// Several chunks: answers come while the push is still going out, and have to be taken, or both
/// ends would wait for room in the other's buffers.
fn steps_full_duplex(
    mut stream: &TcpStream,
    gradient: &[u8],
    theta: &mut [u8],
    steps: u64,
) -> io::Result<Vec<Duration>> {
    let (received, is_received) = mpsc::channel();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || -> io::Result<()> {
            for _ in 0..steps {
                let mut stream = stream;
                stream.read_exact(theta)?;
                // The other end is gone only when the push failed, and then says so itself.
                let _ = received.send(Instant::now());
            }
            Ok(())
        });
        let mut times = Vec::with_capacity(steps as usize);
        for _ in 0..steps {
            let began = Instant::now();
            if let Err(e) = stream.write_all(gradient) {
                // Unblocks the receiver.
                let _ = stream.shutdown(std::net::Shutdown::Both);
                return Err(e);
            }
            match is_received.recv() {
                Ok(ended) => times.push(ended - began),
                Err(_) => break,
            }
        }
        receiver.join().expect("the receiver does not panic")?;
        Ok(times)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::job::Job;
    use crate::bench::raw::server;
    use crate::bench::work;
    use ps_common::Dtype;
    use ps_common::codec::Codec;
    use ps_common::job::Mode;

    fn theta_after<T: Element>(job: Job, pushes: &[u64]) -> (Vec<T>, Vec<Vec<T>>) {
        let listener = socket::listen(None).expect("a port");
        let address = listener.local_addr().expect("bound");
        std::thread::scope(|scope| {
            let server = scope.spawn(move || server::serve::<T>(&listener, &job).expect("served"));
            let workers: Vec<_> = (0..job.workers)
                .map(|rank| {
                    scope.spawn(move || {
                        let gradient = work::gradient::<T>(job.n, rank, job.wire);
                        let mut theta = vec![T::ZERO; job.n];
                        let stream = connect(address, rank, None).expect("connected");
                        let n_steps = pushes[rank as usize];
                        let times = steps(&stream, &gradient, &mut theta, n_steps).expect("steps");
                        assert_eq!(times.len() as u64, n_steps);
                        theta
                    })
                })
                .collect();
            let pulled = workers.into_iter().map(|w| w.join().expect("no panic")).collect();
            (server.join().expect("no panic"), pulled)
        })
    }

    fn ten(mode: Mode) -> Job {
        Job { n: 10, workers: 2, mode, dtype: Dtype::F32, wire: Codec::PLAIN, sparse: None }
    }

    #[test]
    fn every_push_counts_once_in_both_modes_and_dtypes() {
        // Below a chunk, exactly one, one element more, and several with a rest.
        for n in [1, 1000, CHUNK_BYTES / 4, CHUNK_BYTES / 4 + 1, 5 * CHUNK_BYTES / 4 + 7] {
            for mode in [Mode::Async, Mode::Sync] {
                let pushes = [4, if mode == Mode::Sync { 4 } else { 9 }, 4];
                let wire = Codec::PLAIN;
                let job = Job { n, workers: 3, mode, dtype: Dtype::F32, wire, sparse: None };
                let (theta, pulled) = theta_after::<f32>(job, &pushes);
                assert_eq!(work::first_difference(&theta, &pushes, wire), None, "{n} {mode}");
                if mode == Mode::Sync {
                    assert!(pulled.iter().all(|p| *p == theta), "{n}: all pull the last round's");
                }
                let job = Job { dtype: Dtype::F64, ..job };
                let (theta, _) = theta_after::<f64>(job, &pushes);
                assert_eq!(work::first_difference(&theta, &pushes, wire), None, "{n} {mode} f64");
            }
        }
    }

    #[test]
    fn a_worker_that_leaves_inside_a_round_ends_the_run_with_an_error() {
        let job = ten(Mode::Sync);
        let listener = socket::listen(None).expect("a port");
        let address = listener.local_addr().expect("bound");
        std::thread::scope(|scope| {
            let server = scope.spawn(move || server::serve::<f32>(&listener, &job));
            let stays = connect(address, 0, None).expect("connected");
            drop(connect(address, 1, None).expect("connected"));
            let mut theta = [0f32; 10];
            assert!(steps(&stays, &[1f32; 10], &mut theta, 1).is_err());
            assert!(server.join().expect("no panic").is_err());
        });
    }

    #[test]
    fn a_rank_that_is_too_large_or_taken_is_refused() {
        for ranks in [[0, 2], [1, 1]] {
            let job = ten(Mode::Async);
            let listener = socket::listen(None).expect("a port");
            let address = listener.local_addr().expect("bound");
            let _workers = ranks.map(|rank| connect(address, rank, None).expect("connected"));
            let error = server::serve::<f32>(&listener, &job).expect_err("a bad rank");
            assert!(error.to_string().contains(&format!("rank {}", ranks[1])), "{error}");
        }
    }
}

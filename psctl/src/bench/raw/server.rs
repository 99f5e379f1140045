//! The bare-socket server: one blocking thread per connection.
//!
//! Asynchronous: one lock per chunk, held while the chunk is updated and copied, never while
//! bytes move over a socket. Synchronous: a barrier per chunk, which for an elementwise update
//! equals one over the whole of theta; the last to arrive sums in the order of ranks.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};

use ps_common::Element;
use ps_common::job::Mode;

use super::super::job::Job;
use super::super::work::LEARNING_RATE;
use super::{chunk_len, rows};

/// Serves `job.workers` connections until all have left, and returns theta.
///
/// # Errors
/// The first connection that broke inside a step, or whose rank is not below `job.workers` or
/// taken.
pub(in crate::bench) fn serve<T: Element>(listener: &TcpListener, job: &Job) -> io::Result<Vec<T>> {
    let mut connections: Vec<Option<TcpStream>> = (0..job.workers).map(|_| None).collect();
    for _ in 0..job.workers {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut rank = [0; 4];
        stream.read_exact(&mut rank)?;
        let rank = u32::from_le_bytes(rank);
        match connections.get_mut(rank as usize) {
            Some(place @ None) => *place = Some(stream),
            _ => {
                return Err(bad_data(format!("rank {rank} is taken or not below {}", job.workers)));
            }
        }
    }
    let connections = connections.into_iter().flatten().collect();
    match job.mode {
        Mode::Async => match job.sparse {
            None => serve_async(connections, job.n),
            Some(sparse) => rows::serve(connections, job.n, sparse),
        },
        Mode::Sync => serve_sync(connections, job.n),
        mode @ (Mode::Ssp | Mode::Hogwild) => {
            Err(bad_data(format!("the bare-socket program has no {mode}")))
        }
    }
}

/// A chunk and its lock on cache lines of their own.
#[repr(align(128))]
struct Chunk<L>(L);

fn chunks<T: Element, L>(n: usize, lock: impl Fn(Vec<T>) -> L) -> Vec<Chunk<L>> {
    let len = chunk_len(size_of::<T>());
    (0..n.div_ceil(len)).map(|c| Chunk(lock(vec![T::ZERO; len.min(n - c * len)]))).collect()
}

/// Runs `serve_one` for each connection on a thread of its own and returns the first error.
pub(super) fn serve_each(
    connections: Vec<TcpStream>,
    serve_one: impl Fn(usize, TcpStream) -> io::Result<()> + Sync,
) -> io::Result<()> {
    std::thread::scope(|scope| {
        let serve_one = &serve_one;
        let threads: Vec<_> = connections
            .into_iter()
            .enumerate()
            .map(|(rank, stream)| scope.spawn(move || serve_one(rank, stream)))
            .collect();
        threads.into_iter().try_for_each(|t| t.join().expect("connection threads do not panic"))
    })
}

fn serve_async<T: Element>(connections: Vec<TcpStream>, n: usize) -> io::Result<Vec<T>> {
    let theta = chunks::<T, _>(n, Mutex::new);
    let learning_rate = T::from_f64(LEARNING_RATE);
    serve_each(connections, |_, mut stream| {
        let mut buffer = vec![T::ZERO; chunk_len(size_of::<T>()).min(n)];
        loop {
            for (c, Chunk(chunk)) in theta.iter().enumerate() {
                let len = lock(chunk).len();
                let piece = &mut buffer[..len];
                if !read_or_end(&mut stream, piece)? {
                    return if c == 0 { Ok(()) } else { Err(cut_off()) };
                }
                apply_and_copy(&mut lock(chunk), piece, learning_rate);
                stream.write_all(bytemuck::cast_slice(piece))?;
            }
        }
    })?;
    let whole = theta.into_iter().map(|Chunk(c)| c.into_inner());
    Ok(whole.flat_map(|c| c.unwrap_or_else(PoisonError::into_inner)).collect())
}

/// theta -= lr * g, and g becomes the new theta, in one pass.
fn apply_and_copy<T: Element>(theta: &mut [T], gradient: &mut [T], learning_rate: T) {
    assert_eq!(theta.len(), gradient.len());
    for (t, g) in theta.iter_mut().zip(gradient) {
        *t -= learning_rate * *g;
        *g = *t;
    }
}

/// Where the threads of a synchronous run meet, once per chunk.
struct Barrier {
    gate: Mutex<Gate>,
    opened: Condvar,
    n_workers: usize,
}

#[derive(Default)]
struct Gate {
    arrived: usize,
    generation: u64,
    left: bool,
}

impl Barrier {
    /// Waits for all; the last to arrive runs `apply` first.
    fn meet(&self, apply: impl FnOnce()) -> io::Result<()> {
        let mut gate = lock(&self.gate);
        gate.arrived += 1;
        if gate.arrived == self.n_workers {
            apply();
            gate.arrived = 0;
            gate.generation += 1;
            self.opened.notify_all();
            return Ok(());
        }
        let generation = gate.generation;
        while gate.generation == generation {
            if gate.left {
                return Err(bad_data("a worker left inside a round".to_owned()));
            }
            gate = self.opened.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn leave(&self) {
        lock(&self.gate).left = true;
        self.opened.notify_all();
    }
}

fn serve_sync<T: Element>(connections: Vec<TcpStream>, n: usize) -> io::Result<Vec<T>> {
    let theta = chunks::<T, _>(n, RwLock::new);
    let len = chunk_len(size_of::<T>()).min(n);
    let gradients: Vec<_> =
        connections.iter().map(|_| Chunk(Mutex::new(vec![T::ZERO; len]))).collect();
    let barrier =
        Barrier { gate: Mutex::default(), opened: Condvar::new(), n_workers: connections.len() };
    serve_each(connections, |rank, mut stream| {
        let result = rounds(&mut stream, rank, &theta, &gradients, &barrier);
        barrier.leave();
        result
    })?;
    let whole = theta.into_iter().map(|Chunk(c)| c.into_inner());
    Ok(whole.flat_map(|c| c.unwrap_or_else(PoisonError::into_inner)).collect())
}

fn rounds<T: Element>(
    stream: &mut TcpStream,
    rank: usize,
    theta: &[Chunk<RwLock<Vec<T>>>],
    gradients: &[Chunk<Mutex<Vec<T>>>],
    barrier: &Barrier,
) -> io::Result<()> {
    let learning_rate = T::from_f64(LEARNING_RATE);
    loop {
        for (c, Chunk(chunk)) in theta.iter().enumerate() {
            let len = chunk.read().unwrap_or_else(PoisonError::into_inner).len();
            if !read_or_end(stream, &mut lock(&gradients[rank].0)[..len])? {
                return if c == 0 { Ok(()) } else { Err(cut_off()) };
            }
            barrier.meet(|| {
                let mut theta = chunk.write().unwrap_or_else(PoisonError::into_inner);
                sum_and_apply(&mut theta, gradients, learning_rate);
            })?;
            // The next update of this chunk needs the next push of every worker, and none of them
            // pushes before it has all of theta: this lock keeps nobody waiting.
            let theta = chunk.read().unwrap_or_else(PoisonError::into_inner);
            stream.write_all(bytemuck::cast_slice(&theta))?;
        }
    }
}

/// theta -= lr * (g_0 + g_1 + ...), summed in the order of ranks.
fn sum_and_apply<T: Element>(
    theta: &mut [T],
    gradients: &[Chunk<Mutex<Vec<T>>>],
    learning_rate: T,
) {
    let (Chunk(first), rest) = gradients.split_first().expect("at least one worker");
    let mut sum = lock(first);
    for Chunk(gradient) in rest {
        for (s, g) in sum[..theta.len()].iter_mut().zip(&*lock(gradient)) {
            *s += *g;
        }
    }
    for (t, s) in theta.iter_mut().zip(&*sum) {
        *t -= learning_rate * *s;
    }
}

/// Fills `values`; `false` where the peer closed before the first byte.
pub(super) fn read_or_end<T: bytemuck::Pod>(
    stream: &mut TcpStream,
    values: &mut [T],
) -> io::Result<bool> {
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
    let mut filled = 0;
    while filled < bytes.len() {
        match stream.read(&mut bytes[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(cut_off()),
            Ok(read) => filled += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "a worker left inside a push")
}

fn bad_data(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

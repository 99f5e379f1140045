//! Rows over bare sockets: both sides.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ps_common::Element;

use super::super::sparse::{Batches, Sparse};
use super::super::work::LEARNING_RATE;
use super::server::{lock, read_or_end, serve_each};

/// Pushes rows and receives those of the next step, `steps` times, one after the other.
pub(in crate::bench) fn steps<T: Element>(
    mut stream: &TcpStream,
    batches: &mut Batches<T>,
    theta: &mut [T],
    steps: u64,
) -> io::Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(steps as usize);
    for _ in 0..steps {
        let (rows, values, asked) = batches.next();
        let began = Instant::now();
        stream.write_all(bytemuck::cast_slice(rows[0].numbers()))?;
        stream.write_all(bytemuck::cast_slice(asked[0].numbers()))?;
        stream.write_all(bytemuck::cast_slice(&values[..]))?;
        stream.read_exact(bytemuck::cast_slice_mut(theta))?;
        times.push(began.elapsed());
    }
    Ok(times)
}

/// One lock on all of theta, held while the rows of a step are moved and copied: a batch is short, and more locks
/// cost more than they save. Returns theta when all have left.
pub(super) fn serve<T: Element>(
    connections: Vec<TcpStream>,
    n: usize,
    Sparse { rows, width }: Sparse,
) -> io::Result<Vec<T>> {
    let theta = Mutex::new(vec![T::ZERO; n]);
    let learning_rate = T::from_f64(LEARNING_RATE);
    serve_each(connections, |_, mut stream| {
        let (mut pushed, mut asked) = (vec![0u32; rows], vec![0u32; rows]);
        let mut values = vec![T::ZERO; rows * width];
        loop {
            if !read_or_end(&mut stream, &mut pushed)? {
                return Ok(());
            }
            stream.read_exact(bytemuck::cast_slice_mut(&mut asked))?;
            stream.read_exact(bytemuck::cast_slice_mut(&mut values))?;
            {
                let mut theta = lock(&theta);
                for (&row, gradient) in pushed.iter().zip(values.chunks_exact(width)) {
                    let row = &mut theta[row as usize * width..][..width];
                    row.iter_mut().zip(gradient).for_each(|(t, g)| *t -= learning_rate * *g);
                }
                for (&row, copy) in asked.iter().zip(values.chunks_exact_mut(width)) {
                    copy.copy_from_slice(&theta[row as usize * width..][..width]);
                }
            }
            stream.write_all(bytemuck::cast_slice(&values))?;
        }
    })?;
    Ok(theta.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

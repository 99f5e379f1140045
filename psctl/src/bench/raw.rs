//! The yardstick: a parameter server over bare blocking sockets, without gRPC.
//!
//! It is the fastest program known to us that does the work: theta -= lr * g for every push, theta
//! back for every pull. It promises less than the real server: it neither validates gradients nor
//! holds a push back until all of it is there, and it frames nothing, since both ends know N. The
//! figures of the real server are thus compared with something that has less to do, never more.
//!
//! On the wire: the worker's rank as four little-endian bytes, then for each step N elements in
//! and N elements out, answered piece by piece. With rows: the numbers of those that are pushed, of those that
//! are asked for, the elements of the former in, and those of the latter out.

pub(super) mod rows;
pub(super) mod server;
pub(super) mod worker;

/// Bytes that are read, applied and answered at a time: what stays in a core's cache.
const CHUNK_BYTES: usize = 256 * 1024;

/// Elements of a chunk.
const fn chunk_len(element_bytes: usize) -> usize {
    CHUNK_BYTES / element_bytes
}

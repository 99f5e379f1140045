//! Work on many elements, shared by threads: how many are worth it, how they are started and joined.
//!
//! Knows nothing of theta: what is computed, and whether cutting it changes a bit, is the caller's.

use parking_lot::Mutex;

/// Threads beyond these would wait for memory.
const N_MAX: usize = 8;

/// Elements that a thread has to have for itself, or starting it costs more than it saves.
const N_ELEMENTS_MIN: usize = 1 << 20;

/// How many threads may share a piece of work.
#[derive(Debug, Clone, Copy)]
pub struct Threads {
    n_max: usize,
    n_elements_min: usize,
}

impl Threads {
    /// As many as there are cores, at most 8, and a million elements or more for each.
    pub fn of_this_machine() -> Self {
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { n_max: n_cores.min(N_MAX), n_elements_min: N_ELEMENTS_MIN }
    }

    /// `n`, however little there is to do.
    pub fn exactly(n: usize) -> Self {
        Self { n_max: n, n_elements_min: 1 }
    }

    /// Does `work` on each of `parts`, which have `n_elements` together; gives the results in their
    /// order. A thread takes the next part when it is done with one; the caller's is one of them, and does
    /// the work of those that the system refuses to start.
    ///
    /// # Errors
    /// The first one in the order of parts. What comes behind it may be left undone.
    ///
    /// # Panics
    /// If `work` does.
    pub fn share<P: Send, R: Send, E: Send>(
        self,
        n_elements: usize,
        parts: Vec<P>,
        work: impl Fn(P) -> Result<R, E> + Sync,
    ) -> Result<Vec<R>, E> {
        let n_threads = self.for_elements(n_elements).min(parts.len());
        let done = Mutex::new(Vec::with_capacity(parts.len()));
        let queue = Mutex::new(parts.into_iter().enumerate());
        let next = || queue.lock().next();
        let help = || {
            while let Some((index, part)) = next() {
                let result = work(part);
                if result.is_err() {
                    queue.lock().by_ref().for_each(drop);
                }
                done.lock().push((index, result));
            }
        };
        std::thread::scope(|scope| {
            for i in 1..n_threads {
                let thread = std::thread::Builder::new().name(format!("update-{i}"));
                if thread.spawn_scoped(scope, help).is_err() {
                    break;
                }
            }
            help();
        });
        let mut done = done.into_inner();
        done.sort_unstable_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, result)| result).collect()
    }

    fn for_elements(self, n_elements: usize) -> usize {
        (n_elements / self.n_elements_min).clamp(1, self.n_max.max(1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn results_come_in_the_order_of_parts() {
        for n_threads in [1, 2, 3, 7] {
            let parts: Vec<u32> = (0..100).collect();
            let share = Threads::exactly(n_threads).share(100, parts, |part| Ok::<_, ()>(2 * part));
            assert_eq!(share, Ok((0..100).map(|part| 2 * part).collect()));
        }
        assert_eq!(Threads::exactly(3).share(0, Vec::new(), Ok::<u32, ()>), Ok(Vec::new()));
    }

    #[test]
    fn there_are_as_many_threads_as_it_says_and_the_caller_is_one() {
        // Each part waits for the others: with fewer threads nobody would get past it.
        let barrier = Barrier::new(3);
        let ids = Threads::exactly(3).share(3, vec![(); 3], |()| {
            barrier.wait();
            Ok::<_, ()>(std::thread::current().id())
        });
        let ids: HashSet<_> = ids.expect("no error").into_iter().collect();
        assert!(ids.len() == 3 && ids.contains(&std::thread::current().id()));
    }

    #[test]
    fn the_first_error_counts_whoever_sees_it() {
        let first = |n_threads, begun: &Mutex<Vec<u32>>| {
            Threads::exactly(n_threads).share(1000, (0..1000).collect(), |part| {
                begun.lock().push(part);
                if part % 10 == 7 { Err(part) } else { Ok(()) }
            })
        };
        for n_threads in [1, 2, 3, 7] {
            assert_eq!(first(n_threads, &Mutex::default()), Err(7), "{n_threads} threads");
        }
        let begun = Mutex::default();
        assert_eq!(first(1, &begun), Err(7));
        assert_eq!(begun.into_inner(), (0..=7).collect::<Vec<_>>(), "nothing behind it");
    }

    #[test]
    fn few_elements_are_not_worth_a_thread() {
        let threads = Threads { n_max: 4, n_elements_min: 1000 };
        let wanted = [(0, 1), (999, 1), (1999, 1), (2000, 2), (4000, 4), (1_000_000, 4)];
        for (n_elements, n_threads) in wanted {
            assert_eq!(threads.for_elements(n_elements), n_threads, "{n_elements}");
        }
        assert_eq!(Threads::exactly(0).for_elements(5), 1);
        assert!((1..=8).contains(&Threads::of_this_machine().n_max));
    }
}

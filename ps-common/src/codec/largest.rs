//! Which elements of a gradient are the largest.
//!
//! A sample of the gradient says near enough above what the wanted ones must be. One pass finds those,
//! a few more than wanted, and the exact threshold is looked for among them alone. A sample that says
//! too much leaves too few, and then all elements are looked at: the answer never depends on it.

use super::blocks::{add, sum};
use crate::dtype::Element;
use crate::{Kernel, widest};

/// Numbers that are added up before they are looked at: 4 KiB of f32, still in the first cache.
const BLOCK: usize = 1024;

/// Numbers that are passed over at once where none of them is large.
const ROW: usize = 32;

/// Numbers of a sample. Four times as many have to be there for one to be worth it.
const SAMPLE: usize = 8192;

/// The largest elements of the newest gradient. Its memory is used again for the next.
#[derive(Debug, Clone)]
pub(super) struct Largest<T> {
    /// Their places in order: none is 0. Those that are not finite are among them.
    places: Vec<usize>,
    magnitudes: Vec<T>,
}

impl<T: Element> Largest<T> {
    pub(super) fn new() -> Self {
        Self { places: Vec::new(), magnitudes: Vec::new() }
    }

    /// Adds `gradient` to `residual`, and returns the smallest magnitude of the `ratio` largest sums,
    /// and the places of all that have it at least, in order. What is 0 is left out there, what is not
    /// finite is not.
    pub(super) fn of_sum(
        &mut self,
        residual: &mut [T],
        gradient: &[T],
        ratio: f64,
    ) -> (T, &[usize]) {
        let n = gradient.len();
        let k = ((n as f64 * ratio).ceil() as usize).clamp(1, n.max(1));
        let bound = self.bound(residual, gradient, k);
        self.places.clear();
        widest(AddAndCollect { residual, gradient, bound, places: &mut self.places });
        let threshold = self.threshold(residual, k, bound);
        (threshold, &self.places)
    }

    /// The `k`-th largest magnitude. Of the places of all that have `bound` at least, those remain that
    /// have this one.
    fn threshold(&mut self, values: &[T], k: usize, bound: T) -> T {
        self.magnitudes.clear();
        self.magnitudes.extend(self.places.iter().map(|&place| values[place].abs()));
        let has_order = self.magnitudes.iter().all(|x| x.partial_cmp(x).is_some());
        let has_enough = k <= self.places.len();
        if has_order && !has_enough && bound == T::ZERO {
            // The others are 0.
            return T::ZERO;
        }
        if has_order && has_enough {
            let threshold = select(&mut self.magnitudes, k);
            let is_small = |&place: &usize| values[place].abs() < threshold;
            self.places.retain(|place| !is_small(place));
            return threshold;
        }
        // A NaN has no place in an order: what is chosen beside one is as good as any.
        self.magnitudes.clear();
        self.magnitudes.extend(values.iter().map(|x| x.abs()));
        let threshold = select(&mut self.magnitudes, k);
        self.places.clear();
        collect(values, 0, threshold, &mut self.places);
        threshold
    }

    /// A magnitude that is likely below the `k`-th largest of the sums, and not far.
    fn bound(&mut self, residual: &[T], gradient: &[T], k: usize) -> T {
        // What the sample has of the k largest, and four times what that may be off by.
        let expected = (k as f64) * SAMPLE as f64 / gradient.len() as f64;
        let rank = (expected + 4.0 * expected.sqrt() + 4.0) as usize;
        if gradient.len() < 4 * SAMPLE || rank > SAMPLE {
            return T::ZERO;
        }
        self.magnitudes.clear();
        let sums = sample(gradient.len()).map(|place| sum(residual[place], gradient[place]));
        self.magnitudes.extend(sums.map(|sum| sum.abs()));
        select(&mut self.magnitudes, rank)
    }
}

/// Places of a sample of `n` elements: one in each stretch, each time at another place of it, so that
/// no pattern of a gradient is in step with them.
pub(super) fn sample(n: usize) -> impl Iterator<Item = usize> {
    let stretch = n / SAMPLE;
    (0..SAMPLE).map(move |i| i * stretch + (i as u32).wrapping_mul(0x9e37_79b9) as usize % stretch)
}

/// The `k`-th largest, from 1.
fn select<T: Element>(magnitudes: &mut [T], k: usize) -> T {
    let descending = |a: &T, b: &T| b.partial_cmp(a).unwrap_or(std::cmp::Ordering::Equal);
    *magnitudes.select_nth_unstable_by(k - 1, descending).1
}

struct AddAndCollect<'a, T> {
    residual: &'a mut [T],
    gradient: &'a [T],
    bound: T,
    places: &'a mut Vec<usize>,
}

impl<T: Element> Kernel for AddAndCollect<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let blocks = self.residual.chunks_mut(BLOCK).zip(self.gradient.chunks(BLOCK));
        for ((residual, gradient), begin) in blocks.zip((0..).step_by(BLOCK)) {
            add(residual, gradient);
            collect(residual, begin, self.bound, self.places);
        }
    }
}

/// Appends the places of the `values` that are not 0 and not below `bound`, counted from `begin`.
#[inline(always)]
fn collect<T: Element>(values: &[T], begin: usize, bound: T, places: &mut Vec<usize>) {
    let is_small = |x: &T| x.abs() < bound;
    let is_large = |x: &T| !is_small(x) & (*x != T::ZERO);
    for (row, begin) in values.chunks(ROW).zip((begin..).step_by(ROW)) {
        if !row.iter().fold(false, |any, x| any | is_large(x)) {
            continue;
        }
        let (mut found, mut n) = ([0; ROW], 0);
        for (x, place) in row.iter().zip(begin..) {
            // Written over unless it counts: which ones do is not to be guessed.
            found[n % ROW] = place;
            n += usize::from(is_large(x));
        }
        places.extend_from_slice(&found[..n]);
    }
}

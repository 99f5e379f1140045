//! The second eigenvalue of an averaging matrix, by Lanczos' method.
//!
//! Knows the matrix as a function only.

use ps_worker::data::{Purpose, permutation};

/// Steps of the method at most. Up to one peer more the result is that of the whole spectrum, to
/// 1e-12.
pub const STEPS_MAX: usize = 512;
/// With more peers the eigenvalue may be found too small, never too large: by less than this for
/// paths and rings of up to 4000, the graphs that make the method slowest.
pub const TOLERANCE_BEYOND: f64 = 1e-5;
/// A step that adds less than this has found all directions that the start has a part in.
const NOTHING_NEW: f64 = 1e-13;

/// The largest magnitude among the eigenvalues of a symmetric, doubly stochastic matrix, that of
/// the constant vector left out; 0 for a single peer. `multiply` writes the matrix times its first
/// argument into its second.
///
/// Golub and Van Loan 2013, "Matrix Computations": Lanczos' tridiagonalisation (section 10.1), every
/// new direction made orthogonal to all before it, twice; then bisection by Sturm's counts
/// (section 8.4).
pub fn magnitude_besides_the_mean(n: usize, multiply: impl Fn(&[f64], &mut [f64])) -> f64 {
    if n < 2 {
        return 0.0;
    }
    let mut direction = start(n);
    let mut basis: Vec<Vec<f64>> = Vec::new();
    let (mut diagonal, mut beside) = (Vec::new(), Vec::new());
    loop {
        let mut next = vec![0.0; n];
        multiply(&direction, &mut next);
        diagonal.push(dot(&direction, &next));
        basis.push(direction);
        for _ in 0..2 {
            remove_mean(&mut next);
            for earlier in &basis {
                let part = dot(earlier, &next);
                next.iter_mut().zip(earlier).for_each(|(x, e)| *x -= part * e);
            }
        }
        let length = dot(&next, &next).sqrt();
        if length < NOTHING_NEW || basis.len() == STEPS_MAX.min(n - 1) {
            break;
        }
        next.iter_mut().for_each(|x| *x /= length);
        beside.push(length);
        direction = next;
    }
    let n_values = diagonal.len();
    let largest = bisect(|x| count_below(&diagonal, &beside, x) == n_values);
    let smallest = bisect(|x| count_below(&diagonal, &beside, x) > 0);
    largest.abs().max(smallest.abs())
}

/// A vector of length 1 without a mean that has a part in every eigenspace: square roots in random
/// order, which no small whole coefficients cancel.
fn start(n: usize) -> Vec<f64> {
    let n_peers = u32::try_from(n).expect("as many as ranks");
    let order = permutation(n_peers, 0, Purpose::Deal);
    let mut x: Vec<f64> = order.into_iter().map(|i| f64::from(i + 1).sqrt()).collect();
    remove_mean(&mut x);
    let length = dot(&x, &x).sqrt();
    x.iter_mut().for_each(|x| *x /= length);
    x
}

fn remove_mean(x: &mut [f64]) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    x.iter_mut().for_each(|x| *x -= mean);
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Where `is_above` turns true, between -1 and 1, where all eigenvalues of such a matrix are.
fn bisect(is_above: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (-1.0 - 1e-9, 1.0 + 1e-9);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if is_above(middle) { high = middle } else { low = middle }
    }
    0.5 * (low + high)
}

/// Eigenvalues below `x` of the symmetric tridiagonal matrix: the negative pivots of its LDL'.
fn count_below(diagonal: &[f64], beside: &[f64], x: f64) -> usize {
    let mut pivot = 1.0f64;
    let mut count = 0;
    for (i, d) in diagonal.iter().enumerate() {
        let coupling = if i == 0 { 0.0 } else { beside[i - 1] * beside[i - 1] };
        pivot = d - x - coupling / pivot;
        if pivot == 0.0 {
            pivot = f64::MIN_POSITIVE.sqrt();
        }
        count += usize::from(pivot < 0.0);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_matrix() {
        // Symmetric circulant with 0.1 on the diagonal and 0.45 beside it, 4 peers: 1, 0.1, 0.1,
        // -0.8. The negative one is the largest in magnitude.
        let multiply = |x: &[f64], out: &mut [f64]| {
            for i in 0..4 {
                out[i] = 0.1 * x[i] + 0.45 * (x[(i + 1) % 4] + x[(i + 3) % 4]);
            }
        };
        let found = magnitude_besides_the_mean(4, multiply);
        assert!((found - 0.8).abs() < 1e-13, "{found}");
    }

    #[test]
    fn counts_of_a_tridiagonal_matrix() {
        // Eigenvalues 1 - sqrt 2, 1, 1 + sqrt 2.
        let (diagonal, beside) = ([1.0; 3], [1.0; 2]);
        let counts = [-0.5, -0.4, 0.99, 1.01, 2.41, 2.42];
        let counts = counts.map(|x| count_below(&diagonal, &beside, x));
        assert_eq!(counts, [0, 1, 1, 2, 2, 3]);
    }
}

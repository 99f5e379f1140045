//! Clipping of a gradient by its L2 norm.

use ps_common::Element;

/// Partial sums side by side: the order of additions is fixed, and the loop vectorises.
const LANES: usize = 8;

/// A scale that keeps squares of the largest numbers of f64 finite: 2^-600.
const TINY: f64 = f64::from_bits((1023 - 600) << 52);

/// The L2 norm of a gradient, or of a part of it, that comes in blocks, in f64; the order of blocks
/// and parts, and nothing else, fixes its bits.
///
/// The squares are summed twice, once scaled down, so that no finite gradient has an infinite norm.
#[derive(Debug, Clone, Copy, Default)]
pub struct Norm {
    squares: f64,
    tiny_squares: f64,
}

impl Norm {
    /// Takes in the next numbers.
    pub fn add<T: Element>(&mut self, gradient: &[T]) {
        let squares = sum_of_squares(gradient, 1.0);
        self.squares += squares;
        // Where the plain sum holds, the scaled one is never asked.
        let scaled = || sum_of_squares(gradient, TINY);
        self.tiny_squares += if squares.is_finite() { squares * TINY * TINY } else { scaled() };
    }

    /// Takes in a gradient's next part.
    pub fn append(&mut self, part: &Self) {
        self.squares += part.squares;
        self.tiny_squares += part.tiny_squares;
    }

    /// The sum of squares, which may be infinite, and that of squares scaled by 2^-1200.
    pub fn sums(&self) -> (f64, f64) {
        (self.squares, self.tiny_squares)
    }

    /// Of what [`Norm::sums`] gave.
    pub fn of_sums((squares, tiny_squares): (f64, f64)) -> Self {
        Self { squares, tiny_squares }
    }

    /// What the gradient has to be multiplied by to have a norm of `norm_max`; `None` where it is
    /// not longer than that.
    pub fn factor(&self, norm_max: f64) -> Option<f64> {
        let (norm, norm_max) = if self.squares.is_finite() {
            (self.squares.sqrt(), norm_max)
        } else {
            (self.tiny_squares.sqrt(), norm_max * TINY)
        };
        (norm > norm_max).then(|| norm_max / norm)
    }
}

fn sum_of_squares<T: Element>(x: &[T], scale: f64) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let whole = x.chunks_exact(LANES);
    let rest = whole.remainder();
    for block in whole {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            let x = x.to_f64() * scale;
            *lane += x * x;
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        let x = x.to_f64() * scale;
        *lane += x * x;
    }
    lanes.iter().sum()
}

/// `x *= factor`, the product taken in f64: a factor that f32 does not have is no loss.
pub fn scale<T: Element>(x: &mut [T], factor: f64) {
    for x in x {
        *x = T::from_f64(x.to_f64() * factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn norm<T: Element>(x: &[T]) -> Norm {
        let mut norm = Norm::default();
        x.chunks(100).for_each(|block| norm.add(block));
        norm
    }

    #[test]
    fn longer_ones_get_the_norm_and_shorter_ones_stay() {
        let gradient: Vec<f32> = (0..1001).map(|i| (i as f32 * 0.7).sin()).collect();
        let plain = gradient.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        assert_eq!(norm(&gradient).factor(plain * 1.001), None);
        let factor = norm(&gradient).factor(plain / 4.0).expect("longer");
        assert!((factor - 0.25).abs() < 1e-12, "{factor}");
        let mut scaled = gradient.clone();
        scale(&mut scaled, factor);
        assert!(scaled.iter().zip(&gradient).all(|(&a, &b)| (a - 0.25 * b).abs() <= 1e-7));
    }

    #[test]
    fn the_largest_finite_gradient_has_a_norm() {
        let factor = norm(&[f64::MAX, 0.0, f64::MAX]).factor(1.0).expect("longer");
        let mut gradient = [f64::MAX, 1.0];
        scale(&mut gradient, factor);
        assert!((gradient[0] - 0.5f64.sqrt()).abs() < 1e-9, "{gradient:?}");
        let mut gradient = [f32::MAX];
        let factor = norm(&gradient).factor(0.5).expect("longer");
        scale(&mut gradient, factor);
        assert_eq!(gradient, [0.5]);
    }
}

//! Is every number finite, or no larger than a limit? Looked at many at once.

use crate::dtype::Element;
use crate::widest;

/// Elements looked at between two decisions: the inner loop has no branch and vectorises.
const BLOCK: usize = 256;

/// Index of the first NaN or infinity.
pub fn first_non_finite<T: Element>(values: &[T]) -> Option<usize> {
    widest(|| find(values, |x| !x.is_finite()))
}

/// Index of the first element that is larger than `limit`, with its sign taken off; a NaN is not.
pub fn first_beyond<T: Element>(values: &[T], limit: T) -> Option<usize> {
    widest(|| find(values, |x| x.abs() > limit))
}

/// Whether no element is larger than `limit`, with its sign taken off; a NaN is.
pub fn all_within<T: Element>(values: &[T], limit: T) -> bool {
    let within = |block: &[T]| block.iter().fold(true, |all, x| all & (x.abs() <= limit));
    widest(|| values.chunks(BLOCK).all(within))
}

#[inline(always)]
fn find<T: Element>(values: &[T], is_wanted: impl Fn(&T) -> bool) -> Option<usize> {
    for (block, start) in values.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
        let any = block.iter().fold(false, |any, x| any | is_wanted(x));
        if any {
            return block.iter().position(is_wanted).map(|i| start + i);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_within_or_one_is_not() {
        for at in [0, 255, 256, 999] {
            for bad in [2.5f32, -2.5, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = vec![-2.0f32; 1000];
                assert!(all_within(&values, 2.0));
                values[at] = bad;
                assert!(!all_within(&values, 2.0), "{bad} at {at}");
            }
        }
        assert!(all_within::<f64>(&[], 0.0));
    }

    #[test]
    fn finds_the_first_at_every_place() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 1, 255, 256, 257, 999] {
                let mut values = vec![f32::MAX; 1000];
                assert_eq!(first_non_finite(&values), None);
                values[at] = bad;
                values[999] = bad;
                assert_eq!(first_non_finite(&values), Some(at));
            }
        }
        assert_eq!(first_non_finite::<f64>(&[]), None);
    }

    #[test]
    fn the_first_beyond_a_limit_is_found_and_a_nan_is_not() {
        for at in [0, 255, 256, 999] {
            let mut values = vec![f32::NAN; 1000];
            values[at] = -2.0;
            assert_eq!(first_beyond(&values, 2.0), None);
            assert_eq!(first_beyond(&values, 1.5), Some(at));
        }
    }
}

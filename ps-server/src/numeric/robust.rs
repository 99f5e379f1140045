//! Aggregates that a few gradients of garbage cannot move far: element by element, from all the
//! values that the gradients have there.

use std::cmp::Ordering;

use ps_common::Element;

/// Elements that are looked at together.
const TILE: usize = 16;

/// Up to so many gradients are sorted by comparing whole tiles of them, which vectorises; its work
/// grows with the square of their number.
const NETWORK_MAX: usize = 32;

/// Element by element the mean of `parts` without the `k` smallest and the `k` largest values.
/// Where that would leave none, as many are dropped as leave one or two, which is the median.
/// Yin et al. 2018, "Byzantine-Robust Distributed Learning", definition 2.
///
/// `scratch` is memory that is grown to 16 elements a part.
///
/// # Panics
/// If a length differs from `out`'s.
pub fn trimmed_mean<T: Element>(out: &mut [T], parts: &[&[T]], k: usize, scratch: &mut Vec<T>) {
    assert!(parts.iter().all(|part| part.len() == out.len()));
    let n = parts.len();
    if n == 0 {
        return out.fill(T::ZERO);
    }
    let dropped = k.min((n - 1) / 2);
    let kept = dropped..n - dropped;
    scratch.clear();
    scratch.resize(TILE * n, T::ZERO);
    for (tile, start) in out.chunks_mut(TILE).zip((0..).step_by(TILE)) {
        let values = parts.iter().map(|part| &part[start..start + tile.len()]);
        if n <= NETWORK_MAX {
            for (row, values) in scratch.chunks_exact_mut(TILE).zip(values) {
                row[..tile.len()].copy_from_slice(values);
            }
            sort_rows(scratch);
            for (i, out) in tile.iter_mut().enumerate() {
                *out = mean(kept.clone().map(|row| scratch[row * TILE + i]), kept.len());
            }
        } else {
            for (which, values) in values.enumerate() {
                values.iter().enumerate().for_each(|(i, &x)| scratch[i * n + which] = x);
            }
            for (out, column) in tile.iter_mut().zip(scratch.chunks_exact_mut(n)) {
                // Gradients have no NaN.
                column.sort_unstable_by(|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
                *out = mean(column[kept.clone()].iter().copied(), kept.len());
            }
        }
    }
}

/// Element by element the median of `parts`, which is the mean of the middle two where their number
/// is even. Yin et al. 2018, definition 1. `scratch` as in [`trimmed_mean`].
///
/// # Panics
/// If a length differs from `out`'s.
pub fn median<T: Element>(out: &mut [T], parts: &[&[T]], scratch: &mut Vec<T>) {
    trimmed_mean(out, parts, usize::MAX, scratch);
}

/// Each is divided first: the sum of the largest numbers of f64 would overflow.
fn mean<T: Element>(values: impl Iterator<Item = T>, n: usize) -> T {
    let share = 1.0 / n as f64;
    T::from_f64(values.map(|x| x.to_f64() * share).sum())
}

/// Sorts each column of rows of [`TILE`]: an insertion sort that does not look where it may stop.
fn sort_rows<T: Element>(rows: &mut [T]) {
    for end in (TILE..rows.len()).step_by(TILE) {
        for start in (0..end).step_by(TILE).rev() {
            let (low, high) = rows[start..start + 2 * TILE].split_at_mut(TILE);
            for (low, high) in low.iter_mut().zip(high) {
                let (a, b) = (*low, *high);
                *low = if b < a { b } else { a };
                *high = if b < a { a } else { b };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive<T: Element>(parts: &[&[T]], i: usize, k: usize) -> f64 {
        let mut values: Vec<f64> = parts.iter().map(|part| part[i].to_f64()).collect();
        values.sort_by(f64::total_cmp);
        let kept = &values[k..values.len() - k];
        kept.iter().sum::<f64>() / kept.len() as f64
    }

    fn agree<T: Element>(tolerance: f64) {
        for n in [1usize, 2, 3, 4, 7, 10, 32, 33, 40] {
            for dim in [1, 15, 16, 17, 100] {
                let value = |i: usize, r: usize| T::from_f64(((i * 31 + r * 17) as f64).sin());
                let gradient = |r| (0..dim).map(|i| value(i, r)).collect::<Vec<T>>();
                let gradients: Vec<Vec<T>> = (0..n).map(gradient).collect();
                let parts: Vec<&[T]> = gradients.iter().map(Vec::as_slice).collect();
                let (mut out, mut scratch) = (vec![T::ZERO; dim], Vec::new());
                median(&mut out, &parts, &mut scratch);
                for (i, x) in out.iter().enumerate() {
                    let want = naive(&parts, i, (n - 1) / 2);
                    assert!((x.to_f64() - want).abs() < tolerance, "{n} {dim} {i}");
                }
                for k in 0..n.div_ceil(2) {
                    trimmed_mean(&mut out, &parts, k, &mut scratch);
                    for (i, x) in out.iter().enumerate() {
                        let want = naive(&parts, i, k);
                        assert!((x.to_f64() - want).abs() < tolerance, "{n} {dim} {k} {i}");
                    }
                }
            }
        }
    }

    #[test]
    fn equal_to_naive_ones() {
        agree::<f64>(1e-15);
        agree::<f32>(1e-7);
    }

    #[test]
    fn garbage_does_not_get_through_and_the_largest_numbers_do_not_overflow() {
        let parts: [&[f32]; 5] = [&[1.0], &[f32::MAX], &[2.0], &[-f32::MAX], &[3.0]];
        let (mut out, mut scratch) = ([0.0], Vec::new());
        median(&mut out, &parts, &mut scratch);
        assert_eq!(out, [2.0]);
        trimmed_mean(&mut out, &parts, 1, &mut scratch);
        assert_eq!(out, [2.0]);
        trimmed_mean(&mut out, &parts, 9, &mut scratch);
        assert_eq!(out, [2.0], "as many as leave one");
        let (mut out, mut scratch) = ([0.0], Vec::new());
        trimmed_mean(&mut out, &[&[f64::MAX], &[f64::MAX]], 0, &mut scratch);
        assert_eq!(out, [f64::MAX]);
        trimmed_mean(&mut out, &[], 3, &mut scratch);
        assert_eq!(out, [0.0]);
    }
}

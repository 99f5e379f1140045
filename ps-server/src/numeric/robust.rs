//! Aggregates that a few gradients of garbage cannot move far: element by element, from all the
//! values that the gradients have there.

use ps_common::Element;

/// Elements that are gathered at once, so that a cache line of a gradient is read once.
const TILE: usize = 8;

/// Element by element the mean of `parts` without the `k` smallest and the `k` largest values.
/// Where that would leave none, as many are dropped as leave one or two, which is the median.
/// Yin et al. 2018, "Byzantine-Robust Distributed Learning", definition 2.
///
/// `column` is memory that is grown to 8 elements a part.
///
/// # Panics
/// If a length differs from `out`'s.
pub fn trimmed_mean<T: Element>(out: &mut [T], parts: &[&[T]], k: usize, column: &mut Vec<T>) {
    assert!(parts.iter().all(|part| part.len() == out.len()));
    let n = parts.len();
    if n == 0 {
        return out.fill(T::ZERO);
    }
    let kept = k.min((n - 1) / 2)..n - k.min((n - 1) / 2);
    let share = 1.0 / kept.len() as f64;
    column.clear();
    column.resize(TILE * n, T::ZERO);
    for (tile, start) in out.chunks_mut(TILE).zip((0..).step_by(TILE)) {
        for (which, part) in parts.iter().enumerate() {
            for (i, &x) in part[start..start + tile.len()].iter().enumerate() {
                column[i * n + which] = x;
            }
        }
        for (out, values) in tile.iter_mut().zip(column.chunks_exact_mut(n)) {
            sort(values);
            // Each is divided first: the sum of the largest numbers of f64 would overflow.
            let mean = values[kept.clone()].iter().map(|x| x.to_f64() * share).sum::<f64>();
            *out = T::from_f64(mean);
        }
    }
}

/// Element by element the median of `parts`, which is the mean of the middle two where their number
/// is even. Yin et al. 2018, definition 1. `column` as in [`trimmed_mean`].
///
/// # Panics
/// If a length differs from `out`'s.
pub fn median<T: Element>(out: &mut [T], parts: &[&[T]], column: &mut Vec<T>) {
    trimmed_mean(out, parts, usize::MAX, column);
}

/// Gradients have no NaN. 0 and -0 are equal, so which of them stands in the middle depends on the
/// order of the parts, which is that of the ranks.
fn sort<T: Element>(values: &mut [T]) {
    values.sort_unstable_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
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
        for n in [1usize, 2, 3, 4, 7, 10] {
            for dim in [1, 7, 8, 9, 100] {
                let value = |i: usize, r: usize| T::from_f64(((i * 31 + r * 17) as f64).sin());
                let gradient = |r| (0..dim).map(|i| value(i, r)).collect::<Vec<T>>();
                let gradients: Vec<Vec<T>> = (0..n).map(gradient).collect();
                let parts: Vec<&[T]> = gradients.iter().map(Vec::as_slice).collect();
                let (mut out, mut column) = (vec![T::ZERO; dim], Vec::new());
                median(&mut out, &parts, &mut column);
                for (i, x) in out.iter().enumerate() {
                    let want = naive(&parts, i, (n - 1) / 2);
                    assert!((x.to_f64() - want).abs() < tolerance, "{n} {dim} {i}");
                }
                for k in 0..n.div_ceil(2) {
                    trimmed_mean(&mut out, &parts, k, &mut column);
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
        let (mut out, mut column) = ([0.0], Vec::new());
        median(&mut out, &parts, &mut column);
        assert_eq!(out, [2.0]);
        trimmed_mean(&mut out, &parts, 1, &mut column);
        assert_eq!(out, [2.0]);
        trimmed_mean(&mut out, &parts, 9, &mut column);
        assert_eq!(out, [2.0], "as many as leave one");
        let (mut out, mut column) = ([0.0], Vec::new());
        trimmed_mean(&mut out, &[&[f64::MAX], &[f64::MAX]], 0, &mut column);
        assert_eq!(out, [f64::MAX]);
        trimmed_mean(&mut out, &[], 3, &mut column);
        assert_eq!(out, [0.0]);
    }
}

//! Stochastic gradient descent with a constant rate.

use ps_common::Element;

/// `new = old - lr * gradient`. Robbins and Monro 1951.
///
/// # Panics
/// If lengths differ.
pub fn sgd<T: Element>(new: &mut [T], old: &[T], gradient: &[T], lr: f64) {
    assert!(new.len() == old.len() && old.len() == gradient.len());
    let lr = T::from_f64(lr);
    for ((new, &old), &gradient) in new.iter_mut().zip(old).zip(gradient) {
        *new = old - lr * gradient;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_step() {
        let mut new = [0.0f32; 2];
        sgd(&mut new, &[1.0, -1.0], &[0.5, 4.0], 0.25);
        assert_eq!(new, [0.875, -2.0]);
    }
}

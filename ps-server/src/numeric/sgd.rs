//! Stochastic gradient descent.

use ps_common::{Element, Kernel, widest};

use super::ahead::{STRETCH, ask_ahead_of};

/// `new = old - lr * gradient`. Robbins and Monro 1951. Gives whether all of it is finite.
///
/// # Panics
/// If lengths differ.
pub fn sgd_from<T: Element>(new: &mut [T], old: &[T], gradient: &[T], lr: f64) -> bool {
    assert!(new.len() == old.len() && old.len() == gradient.len());
    widest(Descent { new, old, gradient, lr: T::from_f64(lr) })
}

/// As [`sgd_from`], in place.
///
/// # Panics
/// If lengths differ.
pub(super) fn sgd<T: Element>(theta: &mut [T], gradient: &[T], lr: f64) -> bool {
    assert!(theta.len() == gradient.len());
    widest(DescentInPlace { theta, gradient, lr: T::from_f64(lr) })
}

struct Descent<'a, T> {
    new: &'a mut [T],
    old: &'a [T],
    gradient: &'a [T],
    lr: T,
}

impl<T: Element> Kernel for Descent<'_, T> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let lr = self.lr;
        let step = |new: &mut [T], old: &[T], gradient: &[T]| {
            let mut is_finite = true;
            for ((new, &old), &g) in new.iter_mut().zip(old).zip(gradient) {
                *new = old - lr * g;
                is_finite &= new.is_finite();
            }
            is_finite
        };
        let (new, new_end) = self.new.as_chunks_mut::<STRETCH>();
        let (old, old_end) = self.old.as_chunks::<STRETCH>();
        let (gradient, gradient_end) = self.gradient.as_chunks::<STRETCH>();
        let mut is_finite = step(new_end, old_end, gradient_end);
        for ((new, old), gradient) in new.iter_mut().zip(old).zip(gradient) {
            ask_ahead_of(new);
            ask_ahead_of(old);
            ask_ahead_of(gradient);
            is_finite &= step(new, old, gradient);
        }
        is_finite
    }
}

struct DescentInPlace<'a, T> {
    theta: &'a mut [T],
    gradient: &'a [T],
    lr: T,
}

impl<T: Element> Kernel for DescentInPlace<'_, T> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let lr = self.lr;
        let step = |theta: &mut [T], gradient: &[T]| {
            let mut is_finite = true;
            for (theta, &g) in theta.iter_mut().zip(gradient) {
                *theta -= lr * g;
                is_finite &= theta.is_finite();
            }
            is_finite
        };
        let (theta, theta_end) = self.theta.as_chunks_mut::<STRETCH>();
        let (gradient, gradient_end) = self.gradient.as_chunks::<STRETCH>();
        let mut is_finite = step(theta_end, gradient_end);
        for (theta, gradient) in theta.iter_mut().zip(gradient) {
            ask_ahead_of(theta);
            ask_ahead_of(gradient);
            is_finite &= step(theta, gradient);
        }
        is_finite
    }
}

/// One element's step with decay in its gradient, `theta - lr * (gradient + decay * theta)`, rounded
/// as the same is on slices.
pub fn sgd_element<T: Element>(theta: T, gradient: T, lr: T, decay: Option<T>) -> T {
    let gradient = decay.map_or(gradient, |decay| gradient + decay * theta);
    theta - lr * gradient
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_step() {
        let mut new = [f32::NAN; 2];
        sgd_from(&mut new, &[1.0, -1.0], &[0.5, 4.0], 0.25);
        assert_eq!(new, [0.875, -2.0]);
        assert_eq!(sgd_element(1.0, 0.5, 0.25, None), 0.875);
        assert_eq!(sgd_element(1.0, 0.5, 0.25, Some(1.5)), 0.5);
    }
}

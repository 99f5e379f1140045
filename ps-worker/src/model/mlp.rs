//! The multilayer perceptron: `A_0 = X`, `A_l = f(A_(l-1) W_l + b_l)`, and scores
//! `Z = A_(L-1) W_L + b_L` without `f`.
//!
//! Gradients by back-propagation (Rumelhart, Hinton, Williams 1986): with `D_L` the derivative of
//! the loss by `Z`, `gradient_W_l = A_(l-1)^T D_l`, `gradient_b_l = ` column sums of `D_l`, and
//! `D_(l-1) = (D_l W_l^T) * f'`, where `f'` follows from `A_(l-1)`: `1 - a^2` for tanh; for relu 1
//! where `a > 0`, else 0, so 0 at its kink.
//!
//! Weights start at random, or all units of a layer would stay alike; biases start at 0. tanh:
//! uniform over `sqrt(6 / (n_in + n_out))` to either side (Glorot and Bengio 2010, eq. 16). relu:
//! normal with variance `2 / n_in` (He et al. 2015, eq. 10). The last layer starts as the others.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};
use ps_common::tables::{Initializer, Table};

use super::Real;
use super::map::{Work, add_columns, start_rows};
use super::rows::{Block, Weights, turn};
use super::spec::Activation;
use crate::samples::Features;

/// Layers one after the other.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mlp {
    layers: Vec<Layer>,
    activation: Activation,
}

#[derive(Debug, Clone, PartialEq)]
struct Layer {
    n_in: usize,
    n_out: usize,
    /// In theta.
    weights_at: usize,
    /// Among the biases of all layers.
    biases_at: usize,
    bias: bool,
}

impl Layer {
    fn n_weights(&self) -> usize {
        self.n_in * self.n_out
    }

    fn n_biases(&self) -> usize {
        if self.bias { self.n_out } else { 0 }
    }

    fn weights<'a, T>(&self, theta: &'a [T]) -> &'a [T] {
        &theta[self.weights_at..][..self.n_weights()]
    }

    fn biases<'a, T>(&self, theta: &'a [T]) -> &'a [T] {
        &theta[self.weights_at + self.n_weights()..][..self.n_biases()]
    }
}

impl Mlp {
    pub(super) fn new(
        n_features: usize,
        hidden: &[usize],
        n_outputs: usize,
        activation: Activation,
        bias: bool,
    ) -> Self {
        let (mut n_in, mut weights_at, mut biases_at) = (n_features, 0usize, 0usize);
        let widths = hidden.iter().copied().chain([n_outputs]);
        let layers = widths.map(|n_out| {
            let layer = Layer { n_in, n_out, weights_at, biases_at, bias };
            // Sizes beyond memory are refused with the tables, before anything is reached by these.
            let n_weights = n_in.saturating_mul(n_out);
            weights_at = weights_at.saturating_add(n_weights).saturating_add(layer.n_biases());
            biases_at += layer.n_biases();
            n_in = n_out;
            layer
        });
        Self { layers: layers.collect(), activation }
    }

    /// `W1` \[d, n_1\], `b1` \[n_1\], `W2`, `b2` and so on.
    pub(super) fn tables(&self, seed: u64) -> Vec<Table> {
        let mut tables = Vec::with_capacity(2 * self.layers.len());
        for (number, layer) in (1..).zip(&self.layers) {
            let (n_in, n_out) = (layer.n_in as f64, layer.n_out as f64);
            let start = match self.activation {
                Activation::Tanh => {
                    Initializer::Uniform { bound: (6.0 / (n_in + n_out)).sqrt(), seed }
                }
                Activation::Relu => Initializer::Normal { std: (2.0 / n_in).sqrt(), seed },
            };
            let shape = [layer.n_in as u64, layer.n_out as u64];
            tables.push(Table::new(&format!("W{number}"), &shape, start, true));
            if layer.bias {
                tables.push(Table::zeros(&format!("b{number}"), &shape[1..], false));
            }
        }
        tables
    }

    pub(super) fn prepare<T: Real>(&self, theta: &[T], features: &Features<T>, work: &mut Work<T>) {
        work.turned.resize_with(self.layers.len(), Vec::new);
        work.layers.resize_with(self.layers.len() - 1, Vec::new);
        for (number, (layer, turned)) in self.layers.iter().zip(&mut work.turned).enumerate() {
            let is_dense = number > 0 || matches!(features, Features::Dense(_));
            turn(layer.weights(theta), layer.n_out, is_dense, turned);
        }
    }

    pub(super) fn write_scores<T: Real>(
        &self,
        theta: &[T],
        block: &Block<'_, T>,
        work: &mut Work<T>,
    ) {
        for (number, (layer, turned)) in self.layers.iter().zip(&work.turned).enumerate() {
            let (before, after) = work.layers.split_at_mut(number);
            let out = after.first_mut().unwrap_or(&mut work.scores);
            start_rows(out, block.len(), layer.n_out, layer.biases(theta));
            let weights = Weights::new(layer.weights(theta), turned, layer.n_out);
            match before.last() {
                None => block.add_product(&weights, out),
                Some(units) => of_units(units, layer.n_in).add_product(&weights, out),
            }
            if number + 1 < self.layers.len() {
                self.activation.apply(out);
            }
        }
    }

    pub(super) fn add_gradient<T: Real>(
        &self,
        theta: &[T],
        block: &Block<'_, T>,
        work: &mut Work<T>,
        gradient: &mut [T],
    ) {
        let Work { layers, scores, deltas: [delta, before], partial, bias_sums, .. } = work;
        delta.clone_from(scores);
        for (number, layer) in self.layers.iter().enumerate().rev() {
            let sums = &mut bias_sums[layer.biases_at..][..layer.n_biases()];
            add_columns(sums, delta);
            let of_weights = &mut gradient[layer.weights_at..][..layer.n_weights()];
            let Some(below) = number.checked_sub(1) else {
                return block.add_transposed(delta, layer.n_out, of_weights, partial);
            };
            let units = &layers[below];
            let input = of_units(units, layer.n_in);
            input.add_transposed(delta, layer.n_out, of_weights, partial);
            start_rows(before, input.len(), layer.n_in, &[]);
            multiply_transposed(delta, layer.weights(theta), layer.n_out, before);
            self.activation.multiply_slopes(units, before);
            std::mem::swap(delta, before);
        }
    }
}

impl Activation {
    fn apply<T: Real>(self, units: &mut [T]) {
        match self {
            Self::Relu => {
                for a in units {
                    // NaN is not below 0 and stays, so that an overflow shows in the loss.
                    if *a <= T::ZERO {
                        *a = T::ZERO;
                    }
                }
            }
            Self::Tanh => {
                for a in units {
                    *a = T::from_f64(a.to_f64().tanh());
                }
            }
        }
    }

    /// Multiplies by the slope at each unit, given what the unit gave.
    fn multiply_slopes<T: Real>(self, units: &[T], deltas: &mut [T]) {
        match self {
            Self::Relu => {
                for (d, &a) in deltas.iter_mut().zip(units) {
                    if a <= T::ZERO {
                        *d = T::ZERO;
                    }
                }
            }
            Self::Tanh => {
                for (d, &a) in deltas.iter_mut().zip(units) {
                    *d *= T::ONE - a * a;
                }
            }
        }
    }
}

/// What a layer gave as the rows of the next.
fn of_units<T: Real>(units: &[T], width: usize) -> Block<'_, T> {
    let shape = (units.len() / width, width);
    Block::Dense(ArrayView2::from_shape(shape, units).expect("rows of units"))
}

/// `out = delta W^T`.
fn multiply_transposed<T: Real>(delta: &[T], weights: &[T], n_out: usize, out: &mut [T]) {
    let (n_rows, n_in) = (delta.len() / n_out, weights.len() / n_out);
    let delta = ArrayView2::from_shape((n_rows, n_out), delta).expect("rows by units above");
    let weights = ArrayView2::from_shape((n_in, n_out), weights).expect("units by units above");
    let mut out = ArrayViewMut2::from_shape((n_rows, n_in), out).expect("rows by units");
    general_mat_mul(T::ONE, &delta, &weights.t(), T::ZERO, &mut out);
}

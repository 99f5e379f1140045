//! Kernels compiled twice: for any processor of the architecture, and for wide registers.
//!
//! A release build runs everywhere, so that it may use but the 16-byte registers that every x86-64
//! has. With 32 bytes a pass over numbers in cache takes half to two thirds of the time. Wider
//! registers change no bit: nothing is summed in another order, and no product and sum are fused.

/// Runs `kernel`, with the widest registers that this processor is known to have.
///
/// What `kernel` calls has to be inlined into it, or else runs as it always did.
#[inline(always)]
pub fn widest<R>(kernel: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn with_avx2<R>(kernel: impl FnOnce() -> R) -> R {
            kernel()
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the function has one requirement, AVX2, and the line above has seen it.
            #[allow(unsafe_code)]
            return unsafe { with_avx2(kernel) };
        }
    }
    kernel()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::{add_scaled, first_non_finite, sgd_from, weighted_sum};

    /// Numbers of all sizes, some of them so small that they are subnormal.
    fn values(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits(state & 0xbfff_ffff)
        };
        (0..n).map(|_| next()).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    /// Element by element, through a barrier that keeps anything from being vectorised.
    fn narrow(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> Vec<u32> {
        a.iter().zip(b).map(|(&a, &b)| f(std::hint::black_box(a), b).to_bits()).collect()
    }

    #[test]
    fn wide_kernels_give_the_bits_of_narrow_ones() {
        for n in [0, 1, 7, 8, 9, 31, 32, 33, 255, 256, 257, 2048] {
            let (a, b) = (values(n, 1), values(n, 2));
            let mut out = vec![0.0; n];
            sgd_from(&mut out, &a, &b, 0.1);
            assert_eq!(bits(&out), narrow(&a, &b, |a, b| a - 0.1 * b), "sgd of {n}");
            out.copy_from_slice(&a);
            add_scaled(&mut out, &b, 0.3);
            assert_eq!(bits(&out), narrow(&a, &b, |a, b| a + 0.3 * b), "sum of {n}");
            weighted_sum(&mut out, &[(&a, 0.7), (&b, 0.3)]);
            assert_eq!(bits(&out), narrow(&a, &b, |a, b| 0.7 * a + 0.3 * b), "mean of {n}");
            let wanted = out.iter().position(|x| !x.is_finite());
            assert_eq!(first_non_finite(&out), wanted, "check of {n}");
        }
    }

    #[test]
    fn what_a_kernel_gives_is_handed_on() {
        assert_eq!(widest(|| 7), 7);
    }
}

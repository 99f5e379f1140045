//! Kernels compiled several times: for any processor of the architecture, and for wide registers.
//!
//! A release build runs everywhere, so that it may use but the 16-byte registers that every x86-64
//! has. With 32 bytes a pass over numbers in cache takes half to two thirds of the time, with 64 again
//! two thirds of that. Wider registers change no bit: nothing is summed in another order, and no
//! product and sum are fused.

/// What [`widest`] runs: a closure of a few instructions, or a type of its own for more.
pub trait Kernel {
    /// What it gives.
    type Output;

    /// Does it. `#[inline(always)]`, as all that it calls: the compiler inlines a long closure nowhere,
    /// because it is called once for each width, and compiles it for no wide registers then.
    fn run(self) -> Self::Output;
}

impl<R, F: FnOnce() -> R> Kernel for F {
    type Output = R;

    #[inline(always)]
    fn run(self) -> R {
        self()
    }
}

/// Runs `kernel`, with the widest registers that this processor is known to have, as long as they do
/// not slow down its clock.
///
/// What `kernel` calls has to be inlined into it, or else runs as it always did.
#[inline(always)]
pub fn widest<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;

        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn with_avx512<K: Kernel>(kernel: K) -> K::Output {
            kernel.run()
        }
        #[target_feature(enable = "avx2")]
        fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
            kernel.run()
        }
        let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
        // What the compiler takes for granted with them. A virtual machine may hide parts.
        let below = has!("avx2") && has!("fma") && has!("f16c");
        // The first processors with 64 bytes turned down their clock for it; those that multiply
        // polynomials with them came later, and do not.
        if avx512 && below && has!("vpclmulqdq") {
            // SAFETY: the function requires these features, and all of them were just seen.
            #[allow(unsafe_code)]
            return unsafe { with_avx512(kernel) };
        }
        if has!("avx2") {
            // SAFETY: the function has one requirement, AVX2, and the line above has seen it.
            #[allow(unsafe_code)]
            return unsafe { with_avx2(kernel) };
        }
    }
    kernel.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_gives_is_handed_on() {
        assert_eq!(widest(|| 7), 7);
    }
}

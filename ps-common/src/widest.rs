//! Kernels compiled several times: for any processor of the architecture, and for wide registers.
//!
//! A release build runs everywhere, so that it may use but the 16-byte registers that every x86-64
//! has. With 32 bytes a pass over numbers in cache takes half to two thirds of the time, with 64 again
//! two thirds of that. Wider registers change no bit: nothing is summed in another order, and no
//! product and sum are fused.

/// Runs `kernel`, with the widest registers that this processor is known to have, as long as they do
/// not slow down its clock.
///
/// What `kernel` calls has to be inlined into it, or else runs as it always did.
#[inline(always)]
pub fn widest<R>(kernel: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;

        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn with_avx512<R>(kernel: impl FnOnce() -> R) -> R {
            kernel()
        }
        #[target_feature(enable = "avx2")]
        fn with_avx2<R>(kernel: impl FnOnce() -> R) -> R {
            kernel()
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
    kernel()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_gives_is_handed_on() {
        assert_eq!(widest(|| 7), 7);
    }
}

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

    #[test]
    fn what_a_kernel_gives_is_handed_on() {
        assert_eq!(widest(|| 7), 7);
    }
}

//! Memory that is asked for before it is wanted.
//!
//! A processor sees by itself that arrays are read from one end to the other, but stops at the end of each page, and
//! an update reads and writes several at a time. Asked for two kilobytes ahead, numbers that are in no near cache
//! come a tenth sooner.

/// Elements that a kernel does between two questions.
pub(super) const STRETCH: usize = 16;

/// So far ahead: half a page, while the processor's own look-ahead is at its end.
const AHEAD_BYTES: usize = 2048;

/// Asks for what comes a while after `stretch`. Only a hint: there may be nothing.
#[inline(always)]
pub(super) fn ask_ahead_of<T>(stretch: &[T; STRETCH]) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of_val(stretch)).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let address = stretch.as_ptr().cast::<i8>().wrapping_add(AHEAD_BYTES + line);
        // SAFETY: the instruction is of every x86-64, reads nothing that the program sees, and may be
        // given any address.
        #[allow(unsafe_code)]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(address);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (stretch, AHEAD_BYTES);
}

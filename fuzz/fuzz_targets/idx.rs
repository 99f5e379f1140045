//! libFuzzer over the target `idx`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ps_fuzz::run("idx", bytes);
});

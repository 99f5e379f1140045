//! libFuzzer over the target `push`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ps_fuzz::run("push", bytes);
});

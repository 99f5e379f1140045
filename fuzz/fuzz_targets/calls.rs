//! libFuzzer over the target `calls`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ps_fuzz::run("calls", bytes);
});

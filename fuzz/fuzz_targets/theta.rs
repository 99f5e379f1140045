//! libFuzzer over the target `theta`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ps_fuzz::run("theta", bytes);
});

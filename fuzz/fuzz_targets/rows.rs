//! libFuzzer over the target `rows`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ps_fuzz::run("rows", bytes);
});

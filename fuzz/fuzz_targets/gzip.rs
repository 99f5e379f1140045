//! libFuzzer over the target `gzip`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ps_fuzz::run("gzip", bytes);
});

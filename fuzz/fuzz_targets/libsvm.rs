//! libFuzzer over the target `libsvm`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ps_fuzz::run("libsvm", bytes);
});

//! libFuzzer over the target `csv`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ps_fuzz::run("csv", bytes);
});

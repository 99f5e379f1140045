//! libFuzzer over the target `journal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ps_fuzz::run("journal", bytes);
});

//! libFuzzer over the target `wire`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ps_fuzz::run("wire", bytes);
});

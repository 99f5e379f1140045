//! libFuzzer over the target `npy`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ps_fuzz::run("npy", bytes);
});

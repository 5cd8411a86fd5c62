//! See [`sandgate_fuzz::assertion`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sandgate_fuzz::assertion(data);
});

//! See [`sandgate_fuzz::identity`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sandgate_fuzz::identity(data);
});

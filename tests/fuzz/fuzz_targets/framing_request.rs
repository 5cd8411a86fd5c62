//! See [`sandgate_fuzz::framing_request`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sandgate_fuzz::framing_request(data);
});

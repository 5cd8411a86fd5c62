//! See [`sandgate_fuzz::routing_headers`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sandgate_fuzz::routing_headers(data);
});

//! See [`sandgate_fuzz::routing_headers`].
#![no_main]

mod noted;

use noted::noted;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sandgate_fuzz::routing_headers(noted(data));
});

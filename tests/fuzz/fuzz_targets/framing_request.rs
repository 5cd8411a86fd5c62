//! See [`sandgate_fuzz::framing_request`].
#![no_main]

mod noted;

use noted::noted;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sandgate_fuzz::framing_request(noted(data));
});

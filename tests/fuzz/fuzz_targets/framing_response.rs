//! See [`sandgate_fuzz::framing_response`].
#![no_main]

mod noted;

use noted::noted;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sandgate_fuzz::framing_response(noted(data));
});

//! See [`sandgate_fuzz::scoped_token`].
#![no_main]

mod noted;

use noted::noted;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sandgate_fuzz::scoped_token(noted(data));
});

//! See [`sandgate_fuzz::assertion`].
#![no_main]

mod noted;

use noted::noted;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sandgate_fuzz::assertion(noted(data));
});

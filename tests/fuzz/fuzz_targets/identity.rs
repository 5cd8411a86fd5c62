//! See [`sandgate_fuzz::identity`].
#![no_main]

mod noted;

use noted::noted;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sandgate_fuzz::identity(noted(data));
});

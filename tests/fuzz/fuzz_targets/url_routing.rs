//! See [`sandgate_fuzz::url_routing`].
#![no_main]

mod noted;

use noted::noted;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sandgate_fuzz::url_routing(noted(data));
});

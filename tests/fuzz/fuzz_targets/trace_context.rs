//! See [`sandgate_fuzz::trace_context`].
#![no_main]

mod noted;

use noted::noted;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sandgate_fuzz::trace_context(noted(data));
});

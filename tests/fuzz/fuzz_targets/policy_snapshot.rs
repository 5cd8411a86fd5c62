//! See [`sandgate_fuzz::policy_snapshot`].
#![no_main]

mod noted;

use noted::noted;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sandgate_fuzz::policy_snapshot(noted(data));
});

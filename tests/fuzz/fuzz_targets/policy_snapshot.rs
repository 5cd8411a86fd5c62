//! See [`sandgate_fuzz::policy_snapshot`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sandgate_fuzz::policy_snapshot(data);
});

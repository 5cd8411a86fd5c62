//! See [`sandgate_fuzz::websocket_frames`].
#![no_main]

mod noted;

use noted::noted;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sandgate_fuzz::websocket_frames(noted(data));
});

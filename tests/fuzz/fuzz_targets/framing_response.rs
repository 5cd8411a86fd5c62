#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(sandgate_fuzz::framing_response(data)));

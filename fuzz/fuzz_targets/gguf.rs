//! A model's file: whatever it says of itself, its head is looked through without harm, and what passes is inside the file.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = covey_inference::gguf::check(&mut std::io::Cursor::new(data));
});

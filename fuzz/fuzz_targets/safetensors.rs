//! The other kind of a model's file.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(tensors) = safetensors::SafeTensors::deserialize(data) {
        for (_, view) in tensors.tensors() {
            assert!(view.data().len() <= data.len());
        }
    }
});

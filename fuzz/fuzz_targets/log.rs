//! The log of the store: whatever a disk gives back, it is read without harm, and no record is made up.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = data.split_first() else { return };
    match which % 3 {
        0 => covey_store::fuzzing::file(data),
        1 => covey_store::fuzzing::batch(data),
        _ => covey_store::fuzzing::damaged(data),
    }
});

//! What a child that was taken over sends its worker, and what a worker sends its child.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((order, stream)) = data.split_first() else { return };
    worker::fuzzing::from_child(*order, stream);
    worker::fuzzing::to_child(stream);
});

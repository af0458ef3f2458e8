//! Job messages: what is taken is written again as it was, whether it is admitted or not.
#![no_main]

use farm::job::JobSpec;
use libfuzzer_sys::fuzz_target;
use scheduler::admit::{Policy, admit};

fuzz_target!(|data: &[u8]| {
    let Ok(spec) = serde_json::from_slice::<JobSpec>(data) else { return };
    let written = serde_json::to_vec(&spec).expect("a message can be written");
    let again: JobSpec = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(spec, again);
    let refused = admit(&spec, &Policy::default());
    assert!(refused.is_err() || spec.check().is_ok(), "what is admitted makes sense");
});

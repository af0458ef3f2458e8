//! Files of operators: tokens of tenants, and instances of PeerTube. What is wrong is said without what was given.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scheduler::peertube::settings;
use scheduler::tenants::Tenants;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(tenants) = Tenants::read(text) {
        assert!(tenants.of_token("").is_none(), "no token is nobody's");
    }
    // Files that are named are read.
    if !text.contains("runner_token_file") {
        drop(settings::read(text));
    }
});

//! Maps and unmaps, with a device and without. `cargo +nightly fuzz run mappings` from the root of the project.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

#[allow(dead_code, reason = "seeds are for the tests")]
#[path = "../../crates/smmuv3/tests/common/mappings.rs"]
mod mappings;

static ARENA: OnceLock<mappings::Arena> = OnceLock::new();

fuzz_target!(|input: &[u8]| {
    ARENA.get_or_init(mappings::Arena::new).run(input);
});

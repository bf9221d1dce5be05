//! Structures of the architecture, read and written. `cargo +nightly fuzz run structures` from the root of the project.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, reason = "seeds are for the tests")]
#[path = "../../crates/smmuv3/tests/common/structures.rs"]
mod structures;

fuzz_target!(|input: &[u8]| structures::run(input));

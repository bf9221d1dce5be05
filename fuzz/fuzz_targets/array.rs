//! The invalidation array against a multiset of keys. `cargo +nightly fuzz run array` from the root of the project.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| smmuv3::fuzzing::array(input));

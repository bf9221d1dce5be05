//! Scenario files. `cargo +nightly fuzz run scenario fuzz/corpus/scenario scenarios` from the root of the project begins with the examples.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/smmuv3-lab/tests/common/parser.rs"]
mod parser;

fuzz_target!(|input: &str| {
    parser::run(input);
});

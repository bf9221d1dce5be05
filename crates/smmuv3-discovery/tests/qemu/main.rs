//! Firmware tables of a real QEMU, and the DMA of its devices. Where there is no QEMU that would do, it is said and the tests are left out.

mod bridges;
#[path = "../../../smmuv3-qemu/tests/harness/mod.rs"]
mod harness;

use std::process::ExitCode;

use harness::{Tests, tests};

fn main() -> ExitCode {
    harness::run(&[Tests { needs: None, list: tests![bridges::dma_has_the_streams_that_follow_from_the_bridges] }])
}

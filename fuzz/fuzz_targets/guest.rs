//! A hostile guest: its STE and its commands. `cargo +nightly fuzz run guest` from the root of the project.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smmuv3::arch::Prot;

#[path = "../../crates/smmuv3/tests/common/guest.rs"]
mod guest;

const RW: Prot = Prot::READ.union(Prot::WRITE);

thread_local!(static ARENA: guest::Arena = guest::Arena::new());

fuzz_target!(|input: &[u8]| ARENA.with(|arena| arena.run(input)));

//! A hostile guest: its STE and its commands. `cargo +nightly fuzz run guest` from the root of the project.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smmuv3::arch::Prot;
use std::sync::OnceLock;

#[allow(dead_code, reason = "seeds are for the tests")]
#[path = "../../crates/smmuv3/tests/common/guest.rs"]
mod guest;

const RW: Prot = Prot::READ.union(Prot::WRITE);

static ARENA: OnceLock<guest::Arena> = OnceLock::new();

fuzz_target!(|input: &[u8]| ARENA.get_or_init(guest::Arena::new).run(input));

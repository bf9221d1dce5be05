//! The seeds of the fuzzer's targets, and random variations of them.

mod common;
#[path = "common/guest.rs"]
mod guest;
#[path = "common/mappings.rs"]
mod mappings;
#[path = "common/structures.rs"]
mod structures;
#[path = "common/vary.rs"]
mod vary;

use common::RW;
use vary::vary;

#[test]
fn no_guest_reaches_beyond_its_vmid_and_its_streams() {
    let arena = guest::Arena::new();
    vary(&guest::seeds(), 16, 200_000, |input| arena.run(input));
}

#[test]
fn whatever_stands_in_a_structure_is_read_the_same_again() {
    vary(&structures::seeds(), structures::UNIT, 200_000, structures::run);
}

#[test]
fn whatever_is_mapped_and_unmapped_translates_as_asked() {
    let arena = mappings::Arena::new();
    // No seed is about nothing but refusals.
    mappings::seeds().iter().for_each(|seed| assert!(arena.run(seed) > 0, "nothing was mapped by {seed:x?}"));
    vary(&mappings::seeds(), mappings::UNIT, 5_000, |input| {
        arena.run(input);
    });
}

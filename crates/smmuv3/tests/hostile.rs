//! The seeds of the guest fuzzer, and random variations of them.

mod common;
#[path = "common/guest.rs"]
mod guest;

use common::RW;

#[test]
fn no_guest_reaches_beyond_its_vmid_and_its_streams() {
    let arena = guest::Arena::new();
    let seeds = guest::seeds();
    seeds.iter().for_each(|seed| arena.run(seed));
    // Each seed with bits flipped, parts exchanged, cut and repeated.
    let mut state = 0x243f_6a88_85a3_08d3u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % below
    };
    for _ in 0..200_000 {
        let mut input = seeds[random(seeds.len())].clone();
        for _ in 0..random(6) {
            let at = random(input.len());
            match random(4) {
                0 => input[at] ^= 1 << random(8),
                1 => input[at] = random(256) as u8,
                2 => {
                    let other = &seeds[random(seeds.len())];
                    let from = random(other.len() / 16) * 16;
                    input.extend_from_slice(&other[from..]);
                }
                _ => input.truncate(at.max(1)),
            }
        }
        arena.run(&input);
    }
}

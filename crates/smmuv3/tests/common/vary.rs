//! What a fuzzer does with its seeds, in small and always alike.

/// Runs every seed, and then `rounds` of them with bits flipped, bytes exchanged, cut, and put together with parts of `unit` bytes of others.
pub fn vary(seeds: &[Vec<u8>], unit: usize, rounds: usize, mut run: impl FnMut(&[u8])) {
    seeds.iter().for_each(|seed| run(seed));
    let mut state = 0x243f_6a88_85a3_08d3u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % below
    };
    for _ in 0..rounds {
        let mut input = seeds[random(seeds.len())].clone();
        for _ in 0..random(6) {
            let at = random(input.len());
            match random(4) {
                0 => input[at] ^= 1 << random(8),
                1 => input[at] = random(256) as u8,
                2 => {
                    let other = &seeds[random(seeds.len())];
                    let from = random(other.len() / unit) * unit;
                    input.extend_from_slice(&other[from..]);
                }
                _ => input.truncate(at.max(1)),
            }
        }
        run(&input);
    }
}

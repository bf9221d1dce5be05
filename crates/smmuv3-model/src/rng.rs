//! A tiny seeded random number generator (xorshift64*), so that every run can be repeated.

/// Random numbers that depend on the seed alone.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        // The state must not be 0; the multiplication spreads small seeds over all bits.
        Rng(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not 0.
    #[inline]
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 32) % bound
    }

    /// True once in `n` times.
    #[inline]
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// 0 to 7 in random order.
    pub(crate) fn order_of_8(&mut self) -> [usize; 8] {
        let mut order = [0, 1, 2, 3, 4, 5, 6, 7];
        for i in (1..8).rev() {
            order.swap(i, self.below(i as u64 + 1) as usize);
        }
        order
    }
}

//! Which pages of guest RAM are given out: first fit over an ordered map of the free ranges.

use std::collections::BTreeMap;

/// The unit of allocation in bytes.
pub(crate) const PAGE: u64 = 0x1000;

/// An allocator of page-aligned ranges of addresses.
///
/// # Invariants
/// - `free` maps the start of each free range to its end; both are multiples of [`PAGE`], and start < end.
/// - The ranges are disjoint, do not touch, and lie in `start .. end`.
#[derive(Debug)]
pub(crate) struct Pages {
    free: BTreeMap<u64, u64>,
    start: u64,
    end: u64,
    used: u64,
}

impl Pages {
    /// Everything in `start .. end`, multiples of [`PAGE`], is free.
    pub(crate) fn new(start: u64, end: u64) -> Pages {
        let free = BTreeMap::from_iter((start < end).then_some((start, end)));
        Pages { free, start, end, used: 0 }
    }

    /// `size` bytes, rounded up to pages, at a multiple of `align`; `None` where there are none, or if `size` is 0
    /// or `align` no power of two.
    pub(crate) fn alloc(&mut self, size: u64, align: u64) -> Option<u64> {
        if size == 0 || !align.is_power_of_two() {
            return None;
        }
        let size = size.checked_next_multiple_of(PAGE)?;
        let align = align.max(PAGE);
        let (from, to, start) = self.free.iter().find_map(|(from, to)| {
            let start = from.checked_next_multiple_of(align)?;
            (start.checked_add(size)? <= *to).then_some((*from, *to, start))
        })?;
        self.free.remove(&from);
        if from < start {
            self.free.insert(from, start);
        }
        if start + size < to {
            self.free.insert(start + size, to);
        }
        self.used += size;
        Some(start)
    }

    /// Takes back what [`alloc`](Self::alloc) gave. `Err` if part of it is free already, or was never here.
    pub(crate) fn free(&mut self, addr: u64, size: u64) -> Result<(), ()> {
        let size = size.checked_next_multiple_of(PAGE).ok_or(())?;
        let end = addr.checked_add(size).ok_or(())?;
        if size == 0 || !addr.is_multiple_of(PAGE) || addr < self.start || end > self.end {
            return Err(());
        }
        let before = self.free.range(..addr).next_back().map(|(s, e)| (*s, *e));
        let after = self.free.range(addr..).next().map(|(s, e)| (*s, *e));
        if before.is_some_and(|(_, e)| e > addr) || after.is_some_and(|(s, _)| s < end) {
            return Err(());
        }
        // INVARIANT: ranges that would touch become one.
        let from = before.filter(|(_, e)| *e == addr).map_or(addr, |(s, _)| s);
        let to = match after.filter(|(s, _)| *s == end) {
            Some((s, e)) => {
                self.free.remove(&s);
                e
            }
            None => end,
        };
        self.free.insert(from, to);
        self.used -= size;
        Ok(())
    }

    /// How many bytes are given out.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_is_honoured_and_the_gap_before_it_stays_usable() {
        let mut pages = Pages::new(0x1000, 0x10_0000);
        assert_eq!(pages.alloc(64, 64), Some(0x1000));
        assert_eq!(pages.alloc(0x1_0000, 0x1_0000), Some(0x1_0000));
        assert_eq!(pages.alloc(0x2000, 64), Some(0x2000));
        assert_eq!(pages.used(), 0x1000 + 0x1_0000 + 0x2000);
    }

    #[test]
    fn what_is_given_back_can_be_had_again_as_one_piece_in_any_order() {
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [0, 2, 1, 3]] {
            let mut pages = Pages::new(0x1000, 0x5000);
            let given: Vec<u64> = (0..4).map(|_| pages.alloc(0x1000, 64).unwrap()).collect();
            assert_eq!(pages.alloc(64, 64), None);
            for index in order {
                pages.free(given[index], 0x1000).unwrap();
            }
            assert_eq!(pages.used(), 0);
            assert_eq!(pages.alloc(0x4000, 64), Some(0x1000));
        }
    }

    #[test]
    fn a_wrong_free_is_refused_and_changes_nothing() {
        let mut pages = Pages::new(0x1000, 0x9000);
        let addr = pages.alloc(0x2000, 64).unwrap();
        pages.free(addr, 0x2000).unwrap();
        let addr = pages.alloc(0x1000, 64).unwrap();
        for (bad, size) in [
            (0x2000, 0x1000),      // free already
            (addr, 0x2000),        // too long
            (addr + 64, 0x1000),   // not at a page
            (0, 0x1000),           // below
            (0x8000, 0x2000),      // over the end
            (addr, 0),             // empty
            (u64::MAX - 4095, 64), // wraps
            (addr, u64::MAX),
        ] {
            assert_eq!(pages.free(bad, size), Err(()), "{bad:#x} + {size:#x}");
        }
        assert_eq!(pages.used(), 0x1000);
        pages.free(addr, 64).unwrap();
    }

    #[test]
    fn impossible_requests_are_answered_with_none() {
        let mut pages = Pages::new(0x1000, 0x9000);
        for (size, align) in [(0, 64), (64, 0), (64, 3), (u64::MAX, 64), (64, 1 << 63), (0x8001, 64)] {
            assert_eq!(pages.alloc(size, align), None, "{size:#x} at {align:#x}");
        }
        assert_eq!(Pages::new(0x2000, 0x1000).alloc(64, 64), None);
    }

    #[test]
    fn live_ranges_never_overlap() {
        // A small multiplicative generator: the schedule is the same in every run.
        let mut state = 1u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 33) % below
        };
        let mut pages = Pages::new(0, 0x8_0000);
        let mut live: Vec<(u64, u64)> = Vec::new();
        for _ in 0..5000 {
            if random(2) == 0 {
                let (size, align) = ((1 + random(8)) * PAGE, PAGE << random(4));
                if let Some(addr) = pages.alloc(size, align) {
                    assert!(addr.is_multiple_of(align) && addr + size <= 0x8_0000);
                    assert!(live.iter().all(|(a, s)| addr + size <= *a || a + s <= addr));
                    live.push((addr, size));
                }
            } else if !live.is_empty() {
                let (addr, size) = live.swap_remove(random(live.len() as u64) as usize);
                pages.free(addr, size).unwrap();
            }
            assert_eq!(pages.used(), live.iter().map(|(_, size)| size).sum::<u64>());
        }
    }
}

//! Which ASIDs or VMIDs of an SMMU are in use.
//!
//! The tag rule: a tag that is not in use is clean in the SMMU's TLB. Who gives one back has flushed it; a tag whose
//! flush failed is never given back.

use allocator_api2::vec::Vec;

/// The tags of one kind on one SMMU, 1 up to `2^bits - 1`. Tag 0 is never given out.
pub(crate) struct Tags {
    used: Vec<u64>,
    count: u32,
    /// Where the search begins: tags come round again as late as possible.
    next: u32,
}

impl Tags {
    /// 8 or 16 bits. `None`: no memory.
    pub(crate) fn new(bits: u8) -> Option<Self> {
        let count = 1u32 << bits.min(16);
        let words = count as usize / 64;
        let mut used = Vec::new();
        used.try_reserve_exact(words).ok()?;
        used.resize(words, 0);
        used[0] = 1;
        Some(Tags { used, count, next: 1 })
    }

    /// A tag that nobody uses; `None` if all are in use.
    pub(crate) fn take(&mut self) -> Option<u16> {
        let free = |tag: &u32| self.used[(tag / 64) as usize] >> (tag % 64) & 1 == 0;
        let tag = (self.next..self.count).chain(0..self.next).find(free)?;
        self.used[(tag / 64) as usize] |= 1 << (tag % 64);
        self.next = (tag + 1) % self.count;
        Some(tag as u16)
    }

    /// Gives a tag back, which is clean.
    pub(crate) fn give_back(&mut self, tag: u16) {
        if tag != 0 {
            self.used[usize::from(tag) / 64] &= !(1 << (tag % 64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_tags_but_zero_are_given_out_once_and_come_round_again_late() {
        let mut tags = Tags::new(8).unwrap();
        let first: [u16; 255] = core::array::from_fn(|_| tags.take().unwrap());
        assert!(first.iter().copied().eq(1..=255));
        assert_eq!(tags.take(), None);
        tags.give_back(7);
        assert_eq!(tags.take(), Some(7));
        tags.give_back(200);
        tags.give_back(3);
        assert_eq!(tags.take(), Some(200), "the search goes on from the last tag");
        assert_eq!(tags.take(), Some(3));
        tags.give_back(0);
        assert_eq!(tags.take(), None, "tag 0 is nobody's to give back");
    }
}

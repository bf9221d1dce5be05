//! Memory for devices: a domain, and which of its addresses are in use.
//!
//! This is strict: a buffer is mapped for one transfer and unmapped after it, and its address goes at once to whoever maps next. A device or
//! a TLB that remembers the address reaches somebody else's memory, and the contents tell.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use smmuv3::PagingDomain;
use smmuv3::arch::Prot;
use smmuv3::platform::{Iova, PhysAddr};

use crate::memory::PAGE;
use crate::platform::Virt;
use crate::sabotage::{self, Sabotage};

/// The lowest address that is given out, above all of RAM: a device that gets round the SMMU reaches nothing. And it is not 0, which `virtio-drivers` takes
/// for failure.
const BASE: u64 = 1 << 32;
/// Each mapping has a slot of its own, however small it is.
const SLOT: usize = 256 << 10;
const WORDS: usize = 4;

/// A domain with the addresses in it.
pub struct Space {
    domain: PagingDomain<Virt>,
    /// A bit for each slot: it is in use.
    slots: [AtomicU64; WORDS],
    invalidations: AtomicU64,
}

impl Space {
    /// Nothing of `domain` is mapped.
    pub fn new(domain: PagingDomain<Virt>) -> Self {
        Space { domain, slots: [const { AtomicU64::new(0) }; WORDS], invalidations: AtomicU64::new(0) }
    }

    /// The domain that devices are to be attached to.
    pub fn domain(&self) -> &PagingDomain<Virt> {
        &self.domain
    }

    /// Unmaps for which the SMMUs had to invalidate, until now.
    pub fn invalidations(&self) -> u64 {
        self.invalidations.load(Ordering::Relaxed)
    }

    /// Lets the attached devices reach `buffer`; what else is in its first and last page, too.
    pub fn map(&self, buffer: NonNull<[u8]>, prot: Prot) -> Iova {
        let (first, offset, len) = pages(buffer.addr().get() as u64, buffer.len());
        assert!(len <= SLOT as u64, "a buffer of {len} bytes is too long for a slot");
        let slot = self.take_slot().expect("a free slot");
        let iova = Iova(BASE + (slot * SLOT) as u64);
        if !sabotage::is(Sabotage::Unmapped) {
            self.domain.map(iova, PhysAddr(first), len, prot).expect("a mapping");
        }
        Iova(iova.0 + offset)
    }

    /// Takes a mapping back, of a buffer of `len` bytes: when it returns, no device reaches the buffer any more.
    pub fn unmap(&self, iova: Iova, len: usize) {
        let (first, _, len) = pages(iova.0, len);
        let report = self.domain.unmap(Iova(first), len).expect("an unmapping");
        assert_eq!(report.bytes, len, "not all of {iova} was mapped");
        self.invalidations.fetch_add(report.wait_rounds.into(), Ordering::Relaxed);
        let slot = (first - BASE) as usize / SLOT;
        // Release: the unmapping comes before whoever maps here next. Partner: the Acquire in `take_slot`.
        self.slots[slot / 64].fetch_and(!(1 << (slot % 64)), Ordering::Release);
    }

    /// The lowest free slot, which is likely to be the last that became free.
    fn take_slot(&self) -> Option<usize> {
        self.slots.iter().enumerate().find_map(|(index, word)| {
            let lowest = |taken: u64| (taken != u64::MAX).then(|| taken | (taken + 1));
            // Acquire: partner of the Release in `unmap`.
            let before = word.fetch_update(Ordering::Acquire, Ordering::Relaxed, lowest).ok()?;
            Some(index * 64 + before.trailing_ones() as usize)
        })
    }
}

/// The first of the pages that `len` bytes at `addr` lie in, where in it they begin, and the pages' length.
fn pages(addr: u64, len: usize) -> (u64, u64, u64) {
    let page = PAGE as u64;
    let first = addr & !(page - 1);
    (first, addr - first, (addr + len as u64 - first).next_multiple_of(page))
}

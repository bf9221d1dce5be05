//! Translation tables: map, unmap, look up. Concurrent, without a lock.
//!
//! An entry changes by one atomic operation: mapping turns 0 into a descriptor, unmapping swaps it back to 0. Threads that work on
//! different pages never meet but where one of them adds a table, which is a compare-and-swap on the entry above it.
//!
//! A table is taken out when an unmap covers all that it maps. It is unlinked first; then each of its entries is swapped
//! for [`DEAD`], which is invalid to the SMMU and says "start again at the top" to a thread that came in before the
//! unlinking. Such a thread may still read the table, and the SMMU may still walk it: the memory is free only after the
//! invalidation has completed *and* a grace period has passed, which is why taken-out tables are handed to the caller as
//! [`DeadTables`]. Tables that run empty piece by piece stay, for the next mapping.
//!
//! Every method here that walks is called inside a read section.

mod dead;
mod map;
mod unmap;

pub(crate) use dead::DeadTables;
pub(crate) use map::MapCause;

use crate::primitive::AtomicU64;
use crate::primitive::Ordering::{Acquire, Relaxed};

use crate::arch::{Desc, DescKind, Shape};
use crate::platform::{DmaBox, Iova, PhysAddr, Platform};

/// The content of every entry of a table that was taken out: invalid to the SMMU (bit 0), but not empty.
const DEAD: u64 = 2;

/// One translation table with all its levels.
///
/// # Invariants
/// - A table descriptor that is reachable from `start` points to a table of one granule that this page table allocated.
/// - Entry values are 0, a descriptor with bit 0 set, or, in tables that were taken out, not 0 with bit 0 clear.
pub(crate) struct PageTable<P: Platform> {
    platform: P,
    shape: Shape,
    start: DmaBox<P>,
    /// Tables that were taken out and invalidated, but could not be freed yet.
    parked: AtomicU64,
}

/// What stands in an entry.
#[derive(Clone, Copy)]
enum Slot {
    Empty,
    Dead,
    Table(PhysAddr),
    Leaf(PhysAddr),
}

impl<P: Platform> PageTable<P> {
    /// An empty table. `None`: no memory.
    pub(crate) fn new(platform: &P, shape: Shape) -> Option<Self> {
        let start = DmaBox::new(platform, shape.start_size(), shape.start_size())?;
        Some(PageTable { platform: platform.clone(), shape, start, parked: AtomicU64::new(0) })
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The address for `CD.TTB0` or `STE.S2TTB`.
    pub(crate) fn root(&self) -> PhysAddr {
        self.start.addr()
    }

    /// Sees to it that no table is freed when the page table is dropped: an SMMU may still reach them.
    pub(crate) fn keep_forever(&self) {
        self.start.keep_forever();
    }

    /// The address that `iova` translates to.
    pub(crate) fn lookup(&self, iova: Iova) -> Option<PhysAddr> {
        let (addr, size) = self.leaf(iova)?;
        Some(PhysAddr(addr.0 + (iova.0 & (size - 1))))
    }

    /// The output address and size of the page or block that maps `iova`.
    fn leaf(&self, iova: Iova) -> Option<(PhysAddr, u64)> {
        if iova.0 >= self.shape.input_end() {
            return None;
        }
        let mut table = self.start.words();
        for level in self.shape.start_level()..=3 {
            match self.slot(table.get(self.shape.index(iova.0, level))?.load(Acquire), level) {
                Slot::Table(next) => table = self.table(next),
                Slot::Leaf(addr) => return Some((addr, 1 << self.shape.level_shift(level))),
                Slot::Empty | Slot::Dead => return None,
            }
        }
        None
    }

    fn slot(&self, word: u64, level: u8) -> Slot {
        match Desc(word).kind(level, self.shape.granule()) {
            DescKind::Table(next) => Slot::Table(next),
            DescKind::Leaf(addr) => Slot::Leaf(addr),
            DescKind::Invalid if word == 0 => Slot::Empty,
            DescKind::Invalid => Slot::Dead,
        }
    }

    /// The entries of a table below the start level. Empty if the address is none of ours, which a walk takes for unmapped.
    fn table(&self, addr: PhysAddr) -> &[AtomicU64] {
        self.platform.window().words(addr, self.shape.entries()).unwrap_or(&[])
    }

    fn new_table(&self) -> Option<PhysAddr> {
        let size = self.shape.granule().size() as usize;
        Some(DmaBox::new(&self.platform, size, size)?.into_raw())
    }

    fn free_table(&self, addr: PhysAddr) {
        let size = self.shape.granule().size() as usize;
        self.platform.dma_free(addr, size, size);
    }

    fn free_below(&self, table: &[AtomicU64], level: u8) {
        for word in table {
            if let Slot::Table(next) = self.slot(word.load(Relaxed), level) {
                self.free_below(self.table(next), level + 1);
                self.free_table(next);
            }
        }
    }
}

impl<P: Platform> Drop for PageTable<P> {
    /// Frees all tables. No SMMU reaches them any more, or [`PageTable::keep_forever`] was called.
    fn drop(&mut self) {
        if !self.start.is_kept() {
            let parked = self.take_parked();
            self.free(parked);
            self.free_below(self.start.words(), self.shape.start_level());
        }
    }
}

#[cfg(test)]
#[path = "pgtable_test.rs"]
mod tests;

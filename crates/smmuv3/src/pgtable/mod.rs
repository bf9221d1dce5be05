//! Translation tables: map, unmap, look up. Concurrent, without a lock.
//!
//! An entry changes by one atomic operation: mapping turns 0 into a descriptor, unmapping swaps it back to 0. Threads that work on
//! different pages never meet but where one of them adds a table, which is a compare-and-swap on the entry above it.
//!
//! Atomic operations that read and write cost ten times what a store does, so whole tables of pages go without: a new one is filled before it
//! is linked, one that is there is filled by stores ([`map`]), and one that is taken out is only read.
//!
//! A table is taken out when an unmap covers all that it maps. It is unlinked first; then it is marked [`DEAD`], which is invalid to the
//! SMMU and says "start again at the top" to a thread that came in before the unlinking. Where tables or blocks may stand, each entry is
//! swapped for the mark. In a table of pages only the first is; whoever maps in such a table looks at its first entry afterwards: either he sees the
//! mark, takes his pages back and starts again, or the one who marked sees them, and counts them among the unmapped.
//! Such threads may still read the table, and the SMMU may still walk it: the memory is free only after the invalidation has completed *and* a grace
//! period has passed, which is why taken-out tables are handed to the caller as [`DeadTables`]. Tables that run empty piece by piece stay, for
//! the next mapping.
//!
//! Callers that map or unmap the same pages at the same moment lose no page and no memory, but of two that map a page both may be told that it is theirs
//! (it is one's), and of two that unmap it both may count it.
//!
//! Every method here that walks is called inside a read section.

mod clean;
mod dead;
mod map;
mod unmap;

pub(crate) use dead::DeadTables;
pub(crate) use map::{MapCause, MapFailure};
pub(crate) use unmap::Unmapped;

use crossbeam_utils::CachePadded;

use crate::primitive::AtomicU64;
use crate::primitive::Ordering::{Acquire, Relaxed};

use crate::arch::{Desc, Shape};
use crate::platform::{DmaBox, Iova, PhysAddr, Platform};

/// The mark of a table that was taken out: invalid to the SMMU (bit 0), but not empty. Bit 1 is clear as in all that leads no walk on.
const DEAD: u64 = 4;

/// One translation table with all its levels.
///
/// # Invariants
/// - A table descriptor that is reachable from `start` points to a table of one granule that this page table allocated.
/// - Entry values are 0, a descriptor with bit 0 set, or, in tables that were taken out, not 0 with bits 0 and 1 clear.
/// - The first entry of a table of pages that was taken out is of the last kind, and only the list of [`DeadTables`] changes it.
pub(crate) struct PageTable<P: Platform> {
    platform: P,
    shape: Shape,
    /// log2 of what an entry maps at the start level and at level 3. Levels are told apart by it in walks.
    top: u32,
    page: u32,
    /// The bytes of a page, and the first address behind the input range and behind the output range.
    page_size: u64,
    input_end: u64,
    output_end: u64,
    start: DmaBox<P>,
    /// Tables that were taken out and invalidated, but could not be freed yet.
    parked: CachePadded<AtomicU64>,
}

/// What stands in an entry.
#[derive(Clone, Copy)]
enum Slot {
    Empty,
    Dead,
    Table(PhysAddr),
    Leaf,
}

/// Where a walk ended: an entry, and what was read there.
struct Found<'a> {
    table: PhysAddr,
    /// The first entry of the table, below the start level.
    first: &'a AtomicU64,
    entry: &'a AtomicU64,
    word: u64,
    /// log2 of the bytes that the entry maps.
    shift: u32,
}

impl<P: Platform> PageTable<P> {
    /// An empty table. `None`: no memory.
    pub(crate) fn new(platform: &P, shape: Shape) -> Option<Self> {
        let start = DmaBox::new(platform, shape.start_size(), shape.start_size())?;
        let (top, page) = (shape.level_shift(shape.start_level()), shape.level_shift(3));
        let parked = CachePadded::new(AtomicU64::new(0));
        let (input_end, output_end) = (shape.input_end(), 1 << shape.output_size().bits());
        let platform = platform.clone();
        let page_size = 1 << page;
        Some(PageTable { platform, shape, top, page, page_size, input_end, output_end, start, parked })
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

    /// Whether `len` bytes from `iova` on are whole pages in the input range.
    #[inline]
    pub(crate) fn takes(&self, iova: Iova, len: u64) -> bool {
        self.are_pages(iova.0, len, self.input_end)
    }

    /// Whether `len` bytes from `paddr` on are whole pages in the output range.
    #[inline]
    pub(crate) fn reaches(&self, paddr: PhysAddr, len: u64) -> bool {
        self.are_pages(paddr.0, len, self.output_end)
    }

    #[inline]
    fn are_pages(&self, first: u64, len: u64, end: u64) -> bool {
        let aligned = (first | len) & (self.page_size - 1) == 0;
        // Both ends are whole pages, so that a page that begins before one ends there at the latest.
        aligned && first < end && (len == self.page_size || (len != 0 && len <= end - first))
    }

    /// The address that `iova` translates to.
    #[inline]
    pub(crate) fn lookup(&self, iova: Iova) -> Option<PhysAddr> {
        let (addr, size) = self.leaf(iova)?;
        Some(PhysAddr(addr.0 + (iova.0 & (size - 1))))
    }

    /// The output address and size of the page or block that maps `iova`.
    #[inline]
    fn leaf(&self, iova: Iova) -> Option<(PhysAddr, u64)> {
        if iova.0 >= self.input_end {
            return None;
        }
        let found = self.find(iova.0, self.page)?;
        let desc = Desc(found.word);
        if desc.is_valid() { Some((desc.addr(), 1 << found.shift)) } else { None }
    }

    /// Walks towards `iova`, which lies in the input range: to the first entry that is no table's, or that maps `1 << stop` bytes or less.
    /// None if a table is not where this page table's are.
    #[inline]
    fn find(&self, iova: u64, stop: u32) -> Option<Found<'_>> {
        // The usual granule has a walk of its own, in which what follows from the granule is constant.
        if self.page == 12 { self.walk(iova, stop, 12) } else { self.walk_any(iova, stop) }
    }

    #[inline(never)]
    fn walk_any(&self, iova: u64, stop: u32) -> Option<Found<'_>> {
        self.walk(iova, stop, self.page)
    }

    /// [`find`](Self::find) where pages have `1 << page` bytes.
    #[inline(always)]
    fn walk(&self, iova: u64, stop: u32, page: u32) -> Option<Found<'_>> {
        let window = self.platform.window();
        let stride = page - 3;
        let tables = window.pieces(1 << stride)?;
        let (mut table, mut shift) = (self.root(), self.top);
        // At the start level over all concatenated tables.
        let mut entry = window.word(PhysAddr(table.0 + 8 * (iova >> shift)))?;
        let mut first = entry;
        loop {
            // Acquire: a table of another thread comes before what is mapped in it. litmus: map-go
            let word = entry.load(Acquire);
            if !Desc(word).is_table_or_page() || shift <= stop {
                return Some(Found { table, first, entry, word, shift });
            }
            table = Desc(word).addr();
            shift -= stride;
            let words = tables.at(table)?;
            first = words.first()?;
            entry = words.get((iova >> shift) as usize & ((1 << stride) - 1))?;
        }
    }

    /// log2 of the entries of a table.
    #[inline]
    fn stride(&self) -> u32 {
        self.page - 3
    }

    /// The index of the last entry of a table below the start level.
    #[inline]
    fn last_index(&self) -> u64 {
        (1 << self.stride()) - 1
    }

    /// The index of `iova` in a table whose entries map `1 << shift` bytes; at the start level over all concatenated tables.
    fn index(&self, iova: u64, shift: u32) -> u64 {
        let index = iova >> shift;
        if shift == self.top { index } else { index & self.last_index() }
    }

    /// Entries of a `table` whose entries map `1 << shift` bytes: `count` from that for `iova` on.
    fn entries(&self, table: PhysAddr, iova: u64, shift: u32, count: u64) -> &[AtomicU64] {
        let first = PhysAddr(table.0 + 8 * self.index(iova, shift));
        // None if the address is none of ours, which a walk takes for unmapped.
        self.platform.window().words(first, count as usize).unwrap_or(&[])
    }

    /// The level of tables whose entries map `1 << shift` bytes.
    fn level(&self, shift: u32) -> u8 {
        if shift == self.page { 3 } else { 3 - ((shift - self.page) / self.stride()) as u8 }
    }

    /// What `word` is in a table whose entries map `1 << shift` bytes. All descriptors are of this page table's making, so that of their
    /// kinds only those are told apart that it makes.
    #[inline]
    fn slot(&self, word: u64, shift: u32) -> Slot {
        let desc = Desc(word);
        match desc.is_valid() {
            true if desc.is_table_or_page() && shift != self.page => Slot::Table(desc.addr()),
            true => Slot::Leaf,
            false if word == 0 => Slot::Empty,
            false => Slot::Dead,
        }
    }

    /// The entries of a table below the start level.
    fn table(&self, addr: PhysAddr) -> &[AtomicU64] {
        self.platform.window().words(addr, self.shape.entries()).unwrap_or(&[])
    }

    /// A table whose words `fill` has written. `None`: no memory.
    fn new_table(&self, fill: impl FnOnce(&[AtomicU64])) -> Option<PhysAddr> {
        let size = self.shape.granule().size() as usize;
        Some(DmaBox::filled(&self.platform, size, size, fill)?.into_raw())
    }

    fn free_table(&self, addr: PhysAddr) {
        let size = self.shape.granule().size() as usize;
        self.platform.dma_free(addr, size, size);
    }

    fn free_below(&self, table: &[AtomicU64], shift: u32) {
        for word in table {
            if let Slot::Table(next) = self.slot(word.load(Relaxed), shift) {
                self.free_below(self.table(next), shift - self.stride());
                self.free_table(next);
            }
        }
    }
}

/// Whether the first entry of a table says that the table was taken out.
fn is_mark(word: u64) -> bool {
    word != 0 && !Desc(word).is_valid()
}

impl<P: Platform> Drop for PageTable<P> {
    /// Frees all tables. No SMMU reaches them any more, or [`PageTable::keep_forever`] was called.
    fn drop(&mut self) {
        if !self.start.is_kept() {
            let parked = self.take_parked();
            self.free(parked);
            self.free_below(self.start.words(), self.top);
        }
    }
}

#[cfg(test)]
#[path = "pgtable_test.rs"]
mod tests;

//! Unmapping: leaves are cleared, tables that the range covers wholly are taken out.

use crate::primitive::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use crate::primitive::{AtomicU64, fence};

use core::slice;

use super::{DEAD, DeadTables, PageTable, Slot};
use crate::arch::Desc;
use crate::platform::{Iova, PhysAddr, Platform};

/// What an unmap found.
#[derive(Debug, Default)]
pub(crate) struct Unmapped {
    /// Bytes that were mapped and are no longer.
    pub(crate) bytes: u64,
    /// The size of the smallest leaf among them; 0 where there was none.
    pub(crate) smallest_leaf: u64,
    /// Tables that were taken out.
    pub(crate) tables: DeadTables,
}

impl Unmapped {
    #[inline]
    fn leaves(&mut self, count: u64, size: u64) {
        if count > 0 {
            self.bytes += count * size;
            self.smallest_leaf = if self.smallest_leaf == 0 { size } else { self.smallest_leaf.min(size) };
        }
    }
}

impl<P: Platform> PageTable<P> {
    /// Unmaps what is mapped in `iova .. iova + len`; holes are passed over. Numbers as in [`PageTable::map`].
    ///
    /// A block that the range covers only in part is an error (its address and size), and nothing is changed.
    #[inline]
    pub(crate) fn unmap(&self, iova: Iova, len: u64) -> Result<Unmapped, (Iova, u64)> {
        let found = self.clear(iova, len);
        // What others have cleared. What was cleared here is clean already, also in a table that another has taken out meanwhile.
        self.clean(iova, len);
        found
    }

    #[inline]
    fn clear(&self, iova: Iova, len: u64) -> Result<Unmapped, (Iova, u64)> {
        if len != self.page_size {
            return self.unmap_long(iova, len);
        }
        // The way that most unmapping goes: nothing but a block can reach out of a page.
        let Some(found) = self.find(iova.0, self.page) else { return Ok(Unmapped::default()) };
        if found.shift == self.page {
            let pages = unmap_page(found.entry, found.word);
            self.platform.clean(slice::from_ref(found.entry));
            Ok(Unmapped { bytes: pages * len, smallest_leaf: pages * len, tables: DeadTables::default() })
        } else {
            self.check_edge(iova.0, iova.0, iova.0 + len).map(|()| Unmapped::default())
        }
    }

    #[inline(never)]
    fn unmap_long(&self, iova: Iova, len: u64) -> Result<Unmapped, (Iova, u64)> {
        let (at, end) = (iova.0, iova.0 + len);
        let mut unmapped = Unmapped::default();
        // Down to the table in which the range takes more than a part of one entry.
        let stop = 63 - (len | (at ^ (end - 1))).leading_zeros();
        let Some(found) = self.find(at, stop) else { return Ok(unmapped) };
        if found.shift == self.page {
            self.unmap_pages(found.table, at, len, &mut unmapped);
        } else if found.shift <= stop {
            // Only the blocks at both ends can reach out of the range.
            for edge in [at, end - 1] {
                self.check_edge(edge, at, end)?;
            }
            self.unmap_in(found.table, found.shift, at, end, &mut unmapped);
        } else {
            self.check_edge(at, at, end)?;
        }
        Ok(unmapped)
    }

    /// That the block or page that maps `edge`, if any, lies in `at .. end`.
    #[cold]
    fn check_edge(&self, edge: u64, at: u64, end: u64) -> Result<(), (Iova, u64)> {
        match self.leaf(Iova(edge)) {
            Some((_, size)) => {
                let start = edge & !(size - 1);
                if start < at || start + size > end { Err((Iova(start), size)) } else { Ok(()) }
            }
            None => Ok(()),
        }
    }

    /// Unmaps `at .. end`, which lies in this `table`, whose entries map `1 << shift` bytes, more than a page.
    fn unmap_in(&self, table: PhysAddr, shift: u32, mut at: u64, end: u64, unmapped: &mut Unmapped) {
        let size = 1u64 << shift;
        for entry in self.entries(table, at, shift, ((end - 1) >> shift) - (at >> shift) + 1) {
            let next = end.min((at & !(size - 1)) + size);
            let whole = next - at == size;
            loop {
                let word = entry.load(Acquire);
                match self.slot(word, shift) {
                    Slot::Leaf | Slot::Table(_) if whole => {
                        // Only what was seen is taken out: the table may be dead by now, and its words another's.
                        if entry.compare_exchange(word, 0, AcqRel, Acquire).is_err() {
                            continue;
                        }
                        self.platform.clean(slice::from_ref(entry));
                        self.unlinked(word, shift, unmapped);
                    }
                    Slot::Table(table) => {
                        let below = shift - self.stride();
                        if below == self.page {
                            self.unmap_pages(table, at, next - at, unmapped);
                        } else {
                            self.unmap_in(table, below, at, next, unmapped);
                        }
                    }
                    // A block mapped meanwhile by a thread that uses the same addresses: theirs to unmap. Or nothing is there.
                    Slot::Leaf | Slot::Empty | Slot::Dead => {}
                }
                break;
            }
            at = next;
        }
    }

    /// Unmaps `len` bytes from `at` on, which lie in this `table` of pages.
    fn unmap_pages(&self, table: PhysAddr, at: u64, len: u64, unmapped: &mut Unmapped) {
        let entries = self.entries(table, at, self.page, len >> self.page);
        let pages = entries.iter().map(|entry| unmap_page(entry, entry.load(Relaxed))).sum();
        self.platform.clean(entries);
        unmapped.leaves(pages, 1 << self.page);
    }

    /// Accounts for the content `old` of an entry that now is empty or dead.
    fn unlinked(&self, old: u64, shift: u32, found: &mut Unmapped) {
        match self.slot(old, shift) {
            Slot::Leaf => found.leaves(1, 1 << shift),
            Slot::Table(table) => self.kill(table, shift - self.stride(), found),
            Slot::Empty | Slot::Dead => {}
        }
    }

    /// Marks a table that was unlinked, so that no thread that is in it can leave anything more there.
    fn kill(&self, table: PhysAddr, shift: u32, found: &mut Unmapped) {
        let words = self.table(table);
        if shift == self.page {
            kill_pages(words, 1 << shift, found);
        } else {
            for word in words {
                // The unlinking comes before. litmus: dead-table
                let old = word.swap(DEAD, AcqRel);
                self.unlinked(old, shift, found);
            }
        }
        found.tables.push(table, words);
    }
}

/// Unmaps the page that stands in an entry, where `word` was seen just now. Returns how many pages that are, 0 or 1.
#[inline]
fn unmap_page(entry: &AtomicU64, mut word: u64) -> u64 {
    while Desc(word).is_valid() {
        // Only what was seen is taken out, and accounted for.
        match entry.compare_exchange(word, 0, AcqRel, Relaxed) {
            Ok(_) => return 1,
            Err(now) => word = now,
        }
    }
    0
}

/// Marks a table of pages by its first entry, and counts what stands in it.
fn kill_pages(words: &[AtomicU64], size: u64, found: &mut Unmapped) {
    let Some((first, others)) = words.split_first() else { return };
    // The unlinking comes before. litmus: dead-table
    let first = first.swap(DEAD, SeqCst);
    // The mark comes before the look at the pages: who maps one that is not seen here sees the mark. Partners: the SeqCst operations and the
    // fence of `map`. litmus: table-mark
    fence(SeqCst);
    let others = others.iter().map(|word| word.load(Relaxed));
    let pages = [first].into_iter().chain(others).filter(|&word| Desc(word).is_valid()).count();
    found.leaves(pages as u64, size);
}

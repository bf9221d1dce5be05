//! Unmapping: leaves are cleared, tables that the range covers wholly are taken out.

use crate::primitive::AtomicU64;
use crate::primitive::Ordering::{AcqRel, Acquire};

use super::{DEAD, DeadTables, PageTable, Slot};
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
    fn leaf(&mut self, size: u64) {
        self.bytes += size;
        self.smallest_leaf = if self.smallest_leaf == 0 { size } else { self.smallest_leaf.min(size) };
    }
}

impl<P: Platform> PageTable<P> {
    /// Unmaps what is mapped in `iova .. iova + len`; holes are passed over. Numbers as in [`PageTable::map`].
    ///
    /// A block that the range covers only in part is an error (its address and size), and nothing is changed.
    pub(crate) fn unmap(&self, iova: Iova, len: u64) -> Result<Unmapped, (Iova, u64)> {
        let end = iova.0 + len;
        // Only the blocks at both ends can reach out of the range.
        for edge in [iova.0, end - 1] {
            if let Some((_, size)) = self.leaf(Iova(edge)) {
                let start = edge & !(size - 1);
                if start < iova.0 || start + size > end {
                    return Err((Iova(start), size));
                }
            }
        }
        let mut found = Unmapped::default();
        self.unmap_in(self.start.words(), self.shape.start_level(), iova.0, end, &mut found);
        Ok(found)
    }

    /// Unmaps `at .. end`, which lies in this `table`.
    fn unmap_in(&self, table: &[AtomicU64], level: u8, mut at: u64, end: u64, found: &mut Unmapped) {
        let size = 1u64 << self.shape.level_shift(level);
        while at < end {
            let Some(entry) = table.get(self.shape.index(at, level)) else { return };
            let next = (at & !(size - 1)) + size;
            let whole = at & (size - 1) == 0 && end - at >= size;
            let old = entry.load(Acquire);
            match self.slot(old, level) {
                Slot::Leaf(_) | Slot::Table(_) if whole => {
                    // Only what was seen is taken out: the table may be dead by now, and its words another's.
                    if entry.compare_exchange(old, 0, AcqRel, Acquire).is_err() {
                        continue;
                    }
                    self.unlinked(old, level, size, found);
                }
                Slot::Table(table) => self.unmap_in(self.table(table), level + 1, at, end.min(next), found),
                // A block mapped meanwhile by a thread that uses the same addresses: theirs to unmap. Or nothing is there.
                Slot::Leaf(_) | Slot::Empty | Slot::Dead => {}
            }
            at = next;
        }
    }

    /// Accounts for the content `old` of an entry that now is empty or dead.
    fn unlinked(&self, old: u64, level: u8, size: u64, found: &mut Unmapped) {
        match self.slot(old, level) {
            Slot::Leaf(_) => found.leaf(size),
            Slot::Table(table) => self.kill(table, level + 1, found),
            Slot::Empty | Slot::Dead => {}
        }
    }

    /// Empties a table that was unlinked, so that no thread that is in it can map anything more there.
    fn kill(&self, table: PhysAddr, level: u8, found: &mut Unmapped) {
        let size = 1u64 << self.shape.level_shift(level);
        let words = self.table(table);
        for word in words {
            // The unlinking comes before. litmus: dead-table
            let old = word.swap(DEAD, AcqRel);
            self.unlinked(old, level, size, found);
        }
        found.tables.push(table, words);
    }
}

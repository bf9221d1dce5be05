//! Cache maintenance, for SMMUs whose table walks do not look into the CPU's caches.

use super::{PageTable, Slot};
use crate::platform::{Iova, PhysAddr, Platform};
use crate::primitive::Ordering::Acquire;

impl<P: Platform> PageTable<P> {
    /// Writes all entries back to memory that stand on the way to `len` bytes from `iova` on. They may be of other threads: a page is mapped for the
    /// SMMU when all tables above it are linked, and unmapped when its own entry is empty or one above it, whoever has changed that.
    #[inline]
    pub(super) fn clean(&self, iova: Iova, len: u64) {
        if P::CACHE_MAINTENANCE {
            self.clean_in(self.root(), self.top, iova.0, iova.0 + len);
        }
    }

    /// Writes entries for `at .. end` back, which lies in this `table`, whose entries map `1 << shift` bytes.
    fn clean_in(&self, table: PhysAddr, shift: u32, at: u64, end: u64) {
        let size = 1u64 << shift;
        let entries = self.entries(table, at, shift, ((end - 1) >> shift) - (at >> shift) + 1);
        let mut from = at;
        for entry in entries {
            let to = end.min((from & !(size - 1)) + size);
            if shift > self.page
                && let Slot::Table(below) = self.slot(entry.load(Acquire), shift)
            {
                self.clean_in(below, shift - self.stride(), from, to);
            }
            from = to;
        }
        // Behind the look at them: where an entry led nowhere, that is what the SMMU sees; where it led to a table, the entries there are clean.
        self.platform.clean(entries);
    }
}

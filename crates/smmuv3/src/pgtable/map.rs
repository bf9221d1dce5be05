//! Mapping: from the top down, adding tables where there are none, in the largest leaves that fit.

use crate::primitive::Ordering::{AcqRel, Acquire};

use super::{PageTable, Slot};
use crate::arch::{Desc, Prot};
use crate::platform::{Iova, PhysAddr, Platform};

/// Why mapping stopped. Everything below `at` that was asked for is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MapFailure {
    pub(crate) at: Iova,
    pub(crate) cause: MapCause,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MapCause {
    /// A page is mapped there already.
    Mapped,
    /// No memory for a table.
    NoMemory,
}

impl<P: Platform> PageTable<P> {
    /// Maps `len` bytes. All numbers are multiples of the granule, and the ranges lie in the input and output range.
    ///
    /// The descriptors are visible to the SMMU after the caller's next barrier.
    pub(crate) fn map(&self, iova: Iova, paddr: PhysAddr, len: u64, prot: Prot) -> Result<(), MapFailure> {
        let end = iova.0 + len;
        let mut at = iova.0;
        while at < end {
            let paddr = PhysAddr(paddr.0 + (at - iova.0));
            at = self.map_some(at, end, paddr, prot).map_err(|cause| MapFailure { at: Iova(at), cause })?;
        }
        Ok(())
    }

    /// Maps the leaves from `at` on that lie in one table. Returns how far it came.
    fn map_some(&self, at: u64, end: u64, paddr: PhysAddr, prot: Prot) -> Result<u64, MapCause> {
        'top: loop {
            let mut table = self.start.words();
            let mut level = self.shape.start_level();
            loop {
                let size = 1u64 << self.shape.level_shift(level);
                let index = self.shape.index(at, level);
                let Some(entry) = table.get(index) else { return Err(MapCause::NoMemory) };
                let fits = self.shape.leaf_at(level) && (at | paddr.0) & (size - 1) == 0 && end - at >= size;
                // Acquire: a table of another thread comes before what is mapped in it. litmus: map-go
                let next = match self.slot(entry.load(Acquire), level) {
                    Slot::Table(next) => next,
                    Slot::Leaf(_) => return Err(MapCause::Mapped),
                    Slot::Dead => continue 'top,
                    Slot::Empty if fits => {
                        let count = ((end - at) / size).min((table.len() - index) as u64);
                        let mut done = 0;
                        for entry in &table[index..index + count as usize] {
                            let desc = Desc::leaf(PhysAddr(paddr.0 + done * size), level, self.shape.stage(), prot);
                            // Something stands there: the next round looks at what.
                            if entry.compare_exchange(0, desc.0, AcqRel, Acquire).is_err() {
                                break;
                            }
                            done += 1;
                        }
                        if done == 0 {
                            continue 'top;
                        }
                        return Ok(at + done * size);
                    }
                    Slot::Empty => {
                        let new = self.new_table().ok_or(MapCause::NoMemory)?;
                        // The SMMU must not see the descriptor before the zeros of the table. litmus: table-link
                        self.platform.write_barrier();
                        if entry.compare_exchange(0, Desc::table(new).0, AcqRel, Acquire).is_err() {
                            // Another thread was faster; nobody has seen ours.
                            self.free_table(new);
                            continue 'top;
                        }
                        new
                    }
                };
                table = self.table(next);
                level += 1;
            }
        }
    }
}

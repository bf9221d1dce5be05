//! Mapping: from the top down, adding tables where there are none, in the largest leaves that fit.

use crate::primitive::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::primitive::{AtomicU64, between_sequential_accesses, fence};

use core::{ptr, slice};

use super::{Found, PageTable, Slot, is_mark};
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

/// What is to be mapped next, of a call of [`PageTable::map`].
#[derive(Clone, Copy)]
struct Rest {
    at: u64,
    end: u64,
    paddr: u64,
    prot: Prot,
}

impl Rest {
    /// Whether an entry that maps `1 << shift` bytes can map the first of it.
    fn fits(&self, shift: u32) -> bool {
        let size = 1u64 << shift;
        (self.at | self.paddr) & (size - 1) == 0 && self.end - self.at >= size
    }
}

/// Leaves that stand one after the other in a table.
#[derive(Clone, Copy)]
struct Run {
    /// The index of the first.
    index: usize,
    count: usize,
    /// The descriptor of the first, and the size of each.
    desc: u64,
    size: u64,
}

impl Run {
    fn bytes(self, count: usize) -> u64 {
        count as u64 * self.size
    }

    fn descs(self) -> impl Iterator<Item = u64> {
        (0..self.count as u64).map(move |number| self.desc + number * self.size)
    }
}

impl<P: Platform> PageTable<P> {
    /// Maps `len` bytes. All numbers are multiples of the granule, and the ranges lie in the input and output range.
    ///
    /// The descriptors are visible to the SMMU after the caller's next barrier.
    #[inline]
    pub(crate) fn map(&self, iova: Iova, paddr: PhysAddr, len: u64, prot: Prot) -> Result<(), MapFailure> {
        let page = len == self.page_size && self.map_page(iova, Desc::leaf(paddr, 3, self.shape.stage(), prot));
        let result =
            if page { Ok(()) } else { self.map_long(Rest { at: iova.0, end: iova.0 + len, paddr: paddr.0, prot }) };
        self.clean(iova, len);
        result
    }

    /// Maps a page if its table is there and nothing stands in its entry. False: nothing was done.
    #[inline]
    fn map_page(&self, iova: Iova, desc: Desc) -> bool {
        let Some(found) = self.find(iova.0, self.page) else { return false };
        // SeqCst: comes before the look at the table's mark. Partner: the fence in `unmap::kill_pages`. litmus: table-mark
        if found.shift != self.page || found.entry.compare_exchange(0, desc.0, SeqCst, Relaxed).is_err() {
            return false;
        }
        let dead = is_dead(found.first);
        if dead {
            self.take_back(slice::from_ref(found.entry), ptr::eq(found.entry, found.first));
        }
        !dead
    }

    #[inline(never)]
    fn map_long(&self, mut rest: Rest) -> Result<(), MapFailure> {
        while rest.at < rest.end {
            let done = self.map_some(rest).map_err(|cause| MapFailure { at: Iova(rest.at), cause })?;
            rest.at += done;
            rest.paddr += done;
        }
        Ok(())
    }

    /// Maps the first leaves of `rest`, those that lie in one table. Returns their bytes.
    fn map_some(&self, rest: Rest) -> Result<u64, MapCause> {
        loop {
            let Some(found) = self.find(rest.at, self.page) else { return Err(MapCause::NoMemory) };
            let mapped = match self.slot(found.word, found.shift) {
                Slot::Leaf | Slot::Table(_) => return Err(MapCause::Mapped),
                Slot::Empty if found.shift == self.page || self.is_block(rest, found.shift) => {
                    self.map_run(rest, &found)
                }
                Slot::Empty => self.add_table(rest, &found)?,
                Slot::Dead => 0,
            };
            // Nothing: another thread was here, or there is a table more now. The next walk sees what stands there.
            if mapped > 0 {
                return Ok(mapped);
            }
        }
    }

    /// Adds a table where there is none, with those leaves of `rest` in it that belong there. Returns their bytes.
    fn add_table(&self, rest: Rest, found: &Found<'_>) -> Result<u64, MapCause> {
        let shift = found.shift - self.stride();
        let run = (shift == self.page || self.is_block(rest, shift)).then(|| self.run(rest, shift));
        // What is mapped in a table that nobody else has seen takes no more than stores.
        let new = self.new_table(|words| fill(words, run)).ok_or(MapCause::NoMemory)?;
        // The SMMU must not see the descriptor before the contents of the table. litmus: table-link
        self.platform.write_barrier();
        if found.entry.compare_exchange(0, Desc::table(new).0, AcqRel, Acquire).is_err() {
            // Another thread was faster; nobody has seen ours.
            self.free_table(new);
            return Ok(0);
        }
        Ok(run.map_or(0, |run| run.bytes(run.count)))
    }

    /// Whether `rest` begins with a block of `1 << shift` bytes.
    fn is_block(&self, rest: Rest, shift: u32) -> bool {
        rest.fits(shift) && self.shape.leaf_at(self.level(shift))
    }

    /// The leaves of `1 << shift` bytes that `rest` begins with, in one table.
    fn run(&self, rest: Rest, shift: u32) -> Run {
        let level = self.level(shift);
        let index = self.index(rest.at, shift) as usize;
        let entries = if shift == self.top { self.shape.start_size() / 8 } else { self.shape.entries() };
        let count = ((rest.end - rest.at) >> shift).min((entries - index) as u64) as usize;
        let desc = Desc::leaf(PhysAddr(rest.paddr), level, self.shape.stage(), rest.prot).0;
        Run { index, count, desc, size: 1 << shift }
    }

    /// Maps the leaves that `rest` begins with in the table that was found, up to the first entry where something stands. Returns their bytes; 0 also
    /// where the table has been taken out.
    fn map_run(&self, rest: Rest, found: &Found<'_>) -> u64 {
        let run = self.run(rest, found.shift);
        let words = self.entries(found.table, rest.at, found.shift, run.count as u64);
        let pages = found.shift == self.page;
        let done = if pages && run.count == self.shape.entries() { store(words, run) } else { swap_in(words, run) };
        if pages && is_dead(found.first) {
            self.take_back(&words[..done], run.index == 0);
            return 0;
        }
        run.bytes(done)
    }

    /// Takes back what was mapped in a table of pages that was taken out. Its first entry is the mark, and stays.
    ///
    /// Whoever took the table out may have seen the pages or not. They go before they are mapped elsewhere: who unmaps them there does not make the SMMU
    /// forget a table that is here. litmus: table-again
    #[cold]
    pub(super) fn take_back(&self, mapped: &[AtomicU64], from_first: bool) {
        mapped.iter().skip(usize::from(from_first)).for_each(|word| word.store(0, Relaxed));
        self.platform.clean(mapped);
        // They go before all that is mapped from here on, also by stores.
        fence(Release);
    }
}

/// Whether a table of pages was taken out, by its first entry. The caller has just mapped in it.
#[inline]
fn is_dead(first: &AtomicU64) -> bool {
    between_sequential_accesses();
    // SeqCst: comes after the mapping. Partner: the swap in `unmap::kill_pages`. litmus: table-mark
    is_mark(first.load(SeqCst))
}

/// Writes a table that nobody else has seen: the run, and zeros.
fn fill(words: &[AtomicU64], run: Option<Run>) {
    let Some(run) = run else { return words.iter().for_each(|word| word.store(0, Relaxed)) };
    let (before, rest) = words.split_at(run.index.min(words.len()));
    let (inside, behind) = rest.split_at(run.count.min(rest.len()));
    before.iter().chain(behind).for_each(|word| word.store(0, Relaxed));
    inside.iter().zip(run.descs()).for_each(|(word, desc)| word.store(desc, Relaxed));
}

/// Maps a run, each entry by a compare-and-swap, up to the first where something stands. Returns the number of leaves.
fn swap_in(words: &[AtomicU64], run: Run) -> usize {
    let mut done = 0;
    for (word, desc) in words.iter().zip(run.descs()) {
        // SeqCst: comes before the look at the table's mark. Partner: the fence in `unmap::kill_pages`. litmus: table-mark
        if word.compare_exchange(0, desc, SeqCst, Acquire).is_err() {
            break;
        }
        done += 1;
    }
    done
}

/// Maps all pages of a table, up to the first where something stands. Returns their number.
///
/// The first entry tells of two threads that do so which has the table. Who maps a single page in it at the same moment is not noticed.
fn store(words: &[AtomicU64], run: Run) -> usize {
    let mut descs = words.iter().zip(run.descs());
    let Some((first, desc)) = descs.next() else { return 0 };
    if first.compare_exchange(0, desc, AcqRel, Acquire).is_err() {
        return 0;
    }
    let mut done = 1;
    for (word, desc) in descs {
        if word.load(Relaxed) != 0 {
            break;
        }
        word.store(desc, Relaxed);
        done += 1;
    }
    // The stores come before the look at the table's mark. Partner: the fence in `unmap::kill_pages`. litmus: table-mark
    fence(SeqCst);
    done
}

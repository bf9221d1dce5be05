//! RAM, and who owns each page of it.
//!
//! Every 4 KiB page is free, the driver's, or a data page. A page that becomes free is poisoned at once. The state of a
//! page and the moment at which it last changed are one atomic word, so that a device access can be judged against
//! it without a lock.
//!
//! Moments are *ticks*: a counter that every change of a page and every fill of a cache advances. They put the
//! history of a stale access in order, and cost less than a clock.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use smmuv3::platform::PhysAddr;

use crate::oracle::Oracle;

pub(crate) const PAGE: u64 = 4096;
const WORDS_PER_PAGE: usize = PAGE as usize / 8;

/// What a free page is filled with. As a descriptor it is a block at an address that no RAM has, or nothing at level 3.
pub const POISON: u64 = 0xdead_dead_dead_dead;

/// Locks, and does not care whether another thread panicked while it held the lock: that test fails by itself.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who owns a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Free,
    Driver,
    Data,
}

/// The state of a page at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageState {
    pub owner: Owner,
    /// When it became so.
    pub since: u64,
}

impl PageState {
    fn unpack(word: u64) -> Self {
        let owner = match word & 3 {
            0 => Owner::Free,
            1 => Owner::Driver,
            _ => Owner::Data,
        };
        PageState { owner, since: word >> 2 }
    }

    fn pack(owner: Owner, since: u64) -> u64 {
        since << 2 | owner as u64
    }
}

/// The driver's live allocations, and the next page to try.
#[derive(Default)]
struct Allocator {
    next: usize,
    driver: HashMap<u64, (usize, usize)>,
}

/// RAM with an owner for each page.
pub(crate) struct Memory {
    words: Arc<[AtomicU64]>,
    /// What an SMMU sees that does not look into the CPU's caches: `words` is what stands in those. Empty where there is no such SMMU.
    uncached: Box<[AtomicU64]>,
    /// One copy at a time, so that an older one does not replace a newer.
    copying: Mutex<()>,
    /// Some words that such SMMUs have read of late.
    recent: [AtomicUsize; 8],
    base: u64,
    pages: Box<[AtomicU64]>,
    tick: AtomicU64,
    allocator: Mutex<Allocator>,
    driver_pages: AtomicUsize,
    data_pages: AtomicUsize,
    /// Driver allocations that may still succeed; `u64::MAX` is no limit.
    budget: AtomicU64,
    /// Driver allocations asked for so far.
    requests: AtomicU64,
    oracle: Arc<Oracle>,
}

impl Memory {
    pub(crate) fn new(size: usize, base: PhysAddr, caches: bool, oracle: Arc<Oracle>) -> Self {
        assert!(size > 0 && size.is_multiple_of(PAGE as usize), "RAM is whole pages");
        assert!(base.0.is_multiple_of(PAGE), "RAM starts at a page");
        Memory {
            words: (0..size / 8).map(|_| AtomicU64::new(POISON)).collect(),
            uncached: (0..if caches { size / 8 } else { 0 }).map(|_| AtomicU64::new(POISON)).collect(),
            copying: Mutex::default(),
            recent: Default::default(),
            base: base.0,
            pages: (0..size / PAGE as usize).map(|_| AtomicU64::new(PageState::pack(Owner::Free, 0))).collect(),
            tick: AtomicU64::new(1),
            allocator: Mutex::default(),
            driver_pages: AtomicUsize::new(0),
            data_pages: AtomicUsize::new(0),
            budget: AtomicU64::new(u64::MAX),
            requests: AtomicU64::new(0),
            oracle,
        }
    }

    pub(crate) fn words(&self) -> Arc<[AtomicU64]> {
        self.words.clone()
    }

    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    pub(crate) fn size(&self) -> u64 {
        self.words.len() as u64 * 8
    }

    /// The next moment.
    pub(crate) fn tick(&self) -> u64 {
        self.tick.fetch_add(1, AcqRel)
    }

    fn page_index(&self, addr: u64) -> Option<usize> {
        let index = usize::try_from(addr.checked_sub(self.base)? / PAGE).ok()?;
        (index < self.pages.len()).then_some(index)
    }

    /// The state of the page of `addr`; `None` outside RAM.
    pub(crate) fn page(&self, addr: u64) -> Option<PageState> {
        Some(PageState::unpack(self.pages[self.page_index(addr)?].load(SeqCst)))
    }

    // --- contents ---

    /// The number of the word that contains `addr`, which may be behind RAM.
    fn word_index(&self, addr: u64) -> Option<usize> {
        usize::try_from(addr.checked_sub(self.base)? / 8).ok()
    }

    fn word(&self, addr: u64) -> Option<&AtomicU64> {
        self.words.get(self.word_index(addr)?)
    }

    /// The word that contains `addr`.
    pub(crate) fn read_u64(&self, addr: u64) -> Option<u64> {
        Some(self.word(addr)?.load(Acquire))
    }

    /// The same past the CPU's caches. They may write back what stands in them at any time, and do so now every fourth time.
    pub(crate) fn read_uncached(&self, addr: u64) -> Option<u64> {
        let index = self.word_index(addr)?;
        let word = self.uncached.get(index)?;
        let tick = self.tick() as usize;
        self.recent[tick % self.recent.len()].store(index, Relaxed);
        if tick.is_multiple_of(4) {
            self.write_back(index..index + 1);
        }
        Some(word.load(Acquire))
    }

    pub(crate) fn write_uncached(&self, addr: u64, value: u64) -> bool {
        let word = self.word_index(addr).and_then(|index| self.uncached.get(index));
        word.map(|word| word.store(value, Release)).is_some()
    }

    /// Writes back what stands in the caches of a word that an SMMU may read again, as caches may at any time.
    pub(crate) fn evict_some(&self) {
        if !self.uncached.is_empty() {
            let index = self.recent[self.tick() as usize % self.recent.len()].load(Relaxed);
            self.write_back(index..index + 1);
        }
    }

    /// Writes back what stands in the caches of the CPU about a part of RAM.
    pub(crate) fn clean(&self, words: &[AtomicU64]) {
        self.write_back(self.indexes(words));
    }

    /// Forgets what stands in the caches of the CPU about a part of RAM.
    pub(crate) fn discard(&self, words: &[AtomicU64]) {
        self.copy(&self.uncached, &self.words, self.indexes(words));
    }

    fn indexes(&self, words: &[AtomicU64]) -> Range<usize> {
        let first = (words.as_ptr().addr() - self.words.as_ptr().addr()) / 8;
        first..first + words.len()
    }

    fn write_back(&self, words: Range<usize>) {
        self.copy(&self.words, &self.uncached, words);
    }

    fn copy(&self, from: &[AtomicU64], to: &[AtomicU64], words: Range<usize>) {
        if !self.uncached.is_empty() {
            let _copying = lock(&self.copying);
            let (from, to) = (&from[words.clone()], &to[words]);
            from.iter().zip(to).for_each(|(from, to)| to.store(from.load(Acquire), Release));
        }
    }

    pub(crate) fn write_u64(&self, addr: u64, value: u64) -> bool {
        self.word(addr).map(|word| word.store(value, Release)).is_some()
    }

    /// Replaces the bits of `mask` in the word that contains `addr`, and no others.
    fn write_masked(&self, addr: u64, value: u64, mask: u64) -> bool {
        let Some(word) = self.word(addr) else { return false };
        if mask == u64::MAX {
            word.store(value, Release);
        } else {
            // The closure never refuses.
            let _ = word.fetch_update(AcqRel, Acquire, |old| Some(old & !mask | value & mask));
        }
        true
    }

    pub(crate) fn write_u32(&self, addr: u64, value: u32) -> bool {
        let shift = (addr & 4) * 8;
        self.write_masked(addr, u64::from(value) << shift, u64::from(u32::MAX) << shift)
    }

    /// Reads bytes; false if they are not all in RAM.
    pub(crate) fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        let mut done = 0;
        while done < buf.len() {
            let at = addr.wrapping_add(done as u64);
            let Some(word) = self.read_u64(at) else { return false };
            let first = (at & 7) as usize;
            let count = (8 - first).min(buf.len() - done);
            buf[done..done + count].copy_from_slice(&word.to_le_bytes()[first..first + count]);
            done += count;
        }
        true
    }

    /// Writes bytes and cleans them; false if they are not all in RAM.
    pub(crate) fn write_and_clean(&self, addr: u64, buf: &[u8]) -> bool {
        let written = self.write(addr, buf);
        if written && let Some(first) = self.word_index(addr) {
            let end = first + ((addr % 8) as usize + buf.len()).div_ceil(8);
            self.write_back(first..end);
        }
        written
    }

    /// Writes bytes; false if they are not all in RAM.
    pub(crate) fn write(&self, addr: u64, buf: &[u8]) -> bool {
        let mut done = 0;
        while done < buf.len() {
            let at = addr.wrapping_add(done as u64);
            let first = (at & 7) as usize;
            let count = (8 - first).min(buf.len() - done);
            let (mut value, mut mask) = ([0; 8], [0; 8]);
            value[first..first + count].copy_from_slice(&buf[done..done + count]);
            mask[first..first + count].fill(0xff);
            if !self.write_masked(at, u64::from_le_bytes(value), u64::from_le_bytes(mask)) {
                return false;
            }
            done += count;
        }
        true
    }

    // --- ownership ---

    /// The first free run of `count` pages at a multiple of `align` bytes, searched from where the last search ended:
    /// a page that was freed stays free, and a trap, for as long as possible.
    fn take(&self, allocator: &mut Allocator, count: usize, align: usize, owner: Owner) -> Option<u64> {
        let total = self.pages.len();
        let align = (align as u64).max(PAGE);
        let free = |index: usize| PageState::unpack(self.pages[index].load(Relaxed)).owner == Owner::Free;
        let fits = |start: usize| {
            (self.base + start as u64 * PAGE).is_multiple_of(align)
                && start.checked_add(count).is_some_and(|end| end <= total)
                && (start..start + count).all(free)
        };
        let next = allocator.next;
        let start = (next..total).chain(0..next.min(total)).find(|&start| fits(start))?;
        let now = self.tick();
        for page in &self.pages[start..start + count] {
            page.store(PageState::pack(owner, now), SeqCst);
        }
        allocator.next = start + count;
        Some(self.base + start as u64 * PAGE)
    }

    fn release(&self, addr: u64, count: usize) {
        let Some(start) = self.page_index(addr) else { return };
        let now = self.tick();
        for index in start..start + count {
            // First the state, then the poison: who sees poison could have seen that the page is free.
            self.pages[index].store(PageState::pack(Owner::Free, now), SeqCst);
            for word in &self.words[index * WORDS_PER_PAGE..(index + 1) * WORDS_PER_PAGE] {
                word.store(POISON, Release);
            }
        }
    }

    /// For `Platform::dma_alloc`.
    pub(crate) fn alloc_driver(&self, size: usize, align: usize) -> Option<PhysAddr> {
        self.requests.fetch_add(1, Relaxed);
        if size == 0 || !size.is_multiple_of(64) || !align.is_power_of_two() || align < 64 {
            self.oracle.violation(format!("dma_alloc of {size:#x} bytes aligned to {align:#x}"));
            return None;
        }
        let spend = |budget: u64| match budget {
            u64::MAX => Some(u64::MAX),
            budget => budget.checked_sub(1),
        };
        self.budget.fetch_update(AcqRel, Acquire, spend).ok()?;
        let count = size.div_ceil(PAGE as usize);
        let mut allocator = lock(&self.allocator);
        let addr = self.take(&mut allocator, count, align, Owner::Driver)?;
        allocator.driver.insert(addr, (size, align));
        self.driver_pages.fetch_add(count, Relaxed);
        Some(PhysAddr(addr))
    }

    /// For `Platform::dma_free`.
    pub(crate) fn free_driver(&self, addr: PhysAddr, size: usize, align: usize) {
        let mut allocator = lock(&self.allocator);
        match allocator.driver.get(&addr.0) {
            Some(&known) if known == (size, align) => {
                allocator.driver.remove(&addr.0);
                let count = size.div_ceil(PAGE as usize);
                self.driver_pages.fetch_sub(count, Relaxed);
                self.release(addr.0, count);
            }
            known => {
                let known = known.copied();
                drop(allocator);
                self.oracle.violation(format!(
                    "dma_free({addr}, {size:#x}, {align:#x}) of what was allocated as (size, align) = {known:?}"
                ));
            }
        }
    }

    pub(crate) fn alloc_data(&self, pages: usize, align: usize) -> Option<u64> {
        let addr = self.take(&mut lock(&self.allocator), pages, align, Owner::Data)?;
        self.data_pages.fetch_add(pages, Relaxed);
        Some(addr)
    }

    pub(crate) fn free_data(&self, addr: u64, pages: usize) {
        let _allocator = lock(&self.allocator);
        self.data_pages.fetch_sub(pages, Relaxed);
        self.release(addr, pages);
    }

    pub(crate) fn limit_driver_allocs(&self, budget: u64) {
        self.budget.store(budget, Release);
    }

    pub(crate) fn driver_pages(&self) -> usize {
        self.driver_pages.load(Relaxed)
    }

    pub(crate) fn data_pages(&self) -> usize {
        self.data_pages.load(Relaxed)
    }

    pub(crate) fn driver_requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }
}

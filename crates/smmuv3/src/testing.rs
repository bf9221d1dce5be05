//! A platform without hardware, for unit tests: memory, an allocator that can be told to fail, no registers.

extern crate std;

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::Mutex;
use std::time::Instant;
use std::vec::Vec;

use crate::platform::{DmaWindow, Mmio, PhysAddr, Platform};

pub(crate) const PAGE: usize = 4096;
const BASE: u64 = 0x4000_0000;

#[derive(Clone)]
pub(crate) struct TestPlatform(Arc<Inner>);

struct Inner {
    window: DmaWindow,
    words: Arc<[AtomicU64]>,
    /// Which pages are taken.
    pages: Mutex<Vec<bool>>,
    /// Allocations that still succeed.
    budget: AtomicUsize,
    start: Instant,
}

impl TestPlatform {
    pub(crate) fn new(pages: usize) -> Self {
        let words: Arc<[AtomicU64]> = (0..pages * PAGE / 8).map(|_| AtomicU64::new(0xdead_dead_dead_dead)).collect();
        TestPlatform(Arc::new(Inner {
            window: DmaWindow::from_words(words.clone(), PhysAddr(BASE)),
            words,
            pages: Mutex::new(std::vec![false; pages]),
            budget: AtomicUsize::new(usize::MAX),
            start: Instant::now(),
        }))
    }

    /// Lets `n` allocations succeed, and then none.
    pub(crate) fn allow_allocations(&self, n: usize) {
        self.0.budget.store(n, Ordering::SeqCst);
    }

    /// Pages that are taken now.
    pub(crate) fn live_pages(&self) -> usize {
        self.0.pages.lock().unwrap().iter().filter(|taken| **taken).count()
    }

    /// The word at a device address, as the SMMU reads it.
    pub(crate) fn read(&self, addr: u64) -> u64 {
        self.0.words[((addr - BASE) / 8) as usize].load(Ordering::Acquire)
    }
}

pub(crate) struct NoMmio;

impl Mmio for NoMmio {
    fn read32(&self, _: usize) -> u32 {
        u32::MAX
    }
    fn write32(&self, _: usize, _: u32) {}
    fn read64(&self, _: usize) -> u64 {
        u64::MAX
    }
    fn write64(&self, _: usize, _: u64) {}
}

impl Platform for TestPlatform {
    type Mmio = NoMmio;
    type RawMutex = spin::mutex::SpinMutex<()>;

    fn window(&self) -> &DmaWindow {
        &self.0.window
    }
    fn dma_alloc(&self, size: usize, align: usize) -> Option<PhysAddr> {
        let spend = |budget: usize| if budget == usize::MAX { Some(budget) } else { budget.checked_sub(1) };
        self.0.budget.fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend).ok()?;
        let count = size.div_ceil(PAGE);
        let step = align.div_ceil(PAGE).max(1);
        let mut pages = self.0.pages.lock().unwrap();
        let first_aligned = (BASE as usize / PAGE).next_multiple_of(step) - BASE as usize / PAGE;
        let first = (first_aligned..pages.len())
            .step_by(step)
            .find(|&first| pages.len() - first >= count && !pages[first..first + count].contains(&true))?;
        pages[first..first + count].fill(true);
        Some(PhysAddr(BASE + (first * PAGE) as u64))
    }
    fn dma_free(&self, addr: PhysAddr, size: usize, _: usize) {
        let first = ((addr.0 - BASE) / PAGE as u64) as usize;
        let count = size.div_ceil(PAGE);
        let mut pages = self.0.pages.lock().unwrap();
        assert!(pages[first..first + count].iter().all(|taken| *taken), "{addr} was freed twice");
        pages[first..first + count].fill(false);
        // Freed memory is soon somebody else's.
        let words = first * PAGE / 8..(first + count) * PAGE / 8;
        self.0.words[words].iter().for_each(|word| word.store(0xdead_dead_dead_dead, Ordering::SeqCst));
    }
    fn full_barrier(&self) {
        fence(Ordering::SeqCst);
    }
    fn write_barrier(&self) {
        fence(Ordering::SeqCst);
    }
    fn read_barrier(&self) {
        fence(Ordering::SeqCst);
    }
    fn now_ns(&self) -> u64 {
        self.0.start.elapsed().as_nanos() as u64
    }
    fn relax(&self) {
        std::thread::yield_now();
    }
    fn cpu_hint(&self) -> usize {
        0
    }
}

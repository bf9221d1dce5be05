//! A platform without hardware, for unit tests: memory, an allocator that can be told to fail, no registers.

extern crate std;

use crate::arch::regs::offset;
use crate::primitive::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use alloc::sync::Arc;
use core::cell::Cell;
use std::boxed::Box;
use std::sync::Mutex;
use std::time::Instant;
use std::vec::Vec;

use crate::platform::{DmaWindow, Mmio, PhysAddr, Platform};

pub(crate) const PAGE: usize = 4096;
const BASE: u64 = 0x4000_0000;
/// What memory is full of that nobody owns.
const GARBAGE: u64 = 0xdead_dead_dead_dead;

std::thread_local!(
    /// Whether this thread, taken for a CPU, takes no interrupts now.
    static MASKED: Cell<bool> = const { Cell::new(false) };
);

#[derive(Clone)]
pub(crate) struct TestPlatform(Arc<Inner>);

/// What an interrupt does.
type Handler = Box<dyn FnOnce() + Send>;

struct Inner {
    window: DmaWindow,
    words: Arc<[AtomicU64]>,
    /// Which pages are taken.
    pages: Mutex<Vec<bool>>,
    /// Allocations that still succeed.
    budget: AtomicUsize,
    /// All of memory at each write barrier, while it is recorded: between two of them, stores may become visible in any order.
    epochs: Mutex<Option<Vec<Vec<u64>>>>,
    /// Turns of waiting loops.
    relaxed: AtomicUsize,
    slept: AtomicUsize,
    /// What stood in memory when it was last cleaned.
    cleaned: Vec<AtomicU64>,
    read_barriers: AtomicUsize,
    /// What arrives as an interrupt, and after how many steps.
    interrupt: Mutex<Option<(usize, Handler)>>,
    start: Instant,
}

impl TestPlatform {
    pub(crate) fn new(pages: usize) -> Self {
        let words: Arc<[AtomicU64]> = (0..pages * PAGE / 8).map(|_| AtomicU64::new(GARBAGE)).collect();
        TestPlatform(Arc::new(Inner {
            window: DmaWindow::from_words(words.clone(), PhysAddr(BASE)),
            words,
            pages: Mutex::new(std::vec![false; pages]),
            budget: AtomicUsize::new(usize::MAX),
            epochs: Mutex::new(None),
            relaxed: AtomicUsize::new(0),
            slept: AtomicUsize::new(0),
            cleaned: (0..pages * PAGE / 8).map(|_| AtomicU64::new(!GARBAGE)).collect(),
            read_barriers: AtomicUsize::new(0),
            interrupt: Mutex::new(None),
            start: Instant::now(),
        }))
    }

    /// Lets `n` allocations succeed, and then none.
    pub(crate) fn allow_allocations(&self, n: usize) {
        self.0.budget.store(n, Ordering::SeqCst);
    }

    /// Records memory as it is now, and from now on at each write barrier.
    pub(crate) fn record_epochs(&self) {
        *self.0.epochs.lock().unwrap() = Some(std::vec![self.snapshot()]);
    }

    /// What was recorded so far, with memory as it is now at the end.
    pub(crate) fn epochs(&self) -> Vec<Vec<u64>> {
        let mut epochs = self.0.epochs.lock().unwrap().clone().unwrap_or_default();
        epochs.push(self.snapshot());
        epochs
    }

    fn snapshot(&self) -> Vec<u64> {
        self.0.words.iter().map(|word| word.load(Ordering::Relaxed)).collect()
    }

    /// The index in a recorded epoch of the word at a device address.
    pub(crate) fn index(addr: u64) -> usize {
        ((addr - BASE) / 8) as usize
    }

    /// Asserts that whoever sees the word at `pointer` as it is now sees `count` words behind it that are 0 or what they are now, in whatever order
    /// stores become visible between barriers.
    pub(crate) fn assert_written_before_pointed_to(&self, pointer: u64, target: u64, count: usize) {
        let epochs = self.epochs();
        let pointer = Self::index(pointer);
        let now = epochs.last().expect("memory as it is now");
        let written = now[pointer];
        let first = epochs.iter().position(|epoch| epoch[pointer] == written).expect("at the latest in the last");
        assert!(first > 0);
        let target = Self::index(target);
        // The pointer was stored after the barrier of this epoch.
        for index in target..target + count {
            let before = epochs[first - 1][index];
            assert!(before == 0 || (before == now[index] && before != GARBAGE), "garbage is reachable: {before:#x}");
        }
    }

    /// Whether the word at a device address was cleaned with what stands there now.
    pub(crate) fn is_clean(&self, addr: u64) -> bool {
        self.0.cleaned[Self::index(addr)].load(Ordering::Acquire) == self.read(addr)
    }

    /// Turns in which a CPU may have slept.
    pub(crate) fn slept(&self) -> usize {
        self.0.slept.load(Ordering::Relaxed)
    }

    /// Turns that waiting loops have made.
    pub(crate) fn relaxed(&self) -> usize {
        self.0.relaxed.load(Ordering::Relaxed)
    }

    /// Read barriers that were passed.
    pub(crate) fn read_barriers(&self) -> usize {
        self.0.read_barriers.load(Ordering::Relaxed)
    }

    /// After so many steps from now, calls of the platform and accesses to registers, the one thread that there is takes an interrupt, or as soon after as it
    /// is not masked.
    pub(crate) fn interrupt_after(&self, steps: usize, handler: impl FnOnce() + Send + 'static) {
        *self.0.interrupt.lock().unwrap() = Some((steps, Box::new(handler)));
    }

    /// Whether the interrupt is still to come.
    pub(crate) fn awaits_interrupt(&self) -> bool {
        self.0.interrupt.lock().unwrap().is_some()
    }

    fn step(&self) {
        if let Some((steps, _)) = &mut *self.0.interrupt.lock().unwrap() {
            *steps = steps.saturating_sub(1);
        }
        self.take_interrupt();
    }

    fn take_interrupt(&self) {
        if !MASKED.get() {
            let due = self.0.interrupt.lock().unwrap().take_if(|(steps, _)| *steps == 0);
            if let Some((_, handler)) = due {
                handler();
            }
        }
    }

    /// Pages that are taken now.
    pub(crate) fn live_pages(&self) -> usize {
        self.0.pages.lock().unwrap().iter().filter(|taken| **taken).count()
    }

    /// Handles of this platform.
    pub(crate) fn handles(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// The word at a device address, as the SMMU reads it.
    pub(crate) fn read(&self, addr: u64) -> u64 {
        self.0.words[((addr - BASE) / 8) as usize].load(Ordering::Acquire)
    }
}

/// What an SMMU does about its command queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consumer {
    /// It is not there: registers read as all ones.
    Gone,
    /// It has consumed everything whenever somebody looks.
    Eager,
    /// What the test writes to the registers.
    ByHand,
}

/// Where the registers of an Enhanced Command queue start.
pub(crate) const ECMDQ: usize = 0x4_0000;
const ECMDQ_PROD: usize = ECMDQ + offset::ECMDQ_PROD;
const ECMDQ_CONS: usize = ECMDQ + offset::ECMDQ_CONS;

/// The registers of a command queue, of whichever kind.
pub(crate) struct TestMmio {
    platform: TestPlatform,
    consumer: Mutex<Consumer>,
    pub(crate) prod: AtomicU32,
    pub(crate) cons: AtomicU32,
    pub(crate) gerror: AtomicU32,
    pub(crate) gerrorn: AtomicU32,
    reads: AtomicUsize,
}

impl TestMmio {
    pub(crate) fn new(platform: &TestPlatform, consumer: Consumer) -> Self {
        TestMmio {
            platform: platform.clone(),
            consumer: Mutex::new(consumer),
            prod: AtomicU32::new(0),
            cons: AtomicU32::new(0),
            gerror: AtomicU32::new(0),
            gerrorn: AtomicU32::new(0),
            reads: AtomicUsize::new(0),
        }
    }

    /// Registers that were read.
    pub(crate) fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    pub(crate) fn become_(&self, consumer: Consumer) {
        *self.consumer.lock().unwrap() = consumer;
    }
}

/// If epochs are recorded, it is checked at the doorbell that a barrier stands behind all that was written to memory.
impl Mmio for TestMmio {
    fn read32(&self, offset: usize) -> u32 {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.platform.step();
        let consumer = *self.consumer.lock().unwrap();
        match offset {
            _ if consumer == Consumer::Gone => u32::MAX,
            offset::CMDQ_CONS | ECMDQ_CONS => {
                if consumer == Consumer::Eager {
                    // ERR is where ERRACK is, and ENACK where EN is.
                    self.cons.store(self.prod.load(Ordering::SeqCst), Ordering::SeqCst);
                }
                self.cons.load(Ordering::SeqCst)
            }
            offset::GERROR => self.gerror.load(Ordering::SeqCst),
            offset::GERRORN => self.gerrorn.load(Ordering::SeqCst),
            _ => 0,
        }
    }
    fn write32(&self, offset: usize, value: u32) {
        self.platform.step();
        match offset {
            offset::CMDQ_PROD | ECMDQ_PROD => {
                if self.platform.0.epochs.lock().unwrap().is_some() {
                    let epochs = self.platform.epochs();
                    let (now, barriers) = epochs.split_last().expect("memory as it is now");
                    assert!(barriers.last() == Some(now), "the doorbell rings before what it is about is visible");
                }
                self.prod.store(value, Ordering::SeqCst);
            }
            offset::GERRORN => self.gerrorn.store(value, Ordering::SeqCst),
            _ => {}
        }
    }
    fn read64(&self, _: usize) -> u64 {
        u64::MAX
    }
    fn write64(&self, _: usize, _: u64) {}
}

impl Platform for TestPlatform {
    type Mmio = TestMmio;
    type RawMutex = spin::mutex::SpinMutex<()>;
    type Rcu = crate::rcu::ShardedRcu<Self::RawMutex>;
    const CACHE_MAINTENANCE: bool = true;

    fn window(&self) -> &DmaWindow {
        self.step();
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
        self.0.words[words].iter().for_each(|word| word.store(GARBAGE, Ordering::SeqCst));
    }
    fn full_barrier(&self) {
        fence(Ordering::SeqCst);
    }
    fn write_barrier(&self) {
        self.step();
        fence(Ordering::SeqCst);
        if let Some(epochs) = &mut *self.0.epochs.lock().unwrap() {
            epochs.push(self.snapshot());
        }
    }
    fn read_barrier(&self) {
        self.step();
        fence(Ordering::SeqCst);
        self.0.read_barriers.fetch_add(1, Ordering::Relaxed);
    }
    fn now_ns(&self) -> u64 {
        self.0.start.elapsed().as_nanos() as u64
    }
    fn relax(&self) {
        self.step();
        self.0.relaxed.fetch_add(1, Ordering::Relaxed);
        std::thread::yield_now();
    }
    fn clean(&self, words: &[AtomicU64]) {
        // Some tests have entries elsewhere.
        let first = words.as_ptr().addr().wrapping_sub(self.0.words.as_ptr().addr()) / 8;
        let cleaned = self.0.cleaned.get(first..).unwrap_or(&[]);
        cleaned
            .iter()
            .zip(words)
            .for_each(|(cleaned, word)| cleaned.store(word.load(Ordering::Acquire), Ordering::Release));
    }
    fn wait_for_event(&self) {
        self.0.slept.fetch_add(1, Ordering::Relaxed);
        self.relax();
    }
    fn wait_while(&self, word: &AtomicU64, value: u64) {
        assert!(self.0.words.as_ptr_range().contains(&core::ptr::from_ref(word)));
        assert_eq!(word.load(Ordering::Relaxed), value);
        self.0.slept.fetch_add(1, Ordering::Relaxed);
        self.relax();
    }
    fn without_interrupts<R>(&self, f: impl FnOnce() -> R) -> R {
        assert!(!MASKED.replace(true), "nested");
        let result = f();
        MASKED.set(false);
        self.take_interrupt();
        result
    }
    fn cpu_hint(&self) -> usize {
        0
    }
}

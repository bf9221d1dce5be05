//! A host with cheap barriers, and SMMUs that do nothing but consume commands.

use std::hint::spin_loop;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64, fence};
use std::time::Instant;

use smmuv3::arch::regs::offset;
use smmuv3::platform::{DmaWindow, Mmio, PhysAddr, Platform};
use smmuv3::rcu::ShardedRcu;
use spin::mutex::SpinMutex;

/// Memory enough for two queues.
const WORDS: usize = 4096;

/// A platform whose barriers are fences, which is what they cost where the SMMU is coherent with the CPU. Its registers are `M`.
pub(super) struct Host<M>(Arc<Inner>, PhantomData<fn() -> M>);

struct Inner {
    window: DmaWindow,
    given: AtomicU64,
    start: Instant,
    /// There are more threads than CPUs.
    crowded: bool,
}

impl<M> Host<M> {
    pub(super) fn new(crowded: bool) -> Self {
        let words: Arc<[AtomicU64]> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        // An address is a multiple of what it is for the CPU, too: it is cache lines that threads contend for.
        let base = (words.as_ptr() as u64) % (8 * WORDS as u64);
        let window = DmaWindow::from_words(words, PhysAddr(base));
        Host(Arc::new(Inner { window, given: AtomicU64::new(base), start: Instant::now(), crowded }), PhantomData)
    }
}

impl<M> Clone for Host<M> {
    fn clone(&self) -> Self {
        Host(self.0.clone(), PhantomData)
    }
}

impl<M: Mmio + 'static> Platform for Host<M> {
    type Mmio = M;
    type RawMutex = SpinMutex<()>;
    type Rcu = ShardedRcu<Self::RawMutex>;

    fn window(&self) -> &DmaWindow {
        &self.0.window
    }
    fn dma_alloc(&self, size: usize, align: usize) -> Option<PhysAddr> {
        let given = self.0.given.load(Relaxed);
        let at = given.next_multiple_of(align as u64);
        let end = at + size as u64;
        self.0.given.store(end, Relaxed);
        (end <= self.0.window.base().0 + self.0.window.size()).then_some(PhysAddr(at))
    }
    fn dma_free(&self, _: PhysAddr, _: usize, _: usize) {}
    fn full_barrier(&self) {
        fence(SeqCst);
    }
    fn write_barrier(&self) {
        fence(Release);
    }
    fn read_barrier(&self) {
        fence(Acquire);
    }
    fn now_ns(&self) -> u64 {
        self.0.start.elapsed().as_nanos() as u64
    }
    fn relax(&self) {
        if self.0.crowded {
            std::thread::yield_now();
        } else {
            spin_loop();
        }
    }
    fn cpu_hint(&self) -> usize {
        0
    }
}

/// An SMMU without latency: CONS follows PROD at once.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct AtOnce(AtomicU32);

impl Mmio for AtOnce {
    fn read32(&self, offset: usize) -> u32 {
        if offset == offset::CMDQ_CONS { self.0.load(Relaxed) } else { 0 }
    }
    fn write32(&self, offset: usize, value: u32) {
        if offset == offset::CMDQ_PROD {
            self.0.store(value, Relaxed);
        }
    }
    fn read64(&self, _: usize) -> u64 {
        0
    }
    fn write64(&self, _: usize, _: u64) {}
}

/// An SMMU without latency whose registers are those of one Enhanced Command queue, from offset 0 on.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Enhanced(AtomicU32);

impl Mmio for Enhanced {
    fn read32(&self, offset: usize) -> u32 {
        // ERR and ENACK are where ERRACK and EN are.
        if offset == offset::ECMDQ_CONS { self.0.load(Relaxed) } else { 0 }
    }
    fn write32(&self, offset: usize, value: u32) {
        if offset == offset::ECMDQ_PROD {
            self.0.store(value, Relaxed);
        }
    }
    fn read64(&self, _: usize) -> u64 {
        0
    }
    fn write64(&self, _: usize, _: u64) {}
}

/// An SMMU that gets to a command some time after its doorbell, however many are on their way.
pub(super) struct Late {
    start: Instant,
    latency_ns: u64,
    /// Index and wrap bit.
    mask: u64,
    /// Like PROD, but it never wraps. The driver writes PROD from one thread at a time.
    prod: AtomicU64,
    /// When the doorbell rang for the command at a position.
    rung_ns: Box<[AtomicU64]>,
}

impl Late {
    pub(super) fn new(log2: u8, latency_ns: u64) -> Self {
        let rung_ns = (0..2 << log2).map(|_| AtomicU64::new(0)).collect();
        let mask = (2 << log2) - 1;
        Late { start: Instant::now(), latency_ns, mask, prod: AtomicU64::new(0), rung_ns }
    }

    fn rung(&self, position: u64) -> &AtomicU64 {
        &self.rung_ns[(position & self.mask) as usize]
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

impl Mmio for Late {
    /// Changes nothing, so that two who look are not in each other's way more than with real hardware.
    fn read32(&self, offset: usize) -> u32 {
        if offset != offset::CMDQ_CONS {
            return 0;
        }
        // PROD first: what is rung later is not over yet.
        let prod = self.prod.load(Acquire);
        let now = self.now_ns();
        let over = |position| self.rung(position).load(Relaxed) + self.latency_ns <= now;
        // Doorbells ring one after the other: the first that is not over, of those that the queue can hold.
        let (mut cons, mut not_over) = (prod.saturating_sub(self.mask.div_ceil(2)), prod);
        while cons < not_over {
            let middle = cons.midpoint(not_over);
            if over(middle) {
                cons = middle + 1;
            } else {
                not_over = middle;
            }
        }
        (cons & self.mask) as u32
    }
    fn write32(&self, offset: usize, value: u32) {
        if offset == offset::CMDQ_PROD {
            let now = self.now_ns();
            let prod = self.prod.load(Relaxed);
            let new = prod + (u64::from(value).wrapping_sub(prod) & self.mask);
            (prod..new).for_each(|position| self.rung(position).store(now, Relaxed));
            self.prod.store(new, Release);
        }
    }
    fn read64(&self, _: usize) -> u64 {
        0
    }
    fn write64(&self, _: usize, _: u64) {}
}

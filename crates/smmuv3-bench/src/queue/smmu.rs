//! SMMUs that do nothing but consume commands.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Instant;

use smmuv3::arch::regs::offset;
use smmuv3::platform::Mmio;

/// An SMMU without latency: CONS follows PROD at once, which stand at these offsets.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Follower<const PROD: usize, const CONS: usize>(AtomicU32);

/// Its own queue.
pub(super) type AtOnce = Follower<{ offset::CMDQ_PROD }, { offset::CMDQ_CONS }>;

/// One Enhanced Command queue, from offset 0 on. ERR and ENACK are where ERRACK and EN are.
pub(super) type Enhanced = Follower<{ offset::ECMDQ_PROD }, { offset::ECMDQ_CONS }>;

impl<const PROD: usize, const CONS: usize> Mmio for Follower<PROD, CONS> {
    fn read32(&self, offset: usize) -> u32 {
        if offset == CONS { self.0.load(Relaxed) } else { 0 }
    }
    fn write32(&self, offset: usize, value: u32) {
        if offset == PROD {
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

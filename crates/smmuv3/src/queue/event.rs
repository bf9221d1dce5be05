//! The event queue.

use crate::primitive::Ordering::Relaxed;

use crate::arch::regs::{self, offset};
use crate::arch::{Event, RawEvent};
use crate::platform::{DmaBox, Mmio, Platform};

const ENTRY_SIZE: usize = 32;

/// What a look at the event queue brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use = "events that overflowed are lost, and only this tells"]
pub struct EventsTaken {
    /// Events that were handed on.
    pub count: usize,
    /// The queue was full at some time since the last look, and the SMMU dropped events (§7.4). It was acknowledged.
    pub overflow: bool,
}

/// The event queue of one SMMU; its owner is the only consumer.
pub(crate) struct EventQueue<P: Platform> {
    platform: P,
    entries: DmaBox<P>,
    /// The SMMU writes past the CPU's caches.
    uncached: bool,
    log2: u8,
    cons: u32,
    /// OVACKFLG
    acknowledged: u32,
}

impl<P: Platform> EventQueue<P> {
    /// A queue of `2^log2` events. `None`: no memory.
    pub(crate) fn new(platform: &P, log2: u8, coherent: bool) -> Option<Self> {
        let size = ENTRY_SIZE << log2;
        let entries = DmaBox::new(platform, size, size)?;
        Some(EventQueue { platform: platform.clone(), entries, uncached: !coherent, log2, cons: 0, acknowledged: 0 })
    }

    /// The value of `SMMU_EVENTQ_BASE`. PROD and CONS start at 0.
    pub(crate) fn base(&self) -> u64 {
        self.entries.addr().0 & regs::QUEUE_BASE_ADDR | regs::QUEUE_BASE_ALLOC | u64::from(self.log2)
    }

    /// The SMMU may still write to the queue: its memory is never given back.
    pub(crate) fn keep_forever(&self) {
        self.entries.keep_forever();
    }

    /// Takes what is in the queue now, oldest first; at most one queue full, so it ends.
    pub(crate) fn take(&mut self, mmio: &P::Mmio, mut each: impl FnMut(Event)) -> EventsTaken {
        let mask = (2u32 << self.log2) - 1;
        let prod = mmio.read32(offset::EVENTQ_PROD);
        // The records come after the index that announces them. litmus: events-read
        self.platform.read_barrier();
        let waiting = prod.wrapping_sub(self.cons) & mask;
        if prod == u32::MAX || waiting > 1 << self.log2 {
            // No state of a queue that works. An SMMU that is gone reads as all ones.
            return EventsTaken::default();
        }
        for _ in 0..waiting {
            let slot = (self.cons & (mask >> 1)) as usize * 4;
            if let Some(words) = self.entries.words().get(slot..slot + 4) {
                if self.uncached {
                    self.platform.discard(words);
                }
                each(RawEvent(core::array::from_fn(|word| words[word].load(Relaxed))).decode());
            }
            self.cons = self.cons.wrapping_add(1) & mask;
        }
        let overflow = (prod ^ self.acknowledged) & regs::EVENTQ_OVERFLOW != 0;
        if waiting > 0 || overflow {
            self.acknowledged = prod & regs::EVENTQ_OVERFLOW;
            // The reads of the records come before the SMMU may write over them. litmus: events-reuse
            self.platform.full_barrier();
            mmio.write32(offset::EVENTQ_CONS, self.cons | self.acknowledged);
        }
        EventsTaken { count: waiting as usize, overflow }
    }
}

//! Command queues that are simpler than the driver's.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use smmuv3::arch::RawCommand;
use smmuv3::arch::regs::{CmdqCons, CmdqError, offset};
use smmuv3::internals::Entries;
use smmuv3::platform::{Mmio, Platform};
use spin::mutex::TicketMutex;

/// A CMD_SYNC without a signal.
const SYNC: RawCommand = RawCommand([0x46, 0]);

/// A queue for one producer, without any synchronisation.
pub(super) struct Plain<P: Platform> {
    smmu: Consumer<P>,
    entries: Entries<P>,
    /// Positions: index and wrap bit are their low bits.
    prod: u64,
    cons: u64,
}

impl<P: Platform> Plain<P> {
    pub(super) fn new(platform: &P, log2: u8, timeout_ns: u64) -> Option<Self> {
        let smmu = Consumer { platform: platform.clone(), log2, timeout_ns };
        Some(Plain { smmu, entries: Entries::new(platform, log2)?, prod: 0, cons: 0 })
    }

    /// Writes the commands and a CMD_SYNC, waits for room if there is none, and rings the doorbell. Returns the position behind them, or `None` if room
    /// did not come in time.
    pub(super) fn submit(&mut self, mmio: &P::Mmio, commands: impl IntoIterator<Item = RawCommand>) -> Option<u64> {
        let mut room = true;
        commands.into_iter().for_each(|command| room &= self.push(mmio, command));
        room &= self.push(mmio, SYNC);
        self.ring_doorbell(mmio);
        room.then_some(self.prod)
    }

    /// Waits until a submission is consumed. False: not in time.
    pub(super) fn wait(&self, mmio: &P::Mmio, end: u64) -> bool {
        self.smmu.wait(mmio, end, || self.prod)
    }

    fn push(&mut self, mmio: &P::Mmio, command: RawCommand) -> bool {
        let size = 1 << self.smmu.log2;
        if self.prod - self.cons == size {
            self.ring_doorbell(mmio);
            if !self.smmu.wait(mmio, self.prod - size + 1, || self.prod) {
                return false;
            }
            self.cons = self.smmu.stands_at(mmio, self.prod);
        }
        let at = (self.prod & (size - 1)) as usize * 2;
        if let Some(words) = self.entries.words().get(at..at + 2) {
            words.iter().zip(command.0).for_each(|(word, value)| word.store(value, Relaxed));
        }
        self.prod += 1;
        true
    }

    fn ring_doorbell(&self, mmio: &P::Mmio) {
        self.smmu.platform.write_barrier();
        mmio.write32(offset::CMDQ_PROD, (self.prod & ((2 << self.smmu.log2) - 1)) as u32);
    }
}

/// The same under a ticket lock, for many producers. They wait without the lock.
pub(super) struct Locked<P: Platform> {
    smmu: Consumer<P>,
    /// For those who wait.
    prod: AtomicU64,
    queue: TicketMutex<Plain<P>>,
}

impl<P: Platform> Locked<P> {
    pub(super) fn new(platform: &P, log2: u8, timeout_ns: u64) -> Option<Self> {
        let queue = Plain::new(platform, log2, timeout_ns)?;
        Some(Locked { smmu: queue.smmu.clone(), prod: AtomicU64::new(0), queue: TicketMutex::new(queue) })
    }

    pub(super) fn submit(&self, mmio: &P::Mmio, commands: impl IntoIterator<Item = RawCommand>) -> Option<u64> {
        let mut queue = self.queue.lock();
        let end = queue.submit(mmio, commands);
        self.prod.store(queue.prod, Relaxed);
        end
    }

    pub(super) fn wait(&self, mmio: &P::Mmio, end: u64) -> bool {
        self.smmu.wait(mmio, end, || self.prod.load(Relaxed))
    }
}

/// What is known of the SMMU.
#[derive(Clone)]
struct Consumer<P> {
    platform: P,
    log2: u8,
    timeout_ns: u64,
}

impl<P: Platform> Consumer<P> {
    /// Where the SMMU stands, if that is between a queue's size before `prod` and one behind; any other place is taken for one of these.
    fn stands_at(&self, mmio: &P::Mmio, prod: u64) -> u64 {
        let cons = CmdqCons::new_with_raw_value(mmio.read32(offset::CMDQ_CONS));
        assert!(CmdqError::from(cons.err()) == CmdqError::None, "nothing is refused here");
        self.platform.read_barrier();
        let size = 1 << self.log2;
        let passed = u64::from(cons.rd().value()).wrapping_sub(prod.wrapping_sub(size)) & (2 * size - 1);
        (prod + passed).saturating_sub(size)
    }

    /// Waits until the SMMU is at `end`. `prod` is where the producers are, or were a moment ago.
    fn wait(&self, mmio: &P::Mmio, end: u64, prod: impl Fn() -> u64) -> bool {
        if self.stands_at(mmio, end) >= end {
            return true;
        }
        let deadline = self.platform.now_ns() + self.timeout_ns;
        while self.platform.now_ns() < deadline {
            self.platform.relax();
            if self.stands_at(mmio, prod().max(end)) >= end {
                return true;
            }
        }
        false
    }
}

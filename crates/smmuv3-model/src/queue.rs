//! The Command queues' consumer and the Event queue's producer (§3.5, §3.21.2, §7.1, §7.2, §7.4).

use smmuv3::arch::regs::{CmdqError, EVENTQ_OVERFLOW, Gerror, QUEUE_BASE_ADDR};
use smmuv3::arch::{Event, RawCommand};

use crate::ecmdq::Control;
use crate::latency::Latency;
use crate::rng::Rng;
use crate::smmu::{Irq, Unit};

/// The opcode of CMD_SYNC.
const SYNC: u8 = 0x46;

/// Where a queue lies, as its base register says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ring {
    base: u64,
    log2: u32,
    entry: u64,
}

impl Ring {
    /// `entry` bytes an entry; the SMMU caps the size at `max_log2` and aligns the base to the size (§6.3.26).
    pub(crate) fn new(base: u64, max_log2: u8, entry: u64) -> Self {
        let log2 = ((base & 31) as u32).min(max_log2.into());
        let bytes = (entry << log2).max(32);
        Ring { base: base & QUEUE_BASE_ADDR & !(bytes - 1), log2, entry }
    }

    /// Index and wrap bit.
    pub(crate) fn mask(&self) -> u32 {
        (2 << self.log2) - 1
    }

    pub(crate) fn size(&self) -> u32 {
        1 << self.log2
    }

    /// How far `to` is ahead of `from`, both with their wrap bits.
    pub(crate) fn distance(&self, from: u32, to: u32) -> u32 {
        to.wrapping_sub(from) & self.mask()
    }

    pub(crate) fn next(&self, index: u32) -> u32 {
        (index + 1) & self.mask()
    }

    pub(crate) fn addr(&self, index: u32) -> u64 {
        self.base + u64::from(index & (self.size() - 1)) * self.entry
    }
}

/// The number of the queue that every SMMU has. Enhanced Command queue *n* is number *n* + 1.
pub(crate) const CMDQ: usize = 0;

/// A Command queue: its registers, and how far its consumer has come.
#[derive(Debug)]
pub(crate) struct CommandQueue {
    /// Of an Enhanced Command queue. The other is controlled by CR0, GERROR and GERRORN.
    pub control: Option<Control>,
    pub base: u64,
    pub prod: u32,
    pub cons: u32,
    /// Why it stopped last.
    pub err: u8,
    /// PROD was written inconsistently: nothing is consumed until the queue is disabled (§3.21.2).
    pub lost: bool,
    /// When the last command was consumed, or the first could be; `None` while the queue stands still.
    at: Option<u64>,
    /// When all that was consumed is complete.
    complete: u64,
}

impl CommandQueue {
    pub(crate) fn at_reset(rng: &mut Rng, enhanced: bool) -> Self {
        CommandQueue {
            control: enhanced.then(Control::default),
            base: rng.next() & (QUEUE_BASE_ADDR | 31),
            prod: rng.next() as u32 & 0xf_ffff,
            cons: rng.next() as u32 & 0xf_ffff,
            err: rng.below(4) as u8,
            lost: false,
            at: None,
            complete: 0,
        }
    }

    /// What CONS reads as.
    pub(crate) fn cons_register(&self) -> u32 {
        let control = self.control.map_or(0, |control| u32::from(control.err) << 23 | u32::from(control.enack) << 31);
        self.cons | u32::from(self.err) << 24 | control
    }
}

impl Unit {
    pub(crate) fn ring(&self, queue: usize) -> Ring {
        Ring::new(self.regs.queues[queue].base, self.features.cmdq_log2, 16)
    }

    /// Whether commands take time.
    pub(crate) fn timed(&self) -> bool {
        self.latency != Latency::NONE
    }

    pub(crate) fn eventq(&self) -> Ring {
        Ring::new(self.regs.eventq_base, self.features.eventq_log2, 32)
    }

    /// Looks whether there is something to do in any queue, and does it. Called whenever the driver looks, or (where each
    /// look does little) a device is active: the SMMU has no time of its own.
    pub(crate) fn look(&mut self) {
        (0..self.regs.queues.len()).for_each(|queue| self.look_at(queue));
    }

    /// Looks at one queue. The others need not go on (§3.5.6.1).
    pub(crate) fn look_at(&mut self, queue: usize) {
        if self.rng.one_in(32) {
            self.speculate();
        }
        let due = self.consume(queue);
        if self.timed() {
            // Reads of CONS count while ENACK is on its way.
            let settled = self.regs.queues[queue].control.is_none_or(|control| control.en == control.enack);
            self.glances[queue].set(if settled { due } else { 0 }, self.regs.queues[queue].cons_register());
        }
    }

    /// Before something is written that changes what a queue does: what is due by now has been consumed.
    pub(crate) fn catch_up(&mut self, queue: usize) {
        if self.timed() {
            self.consume(queue);
        }
    }

    /// Whether commands are consumed from a queue, if there are any.
    fn runs(&self, queue: usize) -> bool {
        let enabled = match self.regs.queues[queue].control {
            None => self.regs.cr0ack.cmdqen() && !self.error_active(Gerror::CMDQ_ERR),
            Some(control) => control.enack && control.errack == control.err,
        };
        enabled && !self.dead && !self.regs.queues[queue].lost
    }

    /// Consumes what is due by now. Gives when more is due: `u64::MAX` if the queue is empty, 0 if it stands still.
    fn consume(&mut self, queue: usize) -> u64 {
        let at = self.regs.queues[queue].at.take();
        let ring = self.ring(queue);
        let now = if self.timed() { self.clock.now() } else { 0 };
        let mut at = at.unwrap_or(now);
        let mut limit = self.commands_per_look.unwrap_or(u32::MAX);
        self.queue = queue;
        while self.runs(queue) {
            let rd = self.regs.queues[queue].cons & ring.mask();
            if rd == self.regs.queues[queue].prod & ring.mask() {
                return u64::MAX;
            }
            let addr = ring.addr(rd);
            let due = if self.timed() { self.due(queue, addr, at) } else { 0 };
            if due > now || limit == 0 {
                self.regs.queues[queue].at = Some(at);
                return due;
            }
            (limit, at) = (limit - 1, due);
            let words = (self.fetch(addr, None, "Command queue"), self.fetch(addr + 8, None, "Command queue"));
            let result = match words {
                (Some(w0), Some(w1)) => self.execute(RawCommand([w0, w1])),
                _ => Err(CmdqError::Abort),
            };
            match result {
                Ok(command) => {
                    let queue = &mut self.regs.queues[queue];
                    queue.cons = ring.next(rd);
                    queue.complete = queue.complete.max(due + self.latency.of(&command));
                }
                Err(error) => {
                    // CONS stays at the command, its error code is visible before the error is (§7.1).
                    self.regs.queues[queue].err = match error {
                        CmdqError::None => 0,
                        CmdqError::Illegal => 1,
                        CmdqError::Abort => 2,
                        CmdqError::AtcInvSync => 3,
                        CmdqError::Unknown(code) => code,
                    };
                    match &mut self.regs.queues[queue].control {
                        None => self.raise(Gerror::CMDQ_ERR),
                        Some(control) => {
                            control.err = !control.err;
                            self.raise(Gerror::CMDQP_ERR);
                        }
                    }
                }
            }
        }
        0
    }

    /// When the command at `addr` is consumed, where the one before it was consumed at `at`.
    fn due(&self, queue: usize, addr: u64, at: u64) -> u64 {
        let sync = self.own_read(addr).is_some_and(|word| word as u8 == SYNC);
        if sync {
            at.max(self.regs.queues[queue].complete) + self.latency.sync_ns
        } else {
            at + self.latency.command_ns
        }
    }

    pub(crate) fn error_active(&self, error: Gerror) -> bool {
        (self.regs.gerror ^ self.regs.gerrorn) & error.bits() != 0
    }

    /// Activates a global error, unless it is active (§7.5).
    pub(crate) fn raise(&mut self, error: Gerror) {
        if self.error_active(error) {
            return;
        }
        self.regs.gerror ^= error.bits();
        if self.regs.irq_ack.gerror_irqen() && error != Gerror::MSI_GERROR_ABT_ERR {
            self.irqs.push(Irq::Gerror);
            let [cfg0, cfg1] = self.regs.gerror_irq_cfg;
            self.send_msi(cfg0, cfg1, Gerror::MSI_GERROR_ABT_ERR);
        }
    }

    /// Writes `data` to the 32-bit word at `addr`, if messages are configured (address not 0).
    pub(crate) fn send_msi(&mut self, addr: u64, data: u64, error: Gerror) {
        let addr = addr & 0x00ff_ffff_ffff_fffc;
        if !self.features.msi || addr == 0 {
            return;
        }
        self.check_own_access(addr, "message (MSI)");
        if !self.memory.write_u32(addr, data as u32) {
            self.raise(error);
        }
    }

    /// Records an event, or loses it (§7.2.1, §7.4).
    pub(crate) fn record(&mut self, event: &Event) {
        if !self.regs.cr0ack.eventqen() || self.error_active(Gerror::EVENTQ_ABT_ERR) {
            self.events_lost += 1;
            return;
        }
        let ring = self.eventq();
        let prod = self.regs.eventq_prod & ring.mask();
        let used = ring.distance(self.regs.eventq_cons, prod);
        if used >= ring.size() {
            self.events_lost += 1;
            if (self.regs.eventq_prod ^ self.regs.eventq_cons) & EVENTQ_OVERFLOW == 0 {
                self.regs.eventq_prod ^= EVENTQ_OVERFLOW;
            }
            return;
        }
        let addr = ring.addr(prod);
        self.check_own_access(addr, "Event queue");
        let words = event.encode().0;
        if !words.iter().zip(0..).all(|(&word, i)| self.own_write(addr + 8 * i, word)) {
            // A synchronous abort: PROD does not move.
            self.events_lost += 1;
            self.raise(Gerror::EVENTQ_ABT_ERR);
            return;
        }
        self.events += 1;
        self.regs.eventq_prod = self.regs.eventq_prod & EVENTQ_OVERFLOW | ring.next(prod);
        // Only the step from empty to non-empty interrupts (§3.18).
        if used == 0 && self.regs.irq_ack.eventq_irqen() {
            self.irqs.push(Irq::EventQueue);
            let [cfg0, cfg1] = self.regs.eventq_irq_cfg;
            self.send_msi(cfg0, cfg1, Gerror::MSI_EVENTQ_ABT_ERR);
        }
    }
}

//! The registers of Enhanced Command queues (§3.5.6, §6.2.5): control pages, the hand-shake that enables a queue, and the
//! acknowledgement of errors.
//!
//! The queues work apart from each other, from CR0 and from GERROR: `GERROR.CMDQP_ERR` tells of errors, and stops nothing. Where it is
//! unpredictable whether commands are consumed, none are.

use std::ops::Range;

use smmuv3::arch::regs::{CMDQ_CONTROL_PAGE_SIZE, EcmdqCons, EcmdqProd, Idr6, offset};

use crate::queue::CMDQ;
use crate::regs::{count_down, name};
use crate::setup::Ecmdqs;
use crate::smmu::Unit;

/// Where the first control page is: some way behind page 1.
const FIRST_PAGE: usize = 0x4_0000;
/// What every control page says of itself: 64 KiB, implemented as registers.
const PAGE_ATTRIBUTES: u64 = 0b011;

/// What is in PROD and CONS beside the indexes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Control {
    pub en: bool,
    pub enack: bool,
    /// Polls until ENACK shows EN.
    polls: u32,
    pub errack: bool,
    pub err: bool,
}

impl Control {
    fn is_off(&self) -> bool {
        !self.en && !self.enack
    }
}

/// A register of a queue, by the number of the queue.
#[derive(Debug, Clone, Copy)]
enum Register {
    Base(usize),
    Prod(usize),
    Cons(usize),
}

impl Ecmdqs {
    /// Of all pages together.
    pub(crate) fn count(self) -> usize {
        assert!(self.log2_pages + self.log2_queues <= 5, "at most 32 Enhanced Command queues");
        1 << (self.log2_pages + self.log2_queues)
    }

    pub(crate) fn idr6(self) -> Idr6 {
        Idr6::new_with_raw_value(u32::from(self.log2_pages) << 24 | u32::from(self.log2_queues) << 16)
    }

    /// The first offset behind the control pages.
    pub(crate) fn end(self) -> usize {
        FIRST_PAGE + (CMDQ_CONTROL_PAGE_SIZE << self.log2_pages)
    }

    fn register(self, at: usize) -> Option<Register> {
        if !(FIRST_PAGE..self.end()).contains(&at) {
            return None;
        }
        // The queues are spread evenly over their page, and so over all pages.
        let stride = CMDQ_CONTROL_PAGE_SIZE >> self.log2_queues;
        let queue = CMDQ + 1 + (at - FIRST_PAGE) / stride;
        match at % stride {
            offset::ECMDQ_BASE => Some(Register::Base(queue)),
            offset::ECMDQ_PROD => Some(Register::Prod(queue)),
            offset::ECMDQ_CONS => Some(Register::Cons(queue)),
            _ => None,
        }
    }

    /// The queue that has its CONS at this offset.
    pub(crate) fn cons_at(self, at: usize) -> Option<usize> {
        match self.register(at)? {
            Register::Cons(queue) => Some(queue),
            _ => None,
        }
    }

    /// The page whose BASE, CFG or STATUS is somewhere at this offset.
    fn page_of(self, at: usize) -> Option<usize> {
        let pages: Range<usize> =
            offset::cmdq_control_page_base(0)..offset::cmdq_control_page_base(1 << self.log2_pages);
        pages.contains(&at).then(|| (at - pages.start) / (offset::cmdq_control_page_base(1) - pages.start))
    }
}

impl Unit {
    fn ecmdq(&self, at: usize) -> Option<Register> {
        self.ecmdqs?.register(at)
    }

    /// Of an Enhanced Command queue.
    fn control(&mut self, queue: usize) -> &mut Control {
        self.regs.queues[queue].control.get_or_insert_default()
    }

    pub(crate) fn read_ecmdq64(&mut self, at: usize) -> Option<u64> {
        if let Some(Register::Base(queue)) = self.ecmdq(at) {
            return Some(self.regs.queues[queue].base);
        }
        let page = self.ecmdqs?.page_of(at).filter(|&page| at == offset::cmdq_control_page_base(page))?;
        Some((FIRST_PAGE + page * CMDQ_CONTROL_PAGE_SIZE) as u64 | PAGE_ATTRIBUTES)
    }

    pub(crate) fn read_ecmdq32(&mut self, at: usize) -> Option<u32> {
        match self.ecmdq(at) {
            Some(Register::Base(_)) => None,
            Some(Register::Prod(queue)) => {
                let Control { en, errack, .. } = *self.control(queue);
                let prod = self.regs.queues[queue].prod;
                Some(prod | u32::from(errack) << 23 | u32::from(en) << 31)
            }
            Some(Register::Cons(queue)) => {
                let control = self.control(queue);
                if control.en != control.enack && count_down(&mut control.polls) {
                    control.enack = control.en;
                    let off = control.is_off();
                    self.regs.queues[queue].lost &= !off;
                }
                self.look_at(queue);
                Some(self.regs.queues[queue].cons_register())
            }
            None => {
                let page = self.ecmdqs?.page_of(at)?;
                let [cfg, status] = [offset::cmdq_control_page_cfg(page), offset::cmdq_control_page_status(page)];
                // EN and ENACK are always 1.
                [cfg, status].contains(&at).then_some(1)
            }
        }
    }

    pub(crate) fn write_ecmdq64(&mut self, at: usize, value: u64) {
        match self.ecmdq(at) {
            Some(Register::Base(queue)) => {
                self.check_base("ECMDQ_BASE", value);
                if self.is_unguarded(queue, "BASE") {
                    self.set_queue_base(queue, value);
                }
            }
            _ => self.bad_access("64-bit write", at),
        }
    }

    pub(crate) fn write_ecmdq32(&mut self, at: usize, value: u32) {
        match self.ecmdq(at) {
            Some(Register::Prod(queue)) => self.write_ecmdq_prod(queue, EcmdqProd::new_with_raw_value(value)),
            Some(Register::Cons(queue)) => {
                if self.is_unguarded(queue, "CONS") {
                    let cons = EcmdqCons::new_with_raw_value(value);
                    self.control(queue).err = cons.err();
                    let queue = &mut self.regs.queues[queue];
                    (queue.cons, queue.err) = (cons.rd().value(), cons.err_reason().value());
                }
            }
            _ => self.bad_access("32-bit write", at),
        }
    }

    /// Whether BASE and CONS of a queue may be written now.
    fn is_unguarded(&mut self, queue: usize, register: &str) -> bool {
        let off = self.control(queue).is_off();
        if !off {
            self.violation(format!("{register} of {} is written while the queue is enabled", name(queue)));
        }
        off
    }

    /// Whether a register that all Enhanced Command queues guard may be written now.
    pub(crate) fn ecmdqs_are_off(&self, register: &str) -> bool {
        let off = self.regs.queues.iter().filter_map(|queue| queue.control).all(|control| control.is_off());
        if !off {
            self.violation(format!("{register} is written while an Enhanced Command queue is enabled"));
        }
        off
    }

    fn write_ecmdq_prod(&mut self, queue: usize, next: EcmdqProd) {
        self.catch_up(queue);
        let polls = self.late_ack();
        let control = self.control(queue);
        let old = *control;
        if old.en != old.enack {
            self.violation(format!("PROD of {} is written while ENACK does not show EN yet", name(queue)));
            return;
        }
        (control.en, control.errack, control.polls) = (next.en(), next.errack(), polls);
        let mismatch = next.errack() != old.err;
        // The acknowledgement of nothing, or a queue that is enabled with an error (§3.5.6.3).
        if mismatch && (old.en && old.errack == old.err || !old.en && next.en()) {
            self.violation(format!("PROD of {} has an ERRACK that is not its ERR, without an error", name(queue)));
            self.regs.queues[queue].lost = true;
        }
        self.write_queue_prod(queue, next.wr().value(), old.en, old.errack != old.err);
    }
}

//! What an SMMU has to say: events and global errors. Polled, or called from the host's interrupt handlers.

use crate::primitive::Ordering;

use super::Smmu;
use crate::arch::Event;
use crate::arch::regs::{Gerror, offset};
use crate::platform::{Mmio, Platform};
use crate::queue::EventsTaken;

/// Global errors that were active and have been acknowledged (§7.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GlobalErrors(pub Gerror);

impl GlobalErrors {
    /// Nothing was wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl core::fmt::Display for GlobalErrors {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        bitflags::parser::to_writer(&self.0, f)
    }
}

impl<P: Platform> Smmu<P> {
    pub(crate) fn take_events(&self, each: impl FnMut(Event)) -> EventsTaken {
        let mut events = self.events.lock();
        if self.removed.load(Ordering::Acquire) {
            return EventsTaken::default();
        }
        events.take(&self.mmio, each)
    }

    /// Errors of commands are handled by the command queues and reported to who submitted them; they are not among the result.
    pub(crate) fn take_global_errors(&self) -> GlobalErrors {
        let _events = self.events.lock();
        if self.removed.load(Ordering::Acquire) {
            return GlobalErrors(Gerror::empty());
        }
        let errors = self.commands.with_gerror_owned(&self.mmio, || {
            let gerror = Gerror::from_bits_truncate(self.mmio.read32(offset::GERROR));
            let gerrorn = Gerror::from_bits_truncate(self.mmio.read32(offset::GERRORN));
            let active = (gerror ^ gerrorn) - Gerror::CMDQ_ERR;
            if !active.is_empty() {
                self.mmio.write32(offset::GERRORN, (gerrorn ^ active).bits());
            }
            active
        });
        // Behind the acknowledgement of CMDQP_ERR, which tells of the next error then.
        self.enhanced.iter().for_each(|queue| queue.recover(&self.mmio));
        GlobalErrors(errors - Gerror::CMDQP_ERR)
    }
}

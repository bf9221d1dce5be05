//! How long commands take, and the clock that says so.
//!
//! An SMMU of the model has no thread of its own: what is due by now happens when somebody looks, as if it had happened
//! when it was due. So any number of SMMUs work at the same time, and a processor that waits for one of them costs the others
//! nothing.
//!
//! The write of PROD starts an idle queue. Each command is consumed `command_ns` after the one before it. What it asks for is done
//! some time later, while the queue goes on: ATC_INVs for several functions run side by side. A CMD_SYNC waits for all
//! of them, and passes `sync_ns` after the last; what comes after it begins then (§4.7.3). It takes no `command_ns`: alone in an
//! idle queue it passes `sync_ns` after the write of PROD.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Instant;

use smmuv3::arch::Command;

/// How long commands take, in ns. The default is no time at all: whoever writes PROD finds all done.
///
/// What is due happens when the driver looks (writes PROD or GERRORN, reads CONS or GERROR), waits for a message, or a device accesses something. The
/// model itself adds what it takes to carry out a command in software.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latency {
    /// From the consumption of a command to that of the next. CMD_SYNC takes none of it.
    pub command_ns: u64,
    /// From the consumption of a CFGI to its completion.
    pub cfgi_ns: u64,
    /// From the consumption of a TLBI to its completion.
    pub tlbi_ns: u64,
    /// From the consumption of an ATC_INV to the answer of the function.
    pub atc_inv_ns: u64,
    /// From the completion of all commands before a CMD_SYNC to its own: for an SMMU that has nothing else to do, from the write of
    /// PROD to the read of CONS that shows it.
    pub sync_ns: u64,
}

impl Latency {
    /// No time at all.
    pub const NONE: Latency = Latency { command_ns: 0, cfgi_ns: 0, tlbi_ns: 0, atc_inv_ns: 0, sync_ns: 0 };

    /// A server's SMMU with its queue in near memory. `sync_ns` was measured: "240ns" for a CMD_SYNC in an empty queue
    /// (Linux commit b7176c261cdb, <https://android-kvm.googlesource.com/linux/+/b7176c261cdbced87bed9562577333150ed05b01>).
    /// The rest is assumed: 20 ns a command, 100 ns for a CFGI or TLBI, 1 µs for an ATC_INV, which is a round trip on PCIe and the search of
    /// an ATC.
    pub const NEAR: Latency = Latency { command_ns: 20, cfgi_ns: 100, tlbi_ns: 100, atc_inv_ns: 1_000, sync_ns: 240 };

    /// The same SMMU with its queue in the memory of another socket: "more than 550ns" for a CMD_SYNC in an empty queue
    /// (<https://lkml.iu.edu/hypermail/linux/kernel/2006.0/02954.html>). The rest is assumed, as for [`NEAR`](Self::NEAR).
    pub const FAR: Latency = Latency { sync_ns: 550, ..Self::NEAR };

    /// A slow SMMU: 2 µs for a CMD_SYNC. Assumed, as is the rest.
    pub const SLOW: Latency = Latency { command_ns: 50, cfgi_ns: 200, tlbi_ns: 200, atc_inv_ns: 2_000, sync_ns: 2_000 };

    /// From the consumption of a command other than CMD_SYNC to its completion.
    pub(crate) fn of(&self, command: &Command) -> u64 {
        match command {
            Command::CfgiSte { .. }
            | Command::CfgiSteRange { .. }
            | Command::CfgiCd { .. }
            | Command::CfgiCdAll { .. } => self.cfgi_ns,
            Command::TlbiNhAll { .. }
            | Command::TlbiNhAsid { .. }
            | Command::TlbiNhVaa { .. }
            | Command::TlbiNhVa { .. }
            | Command::TlbiEl2All
            | Command::TlbiEl2Va { .. }
            | Command::TlbiEl2Asid { .. }
            | Command::TlbiS2Ipa { .. }
            | Command::TlbiS12Vmall { .. }
            | Command::TlbiNsnhAll => self.tlbi_ns,
            Command::AtcInv { .. } => self.atc_inv_ns,
            Command::PrefetchConfig { .. }
            | Command::PriResp { .. }
            | Command::Resume { .. }
            | Command::StallTerm { .. }
            | Command::Sync(_) => 0,
        }
    }
}

/// The clock of a machine: that of the host, until it is stopped.
pub(crate) struct Clock {
    start: Instant,
    /// What it shows while it stands still.
    stopped: AtomicU64,
}

const RUNNING: u64 = u64::MAX;

impl Clock {
    pub(crate) fn new() -> Self {
        Clock { start: Instant::now(), stopped: AtomicU64::new(RUNNING) }
    }

    pub(crate) fn now(&self) -> u64 {
        match self.stopped.load(Acquire) {
            RUNNING => self.start.elapsed().as_nanos() as u64,
            stopped => stopped,
        }
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(self.now(), Release);
    }

    /// Moves on a clock that stands still.
    pub(crate) fn advance(&self, ns: u64) {
        assert_ne!(self.stopped.load(Relaxed), RUNNING, "the clock is stopped first");
        self.stopped.fetch_add(ns, Release);
    }
}

/// What can be seen of a queue without the SMMU's lock: CONS, for as long as nothing is due.
#[derive(Default)]
#[repr(align(64))]
pub(crate) struct Glance {
    due: AtomicU64,
    cons: AtomicU64,
}

impl Glance {
    /// What CONS reads as until `due`; 0: somebody has to look.
    pub(crate) fn set(&self, due: u64, cons: u32) {
        self.cons.store(cons.into(), Release);
        self.due.store(due, Release);
    }

    pub(crate) fn cons(&self, clock: &Clock) -> Option<u32> {
        // In this order: nothing was due at a moment after the load.
        let due = self.due.load(Acquire);
        (due != 0 && due > clock.now()).then(|| self.cons.load(Acquire) as u32)
    }
}

#[cfg(test)]
mod tests {
    use smmuv3::arch::regs::offset;
    use smmuv3::platform::{Mmio, Platform};

    use super::*;
    use crate::{Model, ModelConfig, ModelSmmuConfig};

    #[test]
    fn a_queue_is_seen_without_its_lock_until_something_is_due() {
        let model =
            Model::new(ModelConfig::with_smmu(ModelSmmuConfig { latency: Latency::SLOW, ..Default::default() }));
        model.stop_clock();
        let mmio = model.mmio(0);
        let queue = model.platform().dma_alloc(4096, 4096).unwrap();
        assert!(model.write_u64(queue, 0x46));
        mmio.write64(offset::CMDQ_BASE, queue.0 | 8);
        mmio.write32(offset::CMDQ_PROD, 0);
        mmio.write32(offset::CMDQ_CONS, 0);
        assert_eq!(mmio.0.glance(offset::CMDQ_CONS), None, "disabled");
        mmio.write32(offset::CR0, 0b1000);
        while mmio.read32(offset::CR0ACK) != 0b1000 {}
        // A second lock on the same thread would never end.
        let cons = || mmio.0.with(|_| mmio.read32(offset::CMDQ_CONS) & 0xf_ffff);
        assert_eq!(cons(), 0, "empty");
        mmio.write32(offset::CMDQ_PROD, 1);
        model.advance_clock(1_999);
        assert_eq!(cons(), 0, "not due");
        model.advance_clock(1);
        assert_eq!(mmio.0.glance(offset::CMDQ_CONS), None, "due");
        assert_eq!(mmio.read32(offset::CMDQ_CONS) & 0xf_ffff, 1);
        assert_eq!(cons(), 1, "empty again");
        model.set_dead(0, true);
        assert_eq!(mmio.0.glance(offset::CMDQ_CONS), None, "dead");
    }
}

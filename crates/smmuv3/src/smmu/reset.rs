//! From an SMMU in any state to one that translates, with every stream aborted until a device is added.
//!
//! The order is the specification's (§6.3.9, §3.21, §3.11): stop traffic, stop translation, tables and queues, forget everything cached,
//! events, interrupts, and last translation. Each register write that must be acknowledged is waited for, in bounded time.

use crate::primitive::{AtomicBool, AtomicUsize, Ordering};
use allocator_api2::vec::Vec;
use lock_api::Mutex;

use super::{AddSmmuError, Smmu, SmmuId, SmmuOptions, enhanced};
use crate::arch::regs::{Cr0, Cr1, Cr2, Gbpa, IrqCtrl, offset};
use crate::arch::{Command, Features, IdRegs, StallModel, regs};
use crate::platform::{Mmio, PhysAddr, Platform};
use crate::queue::{CommandQueue, Deadline, EventQueue, QueueOptions};
use crate::table::StreamTable;
use crate::tags::Tags;
use arbitrary_int::u2;

/// What an SMMU is or lacks, so that this driver can't serve it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// The registers read as all ones or all zeros.
    #[error("no SMMU answers (IDR0 reads {0:#x})")]
    NotThere(u32),
    /// Another architecture than SMMUv3.
    #[error("architecture version {0}.x is not SMMUv3 (AIDR)")]
    Version(u8),
    /// Neither stage 1 nor stage 2.
    #[error("neither stage of translation is implemented (IDR0.S1P, S2P)")]
    NoTranslation,
    /// No VMSAv8-64 translation tables.
    #[error("VMSAv8-64 tables are not supported (IDR0.TTF)")]
    TableFormat,
    /// Big-endian translation tables only.
    #[error("little-endian tables are not supported (IDR0.TTENDIAN)")]
    BigEndian,
    /// Tables and queues are not read through the CPU's caches, and the platform has no [`Platform::CACHE_MAINTENANCE`].
    #[error("accesses to tables and queues are not coherent (IDR0.COHACC)")]
    NotCoherent,
    /// Table or queue base registers are fixed.
    #[error("table or queue addresses are preset (IDR1.TABLES_PRESET, QUEUES_PRESET)")]
    Preset,
    /// A command queue of one command, in which a CMD_SYNC cannot follow upon what it waits for.
    #[error("the command queue has a single entry (IDR1.CMDQS)")]
    CommandQueue,
    /// Faulting transactions always stall.
    #[error("the stall model is forced (IDR0.STALL_MODEL)")]
    StallForced,
    /// No translation granule.
    #[error("no translation granule is supported (IDR5)")]
    NoGranule,
    /// Memory that the platform gave lies beyond what the SMMU addresses.
    #[error("memory at {addr} is beyond the SMMU's {bits} address bits (IDR5.OAS)")]
    Memory {
        /// The memory.
        addr: PhysAddr,
        /// Output address bits.
        bits: u8,
    },
}

/// Reads the ID registers, and refuses what the driver can't serve.
fn probe<P: Platform>(mmio: &P::Mmio) -> Result<Features, Unsupported> {
    let idr0 = mmio.read32(offset::IDR0);
    if idr0 == u32::MAX || idr0 == 0 {
        return Err(Unsupported::NotThere(idr0));
    }
    let ids = IdRegs {
        idr0: regs::Idr0::new_with_raw_value(idr0),
        idr1: regs::Idr1::new_with_raw_value(mmio.read32(offset::IDR1)),
        idr3: regs::Idr3::new_with_raw_value(mmio.read32(offset::IDR3)),
        idr5: regs::Idr5::new_with_raw_value(mmio.read32(offset::IDR5)),
        aidr: regs::Aidr::new_with_raw_value(mmio.read32(offset::AIDR)),
    };
    if ids.aidr.major().value() != 0 {
        return Err(Unsupported::Version(ids.aidr.major().value()));
    }
    let features = Features::from(ids);
    for (bad, why) in [
        (!features.stage1 && !features.stage2, Unsupported::NoTranslation),
        (!features.aarch64_tables, Unsupported::TableFormat),
        (!features.little_endian, Unsupported::BigEndian),
        (!features.coherent && !P::CACHE_MAINTENANCE, Unsupported::NotCoherent),
        (features.preset, Unsupported::Preset),
        (features.cmdq_log2 == 0, Unsupported::CommandQueue),
        (features.stall_model == StallModel::Forced, Unsupported::StallForced),
        (features.granules == [false; 3], Unsupported::NoGranule),
    ] {
        if bad {
            return Err(why);
        }
    }
    Ok(features)
}

impl<P: Platform> Smmu<P> {
    /// Probes and resets the SMMU behind `mmio`.
    ///
    /// An SMMU that is refused for what it is, is left alone. If anything else fails, it is left aborting all traffic, with translation and queues off;
    /// if even that is not acknowledged, memory that it may still use is never given back.
    pub(crate) fn new(platform: &P, mmio: P::Mmio, id: SmmuId, options: SmmuOptions) -> Result<Self, AddSmmuError> {
        for (name, value) in [("cmdq_log2", options.cmdq_log2), ("eventq_log2", options.eventq_log2)] {
            if !(1..=16).contains(&value) {
                return Err(AddSmmuError::BadOption { name, value });
            }
        }
        let features = probe::<P>(&mmio)?;
        stop(platform, &mmio, &features, options.timeout_ns)?;
        let none = AddSmmuError::NoMemory;
        let queue = QueueOptions {
            log2: options.cmdq_log2.min(features.cmdq_log2),
            timeout_ns: options.timeout_ns,
            completion: options.completion.offered(&features),
        };
        let eventq_log2 = options.eventq_log2.min(features.eventq_log2);
        let mut smmu = Smmu {
            id,
            features,
            streams: Mutex::new(StreamTable::new(platform, &features).ok_or(none)?),
            // VMID 0 tags plain stage 1. ASID 0 stays unused, so that a forgotten field is not somebody's.
            asids: Mutex::new(Tags::new(features.asid_bits).ok_or(none)?),
            vmids: Mutex::new(Tags::new(features.vmid_bits).ok_or(none)?),
            commands: CommandQueue::new(platform, queue).ok_or(none)?,
            enhanced: Vec::new(),
            events: Mutex::new(EventQueue::new(platform, eventq_log2, features.coherent).ok_or(none)?),
            ats_stu: features.smallest_granule().map_or(0, |granule| granule.shift() as u8 - 12),
            users: AtomicUsize::new(0),
            removed: AtomicBool::new(false),
            platform: platform.clone(),
            timeout_ns: options.timeout_ns,
            mmio,
        };
        let window = platform.window();
        if !super::reachable(&features, window.base(), window.size().max(1)) {
            let bits = features.used_oas().bits();
            return Err(Unsupported::Memory { addr: PhysAddr(window.base().0 + window.size()), bits }.into());
        }
        smmu.reset(options.interrupts)?;
        if features.ecmdq {
            smmu.enhanced = enhanced::enable(options.ecmdqs, platform, &smmu.mmio, queue);
        }
        Ok(smmu)
    }

    fn reset(&self, interrupts: bool) -> Result<(), AddSmmuError> {
        let mmio = &self.mmio;
        // Tables and queues are read through write-back, inner shareable caches, or through none.
        let (cache, share) = if self.features.coherent { (1, 3) } else { (0, 2) };
        let (cache, share) = (u2::new(cache), u2::new(share));
        let cr1 = Cr1::default().with_queue_ic(cache).with_queue_oc(cache).with_queue_sh(share);
        let cr1 = cr1.with_table_ic(cache).with_table_oc(cache).with_table_sh(share);
        mmio.write32(offset::CR1, cr1.raw_value());
        // The CPU's own TLB maintenance is none of this driver's; unknown streams are to be heard of.
        mmio.write32(offset::CR2, Cr2::default().with_ptm(true).with_recinvsid(true).raw_value());
        let (base, config) = self.streams.lock().base();
        mmio.write64(offset::STRTAB_BASE, base);
        mmio.write32(offset::STRTAB_BASE_CFG, config);

        // Errors of the past are over.
        mmio.write32(offset::GERRORN, mmio.read32(offset::GERROR));
        mmio.write64(offset::CMDQ_BASE, self.commands.base());
        mmio.write32(offset::CMDQ_PROD, 0);
        mmio.write32(offset::CMDQ_CONS, 0);
        let cr0 = Cr0::default().with_cmdqen(true);
        self.set_cr0(cr0)?;
        let el2 = self.features.hyp.then_some(Command::TlbiEl2All);
        self.run([Command::CfgiSteRange { sid: 0, range: 31 }, Command::TlbiNsnhAll].into_iter().chain(el2))?;

        mmio.write64(offset::EVENTQ_BASE, self.events.lock().base());
        mmio.write32(offset::EVENTQ_PROD, 0);
        mmio.write32(offset::EVENTQ_CONS, 0);
        let cr0 = cr0.with_eventqen(true);
        self.set_cr0(cr0)?;
        // Interrupts only once there is a queue that they can be about. Where they could be messages, the addresses are
        // UNKNOWN after reset; address 0 sends none, and leaves the wires.
        if interrupts {
            if self.features.msi {
                mmio.write64(offset::GERROR_IRQ_CFG0, 0);
                mmio.write64(offset::EVENTQ_IRQ_CFG0, 0);
            }
            self.set_irqs(IrqCtrl::default().with_gerror_irqen(true).with_eventq_irqen(true))?;
        }
        self.set_cr0(cr0.with_smmuen(true).with_atschk(self.features.ats))
    }

    fn set_cr0(&self, cr0: Cr0) -> Result<(), AddSmmuError> {
        // What the SMMU will use from now on comes before the switch. litmus: doorbell
        self.platform.write_barrier();
        set_cr0(&self.platform, &self.mmio, self.timeout_ns, cr0)
    }

    fn set_irqs(&self, irqs: IrqCtrl) -> Result<(), AddSmmuError> {
        set_irqs(&self.platform, &self.mmio, self.timeout_ns, irqs)
    }
}

/// Aborts all traffic and turns everything off, whatever state the SMMU is in.
fn stop<P: Platform>(platform: &P, mmio: &P::Mmio, features: &Features, timeout_ns: u64) -> Result<(), AddSmmuError> {
    // Abort first: between the end of translation and the next beginning nothing may pass untranslated.
    let updated = |value| {
        let done = || !Gbpa::new_with_raw_value(mmio.read32(offset::GBPA)).update();
        wait_for(platform, timeout_ns, "GBPA", value, done)
    };
    updated(0)?;
    let gbpa = Gbpa::default().with_shcfg(u2::new(1)).with_abort(true).with_update(true);
    mmio.write32(offset::GBPA, gbpa.raw_value());
    updated(gbpa.raw_value())?;
    set_irqs(platform, mmio, timeout_ns, IrqCtrl::default())?;
    // Translation ends by itself, and then the queues.
    let cr0 = Cr0::new_with_raw_value(mmio.read32(offset::CR0));
    if cr0.smmuen() {
        set_cr0(platform, mmio, timeout_ns, cr0.with_smmuen(false))?;
    }
    set_cr0(platform, mmio, timeout_ns, Cr0::default())?;
    // Enhanced Command queues are no matter of CR0, and as long as one is on, CR1 cannot be written.
    if features.ecmdq { enhanced::disable(platform, mmio, timeout_ns) } else { Ok(()) }
}

fn set_cr0<P: Platform>(platform: &P, mmio: &P::Mmio, timeout_ns: u64, cr0: Cr0) -> Result<(), AddSmmuError> {
    mmio.write32(offset::CR0, cr0.raw_value());
    wait_for(platform, timeout_ns, "CR0", cr0.raw_value(), || mmio.read32(offset::CR0ACK) == cr0.raw_value())
}

fn set_irqs<P: Platform>(platform: &P, mmio: &P::Mmio, timeout_ns: u64, irqs: IrqCtrl) -> Result<(), AddSmmuError> {
    mmio.write32(offset::IRQ_CTRL, irqs.raw_value());
    wait_for(platform, timeout_ns, "IRQ_CTRL", irqs.raw_value(), || {
        mmio.read32(offset::IRQ_CTRLACK) == irqs.raw_value()
    })
}

pub(super) fn wait_for<P: Platform>(
    platform: &P,
    timeout_ns: u64,
    register: &'static str,
    value: u32,
    done: impl FnMut() -> bool,
) -> Result<(), AddSmmuError> {
    if Deadline::after(platform, timeout_ns).wait(platform, done) {
        Ok(())
    } else {
        Err(AddSmmuError::NotAcknowledged { register, value })
    }
}

impl<P: Platform> Smmu<P> {
    /// Leaves the SMMU aborting all traffic, for ever. Where that is not acknowledged, it may still use its queues and tables, which are then
    /// never given back. Nothing touches its registers afterwards.
    pub(super) fn retire(&self) -> Result<(), AddSmmuError> {
        // Whoever looks for events holds this lock while it touches registers.
        let events = self.events.lock();
        if self.removed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let cr0 = Cr0::new_with_raw_value(self.mmio.read32(offset::CR0));
        if cr0.smmuen() {
            let _ = self.set_cr0(cr0.with_smmuen(false));
            // Transactions that are under way with the configuration of before end with this CMD_SYNC.
            let _ = self.run([Command::CfgiSteRange { sid: 0, range: 31 }, Command::TlbiNsnhAll]);
        }
        let queues = || [&self.commands].into_iter().chain(&self.enhanced);
        let stopped = stop(&self.platform, &self.mmio, &self.features, self.timeout_ns);
        stopped.inspect(|()| queues().for_each(CommandQueue::end)).inspect_err(|_| {
            queues().for_each(CommandQueue::keep_forever);
            events.keep_forever();
            self.streams.lock().keep_forever();
        })
    }
}

impl<P: Platform> Drop for Smmu<P> {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = self.retire();
    }
}

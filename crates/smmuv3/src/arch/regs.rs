//! Registers: offsets and bit-fields (IHI 0070 §6.2, §6.3). Non-secure programming interface.

use arbitrary_int::{u2, u3, u4, u5, u6, u7, u20, u40};
use bitbybit::bitfield;

/// Offsets in bytes from the base of register page 0.
#[allow(missing_docs)] // the names are the specification's
pub mod offset {
    pub const IDR0: usize = 0x00;
    pub const IDR1: usize = 0x04;
    pub const IDR2: usize = 0x08;
    pub const IDR3: usize = 0x0c;
    pub const IDR4: usize = 0x10;
    pub const IDR5: usize = 0x14;
    pub const IIDR: usize = 0x18;
    pub const AIDR: usize = 0x1c;
    pub const CR0: usize = 0x20;
    pub const CR0ACK: usize = 0x24;
    pub const CR1: usize = 0x28;
    pub const CR2: usize = 0x2c;
    pub const STATUSR: usize = 0x40;
    pub const GBPA: usize = 0x44;
    pub const IRQ_CTRL: usize = 0x50;
    pub const IRQ_CTRLACK: usize = 0x54;
    pub const GERROR: usize = 0x60;
    pub const GERRORN: usize = 0x64;
    pub const GERROR_IRQ_CFG0: usize = 0x68;
    pub const STRTAB_BASE: usize = 0x80;
    pub const STRTAB_BASE_CFG: usize = 0x88;
    pub const CMDQ_BASE: usize = 0x90;
    pub const CMDQ_PROD: usize = 0x98;
    pub const CMDQ_CONS: usize = 0x9c;
    pub const EVENTQ_BASE: usize = 0xa0;
    pub const EVENTQ_IRQ_CFG0: usize = 0xb0;
    pub const PRIQ_BASE: usize = 0xc0;
    pub const IDR6: usize = 0x190;
    /// In page 1.
    pub const EVENTQ_PROD: usize = 0x1_00a8;
    /// In page 1.
    pub const EVENTQ_CONS: usize = 0x1_00ac;

    /// `SMMU_CMDQ_CONTROL_PAGE_BASE<n>`
    pub const fn cmdq_control_page_base(n: usize) -> usize {
        0x4000 + 32 * n
    }

    /// `SMMU_CMDQ_CONTROL_PAGE_CFG<n>`
    pub const fn cmdq_control_page_cfg(n: usize) -> usize {
        0x4008 + 32 * n
    }

    /// `SMMU_CMDQ_CONTROL_PAGE_STATUS<n>`
    pub const fn cmdq_control_page_status(n: usize) -> usize {
        0x400c + 32 * n
    }

    /// From the start of the queue's registers, which [`Idr6::queue`](super::Idr6::queue) gives.
    pub const ECMDQ_BASE: usize = 0x0;
    /// As above.
    pub const ECMDQ_PROD: usize = 0x8;
    /// As above.
    pub const ECMDQ_CONS: usize = 0xc;
}

/// Bytes of a Command queue control page (§6.2.5).
pub const CMDQ_CONTROL_PAGE_SIZE: usize = 0x1_0000;

/// `SMMU_IDR0` (§6.3.1).
#[bitfield(u32, debug)]
pub struct Idr0 {
    /// Stage 2 is supported.
    #[bit(0, rw)]
    s2p: bool,
    /// Stage 1 is supported.
    #[bit(1, rw)]
    s1p: bool,
    /// Table formats: bit 0 VMSAv8-32 LPAE, bit 1 VMSAv8-64.
    #[bits(2..=3, rw)]
    ttf: u2,
    /// Coherent access to tables and queues.
    #[bit(4, rw)]
    cohacc: bool,
    /// Broadcast TLB maintenance.
    #[bit(5, rw)]
    btm: bool,
    /// Hardware update of the access flag (bit 0) and dirty state (bit 1).
    #[bits(6..=7, rw)]
    httu: u2,
    /// EL2 translation regimes (StreamWorld EL2).
    #[bit(9, rw)]
    hyp: bool,
    /// PCIe ATS.
    #[bit(10, rw)]
    ats: bool,
    /// Split-stage ATS is *not* supported.
    #[bit(11, rw)]
    ns1ats: bool,
    /// 16-bit ASIDs.
    #[bit(12, rw)]
    asid16: bool,
    /// Interrupts as messages.
    #[bit(13, rw)]
    msi: bool,
    /// WFE wake-up events from the SMMU.
    #[bit(14, rw)]
    sev: bool,
    /// Address translation operations.
    #[bit(15, rw)]
    atos: bool,
    /// PCIe page requests.
    #[bit(16, rw)]
    pri: bool,
    /// 16-bit VMIDs.
    #[bit(18, rw)]
    vmid16: bool,
    /// Two-level CD tables.
    #[bit(19, rw)]
    cd2l: bool,
    /// Table endianness: 0 mixed, 2 little, 3 big.
    #[bits(21..=22, rw)]
    ttendian: u2,
    /// 0 stall and terminate, 1 terminate only, 2 stall forced.
    #[bits(24..=25, rw)]
    stall_model: u2,
    /// Terminated transactions can only be aborted.
    #[bit(26, rw)]
    term_model: bool,
    /// Stream tables: 0 linear, 1 two-level as well.
    #[bits(27..=28, rw)]
    st_level: u2,
}

/// `SMMU_IDR1` (§6.3.2). Sizes are log2 of a number of entries or of bits of an id.
#[bitfield(u32, debug)]
pub struct Idr1 {
    /// StreamID bits.
    #[bits(0..=5, rw)]
    sidsize: u6,
    /// SubstreamID bits.
    #[bits(6..=10, rw)]
    ssidsize: u5,
    /// Largest PRI queue.
    #[bits(11..=15, rw)]
    priqs: u5,
    /// Largest Event queue.
    #[bits(16..=20, rw)]
    eventqs: u5,
    /// Largest Command queue.
    #[bits(21..=25, rw)]
    cmdqs: u5,
    /// Incoming permission attributes can be overridden.
    #[bit(26, rw)]
    attr_perms_ovr: bool,
    /// Incoming memory types can be overridden.
    #[bit(27, rw)]
    attr_types_ovr: bool,
    /// Queue base registers are fixed by the hardware.
    #[bit(29, rw)]
    queues_preset: bool,
    /// Table base registers are fixed by the hardware.
    #[bit(30, rw)]
    tables_preset: bool,
    /// Enhanced Command queues.
    #[bit(31, rw)]
    ecmdq: bool,
}

/// `SMMU_IDR3` (§6.3.4).
#[bitfield(u32, debug)]
pub struct Idr3 {
    /// Hierarchical attributes can be disabled.
    #[bit(2, rw)]
    had: bool,
    /// Execute-never for EL1 and EL0 apart, at stage 2.
    #[bit(4, rw)]
    xnx: bool,
    /// Memory partitioning.
    #[bit(7, rw)]
    mpam: bool,
    /// Forced write-back at stage 2.
    #[bit(8, rw)]
    fwb: bool,
    /// Small translation tables.
    #[bit(9, rw)]
    stt: bool,
    /// Range invalidation (`NUM`, `SCALE`, `TG`, `TTL`).
    #[bit(10, rw)]
    ril: bool,
    /// How well a change of block size is borne, 0 to 2.
    #[bits(11..=12, rw)]
    bbml: u2,
}

/// `SMMU_IDR5` (§6.3.6).
#[bitfield(u32, debug)]
pub struct Idr5 {
    /// Output address size, coded as [`crate::arch::AddrSize`].
    #[bits(0..=2, rw)]
    oas: u3,
    /// 4 KiB granule.
    #[bit(4, rw)]
    gran4k: bool,
    /// 16 KiB granule.
    #[bit(5, rw)]
    gran16k: bool,
    /// 64 KiB granule.
    #[bit(6, rw)]
    gran64k: bool,
    /// Input address size: 0 is 48 bits, 1 is 52 bits.
    #[bits(10..=11, rw)]
    vax: u2,
}

/// `SMMU_IDR6` (§6.3.45): how many Enhanced Command queues there are. Zero where `IDR1.ECMDQ` is 0.
#[bitfield(u32, debug)]
pub struct Idr6 {
    /// log2 of the queues in a control page, at most 8.
    #[bits(16..=19, rw)]
    cmdq_control_page_log2numq: u4,
    /// log2 of the control pages, at most 8.
    #[bits(24..=27, rw)]
    cmdq_control_page_log2nump: u4,
}

impl Idr6 {
    /// How many control pages there are: 1 to 256.
    pub const fn pages(self) -> usize {
        1 << limited(self.cmdq_control_page_log2nump().value())
    }

    /// How many queues each of them has: 1 to 256.
    pub const fn queues_per_page(self) -> usize {
        1 << limited(self.cmdq_control_page_log2numq().value())
    }

    /// Where the registers of queue `n` start, from the start of its control page: queues are spread evenly (§6.2.5).
    pub const fn queue(self, n: usize) -> usize {
        n * (CMDQ_CONTROL_PAGE_SIZE / self.queues_per_page())
    }
}

/// The largest value that `IDR6` may have is 8.
const fn limited(log2: u8) -> u8 {
    if log2 > 8 { 8 } else { log2 }
}

/// `SMMU_AIDR` (§6.3.8): the architecture is SMMUv`major + 3`.`minor`.
#[bitfield(u32, debug)]
pub struct Aidr {
    /// Minor revision.
    #[bits(0..=3, rw)]
    minor: u4,
    /// Major revision, 0 for SMMUv3.
    #[bits(4..=7, rw)]
    major: u4,
}

/// `SMMU_CR0` and `SMMU_CR0ACK` (§6.3.9).
#[bitfield(u32, debug, default = 0)]
#[derive(PartialEq, Eq)]
pub struct Cr0 {
    /// Translation is enabled.
    #[bit(0, rw)]
    smmuen: bool,
    /// PRI queue writes are enabled.
    #[bit(1, rw)]
    priqen: bool,
    /// Event queue writes are enabled.
    #[bit(2, rw)]
    eventqen: bool,
    /// Command queue processing is enabled.
    #[bit(3, rw)]
    cmdqen: bool,
    /// ATS translated traffic is checked against the STE.
    #[bit(4, rw)]
    atschk: bool,
}

/// `SMMU_CR1` (§6.3.11): attributes of the SMMU's own accesses.
#[bitfield(u32, debug, default = 0)]
pub struct Cr1 {
    /// Queues, inner cacheability; 1 is write-back.
    #[bits(0..=1, rw)]
    queue_ic: u2,
    /// Queues, outer cacheability; 1 is write-back.
    #[bits(2..=3, rw)]
    queue_oc: u2,
    /// Queues, shareability; 3 is inner shareable.
    #[bits(4..=5, rw)]
    queue_sh: u2,
    /// Tables, inner cacheability.
    #[bits(6..=7, rw)]
    table_ic: u2,
    /// Tables, outer cacheability.
    #[bits(8..=9, rw)]
    table_oc: u2,
    /// Tables, shareability.
    #[bits(10..=11, rw)]
    table_sh: u2,
}

/// `SMMU_CR2` (§6.3.12).
#[bitfield(u32, debug, default = 0)]
pub struct Cr2 {
    /// StreamWorld EL2 means EL2-E2H.
    #[bit(0, rw)]
    e2h: bool,
    /// Record `C_BAD_STREAMID`.
    #[bit(1, rw)]
    recinvsid: bool,
    /// Private TLB maintenance: broadcast operations are ignored.
    #[bit(2, rw)]
    ptm: bool,
}

/// `SMMU_GBPA` (§6.3.14): what happens to transactions while `CR0.SMMUEN` is 0.
#[bitfield(u32, debug, default = 0)]
pub struct Gbpa {
    /// Shareability of bypassing transactions; 1 is as they come.
    #[bits(12..=13, rw)]
    shcfg: u2,
    /// Abort them all.
    #[bit(20, rw)]
    abort: bool,
    /// Set with a write, clear once the write has taken effect.
    #[bit(31, rw)]
    update: bool,
}

/// `SMMU_IRQ_CTRL` and `SMMU_IRQ_CTRLACK` (§6.3.16).
#[bitfield(u32, debug, default = 0)]
#[derive(PartialEq, Eq)]
pub struct IrqCtrl {
    /// Global errors interrupt.
    #[bit(0, rw)]
    gerror_irqen: bool,
    /// The PRI queue interrupts.
    #[bit(1, rw)]
    priq_irqen: bool,
    /// The Event queue interrupts.
    #[bit(2, rw)]
    eventq_irqen: bool,
}

bitflags::bitflags! {
    /// `SMMU_GERROR` and `SMMU_GERRORN` (§6.3.19): a bit that differs between the two is an active error.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Gerror: u32 {
        /// A command failed; `CMDQ_CONS.ERR` says why, and the queue stands still.
        const CMDQ_ERR = 1 << 0;
        /// Event queue writes were aborted.
        const EVENTQ_ABT_ERR = 1 << 2;
        /// PRI queue writes were aborted.
        const PRIQ_ABT_ERR = 1 << 3;
        /// The message of a CMD_SYNC was aborted.
        const MSI_CMDQ_ABT_ERR = 1 << 4;
        /// The message of the Event queue was aborted.
        const MSI_EVENTQ_ABT_ERR = 1 << 5;
        /// The message of the PRI queue was aborted.
        const MSI_PRIQ_ABT_ERR = 1 << 6;
        /// The message of a global error was aborted.
        const MSI_GERROR_ABT_ERR = 1 << 7;
        /// Service failure mode: the SMMU has stopped translating.
        const SFM_ERR = 1 << 8;
        /// An Enhanced Command queue control page has an error.
        const CMDQP_ERR = 1 << 9;
        /// A device permission table lookup failed.
        const DPT_ERR = 1 << 10;
    }
}

/// `SMMU_STRTAB_BASE` (§6.3.24): bits 55:6 are the address, bit 62 the read-allocate hint.
pub const STRTAB_BASE_RA: u64 = 1 << 62;
/// `SMMU_CMDQ_BASE`, `SMMU_EVENTQ_BASE` (§6.3.26): the allocate hint. Bits 55:5 are the address, 4:0 the log2 of the entries.
pub const QUEUE_BASE_ALLOC: u64 = 1 << 62;
/// The address field of `SMMU_STRTAB_BASE`.
pub const STRTAB_BASE_ADDR: u64 = 0x00ff_ffff_ffff_ffc0;
/// The address field of a queue base register.
pub const QUEUE_BASE_ADDR: u64 = 0x00ff_ffff_ffff_ffe0;

/// `SMMU_STRTAB_BASE_CFG` (§6.3.25).
#[bitfield(u32, debug, default = 0)]
pub struct StrtabBaseCfg {
    /// log2 of the number of STEs (both levels together).
    #[bits(0..=5, rw)]
    log2size: u6,
    /// StreamID bits that index the second level: 6, 8 or 10.
    #[bits(6..=10, rw)]
    split: u5,
    /// 0 linear, 1 two-level.
    #[bits(16..=17, rw)]
    fmt: u2,
}

/// `SMMU_CMDQ_CONS` (§6.3.28).
#[bitfield(u32, debug, default = 0)]
pub struct CmdqCons {
    /// Index and wrap bit of the next command to consume.
    #[bits(0..=19, rw)]
    rd: u20,
    /// Why the queue stopped, while `GERROR.CMDQ_ERR` is active.
    #[bits(24..=30, rw)]
    err: u7,
}

/// `SMMU_CMDQ_CONTROL_PAGE_BASE<n>` (§6.3.49). `CFG<n>.EN` and `STATUS<n>.ENACK`, bit 0 each, are always 1 (§6.3.50, §6.3.51).
#[bitfield(u64, debug)]
pub struct CmdqControlPageBase {
    /// The queues are registers of the SMMU: always 1.
    #[bit(0, rw)]
    cmdq_control_page_preset: bool,
    /// Size of the page: 1 is 64 KiB, and there are no others.
    #[bits(1..=2, rw)]
    cmdqgs: u2,
    /// Bits 55:16 of the offset of the page from register page 0.
    #[bits(16..=55, rw)]
    addr: u40,
}

impl CmdqControlPageBase {
    /// The offset of the page from register page 0, in bytes.
    pub const fn offset(self) -> u64 {
        self.addr().value() << 16
    }
}

/// `SMMU_ECMDQ_PROD<n>` (§6.3.108). While EN and ENACK differ it cannot be written.
#[bitfield(u32, debug, default = 0)]
pub struct EcmdqProd {
    /// Index and wrap bit of the next command to write.
    #[bits(0..=19, rw)]
    wr: u20,
    /// Acknowledges an error: made equal to `ECMDQ_CONS.ERR`.
    #[bit(23, rw)]
    errack: bool,
    /// The queue is enabled; `ECMDQ_CONS.ENACK` follows.
    #[bit(31, rw)]
    en: bool,
}

/// `SMMU_ECMDQ_CONS<n>` (§6.3.109).
#[bitfield(u32, debug, default = 0)]
pub struct EcmdqCons {
    /// Index and wrap bit of the next command to consume.
    #[bits(0..=19, rw)]
    rd: u20,
    /// Toggled by an error: one is active while it differs from `ECMDQ_PROD.ERRACK`, and the queue stands still.
    #[bit(23, rw)]
    err: bool,
    /// Why, as [`CmdqError`]. Means nothing while no error is active.
    #[bits(24..=26, rw)]
    err_reason: u3,
    /// The queue is enabled.
    #[bit(31, rw)]
    enack: bool,
}

/// Bit 31 of `SMMU_EVENTQ_PROD` (OVFLG) and `SMMU_EVENTQ_CONS` (OVACKFLG): they differ after an overflow (§7.4).
pub const EVENTQ_OVERFLOW: u32 = 1 << 31;

/// Why a command was not executed: `SMMU_CMDQ_CONS.ERR` (§4.1.3, §7.1), `SMMU_ECMDQ_CONS.ERR_REASON`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CmdqError {
    /// `CERROR_NONE`: no error is recorded.
    None,
    /// `CERROR_ILL`: the command is illegal.
    Illegal,
    /// `CERROR_ABT`: the command could not be read.
    Abort,
    /// `CERROR_ATC_INV_SYNC`: an ATC invalidation before this CMD_SYNC timed out.
    AtcInvSync,
    /// A code that the specification does not define.
    Unknown(u8),
}

impl From<u7> for CmdqError {
    fn from(code: u7) -> Self {
        match code.value() {
            0 => CmdqError::None,
            1 => CmdqError::Illegal,
            2 => CmdqError::Abort,
            3 => CmdqError::AtcInvSync,
            other => CmdqError::Unknown(other),
        }
    }
}

impl From<u3> for CmdqError {
    fn from(code: u3) -> Self {
        CmdqError::from(u7::new(code.value()))
    }
}

impl core::fmt::Display for CmdqError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            CmdqError::None => f.write_str("CERROR_NONE"),
            CmdqError::Illegal => f.write_str("CERROR_ILL (illegal command)"),
            CmdqError::Abort => f.write_str("CERROR_ABT (command fetch aborted)"),
            CmdqError::AtcInvSync => f.write_str("CERROR_ATC_INV_SYNC (ATC invalidation timed out)"),
            CmdqError::Unknown(code) => write!(f, "error code {code:#x}"),
        }
    }
}

#[cfg(test)]
#[path = "regs_test.rs"]
mod tests;

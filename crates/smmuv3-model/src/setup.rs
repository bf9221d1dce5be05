//! What to build: how much memory, and what each SMMU can do.

use smmuv3::arch::regs::{Aidr, Idr0, Idr1, Idr3, Idr5};
use smmuv3::arch::{AddrSize, IdRegs, StallModel};
use smmuv3::platform::PhysAddr;

use crate::latency::Latency;
use crate::laziness::Laziness;

/// A machine: memory and up to 16 SMMUs.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Bytes of RAM, a multiple of 4096.
    pub ram_size: usize,
    /// The device address of the first byte of RAM, a multiple of 4096. Never what the CPU sees it at.
    pub ram_base: PhysAddr,
    /// The SMMUs.
    pub smmus: Vec<ModelSmmuConfig>,
    /// Everything random follows from it.
    pub seed: u64,
}

impl Default for ModelConfig {
    fn default() -> Self {
        ModelConfig {
            ram_size: 64 << 20,
            ram_base: PhysAddr(0x8000_0000),
            smmus: vec![ModelSmmuConfig::default()],
            seed: 1,
        }
    }
}

impl ModelConfig {
    /// The default machine with one SMMU as given.
    pub fn with_smmu(smmu: ModelSmmuConfig) -> Self {
        ModelConfig { smmus: vec![smmu], ..Self::default() }
    }
}

/// One SMMU: its ID registers, and how lazy it is. The default has everything that a modern part has.
#[derive(Debug, Clone)]
pub struct ModelSmmuConfig {
    /// Stage 1 translation (`IDR0.S1P`).
    pub stage1: bool,
    /// Stage 2 translation (`IDR0.S2P`).
    pub stage2: bool,
    /// EL2 translation regimes (`IDR0.Hyp`).
    pub hyp: bool,
    /// 16-bit ASIDs (`IDR0.ASID16`).
    pub asid16: bool,
    /// 16-bit VMIDs (`IDR0.VMID16`).
    pub vmid16: bool,
    /// Two-level CD tables (`IDR0.CD2L`).
    pub cd_two_level: bool,
    /// Two-level stream tables (`IDR0.ST_LEVEL`).
    pub st_two_level: bool,
    /// ATS (`IDR0.ATS`), full only: `IDR0.NS1ATS` is set with it, and `EATS` = 2 makes an STE illegal.
    pub ats: bool,
    /// PRI (`IDR0.PRI`). The model has no PRI queue yet; its registers can be written and nothing comes of it.
    pub pri: bool,
    /// Message interrupts (`IDR0.MSI`).
    pub msi: bool,
    /// Wake-up events (`IDR0.SEV`).
    pub sev: bool,
    /// Coherent table and queue accesses (`IDR0.COHACC`). Without, they go past the CPU's caches, whose contents the platform cleans and discards, and which
    /// are written back at any time besides.
    pub coherent: bool,
    /// `IDR0.STALL_MODEL`. Stalls are not modelled: transactions that should stall are terminated.
    pub stall_model: StallModel,
    /// Terminated transactions can only be aborted (`IDR0.TERM_MODEL`).
    pub abort_only: bool,
    /// StreamID bits (`IDR1.SIDSIZE`), at most 32.
    pub sid_bits: u8,
    /// SubstreamID bits (`IDR1.SSIDSIZE`), at most 20.
    pub ssid_bits: u8,
    /// log2 of the largest Command queue (`IDR1.CMDQS`), at most 19.
    pub cmdq_log2: u8,
    /// log2 of the largest Event queue (`IDR1.EVENTQS`), at most 19.
    pub eventq_log2: u8,
    /// Enhanced Command queues (`IDR1.ECMDQ`, `IDR6`). There must be `msi` and `coherent` with them.
    pub ecmdqs: Option<Ecmdqs>,
    /// Range invalidation (`IDR3.RIL`).
    pub range_inv: bool,
    /// `IDR3.BBML`, 0 to 2.
    pub bbm_level: u8,
    /// Output address size (`IDR5.OAS`).
    pub oas: AddrSize,
    /// The granules: 4 KiB, 16 KiB, 64 KiB.
    pub granules: [bool; 3],
    /// Minor revision (`AIDR`): 2 is SMMUv3.2.
    pub minor: u8,
    /// How the SMMU uses the freedom that the specification leaves.
    pub laziness: Laziness,
    /// How long its commands take.
    pub latency: Latency,
}

/// How many Enhanced Command queues an SMMU has (§3.5.6): 32 at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ecmdqs {
    /// log2 of the Command queue control pages (`IDR6.CMDQ_CONTROL_PAGE_LOG2NUMP`).
    pub log2_pages: u8,
    /// log2 of the queues in each (`IDR6.CMDQ_CONTROL_PAGE_LOG2NUMQ`).
    pub log2_queues: u8,
}

impl Default for ModelSmmuConfig {
    fn default() -> Self {
        ModelSmmuConfig {
            stage1: true,
            stage2: true,
            hyp: true,
            asid16: true,
            vmid16: true,
            cd_two_level: true,
            st_two_level: true,
            ats: true,
            pri: false,
            msi: true,
            sev: true,
            coherent: true,
            stall_model: StallModel::Terminate,
            abort_only: true,
            sid_bits: 16,
            ssid_bits: 20,
            cmdq_log2: 19,
            eventq_log2: 19,
            ecmdqs: None,
            range_inv: true,
            bbm_level: 2,
            oas: AddrSize::B48,
            granules: [true; 3],
            minor: 2,
            laziness: Laziness::all(),
            latency: Latency::NONE,
        }
    }
}

impl ModelSmmuConfig {
    /// The ID registers that say so (§6.3.1 to §6.3.8).
    pub fn id_regs(&self) -> IdRegs {
        let bit = |set: bool, at: u32| u32::from(set) << at;
        let num = |value: u8, at: u32| u32::from(value) << at;
        let stall_model = match self.stall_model {
            StallModel::Both => 0,
            StallModel::Terminate => 1,
            StallModel::Forced => 2,
        };
        let idr0 = bit(self.stage2, 0)
            | bit(self.stage1, 1)
            | 0b10 << 2 // TTF: VMSAv8-64
            | bit(self.coherent, 4)
            | bit(self.hyp, 9)
            | bit(self.ats, 10)
            | bit(self.ats, 11) // NS1ATS: no split-stage ATS
            | bit(self.asid16, 12)
            | bit(self.msi, 13)
            | bit(self.sev, 14)
            | bit(self.pri, 16)
            | bit(self.vmid16, 18)
            | bit(self.cd_two_level, 19)
            | 0b10 << 21 // TTENDIAN: little
            | stall_model << 24
            | bit(self.abort_only, 26)
            | bit(self.st_two_level, 27);
        let idr1 = num(self.sid_bits, 0)
            | num(self.ssid_bits, 6)
            | num(if self.pri { 10 } else { 0 }, 11)
            | num(self.eventq_log2, 16)
            | num(self.cmdq_log2, 21)
            | bit(self.ecmdqs.is_some(), 31);
        let idr3 = bit(self.range_inv, 10) | num(self.bbm_level, 11);
        let idr5 =
            num(self.oas.code(), 0) | bit(self.granules[0], 4) | bit(self.granules[1], 5) | bit(self.granules[2], 6);
        IdRegs {
            idr0: Idr0::new_with_raw_value(idr0),
            idr1: Idr1::new_with_raw_value(idr1),
            idr3: Idr3::new_with_raw_value(idr3),
            idr5: Idr5::new_with_raw_value(idr5),
            aidr: Aidr::new_with_raw_value(self.minor.into()),
        }
    }
}

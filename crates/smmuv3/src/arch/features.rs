//! What one SMMU can do, read once from its ID registers (IHI 0070 §6.3.1 to §6.3.8).

use core::fmt;

use super::regs::{Aidr, Idr0, Idr1, Idr3, Idr5};

/// A translation granule: the size of a page and of a translation table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Granule {
    /// 4 KiB
    K4,
    /// 16 KiB
    K16,
    /// 64 KiB
    K64,
}

impl Granule {
    /// log2 of the size in bytes: 12, 14 or 16.
    pub const fn shift(self) -> u32 {
        match self {
            Granule::K4 => 12,
            Granule::K16 => 14,
            Granule::K64 => 16,
        }
    }

    /// The size in bytes.
    pub const fn size(self) -> u64 {
        1 << self.shift()
    }
}

impl fmt::Display for Granule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}K", self.size() >> 10)
    }
}

/// An address size as `IDR5.OAS`, `CD.IPS` and `STE.S2PS` code it: at most 48 bits are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddrSize(u8);

impl AddrSize {
    const BITS: [u8; 8] = [32, 36, 40, 42, 44, 48, 52, 56];

    /// From the three-bit code of the registers; codes above 48 bits are kept.
    pub const fn from_code(code: u8) -> Self {
        AddrSize(code & 7)
    }

    /// The three-bit code.
    pub const fn code(self) -> u8 {
        self.0
    }

    /// The number of address bits.
    pub const fn bits(self) -> u8 {
        Self::BITS[self.0 as usize]
    }

    /// 48 bits.
    pub const B48: AddrSize = AddrSize(5);
}

impl fmt::Display for AddrSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bits", self.bits())
    }
}

/// How faulting transactions are treated: `IDR0.STALL_MODEL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StallModel {
    /// Stall or terminate, as the CD or STE says.
    Both,
    /// Terminate only.
    Terminate,
    /// Stalling is forced.
    Forced,
}

/// The ID registers of an SMMU, raw.
#[derive(Debug, Clone, Copy)]
pub struct IdRegs {
    /// `SMMU_IDR0`
    pub idr0: Idr0,
    /// `SMMU_IDR1`
    pub idr1: Idr1,
    /// `SMMU_IDR3`
    pub idr3: Idr3,
    /// `SMMU_IDR5`
    pub idr5: Idr5,
    /// `SMMU_AIDR`
    pub aidr: Aidr,
}

/// What one SMMU can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Stage 1 translation.
    pub stage1: bool,
    /// Stage 2 translation.
    pub stage2: bool,
    /// VMSAv8-64 tables, the only format this driver writes.
    pub aarch64_tables: bool,
    /// Little-endian tables.
    pub little_endian: bool,
    /// The SMMU sees the CPU's caches.
    pub coherent: bool,
    /// EL2 translation regimes.
    pub hyp: bool,
    /// PCIe ATS.
    pub ats: bool,
    /// Split-stage ATS.
    pub split_stage_ats: bool,
    /// PCIe PRI.
    pub pri: bool,
    /// Message interrupts, for CMD_SYNC completion too.
    pub msi: bool,
    /// WFE wake-up on CMD_SYNC completion.
    pub sev: bool,
    /// ASID bits: 8 or 16.
    pub asid_bits: u8,
    /// VMID bits: 8 or 16.
    pub vmid_bits: u8,
    /// Two-level CD tables.
    pub cd_two_level: bool,
    /// Two-level stream tables.
    pub st_two_level: bool,
    /// How faulting transactions are treated.
    pub stall_model: StallModel,
    /// Terminated transactions can only be aborted, not read as zero.
    pub abort_only: bool,
    /// Hardware update of the access flag.
    pub hw_access: bool,
    /// Hardware update of the dirty state.
    pub hw_dirty: bool,
    /// StreamID bits, at most 32.
    pub sid_bits: u8,
    /// SubstreamID bits, at most 20; 0 is none.
    pub ssid_bits: u8,
    /// log2 of the largest Command queue, in entries of 16 bytes.
    pub cmdq_log2: u8,
    /// log2 of the largest Event queue, in entries of 32 bytes.
    pub eventq_log2: u8,
    /// Queue or table base registers are fixed by hardware.
    pub preset: bool,
    /// Range TLB invalidation.
    pub range_inv: bool,
    /// 0, 1 or 2: see §3.21.1.3.
    pub bbm_level: u8,
    /// Enhanced Command queues.
    pub ecmdq: bool,
    /// Forced write-back at stage 2.
    pub fwb: bool,
    /// Output address size as implemented.
    pub oas: AddrSize,
    /// The granules: 4 KiB, 16 KiB, 64 KiB.
    pub granules: [bool; 3],
    /// Architecture minor revision: 0 is SMMUv3.0.
    pub minor: u8,
}

impl From<IdRegs> for Features {
    fn from(ids: IdRegs) -> Self {
        let IdRegs { idr0, idr1, idr3, idr5, aidr } = ids;
        Features {
            stage1: idr0.s1p(),
            stage2: idr0.s2p(),
            aarch64_tables: idr0.ttf().value() & 0b10 != 0,
            little_endian: matches!(idr0.ttendian().value(), 0 | 2),
            coherent: idr0.cohacc(),
            // Without stage 1 there are no EL2 regimes, and their commands are illegal.
            hyp: idr0.hyp() && idr0.s1p(),
            ats: idr0.ats(),
            split_stage_ats: idr0.ats() && !idr0.ns1ats(),
            pri: idr0.pri(),
            msi: idr0.msi(),
            sev: idr0.sev(),
            asid_bits: if idr0.asid16() { 16 } else { 8 },
            vmid_bits: if idr0.vmid16() { 16 } else { 8 },
            cd_two_level: idr0.cd2l(),
            st_two_level: idr0.st_level().value() == 1,
            stall_model: match idr0.stall_model().value() {
                0 => StallModel::Both,
                2 => StallModel::Forced,
                _ => StallModel::Terminate,
            },
            abort_only: idr0.term_model(),
            hw_access: idr0.httu().value() != 0,
            hw_dirty: idr0.httu().value() & 0b10 != 0,
            sid_bits: idr1.sidsize().value().min(32),
            ssid_bits: idr1.ssidsize().value().min(20),
            cmdq_log2: idr1.cmdqs().value().min(19),
            eventq_log2: idr1.eventqs().value().min(19),
            preset: idr1.queues_preset() || idr1.tables_preset(),
            range_inv: idr3.ril(),
            bbm_level: idr3.bbml().value().min(2),
            ecmdq: idr1.ecmdq(),
            fwb: idr3.fwb(),
            oas: AddrSize::from_code(idr5.oas().value()),
            granules: [idr5.gran4k(), idr5.gran16k(), idr5.gran64k()],
            minor: aidr.minor().value(),
        }
    }
}

impl Features {
    /// Whether tables of this granule can be walked.
    pub const fn granule(&self, granule: Granule) -> bool {
        self.granules[granule as usize]
    }

    /// The smallest granule that there is; `None` if there is none.
    pub fn smallest_granule(&self) -> Option<Granule> {
        [Granule::K4, Granule::K16, Granule::K64].into_iter().find(|granule| self.granule(*granule))
    }

    /// The output address size that the driver uses: the implemented one, at most 48 bits.
    pub fn used_oas(&self) -> AddrSize {
        self.oas.min(AddrSize::B48)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The registers of QEMU's SMMUv3 with nested translation, as read from QEMU 10.0.2.
    #[test]
    fn the_id_registers_of_a_known_smmu_decode_to_what_it_can_do() {
        let features = Features::from(IdRegs {
            idr0: Idr0::new_with_raw_value(0x0d44_101b),
            idr1: Idr1::new_with_raw_value(0x0273_0010),
            idr3: Idr3::new_with_raw_value(0x1414),
            idr5: Idr5::new_with_raw_value(0x74),
            aidr: Aidr::new_with_raw_value(0x1),
        });
        assert!(features.stage1 && features.stage2 && features.aarch64_tables && features.coherent);
        assert!(features.st_two_level && !features.cd_two_level && features.range_inv);
        assert_eq!((features.asid_bits, features.vmid_bits), (16, 16));
        assert_eq!((features.sid_bits, features.ssid_bits), (16, 0));
        assert_eq!((features.cmdq_log2, features.eventq_log2), (19, 19));
        assert_eq!(features.stall_model, StallModel::Terminate);
        assert_eq!(features.oas.bits(), 44);
        assert_eq!(features.granules, [true; 3]);
        assert!(!features.ats && !features.hyp && features.abort_only);
        assert_eq!((features.bbm_level, features.minor), (2, 1));
    }
}

//! Translation table descriptors: VMSAv8-64 as an SMMU walks them, 48-bit addresses (Arm ARM D8.3; IHI 0070 §3.4).

use super::features::Granule;
use crate::platform::PhysAddr;

bitflags::bitflags! {
    /// What a device may do with mapped pages, and how it reaches them.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Prot: u8 {
        /// The device may read.
        const READ = 1 << 0;
        /// The device may write. Stage 1 cannot express write-only: there, it allows reading too.
        const WRITE = 1 << 1;
        /// The device may fetch instructions.
        const EXEC = 1 << 2;
        /// Only privileged accesses are allowed (stage 1; ignored at stage 2).
        const PRIVILEGED = 1 << 3;
        /// The pages are device registers (Device-nGnRE), not memory.
        const DEVICE = 1 << 4;
        /// The pages are memory that is not cached.
        const UNCACHED = 1 << 5;
    }
}

/// The stage that a table is for; stage 1 and stage 2 descriptors differ in their attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Stage 1: VA to IPA, tagged by ASID.
    S1,
    /// Stage 2: IPA to PA, tagged by VMID.
    S2,
}

impl core::fmt::Display for Stage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Stage::S1 => "stage 1",
            Stage::S2 => "stage 2",
        })
    }
}

/// The memory attributes that stage 1 descriptors index, for `CD.MAIR`: 0 is Normal write-back, 1 Device-nGnRE, 2 Normal
/// non-cacheable.
pub const MAIR: u64 = 0x44_04_ff;

/// One translation table descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Desc(pub u64);

/// What a descriptor says at a given level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DescKind {
    /// Nothing is mapped: a translation fault.
    Invalid,
    /// The next table.
    Table(PhysAddr),
    /// A page or block.
    Leaf(PhysAddr),
}

const VALID: u64 = 1;
/// A table (levels 0 to 2) or a page (level 3), rather than a block.
const TABLE_OR_PAGE: u64 = 0b11;
const ADDR: u64 = 0x0000_ffff_ffff_f000;
const AF: u64 = 1 << 10;
const SH_INNER: u64 = 3 << 8;
const SH_OUTER: u64 = 2 << 8;
const S1_NG: u64 = 1 << 11;
const S1_AP_EL0: u64 = 1 << 6;
const S1_AP_RO: u64 = 1 << 7;
const S1_PXN: u64 = 1 << 53;
const S1_UXN: u64 = 1 << 54;
const S2_READ: u64 = 1 << 6;
const S2_WRITE: u64 = 1 << 7;
const S2_XN: u64 = 0b10 << 53;

impl Desc {
    /// Nothing is mapped here.
    pub const INVALID: Desc = Desc(0);

    /// The descriptor of a next-level table at `addr`, a multiple of the granule.
    pub const fn table(addr: PhysAddr) -> Desc {
        Desc(addr.0 & ADDR | TABLE_OR_PAGE)
    }

    /// The descriptor of a page (`level` 3) or block at `addr`, a multiple of its size.
    #[inline]
    pub fn leaf(addr: PhysAddr, level: u8, stage: Stage, prot: Prot) -> Desc {
        let kind = if level == 3 { TABLE_OR_PAGE } else { VALID };
        // `Prot` has six bits.
        Desc(addr.0 & ADDR | kind | ATTRIBUTES[stage as usize][prot.bits() as usize & 63])
    }

    /// What the SMMU reads in it at `level`, 0 to 3.
    pub const fn kind(self, level: u8, granule: Granule) -> DescKind {
        if self.0 & VALID == 0 {
            return DescKind::Invalid;
        }
        let table = PhysAddr(self.0 & ADDR & !(granule.size() - 1));
        // The address of a block begins at its size; bits below it are attributes or reserved.
        let shift = granule.shift() + (3 - level as u32) * (granule.shift() - 3);
        let leaf = PhysAddr(self.0 & ADDR & !((1 << shift) - 1));
        match (self.0 & TABLE_OR_PAGE == TABLE_OR_PAGE, level) {
            (true, 3) => DescKind::Leaf(leaf),
            (true, _) => DescKind::Table(table),
            (false, 3) => DescKind::Invalid,
            // Blocks: at level 1 for 4 KiB, at level 2 for all; elsewhere the encoding is reserved.
            (false, 2) => DescKind::Leaf(leaf),
            (false, 1) if matches!(granule, Granule::K4) => DescKind::Leaf(leaf),
            (false, _) => DescKind::Invalid,
        }
    }

    /// Whether the SMMU takes it for anything but a fault.
    #[inline]
    pub const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// Of a valid descriptor: whether it is a table's or, at level 3, a page's, rather than a block's.
    #[inline]
    pub const fn is_table_or_page(self) -> bool {
        self.0 & TABLE_OR_PAGE & !VALID != 0
    }

    /// The address in a descriptor that [`table`](Self::table) or [`leaf`](Self::leaf) made.
    #[inline]
    pub const fn addr(self) -> PhysAddr {
        PhysAddr(self.0 & ADDR)
    }

    /// The permissions and memory type of a leaf: [`Prot::WRITE`] at stage 1 always comes with [`Prot::READ`].
    pub fn prot(self, stage: Stage) -> Prot {
        let mut prot = Prot::empty();
        match stage {
            Stage::S1 => {
                prot |= Prot::READ;
                prot.set(Prot::WRITE, self.0 & S1_AP_RO == 0);
                prot.set(Prot::PRIVILEGED, self.0 & S1_AP_EL0 == 0);
                prot.set(Prot::EXEC, self.0 & S1_UXN == 0);
                match self.0 >> 2 & 7 {
                    1 => prot |= Prot::DEVICE,
                    2 => prot |= Prot::UNCACHED,
                    _ => {}
                }
            }
            Stage::S2 => {
                prot.set(Prot::READ, self.0 & S2_READ != 0);
                prot.set(Prot::WRITE, self.0 & S2_WRITE != 0);
                prot.set(Prot::EXEC, self.0 & S2_XN == 0);
                match self.0 >> 2 & 15 {
                    0..=3 => prot |= Prot::DEVICE,
                    5 => prot |= Prot::UNCACHED,
                    _ => {}
                }
            }
        }
        prot
    }

    /// The access flag; a leaf without it faults unless `AFFD` is set.
    pub const fn access_flag(self) -> bool {
        self.0 & AF != 0
    }

    /// Stage 1: the entry is for one ASID only (`nG`), not global.
    pub const fn not_global(self) -> bool {
        self.0 & S1_NG != 0
    }
}

/// The attributes of leaves, for each stage and each `Prot`.
static ATTRIBUTES: [[u64; 64]; 2] = {
    let mut all = [[0; 64]; 2];
    let mut bits = 0;
    while bits < 64 {
        let prot = Prot::from_bits_truncate(bits as u8);
        all[Stage::S1 as usize][bits] = attributes(Stage::S1, prot);
        all[Stage::S2 as usize][bits] = attributes(Stage::S2, prot);
        bits += 1;
    }
    all
};

const fn attributes(stage: Stage, prot: Prot) -> u64 {
    let device = prot.contains(Prot::DEVICE);
    let uncached = prot.contains(Prot::UNCACHED);
    let exec = prot.contains(Prot::EXEC);
    let shared = if device || uncached { SH_OUTER } else { SH_INNER };
    let attributes = match stage {
        Stage::S1 => {
            let index = if device {
                1
            } else if uncached {
                2
            } else {
                0
            };
            let ap = (if prot.contains(Prot::WRITE) { 0 } else { S1_AP_RO })
                | (if prot.contains(Prot::PRIVILEGED) { 0 } else { S1_AP_EL0 });
            let xn = if exec { 0 } else { S1_PXN | S1_UXN };
            index << 2 | ap | xn | S1_NG
        }
        Stage::S2 => {
            let mem_attr = if device {
                0b0001
            } else if uncached {
                0b0101
            } else {
                0b1111
            };
            let ap = (if prot.contains(Prot::READ) { S2_READ } else { 0 })
                | (if prot.contains(Prot::WRITE) { S2_WRITE } else { 0 });
            mem_attr << 2 | ap | if exec { 0 } else { S2_XN }
        }
    };
    attributes | shared | AF
}

impl core::fmt::Debug for Desc {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Desc({:#018x})", self.0)
    }
}

#[cfg(test)]
#[path = "desc_test.rs"]
mod tests;

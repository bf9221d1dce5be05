//! The stream table: linear, or two-level with second levels added as streams appear (IHI 0070 §3.3.1).

use crate::primitive::AtomicU64;
use crate::primitive::Ordering::Relaxed;
use allocator_api2::vec::Vec;
use core::slice;

use super::entry_at;
use crate::arch::{Features, L1Std, regs};
use crate::platform::{DmaBox, Platform};
use arbitrary_int::{u2, u5, u6};

/// StreamID bits that index a second level: 256 STEs, 16 KiB.
const SPLIT: u8 = 8;
/// log2 of the most first-level descriptors (1 MiB of them), and of the most STEs of a linear table (4 MiB).
const MAX_L1_LOG2: u8 = 17;
const MAX_LINEAR_LOG2: u8 = 16;
const STE_SIZE: usize = 64;

/// Why a stream has no STE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamTableError {
    /// The StreamID has more bits than the SMMU or the stream table of this driver.
    #[error("StreamID {sid:#x} is beyond the {bits} bits of the stream table")]
    OutOfRange {
        /// The StreamID.
        sid: u32,
        /// Bits that the table covers.
        bits: u8,
    },
    /// A device with this StreamID exists already.
    #[error("StreamID {0:#x} is in use")]
    InUse(u32),
    /// No memory for a part of the table.
    #[error("out of memory")]
    NoMemory,
}

/// STEs with a mark for each that belongs to a device.
struct Leaf<P: Platform> {
    stes: DmaBox<P>,
    owned: Vec<u64>,
    /// The SMMU may have cached that it is not there.
    new: bool,
}

impl<P: Platform> Leaf<P> {
    /// `2^log2` invalid STEs: `V` = 0, so the SMMU aborts the stream and records `C_BAD_STE`.
    fn new(platform: &P, log2: u8) -> Option<Self> {
        let size = STE_SIZE << log2;
        let mut owned = Vec::new();
        owned.try_reserve_exact((1usize << log2).div_ceil(64)).ok()?;
        owned.resize((1usize << log2).div_ceil(64), 0);
        Some(Leaf { stes: DmaBox::new(platform, size, size)?, owned, new: false })
    }

    fn owned(&mut self, index: usize) -> Option<(&mut u64, u64)> {
        Some((self.owned.get_mut(index / 64)?, 1 << (index % 64)))
    }
}

enum Levels<P: Platform> {
    Linear(Leaf<P>),
    Two { l1: DmaBox<P>, leaves: Vec<Option<Leaf<P>>> },
}

/// The stream table of one SMMU.
pub(crate) struct StreamTable<P: Platform> {
    platform: P,
    bits: u8,
    levels: Levels<P>,
}

impl<P: Platform> StreamTable<P> {
    /// An empty table for all StreamIDs of the SMMU, up to the limits of this driver. `None`: no memory.
    pub(crate) fn new(platform: &P, features: &Features) -> Option<Self> {
        let sid_bits = features.sid_bits;
        let two_level = features.st_two_level && sid_bits > SPLIT;
        let (bits, levels) = if two_level {
            let l1_log2 = (sid_bits - SPLIT).min(MAX_L1_LOG2);
            let count = 1usize << l1_log2;
            let mut leaves = Vec::new();
            leaves.try_reserve_exact(count).ok()?;
            leaves.resize_with(count, || None);
            (l1_log2 + SPLIT, Levels::Two { l1: DmaBox::new(platform, count * 8, count * 8)?, leaves })
        } else {
            let bits = sid_bits.min(MAX_LINEAR_LOG2);
            (bits, Levels::Linear(Leaf::new(platform, bits)?))
        };
        Some(StreamTable { platform: platform.clone(), bits, levels })
    }

    /// The SMMU may still read the table: its memory is never given back.
    pub(crate) fn keep_forever(&self) {
        match &self.levels {
            Levels::Linear(leaf) => leaf.stes.keep_forever(),
            Levels::Two { l1, leaves } => {
                l1.keep_forever();
                leaves.iter().flatten().for_each(|leaf| leaf.stes.keep_forever());
            }
        }
    }

    /// The values of `SMMU_STRTAB_BASE` and `SMMU_STRTAB_BASE_CFG`.
    pub(crate) fn base(&self) -> (u64, u32) {
        let (mem, fmt) = match &self.levels {
            Levels::Linear(leaf) => (&leaf.stes, 0),
            Levels::Two { l1, .. } => (l1, 1),
        };
        let config = regs::StrtabBaseCfg::default()
            .with_log2size(u6::extract_u8(self.bits, 0))
            .with_split(u5::extract_u8(SPLIT, 0))
            .with_fmt(u2::extract_u8(fmt, 0));
        (mem.addr().0 & regs::STRTAB_BASE_ADDR | regs::STRTAB_BASE_RA, config.raw_value())
    }

    /// Takes `sid` for a device. Its STE stays invalid for now.
    ///
    /// Returns whether the SMMU may have cached that there is no second level: then the first-level descriptor must be invalidated
    /// (`CFGI_STE` with Leaf = 0), and once it is, [`known`](Self::known) called.
    pub(crate) fn claim(&mut self, sid: u32) -> Result<bool, StreamTableError> {
        if u64::from(sid) >> self.bits != 0 {
            return Err(StreamTableError::OutOfRange { sid, bits: self.bits });
        }
        self.add_leaf(sid)?;
        let (leaf, index) = self.leaf_mut(sid).ok_or(StreamTableError::NoMemory)?;
        let new = leaf.new;
        let (word, bit) = leaf.owned(index).ok_or(StreamTableError::NoMemory)?;
        if *word & bit != 0 {
            return Err(StreamTableError::InUse(sid));
        }
        *word |= bit;
        Ok(new)
    }

    /// The SMMU knows of the second level for `sid`.
    pub(crate) fn known(&mut self, sid: u32) {
        if let Some((leaf, _)) = self.leaf_mut(sid) {
            leaf.new = false;
        }
    }

    /// Gives `sid` back. Its STE is invalid again, and the SMMU knows.
    pub(crate) fn release(&mut self, sid: u32) {
        if let Some((word, bit)) = self.leaf_mut(sid).and_then(|(leaf, index)| leaf.owned(index)) {
            *word &= !bit;
        }
    }

    /// The eight words of a stream's STE; `None` where no device claimed a stream nearby.
    pub(crate) fn ste(&self, sid: u32) -> Option<&[AtomicU64; 8]> {
        let sid = sid as usize;
        match &self.levels {
            Levels::Linear(leaf) => entry_at(leaf.stes.words(), sid),
            Levels::Two { leaves, .. } => {
                let leaf = leaves.get(sid >> SPLIT)?.as_ref()?;
                entry_at(leaf.stes.words(), sid & ((1 << SPLIT) - 1))
            }
        }
    }

    fn leaf_mut(&mut self, sid: u32) -> Option<(&mut Leaf<P>, usize)> {
        let sid = sid as usize;
        match &mut self.levels {
            Levels::Linear(leaf) => Some((leaf, sid)),
            Levels::Two { leaves, .. } => Some((leaves.get_mut(sid >> SPLIT)?.as_mut()?, sid & ((1 << SPLIT) - 1))),
        }
    }

    fn add_leaf(&mut self, sid: u32) -> Result<(), StreamTableError> {
        let Levels::Two { l1, leaves } = &mut self.levels else { return Ok(()) };
        let index = sid as usize >> SPLIT;
        let (Some(slot), Some(word)) = (leaves.get_mut(index), l1.words().get(index)) else {
            return Err(StreamTableError::OutOfRange { sid, bits: self.bits });
        };
        if slot.is_some() {
            return Ok(());
        }
        let mut leaf = Leaf::new(&self.platform, SPLIT).ok_or(StreamTableError::NoMemory)?;
        leaf.new = true;
        let desc = L1Std::pointing_to(leaf.stes.addr(), SPLIT);
        // The STEs, all invalid, come before the pointer to them. litmus: table-link
        self.platform.write_barrier();
        word.store(desc.raw_value(), Relaxed);
        self.platform.clean(slice::from_ref(word));
        *slot = Some(leaf);
        Ok(())
    }
}

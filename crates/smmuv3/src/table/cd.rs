//! The CD table of one device: one CD, an array, or two levels with leaves added as PASIDs appear (IHI 0070 §3.3.2).

use crate::primitive::AtomicU64;
use crate::primitive::Ordering::Relaxed;
use allocator_api2::vec::Vec;
use core::slice;

use super::entry_at;
use crate::arch::{CdFormat, Features, L1Cd};
use crate::platform::{DmaBox, PhysAddr, Platform};

const CD_SIZE: usize = 64;
/// log2 of the CDs in a leaf of a two-level table: 4 KiB.
const LEAF_LOG2: u8 = 6;
const LEAF_SIZE: usize = CD_SIZE << LEAF_LOG2;

enum Levels<P: Platform> {
    Linear(DmaBox<P>),
    Two { l1: DmaBox<P>, leaves: Vec<Option<DmaBox<P>>> },
}

/// The CD table of one device.
pub(crate) struct CdTable<P: Platform> {
    platform: P,
    bits: u8,
    levels: Levels<P>,
}

impl<P: Platform> CdTable<P> {
    /// A table for SubstreamIDs of `bits` bits, 0 for none (one CD). Memory for the CD of SubstreamID 0 is included. `None`: no memory.
    pub(crate) fn new(platform: &P, features: &Features, bits: u8) -> Option<Self> {
        let levels = if bits > LEAF_LOG2 && features.cd_two_level {
            let count = 1usize << (bits - LEAF_LOG2);
            let mut leaves = Vec::new();
            leaves.try_reserve_exact(count).ok()?;
            leaves.resize_with(count, || None);
            Levels::Two { l1: DmaBox::new(platform, count * 8, count * 8)?, leaves }
        } else {
            Levels::Linear(DmaBox::new(platform, CD_SIZE << bits, CD_SIZE << bits)?)
        };
        let mut table = CdTable { platform: platform.clone(), bits, levels };
        table.reserve(0)?;
        Some(table)
    }

    /// `STE.S1ContextPtr`, `STE.S1Fmt` and `STE.S1CDMax`.
    pub(crate) fn pointer(&self) -> (PhysAddr, CdFormat, u8) {
        match &self.levels {
            Levels::Linear(cds) => (cds.addr(), CdFormat::Linear, self.bits),
            Levels::Two { l1, .. } => (l1.addr(), CdFormat::TwoLevel4K, self.bits),
        }
    }

    /// Sees to it that there is a CD for `ssid`, invalid for now. `None`: no memory, or no such SubstreamID.
    ///
    /// The leaf that it lies in may be new, and the SMMU may have cached its absence: when the CD becomes valid, the first-level descriptor must be
    /// invalidated with it (`CFGI_CD` with Leaf = 0).
    pub(crate) fn reserve(&mut self, ssid: u32) -> Option<()> {
        if u64::from(ssid) >> self.bits != 0 {
            return None;
        }
        let Levels::Two { l1, leaves } = &mut self.levels else { return Some(()) };
        let index = ssid as usize >> LEAF_LOG2;
        let slot = leaves.get_mut(index)?;
        let word = l1.words().get(index)?;
        if slot.is_some() {
            return Some(());
        }
        let leaf = DmaBox::new(&self.platform, LEAF_SIZE, LEAF_SIZE)?;
        let desc = L1Cd::pointing_to(leaf.addr());
        // The CDs, all invalid, come before the pointer to them. litmus: table-link
        self.platform.write_barrier();
        word.store(desc.raw_value(), Relaxed);
        self.platform.clean(slice::from_ref(word));
        *slot = Some(leaf);
        Some(())
    }

    /// The eight words of the CD of `ssid`; `None` where none was reserved.
    pub(crate) fn cd(&self, ssid: u32) -> Option<&[AtomicU64; 8]> {
        let ssid = ssid as usize;
        match &self.levels {
            Levels::Linear(cds) => entry_at(cds.words(), ssid),
            Levels::Two { leaves, .. } => {
                let leaf = leaves.get(ssid >> LEAF_LOG2)?.as_ref()?;
                entry_at(leaf.words(), ssid & ((1 << LEAF_LOG2) - 1))
            }
        }
    }
}

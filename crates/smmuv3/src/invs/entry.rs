//! One invalidation that is owed.

use core::fmt;

/// What must be invalidated, in the order in which it must take effect on one SMMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Stage 1 TLB entries of an ASID. The id is the ASID.
    S1Asid = 0,
    /// Stage 2 TLB entries of a VMID. The id is the VMID.
    S2Vmid = 1,
    /// All nested stage 1 entries of a VMID, which a changed stage 2 makes stale. The id is the VMID.
    S2VmidS1Clear = 2,
    /// A device's ATC, for a range. The id is the StreamID; the SSID tells the PASID, 0 for traffic without one.
    Ats = 3,
    /// A device's whole ATC: nobody knows which of its addresses map to the changed ones. The id is the StreamID.
    AtsFull = 4,
}

/// The identity of an entry, ordered by (SMMU, kind, id, SSID): one integer.
///
/// Bits 63:56 are the SMMU's index, 55:52 the kind, 51:20 the id, 19:0 the SSID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u64);

impl Key {
    /// The key of `kind` for `id` on the SMMU with index `smmu`. `ssid` has 20 bits; higher ones are dropped.
    pub const fn new(smmu: u8, kind: Kind, id: u32, ssid: u32) -> Self {
        Key((smmu as u64) << 56 | (kind as u64) << 52 | (id as u64) << 20 | (ssid & 0xf_ffff) as u64)
    }

    /// The SMMU's index.
    pub const fn smmu(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// What is invalidated.
    pub const fn kind(self) -> Kind {
        match self.0 >> 52 & 0xf {
            0 => Kind::S1Asid,
            1 => Kind::S2Vmid,
            2 => Kind::S2VmidS1Clear,
            3 => Kind::Ats,
            _ => Kind::AtsFull,
        }
    }

    /// The SMMU and the kind, in the order of keys.
    pub(super) const fn group(self) -> u64 {
        self.0 >> 52
    }

    /// The ASID, VMID or StreamID.
    pub const fn id(self) -> u32 {
        (self.0 >> 20) as u32
    }

    /// The SubstreamID of an `Ats` entry, 0 where there is none.
    pub const fn ssid(self) -> u32 {
        self.0 as u32 & 0xf_ffff
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SMMU {} {:?} {:#x}", self.smmu(), self.kind(), self.id())?;
        if self.ssid() != 0 {
            write!(f, " SSID {:#x}", self.ssid())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::*;

    #[test]
    fn keys_give_back_what_they_were_made_of() {
        for kind in [S1Asid, S2Vmid, S2VmidS1Clear, Ats, AtsFull] {
            for (smmu, id, ssid) in [(0, 0, 0), (255, u32::MAX, 0xf_ffff), (7, 0x8000_0001, 1)] {
                let key = Key::new(smmu, kind, id, ssid);
                assert_eq!((key.smmu(), key.kind(), key.id(), key.ssid()), (smmu, kind, id, ssid));
            }
        }
    }

    #[test]
    fn keys_sort_by_smmu_then_kind_then_id_then_ssid() {
        let sorted = [
            Key::new(0, S1Asid, 9, 0),
            Key::new(0, S2Vmid, 1, 0),
            Key::new(0, S2VmidS1Clear, 0, 0),
            Key::new(0, Ats, 3, 0),
            Key::new(0, Ats, 3, 5),
            Key::new(0, Ats, 4, 0),
            Key::new(0, AtsFull, 0, 0),
            Key::new(1, S1Asid, 0, 0),
        ];
        assert!(sorted.is_sorted());
    }
}

//! Nested domains: a guest's stream table entry, over the stage 2 of its vSMMU's parent.

use crate::arch::{BadSte, CdFormat, Eats, Features, RawSte, Stages, StallModel, Ste, SteStage1, SteStage2};
use crate::platform::Platform;
use crate::shared::Shared;

use super::{Paging, VSmmuInner};

/// What a guest's STE says, with the guest's StreamID translated by a vSMMU. Cheap to clone.
pub struct NestedDomain<P: Platform>(pub(crate) Shared<Nested<P>>);

pub(crate) struct Nested<P: Platform> {
    pub(crate) vsmmu: Shared<VSmmuInner<P>>,
    pub(crate) ste: GuestSte,
}

impl<P: Platform> Clone for NestedDomain<P> {
    fn clone(&self) -> Self {
        NestedDomain(self.0.clone())
    }
}

/// What of a guest's STE reaches the hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestSte {
    /// The guest lets nothing pass, or its STE is not valid.
    Abort,
    /// Stage 2 only.
    Bypass,
    /// The guest's stage 1 over stage 2.
    Translate { s1: SteStage1, ats: bool },
}

/// Why a guest's STE is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuestSteError {
    /// Bits outside of what a guest may set.
    #[error("word {word} has bits {bits:#x}, which a guest may not set")]
    Forbidden {
        /// The 64-bit word, 0 to 7.
        word: u8,
        /// The bits.
        bits: u64,
    },
    /// `Config` enables stage 2, which is the host's.
    #[error("Config = {0:#05b} is not abort, bypass or stage 1")]
    Config(u8),
    /// `EATS` is neither off nor full ATS.
    #[error("EATS = {0} is neither 0 nor 1")]
    Eats(u8),
    /// The SMMU would take the entry for illegal.
    #[error(transparent)]
    Illegal(BadSte),
    /// `S1ContextPtr` lies outside of the parent's input range.
    #[error("S1ContextPtr = {pointer:#x} is beyond the {bits} bits of the parent domain")]
    Pointer {
        /// The intermediate address.
        pointer: u64,
        /// Input bits of the parent.
        bits: u8,
    },
    /// `S1ContextPtr` is not aligned to the table that it points to, which is CONSTRAINED UNPREDICTABLE.
    #[error("S1ContextPtr = {pointer:#x} is not a multiple of the {size:#x} bytes of its table")]
    Misaligned {
        /// The intermediate address.
        pointer: u64,
        /// The size of the CD table or its first level.
        size: u64,
    },
    /// No memory.
    #[error("out of memory")]
    NoMemory,
}

/// What a guest may set. Word 0: V, Config, S1Fmt, S1ContextPtr, S1CDMax. Word 1: S1DSS, S1CIR, S1COR, S1CSH, S1STALLD, EATS.
/// The cacheability of CD fetches is accepted and ignored: the host's is used.
const ALLOWED: [u64; 8] =
    [0b1111 | 0b11 << 4 | (u64::MAX >> 14) << 6 | 0x1f << 59, 0xff | 1 << 27 | 0b11 << 28, 0, 0, 0, 0, 0, 0];

impl GuestSte {
    /// Checks a guest's STE against the allowed set and the SMMU's features.
    pub(crate) fn new(raw: &RawSte, features: &Features, parent_bits: u8) -> Result<Self, GuestSteError> {
        for (word, (value, allowed)) in (0..).zip(raw.0.iter().zip(ALLOWED)) {
            if value & !allowed != 0 {
                return Err(GuestSteError::Forbidden { word, bits: value & !allowed });
            }
        }
        let config = (raw.0[0] >> 1 & 0b111) as u8;
        if config & 0b110 == 0b110 {
            return Err(GuestSteError::Config(config));
        }
        let eats = (raw.0[1] >> 28 & 0b11) as u8;
        if eats > 1 {
            return Err(GuestSteError::Eats(eats));
        }
        // What the guest's SMMU reads is the guest's address: the size of it is checked below, not against this SMMU's output.
        let guest = Features { stage2: false, oas: crate::arch::AddrSize::from_code(7), ..*features };
        match raw.decode(&guest).map_err(GuestSteError::Illegal)? {
            Ste::Invalid | Ste::Abort => Ok(GuestSte::Abort),
            Ste::Bypass => Ok(GuestSte::Bypass),
            Ste::Translate { eats, stages: Stages::S1(mut s1), .. } => {
                let pointer = s1.context_ptr.0;
                if pointer >> parent_bits != 0 {
                    return Err(GuestSteError::Pointer { pointer, bits: parent_bits });
                }
                // CDs have 64 bytes, descriptors of leaves with 64 or 1024 CDs 8.
                let size = match s1.format {
                    CdFormat::Linear => 64 << s1.cd_max,
                    CdFormat::TwoLevel4K => 8 << s1.cd_max.saturating_sub(6),
                    CdFormat::TwoLevel64K => 8 << s1.cd_max.saturating_sub(10),
                };
                if pointer & (size - 1) != 0 {
                    return Err(GuestSteError::Misaligned { pointer, size });
                }
                // A guest never stalls the host's queues.
                s1.stall_disabled = features.stall_model == StallModel::Both;
                Ok(GuestSte::Translate { s1, ats: eats == Eats::Full })
            }
            Ste::Translate { .. } => Err(GuestSteError::Config(config)),
        }
    }
}

impl<P: Platform> Nested<P> {
    /// The STE for a device: the guest's stage 1, the parent's stage 2, the vSMMU's VMID.
    pub(crate) fn ste(&self, ats: bool) -> Ste {
        let vmid = self.vsmmu.vmid;
        let s2 = stage2_of(&self.vsmmu.parent);
        match self.ste {
            GuestSte::Abort => Ste::Abort,
            GuestSte::Bypass => Ste::Translate { vmid, eats: Eats::Off, stages: Stages::S2(s2) },
            GuestSte::Translate { s1, .. } => {
                Ste::Translate { vmid, eats: if ats { Eats::Full } else { Eats::Off }, stages: Stages::Nested(s1, s2) }
            }
        }
    }
}

/// The stage 2 half of an STE for a domain.
pub(crate) fn stage2_of<P: Platform>(domain: &Paging<P>) -> SteStage2 {
    let shape = domain.table.shape();
    SteStage2 {
        t0sz: shape.t0sz(),
        sl0: shape.sl0(),
        granule: shape.granule(),
        output_size: shape.output_size(),
        ttb: domain.table.root(),
        record: true,
        stall: false,
        protected_walk: true,
    }
}

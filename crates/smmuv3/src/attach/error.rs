//! What can go wrong with attaching.

use crate::arch::Stage;
use crate::queue::QueueError;
use crate::smmu::SmmuId;

/// Why a device or PASID was not attached. Unless it says otherwise, it is attached to what it was attached to before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The domain needs something that the device's SMMU does not have.
    #[error("{smmu} can't serve the domain: {feature}: the domain needs {needs}, the SMMU has {has}")]
    Incompatible {
        /// The SMMU.
        smmu: SmmuId,
        /// The feature.
        feature: &'static str,
        /// What the domain needs.
        needs: u64,
        /// What the SMMU has.
        has: u64,
    },
    /// The domain belongs to another `Iommu`.
    #[error("the domain belongs to another Iommu than the device")]
    OtherIommu,
    /// The domain's vSMMU is on another SMMU.
    #[error("the device is behind {device}, the domain's vSMMU on {vsmmu}")]
    OtherSmmu {
        /// The device's SMMU.
        device: SmmuId,
        /// The vSMMU's.
        vsmmu: SmmuId,
    },
    /// All ASIDs or VMIDs of the SMMU are in use.
    #[error("{smmu}: all tags for {stage} domains are in use")]
    NoTag {
        /// The SMMU.
        smmu: SmmuId,
        /// Stage 1 domains need an ASID, stage 2 domains a VMID.
        stage: Stage,
    },
    /// No memory for the invalidation array, or a CD table.
    #[error("out of memory")]
    NoMemory,
    /// PASIDs are attached, and the domain would leave no room for them: only stage 1, identity and blocked do.
    #[error("{0} PASIDs are attached: the device can't go to a stage 2 or nested domain")]
    PasidsInUse(usize),
    /// The PASID is 0 or has more bits than the device.
    #[error("PASID {pasid:#x} is not one of 1 to 2^{bits} - 1")]
    PasidRange {
        /// The PASID.
        pasid: u32,
        /// The device's PASID bits.
        bits: u8,
    },
    /// The PASID is attached to a domain already.
    #[error("PASID {0:#x} is attached already")]
    PasidInUse(u32),
    /// The device is attached to a stage 2 or nested domain, under which it has no PASIDs of the host.
    #[error("a device in a stage 2 or nested domain has no PASIDs")]
    NoPasids,
    /// PASIDs can only be attached to stage 1 domains.
    #[error("PASIDs can only be attached to stage 1 domains")]
    NotStage1,
    /// The SVA domain was released.
    #[error("the SVA domain was released")]
    Released,
    /// The SMMU did not carry out what was asked of it.
    #[error(transparent)]
    Hardware(#[from] Unconfirmed),
}

/// The SMMU did not confirm a change of a device's configuration: **the device may still reach what it could reach before.**
///
/// The device is broken: it can be attached to nothing any more, its StreamIDs and its SMMU stay in use also when it is dropped, and the memory of
/// the domains that it is attached to is never freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{smmu}, StreamID {sid:#x}: the change of configuration was not confirmed: {cause}")]
pub struct Unconfirmed {
    /// The SMMU.
    pub smmu: SmmuId,
    /// The device's first StreamID.
    pub sid: u32,
    /// What went wrong.
    pub cause: QueueError,
}

//! What stands in for the hardware, as a scenario uses it.

use smmuv3::arch::Event;
use smmuv3::platform::{Iova, PhysAddr, Platform};

use super::step::Op;
use crate::report::Report;
use crate::session::Result;

/// Memory, SMMUs and devices.
pub(super) trait Hardware: Sync {
    type Platform: Platform;

    /// For the report.
    const NAME: &'static str;

    fn platform(&self) -> Self::Platform;

    /// The registers of the SMMU with this index in the file. Asked for once, in order.
    fn mmio(&mut self, smmu: usize) -> <Self::Platform as Platform>::Mmio;

    /// The StreamID at the SMMU with this index of what the file calls `sid`.
    fn sid(&self, smmu: usize, sid: u32) -> u32;

    fn alloc(&self, pages: usize, align: usize) -> Option<PhysAddr>;

    /// From now on no device may reach the pages. Noticing that it does is the hardware's part.
    fn free(&self, at: PhysAddr);

    fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()>;

    fn read(&self, at: PhysAddr, data: &mut [u8]) -> Result<()>;

    /// An access that should work: the device writes `data`, or reads as much into it.
    ///
    /// `at` is where it should lead. The caller compares what is there then, or what was read.
    fn transfer(&self, access: &Access, at: PhysAddr, data: &mut [u8]) -> Result<Outcome>;

    /// An access that should be refused.
    fn attempt(&self, access: &Access) -> Result<Outcome>;

    /// Accesses to pages that were nobody's, and whatever else no correct driver does: how often, and the latest in a line.
    fn trouble(&self) -> (u64, String);

    /// Adds what the hardware knows to the report.
    fn finish(&self, report: &mut Report) -> Result<()>;
}

/// Who accesses what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    /// Its index in the file.
    pub smmu: usize,
    /// As the SMMU sees it.
    pub sid: u32,
    pub pasid: Option<u32>,
    pub ats: bool,
    pub op: Op,
    pub iova: Iova,
}

/// How an access ended, as far as the device knows.
#[derive(Debug)]
pub(super) enum Outcome {
    Done,
    /// With what the SMMU knows of it, recorded or not.
    Refused(Refusal, Option<Event>),
    /// The device does not notice. The SMMU's events tell.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Aborted,
    AtsOff,
    AtsDenied,
    AtsUnsupported,
    AtsAborted,
}

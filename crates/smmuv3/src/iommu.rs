//! The root object: SMMUs, devices, domains.

use crate::primitive::Ordering;
use arrayvec::ArrayVec;
use core::fmt;

use crate::arch::{Command, Event, Features, Stage};
use crate::attach::{Device, DeviceInner, MAX_STREAMS};
use crate::domain::{DomainError, Geometry, PagingDomain, SvaDomain, SvaTable, VSmmu, VSmmuError};
use crate::platform::Platform;
use crate::queue::{EventsTaken, QueueError};
use crate::shared::Shared;
use crate::smmu::{AddSmmuError, Fleet, GlobalErrors, RemoveSmmuError, Smmu, SmmuId, SmmuOptions};
use crate::table::{CdTable, StreamTableError};

/// No memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("out of memory")]
pub struct OutOfMemory;

/// A machine's SMMUs, with the devices behind them and the domains they are attached to. Cheap to clone; all clones are the same.
pub struct Iommu<P: Platform>(Shared<Fleet<P>>);

/// One SMMU of an [`Iommu`]. Cheap to clone.
pub struct SmmuHandle<P: Platform>(pub(crate) Shared<Smmu<P>>);

/// Which device to add: its StreamIDs and what it can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceConfig {
    streams: ArrayVec<u32, MAX_STREAMS>,
    too_many: bool,
    pasid_bits: u8,
    ats: bool,
}

impl DeviceConfig {
    /// A device with one StreamID. Of a PCIe function it is usually bus:device.function as 16 bits.
    pub fn stream(sid: u32) -> Self {
        DeviceConfig { streams: ArrayVec::from_iter([sid]), too_many: false, pasid_bits: 0, ats: false }
    }

    /// The device has this StreamID too; 16 at most.
    pub fn and_stream(mut self, sid: u32) -> Self {
        self.too_many |= self.streams.try_push(sid).is_err();
        self
    }

    /// The device issues PASIDs (SubstreamIDs) of up to `bits` bits, 0 to 20; 0, the default, is none.
    pub fn pasid_bits(mut self, bits: u8) -> Self {
        self.pasid_bits = bits;
        self
    }

    /// The device is a PCIe function with ATS, which [`Platform::ats_enable`] turns on. It is used where the SMMU has it and the domain
    /// allows it.
    pub fn ats(mut self) -> Self {
        self.ats = true;
        self
    }
}

/// Why a device was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddDeviceError {
    /// A StreamID is out of range or in use, or there is no memory for its STE.
    #[error("{smmu}: {cause}")]
    Stream {
        /// The SMMU.
        smmu: SmmuId,
        /// What is wrong.
        cause: StreamTableError,
    },
    /// The same StreamID stands twice in the configuration.
    #[error("StreamID {0:#x} is named twice")]
    Duplicate(u32),
    /// More than 16 StreamIDs.
    #[error("a device can have at most 16 StreamIDs")]
    TooManyStreams,
    /// More PASID bits than the SMMU has SubstreamID bits.
    #[error("{smmu} has {has} SubstreamID bits, the device needs {needs}")]
    PasidBits {
        /// The SMMU.
        smmu: SmmuId,
        /// Bits asked for.
        needs: u8,
        /// Bits there are.
        has: u8,
    },
    /// No memory for the CD table.
    #[error("out of memory")]
    NoMemory,
    /// The SMMU did not take the device's STEs.
    #[error("{smmu}: {cause}")]
    Hardware {
        /// The SMMU.
        smmu: SmmuId,
        /// What went wrong.
        cause: QueueError,
    },
    /// The SMMU belongs to another `Iommu`.
    #[error("{0} belongs to another Iommu")]
    OtherIommu(SmmuId),
}

impl<P: Platform> Iommu<P> {
    /// An `Iommu` without SMMUs.
    pub fn new(platform: P) -> Result<Self, OutOfMemory> {
        let fleet = Fleet::new(platform).map_err(|_| OutOfMemory)?;
        Ok(Iommu(Shared::try_new(fleet).map_err(|_| OutOfMemory)?))
    }

    /// Probes and resets the SMMU behind `mmio`. From then on it aborts every stream that is not a device's.
    pub fn add_smmu(&self, mmio: P::Mmio, options: SmmuOptions) -> Result<SmmuHandle<P>, AddSmmuError> {
        let _turn = self.0.attach.lock();
        let id = self.0.next_id().ok_or(AddSmmuError::TooMany)?;
        let smmu = Smmu::new(&self.0.platform, mmio, id, options)?;
        let smmu = Shared::try_new(smmu).map_err(|_| AddSmmuError::NoMemory)?;
        self.0.add(smmu.clone()).map_err(|_| AddSmmuError::NoMemory)?;
        Ok(SmmuHandle(smmu))
    }

    /// Makes a device known. It is blocked until it is attached.
    pub fn add_device(&self, smmu: &SmmuHandle<P>, config: DeviceConfig) -> Result<Device<P>, AddDeviceError> {
        let id = smmu.id();
        let _turn = self.0.attach.lock();
        if !self.0.has(&smmu.0) {
            return Err(AddDeviceError::OtherIommu(id));
        }
        if config.too_many {
            return Err(AddDeviceError::TooManyStreams);
        }
        let smmu = &smmu.0;
        let (needs, has) = (config.pasid_bits, smmu.features.ssid_bits);
        if needs > has {
            return Err(AddDeviceError::PasidBits { smmu: id, needs, has });
        }
        let mut sids = config.streams;
        sids.sort_unstable();
        if let Some(twice) = sids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(AddDeviceError::Duplicate(twice[0]));
        }
        let cds = match smmu.features.stage1 {
            true => Some(CdTable::new(&self.0.platform, &smmu.features, needs).ok_or(AddDeviceError::NoMemory)?),
            false => None,
        };
        let mut claimed = 0;
        let result = sids.iter().try_for_each(|&sid| {
            let leaf_added =
                smmu.streams.lock().claim(sid).map_err(|cause| AddDeviceError::Stream { smmu: id, cause })?;
            claimed += 1;
            self.block(smmu, sid, leaf_added).map_err(|cause| AddDeviceError::Hardware { smmu: id, cause })
        });
        if let Err(error) = result {
            // What was claimed aborts or is invalid, which is the same to the device, and points to nothing.
            let mut streams = smmu.streams.lock();
            sids[..claimed].iter().for_each(|&sid| streams.release(sid));
            return Err(error);
        }
        let device = DeviceInner::new(self.0.clone(), smmu.clone(), sids.clone(), cds, needs, config.ats);
        match Shared::try_new(device) {
            Ok(device) => {
                smmu.users.fetch_add(1, Ordering::Relaxed);
                Ok(Device(device))
            }
            Err(_) => {
                // The STEs abort; nothing else is known of the device.
                let mut streams = smmu.streams.lock();
                sids.iter().for_each(|&sid| streams.release(sid));
                Err(AddDeviceError::NoMemory)
            }
        }
    }

    /// Takes an SMMU out, which has no devices any more. It aborts all traffic from then on, and nothing touches its registers. Its number
    /// goes to the next SMMU that is added.
    pub fn remove_smmu(&self, smmu: &SmmuHandle<P>) -> Result<(), RemoveSmmuError> {
        self.0.remove(&smmu.0)
    }

    /// Makes a stream abort silently: blocked devices raise no events, unless PASIDs are attached beside.
    fn block(&self, smmu: &Smmu<P>, sid: u32, leaf_added: bool) -> Result<(), QueueError> {
        if leaf_added {
            smmu.run([Command::CfgiSte { sid, leaf: false }])?;
            smmu.streams.lock().known(sid);
        }
        smmu.abort_stream(sid)
    }

    /// A domain with an empty translation table.
    pub fn paging_domain(&self, stage: Stage, geometry: Geometry) -> Result<PagingDomain<P>, DomainError> {
        PagingDomain::new(&self.0, stage, geometry)
    }

    /// A domain over a stage 1 table that somebody else owns.
    pub fn sva_domain(&self, table: SvaTable) -> Result<SvaDomain<P>, DomainError> {
        SvaDomain::new(&self.0, table)
    }

    /// A guest's view of an SMMU, whose stage 2 is `parent`.
    pub fn vsmmu(&self, smmu: &SmmuHandle<P>, parent: &PagingDomain<P>) -> Result<VSmmu<P>, VSmmuError> {
        VSmmu::new(&self.0, &smmu.0, parent)
    }
}

impl<P: Platform> SmmuHandle<P> {
    /// The number of the SMMU.
    pub fn id(&self) -> SmmuId {
        self.0.id
    }

    /// What the SMMU can do.
    pub fn features(&self) -> &Features {
        &self.0.features
    }

    /// Takes the events that wait in the event queue, oldest first; at most one queue full. To be called from the host's handler of the
    /// event interrupt, or now and then. `each` must not take events itself.
    pub fn take_events(&self, each: impl FnMut(Event)) -> EventsTaken {
        self.0.take_events(each)
    }

    /// Takes and acknowledges the global errors that are active. To be called from the host's handler of the global error
    /// interrupt, or now and then. Failed commands are not among them: those are told to who issued them.
    pub fn take_global_errors(&self) -> GlobalErrors {
        self.0.take_global_errors()
    }
}

impl<P: Platform> Clone for Iommu<P> {
    fn clone(&self) -> Self {
        Iommu(self.0.clone())
    }
}

impl<P: Platform> Clone for SmmuHandle<P> {
    fn clone(&self) -> Self {
        SmmuHandle(self.0.clone())
    }
}

impl<P: Platform> fmt::Debug for Iommu<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Iommu")
    }
}

impl<P: Platform> fmt::Debug for SmmuHandle<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SmmuHandle({})", self.id())
    }
}

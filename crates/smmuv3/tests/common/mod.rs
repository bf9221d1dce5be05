//! What the tests on the model share.
#![allow(dead_code, reason = "each test file uses a part of it")]

use smmuv3::arch::{Command, Event, Prot, Stage, SyncSignal};
use smmuv3::platform::Iova;
use smmuv3::{DeviceConfig, Geometry, Iommu, PagingDomain, SmmuHandle, SmmuOptions};
use smmuv3_model::{DataPages, Device, Laziness, Model, ModelConfig, ModelPlatform, ModelSmmuConfig};

pub const PAGE: u64 = 0x1000;
pub const RW: Prot = Prot::READ.union(Prot::WRITE);
/// The StreamID of the device under test, and of another.
pub const SID: u32 = 0x18;
pub const OTHER: u32 = 0x20;

pub type Domain = PagingDomain<ModelPlatform>;

/// A machine with one SMMU, reset.
pub struct Rig {
    pub model: Model,
    pub iommu: Iommu<ModelPlatform>,
    pub smmu: SmmuHandle<ModelPlatform>,
}

impl Rig {
    pub fn new() -> Rig {
        Rig::with(ModelConfig::default())
    }

    /// Hardware that completes nothing before it has to: each step that is left out shows at once.
    pub fn late() -> Rig {
        let laziness = Laziness { early_invalidations: false, ..Laziness::all() };
        Rig::with(ModelConfig::with_smmu(ModelSmmuConfig { laziness, ..Default::default() }))
    }

    pub fn with(config: ModelConfig) -> Rig {
        let model = Model::new(config);
        let iommu = Iommu::new(model.platform()).unwrap();
        let smmu = iommu.add_smmu(model.mmio(0), quick()).unwrap();
        Rig { model, iommu, smmu }
    }

    pub fn add(&self, sid: u32) -> smmuv3::Device<ModelPlatform> {
        self.iommu.add_device(&self.smmu, DeviceConfig::stream(sid)).unwrap()
    }

    pub fn domain(&self, stage: Stage) -> Domain {
        self.iommu.paging_domain(stage, Geometry::default()).unwrap()
    }

    /// The hardware behind a StreamID.
    pub fn device(&self, sid: u32) -> Device {
        self.model.device(0, sid)
    }

    /// The commands that an SMMU has consumed since the last time, without what CMD_SYNCs do to tell of themselves.
    pub fn take_commands(&self, smmu: usize) -> Vec<Command> {
        let mut commands = self.model.take_commands(smmu);
        for command in &mut commands {
            if let Command::Sync(signal) = command {
                *signal = SyncSignal::None;
            }
        }
        commands
    }

    pub fn page(&self) -> DataPages {
        self.model.alloc_data(1).expect("the model has a page")
    }

    pub fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        let _ = self.smmu.take_events(|event| events.push(event));
        events
    }
}

/// Tests that break the hardware should not wait a second for it.
pub fn quick() -> SmmuOptions {
    SmmuOptions { timeout_ns: 250_000_000, ..SmmuOptions::default() }
}

/// Maps one page, lets the device use it, unmaps it and frees it; then the device tries again. Whatever the driver forgot, the model's
/// oracle has seen. Returns whether the last access was aborted.
pub fn use_and_unmap(rig: &Rig, domain: &Domain, sid: u32, iova: Iova) -> bool {
    let page = rig.page();
    domain.map(iova, page.addr(), PAGE, RW).unwrap();
    let device = rig.device(sid);
    device.write_u64(iova, 0x1234).unwrap();
    assert_eq!(rig.model.read_u64(page.addr()), Some(0x1234));
    domain.unmap(iova, PAGE).unwrap();
    rig.model.free_data(page);
    device.write_u64(iova, 0x5678).is_err()
}

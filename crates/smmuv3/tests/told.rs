//! What callers are told in the rarer cases, and that handles are handles.

mod common;
#[path = "common/spy.rs"]
mod spy;

use common::*;
use smmuv3::arch::regs::{Gerror, QUEUE_BASE_ADDR, offset};
use smmuv3::arch::{Command, Granule, Stage, SyncSignal, TlbiAddr, TlbiRange};
use smmuv3::platform::{Iova, Mmio, PhysAddr};
use smmuv3::{AddSmmuError, AttachError, DeviceConfig, DomainError, GuestCommandFault, Iommu, MapError, PasidDomain};
use smmuv3::{GlobalErrors, QueueError, SmmuOptions, SvaTable, UnmapError, VSmmuError};
use smmuv3_model::{Model, ModelConfig, ModelSmmuConfig};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn a_mapping_that_fails_half_way_and_cannot_be_taken_back_says_so() {
    let rig = Rig::new();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    let pages = rig.model.alloc_data(3).unwrap();
    domain.map(Iova(0x3000), PhysAddr(pages.addr().0 + 2 * PAGE), PAGE, RW).unwrap();
    // The third page is taken. That the first two are not mapped any more reaches no SMMU that is dead.
    rig.model.set_dead(0, true);
    let error = domain.map(Iova(0x1000), pages.addr(), 3 * PAGE, RW).unwrap_err();
    let MapError::NotTakenBack(source) = error else { panic!("{error}") };
    assert_eq!((source.smmu, source.sid, source.cause), (rig.smmu.id(), None, QueueError::Timeout));
    assert_eq!(
        error.to_string(),
        "taking a failed mapping back: SMMU 0: invalidation failed: the SMMU did not complete its commands in time"
    );
    // Once the SMMU is back, it works as ever.
    rig.model.set_dead(0, false);
    assert_eq!(domain.map(Iova(0x1000), pages.addr(), 3 * PAGE, RW), Err(MapError::AlreadyMapped(Iova(0x3000))));
    assert_eq!([1, 2, 3].map(|page| domain.iova_to_phys(Iova(page * PAGE)).is_some()), [false, false, true]);
    domain.unmap(Iova(0x1000), 3 * PAGE).unwrap();
    rig.model.free_data(pages);
    assert!(rig.device(SID).write_u64(Iova(0x1000), 1).is_err());
    rig.model.report().assert_clean();
}

/// The SMMU is told to send a message to where nothing is.
#[test]
fn a_global_error_is_told_once_and_acknowledged() {
    let model = Model::new(ModelConfig::default());
    let armed = Arc::new(AtomicBool::new(false));
    let (iommu, registers) = spy::spy(&model, {
        let (model, armed) = (model.clone(), armed.clone());
        move |register, prod| {
            if register == offset::CMDQ_PROD && armed.swap(false, Ordering::SeqCst) {
                let base = model.mmio(0).read64(offset::CMDQ_BASE);
                let slot = u64::from(prod).wrapping_sub(2) & ((1 << (base & 31)) - 1);
                let message = Command::Sync(SyncSignal::Msi { addr: 0x1000, data: 1 }).encode();
                let to = (base & QUEUE_BASE_ADDR) + 16 * slot;
                message.0.iter().zip([to, to + 8]).for_each(|(word, to)| assert!(model.write_u64(PhysAddr(to), *word)));
            }
        }
    });
    let smmu = iommu.add_smmu(registers, quick()).unwrap();
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
    let domain = iommu.paging_domain(Stage::S1, Default::default()).unwrap();
    device.attach(&domain).unwrap();
    assert!(smmu.take_global_errors().is_empty());
    armed.store(true, Ordering::SeqCst);
    domain.unmap(Iova(0x1000), PAGE).unwrap();
    let errors = smmu.take_global_errors();
    assert_eq!(errors, GlobalErrors(Gerror::MSI_CMDQ_ABT_ERR));
    assert_eq!(errors.to_string(), "MSI_CMDQ_ABT_ERR");
    assert!(smmu.take_global_errors().is_empty());
    let registers = model.mmio(0);
    assert_eq!(registers.read32(offset::GERROR), registers.read32(offset::GERRORN));
}

#[test]
fn memory_that_the_devices_would_see_elsewhere_is_given_back_unused() {
    // Beyond the window, and not aligned as asked.
    for skew in [1 << 40, 64] {
        let model = Model::new(ModelConfig::default());
        let iommu = Iommu::new(<spy::SpyPlatform>::new(&model).skew(skew)).unwrap();
        let result = iommu.paging_domain(Stage::S1, Default::default());
        assert!(matches!(result, Err(DomainError::NoMemory)), "{result:?}");
        let result = iommu.add_smmu(spy::Spy::new(&model), SmmuOptions::default());
        assert!(matches!(result, Err(AddSmmuError::NoMemory)), "{result:?}");
        assert!(model.driver_allocs() > 0);
        assert_eq!(model.driver_pages(), 0);
        // Given back as it was had, too.
        model.report().assert_clean();
    }
}

#[test]
fn a_pasid_whose_detach_is_not_confirmed_keeps_its_domain_s_tables() {
    let rig = Rig::new();
    let device = rig.iommu.add_device(&rig.smmu, DeviceConfig::stream(SID).pasid_bits(4)).unwrap();
    let domain = rig.domain(Stage::S1);
    device.attach_pasid(1, &domain).unwrap();
    domain.map(Iova(0x1000), PhysAddr(0x1000), PAGE, RW).unwrap();
    rig.model.set_dead(0, true);
    let unconfirmed = device.detach_pasid(1).unwrap_err();
    assert_eq!((unconfirmed.smmu, unconfirmed.sid, unconfirmed.cause), (rig.smmu.id(), SID, QueueError::Timeout));
    rig.model.set_dead(0, false);
    assert_eq!(device.attach_pasid(2, &domain), Err(AttachError::Hardware(unconfirmed)));
    // The SMMU confirms that the device is blocked, and its CD table goes; the domain's tables may still be walked.
    let pages = rig.model.driver_pages();
    drop((domain, device));
    assert_eq!(rig.model.driver_pages(), pages - 1);
    rig.model.report().assert_clean();
}

#[test]
fn a_process_s_table_of_another_iommu_is_refused() {
    let (rig, other) = (Rig::new(), Rig::new());
    let device = rig.iommu.add_device(&rig.smmu, DeviceConfig::stream(SID).pasid_bits(4)).unwrap();
    let root = other.page();
    let table = SvaTable { root: root.addr(), geometry: Default::default(), mair: smmuv3::arch::MAIR };
    let sva = other.iommu.sva_domain(table).unwrap();
    assert_eq!(device.attach_pasid(1, &sva), Err(AttachError::OtherIommu));
    assert_eq!(device.attach_pasid(1, PasidDomain::from(&sva.clone())), Err(AttachError::OtherIommu));
}

#[test]
fn a_guest_is_told_what_its_smmu_cannot_do() {
    let rig = Rig::with(ModelConfig::with_smmu(ModelSmmuConfig { stage1: false, ..ModelSmmuConfig::default() }));
    let result = rig.iommu.vsmmu(&rig.smmu, &rig.domain(Stage::S2));
    assert_eq!(result.err(), Some(VSmmuError::NoNesting(rig.smmu.id())));

    let granules = [true, false, true];
    let rig = Rig::with(ModelConfig::with_smmu(ModelSmmuConfig { granules, ..ModelSmmuConfig::default() }));
    let vsmmu = rig.iommu.vsmmu(&rig.smmu, &rig.domain(Stage::S2)).unwrap();
    let command = |granule| {
        let range = Some(TlbiRange { granule, num: 1, scale: 0, ttl: 0 });
        Command::TlbiNhVaa { vmid: 0, addr: TlbiAddr { addr: 0, leaf: true, range } }.encode()
    };
    let refused = vsmmu.clone().invalidate(&[command(Granule::K64), command(Granule::K16)]).unwrap_err();
    assert_eq!((refused.index, refused.cause), (1, GuestCommandFault::Unsupported("the granule of the range")));
}

#[test]
fn handles_are_of_one_thing_however_often_they_are_cloned() {
    let rig = Rig::new();
    let (iommu, smmu) = (rig.iommu.clone(), rig.smmu.clone());
    assert_eq!(smmu.id(), rig.smmu.id());
    assert_eq!(*smmu.features(), rig.model.features(0));
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
    assert_eq!(device.smmu(), rig.smmu.id());
    assert_eq!(
        format!("{iommu:?} {smmu:?} {device:?}"),
        "Iommu SmmuHandle(SMMU 0) Device(SMMU 0, StreamIDs [\n    0x18,\n])"
    );
    let domain = rig.domain(Stage::S1);
    device.attach(&domain.clone()).unwrap();
    assert!(format!("{domain:?}").starts_with("PagingDomain(stage 1, 4K, 39 input bits; owes [SMMU 0 S1Asid "));
    assert!(matches!(domain.clone().unmap(Iova(1), PAGE), Err(UnmapError::BadRange(_))));
}

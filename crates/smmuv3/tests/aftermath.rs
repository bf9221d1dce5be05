//! What is still true after something went wrong: devices that were cut off, devices that broke, tags that ran out.

mod common;
#[path = "common/spy.rs"]
mod spy;

use common::*;
use smmuv3::arch::Stage;
use smmuv3::{DeviceConfig, Geometry, PagingDomain};
use smmuv3_model::{Model, ModelConfig};
use spy::*;
use std::sync::atomic::Ordering;

/// A broken device's entries stay in the arrays: they must not come to mean another device, or another SMMU.
#[test]
fn what_a_broken_device_leaves_in_the_arrays_never_means_another() {
    let model = Model::new(ModelConfig::default());
    let (iommu, smmu, armed) = damaging(&model);
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
    let domain = || iommu.paging_domain(Stage::S1, Geometry::default()).unwrap();
    let left = domain();
    device.attach(&left).unwrap();
    armed.store(1, Ordering::SeqCst);
    device.detach().unwrap_err();
    // It is blocked now, and that is confirmed.
    device.detach().unwrap();
    drop(device);
    assert!(iommu.add_device(&smmu, DeviceConfig::stream(SID)).is_err(), "its StreamID is another's");
    let Ok(()) = iommu.remove_smmu(&smmu) else { return };
    // Its number goes to the next, on which the tag in the array is nobody's.
    let smmu = iommu.add_smmu(Spy::new(&model), quick()).unwrap();
    let other = domain();
    let devices = [0x30, 0x31].map(|sid| iommu.add_device(&smmu, DeviceConfig::stream(sid)).unwrap());
    devices[0].attach(&left).unwrap();
    devices[1].attach(&other).unwrap();
    let tag = |domain: &PagingDomain<_>| {
        let mut tag = None;
        domain.owed(|owed| tag = Some(owed.key.id()));
        tag
    };
    assert_ne!(tag(&left), tag(&other), "two domains under one ASID");
}

#[test]
fn all_domains_of_a_device_that_breaks_keep_their_tables() {
    let rig = Rig::new();
    let device = rig.iommu.add_device(&rig.smmu, DeviceConfig::stream(SID).pasid_bits(4)).unwrap();
    let domains = [rig.domain(Stage::S1), rig.domain(Stage::S1), rig.domain(Stage::S1)];
    device.attach(&domains[0]).unwrap();
    device.attach_pasid(1, &domains[1]).unwrap();
    device.attach_pasid(2, &domains[2]).unwrap();
    let before = rig.model.driver_pages();
    rig.model.set_dead(0, true);
    drop((device, domains));
    assert_eq!(rig.model.driver_pages(), before, "the SMMU still walks them");
}

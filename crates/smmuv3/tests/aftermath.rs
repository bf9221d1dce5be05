//! What is still true after something went wrong: devices that were cut off, devices that broke, tags that ran out.

mod common;
#[path = "common/spy.rs"]
mod spy;

use common::*;
use smmuv3::arch::regs::offset;
use smmuv3::arch::{RawSte, Stage};
use smmuv3::platform::Iova;
use smmuv3::{AttachError, DeviceConfig, Geometry, PagingDomain, UnmapError};
use smmuv3_model::{AtsAnswers, AtsBehaviour, Model, ModelConfig, ModelPlatform, ModelSmmuConfig};
use spy::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const IOVA: Iova = Iova(0x10_0000);

fn silent() -> AtsBehaviour {
    AtsBehaviour { answers: AtsAnswers::Never, ..AtsBehaviour::default() }
}

/// A device whose ATC remembers a page that is free: it was cut off for not answering the ATC_INV.
fn cut_off(rig: &Rig, pasid: Option<u32>) -> (smmuv3::Device<ModelPlatform>, Domain) {
    let config = DeviceConfig::stream(SID).pasid_bits(8).ats();
    let device = rig.iommu.add_device(&rig.smmu, config).unwrap();
    let (domain, page) = (rig.domain(Stage::S1), rig.page());
    domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
    let hw = match pasid {
        Some(pasid) => {
            device.attach_pasid(pasid, &domain).unwrap();
            rig.device(SID).with_ssid(pasid)
        }
        None => {
            device.attach(&domain).unwrap();
            rig.device(SID)
        }
    };
    hw.ats_write_u64(IOVA, 1).unwrap();
    rig.model.set_ats(0, SID, silent());
    assert!(matches!(domain.unmap(IOVA, PAGE), Err(UnmapError::CutOff { .. })));
    rig.model.free_data(page);
    assert!(hw.ats_write_u64(IOVA, 2).is_err());
    (device, domain)
}

#[test]
fn a_device_that_was_cut_off_does_not_come_back_with_a_pasid_and_what_it_remembers() {
    for answers in [true, false] {
        let rig = Rig::new();
        let (device, _domain) = cut_off(&rig, Some(1));
        if answers {
            rig.model.set_ats(0, SID, AtsBehaviour::default());
        }
        assert_eq!(device.attach_pasid(2, &rig.domain(Stage::S1)).is_ok(), answers);
        assert!(rig.device(SID).with_ssid(1).ats_write_u64(IOVA, 3).is_err());
        assert_eq!(rig.model.report().stale_dma, 0);
    }
}

/// attaching thread                      device that was cut off
/// write the STE, CFGI, SYNC             remembers a page that is free by now
/// flush the ATC
#[test]
fn a_device_that_was_cut_off_has_forgotten_everything_before_its_ste_lets_it_in() {
    let model = Model::new(ModelConfig::default());
    let watch = Arc::new(AtomicBool::new(false));
    let (hw, look, reached) = (model.device(0, SID), watch.clone(), Arc::new(Mutex::new(0)));
    let count = reached.clone();
    // The device tries at each doorbell.
    let (iommu, mmio) = spy(&model, move |offset, _| {
        if offset == offset::CMDQ_PROD && look.load(Ordering::SeqCst) {
            *count.lock().unwrap() += u32::from(hw.ats_write_u64(IOVA, 9).is_ok());
        }
    });
    let smmu = iommu.add_smmu(mmio, quick()).unwrap();
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID).ats()).unwrap();
    let domain = iommu.paging_domain(Stage::S1, Geometry::default()).unwrap();
    device.attach(&domain).unwrap();
    let page = model.alloc_data(1).unwrap();
    domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
    model.device(0, SID).ats_write_u64(IOVA, 1).unwrap();
    model.set_ats(0, SID, silent());
    assert!(matches!(domain.unmap(IOVA, PAGE), Err(UnmapError::CutOff { .. })));
    model.free_data(page);
    model.set_ats(0, SID, AtsBehaviour::default());
    watch.store(true, Ordering::SeqCst);
    device.attach(&domain).unwrap();
    watch.store(false, Ordering::SeqCst);
    assert_eq!((*reached.lock().unwrap(), model.report().stale_dma), (0, 0));
}

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

#[test]
fn a_domain_that_a_device_may_have_reached_keeps_its_tables() {
    for pasid in [false, true] {
        let rig = Rig::new();
        let device = rig.iommu.add_device(&rig.smmu, DeviceConfig::stream(SID).pasid_bits(4)).unwrap();
        let domain = rig.domain(Stage::S1);
        let before = rig.model.driver_pages();
        rig.model.set_dead(0, true);
        let attached = if pasid { device.attach_pasid(1, &domain) } else { device.attach(&domain) };
        attached.unwrap_err();
        drop(domain);
        assert_eq!(rig.model.driver_pages(), before);
        // A broken device still has its PASIDs.
        drop(device);
        assert_eq!(rig.model.driver_pages(), before);
    }
}

#[test]
fn a_pasid_whose_attach_failed_half_way_is_seen_by_the_smmu_when_it_is_attached_again() {
    let config = ModelSmmuConfig { asid16: false, ..ModelSmmuConfig::default() };
    let rig = Rig::with(ModelConfig::with_smmu(config));
    let device = rig.iommu.add_device(&rig.smmu, DeviceConfig::stream(SID).pasid_bits(10)).unwrap();
    for pasid in 1..=255 {
        device.attach_pasid(pasid, &rig.domain(Stage::S1)).unwrap();
    }
    // The SMMU caches that there are no CDs up there.
    assert!(rig.device(SID).with_ssid(0x300).read_u64(IOVA).is_err());
    let (domain, page) = (rig.domain(Stage::S1), rig.page());
    assert!(matches!(device.attach_pasid(0x300, &domain), Err(AttachError::NoTag { .. })));
    device.detach_pasid(7).unwrap();
    device.attach_pasid(0x300, &domain).unwrap();
    domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
    rig.device(SID).with_ssid(0x300).write_u64(IOVA, 1).unwrap();
}

/// A failed unmap leaves entries for pages in the TLB; then a block is mapped over them.
#[test]
fn unmapping_a_block_makes_up_for_a_failed_unmap_of_the_pages_before() {
    for range_inv in [true, false] {
        let config = ModelSmmuConfig { range_inv, ..ModelSmmuConfig::default() };
        let model = Model::new(ModelConfig::with_smmu(config));
        let (iommu, smmu, armed) = damaging(&model);
        let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
        let domain = iommu.paging_domain(Stage::S1, Geometry::default()).unwrap();
        device.attach(&domain).unwrap();
        let (size, at) = (0x20_0000, Iova(0x20_0000));
        let (page, block) = (model.alloc_data(1).unwrap(), model.alloc_data_aligned(512, size as usize).unwrap());
        let third = Iova(at.0 + 2 * PAGE);
        domain.map(third, page.addr(), PAGE, RW).unwrap();
        model.device(0, SID).write_u64(third, 1).unwrap();
        armed.store(1, Ordering::SeqCst);
        assert!(matches!(domain.unmap(at, size), Err(UnmapError::StillReachable { .. })));
        domain.map(at, block.addr(), size, RW).unwrap();
        domain.unmap(at, size).unwrap();
        model.free_data(page);
        assert!(model.device(0, SID).write_u64(third, 2).is_err(), "RIL {range_inv}");
        assert_eq!(model.report().stale_dma, 0);
    }
}

/// A vSMMU keeps its VMID while no device is attached through it, and nobody invalidates for it meanwhile.
#[test]
fn a_vmid_whose_flush_failed_is_flushed_before_its_vsmmu_uses_it_again() {
    // Detach rings once for each step of the STE, and then for the VMID: find the ring that is the VMID's.
    for n in 1..=8 {
        let model = Model::new(ModelConfig::default());
        let (iommu, smmu, armed) = damaging(&model);
        let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
        let parent = iommu.paging_domain(Stage::S2, Geometry::default()).unwrap();
        let vsmmu = iommu.vsmmu(&smmu, &parent).unwrap();
        // V, and Config = bypass: stage 2 only.
        let nested = vsmmu.nested_domain(&RawSte([0b1001, 0, 0, 0, 0, 0, 0, 0])).unwrap();
        device.attach_nested(&nested).unwrap();
        let page = model.alloc_data(1).unwrap();
        parent.map(IOVA, page.addr(), PAGE, RW).unwrap();
        model.device(0, SID).write_u64(IOVA, 1).unwrap();
        armed.store(n, Ordering::SeqCst);
        if device.detach().is_err() {
            continue;
        }
        assert_eq!(armed.load(Ordering::SeqCst), 0, "the flush was never hit");
        parent.unmap(IOVA, PAGE).unwrap();
        model.free_data(page);
        device.attach_nested(&nested).unwrap();
        assert!(model.device(0, SID).write_u64(IOVA, 2).is_err());
        assert_eq!(model.report().stale_dma, 0);
        // What is cached of the tables under it may be from before, so they stay for ever.
        drop(device);
        let before = model.driver_pages();
        drop((nested, vsmmu, parent));
        assert_eq!(model.driver_pages(), before);
        return;
    }
    panic!("the flush was never hit");
}

#[test]
fn a_device_whose_bypass_was_not_confirmed_is_blocked_when_the_smmu_comes_back() {
    let rig = Rig::new();
    let (device, page) = (rig.add(SID), rig.page());
    rig.model.set_dead(0, true);
    device.attach_identity().unwrap_err();
    rig.model.set_dead(0, false);
    assert!(rig.device(SID).write_u64(Iova(page.addr().0), 1).is_err());
}

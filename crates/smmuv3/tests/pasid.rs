//! PASIDs beside the device's own domain, and tables that somebody else owns.

mod common;

use common::*;
use smmuv3::arch::{AddrSize, Desc, Granule, MAIR, Prot, Shape, Stage};
use smmuv3::platform::{Iova, PhysAddr};
use smmuv3::{AttachError, DeviceConfig, Geometry, Kind, SvaDomain, SvaTable};
use smmuv3_model::{DataPages, ModelPlatform};

type Device = smmuv3::Device<ModelPlatform>;

fn device(rig: &Rig) -> Device {
    rig.iommu.add_device(&rig.smmu, DeviceConfig::stream(SID).pasid_bits(10)).unwrap()
}

/// A CPU's own table: one page mapped at 0x1000, in pages of data memory that are the process's.
struct Process {
    tables: DataPages,
    page: DataPages,
    sva: SvaDomain<ModelPlatform>,
}

impl Process {
    fn new(rig: &Rig) -> Process {
        let (tables, page) = (rig.model.alloc_data(3).unwrap(), rig.page());
        let geometry = Geometry { output_size: AddrSize::B48, ..Geometry::default() };
        let at = |n: u64| PhysAddr(tables.addr().0 + n * PAGE);
        (0..3 * 512).for_each(|word| assert!(rig.model.write_u64(PhysAddr(tables.addr().0 + 8 * word), 0)));
        rig.model.write_u64(at(0), Desc::table(at(1)).0);
        rig.model.write_u64(at(1), Desc::table(at(2)).0);
        let sva = rig.iommu.sva_domain(SvaTable { root: at(0), geometry, mair: MAIR }).unwrap();
        let process = Process { tables, page, sva };
        process.set(rig, Desc::leaf(process.page.addr(), 3, Stage::S1, RW));
        process
    }

    /// The entry for 0x1000.
    fn set(&self, rig: &Rig, desc: Desc) {
        rig.model.write_u64(PhysAddr(self.tables.addr().0 + 2 * PAGE + 8), desc.0);
    }
}

fn owed(sva: &SvaDomain<ModelPlatform>) -> Vec<(Kind, u32, u32, u32)> {
    let mut all = Vec::new();
    sva.owed(|owed| all.push((owed.key.kind(), owed.key.id(), owed.key.ssid(), owed.users)));
    all
}

#[test]
fn each_pasid_sees_its_own_domain_beside_the_device_s() {
    let rig = Rig::new();
    let device = device(&rig);
    let domains = [rig.domain(Stage::S1), rig.domain(Stage::S1), rig.domain(Stage::S1)];
    let pages = domains.each_ref().map(|domain| {
        let page = rig.page();
        domain.map(Iova(0x1000), page.addr(), PAGE, RW).unwrap();
        page
    });
    device.attach(&domains[0]).unwrap();
    device.attach_pasid(1, &domains[1]).unwrap();
    // Its CD is in another leaf of the table.
    device.attach_pasid(0x3ff, &domains[2]).unwrap();
    let hw = rig.device(SID);
    hw.write_u64(Iova(0x1000), 10).unwrap();
    hw.with_ssid(1).write_u64(Iova(0x1000), 11).unwrap();
    hw.with_ssid(0x3ff).write_u64(Iova(0x1000), 12).unwrap();
    assert_eq!(pages.each_ref().map(|page| rig.model.read_u64(page.addr()).unwrap()), [10, 11, 12]);
    assert!(hw.with_ssid(2).write_u64(Iova(0x1000), 1).is_err());
    // Unmapped from one, and only from that.
    domains[1].unmap(Iova(0x1000), PAGE).unwrap();
    assert!(hw.with_ssid(1).write_u64(Iova(0x1000), 1).is_err());
    assert!(hw.with_ssid(0x3ff).write_u64(Iova(0x1000), 1).is_ok());
    device.detach_pasid(0x3ff).unwrap();
    assert!(hw.with_ssid(0x3ff).write_u64(Iova(0x1000), 1).is_err());
    assert!(hw.write_u64(Iova(0x1000), 1).is_ok());
    device.detach_pasid(0x3ff).unwrap();
    domains[2].owed(|owed| panic!("{owed:?} is still owed"));
    // What is left goes with the device.
    drop(device);
    domains.iter().for_each(|domain| domain.owed(|owed| panic!("{owed:?} is still owed")));
    rig.model.report().assert_clean();
}

#[test]
fn the_device_s_own_traffic_may_be_identity_or_blocked_while_pasids_are_in_use() {
    let rig = Rig::new();
    let device = device(&rig);
    let (domain, own) = (rig.domain(Stage::S1), rig.domain(Stage::S1));
    let (page, free) = (rig.page(), rig.page());
    domain.map(Iova(0x1000), page.addr(), PAGE, RW).unwrap();
    own.map(Iova(0x1000), free.addr(), PAGE, RW).unwrap();
    let hw = rig.device(SID);
    device.attach_pasid(5, &domain).unwrap();
    for round in 0..3 {
        let pasid = |value| {
            hw.with_ssid(5).write_u64(Iova(0x1000), value).unwrap();
            assert_eq!(rig.model.read_u64(page.addr()), Some(value));
        };
        device.detach().unwrap();
        pasid(round * 3);
        assert!(hw.write_u64(Iova(0x1000), 1).is_err());
        device.attach_identity().unwrap();
        pasid(round * 3 + 1);
        hw.write_u64(Iova(free.addr().0), round).unwrap();
        assert_eq!(rig.model.read_u64(free.addr()), Some(round));
        device.attach(&own).unwrap();
        pasid(round * 3 + 2);
        hw.write_u64(Iova(0x1000), 77).unwrap();
        assert_eq!(rig.model.read_u64(free.addr()), Some(77));
    }
    // Identity with the PASID gone: still identity, and no PASID.
    device.attach_identity().unwrap();
    device.detach_pasid(5).unwrap();
    hw.write_u64(Iova(free.addr().0), 5).unwrap();
    assert!(hw.with_ssid(5).write_u64(Iova(0x1000), 1).is_err());
    device.detach().unwrap();
    rig.model.report().assert_clean();
}

#[test]
fn pasids_that_cannot_be_are_refused() {
    let rig = Rig::new();
    let device = device(&rig);
    let (s1, s2) = (rig.domain(Stage::S1), rig.domain(Stage::S2));
    for pasid in [0, 1 << 10, u32::MAX] {
        assert_eq!(device.attach_pasid(pasid, &s1), Err(AttachError::PasidRange { pasid, bits: 10 }));
    }
    assert_eq!(device.attach_pasid(1, &s2), Err(AttachError::NotStage1));
    device.attach(&s2).unwrap();
    assert_eq!(device.attach_pasid(1, &s1), Err(AttachError::NoPasids));
    device.detach().unwrap();
    device.attach_pasid(1, &s1).unwrap();
    assert_eq!(device.attach_pasid(1, &s1), Err(AttachError::PasidInUse(1)));
    assert_eq!(device.attach(&s2), Err(AttachError::PasidsInUse(1)));
    // A device without PASIDs has none.
    let plain = rig.add(OTHER);
    assert_eq!(plain.attach_pasid(1, &s1), Err(AttachError::PasidRange { pasid: 1, bits: 0 }));
    rig.model.report().assert_clean();
}

#[test]
fn a_foreign_table_is_walked_and_its_owner_s_invalidation_is_carried_out() {
    let rig = Rig::new();
    let device = device(&rig);
    let process = Process::new(&rig);
    device.attach_pasid(7, &process.sva).unwrap();
    assert_eq!(owed(&process.sva), [(Kind::S1Asid, 1, 0, 1)]);
    let hw = rig.device(SID).with_ssid(7);
    hw.write_u64(Iova(0x1000), 1).unwrap();
    assert_eq!(rig.model.read_u64(process.page.addr()), Some(1));
    // The owner takes the page away, tells the domain, and then uses it for something else.
    process.set(&rig, Desc::INVALID);
    assert!(hw.write_u64(Iova(0x1000), 2).is_ok(), "the TLB has it still");
    process.sva.invalidate(Iova(0x1000), PAGE, true).unwrap();
    assert!(hw.write_u64(Iova(0x1000), 3).is_err());
    // Another page, and everything at once.
    let other = rig.page();
    process.set(&rig, Desc::leaf(other.addr(), 3, Stage::S1, RW));
    hw.write_u64(Iova(0x1000), 4).unwrap();
    process.set(&rig, Desc::leaf(process.page.addr(), 3, Stage::S1, Prot::READ));
    process.sva.invalidate(Iova(0), 0, false).unwrap();
    assert!(hw.write_u64(Iova(0x1000), 5).is_err());
    assert_eq!(hw.read_u64(Iova(0x1000)), Ok(2));
    rig.model.report().assert_clean();
}

#[test]
fn a_released_table_is_used_by_nobody_and_its_pasids_are_harmless() {
    let rig = Rig::new();
    let device = device(&rig);
    let second = rig.iommu.add_device(&rig.smmu, DeviceConfig::stream(OTHER).pasid_bits(4)).unwrap();
    let process = Process::new(&rig);
    device.attach_pasid(7, &process.sva).unwrap();
    device.attach_pasid(8, &process.sva).unwrap();
    second.attach_pasid(3, &process.sva).unwrap();
    assert_eq!(owed(&process.sva), [(Kind::S1Asid, 1, 0, 3)]);
    let all = [(SID, 7), (SID, 8), (OTHER, 3)];
    for (sid, pasid) in all {
        rig.device(sid).with_ssid(pasid).write_u64(Iova(0x1000), 1).unwrap();
    }
    device.detach_pasid(8).unwrap();
    process.sva.release().unwrap();
    // The process is gone, and so are its tables and pages.
    rig.model.free_data(process.tables);
    rig.model.free_data(process.page);
    rig.events();
    for (sid, pasid) in all {
        assert!(rig.device(sid).with_ssid(pasid).write_u64(Iova(0x1000), 2).is_err());
        assert!(rig.device(sid).with_ssid(pasid).read_u64(Iova(1 << 30)).is_err());
    }
    let names: Vec<_> = rig.events().iter().map(|event| event.name()).collect();
    assert_eq!(names, ["C_BAD_CD"; 2], "only the PASID that was detached is heard of");
    assert_eq!(device.attach_pasid(9, &process.sva), Err(AttachError::Released));
    device.detach_pasid(7).unwrap();
    second.detach_pasid(3).unwrap();
    assert_eq!(owed(&process.sva), []);
    rig.model.report().assert_clean();
}

#[test]
fn without_memory_a_pasid_is_not_attached_and_detaching_needs_none() {
    let rig = Rig::new();
    let device = device(&rig);
    let domain = rig.domain(Stage::S1);
    device.attach_pasid(1, &domain).unwrap();
    rig.model.fail_all_allocs(true);
    // Its CD would be in a leaf that is not there yet.
    assert_eq!(device.attach_pasid(0x200, &domain), Err(AttachError::NoMemory));
    device.detach_pasid(1).unwrap();
    device.attach_identity().unwrap();
    device.detach().unwrap();
    rig.model.fail_all_allocs(false);
    domain.owed(|owed| panic!("{owed:?} is still owed"));
    device.attach_pasid(0x200, &domain).unwrap();
    let shape = Shape::new(Stage::S1, Granule::K4, 39, AddrSize::B48).unwrap();
    assert_eq!(shape.start_level(), 1);
    rig.model.report().assert_clean();
}

/// Behind an STE that lets traffic without a PASID bypass or terminates it, PASID 0 still means the first CD (§5.2, S1DSS).
#[test]
fn pasid_0_does_not_reach_what_the_device_has_left() {
    for identity in [false, true] {
        let rig = Rig::new();
        let (device, own, beside) = (device(&rig), rig.domain(Stage::S1), rig.domain(Stage::S1));
        device.attach(&own).unwrap();
        device.attach_pasid(1, &beside).unwrap();
        let page = rig.page();
        own.map(Iova(0x1000), page.addr(), PAGE, RW).unwrap();
        rig.device(SID).write_u64(Iova(0x1000), 1).unwrap();
        if identity {
            device.attach_identity().unwrap();
        } else {
            device.detach().unwrap();
        }
        assert!(rig.device(SID).with_ssid(0).write_u64(Iova(0x1000), 2).is_err());
        own.unmap(Iova(0x1000), PAGE).unwrap();
        rig.model.free_data(page);
        assert!(rig.device(SID).with_ssid(0).write_u64(Iova(0x1000), 2).is_err());
        rig.model.report().assert_clean();
    }
}

#[test]
fn all_streams_of_a_device_change_over_with_its_cd() {
    let rig = Rig::new();
    let device = rig.iommu.add_device(&rig.smmu, DeviceConfig::stream(SID).and_stream(OTHER)).unwrap();
    let (first, second, page) = (rig.domain(Stage::S1), rig.domain(Stage::S1), rig.page());
    device.attach(&first).unwrap();
    first.map(Iova(0x1000), page.addr(), PAGE, RW).unwrap();
    for sid in [SID, OTHER] {
        rig.device(sid).write_u64(Iova(0x1000), 1).unwrap();
    }
    device.attach(&second).unwrap();
    first.unmap(Iova(0x1000), PAGE).unwrap();
    rig.model.free_data(page);
    for sid in [SID, OTHER] {
        assert!(rig.device(sid).write_u64(Iova(0x1000), 2).is_err());
    }
    let page = rig.page();
    second.map(Iova(0x1000), page.addr(), PAGE, RW).unwrap();
    for sid in [SID, OTHER] {
        rig.device(sid).write_u64(Iova(0x1000), 3).unwrap();
    }
    rig.model.report().assert_clean();
}

#[test]
fn tables_of_another_iommu_are_refused() {
    let (rig, other) = (Rig::new(), Rig::new());
    let sva = Process::new(&other).sva;
    assert_eq!(device(&rig).attach_pasid(1, &sva), Err(AttachError::OtherIommu));
    assert_eq!(device(&rig).attach_pasid(1, &other.domain(Stage::S1)), Err(AttachError::OtherIommu));
}

//! Several SMMUs: one domain over all of them, and an SMMU that goes.

mod common;

use common::*;
use smmuv3::arch::{AddrSize, Stage};
use smmuv3::platform::Iova;
use smmuv3::{AttachError, DeviceConfig, Iommu, Kind, RemoveSmmuError, SmmuHandle, UnmapError, VSmmuError};
use smmuv3_model::{
    AtsAnswers, AtsBehaviour, DeviceThread, Model, ModelConfig, ModelPlatform, ModelSmmuConfig, Targets,
};
use std::sync::atomic::{AtomicBool, Ordering};

struct Fleet {
    model: Model,
    iommu: Iommu<ModelPlatform>,
    smmus: Vec<SmmuHandle<ModelPlatform>>,
}

fn fleet(configs: Vec<ModelSmmuConfig>) -> Fleet {
    let model = Model::new(ModelConfig { smmus: configs, ..ModelConfig::default() });
    let iommu = Iommu::new(model.platform()).unwrap();
    let smmus = (0..model.smmus()).map(|n| iommu.add_smmu(model.mmio(n), quick()).unwrap()).collect();
    Fleet { model, iommu, smmus }
}

fn owed(domain: &Domain) -> Vec<(u8, Kind, u32, u32)> {
    let mut all = Vec::new();
    domain.owed(|owed| all.push((owed.key.smmu(), owed.key.kind(), owed.key.id(), owed.users)));
    all
}

#[test]
fn one_domain_spans_many_smmus_with_a_tag_on_each_and_one_wait_for_all() {
    for stage in [Stage::S1, Stage::S2] {
        let fleet = fleet(vec![ModelSmmuConfig::default(); 4]);
        let domain = fleet.iommu.paging_domain(stage, Default::default()).unwrap();
        let other = fleet.iommu.paging_domain(stage, Default::default()).unwrap();
        let devices: Vec<_> =
            fleet.smmus.iter().map(|smmu| fleet.iommu.add_device(smmu, DeviceConfig::stream(SID)).unwrap()).collect();
        // On SMMU 2 the first tag is taken by somebody else.
        devices[2].attach(&other).unwrap();
        let second = fleet.iommu.add_device(&fleet.smmus[2], DeviceConfig::stream(OTHER)).unwrap();
        second.attach(&domain).unwrap();
        for n in [3, 0, 1] {
            devices[n].attach(&domain).unwrap();
        }
        let kind = if stage == Stage::S1 { Kind::S1Asid } else { Kind::S2Vmid };
        assert_eq!(owed(&domain), [(0, kind, 1, 1), (1, kind, 1, 1), (2, kind, 2, 1), (3, kind, 1, 1)]);
        let page = fleet.model.alloc_data(1).unwrap();
        domain.map(Iova(0x1000), page.addr(), PAGE, RW).unwrap();
        let hardware = [(0, SID), (1, SID), (2, OTHER), (3, SID)].map(|(smmu, sid)| fleet.model.device(smmu, sid));
        hardware.iter().for_each(|device| device.write_u64(Iova(0x1000), 1).unwrap());
        (0..4).for_each(|n| drop(fleet.model.take_commands(n)));
        assert_eq!(domain.unmap(Iova(0x1000), PAGE).unwrap().wait_rounds, 1);
        for smmu in 0..4 {
            let names: Vec<_> = fleet.model.take_commands(smmu).iter().map(|command| command.mnemonic()).collect();
            let tlbi = if stage == Stage::S1 { "TLBI_NH_VA" } else { "TLBI_S2_IPA" };
            assert_eq!(names, [tlbi, "SYNC"], "SMMU {smmu}: each command once");
        }
        fleet.model.free_data(page);
        hardware.iter().for_each(|device| assert!(device.write_u64(Iova(0x1000), 2).is_err()));
        // What is detached is no longer owed, on that SMMU alone.
        devices[1].detach().unwrap();
        assert_eq!(owed(&domain), [(0, kind, 1, 1), (2, kind, 2, 1), (3, kind, 1, 1)]);
        fleet.model.report().assert_clean();
    }
}

#[test]
fn smmus_of_one_domain_may_differ_where_that_does_not_matter() {
    let base = ModelSmmuConfig::default;
    let fleet = fleet(vec![
        base(),
        ModelSmmuConfig { range_inv: false, asid16: false, ..base() },
        ModelSmmuConfig { oas: AddrSize::from_code(2), ..base() },
        ModelSmmuConfig { stage1: false, ..base() },
    ]);
    let domain = fleet.iommu.paging_domain(Stage::S1, Default::default()).unwrap();
    let devices: Vec<_> =
        fleet.smmus.iter().map(|smmu| fleet.iommu.add_device(smmu, DeviceConfig::stream(SID)).unwrap()).collect();
    devices[0].attach(&domain).unwrap();
    devices[1].attach(&domain).unwrap();
    let refused = |n: usize| devices[n].attach(&domain).unwrap_err().to_string();
    assert_eq!(
        refused(2),
        "SMMU 2 can't serve the domain: output address bits (IDR5.OAS): the domain needs 44, the SMMU has 40"
    );
    assert_eq!(refused(3), "SMMU 3 can't serve the domain: stage 1 (IDR0.S1P): the domain needs 1, the SMMU has 0");
    let pages = fleet.model.alloc_data(100).unwrap();
    domain.map(Iova(0x1000), pages.addr(), 100 * PAGE, RW).unwrap();
    let hardware = [0, 1].map(|smmu| fleet.model.device(smmu, SID));
    for device in &hardware {
        (0..100).for_each(|n| device.write_u64(Iova(0x1000 + n * PAGE), n).unwrap());
    }
    domain.unmap(Iova(0x1000), 100 * PAGE).unwrap();
    fleet.model.free_data(pages);
    for device in &hardware {
        (0..100).for_each(|n| assert!(device.write_u64(Iova(0x1000 + n * PAGE), n).is_err()));
    }
    fleet.model.report().assert_clean();
}

#[test]
fn a_dead_smmu_is_named_and_the_others_are_invalidated_all_the_same() {
    let fleet = fleet(vec![ModelSmmuConfig::default(); 3]);
    let domain = fleet.iommu.paging_domain(Stage::S1, Default::default()).unwrap();
    let devices: Vec<_> =
        fleet.smmus.iter().map(|smmu| fleet.iommu.add_device(smmu, DeviceConfig::stream(SID)).unwrap()).collect();
    devices.iter().for_each(|device| device.attach(&domain).unwrap());
    let page = fleet.model.alloc_data(1).unwrap();
    domain.map(Iova(0x1000), page.addr(), PAGE, RW).unwrap();
    (0..3).for_each(|n| fleet.model.device(n, SID).write_u64(Iova(0x1000), 1).unwrap());
    fleet.model.set_dead(1, true);
    let error = domain.unmap(Iova(0x1000), PAGE).unwrap_err();
    assert!(error.to_string().starts_with("SMMU 1: invalidation failed"), "{error}");
    let reached: Vec<_> = (0..3).map(|n| fleet.model.device(n, SID).write_u64(Iova(0x1000), 2).is_ok()).collect();
    assert_eq!(reached, [false, true, false]);
    fleet.model.set_dead(1, false);
}

#[test]
fn a_device_that_was_cut_off_hides_no_smmu_that_is_dead() {
    for dead in [0, 1] {
        let fleet = fleet(vec![ModelSmmuConfig::default(); 2]);
        let domain = fleet.iommu.paging_domain(Stage::S1, Default::default()).unwrap();
        let devices: Vec<_> = fleet
            .smmus
            .iter()
            .map(|smmu| fleet.iommu.add_device(smmu, DeviceConfig::stream(SID).ats()).unwrap())
            .collect();
        devices.iter().for_each(|device| device.attach(&domain).unwrap());
        let page = fleet.model.alloc_data(1).unwrap();
        domain.map(Iova(0x1000), page.addr(), PAGE, RW).unwrap();
        let silent = AtsBehaviour { answers: AtsAnswers::Never, timeouts: 1, ..Default::default() };
        fleet.model.set_ats(1 - dead, SID, silent);
        fleet.model.set_dead(dead, true);
        let error = domain.unmap(Iova(0x1000), PAGE).unwrap_err();
        let UnmapError::StillReachable { source, .. } = error else { panic!("{error}") };
        assert_eq!((source.smmu, source.sid), (fleet.smmus[dead].id(), None));
        fleet.model.set_dead(dead, false);
    }
}

#[test]
fn an_smmu_is_removed_when_no_device_is_behind_it_and_is_not_touched_afterwards() {
    let fleet = fleet(vec![ModelSmmuConfig::default(); 2]);
    let (domain, smmu) = (fleet.iommu.paging_domain(Stage::S1, Default::default()).unwrap(), &fleet.smmus[1]);
    let device = fleet.iommu.add_device(smmu, DeviceConfig::stream(SID)).unwrap();
    let kept = fleet.iommu.add_device(&fleet.smmus[0], DeviceConfig::stream(SID)).unwrap();
    device.attach(&domain).unwrap();
    kept.attach(&domain).unwrap();
    let in_use = RemoveSmmuError::InUse { smmu: smmu.id(), users: 1 };
    assert_eq!(fleet.iommu.remove_smmu(smmu), Err(in_use));
    // Threads that invalidate all the while.
    let stop = AtomicBool::new(false);
    let targets = Targets::new();
    targets.add(Iova(0));
    let dma = DeviceThread::start(fleet.model.device(0, SID), targets, 1);
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let (domain, fleet, stop) = (&domain, &fleet, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let page = fleet.model.alloc_data(1).unwrap();
                    domain.map(Iova(thread * PAGE), page.addr(), PAGE, RW).unwrap();
                    domain.unmap(Iova(thread * PAGE), PAGE).unwrap();
                    fleet.model.free_data(page);
                }
            });
        }
        for _ in 0..50 {
            device.detach().unwrap();
            device.attach(&domain).unwrap();
        }
        drop(device);
        fleet.iommu.remove_smmu(smmu).unwrap();
        let before = fleet.model.report().smmus[1].clone();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let _ = smmu.take_events(|event| panic!("{event}"));
        assert!(smmu.take_global_errors().is_empty());
        let after = fleet.model.report().smmus[1].clone();
        assert_eq!((after.commands, after.syncs), (before.commands, before.syncs));
        stop.store(true, Ordering::Relaxed);
    });
    dma.stop();
    assert_eq!(fleet.iommu.remove_smmu(smmu), Err(RemoveSmmuError::NotThere(smmu.id())));
    let parent = fleet.iommu.paging_domain(Stage::S2, Default::default()).unwrap();
    assert_eq!(fleet.iommu.vsmmu(smmu, &parent).err(), Some(VSmmuError::NotThere(smmu.id())));
    // A vSMMU is a user as well: its guest's commands go to the SMMU.
    let vsmmu = fleet.iommu.vsmmu(&fleet.smmus[0], &parent).unwrap();
    assert_eq!(
        fleet.iommu.remove_smmu(&fleet.smmus[0]),
        Err(RemoveSmmuError::InUse { smmu: fleet.smmus[0].id(), users: 2 })
    );
    drop(vsmmu);
    assert!(fleet.iommu.add_device(smmu, DeviceConfig::stream(SID)).is_err());
    assert!(fleet.model.device(1, SID).write_u64(Iova(0), 1).is_err(), "what it gets now is aborted");
    // Its number goes to the next, here the same hardware again.
    let again = fleet.iommu.add_smmu(fleet.model.mmio(1), quick()).unwrap();
    assert_eq!(again.id(), smmu.id());
    let device = fleet.iommu.add_device(&again, DeviceConfig::stream(SID)).unwrap();
    device.attach(&domain).unwrap();
    assert_eq!(owed(&domain).len(), 2);
    fleet.model.report().assert_clean();
}

#[test]
fn domains_and_vsmmus_do_not_leave_their_iommu_or_smmu() {
    let (a, b) = (fleet(vec![ModelSmmuConfig::default(); 2]), fleet(vec![ModelSmmuConfig::default()]));
    let parent = a.iommu.paging_domain(Stage::S2, Default::default()).unwrap();
    assert!(b.iommu.vsmmu(&b.smmus[0], &parent).is_err());
    let vsmmu = a.iommu.vsmmu(&a.smmus[0], &parent).unwrap();
    let device = a.iommu.add_device(&a.smmus[1], DeviceConfig::stream(SID)).unwrap();
    let nested = vsmmu.nested_domain(&smmuv3::arch::Ste::Bypass.encode().into_guest()).unwrap();
    let expected = AttachError::OtherSmmu { device: a.smmus[1].id(), vsmmu: a.smmus[0].id() };
    assert_eq!(device.attach_nested(&nested), Err(expected));
    assert!(vsmmu.map_stream(1, &device).is_err());
}

/// What a guest would write: without the host's attributes.
trait IntoGuest {
    fn into_guest(self) -> smmuv3::arch::RawSte;
}

impl IntoGuest for smmuv3::arch::RawSte {
    fn into_guest(mut self) -> Self {
        self.0[1] &= !(0b11 << 44);
        self
    }
}

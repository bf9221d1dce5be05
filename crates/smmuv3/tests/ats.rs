//! ATS: what devices remember of translations is forgotten in time, and nobody waits for a device that will not answer.

mod common;

use common::*;
use smmuv3::arch::{Command, Granule, Stage};
use smmuv3::platform::{Iova, PhysAddr};
use smmuv3::{Cover, Device, DeviceConfig, Geometry, Kind, UnmapError};
use smmuv3_model::{
    AtsAnswers, AtsBehaviour, DeviceThread, ModelConfig, ModelPlatform, ModelSmmuConfig, Sabotage, Targets, Traffic,
};
use std::sync::atomic::{AtomicBool, Ordering};

const IOVA: Iova = Iova(0x10_0000);

fn add_ats(rig: &Rig, sid: u32) -> Device<ModelPlatform> {
    rig.iommu.add_device(&rig.smmu, DeviceConfig::stream(sid).pasid_bits(8).ats()).unwrap()
}

fn owed(domain: &Domain) -> Vec<(Kind, u32, u32, u32)> {
    let mut all = Vec::new();
    domain.owed(|owed| all.push((owed.key.kind(), owed.key.id(), owed.key.ssid(), owed.users)));
    all
}

fn names(rig: &Rig) -> Vec<&'static str> {
    rig.model.take_commands(0).iter().map(|command| command.mnemonic()).collect()
}

#[test]
fn after_unmap_the_atc_has_forgotten_the_page() {
    for stage in [Stage::S1, Stage::S2] {
        let rig = Rig::new();
        let (device, domain) = (add_ats(&rig, SID), rig.domain(stage));
        assert!(!device.ats());
        device.attach(&domain).unwrap();
        assert!(device.ats() && rig.model.ats_enabled(0, SID));
        let kind = domain_kind(stage);
        assert_eq!(owed(&domain), [(kind, 1, 0, 1), (Kind::Ats, SID, 0, 1)]);
        let page = rig.page();
        domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
        rig.device(SID).ats_write_u64(IOVA, 1).unwrap();
        assert_eq!(rig.model.read_u64(page.addr()), Some(1));
        names(&rig);
        assert_eq!(domain.unmap(IOVA, PAGE).unwrap().wait_rounds, 1);
        let tlbi = if stage == Stage::S1 { "TLBI_NH_VA" } else { "TLBI_S2_IPA" };
        assert_eq!(names(&rig), [tlbi, "SYNC", "ATC_INV", "SYNC"]);
        rig.model.free_data(page);
        assert!(rig.device(SID).ats_write_u64(IOVA, 2).is_err());
        device.detach().unwrap();
        assert!(!device.ats() && !rig.model.ats_enabled(0, SID));
        assert_eq!(owed(&domain), []);
        rig.model.report().assert_clean();
    }
}

fn domain_kind(stage: Stage) -> Kind {
    if stage == Stage::S1 { Kind::S1Asid } else { Kind::S2Vmid }
}

#[test]
fn without_the_atc_invalidation_the_model_finds_stale_dma() {
    let rig = Rig::new();
    let (device, domain) = (add_ats(&rig, SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    rig.model.sabotage(0, Sabotage::IgnoreAtcInv);
    let page = rig.page();
    domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
    rig.device(SID).ats_write_u64(IOVA, 1).unwrap();
    domain.unmap(IOVA, PAGE).unwrap();
    rig.model.free_data(page);
    let _ = rig.device(SID).ats_write_u64(IOVA, 2);
    assert_eq!(rig.model.report().stale_dma, 1);
}

#[test]
fn the_device_s_entry_stands_as_often_as_it_is_attached() {
    let rig = Rig::new();
    let (first, second, domain) = (add_ats(&rig, SID), add_ats(&rig, OTHER), rig.domain(Stage::S1));
    first.attach(&domain).unwrap();
    second.attach(&domain).unwrap();
    let (tag, one, two) = ((Kind::S1Asid, 1, 0, 2), (Kind::Ats, SID, 0, 1), (Kind::Ats, OTHER, 0, 1));
    assert_eq!(owed(&domain), [tag, one, two]);
    first.attach(&domain).unwrap();
    assert_eq!(owed(&domain), [tag, one, two]);
    first.detach().unwrap();
    assert_eq!(owed(&domain), [(Kind::S1Asid, 1, 0, 1), two]);
    second.detach().unwrap();
    assert_eq!(owed(&domain), []);
    rig.model.report().assert_clean();
}

#[test]
fn ats_stays_on_across_domains_and_what_was_remembered_of_the_old_one_is_gone() {
    let rig = Rig::new();
    let device = add_ats(&rig, SID);
    let domains = [rig.domain(Stage::S1), rig.domain(Stage::S2), rig.domain(Stage::S1)];
    let mut page = None;
    for (round, domain) in domains.iter().cycle().take(9).enumerate() {
        device.attach(domain).unwrap();
        assert!(device.ats());
        // The last domain's page is freed without an invalidation: nobody is attached to that domain any more.
        if let Some((old, previous)) = page.take() {
            let previous: &Domain = previous;
            assert_eq!(previous.unmap(IOVA, PAGE).unwrap().wait_rounds, 0);
            rig.model.free_data(old);
        }
        assert!(rig.device(SID).ats_write_u64(IOVA, 0).is_err(), "round {round}");
        let new = rig.page();
        domain.map(IOVA, new.addr(), PAGE, RW).unwrap();
        rig.device(SID).ats_write_u64(IOVA, round as u64 + 1).unwrap();
        assert_eq!(rig.model.read_u64(new.addr()), Some(round as u64 + 1));
        page = Some((new, domain));
    }
    rig.model.report().assert_clean();
}

#[test]
fn a_bypassing_or_blocked_device_has_no_ats() {
    let rig = Rig::new();
    let (device, domain) = (add_ats(&rig, SID), rig.domain(Stage::S1));
    let page = rig.page();
    for _ in 0..3 {
        device.attach(&domain).unwrap();
        domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
        rig.device(SID).ats_write_u64(IOVA, 1).unwrap();
        device.attach_identity().unwrap();
        assert!(!device.ats() && !rig.model.ats_enabled(0, SID));
        rig.device(SID).write_u64(Iova(page.addr().0), 2).unwrap();
        device.detach().unwrap();
        assert!(!rig.model.ats_enabled(0, SID));
        domain.unmap(IOVA, PAGE).unwrap();
    }
    // Only with PASIDs in use may the rest bypass while ATS is on.
    device.attach_identity().unwrap();
    device.attach_pasid(5, &domain).unwrap();
    assert!(device.ats());
    domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
    rig.device(SID).with_ssid(5).ats_write_u64(IOVA, 3).unwrap();
    rig.device(SID).ats_write_u64(Iova(page.addr().0), 4).unwrap();
    assert_eq!(owed(&domain)[1..], [(Kind::Ats, SID, 5, 1)]);
    device.detach_pasid(5).unwrap();
    assert!(!device.ats());
    domain.unmap(IOVA, PAGE).unwrap();
    rig.model.free_data(page);
    assert!(rig.events().is_empty());
    rig.model.report().assert_clean();
}

#[test]
fn what_an_atc_remembers_from_before_ats_was_turned_off_is_gone_when_it_is_on_again() {
    let rig = Rig::new();
    let (device, domain) = (add_ats(&rig, SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    let page = rig.page();
    domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
    rig.device(SID).ats_write_u64(IOVA, 1).unwrap();
    device.detach().unwrap();
    domain.unmap(IOVA, PAGE).unwrap();
    rig.model.free_data(page);
    device.attach(&domain).unwrap();
    assert!(rig.device(SID).ats_write_u64(IOVA, 2).is_err());
    rig.model.report().assert_clean();
}

#[test]
fn what_an_earlier_driver_left_in_an_atc_is_gone_before_the_device_may_use_it() {
    let rig = Rig::new();
    let (device, domain) = (add_ats(&rig, SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    let page = rig.page();
    domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
    rig.device(SID).ats_write_u64(IOVA, 1).unwrap();
    // Another kernel takes the machine over, without a word of the first; ATS is still on in the function.
    std::mem::forget((device, domain));
    rig.model.free_data(page);
    let second = smmuv3::Iommu::new(rig.model.platform()).unwrap();
    let smmu = second.add_smmu(rig.model.mmio(0), quick()).unwrap();
    let device = second.add_device(&smmu, DeviceConfig::stream(SID).ats()).unwrap();
    let domain = second.paging_domain(Stage::S1, Default::default()).unwrap();
    device.attach(&domain).unwrap();
    assert!(device.ats());
    assert!(rig.device(SID).ats_write_u64(IOVA, 2).is_err());
    // That translation went off under ATS was the first kernel's doing.
    assert_eq!(rig.model.report().stale_dma, 0);
}

#[test]
fn a_function_without_ats_and_an_smmu_without_it_are_served_without() {
    let rig = Rig::new();
    rig.model.set_ats(0, SID, AtsBehaviour { has_ats: false, ..AtsBehaviour::default() });
    let (device, domain) = (add_ats(&rig, SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    assert_eq!(owed(&domain), [(Kind::S1Asid, 1, 0, 1)]);
    assert!(use_and_unmap(&rig, &domain, SID, IOVA));
    // The function learns it: attaching again to the same domain turns it on.
    rig.model.set_ats(0, SID, AtsBehaviour::default());
    device.attach(&domain).unwrap();
    assert!(device.ats());
    assert_eq!(owed(&domain), [(Kind::S1Asid, 1, 0, 1), (Kind::Ats, SID, 0, 1)]);
    rig.device(SID).ats_write_u64(IOVA, 1).unwrap_err();
    drop(device);
    rig.model.report().assert_clean();

    let rig = Rig::with(ModelConfig::with_smmu(ModelSmmuConfig { ats: false, ..Default::default() }));
    let (device, domain) = (add_ats(&rig, SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    assert!(!device.ats());
    assert!(use_and_unmap(&rig, &domain, SID, IOVA));
    rig.model.report().assert_clean();
}

#[test]
fn pasids_have_atc_entries_of_their_own() {
    let rig = Rig::new();
    let device = add_ats(&rig, SID);
    let (own, first, second) = (rig.domain(Stage::S1), rig.domain(Stage::S1), rig.domain(Stage::S1));
    device.attach(&own).unwrap();
    device.attach_pasid(1, &first).unwrap();
    device.attach_pasid(2, &second).unwrap();
    assert_eq!(owed(&first)[1..], [(Kind::Ats, SID, 1, 1)]);
    let pages = [&own, &first, &second].map(|domain| {
        let page = rig.page();
        domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
        page
    });
    let hw = rig.device(SID);
    let all = [hw.clone(), hw.with_ssid(1), hw.with_ssid(2)];
    for (value, device) in (0..).zip(&all) {
        device.ats_write_u64(IOVA, value).unwrap();
    }
    let [own_page, first_page, second_page] = pages;
    first.unmap(IOVA, PAGE).unwrap();
    rig.model.free_data(first_page);
    assert!(all[1].ats_write_u64(IOVA, 9).is_err());
    assert!(all[0].ats_write_u64(IOVA, 9).is_ok() && all[2].ats_write_u64(IOVA, 9).is_ok());
    // Detaching the PASID is enough.
    device.detach_pasid(2).unwrap();
    second.unmap(IOVA, PAGE).unwrap();
    rig.model.free_data(second_page);
    assert!(all[2].ats_write_u64(IOVA, 9).is_err());
    own.unmap(IOVA, PAGE).unwrap();
    rig.model.free_data(own_page);
    assert!(all[0].ats_write_u64(IOVA, 9).is_err());
    rig.model.report().assert_clean();
}

#[test]
fn a_device_that_does_not_answer_is_cut_off_before_unmap_returns() {
    for timeouts in [1, u32::MAX] {
        let rig = Rig::new();
        let (device, other, domain) = (add_ats(&rig, SID), add_ats(&rig, OTHER), rig.domain(Stage::S1));
        device.attach(&domain).unwrap();
        other.attach(&domain).unwrap();
        let page = rig.page();
        domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
        for sid in [SID, OTHER] {
            rig.device(sid).ats_write_u64(IOVA, 1).unwrap();
        }
        rig.model.set_ats(0, SID, AtsBehaviour { answers: AtsAnswers::Never, timeouts, ..Default::default() });
        let error = domain.unmap(IOVA, PAGE).unwrap_err();
        if timeouts == 1 {
            let UnmapError::CutOff { bytes, source } = error else { panic!("{error}") };
            assert_eq!((bytes, source.sid), (PAGE, Some(SID)));
            assert!(error.to_string().starts_with("SMMU 0, StreamID 0x18 (cut off): invalidation failed"), "{error}");
            rig.model.free_data(page);
            // Neither the one that was cut off nor the other reaches the page.
            assert!(rig.device(SID).ats_write_u64(IOVA, 2).is_err());
            assert!(rig.device(SID).write_u64(IOVA, 2).is_err());
            assert!(rig.device(OTHER).ats_write_u64(IOVA, 2).is_err());
            // It comes to its senses, and is attached again.
            rig.model.set_ats(0, SID, AtsBehaviour::default());
            device.attach(&domain).unwrap();
            let page = rig.page();
            domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
            rig.device(SID).ats_write_u64(IOVA, 3).unwrap();
            domain.unmap(IOVA, PAGE).unwrap();
            rig.model.free_data(page);
            assert!(rig.device(SID).ats_write_u64(IOVA, 4).is_err());
        } else {
            // No CMD_SYNC ever completes again: in bounded time, the caller is told.
            assert!(matches!(error, UnmapError::StillReachable { .. } | UnmapError::CutOff { .. }), "{error}");
        }
        assert_eq!(rig.model.report().stale_dma, 0);
    }
}

/// detaching thread                        unmapping thread
/// unref the ATC entry                     load the array (an older version)
/// grace period                            send ATC_INV, wait
/// turn ATS off in the device
#[test]
fn no_atc_invalidation_reaches_a_function_whose_ats_is_off() {
    let rig = Rig::with(ModelConfig { seed: 3, ..ModelConfig::default() });
    let domain = rig.domain(Stage::S1);
    let (device, stays) = (add_ats(&rig, SID), add_ats(&rig, OTHER));
    stays.attach(&domain).unwrap();
    let stop = AtomicBool::new(false);
    let targets = Targets::new();
    (0..8).for_each(|n| targets.add(Iova(n * PAGE)));
    let threads =
        [SID, OTHER].map(|sid| DeviceThread::start_with(rig.device(sid), targets.clone(), sid.into(), Traffic::Mixed));
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let (rig, domain, stop) = (&rig, &domain, &stop);
            scope.spawn(move || {
                let mut round = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let iova = Iova((round % 4 * 2 + thread) * PAGE);
                    let page = rig.page();
                    domain.map(iova, page.addr(), PAGE, RW).unwrap();
                    std::thread::yield_now();
                    domain.unmap(iova, PAGE).unwrap();
                    rig.model.free_data(page);
                    rig.events();
                }
            });
        }
        for round in 0..1_500 {
            device.attach(&domain).unwrap();
            match round % 3 {
                0 => device.attach_identity().unwrap(),
                _ => device.detach().unwrap(),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    for thread in threads {
        thread.stop();
    }
    let report = rig.model.report();
    assert_eq!(report.atc_to_disabled, 0);
    report.assert_clean();
}

#[test]
fn a_system_s_smallest_translation_unit_is_respected() {
    // 64 KiB is the smallest granule, and so the unit of ATS.
    let config = ModelSmmuConfig { granules: [false, false, true], ..Default::default() };
    let rig = Rig::with(ModelConfig::with_smmu(config));
    let device = add_ats(&rig, SID);
    let geometry = Geometry { granule: Granule::K64, input_bits: 42, ..Geometry::default() };
    let domain = rig.iommu.paging_domain(Stage::S1, geometry).unwrap();
    device.attach(&domain).unwrap();
    let pages = rig.model.alloc_data_aligned(16, 0x1_0000).unwrap();
    domain.map(Iova(0x1_0000), pages.addr(), 16 * PAGE, RW).unwrap();
    rig.device(SID).ats_write_u64(Iova(0x1_3000), 1).unwrap();
    domain.unmap(Iova(0x1_0000), 16 * PAGE).unwrap();
    rig.model.free_data(pages);
    assert!(rig.device(SID).ats_write_u64(Iova(0x1_3000), 2).is_err());
    rig.model.report().assert_clean();
}

#[test]
fn a_function_that_is_reset_while_it_is_invalidated_holds_nobody_up() {
    let rig = Rig::new();
    let (device, other, domain) = (add_ats(&rig, SID), add_ats(&rig, OTHER), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    other.attach(&domain).unwrap();
    let page = rig.page();
    domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
    rig.device(OTHER).ats_write_u64(IOVA, 1).unwrap();
    // Its ATS is off now, and it answers nothing; the driver was not told.
    rig.model.reset_function(0, SID);
    let error = domain.unmap(IOVA, PAGE).unwrap_err();
    assert!(matches!(error, UnmapError::CutOff { bytes: PAGE, source } if source.sid == Some(SID)), "{error}");
    rig.model.free_data(page);
    assert!(rig.device(OTHER).ats_write_u64(IOVA, 2).is_err());
    // Detached and attached again, it works.
    device.detach().unwrap();
    device.attach(&domain).unwrap();
    let page = rig.page();
    domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
    rig.device(SID).ats_write_u64(IOVA, 3).unwrap();
    domain.unmap(IOVA, PAGE).unwrap();
    rig.model.free_data(page);
    assert!(rig.device(SID).ats_write_u64(IOVA, 4).is_err());
    assert_eq!(rig.model.report().stale_dma, 0);
}

/// unmapping thread                                  attaching thread
/// load the array without the new device's ATC
/// TLBI, wait for a slow SMMU                        publish the array
///                                                   wait until everybody is through with the old one
///                                                   write the STE: the device may fill its ATC
#[test]
fn a_device_with_ats_joins_a_domain_only_when_nobody_works_with_the_old_array() {
    join_while_unmapping(None);
    join_while_unmapping(Some(5));
}

fn join_while_unmapping(pasid: Option<u32>) {
    let model = smmuv3_model::Model::new(ModelConfig { smmus: vec![Default::default(); 2], ..Default::default() });
    let iommu = smmuv3::Iommu::new(model.platform()).unwrap();
    let options = smmuv3::SmmuOptions { timeout_ns: 20_000_000_000, ..Default::default() };
    let smmus = [0, 1].map(|n| iommu.add_smmu(model.mmio(n), options).unwrap());
    let domain = iommu.paging_domain(Stage::S1, Default::default()).unwrap();
    let add = |smmu: usize, sid| iommu.add_device(&smmus[smmu], DeviceConfig::stream(sid).pasid_bits(4).ats()).unwrap();
    let (slow, other, joining) = (add(0, OTHER), add(1, OTHER), add(1, SID));
    slow.attach(&domain).unwrap();
    other.attach(&domain).unwrap();
    let page = model.alloc_data(1).unwrap();
    domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
    model.device(1, OTHER).write_u64(IOVA, 1).unwrap();
    model.take_commands(1);
    model.set_dead(0, true);
    std::thread::scope(|scope| {
        let unmapper = scope.spawn(|| domain.unmap(IOVA, PAGE).unwrap());
        while !model.report().smmus[1].commands.contains_key("TLBI_NH_VA") {
            std::thread::yield_now();
        }
        let attacher = scope.spawn(|| match pasid {
            Some(pasid) => joining.attach_pasid(pasid, &domain).unwrap(),
            None => joining.attach(&domain).unwrap(),
        });
        // It has come as far as it may: the array is published.
        loop {
            let mut published = false;
            domain.owed(|owed| published |= owed.key.kind() == Kind::Ats && owed.key.id() == SID);
            if published {
                break;
            }
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
        let early = model.take_commands(1);
        // First let go of those who wait: a failure is to be told at once.
        model.set_dead(0, false);
        unmapper.join().unwrap();
        attacher.join().unwrap();
        assert!(!early.iter().any(|command| command.mnemonic().starts_with("CFGI")), "{early:?}");
    });
    model.free_data(page);
    let hw = pasid.map_or(model.device(1, SID), |pasid| model.device(1, SID).with_ssid(pasid));
    assert!(hw.ats_write_u64(IOVA, 2).is_err());
    model.report().assert_clean();
}

/// Those that were attached while ATS was off have no entry for the ATC.
#[test]
fn ats_does_not_go_on_while_anybody_stays_attached_without_it() {
    for last in 0..3 {
        let rig = Rig::new();
        rig.model.set_ats(0, SID, AtsBehaviour { has_ats: false, ..AtsBehaviour::default() });
        let (device, first, second) = (add_ats(&rig, SID), rig.domain(Stage::S1), rig.domain(Stage::S1));
        match last {
            2 => device.attach(&first).unwrap(),
            _ => device.attach_pasid(1, &first).unwrap(),
        }
        // The function learns it.
        rig.model.set_ats(0, SID, AtsBehaviour::default());
        match last {
            0 => device.attach(&second).unwrap(),
            _ => device.attach_pasid(2, &second).unwrap(),
        }
        let hw = if last == 2 { rig.device(SID) } else { rig.device(SID).with_ssid(1) };
        let page = rig.page();
        first.map(IOVA, page.addr(), PAGE, RW).unwrap();
        hw.write_u64(IOVA, 1).unwrap();
        let _ = hw.ats_write_u64(IOVA, 1);
        first.unmap(IOVA, PAGE).unwrap();
        rig.model.free_data(page);
        assert!(hw.ats_write_u64(IOVA, 2).is_err());
        assert!(!device.ats() && !rig.model.ats_enabled(0, SID));
        rig.model.report().assert_clean();
        // Once all of them are gone, it may.
        device.detach().unwrap();
        (1..=2).for_each(|pasid| device.detach_pasid(pasid).unwrap());
        device.attach(&first).unwrap();
        assert!(device.ats());
    }
}

#[test]
fn what_is_remembered_without_a_pasid_is_gone_when_only_pasids_stay() {
    for identity in [false, true] {
        let rig = Rig::new();
        let (device, own, beside) = (add_ats(&rig, SID), rig.domain(Stage::S1), rig.domain(Stage::S1));
        device.attach(&own).unwrap();
        device.attach_pasid(1, &beside).unwrap();
        let page = rig.page();
        own.map(IOVA, page.addr(), PAGE, RW).unwrap();
        rig.device(SID).ats_write_u64(IOVA, 1).unwrap();
        if identity {
            device.attach_identity().unwrap();
        } else {
            device.detach().unwrap();
        }
        assert!(device.ats());
        assert_eq!(own.unmap(IOVA, PAGE).unwrap().wait_rounds, 0);
        rig.model.free_data(page);
        assert!(rig.device(SID).ats_write_u64(IOVA, 2).is_err());
        assert_eq!(rig.model.report().stale_dma, 0);
    }
}

#[test]
fn a_function_that_answers_no_atc_invalidation_is_served_without_ats() {
    let rig = Rig::new();
    rig.model.set_ats(0, SID, AtsBehaviour { answers: AtsAnswers::Never, ..AtsBehaviour::default() });
    let (device, domain) = (add_ats(&rig, SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    assert!(!device.ats() && !rig.model.ats_enabled(0, SID));
    assert!(use_and_unmap(&rig, &domain, SID, IOVA));
    rig.model.report().assert_clean();
}

/// (first page, pages): aligned or not, across boundaries, short and long.
const RANGES: [(u64, u64); 8] =
    [(0x100, 1), (0x1ff, 2), (0x101, 7), (0x123, 0x1f), (0x200, 0x40), (0x3ffff, 3), (0x7fe01, 0x2fd), (0x1, 0x555)];

#[test]
fn exact_covers_invalidate_no_page_too_many_and_short_ones_less_than_as_many_again() {
    for cover in [Cover::Few, Cover::Exact] {
        for stage in [Stage::S1, Stage::S2] {
            let rig = Rig::new();
            let device = add_ats(&rig, SID);
            let domain = rig.iommu.paging_domain(stage, Geometry { cover, ..Geometry::default() }).unwrap();
            device.attach(&domain).unwrap();
            let (mut asked, mut most) = (0, 0);
            for (first, pages) in RANGES {
                let before = rig.model.report().atc_pages;
                let iova = Iova(first * PAGE);
                domain.map(iova, PhysAddr(first * PAGE), pages * PAGE, RW).unwrap();
                rig.model.take_commands(0);
                domain.unmap(iova, pages * PAGE).unwrap();
                let done = rig.model.report().atc_pages - before;
                let enough = if cover == Cover::Exact { done == pages } else { (pages..2 * pages).contains(&done) };
                assert!(enough, "{cover:?} {first:#x}: {pages} pages asked for, {done} invalidated");
                // And the TLB: granules of all ranges, from one to the next.
                let tlbi = |command: &Command| match command {
                    Command::TlbiNhVa { addr, .. } | Command::TlbiS2Ipa { addr, .. } => {
                        Some(addr.range.map_or(1, |range| (u64::from(range.num) + 1) << range.scale))
                    }
                    _ => None,
                };
                let granules: u64 = rig.model.take_commands(0).iter().filter_map(tlbi).sum();
                assert!(granules == pages || cover == Cover::Few && granules - pages < pages.div_ceil(16));
                (asked, most) = (asked + pages, most + done);
            }
            assert!(if cover == Cover::Exact { most == asked } else { most > asked }, "there is a difference");
            device.detach().unwrap();
            rig.model.report().assert_clean();
        }
    }
}

//! Several unmaps, one invalidation; and unmaps whose invalidation waits.

mod common;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use common::*;
use smmuv3::arch::{Command, Stage};
use smmuv3::platform::Iova;
use smmuv3::{DeferLimits, DeviceConfig, UnmapError};
use smmuv3_model::{AtsAnswers, AtsBehaviour, DataPages};

const NEVER: u64 = u64::MAX;

fn iova(n: u64) -> Iova {
    Iova(0x10_0000 + n * 0x10_0000)
}

/// Maps a page at each of some places, and lets the device use it.
fn use_pages(rig: &Rig, domain: &Domain, count: u64) -> Vec<DataPages> {
    let map = |n| {
        let page = rig.page();
        domain.map(iova(n), page.addr(), PAGE, RW).unwrap();
        rig.device(SID).write_u64(iova(n), n).unwrap();
        page
    };
    (0..count).map(map).collect()
}

fn all_fault(rig: &Rig, count: u64) -> bool {
    (0..count).all(|n| rig.device(SID).write_u64(iova(n), 1).is_err())
}

fn some_pass(rig: &Rig, count: u64) -> bool {
    (0..count).any(|n| rig.device(SID).write_u64(iova(n), 1).is_ok())
}

#[test]
fn many_unmaps_are_invalidated_together_and_waited_for_once() {
    for count in [1, 5, 8, 20] {
        let rig = Rig::late();
        let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
        device.attach(&domain).unwrap();
        let pages = use_pages(&rig, &domain, count);
        rig.model.take_commands(0);
        let mut gather = domain.gather();
        for n in 0..count {
            assert_eq!(gather.unmap(iova(n), PAGE).unwrap(), PAGE);
        }
        assert!(rig.model.take_commands(0).is_empty(), "nothing is sent before the flush");
        assert!(some_pass(&rig, count), "and nothing is promised");
        let report = gather.flush().unwrap();
        assert_eq!((report.bytes, report.wait_rounds), (count * PAGE, 1));
        let commands = rig.model.take_commands(0);
        assert_eq!(commands.len() as u64, count.min(8) + 1, "{commands:?}");
        assert_eq!(commands.iter().filter(|command| matches!(command, Command::Sync(_))).count(), 1);
        pages.into_iter().for_each(|page| rig.model.free_data(page));
        assert!(all_fault(&rig, count));
        assert_eq!(gather.flush().unwrap(), Default::default(), "nothing is left");
        drop(gather);
        assert!(rig.model.take_commands(0).is_empty());
        rig.model.report().assert_clean();
    }
}

#[test]
fn a_batch_that_is_dropped_is_invalidated() {
    let rig = Rig::late();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    let pages = use_pages(&rig, &domain, 3);
    let mut gather = domain.gather();
    (0..3).for_each(|n| assert_eq!(gather.unmap(iova(n), PAGE).unwrap(), PAGE));
    drop(gather);
    pages.into_iter().for_each(|page| rig.model.free_data(page));
    assert!(all_fault(&rig, 3));
    rig.model.report().assert_clean();
}

#[test]
fn an_unmap_that_is_refused_leaves_the_batch_as_it_was() {
    let rig = Rig::new();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    let block = rig.model.alloc_data_aligned(512, 2 << 20).unwrap();
    domain.map(Iova(2 << 20), block.addr(), 2 << 20, RW).unwrap();
    let mut gather = domain.gather();
    assert!(matches!(gather.unmap(Iova(1), PAGE), Err(UnmapError::BadRange(_))));
    assert!(matches!(gather.unmap(Iova(2 << 20), PAGE), Err(UnmapError::PartOfBlock { .. })));
    assert_eq!(gather.flush().unwrap(), Default::default());
}

/// The walk caches of a late SMMU hold the tables until the CMD_SYNC: a table that is freed before is read by a later walk, which the model's oracle sees.
#[test]
fn tables_that_a_batch_took_out_are_freed_with_its_invalidation_and_not_before() {
    for deferred in [false, true] {
        let rig = Rig::late();
        let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
        device.attach(&domain).unwrap();
        let data = rig.model.alloc_data(4).unwrap();
        let at = |n: u64| Iova(n * 0x20_0000);
        let map = || {
            for n in 1..4 {
                domain.map(at(n), data.addr(), 4 * PAGE, RW).unwrap();
                rig.device(SID).write_u64(at(n), n).unwrap();
            }
        };
        map();
        let (full, limits) = (rig.model.driver_pages(), DeferLimits { count: 3, age_ns: NEVER });
        for _ in 0..4 {
            if deferred {
                let mut later = domain.deferred(limits, |()| ()).unwrap();
                (1..4).for_each(|n| assert_eq!(later.unmap(at(n), 0x20_0000, ()).unwrap(), 4 * PAGE));
                assert_eq!(rig.model.driver_pages(), full, "nothing is freed yet");
                later.flush().unwrap();
            } else {
                let mut gather = domain.gather();
                (1..4).for_each(|n| assert_eq!(gather.unmap(at(n), 0x20_0000).unwrap(), 4 * PAGE));
                assert_eq!(rig.model.driver_pages(), full, "nothing is freed yet");
                gather.flush().unwrap();
            }
            assert_eq!(rig.model.driver_pages(), full - 3);
            map();
        }
        rig.model.report().assert_clean();
    }
}

#[test]
fn owners_come_out_when_there_are_enough_of_them_and_only_after_the_invalidation() {
    let rig = Rig::late();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    let pages = use_pages(&rig, &domain, 7);
    let out = Cell::new(0);
    let free = |(n, page): (u64, DataPages)| {
        // From here on the page is poison: an access that still passes is stale.
        rig.model.free_data(page);
        assert!(rig.device(SID).write_u64(iova(n), 1).is_err());
        out.set(out.get() + 1);
    };
    let mut later = domain.deferred(DeferLimits { count: 3, age_ns: NEVER }, free).unwrap();
    for (n, page) in (0..).zip(pages) {
        rig.model.take_commands(0);
        assert_eq!(later.unmap(iova(n), PAGE, (n, page)).unwrap(), PAGE);
        assert_eq!(out.get(), n / 3 * 3, "three wait at most");
        assert_eq!(later.waiting() as u64, n % 3 + 1);
        assert_eq!(rig.model.take_commands(0).is_empty(), n == 0 || n % 3 != 0);
    }
    later.poll().unwrap();
    assert_eq!(out.get(), 6, "the last is not old yet");
    drop(later);
    assert_eq!(out.get(), 7);
    rig.model.report().assert_clean();
}

#[test]
fn what_is_old_enough_is_invalidated_by_the_next_call() {
    let rig = Rig::late();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    let mut pages = use_pages(&rig, &domain, 2).into_iter();
    let out = Cell::new(0);
    let free = |page: DataPages| {
        rig.model.free_data(page);
        out.set(out.get() + 1);
    };
    let mut later = domain.deferred(DeferLimits { count: 100, age_ns: 0 }, free).unwrap();
    assert_eq!(later.due_ns(), None);
    later.unmap(iova(0), PAGE, pages.next().unwrap()).unwrap();
    assert!(later.due_ns().is_some());
    assert_eq!(out.get(), 0, "that call has come too early");
    later.unmap(iova(1), PAGE, pages.next().unwrap()).unwrap();
    assert_eq!((out.get(), later.waiting()), (1, 1));
    later.poll().unwrap();
    assert_eq!((out.get(), later.waiting(), later.due_ns()), (2, 0, None));
    assert!(all_fault(&rig, 2));
    rig.model.report().assert_clean();
}

#[test]
fn owners_stay_while_the_smmu_does_not_answer_and_come_out_when_it_does() {
    let rig = Rig::late();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    let pages = use_pages(&rig, &domain, 2);
    let out = RefCell::new(Vec::new());
    let limits = DeferLimits { count: 2, age_ns: NEVER };
    let mut later = domain.deferred(limits, |page: DataPages| out.borrow_mut().push(page)).unwrap();
    for (n, page) in (0..).zip(pages) {
        later.unmap(iova(n), PAGE, page).unwrap();
    }
    rig.model.set_commands_per_look(0, Some(0));
    assert!(matches!(later.flush(), Err(UnmapError::StillReachable { bytes, .. }) if bytes == 2 * PAGE));
    let refused = later.unmap(iova(5), PAGE, rig.page()).unwrap_err();
    assert!(matches!(refused.cause, UnmapError::StillReachable { .. }), "there is no room");
    assert_eq!((out.borrow().len(), later.waiting()), (0, 2));
    rig.model.set_commands_per_look(0, None);
    assert_eq!(later.flush().unwrap().bytes, 2 * PAGE);
    out.take().into_iter().for_each(|page| rig.model.free_data(page));
    assert!(all_fault(&rig, 2));
    rig.model.free_data(refused.owner);
    rig.model.report().assert_clean();
}

#[test]
fn owners_whose_last_invalidation_failed_are_leaked() {
    let rig = Rig::late();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    let pages = use_pages(&rig, &domain, 1);
    let (owner, out) = (Rc::new(()), Cell::new(0));
    let mut later = domain.deferred(DeferLimits::default(), |_: Rc<()>| out.set(out.get() + 1)).unwrap();
    later.unmap(iova(0), PAGE, owner.clone()).unwrap();
    rig.model.set_commands_per_look(0, Some(0));
    drop(later);
    assert_eq!((Rc::strong_count(&owner), out.get()), (2, 0), "neither handed out nor dropped");
    assert!(some_pass(&rig, 1), "rightly so");
    rig.model.set_commands_per_look(0, None);
    domain.unmap(iova(0), PAGE).unwrap();
    pages.into_iter().for_each(|page| rig.model.free_data(page));
    rig.model.report().assert_clean();
}

#[test]
fn a_strict_unmap_makes_sure_of_what_another_deferred() {
    let rig = Rig::late();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    let pages = use_pages(&rig, &domain, 2);
    let mut later = domain.deferred(DeferLimits { count: 9, age_ns: NEVER }, |()| ()).unwrap();
    later.unmap(iova(0), PAGE, ()).unwrap();
    later.unmap(iova(1), 0x20_0000, ()).unwrap();
    let report = domain.unmap(iova(0), iova(5).0 - iova(0).0).unwrap();
    assert_eq!((report.bytes, report.wait_rounds), (0, 1));
    pages.into_iter().for_each(|page| rig.model.free_data(page));
    assert!(all_fault(&rig, 2));
    rig.model.report().assert_clean();
}

#[test]
fn owners_come_out_when_the_device_that_did_not_answer_was_cut_off() {
    let rig = Rig::new();
    let device = rig.iommu.add_device(&rig.smmu, DeviceConfig::stream(SID).ats()).unwrap();
    let domain = rig.domain(Stage::S1);
    device.attach(&domain).unwrap();
    let page = rig.page();
    domain.map(iova(0), page.addr(), PAGE, RW).unwrap();
    rig.device(SID).ats_write_u64(iova(0), 1).unwrap();
    let mut later = domain.deferred(DeferLimits::default(), |page| rig.model.free_data(page)).unwrap();
    later.unmap(iova(0), PAGE, page).unwrap();
    rig.model.set_ats(0, SID, AtsBehaviour { answers: AtsAnswers::Never, timeouts: 1, ..Default::default() });
    assert!(matches!(later.flush(), Err(UnmapError::CutOff { bytes: PAGE, .. })));
    assert_eq!(later.waiting(), 0);
    assert!(rig.device(SID).ats_write_u64(iova(0), 2).is_err());
    assert_eq!(rig.model.report().stale_dma, 0);
}

//! SMMUs with Enhanced Command queues: the promise holds whichever queue a command goes through, and no queue outlives its memory.

mod common;
#[path = "common/spy.rs"]
mod spy;

use common::*;
use smmuv3::arch::Stage;
use smmuv3::arch::regs::{CmdqError, EcmdqCons, EcmdqProd, Gerror, QUEUE_BASE_ADDR, offset};
use smmuv3::platform::{Iova, Mmio, PhysAddr};
use smmuv3::{DeviceConfig, InvalidateError, Iommu, QueueError, RemoveSmmuError, SmmuHandle, SmmuOptions, UnmapError};
use smmuv3_model::{
    AtsAnswers, AtsBehaviour, DeviceThread, Ecmdqs, Laziness, Model, ModelConfig, ModelSmmuConfig, Targets,
};
use spy::{Spy, SpyPlatform, interruptible};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

const IOVA: Iova = Iova(0x1000);
/// Where the model's control pages are.
const PAGES: usize = 0x4_0000;
const CONTROL_PAGE: usize = 0x1_0000;

/// Two pages of four queues.
fn config() -> ModelConfig {
    with(Laziness::all())
}

fn with(laziness: Laziness) -> ModelConfig {
    let ecmdqs = Some(Ecmdqs { log2_pages: 1, log2_queues: 2 });
    ModelConfig::with_smmu(ModelSmmuConfig { ecmdqs, laziness, ..Default::default() })
}

/// Where the registers of the queues start.
fn queues() -> impl Iterator<Item = usize> {
    (0..8).map(|n| PAGES + n * CONTROL_PAGE / 4)
}

/// The queue whose PROD is at this offset.
fn doorbell(offset: usize) -> Option<usize> {
    queues().find(|queue| offset == queue + offset::ECMDQ_PROD)
}

/// The queue whose CONS is at this offset.
fn cons(offset: usize) -> Option<usize> {
    queues().find(|queue| offset == queue + offset::ECMDQ_CONS)
}

/// Whether a queue is (EN, ENACK).
fn state(model: &Model, queue: usize) -> (bool, bool) {
    let mmio = model.mmio(0);
    let prod = EcmdqProd::new_with_raw_value(mmio.read32(queue + offset::ECMDQ_PROD));
    let cons = EcmdqCons::new_with_raw_value(mmio.read32(queue + offset::ECMDQ_CONS));
    (prod.en(), cons.enack())
}

/// Enables a queue as another owner would, with memory that is not the driver's; the SMMU need not have acknowledged it yet.
fn occupy(model: &Model, queue: usize) {
    let (mmio, memory) = (model.mmio(0), model.alloc_data(1).unwrap());
    mmio.write64(queue + offset::ECMDQ_BASE, memory.addr().0 | 4);
    mmio.write32(queue + offset::ECMDQ_CONS, 0);
    mmio.write32(queue + offset::ECMDQ_PROD, EcmdqProd::default().with_en(true).raw_value());
}

fn ecmdq_commands(model: &Model) -> u64 {
    model.report().smmus[0].ecmdq_commands
}

/// A spied SMMU.
fn add(model: &Model, mmio: Spy, options: SmmuOptions) -> (Iommu<SpyPlatform>, SmmuHandle<SpyPlatform>) {
    let iommu = interruptible(model, Arc::default());
    let smmu = iommu.add_smmu(mmio, options).unwrap();
    (iommu, smmu)
}

/// The promise, once.
fn unmap_once(model: &Model, iommu: &Iommu<SpyPlatform>, smmu: &SmmuHandle<SpyPlatform>) {
    let device = iommu.add_device(smmu, DeviceConfig::stream(SID)).unwrap();
    let domain = iommu.paging_domain(Stage::S1, Default::default()).unwrap();
    device.attach(&domain).unwrap();
    let page = model.alloc_data(1).unwrap();
    domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
    model.device(0, SID).write_u64(IOVA, 1).unwrap();
    domain.unmap(IOVA, PAGE).unwrap();
    model.free_data(page);
    assert!(model.device(0, SID).write_u64(IOVA, 1).is_err());
    model.report().assert_clean();
}

#[test]
fn the_promise_holds_on_enhanced_queues() {
    for laziness in [Laziness::all(), Laziness { early_invalidations: false, ..Laziness::all() }] {
        for stage in [Stage::S1, Stage::S2] {
            let rig = Rig::with(with(laziness.clone()));
            let before = ecmdq_commands(&rig.model);
            let (device, domain) = (rig.add(SID), rig.domain(stage));
            device.attach(&domain).unwrap();
            // More than the queue holds.
            for _ in 0..300 {
                assert!(use_and_unmap(&rig, &domain, SID, IOVA));
            }
            device.detach().unwrap();
            assert!(ecmdq_commands(&rig.model) - before >= 2 * 300);
            assert_eq!(rig.smmu.take_global_errors().0, Gerror::empty());
            rig.model.report().assert_clean();
        }
    }
}

#[test]
fn queues_are_used_as_far_as_asked_for_and_as_registers_reach() {
    for (ecmdqs, size, expected) in [
        (0, None, 0),
        (1, None, 1),
        (5, None, 5),
        (255, None, 8),
        (255, Some(0x2_0000), 0),
        (255, Some(PAGES + CONTROL_PAGE - 1), 0),
        (255, Some(PAGES + CONTROL_PAGE), 4),
    ] {
        let model = Model::new(config());
        let mmio = size.into_iter().fold(Spy::new(&model), Spy::size);
        let (iommu, smmu) = add(&model, mmio, SmmuOptions { ecmdqs, ..quick() });
        let on = queues().filter(|&queue| state(&model, queue) == (true, true)).count();
        assert_eq!(on, expected, "{ecmdqs}, {size:x?}");
        unmap_once(&model, &iommu, &smmu);
        assert_eq!(ecmdq_commands(&model) > 0, expected > 0);
    }
}

#[test]
fn threads_are_spread_over_the_queues_and_leave_the_command_queue_alone() {
    let model = Model::new(config());
    let rung = Arc::new(Mutex::new(BTreeSet::new()));
    let log = rung.clone();
    let mmio = Spy::new(&model).on_write(move |offset, _| {
        if offset == offset::CMDQ_PROD || doorbell(offset).is_some() {
            log.lock().unwrap().insert(offset);
        }
    });
    let (iommu, smmu) = add(&model, mmio, quick());
    rung.lock().unwrap().clear();
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
    let domain = iommu.paging_domain(Stage::S1, Default::default()).unwrap();
    device.attach(&domain).unwrap();
    thread::scope(|scope| {
        for n in 1..=16 {
            let (domain, model) = (&domain, &model);
            scope.spawn(move || {
                let page = model.alloc_data(1).unwrap();
                domain.map(Iova(n * PAGE), page.addr(), PAGE, RW).unwrap();
                model.device(0, SID).write_u64(Iova(n * PAGE), 1).unwrap();
                domain.unmap(Iova(n * PAGE), PAGE).unwrap();
                model.free_data(page);
                assert!(model.device(0, SID).write_u64(Iova(n * PAGE), 1).is_err());
            });
        }
    });
    let rung = rung.lock().unwrap();
    assert!(rung.len() > 1 && !rung.contains(&offset::CMDQ_PROD), "{rung:x?}");
    model.report().assert_clean();
}

#[test]
fn a_device_that_does_not_answer_on_an_enhanced_queue_is_cut_off() {
    let rig = Rig::with(config());
    let add = |sid| rig.iommu.add_device(&rig.smmu, DeviceConfig::stream(sid).ats()).unwrap();
    let (device, other, domain) = (add(SID), add(OTHER), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    other.attach(&domain).unwrap();
    let page = rig.page();
    domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
    for sid in [SID, OTHER] {
        rig.device(sid).ats_write_u64(IOVA, 1).unwrap();
    }
    rig.model.set_ats(0, SID, AtsBehaviour { answers: AtsAnswers::Never, timeouts: 1, ..Default::default() });
    let error = domain.unmap(IOVA, PAGE).unwrap_err();
    let UnmapError::CutOff { bytes, source } = error else { panic!("{error}") };
    assert_eq!((bytes, source.sid), (PAGE, Some(SID)));
    rig.model.free_data(page);
    for sid in [SID, OTHER] {
        assert!(rig.device(sid).ats_write_u64(IOVA, 2).is_err());
    }
    // The error was in an Enhanced queue, which tells of it beside, and it was dealt with.
    assert_eq!(rig.model.cmdq_error(0), None);
    assert_eq!(rig.smmu.take_global_errors().0, Gerror::empty());
    let mmio = rig.model.mmio(0);
    assert_eq!(mmio.read32(offset::GERROR), mmio.read32(offset::GERRORN), "acknowledged");
    rig.model.set_ats(0, SID, AtsBehaviour::default());
    device.attach(&domain).unwrap();
    assert!(use_and_unmap(&rig, &domain, OTHER, IOVA));
    rig.model.report().assert_clean();
}

/// Overwrites the command in front of the last that a queue's PROD announces with one that the SMMU refuses.
fn damage(model: &Model, queue: usize, prod: u32) {
    let base = model.mmio(0).read64(queue + offset::ECMDQ_BASE);
    let at = u64::from(prod).wrapping_sub(2) & ((1 << (base & 31)) - 1);
    model.write_u64(PhysAddr((base & QUEUE_BASE_ADDR) + 16 * at), 0xff);
}

#[test]
fn a_refused_command_on_an_enhanced_queue_costs_its_submission_and_nothing_else() {
    let model = Model::new(config());
    let armed = Arc::new(AtomicBool::new(false));
    let (ram, arm) = (model.clone(), armed.clone());
    let mmio = Spy::new(&model).on_write(move |offset, prod| {
        if let Some(queue) = doorbell(offset)
            && arm.swap(false, Ordering::SeqCst)
        {
            damage(&ram, queue, prod);
        }
    });
    let (iommu, smmu) = add(&model, mmio, quick());
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
    let domain = iommu.paging_domain(Stage::S1, Default::default()).unwrap();
    device.attach(&domain).unwrap();
    // ERR and ERRACK go both ways.
    for round in 0..5 {
        domain.map(IOVA, PhysAddr(0x8000_0000), PAGE, RW).unwrap();
        armed.store(true, Ordering::SeqCst);
        let error = domain.unmap(IOVA, PAGE).unwrap_err();
        let UnmapError::StillReachable { source: InvalidateError { cause, .. }, .. } = error else { panic!("{error}") };
        assert_eq!(cause, QueueError::Refused(CmdqError::Illegal), "round {round}");
        assert!(!armed.load(Ordering::SeqCst));
        assert_eq!(model.report().violation_count, 1, "the illegal command: {:?}", model.report());
        model.clear_report();
        unmap_again(&model, &domain);
    }
    assert_eq!(smmu.take_global_errors().0, Gerror::empty());
}

/// Unmaps a page that is not that of the failed unmap.
fn unmap_again(model: &Model, domain: &smmuv3::PagingDomain<SpyPlatform>) {
    let (iova, page) = (Iova(0x4000_0000), model.alloc_data(1).unwrap());
    domain.map(iova, page.addr(), PAGE, RW).unwrap();
    model.device(0, SID).write_u64(iova, 1).unwrap();
    domain.unmap(iova, PAGE).unwrap();
    model.free_data(page);
    assert!(model.device(0, SID).write_u64(iova, 1).is_err());
    model.report().assert_clean();
}

/// Queues that are full all the time, whose errors are found while others ring the doorbell.
#[test]
fn threads_on_few_queues_with_errors_fail_no_other_and_reach_no_freed_page() {
    const THREADS: u64 = 4;
    for cmdq_log2 in [1, 2, 4] {
        let model = Model::new(config());
        model.set_commands_per_look(0, Some(1));
        let (ram, rings) = (model.clone(), AtomicU32::new(0));
        let mmio = Spy::new(&model).on_write(move |offset, prod| {
            if let Some(queue) = doorbell(offset)
                && rings.fetch_add(1, Ordering::SeqCst) % 37 == 36
            {
                damage(&ram, queue, prod);
            }
        });
        let options = SmmuOptions { cmdq_log2, ecmdqs: 2, timeout_ns: 20_000_000_000, ..quick() };
        let (iommu, smmu) = add(&model, mmio, options);
        let domain = iommu.paging_domain(Stage::S1, Default::default()).unwrap();
        let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
        while device.attach(&domain).is_err() {}
        let targets = Targets::new();
        (0..THREADS * 2).for_each(|n| targets.add(Iova(n * PAGE)));
        let dma = DeviceThread::start(model.device(0, SID), targets, 3);
        let (done, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for mapper in 0..THREADS {
                let (domain, model, done, refused) = (&domain, &model, &done, &refused);
                scope.spawn(move || {
                    for round in 0..600 {
                        let iova = Iova((round % 2 * THREADS + mapper) * PAGE);
                        let page = model.alloc_data(1).unwrap();
                        domain.map(iova, page.addr(), PAGE, RW).unwrap();
                        match domain.unmap(iova, PAGE) {
                            Ok(_) => {
                                model.free_data(page);
                                done.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(UnmapError::StillReachable { source, .. }) => {
                                assert_eq!(source.cause, QueueError::Refused(CmdqError::Illegal));
                                refused.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
        });
        dma.stop();
        let report = model.report();
        let [done, refused] = [done, refused].map(AtomicU64::into_inner);
        assert!(done > 0 && refused > 0 && refused <= report.violation_count, "{done}, {refused}, {report:?}");
        assert_eq!(report.stale_dma, 0, "{report:?}");
    }
}

#[test]
fn devices_that_never_stop_reach_no_freed_page_over_enhanced_queues() {
    for stage in [Stage::S1, Stage::S2] {
        let rig = Rig::with(ModelConfig { seed: 7, ..config() });
        let domain = rig.domain(stage);
        let devices = [rig.add(SID), rig.add(OTHER)];
        devices.iter().for_each(|device| device.attach(&domain).unwrap());
        let targets = Targets::new();
        (0..16).for_each(|n| targets.add(Iova(n * PAGE)));
        let threads = [SID, OTHER].map(|sid| DeviceThread::start(rig.device(sid), targets.clone(), sid.into()));
        thread::scope(|scope| {
            for mapper in 0..3u64 {
                let (rig, domain) = (&rig, &domain);
                scope.spawn(move || {
                    for round in 0..3_000u64 {
                        let iova = Iova((round % 4 * 4 + mapper) * PAGE);
                        let page = rig.page();
                        domain.map(iova, page.addr(), PAGE, RW).unwrap();
                        assert_eq!(domain.unmap(iova, PAGE).unwrap().bytes, PAGE);
                        rig.model.free_data(page);
                        if round % 64 == 0 {
                            rig.events();
                        }
                    }
                });
            }
        });
        let accesses: u64 = threads.into_iter().map(|thread| thread.stop().accesses).sum();
        assert!(accesses > 0);
        rig.model.report().assert_clean();
    }
}

#[test]
fn queues_that_another_left_enabled_are_off_before_the_reset() {
    for ecmdqs in [0, 1, 255] {
        let model = Model::new(config());
        let all: Vec<usize> = queues().collect();
        // On either page; one of them is enabled for good, of the others the SMMU says so one day.
        occupy(&model, all[0]);
        while state(&model, all[0]) != (true, true) {}
        occupy(&model, all[2]);
        occupy(&model, all[7]);
        let iommu = Iommu::new(model.platform()).unwrap();
        let smmu = iommu.add_smmu(model.mmio(0), SmmuOptions { ecmdqs, ..quick() }).unwrap();
        let on: Vec<_> = all.iter().map(|&queue| state(&model, queue)).collect();
        assert!(
            on.iter().enumerate().all(|(n, &on)| on == (n < usize::from(ecmdqs), n < usize::from(ecmdqs))),
            "{on:?}"
        );
        drop(smmu);
        model.report().assert_clean();
    }
}

#[test]
fn a_queue_of_another_that_stays_enabled_is_an_error() {
    let model = Model::new(config());
    let last = queues().last().unwrap();
    occupy(&model, last);
    while state(&model, last) != (true, true) {}
    let enack = EcmdqCons::default().with_enack(true).raw_value();
    let mmio =
        Spy::new(&model).answers(move |offset, value| if cons(offset) == Some(last) { value | enack } else { value });
    let error = interruptible(&model, Arc::default()).add_smmu(mmio, quick()).expect_err("it is still on");
    assert!(error.to_string().contains("ECMDQ_PROD"), "{error}");
}

#[test]
fn an_smmu_that_is_removed_has_no_queue_enabled_and_gives_all_memory_back() {
    let model = Model::new(config());
    let (iommu, smmu) = add(&model, Spy::new(&model), quick());
    unmap_once(&model, &iommu, &smmu);
    iommu.remove_smmu(&smmu).unwrap();
    assert!(queues().all(|queue| state(&model, queue) == (false, false)));
    drop((smmu, iommu));
    assert_eq!(model.driver_pages(), 0);
    model.report().assert_clean();
}

/// Nobody is given this memory again.
fn is_kept(model: &Model, memory: &[u64]) -> bool {
    let free: Vec<_> = std::iter::from_fn(|| model.alloc_data(1)).collect();
    free.iter().all(|page| !memory.contains(&page.addr().0))
}

#[test]
fn memory_of_a_queue_that_does_not_end_is_kept() {
    let model = Model::new(config());
    let stays = Arc::new(AtomicBool::new(false));
    let stay = stays.clone();
    let enack = EcmdqCons::default().with_enack(true).raw_value();
    let mmio = Spy::new(&model).answers(move |offset, value| {
        let stays = stay.load(Ordering::SeqCst) && cons(offset).is_some();
        if stays { value | enack } else { value }
    });
    let (iommu, smmu) = add(&model, mmio, quick());
    unmap_once(&model, &iommu, &smmu);
    let mmio = model.mmio(0);
    let bases: Vec<u64> = queues().map(|queue| mmio.read64(queue + offset::ECMDQ_BASE) & QUEUE_BASE_ADDR).collect();
    stays.store(true, Ordering::SeqCst);
    let result = iommu.remove_smmu(&smmu);
    assert!(matches!(result, Err(RemoveSmmuError::NotAcknowledged(_))), "{result:?}");
    drop((smmu, iommu));
    assert!(is_kept(&model, &bases));
}

#[test]
fn where_a_queue_is_never_enabled_the_others_serve() {
    for deaf in [0, 2] {
        let model = Model::new(config());
        let this = queues().nth(deaf).unwrap();
        let enack = EcmdqCons::default().with_enack(true).raw_value();
        let mmio = Spy::new(&model)
            .answers(move |offset, value| if cons(offset) == Some(this) { value & !enack } else { value });
        let (iommu, smmu) = add(&model, mmio, quick());
        unmap_once(&model, &iommu, &smmu);
        assert_eq!(ecmdq_commands(&model) > 0, deaf > 0);
        let memory = model.mmio(0).read64(this + offset::ECMDQ_BASE) & QUEUE_BASE_ADDR;
        drop((smmu, iommu));
        // It may be enabled one day, and finds what it was given.
        assert!(is_kept(&model, &[memory]));
    }
}

#[test]
fn where_memory_is_short_there_are_fewer_queues() {
    // How many allocations an SMMU without such queues takes.
    let allocs = |ecmdqs, left| {
        let model = Model::new(config());
        let iommu = Iommu::new(model.platform()).unwrap();
        let before = model.driver_allocs();
        if let Some(left) = left {
            model.fail_allocs_after(left);
        }
        let smmu = iommu.add_smmu(model.mmio(0), SmmuOptions { ecmdqs, ..quick() }).unwrap();
        let on = queues().filter(|&queue| state(&model, queue) == (true, true)).count();
        drop(smmu);
        (model.driver_allocs() - before, on)
    };
    let (without, none) = allocs(0, None);
    assert_eq!(none, 0);
    // Each takes memory for commands, and for messages.
    for more in 0..20 {
        assert_eq!(allocs(255, Some(without + more)).1, 8.min(more as usize / 2));
    }
}

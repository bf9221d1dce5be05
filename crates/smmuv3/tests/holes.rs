//! Holes that were found and closed: unmaps that overlap or are tried again, commands that are refused in the wrong moment, SMMUs that go away half
//! way, interrupts that come inside a read section.
mod common;
#[path = "common/spy.rs"]
mod spy;

use common::*;
use smmuv3::arch::regs::offset;
use smmuv3::arch::{AddrSize, Command, Granule, Stage};
use smmuv3::platform::{Iova, Mmio, PhysAddr};
use smmuv3::{AddDeviceError, DeviceConfig, Geometry, Iommu, Kind, PagingDomain, UnmapError};
use smmuv3_model::{Model, ModelConfig, ModelSmmuConfig};
use spy::*;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

fn within(what: &str, f: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || {
        f();
        let _ = done.send(());
    });
    wait.recv_timeout(Duration::from_secs(5)).unwrap_or_else(|_| panic!("{what}: hangs"));
}

#[test]
fn unmap_again_after_still_reachable_must_not_say_ok() {
    for whole in [false, true] {
        let model = Model::new(ModelConfig::default());
        let (iommu, smmu, armed) = damaging(&model);
        let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
        let domain = iommu.paging_domain(Stage::S1, Geometry::default()).unwrap();
        device.attach(&domain).unwrap();
        let page = model.alloc_data(1).unwrap();
        domain.map(Iova(0x20_0000), page.addr(), PAGE, RW).unwrap();
        model.device(0, SID).write_u64(Iova(0x20_0000), 1).unwrap();
        let len = if whole { 0x20_0000 } else { PAGE };
        armed.store(1, Ordering::SeqCst);
        assert!(matches!(domain.unmap(Iova(0x20_0000), len), Err(UnmapError::StillReachable { .. })));
        // What anybody would do: try again. The SMMU is well.
        if domain.unmap(Iova(0x20_0000), len).is_ok() {
            model.free_data(page);
            assert!(
                model.device(0, SID).write_u64(Iova(0x20_0000), 2).is_err(),
                "unmap said Ok; the device still reaches the page"
            );
            let report = model.report();
            assert_eq!((report.stale_dma, report.stale_walks), (0, 0));
        }
    }
}

#[test]
fn a_second_unmap_of_the_same_page_does_not_return_before_the_first_invalidation() {
    // The first unmapper is stopped at its doorbell; a second one unmaps the same page and is told Ok.
    let model = Model::new(ModelConfig::default());
    let stop = Arc::new(AtomicBool::new(false));
    let (at_bell, arrived) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    let (flag, gone) = (stop.clone(), std::sync::Mutex::new(gone));
    let iommu = interruptible(&model, Arc::default());
    let at_bell = std::sync::Mutex::new(at_bell);
    let on_write = move |offset: usize, _: u32| {
        if offset == offset::CMDQ_PROD && flag.swap(false, Ordering::SeqCst) {
            at_bell.lock().unwrap().send(()).unwrap();
            let _ = gone.lock().unwrap().recv_timeout(Duration::from_millis(500));
        }
    };
    let smmu = iommu.add_smmu(Spy::new(&model).on_write(on_write), quick()).unwrap();
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
    let domain = iommu.paging_domain(Stage::S1, Geometry::default()).unwrap();
    device.attach(&domain).unwrap();
    let page = model.alloc_data(1).unwrap();
    domain.map(Iova(0x1000), page.addr(), PAGE, RW).unwrap();
    model.device(0, SID).write_u64(Iova(0x1000), 1).unwrap();
    stop.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| domain.unmap(Iova(0x1000), PAGE));
        arrived.recv().unwrap();
        let second = domain.unmap(Iova(0x1000), PAGE);
        let reached = model.device(0, SID).write_u64(Iova(0x1000), 2).is_ok();
        let _ = go.send(());
        first.join().unwrap().unwrap();
        assert!(!(second.is_ok() && reached), "unmap returned {second:?} and the device still reached the page");
    });
}

#[test]
fn all_streams_of_a_device_are_blocked_in_memory_when_detach_is_not_confirmed() {
    let rig = Rig::new();
    let config = DeviceConfig::stream(0x18).and_stream(0x19).and_stream(0x1a).and_stream(0x1b);
    let device = rig.iommu.add_device(&rig.smmu, config).unwrap();
    let domain = rig.domain(Stage::S1);
    device.attach(&domain).unwrap();
    let page = rig.page();
    domain.map(Iova(0x1000), page.addr(), PAGE, RW).unwrap();
    rig.model.set_dead(0, true);
    device.detach().unwrap_err();
    // It comes back to life, has lost its caches or never had anything of these streams in them.
    rig.model.set_dead(0, false);
    let _ = device.detach();
    let reached: Vec<u32> = (0x18..=0x1b).filter(|sid| rig.device(*sid).write_u64(Iova(0x1000), 1).is_ok()).collect();
    assert!(reached.is_empty(), "streams {reached:x?} were never blocked, and there is no way to do it");
}

#[test]
fn a_device_whose_attach_was_not_confirmed_is_blocked_when_the_smmu_comes_back() {
    let rig = Rig::new();
    let (device, domain, page) = (rig.add(SID), rig.domain(Stage::S1), rig.page());
    device.attach_identity().unwrap();
    rig.model.set_dead(0, true);
    device.attach(&domain).unwrap_err();
    rig.model.set_dead(0, false);
    assert!(rig.device(SID).write_u64(Iova(page.addr().0), 1).is_err(), "the device still bypasses the SMMU");
}

#[test]
fn one_refused_command_does_not_leave_a_device_reachable_for_ever() {
    let model = Model::new(ModelConfig::default());
    let (iommu, smmu, armed) = damaging(&model);
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
    let domain = iommu.paging_domain(Stage::S1, Geometry::default()).unwrap();
    device.attach(&domain).unwrap();
    let page = model.alloc_data(1).unwrap();
    domain.map(Iova(0x1000), page.addr(), PAGE, RW).unwrap();
    model.device(0, SID).write_u64(Iova(0x1000), 1).unwrap();
    armed.store(1, Ordering::SeqCst);
    device.detach().unwrap_err();
    // The SMMU is well and would carry out a CFGI now. "Detaching happens whatever is returned."
    let again = device.detach();
    assert!(model.device(0, SID).write_u64(Iova(0x1000), 2).is_err(), "still reaches; detach again says {again:?}");
}

#[test]
fn a_level_1_descriptor_whose_invalidation_failed_is_invalidated_by_the_next_device() {
    let model = Model::new(ModelConfig::default());
    let (iommu, smmu, armed) = damaging(&model);
    // The SMMU caches the absence of the second level.
    let _ = model.device(0, 0x300).read_u64(Iova(0));
    armed.store(1, Ordering::SeqCst);
    let error = iommu.add_device(&smmu, DeviceConfig::stream(0x300)).unwrap_err();
    assert!(matches!(error, AddDeviceError::Hardware { .. }));
    let device = iommu.add_device(&smmu, DeviceConfig::stream(0x300)).unwrap();
    let domain = iommu.paging_domain(Stage::S1, Geometry::default()).unwrap();
    device.attach(&domain).unwrap();
    let page = model.alloc_data(1).unwrap();
    domain.map(Iova(0x1000), page.addr(), PAGE, RW).unwrap();
    let mut names = Vec::new();
    let ok = model.device(0, 0x300).write_u64(Iova(0x1000), 1);
    let _ = smmu.take_events(|event| names.push(event.name()));
    assert!(ok.is_ok(), "attached without an error, and the SMMU says {names:?}");
}

#[test]
fn formatting_a_domain_calls_nobody_inside_a_read_section() {
    within("{domain:?} into a sink that unmaps", || {
        let rig = Rig::new();
        let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
        device.attach(&domain).unwrap();
        struct Console<'a>(&'a Domain);
        impl std::fmt::Write for Console<'_> {
            fn write_str(&mut self, _: &str) -> std::fmt::Result {
                // A log that goes out by DMA.
                self.0.map(Iova(0x20_0000), PhysAddr(0x1000), PAGE, RW).unwrap();
                self.0.unmap(Iova(0x20_0000), 0x20_0000).unwrap();
                Ok(())
            }
        }
        let _ = std::fmt::write(&mut Console(&domain), format_args!("{domain:?}"));
    });
}

#[test]
fn an_interrupt_handler_may_unmap() {
    within("unmap of a whole table in an interrupt that came inside map", || {
        let model = Model::new(ModelConfig::default());
        let irq: Arc<std::sync::Mutex<Option<Irq>>> = Arc::default();
        let iommu = interruptible(&model, irq.clone());
        let domain: PagingDomain<_> = iommu.paging_domain(Stage::S1, Geometry::default()).unwrap();
        let other = iommu.paging_domain(Stage::S1, Geometry::default()).unwrap();
        other.map(Iova(0x20_0000), PhysAddr(0x1000), PAGE, RW).unwrap();
        *irq.lock().unwrap() = Some(Arc::new(move || {
            other.unmap(Iova(0x20_0000), 0x20_0000).unwrap();
        }));
        domain.map(Iova(0), PhysAddr(0), PAGE, RW).unwrap();
    });
}

#[test]
fn a_domain_whose_own_tables_lie_beyond_its_output_size_is_refused() {
    for stage in [Stage::S1] {
        let model = Model::new(ModelConfig { ram_base: PhysAddr(0x12_3456_7000), ..ModelConfig::default() });
        let iommu = Iommu::new(model.platform()).unwrap();
        let smmu = iommu.add_smmu(model.mmio(0), quick()).unwrap();
        let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
        let geometry = Geometry { output_size: AddrSize::from_code(0), ..Geometry::default() };
        let Ok(domain) = iommu.paging_domain(stage, geometry) else { continue };
        if device.attach(&domain).is_err() {
            continue;
        }
        let mut names = Vec::new();
        let _ = model.device(0, SID).read_u64(Iova(0x1000));
        let _ = smmu.take_events(|event| names.push(event.name()));
        assert_eq!(names, ["F_TRANSLATION"], "attached, but no access can ever work");
    }
}

#[test]
fn tables_are_kept_after_a_tag_flush_that_failed() {
    // Detach rings once for each step of the STE and once for the tag: find the ring that is the tag's.
    for n in 1..=8 {
        let model = Model::new(ModelConfig::default());
        let (iommu, smmu, armed) = damaging(&model);
        let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
        let domain = iommu.paging_domain(Stage::S2, Geometry::default()).unwrap();
        device.attach(&domain).unwrap();
        let page = model.alloc_data(1).unwrap();
        domain.map(Iova(0x20_0000), page.addr(), PAGE, RW).unwrap();
        model.device(0, SID).write_u64(Iova(0x20_0000), 1).unwrap();
        let before = model.driver_pages();
        armed.store(n, Ordering::SeqCst);
        if device.detach().is_err() {
            continue;
        }
        assert_eq!(armed.load(Ordering::SeqCst), 0, "no ring left to damage");
        let _ = domain.unmap(Iova(0x20_0000), 0x20_0000);
        assert_eq!(model.driver_pages(), before, "tables under a tag that was not flushed were given back (ring {n})");
        return;
    }
    let _ = (ModelSmmuConfig::default(), Granule::K4);
}

#[test]
fn one_refused_command_does_not_leave_a_bypassing_device_loose_for_ever() {
    let model = Model::new(ModelConfig::default());
    let (iommu, smmu, armed) = damaging(&model);
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
    device.attach_identity().unwrap();
    let page = model.alloc_data(1).unwrap();
    model.device(0, SID).write_u64(Iova(page.addr().0), 1).unwrap();
    armed.store(1, Ordering::SeqCst);
    device.detach().unwrap_err();
    let again = device.detach();
    drop(device);
    assert!(
        model.device(0, SID).write_u64(Iova(page.addr().0), 2).is_err(),
        "reaches all memory; detach again says {again:?}"
    );
}

#[test]
fn at_every_doorbell_of_an_attach_the_domain_owes_already() {
    let model = Model::new(ModelConfig::default());
    let iommu = interruptible(&model, Arc::default());
    let watched: Arc<std::sync::Mutex<Option<PagingDomain<SpyPlatform>>>> = Arc::default();
    let seen: Arc<std::sync::Mutex<Vec<u32>>> = Arc::default();
    let (look, note) = (watched.clone(), seen.clone());
    let on_write = move |offset: usize, _: u32| {
        if offset == offset::CMDQ_PROD
            && let Some(domain) = &*look.lock().unwrap()
        {
            let mut users = 0;
            domain.owed(|owed| users += owed.users);
            note.lock().unwrap().push(users);
        }
    };
    let smmu = iommu.add_smmu(Spy::new(&model).on_write(on_write), quick()).unwrap();
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
    for stage in [Stage::S1, Stage::S2, Stage::S1] {
        let domain = iommu.paging_domain(stage, Geometry::default()).unwrap();
        *watched.lock().unwrap() = Some(domain.clone());
        device.attach(&domain).unwrap();
        *watched.lock().unwrap() = None;
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert!(!seen.is_empty() && seen.iter().all(|users| *users == 1), "{seen:?}");
    }
}

/// A function whose ATS is off may never answer an ATC_INV; and a device whose STE the SMMU still uses fills its TLB and ATC.
#[test]
fn at_every_doorbell_of_a_detach_an_atc_that_is_owed_has_ats_on_and_the_domain_owes_until_the_ste_is_gone() {
    const CFGI: [u64; 2] = [0x03, 0x05];
    let model = Model::new(ModelConfig::default());
    let iommu = interruptible(&model, Arc::default());
    let watched: Arc<std::sync::Mutex<Option<PagingDomain<SpyPlatform>>>> = Arc::default();
    type Seen = Vec<(u64, u32, u32, bool)>;
    let seen: Arc<std::sync::Mutex<Seen>> = Arc::default();
    let (look, note, ram) = (watched.clone(), seen.clone(), model.clone());
    let on_write = move |offset: usize, value: u32| {
        if offset == offset::CMDQ_PROD
            && let Some(domain) = &*look.lock().unwrap()
        {
            let (mut tags, mut atcs) = (0, 0);
            domain.owed(|owed| match owed.key.kind() {
                Kind::Ats | Kind::AtsFull => atcs += owed.users,
                _ => tags += owed.users,
            });
            note.lock().unwrap().push((last_opcode(&ram, value), tags, atcs, ram.ats_enabled(0, SID)));
        }
    };
    let smmu = iommu.add_smmu(Spy::new(&model).on_write(on_write), quick()).unwrap();
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID).ats()).unwrap();
    for stage in [Stage::S1, Stage::S2] {
        let domain = iommu.paging_domain(stage, Geometry::default()).unwrap();
        device.attach(&domain).unwrap();
        *watched.lock().unwrap() = Some(domain);
        device.detach().unwrap();
        *watched.lock().unwrap() = None;
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert!(seen.iter().any(|(opcode, ..)| CFGI.contains(opcode)));
        for (opcode, tags, atcs, ats) in seen {
            assert!(ats || atcs == 0, "{stage}, opcode {opcode:#x}: an ATC is owed whose ATS is off");
            assert!(!CFGI.contains(&opcode) || (tags, atcs) == (1, 1), "{stage}: forgotten before the STE is");
        }
    }
    model.report().assert_clean();
}

/// unmapping thread                            attaching threads
/// load the array: version 1
/// stand still at the doorbell of SMMU 0       attach a device: version 2
///                                             detach a device with ATS behind SMMU 1 from version 2
/// send ATC_INV on SMMU 1                      turn ATS off: only now
///
/// A fence that is part of a version of the array would wait for the readers of version 2 alone.
#[test]
fn a_detach_waits_for_readers_of_every_version_of_the_array() {
    let model = Model::new(ModelConfig { smmus: vec![Default::default(); 2], ..ModelConfig::default() });
    let (at_bell, arrived) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    let (stop, gone) = (Arc::new(AtomicBool::new(false)), std::sync::Mutex::new(gone));
    let flag = stop.clone();
    let on_write = move |offset: usize, _: u32| {
        if offset == offset::CMDQ_PROD && flag.swap(false, Ordering::SeqCst) {
            at_bell.send(()).unwrap();
            let _ = gone.lock().unwrap().recv();
        }
    };
    let iommu = interruptible(&model, Arc::default());
    let first = iommu.add_smmu(Spy::of(&model, 0).on_write(on_write), quick()).unwrap();
    let second = iommu.add_smmu(Spy::of(&model, 1), quick()).unwrap();
    let domain = iommu.paging_domain(Stage::S1, Geometry::default()).unwrap();
    let add = |smmu, config| iommu.add_device(smmu, config).unwrap();
    let [slow, ats, joins] = [
        add(&first, DeviceConfig::stream(SID)),
        add(&second, DeviceConfig::stream(SID).ats()),
        add(&second, DeviceConfig::stream(OTHER)),
    ];
    slow.attach(&domain).unwrap();
    ats.attach(&domain).unwrap();
    domain.map(Iova(0x1000), PhysAddr(0x8000_0000), PAGE, RW).unwrap();
    stop.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let unmapper = scope.spawn(|| domain.unmap(Iova(0x1000), PAGE).unwrap());
        arrived.recv().unwrap();
        joins.attach(&domain).unwrap();
        let detacher = scope.spawn(|| ats.detach().unwrap());
        // It has come as far as it may: the array no longer lists the device.
        let owed = || {
            let mut atcs = 0;
            domain.owed(|owed| atcs += u32::from(owed.key.kind() == Kind::Ats));
            atcs
        };
        while owed() > 0 {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(50));
        go.send(()).unwrap();
        unmapper.join().unwrap();
        detacher.join().unwrap();
    });
    assert!(model.report().smmus[1].commands.contains_key("ATC_INV"));
    assert_eq!(model.report().atc_to_disabled, 0);
    model.report().assert_clean();
}

/// Barrier (A): the platform counts barriers between the moment the
/// descriptor is clear and the doorbell.
#[test]
fn a_full_barrier_stands_between_the_cleared_descriptor_and_the_array() {
    let model = Model::new(ModelConfig::default());
    let hook: Arc<std::sync::Mutex<Option<Irq>>> = Arc::default();
    let iommu = interruptible(&model, hook.clone());
    let domain = iommu.paging_domain(Stage::S1, Geometry::default()).unwrap();
    domain.map(Iova(0x1000), PhysAddr(0x1000), PAGE, RW).unwrap();
    // No device is attached: nothing but entering read sections passes full barriers.
    let after = Arc::new(AtomicU32::new(0));
    fn arm(hook: &Arc<std::sync::Mutex<Option<Irq>>>, domain: PagingDomain<SpyPlatform>, after: Arc<AtomicU32>) {
        let again = hook.clone();
        let f: Irq = Arc::new(move || {
            if domain.iova_to_phys(Iova(0x1000)).is_none() {
                after.fetch_add(1, Ordering::SeqCst);
            }
            arm(&again, domain.clone(), after.clone());
        });
        *hook.lock().unwrap() = Some(f);
    }
    arm(&hook, domain.clone(), after.clone());
    domain.unmap(Iova(0x1000), PAGE).unwrap();
    *hook.lock().unwrap() = None;
    assert!(after.load(Ordering::SeqCst) >= 1, "no full barrier after the descriptor was cleared");
}

/// All ones in the *second* read of CMDQ_CONS must confirm nothing either.
#[test]
fn an_smmu_that_goes_away_in_the_middle_of_error_recovery_confirms_nothing() {
    for pad in 0..4 {
        let model = Model::new(ModelConfig::default());
        let iommu = interruptible(&model, Arc::default());
        let (armed, gone) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (fade, now_gone) = (armed.clone(), gone.clone());
        // It is gone from right after this read on.
        let on_read = move |offset: usize| {
            if offset == offset::GERRORN && fade.swap(false, Ordering::SeqCst) {
                now_gone.store(true, Ordering::SeqCst);
            }
        };
        let mmio = Spy::new(&model).on_read(on_read).gone(gone);
        let options = smmuv3::SmmuOptions { cmdq_log2: 2, timeout_ns: 200_000_000, ..quick() };
        let smmu = iommu.add_smmu(mmio, options).unwrap();
        let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
        let domain = iommu.paging_domain(Stage::S1, Geometry::default()).unwrap();
        device.attach(&domain).unwrap();
        for _ in 0..pad {
            domain.map(Iova(0x9000), PhysAddr(0x8000_0000), PAGE, RW).unwrap();
            domain.unmap(Iova(0x9000), PAGE).unwrap();
        }
        domain.map(Iova(0x1000), PhysAddr(0x8000_0000), 2 * PAGE, RW).unwrap();
        let prod = model.mmio(0).read32(offset::CMDQ_PROD);
        // The SMMU takes no commands for now; two threads unmap a page each; the first one's TLBI is damaged.
        model.set_dead(0, true);
        std::thread::scope(|scope| {
            let first = scope.spawn(|| domain.unmap(Iova(0x1000), PAGE));
            while model.mmio(0).read32(offset::CMDQ_PROD) == prod {
                std::thread::yield_now();
            }
            let base = model.mmio(0).read64(offset::CMDQ_BASE) & 0x00ff_ffff_ffff_ffe0;
            model.write_u64(PhysAddr(base + 16 * u64::from(prod & 3)), 0xff);
            let second = scope.spawn(|| domain.unmap(Iova(0x2000), PAGE));
            std::thread::sleep(Duration::from_millis(30));
            armed.store(true, Ordering::SeqCst);
            model.set_dead(0, false);
            let (first, _second) = (first.join().unwrap(), second.join().unwrap());
            assert!(first.is_err(), "pad {pad}, PROD {prod:#x}: the TLBI was refused, unmap said {first:?}");
        });
    }
}

#[test]
fn no_table_is_freed_while_anybody_is_inside_a_read_section() {
    let model = Model::new(ModelConfig::default());
    let iommu = Iommu::new(SpyPlatform::<HookedRcu>::new(&model)).unwrap();
    let domain = iommu.paging_domain(Stage::S1, Geometry::default()).unwrap();
    domain.map(Iova(0x20_0000), PhysAddr(0x1000), PAGE, RW).unwrap();
    let unmapper: Arc<std::sync::Mutex<Option<std::thread::JoinHandle<()>>>> = Arc::default();
    let freed = Arc::new(AtomicBool::new(false));
    let (ram, other, handle, told) = (model.clone(), domain.clone(), unmapper.clone(), freed.clone());
    on_entry(move || {
        // Here this thread has just entered a read section: it may be looking at any table.
        let (before, other) = (ram.driver_pages(), other.clone());
        *handle.lock().unwrap() = Some(std::thread::spawn(move || {
            other.unmap(Iova(0x20_0000), 0x20_0000).unwrap();
        }));
        std::thread::sleep(Duration::from_millis(200));
        told.store(ram.driver_pages() != before, Ordering::SeqCst);
    });
    assert!(domain.iova_to_phys(Iova(0x7000_0000)).is_none());
    unmapper.lock().unwrap().take().expect("the hook ran").join().unwrap();
    assert!(!freed.load(Ordering::SeqCst), "a table was freed under a reader");
}

#[test]
fn a_tag_whose_flush_failed_is_never_seen_again() {
    for n in 1..=8 {
        let model = Model::new(ModelConfig::with_smmu(ModelSmmuConfig { vmid16: false, ..ModelSmmuConfig::default() }));
        let (iommu, smmu, armed) = damaging(&model);
        let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
        let tag = || {
            let domain = iommu.paging_domain(Stage::S2, Geometry::default()).unwrap();
            device.attach(&domain).unwrap();
            let mut tag = None;
            domain.owed(|owed| tag = Some(owed.key.id()));
            tag.unwrap()
        };
        let dirty = tag();
        armed.store(n, Ordering::SeqCst);
        if device.detach().is_err() {
            continue;
        }
        assert_eq!(armed.load(Ordering::SeqCst), 0);
        assert!((0..600).all(|_| tag() != dirty));
        return;
    }
    panic!("the flush was never hit");
}

/// every page is touched before and after, by itself.
#[test]
fn every_page_of_a_range_is_gone_from_the_first_to_the_last() {
    for stage in [Stage::S1, Stage::S2] {
        for range_inv in [true, false] {
            let config = ModelSmmuConfig { range_inv, ..ModelSmmuConfig::default() };
            let rig = Rig::with(ModelConfig::with_smmu(config));
            let (device, domain) = (rig.add(SID), rig.domain(stage));
            device.attach(&domain).unwrap();
            for pages in [1, 2, 3, 5, 8, 31, 32, 33, 63, 64, 65, 100] {
                let data = rig.model.alloc_data(pages as usize).unwrap();
                // Not aligned to anything but the page; across a 2 MiB boundary for the longer ones.
                let start = 0x1f_b000;
                domain.map(Iova(start), data.addr(), pages * PAGE, RW).unwrap();
                let at = |n: u64| Iova(start + n * PAGE);
                (0..pages).for_each(|n| rig.device(SID).write_u64(at(n), n).unwrap());
                domain.unmap(Iova(start), pages * PAGE).unwrap();
                let reached: Vec<u64> = (0..pages).filter(|n| rig.device(SID).write_u64(at(*n), 1).is_ok()).collect();
                assert!(reached.is_empty(), "{stage}, RIL {range_inv}, {pages} pages: {reached:?} still there");
                rig.events();
                rig.model.free_data(data);
            }
            // A block with pages on both sides of it.
            let block = rig.model.alloc_data_aligned(512, 2 << 20).unwrap();
            let edge = rig.model.alloc_data(8).unwrap();
            domain.map(Iova(0x80_0000), block.addr(), 2 << 20, RW).unwrap();
            domain.map(Iova(0x7f_c000), edge.addr(), 4 * PAGE, RW).unwrap();
            domain.map(Iova(0xa0_0000), PhysAddr(edge.addr().0 + 4 * PAGE), 4 * PAGE, RW).unwrap();
            let all: Vec<u64> = (0x7f_c000..0xa0_4000).step_by(PAGE as usize).collect();
            all.iter().for_each(|iova| rig.device(SID).write_u64(Iova(*iova), 1).unwrap());
            let _ = rig.model.take_commands(0);
            let done = domain.unmap(Iova(0x7f_c000), 0x20_8000).unwrap();
            let sent = rig.model.take_commands(0);
            let reached: Vec<u64> =
                all.iter().copied().filter(|iova| rig.device(SID).write_u64(Iova(*iova), 1).is_ok()).collect();
            assert!(reached.is_empty(), "{stage}, RIL {range_inv}: {reached:x?} still there; {done:?}; sent {sent:x?}");
            rig.model.report().assert_clean();
        }
    }
}

#[test]
fn an_smmu_that_could_not_be_added_is_left_aborting_as_documented() {
    let model = Model::new(ModelConfig::default());
    let page = model.alloc_data(1).unwrap();
    let iommu = Iommu::new(model.platform()).unwrap();
    model.fail_all_allocs(true);
    iommu.add_smmu(model.mmio(0), quick()).unwrap_err();
    assert!(
        model.device(0, SID).write_u64(Iova(page.addr().0), 1).is_err(),
        "traffic bypasses the SMMU that was refused"
    );
}

#[test]
fn an_smmu_that_is_gone_keeps_all_its_memory() {
    // With a two-level stream table and a linear one.
    for (st_two_level, sid_bits) in [(true, 16), (false, 6)] {
        let smmu = ModelSmmuConfig { st_two_level, sid_bits, ..ModelSmmuConfig::default() };
        let model = Model::new(ModelConfig::with_smmu(smmu));
        let gone = Arc::new(AtomicBool::new(false));
        let iommu = interruptible(&model, Arc::default());
        let smmu = iommu.add_smmu(Spy::new(&model).gone(gone.clone()), quick()).unwrap();
        let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
        let domain = iommu.paging_domain(Stage::S1, Geometry::default()).unwrap();
        device.attach(&domain).unwrap();
        let before = model.driver_pages();
        gone.store(true, Ordering::SeqCst);
        drop((device, domain, smmu, iommu));
        assert_eq!(model.driver_pages(), before);
    }
}

#[test]
fn tables_under_a_tag_that_was_not_flushed_outlive_the_domain() {
    for n in 1..=8 {
        let model = Model::new(ModelConfig::default());
        let (iommu, smmu, armed) = damaging(&model);
        let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
        let domain = iommu.paging_domain(Stage::S2, Geometry::default()).unwrap();
        device.attach(&domain).unwrap();
        domain.map(Iova(0x20_0000), PhysAddr(0x1000), PAGE, RW).unwrap();
        let before = model.driver_pages();
        armed.store(n, Ordering::SeqCst);
        if device.detach().is_err() {
            continue;
        }
        drop(domain);
        assert_eq!(model.driver_pages(), before);
        return;
    }
    panic!("the flush was never hit");
}

/// guest's command                        thread that drops the device
/// enter a read section
/// look whether the device is gone
///                                        say that it is gone
///                                        wait until everybody is through who saw it otherwise
/// CFGI, ATC_INV for its StreamIDs
///                                        give the StreamIDs back
#[test]
fn a_device_keeps_its_streamids_while_a_guest_s_commands_may_be_on_their_way_to_it() {
    let model = Model::new(ModelConfig::default());
    let iommu = Iommu::new(SpyPlatform::<HookedRcu>::new(&model)).unwrap();
    let smmu = iommu.add_smmu(Spy::new(&model), quick()).unwrap();
    let parent = iommu.paging_domain(Stage::S2, Geometry::default()).unwrap();
    let vsmmu = iommu.vsmmu(&smmu, &parent).unwrap();
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
    vsmmu.map_stream(1, &device).unwrap();
    let (device, dropper) = (Arc::new(std::sync::Mutex::new(Some(device))), Arc::new(std::sync::Mutex::new(None)));
    let (early, thread) = (Arc::new(AtomicBool::new(false)), dropper.clone());
    let told = early.clone();
    on_entry(move || {
        // Here the guest's thread has just entered its read section.
        let device = device.lock().unwrap().take();
        let done = Arc::new(AtomicBool::new(false));
        let tell = done.clone();
        *thread.lock().unwrap() = Some(std::thread::spawn(move || {
            drop(device);
            tell.store(true, Ordering::SeqCst);
        }));
        std::thread::sleep(Duration::from_millis(200));
        told.store(done.load(Ordering::SeqCst), Ordering::SeqCst);
    });
    let _ = vsmmu.invalidate(&[Command::CfgiCdAll { sid: 1 }.encode()]);
    dropper.lock().unwrap().take().expect("the hook ran").join().unwrap();
    assert!(!early.load(Ordering::SeqCst), "the StreamID was given back under a guest's command");
}

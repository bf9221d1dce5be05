//! SMMUs that are odd, broken, or die: probe, reset, errors, events.

mod common;
#[path = "common/spy.rs"]
mod spy;

use common::*;
use smmuv3::arch::regs::{Cr0, IrqCtrl, offset};
use smmuv3::arch::{AddrSize, Command, Stage, StallModel, SyncSignal};
use smmuv3::platform::{Iova, Mmio, PhysAddr};
use smmuv3::{
    AddSmmuError, AttachError, Completion, DeviceConfig, Iommu, QueueError, SmmuOptions, UnmapError, Unsupported,
};
use smmuv3_model::{Irq, Latency, Model, ModelConfig, ModelSmmuConfig, Sabotage};
use spy::*;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

fn add(config: ModelSmmuConfig) -> Result<(), AddSmmuError> {
    let model = Model::new(ModelConfig::with_smmu(config));
    let iommu = Iommu::new(model.platform()).unwrap();
    let result = iommu.add_smmu(model.mmio(0), quick()).map(|_| ());
    if result.is_err() {
        assert_eq!(model.driver_pages(), 0);
    }
    model.report().assert_clean();
    result
}

#[test]
fn without_cache_maintenance_an_smmu_that_does_not_look_into_caches_is_refused() {
    let model = Model::new(ModelConfig::with_smmu(ModelSmmuConfig { coherent: false, ..Default::default() }));
    let iommu = Iommu::new(<SpyPlatform>::new(&model)).unwrap();
    let error = iommu.add_smmu(Spy::new(&model), quick()).unwrap_err();
    assert_eq!(error, AddSmmuError::Unsupported(Unsupported::NotCoherent));
    assert_eq!(model.driver_pages(), 0);
}

/// `None`: the SMMU loses messages, and registers tell.
#[test]
fn a_cmd_sync_tells_in_the_quickest_way_that_is_offered_and_allowed() {
    use Completion::{Event, Message, Register};
    for (allowed, msi, sev, expected) in [
        (Message, true, true, Some(Message)),
        (Message, false, true, Some(Event)),
        (Message, false, false, Some(Register)),
        (Event, true, true, Some(Event)),
        (Event, true, false, Some(Register)),
        (Register, true, true, Some(Register)),
        (Message, true, true, None),
    ] {
        let latency = Latency { sync_ns: 1_000, ..Latency::NONE };
        let model = Model::new(ModelConfig::with_smmu(ModelSmmuConfig { msi, sev, latency, ..Default::default() }));
        if expected.is_none() {
            model.sabotage(0, Sabotage::LoseMessages);
        }
        let iommu = Iommu::new(model.platform()).unwrap();
        let before = model.driver_pages();
        let smmu = iommu.add_smmu(model.mmio(0), SmmuOptions { completion: allowed, ..quick() }).unwrap();
        let rig = Rig { model, iommu, smmu };
        let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
        device.attach(&domain).unwrap();
        rig.model.take_commands(0);
        assert!(use_and_unmap(&rig, &domain, SID, Iova(0x1000)));
        let commands = rig.model.take_commands(0);
        match (expected, commands.last()) {
            (Some(Message) | None, Some(Command::Sync(SyncSignal::Msi { .. })))
            | (Some(Event), Some(Command::Sync(SyncSignal::Sev)))
            | (Some(Register), Some(Command::Sync(SyncSignal::None))) => {}
            _ => panic!("{allowed:?}, {msi}, {sev}: {commands:?}"),
        }
        device.detach().unwrap();
        drop((device, domain));
        let Rig { model, iommu, smmu } = rig;
        iommu.remove_smmu(&smmu).unwrap();
        drop((iommu, smmu));
        // Messages that did not come may still come.
        assert_eq!(model.driver_pages() - before, usize::from(expected.is_none()), "{allowed:?}, {msi}, {sev}");
        model.report().assert_clean();
    }
}

#[test]
fn an_smmu_that_the_driver_cannot_serve_is_refused_by_name() {
    let base = ModelSmmuConfig::default;
    for (config, why) in [
        (ModelSmmuConfig { stage1: false, stage2: false, ..base() }, Unsupported::NoTranslation),
        (ModelSmmuConfig { stall_model: StallModel::Forced, ..base() }, Unsupported::StallForced),
        (ModelSmmuConfig { granules: [false; 3], ..base() }, Unsupported::NoGranule),
        (ModelSmmuConfig { cmdq_log2: 0, ..base() }, Unsupported::CommandQueue),
    ] {
        assert_eq!(add(config), Err(AddSmmuError::Unsupported(why)));
    }
    let far = ModelConfig {
        ram_base: PhysAddr(1 << 40),
        ..ModelConfig::with_smmu(ModelSmmuConfig { oas: AddrSize::from_code(2), ..base() })
    };
    let model = Model::new(far);
    let iommu = Iommu::new(model.platform()).unwrap();
    let error = iommu.add_smmu(model.mmio(0), quick()).unwrap_err();
    assert!(matches!(error, AddSmmuError::Unsupported(Unsupported::Memory { bits: 40, .. })), "{error}");
    let bad = SmmuOptions { cmdq_log2: 0, ..quick() };
    let error = iommu.add_smmu(model.mmio(0), bad).unwrap_err();
    assert_eq!(error.to_string(), "cmdq_log2 = 0: must be 1 to 16");
}

#[test]
fn smmus_of_all_sorts_are_served() {
    let base = ModelSmmuConfig::default;
    for config in [
        ModelSmmuConfig { stage1: false, ..base() },
        ModelSmmuConfig { stage2: false, ..base() },
        ModelSmmuConfig { st_two_level: false, sid_bits: 10, ..base() },
        ModelSmmuConfig { sid_bits: 4, ..base() },
        ModelSmmuConfig { sid_bits: 32, ..base() },
        ModelSmmuConfig { ssid_bits: 0, cd_two_level: false, ..base() },
        ModelSmmuConfig { range_inv: false, ..base() },
        ModelSmmuConfig { cmdq_log2: 1, eventq_log2: 1, ..base() },
        ModelSmmuConfig { hyp: false, asid16: false, vmid16: false, ..base() },
        ModelSmmuConfig { stall_model: StallModel::Both, abort_only: false, ..base() },
        ModelSmmuConfig { minor: 0, bbm_level: 0, msi: false, sev: false, ats: false, pri: false, ..base() },
    ] {
        let name = format!("{config:?}");
        let (s1, s2) = (config.stage1, config.stage2);
        let rig = Rig::with(ModelConfig::with_smmu(config));
        let device = rig.add(5);
        for (stage, there) in [(Stage::S1, s1), (Stage::S2, s2)] {
            if there {
                let domain = rig.domain(stage);
                device.attach(&domain).expect(&name);
                assert!(use_and_unmap(&rig, &domain, 5, Iova(0x7000)), "{name}");
                // Many single pages at once: more commands than the smallest queue has places.
                let pages = rig.model.alloc_data(8).unwrap();
                domain.map(Iova(0x10_0000), pages.addr(), 8 * PAGE, RW).unwrap();
                rig.device(5).write(Iova(0x10_0000), &[7; 0x8000]).unwrap();
                domain.unmap(Iova(0x10_0000), 8 * PAGE).unwrap();
                rig.model.free_data(pages);
                assert!(rig.device(5).read(Iova(0x10_0000), &mut [0; 0x8000]).is_err(), "{name}");
            }
        }
        drop(device);
        rig.model.report().assert_clean();
    }
}

/// Large and small submissions on a queue of two commands, which is always full, before an SMMU that consumes one command at a time.
#[test]
fn many_threads_on_the_smallest_queue_all_get_on() {
    let config = ModelSmmuConfig { range_inv: false, cmdq_log2: 1, ..ModelSmmuConfig::default() };
    let model = Model::new(ModelConfig::with_smmu(config));
    let iommu = Iommu::new(model.platform()).unwrap();
    let options = SmmuOptions { timeout_ns: 120_000_000_000, ..quick() };
    let smmu = iommu.add_smmu(model.mmio(0), options).unwrap();
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
    let domain = iommu.paging_domain(Stage::S1, Default::default()).unwrap();
    device.attach(&domain).unwrap();
    model.set_commands_per_look(0, Some(1));
    std::thread::scope(|scope| {
        for (thread, pages) in [40, 1, 2, 7, 1, 1].into_iter().enumerate() {
            let (model, domain) = (&model, &domain);
            scope.spawn(move || {
                let iova = Iova((thread as u64 + 1) << 30);
                for _ in 0..20 {
                    let data = model.alloc_data(pages).unwrap();
                    let len = pages as u64 * PAGE;
                    domain.map(iova, data.addr(), len, RW).unwrap();
                    model.device(0, SID).write(iova, &vec![7; len as usize]).unwrap();
                    domain.unmap(iova, len).unwrap();
                    model.free_data(data);
                    assert!(model.device(0, SID).write_u64(Iova(iova.0 + len - PAGE), 1).is_err());
                }
            });
        }
    });
    model.report().assert_clean();
}

#[test]
fn reset_works_from_any_state_and_never_lets_traffic_pass() {
    let rig = Rig::new();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    assert!(use_and_unmap(&rig, &domain, SID, Iova(0x1000)));
    // Another kernel takes the running SMMU over: what the first had set up counts no more.
    let page = rig.page();
    domain.map(Iova(0x1000), page.addr(), PAGE, RW).unwrap();
    rig.device(SID).write_u64(Iova(0x1000), 1).unwrap();
    let second = Iommu::new(rig.model.platform()).unwrap();
    let smmu = second.add_smmu(rig.model.mmio(0), quick()).unwrap();
    assert!(rig.device(SID).write_u64(Iova(0x1000), 2).is_err());
    assert!(rig.device(SID).write_u64(Iova(page.addr().0), 2).is_err());
    let new = second.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
    let domain = second.paging_domain(Stage::S2, Default::default()).unwrap();
    new.attach(&domain).unwrap();
    assert!(use_and_unmap(&rig, &domain, SID, Iova(0x2000)));
    rig.model.report().assert_clean();
}

#[test]
fn base_registers_hold_device_addresses_aligned_to_what_they_point_to() {
    // Devices see RAM at an address that is nothing to the CPU; large tables must be aligned to their size all the same. The
    // model counts every base that is misaligned or outside of RAM as a violation.
    for (sid_bits, st_two_level, queue) in [(16, true, 16), (12, false, 10), (20, true, 1), (6, true, 5)] {
        let config = ModelSmmuConfig { sid_bits, st_two_level, ..ModelSmmuConfig::default() };
        let model = Model::new(ModelConfig { ram_base: PhysAddr(0x12_3456_7000), ..ModelConfig::with_smmu(config) });
        let iommu = Iommu::new(model.platform()).unwrap();
        let options = SmmuOptions { cmdq_log2: queue, eventq_log2: queue, ..quick() };
        let smmu = iommu.add_smmu(model.mmio(0), options).unwrap();
        let mmio = model.mmio(0);
        let strtab = mmio.read64(offset::STRTAB_BASE) & 0x00ff_ffff_ffff_ffc0;
        let size = if st_two_level && sid_bits > 8 { 8 << (sid_bits - 8) } else { 64 << sid_bits };
        let cmdq = mmio.read64(offset::CMDQ_BASE) & 0x00ff_ffff_ffff_ffe0;
        let eventq = mmio.read64(offset::EVENTQ_BASE) & 0x00ff_ffff_ffff_ffe0;
        for (base, size) in [(strtab, size), (cmdq, 16 << queue), (eventq, 32 << queue)] {
            assert_eq!(base % size, 0, "{base:#x} of {size:#x} bytes");
            assert!((0x12_3456_7000..0x12_3456_7000 + (64 << 20)).contains(&base));
        }
        let device = iommu.add_device(&smmu, DeviceConfig::stream(9).pasid_bits(12)).unwrap();
        let domain = iommu.paging_domain(Stage::S1, Default::default()).unwrap();
        device.attach(&domain).unwrap();
        let page = model.alloc_data(1).unwrap();
        domain.map(Iova(0), page.addr(), PAGE, RW).unwrap();
        model.device(0, 9).write_u64(Iova(0), 1).unwrap();
        model.report().assert_clean();
    }
}

#[test]
fn no_interrupt_is_enabled_before_there_is_an_event_queue_to_look_at() {
    let model = Model::new(ModelConfig::default());
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = log.clone();
    let (iommu, mmio) = spy(&model, move |offset, value| seen.lock().unwrap().push((offset, value)));
    let calls = Arc::new(AtomicU32::new(0));
    let counter = calls.clone();
    model.set_irq_hook(0, move |irq| {
        assert_eq!(irq, Irq::EventQueue);
        counter.fetch_add(1, Ordering::SeqCst);
    });
    // Rogue traffic before, during and after the reset: none of it may raise an interrupt that nobody can handle.
    let _ = model.device(0, SID).write_u64(Iova(0), 1);
    let smmu = iommu.add_smmu(mmio, SmmuOptions { interrupts: true, ..quick() }).unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    let log = log.lock().unwrap().clone();
    let at = |what: &dyn Fn(&(usize, u32)) -> bool| log.iter().position(what).unwrap();
    let queue = at(&|(offset, value)| *offset == offset::CR0 && Cr0::new_with_raw_value(*value).eventqen());
    let irqs = at(&|(offset, value)| *offset == offset::IRQ_CTRL && IrqCtrl::new_with_raw_value(*value).eventq_irqen());
    let translation = at(&|(offset, value)| *offset == offset::CR0 && Cr0::new_with_raw_value(*value).smmuen());
    assert!(queue < irqs && irqs < translation, "{log:x?}");
    // Now it works: one interrupt, one event.
    let _ = model.device(0, SID).write_u64(Iova(0), 1);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    let mut names = Vec::new();
    assert_eq!(smmu.take_events(|event| names.push(event.name())).count, 1);
    assert_eq!(names, ["C_BAD_STREAMID"]);
    model.clear_irq_hook(0);
}

#[test]
fn no_cfgi_is_announced_before_the_entry_it_is_about_is_written() {
    // At every doorbell, each CFGI in the queue finds in memory what the driver meant to write: the SMMU, made to fetch at this very
    // moment by traffic, and caching for ever, never keeps an old entry.
    let model = Model::new(ModelConfig::default());
    let traffic = model.clone();
    let looked = Arc::new(AtomicU32::new(0));
    let counter = looked.clone();
    let (iommu, mmio) = spy(&model, move |offset, _| {
        if offset == offset::CMDQ_PROD {
            // Before the SMMU sees the new commands: it fetches whatever is in memory now.
            let _ = traffic.device(0, SID).read_u64(Iova(0x1000));
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    let smmu = iommu.add_smmu(mmio, quick()).unwrap();
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
    let domains =
        [Stage::S1, Stage::S2, Stage::S1].map(|stage| iommu.paging_domain(stage, Default::default()).unwrap());
    let pages = [1, 2, 3].map(|value| {
        let page = model.alloc_data(1).unwrap();
        model.write_u64(page.addr(), value);
        page
    });
    domains.iter().zip(&pages).for_each(|(domain, page)| domain.map(Iova(0x1000), page.addr(), PAGE, RW).unwrap());
    for round in 0..12 {
        let n = round % 3;
        device.attach(&domains[n]).unwrap();
        assert_eq!(model.device(0, SID).read_u64(Iova(0x1000)), Ok(n as u64 + 1), "round {round}");
        if round % 4 == 3 {
            device.detach().unwrap();
            assert!(model.device(0, SID).read_u64(Iova(0x1000)).is_err());
        }
    }
    assert!(looked.load(Ordering::SeqCst) > 40);
    model.report().assert_clean();
}

#[test]
fn a_dead_smmu_makes_unmap_say_that_the_pages_may_still_be_reached() {
    let rig = Rig::new();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    let pages = rig.model.alloc_data(2).unwrap();
    domain.map(Iova(0x20_0000), pages.addr(), 2 * PAGE, RW).unwrap();
    rig.device(SID).write_u64(Iova(0x20_0000), 1).unwrap();
    let tables = rig.model.driver_pages();
    rig.model.set_dead(0, true);
    // Whole tables are covered: none may be freed, as the SMMU may still walk them.
    let error = domain.unmap(Iova(0x20_0000), 0x20_0000).unwrap_err();
    let UnmapError::StillReachable { bytes, source } = error else { panic!("{error}") };
    assert_eq!((bytes, source.smmu, source.cause), (2 * PAGE, rig.smmu.id(), QueueError::Timeout));
    assert_eq!(
        error.to_string(),
        "SMMU 0: invalidation failed: the SMMU did not complete its commands in time (0x2000 bytes are unmapped but may still be reached)"
    );
    assert_eq!(rig.model.driver_pages(), tables);
    // The warning was right.
    assert!(rig.device(SID).write_u64(Iova(0x20_0000), 2).is_ok());
    assert_eq!(rig.model.read_u64(pages.addr()), Some(2));

    let unconfirmed = device.detach().unwrap_err();
    assert_eq!((unconfirmed.smmu, unconfirmed.sid), (rig.smmu.id(), SID));
    // A device that is in nobody knows which state is attached to nothing any more, and its domain still owes.
    rig.model.set_dead(0, false);
    assert_eq!(device.attach(&domain), Err(AttachError::Hardware(unconfirmed)));
    let mut users = 0;
    domain.owed(|owed| users += owed.users);
    assert_eq!(users, 1);
    drop(domain);
    drop(device);
    // The SMMU has confirmed that the device is blocked: its CD table, one page, goes. The domain's tables, of which nobody can be sure,
    // do not.
    assert_eq!(rig.model.driver_pages(), tables - 1);
    rig.model.free_data(pages);
    rig.model.report().assert_clean();
}

#[test]
fn an_smmu_that_is_dead_from_the_start_gives_an_error_in_time() {
    let model = Model::new(ModelConfig::default());
    model.set_dead(0, true);
    let iommu = Iommu::new(model.platform()).unwrap();
    let error = iommu.add_smmu(model.mmio(0), quick()).unwrap_err();
    assert_eq!(error, AddSmmuError::Commands(QueueError::Timeout));
}

#[test]
fn a_refused_command_is_told_to_its_owner_and_no_other_command_is_lost() {
    let model = Model::new(ModelConfig::default());
    let armed = Arc::new(AtomicBool::new(false));
    let (ram, arm) = (model.clone(), armed.clone());
    // Once armed, the command in front of the next announced CMD_SYNC is damaged on its way.
    let (iommu, mmio) = spy(&model, move |offset, prod| {
        if offset == offset::CMDQ_PROD && arm.swap(false, Ordering::SeqCst) {
            damage_last_command(&ram, prod);
        }
    });
    let smmu = iommu.add_smmu(mmio, quick()).unwrap();
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
    let domain = iommu.paging_domain(Stage::S1, Default::default()).unwrap();
    device.attach(&domain).unwrap();
    for _ in 0..300 {
        domain.map(Iova(0x1000), PhysAddr(0x8000_0000), PAGE, RW).unwrap();
        armed.store(true, Ordering::SeqCst);
        let error = domain.unmap(Iova(0x1000), PAGE).unwrap_err();
        let UnmapError::StillReachable { source, .. } = error else { panic!("{error}") };
        assert!(matches!(source.cause, QueueError::Refused(_)), "{source}");
        assert!(source.to_string().contains("CERROR_ILL"), "{source}");
        // The next one is not troubled by it.
        domain.map(Iova(0x2000), PhysAddr(0x8000_0000), PAGE, RW).unwrap();
        domain.unmap(Iova(0x2000), PAGE).unwrap();
    }
    assert!(smmu.take_global_errors().is_empty(), "errors of commands are told to their owners");
}

#[test]
fn an_event_queue_that_overflows_says_so_once_and_goes_on() {
    let model = Model::new(ModelConfig::default());
    let iommu = Iommu::new(model.platform()).unwrap();
    let smmu = iommu.add_smmu(model.mmio(0), SmmuOptions { eventq_log2: 2, ..quick() }).unwrap();
    for round in 0..5 {
        for _ in 0..7 {
            let _ = model.device(0, SID).write_u64(Iova(0), 1);
        }
        let mut count = 0;
        let taken = smmu.take_events(|_| count += 1);
        assert_eq!((taken.count, taken.overflow, count), (4, true, 4), "round {round}");
        let taken = smmu.take_events(|_| panic!("nothing is left"));
        assert_eq!((taken.count, taken.overflow), (0, false));
        let _ = model.device(0, SID).write_u64(Iova(0), 1);
        let taken = smmu.take_events(|event| assert_eq!(event.name(), "C_BAD_STREAMID"));
        assert_eq!((taken.count, taken.overflow), (1, false));
    }
}

#[test]
fn registers_that_read_as_all_ones_confirm_nothing() {
    // With every fill level of the queue: for some of them all ones, cut to index and wrap bit, look like "all consumed".
    let gone = Arc::new(AtomicBool::new(false));
    let model = Model::new(ModelConfig::default());
    let iommu = interruptible(&model, Arc::default());
    let mmio = Spy::new(&model).gone(gone.clone());
    let options = SmmuOptions { cmdq_log2: 2, eventq_log2: 2, timeout_ns: 100_000_000, ..quick() };
    let smmu = iommu.add_smmu(mmio, options).unwrap();
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID).and_stream(SID + 1)).unwrap();
    let domain = iommu.paging_domain(Stage::S1, Default::default()).unwrap();
    device.attach(&domain).unwrap();
    for round in 0..16 {
        domain.map(Iova(0x1000), PhysAddr(0x8000_0000), PAGE, RW).unwrap();
        gone.store(true, Ordering::SeqCst);
        let error = domain.unmap(Iova(0x1000), PAGE).expect_err(&format!("round {round}: nobody answered"));
        assert!(matches!(error, UnmapError::StillReachable { .. }), "{error}");
        assert_eq!(smmu.take_events(|event| panic!("{event}")).count, 0);
        gone.store(false, Ordering::SeqCst);
        // It comes back, and one command more or less is in the queue next time.
        domain.map(Iova(0x2000), PhysAddr(0x8000_0000), PAGE, RW).unwrap();
        domain.unmap(Iova(0x2000), PAGE).unwrap();
        if round % 2 == 0 {
            device.attach(&domain).unwrap();
            drop(iommu.add_device(&smmu, DeviceConfig::stream(0x500)).unwrap());
        }
    }
}

#[test]
fn an_smmu_that_nobody_uses_any_more_aborts_all_traffic_and_reads_no_freed_memory() {
    let rig = Rig::new();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    assert!(use_and_unmap(&rig, &domain, SID, Iova(0x1000)));
    let model = rig.model.clone();
    drop((device, domain, rig));
    assert_eq!(model.driver_pages(), 0);
    let page = model.alloc_data(1).unwrap();
    for sid in [SID, SID + 1, 0x4000] {
        assert!(model.device(0, sid).write_u64(Iova(page.addr().0), 1).is_err());
    }
    model.report().assert_clean();
}

#[test]
fn threads_whose_commands_are_all_refused_are_all_told() {
    const CMDQ_LOG2: u8 = 8;
    const CMDQ_WRAP: u32 = (2 << CMDQ_LOG2) - 1;
    let model = Model::new(ModelConfig::default());
    let armed = Arc::new(AtomicBool::new(false));
    let (ram, arm) = (model.clone(), armed.clone());
    let rung = AtomicU32::new(0);
    let (iommu, mmio) = spy(&model, move |offset, prod| {
        if offset == offset::CMDQ_PROD {
            let mut at = rung.swap(prod, Ordering::SeqCst);
            // One doorbell may be for several unmaps, of a TLBI and a CMD_SYNC each.
            while arm.load(Ordering::SeqCst) && at != prod {
                at = (at + 2) & CMDQ_WRAP;
                damage_last_command(&ram, at);
            }
        }
    });
    let options = SmmuOptions { timeout_ns: 2_000_000_000, cmdq_log2: CMDQ_LOG2, ..quick() };
    let smmu = iommu.add_smmu(mmio, options).unwrap();
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
    let domain = iommu.paging_domain(Stage::S1, Default::default()).unwrap();
    device.attach(&domain).unwrap();
    armed.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        for thread in 0..48 {
            let domain = &domain;
            scope.spawn(move || {
                for _ in 0..5 {
                    let iova = Iova(thread * PAGE);
                    domain.map(iova, PhysAddr(0x8000_0000), PAGE, RW).unwrap();
                    domain.unmap(iova, PAGE).expect_err("every command was refused");
                }
            });
        }
    });
    armed.store(false, Ordering::SeqCst);
    domain.map(Iova(0), PhysAddr(0x8000_0000), PAGE, RW).unwrap();
    domain.unmap(Iova(0), PAGE).unwrap();
}

//! Registers, memory and the oracle: guards, acknowledgements, ownership, injected failures, races.

mod common;

use common::*;
use smmuv3::arch::regs::{Cr0, Gbpa, offset};
use smmuv3::arch::{Command, Features, Granule, Stage, Ste};
use smmuv3::platform::{Iova, Mmio, PhysAddr, Platform};
use smmuv3_model::{DeviceThread, DmaError, Model, ModelConfig, ModelSmmuConfig, POISON, Targets};

#[test]
fn the_id_registers_say_what_was_configured() {
    let config = ModelSmmuConfig { ssid_bits: 8, range_inv: false, hyp: false, sid_bits: 9, minor: 1, ..exact() };
    let features = Features::from(config.id_regs());
    assert!(features.stage1 && features.stage2 && features.aarch64_tables && features.little_endian);
    assert!(features.coherent && features.ats && features.msi && features.sev && !features.pri && !features.hyp);
    assert!(features.st_two_level && features.cd_two_level && features.abort_only && !features.range_inv);
    assert_eq!((features.asid_bits, features.vmid_bits, features.sid_bits, features.ssid_bits), (16, 16, 9, 8));
    assert_eq!((features.cmdq_log2, features.eventq_log2, features.oas.bits(), features.minor), (19, 19, 48, 1));
    let model = Model::new(small(config.clone()));
    assert_eq!(model.mmio(0).read32(offset::IDR0), config.id_regs().idr0.raw_value());
    assert_eq!(model.features(0), features);
}

#[test]
fn an_update_takes_effect_only_for_who_polls() {
    let rig = Rig::off(exact());
    let on = Cr0::default().with_eventqen(true).raw_value();
    rig.mmio.write32(offset::CR0, on);
    let acks: Vec<_> = (0..5).map(|_| rig.mmio.read32(offset::CR0ACK)).collect();
    assert_eq!(acks, [0, 0, 0, on, on]);
    // Changing a field back before it is acknowledged is wrong; changing another is not.
    rig.mmio.write32(offset::CR0, 0);
    rig.mmio.write32(offset::CR0, 0b1000);
    assert_eq!(rig.model.report().violation_count, 0);
    rig.mmio.write32(offset::CR0, on);
    assert_eq!(rig.model.report().violation_count, 1);
}

#[test]
fn a_disabled_smmu_lets_traffic_pass_or_aborts_it_as_gbpa_says() {
    let rig = Rig::off(exact());
    let data = rig.model.alloc_data(1).unwrap();
    let read = || rig.device().read_u64(Iova(data.addr().0));
    assert_eq!(read(), Ok(POISON));
    rig.mmio.write32(offset::GBPA, Gbpa::default().with_abort(true).with_update(true).raw_value());
    assert_eq!(read(), Ok(POISON), "not polled yet");
    rig.gbpa_abort_done();
    assert_eq!(read(), Err(DmaError::Aborted(None)));
    rig.mmio.write32(offset::GBPA, 0);
    assert_eq!((rig.model.report().violation_count, read()), (1, Err(DmaError::Aborted(None))), "without UPDATE");
    rig.gbpa_abort(false);
    assert_eq!(read(), Ok(POISON));
}

impl Rig {
    fn gbpa_abort_done(&self) {
        while Gbpa::new_with_raw_value(self.mmio.read32(offset::GBPA)).update() {}
    }
}

#[test]
fn registers_that_are_in_use_cannot_be_changed() {
    let rig = Rig::new();
    let base = rig.mmio.read64(offset::STRTAB_BASE);
    let before = [offset::STRTAB_BASE_CFG, offset::CR2, offset::CMDQ_CONS, offset::EVENTQ_PROD, offset::CR1]
        .map(|at| (at, rig.mmio.read32(at)));
    rig.mmio.write64(offset::STRTAB_BASE, 0x8000_0000);
    rig.mmio.write64(offset::CMDQ_BASE, 0x8000_0000);
    rig.mmio.write64(offset::EVENTQ_BASE, 0x8000_0000);
    for (at, old) in before {
        rig.mmio.write32(at, old ^ 1);
    }
    assert_eq!(rig.model.report().violation_count, 8, "{:#?}", rig.model.report().violations);
    assert_eq!(rig.mmio.read64(offset::STRTAB_BASE), base);
    assert_eq!(rig.mmio.read64(offset::CMDQ_BASE), rig.cmdq.0 | u64::from(CMDQ_LOG2));
    for (at, old) in before {
        assert_eq!(rig.mmio.read32(at), old, "{at:#x}");
    }
}

#[test]
fn what_a_lenient_smmu_would_let_pass_is_a_violation() {
    type Step = fn(&Rig);
    let cases: [(&str, Step); 14] = [
        ("unknown offset", |rig| assert_eq!(rig.mmio.read32(0x9c0), 0)),
        ("too narrow", |rig| rig.mmio.write32(offset::STRTAB_BASE, 0)),
        ("too wide", |rig| assert_eq!(rig.mmio.read64(offset::CMDQ_PROD), 0)),
        ("queue misaligned", |rig| rig.mmio.write64(offset::CMDQ_BASE, 0x8000_0020 | 4)),
        ("queue too large", |rig| rig.mmio.write64(offset::EVENTQ_BASE, 0x8000_0000 | 20)),
        ("reserved bits", |rig| rig.mmio.write64(offset::STRTAB_BASE, 1 << 63 | 0x8000_0000)),
        ("reserved bits", |rig| rig.mmio.write32(offset::CR0, 1 << 20)),
        ("reserved bits", |rig| rig.mmio.write32(offset::IRQ_CTRL, 8)),
        ("GERRORN of nothing", |rig| rig.mmio.write32(offset::GERRORN, 1)),
        ("stream table misaligned", |rig| {
            rig.mmio.write64(offset::STRTAB_BASE, 0x8000_0040);
            rig.mmio.write32(offset::STRTAB_BASE_CFG, 6);
            rig.mmio.write32(offset::CR0, 1);
        }),
        ("stream table not in memory", |rig| {
            rig.mmio.write64(offset::STRTAB_BASE, 0x1_0000);
            rig.mmio.write32(offset::STRTAB_BASE_CFG, 6);
            rig.mmio.write32(offset::CR0, 1);
        }),
        ("EVENTQ_CONS beyond PROD", |rig| {
            rig.queues_on();
            rig.mmio.write32(offset::EVENTQ_CONS, 1);
        }),
        ("bits above the wrap bit", |rig| {
            rig.queues_on();
            rig.mmio.write32(offset::CMDQ_PROD, 1 << 12);
        }),
        ("dma_free of something else", |rig| rig.platform.dma_free(rig.cmdq, 64, 64)),
    ];
    for (name, step) in cases {
        let rig = Rig::off(ModelSmmuConfig { eventq_log2: 19, ..exact() });
        step(&rig);
        assert_eq!(rig.model.report().violation_count, 1, "{name}: {:?}", rig.model.report().violations);
    }
}

#[test]
fn registers_that_reset_leaves_unknown_hold_garbage() {
    let a = Model::new(small(exact()));
    let b = Model::new(ModelConfig { seed: 2, ..small(exact()) });
    for at in [offset::STRTAB_BASE, offset::CMDQ_BASE, offset::EVENTQ_BASE, offset::EVENTQ_IRQ_CFG0] {
        assert_ne!(a.mmio(0).read64(at), b.mmio(0).read64(at), "{at:#x}");
    }
    for at in [offset::CR0, offset::CR0ACK, offset::GERROR, offset::GERRORN, offset::IRQ_CTRL] {
        assert_eq!(a.mmio(0).read32(at), 0, "{at:#x}");
    }
    let again = Model::new(small(exact()));
    assert_eq!(a.mmio(0).read64(offset::CMDQ_BASE), again.mmio(0).read64(offset::CMDQ_BASE), "the seed decides");
}

#[test]
fn an_interrupt_message_left_unconfigured_is_caught() {
    let rig = Rig::new();
    let page = rig.alloc(4096);
    rig.platform.dma_free(page, 4096, 4096);
    rig.mmio.write64(offset::EVENTQ_IRQ_CFG0, page.0);
    rig.mmio.write32(offset::IRQ_CTRL, 0b100);
    while rig.mmio.read32(offset::IRQ_CTRLACK) != 0b100 {}
    let _ = rig.device().read_u64(Iova(0));
    assert_eq!(rig.model.report().stale_walks, 1);
}

#[test]
fn dma_to_memory_of_the_driver_is_stale() {
    let rig = Rig::new();
    rig.ste(SID, Ste::Bypass);
    rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
    rig.device().read_u64(Iova(rig.cmdq.0)).unwrap();
    let report = rig.model.report();
    assert_eq!((report.stale_dma, report.dma_checked), (1, 1));
    assert!(report.histories[0].to_string().contains("given to the driver"), "{}", report.histories[0]);
    rig.model.clear_report();
    rig.model.report().assert_clean();
}

#[test]
fn allocations_are_aligned_counted_and_poisoned_when_they_go() {
    let model = Model::new(small(exact()));
    let platform = model.platform();
    let big = platform.dma_alloc(0x3_0000, 0x1_0000).unwrap();
    let small = platform.dma_alloc(64, 64).unwrap();
    assert!(big.0.is_multiple_of(0x1_0000) && big.0 >= 0x8000_0000);
    assert_eq!((model.driver_pages(), model.driver_allocs()), (0x31, 2));
    assert!(model.write_u64(small, 1));
    platform.dma_free(small, 64, 64);
    platform.dma_free(big, 0x3_0000, 0x1_0000);
    assert_eq!((model.driver_pages(), model.read_u64(small)), (0, Some(POISON)));
    let data = model.alloc_data(3).unwrap();
    assert_ne!(data.addr(), big, "freed pages rest before they are used again");
    assert_eq!((data.pages(), data.size(), model.data_pages()), (3, 0x3000, 3));
    model.free_data(data);
    assert_eq!(model.data_pages(), 0);
    assert!(model.alloc_data(usize::MAX).is_none());
    model.report().assert_clean();
}

#[test]
fn allocations_fail_when_told_to() {
    let model = Model::new(small(exact()));
    let alloc = || model.platform().dma_alloc(64, 64).is_some();
    model.fail_allocs_after(2);
    assert_eq!([alloc(), alloc(), alloc(), alloc()], [true, true, false, false]);
    model.fail_all_allocs(false);
    assert!(alloc());
    model.fail_all_allocs(true);
    assert!(!alloc() && model.alloc_data(1).is_some());
}

#[test]
fn a_device_on_a_thread_sees_no_stale_page_while_the_driver_unmaps_rightly_and_some_if_it_does_not() {
    //   driver                      device
    //   map, add to the targets
    //                               reads and writes
    //   unmap, (TLBI, SYNC)
    //   free
    //                               reads and writes: faults, or is caught
    for right in [true, false] {
        let rig = Rig::new();
        let table = rig.table(Stage::S1, Granule::K4, 48);
        rig.attach_s1(SID, &table, 1, 0);
        let targets = Targets::new();
        let threads: Vec<_> = (0..2).map(|seed| DeviceThread::start(rig.device(), targets.clone(), seed)).collect();
        let accesses = || threads.iter().map(|thread| thread.stats().accesses).sum::<u64>();
        let let_the_devices_work = || {
            let enough = accesses() + 10;
            while accesses() < enough {
                std::thread::yield_now();
            }
        };
        for page in 0..100u64 {
            let iova = 0x10_0000 + page % 8 * 4096;
            let data = rig.model.alloc_data(1).unwrap();
            rig.map(&table, iova, data.addr(), 3, RW);
            targets.add(Iova(iova));
            let_the_devices_work();
            rig.unmap(&table, iova, 3);
            if right {
                rig.cmd_sync(Command::TlbiNhVa { vmid: 0, asid: 1, addr: one(iova, true) });
            }
            rig.model.free_data(data);
            let_the_devices_work();
            targets.remove(Iova(iova));
        }
        let stats: Vec<_> = threads.into_iter().map(DeviceThread::stop).collect();
        assert_eq!(rig.model.report().stale_dma > 0, !right, "{stats:?}");
        assert_eq!(stats.iter().any(|stats| stats.faults > 0), right, "{stats:?}");
    }
}

#[test]
fn the_window_and_the_model_see_the_same_memory() {
    let model = Model::new(small(exact()));
    let platform = model.platform();
    assert_eq!((platform.window().base(), platform.window().size()), (PhysAddr(0x8000_0000), 16 << 20));
    let addr = platform.dma_alloc(4096, 4096).unwrap();
    assert!(model.write_bytes(PhysAddr(addr.0 + 5), &[1, 2, 3, 4, 5]));
    let mut back = [0; 5];
    assert!(model.read_bytes(PhysAddr(addr.0 + 5), &mut back));
    assert_eq!(back, [1, 2, 3, 4, 5]);
    assert!(!model.write_u64(PhysAddr(0x1000), 0) && model.read_u64(PhysAddr(u64::MAX - 7)).is_none());
    let (first, second) = (platform.now_ns(), platform.now_ns());
    assert!(first <= second);
    assert_eq!(platform.cpu_hint(), platform.cpu_hint());
}

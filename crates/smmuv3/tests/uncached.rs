//! SMMUs that read tables and queues past the CPU's caches (`IDR0.COHACC` = 0). The model's caches write back what stands in them when they are told to, and
//! at any other time.

mod common;

use common::*;
use smmuv3::arch::regs::{Cr1, offset};
use smmuv3::arch::{Command, Event, MAIR, RawCd, RawSte, Stage, SyncSignal};
use smmuv3::platform::{DmaWindow, Iova, Mmio, PhysAddr, Platform};
use smmuv3::{DeviceConfig, Geometry, Iommu, SmmuOptions, SvaTable};
use smmuv3_model::{Model, ModelConfig, ModelMmio, ModelPlatform, ModelSmmuConfig};
use std::cell::RefCell;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};

fn config(seed: u64) -> ModelConfig {
    let smmu = ModelSmmuConfig { coherent: false, ..Default::default() };
    ModelConfig { seed, ..ModelConfig::with_smmu(smmu) }
}

/// Pages, blocks, and tables that come and go.
#[test]
fn an_smmu_sees_each_change_of_a_translation_table() {
    const BLOCK: u64 = 2 << 20;
    for seed in 0..8 {
        let rig = Rig::with(config(seed));
        let device = rig.add(SID);
        for stage in [Stage::S1, Stage::S2] {
            let domain = rig.domain(stage);
            device.attach(&domain).unwrap();
            let block = rig.model.alloc_data_aligned(512, BLOCK as usize).unwrap();
            for round in 0..8 {
                let at = round * (1 << 30);
                assert!(use_and_unmap(&rig, &domain, SID, Iova(at + 0x3000)));
                for len in [BLOCK, PAGE, 3 * PAGE, BLOCK - PAGE] {
                    domain.map(Iova(at), block.addr(), len, RW).unwrap();
                    for page in [0, len / PAGE - 1] {
                        rig.device(SID).write_u64(Iova(at + page * PAGE), round).unwrap();
                    }
                    // In new tables there is nothing else.
                    assert!(rig.device(SID).write_u64(Iova(at + 9 * BLOCK), round).is_err());
                    domain.unmap(Iova(at), len).unwrap();
                    for page in [0, len / PAGE - 1] {
                        assert!(rig.device(SID).write_u64(Iova(at + page * PAGE), round).is_err());
                    }
                }
            }
            assert!(rig.events().iter().all(|event| event.name() == "F_TRANSLATION"));
            device.detach().unwrap();
            rig.model.free_data(block);
        }
        rig.model.report().assert_clean();
    }
}

#[test]
fn an_smmu_sees_each_change_of_streams_and_pasids() {
    for seed in 0..8 {
        let rig = Rig::with(config(seed));
        let domains = [Stage::S1, Stage::S2, Stage::S1].map(|stage| rig.domain(stage));
        let page = rig.page();
        for (domain, at) in domains.iter().zip(1..) {
            domain.map(Iova(at * PAGE), page.addr(), PAGE, RW).unwrap();
        }
        // Some of them behind level 1 descriptors of their own.
        for sid in [1, 2, 0x300, 0x301, 0x1200] {
            let device = rig.iommu.add_device(&rig.smmu, DeviceConfig::stream(sid).pasid_bits(8)).unwrap();
            let hw = rig.device(sid);
            for (domain, at) in domains.iter().zip(1..) {
                device.attach(domain).unwrap();
                hw.write_u64(Iova(at * PAGE), 7).unwrap();
                assert!(hw.write_u64(Iova((at + 1) * PAGE), 7).is_err());
            }
            for pasid in [1, 63, 64, 200] {
                device.attach_pasid(pasid, &domains[0]).unwrap();
                hw.with_ssid(pasid).write_u64(Iova(PAGE), 7).unwrap();
                device.detach_pasid(pasid).unwrap();
                assert!(hw.with_ssid(pasid).write_u64(Iova(PAGE), 7).is_err());
            }
            device.detach().unwrap();
            assert!(hw.write_u64(Iova(PAGE), 7).is_err());
        }
        drop(domains);
        rig.model.free_data(page);
        rig.model.report().assert_clean();
    }
}

#[test]
fn commands_around_the_end_of_the_queue_are_seen() {
    for log2 in 1..4 {
        let model = Model::new(config(1));
        let iommu = Iommu::new(model.platform()).unwrap();
        let smmu = iommu.add_smmu(model.mmio(0), SmmuOptions { cmdq_log2: log2, ..quick() }).unwrap();
        let rig = Rig { model, iommu, smmu };
        let devices = [1, 2, 3].map(|sid| rig.add(sid));
        let domain = rig.domain(Stage::S1);
        devices.iter().for_each(|device| device.attach(&domain).unwrap());
        for at in 1..100 {
            assert!(use_and_unmap(&rig, &domain, 1, Iova(at * 0x20_3000)));
            rig.model.take_commands(0);
            let mut batch = domain.gather();
            batch.unmap(Iova(at * PAGE), PAGE).unwrap();
            batch.unmap(Iova((at + 9) * PAGE), PAGE).unwrap();
            batch.flush().unwrap();
            let names: Vec<_> = rig.model.take_commands(0).iter().map(|command| command.mnemonic()).collect();
            assert_eq!(names, ["TLBI_NH_VA", "TLBI_NH_VA", "SYNC"]);
        }
        rig.model.report().assert_clean();
    }
}

/// They would lie in the CPU's caches.
#[test]
fn no_message_is_waited_for() {
    let rig = Rig::with(config(0));
    let _device = rig.add(SID);
    let signals: Vec<_> =
        rig.model.take_commands(0).into_iter().filter(|command| matches!(command, Command::Sync(_))).collect();
    assert!(!signals.is_empty());
    assert!(signals.iter().all(|signal| *signal == Command::Sync(SyncSignal::Sev)), "{signals:?}");
}

/// More of them than the queue has places.
#[test]
fn events_are_read_as_the_smmu_wrote_them() {
    let rig = Rig::with(config(0));
    let domain = rig.domain(Stage::S1);
    let device = rig.add(SID);
    device.attach(&domain).unwrap();
    for at in 1..300 {
        rig.device(SID).read_u64(Iova(at * PAGE)).unwrap_err();
        let addresses: Vec<_> = rig
            .events()
            .iter()
            .map(|event| match event {
                Event::FTranslation(_, fault) => fault.input.0,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(addresses, [at * PAGE]);
    }
}

/// Threads that add tables, map in the tables of others, and take them out.
#[test]
fn what_a_thread_has_mapped_is_seen_whoever_has_linked_the_table() {
    const THREADS: u64 = 4;
    let rig = Rig::with(config(1));
    let domain = rig.iommu.paging_domain(Stage::S1, Geometry::default()).unwrap();
    let device = rig.add(SID);
    device.attach(&domain).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (rig, domain) = (&rig, &domain);
            scope.spawn(move || {
                for round in 0..200 {
                    // All threads meet in a new table each time.
                    let iova = Iova((round << 21) + thread * PAGE);
                    assert!(use_and_unmap(rig, domain, SID, iova));
                }
            });
        }
    });
    domain.unmap(Iova(0), 200 << 21).unwrap();
    rig.model.report().assert_clean();
}

/// Attributes say so, too: an SMMU need not see what a cacheable access finds in memory.
#[test]
fn tables_and_queues_are_read_as_non_cacheable_memory() {
    let rig = Rig::with(config(0));
    let device = rig.add(SID);
    let cr1 = Cr1::new_with_raw_value(rig.model.mmio(0).read32(offset::CR1));
    assert_eq!([cr1.table_ic(), cr1.table_oc(), cr1.queue_ic(), cr1.queue_oc()].map(|field| field.value()), [0; 4]);
    let words = |at: u64| core::array::from_fn(|word| rig.model.read_u64(PhysAddr(at + 8 * word as u64)).unwrap());
    let base = rig.model.mmio(0).read64(offset::STRTAB_BASE) & 0x000f_ffff_ffff_ffc0;
    let leaf = rig.model.read_u64(PhysAddr(base)).unwrap() & 0x000f_ffff_ffff_ffc0;
    for stage in [Stage::S1, Stage::S2] {
        let domain = rig.domain(stage);
        device.attach(&domain).unwrap();
        let ste: [u64; 8] = words(leaf + 64 * u64::from(SID));
        assert_eq!(RawSte(ste).uncached(), RawSte(ste), "{stage:?}");
        if stage == Stage::S1 {
            let cd: [u64; 8] = words(ste[0] & 0x000f_ffff_ffff_ffc0);
            assert!(cd[0] & 1 << 31 != 0);
            assert_eq!(RawCd(cd).uncached(), RawCd(cd));
        }
    }
}

/// Such a table is changed by CPUs alone, and nobody cleans it.
#[test]
fn sva_is_refused() {
    let rig = Rig::with(config(0));
    let device = rig.iommu.add_device(&rig.smmu, DeviceConfig::stream(SID).pasid_bits(4)).unwrap();
    let table = SvaTable { root: PhysAddr(0x8000_0000), geometry: Geometry::default(), mair: MAIR };
    let sva = rig.iommu.sva_domain(table).unwrap();
    let error = device.attach_pasid(1, &sva).unwrap_err();
    assert!(error.to_string().contains("COHACC"), "{error}");
}

/// Where a thread stops, and is told to go on.
enum Stop {
    /// As often as it asks for the window.
    Window(u32),
    Barrier,
}

/// Where, whom to tell, and who tells.
type Stopped = (Stop, Sender<()>, Receiver<()>);

thread_local!(static STOP: RefCell<Option<Stopped>> = const { RefCell::new(None) });

/// The model's platform, with stops.
#[derive(Clone)]
struct Stopping(ModelPlatform);

impl Stopping {
    fn pass(&self, barrier: bool) {
        let stop = STOP.with_borrow_mut(|stop| {
            if let Some((Stop::Window(left @ 1..), ..)) = stop
                && !barrier
            {
                *left -= 1;
            }
            stop.take_if(|(stop, ..)| matches!((stop, barrier), (Stop::Window(0), false) | (Stop::Barrier, true)))
        });
        if let Some((_, reached, go)) = stop {
            reached.send(()).unwrap();
            go.recv().unwrap();
        }
    }
}

impl Platform for Stopping {
    type Mmio = ModelMmio;
    type RawMutex = <ModelPlatform as Platform>::RawMutex;
    type Rcu = <ModelPlatform as Platform>::Rcu;
    const CACHE_MAINTENANCE: bool = true;

    fn window(&self) -> &DmaWindow {
        self.pass(false);
        self.0.window()
    }
    fn dma_alloc(&self, size: usize, align: usize) -> Option<PhysAddr> {
        self.0.dma_alloc(size, align)
    }
    fn dma_free(&self, addr: PhysAddr, size: usize, align: usize) {
        self.0.dma_free(addr, size, align);
    }
    fn full_barrier(&self) {
        self.0.full_barrier();
        self.pass(true);
    }
    fn write_barrier(&self) {
        self.0.write_barrier();
    }
    fn read_barrier(&self) {
        self.0.read_barrier();
    }
    fn clean(&self, words: &[AtomicU64]) {
        self.0.clean(words);
    }
    fn discard(&self, words: &[AtomicU64]) {
        self.0.discard(words);
    }
    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }
    fn relax(&self) {
        self.0.relax();
    }
    fn cpu_hint(&self) -> usize {
        self.0.cpu_hint()
    }
}

/// A thread is about to clear pages in a table, or a block; another takes that table out, and has not invalidated yet. The SMMU may still walk the table.
#[test]
fn what_is_unmapped_in_a_table_that_was_just_taken_out_is_not_reached() {
    const GIB: u64 = 1 << 30;
    const BLOCK: u64 = 2 << 20;
    let at = 4 * GIB;
    for (first, size, count) in [(at + PAGE, PAGE, 1), (at + PAGE, PAGE, 2), (at + BLOCK, BLOCK, 2)] {
        for (stops, seed) in (1..8).flat_map(|stops| (0..6).map(move |seed| (stops, seed))) {
            let model = Model::new(config(seed));
            let iommu = Iommu::new(Stopping(model.platform())).unwrap();
            let smmu = iommu.add_smmu(model.mmio(0), quick()).unwrap();
            let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).unwrap();
            let domain = iommu.paging_domain(Stage::S1, Geometry::default()).unwrap();
            device.attach(&domain).unwrap();
            let memory = model.alloc_data_aligned((4 * size / PAGE) as usize, size as usize).unwrap();
            domain.map(Iova(first), memory.addr(), 4 * size, RW).unwrap();
            let hw = model.device(0, SID);
            (0..4).for_each(|number| hw.write_u64(Iova(first + number * size), 1).unwrap());
            std::thread::scope(|scope| {
                let unmap = |stop, iova, len| {
                    let (reached, is_there) = channel();
                    let (may_go, go) = channel();
                    let domain = &domain;
                    let thread = scope.spawn(move || {
                        STOP.set(Some((stop, reached, go)));
                        domain.unmap(Iova(iova), len).unwrap();
                        STOP.set(None);
                    });
                    // An error: it is through.
                    let _ = is_there.recv();
                    (thread, may_go)
                };
                let (small, small_may_go) = unmap(Stop::Window(stops), first, count * size);
                let (large, large_may_go) = unmap(Stop::Barrier, at, size * 512);
                let _ = small_may_go.send(());
                small.join().unwrap();
                assert!(hw.write_u64(Iova(first), 2).is_err(), "{size:#x} bytes, stop {stops}, seed {seed}");
                large_may_go.send(()).unwrap();
                large.join().unwrap();
            });
            assert!(hw.write_u64(Iova(first + 3 * size), 3).is_err());
            drop((device, domain));
            model.free_data(memory);
            model.report().assert_clean();
        }
    }
}

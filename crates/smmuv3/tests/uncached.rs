//! SMMUs that read tables and queues past the CPU's caches (`IDR0.COHACC` = 0). The model's caches write back what stands in them when they are told to, and
//! at any other time.

mod common;

use common::*;
use smmuv3::arch::regs::{Cr1, offset};
use smmuv3::arch::{Command, Event, RawCd, RawSte, Stage, SyncSignal};
use smmuv3::platform::{Iova, Mmio, PhysAddr};
use smmuv3::{DeviceConfig, Geometry, Iommu, SmmuOptions};
use smmuv3_model::{Model, ModelConfig, ModelSmmuConfig};

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

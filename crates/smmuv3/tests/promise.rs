//! The promise: when unmap returns, no device can reach the pages any more. And that the model would notice: for
//! each step that the promise rests on, a run in which the SMMU ignores the step, as if the driver had left it out.

mod common;

use common::*;
use smmuv3::arch::Stage;
use smmuv3::platform::Iova;
use smmuv3_model::{ModelConfig, ModelSmmuConfig, Sabotage};

const IOVA: Iova = Iova(0x10_0000);

#[test]
fn after_unmap_the_device_faults_and_the_page_is_safe() {
    for stage in [Stage::S1, Stage::S2] {
        let rig = Rig::new();
        let (device, domain) = (rig.add(SID), rig.domain(stage));
        device.attach(&domain).unwrap();
        assert!(use_and_unmap(&rig, &domain, SID, IOVA));
        let events = rig.events();
        assert_eq!(events.len(), 1, "{events:?}");
        assert_eq!(events[0].name(), "F_TRANSLATION");
        assert_eq!(events[0].input_address(), Some(IOVA));
        assert_eq!(events[0].stream().map(|stream| stream.sid), Some(SID));
        rig.model.report().assert_clean();
    }
}

#[test]
fn after_unmap_of_blocks_and_whole_tables_the_device_faults() {
    for stage in [Stage::S1, Stage::S2] {
        let rig = Rig::new();
        let (device, domain) = (rig.add(SID), rig.domain(stage));
        device.attach(&domain).unwrap();
        let block = rig.model.alloc_data_aligned(512, 2 << 20).unwrap();
        // A block, unmapped whole; then pages in the same place, so that a table comes and goes; then a block again.
        for pages in [false, true, false, true] {
            if pages {
                (0..512).for_each(|n| {
                    let (iova, paddr) = (Iova(0x20_0000 + n * PAGE), block.addr().0 + n * PAGE);
                    domain.map(iova, smmuv3::platform::PhysAddr(paddr), PAGE, RW).unwrap();
                });
            } else {
                domain.map(Iova(0x20_0000), block.addr(), 2 << 20, RW).unwrap();
            }
            for n in [0, 1, 255, 511] {
                rig.device(SID).write_u64(Iova(0x20_0000 + n * PAGE), n).unwrap();
                assert_eq!(rig.model.read_u64(smmuv3::platform::PhysAddr(block.addr().0 + n * PAGE)), Some(n));
            }
            assert_eq!(domain.unmap(Iova(0x20_0000), 2 << 20).unwrap().bytes, 2 << 20);
            for n in [0, 1, 255, 511] {
                assert!(rig.device(SID).read_u64(Iova(0x20_0000 + n * PAGE)).is_err());
            }
        }
        rig.model.free_data(block);
        rig.model.report().assert_clean();
    }
}

#[test]
fn without_the_tlbi_at_unmap_the_model_finds_stale_dma() {
    let rig = Rig::new();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    rig.model.sabotage(0, Sabotage::IgnoreTlbiByAddress);
    assert!(!use_and_unmap(&rig, &domain, SID, IOVA));
    assert_eq!(rig.model.report().stale_dma, 1);
}

#[test]
fn without_the_sync_after_the_tlbi_the_model_finds_stale_dma() {
    for stage in [Stage::S1, Stage::S2] {
        let rig = Rig::late();
        let (device, domain) = (rig.add(SID), rig.domain(stage));
        device.attach(&domain).unwrap();
        rig.model.sabotage(0, Sabotage::IgnoreSync);
        assert!(!use_and_unmap(&rig, &domain, SID, IOVA));
        assert_eq!(rig.model.report().stale_dma, 1);
    }
}

#[test]
fn without_the_cfgi_at_attach_the_device_stays_where_it_was() {
    let rig = Rig::new();
    let (device, first, second) = (rig.add(SID), rig.domain(Stage::S1), rig.domain(Stage::S2));
    device.attach(&first).unwrap();
    // The SMMU has the STE and CD of the first domain in its cache.
    assert!(use_and_unmap(&rig, &first, SID, IOVA));
    rig.model.sabotage(0, Sabotage::IgnoreCfgi);
    device.attach(&second).unwrap();
    let page = rig.page();
    second.map(IOVA, page.addr(), PAGE, RW).unwrap();
    assert!(rig.device(SID).write_u64(IOVA, 1).is_err(), "the SMMU uses the new STE although it was not told to");

    // And worse: detached, it still reaches what the domain maps, and what was freed.
    let rig = Rig::new();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    let page = rig.page();
    domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
    rig.device(SID).write_u64(IOVA, 1).unwrap();
    rig.model.sabotage(0, Sabotage::IgnoreCfgi);
    device.detach().unwrap();
    // No device is attached: nothing is owed, and nothing is invalidated.
    domain.unmap(IOVA, PAGE).unwrap();
    rig.model.free_data(page);
    let _ = rig.device(SID).write_u64(IOVA, 2);
    let _ = rig.device(SID).read_u64(Iova(IOVA.0 + (1 << 30)));
    drop(domain);
    let _ = rig.device(SID).read_u64(Iova(IOVA.0 + (1 << 30)));
    let report = rig.model.report();
    assert!(report.stale_dma + report.stale_walks > 0, "{report:?}");
}

/// Attaches `SID` to a domain, uses `IOVA`, detaches it, unmaps without any invalidation being owed, and frees the page. Then a second domain gets
/// the same tag, as tags run out, and its device uses the same IOVA.
fn reuse_a_tag(rig: &Rig, stage: Stage) {
    let (device, domain) = (rig.add(SID), rig.domain(stage));
    device.attach(&domain).unwrap();
    let mut tag = None;
    domain.owed(|owed| tag = Some(owed.key.id()));
    let page = rig.page();
    domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
    rig.device(SID).write_u64(IOVA, 1).unwrap();
    device.detach().unwrap();
    assert_eq!(domain.unmap(IOVA, PAGE).unwrap().wait_rounds, 0, "nothing is owed by a domain without devices");
    rig.model.free_data(page);
    drop(domain);
    // With 8 bits, 255 domains later the tag comes round.
    for _ in 0..255 {
        let domain = rig.domain(stage);
        device.attach(&domain).unwrap();
        let mut now = None;
        domain.owed(|owed| now = Some(owed.key.id()));
        if now == tag {
            let _ = rig.device(SID).write_u64(IOVA, 2);
            return;
        }
        device.detach().unwrap();
    }
    panic!("the tag did not come round");
}

fn small_tags() -> Rig {
    Rig::with(ModelConfig::with_smmu(ModelSmmuConfig { asid16: false, vmid16: false, ..Default::default() }))
}

#[test]
fn a_tag_is_clean_when_it_is_used_again() {
    for stage in [Stage::S1, Stage::S2] {
        let rig = small_tags();
        reuse_a_tag(&rig, stage);
        rig.model.report().assert_clean();
    }
}

#[test]
fn without_the_tag_flush_at_the_last_detach_the_model_finds_stale_dma() {
    for stage in [Stage::S1, Stage::S2] {
        let rig = small_tags();
        rig.model.sabotage(0, Sabotage::IgnoreTlbiByTag);
        reuse_a_tag(&rig, stage);
        assert_eq!(rig.model.report().stale_dma, 1);
    }
}

#[test]
fn without_invalidation_of_walk_caches_the_model_finds_walks_of_freed_tables() {
    let rig = Rig::new();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    rig.model.sabotage(0, Sabotage::TreatTlbiAsLeaf);
    let page = rig.page();
    domain.map(Iova(0x20_0000), page.addr(), PAGE, RW).unwrap();
    rig.device(SID).write_u64(Iova(0x20_0000), 1).unwrap();
    // Covers the whole table, which is freed.
    domain.unmap(Iova(0x20_0000), 2 << 20).unwrap();
    let _ = rig.device(SID).read_u64(Iova(0x20_1000));
    assert!(rig.model.report().stale_walks > 0);
}

#[test]
fn an_unmap_costs_one_command_one_sync_and_one_wait_and_nothing_without_devices() {
    let rig = Rig::new();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    let page = rig.page();
    let cost = |pages: u64| {
        rig.model.take_commands(0);
        domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
        let report = domain.unmap(IOVA, pages * PAGE).unwrap();
        let commands: Vec<_> = rig.model.take_commands(0).iter().map(|command| command.mnemonic()).collect();
        (report.wait_rounds, commands)
    };
    assert_eq!(cost(1), (0, vec![]));
    device.attach(&domain).unwrap();
    assert_eq!(cost(1), (1, vec!["TLBI_NH_VA", "SYNC"]));
    assert_eq!(cost(512), (1, vec!["TLBI_NH_VA", "SYNC"]));
    // Where nothing is mapped it is invalidated all the same: another call may have unmapped it and not be through.
    assert_eq!(domain.unmap(IOVA, PAGE).unwrap().wait_rounds, 1);
    device.detach().unwrap();
    assert_eq!(cost(1), (0, vec![]));
    rig.model.report().assert_clean();
}

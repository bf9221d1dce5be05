//! What is cached stays, until exactly that is invalidated and synchronised.

mod common;

use common::*;
use smmuv3::arch::regs::offset;
use smmuv3::arch::{Command, Desc, Eats, Granule, Stage, Stages, Ste, StreamWorld, TlbiAddr};
use smmuv3::platform::{Iova, Mmio, PhysAddr, Platform};
use smmuv3_model::{DataPages, Laziness, ModelSmmuConfig, Sabotage};

const ASID: u16 = 7;
const VMID: u16 = 3;
const IOVA: u64 = 0x4000_0000;

/// A rig with one page (of any granule) mapped at stage 1 and in the TLB, and already unmapped in memory.
fn unmapped(granule: Granule) -> (Rig, Table, DataPages) {
    let rig = Rig::new();
    let table = rig.table(Stage::S1, granule, 48);
    let data = rig.model.alloc_data_aligned(16, 0x1_0000).unwrap();
    rig.map(&table, IOVA, data.addr(), 3, RW);
    rig.attach_s1(SID, &table, ASID, VMID);
    rig.device().read_u64(Iova(IOVA)).unwrap();
    rig.unmap(&table, IOVA, 3);
    (rig, table, data)
}

/// Whether these commands and a CMD_SYNC suffice to take the page away from the device.
fn suffice(granule: Granule, commands: &[Command]) -> bool {
    let (rig, _, data) = unmapped(granule);
    assert!(rig.platform.ats_enable(0, SID, 0));
    commands.iter().for_each(|&command| rig.cmd(command));
    rig.sync();
    match rig.stale_reads(data, IOVA) {
        0 => true,
        1 => false,
        n => panic!("{n} stale reads"),
    }
}

#[test]
fn an_unmapped_page_is_reached_until_it_is_invalidated() {
    let (rig, _, data) = unmapped(Granule::K4);
    let pa = data.addr();
    assert_eq!(rig.stale_reads(data, IOVA), 1);
    let report = rig.model.report();
    let case = &report.histories[0];
    assert_eq!((case.sid, case.iova, case.pa, case.write), (Some(SID), IOVA, pa, false));
    assert!(case.history[0].contains("ASID 0x7") && case.history[1].contains("freed"), "{case}");
    assert!(!report.is_clean());
}

#[test]
fn an_invalidation_takes_effect_when_a_sync_after_it_completes_and_not_before() {
    let (rig, _, data) = unmapped(Granule::K4);
    rig.cmd(Command::TlbiNhVa { vmid: VMID, asid: ASID, addr: one(IOVA, true) });
    assert_eq!(rig.cons().rd().value(), rig.mmio.read32(offset::CMDQ_PROD), "consumed");
    assert!(rig.device().read_u64(Iova(IOVA)).is_ok());
    rig.sync();
    assert_eq!(rig.stale_reads(data, IOVA), 0);
    rig.model.report().assert_clean();
}

#[test]
fn each_command_reaches_its_own_tags_only() {
    let va = |vmid, asid| Command::TlbiNhVa { vmid, asid, addr: one(IOVA, true) };
    for command in [
        va(VMID, ASID),
        Command::TlbiNhVaa { vmid: VMID, addr: one(IOVA, true) },
        Command::TlbiNhAsid { vmid: VMID, asid: ASID },
        Command::TlbiNhAll { vmid: VMID },
        Command::TlbiS12Vmall { vmid: VMID },
        Command::TlbiNsnhAll,
    ] {
        assert!(suffice(Granule::K4, &[command]), "{command:?}");
    }
    for command in [
        va(VMID, ASID + 1),
        va(VMID + 1, ASID),
        Command::TlbiNhVaa { vmid: VMID + 1, addr: one(IOVA, true) },
        Command::TlbiNhAsid { vmid: VMID, asid: ASID + 1 },
        Command::TlbiNhAsid { vmid: VMID + 1, asid: ASID },
        Command::TlbiNhAll { vmid: VMID + 1 },
        Command::TlbiS12Vmall { vmid: VMID + 1 },
        Command::TlbiS2Ipa { vmid: VMID, addr: one(IOVA, false) },
        Command::TlbiEl2All,
        Command::TlbiEl2Va { asid: ASID, addr: one(IOVA, false) },
        Command::TlbiEl2Asid { asid: ASID },
        Command::CfgiSteRange { sid: 0, range: 31 },
        Command::AtcInv { sid: SID, ssid: None, global: false, addr: 0, size: 52 },
    ] {
        assert!(!suffice(Granule::K4, &[command]), "{command:?}");
    }
}

#[test]
fn each_address_reaches_the_entries_that_contain_it_only() {
    let va = |addr| Command::TlbiNhVa { vmid: VMID, asid: ASID, addr };
    for granule in [Granule::K4, Granule::K16, Granule::K64] {
        let size = granule.size();
        let reaches = |addr| suffice(granule, &[va(addr)]);
        assert!(reaches(one(IOVA, true)) && reaches(one(IOVA + size - 0x1000, true)));
        assert!(!reaches(one(IOVA + size, true)) && !reaches(one(IOVA - 0x1000, true)));
        // Ranges: (num + 1) << scale pages.
        assert!(reaches(range(IOVA, granule, 0, 0, 3)));
        assert!(reaches(range(IOVA - 5 * size, granule, 5, 0, 0)), "the last of six pages");
        assert!(!reaches(range(IOVA - 5 * size, granule, 4, 0, 0)), "one page short");
        assert!(reaches(range(IOVA - 7 * size, granule, 3, 1, 0)), "the last of eight pages");
        assert!(!reaches(range(IOVA - 8 * size, granule, 3, 1, 0)));
        assert!(!reaches(range(IOVA + size, granule, 31, 10, 0)));
        assert!(reaches(range(0, granule, 31, 31, 0)), "far beyond the top");
    }
}

#[test]
fn a_wrong_level_hint_or_granule_reaches_nothing() {
    let va = |addr| Command::TlbiNhVa { vmid: VMID, asid: ASID, addr };
    let reaches = |granule, num, ttl| suffice(Granule::K4, &[va(range(IOVA, granule, num, 0, ttl))]);
    assert!(reaches(Granule::K4, 1, 3) && reaches(Granule::K4, 1, 0));
    assert!(!reaches(Granule::K4, 1, 2) && !reaches(Granule::K4, 1, 1));
    assert!(!reaches(Granule::K16, 1, 3) && !reaches(Granule::K64, 31, 0));
}

#[test]
fn a_block_is_reached_by_any_address_in_it_and_by_its_level_only() {
    let try_one = |addr| {
        let rig = Rig::new();
        let table = rig.table(Stage::S1, Granule::K4, 48);
        let data = rig.model.alloc_data_aligned(512, 2 << 20).unwrap();
        rig.map(&table, IOVA, data.addr(), 2, RW);
        rig.attach_s1(SID, &table, ASID, VMID);
        rig.device().read_u64(Iova(IOVA + 0x1_2340)).unwrap();
        rig.unmap(&table, IOVA, 2);
        rig.cmd_sync(Command::TlbiNhVa { vmid: VMID, asid: ASID, addr });
        rig.stale_reads(data, IOVA + 0x8_0000) == 0
    };
    assert!(try_one(one(IOVA + 0x1f_f000, true)) && try_one(range(IOVA, Granule::K4, 0, 0, 2)));
    assert!(try_one(range(IOVA + 0x10_0000, Granule::K4, 3, 0, 0)));
    assert!(!try_one(range(IOVA, Granule::K4, 31, 4, 3)) && !try_one(one(IOVA + 0x20_0000, true)));
}

#[test]
fn a_range_that_is_misaligned_for_its_hint_is_a_violation_and_reaches_nothing() {
    let (rig, _, data) = unmapped(Granule::K16);
    let addr = range(IOVA - 0x1000, Granule::K16, 31, 0, 3);
    rig.cmd_sync(Command::TlbiNhVa { vmid: VMID, asid: ASID, addr });
    assert_eq!(rig.model.report().violation_count, 1);
    assert_eq!(rig.stale_reads(data, IOVA), 1);
}

#[test]
fn the_walk_cache_finds_the_old_table_until_an_invalidation_reaches_the_level_of_its_descriptor() {
    let hinted = |ttl, leaf| TlbiAddr { leaf, ..range(IOVA, Granule::K4, 0, 0, ttl) };
    for (addr, stale) in [
        (one(IOVA, true), 1),
        (one(IOVA, false), 0),
        (hinted(3, true), 1),
        // The leaf is said to be at level 2, so the descriptors above it are at levels 0 and 1.
        (hinted(2, false), 1),
        (hinted(3, false), 0),
    ] {
        let (rig, table, data) = unmapped(Granule::K4);
        // The level 3 table is replaced by another; the old one still maps the next page.
        let other = rig.model.alloc_data(1).unwrap();
        rig.map(&table, IOVA + 0x1000, data.addr(), 3, RW);
        let fresh = rig.alloc(4096);
        rig.word(fresh.0 + 8, Desc::leaf(other.addr(), 3, Stage::S1, RW).0);
        rig.set(&table, IOVA, 2, Desc::table(fresh));
        rig.cmd_sync(Command::TlbiNhVa { vmid: VMID, asid: ASID, addr });
        assert_eq!(rig.stale_reads(data, IOVA + 0x1000), stale, "{addr:?}");
    }
}

#[test]
fn a_table_freed_behind_the_walk_cache_is_a_stale_walk() {
    let (rig, table, _data) = unmapped(Granule::K4);
    let slot = rig.slot(&table, IOVA, 2);
    let level3 = PhysAddr(rig.model.read_u64(slot).unwrap() & 0xffff_ffff_f000);
    rig.word(slot.0, Desc::INVALID.0);
    rig.cmd_sync(Command::TlbiNhVa { vmid: VMID, asid: ASID, addr: one(IOVA, true) });
    rig.platform.dma_free(level3, 4096, 4096);
    for _ in 0..2 {
        assert!(rig.device().read_u64(Iova(IOVA)).is_err());
    }
    let report = rig.model.report();
    assert_eq!((report.stale_walks, report.stale_dma), (2, 0));
    assert!(report.histories[0].history[1].contains("stage 1 descriptor"), "{}", report.histories[0]);
    rig.cmd_sync(Command::TlbiNhVa { vmid: VMID, asid: ASID, addr: one(IOVA, false) });
    assert!(rig.device().read_u64(Iova(IOVA)).is_err());
    assert_eq!(rig.model.report().stale_walks, 2, "nothing leads to the table any more");
}

#[test]
fn invalid_descriptors_are_not_cached() {
    let (rig, table, data) = unmapped(Granule::K4);
    assert!(rig.device().read_u64(Iova(IOVA + 0x1000)).is_err());
    rig.map(&table, IOVA + 0x1000, data.addr(), 3, RW);
    assert!(rig.device().read_u64(Iova(IOVA + 0x1000)).is_ok(), "no invalidation is needed to map");
}

#[test]
fn a_global_entry_serves_all_asids_and_asid_invalidations_miss_it() {
    let rig = Rig::new();
    let table = rig.table(Stage::S1, Granule::K4, 48);
    let data = rig.model.alloc_data(1).unwrap();
    let global = Desc(Desc::leaf(data.addr(), 3, Stage::S1, RW).0 & !(1 << 11));
    rig.set(&table, IOVA, 3, global);
    let cd = rig.attach_s1(SID, &table, ASID, VMID);
    rig.device().read_u64(Iova(IOVA)).unwrap();
    rig.unmap(&table, IOVA, 3);
    rig.words(cd.0, raw_cd(&table, ASID + 1).0);
    rig.cmd(Command::CfgiCd { sid: SID, ssid: 0, leaf: true });
    rig.cmd(Command::TlbiNhAsid { vmid: VMID, asid: ASID });
    rig.cmd_sync(Command::TlbiNhAsid { vmid: VMID, asid: ASID + 1 });
    assert!(rig.device().read_u64(Iova(IOVA)).is_ok());
    rig.cmd_sync(Command::TlbiNhVa { vmid: VMID, asid: 999, addr: one(IOVA, true) });
    assert!(rig.device().read_u64(Iova(IOVA)).is_err());
}

#[test]
fn stage_2_entries_are_reached_by_ipa_or_vmid() {
    let try_one = |command: Command| {
        let rig = Rig::new();
        let table = rig.table(Stage::S2, Granule::K4, 40);
        let data = rig.model.alloc_data(1).unwrap();
        rig.map(&table, IOVA, data.addr(), 3, RW);
        rig.attach_s2(SID, &table, VMID);
        rig.device().read_u64(Iova(IOVA)).unwrap();
        rig.unmap(&table, IOVA, 3);
        rig.cmd_sync(command);
        rig.stale_reads(data, IOVA) == 0
    };
    assert!(try_one(Command::TlbiS2Ipa { vmid: VMID, addr: one(IOVA, true) }));
    assert!(try_one(Command::TlbiS12Vmall { vmid: VMID }) && try_one(Command::TlbiNsnhAll));
    assert!(!try_one(Command::TlbiS2Ipa { vmid: VMID + 1, addr: one(IOVA, true) }));
    assert!(!try_one(Command::TlbiNhAll { vmid: VMID }));
    assert!(!try_one(Command::TlbiNhVaa { vmid: VMID, addr: one(IOVA, false) }));
}

/// A nested stream with nine addresses for one page. The page is in the TLB for `IOVA`, and unmapped at stage 2 by now.
fn nested() -> (Rig, DataPages) {
    const IPA: u64 = 0x20_0000;
    let rig = Rig::new();
    let (s1, s2) = (rig.table(Stage::S1, Granule::K4, 48), rig.table(Stage::S2, Granule::K4, 40));
    for addr in (0x8000_0000..0x8100_0000u64).step_by(2 << 20) {
        rig.map(&s2, addr, PhysAddr(addr), 2, RW);
    }
    let data = rig.model.alloc_data(1).unwrap();
    rig.map(&s2, IPA, data.addr(), 3, RW);
    rig.map(&s1, IOVA, PhysAddr(IPA), 3, RW);
    (1..=8).for_each(|page| rig.map(&s1, IOVA + page * 4096, PhysAddr(IPA), 3, RW));
    let cd = rig.alloc(64);
    rig.words(cd.0, raw_cd(&s1, ASID).0);
    let stages = Stages::Nested(stage1(cd, StreamWorld::El1), stage2(&s2));
    rig.ste(SID, Ste::Translate { vmid: VMID, eats: Eats::Off, stages });
    rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
    rig.device().read_u64(Iova(IOVA)).unwrap();
    rig.unmap(&s2, IPA, 3);
    (rig, data)
}

#[test]
fn invalidating_stage_2_does_not_reach_entries_of_both_stages() {
    let s2 = Command::TlbiS2Ipa { vmid: VMID, addr: one(0x20_0000, true) };
    let s1 = Command::TlbiNhAll { vmid: VMID };
    for (commands, stale) in [(vec![s2], 1), (vec![s1], 1), (vec![s2, s1], 0)] {
        let (rig, data) = nested();
        commands.iter().for_each(|&command| rig.cmd_sync(command));
        assert_eq!(rig.stale_reads(data, IOVA), stale, "{commands:?}");
    }
}

#[test]
fn a_stage_1_block_over_stage_2_pages_is_cached_page_by_page_and_invalidated_as_one() {
    let rig = Rig::new();
    let (s1, s2) = (rig.table(Stage::S1, Granule::K4, 48), rig.table(Stage::S2, Granule::K4, 40));
    for addr in (0x8000_0000..0x8100_0000u64).step_by(2 << 20) {
        rig.map(&s2, addr, PhysAddr(addr), 2, RW);
    }
    // Two neighbouring IPA pages, the other way round in memory.
    let data = rig.model.alloc_data(2).unwrap();
    let (low, high) = (data.addr(), PhysAddr(data.addr().0 + 0x1000));
    rig.map(&s2, 0x20_0000, high, 3, RW);
    rig.map(&s2, 0x20_1000, low, 3, RW);
    rig.map(&s1, IOVA, PhysAddr(0x20_0000), 2, RW);
    let cd = rig.alloc(64);
    rig.words(cd.0, raw_cd(&s1, ASID).0);
    let stages = Stages::Nested(stage1(cd, StreamWorld::El1), stage2(&s2));
    rig.ste(SID, Ste::Translate { vmid: VMID, eats: Eats::Off, stages });
    rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
    rig.device().write_u64(Iova(IOVA), 1).unwrap();
    rig.device().write_u64(Iova(IOVA + 0x1000), 2).unwrap();
    assert_eq!((rig.model.read_u64(high), rig.model.read_u64(low)), (Some(1), Some(2)));
    rig.unmap(&s1, IOVA, 2);
    // One address anywhere in the block reaches both entries.
    rig.cmd_sync(Command::TlbiNhVa { vmid: VMID, asid: ASID, addr: one(IOVA + 0x10_0000, true) });
    assert!([0, 0x1000].iter().all(|page| rig.device().read_u64(Iova(IOVA + page)).is_err()));
    rig.model.report().assert_clean();
}

#[test]
fn clearing_stage_1_without_a_sync_after_stage_2_is_too_early() {
    //   driver              device
    //   S2_IPA
    //   (SYNC)
    //   NH_ALL
    //                       reads the other addresses: without the SYNC, stage 2 still translates, and new
    //                       entries of both stages are made, which no command targeted
    //   SYNC
    //                       reads them again
    for with_sync in [false, true] {
        let (rig, data) = nested();
        let read = |page: u64| rig.device().read_u64(Iova(IOVA + page * 4096)).is_ok();
        rig.cmd(Command::TlbiS2Ipa { vmid: VMID, addr: one(0x20_0000, true) });
        if with_sync {
            rig.sync();
        }
        rig.cmd(Command::TlbiNhAll { vmid: VMID });
        assert_eq!((1..=8).filter(|&page| read(page)).count(), if with_sync { 0 } else { 8 });
        rig.sync();
        rig.model.free_data(data);
        let stale = (1..=8).filter(|&page| read(page)).count();
        assert_eq!(stale > 0, !with_sync);
        assert_eq!(rig.model.report().stale_dma, stale as u64);
    }
}

#[test]
fn an_entry_that_was_filled_after_the_invalidation_was_consumed_survives_the_sync() {
    let (rig, table, _data) = unmapped(Granule::K4);
    let all = Command::TlbiNhAsid { vmid: VMID, asid: ASID };
    rig.cmd_sync(all);
    let data = rig.model.alloc_data(1).unwrap();
    rig.map(&table, IOVA, data.addr(), 3, RW);
    // The driver invalidates before it changes the table.
    rig.cmd(all);
    rig.device().read_u64(Iova(IOVA)).unwrap();
    rig.unmap(&table, IOVA, 3);
    rig.sync();
    assert_eq!(rig.stale_reads(data, IOVA), 1);
}

#[test]
fn early_invalidations_catch_a_driver_that_invalidates_before_it_unmaps() {
    let laziness = Laziness { early_invalidations: true, ..exact().laziness };
    let rig = Rig::with(ModelSmmuConfig { laziness, ..exact() });
    let table = rig.table(Stage::S1, Granule::K4, 48);
    rig.attach_s1(SID, &table, ASID, VMID);
    let mut stale = 0;
    for _ in 0..32 {
        let data = rig.model.alloc_data(1).unwrap();
        rig.map(&table, IOVA, data.addr(), 3, RW);
        rig.device().read_u64(Iova(IOVA)).unwrap();
        rig.cmd(Command::TlbiNhVa { vmid: VMID, asid: ASID, addr: one(IOVA, true) });
        rig.device().read_u64(Iova(IOVA)).unwrap();
        rig.unmap(&table, IOVA, 3);
        rig.sync();
        stale += rig.stale_reads(data, IOVA);
        rig.cmd_sync(Command::TlbiNhAll { vmid: VMID });
    }
    assert!((1..32).contains(&stale), "{stale}");
}

#[test]
fn a_page_given_out_again_is_not_what_an_old_entry_was_meant_for() {
    let (rig, _, data) = unmapped(Granule::K4);
    let pa = data.addr();
    rig.model.free_data(data);
    // Allocate until the page comes round again.
    let held: Vec<_> = std::iter::from_fn(|| rig.model.alloc_data(1)).collect();
    assert!(held.iter().any(|page| page.addr() == pa));
    rig.device().write_u64(Iova(IOVA), 1).unwrap();
    assert_eq!(rig.model.report().stale_dma, 1);
}

#[test]
fn sabotage_is_as_if_the_driver_had_left_the_step_out() {
    let va = Command::TlbiNhVa { vmid: VMID, asid: ASID, addr: one(IOVA, false) };
    let tag = Command::TlbiNhAsid { vmid: VMID, asid: ASID };
    for (what, command, stale) in [
        (Sabotage::IgnoreTlbiByAddress, va, 1),
        (Sabotage::IgnoreTlbiByAddress, tag, 0),
        (Sabotage::IgnoreTlbiByTag, tag, 1),
        (Sabotage::IgnoreTlbiByTag, va, 0),
        (Sabotage::IgnoreSync, va, 1),
        (Sabotage::TreatTlbiAsLeaf, va, 0),
    ] {
        let (rig, _, data) = unmapped(Granule::K4);
        rig.model.sabotage(0, what);
        rig.cmd_sync(command);
        assert_eq!(rig.stale_reads(data, IOVA), stale, "{what:?}, {command:?}");
        rig.model.end_sabotage(0);
    }
}

#[test]
fn a_full_tlb_evicts_and_still_translates() {
    let laziness = Laziness { tlb_entries: 16, ..exact().laziness };
    let rig = Rig::with(ModelSmmuConfig { laziness, ..exact() });
    let table = rig.table(Stage::S1, Granule::K4, 48);
    rig.attach_s1(SID, &table, ASID, VMID);
    let data = rig.model.alloc_data(64).unwrap();
    for page in 0..64 {
        rig.map(&table, IOVA + page * 4096, PhysAddr(data.addr().0 + page * 4096), 3, RW);
    }
    for page in 0..256 {
        rig.device().write_u64(Iova(IOVA + page % 64 * 4096), page).unwrap();
    }
    assert!(rig.model.report().smmus[0].tlb_entries <= 16);
    rig.model.report().assert_clean();
}

//! Structures are cached, valid or not, until exactly they are invalidated and synchronised.

mod common;

use common::*;
use smmuv3::arch::{CdFormat, Command, Eats, Event, Granule, L1Cd, L1Std, RawCd, Stage, Stages, Ste, StreamWorld};
use smmuv3::platform::{Iova, PhysAddr};
use smmuv3_model::{DataPages, DmaError, Sabotage};

/// Whether the stream passes untranslated.
fn bypasses(rig: &Rig, data: &DataPages) -> bool {
    rig.device().read_u64(Iova(data.addr().0)).is_ok()
}

/// A stream that bypasses, whose STE is cached and then made invalid in memory.
fn changed() -> (Rig, DataPages) {
    let rig = Rig::new();
    let data = rig.model.alloc_data(1).unwrap();
    rig.ste(SID, Ste::Bypass);
    rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
    assert!(bypasses(&rig, &data));
    rig.ste(SID, Ste::Invalid);
    (rig, data)
}

#[test]
fn a_changed_ste_is_seen_after_the_right_invalidation_and_a_sync() {
    for command in [
        Command::CfgiSte { sid: SID, leaf: true },
        Command::CfgiSte { sid: SID, leaf: false },
        Command::CfgiSteRange { sid: SID ^ 7, range: 2 },
        Command::CfgiSteRange { sid: 0, range: 31 },
    ] {
        let (rig, data) = changed();
        rig.cmd(command);
        assert!(bypasses(&rig, &data), "no SYNC yet");
        rig.sync();
        assert!(!bypasses(&rig, &data), "{command:?}");
        rig.model.report().assert_clean();
    }
    for command in [
        Command::CfgiSte { sid: SID + 1, leaf: false },
        Command::CfgiSteRange { sid: SID ^ 8, range: 2 },
        Command::CfgiCdAll { sid: SID },
        Command::CfgiCd { sid: SID, ssid: 0, leaf: false },
        Command::TlbiNsnhAll,
    ] {
        let (rig, data) = changed();
        rig.cmd_sync(command);
        assert!(bypasses(&rig, &data), "{command:?}");
    }
    for what in [Sabotage::IgnoreCfgi, Sabotage::IgnoreSync] {
        let (rig, data) = changed();
        rig.model.sabotage(0, what);
        rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
        assert!(bypasses(&rig, &data), "{what:?}");
    }
}

#[test]
fn an_invalid_ste_is_cached_too() {
    let rig = Rig::new();
    let data = rig.model.alloc_data(1).unwrap();
    assert!(!bypasses(&rig, &data));
    rig.ste(SID, Ste::Bypass);
    assert!(!bypasses(&rig, &data), "V = 0 was fetched, and stays");
    rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
    assert!(bypasses(&rig, &data));
}

#[test]
fn a_changed_level_1_descriptor_needs_the_non_leaf_form() {
    let rig = Rig::new();
    let l1 = rig.two_level();
    let data = rig.model.alloc_data(1).unwrap();
    let device = rig.model.device(0, 0x45);
    assert!(device.read_u64(Iova(data.addr().0)).is_err());
    let second = rig.alloc(64 << 6);
    rig.words(second.0 + 5 * 64, Ste::Bypass.encode().0);
    rig.word(l1.0 + 8, L1Std::pointing_to(second, 6).raw_value());
    for (command, reachable) in [
        (Command::CfgiSte { sid: 0x45, leaf: true }, false),
        (Command::CfgiSte { sid: SID, leaf: false }, false),
        (Command::CfgiSteRange { sid: 0x45, range: 0 }, true),
    ] {
        rig.cmd_sync(command);
        assert_eq!(device.read_u64(Iova(data.addr().0)).is_ok(), reachable, "{command:?}");
    }
    rig.model.report().assert_clean();
}

/// A stream with a two-level CD table: substream 65 reaches `data` at 0x1000 with ASID 1. Gives the address of the
/// L1CD.
fn substreams() -> (Rig, Table, DataPages, PhysAddr) {
    let rig = Rig::new();
    let table = rig.table(Stage::S1, Granule::K4, 48);
    let data = rig.model.alloc_data(1).unwrap();
    rig.map(&table, 0x1000, data.addr(), 3, RW);
    let (top, leaf) = (rig.alloc(4096), rig.alloc(4096));
    rig.words(leaf.0 + 64, raw_cd(&table, 1).0);
    rig.word(top.0 + 8, L1Cd::pointing_to(leaf).raw_value());
    let mut s1 = stage1(top, StreamWorld::El1);
    (s1.cd_max, s1.format) = (10, CdFormat::TwoLevel4K);
    rig.ste(SID, Ste::Translate { vmid: 0, eats: Eats::Off, stages: Stages::S1(s1) });
    rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
    rig.device().with_ssid(65).read_u64(Iova(0x1000)).unwrap();
    (rig, table, data, PhysAddr(top.0 + 8))
}

#[test]
fn a_changed_cd_is_seen_after_the_right_invalidation() {
    for (command, seen) in [
        (Command::CfgiCd { sid: SID, ssid: 65, leaf: true }, true),
        (Command::CfgiCd { sid: SID, ssid: 65, leaf: false }, true),
        (Command::CfgiCdAll { sid: SID }, true),
        (Command::CfgiSte { sid: SID, leaf: true }, true),
        (Command::CfgiSteRange { sid: 0, range: 31 }, true),
        (Command::CfgiCd { sid: SID, ssid: 64, leaf: false }, false),
        (Command::CfgiCd { sid: SID + 1, ssid: 65, leaf: false }, false),
        (Command::CfgiCdAll { sid: SID + 1 }, false),
        (Command::CfgiSte { sid: SID + 1, leaf: false }, false),
    ] {
        let (rig, _, _, l1cd) = substreams();
        let leaf = rig.model.read_u64(l1cd).unwrap() & !0xfff;
        rig.words(leaf + 64, RawCd::default().0);
        rig.cmd(command);
        let device = rig.device().with_ssid(65);
        assert!(device.read_u64(Iova(0x1000)).is_ok(), "no SYNC yet");
        rig.sync();
        let result = device.read_u64(Iova(0x1000));
        assert_eq!(matches!(result, Err(DmaError::Aborted(Some(Event::CBadCd(_))))), seen, "{command:?}");
        rig.model.report().assert_clean();
    }
}

#[test]
fn a_changed_level_1_cd_descriptor_needs_the_non_leaf_form() {
    for (command, seen) in [
        (Command::CfgiCd { sid: SID, ssid: 65, leaf: true }, false),
        (Command::CfgiCd { sid: SID, ssid: 1, leaf: false }, false),
        (Command::CfgiCd { sid: SID, ssid: 100, leaf: false }, true),
        (Command::CfgiCdAll { sid: SID }, true),
        (Command::CfgiSte { sid: SID, leaf: true }, true),
    ] {
        let (rig, table, _, l1cd) = substreams();
        // Another leaf table, in which substream 66 is valid.
        let fresh = rig.alloc(4096);
        rig.words(fresh.0 + 2 * 64, raw_cd(&table, 2).0);
        rig.word(l1cd.0, L1Cd::pointing_to(fresh).raw_value());
        rig.cmd_sync(command);
        assert_eq!(rig.device().with_ssid(66).read_u64(Iova(0x1000)).is_ok(), seen, "{command:?}");
        rig.model.report().assert_clean();
    }
}

#[test]
fn changing_the_asid_of_a_cd_does_not_touch_the_tlb() {
    let rig = Rig::new();
    let table = rig.table(Stage::S1, Granule::K4, 48);
    let (old, new) = (rig.model.alloc_data(1).unwrap(), rig.model.alloc_data(1).unwrap());
    rig.map(&table, 0x1000, old.addr(), 3, RW);
    let cd = rig.attach_s1(SID, &table, 1, 0);
    rig.device().read_u64(Iova(0x1000)).unwrap();
    // Another table under the same ASID, without TLBI: the old translation is used.
    let other = rig.table(Stage::S1, Granule::K4, 48);
    rig.map(&other, 0x1000, new.addr(), 3, RW);
    rig.words(cd.0, raw_cd(&other, 1).0);
    rig.cmd_sync(Command::CfgiCd { sid: SID, ssid: 0, leaf: true });
    rig.device().write_u64(Iova(0x1000), 5).unwrap();
    assert_eq!(rig.model.read_u64(old.addr()), Some(5));
    rig.words(cd.0, raw_cd(&other, 2).0);
    rig.cmd_sync(Command::CfgiCd { sid: SID, ssid: 0, leaf: true });
    rig.device().write_u64(Iova(0x1000), 6).unwrap();
    assert_eq!(rig.model.read_u64(new.addr()), Some(6));
}

#[test]
fn what_was_found_through_an_invalidated_ste_goes_with_it() {
    //   driver              device
    //   CFGI_STE
    //                       uses substream 66 for the first time: found through the old STE
    //   SYNC
    let (rig, table, _, l1cd) = substreams();
    let leaf = rig.model.read_u64(l1cd).unwrap() & !0xfff;
    rig.words(leaf + 128, raw_cd(&table, 2).0);
    rig.ste(SID, Ste::Abort);
    rig.cmd(Command::CfgiSte { sid: SID, leaf: true });
    rig.device().with_ssid(66).read_u64(Iova(0x1000)).unwrap();
    rig.words(leaf + 128, RawCd::default().0);
    rig.sync();
    let mut s1 = stage1(PhysAddr(l1cd.0 - 8), StreamWorld::El1);
    (s1.cd_max, s1.format) = (10, CdFormat::TwoLevel4K);
    rig.ste(SID, Ste::Translate { vmid: 0, eats: Eats::Off, stages: Stages::S1(s1) });
    assert!(rig.device().with_ssid(66).read_u64(Iova(0x1000)).is_err());
}

#[test]
fn junk_in_the_caches_at_reset_bites_a_driver_that_does_not_clear_them() {
    // A driver that skips one of the three invalidations, and what its devices then do.
    let run = |cfgi: bool, tlbi: bool, el2: bool, world: StreamWorld| {
        let rig = Rig::off(exact());
        rig.queues_on();
        let wanted = [cfgi, tlbi, el2];
        let all = [Command::CfgiSteRange { sid: 0, range: 31 }, Command::TlbiNsnhAll, Command::TlbiEl2All];
        all.into_iter().zip(wanted).filter(|(_, on)| *on).for_each(|(command, _)| rig.cmd(command));
        rig.sync();
        let table = rig.table(Stage::S1, Granule::K4, 48);
        let data = rig.model.alloc_data(1).unwrap();
        rig.map(&table, 0x1000, data.addr(), 3, RW);
        for sid in 0..16 {
            let cd = rig.alloc(64);
            rig.words(cd.0, raw_cd(&table, sid as u16).0);
            rig.ste(sid, s1_ste(cd, 0, world));
        }
        rig.smmu_on();
        let good = (0..16).filter(|&sid| rig.model.device(0, sid).read_u64(Iova(0x1000)).is_ok()).count();
        (good, rig.model.report().is_clean())
    };
    assert_eq!(run(true, true, true, StreamWorld::El1), (16, true));
    assert_eq!(run(true, true, true, StreamWorld::El2), (16, true));
    assert_eq!(run(true, true, false, StreamWorld::El1), (16, true), "EL2 entries do no harm at EL1");
    for (cfgi, tlbi, el2, world) in [
        (false, true, true, StreamWorld::El1),
        (true, false, true, StreamWorld::El1),
        (true, true, false, StreamWorld::El2),
    ] {
        let (good, clean) = run(cfgi, tlbi, el2, world);
        assert!(good < 16 || !clean, "cfgi {cfgi}, tlbi {tlbi}, el2 {el2}");
    }
}

//! Each freedom that the SMMU takes: what it leads to when it is on, and that it does not when it is off.

mod common;

use common::*;
use smmuv3::arch::regs::{Cr0, offset};
use smmuv3::arch::{Command, Desc, Eats, Granule, Stage, Stages, Ste, SteStage1, StreamWorld};
use smmuv3::platform::{Iova, Mmio, PhysAddr};
use smmuv3_model::{DataPages, Freedom, Laziness, ModelSmmuConfig};
use std::sync::atomic::{AtomicBool, Ordering};

const ASID: u16 = 7;
const VMID: u16 = 3;
const IOVA: u64 = 0x4000_0000;
const IPA: u64 = 0x20_0000;

fn va(leaf: bool) -> Command {
    Command::TlbiNhVa { vmid: VMID, asid: ASID, addr: one(IOVA, leaf) }
}

/// An SMMU with these freedoms and no others.
fn config(freedoms: &[&str]) -> ModelSmmuConfig {
    let mut laziness = Laziness::none();
    freedoms.iter().for_each(|name| assert!(laziness.set(name, true), "{name}"));
    ModelSmmuConfig { laziness, ..ModelSmmuConfig::default() }
}

/// Runs a case on an SMMU that has, besides those that it needs, this freedom; and on one that has not.
fn on_and_off<T>(freedom: &str, needed: &[&str], case: impl Fn(ModelSmmuConfig) -> T) -> (T, T) {
    let with: Vec<_> = needed.iter().copied().chain([freedom]).collect();
    (case(config(&with)), case(config(needed)))
}

impl Rig {
    fn reads(&self, iova: u64) -> bool {
        self.device().read_u64(Iova(iova)).is_ok()
    }

    /// `SID` reads a page at `IOVA` through stage 1, and the page is unmapped then.
    fn unmapped(config: ModelSmmuConfig) -> (Rig, Table, DataPages) {
        let rig = Rig::with(config);
        let table = rig.table(Stage::S1, Granule::K4, 48);
        let data = rig.model.alloc_data(1).unwrap();
        rig.map(&table, IOVA, data.addr(), 3, RW);
        rig.attach_s1(SID, &table, ASID, VMID);
        rig.device().read_u64(Iova(IOVA)).unwrap();
        rig.unmap(&table, IOVA, 3);
        (rig, table, data)
    }

    /// `SID` reads a page at `IOVA` through both stages, and the page is unmapped at stage 2 then.
    fn unmapped_nested(config: ModelSmmuConfig) -> Rig {
        let rig = Rig::with(config);
        let (s1, s2) = (rig.table(Stage::S1, Granule::K4, 48), rig.table(Stage::S2, Granule::K4, 40));
        rig.map_ram(&s2);
        rig.map(&s2, IPA, rig.model.alloc_data(1).unwrap().addr(), 3, RW);
        rig.map(&s1, IOVA, PhysAddr(IPA), 3, RW);
        let stages = Stages::Nested(rig.one_cd(&s1, ASID), stage2(&s2));
        rig.ste(SID, Ste::Translate { vmid: VMID, eats: Eats::Off, stages });
        rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
        rig.device().read_u64(Iova(IOVA)).unwrap();
        rig.unmap(&s2, IPA, 3);
        rig
    }
}

#[test]
fn the_list_names_every_switch_with_its_section() {
    let (mut on, mut off) = (Laziness::none(), Laziness::all());
    for Freedom { name, section, what } in Laziness::LIST {
        assert!(section.contains(|c: char| c.is_ascii_digit()) && what.ends_with('.'), "{name}");
        assert_eq!((on.get(name), off.get(name)), (Some(false), Some(true)));
        assert!(on.set(name, true) && off.set(name, false));
        assert_eq!((on.get(name), off.get(name)), (Some(true), Some(false)));
    }
    assert_eq!((on, off), (Laziness::all(), Laziness::none()));
    assert!(!Laziness::all().set("no_such", true) && Laziness::all().get("no_such").is_none());
}

#[test]
fn junk_at_reset() {
    let streams_that_pass = |config| {
        let rig = Rig::off(config);
        rig.queues_on();
        rig.smmu_on();
        let data = rig.model.alloc_data(1).unwrap();
        (0..64).filter(|&sid| rig.model.device(0, sid).read_u64(Iova(data.addr().0)).is_ok()).count()
    };
    let (on, off) = on_and_off("junk_at_reset", &[], streams_that_pass);
    assert!(on > 0 && off == 0, "{on}, {off}");
}

#[test]
fn late_acks() {
    let at_once = |config| {
        let rig = Rig::off(config);
        let value = Cr0::default().with_eventqen(true).raw_value();
        rig.mmio.write32(offset::CR0, value);
        rig.mmio.read32(offset::CR0ACK) == value
    };
    assert_eq!(on_and_off("late_acks", &[], at_once), (false, true));
}

#[test]
fn config_cache() {
    let old_ste_is_used = |config| {
        let rig = Rig::with(config);
        rig.ste(SID, Ste::Bypass);
        let data = rig.model.alloc_data(1).unwrap();
        assert!(rig.reads(data.addr().0));
        rig.ste(SID, Ste::Abort);
        rig.reads(data.addr().0)
    };
    assert_eq!(on_and_off("config_cache", &[], old_ste_is_used), (true, false));
}

#[test]
fn invalid_config_cache() {
    let old_ste_is_used = |config| {
        let rig = Rig::with(config);
        let data = rig.model.alloc_data(1).unwrap();
        assert!(!rig.reads(data.addr().0));
        rig.ste(SID, Ste::Bypass);
        !rig.reads(data.addr().0)
    };
    assert_eq!(on_and_off("invalid_config_cache", &["config_cache"], old_ste_is_used), (true, false));
}

#[test]
fn any_word_order() {
    //   driver                              SMMU
    //   S2TTB, the words behind V
    //                                       reads the STE
    //   V, in the first word
    //
    // Who reads the first word first sees nothing or all of it.
    let torn = |config, rounds: u32| {
        let rig = Rig::with(config);
        let table = rig.table(Stage::S2, Granule::K4, 40);
        let data = rig.model.alloc_data(1).unwrap();
        rig.map(&table, IPA, data.addr(), 3, RW);
        let done = AtomicBool::new(false);
        (0..rounds).any(|_| {
            rig.words(rig.stes.0 + u64::from(SID) * 64, [0; 8]);
            done.store(false, Ordering::SeqCst);
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    let mut torn = false;
                    while !done.load(Ordering::SeqCst) {
                        if let Err(error) = rig.device().read_u64(Iova(IPA)) {
                            let invalid = format!("{error:?}").contains("CBadSte");
                            torn |= !invalid;
                        }
                    }
                    torn
                });
                rig.ste(SID, s2_ste(&table, VMID));
                while !rig.reads(IPA) {}
                done.store(true, Ordering::SeqCst);
                reader.join().unwrap()
            })
        })
    };
    assert!(torn(config(&["any_word_order"]), u32::MAX));
    assert!(!torn(config(&[]), 200));
}

#[test]
fn tlb() {
    let unmapped_page_is_read = |config| Rig::unmapped(config).0.reads(IOVA);
    assert_eq!(on_and_off("tlb", &[], unmapped_page_is_read), (true, false));
}

#[test]
fn walk_cache() {
    let old_table_is_used = |config| {
        let (rig, table, data) = Rig::unmapped(config);
        rig.map(&table, IOVA + 0x1000, data.addr(), 3, RW);
        rig.unmap(&table, IOVA, 2);
        rig.reads(IOVA + 0x1000)
    };
    assert_eq!(on_and_off("walk_cache", &[], old_table_is_used), (true, false));
}

#[test]
fn global_entries() {
    let by_asid_is_in_vain = |config| {
        let (rig, table, data) = Rig::unmapped(config);
        rig.cmd_sync(va(true));
        rig.set(&table, IOVA, 3, Desc(Desc::leaf(data.addr(), 3, Stage::S1, RW).0 & !(1 << 11)));
        assert!(rig.reads(IOVA));
        rig.unmap(&table, IOVA, 3);
        rig.cmd_sync(Command::TlbiNhAsid { vmid: VMID, asid: ASID });
        rig.reads(IOVA)
    };
    assert_eq!(on_and_off("global_entries", &["tlb"], by_asid_is_in_vain), (true, false));
}

#[test]
fn nested_entries() {
    let by_ipa_is_in_vain = |config| {
        let rig = Rig::unmapped_nested(config);
        rig.cmd_sync(Command::TlbiS2Ipa { vmid: VMID, addr: one(IPA, true) });
        rig.reads(IOVA)
    };
    assert_eq!(on_and_off("nested_entries", &["tlb"], by_ipa_is_in_vain), (true, false));
}

#[test]
fn nested_refill() {
    let one_sync_is_too_few = |config| {
        let rig = Rig::unmapped_nested(config);
        rig.cmd(Command::TlbiS2Ipa { vmid: VMID, addr: one(IPA, true) });
        rig.cmd_sync(Command::TlbiNhAll { vmid: VMID });
        rig.reads(IOVA)
    };
    let needed = ["tlb", "nested_entries", "late_invalidations"];
    assert_eq!(on_and_off("nested_refill", &needed, one_sync_is_too_few), (true, false));
}

#[test]
fn exact_hints() {
    for addr in [range(IOVA, Granule::K4, 0, 0, 2), range(IOVA, Granule::K16, 0, 0, 3)] {
        let wrong_hint_spares = |config| {
            let rig = Rig::unmapped(config).0;
            rig.cmd_sync(Command::TlbiNhVa { vmid: VMID, asid: ASID, addr });
            rig.reads(IOVA)
        };
        assert_eq!(on_and_off("exact_hints", &["tlb"], wrong_hint_spares), (true, false), "{addr:?}");
    }
    let leaf_spares_tables = |config| {
        let (rig, table, data) = Rig::unmapped(config);
        rig.map(&table, IOVA + 0x1000, data.addr(), 3, RW);
        rig.unmap(&table, IOVA, 2);
        rig.cmd_sync(va(true));
        rig.reads(IOVA + 0x1000)
    };
    assert_eq!(on_and_off("exact_hints", &["walk_cache"], leaf_spares_tables), (true, false));
}

#[test]
fn late_invalidations() {
    let without_sync_is_in_vain = |config| {
        let rig = Rig::unmapped(config).0;
        rig.cmd(va(true));
        rig.reads(IOVA)
    };
    assert_eq!(on_and_off("late_invalidations", &["tlb"], without_sync_is_in_vain), (true, false));
}

#[test]
fn early_invalidations() {
    let in_vain = |config| {
        let (rig, table, data) = Rig::unmapped(config);
        let once = || {
            rig.map(&table, IOVA, data.addr(), 3, RW);
            assert!(rig.reads(IOVA));
            rig.unmap(&table, IOVA, 3);
            rig.cmd(va(true));
            let in_vain = rig.reads(IOVA);
            rig.sync();
            in_vain
        };
        (0..32).filter(|_| once()).count()
    };
    let (on, off) = on_and_off("early_invalidations", &["tlb", "late_invalidations"], in_vain);
    assert!((1..32).contains(&on) && off == 32, "{on}, {off}");
}

#[test]
fn atc_refill() {
    let one_sync_is_too_few = |config| {
        let (rig, table) = rig_with_ats(config);
        rig.device().ats_read_u64(Iova(IOVA)).unwrap();
        rig.unmap(&table, IOVA, 3);
        rig.cmd(va(true));
        rig.cmd_sync(Command::AtcInv { sid: SID, ssid: None, global: false, addr: IOVA, size: 0 });
        rig.device().ats_read_u64(Iova(IOVA)).is_ok()
    };
    assert_eq!(on_and_off("atc_refill", &["tlb", "late_invalidations"], one_sync_is_too_few), (true, false));
}

/// `SID` has ATS, and a page at `IOVA`.
fn rig_with_ats(config: ModelSmmuConfig) -> (Rig, Table) {
    let rig = Rig::with(config);
    rig.atschk(true);
    let table = rig.table(Stage::S1, Granule::K4, 48);
    rig.map(&table, IOVA, rig.model.alloc_data(1).unwrap().addr(), 3, RW);
    rig.attach_ats(SID, VMID, Stages::S1(rig.one_cd(&table, ASID)));
    (rig, table)
}

#[test]
fn atc_timeout_loses_all() {
    use smmuv3_model::{AtsAnswers, AtsBehaviour};
    const SILENT: u32 = SID + 1;
    let other_is_lost = |config| {
        let (rig, table) = rig_with_ats(config);
        rig.device().ats_read_u64(Iova(IOVA)).unwrap();
        rig.unmap(&table, IOVA, 3);
        rig.cmd_sync(va(true));
        assert!(rig.platform_ats(SILENT));
        rig.model.set_ats(0, SILENT, AtsBehaviour { answers: AtsAnswers::Never, ..Default::default() });
        rig.cmd(Command::AtcInv { sid: SID, ssid: None, global: false, addr: IOVA, size: 0 });
        rig.cmd(Command::AtcInv { sid: SILENT, ssid: None, global: false, addr: IOVA, size: 0 });
        rig.cmd(Command::Sync(smmuv3::arch::SyncSignal::None));
        assert!(rig.model.cmdq_error(0).is_some());
        // Asked again, the CMD_SYNC completes what is left of it.
        rig.mmio.write32(offset::GERRORN, rig.mmio.read32(offset::GERROR));
        assert!(rig.model.cmdq_error(0).is_none());
        rig.device().ats_read_u64(Iova(IOVA)).is_ok()
    };
    assert_eq!(on_and_off("atc_timeout_loses_all", &["late_invalidations"], other_is_lost), (true, false));
}

impl Rig {
    fn platform_ats(&self, sid: u32) -> bool {
        use smmuv3::platform::Platform;
        self.platform.ats_enable(0, sid, 0)
    }
}

/// Posts to `IOVA` for as long as it takes until a write is on its way.
fn post_until_late(rig: &Rig, data: PhysAddr, post: impl Fn(u64)) -> bool {
    (1..=64).any(|value| {
        post(value);
        rig.model.read_u64(data) != Some(value)
    })
}

#[test]
fn late_writes() {
    //   driver                  device
    //                           posts a write, which is translated
    //   unmaps
    //   TLBI                    (consumed)
    //   frees the page: too early
    //                           the write arrives
    //   SYNC: now it would be right
    for (waits, stale) in [(false, 1), (true, 0)] {
        let stale_writes = |config| {
            let (rig, table, _) = Rig::unmapped(config);
            rig.cmd_sync(va(true));
            let data = rig.model.alloc_data(1).unwrap();
            rig.map(&table, IOVA, data.addr(), 3, RW);
            let post = |value: u64| rig.device().post(Iova(IOVA), &value.to_le_bytes()).unwrap();
            post_until_late(&rig, data.addr(), post);
            rig.unmap(&table, IOVA, 3);
            rig.cmd(va(true));
            if waits {
                rig.sync();
            }
            rig.model.free_data(data);
            if !waits {
                rig.sync();
            }
            rig.model.report().stale_dma.min(1)
        };
        assert_eq!(on_and_off("late_writes", &["tlb"], stale_writes), (stale, 0));
    }
}

#[test]
fn a_late_write_waits_for_the_sync_after_what_translated_it_and_for_no_other() {
    let cd_all = Command::CfgiCdAll { sid: SID };
    let other = Command::TlbiNhVa { vmid: VMID, asid: ASID, addr: one(IOVA + 0x1000, true) };
    for (commands, arrives) in [
        (&[va(true)][..], true),
        (&[Command::TlbiNhAsid { vmid: VMID, asid: ASID }], true),
        (&[Command::CfgiSte { sid: SID, leaf: true }], true),
        (&[Command::CfgiCd { sid: SID, ssid: 0, leaf: true }], true),
        (&[cd_all], true),
        (&[other], false),
        (&[Command::TlbiNhAsid { vmid: VMID, asid: ASID + 1 }], false),
        (&[Command::CfgiSte { sid: SID + 1, leaf: true }], false),
        (&[Command::CfgiCd { sid: SID, ssid: 1, leaf: true }], false),
        (&[Command::AtcInv { sid: SID, ssid: None, global: false, addr: 0, size: 52 }], false),
    ] {
        let (rig, table, data) = Rig::unmapped(config(&["tlb", "late_writes"]));
        assert!(rig.platform_ats(SID));
        rig.map(&table, IOVA, data.addr(), 3, RW);
        let post = |value: u64| rig.device().post(Iova(IOVA), &value.to_le_bytes()).unwrap();
        assert!(post_until_late(&rig, data.addr(), post));
        let before = rig.model.read_u64(data.addr());
        commands.iter().for_each(|&command| rig.cmd(command));
        assert_eq!(rig.model.read_u64(data.addr()), before, "{commands:?}");
        rig.sync();
        assert_eq!(rig.model.read_u64(data.addr()) != before, arrives, "{commands:?}");
        // A read of the same function pushes it.
        assert!(rig.reads(IOVA));
        assert_ne!(rig.model.read_u64(data.addr()), before);
        rig.model.report().assert_clean();
    }
}

#[test]
fn a_late_write_is_not_stopped_by_disabling_the_smmu() {
    let (rig, table, data) = Rig::unmapped(config(&["tlb", "late_writes"]));
    rig.map(&table, IOVA, data.addr(), 3, RW);
    let post = |value: u64| rig.device().post(Iova(IOVA), &value.to_le_bytes()).unwrap();
    assert!(post_until_late(&rig, data.addr(), post));
    rig.gbpa_abort(true);
    rig.cr0(|cr0| cr0.with_smmuen(false));
    rig.model.free_data(data);
    rig.device().drain();
    assert!(rig.model.report().stale_dma > 0);
}

#[test]
fn late_translated_writes() {
    let tlbi = [va(true)];
    let atc_inv = [va(true), Command::AtcInv { sid: SID, ssid: None, global: false, addr: IOVA, size: 0 }];
    for (commands, stale) in [(&tlbi[..], 1), (&atc_inv[..], 0)] {
        let stale_writes = |config| {
            let (rig, table) = rig_with_ats(config);
            let data = rig.model.alloc_data(1).unwrap();
            rig.map(&table, IOVA, data.addr(), 3, RW);
            let post = |value: u64| rig.device().ats_post(Iova(IOVA), &value.to_le_bytes()).unwrap();
            post_until_late(&rig, data.addr(), post);
            rig.unmap(&table, IOVA, 3);
            commands.iter().for_each(|&command| rig.cmd_sync(command));
            rig.model.free_data(data);
            rig.device().drain();
            rig.model.report().stale_dma.min(1)
        };
        assert_eq!(on_and_off("late_translated_writes", &["tlb"], stale_writes), (stale, 0));
    }
}

/// Reads enough for a prefetch of anything in reach.
fn read_often(rig: &Rig) {
    (0..40_000).for_each(|_| assert!(rig.reads(IOVA)));
}

#[test]
fn prefetch_configs() {
    const NEIGHBOUR: u32 = SID ^ 1;
    let needed = ["config_cache", "invalid_config_cache"];
    let old_ste_is_used = |config| {
        let (rig, table, data) = Rig::unmapped(config);
        rig.map(&table, IOVA, data.addr(), 3, RW);
        read_often(&rig);
        rig.ste(NEIGHBOUR, Ste::Bypass);
        let passes = rig.model.device(0, NEIGHBOUR).read_u64(Iova(data.addr().0)).is_ok();
        assert_eq!(rig.event().is_some(), !passes, "a prefetch raises no event");
        !passes
    };
    assert_eq!(on_and_off("prefetch_configs", &needed, old_ste_is_used), (true, false));
    // A CD, too: that of a substream that nobody uses.
    let old_cd_is_used = |config| {
        let rig = Rig::with(config);
        let table = rig.table(Stage::S1, Granule::K4, 48);
        let data = rig.model.alloc_data(1).unwrap();
        rig.map(&table, IOVA, data.addr(), 3, RW);
        let cds = rig.alloc(64 << 2);
        rig.words(cds.0, raw_cd(&table, ASID).0);
        let s1 = SteStage1 { cd_max: 2, ..stage1(cds, StreamWorld::El1) };
        rig.ste(SID, Ste::Translate { vmid: VMID, eats: Eats::Off, stages: Stages::S1(s1) });
        rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
        read_often(&rig);
        rig.words(cds.0 + 64, raw_cd(&table, ASID).0);
        rig.device().with_ssid(1).read_u64(Iova(IOVA)).is_err()
    };
    assert_eq!(on_and_off("prefetch_configs", &needed, old_cd_is_used), (true, false));
}

#[test]
fn prefetch_translations() {
    let unread_page_is_read = |config| {
        let (rig, table, data) = Rig::unmapped(config);
        rig.cmd_sync(va(true));
        rig.map(&table, IOVA, data.addr(), 3, RW);
        rig.map(&table, IOVA + 0x1000, data.addr(), 3, RW);
        read_often(&rig);
        assert_eq!(rig.event(), None, "what is not mapped there was prefetched in vain and in silence");
        rig.unmap(&table, IOVA + 0x1000, 3);
        let read = rig.reads(IOVA + 0x1000);
        // What no valid STE leads to is not walked.
        rig.ste(SID, Ste::Abort);
        rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
        let walks = rig.model.report().smmus[0].walks;
        (0..10_000).for_each(|_| assert!(!rig.reads(IOVA)));
        assert_eq!(rig.model.report().smmus[0].walks, walks);
        read
    };
    let needed = ["config_cache", "tlb"];
    assert_eq!(on_and_off("prefetch_translations", &needed, unread_page_is_read), (true, false));
}

#[test]
fn split_entries() {
    let blocks_in_pieces = |config| {
        let rig = Rig::with(config);
        let table = rig.table(Stage::S1, Granule::K4, 48);
        let data = rig.model.alloc_data_aligned(512, 2 << 20).unwrap();
        rig.attach_s1(SID, &table, ASID, VMID);
        let in_pieces = || {
            rig.map(&table, IOVA, data.addr(), 2, RW);
            rig.model.write_u64(PhysAddr(data.addr().0 + 0x1_2000), 7);
            assert_eq!(rig.device().read_u64(Iova(IOVA + 0x1_2000)), Ok(7));
            rig.unmap(&table, IOVA, 2);
            assert_eq!(rig.device().read_u64(Iova(IOVA + 0x1_2000)), Ok(7));
            let in_pieces = !rig.reads(IOVA + 0x10_0000);
            // Any address of the block reaches every piece.
            rig.cmd_sync(va(true));
            assert!(!rig.reads(IOVA + 0x1_2000));
            in_pieces
        };
        (0..32).filter(|_| in_pieces()).count()
    };
    let (on, off) = on_and_off("split_entries", &["tlb"], blocks_in_pieces);
    assert!((1..32).contains(&on) && off == 0, "{on}, {off}");
}

#[test]
fn tlb_conflicts() {
    /// Replaces pages by a block without break-before-make, and tells what comes of 1000 reads of a page: where they went
    /// (old, new), events, and whether it was a violation.
    fn replaced(config: ModelSmmuConfig, same_place: bool) -> ([usize; 2], usize, bool) {
        let rig = Rig::with(config);
        let table = rig.table(Stage::S1, Granule::K4, 48);
        let (old, new) = (rig.model.alloc_data_aligned(512, 2 << 20), rig.model.alloc_data_aligned(512, 2 << 20));
        let (old, new) = (old.unwrap().addr(), new.unwrap().addr());
        let new = if same_place { old } else { new };
        rig.model.write_u64(new, 1);
        rig.model.write_u64(old, 0);
        rig.map(&table, IOVA, old, 3, RW);
        rig.attach_s1(SID, &table, ASID, VMID);
        assert!(rig.reads(IOVA));
        rig.map(&table, IOVA, new, 2, RW);
        assert!(rig.reads(IOVA + 0x1000));
        let (mut went, mut events) = ([0; 2], 0);
        for _ in 0..1000 {
            match rig.device().read_u64(Iova(IOVA)) {
                Ok(value) => went[value as usize] += 1,
                Err(error) => {
                    assert!(format!("{error}").contains("F_TLB_CONFLICT"), "{error}");
                    assert_eq!(rig.event().map(|event| event.name()), Some("F_TLB_CONFLICT"));
                    events += 1;
                }
            }
        }
        let violations = rig.model.report().violations;
        assert!(violations.iter().all(|what| what.contains("break-before-make")), "{violations:?}");
        (went, events, !violations.is_empty())
    }
    let run = |bbm_level, same_place| {
        on_and_off("tlb_conflicts", &["tlb"], |config| replaced(ModelSmmuConfig { bbm_level, ..config }, same_place))
    };
    for bbm_level in [0, 1] {
        for same_place in [false, true] {
            let ((went, events, violation), off) = run(bbm_level, same_place);
            assert!(went[0] > 0 && (same_place || went[1] > 0) && events > 0 && violation, "{went:?}, {events}");
            assert_eq!(off, ([1000, 0], 0, false));
        }
    }
    // Level 2 has no conflicts; but the output address may not change.
    let (([old, new], events, violation), _) = run(2, false);
    assert!(old > 0 && new > 0 && events == 0 && violation);
    assert_eq!(run(2, true).0, ([1000, 0], 0, false));
}

#[test]
fn an_nt_block_is_not_cached_by_an_smmu_that_needs_the_bit() {
    for (bbm_level, cached) in [(1, false), (2, true)] {
        let rig = Rig::with(ModelSmmuConfig { bbm_level, ..config(&["tlb"]) });
        let table = rig.table(Stage::S1, Granule::K4, 48);
        let data = rig.model.alloc_data_aligned(512, 2 << 20).unwrap();
        rig.set(&table, IOVA, 2, Desc(Desc::leaf(data.addr(), 2, Stage::S1, RW).0 | 1 << 16));
        rig.attach_s1(SID, &table, ASID, VMID);
        assert!(rig.reads(IOVA));
        rig.unmap(&table, IOVA, 2);
        assert_eq!(rig.reads(IOVA), cached);
    }
}

#[test]
fn nested_walk_cache() {
    let table_behind_stage_2_is_used = |config| {
        let rig = Rig::with(config);
        let (s1, s2) = (rig.table(Stage::S1, Granule::K4, 48), rig.table(Stage::S2, Granule::K4, 40));
        rig.map_ram(&s2);
        let data = rig.model.alloc_data(1).unwrap();
        rig.map(&s2, IPA, data.addr(), 3, RW);
        (0..2).for_each(|page| rig.map(&s1, IOVA + page * 0x1000, PhysAddr(IPA), 3, RW));
        let stages = Stages::Nested(rig.one_cd(&s1, ASID), stage2(&s2));
        rig.ste(SID, Ste::Translate { vmid: VMID, eats: Eats::Off, stages });
        rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
        assert!(rig.reads(IOVA));
        // The guest's last table is taken from it.
        let block = rig.slot(&s1, IOVA, 3).0 >> 21 << 21;
        rig.unmap(&s2, block, 2);
        rig.cmd_sync(Command::TlbiS2Ipa { vmid: VMID, addr: one(block, true) });
        let used = rig.reads(IOVA + 0x1000);
        rig.cmd_sync(Command::TlbiNhAll { vmid: VMID });
        assert!(!rig.reads(IOVA + 0x1000));
        used
    };
    let needed = ["config_cache", "walk_cache"];
    assert_eq!(on_and_off("nested_walk_cache", &needed, table_behind_stage_2_is_used), (true, false));
}

#[test]
fn atc_prefetch() {
    let page_that_was_not_asked_for_is_read = |config| {
        let (rig, table) = rig_with_ats(config);
        let page = IOVA + 0x1000;
        rig.map(&table, page, rig.model.alloc_data(1).unwrap().addr(), 3, RW);
        (0..40_000).for_each(|_| assert!(rig.device().ats_read_u64(Iova(IOVA)).is_ok()));
        assert_eq!(rig.event(), None);
        rig.unmap(&table, page, 3);
        rig.cmd_sync(Command::TlbiNhVa { vmid: VMID, asid: ASID, addr: one(page, true) });
        rig.device().ats_read_u64(Iova(page)).is_ok()
    };
    assert_eq!(on_and_off("atc_prefetch", &[], page_that_was_not_asked_for_is_read), (true, false));
}

#[test]
fn atc_pieces() {
    let blocks_in_pieces = |config| {
        let (rig, table) = rig_with_ats(config);
        let data = rig.model.alloc_data_aligned(512, 2 << 20).unwrap();
        rig.map(&table, IOVA, data.addr(), 2, RW);
        rig.model.write_u64(PhysAddr(data.addr().0 + 0x1_2000), 7);
        let in_pieces = || {
            assert_eq!(rig.device().ats_read_u64(Iova(IOVA + 0x1_2000)), Ok(7));
            let before = rig.model.report().ats_requests;
            assert!(rig.device().ats_read_u64(Iova(IOVA + 0x10_0000)).is_ok());
            let in_pieces = rig.model.report().ats_requests > before;
            rig.cmd_sync(Command::AtcInv { sid: SID, ssid: None, global: false, addr: IOVA, size: 9 });
            in_pieces
        };
        (0..32).filter(|_| in_pieces()).count()
    };
    let (on, off) = on_and_off("atc_pieces", &[], blocks_in_pieces);
    assert!((1..32).contains(&on) && off == 0, "{on}, {off}");
}

#[test]
fn late_writes_of_a_function_stay_in_order() {
    let (rig, table, data) = Rig::unmapped(config(&["late_writes"]));
    rig.map(&table, IOVA, data.addr(), 3, RW);
    let other = rig.model.device(0, SID + 1);
    rig.model.write_u64(data.addr(), 0);
    let mut last = 0;
    for value in 1..=500u64 {
        rig.device().post(Iova(IOVA), &value.to_le_bytes()).unwrap();
        // Time goes on with each access of anybody.
        let _ = other.read_u64(Iova(IOVA));
        let now = rig.model.read_u64(data.addr()).unwrap();
        assert!((last..=value).contains(&now), "{now} after {last}");
        last = now;
    }
    assert!(last > 0);
    rig.device().drain();
    assert_eq!(rig.model.read_u64(data.addr()), Some(500));
}

#[test]
fn nothing_is_prefetched_while_the_smmu_is_off() {
    // STRTAB_BASE is garbage.
    let rig = Rig::off(ModelSmmuConfig::default());
    rig.queues_on();
    let data = rig.model.alloc_data(1).unwrap();
    (0..40_000).for_each(|_| assert!(rig.reads(data.addr().0)));
    rig.model.report().assert_clean();
}

#[test]
fn conflicts_that_a_guest_makes_are_no_violation() {
    let rig = Rig::with(ModelSmmuConfig { bbm_level: 0, ..config(&["tlb", "nested_entries", "tlb_conflicts"]) });
    let (s1, s2) = (rig.table(Stage::S1, Granule::K4, 48), rig.table(Stage::S2, Granule::K4, 40));
    rig.map_ram(&s2);
    let data = rig.model.alloc_data_aligned(512, 2 << 20).unwrap();
    rig.map(&s1, IOVA, data.addr(), 3, RW);
    let stages = Stages::Nested(rig.one_cd(&s1, ASID), stage2(&s2));
    rig.ste(SID, Ste::Translate { vmid: VMID, eats: Eats::Off, stages });
    rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
    assert!(rig.reads(IOVA));
    rig.map(&s1, IOVA, data.addr(), 2, RW);
    assert!(rig.reads(IOVA + 0x1000));
    assert!((0..1000).any(|_| !rig.reads(IOVA)));
    assert_eq!(rig.event().map(|event| event.name()), Some("F_TLB_CONFLICT"));
    rig.model.report().assert_clean();
}

#[test]
fn a_late_write_by_what_is_invalidated_already_waits_for_the_same_sync() {
    //   driver                  device
    //   TLBI (consumed)
    //                           posts a write, which the old entry still translates
    //   SYNC
    let atc_inv = Command::AtcInv { sid: SID, ssid: None, global: false, addr: IOVA, size: 0 };
    for (command, ats) in [
        (va(true), false),
        (Command::CfgiSte { sid: SID, leaf: true }, false),
        (Command::CfgiCdAll { sid: SID }, false),
        (atc_inv, true),
        (Command::CfgiSte { sid: SID, leaf: true }, true),
    ] {
        let caches = ["tlb", "config_cache", "late_invalidations", "late_writes", "late_translated_writes"];
        let (rig, table) = rig_with_ats(config(&caches));
        let page = PhysAddr(rig.model.read_u64(rig.slot(&table, IOVA, 3)).unwrap() & 0xffff_ffff_f000);
        let device = rig.device();
        let post = |value: u64| {
            let bytes = value.to_le_bytes();
            if ats { device.ats_post(Iova(IOVA), &bytes) } else { device.post(Iova(IOVA), &bytes) }.unwrap();
        };
        post(0);
        device.drain();
        rig.cmd(command);
        assert!(post_until_late(&rig, page, post), "{command:?}");
        let before = rig.model.read_u64(page);
        rig.sync();
        assert_ne!(rig.model.read_u64(page), before, "{command:?}");
    }
}

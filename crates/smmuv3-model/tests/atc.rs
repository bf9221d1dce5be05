//! What is in an ATC stays there until an ATC_INV names it, after the TLB; and what happens when nobody answers.

mod common;

use common::*;
use smmuv3::arch::regs::{CmdqError, Gerror, offset};
use smmuv3::arch::{Command, DefaultSubstream, Granule, Stage, Stages, Ste, StreamWorld, SyncSignal};
use smmuv3::platform::{Iova, Mmio, PhysAddr, Platform};
use smmuv3_model::{AtsAnswers, AtsBehaviour, DataPages, DeviceThread, Laziness, ModelSmmuConfig, Sabotage};
use smmuv3_model::{Targets, Traffic};

const ASID: u16 = 7;
const VMID: u16 = 3;
const IOVA: u64 = 0x4000_0000;
const SYNC: Command = Command::Sync(SyncSignal::None);
const TLBI: Command = Command::TlbiNhAsid { vmid: VMID, asid: ASID };

fn atc_inv(ssid: Option<u32>, addr: u64, size: u8) -> Command {
    Command::AtcInv { sid: SID, ssid, global: false, addr, size }
}

const ATC_INV: Command = Command::AtcInv { sid: SID, ssid: None, global: false, addr: IOVA, size: 0 };

impl Rig {
    /// Publishes all commands at once.
    fn batch(&self, commands: &[Command]) {
        let prod = self.mmio.read32(offset::CMDQ_PROD);
        for (i, command) in (0..).zip(commands) {
            let slot = self.cmdq.0 + u64::from((prod + i) & ((1 << CMDQ_LOG2) - 1)) * 16;
            let words = command.encode().0;
            self.word(slot, words[0]);
            self.word(slot + 8, words[1]);
        }
        self.mmio.write32(offset::CMDQ_PROD, (prod + commands.len() as u32) & ((2 << CMDQ_LOG2) - 1));
    }

    /// Frees data, and tells how many stale accesses one read with ATS makes then.
    fn stale_ats_reads(&self, data: DataPages, ssid: Option<u32>, iova: u64) -> u64 {
        self.model.free_data(data);
        let before = self.model.report().stale_dma;
        let device = ssid.map_or(self.device(), |ssid| self.device().with_ssid(ssid));
        let _ = device.ats_read_u64(Iova(iova));
        self.model.report().stale_dma - before
    }

    fn acknowledge(&self) {
        self.mmio.write32(offset::GERRORN, self.mmio.read32(offset::GERROR));
    }
}

/// A page in TLB and ATC (of a PASID or of none), at stage 1, already unmapped in memory.
fn unmapped(ssid: Option<u32>, config: ModelSmmuConfig) -> (Rig, DataPages) {
    let rig = Rig::with(config);
    rig.atschk(true);
    let table = rig.table(Stage::S1, Granule::K4, 48);
    let data = rig.model.alloc_data(1).unwrap();
    rig.map(&table, IOVA, data.addr(), 3, RW);
    let cds = rig.alloc(64 << 2);
    (0..4).for_each(|i| rig.words(cds.0 + i * 64, raw_cd(&table, ASID).0));
    let mut s1 = stage1(cds, StreamWorld::El1);
    (s1.cd_max, s1.default_substream) = (2, DefaultSubstream::Substream0);
    rig.attach_ats(SID, VMID, Stages::S1(s1));
    let device = ssid.map_or(rig.device(), |ssid| rig.device().with_ssid(ssid));
    device.ats_read_u64(Iova(IOVA)).unwrap();
    rig.unmap(&table, IOVA, 3);
    (rig, data)
}

fn suffice(ssid: Option<u32>, commands: &[Command]) -> bool {
    let (rig, data) = unmapped(ssid, exact());
    rig.batch(commands);
    rig.stale_ats_reads(data, ssid, IOVA) == 0
}

#[test]
fn an_unmapped_page_is_reached_through_the_atc_after_the_tlb_is_clean() {
    let (rig, data) = unmapped(Some(1), exact());
    rig.cmd_sync(TLBI);
    let pa = data.addr();
    assert_eq!(rig.stale_ats_reads(data, Some(1), IOVA), 1);
    let report = rig.model.report();
    let case = &report.histories[0];
    assert_eq!((case.sid, case.ssid, case.iova, case.pa), (Some(SID), Some(1), IOVA, pa));
    for (line, words) in case.history.iter().zip([
        "TLB entry (El1, VMID 0x3, ASID 0x7;",
        "ATC entry (PASID 0x1, 0x40000000 + 0x1000 to",
        "freed",
        "entry of its ATC",
    ]) {
        assert!(line.contains(words), "{case}");
    }
    assert_eq!(report.dma_checked, 2);
}

#[test]
fn only_a_sync_between_tlbi_and_atc_inv_takes_the_old_translation_away() {
    for (commands, enough) in [
        (&[TLBI, SYNC, ATC_INV, SYNC][..], true),
        (&[TLBI, ATC_INV, SYNC], false),
        (&[ATC_INV, TLBI, SYNC], false),
        (&[ATC_INV, SYNC, TLBI, SYNC], false),
        (&[TLBI, SYNC], false),
        (&[ATC_INV, SYNC], false),
        (&[TLBI, SYNC, ATC_INV], false),
        (&[TLBI, SYNC, ATC_INV, TLBI, SYNC], true),
    ] {
        assert_eq!(suffice(None, commands), enough, "{commands:?}");
    }
}

#[test]
fn an_atc_inv_reaches_its_own_stream_pasid_and_span_only() {
    let enough = |ssid, command| suffice(ssid, &[TLBI, SYNC, command, SYNC]);
    for (ssid, other) in [(None, Some(1)), (Some(1), None), (Some(1), Some(2)), (Some(1), Some(0))] {
        for size in [0, 4, 19, 51, 52] {
            assert!(enough(ssid, atc_inv(ssid, IOVA, size)), "{ssid:?} {size}");
            // Without a PASID it reaches those of all PASIDs too.
            assert_eq!(enough(ssid, atc_inv(other, IOVA, size)), other.is_none(), "{ssid:?} {other:?} {size}");
        }
    }
    let reaches = |addr, size| enough(None, atc_inv(None, addr, size));
    assert!(!reaches(IOVA - 0x1000, 0) && !reaches(IOVA + 0x1000, 0));
    // The span is aligned: from the page before, of two pages, it ends before ours; from the page after, it has ours.
    assert!(!reaches(IOVA - 0x1000, 1) && reaches(IOVA + 0x1000, 1));
    assert!(!reaches(IOVA - 0x1000, 17) && reaches(0, 19) && !reaches(0, 18) && reaches(u64::MAX, 52));
}

#[test]
fn a_block_in_the_atc_goes_as_a_whole() {
    for (page, size, enough) in [(0, 0, true), (511, 0, true), (512, 0, false), (512, 9, false), (300, 1, true)] {
        let rig = Rig::new();
        let table = rig.table(Stage::S2, Granule::K4, 40);
        let data = rig.model.alloc_data_aligned(512, 2 << 20).unwrap();
        rig.map(&table, IOVA, data.addr(), 2, RW);
        rig.attach_ats(SID, VMID, Stages::S2(stage2(&table)));
        rig.device().ats_read_u64(Iova(IOVA + 0x5000)).unwrap();
        rig.unmap(&table, IOVA, 2);
        rig.batch(&[Command::TlbiS12Vmall { vmid: VMID }, SYNC, atc_inv(None, IOVA + page * 4096, size), SYNC]);
        assert_eq!(rig.stale_ats_reads(data, None, IOVA + 0x3000) == 0, enough, "{page} {size}");
    }
}

#[test]
fn the_global_flag_reaches_all_pasids_of_a_function_that_knows_it() {
    for (global_invalidate, ssid, enough) in
        [(true, Some(1), true), (false, Some(1), false), (true, None, false), (false, None, false)]
    {
        let (rig, data) = unmapped(ssid, exact());
        rig.model.set_ats(0, SID, AtsBehaviour { global_invalidate, ..Default::default() });
        rig.cmd_sync(TLBI);
        rig.cmd_sync(Command::AtcInv { sid: SID, ssid: Some(3), global: true, addr: IOVA, size: 0 });
        assert_eq!(rig.stale_ats_reads(data, ssid, IOVA) == 0, enough, "{global_invalidate} {ssid:?}");
        // Without SSV it means nothing (§4.5.1), and all PASIDs are reached in any case.
        let (rig, data) = unmapped(Some(1), exact());
        rig.model.set_ats(0, SID, AtsBehaviour { global_invalidate, ..Default::default() });
        rig.cmd_sync(TLBI);
        rig.cmd_sync(Command::AtcInv { sid: SID, ssid: None, global: true, addr: IOVA, size: 0 });
        assert_eq!(rig.stale_ats_reads(data, Some(1), IOVA), 0);
    }
}

#[test]
fn an_atc_inv_that_a_function_may_refuse_does_nothing_and_is_a_violation() {
    let coarse = ModelSmmuConfig { granules: [false, false, true], ..exact() };
    for (size, violations) in [(3, 1), (4, 0), (52, 0)] {
        let rig = Rig::with(coarse.clone());
        let table = rig.table(Stage::S1, Granule::K64, 48);
        let data = rig.model.alloc_data_aligned(16, 1 << 16).unwrap();
        rig.map(&table, IOVA, data.addr(), 3, RW);
        let s1 = rig.one_cd(&table, ASID);
        rig.restart_with(Stages::S1(s1), 4);
        rig.device().ats_read_u64(Iova(IOVA)).unwrap();
        rig.unmap(&table, IOVA, 3);
        rig.batch(&[TLBI, SYNC, atc_inv(None, IOVA, size), SYNC]);
        assert_eq!(rig.model.report().violation_count, violations);
        assert_eq!(rig.stale_ats_reads(data, None, IOVA), violations);
    }
    let (rig, data) = unmapped(Some(1), ModelSmmuConfig { ssid_bits: 2, ..exact() });
    rig.batch(&[TLBI, SYNC, atc_inv(Some(5), IOVA, 0), SYNC]);
    assert_eq!((rig.model.report().violation_count, rig.stale_ats_reads(data, Some(1), IOVA)), (1, 1));
    let rig = Rig::new();
    rig.batch(&[Command::AtcInv { sid: 1 << 16, ssid: None, global: false, addr: 0, size: 0 }, SYNC]);
    assert_eq!((rig.model.report().violation_count, rig.model.cmdq_error(0)), (1, None));
}

impl Rig {
    fn restart_with(&self, stages: Stages, stu: u8) {
        self.ste(SID, Ste::Translate { vmid: VMID, eats: smmuv3::arch::Eats::Full, stages });
        self.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
        assert!(self.platform.ats_enable(0, SID, stu));
    }
}

#[test]
fn atc_inv_is_ignored_while_the_smmu_is_off() {
    let (rig, data) = unmapped(None, exact());
    rig.cmd_sync(TLBI);
    rig.cr0(|cr0| cr0.with_smmuen(false));
    rig.model.clear_report();
    rig.cmd_sync(ATC_INV);
    assert_eq!((rig.model.report().atc_pages, rig.model.report().violation_count), (0, 0));
    rig.cr0(|cr0| cr0.with_smmuen(true));
    assert_eq!(rig.stale_ats_reads(data, None, IOVA), 1);
}

#[test]
fn a_stale_entry_waits_for_ats_to_be_turned_on_again() {
    let (rig, data) = unmapped(None, exact());
    rig.cmd_sync(TLBI);
    rig.platform.ats_disable(0, SID);
    assert!(rig.platform.ats_enable(0, SID, 0));
    assert_eq!(rig.stale_ats_reads(data, None, IOVA), 1);
    let (rig, data) = unmapped(None, exact());
    rig.cmd_sync(TLBI);
    rig.cmd_sync(ATC_INV);
    rig.platform.ats_disable(0, SID);
    assert!(rig.platform.ats_enable(0, SID, 0));
    assert_eq!(rig.stale_ats_reads(data, None, IOVA), 0);
    rig.model.report().assert_clean();
}

#[test]
fn an_entry_that_was_filled_after_the_atc_inv_was_consumed_survives_the_sync() {
    let (rig, data) = unmapped(None, exact());
    rig.cmd(atc_inv(None, IOVA + 0x1000, 0));
    rig.cmd(atc_inv(None, IOVA, 0));
    // A PASID's entry for the same page, from the TLB.
    rig.device().with_ssid(1).ats_read_u64(Iova(IOVA)).unwrap();
    rig.batch(&[SYNC, TLBI, SYNC]);
    assert_eq!(rig.stale_ats_reads(data, Some(1), IOVA), 1);
}

#[test]
fn a_function_asks_through_a_stale_ste_until_its_invalidation_is_complete() {
    for (commands, enough) in [
        (&[Command::CfgiSte { sid: SID, leaf: true }, SYNC, ATC_INV, SYNC][..], true),
        (&[Command::CfgiSte { sid: SID, leaf: true }, ATC_INV, SYNC], false),
    ] {
        let (rig, data) = unmapped(None, exact());
        rig.ste(SID, Ste::Bypass);
        rig.atschk(false);
        rig.batch(commands);
        assert_eq!(rig.event(), None, "nobody asked but the model");
        assert_eq!(rig.stale_ats_reads(data, None, IOVA) == 0, enough, "{commands:?}");
        assert_eq!(rig.event().is_some(), enough);
    }
}

#[test]
fn an_invalidation_that_is_not_answered_fails_the_sync_as_7_1_says() {
    for answers in [AtsAnswers::Never, AtsAnswers::OnlyWhileEnabled, AtsAnswers::Always] {
        let (rig, _data) = unmapped(None, exact());
        rig.model.set_ats(0, SID, AtsBehaviour { answers, ..Default::default() });
        if answers != AtsAnswers::Never {
            rig.platform.ats_disable(0, SID);
        }
        let word = rig.alloc(64);
        let prod = rig.cons().rd().value();
        rig.batch(&[TLBI, ATC_INV, Command::Sync(SyncSignal::Msi { addr: word.0, data: 5 }), Command::TlbiNsnhAll]);
        let report = rig.model.report();
        let off = u64::from(answers != AtsAnswers::Never);
        assert_eq!((report.atc_to_disabled, report.violation_count), (off, off));
        if answers == AtsAnswers::Always {
            assert_eq!((rig.model.cmdq_error(0), report.atc_timeouts), (None, 0));
            continue;
        }
        assert_eq!(rig.model.cmdq_error(0), Some(CmdqError::AtcInvSync));
        assert_eq!((rig.cons().rd().value(), rig.cons().err().value()), (prod + 2, 3));
        assert_eq!(rig.mmio.read32(offset::GERROR), Gerror::CMDQ_ERR.bits());
        assert_eq!((rig.model.read_u64(word), report.atc_timeouts), (Some(0), 1), "no completion signal");
        assert_eq!(report.commands.get("TLBI_NSNH_ALL"), Some(&1), "the one of the rig's start");
        assert!(rig.device().read_u64(Iova(IOVA)).is_ok(), "the TLBI is not complete, either");
        let syncs = report.syncs;
        rig.acknowledge();
        assert_eq!((rig.model.cmdq_error(0), rig.model.read_u64(word)), (None, Some(5)), "the SYNC was repeated");
        assert!(rig.device().read_u64(Iova(IOVA)).is_err());
        assert_eq!(rig.model.report().syncs, syncs + 1);
        assert_eq!(rig.cons().rd().value(), rig.mmio.read32(offset::CMDQ_PROD));
    }
}

#[test]
fn a_sync_may_fail_more_than_once_or_be_replaced() {
    let (rig, _data) = unmapped(None, exact());
    rig.model.set_ats(0, SID, AtsBehaviour { answers: AtsAnswers::Never, timeouts: 3, ..Default::default() });
    rig.batch(&[ATC_INV, SYNC]);
    for _ in 0..2 {
        rig.acknowledge();
        assert_eq!(rig.model.cmdq_error(0), Some(CmdqError::AtcInvSync));
    }
    rig.acknowledge();
    assert_eq!((rig.model.cmdq_error(0), rig.model.report().atc_timeouts), (None, 3));
    rig.model.set_ats(0, SID, AtsBehaviour { answers: AtsAnswers::Never, timeouts: u32::MAX, ..Default::default() });
    rig.batch(&[ATC_INV, SYNC]);
    for _ in 0..50 {
        rig.acknowledge();
        assert_eq!(rig.model.cmdq_error(0), Some(CmdqError::AtcInvSync));
    }
    // Software puts something else in the place of the CMD_SYNC.
    let slot = rig.cmdq.0 + u64::from(rig.cons().rd().value() & ((1 << CMDQ_LOG2) - 1)) * 16;
    rig.word(slot, Command::TlbiNsnhAll.encode().0[0]);
    rig.acknowledge();
    assert_eq!(rig.model.cmdq_error(0), None);
    assert_eq!(rig.cons().rd().value(), rig.mmio.read32(offset::CMDQ_PROD));
}

#[test]
fn a_timeout_may_lose_the_invalidations_of_others() {
    const OTHER: u32 = SID + 1;
    for loses_all in [true, false] {
        let laziness = Laziness { atc_timeout_loses_all: loses_all, ..exact().laziness };
        let (rig, data) = unmapped(None, ModelSmmuConfig { laziness, ..exact() });
        assert!(rig.platform.ats_enable(0, OTHER, 0));
        rig.model.set_ats(0, OTHER, AtsBehaviour { answers: AtsAnswers::Never, ..Default::default() });
        let other = Command::AtcInv { sid: OTHER, ssid: None, global: false, addr: IOVA, size: 0 };
        rig.batch(&[TLBI, SYNC, ATC_INV, other, SYNC]);
        assert_eq!(rig.model.cmdq_error(0), Some(CmdqError::AtcInvSync));
        rig.acknowledge();
        assert_eq!(rig.model.cmdq_error(0), None);
        assert_eq!(rig.stale_ats_reads(data, None, IOVA), loses_all.into());
    }
}

#[test]
fn turning_ats_off_under_an_invalidation_is_a_violation_and_leaves_it_unanswered() {
    for atc_timeout_loses_all in [true, false] {
        let laziness = Laziness { atc_timeout_loses_all, ..exact().laziness };
        let (rig, data) = unmapped(None, ModelSmmuConfig { laziness, ..exact() });
        rig.batch(&[TLBI, SYNC, ATC_INV]);
        rig.platform.ats_disable(0, SID);
        assert_eq!(rig.model.report().violation_count, 1);
        rig.cmd(SYNC);
        assert_eq!(rig.model.cmdq_error(0), Some(CmdqError::AtcInvSync));
        rig.acknowledge();
        assert!(rig.platform.ats_enable(0, SID, 0));
        assert_eq!(rig.stale_ats_reads(data, None, IOVA), 1);
    }
    // A reset, too; but then the ATC is empty.
    let (rig, data) = unmapped(None, exact());
    rig.batch(&[TLBI, SYNC, ATC_INV]);
    rig.model.reset_function(0, SID);
    rig.cmd(SYNC);
    assert_eq!(rig.model.cmdq_error(0), Some(CmdqError::AtcInvSync));
    rig.acknowledge();
    assert!(rig.platform.ats_enable(0, SID, 0));
    assert_eq!(rig.stale_ats_reads(data, None, IOVA), 0);
}

#[test]
fn early_atc_invalidations_find_the_old_translation_too() {
    let laziness = Laziness { early_invalidations: true, ..exact().laziness };
    let config = ModelSmmuConfig { laziness, ..exact() };
    let stale: Vec<u64> = [&[TLBI, SYNC, ATC_INV, SYNC][..], &[ATC_INV, SYNC, TLBI, SYNC]]
        .map(|commands| {
            let (rig, data) = unmapped(None, config.clone());
            rig.batch(commands);
            rig.stale_ats_reads(data, None, IOVA)
        })
        .to_vec();
    assert_eq!(stale, [0, 1]);
    // Half of the time they do not wait for a CMD_SYNC.
    let (rig, _data) = unmapped(None, config);
    rig.cmd_sync(TLBI);
    let reads = (0..16).map(|_| {
        rig.cmd(ATC_INV);
        rig.device().ats_read_u64(Iova(IOVA)).is_ok()
    });
    let reads: Vec<bool> = reads.collect();
    assert!(reads.is_sorted_by(|first, then| first >= then) && !reads[15], "{reads:?}");
}

#[test]
fn atc_sabotage_is_as_if_the_driver_had_left_the_step_out() {
    let right = [TLBI, SYNC, ATC_INV, SYNC];
    for (what, commands, stale) in [
        (None, &right[..], 0),
        (Some(Sabotage::IgnoreAtcInv), &right, 1),
        (Some(Sabotage::IgnoreSync), &right, 1),
        (Some(Sabotage::IgnoreInnerSync), &right, 1),
        (Some(Sabotage::IgnoreTlbiByTag), &right, 1),
        (Some(Sabotage::IgnoreNhAll), &right, 0),
    ] {
        let (rig, data) = unmapped(None, exact());
        what.into_iter().for_each(|what| rig.model.sabotage(0, what));
        rig.batch(commands);
        assert_eq!(rig.stale_ats_reads(data, None, IOVA), stale, "{what:?}");
    }
}

/// A nested stream with a page in all caches, unmapped at stage 2 by now; stage 1 of the guest still maps it.
fn nested_unmapped() -> (Rig, DataPages) {
    let rig = Rig::new();
    let (s1, s2) = (rig.table(Stage::S1, Granule::K4, 48), rig.table(Stage::S2, Granule::K4, 40));
    rig.map_ram(&s2);
    let data = rig.model.alloc_data(1).unwrap();
    rig.map(&s1, IOVA, PhysAddr(0x20_0000), 3, RW);
    rig.map(&s2, 0x20_0000, data.addr(), 3, RW);
    let cds = rig.one_cd(&s1, ASID);
    rig.attach_ats(SID, VMID, Stages::Nested(cds, stage2(&s2)));
    rig.device().read_u64(Iova(IOVA)).unwrap();
    rig.device().ats_read_u64(Iova(IOVA)).unwrap();
    rig.unmap(&s2, 0x20_0000, 3);
    (rig, data)
}

#[test]
fn nesting_needs_stage_2_then_stage_1_then_the_atc_with_syncs_between() {
    let s2 = Command::TlbiS2Ipa { vmid: VMID, addr: one(0x20_0000, true) };
    let s1 = Command::TlbiNhAll { vmid: VMID };
    let all = Command::TlbiS12Vmall { vmid: VMID };
    let atc = atc_inv(None, 0, 52);
    let right = [s2, SYNC, s1, SYNC, atc, SYNC];
    for (sabotage, commands, plain, ats) in [
        (None, &right[..], 0, 0),
        // Without a SYNC between, or the wrong way round, the stages are put together again.
        (None, &[s2, s1, SYNC, atc, SYNC], 1, 1),
        (None, &[s1, s2, SYNC, atc, SYNC], 1, 1),
        (None, &[s1, SYNC, s2, SYNC, atc, SYNC], 1, 1),
        (None, &[s2, SYNC, s1, atc, SYNC], 0, 1),
        (None, &[s2, SYNC, s1, SYNC], 0, 1),
        // One command for both needs no order.
        (None, &[all, SYNC, atc, SYNC], 0, 0),
        (None, &[all, s1, SYNC, atc, SYNC], 0, 0),
        (None, &[all, atc, SYNC], 0, 1),
        (Some(Sabotage::IgnoreNhAll), &right, 1, 1),
        (Some(Sabotage::IgnoreAtcInv), &right, 0, 1),
        (Some(Sabotage::IgnoreInnerSync), &right, 1, 1),
        (Some(Sabotage::IgnoreTlbiByTag), &right, 1, 1),
    ] {
        let (rig, data) = nested_unmapped();
        sabotage.into_iter().for_each(|what| rig.model.sabotage(0, what));
        rig.batch(commands);
        rig.model.free_data(data);
        let _ = rig.device().read_u64(Iova(IOVA));
        let stale_plain = rig.model.report().stale_dma;
        let _ = rig.device().ats_read_u64(Iova(IOVA));
        let stale_ats = rig.model.report().stale_dma - stale_plain;
        assert_eq!((stale_plain, stale_ats), (plain, ats), "{sabotage:?} {commands:?}");
        assert_eq!(rig.event().map(drop), (plain == 0).then_some(()), "the untranslated read faults, if any");
    }
}

#[test]
fn a_device_that_mixes_its_accesses_sees_no_stale_page_while_the_driver_invalidates_rightly() {
    //   driver                      device
    //   map, add to the targets
    //                               fills TLB and ATC
    //   unmap, TLBI, SYNC, (ATC_INV, SYNC)
    //   free
    //                               misses and faults, or is caught
    for right in [true, false] {
        let rig = Rig::new();
        let table = rig.table(Stage::S1, Granule::K4, 48);
        let s1 = rig.one_cd(&table, ASID);
        rig.attach_ats(SID, VMID, Stages::S1(s1));
        let targets = Targets::new();
        let thread = DeviceThread::start_with(rig.device(), targets.clone(), 3, Traffic::Mixed);
        let let_the_device_work = || {
            let enough = thread.stats().accesses + 20;
            while thread.stats().accesses < enough {
                std::thread::yield_now();
            }
        };
        for page in 0..100u64 {
            let iova = 0x10_0000 + page % 8 * 4096;
            let data = rig.model.alloc_data(1).unwrap();
            rig.map(&table, iova, data.addr(), 3, RW);
            targets.add(Iova(iova));
            let_the_device_work();
            rig.unmap(&table, iova, 3);
            rig.cmd_sync(Command::TlbiNhVa { vmid: VMID, asid: ASID, addr: one(iova, true) });
            if right {
                rig.cmd_sync(atc_inv(None, iova, 0));
            }
            rig.model.free_data(data);
            let_the_device_work();
            targets.remove(Iova(iova));
        }
        let stats = thread.stop();
        assert!(stats.translated > 100, "{stats:?}");
        assert_eq!(rig.model.report().stale_dma > 0, !right, "{stats:?}");
    }
}

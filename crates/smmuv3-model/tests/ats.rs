//! Translation requests and translated accesses: what each kind of stream answers, and what is checked.

mod common;

use common::*;
use smmuv3::arch::regs::offset;
use smmuv3::arch::{
    Command, DefaultSubstream, Desc, Eats, Event, Granule, Prot, RawSte, Rights, Stage, Stages, Ste, Stream,
    StreamWorld,
};
use smmuv3::platform::{Iova, Mmio, PhysAddr, Platform};
use smmuv3_model::{AtsBehaviour, DataPages, DeviceThread, DmaError, ModelSmmuConfig, Targets, Traffic};

const IOVA: u64 = 0x4000_0000;
const ASID: u16 = 7;
const VMID: u16 = 3;

/// One page at stage 1, ATS on, ATSCHK on, nothing cached.
fn one_page(prot: Prot) -> (Rig, Table, DataPages) {
    let rig = Rig::new();
    rig.atschk(true);
    let table = rig.table(Stage::S1, Granule::K4, 48);
    let data = rig.model.alloc_data(1).unwrap();
    rig.map(&table, IOVA, data.addr(), 3, prot);
    let s1 = rig.one_cd(&table, ASID);
    rig.attach_ats(SID, VMID, Stages::S1(s1));
    (rig, table, data)
}

impl Rig {
    fn restart(&self, ste: Ste) {
        self.ste(SID, ste);
        self.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
    }

    fn ask(&self) -> Result<u64, DmaError> {
        self.device().ats_read_u64(Iova(IOVA))
    }

    fn atc_entries(&self) -> usize {
        self.model.report().smmus[0].atc_entries
    }
}

#[test]
fn a_miss_asks_the_smmu_once_and_hits_go_straight_to_memory() {
    let (rig, _, data) = one_page(RW);
    for value in 1..5 {
        rig.device().ats_write_u64(Iova(IOVA + 8), value).unwrap();
        assert_eq!(rig.model.read_u64(PhysAddr(data.addr().0 + 8)), Some(value));
        assert_eq!(rig.device().ats_read_u64(Iova(IOVA + 8)), Ok(value));
    }
    let report = rig.model.report();
    assert_eq!((report.ats_requests, report.translated, report.dma_checked), (1, 8, 8));
    assert_eq!((report.smmus[0].walks, rig.atc_entries(), report.faults), (1, 1, 0));
    report.assert_clean();
}

#[test]
fn a_function_issues_nothing_with_ats_while_ats_is_off() {
    let (rig, _, _data) = one_page(RW);
    rig.ask().unwrap();
    rig.platform.ats_disable(0, SID);
    assert!(!rig.model.ats_enabled(0, SID));
    assert_eq!(rig.ask(), Err(DmaError::AtsOff));
    assert!(rig.device().read_u64(Iova(IOVA)).is_ok(), "untranslated accesses go on");
    assert_eq!((rig.model.report().ats_requests, rig.atc_entries()), (1, 1), "the ATC keeps what it has");
    assert!(rig.platform.ats_enable(0, SID, 0));
    rig.ask().unwrap();
    assert_eq!(rig.model.report().ats_requests, 1);
    rig.model.reset_function(0, SID);
    assert_eq!((rig.ask(), rig.atc_entries()), (Err(DmaError::AtsOff), 0));
    rig.model.report().assert_clean();
}

#[test]
fn ats_stays_off_where_function_or_smmu_do_not_have_it() {
    let rig = Rig::new();
    rig.model.set_ats(0, 5, AtsBehaviour { has_ats: false, ..Default::default() });
    assert!(!rig.platform.ats_enable(0, 5, 0) && rig.platform.ats_enable(0, 6, 0));
    rig.model.report().assert_clean();
    assert!(!rig.platform.ats_enable(1, 6, 0), "no such SMMU");
    assert_eq!(rig.model.report().violation_count, 1);
    let rig = Rig::with(ModelSmmuConfig { ats: false, ..exact() });
    assert!(!rig.platform.ats_enable(0, 5, 0));
    assert_eq!(rig.model.report().violation_count, 1);
}

#[test]
fn the_stu_is_the_smallest_granule_and_ats_is_on_only_while_the_smmu_is() {
    let coarse = ModelSmmuConfig { granules: [false, true, true], ..exact() };
    for (config, stu, violations) in [(exact(), 0, 0), (exact(), 2, 1), (coarse.clone(), 2, 0), (coarse, 0, 1)] {
        let rig = Rig::with(config);
        assert!(rig.platform.ats_enable(0, SID, stu));
        assert_eq!(rig.model.report().violation_count, violations);
        rig.cr0(|cr0| cr0.with_smmuen(false));
        assert_eq!(rig.model.report().violation_count, violations + 1, "SMMUEN is cleared under ATS");
    }
    let rig = Rig::new();
    assert!(rig.platform.ats_enable(0, SID, 0));
    rig.platform.ats_disable(0, SID);
    rig.cr0(|cr0| cr0.with_smmuen(false));
    rig.model.report().assert_clean();
    assert!(rig.platform.ats_enable(0, SID, 0));
    assert_eq!(rig.model.report().violation_count, 1);
}

#[test]
fn each_kind_of_stream_answers_a_translation_request_as_table_3_9_1_2_says() {
    let unsupported = |rig: &Rig, write: bool| {
        let event = Event::FBadAtsTreq {
            stream: Stream { sid: SID, ssid: None },
            input: Iova(IOVA),
            rights: Rights { read: true, write, execute: false },
            privileged: false,
            span: 1,
        };
        let at = Iova(IOVA + 0x18);
        let result = if write { rig.device().ats_write_u64(at, 0) } else { rig.device().ats_read_u64(at).map(drop) };
        assert_eq!(result, Err(DmaError::AtsUnsupported(Some(event))));
        assert_eq!(rig.event(), Some(event));
    };
    let (rig, table, _data) = one_page(RW);
    let s1 = rig.one_cd(&table, ASID);
    let stages = Stages::S1(s1);
    for write in [false, true] {
        rig.restart(Ste::Bypass);
        unsupported(&rig, write);
        rig.restart(Ste::Translate { vmid: VMID, eats: Eats::Off, stages });
        unsupported(&rig, write);
    }
    rig.restart(Ste::Abort);
    assert_eq!(rig.ask(), Err(DmaError::AtsUnsupported(None)));
    rig.restart(Ste::Invalid);
    assert!(matches!(rig.ask(), Err(DmaError::AtsCompleterAbort(Some(Event::CBadSte(_))))));
    // Split-stage ATS is not there (IDR0.NS1ATS): the STE is illegal.
    rig.restart(Ste::Translate { vmid: VMID, eats: Eats::Split, stages });
    assert!(matches!(rig.ask(), Err(DmaError::AtsCompleterAbort(Some(Event::CBadSte(_))))));
    // Reserved: as if off.
    let RawSte(mut words) = Ste::Translate { vmid: VMID, eats: Eats::Full, stages }.encode();
    words[1] |= 3 << 28;
    rig.words(rig.stes.0 + u64::from(SID) * 64, words);
    rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
    unsupported(&rig, false);
    let far = rig.model.device(0, 64);
    assert!(rig.platform.ats_enable(0, 64, 0));
    assert!(matches!(far.ats_read_u64(Iova(0)), Err(DmaError::AtsCompleterAbort(Some(Event::CBadStreamid(_))))));
    rig.words(s1.context_ptr.0, [0; 8]);
    rig.restart(Ste::Translate { vmid: VMID, eats: Eats::Full, stages });
    assert!(matches!(rig.ask(), Err(DmaError::AtsCompleterAbort(Some(Event::CBadCd(_))))));
    assert_eq!((rig.event(), rig.atc_entries(), rig.model.report().translated), (None, 0, 0));
    rig.model.report().assert_clean();
    rig.platform.ats_disable(0, SID);
    rig.platform.ats_disable(0, 64);
    rig.cr0(|cr0| cr0.with_smmuen(false));
    rig.platform.ats_enable(0, SID, 0);
    unsupported(&rig, false);
}

#[test]
fn a_translation_fault_gives_no_right_no_event_and_no_entry() {
    let (rig, table, data) = one_page(RW);
    rig.unmap(&table, IOVA, 3);
    assert_eq!(rig.ask(), Err(DmaError::AtsDenied));
    assert_eq!(rig.device().ats_read_u64(Iova(1 << 50)), Err(DmaError::AtsDenied));
    let no_access_flag = Desc(Desc::leaf(data.addr(), 3, Stage::S1, RW).0 & !(1 << 10));
    let cd = rig.alloc(64);
    let [w0, rest @ ..] = raw_cd(&table, ASID).0;
    rig.word(cd.0, w0 & !(1 << 35)); // AFFD
    rest.iter().zip(1..).for_each(|(&word, i)| rig.word(cd.0 + i * 8, word));
    rig.restart(Ste::Translate { vmid: VMID, eats: Eats::Full, stages: Stages::S1(stage1(cd, StreamWorld::El1)) });
    rig.set(&table, IOVA, 3, no_access_flag);
    assert_eq!(rig.ask(), Err(DmaError::AtsDenied));
    assert_eq!((rig.event(), rig.atc_entries(), rig.model.report().faults), (None, 0, 0));
    rig.map(&table, IOVA, data.addr(), 3, RW);
    rig.ask().unwrap();
    rig.model.report().assert_clean();
}

#[test]
fn an_entry_grants_what_all_stages_permit_and_asks_again_for_more() {
    let write = |rig: &Rig| rig.device().ats_write_u64(Iova(IOVA), 1);
    let (rig, table, data) = one_page(Prot::READ);
    rig.ask().unwrap();
    assert_eq!(write(&rig), Err(DmaError::AtsDenied));
    assert_eq!(rig.model.report().ats_requests, 2);
    rig.map(&table, IOVA, data.addr(), 3, RW);
    rig.cmd_sync(Command::TlbiNhAsid { vmid: VMID, asid: ASID });
    write(&rig).unwrap();
    // Privileged pages: nothing for the unprivileged.
    let (rig, ..) = one_page(RW | Prot::PRIVILEGED);
    assert_eq!((rig.ask(), write(&rig)), (Err(DmaError::AtsDenied), Err(DmaError::AtsDenied)));
    // Two stages: the intersection.
    let grants = |prot1, prot2| {
        let (rig, _) = nested(prot1, prot2);
        let grants = (rig.ask().is_ok(), write(&rig).is_ok());
        assert_eq!((rig.event(), rig.model.report().violation_count), (None, 0));
        assert_eq!(rig.atc_entries() > 0, grants != (false, false));
        grants
    };
    assert_eq!(grants(RW, RW), (true, true));
    assert_eq!(grants(RW, Prot::READ), (true, false));
    assert_eq!(grants(RW, Prot::WRITE), (false, true));
    assert_eq!(grants(Prot::READ, Prot::WRITE), (false, false));
    assert_eq!(grants(Prot::READ, RW), (true, false));
}

/// A nested stream with full ATS and one page, not yet in any cache.
fn nested(prot1: Prot, prot2: Prot) -> (Rig, DataPages) {
    const IPA: u64 = 0x20_0000;
    let rig = Rig::new();
    let (s1, s2) = (rig.table(Stage::S1, Granule::K4, 48), rig.table(Stage::S2, Granule::K4, 40));
    rig.map_ram(&s2);
    let data = rig.model.alloc_data(1).unwrap();
    rig.map(&s1, IOVA, PhysAddr(IPA), 3, prot1);
    rig.map(&s2, IPA, data.addr(), 3, prot2);
    let cds = rig.one_cd(&s1, ASID);
    rig.attach_ats(SID, VMID, Stages::Nested(cds, stage2(&s2)));
    (rig, data)
}

#[test]
fn a_nested_stream_answers_with_the_final_address() {
    let (rig, data) = nested(RW, RW);
    rig.atschk(true);
    rig.device().ats_write_u64(Iova(IOVA), 77).unwrap();
    assert_eq!(rig.model.read_u64(data.addr()), Some(77));
    let walks = rig.model.report().smmus[0].walks;
    rig.ask().unwrap();
    assert_eq!(rig.model.report().smmus[0].walks, walks);
}

#[test]
fn split_stage_ats_is_illegal() {
    let rig = Rig::new();
    let (s1, s2) = (rig.table(Stage::S1, Granule::K4, 48), rig.table(Stage::S2, Granule::K4, 40));
    let stages = Stages::Nested(rig.one_cd(&s1, ASID), stage2(&s2));
    rig.restart(Ste::Translate { vmid: VMID, eats: Eats::Split, stages });
    let bad = Event::CBadSte(Stream { sid: SID, ssid: None });
    assert_eq!(rig.device().read_u64(Iova(IOVA)), Err(DmaError::Aborted(Some(bad))));
    assert!(rig.platform.ats_enable(0, SID, 0));
    assert_eq!(rig.ask(), Err(DmaError::AtsCompleterAbort(Some(bad))));
}

#[test]
fn stage_2_is_not_asked_for_what_stage_1_does_not_permit() {
    for (prot, asked) in [(RW, true), (RW | Prot::PRIVILEGED, false)] {
        let rig = Rig::new();
        let (s1, s2) = (rig.table(Stage::S1, Granule::K4, 48), rig.table(Stage::S2, Granule::K4, 40));
        rig.map_ram(&s2);
        // The stage 2 table for the page's IPA is not in memory.
        rig.set(&s2, 0, 1, Desc::table(PhysAddr(0x1000)));
        rig.map(&s1, IOVA, PhysAddr(0x20_0000), 3, prot);
        let cds = rig.one_cd(&s1, ASID);
        rig.attach_ats(SID, VMID, Stages::Nested(cds, stage2(&s2)));
        match rig.ask() {
            Err(DmaError::AtsCompleterAbort(Some(Event::FWalkEabt { s2: true, .. }))) => assert!(asked),
            other => assert_eq!((other, asked), (Err(DmaError::AtsDenied), false)),
        }
        assert_eq!(rig.event(), None);
    }
}

#[test]
fn a_stage_2_stream_and_blocks_serve_ats() {
    let rig = Rig::new();
    let table = rig.table(Stage::S2, Granule::K4, 40);
    let data = rig.model.alloc_data_aligned(512, 2 << 20).unwrap();
    rig.map(&table, IOVA, data.addr(), 2, RW);
    rig.attach_ats(SID, VMID, Stages::S2(stage2(&table)));
    for page in [0, 511, 17] {
        rig.device().ats_write_u64(Iova(IOVA + page * 4096), page).unwrap();
        assert_eq!(rig.model.read_u64(PhysAddr(data.addr().0 + page * 4096)), Some(page));
    }
    assert_eq!((rig.model.report().ats_requests, rig.atc_entries()), (1, 1), "one entry for the block");
    rig.map(&table, IOVA + (2 << 20), data.addr(), 2, Prot::READ);
    assert_eq!(rig.device().ats_write_u64(Iova(IOVA + (2 << 20)), 0), Err(DmaError::AtsDenied));
    rig.model.report().assert_clean();
}

#[test]
fn translated_accesses_are_checked_against_the_ste_if_atschk_says_so() {
    for atschk in [true, false] {
        let (rig, table, data) = one_page(RW);
        rig.atschk(atschk);
        rig.ask().unwrap();
        let stages = Stages::S1(rig.one_cd(&table, ASID));
        let forbidden = |rnw| Event::FTranslForbidden {
            stream: Stream { sid: SID, ssid: None },
            rnw,
            input: Iova(data.addr().0 + 16),
        };
        for ste in [Ste::Bypass, Ste::Translate { vmid: VMID, eats: Eats::Off, stages }] {
            rig.restart(ste);
            for write in [false, true] {
                let at = Iova(IOVA + 16);
                let result = match write {
                    true => rig.device().ats_write_u64(at, 0),
                    false => rig.device().ats_read_u64(at).map(drop),
                };
                let expected = atschk.then(|| forbidden(!write));
                assert_eq!(result, expected.map_or(Ok(()), |event| Err(DmaError::Aborted(Some(event)))));
                assert_eq!(rig.event(), expected);
            }
        }
        rig.restart(Ste::Abort);
        assert_eq!(rig.ask().err(), atschk.then_some(DmaError::Aborted(None)));
        rig.restart(Ste::Invalid);
        let bad = Event::CBadSte(Stream { sid: SID, ssid: None });
        assert_eq!(rig.ask().err(), atschk.then_some(DmaError::Aborted(Some(bad))));
        assert_eq!(rig.event(), None, "aborted in silence");
        // An STE that is not invalidated yet counts as it was.
        rig.restart(Ste::Translate { vmid: VMID, eats: Eats::Full, stages });
        rig.ask().unwrap();
        rig.ste(SID, Ste::Abort);
        rig.ask().unwrap();
        rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
        assert_eq!(rig.ask().is_ok(), !atschk);
        rig.cr0(|cr0| cr0.with_smmuen(false));
        assert!(matches!(rig.ask(), Err(DmaError::Aborted(Some(Event::FTranslForbidden { .. })))));
        assert!(rig.event().is_some());
    }
}

#[test]
fn pasids_and_s1dss_decide_alike_for_plain_and_ats_accesses() {
    use DefaultSubstream::{Bypass, Substream0, Terminate};
    // What becomes of no SubstreamID, 0, 1, 3 (whose CD is not valid), 4 (beyond S1CDMax).
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum End {
        Page(u64),
        Identity,
        Disabled,
        BadSsid,
        BadCd,
    }
    use End::*;
    let cases = [
        (Terminate, 2, [Disabled, Page(0), Page(1), BadCd, BadSsid]),
        (Bypass, 2, [Identity, Page(0), Page(1), BadCd, BadSsid]),
        (Substream0, 2, [Page(0), Disabled, Page(1), BadCd, BadSsid]),
        (Terminate, 0, [Page(0), BadSsid, BadSsid, BadSsid, BadSsid]),
        (Bypass, 0, [Page(0), BadSsid, BadSsid, BadSsid, BadSsid]),
    ];
    for (default_substream, cd_max, ends) in cases {
        let rig = Rig::new();
        let data = rig.model.alloc_data(3).unwrap();
        let cds = rig.alloc(64 << 2);
        for page in 0..2 {
            let table = rig.table(Stage::S1, Granule::K4, 48);
            // The address is that of a page itself, so that identity gets somewhere.
            rig.map(&table, data.addr().0, PhysAddr(data.addr().0 + (page + 1) * 4096), 3, RW);
            rig.words(cds.0 + page * 64, raw_cd(&table, ASID + page as u16).0);
            rig.word(data.addr().0 + (page + 1) * 4096, page);
        }
        rig.word(data.addr().0, 99);
        let mut s1 = stage1(cds, StreamWorld::El1);
        (s1.cd_max, s1.default_substream) = (cd_max, default_substream);
        rig.attach_ats(SID, VMID, Stages::S1(s1));
        for (ssid, end) in [None, Some(0), Some(1), Some(3), Some(4)].into_iter().zip(ends) {
            let device = ssid.map_or(rig.device(), |ssid| rig.device().with_ssid(ssid));
            let classify = |event| match event {
                Some(Event::FStreamDisabled(_)) => Disabled,
                Some(Event::CBadSubstreamid { .. }) => BadSsid,
                Some(Event::CBadCd(_)) => BadCd,
                other => panic!("{other:?}"),
            };
            let classify = |result| match result {
                Ok(99) => Identity,
                Ok(page) => Page(page),
                Err(DmaError::Aborted(event) | DmaError::AtsCompleterAbort(event)) => classify(event),
                Err(other) => panic!("{other:?}"),
            };
            let at = Iova(data.addr().0);
            assert_eq!(classify(device.ats_read_u64(at)), end, "{default_substream:?}, {ssid:?}, ATS");
            assert_eq!(rig.event(), None, "ATS leaves no event");
            assert_eq!(classify(device.ats_read_u64(at)), end, "once more");
            assert_eq!(classify(device.read_u64(at)), end, "{default_substream:?}, {ssid:?}");
            assert_eq!(rig.event().is_some(), !matches!(end, Page(_) | Identity));
        }
        rig.model.report().assert_clean();
        if ends[2] == Page(1) {
            // A translated access comes without its PASID, as long as there is no IDR3.PASIDTT.
            rig.atschk(true);
            rig.restart(Ste::Invalid);
            let bad = Event::CBadSte(Stream { sid: SID, ssid: None });
            let result = rig.device().with_ssid(1).ats_read_u64(Iova(data.addr().0));
            assert_eq!(result, Err(DmaError::Aborted(Some(bad))));
        }
    }
}

#[test]
fn a_substream_without_stage_1_is_bad_for_plain_and_ats_accesses() {
    let rig = Rig::new();
    let table = rig.table(Stage::S2, Granule::K4, 40);
    rig.attach_ats(SID, VMID, Stages::S2(stage2(&table)));
    let device = rig.device().with_ssid(1);
    let bad = Event::CBadSubstreamid { sid: SID, ssid: 1 };
    assert_eq!(device.ats_read_u64(Iova(0)), Err(DmaError::AtsCompleterAbort(Some(bad))));
    assert_eq!(device.read_u64(Iova(0)), Err(DmaError::Aborted(Some(bad))));
    assert_eq!((rig.event(), rig.event()), (Some(bad), None));
}

#[test]
fn skipping_stage_1_over_stage_2_translates_by_stage_2() {
    let rig = Rig::new();
    let (s1, s2) = (rig.table(Stage::S1, Granule::K4, 48), rig.table(Stage::S2, Granule::K4, 40));
    let data = rig.model.alloc_data(1).unwrap();
    rig.map_ram(&s2);
    rig.map(&s2, IOVA, data.addr(), 3, RW);
    let mut cds = rig.one_cd(&s1, ASID);
    (cds.cd_max, cds.default_substream) = (1, DefaultSubstream::Bypass);
    cds.context_ptr = rig.alloc(128);
    rig.attach_ats(SID, VMID, Stages::Nested(cds, stage2(&s2)));
    rig.device().ats_write_u64(Iova(IOVA), 5).unwrap();
    assert_eq!(rig.model.read_u64(data.addr()), Some(5));
    assert_eq!(rig.device().read_u64(Iova(IOVA)), Ok(5));
    rig.model.report().assert_clean();
}

#[test]
fn device_threads_use_ats_when_told_to_and_while_it_is_on() {
    let (rig, _, _data) = one_page(RW);
    let run = |traffic| {
        let targets = Targets::new();
        targets.add(Iova(IOVA));
        let thread = DeviceThread::start_with(rig.device(), targets, 1, traffic);
        while thread.stats().accesses < 200 {
            std::thread::yield_now();
        }
        thread.stop()
    };
    let plain = run(Traffic::Untranslated);
    assert_eq!((plain.faults, plain.translated, rig.model.report().ats_requests), (0, 0, 0));
    let mixed = run(Traffic::Mixed);
    assert!(mixed.faults == 0 && mixed.translated > 50 && mixed.translated < mixed.accesses - 50, "{mixed:?}");
    let ats = run(Traffic::Ats);
    assert_eq!((ats.faults, ats.translated), (0, ats.accesses));
    rig.platform.ats_disable(0, SID);
    let mixed = run(Traffic::Mixed);
    assert_eq!((mixed.faults, mixed.translated), (0, 0));
    let off = run(Traffic::Ats);
    assert_eq!((off.faults, off.translated), (off.accesses, 0));
    assert_eq!(rig.mmio.read32(offset::EVENTQ_PROD), 0);
}

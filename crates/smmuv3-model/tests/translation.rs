//! Every kind of stream reaches the memory that its structures and tables name, and no other.

mod common;

use common::*;
use smmuv3::arch::{
    CdFormat, Command, DefaultSubstream, Eats, Event, Granule, L1Cd, Prot, Stage, Stages, Ste, StreamWorld,
};
use smmuv3::platform::{Iova, PhysAddr};
use smmuv3_model::{DmaError, ModelSmmuConfig};

const GRANULES: [Granule; 3] = [Granule::K4, Granule::K16, Granule::K64];

/// Reads and writes through `iova` arrive at `pa`.
fn reaches(rig: &Rig, iova: u64, pa: u64) {
    let value = iova ^ 0x5555_0000_1234_5678;
    assert!(rig.model.write_u64(PhysAddr(pa), value));
    assert_eq!(rig.device().read_u64(Iova(iova)), Ok(value));
    rig.device().write_u64(Iova(iova), !value).unwrap();
    assert_eq!(rig.model.read_u64(PhysAddr(pa)), Some(!value));
}

#[test]
fn a_page_is_reached_through_stage_1_with_every_granule_and_input_size() {
    for granule in GRANULES {
        for bits in [39, 42, 48] {
            let rig = Rig::new();
            let table = rig.table(Stage::S1, granule, bits);
            let data = rig.model.alloc_data_aligned(16, granule.size() as usize).unwrap();
            let iova = 0x55_5550_0000 & !(granule.size() - 1);
            rig.map(&table, iova, data.addr(), 3, RW);
            rig.attach_s1(SID, &table, 1, 0);
            reaches(&rig, iova + 8, data.addr().0 + 8);
            reaches(&rig, iova + granule.size() - 8, data.addr().0 + granule.size() - 8);
            assert!(rig.device().read_u64(Iova(iova + granule.size())).is_err(), "the next page is not mapped");
            rig.model.report().assert_clean();
        }
    }
}

#[test]
fn a_page_is_reached_through_stage_2_with_concatenated_start_tables() {
    for granule in GRANULES {
        for bits in [40, 43, 46, 48] {
            let rig = Rig::new();
            let table = rig.table(Stage::S2, granule, bits);
            let data = rig.model.alloc_data_aligned(16, granule.size() as usize).unwrap();
            // High addresses, so that the last of the start tables is used.
            let iova = (1u64 << bits) - granule.size();
            rig.map(&table, iova, data.addr(), 3, RW);
            rig.attach_s2(SID, &table, 9);
            reaches(&rig, iova + 16, data.addr().0 + 16);
            assert!(rig.device().read_u64(Iova(0)).is_err());
            rig.model.report().assert_clean();
        }
    }
}

#[test]
fn a_block_is_reached_at_every_level_that_may_have_one() {
    for (granule, level, shift) in [(Granule::K4, 1, 30), (Granule::K4, 2, 21), (Granule::K16, 2, 25)] {
        let rig = Rig::new();
        let table = rig.table(Stage::S1, granule, 48);
        // RAM starts at a multiple of 1 GiB, so the block that contains it is RAM and what comes after.
        let block = 0x8000_0000u64;
        let data = rig.model.alloc_data(1).unwrap();
        rig.map(&table, 1 << shift, PhysAddr(block), level, RW);
        rig.attach_s1(SID, &table, 1, 0);
        reaches(&rig, (1 << shift) + (data.addr().0 - block) + 24, data.addr().0 + 24);
        rig.model.report().assert_clean();
        if shift == 30 {
            let beyond = Iova((1 << shift) + (16 << 20));
            assert_eq!(rig.device().read_u64(beyond), Err(DmaError::NoMemory(PhysAddr(block + (16 << 20)))));
        }
    }
}

#[test]
fn an_access_that_crosses_pages_goes_to_each_of_them() {
    let rig = Rig::new();
    let table = rig.table(Stage::S1, Granule::K4, 48);
    let (first, second) = (rig.model.alloc_data(1).unwrap(), rig.model.alloc_data(1).unwrap());
    rig.map(&table, 0x1000, second.addr(), 3, RW);
    rig.map(&table, 0x2000, first.addr(), 3, RW);
    rig.attach_s1(SID, &table, 1, 0);
    let bytes: Vec<u8> = (0..=255).collect();
    rig.device().write(Iova(0x1f81), &bytes).unwrap();
    let (mut low, mut high) = ([0; 127], [0; 129]);
    assert!(rig.model.read_bytes(PhysAddr(second.addr().0 + 0xf81), &mut low));
    assert!(rig.model.read_bytes(first.addr(), &mut high));
    assert_eq!((&low[..], &high[..]), bytes.split_at(127));
    let mut back = vec![0; 256];
    rig.device().read(Iova(0x1f81), &mut back).unwrap();
    assert_eq!(back, bytes);
}

#[test]
fn both_stages_translate_one_after_the_other_with_any_two_granules() {
    for (g1, g2) in GRANULES.iter().flat_map(|&g1| GRANULES.map(|g2| (g1, g2))) {
        let rig = Rig::new();
        let (s1, s2) = (rig.table(Stage::S1, g1, 48), rig.table(Stage::S2, g2, 48));
        // Stage 2 is the identity with 2 MiB or larger blocks, where the tables, the CD and the data are.
        let (level, size) = match g2 {
            Granule::K4 => (2, 2 << 20),
            Granule::K16 => (3, 16 << 10),
            Granule::K64 => (3, 64 << 10),
        };
        for addr in (0x8000_0000..0x8100_0000).step_by(size) {
            rig.map(&s2, addr, PhysAddr(addr), level, RW);
        }
        let data = rig.model.alloc_data_aligned(16, 0x1_0000).unwrap();
        rig.map(&s1, 0x12_3450_0000, data.addr(), 3, RW);
        let cd = rig.alloc(64);
        rig.words(cd.0, raw_cd(&s1, 5).0);
        let stages = Stages::Nested(stage1(cd, StreamWorld::El1), stage2(&s2));
        rig.ste(SID, Ste::Translate { vmid: 3, eats: Eats::Off, stages });
        rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
        reaches(&rig, 0x12_3450_0000 + 8, data.addr().0 + 8);
        let last = g1.size() - 8;
        reaches(&rig, 0x12_3450_0000 + last, data.addr().0 + last);
        rig.model.report().assert_clean();
    }
}

#[test]
fn a_bypass_stream_passes_and_an_abort_stream_does_not() {
    let rig = Rig::new();
    let data = rig.model.alloc_data(1).unwrap();
    rig.ste(SID, Ste::Bypass);
    rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
    reaches(&rig, data.addr().0, data.addr().0);
    rig.ste(SID, Ste::Abort);
    rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
    assert_eq!(rig.device().read_u64(Iova(data.addr().0)), Err(DmaError::Aborted(None)));
    assert_eq!(rig.event(), None, "Config = 0b000 is silent");
}

#[test]
fn substreams_find_their_cds_in_tables_of_all_formats() {
    for (format, bits, leaf) in
        [(CdFormat::Linear, 7, 0), (CdFormat::TwoLevel4K, 6, 0x1000), (CdFormat::TwoLevel64K, 10, 0x1_0000)]
    {
        let rig = Rig::new();
        let max = if leaf == 0 { 7 } else { 12 };
        let ssid: u32 = if leaf == 0 { 100 } else { 0x845 };
        let table = rig.table(Stage::S1, Granule::K4, 48);
        let data = rig.model.alloc_data(1).unwrap();
        rig.map(&table, 0x7000, data.addr(), 3, RW);
        let top = rig.alloc(0x2000);
        let cd = if leaf == 0 {
            top.0 + u64::from(ssid) * 64
        } else {
            let second = rig.alloc(leaf);
            rig.word(top.0 + u64::from(ssid >> bits) * 8, L1Cd::pointing_to(second).raw_value());
            second.0 + u64::from(ssid & ((1 << bits) - 1)) * 64
        };
        rig.words(cd, raw_cd(&table, 77).0);
        let mut s1 = stage1(top, StreamWorld::El1);
        (s1.cd_max, s1.format, s1.default_substream) = (max, format, DefaultSubstream::Terminate);
        rig.ste(SID, Ste::Translate { vmid: 0, eats: Eats::Off, stages: Stages::S1(s1) });
        rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
        let device = rig.device().with_ssid(ssid);
        device.write_u64(Iova(0x7000), 1234).unwrap();
        assert_eq!(rig.model.read_u64(data.addr()), Some(1234));
        // Without a SubstreamID, with one beyond the table, with one whose CD is not valid.
        assert!(matches!(rig.device().read_u64(Iova(0x7000)), Err(DmaError::Aborted(Some(Event::FStreamDisabled(_))))));
        assert!(matches!(
            rig.device().with_ssid(1 << max).read_u64(Iova(0x7000)),
            Err(DmaError::Aborted(Some(Event::CBadSubstreamid { ssid, .. }))) if ssid == 1 << max
        ));
        assert!(matches!(
            rig.device().with_ssid(ssid + 1).read_u64(Iova(0x7000)),
            Err(DmaError::Aborted(Some(Event::CBadCd(_))))
        ));
        if leaf != 0 {
            assert!(matches!(
                rig.device().with_ssid(1).read_u64(Iova(0x7000)),
                Err(DmaError::Aborted(Some(Event::CBadSubstreamid { ssid: 1, .. })))
            ));
        }
        rig.model.report().assert_clean();
    }
}

#[test]
fn traffic_without_a_substream_goes_where_s1dss_says() {
    let rig = Rig::new();
    let table = rig.table(Stage::S1, Granule::K4, 48);
    let data = rig.model.alloc_data(1).unwrap();
    rig.map(&table, 0x7000, data.addr(), 3, RW);
    let cds = rig.alloc(64 << 2);
    rig.words(cds.0, raw_cd(&table, 77).0);
    let attach = |default_substream| {
        let mut s1 = stage1(cds, StreamWorld::El1);
        (s1.cd_max, s1.default_substream) = (2, default_substream);
        rig.ste(SID, Ste::Translate { vmid: 0, eats: Eats::Off, stages: Stages::S1(s1) });
        rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
    };
    attach(DefaultSubstream::Substream0);
    reaches(&rig, 0x7000, data.addr().0);
    let zero = rig.device().with_ssid(0);
    assert!(matches!(zero.read_u64(Iova(0x7000)), Err(DmaError::Aborted(Some(Event::FStreamDisabled(_))))));
    attach(DefaultSubstream::Bypass);
    reaches(&rig, data.addr().0, data.addr().0);
    zero.read_u64(Iova(0x7000)).unwrap();
    attach(DefaultSubstream::Terminate);
    assert!(rig.device().read_u64(Iova(0x7000)).is_err());
    zero.read_u64(Iova(0x7000)).unwrap();
}

#[test]
fn a_two_level_stream_table_serves_the_streams_it_spans() {
    let rig = Rig::new();
    rig.two_level();
    let data = rig.model.alloc_data(1).unwrap();
    rig.ste(SID, Ste::Bypass);
    reaches(&rig, data.addr().0, data.addr().0);
    let bad = |sid: u32| match rig.model.device(0, sid).read_u64(Iova(0)) {
        Err(DmaError::Aborted(Some(Event::CBadStreamid(stream)))) => stream.sid == sid,
        _ => false,
    };
    assert!(bad(0x40), "its L1STD has Span 0");
    assert!(bad(0x1_0000), "beyond LOG2SIZE");
    rig.model.report().assert_clean();
}

#[test]
fn permissions_of_both_stages_count() {
    let rig = Rig::new();
    let data = rig.model.alloc_data(1).unwrap();
    let s1 = rig.table(Stage::S1, Granule::K4, 48);
    rig.map(&s1, 0x1000, data.addr(), 3, Prot::READ);
    rig.map(&s1, 0x2000, data.addr(), 3, RW | Prot::PRIVILEGED);
    rig.attach_s1(SID, &s1, 1, 0);
    for _ in 0..2 {
        // From memory, then from the TLB.
        assert!(rig.device().read_u64(Iova(0x1000)).is_ok());
        for result in [rig.device().write_u64(Iova(0x1000), 1), rig.device().write_u64(Iova(0x2000), 1)] {
            assert!(matches!(result, Err(DmaError::Aborted(Some(Event::FPermission { .. })))));
        }
    }
    let s2 = rig.table(Stage::S2, Granule::K4, 48);
    rig.map(&s2, 0x1000, data.addr(), 3, Prot::READ);
    rig.map(&s2, 0x2000, data.addr(), 3, Prot::WRITE);
    rig.attach_s2(SID, &s2, 1);
    for _ in 0..2 {
        assert!(rig.device().read_u64(Iova(0x1000)).is_ok() && rig.device().write_u64(Iova(0x2000), 1).is_ok());
        assert!(rig.device().write_u64(Iova(0x1000), 1).is_err() && rig.device().read_u64(Iova(0x2000)).is_err());
    }
}

#[test]
fn features_that_are_not_there_make_structures_illegal() {
    let rig = Rig::with(ModelSmmuConfig { stage2: false, granules: [true, false, false], ..exact() });
    let table = rig.table(Stage::S2, Granule::K4, 48);
    rig.attach_s2(SID, &table, 1);
    assert!(matches!(rig.device().read_u64(Iova(0)), Err(DmaError::Aborted(Some(Event::CBadSte(_))))));
    let table = rig.table(Stage::S1, Granule::K16, 48);
    rig.attach_s1(SID, &table, 1, 0);
    assert!(matches!(rig.device().read_u64(Iova(0)), Err(DmaError::Aborted(Some(Event::CBadCd(_))))));
}

#[test]
fn an_el2_stream_is_translated_without_an_asid() {
    let rig = Rig::new();
    let table = rig.table(Stage::S1, Granule::K4, 48);
    let data = rig.model.alloc_data(1).unwrap();
    rig.map(&table, 0x7000, data.addr(), 3, RW);
    let cd = rig.attach_s1(SID, &table, 4, 0);
    rig.ste(SID, s1_ste(cd, 0, StreamWorld::El2));
    rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
    reaches(&rig, 0x7000, data.addr().0);
    // EL1 commands do not reach it, whatever the tags; EL2_VA does, whatever the ASID.
    rig.unmap(&table, 0x7000, 3);
    rig.cmd_sync(Command::TlbiNsnhAll);
    assert!(rig.device().read_u64(Iova(0x7000)).is_ok());
    rig.cmd_sync(Command::TlbiEl2Va { asid: 9, addr: one(0x7000, true) });
    assert!(rig.device().read_u64(Iova(0x7000)).is_err());
}

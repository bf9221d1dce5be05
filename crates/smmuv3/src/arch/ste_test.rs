//! Golden vectors of stream table entries. Bit numbers are those of the field headings of IHI 0070 G.b §5.1 and §5.2, legality
//! is §5.2.2, walk consistency the tables D8-21 to D8-41 of the Arm ARM (DDI 0487 M.a.a).

use super::*;

/// Everything, with 48-bit addresses: `HTTU` and `IDR5.DS` are 0, `STT` is 0, `TTF` is VMSAv8-64 only.
const ALL: Features = Features {
    stage1: true,
    stage2: true,
    aarch64_tables: true,
    little_endian: true,
    coherent: true,
    hyp: true,
    ats: true,
    split_stage_ats: true,
    pri: true,
    msi: true,
    sev: true,
    asid_bits: 16,
    vmid_bits: 16,
    cd_two_level: true,
    st_two_level: true,
    stall_model: StallModel::Both,
    abort_only: false,
    hw_access: false,
    hw_dirty: false,
    sid_bits: 32,
    ssid_bits: 20,
    cmdq_log2: 19,
    eventq_log2: 19,
    preset: false,
    range_inv: true,
    bbm_level: 2,
    ecmdq: false,
    fwb: false,
    oas: AddrSize::B48,
    granules: [true; 3],
    minor: 3,
};

const TERMINATE: Features = Features { stall_model: StallModel::Terminate, ..ALL };
const FORCED: Features = Features { stall_model: StallModel::Forced, ..ALL };

/// Stage 1, one CD: S1STALLD, EATS = full, S2VMID 0xbeef.
const S1: RawSte = RawSte([0x0000_8123_4567_89cb, 0x0000_1000_1800_00d6, 0x0000_0000_0000_beef, 0, 0, 0, 0, 0]);
/// Stage 1, 2^5 CDs in an array.
const S1_ARRAY: RawSte = RawSte([0x2800_0000_1234_080b, 0x0000_1000_0800_00d6, 0x0000_0000_0000_0001, 0, 0, 0, 0, 0]);
/// Stage 1, EL2.
const S1_EL2: RawSte = RawSte([0x0000_0000_0000_004b, 0x0000_1000_8000_00d6, 0, 0, 0, 0, 0, 0]);
/// Stage 2, 4 KiB, 39 input bits from level 1.
const S2: RawSte =
    RawSte([0x0000_0000_0000_000d, 0x0000_1000_0000_0000, 0x042b_3559_0000_a5c3, 0x0000_02a9_8765_4000, 0, 0, 0, 0]);
/// Both stages, 44 input bits at stage 2, EATS = split.
const NESTED: RawSte =
    RawSte([0x4800_1234_5678_901f, 0x0000_1000_2800_00d5, 0x046c_3594_0000_4242, 0x0000_0fed_cba9_8000, 0, 0, 0, 0]);

/// The entry with bits `hi:lo`, numbered as in the specification, set to `value`.
fn with(raw: RawSte, hi: usize, lo: usize, value: u64) -> RawSte {
    let (word, shift, mask) = (lo / 64, lo % 64, u64::MAX >> (63 - (hi - lo)));
    assert!(hi / 64 == word && value <= mask);
    let mut raw = raw;
    raw.0[word] = raw.0[word] & !(mask << shift) | value << shift;
    raw
}

fn s1(context_ptr: u64, cd_max: u8, format: CdFormat, default_substream: DefaultSubstream) -> SteStage1 {
    let (world, stall_disabled) = (StreamWorld::El1, false);
    SteStage1 { context_ptr: PhysAddr(context_ptr), cd_max, format, default_substream, world, stall_disabled }
}

fn s2(granule: Granule, t0sz: u8, sl0: u8, ps: u8, ttb: u64) -> SteStage2 {
    let (record, stall, protected_walk) = (false, false, false);
    let output_size = AddrSize::from_code(ps);
    SteStage2 { t0sz, sl0, granule, output_size, ttb: PhysAddr(ttb), record, stall, protected_walk }
}

/// Entries and their words. SHCFG is "use incoming"; CDs and tables are read write-back, inner shareable; S2AFFD is set.
fn golden() -> [(&'static str, Ste, RawSte); 13] {
    use DefaultSubstream::*;
    let ste = |vmid, eats, stages| Ste::Translate { vmid, eats, stages };
    let one = SteStage1 { stall_disabled: true, ..s1(0x8123_4567_89c0, 0, CdFormat::Linear, Substream0) };
    let array = SteStage1 { stall_disabled: true, ..s1(0x1234_0800, 5, CdFormat::Linear, Substream0) };
    let el2 = SteStage1 { world: StreamWorld::El2, ..s1(0x40, 0, CdFormat::Linear, Substream0) };
    let k4 = SteStage2 { record: true, ..s2(Granule::K4, 25, 1, 3, 0x02a9_8765_4000) };
    let k16 = SteStage2 { stall: true, ..s2(Granule::K16, 16, 2, 5, 0xfedc_ba98_8000) };
    let k64 = SteStage2 { protected_walk: true, ..s2(Granule::K64, 34, 1, 2, 0xff_1234_0000) };
    let upper = SteStage1 { stall_disabled: true, ..s1(0x1234_5678_9000, 9, CdFormat::TwoLevel4K, Bypass) };
    let lower = SteStage2 { record: true, protected_walk: true, ..s2(Granule::K4, 20, 2, 4, 0x0fed_cba9_8000) };
    let two_4k = s1(0x5a5a_a5a5_c000, 13, CdFormat::TwoLevel4K, Terminate);
    let two_64k = s1(0xfedc_ba98_0000, 20, CdFormat::TwoLevel64K, Bypass);
    let nested = |eats| ste(0x4242, eats, Stages::Nested(upper, lower));
    let raw = |w0, w1, w2, w3| RawSte([w0, w1, w2, w3, 0, 0, 0, 0]);
    [
        ("abort", Ste::Abort, raw(1, 0x0000_1000_0000_0000, 0, 0)),
        ("bypass", Ste::Bypass, raw(9, 0x0000_1000_0000_0000, 0, 0)),
        ("one CD", ste(0xbeef, Eats::Full, Stages::S1(one)), S1),
        ("array of CDs", ste(1, Eats::Off, Stages::S1(array)), S1_ARRAY),
        (
            "two levels, 4K leaves",
            ste(0x1234, Eats::Off, Stages::S1(two_4k)),
            raw(0x6800_5a5a_a5a5_c01b, 0x0000_1000_0000_00d4, 0x1234, 0),
        ),
        (
            "two levels, 64K leaves",
            ste(0x8001, Eats::Full, Stages::S1(two_64k)),
            raw(0xa000_fedc_ba98_002b, 0x0000_1000_1000_00d5, 0x8001, 0),
        ),
        ("EL2", ste(0, Eats::Off, Stages::S1(el2)), S1_EL2),
        ("stage 2, 4K", ste(0xa5c3, Eats::Off, Stages::S2(k4)), S2),
        (
            "stage 2, 16K, stalling",
            ste(0xff, Eats::Off, Stages::S2(k16)),
            raw(0xd, 0x0000_1000_0000_0000, 0x022d_b590_0000_00ff, 0x0000_fedc_ba98_8000),
        ),
        (
            "stage 2, 64K, ATS",
            ste(0xff00, Eats::Full, Stages::S2(k64)),
            raw(0xd, 0x0000_1000_1000_0000, 0x006a_7562_0000_ff00, 0x0000_00ff_1234_0000),
        ),
        ("nested without ATS", nested(Eats::Off), with(NESTED, 93, 92, 0)),
        ("nested, full ATS", nested(Eats::Full), with(NESTED, 93, 92, 1)),
        ("nested, split ATS", nested(Eats::Split), NESTED),
    ]
}

#[test]
fn without_coherent_accesses_cds_and_tables_are_not_cacheable() {
    for (name, ste, mut raw) in golden() {
        let changed = raw.uncached();
        let Ste::Translate { stages, .. } = ste else {
            assert_eq!(changed, raw, "{name}");
            continue;
        };
        if matches!(stages, Stages::S1(_) | Stages::Nested(..)) {
            raw = with(with(with(raw, 67, 66, 0), 69, 68, 0), 71, 70, 2);
        }
        if matches!(stages, Stages::S2(_) | Stages::Nested(..)) {
            raw = with(with(with(raw, 169, 168, 0), 171, 170, 0), 173, 172, 2);
        }
        assert_eq!(changed, raw, "{name}");
    }
    assert_eq!(RawSte::default().uncached(), RawSte::default());
}

#[test]
fn entries_encode_to_the_words_of_the_specification_and_back() {
    for (name, ste, raw) in golden() {
        assert_eq!(ste.encode().0, raw.0, "{name}");
        assert_eq!(raw.decode(&ALL), Ok(ste), "{name}");
    }
    assert_eq!(Ste::Invalid.encode().0[0] & 1, 0);
}

#[test]
fn what_the_configuration_ignores_is_not_looked_at() {
    let ones = |w0| RawSte([w0, !0, !0, !0, !0, !0, !0, !0]);
    assert_eq!(ones(!1).decode(&ALL), Ok(Ste::Invalid));
    for config in 0..4 {
        assert_eq!(ones(!0xf | config << 1 | 1).decode(&ALL), Ok(Ste::Abort), "Config {config:#b}");
    }
    assert_eq!(ones(!0xf | 0b1001).decode(&ALL), Ok(Ste::Bypass));

    // Stage 1 with garbage in S2FWB, everything in word 2 but S2VMID, and word 3: S2AA64 = 0 and S2S = 1 among it.
    for garbage in [!0, 0x5555_5555_5555_5555, 0xaaaa_aaaa_aaaa_aaaa] {
        for raw in [S1, S1_ARRAY, S1_EL2] {
            let mut dirty = with(raw, 89, 89, 1);
            dirty.0[2] |= garbage & !0xffff;
            dirty.0[3] = garbage;
            assert_eq!(dirty.decode(&ALL), raw.decode(&ALL));
        }
    }
    // Stage 2 with garbage in S1Fmt, S1ContextPtr, S1CDMax, S1DSS to S1CSH, S1STALLD, STRW: illegal for stage 1.
    for features in [ALL, TERMINATE, Features { ssid_bits: 3, cd_two_level: false, ..ALL }] {
        let mut dirty = with(with(with(S2, 71, 64, 0xff), 91, 91, 1), 95, 94, 3);
        dirty.0[0] |= !0xf;
        assert_eq!(dirty.decode(&features), S2.decode(&features));
        assert!(dirty.decode(&features).is_ok());
    }
    // STRW: without EL2, and with stage 2.
    let no_hyp = Features { hyp: false, ..ALL };
    for strw in 0..4 {
        assert_eq!(with(S1, 95, 94, strw).decode(&no_hyp), S1.decode(&ALL));
        assert_eq!(with(NESTED, 95, 94, strw).decode(&ALL), NESTED.decode(&ALL));
    }
    // Without ATS, any EATS is off; 0b11 is reserved and off without DPT.
    for eats in 0..4 {
        let raw = with(with(NESTED, 93, 92, eats), 185, 185, 1);
        let decoded = raw.decode(&Features { ats: false, split_stage_ats: false, ..ALL });
        assert!(matches!(decoded, Ok(Ste::Translate { eats: Eats::Off, .. })), "{decoded:?}");
    }
    assert!(matches!(with(S2, 93, 92, 3).decode(&ALL), Ok(Ste::Translate { eats: Eats::Off, .. })));
    // S2VMID: without stage 2 and for EL2.
    let dirty = with(S1_EL2, 143, 128, 0xffff);
    assert_eq!(dirty.decode(&Features { vmid_bits: 8, ..ALL }), S1_EL2.decode(&ALL));
    let decoded = S1.decode(&Features { stage2: false, vmid_bits: 8, ..ALL });
    assert!(matches!(decoded, Ok(Ste::Translate { vmid: 0, .. })), "{decoded:?}");
}

#[test]
fn substream_fields_count_only_where_there_are_substreams() {
    // S1CDMax = 0: S1Fmt and S1DSS are ignored. SSIDSIZE = 0: S1CDMax as well.
    for features in
        [ALL, Features { cd_two_level: false, ..ALL }, Features { ssid_bits: 0, cd_two_level: false, ..ALL }]
    {
        for (fmt, dss) in [(0, 0), (1, 1), (2, 2), (3, 3)] {
            let raw = with(with(S1, 5, 4, fmt), 65, 64, dss);
            assert_eq!(raw.decode(&features), S1.decode(&ALL));
            let raw = with(raw, 63, 59, 31);
            if features.ssid_bits == 0 {
                assert_eq!(raw.decode(&features), S1.decode(&ALL));
            }
        }
    }
    // Reserved values: S1Fmt = 0b11 behaves as 0b00, S1DSS = 0b11 as 0b00.
    assert_eq!(with(S1_ARRAY, 5, 4, 3).decode(&Features { cd_two_level: false, ..ALL }), S1_ARRAY.decode(&ALL));
    assert_eq!(with(S1_ARRAY, 65, 64, 3).decode(&ALL), with(S1_ARRAY, 65, 64, 0).decode(&ALL));
    assert_ne!(with(S1_ARRAY, 65, 64, 0).decode(&ALL), S1_ARRAY.decode(&ALL));
}

#[test]
fn an_s2ps_above_the_output_size_counts_as_the_output_size() {
    for (ps, oas, bits) in
        [(0, 5, 32), (1, 5, 36), (2, 5, 40), (3, 5, 42), (4, 5, 44), (5, 5, 48), (6, 5, 48), (7, 5, 48), (5, 4, 44)]
    {
        let features = Features { oas: AddrSize::from_code(oas), ..ALL };
        let raw = with(with(S2, 247, 196, 0x1000 >> 4), 178, 176, ps);
        let Ok(Ste::Translate { stages: Stages::S2(s2), .. }) = raw.decode(&features) else { panic!("S2PS {ps}") };
        assert_eq!(s2.output_size.bits(), bits, "S2PS {ps}, OAS {oas}");
    }
}

#[test]
fn illegal_entries_are_refused_by_the_name_of_the_field() {
    let stall = |raw| with(raw, 185, 185, 1);
    let config = |raw, config| with(raw, 3, 1, config);
    let no_2level = Features { cd_two_level: false, ..ALL };
    let oas = |code| Features { oas: AddrSize::from_code(code), ..ALL };
    let vmid8 = Features { vmid_bits: 8, ..ALL };
    let ttb = |bit: usize| with(S2, 247, 196, 1 << (bit - 4));
    for (field, value, features, raw) in [
        // PCIe ATS
        ("EATS", 1, ALL, with(stall(S2), 93, 92, 1)),
        ("EATS", 1, ALL, with(stall(NESTED), 93, 92, 1)),
        ("EATS", 2, ALL, stall(NESTED)),
        ("EATS", 2, ALL, config(NESTED, 0b101)),
        ("EATS", 2, ALL, config(NESTED, 0b110)),
        ("EATS", 2, Features { split_stage_ats: false, ..ALL }, NESTED),
        // Stage 1
        ("STRW", 1, ALL, with(S1, 95, 94, 1)),
        ("STRW", 3, ALL, with(S1, 95, 94, 3)),
        ("S1STALLD", 1, TERMINATE, S1),
        ("S1STALLD", 1, FORCED, S1),
        ("S1CDMax", 5, Features { ssid_bits: 4, ..ALL }, S1_ARRAY),
        ("S1CDMax", 21, ALL, with(S1_ARRAY, 63, 59, 21)),
        ("S1Fmt", 1, no_2level, with(S1_ARRAY, 5, 4, 1)),
        ("S1Fmt", 2, no_2level, with(S1_ARRAY, 5, 4, 2)),
        ("S1ContextPtr", 0x0001_0000_0000_0000, ALL, with(S1, 55, 6, 1 << 42)),
        ("S1ContextPtr", 0x0080_0000_0000_0000, ALL, with(S1, 55, 6, 1 << 49)),
        ("S1ContextPtr", 0x1000_0000_0000, oas(4), with(S1, 55, 6, 1 << 38)),
        // Stage 2
        ("S2S", 1, TERMINATE, stall(S2)),
        ("S2S", 0, FORCED, S2),
        ("S2AA64", 0, ALL, with(S2, 179, 179, 0)),
        ("S2ENDI", 1, ALL, with(S2, 180, 180, 1)),
        ("S2HD", 1, ALL, with(S2, 183, 183, 1)),
        ("S2HA", 1, ALL, with(S2, 184, 184, 1)),
        ("S2TG", 3, ALL, with(S2, 175, 174, 3)),
        ("S2TG", 0, Features { granules: [false, true, true], ..ALL }, S2),
        ("S2TG", 2, Features { granules: [true, false, true], ..ALL }, with(S2, 175, 174, 2)),
        ("S2TG", 1, Features { granules: [true, true, false], ..ALL }, with(S2, 175, 174, 1)),
        ("S2TTB", 1 << 32, ALL, with(ttb(32), 178, 176, 0)),
        ("S2TTB", 1 << 42, ALL, ttb(42)),
        ("S2TTB", 1 << 40, oas(2), ttb(40)),
        ("S2TTB", 1 << 48, oas(6), with(ttb(48), 178, 176, 6)),
        ("S2T0SZ", 40, ALL, with(S2, 165, 160, 40)),
        ("S2T0SZ", 63, ALL, with(S2, 165, 160, 63)),
        ("S2T0SZ", 15, ALL, with(S2, 165, 160, 15)),
        ("S2T0SZ", 15, oas(6), with(S2, 165, 160, 15)),
        ("S2T0SZ", 21, oas(3), with(S2, 165, 160, 21)),
        // Tags
        ("S2VMID", 0x100, vmid8, with(S1, 143, 128, 0x100)),
        ("S2VMID", 0x8000, vmid8, with(S2, 143, 128, 0x8000)),
        ("S2VMID", 0x4242, vmid8, NESTED),
    ] {
        assert_eq!(raw.decode(&features), Err(BadSte::Field { field, value }), "{raw:?}");
    }
    let (no_s1, no_s2) = (Features { stage1: false, ..ALL }, Features { stage2: false, ..ALL });
    assert_eq!(S1.decode(&no_s1), Err(BadSte::Stage(1)));
    assert_eq!(NESTED.decode(&no_s1), Err(BadSte::Stage(1)));
    assert_eq!(S2.decode(&no_s2), Err(BadSte::Stage(2)));
    assert_eq!(NESTED.decode(&no_s2), Err(BadSte::Stage(2)));
}

#[test]
fn a_stage_2_walk_starts_only_where_the_architecture_lets_it() {
    use Granule::*;
    // For each granule and S2SL0: the start level and the S2T0SZ it goes with, up to 16 concatenated tables.
    for (granule, tg, sl0, t0sz) in [
        (K4, 0, 0, 30..=39),  // level 2
        (K4, 0, 1, 21..=33),  // level 1
        (K4, 0, 2, 16..=24),  // level 0
        (K16, 2, 0, 35..=39), // level 3
        (K16, 2, 1, 24..=38), // level 2
        (K16, 2, 2, 16..=27), // level 1; T0SZ = 16 with two tables, as level 0 needs DS
        (K64, 1, 0, 31..=39), // level 3
        (K64, 1, 1, 18..=34), // level 2
        (K64, 1, 2, 16..=21), // level 1
    ] {
        for value in 16..=39 {
            let raw = with(with(with(S2, 175, 174, tg), 167, 166, sl0), 165, 160, value);
            let expected =
                if t0sz.contains(&value) { None } else { Some(BadSte::Field { field: "S2SL0", value: sl0 }) };
            assert_eq!(raw.decode(&ALL).err(), expected, "{granule}, S2SL0 {sl0}, S2T0SZ {value}");
            let raw = with(raw, 167, 166, 3);
            assert_eq!(raw.decode(&ALL), Err(BadSte::Field { field: "S2SL0", value: 3 }), "{granule}, S2T0SZ {value}");
        }
    }
}

fn bit_is_used(used: &[u64; 8], bit: usize) -> bool {
    used[bit / 64] >> (bit % 64) & 1 != 0
}

#[test]
fn bits_outside_used_change_nothing() {
    let narrow = Features { ssid_bits: 0, vmid_bits: 8, ats: false, split_stage_ats: false, hyp: false, ..ALL };
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut word = |n: u64, w| if w == 0 { random() & !0xf | n & 0xf } else { random() };
    let garbage = (0..64).map(|n| RawSte(core::array::from_fn(|w| word(n, w))));
    let entries = golden().into_iter().map(|(_, _, raw)| raw).chain(garbage);
    for raw in entries.chain([RawSte::default()]) {
        let used = raw.used();
        for bit in (0..512).filter(|&bit| !bit_is_used(&used, bit)) {
            let mut flipped = raw;
            flipped.0[bit / 64] ^= 1 << (bit % 64);
            for features in [ALL, TERMINATE, FORCED, narrow] {
                assert_eq!(flipped.decode(&features), raw.decode(&features), "bit {bit} of {raw:?}");
            }
            assert_eq!(flipped.used(), used, "bit {bit} of {raw:?}");
        }
    }
}

#[test]
fn the_fields_that_matter_are_used() {
    let stage1: &[_] = &[(5, 4), (55, 6), (63, 59), (65, 64), (67, 66), (69, 68), (71, 70), (91, 91), (95, 94)];
    let stage2: &[_] = &[(89, 89), (165, 160), (173, 166), (178, 174), (179, 179), (186, 180), (247, 196)];
    let both: &[_] = &[(3, 0), (93, 92), (109, 108), (143, 128)];
    for (raw, sets) in [
        (S1, [both, stage1].as_slice()),
        (S2, &[both, stage2]),
        (NESTED, &[both, stage1, stage2]),
        (RawSte([9, 0, 0, 0, 0, 0, 0, 0]), &[&[(3, 0), (109, 108)]]),
        (RawSte([1, 0, 0, 0, 0, 0, 0, 0]), &[&[(3, 0)]]),
        (RawSte::default(), &[&[(0, 0)]]),
    ] {
        let used = raw.used();
        for &(hi, lo) in sets.iter().copied().flatten() {
            assert!((lo..=hi).all(|bit| bit_is_used(&used, bit)), "bits [{hi}:{lo}] of {raw:?}");
        }
    }
}

#[test]
fn the_attribute_overrides_of_bypassing_traffic_are_used() {
    // §5.2.1: MemAttr, MTCFG, ALLOCCFG, SHCFG, PRIVCFG, INSTCFG (NSCFG is ignored in the Non-secure stream table).
    let used = RawSte([9, 0, 0, 0, 0, 0, 0, 0]).used();
    for (field, hi, lo) in
        [("MemAttr", 99, 96), ("MTCFG", 100, 100), ("ALLOCCFG", 104, 101), ("PRIVCFG", 113, 112), ("INSTCFG", 115, 114)]
    {
        assert!((lo..=hi).all(|bit| bit_is_used(&used, bit)), "{field}");
    }
}

#[test]
fn level_1_descriptors_say_where_the_entries_lie_and_how_many() {
    for (addr, split, raw) in [
        (0x0000_8765_4321_0000, 6, 0x0000_8765_4321_0007),
        (0x00a5_c396_7812_c000, 8, 0x00a5_c396_7812_c009),
        (0x00fe_dcba_9876_0000, 10, 0x00fe_dcba_9876_000b),
    ] {
        assert_eq!(L1Std::pointing_to(PhysAddr(addr), split).raw_value(), raw);
        let std = L1Std::new_with_raw_value(raw);
        assert_eq!(std.target(split), Some((PhysAddr(addr), split)));
        // Bits 5 and 63:56 are reserved.
        let dirty = L1Std::new_with_raw_value(raw | 0xff00_0000_0000_0020);
        assert_eq!(dirty.target(split), Some((PhysAddr(addr), split)));
    }
}

#[test]
fn a_span_of_0_or_beyond_the_split_or_reserved_leads_nowhere() {
    for split in [6, 8, 10, 30] {
        for span in 0..32 {
            let std = L1Std::new_with_raw_value(0x0000_1234_5678_0000 | u64::from(span));
            let expected = (1..=11.min(split + 1)).contains(&span).then(|| (PhysAddr(0x0000_1234_5678_0000), span - 1));
            assert_eq!(std.target(split), expected, "span {span}, split {split}");
        }
    }
}

#[test]
fn pointer_bits_below_the_size_of_the_array_are_taken_as_zero() {
    // §5.1: L2Ptr[N:0] are treated as 0, where N = 5 + (Span - 1).
    for (span, addr) in [
        (1, 0x00ff_ffff_ffff_ffc0),
        (2, 0x00ff_ffff_ffff_ff80),
        (7, 0x00ff_ffff_ffff_f000),
        (11, 0x00ff_ffff_ffff_0000),
    ] {
        let std = L1Std::new_with_raw_value(!0x1f | span);
        assert_eq!(std.target(10).map(|(addr, _)| addr), Some(PhysAddr(addr)), "span {span}");
    }
}

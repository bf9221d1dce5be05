//! Golden vectors of context descriptors. Bit numbers are those of the field headings of IHI 0070 G.b §5.3 and §5.4, legality is
//! §5.4.2.

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

/// 4 KiB, 39 input bits, 44 output bits, R and A, ASID 0xbeef.
const K4: RawCd = RawCd([0xbeef_620c_c000_3519, 0x0000_0a98_7654_3000, 0, 0xf1e2_d3c4_b5a6_9788, 0, 0, 0, 0]);
/// 16 KiB, 47 input bits, S and A, ASET.
const K16: RawCd = RawCd([0x0001_d20d_c000_3591, 0x0000_fedc_ba98_4000, 0, 0x0000_0000_0044_04ff, 0, 0, 0, 0]);
/// 64 KiB, 25 input bits, 40 output bits, R.
const K64: RawCd = RawCd([0x8000_220a_c000_3567, 0x0000_00ab_1234_0000, 0, 0, 0, 0, 0, 0]);
/// EPD0: no table.
const NONE: RawCd = RawCd([0x0102_c20d_c000_7510, 0, 0, 0xf1e2_d3c4_b5a6_9788, 0, 0, 0, 0]);

/// The descriptor with bits `hi:lo`, numbered as in the specification, set to `value`.
fn with(raw: RawCd, hi: usize, lo: usize, value: u64) -> RawCd {
    let (word, shift, mask) = (lo / 64, lo % 64, u64::MAX >> (63 - (hi - lo)));
    assert!(hi / 64 == word && value <= mask);
    let mut raw = raw;
    raw.0[word] = raw.0[word] & !(mask << shift) | value << shift;
    raw
}

/// Descriptors and their words. Tables are read write-back, inner shareable; EPD1, AFFD and AA64 are set.
fn golden() -> [(&'static str, Cd, RawCd); 5] {
    let plain = Cd {
        t0sz: 16,
        granule: Granule::K4,
        output_size: AddrSize::B48,
        ttb0: Some(PhysAddr(0x1000)),
        asid: 0,
        private_asid: false,
        mair: 0,
        record: false,
        stall: false,
        abort: true,
    };
    let mair = 0xf1e2_d3c4_b5a6_9788;
    let k4 = Cd {
        t0sz: 25,
        output_size: AddrSize::from_code(4),
        ttb0: Some(PhysAddr(0x0a98_7654_3000)),
        asid: 0xbeef,
        record: true,
        mair,
        ..plain
    };
    let k16 = Cd {
        t0sz: 17,
        granule: Granule::K16,
        ttb0: Some(PhysAddr(0xfedc_ba98_4000)),
        asid: 1,
        private_asid: true,
        mair: 0x44_04ff,
        stall: true,
        ..plain
    };
    let k64 = Cd {
        t0sz: 39,
        granule: Granule::K64,
        output_size: AddrSize::from_code(2),
        ttb0: Some(PhysAddr(0xab_1234_0000)),
        asid: 0x8000,
        record: true,
        abort: false,
        ..plain
    };
    let none = Cd { ttb0: None, asid: 0x0102, private_asid: true, mair, ..plain };
    [
        ("plain", plain, RawCd([0x0000_420d_c000_3510, 0x0000_0000_0000_1000, 0, 0, 0, 0, 0, 0])),
        ("4K", k4, K4),
        ("16K", k16, K16),
        ("64K", k64, K64),
        ("no table", none, NONE),
    ]
}

#[test]
fn without_coherent_accesses_tables_are_not_cacheable() {
    for (name, _, raw) in golden() {
        let expected = with(with(with(raw, 9, 8, 0), 11, 10, 0), 13, 12, 2);
        assert_eq!(raw.uncached(), expected, "{name}");
    }
    assert_eq!(RawCd::default().uncached(), RawCd::default());
}

#[test]
fn descriptors_encode_to_the_words_of_the_specification_and_back() {
    for (name, cd, raw) in golden() {
        assert_eq!(cd.encode().0, raw.0, "{name}");
        assert_eq!(raw.decode(&ALL), Ok(cd), "{name}");
    }
}

#[test]
fn a_descriptor_without_v_is_invalid_whatever_else_it_says() {
    assert_eq!(RawCd::default().decode(&ALL), Err(BadCd::Invalid));
    assert_eq!(RawCd([!(1 << 31), !0, !0, !0, !0, !0, !0, !0]).decode(&ALL), Err(BadCd::Invalid));
    assert_eq!(with(K4, 31, 31, 0).decode(&ALL), Err(BadCd::Invalid));
}

#[test]
fn illegal_descriptors_are_refused_by_the_name_of_the_field() {
    let terminate = Features { stall_model: StallModel::Terminate, ..ALL };
    let forced = Features { stall_model: StallModel::Forced, ..ALL };
    let asid8 = Features { asid_bits: 8, ..ALL };
    let oas = |code| Features { oas: AddrSize::from_code(code), ..ALL };
    let ttb = |bit: usize| with(K4, 119, 68, 1 << (bit - 4));
    for (field, value, features, raw) in [
        ("AA64", 0, ALL, with(K4, 41, 41, 0)),
        ("ENDI", 1, ALL, with(K4, 15, 15, 1)),
        ("EPD1", 0, ALL, with(K4, 30, 30, 0)),
        ("HD", 1, ALL, with(K4, 42, 42, 1)),
        ("HA", 1, ALL, with(K4, 43, 43, 1)),
        ("S", 1, terminate, K16),
        ("S", 0, forced, K4),
        ("A", 0, Features { abort_only: true, ..ALL }, K64),
        ("ASID", 0x100, asid8, with(K4, 63, 48, 0x100)),
        ("ASID", 0x8000, asid8, K64),
        ("ASID", 0x0102, asid8, NONE),
        ("TG0", 3, ALL, with(K4, 7, 6, 3)),
        ("TG0", 0, Features { granules: [false, true, true], ..ALL }, K4),
        ("TG0", 2, Features { granules: [true, false, true], ..ALL }, K16),
        ("TG0", 1, Features { granules: [true, true, false], ..ALL }, K64),
        ("T0SZ", 0, ALL, with(K4, 5, 0, 0)),
        ("T0SZ", 15, ALL, with(K4, 5, 0, 15)),
        ("T0SZ", 40, ALL, with(K4, 5, 0, 40)),
        ("T0SZ", 63, ALL, with(K4, 5, 0, 63)),
        ("TTB0", 1 << 44, ALL, ttb(44)),
        ("TTB0", 1 << 32, ALL, with(ttb(32), 34, 32, 0)),
        ("TTB0", 1 << 42, oas(3), ttb(42)),
        ("TTB0", 1 << 48, oas(6), with(ttb(48), 34, 32, 6)),
        ("TTB0", 1 << 55, ALL, ttb(55)),
    ] {
        assert_eq!(raw.decode(&features), Err(BadCd::Field { field, value }), "{raw:?}");
    }
}

#[test]
fn t0sz_is_legal_from_16_to_39() {
    for (granule, base) in [(Granule::K4, K4), (Granule::K16, K16), (Granule::K64, K64)] {
        for t0sz in 0..64 {
            let legal = with(base, 5, 0, t0sz).decode(&ALL).is_ok();
            assert_eq!(legal, (16..=39).contains(&t0sz), "{granule}, T0SZ {t0sz}");
        }
    }
}

#[test]
fn an_ips_above_the_output_size_counts_as_the_output_size() {
    for (ips, oas, bits) in [
        (0, 5, 32),
        (1, 5, 36),
        (2, 5, 40),
        (3, 5, 42),
        (4, 5, 44),
        (5, 5, 48),
        (6, 5, 48),
        (7, 5, 48),
        (5, 3, 42),
        (5, 0, 32),
    ] {
        let features = Features { oas: AddrSize::from_code(oas), ..ALL };
        let raw = with(with(K4, 119, 68, 0x1000 >> 4), 34, 32, ips);
        assert_eq!(raw.decode(&features).map(|cd| cd.output_size.bits()), Ok(bits), "IPS {ips}, OAS {oas}");
    }
}

#[test]
fn what_the_disabled_tables_have_is_not_looked_at() {
    // EPD1: T1SZ, TG1, IR1, OR1, SH1, TTB1.
    for garbage in [0, 1, 0x1555, 0x2aaa, 0x3fff] {
        let dirty = with(with(K4, 29, 16, garbage), 183, 132, if garbage == 0 { 0 } else { u64::MAX >> 12 });
        assert_eq!(dirty.decode(&ALL), K4.decode(&ALL), "{garbage:#x}");
    }
    // EPD0: T0SZ, TG0, IR0, OR0, SH0, TTB0.
    for garbage in [0, 0x3fff] {
        let dirty = with(with(NONE, 13, 0, garbage), 119, 68, u64::MAX >> 12);
        assert_eq!(dirty.decode(&ALL).map(|cd| (cd.ttb0, cd.asid)), Ok((None, 0x0102)), "{garbage:#x}");
    }
    // NSCFG0, NSCFG1: only for Secure streams.
    assert_eq!(with(with(K4, 64, 64, 1), 128, 128, 1).decode(&ALL), K4.decode(&ALL));
}

#[test]
fn endianness_is_ignored_where_no_table_is_walked() {
    // §5.4: with EPD0 = EPD1 = 1, ENDI is ignored.
    assert_eq!(with(NONE, 15, 15, 1).decode(&ALL), NONE.decode(&ALL));
}

#[test]
fn bits_outside_used_change_nothing_and_the_fields_that_matter_are_inside() {
    let invalid = with(K4, 31, 31, 0);
    let raws = golden().map(|(_, _, raw)| raw).into_iter().chain([invalid, RawCd::default(), RawCd([!(1 << 31); 8])]);
    for raw in raws {
        let used = raw.used();
        for bit in 0..512 {
            let mut flipped = raw;
            flipped.0[bit / 64] ^= 1 << (bit % 64);
            if used[bit / 64] >> (bit % 64) & 1 == 0 {
                assert_eq!(flipped.decode(&ALL), raw.decode(&ALL), "bit {bit} of {raw:?}");
                assert_eq!(flipped.used(), used, "bit {bit} of {raw:?}");
            }
        }
        assert_ne!(used[0] & 1 << 31, 0);
    }
    // T0SZ to EPD0, ENDI, EPD1, V to TBI1, AA64 to ASID; TTB0; MAIR0 and MAIR1.
    let used = K4.used();
    for (word, fields) in [(0, 0xffff_ffff_c000_ffff), (1, 0x00ff_ffff_ffff_fff0), (3, u64::MAX)] {
        assert_eq!(used[word] & fields, fields, "word {word}");
    }
}

#[test]
fn level_1_descriptors_point_to_a_leaf_table_where_v_is_set() {
    for (addr, raw) in [(0x00a5_c396_7812_d000, 0x00a5_c396_7812_d001), (0x0000_fedc_ba98_0000, 0x0000_fedc_ba98_0001)]
    {
        assert_eq!(L1Cd::pointing_to(PhysAddr(addr)).raw_value(), raw);
        assert_eq!(L1Cd::new_with_raw_value(raw).target(), Some(PhysAddr(addr)));
        // Bits 11:1 and 63:56 are reserved.
        assert_eq!(L1Cd::new_with_raw_value(raw | 0xff00_0000_0000_0ffe).target(), Some(PhysAddr(addr)));
        assert_eq!(L1Cd::new_with_raw_value(raw & !1).target(), None);
    }
    assert_eq!(L1Cd::default().target(), None);
}

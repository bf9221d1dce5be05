//! Golden vectors of event records, from the bit tables of IHI 0070 §7.3.

use alloc::format;
use alloc::string::ToString;

use super::*;

// The golden stream: StreamID 0x89AB_CDEF, SubstreamID 0x12345, SSV. Word 0 without the event number:
const W0: u64 = 0x89AB_CDEF_1234_5800;
const STREAM: Stream = Stream { sid: 0x89AB_CDEF, ssid: Some(0x12345) };
const INPUT: u64 = 0xFEDC_BA98_7654_3210;
const PAGE: u64 = 0xFEDC_BA98_7654_3000;
const IPA: u64 = 0x00AB_CDEF_0123_4000;
const FETCH: u64 = 0x00FE_DCBA_9876_5438;

const RX: Access = Access { rnw: true, ind: true, pnu: false };
const READ_PRIVILEGED: Access = Access { rnw: true, ind: false, pnu: true };
const WRITE: Access = Access { rnw: false, ind: false, pnu: true };
const ALL: Access = Access { rnw: true, ind: true, pnu: true };

// The bits that say something, by word, in records with everything set: what a mask leaves out is reserved.
const M0: u64 = !0x700;
const M_FETCH: u64 = 0x00FF_FFFF_FFFF_FFF8;
const M_IPA: u64 = 0x00FF_FFFF_FFFF_F000;
const M_FAULT: [u64; 4] = [M0, 0x0000_03CE_8000_FFFF, u64::MAX, M_IPA];

fn fault(stag: u16, access: Access, class: Class, nsipa: bool) -> TranslationFault {
    let stage = FaultStage::S2 { ipa: Ipa(IPA), nsipa };
    TranslationFault { stall: Some(stag), access, class, stage, input: Iova(INPUT) }
}

fn fetch(reason: u16) -> Fetch {
    Fetch { addr: PhysAddr(FETCH), gpcf: true, reason }
}

/// Name, event, its record worked out by hand from the bit tables, and the bits that the event depends on.
fn golden() -> [(&'static str, Event, [u64; 4], [u64; 4]); 19] {
    let stream = STREAM;
    let input = Iova(INPUT);
    let page = Iova(PAGE);
    [
        (
            "F_UUT",
            Event::FUut { stream, access: RX, input, reason: 0xC0DE },
            [W0 | 0x01, 0x0000_000C_0000_C0DE, INPUT, 0],
            [M0, 0x0000_000E_0000_FFFF, u64::MAX, 0],
        ),
        ("C_BAD_STREAMID", Event::CBadStreamid(stream), [W0 | 0x02, 0, 0, 0], [M0, 0, 0, 0]),
        (
            "F_STE_FETCH",
            Event::FSteFetch(stream, fetch(0xC0DE)),
            [W0 | 0x03, 0x0001_C0DE, 0, FETCH],
            [M0, 0x0001_FFFF, 0, M_FETCH],
        ),
        ("C_BAD_STE", Event::CBadSte(stream), [W0 | 0x04, 0, 0, 0], [M0, 0, 0, 0]),
        (
            "F_BAD_ATS_TREQ",
            Event::FBadAtsTreq {
                stream,
                input: page,
                rights: Rights { read: true, write: false, execute: true },
                privileged: true,
                span: 0x9,
            },
            [W0 | 0x05, 0xB000_0009, PAGE, 0],
            [M0, 0xF000_000F, !0xFFF, 0],
        ),
        ("F_STREAM_DISABLED", Event::FStreamDisabled(stream), [W0 | 0x06, 0, 0, 0], [M0, 0, 0, 0]),
        (
            "F_TRANSL_FORBIDDEN",
            Event::FTranslForbidden { stream, rnw: true, input },
            [W0 | 0x07, 0x0000_0008_0000_0000, INPUT, 0],
            [M0, 0x0000_0008_0000_0000, u64::MAX, 0],
        ),
        (
            "C_BAD_SUBSTREAMID",
            Event::CBadSubstreamid { sid: 0x89AB_CDEF, ssid: 0x12345 },
            [0x89AB_CDEF_1234_5008, 0, 0, 0],
            [M0 & !0x800, 0, 0, 0],
        ),
        (
            "F_CD_FETCH",
            Event::FCdFetch(stream, fetch(0x0ACE)),
            [W0 | 0x09, 0x0001_0ACE, 0, FETCH],
            [M0, 0x0001_FFFF, 0, M_FETCH],
        ),
        ("C_BAD_CD", Event::CBadCd(stream), [W0 | 0x0A, 0, 0, 0], [M0, 0, 0, 0]),
        (
            "F_WALK_EABT",
            Event::FWalkEabt {
                stream,
                access: READ_PRIVILEGED,
                class: Class::Tt,
                s2: true,
                input,
                fetch: fetch(0xBEAD),
            },
            [W0 | 0x0B, 0x0000_018A_0001_BEAD, INPUT, FETCH],
            [M0, 0x0000_038E_0001_FFFF, u64::MAX, M_FETCH],
        ),
        (
            "F_TRANSLATION",
            Event::FTranslation(stream, fault(0xBEEF, ALL, Class::In, true)),
            [W0 | 0x10, 0x0000_02CE_8000_BEEF, INPUT, IPA],
            M_FAULT,
        ),
        (
            "F_ADDR_SIZE",
            Event::FAddrSize(stream, fault(0x1234, READ_PRIVILEGED, Class::Tt, false)),
            [W0 | 0x11, 0x0000_018A_8000_1234, INPUT, IPA],
            M_FAULT,
        ),
        (
            "F_ACCESS",
            Event::FAccess(stream, fault(0x00FF, RX, Class::Cd, true)),
            [W0 | 0x12, 0x0000_00CC_8000_00FF, INPUT, IPA],
            M_FAULT,
        ),
        (
            "F_PERMISSION",
            Event::FPermission {
                stream,
                fault: fault(0x5A5A, WRITE, Class::Tt, false),
                ttrnw: true,
                other: 0x0000_A000_0001_0000,
            },
            [W0 | 0x13, 0x0000_B182_8001_5A5A, INPUT, IPA],
            [M0, u64::MAX, u64::MAX, M_IPA],
        ),
        (
            "F_TLB_CONFLICT",
            Event::FTlbConflict {
                stream,
                access: RX,
                stage: FaultStage::S2 { ipa: Ipa(IPA), nsipa: true },
                input,
                reason: 0x1357_C0DE,
            },
            [W0 | 0x20, 0x0000_00CC_1357_C0DE, INPUT, IPA],
            [M0, 0x0000_00CE_FFFF_FFFF, u64::MAX, M_IPA],
        ),
        (
            "F_CFG_CONFLICT",
            Event::FCfgConflict { stream, reason: 0x2468_FACE },
            [W0 | 0x21, 0x2468_FACE, 0, 0],
            [M0, 0xFFFF_FFFF, 0, 0],
        ),
        (
            "E_PAGE_REQUEST",
            Event::EPageRequest {
                stream,
                input: page,
                span: 0xA5,
                privileged: Rights { read: true, write: true, execute: false },
                unprivileged: Rights { read: true, write: false, execute: true },
            },
            [W0 | 0x24, 0x000A_50CA_0000_0000, PAGE, 0],
            [M0, 0x000F_F0EE_0000_0000, !0xFFF, 0],
        ),
        (
            "F_VMS_FETCH",
            Event::FVmsFetch(stream, fetch(0x0F0F)),
            [W0 | 0x25, 0x0001_0F0F, 0, FETCH],
            [M0, 0x0001_FFFF, 0, M_FETCH],
        ),
    ]
}

#[test]
fn every_record_decodes_to_its_event() {
    for (name, event, raw, _) in golden() {
        assert_eq!(RawEvent(raw).decode(), event, "{name}");
        assert_eq!((event.name(), event.code()), (name, raw[0] as u8));
    }
}

#[test]
fn every_event_encodes_to_its_record() {
    for (name, event, raw, _) in golden() {
        assert_eq!(event.encode(), RawEvent(raw), "{name}");
    }
}

#[test]
fn each_bit_of_a_record_matters_if_and_only_if_its_table_names_it() {
    for (name, event, raw, mask) in golden() {
        for bit in 0..256 {
            let mut flipped = raw;
            flipped[bit / 64] ^= 1 << (bit % 64);
            let named = mask[bit / 64] >> (bit % 64) & 1 == 1;
            assert_eq!(RawEvent(flipped).decode() != event, named, "{name}, bit {bit}");
            if named {
                // The same bit, and no other, comes back. Where a whole group becomes UNKNOWN (SSV, Stall or S2
                // cleared, another event number) it may not.
                let back = RawEvent(flipped).decode().encode().0;
                let gates = bit < 8 || [11, 95, 103].contains(&bit);
                assert!(gates || back == flipped, "{name}, bit {bit}: {flipped:x?} became {back:x?}");
            }
        }
    }
}

#[test]
fn flipping_one_flag_of_a_fault_changes_that_flag_alone() {
    type Change = fn(&mut TranslationFault);
    let flags: [(u32, Change); 8] = [
        (97, |f| f.access.pnu ^= true),
        (98, |f| f.access.ind ^= true),
        (99, |f| f.access.rnw ^= true),
        (102, |f| f.stage = FaultStage::S2 { ipa: Ipa(IPA), nsipa: false }),
        (103, |f| f.stage = FaultStage::S1),
        (104, |f| f.class = Class::Reserved),
        (105, |f| f.class = Class::Cd),
        (95, |f| f.stall = None),
    ];
    for code in [0x10, 0x11, 0x12, 0x13] {
        let raw = [W0 | code, 0x0000_02CE_8000_BEEF, INPUT, IPA];
        for (bit, change) in flags {
            let mut expected = fault(0xBEEF, ALL, Class::In, true);
            change(&mut expected);
            let mut flipped = raw;
            flipped[1] ^= 1 << (bit - 64);
            assert_eq!(RawEvent(flipped).decode().translation_fault(), Some(&expected), "bit {bit}");
        }
    }
}

#[test]
fn each_right_stands_at_its_own_bit() {
    let treq = |w1| match RawEvent([0x05, w1, 0, 0]).decode() {
        Event::FBadAtsTreq { rights, privileged, .. } => format!("{rights} {privileged}"),
        other => panic!("{other}"),
    };
    assert_eq!(treq(1 << 31), "r-- false");
    assert_eq!(treq(1 << 30), "-w- false");
    assert_eq!(treq(1 << 29), "--x false");
    assert_eq!(treq(1 << 28), "--- true");
    let page = |w1| match RawEvent([0x24, w1, 0, 0]).decode() {
        Event::EPageRequest { privileged, unprivileged, .. } => format!("{privileged} {unprivileged}"),
        other => panic!("{other}"),
    };
    let names = ["--- --x", "--- -w-", "--- r--", "--- ---", "--x ---", "-w- ---", "r-- ---"];
    for (bit, name) in (33..).zip(names) {
        assert_eq!(page(1 << bit), name, "bit {}", bit + 64);
    }
}

#[test]
fn unknown_fields_are_absent_from_the_event() {
    // SSV, Stall and S2 clear; SubstreamID, STAG, NSIPA and IPA hold rubbish.
    let raw = RawEvent([0x18_1234_5010, 0x0000_024E_0000_BEEF, INPUT, IPA]);
    let event = raw.decode();
    let access = ALL;
    let fault = TranslationFault { stall: None, access, class: Class::In, stage: FaultStage::S1, input: Iova(INPUT) };
    assert_eq!(event, Event::FTranslation(Stream { sid: 0x18, ssid: None }, fault));
    assert_eq!(event.encode(), RawEvent([0x18_0000_0010, 0x0000_020E_0000_0000, INPUT, 0]));
}

#[test]
fn numbers_that_do_not_fit_do_not_spill_into_their_neighbours() {
    let stream = Stream { sid: 0, ssid: Some(u32::MAX) };
    assert_eq!(Event::CBadCd(stream).encode(), RawEvent([0xFFFF_F80A, 0, 0, 0]));
    let fetch = Fetch { addr: PhysAddr(u64::MAX), gpcf: false, reason: 0 };
    assert_eq!(Event::FVmsFetch(stream, fetch).encode().0[3], M_FETCH);
    let rights = Rights { read: false, write: false, execute: false };
    let input = Iova(u64::MAX);
    let treq = Event::FBadAtsTreq { stream, input, rights, privileged: false, span: u8::MAX }.encode();
    assert_eq!(treq.0[1..3], [0xF, !0xFFF]);
    let mut fault = fault(0, ALL, Class::In, false);
    fault.stage = FaultStage::S2 { ipa: Ipa(u64::MAX), nsipa: false };
    let permission = Event::FPermission { stream, fault, ttrnw: false, other: u64::MAX }.encode();
    assert_eq!(permission.0[1], !PERMISSION_FIELDS | 0x0000_028E_8000_0000);
    assert_eq!(permission.0[3], M_IPA);
}

#[test]
fn numbers_without_a_record_keep_their_words() {
    let known: alloc::vec::Vec<u8> = golden().iter().map(|(_, event, ..)| event.code()).collect();
    for code in (0..=u8::MAX).filter(|code| !known.contains(code)) {
        let raw = RawEvent([0x0123_4567_89AB_CD00 | u64::from(code), 2, 3, u64::MAX]);
        let event = raw.decode();
        match code {
            0xE0..=0xEF => assert_eq!(event, Event::ImpdefEvent { code, raw }),
            _ => assert_eq!(event, Event::Unknown { code, raw }),
        }
        assert_eq!((event.code(), event.encode(), event.stream()), (code, raw, None));
    }
}

#[test]
fn any_words_decode_and_what_they_say_survives_a_round_trip() {
    let mut x = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    for i in 0..100_000_u64 {
        // Every event number in turn: most random ones are reserved.
        let raw = RawEvent([next() & !0xFF | i & 0xFF, next(), next(), next()]);
        let event = raw.decode();
        assert_eq!(event.encode().decode(), event, "{raw}");
        assert_eq!(event.code(), raw.code());
        assert!(event.to_string().starts_with(event.name()));
    }
}

#[test]
fn a_driver_can_route_an_event_without_knowing_its_type() {
    for (name, event, raw, _) in golden() {
        assert_eq!(event.stream(), Some(STREAM), "{name}");
        let input = Some(raw[2]).filter(|&word| word != 0).map(Iova);
        assert_eq!(event.input_address(), input, "{name}");
        let stag = Some(raw[1] as u16).filter(|_| (0x10..=0x13).contains(&event.code()));
        assert_eq!(event.stall_tag(), stag, "{name}");
        assert_eq!(event.is_stalled(), stag.is_some(), "{name}");
    }
}

#[test]
fn an_event_reads_as_one_line() {
    let stream = Stream { sid: 0x18, ssid: None };
    let access = Access { rnw: false, ind: false, pnu: false };
    let fault = TranslationFault { stall: None, access, class: Class::In, stage: FaultStage::S1, input: Iova(0x2000) };
    assert_eq!(
        Event::FTranslation(stream, fault).to_string(),
        "F_TRANSLATION: StreamID 0x18, write to 0x2000 (stage 1, unprivileged data), class IN"
    );
    let stalled = TranslationFault { stall: Some(7), ..fault };
    assert_eq!(
        Event::FAccess(Stream { ssid: Some(5), ..stream }, stalled).to_string(),
        "F_ACCESS: StreamID 0x18, SubstreamID 0x5, write to 0x2000 (stage 1, unprivileged data), class IN, \
         stalled with tag 0x7"
    );
    let lines = [
        "F_UUT: {}, read from 0xfedcba9876543210 (unprivileged instruction), reason 0xc0de",
        "C_BAD_STREAMID: {}",
        "F_STE_FETCH: {}, fetch of 0xfedcba98765438 aborted by a granule protection check, reason 0xc0de",
        "C_BAD_STE: {}",
        "F_BAD_ATS_TREQ: {}, translation request from 0xfedcba9876543000, span 9, privileged r-x",
        "F_STREAM_DISABLED: {}",
        "F_TRANSL_FORBIDDEN: {}, translated read from 0xfedcba9876543210",
        "C_BAD_SUBSTREAMID: {}",
        "F_CD_FETCH: {}, fetch of 0xfedcba98765438 aborted by a granule protection check, reason 0xace",
        "C_BAD_CD: {}",
        "F_WALK_EABT: {}, read from 0xfedcba9876543210 (stage 2, privileged data), class TT, \
         fetch of 0xfedcba98765438 aborted by a granule protection check, reason 0xbead",
        "F_TRANSLATION: {}, read from 0xfedcba9876543210 (stage 2, privileged instruction), class IN, \
         Non-secure IPA 0xabcdef01234000, stalled with tag 0xbeef",
        "F_ADDR_SIZE: {}, read from 0xfedcba9876543210 (stage 2, privileged data), class TT, \
         IPA 0xabcdef01234000, stalled with tag 0x1234",
        "F_ACCESS: {}, read from 0xfedcba9876543210 (stage 2, unprivileged instruction), class CD, \
         Non-secure IPA 0xabcdef01234000, stalled with tag 0xff",
        "F_PERMISSION: {}, write to 0xfedcba9876543210 (stage 2, privileged data), class TT, \
         IPA 0xabcdef01234000, stalled with tag 0x5a5a, descriptor read, other bits of word 1 0xa00000010000",
        "F_TLB_CONFLICT: {}, read from 0xfedcba9876543210 (stage 2, unprivileged instruction), \
         Non-secure IPA 0xabcdef01234000, reason 0x1357c0de",
        "F_CFG_CONFLICT: {}, reason 0x2468face",
        "E_PAGE_REQUEST: {}, 660 KiB from 0xfedcba9876543000, privileged rw-, unprivileged r-x",
        "F_VMS_FETCH: {}, fetch of 0xfedcba98765438 aborted by a granule protection check, reason 0xf0f",
    ];
    for ((_, event, ..), line) in golden().iter().zip(lines) {
        assert_eq!(event.to_string(), line.replace("{}", "StreamID 0x89abcdef, SubstreamID 0x12345"));
    }
    assert_eq!(
        RawEvent([0xE3, 1, 2, 0xABC]).decode().to_string(),
        "IMPDEF_EVENT 0xe3: 0x00000000000000e3 0x0000000000000001 0x0000000000000002 0x0000000000000abc"
    );
    assert!(RawEvent([0x30, 0, 0, 0]).decode().to_string().starts_with("UNKNOWN 0x30: 0x"));
}

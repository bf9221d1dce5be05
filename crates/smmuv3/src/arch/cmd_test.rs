//! Golden vectors of commands, IHI 0070 G.b §4.
//!
//! The text gives the opcodes (§4.1.1), `SCALE`, `NUM`, `TG`, `TTL` (§4.4.1.1), address ranges (§4.1.6), and tables of ASID, VMID,
//! SubstreamID and SSV for some commands. The other positions are in figures that the text at hand lacks: StreamID 63:32, SSec 10,
//! G 9, Leaf 64, Range 68:64, Size 69:64, PRGIndex 72:64, Resp 77:76, STAG 79:64, Ac 12, Ab 13, CS 13:12, MSH 23:22, MSIAttr 27:24,
//! MSIData 63:32.

use super::*;

const SID: u32 = 0x89ab_cdef;
const SSID: u32 = 0xf_edcb;
const VMID: u16 = 0xabcd;
const ASID: u16 = 0x5678;
const VA: u64 = 0xfedc_ba98_7654_3000;
const IPA: u64 = 0x00ed_cba9_8765_4000;

fn at(addr: u64, leaf: bool) -> TlbiAddr {
    TlbiAddr { addr, leaf, range: None }
}

fn range(addr: u64, leaf: bool, granule: Granule, num: u8, scale: u8, ttl: u8) -> TlbiAddr {
    TlbiAddr { addr, leaf, range: Some(TlbiRange { granule, num, scale, ttl }) }
}

/// Commands and their words. The message of a CMD_SYNC is written write-back, inner shareable.
fn golden() -> [(Command, [u64; 2]); 42] {
    use Command::*;
    let (sid, vmid, asid) = (SID, VMID, ASID);
    let ssid = Some(SSID);
    [
        (PrefetchConfig { sid, ssid: None }, [0x89ab_cdef_0000_0001, 0]),
        (PrefetchConfig { sid, ssid }, [0x89ab_cdef_fedc_b801, 0]),
        (CfgiSte { sid, leaf: false }, [0x89ab_cdef_0000_0003, 0]),
        (CfgiSte { sid, leaf: true }, [0x89ab_cdef_0000_0003, 1]),
        (CfgiSteRange { sid, range: 0 }, [0x89ab_cdef_0000_0004, 0]),
        (CfgiSteRange { sid, range: 21 }, [0x89ab_cdef_0000_0004, 0x15]),
        (CfgiSteRange { sid: 0, range: 31 }, [0x04, 0x1f]),
        (CfgiCd { sid, ssid: SSID, leaf: false }, [0x89ab_cdef_fedc_b005, 0]),
        (CfgiCd { sid, ssid: SSID, leaf: true }, [0x89ab_cdef_fedc_b005, 1]),
        (CfgiCdAll { sid }, [0x89ab_cdef_0000_0006, 0]),
        (TlbiNhAll { vmid }, [0x0000_abcd_0000_0010, 0]),
        (TlbiNhAsid { vmid, asid }, [0x5678_abcd_0000_0011, 0]),
        (TlbiNhVa { vmid, asid, addr: at(VA, false) }, [0x5678_abcd_0000_0012, 0xfedc_ba98_7654_3000]),
        (
            TlbiNhVa { vmid, asid, addr: range(VA, true, Granule::K4, 0x15, 0x0b, 3) },
            [0x5678_abcd_00b1_5012, 0xfedc_ba98_7654_3701],
        ),
        (TlbiNhVaa { vmid, addr: at(VA, true) }, [0x0000_abcd_0000_0013, 0xfedc_ba98_7654_3001]),
        (
            TlbiNhVaa { vmid, addr: range(VA, false, Granule::K16, 0x0a, 0x14, 2) },
            [0x0000_abcd_0140_a013, 0xfedc_ba98_7654_3a00],
        ),
        (TlbiEl2All, [0x20, 0]),
        (TlbiEl2Asid { asid }, [0x5678_0000_0000_0021, 0]),
        (TlbiEl2Va { asid, addr: at(VA, true) }, [0x5678_0000_0000_0022, 0xfedc_ba98_7654_3001]),
        (
            TlbiEl2Va { asid, addr: range(VA, false, Granule::K64, 0x1f, 0x1f, 0) },
            [0x5678_0000_01f1_f022, 0xfedc_ba98_7654_3c00],
        ),
        (TlbiS12Vmall { vmid }, [0x0000_abcd_0000_0028, 0]),
        (TlbiS2Ipa { vmid, addr: at(IPA, true) }, [0x0000_abcd_0000_002a, 0x00ed_cba9_8765_4001]),
        (
            TlbiS2Ipa { vmid, addr: range(IPA, false, Granule::K4, 0, 0x10, 1) },
            [0x0000_abcd_0100_002a, 0x00ed_cba9_8765_4500],
        ),
        // The smallest of each of NUM, SCALE and TTL that makes a range.
        (TlbiNhVaa { vmid: 0, addr: range(0, false, Granule::K4, 1, 0, 0) }, [0x1013, 0x400]),
        (TlbiNhVaa { vmid: 0, addr: range(0, false, Granule::K16, 0, 1, 0) }, [0x10_0013, 0x800]),
        (TlbiNhVaa { vmid: 0, addr: range(0, false, Granule::K64, 0, 0, 1) }, [0x13, 0xd00]),
        (TlbiNsnhAll, [0x30, 0]),
        (AtcInv { sid, ssid: None, global: false, addr: 0, size: 52 }, [0x89ab_cdef_0000_0040, 0x34]),
        (AtcInv { sid, ssid, global: false, addr: VA, size: 0x15 }, [0x89ab_cdef_fedc_b840, 0xfedc_ba98_7654_3015]),
        (AtcInv { sid, ssid, global: true, addr: VA, size: 0x2a }, [0x89ab_cdef_fedc_ba40, 0xfedc_ba98_7654_302a]),
        (PriResp { sid, ssid, prg_index: 0x155, resp: 0 }, [0x89ab_cdef_fedc_b841, 0x0155]),
        (PriResp { sid, ssid: None, prg_index: 0x155, resp: 1 }, [0x89ab_cdef_0000_0041, 0x1155]),
        (PriResp { sid, ssid, prg_index: 0x0aa, resp: 2 }, [0x89ab_cdef_fedc_b841, 0x20aa]),
        (Resume { sid, stag: 0xcafe, retry: true, abort: false }, [0x89ab_cdef_0000_1044, 0xcafe]),
        (Resume { sid, stag: 0xcafe, retry: false, abort: false }, [0x89ab_cdef_0000_0044, 0xcafe]),
        (Resume { sid, stag: 0xcafe, retry: false, abort: true }, [0x89ab_cdef_0000_2044, 0xcafe]),
        (StallTerm { sid }, [0x89ab_cdef_0000_0045, 0]),
        (Sync(SyncSignal::None), [0x46, 0]),
        (
            Sync(SyncSignal::Msi { addr: 0x00fe_dcba_9876_5434, data: 0xdead_beef }),
            [0xdead_beef_0fc0_1046, 0x00fe_dcba_9876_5434],
        ),
        (Sync(SyncSignal::Msi { addr: 0x1004, data: 1 }), [0x0000_0001_0fc0_1046, 0x1004]),
        (Sync(SyncSignal::Msi { addr: 0, data: 0 }), [0x0fc0_1046, 0]),
        (Sync(SyncSignal::Sev), [0x2046, 0]),
    ]
}

#[test]
fn commands_encode_to_the_words_of_the_specification_and_back() {
    for (command, raw) in golden() {
        assert_eq!(command.encode().0, raw, "{command:?}");
        assert_eq!(RawCommand(raw).decode(), Ok(command), "{raw:#x?}");
    }
}

#[test]
fn opcodes_that_no_non_secure_queue_has_are_illegal() {
    let reserved = [
        0x00..=0x00,
        0x08..=0x0f,
        0x14..=0x1f, // 0x18 and 0x1a: CMD_TLBI_EL3_*
        0x24..=0x27,
        0x29..=0x29,
        0x2b..=0x2f,
        0x31..=0x3f,
        0x42..=0x43,
        0x47..=0x6f, // 0x50 to 0x60: CMD_TLBI_S_*, CMD_TLBI_SNH_ALL
        0x71..=0x72,
        0x74..=0x7f,
        0x90..=0xff,
    ];
    for opcode in reserved.into_iter().flatten() {
        for raw in [[u64::from(opcode), 0], [!0xff | u64::from(opcode), !0]] {
            assert_eq!(RawCommand(raw).decode(), Err(IllegalCommand::Opcode(opcode)));
        }
    }
    for (_, raw) in golden() {
        assert_ne!(RawCommand(raw).decode(), Err(IllegalCommand::Opcode(raw[0] as u8)));
    }
}

#[test]
fn ssec_is_illegal_in_the_commands_that_have_it() {
    const SSEC: u64 = 1 << 10;
    for (command, raw) in golden() {
        use Command::*;
        let has_ssec = matches!(
            command,
            PrefetchConfig { .. }
                | CfgiSte { .. }
                | CfgiSteRange { .. }
                | CfgiCd { .. }
                | CfgiCdAll { .. }
                | Resume { .. }
                | StallTerm { .. }
        );
        let decoded = RawCommand([raw[0] | SSEC, raw[1]]).decode();
        let expected = if has_ssec { Err(IllegalCommand::SecureStream(raw[0] as u8)) } else { Ok(command) };
        assert_eq!(decoded, expected, "{command:?}");
    }
}

#[test]
fn a_range_of_nothing_is_illegal() {
    for opcode in [0x12, 0x13, 0x22, 0x2a] {
        for tg in 1..4 {
            let raw = [0xffff_ffff_0000_0000 | opcode, 0x0000_1234_5678_9001 | tg << 10];
            assert_eq!(RawCommand(raw).decode(), Err(IllegalCommand::EmptyRange), "opcode {opcode:#x}, TG {tg}");
        }
        // Without 52-bit addresses TTL = 1 counts as 0 with 16 KiB pages (§4.4.1.1), and only with those.
        let ttl1 = |tg: u64| RawCommand([opcode, 0x100 | tg << 10]).decode();
        assert_eq!(ttl1(2), Err(IllegalCommand::EmptyRange), "opcode {opcode:#x}");
        assert!(ttl1(1).is_ok() && ttl1(3).is_ok(), "opcode {opcode:#x}");
    }
}

#[test]
fn num_scale_and_ttl_say_nothing_without_a_granule() {
    // TG = 0: NUM, SCALE, TTL are reserved.
    let raw = RawCommand([0x5678_abcd_0000_0012 | 0x3f1_f000, 0xfedc_ba98_7654_3000 | 0x300]);
    assert_eq!(raw.decode(), Ok(Command::TlbiNhVa { vmid: VMID, asid: ASID, addr: at(VA, false) }));
}

#[test]
fn reserved_values_are_illegal_and_named() {
    let reserved = |opcode, field, value| Err(IllegalCommand::Reserved { opcode, field, value });
    assert_eq!(RawCommand([0x41, 0x3000]).decode(), reserved(0x41, "Resp", 3));
    assert_eq!(RawCommand([0x3046, 0]).decode(), reserved(0x46, "CS", 3));
    for size in 53..64 {
        assert_eq!(RawCommand([0x40, u64::from(size)]).decode(), reserved(0x40, "Size", size));
    }
}

#[test]
fn fields_that_say_nothing_are_ignored() {
    // SubstreamID without SSV.
    let decoded = RawCommand([0x89ab_cdef_fedc_b001, 0]).decode();
    assert_eq!(decoded, Ok(Command::PrefetchConfig { sid: SID, ssid: None }));
    let decoded = RawCommand([0x89ab_cdef_fedc_b041, 0x2001]).decode();
    assert_eq!(decoded, Ok(Command::PriResp { sid: SID, ssid: None, prg_index: 1, resp: 2 }));
    // The message of a CMD_SYNC that sends none.
    assert_eq!(RawCommand([0xdead_beef_0fc0_0046, 0x1004]).decode(), Ok(Command::Sync(SyncSignal::None)));
    assert_eq!(RawCommand([0xdead_beef_0fc0_2046, 0x1004]).decode(), Ok(Command::Sync(SyncSignal::Sev)));
    // Bits of MSIAddress outside 55:2.
    let signal = SyncSignal::Msi { addr: 0x00ff_ffff_ffff_fffc, data: 0 };
    assert_eq!(RawCommand([0x1046, !0]).decode(), Ok(Command::Sync(signal)));
}

#[test]
fn an_ipa_has_no_bits_above_55() {
    // §4.1.6: IPA fields are Address[55:12], other bits are taken as zero.
    let decoded = RawCommand([0x0000_abcd_0000_002a, 0xff00_0000_0000_0001 | IPA]).decode();
    assert_eq!(decoded, Ok(Command::TlbiS2Ipa { vmid: VMID, addr: at(IPA, true) }));
}

#[test]
fn arbitrary_words_decode_to_what_they_encode_to_again() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut legal = 0;
    for n in 0..200_000 {
        // Every other opcode is a random one; the others are real, so that most of them decode.
        let (_, golden) = golden()[n % 42];
        let opcode = if n % 2 == 0 { random() & 0xff } else { golden[0] & 0xff };
        let raw = RawCommand([random() & !0xff | opcode, random()]);
        if let Ok(command) = raw.decode() {
            legal += 1;
            assert_eq!(command.encode().decode(), Ok(command), "{raw:?}");
        }
    }
    assert!(legal > 50_000);
}

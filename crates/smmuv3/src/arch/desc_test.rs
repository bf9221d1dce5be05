//! Golden vectors of translation table descriptors, from the tables D8-48 to D8-55 and D8-16 to D8-41 of the Arm ARM
//! (DDI 0487 M.a.a), for 48-bit addresses; memory types from D8-96, permissions from D8-63, D8-76 and D8-78.

use super::*;

const GRANULES: [Granule; 3] = [Granule::K4, Granule::K16, Granule::K64];
const PAGE: PhysAddr = PhysAddr(0x0000_fedc_ba98_0000);

#[test]
fn tables_are_an_address_and_0b11() {
    assert_eq!(Desc::table(PhysAddr(0x0000_fedc_ba98_7000)).0, 0x0000_fedc_ba98_7003);
    assert_eq!(Desc::table(PhysAddr(0x0000_8000_0000_0000)).0, 0x0000_8000_0000_0003);
    assert_eq!(Desc::INVALID.0, 0);
    assert_eq!(Desc::INVALID.kind(3, Granule::K4), DescKind::Invalid);
}

#[test]
fn stage_1_leaves_have_the_attributes_of_the_architecture() {
    const RW: Prot = Prot::READ.union(Prot::WRITE);
    // AttrIndx 4:2, AP 7:6, SH 9:8, AF 10, nG 11, PXN 53, UXN 54.
    for (prot, level, raw) in [
        (RW, 3, 0x0060_fedc_ba98_0f43),
        (RW, 2, 0x0060_fedc_ba98_0f41),
        (RW, 1, 0x0060_fedc_ba98_0f41),
        (Prot::READ, 3, 0x0060_fedc_ba98_0fc3),
        (Prot::READ | Prot::EXEC, 3, 0x0000_fedc_ba98_0fc3),
        (RW | Prot::EXEC, 2, 0x0000_fedc_ba98_0f41),
        (RW | Prot::PRIVILEGED, 3, 0x0060_fedc_ba98_0f03),
        (Prot::READ | Prot::PRIVILEGED, 3, 0x0060_fedc_ba98_0f83),
        (RW | Prot::DEVICE, 3, 0x0060_fedc_ba98_0e47),
        (RW | Prot::UNCACHED, 3, 0x0060_fedc_ba98_0e4b),
        (Prot::READ | Prot::DEVICE, 2, 0x0060_fedc_ba98_0ec5),
    ] {
        let desc = Desc::leaf(PAGE, level, Stage::S1, prot);
        assert_eq!(desc.0, raw, "{prot:?} at level {level}");
        let desc = Desc(raw);
        assert_eq!(desc.prot(Stage::S1), prot, "{raw:#x}");
        assert!(desc.access_flag() && desc.not_global());
    }
}

#[test]
fn stage_2_leaves_have_the_attributes_of_the_architecture() {
    const RW: Prot = Prot::READ.union(Prot::WRITE);
    // MemAttr 5:2, S2AP 7:6, SH 9:8, AF 10, XN 54.
    for (prot, level, raw) in [
        (RW, 3, 0x0040_fedc_ba98_07ff),
        (RW, 2, 0x0040_fedc_ba98_07fd),
        (RW, 1, 0x0040_fedc_ba98_07fd),
        (RW | Prot::EXEC, 3, 0x0000_fedc_ba98_07ff),
        (Prot::READ, 3, 0x0040_fedc_ba98_077f),
        (Prot::READ | Prot::EXEC, 2, 0x0000_fedc_ba98_077d),
        (Prot::WRITE, 3, 0x0040_fedc_ba98_07bf),
        (Prot::empty(), 3, 0x0040_fedc_ba98_073f),
        (RW | Prot::DEVICE, 3, 0x0040_fedc_ba98_06c7),
        (RW | Prot::UNCACHED, 3, 0x0040_fedc_ba98_06d7),
    ] {
        let desc = Desc::leaf(PAGE, level, Stage::S2, prot);
        assert_eq!(desc.0, raw, "{prot:?} at level {level}");
        let desc = Desc(raw);
        assert_eq!(desc.prot(Stage::S2), prot, "{raw:#x}");
        assert!(desc.access_flag());
    }
}

#[test]
fn permissions_come_back_as_far_as_the_stage_can_say_them() {
    for bits in 0..64 {
        let prot = Prot::from_bits_truncate(bits);
        let mut memory = prot;
        if prot.contains(Prot::DEVICE) {
            memory.remove(Prot::UNCACHED);
        }
        let s1 = Desc::leaf(PAGE, 3, Stage::S1, prot).prot(Stage::S1);
        assert_eq!(s1, memory | Prot::READ, "stage 1, {prot:?}");
        let s2 = Desc::leaf(PAGE, 3, Stage::S2, prot).prot(Stage::S2);
        assert_eq!(s2, memory - Prot::PRIVILEGED, "stage 2, {prot:?}");
    }
}

#[test]
fn single_attribute_bits_are_read_from_their_place() {
    assert!(Desc(1 << 10).access_flag() && !Desc(!(1 << 10)).access_flag());
    assert!(Desc(1 << 11).not_global() && !Desc(!(1 << 11)).not_global());
    // AP[2:1]: privileged read-write, read-write, privileged read-only, read-only.
    let rw = Prot::READ | Prot::WRITE;
    let ap = [rw | Prot::PRIVILEGED, rw, Prot::READ | Prot::PRIVILEGED, Prot::READ];
    for (value, prot) in (0..).zip(ap) {
        assert_eq!(Desc(value << 6).prot(Stage::S1), prot | Prot::EXEC);
    }
    // S2AP: nothing, read-only, write-only, read-write.
    for (value, prot) in (0..).zip([Prot::empty(), Prot::READ, Prot::WRITE, rw]) {
        assert_eq!(Desc(value << 6 | 0b1111 << 2).prot(Stage::S2), prot | Prot::EXEC);
    }
    // UXN; XN.
    assert!(!Desc(1 << 54).prot(Stage::S1).contains(Prot::EXEC));
    assert!(!Desc(1 << 54).prot(Stage::S2).contains(Prot::EXEC));
    // MemAttr: 0b00xx is Device, 0b0101 non-cacheable throughout, 0b1111 write-back throughout.
    for (attr, prot) in [
        (0b0000, Prot::DEVICE),
        (0b0001, Prot::DEVICE),
        (0b0010, Prot::DEVICE),
        (0b0011, Prot::DEVICE),
        (0b0101, Prot::UNCACHED),
        (0b1111, Prot::empty()),
    ] {
        assert_eq!(Desc(attr << 2).prot(Stage::S2) - Prot::EXEC, prot, "MemAttr {attr:#06b}");
    }
    // Bit 5 is NS at stage 1, and no part of AttrIndx.
    assert_eq!(Desc(1 << 5 | 1 << 2).prot(Stage::S1), Desc(1 << 2).prot(Stage::S1));
}

#[test]
fn mair_holds_the_types_that_the_indices_stand_for() {
    // Attr0 write-back read- and write-allocate, Attr1 Device-nGnRE, Attr2 non-cacheable.
    assert_eq!(MAIR.to_le_bytes()[..3], [0xff, 0x04, 0x44]);
}

#[test]
fn the_kind_of_a_descriptor_depends_on_bits_1_0_level_and_granule() {
    use DescKind::*;
    let addr = PhysAddr(0x0000_8000_0000_0000);
    for granule in GRANULES {
        for level in 0..=3 {
            let kind = |bits| Desc(addr.0 | bits).kind(level, granule);
            assert_eq!(kind(0b00), Invalid, "{granule}, level {level}");
            assert_eq!(kind(0b10), Invalid, "{granule}, level {level}");
            assert_eq!(kind(0b11), if level == 3 { Leaf(addr) } else { Table(addr) }, "{granule}, level {level}");
            // Blocks: of 1 GiB and 2 MiB, of 32 MiB, of 512 MiB. The larger ones need 52-bit addresses.
            let block = matches!((granule, level), (_, 2) | (Granule::K4, 1));
            assert_eq!(kind(0b01), if block { Leaf(addr) } else { Invalid }, "{granule}, level {level}");
        }
    }
}

#[test]
fn the_address_of_a_table_or_page_ends_at_the_granule() {
    for (granule, addr) in
        GRANULES.into_iter().zip([0x0000_ffff_ffff_f000, 0x0000_ffff_ffff_c000, 0x0000_ffff_ffff_0000])
    {
        let desc = Desc(u64::MAX);
        assert_eq!(desc.kind(3, granule), DescKind::Leaf(PhysAddr(addr)), "{granule}");
        for level in 0..3 {
            assert_eq!(desc.kind(level, granule), DescKind::Table(PhysAddr(addr)), "{granule}, level {level}");
        }
    }
}

#[test]
fn the_address_of_a_block_ends_at_the_size_of_the_block() {
    // D8-52, D8-53: below the output address are RES0 bits and, at bit 16, nT.
    for (granule, level, addr) in [
        (Granule::K4, 1, 0x0000_ffff_c000_0000),
        (Granule::K4, 2, 0x0000_ffff_ffe0_0000),
        (Granule::K16, 2, 0x0000_ffff_fe00_0000),
        (Granule::K64, 2, 0x0000_ffff_e000_0000),
    ] {
        let desc = Desc(!0b10);
        assert_eq!(desc.kind(level, granule), DescKind::Leaf(PhysAddr(addr)), "{granule}, level {level}");
    }
}

//! IORTs: those of real machines, and what may be wrong with one.

mod common;

use common::{ONE_IORT, SMMU, Smmu, TWO_IORT, iort, node, root_complex, sealed};
use smmuv3_discovery::iort::{Error, Iort, Problem, RootComplex, StreamRange};
use smmuv3_discovery::pci::Rid;
use smmuv3_discovery::{Interrupt, InterruptKind, Interrupts, Model, SmmuDescription, Stream, Trigger};

/// Where the first node is.
const FIRST: u32 = 48;
/// Bytes of an SMMUv3 node without mappings.
const SMMU_LENGTH: u32 = 68;

/// As `iasl -d` shows QEMU's: GSIVs of SPIs.
fn virt(number: usize, base: u64, [event, pri, gerror, sync]: [u32; 4]) -> SmmuDescription {
    let spi = |gsiv| {
        let number = gsiv - 32;
        Some(Interrupt { kind: InterruptKind::Spi, number, trigger: Trigger::EdgeRising })
    };
    common::virt(number, base, [event, pri, sync, gerror].map(spi))
}

fn smmus(table: &[u8]) -> Vec<SmmuDescription> {
    Iort::new(table).unwrap().smmus().collect::<Result<_, _>>().unwrap()
}

fn stream(table: &[u8], segment: u32, rid: u16) -> Option<(usize, u32)> {
    let stream = Iort::new(table).unwrap().stream_id(segment, Rid(rid)).unwrap();
    stream.map(|Stream { smmu, id }| (smmu, id))
}

#[test]
fn the_smmu_of_qemus_virt_is_found() {
    assert_eq!(smmus(ONE_IORT), [virt(0, 0x905_0000, [0x6a, 0x6b, 0x6d, 0x6c])]);
    let both = [virt(0, 0xc00_0000, [0x90, 0x91, 0x93, 0x92]), virt(1, 0xc02_0000, [0x94, 0x95, 0x97, 0x96])];
    assert_eq!(smmus(TWO_IORT), both);
    let root = RootComplex { segment: 0, ats: false, address_bits: Some(64) };
    for table in [ONE_IORT, TWO_IORT] {
        let iort = Iort::new(table).unwrap();
        assert_eq!(iort.root_complexes().collect::<Result<Vec<_>, _>>(), Ok(vec![root]));
        assert_eq!((iort.named_components().count(), iort.reserved_memory().count()), (0, 0));
    }
}

#[test]
fn the_tree_and_the_table_of_one_machine_agree() {
    use common::{ONE_TREE, TWO_TREE};
    use smmuv3_discovery::dt::DeviceTree;
    for (tree, table) in [(ONE_TREE, ONE_IORT), (TWO_TREE, TWO_IORT)] {
        let in_tree = DeviceTree::new(tree).unwrap().smmus().next().unwrap().unwrap();
        assert_eq!(in_tree, smmus(table)[0]);
    }
}

#[test]
fn qemus_requester_ids_are_mapped_by_bus() {
    // Buses 0 and 1 are behind the SMMU, all others go to the ITS past it.
    for rid in [0, 0x18, 0x1ff] {
        assert_eq!(stream(ONE_IORT, 0, rid), Some((0, rid.into())));
        assert_eq!(stream(TWO_IORT, 0, rid), Some((0, rid.into())));
    }
    // Of two, the second has buses 128 and 129.
    for rid in [0x8000, 0x8108, 0x81ff] {
        assert_eq!(stream(ONE_IORT, 0, rid), None);
        assert_eq!(stream(TWO_IORT, 0, rid), Some((1, rid.into())));
    }
    for rid in [0x200, 0x7fff, 0x8200, 0xffff] {
        assert_eq!(stream(ONE_IORT, 0, rid), None);
        assert_eq!(stream(TWO_IORT, 0, rid), None);
    }
    assert_eq!(stream(ONE_IORT, 1, 0x18), None);
}

#[test]
fn a_table_may_be_followed_by_anything() {
    let longer = [ONE_IORT, &[0xff; 100]].concat();
    assert_eq!(smmus(&longer), smmus(ONE_IORT));
}

fn described(smmu: &Smmu, revision: u8, mappings: &[[u32; 5]]) -> SmmuDescription {
    smmus(&iort(3, &[smmu.node(revision, mappings)]))[0]
}

#[test]
fn what_an_smmu_node_says_is_read() {
    let all = described(&Smmu { flags: 0b1001, model: 2, proximity: 7, ..SMMU }, 4, &[]);
    assert_eq!((all.coherent, all.model, all.proximity), (true, Model::Cn99xx, Some(7)));
    let none = described(&Smmu { flags: 0b0110, model: 1, gsivs: [0; 4], proximity: 7, ..SMMU }, 4, &[]);
    assert_eq!((none.coherent, none.model, none.proximity), (false, Model::Hi161x, None));
    assert_eq!(none.interrupts, Interrupts::default());
    assert_eq!(described(&Smmu { model: 9, ..SMMU }, 4, &[]).model, Model::Other(9));
    // Revision 0 has no proximity domain, and ends before it.
    let mut old = Smmu { flags: 0b1001, proximity: 7, ..SMMU }.node(0, &[]);
    old.truncate(60);
    old[1] = 60;
    let old = smmus(&iort(0, &[old]))[0];
    assert_eq!((old.coherent, old.proximity, old.msi, old.base), (true, None, false, SMMU.base));
}

#[test]
fn an_smmu_has_msis_if_its_index_counts_and_is_one() {
    let its = [0, 0, 0, FIRST, 1];
    let wired = Smmu { index: 0, ..SMMU };
    let unwired = Smmu { gsivs: [40, 0, 42, 43], ..SMMU };
    for (smmu, revision, mappings, msi) in [
        (&unwired, 1, 1, true),
        (&unwired, 4, 1, true),
        (&unwired, 4, 0, false),
        (&Smmu { index: 1, ..unwired }, 4, 1, false),
        (&wired, 4, 1, false),
        (&unwired, 0, 1, false),
        // From revision 5 on there is a flag for it.
        (&unwired, 5, 1, false),
        (&Smmu { flags: 1 << 4, ..wired }, 5, 1, true),
        (&Smmu { flags: 1 << 4, index: 1, ..wired }, 5, 1, false),
        (&Smmu { flags: 1 << 4, ..wired }, 4, 1, false),
    ] {
        assert_eq!(described(smmu, revision, &vec![its; mappings]).msi, msi);
    }
}

#[test]
fn what_is_wrong_with_an_smmu_is_named() {
    let error = |smmu: Smmu| {
        let table = iort(3, &[smmu.node(4, &[])]);
        let error = Iort::new(&table).unwrap().smmus().next().unwrap().unwrap_err();
        (error.to_string(), error.offset)
    };
    let gerr = error(Smmu { gsivs: [0, 0, 5, 0], ..SMMU });
    assert_eq!(gerr, ("IORT, offset 0x64: 5 is no interrupt of a device".into(), 100));
    let base = error(Smmu { base: !0xffff, ..SMMU });
    assert_eq!(
        base.0,
        "IORT, offset 0x40: the range of 0x20000 from 0xffffffffffff0000 goes beyond the largest number"
    );
}

/// Two SMMUs, an SMMUv1/v2, and a root complex of segment 2 with these mappings: input base, number minus one, output base,
/// output reference, flags.
fn with_root(mappings: &[[u32; 5]]) -> Vec<u8> {
    let nodes = [SMMU.node(4, &[]), SMMU.node(4, &[]), node(3, 0, &[0; 60], &[]), root_complex(2, 1, 48, mappings)];
    iort(3, &nodes)
}

const SECOND: u32 = FIRST + SMMU_LENGTH;
const OLD: u32 = SECOND + SMMU_LENGTH;
const ROOT: u32 = OLD + 16 + 60;
/// Where its first mapping is.
const MAPPING: usize = ROOT as usize + 36;

#[test]
fn a_mapping_has_one_id_more_than_its_number() {
    let table = with_root(&[[0x100, 0xff, 0x2_0000, SECOND, 0], [0x300, 0, 5, FIRST, 0], [0x400, 0xff, 0, OLD, 0]]);
    let root = Iort::new(&table).unwrap().root_complexes().next().unwrap();
    assert_eq!(root, Ok(RootComplex { segment: 2, ats: true, address_bits: Some(48) }));
    for (rid, found) in [
        (0xff, None),
        (0x100, Some((1, 0x2_0000))),
        (0x1ff, Some((1, 0x2_00ff))),
        (0x200, None),
        (0x2ff, None),
        (0x300, Some((0, 5))),
        (0x301, None),
        // SMMUv1/v2.
        (0x400, None),
    ] {
        assert_eq!(stream(&table, 2, rid), found, "{rid:#x}");
        assert_eq!(stream(&table, 0, rid), None);
    }
}

#[test]
fn an_id_too_many_is_that_of_the_next_mapping() {
    let [low, high] = [[0, 0x100, 0, FIRST, 0], [0x100, 0x100, 0, SECOND, 0]];
    for mappings in [[low, high], [high, low]] {
        let table = with_root(&mappings);
        assert_eq!(stream(&table, 2, 0xff), Some((0, 0xff)));
        assert_eq!(stream(&table, 2, 0x100), Some((1, 0)));
        // The last has none after it.
        assert_eq!(stream(&table, 2, 0x200), Some((1, 0x100)));
    }
}

#[test]
fn mappings_that_disagree_are_an_error() {
    let ambiguous = |mappings: &[[u32; 5]], rid: u16| {
        let table = with_root(mappings);
        Iort::new(&table).unwrap().stream_id(2, Rid(rid)).map_err(|error| (error.offset, error.problem))
    };
    let wide = [0, 0xffff, 0, FIRST, 0];
    let error = Err((MAPPING + 20, Problem::Ambiguous(0x100)));
    assert_eq!(ambiguous(&[wide, [0x100, 0xff, 0x100, SECOND, 0]], 0x100), error);
    assert_eq!(ambiguous(&[wide, [0x100, 0xff, 0x101, FIRST, 0]], 0x100), error);
    // One past the SMMU, one through it.
    assert_eq!(ambiguous(&[wide, [0x100, 0xff, 0, OLD, 0]], 0x100), error);
    // A range of one ID does not overrun.
    assert_eq!(ambiguous(&[[0x100, 0, 0, FIRST, 0], [0x100, 0, 0, SECOND, 0]], 0x100), error);
    // Those that agree, and the rest, are none.
    assert_eq!(ambiguous(&[wide, [0x100, 0xff, 0x100, FIRST, 0]], 0x100), Ok(Some(Stream { smmu: 0, id: 0x100 })));
    assert_eq!(ambiguous(&[wide, [0x100, 0xff, 0x100, SECOND, 0]], 0x200), Ok(Some(Stream { smmu: 0, id: 0x200 })));
    let single = Err((MAPPING, Problem::SingleMapping));
    assert_eq!(ambiguous(&[[0, 0, 7, FIRST, 1]], 0), single);
}

#[test]
fn root_complexes_of_one_segment_belong_together() {
    let first = root_complex(0, 0, 0, &[[0, 0xff, 0, FIRST, 0]]);
    let second = root_complex(0, 0, 0, &[[0x100, 0xff, 0x100, SECOND, 0]]);
    let table = iort(5, &[SMMU.node(4, &[]), SMMU.node(4, &[]), first, second]);
    assert_eq!(stream(&table, 0, 0xff), Some((0, 0xff)));
    assert_eq!(stream(&table, 0, 0x100), Some((1, 0x100)));
    assert_eq!(Iort::new(&table).unwrap().root_complexes().next().unwrap().unwrap().address_bits, None);
}

/// A named component: flags, memory properties, an address size limit of 32 bits, name.
fn component(name: &[u8], mappings: &[[u32; 5]]) -> Vec<u8> {
    let fixed = [&[0; 12][..], &[32], name].concat();
    node(1, 4, &fixed, mappings)
}

#[test]
fn named_components_have_their_streams() {
    let mappings = [[9, 9, 0x77, SECOND, 1], [0x10, 0xf, 0x100, FIRST, 0], [0, 0, 0, OLD, 0]];
    let nodes = [
        SMMU.node(4, &[]),
        SMMU.node(4, &[]),
        node(3, 0, &[0; 60], &[]),
        component(b"\\_SB_.DMA0\0\0", &mappings),
        component(b"X\0", &[]),
    ];
    let table = iort(3, &nodes);
    let iort = Iort::new(&table).unwrap();
    let found: Vec<_> = iort.named_components().map(Result::unwrap).collect();
    assert_eq!(found.iter().map(|found| found.name).collect::<Vec<_>>(), ["\\_SB_.DMA0", "X"]);
    assert_eq!(found[0].address_bits, Some(32));
    let expected = [
        StreamRange { smmu: 1, first: 0x77, last: 0x77, input: None },
        StreamRange { smmu: 0, first: 0x100, last: 0x10f, input: Some(0x10) },
    ];
    assert_eq!(found[0].streams().collect::<Vec<_>>(), expected);
    assert_eq!(found[1].streams().count(), 0);
}

#[test]
fn a_name_ends_before_the_mappings() {
    let name = |name: &[u8], mappings: &[[u32; 5]]| {
        let table = iort(3, &[SMMU.node(4, &[]), component(name, mappings)]);
        Iort::new(&table).unwrap().named_components().next().unwrap().map(|component| component.name.to_owned())
    };
    let error = Err(Error { offset: SECOND as usize + 29, problem: Problem::Name });
    let mapping = [[0, 0, 0, FIRST, 1]];
    assert_eq!(name(b"A\0", &mapping), Ok("A".into()));
    assert_eq!(name(b"\0", &mapping), Ok("".into()));
    assert_eq!(name(b"AB", &mapping), error);
    assert_eq!(name(b"AB", &[]), error);
    assert_eq!(name(b"\xff\0", &mapping), error);
}

/// A Reserved Memory Range node: flags, then ranges before the mappings.
fn reserved(flags: u32, ranges: &[(u64, u64)], mappings: &[[u32; 5]]) -> Vec<u8> {
    let mut fixed: Vec<u8> = [flags, ranges.len() as u32, 28].into_iter().flat_map(u32::to_le_bytes).collect();
    for (base, length) in ranges {
        fixed.extend([*base, *length].into_iter().flat_map(u64::to_le_bytes));
        fixed.extend([0; 4]);
    }
    node(6, 3, &fixed, mappings)
}

#[test]
fn reserved_memory_has_its_ranges_and_streams() {
    let ranges = [(0x8000_0000, 0x2_0000), (0xffff_ffff_0000_0000, 0xffff_ffff)];
    let table = iort(5, &[SMMU.node(4, &[]), reserved(1, &ranges, &[[0, 0, 0x20, FIRST, 1]]), reserved(2, &[], &[])]);
    let iort = Iort::new(&table).unwrap();
    let found: Vec<_> = iort.reserved_memory().map(Result::unwrap).collect();
    assert_eq!(found.iter().map(|found| found.remapping_permitted).collect::<Vec<_>>(), [true, false]);
    let expected = [0x8000_0000..0x8002_0000, 0xffff_ffff_0000_0000..0xffff_ffff_ffff_ffff];
    assert_eq!(found[0].ranges().collect::<Vec<_>>(), expected);
    let stream = StreamRange { smmu: 0, first: 0x20, last: 0x20, input: None };
    assert_eq!(found[0].streams().collect::<Vec<_>>(), [stream]);
    assert_eq!((found[1].ranges().count(), found[1].streams().count()), (0, 0));
}

fn refused(table: &[u8]) -> (usize, Problem) {
    let Error { offset, problem } = Iort::new(table).unwrap_err();
    (offset, problem)
}

#[test]
fn a_table_that_is_cut_off_anywhere_is_refused() {
    for table in [ONE_IORT, TWO_IORT] {
        for length in 0..table.len() {
            let (offset, problem) = refused(&table[..length]);
            assert!(matches!((offset, problem), (0, Problem::Short { has, .. }) if has == length), "{length}");
        }
    }
}

#[test]
fn a_table_that_says_it_is_shorter_is_refused() {
    for length in 0..ONE_IORT.len() as u32 {
        let mut table = ONE_IORT.to_vec();
        table[4..8].copy_from_slice(&length.to_le_bytes());
        // The checksum is over the part that counts.
        let part = sealed(table[..length as usize].to_vec());
        table[..part.len()].copy_from_slice(&part);
        assert!(matches!(refused(&table).1, Problem::Short { .. }), "{length}");
    }
}

#[test]
fn what_is_wrong_with_a_header_is_named() {
    let with = |at: usize, bytes: &[u8]| {
        let mut table = ONE_IORT.to_vec();
        table[at..at + bytes.len()].copy_from_slice(bytes);
        refused(&sealed(table))
    };
    assert_eq!(with(0, b"IORS"), (0, Problem::Signature));
    assert_eq!(with(8, &[1]), (8, Problem::Revision(1)));
    assert_eq!(with(8, &[2]), (8, Problem::Revision(2)));
    assert_eq!(with(40, &[47]), (40, Problem::NodesInHeader(47)));
    // One node more than there is room for, and very many more.
    assert_eq!(with(36, &[4]), (236, Problem::Short { needs: 16, has: 0 }));
    assert_eq!(with(36, &[0xff; 4]), (236, Problem::Short { needs: 16, has: 0 }));
    assert_eq!(with(40, &[0xff; 4]), (0xffff_ffff, Problem::Short { needs: 16, has: 0 }));
    assert_eq!(with(4, &[0xff; 4]), (0, Problem::Short { needs: 0xffff_ffff, has: 236 }));
    let mut table = ONE_IORT.to_vec();
    table[100] ^= 0x40;
    let (offset, problem) = refused(&table);
    assert!(matches!((offset, problem), (9, Problem::Checksum(0x40 | 0xc0))), "{problem}");
}

#[test]
fn what_is_wrong_with_a_node_is_named() {
    let with = |at: usize, bytes: &[u8]| {
        let mut table = ONE_IORT.to_vec();
        table[at..at + bytes.len()].copy_from_slice(bytes);
        refused(&sealed(table))
    };
    // The SMMU is at 0x48, the root complex at 0xa0.
    assert_eq!(with(0x49, &[0, 0]), (0x48, Problem::NodeLength { kind: 4, needs: 68, has: 0 }));
    assert_eq!(with(0x49, &[67]), (0x48, Problem::NodeLength { kind: 4, needs: 68, has: 67 }));
    assert_eq!(with(0xa1, &[35]), (0xa0, Problem::NodeLength { kind: 2, needs: 36, has: 35 }));
    assert_eq!(with(0x48, &[0xee, 15]), (0x48, Problem::NodeLength { kind: 0xee, needs: 16, has: 15 }));
    assert_eq!(with(0x48, &[6, 27]), (0x48, Problem::NodeLength { kind: 6, needs: 28, has: 27 }));
    assert_eq!(with(0x48, &[1, 29]), (0x48, Problem::NodeLength { kind: 1, needs: 30, has: 29 }));
    assert_eq!(with(0xa1, &[77]), (0xa0, Problem::Short { needs: 77, has: 76 }));
    // Mappings in the fixed part, beyond the end, too many.
    assert_eq!(with(0x54, &[67]), (0x54, Problem::ArrayInNode(67)));
    assert_eq!(with(0x54, &[69]), (0x48 + 69, Problem::Short { needs: 20, has: 19 }));
    assert_eq!(with(0x54, &[0xff; 4]), (0x48 + 0xffff_ffff, Problem::Short { needs: 20, has: 0 }));
    assert_eq!(with(0x50, &[0xff; 4]), (0x8c, Problem::Short { needs: 20 * 0xffff_ffff, has: 20 }));
}

#[test]
fn what_is_wrong_with_a_mapping_is_named() {
    let with = |mapping: [u32; 5]| refused(&with_root(&[mapping]));
    let overflow = |first, count| (MAPPING, Problem::Overflow { first, count });
    assert_eq!(with([1, !0, 0, FIRST, 0]), overflow(1, 1 << 32));
    assert_eq!(with([0, 1, !0, FIRST, 0]), overflow(0xffff_ffff, 2));
    Iort::new(&with_root(&[[0, !0, 0, FIRST, 0]])).unwrap();
    // Of a single mapping, the range does not count.
    Iort::new(&with_root(&[[1, !0, !0, FIRST, 1]])).unwrap();
    for no_node in [0, FIRST - 1, FIRST + 1, ROOT + 36 + 20, !0] {
        assert_eq!(with([0, 0, 0, no_node, 0]), (MAPPING, Problem::NoNode(no_node)));
    }
    // To itself.
    assert_eq!(with([0, 0, 0, ROOT, 0]), (MAPPING, Problem::Target(2)));
}

#[test]
fn circles_are_refused_where_they_could_matter() {
    // An SMMU's own mappings, here to itself, are not followed.
    let table = iort(3, &[SMMU.node(4, &[[0, 0xffff, 0, FIRST, 0]]), root_complex(0, 0, 0, &[[0, 0xff, 0, FIRST, 0]])]);
    assert_eq!(stream(&table, 0, 8), Some((0, 8)));
    // Two root complexes that go to each other.
    let length = 36 + 20;
    let there = root_complex(0, 0, 0, &[[0, 0xff, 0, FIRST + length, 0]]);
    let back = root_complex(0, 0, 0, &[[0, 0xff, 0, FIRST, 0]]);
    assert_eq!(refused(&iort(3, &[there, back])), (FIRST as usize + 36, Problem::Target(2)));
}

#[test]
fn what_is_wrong_with_reserved_memory_is_named() {
    let with = |ranges: &[(u64, u64)]| refused(&iort(5, &[SMMU.node(4, &[]), reserved(0, ranges, &[])]));
    let at = SECOND as usize + 28;
    assert_eq!(with(&[(1, 1), (1, !0)]), (at + 20, Problem::Overflow { first: 1, count: !0 }));
    let mut cut = reserved(0, &[(0, 1)], &[]);
    cut[20] = 2;
    assert_eq!(refused(&iort(5, &[SMMU.node(4, &[]), cut.clone()])), (at, Problem::Short { needs: 40, has: 20 }));
    cut[24] = 27;
    assert_eq!(refused(&iort(5, &[SMMU.node(4, &[]), cut])), (SECOND as usize + 24, Problem::ArrayInNode(27)));
}

#[test]
fn nodes_of_unknown_types_are_passed_over() {
    let unknown = node(0x7f, 9, &[1, 2, 3], &[[!0; 5]; 0]);
    let table = iort(9, &[unknown, SMMU.node(4, &[])]);
    assert_eq!(smmus(&table).len(), 1);
}

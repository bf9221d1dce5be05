//! Device trees: those of real machines, and what may be wrong with one.

mod common;

use common::{BOARD_TREE, Maker, ONE_TREE, TWO_TREE};
use smmuv3_discovery::dt::{DeviceTree, Error, HostBridge, MAX_DEPTH, TreeProblem, Window, WindowKind};
use smmuv3_discovery::pci::Rid;
use smmuv3_discovery::{Interrupt, InterruptKind, Interrupts, Model, SmmuDescription, Stream, Trigger};

fn interrupt(kind: InterruptKind, number: u32, trigger: Trigger) -> Option<Interrupt> {
    Some(Interrupt { kind, number, trigger })
}

/// As QEMU has them: SPIs on a rising edge.
fn virt(number: usize, base: u64, spis: [u32; 4]) -> SmmuDescription {
    let spi = |number| interrupt(InterruptKind::Spi, number, Trigger::EdgeRising);
    common::virt(number, base, spis.map(spi))
}

fn smmus(bytes: &[u8]) -> Vec<SmmuDescription> {
    DeviceTree::new(bytes).unwrap().smmus().collect::<Result<_, _>>().unwrap()
}

fn bridges(bytes: &[u8]) -> Vec<HostBridge<'_>> {
    DeviceTree::new(bytes).unwrap().host_bridges().collect()
}

fn windows(bridge: &HostBridge) -> Vec<Window> {
    bridge.windows().unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn the_smmu_of_qemus_virt_is_found() {
    assert_eq!(smmus(ONE_TREE), [virt(0, 0x905_0000, [74, 75, 76, 77])]);
    // Of two, QEMU's tree has the first.
    assert_eq!(smmus(TWO_TREE), [virt(0, 0xc00_0000, [112, 113, 114, 115])]);
}

#[test]
fn the_host_bridge_of_qemus_virt_is_found() {
    let [bridge] = &bridges(ONE_TREE)[..] else { panic!() };
    assert_eq!(bridge.name().to_string(), "pcie@10000000");
    assert_eq!(bridge.segment(), Ok(Some(0)));
    assert_eq!(bridge.buses(), Ok(0..=255));
    assert_eq!(bridge.ecam(), Ok(Some((0x40_1000_0000, 0x1000_0000))));
    let window = |kind, bus, cpu, size| Window { kind, prefetchable: false, bus, cpu, size };
    let expected = [
        window(WindowKind::Io, 0, 0x3eff_0000, 0x1_0000),
        window(WindowKind::Memory32, 0x1000_0000, 0x1000_0000, 0x2eff_0000),
        window(WindowKind::Memory64, 0x80_0000_0000, 0x80_0000_0000, 0x80_0000_0000),
    ];
    assert_eq!(windows(bridge), expected);
    for rid in [0, 0x18, 0xffff] {
        assert_eq!(bridge.stream_id(Rid(rid)), Ok(Some(Stream { smmu: 0, id: rid.into() })));
    }
}

#[test]
fn smmus_that_are_not_in_use_are_left_out_and_have_no_number() {
    let spi = |number, trigger| interrupt(InterruptKind::Spi, number, trigger);
    let combined = SmmuDescription {
        number: 0,
        base: 0x2b40_0000,
        size: 0x2_0000,
        coherent: true,
        interrupts: Interrupts { combined: spi(74, Trigger::LevelHigh), ..Interrupts::default() },
        msi: true,
        proximity: Some(3),
        model: Model::Generic,
    };
    let interrupts = Interrupts {
        gerror: spi(80, Trigger::EdgeRising),
        event: interrupt(InterruptKind::Ppi, 9, Trigger::LevelLow),
        ..Interrupts::default()
    };
    // Its bus has 0x10_0000 at 16 GiB.
    let extended = SmmuDescription {
        number: 1,
        base: 0x4_0010_0000,
        size: 0x2_0000,
        coherent: false,
        interrupts,
        msi: false,
        proximity: None,
        model: Model::Hi161x,
    };
    assert_eq!(smmus(BOARD_TREE), [combined, extended]);
}

#[test]
fn requester_ids_are_masked_and_mapped() {
    let bridges = bridges(BOARD_TREE);
    let names: Vec<String> = bridges.iter().map(|bridge| bridge.name().to_string()).collect();
    // Neither the bridge below a host bridge nor the host bridge that is not in use.
    assert_eq!(names, ["pcie@400000", "pcie@70000000"]);
    let [board, bare] = &bridges[..] else { panic!() };
    assert_eq!((board.segment(), bare.segment()), (Ok(Some(1)), Ok(None)));
    assert_eq!((board.buses(), bare.buses()), (Ok(0x10..=0x1f), Ok(0..=0)));
    let stream = |bridge: &HostBridge, rid| bridge.stream_id(Rid(rid)).unwrap().map(|stream| (stream.smmu, stream.id));
    // All functions of a device are one.
    assert_eq!(stream(board, 0x1000), Some((1, 0x2_0000)));
    assert_eq!(stream(board, 0x1007), Some((1, 0x2_0000)));
    assert_eq!(stream(board, 0x10ff), Some((1, 0x2_00f8)));
    // Behind an SMMU that is not in use, and behind another kind; beside the map.
    for rid in [0x1100, 0x1200, 0x1300, 0xfff, 0] {
        assert_eq!(stream(board, rid), None, "{rid:#x}");
    }
    assert_eq!(stream(bare, 0), None);
}

#[test]
fn windows_are_where_the_cpu_has_them() {
    let [board, bare] = &bridges(BOARD_TREE)[..] else { panic!() };
    let memory = Window {
        kind: WindowKind::Memory32,
        prefetchable: false,
        bus: 0xe000_0000,
        cpu: 0x4_0040_0000,
        size: 0x10_0000,
    };
    assert_eq!(windows(board), [memory]);
    // Its configuration space is the vendor's.
    assert_eq!(board.ecam(), Ok(None));
    assert_eq!(bare.ecam(), Ok(Some((0x1_7000_0000, 0x10_0000))));
    let prefetchable = Window {
        kind: WindowKind::Memory64,
        prefetchable: true,
        bus: 0x80_0000_0000,
        cpu: 0x90_0000_0000,
        size: 0x1_0000_0000,
    };
    assert_eq!(windows(bare), [prefetchable]);
}

#[test]
fn devices_that_are_not_on_pci_have_streams_too() {
    let tree = DeviceTree::new(BOARD_TREE).unwrap();
    let streams = |path| tree.device_streams(path).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    let expected = [Stream { smmu: 1, id: 0x11 }, Stream { smmu: 0, id: 0x55 }];
    assert_eq!(streams("/bus@40000000/inner/dma-controller@300000"), expected);
    for none in ["/", "", "/bus@40000000", "/bus@40000000/inner", "/bus@40000000/dma-controller@300000"] {
        assert_eq!(streams(none), [], "{none}");
    }
}

#[test]
fn a_tree_may_be_followed_by_anything() {
    let longer = [ONE_TREE, &[0xff; 100]].concat();
    assert_eq!(smmus(&longer), smmus(ONE_TREE));
}

#[test]
fn names_may_be_longer_than_the_specification_has_them() {
    // The second is of the binding `arm,smmu-v3`.
    let tree = Maker::new()
        .node("a-node-whose-name-has-more-than-31-characters@10000000")
        .property("compatible", b"arm,smmu-v3\0")
        .property("cavium,cn9900-broken-page1-regspace", b"")
        .cells("reg", &[0, 0x1000_0000, 0x2_0000])
        .end()
        .finish();
    assert_eq!(smmus(&tree)[0].model, Model::Cn99xx);
}

/// A root with a GIC with the phandle 1, to which all interrupts go.
fn gic() -> Maker {
    let root = Maker::new().cells("interrupt-parent", &[1]).cells("#size-cells", &[2]).node("gic");
    root.cells("#interrupt-cells", &[3]).property("compatible", b"arm,gic-v3\0").cells("phandle", &[1]).end()
}

/// With an SMMU begun that has no `reg`.
fn smmu(root: Maker) -> Maker {
    root.node("smmu@0").property("compatible", b"arm,smmu-v3\0").cells("phandle", &[2])
}

const REG: &[u32] = &[0, 0x1000_0000, 0, 0x2_0000];

fn smmu_error(maker: Maker) -> String {
    let tree = maker.end().finish();
    DeviceTree::new(&tree).unwrap().smmus().next().unwrap().unwrap_err().to_string()
}

#[test]
fn what_is_wrong_with_an_smmu_is_named() {
    let with = |name: &str, cells: &[u32]| smmu_error(smmu(gic()).cells("reg", REG).cells(name, cells));
    let interrupts = |cells: &[u32]| with("interrupts", cells);
    let reg = |cells: &[u32]| smmu_error(smmu(gic()).cells("reg", cells));
    assert_eq!(smmu_error(smmu(gic())), "smmu@0: `reg` is missing");
    assert_eq!(reg(&[0, 0, 0]), "smmu@0: `reg` has 12 bytes, which do not make whole entries");
    assert_eq!(
        reg(&[!0, !0, 0, 2]),
        "smmu@0: `reg` has a range of 0x2 bytes at 0xffffffffffffffff, which does not end"
    );
    assert_eq!(
        smmu_error(smmu(gic()).property("reg", &[0; 17])),
        "smmu@0: `reg` has 17 bytes, which do not make whole entries"
    );
    let wide = Maker::new().cells("#address-cells", &[3]);
    assert_eq!(smmu_error(smmu(wide).cells("reg", &[0; 4])), "smmu@0: `reg` has a number of 3 cells");
    let huge = Maker::new().cells("#size-cells", &[u32::MAX]);
    assert_eq!(
        smmu_error(smmu(huge).cells("reg", &[0; 4])),
        "smmu@0: `reg` has 16 bytes, which do not make whole entries"
    );
    let odd = Maker::new().property("#address-cells", &[2]);
    assert_eq!(
        smmu_error(smmu(odd).cells("reg", REG)),
        "/: `#address-cells` has 1 bytes, which do not make whole entries"
    );
    assert_eq!(interrupts(&[0, 1, 1]), "smmu@0: `interrupt-names` has 0 names for 1 interrupts");
    assert_eq!(interrupts(&[0, 1]), "smmu@0: `interrupts` has 8 bytes, which do not make whole entries");
    assert_eq!(interrupts(&[0, 988, 1]), "smmu@0: `interrupts` has the interrupt <0x0 0x3dc 0x1>, which no GIC has");
    assert_eq!(interrupts(&[4, 1, 1]), "smmu@0: `interrupts` has the interrupt <0x4 0x1 0x1>, which no GIC has");
    assert_eq!(interrupts(&[0, 1, 3]), "smmu@0: `interrupts` has the interrupt <0x0 0x1 0x3>, which no GIC has");
    let names = smmu(gic()).cells("reg", REG).property("interrupt-names", b"eventq\0");
    assert_eq!(smmu_error(names), "smmu@0: `interrupt-names` has 1 names for 0 interrupts");
    assert_eq!(with("numa-node-id", &[]), "smmu@0: `numa-node-id` has 0 bytes, which do not make whole entries");
    assert_eq!(
        with("interrupts-extended", &[9, 0, 1, 1]),
        "smmu@0: `interrupts-extended` names the phandle 0x9, which no node has"
    );
    // A phandle of 0 is none, even where a node claims it.
    assert_eq!(
        smmu_error(
            smmu(gic())
                .cells("reg", REG)
                .cells("interrupts-extended", &[0, 0, 1, 1])
                .node("x")
                .cells("phandle", &[0])
                .end()
        ),
        "smmu@0: `interrupts-extended` names the phandle 0x0, which no node has"
    );
    // The SMMU itself is no GIC.
    assert_eq!(
        with("interrupts-extended", &[2, 0, 1, 1]),
        "smmu@0: `interrupts-extended` names 0x2 as interrupt controller, which is no GICv2 or GICv3"
    );
    let orphan = Maker::new().cells("#size-cells", &[2]);
    assert_eq!(
        smmu_error(smmu(orphan).cells("reg", REG).cells("interrupts", &[0, 1, 1])),
        "smmu@0: `interrupt-parent` is missing"
    );
}

#[test]
fn interrupts_of_another_controller_are_not_taken_for_those_of_a_gic() {
    for (cells, compatible) in [(2, "arm,gic-v3\0"), (3, "arm,gic-v5\0"), (3, "arm,nvic\0"), (5, "arm,gic-v3\0")] {
        let root = Maker::new().cells("interrupt-parent", &[1]).cells("#size-cells", &[2]).node("controller");
        let root = root.cells("#interrupt-cells", &[cells]).property("compatible", compatible.as_bytes());
        let error = smmu_error(smmu(root.cells("phandle", &[1]).end()).cells("reg", REG).cells("interrupts", &[0; 6]));
        assert_eq!(error, "smmu@0: `interrupts` names 0x1 as interrupt controller, which is no GICv2 or GICv3");
    }
}

#[test]
fn the_cpus_of_a_gicv2s_private_interrupt_are_no_trigger() {
    let with_names = smmu(gic()).cells("reg", REG).property("interrupt-names", b"eventq\0");
    let tree = with_names.cells("interrupts", &[1, 5, 0xf04]).end().finish();
    assert_eq!(smmus(&tree)[0].interrupts.event, interrupt(InterruptKind::Ppi, 5, Trigger::LevelHigh));
}

#[test]
fn an_address_that_the_buses_above_do_not_pass_on_is_an_error() {
    // Child address, parent address, size, of 1, 2 and 1 cells.
    let bus = |ranges: Option<&[u32]>| {
        let bus = Maker::new().node("bus").cells("#address-cells", &[1]);
        let bus = if let Some(ranges) = ranges { bus.cells("ranges", ranges) } else { bus };
        let tree = smmu(bus).cells("reg", &[0x1000, 0x2_0000]).end().end().finish();
        let description = DeviceTree::new(&tree).unwrap().smmus().next().unwrap();
        description.map(|smmu| smmu.base).map_err(|error| error.to_string())
    };
    let not_passed = "smmu@0: `reg` has the address 0x1000, which the buses above do not pass on".to_owned();
    assert_eq!(bus(None), Err(not_passed.clone()));
    assert_eq!(bus(Some(&[])), Ok(0x1000));
    assert_eq!(bus(Some(&[0x1000, 7, 0x5000, 0x2_0000])), Ok(0x7_0000_5000));
    // Too short by one byte, and too late by one.
    assert_eq!(bus(Some(&[0x1000, 7, 0x5000, 0x1_ffff])), Err(not_passed.clone()));
    assert_eq!(bus(Some(&[0x1001, 7, 0x5000, 0x4_0000])), Err(not_passed.clone()));
    // It would end beyond 64 bits.
    assert_eq!(bus(Some(&[0, !0, !0, 0x4_0000])), Err(not_passed));
    assert_eq!(bus(Some(&[0, 0, 0])), Err("bus: `ranges` has 12 bytes, which do not make whole entries".into()));
}

/// A host bridge with these properties of cells, an SMMU with the phandle 2, and an IOMMU of another kind with the phandle 3.
fn host(properties: &[(&str, &[u32])]) -> Vec<u8> {
    let root = smmu(Maker::new().cells("#size-cells", &[2])).cells("reg", REG).cells("#iommu-cells", &[1]).end();
    let root = root.node("other").cells("phandle", &[3]).cells("#iommu-cells", &[2]).end();
    // Without `#iommu-cells`, and with too many.
    let root = root.node("smmu@1").property("compatible", b"arm,smmu-v3\0").cells("phandle", &[4]).end();
    let root = root.node("smmu@2").property("compatible", b"arm,smmu-v3\0").cells("phandle", &[5]);
    let root = root.cells("#iommu-cells", &[2]).end();
    let host = root.node("pci").property("device_type", b"pci\0").property("compatible", b"pci-host-ecam-generic\0");
    properties.iter().fold(host, |host, (name, cells)| host.cells(name, cells)).end().finish()
}

#[test]
fn what_is_wrong_with_a_map_is_named() {
    let map = |cells: &[u32], rid| {
        let tree = host(&[("iommu-map", cells)]);
        let stream = bridges(&tree)[0].stream_id(Rid(rid));
        stream.map(|stream| stream.map(|stream| stream.id)).map_err(|error| error.to_string())
    };
    assert_eq!(map(&[0x10, 2, 0x100, 2], 0xf), Ok(None));
    assert_eq!(map(&[0x10, 2, 0x100, 2], 0x10), Ok(Some(0x100)));
    assert_eq!(map(&[0x10, 2, 0x100, 2], 0x11), Ok(Some(0x101)));
    assert_eq!(map(&[0x10, 2, 0x100, 2], 0x12), Ok(None));
    assert_eq!(map(&[0, 2, !0, 2], 0), Ok(Some(!0)));
    assert_eq!(
        map(&[0, 2, !0, 2], 1),
        Err("pci: `iommu-map` has a range of 0x2 bytes at 0xffffffff, which does not end".into())
    );
    assert_eq!(map(&[0, 3, 0, 2], 0), Ok(None));
    assert_eq!(map(&[0, 9, 0, 2], 0), Err("pci: `iommu-map` names the phandle 0x9, which no node has".into()));
    assert_eq!(map(&[0, 2, 0], 0), Err("pci: `iommu-map` has 12 bytes, which do not make whole entries".into()));
    assert_eq!(map(&[0, 4, 0, 2], 0), Err("smmu@1: `#iommu-cells` is missing".into()));
    assert_eq!(map(&[0, 5, 0, 2], 0), Err("smmu@2: `#iommu-cells` has the value 0x2, which is out of range".into()));
}

#[test]
fn what_is_wrong_with_a_list_of_streams_is_named() {
    let list = |cells: &[u32]| {
        let tree = host(&[("iommus", cells)]);
        let tree = DeviceTree::new(&tree).unwrap();
        let streams = tree.device_streams("/pci").unwrap();
        streams.map(|stream| stream.map(|stream| stream.id).map_err(|error| error.to_string())).collect::<Vec<_>>()
    };
    assert_eq!(list(&[2, 7, 3, 0, 0, 2, 8]), [Ok(7), Ok(8)]);
    let cut = |length| Err(format!("pci: `iommus` has {length} bytes, which do not make whole entries"));
    assert_eq!(list(&[2, 7, 2]), [Ok(7), cut(12)]);
    assert_eq!(list(&[3, 0]), [cut(8)]);
    assert_eq!(list(&[9, 0, 2, 7]), [Err("pci: `iommus` names the phandle 0x9, which no node has".into())]);
    assert_eq!(list(&[5, 0, 0]), [Err("smmu@2: `#iommu-cells` has the value 0x2, which is out of range".into())]);
    let odd = Maker::new().property("iommus", &[0; 3]).finish();
    assert!(DeviceTree::new(&odd).unwrap().device_streams("/").is_err());
}

#[test]
fn what_is_wrong_with_a_host_bridge_is_named() {
    let pci = [("#address-cells", &[3][..]), ("#size-cells", &[2])];
    let windows = |ranges: &[u32]| {
        let tree = host(&[pci[0], pci[1], ("ranges", ranges)]);
        let windows = bridges(&tree)[0].windows().and_then(|mut windows| windows.next().transpose());
        windows.map(|window| window.map(|window| window.size)).map_err(|error| error.to_string())
    };
    assert_eq!(windows(&[]), Ok(None));
    assert_eq!(windows(&[0; 6]), Err("pci: `ranges` has 24 bytes, which do not make whole entries".into()));
    // 32-bit memory may end at 4 GiB, not after.
    assert_eq!(windows(&[2 << 24, 0, 0xffff_0000, 0, 0, 0, 0x1_0000]), Ok(Some(0x1_0000)));
    let error = "pci: `ranges` has a range of 0x10001 bytes at 0xffff0000, which does not end";
    assert_eq!(windows(&[2 << 24, 0, 0xffff_0000, 0, 0, 0, 0x1_0001]), Err(error.into()));
    let error = "pci: `ranges` has a range of 0x2 bytes at 0xffffffffffffffff, which does not end";
    assert_eq!(windows(&[3 << 24, !0, !0, 0, 0, 0, 2]), Err(error.into()));
    assert_eq!(windows(&[3 << 24, 0, 0, !0, !0, 0, 2]), Err(error.into()));
    let tree = host(&[("ranges", &[])]);
    let error = bridges(&tree)[0].windows().err().unwrap().to_string();
    assert_eq!(error, "pci: `#address-cells` has the value 0x2, which is out of range");
    let wide = Maker::new().cells("#address-cells", &[3]).node("pci").property("device_type", b"pci\0");
    let wide = wide.cells(pci[0].0, pci[0].1).cells(pci[1].0, pci[1].1).cells("ranges", &[0; 8]).end().finish();
    let error = bridges(&wide)[0].windows().err().unwrap().to_string();
    assert_eq!(error, "pci: `ranges` has a number of 3 cells");
    let tree = host(&[]);
    assert_eq!(bridges(&tree)[0].windows().err().unwrap().to_string(), "pci: `ranges` is missing");
    assert_eq!(bridges(&tree)[0].ecam().unwrap_err().to_string(), "pci: `reg` is missing");
    for (buses, error) in [
        (&[0][..], "pci: `bus-range` has 4 bytes, which do not make whole entries"),
        (&[0, 0, 0], "pci: `bus-range` has 12 bytes, which do not make whole entries"),
        (&[0, 1, 2, 3], "pci: `bus-range` has 16 bytes, which do not make whole entries"),
        (&[0, 256], "pci: `bus-range` has the value 0x100, which is out of range"),
        (&[5, 4], "pci: `bus-range` has the value 0x500000004, which is out of range"),
    ] {
        let tree = host(&[("bus-range", buses)]);
        assert_eq!(bridges(&tree)[0].buses().unwrap_err().to_string(), error);
    }
}

fn tree_problem(bytes: &[u8]) -> (usize, TreeProblem) {
    match DeviceTree::new(bytes) {
        Err(Error::Tree(error)) => (error.offset, error.problem),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tree_that_is_cut_off_anywhere_is_refused() {
    for tree in [ONE_TREE, TWO_TREE, BOARD_TREE] {
        for length in 0..tree.len() {
            assert_eq!(tree_problem(&tree[..length]).1, TreeProblem::Cut, "{length}");
        }
    }
}

#[test]
fn a_structure_block_that_ends_early_is_refused() {
    for tree in [ONE_TREE, BOARD_TREE] {
        let mut tree = tree.to_vec();
        let size = u32::from_be_bytes(tree[36..40].try_into().unwrap());
        for size in 0..size {
            tree[36..40].copy_from_slice(&size.to_be_bytes());
            tree_problem(&tree);
        }
    }
}

#[test]
fn what_is_wrong_with_a_header_is_named() {
    let with = |at: usize, value: u32| {
        let mut tree = Maker::new().property("name", b"").finish();
        tree[at..at + 4].copy_from_slice(&value.to_be_bytes());
        tree_problem(&tree)
    };
    assert_eq!(with(0, 0xd00d_feee), (0, TreeProblem::Magic(0xd00d_feee)));
    assert_eq!(with(20, 16), (20, TreeProblem::Version(16, 16)));
    assert_eq!(with(24, 18), (20, TreeProblem::Version(17, 18)));
    let block = |start, size| TreeProblem::Block { start, size };
    let structure = Maker::STRUCTURE as u32;
    assert_eq!(with(8, structure + 2), (36, block(structure + 2, 28)));
    assert_eq!(with(8, !3), (36, block(!3, 28)));
    assert_eq!(with(36, !0), (36, block(structure, !0)));
    assert_eq!(with(32, !0), (32, block(structure + 28, !0)));
    assert_eq!(with(12, !0), (32, block(!0, 5)));
    // The property's name is outside, has no end, is empty.
    assert_eq!(with(12, 4), (structure as usize + 8, TreeProblem::Name));
    assert_eq!(with(32, 0), (structure as usize + 8, TreeProblem::Name));
    assert_eq!(with(32, 4), (structure as usize + 8, TreeProblem::Name));
}

#[test]
fn tokens_have_their_places() {
    let problem = |maker: Maker| tree_problem(&maker.bytes());
    let at = |tokens: usize| Maker::STRUCTURE + 4 * tokens;
    assert_eq!(problem(Maker::new().token(5)), (at(2), TreeProblem::Token(5)));
    assert_eq!(problem(Maker::new().token(9)), (at(2), TreeProblem::Token(9)));
    assert_eq!(problem(Maker::new().end().end()), (at(3), TreeProblem::Token(2)));
    assert_eq!(problem(Maker::new().end().node("second").end()), (at(3), TreeProblem::Token(1)));
    assert_eq!(problem(Maker::new().end()), (at(3), TreeProblem::Cut));
    assert_eq!(problem(Maker::new()), (at(2), TreeProblem::Cut));
    assert_eq!(problem(Maker::new().node("").end().end()), (at(2), TreeProblem::Name));
    // A property after a node.
    assert_eq!(problem(Maker::new().node("n").end().property("p", b"").end().token(9)), (at(5), TreeProblem::Token(3)));
    // A value that is longer than the rest.
    assert_eq!(problem(Maker::new().token(3).token(!0).token(0).property("p", b"")), (at(2), TreeProblem::Cut));
    // NOPs may be anywhere.
    let nops = Maker::new().token(4).cells("#size-cells", &[2]).token(4);
    let nops = smmu(nops).token(4).cells("reg", REG).token(4).end().token(4).end().token(4).token(9);
    assert_eq!(smmus(&nops.bytes()).len(), 1);
}

#[test]
fn nodes_may_be_nested_so_deep_and_no_deeper() {
    let nested = |depth: usize| {
        let inner = (1..depth).fold(Maker::new(), |tree, _| tree.node("n"));
        (1..depth).fold(inner, |tree, _| tree.end()).finish()
    };
    DeviceTree::new(&nested(MAX_DEPTH)).unwrap().smmus().for_each(|_| ());
    assert_eq!(tree_problem(&nested(MAX_DEPTH + 1)).1, TreeProblem::TooDeep);
    assert_eq!(tree_problem(&nested(10_000)).1, TreeProblem::TooDeep);
}

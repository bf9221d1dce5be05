//! Whatever the bytes are, reading them comes to an end, without a panic and without an overflow.

mod common;

use common::{
    BOARD_TREE, Maker, ONE_IORT, ONE_TREE, SMMU, TWO_IORT, iort, node, read_iort, read_tree, root_complex, sealed,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Numbers that are near a limit more often than others.
fn telling() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..80, (0u32..80).prop_map(|n| !n), Just(1 << 31), any::<u32>()]
}

/// Writes over some bytes and some words.
fn garbled(bytes: Vec<u8>, edits: &[(Index, u32, bool)], big: bool) -> Vec<u8> {
    edits.iter().fold(bytes, |mut bytes, (place, value, whole)| {
        let place = place.index(bytes.len());
        let word = if big { value.to_be_bytes() } else { value.to_le_bytes() };
        match bytes.get_mut(place & !3..(place & !3) + 4) {
            Some(cell) if *whole => cell.copy_from_slice(&word),
            _ => bytes[place] = *value as u8,
        }
        bytes
    })
}

fn edits() -> impl Strategy<Value = Vec<(Index, u32, bool)>> {
    vec((any::<Index>(), telling(), any::<bool>()), 1..6)
}

/// A table with each kind of node that is read.
fn full_iort() -> Vec<u8> {
    let component = [&[0; 13][..], b"\\_SB_.DMA\0\0"].concat();
    let reserved = [[0u32, 1, 28].map(u32::to_le_bytes).as_flattened(), &[0; 20]].concat();
    let nodes = [
        SMMU.node(4, &[[0, 0xffff, 0, 48, 0]]),
        root_complex(0, 1, 48, &[[0, 0xff, 0, 48, 0], [0x100, 0, 0, 48, 0]]),
        node(1, 4, &component, &[[0, 0, 3, 48, 1], [0, 5, 9, 48, 0]]),
        node(6, 3, &reserved, &[[0, 0, 3, 48, 1]]),
    ];
    iort(3, &nodes)
}

/// A tree that is cut off, and whose header agrees.
fn shortened(mut tree: Vec<u8>, by: Index) -> Vec<u8> {
    let length = by.index(tree.len());
    tree.truncate(length);
    if let Some(total) = tree.get_mut(4..8) {
        total.copy_from_slice(&(length as u32).to_be_bytes());
    }
    tree
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbled_trees(tree in select(vec![ONE_TREE, BOARD_TREE]), edits in edits()) {
        read_tree(&garbled(tree.to_vec(), &edits, true));
    }

    #[test]
    fn shortened_trees(tree in select(vec![ONE_TREE, BOARD_TREE]), by in any::<Index>(), edits in edits()) {
        let tree = shortened(tree.to_vec(), by);
        read_tree(&tree);
        if !tree.is_empty() {
            read_tree(&garbled(tree, &edits, true));
        }
    }

    /// Most garbled trees are refused: these are well formed, and what is in them is not.
    #[test]
    fn trees_of_any_numbers(
        cells in vec(vec(telling(), 0..12), 12),
        widths in vec(0u32..5, 5),
    ) {
        let root = Maker::new().cells("#address-cells", &widths[..1]).cells("#size-cells", &widths[1..2]).cells("interrupt-parent", &[1]);
        let gic = root.node("gic").cells("phandle", &[1]).cells("#interrupt-cells", &[3]).property("compatible", b"arm,gic-v3\0").end();
        let bus = gic.node("bus").cells("#address-cells", &widths[2..3]).cells("#size-cells", &widths[3..4]).cells("ranges", &cells[0]);
        let smmu = bus.node("smmu").property("compatible", b"arm,smmu-v3\0").cells("phandle", &[2]).cells("reg", &cells[1]);
        let smmu = smmu.cells("interrupts", &cells[2]).property("interrupt-names", b"eventq\0gerror\0").cells("#iommu-cells", &widths[4..]).end();
        let pci = smmu.node("pcie@10000000").property("device_type", b"pci\0").property("compatible", b"pci-host-ecam-generic\0");
        let pci = pci.cells("#address-cells", &[3]).cells("#size-cells", &[2]).cells("reg", &cells[3]).cells("ranges", &cells[4]);
        let pci = pci.cells("bus-range", &cells[5]).cells("iommu-map", &cells[6]).cells("iommu-map-mask", &cells[7]).end();
        let tree = pci.end().cells_of_devices(&cells[8..]).finish();
        prop_assert!(smmuv3_discovery::dt::DeviceTree::new(&tree).is_ok());
        read_tree(&tree);
    }

    #[test]
    fn garbled_tables(table in select(vec![ONE_IORT.to_vec(), TWO_IORT.to_vec(), full_iort()]), edits in edits()) {
        read_iort(&sealed(garbled(table, &edits, false)));
    }

    #[test]
    fn shortened_tables(table in select(vec![ONE_IORT.to_vec(), full_iort()]), by in any::<Index>()) {
        let length = by.index(table.len());
        let mut table = table[..length].to_vec();
        if let Some(field) = table.get_mut(4..8) {
            field.copy_from_slice(&(length as u32).to_le_bytes());
        }
        read_iort(&sealed(table));
    }

    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..200)) {
        read_tree(&bytes);
        read_iort(&bytes);
    }
}

impl Maker {
    /// A node with `iommus`, where `read_tree` looks.
    fn cells_of_devices(self, cells: &[Vec<u32>]) -> Maker {
        let inner = self.node("bus@40000000").node("inner").node("dma-controller@300000");
        inner.cells("iommus", &cells[0]).end().end().end()
    }
}

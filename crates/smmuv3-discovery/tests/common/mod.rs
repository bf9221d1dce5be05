//! Trees and tables to read, and makers of more.

#![allow(dead_code)] // Each test program uses a part.

use smmuv3_discovery::dt::DeviceTree;
use smmuv3_discovery::iort::Iort;
use smmuv3_discovery::pci::Rid;
use smmuv3_discovery::{Interrupt, Interrupts, Model, SmmuDescription};

pub const ONE_TREE: &[u8] = include_bytes!("../data/virt-one.dtb");
pub const TWO_TREE: &[u8] = include_bytes!("../data/virt-two.dtb");
pub const BOARD_TREE: &[u8] = include_bytes!("../data/board.dtb");
pub const ONE_IORT: &[u8] = include_bytes!("../data/virt-one.iort");
pub const TWO_IORT: &[u8] = include_bytes!("../data/virt-two.iort");

/// An SMMU as QEMU's tables describe it, with interrupts for events, PRI, CMD_SYNC and global errors.
pub fn virt(number: usize, base: u64, [event, pri, sync, gerror]: [Option<Interrupt>; 4]) -> SmmuDescription {
    SmmuDescription {
        number,
        base,
        size: 0x2_0000,
        coherent: true,
        interrupts: Interrupts { event, gerror, pri, sync, combined: None },
        msi: false,
        proximity: None,
        model: Model::Generic,
    }
}

/// Reads all there is to read, whatever it is.
pub fn read_tree(bytes: &[u8]) {
    let Ok(tree) = DeviceTree::new(bytes) else { return };
    for smmu in tree.smmus() {
        let _ = smmu.map_err(|error| error.to_string());
    }
    for bridge in tree.host_bridges() {
        let _ = (bridge.name().to_string(), bridge.segment(), bridge.buses(), bridge.ecam());
        let _ = bridge.windows().map(|windows| windows.count());
        for rid in [0, 0x1000, 0x1018, 0x11ff, 0xffff] {
            let _ = bridge.stream_id(Rid(rid));
        }
    }
    for path in ["", "/", "/pcie@10000000", "/bus@40000000/inner/dma-controller@300000"] {
        let _ = tree.device_streams(path).map(|streams| streams.count());
    }
}

/// Reads all there is to read, whatever it is.
pub fn read_iort(bytes: &[u8]) {
    let Ok(iort) = Iort::new(bytes) else { return };
    for smmu in iort.smmus() {
        let _ = smmu.map_err(|error| error.to_string());
    }
    let _ = iort.root_complexes().map(Result::unwrap).count();
    for component in iort.named_components().flatten() {
        let _ = component.streams().count();
    }
    for memory in iort.reserved_memory() {
        let memory = memory.unwrap();
        let _ = memory.ranges().count() + memory.streams().count();
    }
    for segment in [0, 1] {
        for rid in [0, 0x1ff, 0x200, 0x8000, 0xffff] {
            let _ = iort.stream_id(segment, Rid(rid));
        }
    }
}

/// A device tree in the making.
pub struct Maker {
    pub structure: Vec<u8>,
    strings: Vec<u8>,
}

impl Maker {
    pub const STRUCTURE: usize = 40;

    /// With the root begun.
    pub fn new() -> Maker {
        Maker { structure: Vec::new(), strings: Vec::new() }.node("")
    }

    pub fn token(mut self, token: u32) -> Maker {
        self.structure.extend(token.to_be_bytes());
        self
    }

    fn padded(mut self, bytes: &[u8]) -> Maker {
        self.structure.extend(bytes);
        self.structure.resize(self.structure.len().next_multiple_of(4), 0);
        self
    }

    pub fn node(self, name: &str) -> Maker {
        self.token(1).padded(&[name.as_bytes(), &[0]].concat())
    }

    pub fn end(self) -> Maker {
        self.token(2)
    }

    pub fn property(mut self, name: &str, value: &[u8]) -> Maker {
        let offset = self.strings.len() as u32;
        self.strings.extend(name.as_bytes());
        self.strings.push(0);
        self.token(3).token(value.len() as u32).token(offset).padded(value)
    }

    pub fn cells(self, name: &str, cells: &[u32]) -> Maker {
        let value: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.property(name, &value)
    }

    /// Ends the root.
    pub fn finish(self) -> Vec<u8> {
        self.end().token(9).bytes()
    }

    pub fn bytes(self) -> Vec<u8> {
        let (structure, strings) = (self.structure.len() as u32, self.strings.len() as u32);
        let at = Maker::STRUCTURE as u32;
        let total = at + structure + strings;
        let header = [0xd00d_feed, total, at, at + structure, at, 17, 16, 0, strings, structure];
        let header = header.into_iter().flat_map(u32::to_be_bytes);
        header.chain(self.structure).chain(self.strings).collect()
    }
}

/// Makes the checksum of a table right.
pub fn sealed(mut table: Vec<u8>) -> Vec<u8> {
    if let Some(checksum) = table.get_mut(9) {
        *checksum = 0;
        let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        table[9] = sum.wrapping_neg();
    }
    table
}

/// An IORT of these nodes.
pub fn iort(revision: u8, nodes: &[Vec<u8>]) -> Vec<u8> {
    let mut table = b"IORT....".to_vec();
    table.push(revision);
    table.extend([0; 27]);
    table.extend([nodes.len() as u32, 48, 0].into_iter().flat_map(u32::to_le_bytes));
    table.extend(nodes.concat());
    let length = table.len() as u32;
    table[4..8].copy_from_slice(&length.to_le_bytes());
    sealed(table)
}

/// A node. `mappings` are input base, number of IDs minus one, output base, output reference, flags.
pub fn node(kind: u8, revision: u8, fixed: &[u8], mappings: &[[u32; 5]]) -> Vec<u8> {
    let at = 16 + fixed.len();
    let length = (at + 20 * mappings.len()) as u16;
    let mut node = vec![kind, length as u8, (length >> 8) as u8, revision];
    node.extend([0, mappings.len() as u32, at as u32].into_iter().flat_map(u32::to_le_bytes));
    node.extend(fixed);
    node.extend(mappings.as_flattened().iter().flat_map(|number| number.to_le_bytes()));
    node
}

/// What an SMMUv3 node has after its header.
pub struct Smmu {
    pub base: u64,
    pub flags: u32,
    pub model: u32,
    /// Event, PRI, GERR, sync.
    pub gsivs: [u32; 4],
    pub proximity: u32,
    pub index: u32,
}

pub const SMMU: Smmu = Smmu { base: 0x1000_0000, flags: 0, model: 0, gsivs: [40, 41, 42, 43], proximity: 0, index: 0 };

impl Smmu {
    pub fn node(&self, revision: u8, mappings: &[[u32; 5]]) -> Vec<u8> {
        let mut fixed = self.base.to_le_bytes().to_vec();
        let [event, pri, gerr, sync] = self.gsivs;
        let more = [self.flags, 0, 0, 0, self.model, event, pri, gerr, sync, self.proximity, self.index];
        fixed.extend(more.into_iter().flat_map(u32::to_le_bytes));
        node(4, revision, &fixed, mappings)
    }
}

/// A root complex of revision 3.
pub fn root_complex(segment: u32, ats: u32, bits: u8, mappings: &[[u32; 5]]) -> Vec<u8> {
    let mut fixed = vec![0; 8];
    fixed.extend([ats, segment].into_iter().flat_map(u32::to_le_bytes));
    fixed.extend([bits, 0, 0, 0]);
    node(2, 3, &fixed, mappings)
}

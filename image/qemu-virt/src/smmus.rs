//! Which SMMUs there are, and what is behind them: `smmuv3-discovery` reads it from the device tree, or from ACPI's IORT.

use alloc::vec::Vec;

use smmuv3_discovery::dt::DeviceTree;
use smmuv3_discovery::iort::Iort;
use smmuv3_discovery::pci::Rid;
use smmuv3_discovery::{SmmuDescription, Stream};

/// The SMMUs of the machine.
pub struct Smmus {
    /// In the order of their numbers.
    pub all: Vec<SmmuDescription>,
    table: Table,
}

enum Table {
    Tree(DeviceTree<'static>),
    Iort(Iort<'static>),
}

impl Smmus {
    /// Reads the tables.
    ///
    /// QEMU puts only the first of several SMMUs into its device tree, and has all devices behind it there. So the table with more SMMUs counts.
    pub fn new(tree: &'static [u8], iort: Option<&'static [u8]>) -> Self {
        let tree = DeviceTree::new(tree).expect("the device tree is whole");
        let all: Vec<_> = tree.smmus().map(|smmu| smmu.expect("an SMMU")).collect();
        match iort.map(|table| Iort::new(table).expect("the IORT is whole")) {
            Some(iort) if iort.smmus().count() > all.len() => {
                Smmus { all: iort.smmus().map(|smmu| smmu.expect("an SMMU")).collect(), table: Table::Iort(iort) }
            }
            _ => Smmus { all, table: Table::Tree(tree) },
        }
    }

    /// By which name which SMMU knows a PCIe function. No bridge in this machine speaks for those behind it.
    pub fn stream(&self, function: Rid) -> Option<Stream> {
        match &self.table {
            Table::Tree(tree) => tree.host_bridges().next()?.stream_id(function).expect("a mapping"),
            Table::Iort(iort) => iort.stream_id(0, function).expect("a mapping"),
        }
    }
}

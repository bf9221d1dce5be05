//! SMMUs and streams in a flattened device tree.
//!
//! By the Devicetree Specification 0.4 and the bindings `iommu/arm,smmu-v3`, `pci/pci-iommu`, `iommu/iommu`, `pci/host-generic-pci` and
//! `interrupt-controller/arm,gic-v3`. Nodes count that are in use: whose own `status` and that of all nodes above is `okay`, or missing.
//!
//! A truncated or garbled tree is refused as a whole by [`DeviceTree::new`]; a property that is not as its binding has it, where it is read.
//!
//! QEMU (seen with 11.1) describes one SMMU at most: of a machine with several, only ACPI's IORT tells all.

mod fdt;
mod host;
mod interrupt;
mod place;
mod property;

use core::fmt;
use core::iter;

use arrayvec::ArrayString;

use fdt::{Fdt, Node, Place};
pub use fdt::{TreeError, TreeProblem};
pub use host::{HostBridge, Window, WindowKind};
use property::Cells;

use crate::pci::Rid;
use crate::{Model, SmmuDescription, Stream};

/// Nodes may be nested so deep, the root included.
pub const MAX_DEPTH: usize = 32;

const SMMU: &str = "arm,smmu-v3";
const IOMMUS: &str = "iommus";

/// The name of a node, with its unit address; cut off after 40 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeName(ArrayString<40>);

impl NodeName {
    fn of(node: &Node) -> Self {
        let mut name = ArrayString::new();
        for letter in if node.name().is_empty() { "/" } else { node.name() }.chars() {
            if name.try_push(letter).is_err() {
                break;
            }
        }
        NodeName(name)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is wrong with a device tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are no device tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A node's property is not as its binding has it.
    #[error("{node}: `{property}` {problem}")]
    Property {
        /// The node.
        node: NodeName,
        /// The property.
        property: &'static str,
        /// What is wrong.
        problem: Problem,
    },
}

/// What is wrong with a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There is none.
    #[error("is missing")]
    Missing,
    /// It has too few bytes, too many, or does not divide into entries.
    #[error("has {0} bytes, which do not make whole entries")]
    Length(usize),
    /// A value does not fit where it belongs.
    #[error("has the value {0:#x}, which is out of range")]
    Value(u64),
    /// A number has more cells than 64 bits take.
    #[error("has a number of {0} cells")]
    Cells(u32),
    /// No node has this phandle.
    #[error("names the phandle {0:#x}, which no node has")]
    Phandle(u32),
    /// `base` + `size` is more than 64 bits.
    #[error("has a range of {size:#x} bytes at {base:#x}, which does not end")]
    Overflow {
        /// Where it begins.
        base: u64,
        /// Bytes.
        size: u64,
    },
    /// The `ranges` of a bus above do not have this address.
    #[error("has the address {0:#x}, which the buses above do not pass on")]
    Untranslated(u64),
    /// An interrupt goes to something else than a GICv2 or GICv3.
    #[error("names {0:#x} as interrupt controller, which is no GICv2 or GICv3")]
    Controller(u32),
    /// An interrupt that no GIC has.
    #[error("has the interrupt <{0:#x} {1:#x} {2:#x}>, which no GIC has")]
    Interrupt(u32, u32, u32),
    /// There are not as many names as there are interrupts.
    #[error("has {names} names for {interrupts} interrupts")]
    Names {
        /// Names.
        names: usize,
        /// Interrupts.
        interrupts: usize,
    },
}

impl Problem {
    fn of(self, node: &Node, property: &'static str) -> Error {
        Error::Property { node: NodeName::of(node), property, problem: self }
    }
}

/// A flattened device tree.
#[derive(Debug, Clone, Copy)]
pub struct DeviceTree<'a> {
    fdt: Fdt<'a>,
}

/// A node that a phandle names.
struct Referred<'a> {
    node: Node<'a>,
    /// Its number, if it is an SMMUv3 that is in use.
    smmu: Option<usize>,
}

impl<'a> DeviceTree<'a> {
    /// Checks the tree at the start of `bytes`. What comes after it does not matter: a port need not know its length.
    ///
    /// # Errors
    /// [`Error::Tree`] if it is none, or cut off.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Error> {
        Ok(DeviceTree { fdt: Fdt::new(bytes)? })
    }

    /// The SMMUv3s that are in use, in the order of the tree.
    ///
    /// Each has its number even if another cannot be described.
    ///
    /// # Errors
    /// Of an item: [`Error::Property`].
    pub fn smmus(&self) -> impl Iterator<Item = Result<SmmuDescription, Error>> + use<'a> {
        let tree = *self;
        let smmus = self.in_use().filter(|place| is_smmu(&place.node()));
        smmus.enumerate().map(move |(number, place)| tree.describe(&place, number))
    }

    /// The PCI host bridges that are in use, in the order of the tree: nodes with the `device_type` `pci` that are not below another.
    pub fn host_bridges(&self) -> impl Iterator<Item = HostBridge<'a>> + use<'a> {
        let tree = *self;
        self.in_use().filter(Place::is_host_bridge).map(move |place| HostBridge { tree, place })
    }

    /// The streams of the device with the path `path`, such as `/soc/dma-controller@7000000`, by its property `iommus`. It has none if
    /// there is no such node, or if it has no such property.
    ///
    /// Entries that name anything but an SMMUv3 that is in use are left out: such DMA passes none.
    ///
    /// # Errors
    /// [`Error::Property`]: on the whole property, or as the last item.
    pub fn device_streams(&self, path: &str) -> Result<impl Iterator<Item = Result<Stream, Error>> + use<'a>, Error> {
        let tree = *self;
        let node = fdt::places(self.fdt).find(|place| place.is_at(path)).map(|place| place.node());
        let mut cells = match node.and_then(|node| Some((node, node.property(IOMMUS)?))) {
            Some((node, bytes)) => Cells::new(bytes).ok_or_else(|| Problem::Length(bytes.len()).of(&node, IOMMUS))?,
            None => Cells::NONE,
        };
        Ok(iter::from_fn(move || {
            let node = node?;
            while !cells.is_empty() {
                match tree.next_master(&node, &mut cells).transpose() {
                    Some(Ok(stream)) => return Some(Ok(stream)),
                    Some(Err(error)) => {
                        cells = Cells::NONE;
                        return Some(Err(error));
                    }
                    None => {}
                }
            }
            None
        }))
    }

    /// Takes one entry of `iommus` off `cells`.
    fn next_master(&self, node: &Node<'a>, cells: &mut Cells<'a>) -> Result<Option<Stream>, Error> {
        let cut = || Problem::Length(node.property(IOMMUS).map_or(0, <[u8]>::len)).of(node, IOMMUS);
        let phandle = cells.next().ok_or_else(cut)?;
        let referred = self.refer(phandle).ok_or_else(|| Problem::Phandle(phandle).of(node, IOMMUS))?;
        let count = iommu_cells(&referred.node)?;
        let mut specifier = cells.split(count).ok_or_else(cut)?;
        let Some(smmu) = referred.smmu else { return Ok(None) };
        one_cell(&referred.node, count)?;
        Ok(specifier.next().map(|id| Stream { smmu, id }))
    }

    fn in_use(&self) -> impl Iterator<Item = Place<'a>> + use<'a> {
        fdt::places(self.fdt).filter(Place::is_in_use)
    }

    /// The node with this phandle.
    fn refer(&self, phandle: u32) -> Option<Referred<'a>> {
        let mut smmus = 0;
        for place in fdt::places(self.fdt) {
            let node = place.node();
            let smmu = (is_smmu(&node) && place.is_in_use()).then_some(smmus);
            if phandle_of(&node) == Some(phandle) {
                return Some(Referred { node, smmu });
            }
            smmus += usize::from(smmu.is_some());
        }
        None
    }

    fn describe(&self, place: &Place<'a>, number: usize) -> Result<SmmuDescription, Error> {
        let node = place.node();
        let (base, size) = place.reg()?;
        let has = |name| node.property(name).is_some();
        let model = if has("cavium,cn9900-broken-page1-regspace") {
            Model::Cn99xx
        } else if has("hisilicon,broken-prefetch-cmd") {
            Model::Hi161x
        } else {
            Model::Generic
        };
        Ok(SmmuDescription {
            number,
            base,
            size,
            coherent: has("dma-coherent"),
            interrupts: interrupt::of(self, place)?,
            msi: has("msi-parent"),
            proximity: property::number(&node, "numa-node-id")?,
            model,
        })
    }

    /// What `iommu-map` and `iommu-map-mask` make of `rid`, by the binding `pci/pci-iommu`.
    fn map(&self, node: &Node<'a>, rid: Rid) -> Result<Option<Stream>, Error> {
        const MAP: &str = "iommu-map";
        let Some(bytes) = node.property(MAP) else { return Ok(None) };
        let mask = property::number(node, "iommu-map-mask")?.unwrap_or(u32::MAX);
        let rid = u32::from(rid.0) & mask;
        let entries = Cells::new(bytes).and_then(|cells| cells.entries::<4>());
        for [first, phandle, output, length] in entries.ok_or_else(|| Problem::Length(bytes.len()).of(node, MAP))? {
            let Some(offset) = rid.checked_sub(first).filter(|offset| *offset < length) else { continue };
            let referred = self.refer(phandle).ok_or_else(|| Problem::Phandle(phandle).of(node, MAP))?;
            let Some(smmu) = referred.smmu else { return Ok(None) };
            one_cell(&referred.node, iommu_cells(&referred.node)?)?;
            let overflow = Problem::Overflow { base: output.into(), size: length.into() };
            let id = output.checked_add(offset).ok_or_else(|| overflow.of(node, MAP))?;
            return Ok(Some(Stream { smmu, id }));
        }
        Ok(None)
    }
}

fn is_smmu(node: &Node) -> bool {
    property::strings(node, "compatible").any(|name| name == SMMU)
}

fn phandle_of(node: &Node) -> Option<u32> {
    let phandle = property::number(node, "phandle").ok()?.or(property::number(node, "linux,phandle").ok()?);
    phandle.filter(|phandle| !matches!(*phandle, 0 | u32::MAX))
}

const IOMMU_CELLS: &str = "#iommu-cells";

fn iommu_cells(node: &Node) -> Result<u32, Error> {
    property::number(node, IOMMU_CELLS)?.ok_or_else(|| Problem::Missing.of(node, IOMMU_CELLS))
}

/// An SMMUv3 has StreamIDs of one cell.
fn one_cell(smmu: &Node, cells: u32) -> Result<(), Error> {
    if cells == 1 { Ok(()) } else { Err(Problem::Value(cells.into()).of(smmu, IOMMU_CELLS)) }
}

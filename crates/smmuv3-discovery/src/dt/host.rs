//! PCI host bridges.

use core::fmt;
use core::iter;
use core::ops::RangeInclusive;

use super::fdt::Place;
use super::property::{self, Cells, address_cells, size_cells};
use super::{DeviceTree, Error, NodeName, Problem};
use crate::Stream;
use crate::pci::Rid;

const RANGES: &str = "ranges";
const ECAM: &str = "pci-host-ecam-generic";

/// A PCI host bridge.
#[derive(Clone)]
pub struct HostBridge<'a> {
    pub(super) tree: DeviceTree<'a>,
    pub(super) place: Place<'a>,
}

/// What PCI addresses a window is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowKind {
    /// I/O ports.
    Io,
    /// Memory that every BAR can reach.
    Memory32,
    /// Memory for 64-bit BARs.
    Memory64,
}

/// A range of PCI addresses that the CPU can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// What kind of addresses they are.
    pub kind: WindowKind,
    /// Reads have no side effects there.
    pub prefetchable: bool,
    /// The first address on the bus.
    pub bus: u64,
    /// Where the CPU has it.
    pub cpu: u64,
    /// Bytes.
    pub size: u64,
}

impl HostBridge<'_> {
    /// The node's name.
    pub fn name(&self) -> NodeName {
        NodeName::of(&self.place.node())
    }

    /// The PCI segment, if it has a number (`linux,pci-domain`).
    ///
    /// # Errors
    /// [`Error::Property`].
    pub fn segment(&self) -> Result<Option<u32>, Error> {
        property::number(&self.place.node(), "linux,pci-domain")
    }

    /// The bus numbers behind it, by `bus-range`; all if there is none.
    ///
    /// # Errors
    /// [`Error::Property`].
    pub fn buses(&self) -> Result<RangeInclusive<u8>, Error> {
        const BUSES: &str = "bus-range";
        let node = self.place.node();
        let Some(bytes) = node.property(BUSES) else { return Ok(0..=255) };
        let read = || {
            let cells = Cells::new(bytes).and_then(Cells::entries).filter(|_| bytes.len() == 8);
            let [first, last] = cells.and_then(|mut entries| entries.next()).ok_or(Problem::Length(bytes.len()))?;
            match (u8::try_from(first), u8::try_from(last)) {
                (Ok(first), Ok(last)) if first <= last => Ok(first..=last),
                _ => Err(Problem::Value(u64::from(first) << 32 | u64::from(last))),
            }
        };
        read().map_err(|problem| problem.of(&node, BUSES))
    }

    /// Physical address and bytes of its configuration space, if that is plain ECAM (`pci-host-ecam-generic`): 1 MiB for each of
    /// [`buses`](Self::buses), beginning with the first of them.
    ///
    /// # Errors
    /// [`Error::Property`].
    pub fn ecam(&self) -> Result<Option<(u64, u64)>, Error> {
        let node = self.place.node();
        match property::strings(&node, "compatible").any(|name| name == ECAM) {
            true => self.place.reg().map(Some),
            false => Ok(None),
        }
    }

    /// Its windows, by `ranges`. Entries for configuration space are left out.
    ///
    /// # Errors
    /// [`Error::Property`]: on the whole property, or on one window.
    pub fn windows(&self) -> Result<impl Iterator<Item = Result<Window, Error>>, Error> {
        let node = self.place.node();
        let bytes = node.property(RANGES).ok_or_else(|| Problem::Missing.of(&node, RANGES))?;
        // PCI addresses have 3 cells and sizes 2 (IEEE 1275 PCI bus binding).
        for (cells, name, right) in
            [(address_cells(&node)?, "#address-cells", 3), (size_cells(&node)?, "#size-cells", 2)]
        {
            if cells != right {
                return Err(Problem::Value(cells.into()).of(&node, name));
            }
        }
        let parent = match self.place.parent() {
            Some(parent) => address_cells(&parent)?,
            None => return Err(Problem::Missing.of(&node, RANGES)),
        };
        if parent > 2 {
            return Err(Problem::Cells(parent).of(&node, RANGES));
        }
        let width = (3 + parent as usize + 2) * 4;
        let cells = Cells::new(bytes).filter(|_| bytes.len().is_multiple_of(width));
        let mut cells = cells.ok_or_else(|| Problem::Length(bytes.len()).of(&node, RANGES))?;
        let entry = move || {
            let space = cells.next()?;
            Some((space, cells.split(2)?.number()?, cells.split(parent)?.number()?, cells.split(2)?.number()?))
        };
        let entries = iter::from_fn(entry);
        Ok(entries.filter_map(|(space, bus, cpu, size)| self.window(space, bus, cpu, size).transpose()))
    }

    /// `space` is `phys.hi` of the PCI bus binding: bit 30 prefetchable, bits 25:24 the space.
    fn window(&self, space: u32, bus: u64, cpu: u64, size: u64) -> Result<Option<Window>, Error> {
        let kind = match space >> 24 & 3 {
            0 => return Ok(None),
            1 => WindowKind::Io,
            2 => WindowKind::Memory32,
            _ => WindowKind::Memory64,
        };
        let overflow = Problem::Overflow { base: bus, size };
        let end = bus.checked_add(size).ok_or_else(|| overflow.of(&self.place.node(), RANGES))?;
        if kind == WindowKind::Memory32 && end > 1 << 32 {
            return Err(overflow.of(&self.place.node(), RANGES));
        }
        let cpu = self.place.translate(RANGES, cpu, size)?;
        Ok(Some(Window { kind, prefetchable: space >> 30 & 1 == 1, bus, cpu, size }))
    }

    /// Where DMA with the requester ID `rid` arrives, by `iommu-map` and `iommu-map-mask`. `None` if it passes no SMMUv3 that is in use.
    ///
    /// Of a function behind bridges, [`device_streams`](crate::pci::device_streams) knows all requester IDs.
    ///
    /// # Errors
    /// [`Error::Property`].
    pub fn stream_id(&self, rid: Rid) -> Result<Option<Stream>, Error> {
        self.tree.map(&self.place.node(), rid)
    }
}

impl fmt::Debug for HostBridge<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HostBridge").field(&self.name()).finish()
    }
}

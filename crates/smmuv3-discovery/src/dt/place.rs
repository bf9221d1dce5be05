//! What the nodes above a node mean for it: whether it is in use, and where the CPU has its addresses.

use super::fdt::{Node, Place};
use super::property::{Cells, address_cells, size_cells};
use super::{Error, Problem};

impl<'a> Place<'a> {
    pub(super) fn is_in_use(&self) -> bool {
        self.upwards().all(|node| match node.property("status") {
            // `ok` is an older way to say it.
            Some(status) => matches!(status, b"okay\0" | b"ok\0"),
            None => true,
        })
    }

    pub(super) fn is_host_bridge(&self) -> bool {
        let mut upwards = self.upwards().map(|node| node.property("device_type") == Some(b"pci\0"));
        upwards.next() == Some(true) && !upwards.any(|above| above)
    }

    /// The first entry of `reg`, as the CPU sees it.
    pub(super) fn reg(&self) -> Result<(u64, u64), Error> {
        const REG: &str = "reg";
        let node = self.node();
        let bytes = node.property(REG).ok_or_else(|| Problem::Missing.of(&node, REG))?;
        // The root has no address.
        let parent = self.parent().ok_or_else(|| Problem::Missing.of(&node, REG))?;
        let cut = || Problem::Length(bytes.len()).of(&node, REG);
        let mut cells = Cells::new(bytes).ok_or_else(cut)?;
        let mut next = |count| {
            let number = cells.split(count).ok_or_else(cut)?;
            number.number().ok_or_else(|| Problem::Cells(count).of(&node, REG))
        };
        let (base, size) = (next(address_cells(&parent)?)?, next(size_cells(&parent)?)?);
        Ok((self.translate(REG, base, size)?, size))
    }

    /// What the CPU has at the address `base` of the bus that this node is on. `property` is where it stands.
    pub(super) fn translate(&self, property: &'static str, base: u64, size: u64) -> Result<u64, Error> {
        let node = self.node();
        let mut address = base;
        // Each bus, and the one above it. The root is the CPU's own.
        for (bus, above) in self.upwards().skip(1).zip(self.upwards().skip(2)) {
            let through = Windows::of(&bus, &above)?.ok_or_else(|| Problem::Untranslated(base).of(&node, property))?;
            address =
                through.translate(address, size).ok_or_else(|| Problem::Untranslated(base).of(&node, property))?;
        }
        match address.checked_add(size) {
            Some(_) => Ok(address),
            None => Err(Problem::Overflow { base, size }.of(&node, property)),
        }
    }
}

/// The `ranges` of a bus.
struct Windows<'a> {
    cells: Cells<'a>,
    /// Cells of an address on the bus, of one above, and of a size.
    widths: [u32; 3],
}

impl<'a> Windows<'a> {
    /// `None` if the bus has no `ranges`: its addresses mean nothing to those above.
    fn of(bus: &Node<'a>, above: &Node<'a>) -> Result<Option<Self>, Error> {
        const RANGES: &str = "ranges";
        let Some(bytes) = bus.property(RANGES) else { return Ok(None) };
        let widths = [address_cells(bus)?, address_cells(above)?, size_cells(bus)?];
        let width = widths.iter().map(|width| u64::from(*width) * 4).sum::<u64>();
        let whole = width > 0 && (bytes.len() as u64).is_multiple_of(width);
        match Cells::new(bytes).filter(|_| whole) {
            Some(cells) => Ok(Some(Windows { cells, widths })),
            None => Err(Problem::Length(bytes.len()).of(bus, RANGES)),
        }
    }

    fn translate(mut self, base: u64, size: u64) -> Option<u64> {
        if self.cells.is_empty() {
            return Some(base);
        }
        loop {
            // A window with wider numbers than 64 bits is none for `base`.
            let [child, parent, length] = self.widths.map(|width| self.cells.split(width));
            let (Some(child), Some(parent), Some(length)) = (child?.number(), parent?.number(), length?.number())
            else {
                continue;
            };
            let Some(offset) = base.checked_sub(child) else { continue };
            if length.checked_sub(offset).is_some_and(|left| size <= left) {
                return parent.checked_add(offset);
            }
        }
    }
}

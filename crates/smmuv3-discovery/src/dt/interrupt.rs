//! The interrupts of an SMMU.

use super::fdt::{Node, Place};
use super::property::{self, Cells};
use super::{DeviceTree, Error, Problem};
use crate::{Interrupt, InterruptKind, Interrupts, Trigger};

const NAMES: &str = "interrupt-names";
const INTERRUPTS: &str = "interrupts";
const EXTENDED: &str = "interrupts-extended";
const PARENT: &str = "interrupt-parent";
const CELLS: &str = "#interrupt-cells";

/// By name: an SMMU's interrupts come in any order.
pub(super) fn of<'a>(tree: &DeviceTree<'a>, place: &Place<'a>) -> Result<Interrupts, Error> {
    let node = place.node();
    let mut found = Interrupts::default();
    let mut interrupts = 0;
    let mut names = property::strings(&node, NAMES);
    each(tree, place, |interrupt| {
        interrupts += 1;
        match names.next() {
            Some("eventq") => found.event = Some(interrupt),
            Some("gerror") => found.gerror = Some(interrupt),
            Some("priq") => found.pri = Some(interrupt),
            Some("cmdq-sync") => found.sync = Some(interrupt),
            Some("combined") => found.combined = Some(interrupt),
            Some(_) | None => {}
        }
    })?;
    match property::strings(&node, NAMES).count() {
        names if names == interrupts => Ok(found),
        names => Err(Problem::Names { names, interrupts }.of(&node, NAMES)),
    }
}

/// Calls `visit` with each interrupt of a node. `interrupts-extended`, where there is one, counts instead of `interrupts`.
fn each<'a>(tree: &DeviceTree<'a>, place: &Place<'a>, mut visit: impl FnMut(Interrupt)) -> Result<(), Error> {
    let node = place.node();
    let (property, bytes) = match (node.property(EXTENDED), node.property(INTERRUPTS)) {
        (Some(bytes), _) => (EXTENDED, bytes),
        (None, Some(bytes)) => (INTERRUPTS, bytes),
        (None, None) => return Ok(()),
    };
    let cut = || Problem::Length(bytes.len()).of(&node, property);
    let mut cells = Cells::new(bytes).ok_or_else(cut)?;
    let inherited = if property == INTERRUPTS { Some(gic(tree, &node, INTERRUPTS, parent(place)?)?) } else { None };
    while !cells.is_empty() {
        let width = match inherited {
            Some(width) => width,
            None => gic(tree, &node, EXTENDED, cells.next().ok_or_else(cut)?)?,
        };
        let specifier = cells.split(width).ok_or_else(cut)?;
        visit(decode(specifier).map_err(|problem| problem.of(&node, property))?);
    }
    Ok(())
}

/// `interrupt-parent` of the node, or of the nearest above it that has one.
fn parent(place: &Place) -> Result<u32, Error> {
    for node in place.upwards() {
        if let Some(phandle) = property::number(&node, PARENT)? {
            return Ok(phandle);
        }
    }
    Err(Problem::Missing.of(&place.node(), PARENT))
}

/// How many cells the interrupts of a GIC have. GICv5 has another meaning for them.
fn gic(tree: &DeviceTree, node: &Node, property: &'static str, phandle: u32) -> Result<u32, Error> {
    let gic = tree.refer(phandle).ok_or_else(|| Problem::Phandle(phandle).of(node, property))?.node;
    let is_gic = |name: &str| name.contains("gic") && !name.contains("gic-v5");
    match property::number(&gic, CELLS)? {
        // The fourth says which CPUs a PPI is for.
        Some(width @ (3 | 4)) if property::strings(&gic, "compatible").any(is_gic) => Ok(width),
        _ => Err(Problem::Controller(phandle).of(node, property)),
    }
}

/// From the cells kind, number, flags: binding `interrupt-controller/arm,gic-v3`.
fn decode(mut cells: Cells) -> Result<Interrupt, Problem> {
    let mut next = || cells.next().unwrap_or_default();
    let (kind, number, flags) = (next(), next(), next());
    let none = Problem::Interrupt(kind, number, flags);
    let kind = match kind {
        0 => InterruptKind::Spi,
        1 => InterruptKind::Ppi,
        2 => InterruptKind::ExtendedSpi,
        3 => InterruptKind::ExtendedPpi,
        _ => return Err(none),
    };
    // In GICv2, bits 15:8 say which CPUs a PPI is for.
    let trigger = match flags & 0xf {
        1 => Trigger::EdgeRising,
        2 => Trigger::EdgeFalling,
        4 => Trigger::LevelHigh,
        8 => Trigger::LevelLow,
        _ => return Err(none),
    };
    Interrupt::new(kind, number, trigger).ok_or(none)
}

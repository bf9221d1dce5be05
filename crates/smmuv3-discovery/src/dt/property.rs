//! Properties as numbers and strings.

use super::fdt::Node;
use super::{Error, Problem};

/// The strings of a property, none if there is no such property. What follows the last NUL is no string.
pub(super) fn strings<'a>(node: &Node<'a>, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
    let bytes = node.property(name).unwrap_or_default();
    let whole = bytes.iter().rposition(|byte| *byte == 0).map_or(&[][..], |end| &bytes[..end]);
    let count = if whole.len() == bytes.len() { 0 } else { usize::MAX };
    whole.split(|byte| *byte == 0).take(count).map(|string| str::from_utf8(string).unwrap_or_default())
}

/// A property of one cell, if there is one.
pub(super) fn number(node: &Node, name: &'static str) -> Result<Option<u32>, Error> {
    let Some(bytes) = node.property(name) else { return Ok(None) };
    let cell = bytes.try_into().map_err(|_| Problem::Length(bytes.len()).of(node, name))?;
    Ok(Some(u32::from_be_bytes(cell)))
}

/// `#address-cells` of a node, which is about its children.
pub(super) fn address_cells(node: &Node) -> Result<u32, Error> {
    Ok(number(node, "#address-cells")?.unwrap_or(2))
}

/// `#size-cells` of a node, which is about its children.
pub(super) fn size_cells(node: &Node) -> Result<u32, Error> {
    Ok(number(node, "#size-cells")?.unwrap_or(1))
}

/// Some cells: big-endian words of 32 bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cells<'a>(&'a [[u8; 4]]);

impl<'a> Cells<'a> {
    /// `None` if `bytes` are not whole cells.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        match bytes.as_chunks() {
            (cells, []) => Some(Cells(cells)),
            _ => None,
        }
    }

    /// No cells.
    pub(super) const NONE: Cells<'static> = Cells(&[]);

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the first `count` cells away.
    pub(super) fn split(&mut self, count: u32) -> Option<Cells<'a>> {
        let (first, rest) = self.0.split_at_checked(count.try_into().ok()?)?;
        self.0 = rest;
        Some(Cells(first))
    }

    /// Takes the first cell away.
    pub(super) fn next(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*first))
    }

    /// As one number. `None` if there are more than two cells.
    pub(super) fn number(self) -> Option<u64> {
        let words = self.0.iter().map(|cell| u64::from(u32::from_be_bytes(*cell)));
        (self.0.len() <= 2).then(|| words.fold(0, |number, word| number << 32 | word))
    }

    /// As entries of `N` cells. `None` if that does not come out even.
    pub(super) fn entries<const N: usize>(self) -> Option<impl Iterator<Item = [u32; N]> + use<'a, N>> {
        match self.0.as_chunks::<N>() {
            (entries, []) => Some(entries.iter().map(|entry| entry.map(u32::from_be_bytes))),
            _ => None,
        }
    }
}

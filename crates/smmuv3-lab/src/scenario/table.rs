//! Stage 1 tables that are not the driver's: a process's, or a guest's in the addresses that the guest sees.

use std::collections::BTreeMap;

use smmuv3::arch::{AddrSize, Desc, Granule, Prot, Shape, Stage};
use smmuv3::platform::PhysAddr;

use crate::session::PAGE;

/// log2 of the entries of a table.
const INDEX_BITS: u32 = 9;
const PAGE_SHIFT: u32 = 12;
const LAST_LEVEL: u8 = 3;

/// A page for a table: where its owner sees it, and where it is.
#[derive(Clone, Copy)]
pub(super) struct TablePage {
    pub seen: u64,
    pub at: PhysAddr,
}

/// What a table is made in.
pub(super) trait Memory {
    /// A page of zeros.
    fn table_page(&mut self) -> Result<TablePage, String>;
    fn write_word(&mut self, at: PhysAddr, word: u64) -> Result<(), String>;
}

/// A table with pages of 4 KiB.
pub(super) struct Table {
    root: TablePage,
    start_level: u8,
    /// The tables below the root, by level and first address.
    tables: BTreeMap<(u8, u64), TablePage>,
}

impl Table {
    /// A table that maps nothing.
    pub(super) fn new(input_bits: u8, memory: &mut impl Memory) -> Result<Table, String> {
        let shape = Shape::new(Stage::S1, Granule::K4, input_bits, AddrSize::B48).map_err(|error| error.to_string())?;
        Ok(Table { root: memory.table_page()?, start_level: shape.start_level(), tables: BTreeMap::new() })
    }

    /// Where it begins, as its owner sees it.
    pub(super) fn root(&self) -> u64 {
        self.root.seen
    }

    /// Lets the page at `iova` lead to `target`, or nowhere.
    pub(super) fn set(
        &mut self,
        iova: u64,
        target: Option<(u64, Prot)>,
        memory: &mut impl Memory,
    ) -> Result<(), String> {
        let mut table = self.root;
        for level in self.start_level..LAST_LEVEL {
            let shift = PAGE_SHIFT + u32::from(LAST_LEVEL - level) * INDEX_BITS;
            let key = (level + 1, iova >> shift);
            table = match self.tables.get(&key) {
                Some(next) => *next,
                None => {
                    let next = memory.table_page()?;
                    memory.write_word(entry(table, iova, shift), Desc::table(PhysAddr(next.seen)).0)?;
                    self.tables.insert(key, next);
                    next
                }
            };
        }
        let leaf = |(target, prot)| Desc::leaf(PhysAddr(target), LAST_LEVEL, Stage::S1, prot);
        memory.write_word(entry(table, iova, PAGE_SHIFT), target.map_or(Desc::INVALID, leaf).0)
    }
}

/// The address of a table's entry for `iova`.
fn entry(table: TablePage, iova: u64, shift: u32) -> PhysAddr {
    let index = iova >> shift & (PAGE as u64 / 8 - 1);
    PhysAddr(table.at.0 + 8 * index)
}

//! The translation table: threads that map and unmap where a table comes or goes.

use alloc::sync::Arc;
use loom::thread;

use super::{FREED, LoomPlatform, explore};
use crate::arch::{AddrSize, Granule, Prot, Shape, Stage};
use crate::pgtable::{MapFailure, PageTable};
use crate::platform::{Iova, PhysAddr};
use crate::primitive::Ordering;
use crate::rcu::Sections;

const PAGE: u64 = 4096;
const TABLE: u64 = 512 * PAGE;
/// Words of the start table's page, and of each other table.
const WORDS: usize = 512;

/// A table of three levels, of which the second is one table. There is room for `tables` of the third.
struct World {
    platform: LoomPlatform,
    sections: Sections<LoomPlatform>,
    table: PageTable<LoomPlatform>,
}

impl World {
    fn new(tables: usize) -> Arc<Self> {
        let platform = LoomPlatform::new((2 + tables) * WORDS);
        let shape = Shape::new(Stage::S1, Granule::K4, 39, AddrSize::from_code(2)).unwrap();
        let table = PageTable::new(&platform, shape).unwrap();
        let world = World { sections: Sections::new(platform.clone()), platform, table };
        // The first table of the third level, and the second level above it.
        world.map(0);
        Arc::new(world)
    }

    fn map(&self, page: u64) {
        self.try_map(page, PAGE).unwrap();
    }

    fn try_map(&self, page: u64, len: u64) -> Result<(), MapFailure> {
        let _section = self.sections.enter();
        let iova = Iova(page * PAGE);
        self.table.map(iova, PhysAddr(0x8000_1000 + iova.0), len, Prot::READ)
    }

    /// Unmaps, and frees what tables that takes out. Returns the bytes that were mapped.
    fn unmap(&self, iova: u64, len: u64) -> u64 {
        let section = self.sections.enter();
        let found = self.table.unmap(Iova(iova), len).unwrap();
        drop(section);
        self.table.retire(found.tables, &self.sections);
        found.bytes
    }

    fn has(&self, page: u64) -> bool {
        self.table.lookup(Iova(page * PAGE)).is_some()
    }

    /// Whether a page is mapped in one of the tables that were made, linked or not.
    fn stands_in(&self, table: usize, page: usize) -> bool {
        let word = self.platform.words()[(2 + table) * WORDS + page].load(Ordering::Relaxed);
        word != FREED && word & 1 != 0
    }

    /// Whether a table was freed; if so, nobody has written to it since.
    fn freed(&self, table: usize) -> bool {
        let words = &self.platform.words()[(2 + table) * WORDS..][..WORDS];
        let freed = words.iter().filter(|word| word.load(Ordering::Relaxed) == FREED).count();
        assert!(freed == 0 || freed == WORDS, "a freed table was written to");
        freed > 0
    }
}

#[test]
fn what_is_mapped_while_its_table_goes_is_mapped_or_was_unmapped() {
    explore(Some(2), || {
        let world = World::new(2);
        let unmapper = thread::spawn({
            let world = world.clone();
            move || world.unmap(0, TABLE)
        });
        // It is this thread that is interrupted first: in the table that goes.
        world.map(1);
        let unmapped = unmapper.join().unwrap();
        assert!(!world.has(0));
        assert!(world.has(1) || unmapped == 2 * PAGE, "a mapping was lost with its table");
        // Who unmaps it now does not make the SMMU forget a table that was taken out before.
        assert!(!world.has(1) || !world.stands_in(0, 1), "a mapping was left in a table that was taken out");
        world.freed(0);
        assert!(!world.freed(1), "the table in use was freed");
    });
}

#[test]
fn of_two_threads_that_fill_a_table_one_has_it() {
    explore(Some(2), || {
        let world = World::new(1);
        assert_eq!(world.unmap(0, PAGE), PAGE);
        let other = thread::spawn({
            let world = world.clone();
            move || world.try_map(0, TABLE).is_ok()
        });
        let this = world.try_map(0, TABLE).is_ok();
        assert!(this != other.join().unwrap());
        assert!(world.has(0) && world.has(511));
    });
}

#[test]
fn of_two_threads_that_add_a_table_one_gives_its_own_back() {
    explore(Some(1), || {
        let world = World::new(3);
        let (one, other) = (512, 513);
        let thread = thread::spawn({
            let world = world.clone();
            move || world.map(other)
        });
        world.map(one);
        thread.join().unwrap();
        assert!(world.has(one) && world.has(other), "a mapping was lost with its table");
        assert!(!(world.freed(1) && world.freed(2)));
    });
}

#[test]
fn a_table_is_taken_out_by_one_of_two_threads() {
    explore(Some(2), || {
        let world = World::new(1);
        let other = thread::spawn({
            let world = world.clone();
            move || world.unmap(0, TABLE)
        });
        let unmapped = world.unmap(0, TABLE);
        assert_eq!(unmapped + other.join().unwrap(), PAGE);
        assert!(!world.has(0));
        world.freed(0);
    });
}

#[test]
fn a_page_is_unmapped_by_one_of_two_threads() {
    explore(Some(2), || {
        let world = World::new(1);
        let other = thread::spawn({
            let world = world.clone();
            move || world.unmap(0, PAGE)
        });
        let unmapped = world.unmap(0, PAGE);
        assert_eq!(unmapped + other.join().unwrap(), PAGE);
        assert!(!world.has(0));
    });
}

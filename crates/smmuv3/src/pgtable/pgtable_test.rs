//! The page table against a simple map from pages to pages.

extern crate std;

use super::map::{MapCause, MapFailure};
use super::*;
use crate::arch::{AddrSize, DescKind, Granule, Prot, Stage};
use crate::testing::TestPlatform;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::thread;
use std::vec::Vec;

const RW: Prot = Prot::READ.union(Prot::WRITE);

fn table(platform: &TestPlatform, stage: Stage, granule: Granule, bits: u8) -> PageTable<TestPlatform> {
    PageTable::new(platform, Shape::new(stage, granule, bits, AddrSize::B48).unwrap()).unwrap()
}

/// What the SMMU's walker would make of `iova`, by the descriptors in memory alone. All of them are clean.
fn walk(platform: &TestPlatform, table: &PageTable<TestPlatform>, iova: u64) -> Option<(u64, Prot)> {
    let shape = table.shape();
    let mut base = table.root().0;
    for level in shape.start_level()..=3 {
        let entry = base + 8 * shape.index(iova, level) as u64;
        assert!(platform.is_clean(entry), "level {level}");
        let desc = Desc(platform.read(entry));
        match desc.kind(level, shape.granule()) {
            DescKind::Table(next) => base = next.0,
            DescKind::Leaf(addr) => {
                assert!(desc.access_flag());
                let offset = iova & ((1 << shape.level_shift(level)) - 1);
                return Some((addr.0 + offset, desc.prot(shape.stage())));
            }
            DescKind::Invalid => return None,
        }
    }
    None
}

#[derive(Debug, Clone)]
enum Op {
    Map { page: u64, target: u64, pages: u64 },
    Unmap { page: u64, pages: u64 },
    Lookup { page: u64 },
}

/// Page numbers around a few places where tables and blocks begin, at all levels, and around both ends of the input range.
fn page(granule: Granule, bits: u8) -> impl Strategy<Value = u64> {
    let per_table = granule.size() / 8;
    let last = (1u64 << (bits as u32 - granule.shift())) - 1;
    let place = prop_oneof![
        Just(0),
        Just(per_table),
        Just(2 * per_table),
        Just((per_table * per_table).min(last / 2)),
        Just(last),
    ];
    (place, 0..8u64, any::<bool>()).prop_map(
        move |(place, near, below)| {
            if below { place.saturating_sub(near) } else { (place + near).min(last) }
        },
    )
}

fn op(granule: Granule, bits: u8) -> impl Strategy<Value = Op> {
    let per_table = granule.size() / 8;
    let pages =
        prop_oneof![4 => 1..10u64, 2 => Just(per_table), 1 => Just(2 * per_table), 1 => per_table - 3..per_table + 3];
    let target = prop_oneof![Just(0u64), Just(per_table), Just(4 * per_table), 1..100u64];
    prop_oneof![
        3 => (page(granule, bits), target, pages.clone()).prop_map(|(page, target, pages)| Op::Map { page, target, pages }),
        3 => (page(granule, bits), pages).prop_map(|(page, pages)| Op::Unmap { page, pages }),
        1 => page(granule, bits).prop_map(|page| Op::Lookup { page }),
    ]
}

fn case() -> impl Strategy<Value = (Stage, Granule, u8, Vec<Op>)> {
    let granule = prop_oneof![6 => Just(Granule::K4), 1 => Just(Granule::K16), 1 => Just(Granule::K64)];
    (prop_oneof![Just(Stage::S1), Just(Stage::S2)], granule, 39..=48u8).prop_flat_map(|(stage, granule, bits)| {
        let ops = prop::collection::vec(op(granule, bits), 1..10);
        (Just(stage), Just(granule), Just(bits), ops)
    })
}

fn run(stage: Stage, granule: Granule, bits: u8, ops: Vec<Op>) {
    std::thread_local!(static PLATFORM: TestPlatform = TestPlatform::new(2048));
    PLATFORM.with(|platform| {
        let before = platform.live_pages();
        run_on(platform, stage, granule, bits, ops);
        assert_eq!(platform.live_pages(), before, "table memory leaked");
    });
}

fn run_on(platform: &TestPlatform, stage: Stage, granule: Granule, bits: u8, ops: Vec<Op>) {
    let table = table(platform, stage, granule, bits);
    let size = granule.size();
    let end = 1u64 << (bits as u32 - granule.shift());
    let mut model: BTreeMap<u64, u64> = BTreeMap::new();
    for op in ops {
        match op {
            Op::Map { page, target, pages } => {
                let pages = pages.min(end - page);
                let clash = (page..page + pages).find(|page| model.contains_key(page));
                let result = table.map(Iova(page * size), PhysAddr(target * size), pages * size, RW);
                let until = match clash {
                    None => {
                        assert_eq!(result, Ok(()));
                        page + pages
                    }
                    Some(clash) => {
                        let failure = result.unwrap_err();
                        assert_eq!(failure.cause, MapCause::Mapped);
                        assert!(failure.at.0 <= clash * size);
                        failure.at.0 / size
                    }
                };
                (page..until).for_each(|at| assert!(model.insert(at, target + at - page).is_none()));
            }
            Op::Unmap { page, pages } => {
                let pages = pages.min(end - page);
                match table.unmap(Iova(page * size), pages * size) {
                    Ok(unmapped) => {
                        let gone = (page..page + pages).filter(|at| model.remove(at).is_some()).count() as u64;
                        assert_eq!(unmapped.bytes, gone * size);
                        assert_eq!(unmapped.smallest_leaf == 0, gone == 0);
                        table.free(unmapped.tables);
                    }
                    Err((block, block_size)) => {
                        // Then it is there, larger than a page, and partly outside.
                        assert!(block_size > size && block.0 & (block_size - 1) == 0);
                        let (first, last) = (block.0 / size, (block.0 + block_size) / size - 1);
                        assert!(first < page || last >= page + pages);
                        assert!(model.contains_key(&first) && model.contains_key(&last));
                    }
                }
            }
            Op::Lookup { page } => {
                let expected = model.get(&page).map(|target| PhysAddr(target * size + 5));
                assert_eq!(table.lookup(Iova(page * size + 5)), expected);
            }
        }
    }
    // Everything that is mapped, and the neighbours of it, as the SMMU sees them.
    let edges = model.keys().flat_map(|page| [page.saturating_sub(1), *page, (page + 1).min(end - 1)]);
    for page in edges.step_by(7) {
        let expected = model.get(&page).map(|target| (target * size, RW));
        assert_eq!(walk(platform, &table, page * size), expected, "page {page:#x}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_of_maps_and_unmaps_agrees_with_a_map((stage, granule, bits, ops) in case()) {
        run(stage, granule, bits, ops);
    }
}

#[test]
fn blocks_are_used_where_address_and_size_allow() {
    for (granule, block_level) in [(Granule::K4, 1), (Granule::K4, 2), (Granule::K16, 2), (Granule::K64, 2)] {
        for stage in [Stage::S1, Stage::S2] {
            let platform = TestPlatform::new(256);
            let table = table(&platform, stage, granule, 48);
            let size = 1u64 << table.shape().level_shift(block_level);
            table.map(Iova(size), PhysAddr(2 * size), size, RW).unwrap();
            assert_eq!(
                table.leaf(Iova(2 * size - 1)),
                Some((PhysAddr(2 * size), size)),
                "{granule} level {block_level}"
            );
            // A part of a block cannot be unmapped; all of it can.
            let part = granule.size();
            assert_eq!(table.unmap(Iova(size), part).unwrap_err(), (Iova(size), size));
            assert_eq!(table.unmap(Iova(2 * size - part), 2 * part).unwrap_err(), (Iova(size), size));
            assert_eq!(table.unmap(Iova(size - part), 2 * part).unwrap_err(), (Iova(size), size));
            assert_eq!(table.lookup(Iova(size)), Some(PhysAddr(2 * size)));
            assert_eq!(table.unmap(Iova(size), size).unwrap().bytes, size);
            // Physical alignment that does not fit takes pages.
            table.map(Iova(size), PhysAddr(2 * size + part), part, RW).unwrap();
            assert_eq!(table.leaf(Iova(size)), Some((PhysAddr(2 * size + part), part)));
        }
    }
}

#[test]
fn permissions_reach_the_descriptor() {
    let platform = TestPlatform::new(64);
    for (stage, asked, found) in [
        (Stage::S1, Prot::READ, Prot::READ),
        (Stage::S1, Prot::WRITE, RW),
        (Stage::S1, RW | Prot::EXEC | Prot::PRIVILEGED, RW | Prot::EXEC | Prot::PRIVILEGED),
        (Stage::S1, RW | Prot::DEVICE, RW | Prot::DEVICE),
        (Stage::S1, RW | Prot::UNCACHED, RW | Prot::UNCACHED),
        (Stage::S2, Prot::READ, Prot::READ),
        (Stage::S2, Prot::WRITE, Prot::WRITE),
        (Stage::S2, RW | Prot::EXEC, RW | Prot::EXEC),
        (Stage::S2, RW | Prot::DEVICE, RW | Prot::DEVICE),
        (Stage::S2, RW | Prot::UNCACHED, RW | Prot::UNCACHED),
    ] {
        let table = table(&platform, stage, Granule::K4, 40);
        table.map(Iova(0x1000), PhysAddr(0x5000), 0x1000, asked).unwrap();
        assert_eq!(walk(&platform, &table, 0x1234), Some((0x5234, found)), "{stage} {asked:?}");
    }
}

#[test]
fn a_table_that_is_out_of_memory_says_how_far_it_came() {
    let platform = TestPlatform::new(64);
    let table = table(&platform, Stage::S1, Granule::K4, 39);
    // Two tables for the first page; the third, for the page behind 2 MiB, is refused.
    platform.allow_allocations(2);
    let failure = table.map(Iova(0x1f_f000), PhysAddr(0x5000), 0x2000, RW).unwrap_err();
    assert_eq!(failure, MapFailure { at: Iova(0x20_0000), cause: MapCause::NoMemory });
    assert_eq!(table.lookup(Iova(0x1f_f000)), Some(PhysAddr(0x5000)));
    assert_eq!(table.lookup(Iova(0x20_0000)), None);
}

#[test]
fn a_table_is_taken_out_when_an_unmap_covers_it_and_not_before() {
    let platform = TestPlatform::new(64);
    let table = table(&platform, Stage::S1, Granule::K4, 39);
    let before = platform.live_pages();
    table.map(Iova(0x20_0000), PhysAddr(0x1000), 0x1f_f000, RW).unwrap();
    assert_eq!(platform.live_pages(), before + 2);
    let pieces: u64 = (0..511).map(|page| table.unmap(Iova(0x20_0000 + page * 0x1000), 0x1000).unwrap().bytes).sum();
    assert_eq!((pieces, platform.live_pages()), (0x1f_f000, before + 2));
    let whole = table.unmap(Iova(0x20_0000), 0x20_0000).unwrap();
    assert_eq!(whole.bytes, 0);
    assert!(!whole.tables.is_empty());
    // Until it is freed, whoever maps inside finds that its first entry is neither a valid descriptor nor empty.
    let dead = whole.tables.head;
    assert!(matches!(platform.read(dead), word if word & 1 == 0 && word != 0));
    table.free(whole.tables);
    assert_eq!(platform.live_pages(), before + 1);
    drop(table);
    assert_eq!(
        (platform.live_pages(), platform.handles()),
        (0, 1),
        "nothing of it is left, no handle of the platform either"
    );
}

#[test]
fn a_table_of_tables_is_dead_in_every_entry_when_it_is_taken_out() {
    let platform = TestPlatform::new(64);
    let table = table(&platform, Stage::S1, Granule::K4, 39);
    let before = platform.live_pages();
    table.map(Iova(0x1f_f000), PhysAddr(0x1000), 0x2000, RW).unwrap();
    table.map(Iova(0x60_0000), PhysAddr(0x60_0000), 0x20_0000, RW).unwrap();
    let Slot::Table(second) = table.slot(platform.read(table.root().0), 30) else { panic!("no table") };
    let whole = table.unmap(Iova(0), 1 << 30).unwrap();
    assert_eq!((whole.bytes, whole.smallest_leaf), (0x20_2000, 0x1000));
    assert!((0..512).all(|index| is_mark(platform.read(second.0 + 8 * index))));
    table.free(whole.tables);
    assert_eq!(platform.live_pages(), before);
}

/// Many threads map and unmap disjoint pages of the same tables; some take whole tables out. Column by column: a mapper that
/// walked into a table before it was unlinked must start again, and nobody's page may be lost.
#[test]
fn threads_on_different_pages_do_not_disturb_each_other() {
    let platform = TestPlatform::new(4096);
    let table = table(&platform, Stage::S1, Granule::K4, 39);
    let rcu = crate::rcu::Sections::new(platform.clone());
    thread::scope(|scope| {
        for thread in 0..4u64 {
            let (table, rcu) = (&table, &rcu);
            scope.spawn(move || {
                for round in 0..300u64 {
                    // Interleaved pages in the 2 MiB at 0, and one 2 MiB table of this thread's own in the same 1 GiB.
                    let pages: Vec<u64> = (0..32).map(|i| (i * 4 + thread) * 0x1000).collect();
                    let own = (thread + 1) << 21;
                    for (number, &at) in pages.iter().chain([&own]).enumerate() {
                        let target = PhysAddr((round * 64 + number as u64) * 0x1000);
                        let section = rcu.enter();
                        table.map(Iova(at), target, 0x1000, RW).unwrap();
                        assert_eq!(table.lookup(Iova(at)), Some(target));
                        drop(section);
                    }
                    for &at in &pages {
                        let section = rcu.enter();
                        assert_eq!(table.unmap(Iova(at), 0x1000).unwrap().bytes, 0x1000);
                        drop(section);
                    }
                    let section = rcu.enter();
                    let unmapped = table.unmap(Iova(own), 0x20_0000).unwrap();
                    drop(section);
                    assert_eq!(unmapped.bytes, 0x1000);
                    rcu.synchronize();
                    table.free(unmapped.tables);
                }
            });
        }
    });
    // Start table, one level 2 table, one level 3 table.
    assert_eq!(platform.live_pages(), 3);
}

/// Hostile threads: one maps single pages where another unmaps the whole 2 MiB, and a third single pages. Every page that a map reported is
/// found by an unmap, or in the table at the end; two unmaps at the same moment may both have found it.
#[test]
fn overlapping_callers_lose_no_page_and_no_memory() {
    let platform = TestPlatform::new(4096);
    let table = table(&platform, Stage::S1, Granule::K4, 39);
    let rcu = crate::rcu::Sections::new(platform.clone());
    let (mapped, unmapped) = thread::scope(|scope| {
        let mapper = scope.spawn(|| {
            let maps = (0..20_000u64).filter(|i| {
                let _section = rcu.enter();
                table.map(Iova((i * 7 % 512) * 0x1000), PhysAddr(0), 0x1000, RW).is_ok()
            });
            maps.count() as u64
        });
        let unmapper = scope.spawn(|| {
            let mut bytes = 0;
            for _ in 0..2_000 {
                let section = rcu.enter();
                let unmapped = table.unmap(Iova(0), 0x20_0000).unwrap();
                drop(section);
                bytes += unmapped.bytes;
                rcu.synchronize();
                table.free(unmapped.tables);
            }
            bytes / 0x1000
        });
        let single = scope.spawn(|| {
            let unmaps = (0..20_000u64).filter(|i| {
                let _section = rcu.enter();
                table.unmap(Iova((i * 7 % 512) * 0x1000), 0x1000).unwrap().bytes > 0
            });
            unmaps.count() as u64
        });
        (mapper.join().unwrap(), unmapper.join().unwrap() + single.join().unwrap())
    });
    let left = table.unmap(Iova(0), 0x20_0000).unwrap();
    assert!(mapped <= unmapped + left.bytes / 0x1000, "of {mapped} pages {unmapped} were found");
    table.free(left.tables);
}

/// One fills whole tables of pages, one takes them out, one unmaps a page now and then so that a table stays that is not full:
/// what is stored in a table that goes is found, or mapped again.
#[test]
fn tables_that_are_filled_while_they_go_lose_no_page() {
    let platform = TestPlatform::new(4096);
    let table = table(&platform, Stage::S1, Granule::K4, 39);
    let rcu = crate::rcu::Sections::new(platform.clone());
    let (mapped, unmapped) = thread::scope(|scope| {
        let filler = scope.spawn(|| {
            let maps = (0..4_000).map(|_| {
                let _section = rcu.enter();
                match table.map(Iova(0), PhysAddr(0x1000), 0x20_0000, RW) {
                    Ok(()) => 512,
                    Err(failure) => failure.at.0 / 0x1000,
                }
            });
            maps.sum::<u64>()
        });
        let unmapper = scope.spawn(|| {
            let unmaps = (0..4_000u64).map(|round| {
                let section = rcu.enter();
                // By halves the table stays.
                let found = match round % 3 {
                    0 => {
                        let halves = [0, 0x10_0000].map(|at| table.unmap(Iova(at), 0x10_0000).unwrap().bytes);
                        Unmapped { bytes: halves.iter().sum(), ..Unmapped::default() }
                    }
                    _ => table.unmap(Iova(0), 0x20_0000).unwrap(),
                };
                drop(section);
                rcu.synchronize();
                table.free(found.tables);
                found.bytes / 0x1000
            });
            unmaps.sum::<u64>()
        });
        (filler.join().unwrap(), unmapper.join().unwrap())
    });
    let left = table.unmap(Iova(0), 0x20_0000).unwrap();
    assert!(mapped <= unmapped + left.bytes / 0x1000, "of {mapped} pages {unmapped} were found");
    table.free(left.tables);
}

#[test]
fn a_table_pointer_is_visible_only_after_what_the_table_holds() {
    let platform = TestPlatform::new(16);
    let table = table(&platform, Stage::S1, Granule::K4, 48);
    platform.record_epochs();
    table.map(Iova(0x1000), PhysAddr(0x5000), 0x1000, RW).unwrap();
    let mut at = table.root().0;
    for level in 0..3 {
        let DescKind::Table(next) = Desc(platform.read(at)).kind(level, Granule::K4) else { panic!("no table") };
        platform.assert_written_before_pointed_to(at, next.0, 512);
        at = next.0;
    }
}

/// The SMMU may still walk the table that was taken out, and its pages be unmapped where they are mapped then.
#[test]
fn what_is_taken_back_from_a_table_that_was_taken_out_is_clean() {
    let platform = TestPlatform::new(16);
    let table = table(&platform, Stage::S1, Granule::K4, 39);
    table.map(Iova(0), PhysAddr(0x4000_0000), 0x4000, RW).unwrap();
    let pages = table.find(0, table.page).unwrap().table;
    table.take_back(&table.table(pages)[..4], true);
    let entries = [0, 1, 2, 3].map(|index| pages.0 + 8 * index);
    assert_eq!(entries.map(|entry| platform.read(entry) == 0), [false, true, true, true]);
    assert!(entries.iter().all(|&entry| platform.is_clean(entry)));
}

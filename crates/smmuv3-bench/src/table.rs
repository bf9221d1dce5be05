//! Translation tables: map, unmap, look up, with no device attached, so that what is measured is the tables.

use smmuv3::arch::{Desc, Prot, Stage};
use smmuv3::platform::{Iova, PhysAddr};
use smmuv3::{Geometry, Iommu, PagingDomain};
use std::hint::black_box;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::thread;
use std::time::Instant;

use crate::host::Host;
use crate::instructions::Operation;
use crate::{Bound, Effort, Figure, nanos_each};

const RW: Prot = Prot::READ.union(Prot::WRITE);
const PAGE: u64 = 4096;
const TABLE: u64 = 512 * PAGE;
const GIB: u64 = 512 * TABLE;
const IOVA: u64 = 0x1_4020_1000;
/// Where the large range is mapped to: no multiple of 2 MiB, so that no block fits.
const PADDR: u64 = 0x10_0000_1000;

pub(crate) const OPERATIONS: &[Operation] = &[
    Operation { part: "table", name: "map and unmap of a page", at_most: 320.0, run: map_and_unmap },
    Operation { part: "table", name: "iova_to_phys", at_most: 120.0, run: look_up },
];

/// Times. The range is 1 GiB of 4 KiB pages; what it is compared with is a loop that stores its descriptors in as many tables.
pub fn figures(effort: Effort) -> Vec<Figure> {
    let mut figures = ranges(effort);
    figures.push(two_threads(effort));
    figures
}

fn ranges(effort: Effort) -> Vec<Figure> {
    let domain = domain(2 + 512 + 8);
    let tables: Vec<AtomicU64> = (0..512 * 512).map(|_| AtomicU64::new(0)).collect();
    // What was timed, in the order of a round.
    let mut best = [f64::INFINITY; 6];
    for _ in 0..effort.rounds {
        let round = [
            {
                // It has its tables in the cache; mapping and unmapping have not.
                plain_loop(&tables);
                timed(|| plain_loop(&tables))
            },
            timed(|| map(&domain)),
            timed(|| unmap(&domain, GIB)),
            {
                map(&domain);
                // Tables stay.
                timed(|| unmap(&domain, TABLE / 2))
            },
            timed(|| map(&domain)),
            timed(|| unmap(&domain, TABLE)),
        ];
        best.iter_mut().zip(round).for_each(|(best, time)| *best = best.min(time));
    }
    let [plain, absent, whole, halves, empty, each] = best;
    let figure = |name, time| Figure::new("table", name, time / plain, "× plain loop");
    vec![
        Figure::new("table", "the plain loop, each page", plain / 512.0 / 512.0, "ns"),
        figure("map 1 GiB, tables absent", absent).bounded(Bound::AtMost(3.0)),
        figure("map 1 GiB, tables empty", empty).bounded(Bound::AtMost(3.0)),
        figure("unmap 1 GiB", whole).bounded(Bound::AtMost(4.0)),
        figure("unmap 1 GiB, 2 MiB a call", each),
        figure("unmap 1 GiB, 1 MiB a call, tables stay", halves),
    ]
}

fn timed(work: impl FnMut()) -> f64 {
    nanos_each(1, work)
}

fn plain_loop(tables: &[AtomicU64]) {
    let mut desc = Desc::leaf(PhysAddr(PADDR), 3, Stage::S1, RW).0;
    for entry in black_box(tables) {
        entry.store(desc, Relaxed);
        desc += PAGE;
    }
}

fn map(domain: &PagingDomain<Host>) {
    domain.map(Iova(GIB), PhysAddr(PADDR), GIB, RW).expect("nothing is mapped");
}

/// Unmaps it in pieces.
fn unmap(domain: &PagingDomain<Host>, piece: u64) {
    let pieces = (GIB..2 * GIB).step_by(piece as usize);
    let bytes: u64 = pieces.map(|at| domain.unmap(Iova(at), piece).expect("no hardware").bytes).sum();
    assert_eq!(bytes, GIB);
}

/// How much more two threads map and unmap than one, each in a table of pages of its own.
fn two_threads(effort: Effort) -> Figure {
    let domain = warm_domain();
    let tables = [IOVA, IOVA + TABLE];
    for iova in tables {
        domain.map(Iova(iova), PhysAddr(0x7000), PAGE, RW).expect("nothing is mapped there");
    }
    // Many short rounds: in some of them both threads have a CPU all the time.
    let rounds = effort.rounds * 50;
    let once = || work(&domain, IOVA + 2 * PAGE, 1);
    let calls = (effort.round.as_nanos() as f64 / 50.0 / nanos_each(64, once).max(1.0)).ceil() as u32;
    let alone = (0..rounds).map(|_| timed(|| work(&domain, IOVA + 2 * PAGE, calls))).fold(f64::INFINITY, f64::min);
    let arrived = AtomicUsize::new(0);
    let times = thread::scope(|scope| {
        let threads = tables.map(|iova| {
            let (domain, arrived) = (&domain, &arrived);
            scope.spawn(move || -> Vec<(Instant, Instant)> {
                let round = |round| {
                    arrived.fetch_add(1, AcqRel);
                    while arrived.load(Acquire) < 2 * (round + 1) {
                        thread::yield_now();
                    }
                    let begin = Instant::now();
                    work(domain, iova + 2 * PAGE, calls);
                    (begin, Instant::now())
                };
                (0..rounds).map(round).collect()
            })
        });
        threads.map(|thread| thread.join().expect("no panic"))
    });
    let spans = times[0].iter().zip(&times[1]).map(|(a, b)| a.1.max(b.1) - a.0.min(b.0));
    let both = spans.map(|span| span.as_nanos() as f64).fold(f64::INFINITY, f64::min);
    let figure = Figure::new("table", "map and unmap by two threads", 2.0 * alone / both, "× one thread");
    figure.bounded(Bound::AtLeast(1.8))
}

/// Maps and unmaps a page so many times.
fn work(domain: &PagingDomain<Host>, iova: u64, calls: u32) {
    let iova = black_box(Iova(iova));
    // A page that was not unmapped could not be mapped again.
    let mut done = true;
    for _ in 0..calls {
        done &= domain.map(iova, PhysAddr(0x7000), PAGE, RW).is_ok();
        done &= domain.unmap(iova, PAGE).is_ok();
    }
    assert!(done);
}

fn domain(pages: usize) -> PagingDomain<Host> {
    let iommu = Iommu::new(Host::new(pages)).expect("memory");
    iommu.paging_domain(Stage::S1, Geometry::default()).expect("a possible geometry")
}

/// A domain with tables for [`IOVA`], where a neighbour is mapped.
fn warm_domain() -> PagingDomain<Host> {
    let domain = domain(64);
    domain.map(Iova(IOVA + PAGE), PhysAddr(0x5000), PAGE, RW).expect("nothing is mapped");
    domain
}

fn map_and_unmap(calls: u32) {
    work(&warm_domain(), IOVA, calls);
}

fn look_up(calls: u32) {
    let domain = warm_domain();
    let mut found = true;
    for _ in 0..calls {
        found &= domain.iova_to_phys(black_box(Iova(IOVA + PAGE + 4))) == Some(PhysAddr(0x5004));
    }
    assert!(found);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_timed_maps_and_unmaps_a_gibibyte_of_pages() {
        let domain = domain(2 + 512 + 8);
        let found = |page: u64| domain.iova_to_phys(Iova(GIB + page * PAGE)).map(|paddr| paddr.0);
        for piece in [GIB, TABLE, TABLE / 2] {
            map(&domain);
            assert!((0..512 * 512).all(|page| found(page) == Some(PADDR + page * PAGE)));
            // Pages, no blocks.
            domain.unmap(Iova(GIB), PAGE).expect("it is a page");
            domain.map(Iova(GIB), PhysAddr(PADDR), PAGE, RW).expect("it was unmapped");
            unmap(&domain, piece);
            assert!((0..512 * 512).all(|page| found(page).is_none()));
        }
    }

    #[test]
    fn every_figure_is_a_number() {
        let figures = figures(Effort::SMOKE);
        assert_eq!(figures.len(), 7);
        assert!(figures.iter().all(|figure| figure.value.is_finite() && figure.value > 0.0), "{figures:?}");
    }
}

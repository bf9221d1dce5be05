//! Translation tables: map, unmap, look up, with no device attached, so that what is measured is the tables.

use smmuv3::arch::{Prot, Stage};
use smmuv3::platform::{Iova, PhysAddr};
use smmuv3::{Geometry, Iommu, PagingDomain};
use std::hint::black_box;

use crate::host::Host;
use crate::instructions::Operation;

const RW: Prot = Prot::READ.union(Prot::WRITE);
const PAGE: u64 = 4096;
const IOVA: u64 = 0x1_4020_1000;

pub(crate) const OPERATIONS: &[Operation] = &[
    Operation { part: "table", name: "map and unmap of a page", at_most: 320.0, run: map_and_unmap },
    Operation { part: "table", name: "iova_to_phys", at_most: 120.0, run: look_up },
];

/// A domain with tables for [`IOVA`], where a neighbour is mapped.
fn warm_domain() -> PagingDomain<Host> {
    let iommu = Iommu::new(Host::new(64)).expect("memory");
    let domain = iommu.paging_domain(Stage::S1, Geometry::default()).expect("a possible geometry");
    domain.map(Iova(IOVA + PAGE), PhysAddr(0x5000), PAGE, RW).expect("nothing is mapped");
    domain
}

fn map_and_unmap(calls: u32) {
    let domain = warm_domain();
    // A page that was not unmapped could not be mapped again.
    let mut done = true;
    for _ in 0..calls {
        let iova = black_box(Iova(IOVA));
        done &= domain.map(iova, PhysAddr(0x7000), PAGE, RW).is_ok();
        done &= domain.unmap(iova, PAGE).is_ok();
    }
    assert!(done);
}

fn look_up(calls: u32) {
    let domain = warm_domain();
    let mut found = true;
    for _ in 0..calls {
        found &= domain.iova_to_phys(black_box(Iova(IOVA + PAGE + 4))) == Some(PhysAddr(0x5004));
    }
    assert!(found);
}

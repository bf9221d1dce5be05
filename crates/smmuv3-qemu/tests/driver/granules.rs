//! Every granule that the SMMU has, with pages and with blocks.

use smmuv3::arch::{Granule, Stage};
use smmuv3::platform::{Iova, PhysAddr};
use smmuv3::{Geometry, UnmapError};
use smmuv3_qemu::Qemu;

use crate::support::{LEN, RW, Rig, TestResult};

/// Where a page is mapped, and where a block: both multiples of every block size. With 16 KiB, a stage 2 table of 39
/// bits begins with 8 tables of 64 GiB each; QEMU takes all of them for the first, so both addresses are in that.
const PAGE_AT: Iova = Iova(0x4_0000_0000);
const BLOCK_AT: Iova = Iova(0x6_0000_0000);
/// Where guest RAM begins: a multiple of every block size too.
const RAM: PhysAddr = PhysAddr(0x4000_0000);

pub(crate) fn pages_and_blocks_of_stage_1(qemu: &Qemu) -> TestResult {
    pages_and_blocks(qemu, Stage::S1)
}

pub(crate) fn pages_and_blocks_of_stage_2(qemu: &Qemu) -> TestResult {
    pages_and_blocks(qemu, Stage::S2)
}

fn pages_and_blocks(qemu: &Qemu, stage: Stage) -> TestResult {
    let rig = Rig::new(qemu, 1)?;
    let mut dma = rig.dma(0)?;
    let features = *rig.smmus[0].features();
    assert!(features.granule(Granule::K4));
    for granule in [Granule::K4, Granule::K16, Granule::K64] {
        if !features.granule(granule) {
            eprintln!("{stage}: this QEMU's SMMU has no granule of {granule}");
            continue;
        }
        let size = granule.size();
        // What an entry of the last level but one maps: 2, 32 or 512 MiB.
        let block = size * (size / 8);
        let domain = rig.iommu.paging_domain(stage, Geometry { granule, ..Geometry::default() })?;
        dma.device.attach(&domain)?;
        let (source, target) = (rig.page(size, 1)?, rig.page(size, 2)?);
        domain.map(PAGE_AT, source, size, RW)?;
        // The block covers the target; how much RAM is there does not matter.
        let under = PhysAddr(RAM.0 + (target.0 - RAM.0) / block * block);
        domain.map(BLOCK_AT, under, block, RW)?;
        let part = domain.unmap(BLOCK_AT, size);
        assert!(matches!(part, Err(UnmapError::PartOfBlock { size, .. }) if size == block), "{granule}: {part:?}");

        let target_at = Iova(BLOCK_AT.0 + (target.0 - under.0));
        dma.edu.copy_in(PAGE_AT, LEN, 0)?;
        dma.edu.copy_out(target_at, LEN, 0)?;
        rig.expect(target, 1);
        rig.expect_quiet();

        rig.fill(target, 3)?;
        assert_eq!(domain.unmap(BLOCK_AT, block)?.bytes, block);
        dma.edu.copy_out(target_at, LEN, 0)?;
        rig.expect(target, 3);
        rig.expect_refused(&dma, target_at, stage, target_at.0);
        assert_eq!(domain.unmap(PAGE_AT, size)?.bytes, size);
        rig.fill(source, 4)?;
        dma.edu.copy_out(PAGE_AT, LEN, 0)?;
        rig.expect(source, 4);
        rig.expect_refused(&dma, PAGE_AT, stage, PAGE_AT.0);
    }
    dma.device.detach()?;
    rig.expect_quiet();
    Ok(())
}

//! NVMe with the SMMU disabled.

use smmuv3::platform::{Iova, PhysAddr};
use smmuv3_qemu::{Buffer, Nvme, NvmeError, NvmeMemory, Qemu};

use crate::support::{PAGE, TestResult, bypass, pages, pattern, read, set_abort, start, start_nvme};

pub(crate) fn keeps_a_mebibyte(qemu: &Qemu) -> TestResult {
    let machine = start(qemu)?;
    let platform = machine.platform();
    let mut nvme = start_nvme(&machine)?;
    let info = nvme.info().clone();
    assert_eq!(info.serial, "smmuv3-qemu");
    assert_eq!(info.blocks * info.block_size as u64, 64 << 20);
    assert_eq!(nvme.stream_id(), 0x80);

    let data = pattern(3, 1 << 20);
    let pages = pages(platform, data.len() / PAGE)?;
    let iovas: Vec<Iova> = pages.iter().copied().map(bypass).collect();
    for (page, bytes) in pages.iter().zip(data.chunks(PAGE)) {
        platform.write_bytes(*page, bytes)?;
    }
    let start = 1000;
    let chunks = || {
        let blocks_per_page = PAGE / info.block_size;
        let chunk = info.max_transfer / PAGE;
        iovas.chunks(chunk).enumerate().map(move |(index, pages)| {
            let lba = start + (index * chunk * blocks_per_page) as u64;
            (lba, (pages.len() * blocks_per_page) as u32, pages)
        })
    };
    for (lba, blocks, pages) in chunks() {
        nvme.write(lba, blocks, pages)?;
    }
    if info.volatile_write_cache {
        nvme.flush()?;
    }
    for page in &pages {
        platform.write_bytes(*page, &[0xee; PAGE])?;
    }
    for (lba, blocks, pages) in chunks() {
        nvme.read(lba, blocks, pages)?;
    }
    for (index, (page, bytes)) in pages.iter().zip(data.chunks(PAGE)).enumerate() {
        assert!(read(platform, *page, PAGE)? == bytes, "page {index}");
    }
    nvme.stop()?;
    Ok(())
}

pub(crate) fn takes_one_page_two_pages_and_a_list(qemu: &Qemu) -> TestResult {
    let machine = start(qemu)?;
    let platform = machine.platform();
    let mut nvme = start_nvme(&machine)?;
    let size = nvme.info().block_size;
    let pages = pages(platform, 3)?;
    let iovas: Vec<Iova> = pages.iter().copied().map(bypass).collect();
    // Whole pages, and one block less or more.
    for blocks in [1, 7, 8, 9, 16, 17, 24] {
        let data = pattern(blocks as u64, blocks * size);
        let used = (blocks * size).div_ceil(PAGE);
        for (page, bytes) in pages.iter().zip(data.chunks(PAGE)) {
            platform.write_bytes(*page, bytes)?;
        }
        nvme.write(5, blocks as u32, &iovas[..used])?;
        for page in &pages {
            platform.write_bytes(*page, &[0; PAGE])?;
        }
        nvme.read(5, blocks as u32, &iovas[..used])?;
        let mut all = Vec::new();
        for page in &pages {
            all.extend(read(platform, *page, PAGE)?);
        }
        let mut expected = data;
        expected.resize(3 * PAGE, 0);
        assert!(all == expected, "{blocks} blocks");
    }
    Ok(())
}

pub(crate) fn survives_more_commands_than_its_queue_is_long(qemu: &Qemu) -> TestResult {
    let machine = start(qemu)?;
    let platform = machine.platform();
    let mut nvme = start_nvme(&machine)?;
    let page = pages(platform, 1)?[0];
    for lba in 0..100 {
        platform.write_bytes(page, &pattern(lba, 512))?;
        nvme.write(lba, 1, &[bypass(page)])?;
    }
    for lba in 0..100 {
        nvme.read(lba, 1, &[bypass(page)])?;
        assert!(read(platform, page, 512)? == pattern(lba, 512), "block {lba}");
    }
    Ok(())
}

pub(crate) fn tells_of_bad_requests(qemu: &Qemu) -> TestResult {
    let machine = start(qemu)?;
    let platform = machine.platform();
    let mut nvme = start_nvme(&machine)?;
    let page = bypass(pages(platform, 1)?[0]);
    let NvmeError::Command { command: "Read", sct: 0, sc: 0x80 } = nvme.read(u64::MAX, 1, &[page]).unwrap_err() else {
        return Err("a block past the end is `LBA out of range`".into());
    };
    let limit = (nvme.info().max_transfer / nvme.info().block_size) as u32;
    for blocks in [0, limit + 1, u32::MAX] {
        assert!(matches!(nvme.read(0, blocks, &[page]), Err(NvmeError::Length { .. })));
    }
    for pages in [&[][..], &[page, page], &[Iova(page.0 + 8)]] {
        assert!(matches!(nvme.read(0, 8, pages), Err(NvmeError::Pages { .. })));
    }
    // None of it did any harm.
    nvme.read(0, 8, &[page])?;
    nvme.stop()?;

    // It can be started again.
    start_nvme(&machine)?.read(0, 8, &[page])?;
    let edu = &machine.functions()[1];
    let buffer = Buffer { iova: page, phys: PhysAddr(page.0), len: PAGE };
    let memory = NvmeMemory {
        admin_submission: buffer,
        admin_completion: buffer,
        io_submission: buffer,
        io_completion: buffer,
        scratch: buffer,
    };
    assert!(matches!(Nvme::start(platform, edu, memory), Err(NvmeError::NotNvme { .. })));
    let memory = NvmeMemory { scratch: Buffer { len: 64, ..buffer }, ..memory };
    assert!(matches!(
        Nvme::start(platform, machine.nvme()?, memory),
        Err(NvmeError::Memory { buffer: "the scratch page", .. })
    ));
    Ok(())
}

pub(crate) fn tells_when_the_smmu_aborts(qemu: &Qemu) -> TestResult {
    let machine = start(qemu)?;
    let platform = machine.platform();
    let mut nvme = start_nvme(&machine)?;
    let page = bypass(pages(platform, 1)?[0]);
    set_abort(&machine, true)?;
    let error = nvme.read(0, 8, &[page]).unwrap_err();
    assert!(matches!(error, NvmeError::Fatal { during: "Read" }), "{error}");
    assert!(matches!(nvme.read(0, 8, &[page]), Err(NvmeError::OutOfUse("Read"))));
    assert!(start_nvme(&machine).is_err());

    set_abort(&machine, false)?;
    start_nvme(&machine)?.read(0, 8, &[page])?;
    Ok(())
}

//! The SMMU, and devices behind a translation that is written here by hand: what the driver will find.

use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use smmuv3::platform::{Iova, Mmio, PhysAddr, Platform};
use smmuv3_qemu::{Buffer, Machine, Nvme, NvmeError, NvmeMemory, Qemu};

use crate::support::{PAGE, TestResult, bypass, nvme_memory, pages, pattern, read, start};

// Registers of the SMMU (IHI 0070 §6.3).
const IDR0: usize = 0x00;
const CR0: usize = 0x20;
const CR0ACK: usize = 0x24;
const STRTAB_BASE: usize = 0x80;
const STRTAB_BASE_CFG: usize = 0x88;
const EVENTQ_BASE: usize = 0xa0;
const EVENTQ_PROD: usize = 0x1_00a8;
const EVENTQ_CONS: usize = 0x1_00ac;

/// An event that says that an address is not mapped (§7.3).
const F_TRANSLATION: u8 = 0x10;
const EVENT_SIZE: usize = 32;

/// RAM, 1 GiB from 0x4000_0000 on, is seen by the devices this much higher, and nothing is seen elsewhere.
const OFFSET: u64 = 0x40_0000_0000;

/// The address under which a device sees `page` behind [`translate`].
fn translated(page: PhysAddr) -> Iova {
    Iova(page.0 + OFFSET)
}

/// Enables the SMMU with one stage-2 table for all devices. Returns its event queue, of 256 events.
fn translate(machine: &Machine) -> Result<PhysAddr, Failed> {
    let platform = machine.platform();
    let alloc = |size| platform.dma_alloc(size, size).ok_or("no DMA memory");
    let write = |addr, word: u64| platform.write_bytes(PhysAddr(addr), &word.to_le_bytes());

    // Level 1 of an address space of 39 bits: one block of 1 GiB, normal memory, readable and writable.
    let root = alloc(PAGE)?;
    platform.write_bytes(root, &[0; PAGE])?;
    let block = 0x4000_0000 | 1 << 10 | 0b11 << 8 | 0b11 << 6 | 0b1111 << 2 | 0b01;
    write(root.0 + ((0x4000_0000 + OFFSET) >> 30) * 8, block)?;

    // Stage 2 (§5.2): T0SZ 25, from level 1, 4 KiB granule, 44 bits, AArch64, faults are recorded; VMID 1.
    let vmid = 1;
    let stage2 = 25 | 0b01 << 6 | 0b01 << 8 | 0b01 << 10 | 0b11 << 12 | 4 << 16 | 1 << 19 | 1 << 26;
    let entry = [1 | 0b110 << 1, 1 << 44, stage2 << 32 | vmid, root.0];
    let log2_entries = 8;
    let table = alloc(64 << log2_entries)?;
    for stream_id in 0..1 << log2_entries {
        for index in 0..8 {
            let word = entry.get(index).copied().unwrap_or(0);
            write(table.0 + stream_id * 64 + index as u64 * 8, word)?;
        }
    }

    let events = alloc(256 * EVENT_SIZE)?;
    let smmu = machine.smmu();
    smmu.try_write64(STRTAB_BASE, table.0)?;
    smmu.try_write32(STRTAB_BASE_CFG, log2_entries)?;
    smmu.try_write64(EVENTQ_BASE, events.0 | 8)?;
    let enabled = 1 << 2 | 1;
    smmu.try_write32(CR0, enabled)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while smmu.try_read32(CR0ACK)? != enabled {
        if Instant::now() >= deadline {
            return Err("the SMMU does not acknowledge CR0".into());
        }
    }
    Ok(events)
}

/// The first event since the last call: its type, StreamID and input address. The others are thrown away: one
/// refused transfer makes many.
fn first_event(machine: &Machine, queue: PhysAddr) -> Result<Option<(u8, u32, u64)>, Failed> {
    let smmu = machine.smmu();
    let produced = smmu.try_read32(EVENTQ_PROD)?;
    let consumed = smmu.try_read32(EVENTQ_CONS)?;
    if produced == consumed {
        return Ok(None);
    }
    let place = PhysAddr(queue.0 + u64::from(consumed % 256) * EVENT_SIZE as u64);
    let event = read(machine.platform(), place, EVENT_SIZE)?;
    smmu.try_write32(EVENTQ_CONS, produced)?;
    let stream_id = u32::from_le_bytes(event[4..8].try_into()?);
    let address = u64::from_le_bytes(event[16..24].try_into()?);
    Ok(Some((event[0], stream_id, address)))
}

pub(crate) fn has_both_stages(qemu: &Qemu) -> TestResult {
    let machine = start(qemu)?;
    let smmu = machine.smmu();
    let idr0 = smmu.read32(IDR0);
    let (stage2, stage1, coherent) = (idr0 & 1, idr0 >> 1 & 1, idr0 >> 4 & 1);
    assert_eq!((stage1, stage2, coherent), (1, 1, 1), "IDR0 {idr0:#x}");
    assert_eq!(smmu.read32(CR0), 0, "it starts disabled");
    // A 64-bit register, in one access.
    smmu.write64(STRTAB_BASE, 0x4123_4560_0000);
    assert_eq!(smmu.read64(STRTAB_BASE), 0x4123_4560_0000);
    assert!(machine.error().is_none());
    Ok(())
}

pub(crate) fn translates_for_edu(qemu: &Qemu) -> TestResult {
    let machine = start(qemu)?;
    let platform = machine.platform();
    let events = translate(&machine)?;
    let pages = pages(platform, 2)?;
    for index in 0..2 {
        let data = pattern(index.into(), PAGE);
        platform.write_bytes(pages[0], &data)?;
        let mut edu = machine.edu(index)?;
        edu.copy_in(translated(pages[0]), PAGE, 0)?;
        edu.copy_out(translated(pages[1]), PAGE, 0)?;
        assert!(read(platform, pages[1], PAGE)? == data, "edu {index}");
    }
    assert_eq!(first_event(&machine, events)?, None);
    Ok(())
}

pub(crate) fn translates_for_nvme(qemu: &Qemu) -> TestResult {
    let machine = start(qemu)?;
    let platform = machine.platform();
    let events = translate(&machine)?;
    let memory = nvme_memory(platform, translated)?;
    let mut nvme = Nvme::start(platform, machine.nvme()?, memory)?;
    let pages = pages(platform, 4)?;
    let iovas: Vec<Iova> = pages.iter().copied().map(translated).collect();
    for (index, page) in pages.iter().enumerate() {
        platform.write_bytes(*page, &pattern(index as u64, PAGE))?;
    }
    let blocks = (4 * PAGE / nvme.info().block_size) as u32;
    nvme.write(0, blocks, &iovas)?;
    // Read back in the other order.
    let backwards: Vec<Iova> = iovas.iter().rev().copied().collect();
    nvme.read(0, blocks, &backwards)?;
    for (index, page) in pages.iter().rev().enumerate() {
        assert!(read(platform, *page, PAGE)? == pattern(index as u64, PAGE));
    }
    assert_eq!(first_event(&machine, events)?, None);
    Ok(())
}

pub(crate) fn keeps_edu_out_and_tells(qemu: &Qemu) -> TestResult {
    let machine = start(qemu)?;
    let platform = machine.platform();
    let events = translate(&machine)?;
    let mut edu = machine.edu(1)?;
    let pages = pages(platform, 2)?;
    platform.write_bytes(pages[0], &pattern(1, PAGE))?;
    platform.write_bytes(pages[1], &pattern(2, PAGE))?;
    edu.copy_in(translated(pages[0]), PAGE, 0)?;
    // The page is in RAM, but not at this address.
    edu.copy_out(bypass(pages[1]), 64, 0)?;
    assert!(read(platform, pages[1], PAGE)? == pattern(2, PAGE));
    assert_eq!(first_event(&machine, events)?, Some((F_TRANSLATION, edu.stream_id(), pages[1].0)));
    Ok(())
}

pub(crate) fn keeps_nvme_out_and_tells(qemu: &Qemu) -> TestResult {
    let machine = start(qemu)?;
    let platform = machine.platform();
    let events = translate(&machine)?;
    let memory = nvme_memory(platform, translated)?;
    let mut nvme = Nvme::start(platform, machine.nvme()?, memory)?;
    let page = pages(platform, 1)?[0];
    platform.write_bytes(page, &pattern(1, PAGE))?;
    let blocks = (PAGE / nvme.info().block_size) as u32;
    nvme.write(0, blocks, &[translated(page)])?;

    platform.write_bytes(page, &pattern(2, PAGE))?;
    let refused = |result| match result {
        // QEMU 10.0 does not notice.
        Ok(()) => Ok(()),
        Err(NvmeError::Command { sct: 0, sc: 4, .. }) => Ok(()),
        Err(other) => Err(other),
    };
    refused(nvme.read(0, blocks, &[bypass(page)]))?;
    assert!(read(platform, page, PAGE)? == pattern(2, PAGE));
    let expected = Some((F_TRANSLATION, nvme.stream_id(), page.0));
    assert_eq!(first_event(&machine, events)?, expected);

    refused(nvme.write(0, blocks, &[bypass(page)]))?;
    assert_eq!(first_event(&machine, events)?, expected);
    nvme.read(0, blocks, &[translated(page)])?;
    assert!(read(platform, page, PAGE)? != pattern(2, PAGE));
    Ok(())
}

pub(crate) fn that_refuses_nvme_its_own_memory_is_noticed(qemu: &Qemu) -> TestResult {
    let machine = start(qemu)?;
    let platform = machine.platform();
    translate(&machine)?;
    let good = nvme_memory(platform, translated)?;
    let hide = |buffer: Buffer| Buffer { iova: bypass(buffer.phys), ..buffer };
    let start = |memory| Nvme::start(platform, machine.nvme().unwrap(), memory);

    let memory = NvmeMemory { admin_submission: hide(good.admin_submission), ..good };
    let error = start(memory).unwrap_err();
    assert!(matches!(error, NvmeError::Fatal { .. }), "{error}");

    let memory = NvmeMemory { admin_completion: hide(good.admin_completion), ..good };
    let error = start(memory).unwrap_err();
    assert!(matches!(error, NvmeError::Fatal { .. }), "{error}");

    let memory = NvmeMemory { scratch: hide(good.scratch), ..good };
    let error = start(memory).unwrap_err();
    let no_data = matches!(error, NvmeError::NoData { .. });
    let told = matches!(error, NvmeError::Command { sct: 0, sc: 4, .. });
    assert!(no_data || told, "{error}");

    let memory = NvmeMemory { io_submission: hide(good.io_submission), ..good };
    let error = start(memory)?.flush().unwrap_err();
    assert!(matches!(error, NvmeError::Fatal { .. }), "{error}");

    // None of it did lasting harm.
    start(good)?.flush()?;
    Ok(())
}

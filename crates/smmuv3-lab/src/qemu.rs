//! The quick start on a real QEMU: an NVMe drive and an `edu` behind QEMU's SMMUv3.
//!
//! QEMU has no oracle, so pages that were unmapped are filled with a pattern before the device is made to try again: a page that
//! changes, or a pattern that turns up on the drive, is stale DMA.

use smmuv3::arch::{Prot, Stage};
use smmuv3::platform::{Iova, PhysAddr, Platform};
use smmuv3::{DeviceConfig, Geometry, Iommu, PagingDomain, SmmuOptions};
use smmuv3_qemu::{Buffer, Machine, MachineConfig, Nvme, NvmeError, NvmeMemory, Qemu, QemuPlatform};

use crate::report::Report;
use crate::session::{PAGE, Result, Session, pattern};
use crate::tap::{Tap, Tapped};

const RW: Prot = Prot::READ.union(Prot::WRITE);
/// Pages in one NVMe command.
const CHUNK: usize = 32;
/// Commands that write, and as many that read back.
const CHUNKS: u64 = 40;
/// Where buffers are mapped, and where the NVMe's own pages are.
const BUFFERS: Iova = Iova(0x100_0000);
const NVME_PAGES: Iova = Iova(0x10_0000);
/// QEMU records an event for every 4 bytes of a refused access: a page is over a thousand.
const EVENTQ_LOG2: u8 = 12;

type Domain = PagingDomain<Tapped>;

pub(crate) fn run(qemu: &Qemu, seed: u64) -> Result<Report> {
    let machine = Machine::start(qemu, MachineConfig::default())?;
    println!("QEMU {} at {}", qemu.version(), qemu.path().display());
    let ram = machine.platform().clone();
    let (tap, commands) = Tap::new(machine.smmu(), ram.clone());
    let iommu = Iommu::new(Tapped(ram.clone()))?;
    let smmu = iommu.add_smmu(tap, SmmuOptions { eventq_log2: EVENTQ_LOG2, ..SmmuOptions::default() })?;
    println!("{}: {:?}", smmu.id(), smmu.features());
    let mut session = Session::new(smmu.clone(), "qemu", seed, 2);

    let nvme_function = machine.nvme()?.clone();
    let mut edu = machine.edu(0)?;
    let (nvme_sid, edu_sid) = (nvme_function.stream_id(), edu.stream_id());
    let nvme_device = iommu.add_device(&smmu, DeviceConfig::stream(nvme_sid))?;
    let edu_device = iommu.add_device(&smmu, DeviceConfig::stream(edu_sid))?;
    let nvme_domain = iommu.paging_domain(Stage::S1, Geometry::default())?;
    let edu_domain = iommu.paging_domain(Stage::S2, Geometry::default())?;
    nvme_device.attach(&nvme_domain)?;
    edu_device.attach(&edu_domain)?;
    println!("attached NVMe, StreamID {nvme_sid:#x}, to {nvme_domain:?}");
    println!("attached edu, StreamID {edu_sid:#x}, to {edu_domain:?}");

    let memory = nvme_memory(&ram, &nvme_domain)?;
    let list = memory.scratch;
    let mut nvme = Nvme::start(&ram, &nvme_function, memory)?;
    println!("NVMe {:?}: {} blocks of {} bytes", nvme.info().model, nvme.info().blocks, nvme.info().block_size);
    let pages = (0..CHUNK).map(|_| alloc(&ram)).collect::<Result<Vec<_>>>()?;

    // A pattern to the drive, and back into pages that were filled with something else.
    for chunk in 0..CHUNKS {
        fill(&ram, &pages, seed, chunk)?;
        with_mapped(&mut session, &nvme_domain, &pages, |_| {
            Ok(nvme.write(lba(&nvme, chunk), blocks(&nvme), &iovas())?)
        })?;
    }
    for chunk in 0..CHUNKS {
        fill(&ram, &pages, !seed, chunk)?;
        with_mapped(&mut session, &nvme_domain, &pages, |_| {
            Ok(nvme.read(lba(&nvme, chunk), blocks(&nvme), &iovas())?)
        })?;
        session.report.dma_checked += compare(&mut session, &ram, &pages, seed, chunk, "read back from NVMe")?;
    }
    println!(
        "NVMe: {} pages written, read back and compared, each through a mapping of its own",
        CHUNKS * CHUNK as u64
    );

    nvme_after_unmap(&mut session, &ram, &nvme_domain, &mut nvme, &pages, list, seed)?;
    edu_both_ways(&mut session, &ram, &edu_domain, &mut edu, &pages, seed)?;

    nvme.stop()?;
    nvme_device.detach()?;
    edu_device.detach()?;
    println!("detached both: {nvme_domain:?}, {edu_domain:?}");
    fill(&ram, &pages[..1], seed, 0)?;
    edu.copy_out(BUFFERS, 64, 0)?;
    session.report.stale_dma += changed(&ram, &pages[..1], seed, 0)?;

    let mut report = session.finish();
    report.commands = commands.counts();
    report.syncs = report.commands.get("SYNC").copied().unwrap_or(0);
    if let Some(error) = machine.error() {
        return Err(error.into());
    }
    Ok(report.checked_something())
}

/// The NVMe command that worked, once more after unmap: it must fail, and the SMMU must say why.
fn nvme_after_unmap(
    session: &mut Session<Tapped>,
    ram: &QemuPlatform,
    domain: &Domain,
    nvme: &mut Nvme,
    pages: &[PhysAddr],
    list: Buffer,
    seed: u64,
) -> Result<()> {
    let (sid, blocks, lba) = (nvme.stream_id(), blocks(nvme), lba(nvme, 0));
    with_mapped(session, domain, pages, |_| Ok(nvme.read(lba, blocks, &iovas())?))?;
    session.unmap(domain, list.iova, 1)?;
    fill(ram, pages, !seed, 1)?;
    // NVMe notices that it cannot read the list of its pages.
    let event = session.provoke(&[(sid, list.iova)], || match nvme.read(lba, blocks, &iovas()) {
        Err(NvmeError::Command { .. }) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => Err("an NVMe command worked although its pages are unmapped".into()),
    })?;
    if let Some(event) = event {
        println!("after unmap, the same NVMe command fails: {event}");
    }
    session.report.stale_dma += changed(ram, pages, !seed, 1)?;

    // With the list back, QEMU's NVMe does not notice that its data was refused; the SMMU does.
    domain.map(list.iova, list.phys, PAGE as u64, RW)?;
    let one = blocks / CHUNK as u32;
    for page in 0..4 {
        let target = iovas()[page];
        session.provoke(&[(sid, target)], || Ok(nvme.read(lba, one, &[target])?))?;
    }
    session.report.stale_dma += changed(ram, pages, !seed, 1)?;
    Ok(())
}

fn edu_both_ways(
    session: &mut Session<Tapped>,
    ram: &QemuPlatform,
    domain: &Domain,
    edu: &mut smmuv3_qemu::Edu,
    pages: &[PhysAddr],
    seed: u64,
) -> Result<()> {
    let two = &pages[..2];
    let (from, to) = (iovas()[0], iovas()[1]);
    for round in 0..2 {
        fill(ram, two, seed, round)?;
        let sent = pattern(seed, round * CHUNK as u64, PAGE);
        domain.map(from, two[0], PAGE as u64, Prot::READ)?;
        domain.map(to, two[1], PAGE as u64, RW)?;
        edu.copy_in(from, PAGE, 0)?;
        edu.copy_out(to, PAGE, 0)?;
        let mut received = vec![0; PAGE];
        ram.read_bytes(two[1], &mut received)?;
        if received != sent {
            session.surprise("something else came back from edu than was sent".into());
        }
        session.report.dma_checked += 2;
        session.unmap(domain, from, 2)?;
    }
    // The device moves its data 100 ms after it was told to: the page is unmapped under its hands.
    fill(ram, two, seed, 7)?;
    domain.map(from, two[0], PAGE as u64, RW)?;
    edu.start_copy_out(from, 64, 0)?;
    session.unmap(domain, from, 1)?;
    let sid = edu.stream_id();
    let event = session.provoke(&[(sid, from)], || Ok(edu.wait()?))?;
    if let Some(event) = event {
        println!("unmapped while edu was at it: {event}");
    }
    session.report.stale_dma += changed(ram, two, seed, 7)?;
    println!("edu: both ways, and kept out after unmap");
    Ok(())
}

/// Maps the pages from `BUFFERS` on, runs `action`, unmaps them.
fn with_mapped(
    session: &mut Session<Tapped>,
    domain: &Domain,
    pages: &[PhysAddr],
    action: impl FnOnce(&mut Session<Tapped>) -> Result<()>,
) -> Result<()> {
    for (iova, page) in iovas().into_iter().zip(pages) {
        domain.map(iova, *page, PAGE as u64, RW)?;
    }
    action(session)?;
    session.unmap(domain, BUFFERS, pages.len())
}

fn nvme_memory(ram: &QemuPlatform, domain: &Domain) -> Result<NvmeMemory> {
    let buffer = |index: u64| -> Result<Buffer> {
        let phys = alloc(ram)?;
        let iova = Iova(NVME_PAGES.0 + index * PAGE as u64);
        domain.map(iova, phys, PAGE as u64, RW)?;
        Ok(Buffer { iova, phys, len: PAGE })
    };
    Ok(NvmeMemory {
        admin_submission: buffer(0)?,
        admin_completion: buffer(1)?,
        io_submission: buffer(2)?,
        io_completion: buffer(3)?,
        scratch: buffer(4)?,
    })
}

fn alloc(ram: &QemuPlatform) -> Result<PhysAddr> {
    ram.dma_alloc(PAGE, PAGE).ok_or_else(|| "out of guest memory".into())
}

fn iovas() -> Vec<Iova> {
    (0..CHUNK as u64).map(|page| Iova(BUFFERS.0 + page * PAGE as u64)).collect()
}

fn blocks(nvme: &Nvme) -> u32 {
    (CHUNK * PAGE / nvme.info().block_size) as u32
}

fn lba(nvme: &Nvme, chunk: u64) -> u64 {
    chunk * u64::from(blocks(nvme))
}

fn fill(ram: &QemuPlatform, pages: &[PhysAddr], seed: u64, chunk: u64) -> Result<()> {
    for (page, number) in pages.iter().zip(chunk * CHUNK as u64..) {
        ram.write_bytes(*page, &pattern(seed, number, PAGE))?;
    }
    Ok(())
}

/// Pages that do not contain what [`fill`] put there.
fn changed(ram: &QemuPlatform, pages: &[PhysAddr], seed: u64, chunk: u64) -> Result<u64> {
    let mut count = 0;
    for (page, number) in pages.iter().zip(chunk * CHUNK as u64..) {
        let mut bytes = vec![0; PAGE];
        ram.read_bytes(*page, &mut bytes)?;
        count += u64::from(bytes != pattern(seed, number, PAGE));
    }
    Ok(count)
}

/// Compares pages that a device brought with what they should be. Returns how many were compared.
fn compare(
    session: &mut Session<Tapped>,
    ram: &QemuPlatform,
    pages: &[PhysAddr],
    seed: u64,
    chunk: u64,
    what: &str,
) -> Result<u64> {
    let wrong = changed(ram, pages, seed, chunk)?;
    if wrong > 0 {
        session.surprise(format!("{wrong} pages of chunk {chunk} are wrong: {what}"));
    }
    Ok(pages.len() as u64)
}

//! The quick start on the software model, whose oracle knows every page that is nobody's any more.

use smmuv3::arch::{Prot, Stage};
use smmuv3::platform::Iova;
use smmuv3::{DeviceConfig, Geometry, Iommu, PagingDomain, SmmuOptions};
use smmuv3_model::{Device, Model, ModelConfig, ModelPlatform};

use crate::report::Report;
use crate::session::{PAGE, Result, Session, pattern};

const RW: Prot = Prot::READ.union(Prot::WRITE);
/// Rounds of map, DMA both ways, unmap, DMA that faults; for each device.
const ROUNDS: u64 = 1000;

pub(crate) fn run(seed: u64) -> Result<Report> {
    let model = Model::new(ModelConfig { seed, ..ModelConfig::default() });
    let iommu = Iommu::new(model.platform())?;
    let smmu = iommu.add_smmu(model.mmio(0), SmmuOptions::default())?;
    let features = *smmu.features();
    println!(
        "{}: stage 1 {}, stage 2 {}, {} StreamID bits, {} of output address",
        smmu.id(),
        features.stage1,
        features.stage2,
        features.sid_bits,
        features.oas
    );
    let mut session = Session::new(smmu.clone(), "model", seed, 2);

    let nic = iommu.add_device(&smmu, DeviceConfig::stream(0x18))?;
    let disk = iommu.add_device(&smmu, DeviceConfig::stream(0x20))?;
    let nic_domain = iommu.paging_domain(Stage::S1, Geometry::default())?;
    let disk_domain = iommu.paging_domain(Stage::S2, Geometry::default())?;
    nic.attach(&nic_domain)?;
    disk.attach(&disk_domain)?;
    println!("attached StreamID 0x18 to {nic_domain:?}");
    println!("attached StreamID 0x20 to {disk_domain:?}");

    for (device, domain) in [(model.device(0, 0x18), &nic_domain), (model.device(0, 0x20), &disk_domain)] {
        let sid = device.sid();
        for round in 0..ROUNDS {
            one_round(&mut session, &model, &device, domain, round, round == 0)?;
        }
        println!("StreamID {sid:#x}: {ROUNDS} rounds of map, read, write, unmap, fault");
    }

    nic.detach()?;
    disk.detach()?;
    println!("detached both: {nic_domain:?}, {disk_domain:?}");
    for sid in [0x18, 0x20] {
        if model.device(0, sid).write(Iova(0x1000), &[1]).is_ok() {
            session.surprise(format!("StreamID {sid:#x} writes although it is detached"));
        }
    }
    drop((nic, disk));

    let mut report = session.finish();
    let seen = model.report();
    report.dma_checked = seen.dma_checked;
    report.stale_dma = seen.stale_dma + seen.stale_walks;
    report.commands = seen.commands.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    report.syncs = seen.syncs;
    report.atc_pages_invalidated = seen.atc_pages;
    report.surprises.extend(seen.violations);
    report.surprises.extend(seen.histories.iter().map(|case| case.to_string()));
    Ok(report.checked_something())
}

/// Maps a fresh page, lets the device read and write it, unmaps it, gives it away, and lets the device try again.
fn one_round(
    session: &mut Session<ModelPlatform>,
    model: &Model,
    device: &Device,
    domain: &PagingDomain<ModelPlatform>,
    round: u64,
    show: bool,
) -> Result<()> {
    let data = model.alloc_data(1).ok_or("the model is out of pages")?;
    // IOVAs come back after 64 rounds: a translation that stayed behind would be used.
    let iova = Iova(0x10_0000 + (round % 64) * PAGE as u64);
    let seed = session.report.seed;
    let (sent, received) = (pattern(seed, 2 * round, PAGE), pattern(seed, 2 * round + 1, PAGE));

    domain.map(iova, data.addr(), PAGE as u64, RW)?;
    model.write_bytes(data.addr(), &sent);
    let mut buffer = vec![0; PAGE];
    device.read(iova, &mut buffer)?;
    if buffer != sent {
        session.surprise(format!("StreamID {:#x} read something else at {iova} than was sent", device.sid()));
    }
    device.write(iova, &received)?;
    model.read_bytes(data.addr(), &mut buffer);
    if buffer != received {
        session.surprise(format!("something else arrived at {iova} than StreamID {:#x} wrote", device.sid()));
    }

    session.unmap(domain, iova, 1)?;
    model.free_data(data);
    let event = session.provoke(&[(device.sid(), iova)], || {
        // The access is aborted, or the oracle has seen it.
        let _ = device.write(iova, &received);
        Ok(())
    })?;
    if let (true, Some(event)) = (show, event) {
        println!("after unmap: {event}");
    }
    Ok(())
}

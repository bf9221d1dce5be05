//! A port in small, on a real QEMU: the machine is as its device tree says, and DMA has the StreamIDs that follow from the bridges above
//! the device.

use libtest_mimic::Failed;
use smmuv3::arch::{Event, Prot, Stage};
use smmuv3::platform::{Iova, PhysAddr, Platform};
use smmuv3::{DeviceConfig, Geometry, Iommu, SmmuOptions};
use smmuv3_discovery::dt::{DeviceTree, HostBridge};
use smmuv3_discovery::pci::{Bridge, BridgeKind, Rid, device_streams};
use smmuv3_qemu::{Edu, Function, Machine, MachineConfig, Qemu, QemuPlatform};

use crate::harness::TestResult;

/// An edu behind each kind of bridge that QEMU has.
const BRIDGES: &str = "-device pcie-root-port,id=root-port,bus=pcie.0,addr=0x12,chassis=1 \
    -device pcie-pci-bridge,id=outer,bus=root-port \
    -device edu,bus=outer,addr=1,dma_mask=0xffffffffffffffff \
    -device pci-bridge,id=inner,bus=outer,addr=2,chassis_nr=2 \
    -device edu,bus=inner,addr=3,dma_mask=0xffffffffffffffff \
    -device i82801b11-bridge,id=hidden,bus=pcie.0,addr=0x13 \
    -device edu,bus=hidden,addr=4,dma_mask=0xffffffffffffffff";

/// Where QEMU puts the device tree: at the start of RAM.
const TREE: PhysAddr = PhysAddr(0x4000_0000);
const TREE_SIZE: usize = 1 << 20;
const EDU: (u16, u16) = (0x1234, 0x11e8);
const PAGE: u64 = 0x1000;
const LEN: usize = 64;

pub(crate) fn dma_has_the_streams_that_follow_from_the_bridges(qemu: &Qemu) -> TestResult {
    let more_arguments = BRIDGES.split_whitespace().map(str::to_owned).collect();
    let machine = Machine::start(qemu, MachineConfig { edus: 1, more_arguments, ..MachineConfig::default() })?;
    let platform = machine.platform();
    let mut bytes = vec![0; TREE_SIZE];
    platform.read_bytes(TREE, &mut bytes)?;
    let tree = DeviceTree::new(&bytes)?;
    let host = tree.host_bridges().next().ok_or("no host bridge")?;
    let (ecam, _) = host.ecam()?.ok_or("no ECAM")?;

    let description = tree.smmus().next().ok_or("no SMMU")??;
    let iommu = Iommu::new(platform.clone())?;
    let smmu = iommu.add_smmu(platform.registers(description.base), SmmuOptions::default())?;

    let edus: Vec<&Function> =
        machine.functions().iter().filter(|function| (function.vendor, function.device) == EDU).collect();
    let mut aliased = 0;
    for (seed, function) in (1..).zip(&edus) {
        let rid = Rid(function.bdf.requester_id());
        let ids = streams(platform, &host, ecam, machine.functions(), rid)?;
        let config = ids[1..].iter().fold(DeviceConfig::stream(ids[0]), |config, id| config.and_stream(*id));
        let device = iommu.add_device(&smmu, config)?;
        let domain = iommu.paging_domain(Stage::S1, Geometry::default())?;
        device.attach(&domain)?;
        let page = platform.dma_alloc(PAGE as usize, PAGE as usize).ok_or("no DMA memory")?;
        platform.write_bytes(page, &[seed; LEN])?;
        let iova = Iova(0x10_0000);
        domain.map(iova, page, PAGE, Prot::READ | Prot::WRITE)?;

        let mut edu = Edu::new(platform, function)?;
        edu.copy_in(iova, LEN, 0)?;
        edu.copy_out(Iova(iova.0 + 0x800), LEN, 0)?;
        let mut copied = [0; LEN];
        platform.read_bytes(PhysAddr(page.0 + 0x800), &mut copied)?;
        assert_eq!(copied, [seed; LEN], "DMA of {rid}, streams {ids:x?}");

        // What the SMMU refuses tells which StreamID it had.
        domain.unmap(iova, PAGE)?;
        edu.copy_in(iova, LEN, 0)?;
        let mut seen = Vec::new();
        let _ = smmu.take_events(|event| match event {
            Event::FTranslation(stream, _) => seen.push(stream.sid),
            other => panic!("{other}"),
        });
        seen.dedup();
        let [seen] = seen[..] else { panic!("DMA of {rid} has the streams {seen:x?}") };
        assert!(ids.contains(&seen), "DMA of {rid} has the stream {seen:#x}, not one of {ids:x?}");
        aliased += usize::from(seen != u32::from(rid.0));
        // Another edu may share a stream.
        device.detach()?;
        drop(device);
    }
    // One on the root bus, and three behind bridges that sign for them.
    assert_eq!((edus.len(), aliased), (4, 3));
    Ok(())
}

/// The StreamIDs of `rid`, by what the configuration space says of the bridges above it.
fn streams(
    platform: &QemuPlatform,
    host: &HostBridge,
    ecam: u64,
    functions: &[Function],
    rid: Rid,
) -> Result<Vec<u32>, Failed> {
    let mut path = Vec::new();
    let mut bus = rid.bus();
    while bus != *host.buses()?.start() {
        let mut above = None;
        for function in functions {
            let config = ecam + (u64::from(function.bdf.requester_id()) << 12);
            let is_bridge = platform.qtest().read8(config + 0x0e)? & 0x7f == 1;
            if is_bridge && platform.qtest().read8(config + 0x19)? == bus {
                let kind = BridgeKind::from_capability(pcie_capability(platform, config)?).ok_or("no bridge")?;
                above = Some(Bridge { rid: Rid(function.bdf.requester_id()), kind, secondary: bus });
            }
        }
        let above: Bridge = above.ok_or("a bus without a bridge")?;
        bus = above.rid.bus();
        path.insert(0, above);
    }
    let streams = device_streams(rid, &path, |rid| host.stream_id(rid))?.ok_or("no SMMU")?;
    Ok(streams.ids.to_vec())
}

/// The PCI Express Capabilities register of the function at `config`, if it has the capability.
fn pcie_capability(platform: &QemuPlatform, config: u64) -> Result<Option<u16>, Failed> {
    let qtest = platform.qtest();
    let mut at = qtest.read8(config + 0x34)?;
    while at != 0 {
        if qtest.read8(config + u64::from(at))? == 0x10 {
            return Ok(Some(qtest.read16(config + u64::from(at) + 2)?));
        }
        at = qtest.read8(config + u64::from(at) + 1)?;
    }
    Ok(None)
}

//! The smmuv3 driver on bare metal: QEMU's `virt` machine with its SMMUs, four CPUs, and real device drivers whose every transfer is mapped and unmapped.
//!
//! It is also the worked example of a port: [`platform`] and [`lock`] are what the driver asks of a kernel, [`dma`] and [`virtio`] how device drivers come to
//! use it, [`faults`] what interrupt handlers do.

#![no_std]
#![no_main]

extern crate alloc;

mod console;
mod cpu;
mod dma;
mod faults;
mod gic;
mod lock;
mod machine;
mod memory;
mod net;
mod nvme;
mod pattern;
mod pci;
mod platform;
mod virtio;
mod work;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use aarch64_rt::entry;
use smmuv3::arch::Stage;
use smmuv3::{DeviceConfig, Geometry, Iommu, SmmuHandle, SmmuOptions};
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::DeviceFunction;
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};

use crate::dma::Space;
use crate::faults::Culprit;
use crate::machine::Machine;
use crate::memory::{PAGE, heap_bytes};
use crate::nvme::Nvme;
use crate::pci::Pci;
use crate::platform::{Registers, Virt};
use crate::virtio::{DomainHal, Translated};
use crate::work::{Blk, Work};

/// Echo requests to the gateway.
const ECHOES: u16 = 32;

entry!(main);

fn main(device_tree: u64, _: u64, _: u64, _: u64) -> ! {
    cpu::init(0);
    let tree = machine::device_tree(device_tree);
    let conduit = machine::conduit(&tree);
    console::init(machine::uart(&tree), conduit);
    memory::init(&machine::ram(&tree));
    let machine = Machine::new(&tree);
    let cpus = machine.cpus.len();
    println!("EL{}, {cpus} CPUs, {} SMMUs, PSCI by {conduit:?}", cpu::exception_level(), machine.smmus.len());
    gic::init(&machine);
    cpu::enable_interrupts();

    // The SMMUs. From here on nothing passes that is not attached.
    let platform = Virt::new(machine.ram.clone());
    let iommu = Iommu::new(platform).expect("memory");
    let smmus: Vec<_> = machine.smmus.iter().map(|node| add_smmu(&iommu, node.base)).collect();
    faults::watch(smmus.iter().cloned().zip(machine.smmus.iter().copied()).collect());

    // The devices, and a domain for each; but where there are several SMMUs, one domain over all of them.
    let mut pci = Pci::new(&machine.pci);
    let common = (smmus.len() > 1).then(|| new_space(&iommu));
    let attach = |function: DeviceFunction| {
        let space = common.clone().unwrap_or_else(|| new_space(&iommu));
        let (smmu, sid) = machine.stream(pci::requester(function)).expect("the function is behind an SMMU");
        let before = heap_bytes();
        let device = iommu.add_device(&smmus[smmu], DeviceConfig::stream(sid)).expect("a device");
        println!("PCIe {function}: StreamID {sid:#x} of SMMU {smmu}; takes {} bytes", heap_bytes() - before);
        device.attach(space.domain()).expect("an attach");
        (device, space, smmu)
    };

    let nvme = pci.functions.iter().find(|(_, info)| (info.class, info.subclass) == (1, 8)).expect("an NVMe disk").0;
    let blk = find_virtio(&pci, DeviceType::Block);
    let net = find_virtio(&pci, DeviceType::Network);
    let (nvme_device, nvme_space, nvme_smmu) = attach(nvme);
    let (_blk_device, blk_space, _) = attach(blk);
    let (_net_device, net_space, _) = attach(net);
    for function in [nvme, blk, net] {
        pci.enable_dma(function);
    }

    // Their drivers.
    let registers = pci.registers(nvme, 0);
    let nvme: &'static Nvme = Box::leak(Box::new(Nvme::new(registers, platform, &nvme_space, cpus)));
    nvme.start();
    DomainHal::<{ work::BLK }>::init(&blk_space);
    let transport = PciTransport::new::<DomainHal<{ work::BLK }>, _>(&mut pci.root, blk).expect("a virtio device");
    let blk = Blk::new(Translated(transport)).expect("a virtio disk");
    DomainHal::<{ net::NET }>::init(&net_space);
    let transport = PciTransport::new::<DomainHal<{ net::NET }>, _>(&mut pci.root, net).expect("a virtio device");
    let mut net = net::open(transport);
    println!("NVMe, virtio disk and virtio network are open");

    // The work, by all CPUs.
    let work = Work::init(nvme, blk);
    for (index, &affinity) in machine.cpus.iter().filter(|&&affinity| affinity != cpu::affinity()).enumerate() {
        cpu::start(conduit, affinity, index + 1, work::run);
    }
    net::echo(&mut net, ECHOES);
    println!("the gateway answered {ECHOES} echo requests");
    work::run();
    work.wait(cpus);

    // What must not work, and is reported by interrupt.
    let mut contents = Box::new([0; PAGE]);
    pattern::fill(0, true, 0, &mut *contents);
    // SAFETY: the SMMU's registers, which `Culprit` uses only where it says so.
    let registers = unsafe { Registers::new(machine.smmus[nvme_smmu].base) };
    let culprit = Culprit { nvme, device: &nvme_device, space: &nvme_space, registers, contents: &contents };
    culprit.use_after_unmap();
    culprit.reattach();
    culprit.lose_an_event();

    let [nvme_bytes, blk_bytes] = work.verified();
    let spaces = if common.is_some() { &[&nvme_space][..] } else { &[&nvme_space, &blk_space, &net_space] };
    let invalidations: u64 = spaces.iter().map(|space| space.invalidations()).sum();
    let unexpected = faults::unexpected();
    println!(
        "result: el={} cpus={cpus} smmus={} nvme_bytes={nvme_bytes} blk_bytes={blk_bytes} echoes={ECHOES} \
         invalidations={invalidations} unexpected={unexpected}",
        cpu::exception_level(),
        smmus.len(),
    );
    console::finish(unexpected == 0)
}

fn add_smmu(iommu: &Iommu<Virt>, base: usize) -> SmmuHandle<Virt> {
    let before = heap_bytes();
    // SAFETY: the registers of an SMMU, of which the driver is now in charge.
    let registers = unsafe { Registers::new(base) };
    let options = SmmuOptions { interrupts: true, ..SmmuOptions::default() };
    let smmu = iommu.add_smmu(registers, options).expect("an SMMU");
    println!("{} at {base:#x} takes {} bytes", smmu.id(), heap_bytes() - before);
    smmu
}

fn new_space(iommu: &Iommu<Virt>) -> Arc<Space> {
    let before = heap_bytes();
    let domain = iommu.paging_domain(Stage::S1, Geometry::default()).expect("a domain");
    println!("a domain takes {} bytes", heap_bytes() - before);
    Arc::new(Space::new(domain))
}

fn find_virtio(pci: &Pci, kind: DeviceType) -> DeviceFunction {
    let found = pci.functions.iter().find(|(_, info)| virtio_device_type(info) == Some(kind));
    found.unwrap_or_else(|| panic!("no virtio device {kind:?}")).0
}

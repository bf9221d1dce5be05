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
mod fw_cfg;
mod gic;
mod lock;
mod machine;
mod memory;
mod net;
mod nvme;
mod pattern;
mod pci;
mod platform;
mod sabotage;
mod smmus;
mod virtio;
mod work;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::AtomicU64;

use aarch64_rt::entry;
use smmuv3::arch::Stage;
use smmuv3::platform::Platform;
use smmuv3::{Device, DeviceConfig, Geometry, Iommu, SmmuHandle, SmmuOptions};
use smmuv3_discovery::Stream;
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{DeviceFunction, DeviceFunctionInfo};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};

use crate::dma::Space;
use crate::faults::{Culprit, Tally};
use crate::fw_cfg::FwCfg;
use crate::machine::Machine;
use crate::memory::heap_bytes;
use crate::nvme::Nvme;
use crate::pci::Pci;
use crate::platform::{Registers, Virt};
use crate::sabotage::Sabotage;
use crate::smmus::Smmus;
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
    sabotage::init(machine::command_line(&tree));
    memory::init(&machine::ram(&tree));
    let machine = Machine::new(&tree);
    let cpus = machine.cpus.len();
    println!("EL{}, {cpus} CPUs, PSCI by {conduit:?}", cpu::exception_level());
    gic::init(&machine);
    cpu::enable_interrupts();

    // The devices. None is a bus master yet. QEMU makes the IORT when it is read: it has the buses behind a bridge as they are numbered then.
    let platform = Virt::new(machine.ram.clone());
    let mut pci = Pci::new(&machine.pci);
    // SAFETY: the device tree has the registers there, and they are mapped.
    let fw_cfg = machine::fw_cfg(&tree).map(|base| FwCfg { registers: unsafe { Registers::new(base) }, platform });
    let iort = fw_cfg.and_then(|fw_cfg| fw_cfg.acpi_table(b"IORT")).map(|table| &*table.leak());

    // Waits for an SMMU end by themselves: nobody sends an event now.
    platform.wait_for_event();
    platform.wait_while(&AtomicU64::new(7), 7);

    // The SMMUs. From here on nothing passes that is not attached.
    let found = Smmus::new(tree.data(), iort);
    let iommu = measured(format_args!("the Iommu"), || Iommu::new(platform).expect("memory"));
    let smmus: Vec<_> = found.all.iter().map(|smmu| add_smmu(&iommu, smmu.base as usize)).collect();
    faults::watch(smmus.iter().cloned().zip(found.all.iter().map(|smmu| smmu.interrupts)).collect());

    // A domain for each device; but where there are several SMMUs, one domain over all of them.
    let common = (smmus.len() > 1).then(|| new_space(&iommu));
    let attach = |function: DeviceFunction| {
        let space = common.clone().unwrap_or_else(|| new_space(&iommu));
        let Stream { smmu, id: sid } = found.stream(pci::rid(function)).expect("the function is behind an SMMU");
        let sid = if sabotage::is(Sabotage::WrongStream) { sid ^ 1 } else { sid };
        let device = measured(format_args!("PCIe {function}, StreamID {sid:#x} of SMMU {smmu},"), || {
            let device = iommu.add_device(&smmus[smmu], DeviceConfig::stream(sid)).expect("a device");
            device.attach(space.domain()).expect("an attach");
            device
        });
        Attached { function, device, space, smmu }
    };

    // Of several NVMe controllers the first has the disk.
    let attached_nvmes: Vec<_> = find(&pci, |info| (info.class, info.subclass) == (1, 8)).map(attach).collect();
    let attached_blk = attach(find_virtio(&pci, DeviceType::Block));
    let attached_net = attach(find_virtio(&pci, DeviceType::Network));
    for attached in attached_nvmes.iter().chain([&attached_blk, &attached_net]) {
        pci.enable_dma(attached.function);
    }

    // Their drivers.
    let open_nvme = |attached: &Attached| -> &'static Nvme {
        let registers = pci.registers(attached.function, 0);
        let nvme = Box::leak(Box::new(Nvme::new(registers, platform, &attached.space, cpus)));
        nvme.start();
        nvme
    };
    let controllers: Vec<_> = attached_nvmes.iter().map(open_nvme).collect();
    DomainHal::<{ work::BLK }>::init(&attached_blk.space);
    let transport = PciTransport::new::<DomainHal<{ work::BLK }>, _>(&mut pci.root, attached_blk.function)
        .expect("a virtio device");
    let blk = Blk::new(Translated(transport)).expect("a virtio disk");
    DomainHal::<{ net::NET }>::init(&attached_net.space);
    let transport =
        PciTransport::new::<DomainHal<{ net::NET }>, _>(&mut pci.root, attached_net.function).expect("a virtio device");
    let mut net = net::open(transport);
    println!("NVMe, virtio disk and virtio network are open");

    // The work, by all CPUs.
    let work = Work::init(controllers[0], blk);
    for (index, &affinity) in machine.cpus.iter().filter(|&&affinity| affinity != cpu::affinity()).enumerate() {
        cpu::start(conduit, affinity, index + 1, work::run);
    }
    net::echo(&mut net, ECHOES);
    println!("the gateway answered {ECHOES} echo requests");
    work::run();
    work.wait(cpus);

    // What must not work, and is reported by interrupt.
    let culprits: Vec<_> = attached_nvmes
        .iter()
        .zip(controllers)
        .map(|(Attached { device, space, smmu, .. }, nvme)| {
            // SAFETY: the SMMU's registers, which `Culprit` uses only where it says so.
            let registers = unsafe { Registers::new(found.all[*smmu].base as usize) };
            Culprit { nvme, device, space, registers }
        })
        .collect();
    let nvme_space = &attached_nvmes[0].space;
    faults::use_after_unmap(&culprits, nvme_space);
    for culprit in &culprits {
        culprit.reattach();
        culprit.lose_an_event();
    }

    let [nvme_bytes, blk_bytes] = work.verified();
    let least_cpu_bytes = work.least_verified(cpus);
    let spaces =
        if common.is_some() { &[nvme_space][..] } else { &[nvme_space, &attached_blk.space, &attached_net.space] };
    let invalidations: u64 = spaces.iter().map(|space| space.invalidations()).sum();
    let Tally { faults, errors, unexpected } = faults::tally();
    println!(
        "result: el={} cpus={cpus} smmus={} nvme_bytes={nvme_bytes} blk_bytes={blk_bytes} echoes={ECHOES} \
         least_cpu_bytes={least_cpu_bytes} invalidations={invalidations} faults={faults} errors={errors} \
         unexpected={unexpected}",
        cpu::exception_level(),
        smmus.len(),
    );
    console::finish(unexpected == 0)
}

/// A device of the SMMU's driver, attached to the domain of `space`.
struct Attached {
    function: DeviceFunction,
    device: Device<Virt>,
    space: Arc<Space>,
    /// The number of the SMMU that it is behind.
    smmu: usize,
}

fn add_smmu(iommu: &Iommu<Virt>, base: usize) -> SmmuHandle<Virt> {
    // SAFETY: the registers of an SMMU, of which the driver is now in charge.
    let registers = unsafe { Registers::new(base) };
    let options = SmmuOptions { interrupts: true, ..SmmuOptions::default() };
    measured(format_args!("the SMMU at {base:#x}"), || iommu.add_smmu(registers, options).expect("an SMMU"))
}

fn new_space(iommu: &Iommu<Virt>) -> Arc<Space> {
    let make = || iommu.paging_domain(Stage::S1, Geometry::default()).expect("a domain");
    Arc::new(Space::new(measured(format_args!("a domain"), make)))
}

/// Makes something, and says how much of the heap it takes. No other CPU runs yet.
fn measured<T>(what: fmt::Arguments<'_>, make: impl FnOnce() -> T) -> T {
    let before = heap_bytes();
    let made = make();
    println!("{what} takes {} bytes", heap_bytes() - before);
    made
}

fn find_virtio(pci: &Pci, kind: DeviceType) -> DeviceFunction {
    let found = find(pci, |info| virtio_device_type(info) == Some(kind)).next();
    found.unwrap_or_else(|| panic!("no virtio device {kind:?}"))
}

fn find(pci: &Pci, is: impl Fn(&DeviceFunctionInfo) -> bool) -> impl Iterator<Item = DeviceFunction> {
    pci.functions.iter().filter(move |(_, info)| is(info)).map(|&(function, _)| function)
}

//! What the device tree says of the machine.

use alloc::vec::Vec;
use core::ops::Range;
use core::ptr;

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};
use smmuv3_discovery::dt::{DeviceTree, WindowKind};

/// How PSCI is called: as a kernel under a hypervisor or firmware at EL2, or as EL2.
#[derive(Clone, Copy, Debug)]
pub enum Conduit {
    /// By HVC.
    Hvc,
    /// By SMC.
    Smc,
}

/// A PCIe host bridge.
#[derive(Clone, Debug)]
pub struct PciHost {
    /// The configuration space (ECAM).
    pub ecam: usize,
    /// 32-bit addresses for BARs.
    pub window: Range<u64>,
}

/// All of it.
pub struct Machine {
    /// All of RAM.
    pub ram: Range<usize>,
    /// The affinities of the CPUs.
    pub cpus: Vec<u64>,
    /// The GIC's distributor.
    pub gicd: usize,
    /// Its first redistributor.
    pub gicr: usize,
    /// The private peripheral interrupt of the virtual timer.
    pub timer: u32,
    /// The host bridge.
    pub pci: PciHost,
}

/// The device tree: where `x0` of the entry point says, or, where it says nothing (QEMU and an ELF file), at the beginning of RAM.
pub fn device_tree(x0: u64) -> Fdt<'static> {
    const RAM: usize = 0x4000_0000;
    let address = if x0 == 0 { RAM } else { x0 as usize };
    // SAFETY: the loader has put it there, and nobody changes it.
    unsafe { Fdt::from_raw(ptr::with_exposed_provenance(address)) }.expect("a device tree")
}

/// The kernel's command line.
pub fn command_line<'a>(tree: &Fdt<'a>) -> &'a str {
    let line = tree.find_node("/chosen").and_then(|chosen| chosen.property("bootargs"));
    line.map_or("", |line| line.value_as().expect("the command line is text"))
}

/// How PSCI is called.
pub fn conduit(tree: &Fdt<'_>) -> Conduit {
    let psci = tree.find_node("/psci").expect("PSCI");
    let method = psci.property("method").expect("PSCI has a method");
    match method.value_as().expect("the method is a word") {
        "hvc" => Conduit::Hvc,
        "smc" => Conduit::Smc,
        other => panic!("PSCI by {other}"),
    }
}

/// The registers of the console.
pub fn uart(tree: &Fdt<'_>) -> usize {
    reg(compatible(tree, "arm,pl011").expect("a PL011"), 0).start
}

/// All of RAM.
pub fn ram(tree: &Fdt<'_>) -> Range<usize> {
    reg(*tree.memory().expect("RAM"), 0)
}

/// The registers of QEMU's firmware configuration device, if there is one.
pub fn fw_cfg(tree: &Fdt<'_>) -> Option<usize> {
    Some(reg(compatible(tree, "qemu,fw-cfg-mmio")?, 0).start)
}

impl Machine {
    /// Reads the device tree. Takes memory from the heap.
    pub fn new(tree: &Fdt<'_>) -> Self {
        let gic = compatible(tree, "arm,gic-v3").expect("a GICv3");
        let cpus = tree.cpus().expect("CPUs");
        let affinity =
            |id: dtoolkit::Cells<'_>| id.as_ref().iter().fold(0, |id, cell| id << 32 | u64::from(cell.get()));
        let cpus = cpus.cpus().flat_map(|cpu| cpu.ids().expect("a CPU has an affinity")).map(affinity).collect();
        // Secure, non-secure, virtual, hypervisor; three cells each, and type 1 is private.
        let timer = match cells(compatible(tree, "arm,armv8-timer").expect("a timer"), "interrupts")[6..8] {
            [1, number] => number,
            ref other => panic!("the virtual timer's interrupt is {other:?}"),
        };

        let devices = DeviceTree::new(tree.data()).expect("the device tree is whole");
        let bridge = devices.host_bridges().next().expect("a PCIe host bridge");
        let (ecam, _) = bridge.ecam().expect("registers").expect("a configuration space in memory");
        let windows = bridge.windows().expect("addresses for PCI").map(|window| window.expect("a window"));
        let window = { windows }.find(|window| window.kind == WindowKind::Memory32).expect("32-bit addresses for PCI");
        assert_eq!(window.bus, window.cpu, "PCI addresses are the CPU's");

        Machine {
            ram: ram(tree),
            cpus,
            gicd: reg(gic, 0).start,
            gicr: reg(gic, 1).start,
            timer,
            pci: PciHost { ecam: ecam as usize, window: window.cpu..window.cpu + window.size },
        }
    }
}

fn compatible<'a>(tree: &Fdt<'a>, name: &str) -> Option<FdtNode<'a>> {
    tree.root().children().find(|node| node.is_compatible(name))
}

fn reg(node: FdtNode<'_>, index: usize) -> Range<usize> {
    let reg = node.reg().ok().flatten().and_then(|mut regs| regs.nth(index)).expect("registers");
    let (start, size): (u64, u64) = (reg.address().expect("an address"), reg.size().expect("a size"));
    start as usize..(start + size) as usize
}

fn cells(node: FdtNode<'_>, name: &str) -> Vec<u32> {
    let property = node.property(name).unwrap_or_else(|| panic!("{} has no {name}", node.name()));
    property.value_as().expect("a list of cells")
}

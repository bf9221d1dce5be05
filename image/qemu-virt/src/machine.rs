//! What the device tree says of the machine.

use alloc::vec::Vec;
use core::ops::Range;
use core::ptr;

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

/// How PSCI is called: as a kernel under a hypervisor or firmware at EL2, or as EL2.
#[derive(Clone, Copy, Debug)]
pub enum Conduit {
    /// By HVC.
    Hvc,
    /// By SMC.
    Smc,
}

/// An SMMUv3.
#[derive(Clone, Copy, Debug)]
pub struct SmmuNode {
    /// Its registers.
    pub base: usize,
    /// The shared peripheral interrupt of its event queue, edge-triggered.
    pub events: u32,
    /// That of its global errors.
    pub errors: u32,
}

/// PCIe requester IDs that come out at an SMMU.
#[derive(Clone, Debug)]
pub struct Route {
    /// bus:device.function as 16 bits.
    pub requesters: Range<u32>,
    /// The StreamID of the first.
    pub sid: u32,
    /// Which SMMU, as an index.
    pub smmu: usize,
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
#[derive(Debug)]
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
    /// The SMMUs.
    pub smmus: Vec<SmmuNode>,
    /// Which devices are behind them.
    pub routes: Vec<Route>,
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

impl Machine {
    /// Reads the device tree. Takes memory from the heap.
    pub fn new(tree: &Fdt<'_>) -> Self {
        let gic = compatible(tree, "arm,gic-v3").expect("a GICv3");
        let cpus = tree.cpus().expect("CPUs");
        let affinity =
            |id: dtoolkit::Cells<'_>| id.as_ref().iter().fold(0, |id, cell| id << 32 | u64::from(cell.get()));
        let cpus = cpus.cpus().flat_map(|cpu| cpu.ids().expect("a CPU has an affinity")).map(affinity).collect();

        let root = tree.root();
        let nodes: Vec<FdtNode<'_>> = root.children().filter(|node| node.is_compatible("arm,smmu-v3")).collect();
        let smmus = nodes.iter().map(|&node| smmu(node)).collect();
        let phandles: Vec<_> = nodes.iter().map(|node| node.phandle().ok().flatten()).collect();

        let bridge = compatible(tree, "pci-host-ecam-generic").expect("a PCIe host bridge");
        let routes = cells(bridge, "iommu-map")
            .chunks_exact(4)
            .map(|map| {
                let smmu = phandles.iter().position(|&phandle| phandle == Some(map[1])).expect("the bridge's SMMU");
                Route { requesters: map[0]..map[0] + map[3], sid: map[2], smmu }
            })
            .collect();
        // Three cells of a PCI address, two of an address, two of a size. The first cell tells the space: 2 is that of 32 bits.
        let window = cells(bridge, "ranges")
            .chunks_exact(7)
            .find(|range| range[0] >> 24 & 3 == 2)
            .map(|range| {
                let (bus, start) = (wide(range[1], range[2]), wide(range[3], range[4]));
                assert_eq!(bus, start, "PCI addresses are the CPU's");
                start..start + wide(range[5], range[6])
            })
            .expect("32-bit addresses for PCI");

        Machine {
            ram: ram(tree),
            cpus,
            gicd: reg(gic, 0).start,
            gicr: reg(gic, 1).start,
            // Secure, non-secure, virtual, hypervisor; three cells each, and type 1 is private.
            timer: match cells(compatible(tree, "arm,armv8-timer").expect("a timer"), "interrupts")[6..8] {
                [1, number] => number,
                ref other => panic!("the virtual timer's interrupt is {other:?}"),
            },
            smmus,
            routes,
            pci: PciHost { ecam: reg(bridge, 0).start, window },
        }
    }

    /// The SMMU, as an index, and the StreamID of a PCIe requester.
    pub fn stream(&self, requester: u16) -> Option<(usize, u32)> {
        let requester = u32::from(requester);
        let route = self.routes.iter().find(|route| route.requesters.contains(&requester))?;
        Some((route.smmu, route.sid + (requester - route.requesters.start)))
    }
}

fn smmu(node: FdtNode<'_>) -> SmmuNode {
    // Type (0: shared peripheral), number, trigger (1: edge).
    let interrupts = cells(node, "interrupts");
    let names = node.property("interrupt-names").expect("the interrupts have names");
    let names: Vec<&str> = names.value_as().expect("names are words");
    let interrupt = |name| {
        let position = names.iter().position(|&other| other == name).expect("the interrupt is wired");
        match interrupts[3 * position..][..3] {
            [0, number, 1] => number,
            ref other => panic!("interrupt {name} is {other:?}"),
        }
    };
    SmmuNode { base: reg(node, 0).start, events: interrupt("eventq"), errors: interrupt("gerror") }
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

fn wide(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

//! PCIe: finds the functions and gives their BARs addresses. There is no firmware that would have done so.

use alloc::vec::Vec;

use smmuv3::platform::Mmio;
use smmuv3_discovery::pci::Rid;
use virtio_drivers::transport::pci::bus::{
    BarInfo, Cam, Command, ConfigurationAccess, DeviceFunction, DeviceFunctionInfo, HeaderType, MemoryBarType, PciRoot,
};

use crate::machine::PciHost;
use crate::platform::Registers;

/// A configuration space in memory.
#[derive(Clone, Copy)]
pub struct Ecam(Registers);

impl ConfigurationAccess for Ecam {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        self.0.read32(Cam::Ecam.cam_offset(function, register) as usize)
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, value: u32) {
        self.0.write32(Cam::Ecam.cam_offset(function, register) as usize, value);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        *self
    }
}

/// The functions of a host bridge.
pub struct Pci {
    /// Their configuration space.
    pub root: PciRoot<Ecam>,
    /// What there is.
    pub functions: Vec<(DeviceFunction, DeviceFunctionInfo)>,
}

impl Pci {
    /// Looks at every bus, and gives every bridge its buses and every BAR an address. No function is a bus master yet: that is for after it was attached to a
    /// domain.
    pub fn new(host: &PciHost) -> Self {
        // SAFETY: the device tree has the configuration space there, and it is mapped.
        let ecam = Ecam(unsafe { Registers::new(host.ecam) });
        let mut scan = Scan { ecam, root: PciRoot::new(ecam), next: host.window.start, functions: Vec::new() };
        // There may be root buses besides bus 0, and nobody says which: those that answer and are behind no bridge.
        let mut bus = 0;
        while bus <= u16::from(u8::MAX) {
            bus = u16::from(scan.bus(bus as u8)) + 1;
        }
        assert!(scan.next <= host.window.end, "not enough addresses for all BARs");
        Pci { root: scan.root, functions: scan.functions }
    }

    /// Lets a function make accesses of its own.
    pub fn enable_dma(&mut self, function: DeviceFunction) {
        let (_, command) = self.root.get_status_command(function);
        self.root.set_command(function, command | Command::BUS_MASTER);
    }

    /// The registers behind a memory BAR.
    pub fn registers(&mut self, function: DeviceFunction, bar: u8) -> Registers {
        let info = self.root.bar_info(function, bar).expect("a BAR").expect("a BAR");
        let (address, _) = info.memory_address_size().expect("a memory BAR");
        // SAFETY: the function decodes this address, which is in the host bridge's window, and that is mapped.
        unsafe { Registers::new(address as usize) }
    }
}

/// A walk from bus to bus.
struct Scan {
    /// `PciRoot` has no way to write what only bridges have.
    ecam: Ecam,
    root: PciRoot<Ecam>,
    /// The next free address.
    next: u64,
    functions: Vec<(DeviceFunction, DeviceFunctionInfo)>,
}

// Configuration registers of a bridge (PCI-to-PCI Bridge Architecture Specification, §3.2.5).
const BUS_NUMBERS: u8 = 0x18;
const MEMORY_WINDOW: u8 = 0x20;
const PREFETCHABLE_WINDOW: u8 = 0x24;
/// The unit of a bridge's windows.
const MIB: u64 = 1 << 20;

impl Scan {
    /// Readies what is on this bus and behind its bridges. Returns the highest bus number that is in use now.
    fn bus(&mut self, bus: u8) -> u8 {
        let mut highest = bus;
        let here: Vec<_> = self.root.enumerate_bus(bus).collect();
        for (function, info) in here {
            if info.header_type == HeaderType::PciPciBridge {
                highest = self.bridge(function, highest.checked_add(1).expect("a bus number"));
                continue;
            }
            self.bars(function);
            self.functions.push((function, info));
        }
        highest
    }

    /// Gives a bridge the buses from `secondary` on, and the addresses that those behind it take.
    fn bridge(&mut self, bridge: DeviceFunction, secondary: u8) -> u8 {
        let numbers = |last: u8| u32::from(last) << 16 | u32::from(secondary) << 8 | u32::from(bridge.bus);
        // Until it is known which is the last bus, all that follow are behind it.
        self.ecam.write_word(bridge, BUS_NUMBERS, numbers(u8::MAX));
        let start = self.next.next_multiple_of(MIB);
        self.next = start;
        let last = self.bus(secondary);
        self.next = self.next.next_multiple_of(MIB);
        self.ecam.write_word(bridge, BUS_NUMBERS, numbers(last));
        // Bits 31:20 of the first and of the last address. A window whose end is before its start is closed.
        let window = |start: u64, last: u64| (last as u32 & 0xfff0_0000) | (start >> 16) as u32 & 0xfff0;
        self.ecam.write_word(bridge, MEMORY_WINDOW, window(start, self.next.wrapping_sub(MIB)));
        self.ecam.write_word(bridge, PREFETCHABLE_WINDOW, window(MIB, 0));
        self.root.set_command(bridge, Command::MEMORY_SPACE | Command::BUS_MASTER | Command::INTERRUPT_DISABLE);
        last
    }

    fn bars(&mut self, function: DeviceFunction) {
        let bars = self.root.bars(function).expect("BARs");
        for (index, bar) in (0..).zip(bars) {
            let Some(BarInfo::Memory { size, address_type, .. }) = bar else { continue };
            let address = self.next.next_multiple_of(size);
            match address_type {
                MemoryBarType::Width64 => self.root.set_bar_64(function, index, address),
                _ => self.root.set_bar_32(function, index, address as u32),
            }
            self.next = address + size;
        }
        self.root.set_command(function, Command::MEMORY_SPACE | Command::INTERRUPT_DISABLE);
    }
}

/// By which name the firmware tables know a function.
pub fn rid(function: DeviceFunction) -> Rid {
    Rid::new(function.bus, function.device, function.function)
}

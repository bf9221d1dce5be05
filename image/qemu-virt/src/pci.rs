//! PCIe: finds the functions and gives their BARs addresses. There is no firmware that would have done so.

use alloc::vec::Vec;
use core::ptr;

use virtio_drivers::transport::pci::bus::{
    BarInfo, Cam, Command, DeviceFunction, DeviceFunctionInfo, MemoryBarType, MmioCam, PciRoot,
};

use crate::machine::PciHost;
use crate::platform::Registers;

/// The functions of a host bridge.
pub struct Pci {
    /// Their configuration space.
    pub root: PciRoot<MmioCam<'static>>,
    /// What there is.
    pub functions: Vec<(DeviceFunction, DeviceFunctionInfo)>,
}

impl Pci {
    /// Looks at every bus, and gives every BAR an address. No function is a bus master yet: that is for after it was attached to a domain.
    pub fn new(host: &PciHost) -> Self {
        // SAFETY: the device tree has the configuration space there, it is mapped, and nobody else uses it.
        let cam = unsafe { MmioCam::new(ptr::with_exposed_provenance_mut(host.ecam), Cam::Ecam) };
        let mut root = PciRoot::new(cam);
        let functions: Vec<_> = (0..=u8::MAX).flat_map(|bus| root.enumerate_bus(bus)).collect();
        let mut next = host.window.start;
        for &(function, _) in &functions {
            let bars = root.bars(function).expect("BARs");
            for (index, bar) in (0..).zip(bars) {
                let Some(BarInfo::Memory { size, address_type, .. }) = bar else { continue };
                next = next.next_multiple_of(size);
                assert!(next + size <= host.window.end, "no addresses for BAR {index} of {function}");
                match address_type {
                    MemoryBarType::Width64 => root.set_bar_64(function, index, next),
                    _ => root.set_bar_32(function, index, next as u32),
                }
                next += size;
            }
            root.set_command(function, Command::MEMORY_SPACE | Command::INTERRUPT_DISABLE);
        }
        Pci { root, functions }
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

/// By which name the SMMU's firmware tables know a function.
pub fn requester(function: DeviceFunction) -> u16 {
    u16::from(function.bus) << 8 | u16::from(function.device) << 3 | u16::from(function.function)
}

//! Finding the PCI functions and giving them, and the buses behind bridges, addresses: what firmware would have done.

use std::fmt;

use crate::error::QemuError;
use crate::qtest::Qtest;

// Offsets in the configuration space of a function (PCI Local Bus Specification 3.0, §6.1).
const VENDOR_DEVICE: u64 = 0x00;
const COMMAND: u64 = 0x04;
const REVISION_CLASS: u64 = 0x08;
const HEADER_TYPE: u64 = 0x0e;
const BAR0: u64 = 0x10;
// Of a bridge (PCI-to-PCI Bridge Architecture Specification 1.2, §3.2.5).
const PRIMARY_BUS: u64 = 0x18;
const SECONDARY_BUS: u64 = 0x19;
const SUBORDINATE_BUS: u64 = 0x1a;
const MEMORY_BASE: u64 = 0x20;
const MEMORY_LIMIT: u64 = 0x22;

/// `HEADER_TYPE` of a bridge, without [`MULTI_FUNCTION`].
const BRIDGE: u8 = 1;
/// The unit of a bridge's memory window.
const BRIDGE_WINDOW: u64 = 1 << 20;

// COMMAND bits.
const MEMORY_SPACE: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;

// HEADER_TYPE bits.
const MULTI_FUNCTION: u8 = 1 << 7;
const LAYOUT: u8 = 0x7f;

// BAR bits.
const BAR_IO: u32 = 1 << 0;
const BAR_64BIT: u32 = 1 << 2;
const BAR_FLAGS: u32 = 0xf;

/// Where the machine has its PCI buses.
pub(crate) struct Layout {
    /// Guest physical address of the configuration space (ECAM).
    pub(crate) ecam: u64,
    /// The first address for 32-bit BARs.
    pub(crate) memory_start: u64,
    /// The address after the last one for 32-bit BARs.
    pub(crate) memory_end: u64,
}

/// A bus that hangs on no bridge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RootBus {
    /// Its number.
    pub(crate) number: u8,
    /// The highest number that a bus behind one of its bridges may get.
    pub(crate) last: u8,
    /// The SMMU in front of it and all buses behind it.
    pub(crate) smmu: u8,
}

/// Bus, device and function number of a PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    /// 0 to 255.
    pub bus: u8,
    /// 0 to 31.
    pub device: u8,
    /// 0 to 7.
    pub function: u8,
}

impl Bdf {
    /// What the function signs its requests with: `bus << 8 | device << 3 | function`.
    pub fn requester_id(self) -> u16 {
        u16::from(self.bus) << 8 | u16::from(self.device & 31) << 3 | u16::from(self.function & 7)
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// A memory range of a function's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Guest physical address.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
}

/// A PCI function, whose memory BARs have addresses and which may do DMA.
#[derive(Clone, Debug)]
pub struct Function {
    /// Where it is.
    pub bdf: Bdf,
    /// The SMMU that its DMA goes through: the number for [`Machine::smmu_at`](crate::Machine::smmu_at).
    pub smmu: u8,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Base class, sub-class and programming interface, as `0xbbsspp`.
    pub class: u32,
    /// Its memory BARs. I/O BARs, and the upper halves of 64-bit BARs, are `None`.
    pub bars: [Option<Bar>; 6],
}

impl Function {
    /// The StreamID of its DMA at its SMMU: on this machine, its requester ID.
    pub fn stream_id(&self) -> u32 {
        self.bdf.requester_id().into()
    }
}

/// Lists the functions of `roots` and of all buses behind them, and makes each usable: addresses for its memory BARs,
/// then memory space and bus mastering on.
pub(crate) fn scan(qtest: &Qtest, layout: &Layout, roots: &[RootBus]) -> Result<Vec<Function>, QemuError> {
    let window = Window { next: layout.memory_start, end: layout.memory_end };
    let mut scan = Scan { qtest, ecam: layout.ecam, window, functions: Vec::new() };
    for root in roots {
        scan.bus(root.number, &mut Buses { next: root.number.checked_add(1), root })?;
    }
    scan.functions.sort_by_key(|function| function.bdf);
    Ok(scan.functions)
}

/// A scan that is under way.
struct Scan<'a> {
    qtest: &'a Qtest,
    ecam: u64,
    window: Window,
    functions: Vec<Function>,
}

/// The bus numbers behind one root bus that no bridge has yet.
struct Buses<'a> {
    next: Option<u8>,
    root: &'a RootBus,
}

impl Buses<'_> {
    fn take(&mut self) -> Option<u8> {
        let bus = self.next.filter(|bus| *bus <= self.root.last)?;
        self.next = bus.checked_add(1);
        Some(bus)
    }

    /// The highest number that was taken, after one was.
    fn highest(&self) -> u8 {
        self.next.map_or(u8::MAX, |next| next - 1)
    }
}

impl Scan<'_> {
    fn bus(&mut self, bus: u8, buses: &mut Buses<'_>) -> Result<(), QemuError> {
        for device in 0..32 {
            for function in 0..8 {
                let bdf = Bdf { bus, device, function };
                let config = Config { qtest: self.qtest, base: self.ecam + (u64::from(bdf.requester_id()) << 12) };
                let ids = config.read32(VENDOR_DEVICE)?;
                if ids == u32::MAX {
                    // Functions may be numbered with gaps, but there is always a function 0.
                    if function == 0 {
                        break;
                    }
                    continue;
                }
                let header = config.qtest.read8(config.base + HEADER_TYPE)?;
                self.functions.push(Function {
                    bdf,
                    smmu: buses.root.smmu,
                    vendor: ids as u16,
                    device: (ids >> 16) as u16,
                    class: config.read32(REVISION_CLASS)? >> 8,
                    bars: config.enable(bdf, header & LAYOUT, &mut self.window)?,
                });
                if header & LAYOUT == BRIDGE {
                    self.bridge(bdf, &config, buses)?;
                }
                if function == 0 && header & MULTI_FUNCTION == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Gives the bus behind a bridge a number, and what is on it addresses that the bridge lets pass.
    fn bridge(&mut self, bdf: Bdf, config: &Config<'_>, buses: &mut Buses<'_>) -> Result<(), QemuError> {
        let secondary = buses.take().ok_or(QemuError::NoBusNumber(bdf))?;
        config.write8(PRIMARY_BUS, bdf.bus)?;
        config.write8(SECONDARY_BUS, secondary)?;
        config.write8(SUBORDINATE_BUS, buses.root.last)?;
        let start = self.window.align(BRIDGE_WINDOW).ok_or(QemuError::NoBridgeSpace(bdf))?;
        self.bus(secondary, buses)?;
        config.write8(SUBORDINATE_BUS, buses.highest())?;
        let end = self.window.align(BRIDGE_WINDOW).ok_or(QemuError::NoBridgeSpace(bdf))?;
        // A window of nothing has its limit below its base.
        config.write16(MEMORY_BASE, (start >> 16) as u16)?;
        config.write16(MEMORY_LIMIT, (end.wrapping_sub(BRIDGE_WINDOW) >> 16) as u16)
    }
}

/// The addresses that no BAR has yet.
struct Window {
    next: u64,
    end: u64,
}

impl Window {
    /// `size`, a power of two, bytes at a multiple of `size`, and of a page.
    fn take(&mut self, size: u64) -> Option<u64> {
        let size = size.max(0x1000);
        let addr = self.next.checked_next_multiple_of(size)?;
        let next = addr.checked_add(size).filter(|next| *next <= self.end)?;
        self.next = next;
        Some(addr)
    }

    /// Leaves out what comes before the next multiple of `size`. Returns the next address.
    fn align(&mut self, size: u64) -> Option<u64> {
        let next = self.next.checked_next_multiple_of(size).filter(|next| *next <= self.end)?;
        self.next = next;
        Some(next)
    }
}

/// The configuration space of one function.
struct Config<'a> {
    qtest: &'a Qtest,
    base: u64,
}

impl Config<'_> {
    fn read32(&self, offset: u64) -> Result<u32, QemuError> {
        self.qtest.read32(self.base + offset)
    }

    fn write8(&self, offset: u64, value: u8) -> Result<(), QemuError> {
        self.qtest.write8(self.base + offset, value)
    }

    fn write16(&self, offset: u64, value: u16) -> Result<(), QemuError> {
        self.qtest.write16(self.base + offset, value)
    }

    fn write32(&self, offset: u64, value: u32) -> Result<(), QemuError> {
        self.qtest.write32(self.base + offset, value)
    }

    /// Gives every memory BAR an address and lets the function use it, and do DMA.
    fn enable(&self, bdf: Bdf, layout: u8, window: &mut Window) -> Result<[Option<Bar>; 6], QemuError> {
        // Layout 1, a bridge, has two BARs; other layouts have none that are laid out like these.
        let count = [6, 2].get(usize::from(layout)).copied().unwrap_or(0);
        let command = self.qtest.read16(self.base + COMMAND)?;
        let off = command & !(MEMORY_SPACE | BUS_MASTER);
        self.qtest.write16(self.base + COMMAND, off)?;

        let mut bars = [None; 6];
        let mut index = 0;
        while index < count {
            let register = BAR0 + 4 * index as u64;
            let (size, is_64bit) = self.bar_size(register)?;
            if let Some(size) = size {
                let addr = window.take(size).ok_or(QemuError::NoBarSpace { bdf, bar: index, size })?;
                self.write32(register, addr as u32)?;
                if is_64bit {
                    self.write32(register + 4, (addr >> 32) as u32)?;
                }
                bars[index] = Some(Bar { addr, size });
            }
            index += if is_64bit { 2 } else { 1 };
        }
        let on = command | MEMORY_SPACE | BUS_MASTER;
        self.qtest.write16(self.base + COMMAND, on)?;
        Ok(bars)
    }

    /// The size of the memory BAR at `register`, if it is one, and whether it takes up the next register too.
    ///
    /// The address bits that a BAR ignores tell its size. It is left with a meaningless address.
    fn bar_size(&self, register: u64) -> Result<(Option<u64>, bool), QemuError> {
        self.write32(register, u32::MAX)?;
        let low = self.read32(register)?;
        if low & BAR_IO != 0 {
            return Ok((None, false));
        }
        let is_64bit = low & BAR_64BIT != 0;
        let high = if is_64bit {
            self.write32(register + 4, u32::MAX)?;
            self.read32(register + 4)?
        } else {
            u32::MAX
        };
        let mask = u64::from(high) << 32 | u64::from(low & !BAR_FLAGS);
        // A BAR that is not there reads as zero, and so does its mask.
        let size = (low & !BAR_FLAGS != 0 || is_64bit && high != 0)
            .then(|| (!mask).wrapping_add(1))
            .filter(|size| size.is_power_of_two());
        Ok((size, is_64bit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requester_ids_are_made_of_bus_device_and_function() {
        let bdf = Bdf { bus: 0x12, device: 0x1f, function: 7 };
        assert_eq!(bdf.requester_id(), 0x12ff);
        assert_eq!(bdf.to_string(), "12:1f.7");
        let bdf = Bdf { bus: 0, device: 1, function: 0 };
        assert_eq!(bdf.requester_id(), 8);
        assert_eq!(bdf.to_string(), "00:01.0");
    }

    #[test]
    fn bars_are_aligned_to_their_size_and_stay_in_the_window() {
        let mut window = Window { next: 0x1000_0000, end: 0x1020_0000 };
        assert_eq!(window.take(0x10), Some(0x1000_0000));
        assert_eq!(window.take(0x4000), Some(0x1000_4000));
        assert_eq!(window.take(0x10_0000), Some(0x1010_0000));
        assert_eq!(window.take(0x1000), None);
        assert_eq!(window.take(1 << 63), None);
    }

    #[test]
    fn a_bridge_s_window_begins_at_a_mebibyte() {
        let mut window = Window { next: 0x1000_0000, end: 0x1020_0000 };
        assert_eq!(window.align(BRIDGE_WINDOW), Some(0x1000_0000));
        assert_eq!(window.take(0x10), Some(0x1000_0000));
        assert_eq!(window.align(BRIDGE_WINDOW), Some(0x1010_0000));
        assert_eq!(window.take(0x10_0000), Some(0x1010_0000));
        assert_eq!(window.align(BRIDGE_WINDOW), Some(0x1020_0000));
        assert_eq!(window.take(0x10), None);
    }

    #[test]
    fn buses_behind_bridges_get_the_numbers_of_their_root() {
        let root = RootBus { number: 0xfd, last: 0xff, smmu: 1 };
        let mut buses = Buses { next: Some(0xfe), root: &root };
        assert_eq!((buses.take(), buses.highest()), (Some(0xfe), 0xfe));
        assert_eq!((buses.take(), buses.highest()), (Some(0xff), 0xff));
        assert_eq!(buses.take(), None);
        let root = RootBus { number: 0, last: 1, smmu: 0 };
        let mut buses = Buses { next: Some(1), root: &root };
        assert_eq!((buses.take(), buses.take()), (Some(1), None));
    }
}

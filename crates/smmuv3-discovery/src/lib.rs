//! Finds the SMMUv3s of a machine, their interrupts, and the StreamIDs of devices, in what the firmware hands over.
//!
//! | module | what it reads |
//! |---|---|
//! | [`dt`] | a flattened device tree, by the bindings `arm,smmu-v3`, `pci-iommu` and `pci-host-ecam-generic` |
//! | [`iort`] | ACPI's IO Remapping Table (Arm DEN0049) |
//! | [`pci`] | which requester IDs a PCI function's DMA may have: its own, and those of bridges above it |
//!
//! Both tables are untrusted: whatever their bytes are, reading them ends in an answer or in an error that names the
//! place and what is wrong there. Nothing is allocated.
//!
//! ```
//! use smmuv3::DeviceConfig;
//! use smmuv3_discovery::dt::DeviceTree;
//! use smmuv3_discovery::pci::{self, Rid};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let bytes = include_bytes!("../tests/data/virt-one.dtb");
//! let tree = DeviceTree::new(bytes)?;
//! for smmu in tree.smmus() {
//!     let smmu = smmu?; // add_smmu with registers of smmu.size bytes at smmu.base
//!     assert_eq!((smmu.base, smmu.size), (0x905_0000, 0x2_0000));
//! }
//! let host = tree.host_bridges().next().ok_or("no PCI")?;
//! let nic = Rid::new(0, 3, 0);
//! let streams = pci::device_streams(nic, &[], |rid| host.stream_id(rid))?.ok_or("no SMMU")?;
//! let mut ids = streams.ids.iter();
//! let first = ids.next().ok_or("no StreamID")?;
//! let config = ids.fold(DeviceConfig::stream(*first), |config, id| config.and_stream(*id));
//! # assert_eq!(config, DeviceConfig::stream(0x18));
//! # Ok(())
//! # }
//! ```
//!
//! An IORT is found through the RSDP and the XSDT, which is the business of an ACPI crate: [`Iort::new`](iort::Iort::new) takes the
//! table's bytes.

#![no_std]
#![forbid(unsafe_code)]

pub mod dt;
pub mod iort;
pub mod pci;

/// An SMMUv3 and what its surroundings are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SmmuDescription {
    /// Its number, from 0, among the SMMUv3s of the table in the table's order. [`Stream::smmu`] is this number.
    pub number: usize,
    /// Physical address of its registers.
    pub base: u64,
    /// Bytes of registers. ACPI has no such field: there it is [`REGISTER_PAGES`].
    pub size: u64,
    /// Its own accesses, to tables and queues, are coherent with the CPU's caches.
    ///
    /// A device tree says so or it is not. IORT only ever *adds* to what the SMMU says itself: where this is
    /// false there, `SMMU_IDR0.COHACC` decides.
    pub coherent: bool,
    /// Its wired interrupts.
    pub interrupts: Interrupts,
    /// The table says where the SMMU's own MSIs go.
    pub msi: bool,
    /// The NUMA node or proximity domain that it belongs to.
    pub proximity: Option<u32>,
    /// What is known to be peculiar.
    pub model: Model,
}

/// The two 64 KiB pages of registers that every SMMUv3 has (IHI 0070 §6.1).
pub const REGISTER_PAGES: u64 = 0x2_0000;

/// The wired interrupts of an SMMU (IHI 0070 §3.18). Any may be missing: the SMMU then has none of the kind, or uses an MSI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Interrupts {
    /// The event queue is no longer empty.
    pub event: Option<Interrupt>,
    /// A global error.
    pub gerror: Option<Interrupt>,
    /// The PRI queue has something.
    pub pri: Option<Interrupt>,
    /// A CMD_SYNC has completed that asked for an interrupt.
    pub sync: Option<Interrupt>,
    /// One for all of the above. Only device trees have it.
    pub combined: Option<Interrupt>,
}

/// An interrupt of the GIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupt {
    /// Which of the GIC's number spaces.
    pub kind: InterruptKind,
    /// The number in that space, from 0.
    pub number: u32,
    /// How it is signalled.
    pub trigger: Trigger,
}

/// The number spaces of wired interrupts (Arm IHI 0069 §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterruptKind {
    /// Private to each CPU: INTIDs 16 to 31.
    Ppi,
    /// Shared: INTIDs 32 to 1019.
    Spi,
    /// Extended PPIs: INTIDs 1056 to 1119.
    ExtendedPpi,
    /// Extended SPIs: INTIDs 4096 to 5119.
    ExtendedSpi,
}

impl InterruptKind {
    const ALL: [InterruptKind; 4] =
        [InterruptKind::Ppi, InterruptKind::Spi, InterruptKind::ExtendedPpi, InterruptKind::ExtendedSpi];

    /// The first INTID of the space, and how many it has.
    const fn space(self) -> (u32, u32) {
        match self {
            InterruptKind::Ppi => (16, 16),
            InterruptKind::Spi => (32, 988),
            InterruptKind::ExtendedPpi => (1056, 64),
            InterruptKind::ExtendedSpi => (4096, 1024),
        }
    }
}

impl Interrupt {
    /// `None` if the space has no such number.
    pub fn new(kind: InterruptKind, number: u32, trigger: Trigger) -> Option<Self> {
        (number < kind.space().1).then_some(Interrupt { kind, number, trigger })
    }

    /// The interrupt with this INTID. `None` if no wired interrupt of a device has it.
    pub fn from_intid(intid: u32, trigger: Trigger) -> Option<Self> {
        InterruptKind::ALL
            .into_iter()
            .find_map(|kind| Interrupt::new(kind, intid.checked_sub(kind.space().0)?, trigger))
    }

    /// What the GIC calls it.
    pub fn intid(&self) -> u32 {
        self.kind.space().0 + self.number
    }
}

/// How an interrupt is signalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// By a rising edge.
    EdgeRising,
    /// By a falling edge.
    EdgeFalling,
    /// While high.
    LevelHigh,
    /// While low.
    LevelLow,
}

/// SMMUs that need to be treated in a way of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Model {
    /// Nothing is known.
    #[default]
    Generic,
    /// HiSilicon Hi161x: CMD_PREFETCH must not be sent.
    Hi161x,
    /// Cavium ThunderX2: the registers of page 1 are in page 0, at the same offsets.
    Cn99xx,
    /// A number that DEN0049 did not have when this was written.
    Other(u32),
}

/// Where a device's DMA arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// The [number](SmmuDescription::number) of the SMMU.
    pub smmu: usize,
    /// The StreamID there.
    pub id: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intids_and_the_numbers_in_their_spaces_fit() {
        use InterruptKind::*;
        for (kind, number, intid) in [
            (Ppi, 0, 16),
            (Ppi, 15, 31),
            (Spi, 0, 32),
            (Spi, 74, 106),
            (Spi, 987, 1019),
            (ExtendedPpi, 0, 1056),
            (ExtendedPpi, 63, 1119),
            (ExtendedSpi, 0, 4096),
            (ExtendedSpi, 1023, 5119),
        ] {
            let interrupt = Interrupt::new(kind, number, Trigger::EdgeRising).unwrap();
            assert_eq!(interrupt.intid(), intid);
            assert_eq!(Interrupt::from_intid(intid, Trigger::EdgeRising), Some(interrupt));
        }
        // SGIs, the special INTIDs, the gaps, LPIs.
        for intid in [0, 15, 1020, 1023, 1055, 1120, 4095, 5120, 8192, u32::MAX] {
            assert_eq!(Interrupt::from_intid(intid, Trigger::EdgeRising), None, "{intid}");
        }
        for (kind, number) in [(Ppi, 16), (Spi, 988), (ExtendedPpi, 64), (ExtendedSpi, 1024), (Spi, u32::MAX)] {
            assert_eq!(Interrupt::new(kind, number, Trigger::LevelHigh), None, "{kind:?} {number}");
        }
    }
}

//! Drives the SMMUv3 and the PCI devices of a real QEMU from the host.
//!
//! QEMU runs with an idle CPU. Registers are read and written over its qtest socket (10 to 80 µs each), and the
//! guest's RAM is a file that both QEMU and this process map. So the driver crate runs here, as part of an
//! ordinary host process, against an SMMU and devices that somebody else wrote:
//!
//! ```no_run
//! use smmuv3_qemu::{Machine, MachineConfig, Qemu};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let machine = Machine::start(&Qemu::find()?, MachineConfig::default())?;
//! let platform = machine.platform();   // implements smmuv3::platform::Platform
//! let registers = machine.smmu();      // implements smmuv3::platform::Mmio
//! let edu = machine.edu(0)?;           // a device that does DMA, with edu.stream_id()
//! # Ok(())
//! # }
//! ```
//!
//! From the ground up. Apart from `error`, which names what the others found, a module uses only what is above it:
//!
//! | module | what it is |
//! |---|---|
//! | `error` | what can go wrong with QEMU itself |
//! | `find` | which QEMU program, and is it new enough |
//! | `qtest` | the protocol of the socket |
//! | `ram` | guest RAM, mapped: the one module with `unsafe` |
//! | `pages` | which pages of guest RAM are given out |
//! | `platform` | the three above as the driver's `Platform` and `Mmio` |
//! | `pci` | finding the PCI functions and giving them addresses |
//! | `edu`, `nvme` | two devices that do DMA |
//! | `process` | the running QEMU: its end, and its last words |
//! | `machine` | command line and start-up |
//!
//! # What to know of QEMU's SMMU and devices
//!
//! Seen with 10.0.2, through this crate's tests and by hand:
//!
//! - Devices do not notice that the SMMU refused their *data*: edu reads zeros, and NVMe reports success (and writes
//!   zeros to its disk). NVMe does notice for its queues ([`NvmeError::Fatal`]) and PRP lists
//!   ([`NvmeError::Command`], a Data Transfer Error).
//! - One refused transfer makes an event for every 4 bytes of it, over a thousand per page. A full event queue shows
//!   as `GERROR.EVENTQ_ABT_ERR`, not as an overflow flag, and the events that do not fit are lost.
//! - DMA to 2^48 and above does not reach the SMMU at all: it goes nowhere, and there is no event.
//! - A register of 32 bits cannot be read as half of 64: a 64-bit read of `IDR0` is 0.
//!
//! Not supported: interrupts (everything is polled), PCI bridges, more than one SMMU.

#![deny(unsafe_code)]

mod edu;
mod error;
mod find;
mod machine;
mod nvme;
mod pages;
mod pci;
mod platform;
mod process;
mod qtest;
#[allow(unsafe_code)]
mod ram;

pub use edu::{Edu, EduError};
pub use error::QemuError;
pub use find::{Qemu, Version};
pub use machine::{Machine, MachineConfig};
pub use nvme::{Buffer, Nvme, NvmeError, NvmeInfo, NvmeMemory};
pub use pci::{Bar, Bdf, Function};
pub use platform::{QemuMmio, QemuPlatform, YieldNow};
pub use qtest::Qtest;

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
//! | `pci` | finding the PCI functions, behind bridges too, and giving them addresses |
//! | `edu`, `nvme` | two devices that do DMA |
//! | `process` | the running QEMU: its end, and its last words |
//! | `machine` | command line and start-up |
//!
//! # What to know of QEMU's SMMU and devices
//!
//! Seen with 10.0.2 and 11.1.3, through this crate's tests and by hand:
//!
//! - The SMMU has both stages, range invalidation, ASIDs and VMIDs of 16 bits, 16 StreamID bits, 44 output address bits, and the granules of 4, 16
//!   and 64 KiB. It has no SubstreamIDs, no ATS and no PRI, and no device here has PASIDs.
//! - Devices do not notice that the SMMU refused their *data*: edu reads zeros, and NVMe reports success (and writes
//!   zeros to its disk). NVMe does notice for its queues ([`NvmeError::Fatal`]) and PRP lists
//!   ([`NvmeError::Command`], a Data Transfer Error).
//! - One refused transfer makes an event for every 4 bytes of it, over a thousand per page. A full event queue shows
//!   as `GERROR.EVENTQ_ABT_ERR`, not as an overflow flag, and the events that do not fit are lost.
//! - DMA to 2^48 and above does not reach the SMMU at all: it goes nowhere, and there is no event.
//! - A register of 32 bits cannot be read as half of 64: a 64-bit read of `IDR0` is 0.
//! - Where a stage 2 table begins with several concatenated tables, QEMU takes all of them for the first: an address
//!   that belongs to another is not found, and *is translated as* the address with the same low bits in the first. With
//!   39 input bits only 16 KiB pages have that, from 64 GiB on; with 40 to 43, 4 KiB pages have it, from 512 GiB on.
//!
//! # Two SMMUs
//!
//! A QEMU of version 10.2 or newer can have an SMMU in front of any root bus: see [`MachineConfig::smmus`] and
//! [`Qemu::has_several_smmus`]. Its warning that only `pcie.0` is in the device tree means nothing here, where nobody
//! reads the device tree. A conventional PCI device cannot be on the second root bus itself, so each `edu` there is
//! behind a root port.
//!
//! On a distribution whose QEMU is older, such a QEMU can run from a folder, without being installed. On Debian, this project's
//! `.ci/newer-qemu FOLDER` puts that of the suite `unstable` there, and prints what to name in `SMMUV3_QEMU`. Since it needs a newer C library,
//! its own loader starts it.
//!
//! Not supported: interrupts (everything is polled).

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

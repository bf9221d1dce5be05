//! A driver for the Arm SMMUv3 (IHI 0070), for kernels, hypervisors and firmware.
//!
//! > **When [`PagingDomain::unmap`] returns, no device can reach those pages any more.**
//!
//! An [`Iommu`] holds the SMMUs of a machine. Devices behind them are attached to domains; a domain owns a
//! translation table, and a small sorted *invalidation array* of all that must be invalidated when the table changes. Unmapping threads walk the
//! array under RCU: they take no lock of the domain, and where no device is attached they wait for nothing.
//!
//! A port implements [`Platform`](platform::Platform) and [`Mmio`](platform::Mmio). The software model in the crate
//! `smmuv3-model` is one.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use smmuv3::arch::{Prot, Stage};
//! use smmuv3::platform::Iova;
//! use smmuv3::{DeviceConfig, Geometry, Iommu, SmmuOptions};
//! # Ok(()) }
//! ```
//!
//! # Layers
//! From the ground up; a module uses what stands before it here.
//!
//! | module | what it is |
//! |---|---|
//! | [`arch`] | what the specification says, as data |
//! | [`platform`] | what the host gives |
//! | `rcu` | read sections and grace periods |
//! | `invs` | the invalidation array |
//! | `queue` | command and event queue |
//! | `table` | stream table, CD tables, the hitless entry writer |
//! | `pgtable` | translation tables: lock-free map, unmap, look up |
//! | `smmu` | one SMMU: probe, reset, faults |
//! | `domain` | what a device's addresses mean |
//! | `invalidate` | map and unmap: array + range → commands → submit everywhere → wait once |
//! | `attach` | the sequence that moves a device from one domain to another |
//! | `iommu` | the root object |

#![no_std]
#![cfg_attr(test, allow(clippy::disallowed_methods))]

extern crate alloc;

pub mod arch;
pub mod platform;

mod attach;
mod domain;
mod invalidate;
mod invs;
mod iommu;
mod pgtable;
mod queue;
mod rcu;
mod shared;
mod smmu;
mod table;
mod tags;
#[cfg(test)]
mod testing;

pub use attach::{AttachError, Device, Unconfirmed};
pub use domain::{DomainError, Geometry, Owed, PagingDomain};
pub use invalidate::{BadRange, InvalidateError, MapError, UnmapError, UnmapReport};
pub use invs::{Key, Kind};
pub use iommu::{AddDeviceError, DeviceConfig, Iommu, OutOfMemory, SmmuHandle};
pub use queue::{EventsTaken, QueueError};
pub use smmu::{AddSmmuError, GlobalErrors, SmmuId, SmmuOptions, Unsupported};
pub use table::StreamTableError;

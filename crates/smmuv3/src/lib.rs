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
//! use smmuv3::arch::{Prot, Stage};
//! use smmuv3::platform::Iova;
//! use smmuv3::{DeviceConfig, Geometry, Iommu, SmmuOptions};
//! # use smmuv3_model::{Model, ModelConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let model = Model::new(ModelConfig::default());
//! # let (platform, registers) = (model.platform(), model.mmio(0));
//! let iommu = Iommu::new(platform)?;
//! let smmu = iommu.add_smmu(registers, SmmuOptions::default())?; // probe and reset
//! let nic = iommu.add_device(&smmu, DeviceConfig::stream(0x18))?; // blocked for now
//! let domain = iommu.paging_domain(Stage::S1, Geometry::default())?;
//! nic.attach(&domain)?;
//! # let paddr = model.alloc_data(1).ok_or("no memory")?.addr();
//! domain.map(Iova(0x1000), paddr, 0x1000, Prot::READ | Prot::WRITE)?;
//! domain.unmap(Iova(0x1000), 0x1000)?; // returns when no device can reach the page
//! nic.detach()?;
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
//! | [`rcu`] | read sections and grace periods |
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
// The driver neither panics nor allocates infallibly (`clippy.toml` has the list).
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_macros))]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

extern crate alloc;

pub mod arch;
pub mod platform;
pub mod rcu;

mod attach;
mod domain;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod invalidate;
mod invs;
mod iommu;
#[cfg(all(test, loom))]
mod loom_tests;
mod pgtable;
mod primitive;
mod queue;
mod shared;
mod smmu;
mod table;
mod tags;
#[cfg(test)]
mod testing;

pub use attach::{AttachError, Device, PasidDomain, ReleaseError, Unconfirmed};
pub use domain::{
    Cover, DomainError, Geometry, GuestCommandError, GuestCommandFault, GuestSteError, MapStreamError, NestedDomain,
    Owed, PagingDomain, SvaDomain, SvaTable, VSmmu, VSmmuError,
};
pub use invalidate::{
    BadRange, DeferLimits, Deferred, Gather, InvalidateError, MapError, NotDeferred, UnmapError, UnmapReport,
};
pub use invs::{Key, Kind};
pub use iommu::{AddDeviceError, DeviceConfig, Iommu, OutOfMemory, SmmuHandle};
pub use queue::{Completion, EventsTaken, QueueError};
pub use smmu::{AddSmmuError, GlobalErrors, RemoveSmmuError, SmmuId, SmmuOptions, Unsupported};
pub use table::StreamTableError;

/// What the fuzzer needs of what is not public.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    /// Does to an invalidation array, and to a multiset of keys, what `input` says. Panics if they differ.
    pub fn array(input: &[u8]) {
        crate::invs::model::run(crate::invs::model::steps(input));
    }
}

#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

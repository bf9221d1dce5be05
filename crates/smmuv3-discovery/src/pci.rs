//! Which requester IDs the DMA of a PCI function may have where it leaves the PCI hierarchy.
//!
//! In PCI Express every function signs its requests with its own requester ID, and switches and root ports pass it on. Each
//! function of a multi-function device has its own. Conventional PCI has no such thing, so a bridge to it signs for whatever
//! is behind: *PCI Express to PCI/PCI-X Bridge Specification* 1.0, §2.3, has a PCIe-to-PCI bridge use the number
//! of its secondary bus with device and function 0, and a PCI-X request keep its own ID unless the bridge *takes ownership*. A bridge
//! whose upstream side is conventional PCI signs, in PCI-X, with its own ID.
//!
//! So a function behind such a bridge has several requester IDs, of which some may never be seen, and shares some with its
//! neighbours. **Functions that share one cannot be kept apart by any SMMU**: give them all to one `Device` with the StreamIDs of
//! all of them.
//!
//! Not covered: phantom functions (off unless *Phantom Functions Enable* is set), and devices with errata that use IDs of
//! functions that they do not have.

use core::fmt;
use core::iter;

use arrayvec::ArrayVec;

use crate::Stream;

/// A requester ID: bus, device and function as `bus << 8 | device << 3 | function`. With ARI, the lower 8 bits are one function
/// number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rid(pub u16);

impl Rid {
    /// Of `device` and `function` the lower 5 and 3 bits count.
    pub const fn new(bus: u8, device: u8, function: u8) -> Rid {
        Rid((bus as u16) << 8 | (device as u16 & 31) << 3 | (function as u16 & 7))
    }

    /// The bus number.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }
}

impl fmt::Display for Rid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.0 >> 3 & 31, self.0 & 7)
    }
}

/// A bridge between the root and a function: a function whose header type is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bridge {
    /// Its own requester ID.
    pub rid: Rid,
    /// What it is.
    pub kind: BridgeKind,
    /// Its Secondary Bus Number register (offset 0x19): the bus behind it.
    pub secondary: u8,
}

/// What a bridge does with the requester IDs of those behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BridgeKind {
    /// A root port, or an upstream or downstream port of a switch: PCIe on both sides, passes IDs on.
    Port,
    /// PCIe above, conventional PCI or PCI-X below.
    PcieToPci,
    /// Conventional PCI or PCI-X above, PCIe below.
    PciToPcie,
    /// It has no PCIe capability: conventional PCI on both sides. If what is above is PCIe nevertheless, it is a
    /// PCIe-to-PCI bridge that hides its capability.
    Conventional,
}

impl BridgeKind {
    /// From the PCI Express Capabilities register (offset 2 of the capability with the ID 0x10), or `None` if the bridge has no such
    /// capability. Bits 7:4 are the Device/Port Type (PCI Express Base Specification, §7.5.3.2). `None` if that
    /// is no bridge.
    pub const fn from_capability(register: Option<u16>) -> Option<BridgeKind> {
        let Some(register) = register else { return Some(BridgeKind::Conventional) };
        match register >> 4 & 0xf {
            0b0100..=0b0110 => Some(BridgeKind::Port),
            0b0111 => Some(BridgeKind::PcieToPci),
            0b1000 => Some(BridgeKind::PciToPcie),
            _ => None,
        }
    }

    const fn has_pcie_below(self) -> bool {
        matches!(self, BridgeKind::Port | BridgeKind::PciToPcie)
    }
}

/// A path that is none: what should be on bus `bus`, behind the bridge above it, is `below`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{below} is not on bus {bus:#04x}, which is behind the bridge above it")]
pub struct PathError {
    /// The function or bridge.
    pub below: Rid,
    /// The secondary bus of the bridge above it.
    pub bus: u8,
}

/// All requester IDs that DMA of `function` may have, each once, its own first. `path` has the bridges above it, beginning at the root
/// bus; it is empty for a function on the root bus itself.
///
/// ```
/// use smmuv3_discovery::pci::{Bridge, BridgeKind, Rid, requester_ids};
///
/// let port = Bridge { rid: Rid::new(0, 1, 0), kind: BridgeKind::Port, secondary: 1 };
/// let to_pci = Bridge { rid: Rid::new(1, 0, 0), kind: BridgeKind::PcieToPci, secondary: 2 };
/// let card = Rid::new(2, 5, 0);
/// let path = [port, to_pci];
/// assert!(requester_ids(card, &path)?.eq([card, Rid::new(2, 0, 0)]));
/// # Ok::<(), smmuv3_discovery::pci::PathError>(())
/// ```
///
/// # Errors
/// [`PathError`] if a bridge of the path, or the function, is not on the bus behind the bridge above it.
pub fn requester_ids(function: Rid, path: &[Bridge]) -> Result<impl Iterator<Item = Rid> + Clone, PathError> {
    let below = path.iter().skip(1).map(|bridge| bridge.rid).chain([function]);
    for (bridge, below) in path.iter().zip(below) {
        if below.bus() != bridge.secondary {
            return Err(PathError { below, bus: bridge.secondary });
        }
    }
    let ids = iter::once(function).chain((0..path.len()).rev().flat_map(|at| signatures(path, at)));
    let earlier = ids.clone();
    Ok(ids.enumerate().filter(move |(at, id)| !earlier.clone().take(*at).any(|other| other == *id)).map(|(_, id)| id))
}

/// What the bridge at `at` may sign with for those behind it.
fn signatures(path: &[Bridge], at: usize) -> impl Iterator<Item = Rid> + Clone {
    let Bridge { rid, kind, secondary } = path[at];
    // The root bus is PCIe.
    let pcie_above = path[..at].last().is_none_or(|above| above.kind.has_pcie_below());
    let behind = Rid::new(secondary, 0, 0);
    let (own, behind) = match kind {
        BridgeKind::Port => (None, None),
        BridgeKind::PcieToPci => (None, Some(behind)),
        BridgeKind::PciToPcie => (Some(rid), None),
        BridgeKind::Conventional => (Some(rid), pcie_above.then_some(behind)),
    };
    own.into_iter().chain(behind)
}

/// So many StreamIDs a device of the driver can have.
pub const MOST_STREAMS: usize = 16;

/// What a device of the driver needs: its SMMU, and all StreamIDs that its DMA may have there, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStreams {
    /// The [number](crate::SmmuDescription::number) of the SMMU.
    pub smmu: usize,
    /// The StreamIDs; that of the function's own requester ID comes first.
    pub ids: ArrayVec<u32, MOST_STREAMS>,
}

/// Why a function's StreamIDs are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamsError<E> {
    /// The path is none.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The table could not be read.
    #[error("{0}")]
    LookUp(E),
    /// Two requester IDs of the function go to different SMMUs, or one passes an SMMU and the other none.
    #[error("DMA of {function} as {other} does not pass the same SMMU")]
    Divided {
        /// The function.
        function: Rid,
        /// The requester ID that goes elsewhere.
        other: Rid,
    },
    /// More than [`MOST_STREAMS`].
    #[error("{0} has more than {MOST_STREAMS} StreamIDs")]
    TooMany(Rid),
}

/// The StreamIDs of `function`, whose [requester IDs](requester_ids) `look_up` maps. `None` if no SMMU is in front of any of
/// them.
///
/// # Errors
/// See [`StreamsError`].
pub fn device_streams<E>(
    function: Rid,
    path: &[Bridge],
    look_up: impl Fn(Rid) -> Result<Option<Stream>, E>,
) -> Result<Option<DeviceStreams>, StreamsError<E>> {
    let look_up = |rid| look_up(rid).map_err(StreamsError::LookUp);
    let own = look_up(function)?;
    let mut ids = ArrayVec::new();
    for rid in requester_ids(function, path)? {
        let stream = look_up(rid)?;
        if stream.map(|stream| stream.smmu) != own.map(|own| own.smmu) {
            return Err(StreamsError::Divided { function, other: rid });
        }
        if let Some(Stream { id, .. }) = stream.filter(|stream| !ids.contains(&stream.id)) {
            ids.try_push(id).map_err(|_| StreamsError::TooMany(function))?;
        }
    }
    Ok(own.map(|Stream { smmu, .. }| DeviceStreams { smmu, ids }))
}

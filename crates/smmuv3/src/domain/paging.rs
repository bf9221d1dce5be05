//! Paging domains: a translation table of the driver's own.

use crate::primitive::AtomicBool;
use core::fmt;

use super::{Owed, for_each_owed};
use crate::arch::{AddrSize, BadShape, Granule, Shape, Stage};
use crate::invs::Invs;
use crate::pgtable::PageTable;
use crate::platform::Platform;
use crate::shared::Shared;
use crate::smmu::Fleet;

/// The size and granule of a translation table, and how its changes are invalidated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The size of pages and tables. Default 4 KiB.
    pub granule: Granule,
    /// Bits of an IOVA, 39 to 48. Default 39 (512 GiB).
    pub input_bits: u8,
    /// The size of the addresses that are mapped to. Default 44 bits; a domain attaches only to SMMUs that have as many.
    pub output_size: AddrSize,
    /// How closely an invalidation follows the range that changed. Default: with few commands.
    pub cover: Cover,
}

impl Default for Geometry {
    fn default() -> Self {
        Geometry { granule: Granule::K4, input_bits: 39, output_size: AddrSize::from_code(4), cover: Cover::Few }
    }
}

/// How closely the invalidation of a range follows the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Cover {
    /// Few commands: one TLBI for each tag, which covers less than 1/16 too much; one or two ATC_INVs for each ATC, which together cover less
    /// than twice the range.
    #[default]
    Few,
    /// Nothing but the range: up to 8 TLBIs for each tag, and up to `2 log2(n)` ATC_INVs for each ATC, of a range of n pages, or of n smallest translation
    /// units where those are larger. For devices that need long to fill their ATC again.
    Exact,
}

/// Why there is no such domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// The geometry is impossible.
    #[error(transparent)]
    Shape(#[from] BadShape),
    /// No memory.
    #[error("out of memory")]
    NoMemory,
    /// The platform's memory, in which the table itself would lie, is beyond the output size.
    #[error("memory up to {end:#x} is beyond the domain's {bits} output address bits")]
    Memory {
        /// The first address behind the platform's memory.
        end: u64,
        /// Output bits.
        bits: u8,
    },
}

/// A translation table that devices can be attached to. Cheap to clone; all clones are the same domain.
///
/// Any stage 2 domain may also be the parent of vSMMUs. Its memory is freed when the last clone is gone and the last device is detached.
pub struct PagingDomain<P: Platform>(pub(crate) Shared<Paging<P>>);

pub(crate) struct Paging<P: Platform> {
    pub(crate) fleet: Shared<Fleet<P>>,
    pub(crate) table: PageTable<P>,
    /// Replaced and unref'd only under the attach mutex.
    pub(crate) invs: Invs<P>,
    pub(crate) cover: Cover,
    /// An invalidation failed: what the TLBs hold need not be what the table had last.
    pub(crate) in_doubt: AtomicBool,
}

impl<P: Platform> PagingDomain<P> {
    pub(crate) fn new(fleet: &Shared<Fleet<P>>, stage: Stage, geometry: Geometry) -> Result<Self, DomainError> {
        let shape = Shape::new(stage, geometry.granule, geometry.input_bits, geometry.output_size)?;
        let window = fleet.platform.window();
        let (end, bits) = (window.base().0.saturating_add(window.size()), shape.output_size().bits());
        if end > 1 << bits {
            return Err(DomainError::Memory { end, bits });
        }
        let no_memory = |_| DomainError::NoMemory;
        let table = PageTable::new(&fleet.platform, shape).ok_or(DomainError::NoMemory)?;
        let invs = Invs::try_new(fleet.rcu.clone()).map_err(no_memory)?;
        let in_doubt = AtomicBool::new(false);
        let paging = Paging { fleet: fleet.clone(), table, invs, cover: geometry.cover, in_doubt };
        Ok(PagingDomain(Shared::try_new(paging).map_err(no_memory)?))
    }

    /// The stage that the table is for.
    pub fn stage(&self) -> Stage {
        self.0.table.shape().stage()
    }

    /// The granule: every address and length given to the domain is a multiple of it.
    pub fn granule(&self) -> Granule {
        self.0.table.shape().granule()
    }

    /// Calls `each` for every invalidation that the domain owes after a change, in order. Devices may be attached and detached
    /// meanwhile, and by `each` too.
    pub fn owed(&self, each: impl FnMut(Owed)) {
        for_each_owed(&self.0.invs, each);
    }
}

impl<P: Platform> Clone for PagingDomain<P> {
    fn clone(&self) -> Self {
        PagingDomain(self.0.clone())
    }
}

impl<P: Platform> fmt::Debug for PagingDomain<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = self.0.table.shape();
        write!(f, "PagingDomain({}, {}, {} input bits; owes [", shape.stage(), shape.granule(), shape.input_bits())?;
        let mut separator = "";
        let mut result = Ok(());
        self.owed(|Owed { key, users }| {
            result = result.and_then(|()| write!(f, "{separator}{key:?} ×{users}"));
            separator = ", ";
        });
        result?;
        f.write_str("])")
    }
}

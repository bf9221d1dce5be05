//! Shared virtual addressing: a table that somebody else owns (a CPU's process), for a PASID.

use crate::primitive::{AtomicBool, Ordering};
use allocator_api2::vec::Vec;
use lock_api::Mutex;

use super::{DomainError, Owed, for_each_owed};
use crate::arch::{Shape, Stage};
use crate::attach::DeviceInner;
use crate::invs::Invs;
use crate::platform::{PhysAddr, Platform};
use crate::shared::Shared;
use crate::smmu::Fleet;

use super::Geometry;

/// Where a foreign stage 1 table is and what it looks like: VMSAv8-64, for addresses from 0 up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SvaTable {
    /// `TTB0`: the start table, aligned as the architecture demands.
    pub root: PhysAddr,
    /// Its granule, input bits and output size, and how its changes are invalidated.
    pub geometry: Geometry,
    /// `MAIR`: the eight memory attributes that its descriptors index.
    pub mair: u64,
}

/// A stage 1 table that somebody else owns and changes. Cheap to clone; all clones are the same domain.
///
/// Its owner calls [`invalidate`](SvaDomain::invalidate) after each change that takes rights away, before the pages are used for anything else,
/// and [`release`](SvaDomain::release) before the table itself goes. Devices behind an SMMU that does not look into the CPU's caches (`IDR0.COHACC` = 0) can't
/// use it.
pub struct SvaDomain<P: Platform>(pub(crate) Shared<Sva<P>>);

pub(crate) struct Sva<P: Platform> {
    pub(crate) fleet: Shared<Fleet<P>>,
    pub(crate) table: SvaTable,
    pub(crate) shape: Shape,
    /// Replaced and unref'd only under the attach mutex.
    pub(crate) invs: Invs<P>,
    /// The table is gone: whoever is attached faults. Changed only under the attach mutex.
    pub(crate) released: AtomicBool,
    /// A device for each attached PASID; those of one device stand as often. Changed only under the attach mutex.
    pub(crate) users: Mutex<P::RawMutex, Vec<Shared<DeviceInner<P>>>>,
}

impl<P: Platform> SvaDomain<P> {
    pub(crate) fn new(fleet: &Shared<Fleet<P>>, table: SvaTable) -> Result<Self, DomainError> {
        let Geometry { granule, input_bits, output_size, .. } = table.geometry;
        let shape = Shape::new(Stage::S1, granule, input_bits, output_size)?;
        let no_memory = |_| DomainError::NoMemory;
        let invs = Invs::try_new(fleet.rcu.clone()).map_err(no_memory)?;
        let sva = Sva {
            fleet: fleet.clone(),
            table,
            shape,
            invs,
            released: AtomicBool::new(false),
            users: Mutex::new(Vec::new()),
        };
        Ok(SvaDomain(Shared::try_new(sva).map_err(no_memory)?))
    }

    /// Calls `each` for every invalidation that the domain owes after a change, in order.
    pub fn owed(&self, each: impl FnMut(Owed)) {
        for_each_owed(&self.0.invs, each);
    }

    /// Whether [`release`](Self::release) was called.
    pub fn is_released(&self) -> bool {
        self.0.released.load(Ordering::Acquire)
    }
}

impl<P: Platform> Clone for SvaDomain<P> {
    fn clone(&self) -> Self {
        SvaDomain(self.0.clone())
    }
}

impl<P: Platform> core::fmt::Debug for SvaDomain<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SvaDomain({})", self.0.table.root)
    }
}

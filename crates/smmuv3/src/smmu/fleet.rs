//! All SMMUs of an `Iommu`, by their index: what invalidation looks an entry's SMMU up in.

use allocator_api2::alloc::AllocError;
use allocator_api2::boxed::Box;
use allocator_api2::vec::Vec;
use lock_api::Mutex;

use super::{Smmu, SmmuId};
use crate::platform::Platform;
use crate::rcu::{Loaded, Published, Rcu, Retired};
use crate::shared::Shared;

/// SMMUs an `Iommu` can have.
pub(crate) const MAX_SMMUS: usize = 64;

/// A version of the fleet. The index of an SMMU is its place.
pub(crate) struct Members<P: Platform>(Vec<Shared<Smmu<P>>>);

/// All SMMUs of one `Iommu`, and what they share.
pub(crate) struct Fleet<P: Platform> {
    pub(crate) platform: P,
    pub(crate) rcu: Shared<Rcu<P>>,
    /// The attach mutex: who changes an invalidation array, an STE, a CD or the fleet holds it. Unmapping never takes it.
    pub(crate) attach: Mutex<P::RawMutex, ()>,
    members: Published<Members<P>, P>,
}

impl<P: Platform> Members<P> {
    pub(crate) fn get(&self, index: u8) -> Option<&Shared<Smmu<P>>> {
        self.0.get(usize::from(index))
    }
}

impl<P: Platform> Fleet<P> {
    pub(crate) fn new(platform: P) -> Result<Self, AllocError> {
        let rcu = Shared::try_new(Rcu::new(platform.clone()))?;
        let members = Published::try_new(Members(Vec::new()), rcu.clone())?;
        Ok(Fleet { platform, rcu, attach: Mutex::new(()), members })
    }

    /// The members now, in a read section.
    pub(crate) fn load(&self) -> Loaded<'_, Members<P>> {
        self.members.load()
    }

    /// The index that the next SMMU gets; `None` if there are too many. The caller holds the attach mutex.
    pub(crate) fn next_id(&self) -> Option<SmmuId> {
        let count = self.load().0.len();
        (count < MAX_SMMUS).then_some(SmmuId(count as u8))
    }

    /// Adds an SMMU at [`next_id`](Self::next_id). The caller holds the attach mutex.
    pub(crate) fn add(&self, smmu: Shared<Smmu<P>>) -> Result<(), AllocError> {
        let mut next = Vec::new();
        {
            let members = self.load();
            next.try_reserve_exact(members.0.len() + 1).map_err(|_| AllocError)?;
            next.extend(members.0.iter().cloned());
        }
        next.extend([smmu]);
        let old = self.members.publish(Box::try_new(Members(next))?);
        Retired::free(&self.rcu, [Some(old)]);
        Ok(())
    }
}

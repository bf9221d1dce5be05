//! All SMMUs of an `Iommu`, by their index: what invalidation looks an entry's SMMU up in.

use crate::primitive::Ordering;
use allocator_api2::alloc::AllocError;
use allocator_api2::vec::Vec;
use lock_api::Mutex;

use super::{Smmu, SmmuId};
use crate::platform::Platform;
use crate::rcu::{Loaded, Published, Sections, Version};
use crate::shared::Shared;

/// SMMUs an `Iommu` can have.
pub(crate) const MAX_SMMUS: usize = 64;

/// A version of the fleet. The index of an SMMU is its place.
pub(crate) struct Members<P: Platform>(Vec<Option<Shared<Smmu<P>>>>);

/// All SMMUs of one `Iommu`, and what they share.
pub(crate) struct Fleet<P: Platform> {
    pub(crate) platform: P,
    pub(crate) rcu: Shared<Sections<P>>,
    /// The attach mutex: who changes an invalidation array, an STE, a CD or the fleet holds it. Unmapping never takes it.
    pub(crate) attach: Mutex<P::RawMutex, ()>,
    members: Published<Members<P>, P>,
}

impl<P: Platform> Members<P> {
    pub(crate) fn get(&self, index: u8) -> Option<&Shared<Smmu<P>>> {
        self.0.get(usize::from(index))?.as_ref()
    }
}

impl<P: Platform> Fleet<P> {
    pub(crate) fn new(platform: P) -> Result<Self, AllocError> {
        let rcu = Shared::try_new(Sections::new(platform.clone()))?;
        let members = Published::try_new(Members(Vec::new()), rcu.clone())?;
        Ok(Fleet { platform, rcu, attach: Mutex::new(()), members })
    }

    /// The members now, in a read section.
    pub(crate) fn load(&self) -> Loaded<'_, Members<P>, P> {
        self.members.load()
    }

    /// Whether this SMMU is one of the members.
    pub(crate) fn has(&self, smmu: &Shared<Smmu<P>>) -> bool {
        self.load().get(smmu.id.index()).is_some_and(|member| member.same(smmu))
    }

    /// The index that the next SMMU gets: the first that is free; `None` if there are too many. The caller holds the attach mutex.
    pub(crate) fn next_id(&self) -> Option<SmmuId> {
        let members = self.load();
        let free = members.0.iter().position(Option::is_none).unwrap_or(members.0.len());
        (free < MAX_SMMUS).then_some(SmmuId(free as u8))
    }

    /// Adds an SMMU at [`next_id`](Self::next_id). The caller holds the attach mutex.
    pub(crate) fn add(&self, smmu: Shared<Smmu<P>>) -> Result<(), AllocError> {
        let index = usize::from(smmu.id.index());
        self.replace(index, Some(smmu))
    }

    /// Takes an SMMU out. When it returns, nothing touches it any more.
    pub(crate) fn remove(&self, smmu: &Shared<Smmu<P>>) -> Result<(), RemoveSmmuError> {
        let _turn = self.attach.lock();
        let id = smmu.id;
        if !self.has(smmu) {
            return Err(RemoveSmmuError::NotThere(id));
        }
        // Only holders of the attach mutex make it more.
        let users = smmu.users.load(Ordering::Relaxed);
        if users > 0 {
            return Err(RemoveSmmuError::InUse { smmu: id, users });
        }
        // After the grace period in here, nobody who looked it up is still using it.
        self.replace(usize::from(id.index()), None).map_err(|_| RemoveSmmuError::NoMemory)?;
        smmu.retire().map_err(|_| RemoveSmmuError::NotAcknowledged(id))
    }

    fn replace(&self, index: usize, smmu: Option<Shared<Smmu<P>>>) -> Result<(), AllocError> {
        let mut next = Vec::new();
        {
            let members = self.load();
            next.try_reserve_exact(members.0.len() + 1).map_err(|_| AllocError)?;
            next.extend(members.0.iter().cloned());
        }
        match next.get_mut(index) {
            Some(place) => *place = smmu,
            None => next.extend([smmu]),
        }
        // Before any array that lists the SMMU. litmus: fleet-member
        self.members.publish(Version::try_new(Members(next))?);
        self.rcu.synchronize();
        self.members.reclaim();
        Ok(())
    }
}

/// Why an SMMU was not removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RemoveSmmuError {
    /// There are devices behind it, or vSMMUs on it.
    #[error("{smmu} has {users} devices and vSMMUs")]
    InUse {
        /// The SMMU.
        smmu: SmmuId,
        /// How many.
        users: usize,
    },
    /// It was removed already, or belongs to another `Iommu`.
    #[error("{0} is not one of this Iommu's")]
    NotThere(SmmuId),
    /// No memory to note it; nothing was changed.
    #[error("out of memory")]
    NoMemory,
    /// It is removed, but did not acknowledge that it stopped: its memory is never given back.
    #[error("{0} was removed but did not acknowledge that it stopped")]
    NotAcknowledged(SmmuId),
}

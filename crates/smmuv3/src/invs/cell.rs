//! A domain's array: published for unmapping threads, changed by attaching ones.

use allocator_api2::alloc::AllocError;
use allocator_api2::boxed::Box;

use super::{InvArray, Key, Kind, NotPresent};
use crate::platform::Platform;
use crate::rcu::{Loaded, Published, Reader, Sections, Version};
use crate::shared::Shared;

/// The invalidations that a domain owes. Changed only under the attach mutex.
pub(crate) struct Invs<P: Platform>(Published<InvArray, P>);

/// A merged array that is ready to be published.
pub(crate) struct Merged(Box<Version<InvArray>>);

impl<P: Platform> Invs<P> {
    pub(crate) fn try_new(sections: Shared<Sections<P>>) -> Result<Self, AllocError> {
        Published::try_new(InvArray::empty(), sections).map(Invs)
    }

    /// Enters a read section, in which the array may be loaded later.
    pub(crate) fn enter(&self) -> Reader<'_, InvArray, P> {
        self.0.enter()
    }

    /// Enters a read section, which passes barrier (A), and loads the array.
    pub(crate) fn load(&self) -> Loaded<'_, InvArray, P> {
        self.0.load()
    }

    /// The array with one user more for each of `keys`, which are sorted. Nothing has changed yet.
    pub(crate) fn merge(&self, keys: &[Key]) -> Result<Merged, AllocError> {
        let merged = self.load().merge(keys)?;
        Version::try_new(merged).map(Merged)
    }

    /// Publishes what was merged: from the caller's next write barrier on, whoever changes a descriptor invalidates for the new entries too, or the
    /// hardware has not seen the descriptor yet.
    pub(crate) fn publish(&self, merged: Merged) {
        self.0.publish(merged.0);
    }

    /// Takes one user of each of `keys` out. `last_tag` is called for a tag that lost its last user. Cannot fail.
    pub(crate) fn leave(&self, keys: &[Key], mut last_tag: impl FnMut(Key)) {
        let array = self.load();
        let result = array.unref(keys, |key| {
            if matches!(key.kind(), Kind::S1Asid | Kind::S2Vmid) {
                last_tag(key);
            }
        });
        // The entries were merged when the device was attached.
        debug_assert_eq!(result, Ok::<(), NotPresent>(()));
        let (len, trash) = array.counts();
        // Without memory the trash simply stays.
        let purged = if trash * 2 > len { array.purge().ok().flatten() } else { None };
        drop(array);
        if let Some(version) = purged.and_then(|purged| Version::try_new(purged).ok()) {
            self.0.publish(version);
        }
    }

    /// Frees superseded arrays, if that takes no long wait for readers.
    pub(crate) fn reclaim(&self) {
        self.0.reclaim();
    }
}

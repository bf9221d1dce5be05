//! A published value: readers see some version, writers replace it, old versions are freed after a grace period.

use allocator_api2::alloc::AllocError;
use allocator_api2::boxed::Box;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, Ordering};

use super::{Rcu, ReadGuard};
use crate::platform::Platform;
use crate::shared::Shared;

/// A `T` that readers may load at any time and a writer may replace.
///
/// # Invariants
/// - `value` came from a `Box`, which this cell owns.
/// - A value that was replaced is freed only after a grace period of `rcu`, the one that readers enter.
pub(crate) struct Published<T, P: Platform> {
    value: AtomicPtr<T>,
    rcu: Shared<Rcu<P>>,
}

/// A version that readers may still be using. Forgotten, not freed, if it is dropped.
pub(crate) struct Retired<T>(NonNull<T>);

// SAFETY: a `Retired` owns its `T`, which readers on other threads may share.
unsafe impl<T: Send + Sync> Send for Retired<T> {}

/// A version that stays alive while this is.
pub(crate) struct Loaded<'a, T> {
    value: &'a T,
    _section: ReadGuard<'a>,
}

impl<T: Send + Sync, P: Platform> Published<T, P> {
    pub(crate) fn try_new(value: T, rcu: Shared<Rcu<P>>) -> Result<Self, AllocError> {
        Ok(Published { value: AtomicPtr::new(Box::into_raw(Box::try_new(value)?)), rcu })
    }

    /// Enters a read section, then loads the version that is published now.
    pub(crate) fn load(&self) -> Loaded<'_, T> {
        let section = self.rcu.enter();
        // Acquire: the contents come after the pointer. Partner: the Release in `publish`.
        let value = self.value.load(Ordering::Acquire);
        // SAFETY: from a `Box` (invariant 1), and loaded inside a read section that lasts as long as the reference: its
        // freeing waits for this reader (invariant 2).
        Loaded { value: unsafe { &*value }, _section: section }
    }

    /// Replaces the value. The old version goes to [`Retired::free`].
    ///
    /// The caller orders what it does next, for which readers must see the new version, with a barrier.
    pub(crate) fn publish(&self, value: Box<T>) -> Retired<T> {
        let old = self.value.swap(Box::into_raw(value), Ordering::AcqRel);
        // SAFETY: from `Box::into_raw`, so not null.
        Retired(unsafe { NonNull::new_unchecked(old) })
    }
}

impl<T> Retired<T> {
    /// Waits for a grace period, then frees all of `retired`.
    ///
    /// `rcu` is the one of the cells they came from. There is one for each `Iommu`, and cells do not leave theirs.
    pub(crate) fn free<P: Platform, const N: usize>(rcu: &Rcu<P>, retired: [Option<Retired<T>>; N]) {
        if retired.iter().all(Option::is_none) {
            return;
        }
        rcu.synchronize();
        for Retired(value) in retired.into_iter().flatten() {
            // SAFETY: from a `Box`, no longer published, and no reader can have it any more after the grace period.
            drop(unsafe { Box::from_raw(value.as_ptr()) });
        }
    }
}

impl<T> Deref for Loaded<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.value
    }
}

impl<T, P: Platform> Drop for Published<T, P> {
    fn drop(&mut self) {
        // SAFETY: from a `Box` (invariant 1); `&mut self` says that no reader borrows the cell.
        drop(unsafe { Box::from_raw(*self.value.get_mut()) });
    }
}

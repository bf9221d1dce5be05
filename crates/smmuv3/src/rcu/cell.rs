//! A published value: readers see some version, writers replace it, old versions are freed after a grace period.

use allocator_api2::alloc::AllocError;
use allocator_api2::boxed::Box;
use core::ops::Deref;
use core::ptr;

use super::{Guard, Sections};
use crate::platform::Platform;
use crate::primitive::{AtomicPtr, Ordering};
use crate::shared::Shared;

/// One version of a published value.
pub(crate) struct Version<T> {
    value: T,
    /// Of a superseded version: another that was superseded.
    next: AtomicPtr<Version<T>>,
}

impl<T> Version<T> {
    pub(crate) fn try_new(value: T) -> Result<Box<Self>, AllocError> {
        Box::try_new(Version { value, next: AtomicPtr::new(ptr::null_mut()) })
    }
}

/// A `T` that readers may load at any time and a writer may replace.
///
/// Superseded versions wait in a list until [`reclaim`](Self::reclaim) finds a grace period, or the cell is dropped.
///
/// # Invariants
/// - `current` and all of `superseded` came from `Box`es, which this cell owns; each stands in one place.
/// - A version is freed only after a grace period of `sections`, the ones that readers enter, that began after the version was superseded; or when
///   nobody can borrow the cell any more.
pub(crate) struct Published<T, P: Platform> {
    current: AtomicPtr<Version<T>>,
    superseded: AtomicPtr<Version<T>>,
    sections: Shared<Sections<P>>,
}

// SAFETY: the cell owns its versions, and hands out `&T` on any thread.
unsafe impl<T: Send + Sync, P: Platform> Send for Published<T, P> {}
// SAFETY: as for `Send`.
unsafe impl<T: Send + Sync, P: Platform> Sync for Published<T, P> {}

/// A version that stays alive while this is.
pub(crate) struct Loaded<'a, T, P: Platform> {
    value: &'a T,
    _section: Guard<'a, P>,
}

/// A read section of a cell.
pub(crate) struct Reader<'a, T, P: Platform> {
    cell: &'a Published<T, P>,
    _section: Guard<'a, P>,
}

impl<T: Send + Sync, P: Platform> Reader<'_, T, P> {
    /// Passes barrier (A), then loads the version that is published now: a descriptor that was changed before, in this section or earlier, is visible
    /// to the SMMU before the load.
    pub(crate) fn load(&self) -> &T {
        // litmus: publication, publication-again
        self.cell.sections.barrier_a();
        // SAFETY: the section lasts as long as the reader, which is borrowed.
        unsafe { self.cell.current() }
    }
}

impl<T: Send + Sync, P: Platform> Published<T, P> {
    pub(crate) fn try_new(value: T, sections: Shared<Sections<P>>) -> Result<Self, AllocError> {
        let current = AtomicPtr::new(Box::into_raw(Version::try_new(value)?));
        Ok(Published { current, superseded: AtomicPtr::new(ptr::null_mut()), sections })
    }

    /// Enters a read section, in which the value may be loaded later.
    pub(crate) fn enter(&self) -> Reader<'_, T, P> {
        Reader { cell: self, _section: self.sections.enter() }
    }

    /// Enters a read section, then loads the version that is published now.
    pub(crate) fn load(&self) -> Loaded<'_, T, P> {
        let section = self.sections.enter();
        // SAFETY: inside a read section that lasts as long as the reference.
        Loaded { value: unsafe { self.current() }, _section: section }
    }

    /// The version that is published now.
    ///
    /// # Safety
    /// The caller is inside a read section of `sections`, and stays there for as long as it uses the reference.
    unsafe fn current(&self) -> &T {
        // Acquire: the contents come after the pointer. Partner: the Release in `publish`. litmus: array-contents
        let current = self.current.load(Ordering::Acquire);
        // SAFETY: from a `Box` (invariant 1), and loaded inside a read section that lasts as long as the reference (the caller's promise): its
        // freeing waits for this reader (invariant 2).
        let version = unsafe { &*current };
        &version.value
    }

    /// Replaces the value.
    ///
    /// The caller orders what it does next, for which readers must see the new version, with a barrier.
    pub(crate) fn publish(&self, version: Box<Version<T>>) {
        // litmus: array-contents, publication
        let old = self.current.swap(Box::into_raw(version), Ordering::AcqRel);
        self.put_back(old);
    }

    /// Frees the versions that were superseded before, if that takes no long wait for readers. If it would, they stay for the next time.
    pub(crate) fn reclaim(&self) {
        // Acquire: the links come after the head. Partner: the Release in `put_back`.
        let chain = self.superseded.swap(ptr::null_mut(), Ordering::Acquire);
        if chain.is_null() {
            return;
        }
        // litmus: rcu-free
        if self.sections.try_synchronize() {
            // SAFETY: from the list, so superseded, and in no other place now; a grace period has passed since (invariant 2).
            unsafe { free(chain) };
        } else {
            self.put_back(chain);
        }
    }

    /// Adds a chain of superseded versions to the list.
    fn put_back(&self, chain: *mut Version<T>) {
        let mut last = chain;
        let last = loop {
            // SAFETY: alive, being in a chain that this cell owns and nobody frees meanwhile: it is in no list.
            let version = unsafe { &*last };
            match version.next.load(Ordering::Relaxed) {
                next if next.is_null() => break version,
                next => last = next,
            }
        };
        let mut head = self.superseded.load(Ordering::Relaxed);
        loop {
            last.next.store(head, Ordering::Relaxed);
            // Release: the links come before the head. Partner: the Acquire in `reclaim`.
            match self.superseded.compare_exchange_weak(head, chain, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}

/// Frees a chain of versions.
///
/// # Safety
/// All came from `Box`es, which nobody else owns, and no reader has any of them.
unsafe fn free<T>(mut chain: *mut Version<T>) {
    while !chain.is_null() {
        // SAFETY: the caller's promise.
        let version = unsafe { Box::from_raw(chain) };
        chain = version.next.load(Ordering::Relaxed);
    }
}

impl<T, P: Platform> Deref for Loaded<'_, T, P> {
    type Target = T;
    fn deref(&self) -> &T {
        self.value
    }
}

impl<T, P: Platform> Drop for Published<T, P> {
    fn drop(&mut self) {
        // Relaxed: `&mut self` says that no reader borrows the cell, and that all that was done with it comes before.
        for chain in [&self.current, &self.superseded] {
            // SAFETY: from `Box`es that the cell owns (invariant 1), and no reader is left.
            unsafe { free(chain.load(Ordering::Relaxed)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestPlatform;
    use core::sync::atomic::AtomicUsize;

    struct Numbered<'a>(usize, &'a AtomicUsize);

    impl Drop for Numbered<'_> {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn versions_live_as_long_as_their_readers_and_are_freed_once() {
        let drops = AtomicUsize::new(0);
        let freed = || drops.load(Ordering::Relaxed);
        let sections = Shared::try_new(Sections::new(TestPlatform::new(4))).unwrap();
        let cell = Published::try_new(Numbered(0, &drops), sections).unwrap();
        let publish = |number| cell.publish(Version::try_new(Numbered(number, &drops)).unwrap());
        let first = cell.load();
        publish(1);
        publish(2);
        cell.reclaim();
        assert_eq!((first.0, cell.load().0, freed()), (0, 2, 0), "a reader is inside");
        // What waits is joined by more, and goes at once.
        publish(3);
        drop(first);
        cell.reclaim();
        assert_eq!((cell.load().0, freed()), (3, 3));
        // And with the cell goes what waits in it.
        publish(4);
        drop(cell);
        assert_eq!(freed(), 5);
    }
}

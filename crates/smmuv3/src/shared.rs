//! A reference-counted pointer whose allocation can fail; `alloc::sync::Arc` has no stable such thing.

use allocator_api2::alloc::AllocError;
use allocator_api2::boxed::Box;
use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;

#[cfg(not(thread_sanitizer))]
use crate::primitive::fence;
use crate::primitive::{AtomicUsize, Ordering};

struct Counted<T> {
    owners: AtomicUsize,
    value: T,
}

/// Shared ownership of a `T` on the heap.
///
/// # Invariants
/// `inner` came from a `Box` and is alive as long as `owners`, the number of `Shared`s to it, is not 0.
pub(crate) struct Shared<T> {
    inner: NonNull<Counted<T>>,
}

// SAFETY: like `Arc`: owners on several threads share `&T`, and the last may drop `T` on any of them.
unsafe impl<T: Send + Sync> Send for Shared<T> {}
// SAFETY: as for `Send`.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn try_new(value: T) -> Result<Self, AllocError> {
        let counted = Box::try_new(Counted { owners: AtomicUsize::new(1), value })?;
        // INVARIANT: from a `Box`, one owner.
        Ok(Shared { inner: NonNull::from(Box::leak(counted)) })
    }

    /// Whether both point to the same value.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.inner == other.inner
    }

    fn counted(&self) -> &Counted<T> {
        // SAFETY: alive while `self` is an owner; only shared references are ever made.
        unsafe { self.inner.as_ref() }
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.counted().value
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        // Relaxed, as in `Arc`: a new owner comes from an owner. The count cannot wrap: each owner takes 8 bytes of the address space,
        // and none is ever forgotten by this crate.
        self.counted().owners.fetch_add(1, Ordering::Relaxed);
        Shared { inner: self.inner }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Release: this owner's accesses come before the drop of the value. Partner: the fence below.
        // litmus: shared-drop
        if self.counted().owners.fetch_sub(1, Ordering::Release) == 1 {
            #[cfg(not(thread_sanitizer))]
            fence(Ordering::Acquire);
            // That tool knows of no fences. To it this is the same: it sees what the other owners released.
            #[cfg(thread_sanitizer)]
            self.counted().owners.load(Ordering::Acquire);
            // SAFETY: from a `Box`, and this was the last owner.
            drop(unsafe { Box::from_raw(self.inner.as_ptr()) });
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::thread;

    #[test]
    fn the_value_is_dropped_once_by_the_last_of_many_owners() {
        struct Count<'a>(&'a AtomicUsize);
        impl Drop for Count<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let drops = AtomicUsize::new(0);
        let first = Shared::try_new(Count(&drops)).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                let owner = first.clone();
                assert!(owner.same(&first));
                scope.spawn(move || {
                    for _ in 0..1000 {
                        drop(owner.clone());
                    }
                });
            }
        });
        assert_eq!(drops.load(Ordering::Relaxed), 0);
        drop(first);
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    }

    /// one owner               the last owner
    /// read the value          its decrement sees the other's
    /// decrement               free the value
    #[test]
    fn whoever_is_last_frees_what_the_others_have_done_with() {
        for round in 0..200 {
            let first = Shared::try_new(std::vec![round; 8]).unwrap();
            thread::scope(|scope| {
                for _ in 0..3 {
                    let owner = first.clone();
                    scope.spawn(move || assert_eq!(owner.iter().sum::<usize>(), 8 * round));
                }
                drop(first);
            });
        }
    }
}

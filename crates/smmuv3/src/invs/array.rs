//! The array: merge, unref, purge, walk.

use allocator_api2::alloc::AllocError;
use allocator_api2::vec::Vec;

use super::entry::{Entry, Key};
use crate::primitive::{AtomicUsize, Ordering};

/// A sorted array of the invalidations that a domain owes.
///
/// # Invariants
/// - Keys of `entries` strictly increase.
/// - `len <= entries.len()`; entries at and after `len` are trash.
/// - `trash` is the number of trash entries before `len`.
///
/// Any number of threads walk it; one at a time (the holder of the attach mutex) calls [`unref`](Self::unref).
#[derive(Debug)]
pub(crate) struct InvArray {
    entries: Vec<Entry>,
    len: AtomicUsize,
    trash: AtomicUsize,
}

/// A key that was to be removed has no user: a bug of the caller. Nothing was changed for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotPresent(pub(crate) Key);

impl InvArray {
    /// An array with no entries; allocates nothing.
    pub(crate) fn empty() -> Self {
        InvArray { entries: Vec::new(), len: AtomicUsize::new(0), trash: AtomicUsize::new(0) }
    }

    /// Each entry that has a user, in order, with the number of its users.
    #[inline]
    pub(crate) fn live(&self) -> impl Iterator<Item = (Key, u32)> {
        // A reader that sees an old, larger `len` walks over trash: relaxed is enough.
        let len = self.len.load(Ordering::Relaxed).min(self.entries.len());
        self.entries[..len].iter().map(|entry| (entry.key, entry.users())).filter(|(_, users)| *users > 0)
    }

    /// Entries up to the last that has a user: (all of them, the trash among them).
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.len.load(Ordering::Relaxed), self.trash.load(Ordering::Relaxed))
    }

    /// The array with one user more for each of `add`, and without the trash. `self` stays as it is.
    ///
    /// `add` is sorted; a key that stands in it twice counts twice.
    pub(crate) fn merge(&self, add: &[Key]) -> Result<InvArray, AllocError> {
        debug_assert!(add.is_sorted());
        let mut entries = Vec::new();
        entries.try_reserve_exact(self.live().count() + add.len()).map_err(|_| AllocError)?;
        let mut base = self.live().peekable();
        let mut add = add.iter().copied().peekable();
        loop {
            // The smaller head; the base's on a tie, so that its users come first and `add` counts on top.
            let (key, mut users) = match (base.peek(), add.peek()) {
                (Some(&(key, _)), Some(&new)) if new < key => (new, 0),
                (None, Some(&new)) => (new, 0),
                (Some(&(key, users)), _) => {
                    base.next();
                    (key, users)
                }
                (None, None) => break,
            };
            while add.next_if_eq(&key).is_some() {
                users += 1;
            }
            // Within the reserved capacity: at most one for each live entry and each of `add`.
            entries.extend([Entry::new(key, users)]);
        }
        let len = AtomicUsize::new(entries.len());
        Ok(InvArray { entries, len, trash: AtomicUsize::new(0) })
    }

    /// One user less for each of `remove`, which is sorted, in place. Allocates nothing.
    ///
    /// Where that was the last user, `on_last` is called at once with the key; trash at the end leaves the length. A key without a
    /// user is an error, the first of which is returned once all others were removed.
    pub(crate) fn unref(&self, remove: &[Key], mut on_last: impl FnMut(Key)) -> Result<(), NotPresent> {
        debug_assert!(remove.is_sorted());
        let mut result = Ok(());
        let (mut len, mut trash) = self.counts();
        let mut at = 0;
        for &key in remove {
            while at < len && self.entries[at].key < key {
                at += 1;
            }
            let users = match self.entries[..len].get(at) {
                Some(entry) if entry.key == key => entry.users(),
                _ => 0,
            };
            if users == 0 {
                result = result.and(Err(NotPresent(key)));
                continue;
            }
            self.entries[at].users.store(users - 1, Ordering::Relaxed);
            if users == 1 {
                trash += 1;
                on_last(key);
            }
        }
        while len > 0 && self.entries[len - 1].users() == 0 {
            len -= 1;
            trash -= 1;
        }
        self.len.store(len, Ordering::Relaxed);
        self.trash.store(trash, Ordering::Relaxed);
        result
    }

    /// The array without its trash, or `None` where there is none to drop.
    pub(crate) fn purge(&self) -> Result<Option<InvArray>, AllocError> {
        if self.counts().1 == 0 {
            return Ok(None);
        }
        self.merge(&[]).map(Some)
    }
}

#[cfg(any(test, fuzzing))]
#[path = "array_model.rs"]
pub(crate) mod model;
#[cfg(test)]
#[path = "array_test.rs"]
mod tests;

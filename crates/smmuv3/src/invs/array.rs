//! The array: merge, unref, purge, walk.

use alloc::vec::Vec;
use allocator_api2::alloc::AllocError;
use core::ops::Range;

use super::entry::{Key, Kind};
use crate::primitive::{AtomicU32, AtomicU64, Ordering};

/// A sorted array of the invalidations that a domain owes. An entry is a key and the number of attachments that need it; one without a user is
/// *trash*, which readers skip.
///
/// Any number of threads walk it; one at a time (the holder of the attach mutex) calls [`unref`](Self::unref), [`merge`](Self::merge) or
/// [`purge`](Self::purge). What never changes stands apart from what does, so that the next array is made by copying memory.
///
/// # Invariants
/// - `keys` strictly increase; `users` and `left` are as long.
/// - Of the users at the time when the array was made, `left` have left: never more than there were.
/// - `counts` are the entries up to the last that has a user, and the trash among them.
/// - Outside the blocks of `changed`, nobody has left.
#[derive(Debug)]
pub(crate) struct InvArray {
    keys: Vec<Key>,
    users: Vec<u32>,
    left: Vec<AtomicU32>,
    /// Length and trash in one word: a reader that has missed trash has the length that goes with it.
    counts: AtomicU64,
    /// A bit for each block of entries.
    changed: AtomicU64,
}

// An entry takes 16 bytes, of which a walk without trash reads 8.
const _: () = assert!(size_of::<Key>() + size_of::<u32>() + size_of::<core::sync::atomic::AtomicU32>() <= 16);

/// A key that was to be removed has no user: a bug of the caller. Nothing was changed for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotPresent(pub(crate) Key);

impl InvArray {
    /// An array with no entries; allocates nothing.
    pub(crate) fn empty() -> Self {
        InvArray::new(Vec::new(), Vec::new(), Vec::new())
    }

    fn new(keys: Vec<Key>, users: Vec<u32>, left: Vec<AtomicU32>) -> Self {
        let counts = AtomicU64::new(pack(keys.len(), 0));
        InvArray { keys, users, left, counts, changed: AtomicU64::new(0) }
    }

    /// Each entry that has a user, in order, with the number of its users.
    #[inline]
    pub(crate) fn live(&self) -> impl Iterator<Item = (Key, u32)> {
        self.live_in(0..self.counts().0)
    }

    fn live_in(&self, range: Range<usize>) -> impl Iterator<Item = (Key, u32)> {
        let all = self.keys[range.clone()].iter().zip(&self.users[range.clone()]).zip(&self.left[range]);
        all.map(|((key, users), left)| (*key, now(*users, left))).filter(|(_, users)| *users > 0)
    }

    /// The entries that have users, in order, as runs of one SMMU and one kind. No run is empty.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        let (len, trash) = self.counts();
        let (mut keys, mut users, mut left) = (&self.keys[..len], &self.users[..len], &self.left[..len]);
        let runs = core::iter::from_fn(move || {
            let first = *keys.first()?;
            let end = keys.partition_point(|key| key.group() <= first.group());
            let run;
            (run, keys) = keys.split_at(end);
            let counts = (&users[..end], &left[..end]);
            (users, left) = (&users[end..], &left[end..]);
            Some(Run { keys: run, counts: (trash > 0).then_some(counts) })
        });
        runs.filter(|run| run.any())
    }

    /// Entries up to the last that has a user: (all of them, the trash among them).
    pub(crate) fn counts(&self) -> (usize, usize) {
        // Relaxed: a reader that misses a last unref invalidates once too often, which harms nobody but a device whose ATS went off; that is
        // what detach's grace period is for. One that sees it passes a read barrier before it returns. litmus: detached
        let counts = self.counts.load(Ordering::Relaxed);
        ((counts & 0xffff_ffff) as usize, (counts >> 32) as usize)
    }

    /// Whether no entry has a user.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.counts().0 == 0
    }

    /// Bytes of all entries.
    #[cfg(feature = "internals")]
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.keys[..]) + size_of_val(&self.users[..]) + size_of_val(&self.left[..])
    }

    /// The array with one user more for each of `add`, and without the trash. `self` stays as it is.
    ///
    /// `add` is sorted; a key that stands in it twice counts twice.
    pub(crate) fn merge(&self, add: &[Key]) -> Result<InvArray, AllocError> {
        debug_assert!(add.is_sorted());
        let (len, trash) = self.counts();
        let mut next = Builder::with_capacity(len - trash + add.len())?;
        let mut at = 0;
        for same in add.chunk_by(|a, b| a == b) {
            let key = same[0];
            let place = self.find(key, at, len);
            self.copy_live(at..place, &mut next);
            let present = place < len && self.keys[place] == key;
            let users = if present { self.users_now(place) } else { 0 };
            next.add(key, users + same.len() as u32);
            at = if present { place + 1 } else { place };
        }
        self.copy_live(at..len, &mut next);
        next.finish()
    }

    /// One user less for each of `remove`, which is sorted, in place. Allocates nothing.
    ///
    /// Where that was the last user, `on_last` is called at once with the key; trash at the end leaves the length. A key without a
    /// user is an error, the first of which is returned once all others were removed.
    pub(crate) fn unref(&self, remove: &[Key], mut on_last: impl FnMut(Key)) -> Result<(), NotPresent> {
        debug_assert!(remove.is_sorted());
        let mut result = Ok(());
        let (mut len, mut trash) = self.counts();
        let mut changed = self.changed.load(Ordering::Relaxed);
        let mut at = 0;
        for &key in remove {
            at = self.find(key, at, len);
            let users = if at < len && self.keys[at] == key { self.users_now(at) } else { 0 };
            if users == 0 {
                result = result.and(Err(NotPresent(key)));
                continue;
            }
            self.left[at].store(self.users[at] - (users - 1), Ordering::Relaxed);
            changed |= 1 << (at >> self.block_log2());
            if users == 1 {
                trash += 1;
                on_last(key);
            }
        }
        while len > 0 && self.users_now(len - 1) == 0 {
            len -= 1;
            trash -= 1;
        }
        self.counts.store(pack(len, trash), Ordering::Relaxed);
        self.changed.store(changed, Ordering::Relaxed);
        result
    }

    /// The array without its trash, or `None` where there is none to drop.
    pub(crate) fn purge(&self) -> Result<Option<InvArray>, AllocError> {
        if self.counts().1 == 0 {
            return Ok(None);
        }
        self.merge(&[]).map(Some)
    }

    /// The first place in `from .. to` whose key is not less than `key`, or `to`.
    fn find(&self, key: Key, from: usize, to: usize) -> usize {
        from + self.keys[from..to].partition_point(|present| *present < key)
    }

    fn users_now(&self, at: usize) -> u32 {
        now(self.users[at], &self.left[at])
    }

    /// log2 of the entries in a block: as few as let 64 blocks be enough.
    fn block_log2(&self) -> u32 {
        (usize::BITS - self.keys.len().leading_zeros()).saturating_sub(6)
    }

    /// Copies those of a range that have users: block by block where somebody has left, everything between at once.
    fn copy_live(&self, range: Range<usize>, next: &mut Builder) {
        let changed = self.changed.load(Ordering::Relaxed);
        let log2 = self.block_log2();
        let mut at = range.start;
        while at < range.end {
            let block = at >> log2;
            let unchanged = (changed >> block).trailing_zeros() as usize;
            let end = range.end.min((block + unchanged.max(1)) << log2);
            if unchanged > 0 {
                next.keys.extend_from_slice(&self.keys[at..end]);
                next.users.extend_from_slice(&self.users[at..end]);
            } else {
                self.live_in(at..end).for_each(|(key, users)| next.add(key, users));
            }
            at = end;
        }
    }
}

fn now(users: u32, left: &AtomicU32) -> u32 {
    // Relaxed: as for `counts`.
    users - left.load(Ordering::Relaxed)
}

fn pack(len: usize, trash: usize) -> u64 {
    len as u64 | (trash as u64) << 32
}

/// Entries of one SMMU and one kind.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    keys: &'a [Key],
    /// Where there may be trash.
    counts: Option<(&'a [u32], &'a [AtomicU32])>,
}

impl<'a> Run<'a> {
    /// Keys of one SMMU and one kind, all with users. `None`: there are none.
    #[cfg(feature = "internals")]
    pub(crate) fn of(keys: &'a [Key]) -> Option<Self> {
        (!keys.is_empty()).then_some(Run { keys, counts: None })
    }

    /// The SMMU's index.
    pub(crate) fn smmu(&self) -> u8 {
        self.keys[0].smmu()
    }

    pub(crate) fn kind(&self) -> Kind {
        self.keys[0].kind()
    }

    /// Adds what `f` makes of each key that has a user.
    pub(crate) fn extend<T>(&self, to: &mut impl Extend<T>, f: impl Fn(Key) -> T) {
        match self.counts {
            None => to.extend(self.keys.iter().map(|key| f(*key))),
            Some((users, left)) => {
                let all = self.keys.iter().zip(users.iter().zip(left));
                to.extend(all.filter(|(_, (users, left))| now(**users, left) > 0).map(|(key, _)| f(*key)));
            }
        }
    }

    fn any(&self) -> bool {
        self.counts.is_none_or(|(users, left)| users.iter().zip(left).any(|(users, left)| now(*users, left) > 0))
    }
}

/// An array in the making. What is added stays within its capacity.
struct Builder {
    keys: Vec<Key>,
    users: Vec<u32>,
}

impl Builder {
    fn with_capacity(capacity: usize) -> Result<Self, AllocError> {
        Ok(Builder { keys: reserved(capacity)?, users: reserved(capacity)? })
    }

    fn add(&mut self, key: Key, users: u32) {
        self.keys.extend([key]);
        self.users.extend([users]);
    }

    fn finish(self) -> Result<InvArray, AllocError> {
        let mut left = reserved(self.keys.len())?;
        left.extend(self.keys.iter().map(|_| AtomicU32::new(0)));
        Ok(InvArray::new(self.keys, self.users, left))
    }
}

fn reserved<T>(capacity: usize) -> Result<Vec<T>, AllocError> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(capacity).map_err(|_| AllocError)?;
    Ok(vec)
}

#[cfg(any(test, fuzzing))]
#[path = "array_model.rs"]
pub(crate) mod model;
#[cfg(test)]
#[path = "array_test.rs"]
mod tests;

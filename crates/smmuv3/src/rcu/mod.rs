//! Read sections and grace periods.
//!
//! A reader enters a *read section*, uses what is published, and leaves. A writer unpublishes something, waits for a *grace period*
//! ([`Rcu::synchronize`]), which ends when every reader that was inside has left, and then frees it. One
//! [`Rcu`] per `Iommu` serves three ends: superseded invalidation arrays and unlinked translation tables are freed after a grace period,
//! and a detached device is sent nothing after one.
//!
//! Readers count themselves in and out on counters that are sharded by CPU, so they write no cache line that
//! another CPU writes. There are two sets of counters; `synchronize` turns readers to the other set and waits for the first to
//! drain, twice over, so that a reader that picked its set just before a turn is waited for as well.
//!
//! Read sections may be nested, and a thread may be interrupted or move to another CPU inside one: counts are
//! summed over all shards, and a guard remembers the shard it counted on.

mod cell;

pub(crate) use cell::{Loaded, Published, Retired};

use core::sync::atomic::{AtomicUsize, Ordering, fence};
use crossbeam_utils::CachePadded;
use lock_api::Mutex;

use crate::platform::Platform;

const SHARDS: usize = 16;

/// How often readers entered and left on one CPU, for each of the two sets. Counts wrap; only differences matter.
#[derive(Default)]
struct Shard {
    entered: [AtomicUsize; 2],
    left: [AtomicUsize; 2],
}

/// The read sections of one `Iommu`.
///
/// # Invariants
/// - A reader that entered on (shard, set) leaves on the same.
/// - Only the holder of `turn` changes `set`.
pub(crate) struct Rcu<P: Platform> {
    platform: P,
    set: AtomicUsize,
    shards: [CachePadded<Shard>; SHARDS],
    turn: Mutex<P::RawMutex, ()>,
}

/// Evidence of being inside a read section; leaves it when dropped.
pub(crate) struct ReadGuard<'a> {
    left: &'a AtomicUsize,
}

impl<P: Platform> Rcu<P> {
    pub(crate) fn new(platform: P) -> Self {
        Rcu { platform, set: AtomicUsize::new(0), shards: Default::default(), turn: Mutex::new(()) }
    }

    /// Enters a read section.
    ///
    /// The fence after counting orders every access of the section, and every earlier one of this CPU, against the fences in
    /// [`synchronize`](Self::synchronize). The platform's full barrier is barrier (A) of the publication protocol: a
    /// descriptor that was changed before entering is visible to the SMMU before the array is loaded.
    pub(crate) fn enter(&self) -> ReadGuard<'_> {
        let shard = &self.shards[self.platform.cpu_hint() % SHARDS];
        let set = self.set.load(Ordering::Relaxed) & 1;
        shard.entered[set].fetch_add(1, Ordering::Relaxed);
        // What memory safety rests on must not depend on the platform: the fence orders CPUs, the platform's barrier also the SMMU.
        fence(Ordering::SeqCst);
        self.platform.full_barrier();
        ReadGuard { left: &shard.left[set] }
    }

    /// Returns when every reader that had entered before the call has left.
    ///
    /// Not to be called inside a read section: it would wait for itself.
    pub(crate) fn synchronize(&self) {
        let _turn = self.turn.lock();
        self.wait_for_readers(u32::MAX);
    }

    /// The same, without waiting for long. False if a reader stayed, or if somebody else is waiting: then nothing is known. May be called
    /// anywhere, also inside a read section or in an interrupt handler that interrupted one.
    pub(crate) fn try_synchronize(&self) -> bool {
        const LOOKS: u32 = 64;
        self.turn.try_lock().is_some_and(|_turn| self.wait_for_readers(LOOKS))
    }

    /// Looks at each set up to `looks` times, without end if that is `u32::MAX`. The caller holds `turn`.
    fn wait_for_readers(&self, looks: u32) -> bool {
        // What the caller unpublished comes before the look at the counters. Partner: the fence in `enter`: either the reader sees it
        // unpublished, or its count is seen here.
        fence(Ordering::SeqCst);
        for _ in 0..2 {
            let set = self.set.load(Ordering::Relaxed) & 1;
            // New readers count elsewhere, so that this set drains however many come.
            self.set.store(set ^ 1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let mut left = looks;
            while !self.drained(set) {
                if left == 0 {
                    return false;
                }
                if looks != u32::MAX {
                    left -= 1;
                }
                self.platform.relax();
            }
        }
        // What the readers did comes before what the caller does next. Partner: the Release in `ReadGuard::drop`.
        fence(Ordering::SeqCst);
        true
    }

    /// Whether as many readers left as entered. Leaves are summed first: a reader that comes or goes between the sums
    /// can only make it look busier.
    fn drained(&self, set: usize) -> bool {
        let sum = |pick: fn(&Shard) -> &[AtomicUsize; 2]| {
            self.shards.iter().fold(0usize, |sum, shard| sum.wrapping_add(pick(shard)[set].load(Ordering::Acquire)))
        };
        let left = sum(|shard| &shard.left);
        fence(Ordering::SeqCst);
        left == sum(|shard| &shard.entered)
    }
}

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        // Release: the section's accesses come before the count. Partner: the Acquire in `drained`.
        self.left.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::testing::TestPlatform;
    use core::sync::atomic::AtomicBool;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_grace_period_does_not_end_while_an_earlier_reader_is_inside() {
        let rcu = Rcu::new(TestPlatform::new(4));
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let outer = rcu.enter();
            let inner = rcu.enter();
            scope.spawn(|| {
                rcu.synchronize();
                ended.store(true, Ordering::SeqCst);
            });
            for guard in [inner, outer] {
                thread::sleep(Duration::from_millis(30));
                assert!(!ended.load(Ordering::SeqCst), "the grace period ended inside a read section");
                drop(guard);
            }
        });
        assert!(ended.load(Ordering::SeqCst));
    }

    #[test]
    fn a_grace_period_ends_although_new_readers_keep_coming() {
        let rcu = Rcu::new(TestPlatform::new(4));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    // Never a moment without a reader: the next enters before the last leaves.
                    let mut last = rcu.enter();
                    while !stop.load(Ordering::Relaxed) {
                        last = rcu.enter();
                    }
                    drop(last);
                });
            }
            for _ in 0..50 {
                rcu.synchronize();
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}

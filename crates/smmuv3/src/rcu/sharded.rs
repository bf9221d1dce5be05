//! The driver's own read sections.

use crossbeam_utils::CachePadded;
use lock_api::{Mutex, RawMutex};

use super::Rcu;
use crate::platform::Platform;
use crate::primitive::{AtomicUsize, Ordering, fence};

/// CPUs with a hint of the same remainder share counters: that costs them time, nothing else.
const SHARDS: usize = if cfg!(loom) { 2 } else { 16 };

/// How often readers entered and left on one CPU, for each of the two sets. Counts wrap; only differences matter.
#[derive(Default)]
struct Shard {
    entered: [AtomicUsize; 2],
    left: [AtomicUsize; 2],
}

/// Read sections without a shared cache line: readers count themselves in and out on counters that are sharded by CPU. `M` is the lock
/// that writers take.
///
/// There are two sets of counters; a grace period turns readers to the other set and waits for the first to drain, twice over, so that a
/// reader that picked its set just before a turn is waited for as well. Sections may be nested, and a thread may be interrupted
/// or move to another CPU inside one: counts are summed over all shards, and a guard remembers the shard it counted on.
///
/// # Invariants
/// - A reader that entered on (shard, set) leaves on the same.
/// - Only the holder of `turn` changes `set`.
pub struct ShardedRcu<M> {
    set: AtomicUsize,
    shards: [CachePadded<Shard>; SHARDS],
    turn: Mutex<M, ()>,
}

/// Evidence of being inside a read section of a [`ShardedRcu`].
pub struct ShardedGuard<'a> {
    left: &'a AtomicUsize,
}

impl<M: RawMutex> Default for ShardedRcu<M> {
    fn default() -> Self {
        ShardedRcu { set: AtomicUsize::new(0), shards: Default::default(), turn: Mutex::new(()) }
    }
}

// SAFETY: who entered before is waited for. A section counts itself in, passes (R), and loads what is published; a writer publishes, passes (W), and
// looks at the counts. If the section does not see what was published, (R) comes before (W) in the order of fences, and the
// writer sees its count in one of the two sets, both of which it waits to drain; the Release in `drop` and the Acquire in `drained` then order the
// section before what follows. If the writer does not see the count, (W) comes before (R), and the section sees what was published.
unsafe impl<M: RawMutex + Send + Sync + 'static> Rcu for ShardedRcu<M> {
    type Guard<'a> = ShardedGuard<'a>;

    fn enter<P: Platform>(&self, platform: &P) -> ShardedGuard<'_> {
        let shard = &self.shards[platform.cpu_hint() % SHARDS];
        let set = self.set.load(Ordering::Relaxed) & 1;
        shard.entered[set].fetch_add(1, Ordering::Relaxed);
        // (R): the count comes before every load of the section. Partner: (W). litmus: rcu-enter
        fence(Ordering::SeqCst);
        ShardedGuard { left: &shard.left[set] }
    }

    fn synchronize<P: Platform>(&self, platform: &P) {
        let _turn = self.turn.lock();
        self.wait_for_readers(platform, u32::MAX);
    }

    fn try_synchronize<P: Platform>(&self, platform: &P) -> bool {
        const LOOKS: u32 = if cfg!(loom) { 1 } else { 64 };
        self.turn.try_lock().is_some_and(|_turn| self.wait_for_readers(platform, LOOKS))
    }
}

impl<M: RawMutex> ShardedRcu<M> {
    /// Looks at each set up to `looks` times, without end if that is `u32::MAX`. The caller holds `turn`.
    fn wait_for_readers<P: Platform>(&self, platform: &P, looks: u32) -> bool {
        // (W): what the caller unpublished comes before the look at the counts. Partner: (R). litmus: rcu-enter, rcu-free
        fence(Ordering::SeqCst);
        for _ in 0..2 {
            let set = self.set.load(Ordering::Relaxed) & 1;
            // New readers count elsewhere, so that this set drains however many come.
            self.set.store(set ^ 1, Ordering::Relaxed);
            let mut left = looks;
            while !self.drained(set) {
                if left == 0 {
                    return false;
                }
                if looks != u32::MAX {
                    left -= 1;
                }
                platform.relax();
            }
        }
        true
    }

    /// Whether as many readers left as entered. Leaves are summed first: a reader that comes or goes between the sums
    /// can only make it look busier. litmus: rcu-drained
    fn drained(&self, set: usize) -> bool {
        let sum = |pick: fn(&Shard) -> &[AtomicUsize; 2]| {
            // Acquire: the sections that left come before what follows. Partner: the Release in `drop`.
            self.shards.iter().fold(0usize, |sum, shard| sum.wrapping_add(pick(shard)[set].load(Ordering::Acquire)))
        };
        let left = sum(|shard| &shard.left);
        left == sum(|shard| &shard.entered)
    }
}

impl Drop for ShardedGuard<'_> {
    fn drop(&mut self) {
        // Release: the section's accesses come before the count. Partner: the Acquire in `drained`.
        // litmus: rcu-leave, rcu-leave-write, rcu-leave-shared
        self.left.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::Sections;
    use crate::testing::TestPlatform;
    use core::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_grace_period_does_not_end_while_an_earlier_reader_is_inside() {
        let rcu = Sections::new(TestPlatform::new(4));
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
        let rcu = Sections::new(TestPlatform::new(4));
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

    #[test]
    fn who_must_not_wait_does_not() {
        let rcu = Sections::new(TestPlatform::new(4));
        assert!(rcu.try_synchronize());
        let reader = rcu.enter();
        assert!(!rcu.try_synchronize(), "a reader is inside");
        drop(reader);
        assert!(rcu.try_synchronize());
    }
}

//! Read sections and grace periods.
//!
//! A reader enters a *read section*, uses what is published, and leaves. A writer unpublishes something, waits for a *grace period*
//! ([`Rcu::synchronize`]), which ends when every reader that was inside has left, and then frees it. One [`Rcu`] per `Iommu` serves three
//! ends: superseded invalidation arrays and unlinked translation tables are freed after a grace period, a detached device is sent nothing
//! after one, and neither is a removed SMMU.
//!
//! [`ShardedRcu`] is the driver's own. A kernel that has read sections already brings them as its
//! [`Platform::Rcu`].

mod cell;
mod sharded;

pub(crate) use cell::{Loaded, Published, Reader, Version};
pub use sharded::{ShardedGuard, ShardedRcu};

use crate::platform::Platform;

/// Read sections and grace periods, as the host's kernel or this crate ([`ShardedRcu`]) has them.
///
/// # What the caller ensures
/// Sections are short, and nothing in them sleeps. They may be nested, interrupted, and left on another CPU than they were entered on, but
/// not by another thread. `synchronize` is not called inside a section, where it would wait for itself, nor in an interrupt handler.
///
/// # Safety
/// The driver frees memory that readers of an earlier time had pointers to. So, for every section and every grace period (the time of a
/// `synchronize`, or of a `try_synchronize` that returns true):
/// - if the section was entered before the grace period began, the grace period ends after the section was left;
/// - if a section does not see what was written before a grace period began, everything that is done in the section happens before
///   what follows the grace period;
/// - if a grace period ends after a section began, and does not wait for it, the section sees everything that was written before the grace
///   period began.
///
/// "Sees" and "happens before" are those of the language's memory model: `enter` and `synchronize` have the fences which that takes.
/// These are the guarantees of Linux's RCU, and of every other that deserves the name.
pub unsafe trait Rcu: Default + Send + Sync + 'static {
    /// Evidence of being inside a read section; leaves it when dropped.
    type Guard<'a>;

    /// Enters a read section. Waits for nobody.
    fn enter<P: Platform>(&self, platform: &P) -> Self::Guard<'_>;

    /// Returns when every reader that had entered before the call has left.
    fn synchronize<P: Platform>(&self, platform: &P);

    /// The same, without waiting for long. False if a reader stayed: then nothing is known. May be called anywhere, also inside a section, or in
    /// an interrupt handler that interrupted one. An implementation that cannot tell returns false: the driver then tries again with
    /// later work.
    fn try_synchronize<P: Platform>(&self, platform: &P) -> bool;
}

/// The read sections of one `Iommu`.
pub(crate) struct Sections<P: Platform> {
    platform: P,
    rcu: P::Rcu,
}

/// Evidence of being inside a read section; leaves it when dropped.
pub(crate) type Guard<'a, P> = <<P as Platform>::Rcu as Rcu>::Guard<'a>;

impl<P: Platform> Sections<P> {
    pub(crate) fn new(platform: P) -> Self {
        Sections { platform, rcu: P::Rcu::default() }
    }

    /// Enters a read section.
    #[inline]
    pub(crate) fn enter(&self) -> Guard<'_, P> {
        self.rcu.enter(&self.platform)
    }

    /// Passes barrier (A) of the publication protocol: a descriptor that was changed before is visible to the SMMU before anything published is loaded
    /// behind it. The section's own fence orders CPUs; the SMMU is none.
    pub(crate) fn barrier_a(&self) {
        // litmus: publication
        self.platform.full_barrier();
    }

    /// Returns when every reader that had entered before the call has left.
    pub(crate) fn synchronize(&self) {
        self.rcu.synchronize(&self.platform);
    }

    /// The same if it takes not long; false if it would. May be called anywhere.
    pub(crate) fn try_synchronize(&self) -> bool {
        self.rcu.try_synchronize(&self.platform)
    }
}

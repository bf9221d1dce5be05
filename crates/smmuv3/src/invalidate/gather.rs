//! Several unmaps, one invalidation: at the end of a batch ([`Gather`]), or some time later ([`Deferred`]).

use allocator_api2::vec::Vec;
use core::fmt;

use super::spans::Spans;
use super::{UnmapError, UnmapReport};
use crate::domain::{Paging, PagingDomain};
use crate::pgtable::DeadTables;
use crate::platform::{Iova, Platform};

/// What was unmapped and not yet invalidated.
#[derive(Default)]
pub(crate) struct Gathered {
    pub(super) spans: Spans,
    pub(super) bytes: u64,
    pub(crate) tables: DeadTables,
}

/// A batch of unmaps that pays one invalidation. From [`PagingDomain::gather`].
///
/// **Only when [`flush`](Self::flush) has returned `Ok` can no device reach what was unmapped.** Up to eight ranges are invalidated as they are; of more,
/// those with the smallest gaps between them are joined.
///
/// Dropping it flushes too, but then nobody hears of a failure: pages that must be given back are for `flush`.
#[must_use = "nothing is promised before `flush`"]
pub struct Gather<'d, P: Platform> {
    domain: &'d Paging<P>,
    gathered: Gathered,
}

impl<P: Platform> PagingDomain<P> {
    /// Begins a batch of unmaps that are invalidated together.
    pub fn gather(&self) -> Gather<'_, P> {
        Gather { domain: &self.0, gathered: Gathered::default() }
    }
}

impl<P: Platform> Gather<'_, P> {
    /// Takes `len` bytes at `iova` out of the domain's table, and returns how many were mapped. **Devices may reach them until
    /// [`flush`](Self::flush).** Numbers and errors as in [`PagingDomain::unmap`]; after an error nothing was changed.
    pub fn unmap(&mut self, iova: Iova, len: u64) -> Result<u64, UnmapError> {
        self.domain.check_range(iova, len)?;
        self.domain.take(iova, len, &mut self.gathered)
    }

    /// Invalidates. **When it returns `Ok`, no device can reach anything that was unmapped in this batch.** After
    /// [`StillReachable`](UnmapError::StillReachable) it may be called again; otherwise the batch is empty, and another may begin.
    pub fn flush(&mut self) -> Result<UnmapReport, UnmapError> {
        self.domain.settle(&mut self.gathered)
    }
}

impl<P: Platform> Drop for Gather<'_, P> {
    fn drop(&mut self) {
        let _ = self.flush();
    }
}

impl<P: Platform> fmt::Debug for Gather<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gather({:#x} bytes in {} ranges)", self.gathered.bytes, self.gathered.spans.as_slice().len())
    }
}

/// How much a [`Deferred`] lets wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeferLimits {
    /// Unmaps that wait, at most. At least 1. Default 256.
    pub count: usize,
    /// How long one waits before the next call invalidates, in nanoseconds. Default 10 ms.
    pub age_ns: u64,
}

impl Default for DeferLimits {
    fn default() -> Self {
        DeferLimits { count: 256, age_ns: 10_000_000 }
    }
}

/// Unmaps whose invalidation waits, until there are enough of them, or one is old enough. From [`PagingDomain::deferred`].
///
/// **The promise is weaker than that of [`PagingDomain::unmap`]: after [`unmap`](Self::unmap) devices can go on reaching the pages**, reading and writing,
/// until the invalidation. What makes that bearable is that nobody else gets them before: with every unmap goes an owner `T`, the pages
/// and addresses themselves, or what stands for them, and it comes out of here, to `free`, only when no device can reach them any more. Until then neither
/// the pages nor the IOVAs may be used for anything else; an IOVA that is mapped again too early may lead to either mapping.
///
/// It has no lock and no timer: a kernel keeps one for each CPU, and calls [`poll`](Self::poll) at [`due_ns`](Self::due_ns).
///
/// Dropping it invalidates. If that fails, the owners that wait are leaked.
pub struct Deferred<P: Platform, T, F: FnMut(T)> {
    domain: PagingDomain<P>,
    limits: DeferLimits,
    gathered: Gathered,
    /// Never grows.
    waiting: Vec<T>,
    /// When the invalidation is due, if anything waits.
    due_ns: u64,
    free: F,
}

/// Nothing was unmapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct NotDeferred<T> {
    /// Why. [`StillReachable`](UnmapError::StillReachable) and [`CutOff`](UnmapError::CutOff) are of the invalidation of what had waited, for which it
    /// was time.
    pub cause: UnmapError,
    /// What was to wait.
    pub owner: T,
}

impl<P: Platform> PagingDomain<P> {
    /// Unmaps whose invalidation may wait. `free` gets the owner of each when no device can reach it any more.
    ///
    /// `None`: no memory. Later calls need none.
    pub fn deferred<T, F: FnMut(T)>(&self, limits: DeferLimits, free: F) -> Option<Deferred<P, T, F>> {
        let mut waiting = Vec::new();
        waiting.try_reserve_exact(limits.count.max(1)).ok()?;
        Some(Deferred { domain: self.clone(), limits, gathered: Gathered::default(), waiting, due_ns: 0, free })
    }
}

impl<P: Platform, T, F: FnMut(T)> Deferred<P, T, F> {
    /// Takes `len` bytes at `iova` out of the domain's table, and returns how many were mapped. **Devices may reach them until their `owner` comes to
    /// `free`.** If it is time for it, it first invalidates what had waited.
    ///
    /// Numbers and errors as in [`PagingDomain::unmap`].
    pub fn unmap(&mut self, iova: Iova, len: u64, owner: T) -> Result<u64, NotDeferred<T>> {
        let full = self.waiting.len() >= self.limits.count.max(1);
        let ready = if full { self.flush().map(|_| ()) } else { self.poll() };
        let taken = ready.and_then(|()| {
            self.domain.0.check_range(iova, len)?;
            self.domain.0.take(iova, len, &mut self.gathered)
        });
        match taken {
            Ok(bytes) => {
                if self.waiting.is_empty() {
                    self.due_ns = self.now_ns().saturating_add(self.limits.age_ns);
                }
                self.waiting.extend([owner]);
                Ok(bytes)
            }
            Err(cause) => Err(NotDeferred { cause, owner }),
        }
    }

    /// Invalidates if it is time for it.
    pub fn poll(&mut self) -> Result<(), UnmapError> {
        match self.due_ns() {
            Some(due_ns) if self.now_ns() >= due_ns => self.flush().map(|_| ()),
            _ => Ok(()),
        }
    }

    /// When [`poll`](Self::poll) has something to do, by [`Platform::now_ns`]. `None`: nothing waits.
    pub fn due_ns(&self) -> Option<u64> {
        (!self.waiting.is_empty()).then_some(self.due_ns)
    }

    /// Unmaps that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Invalidates now, and hands all owners to `free`: **no device can reach what is theirs any more.**
    ///
    /// [`StillReachable`](UnmapError::StillReachable): they stay, and it may be called again. [`CutOff`](UnmapError::CutOff): they were handed out.
    pub fn flush(&mut self) -> Result<UnmapReport, UnmapError> {
        let result = self.domain.0.settle(&mut self.gathered);
        if !matches!(result, Err(UnmapError::StillReachable { .. })) {
            self.waiting.drain(..).for_each(&mut self.free);
        }
        result
    }

    fn now_ns(&self) -> u64 {
        self.domain.0.fleet.platform.now_ns()
    }
}

impl<P: Platform, T, F: FnMut(T)> Drop for Deferred<P, T, F> {
    fn drop(&mut self) {
        if let Err(UnmapError::StillReachable { .. }) = self.flush() {
            core::mem::forget(core::mem::take(&mut self.waiting));
        }
    }
}

impl<P: Platform, T, F: FnMut(T)> fmt::Debug for Deferred<P, T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Deferred({} unmaps wait, {:#x} bytes)", self.waiting.len(), self.gathered.bytes)
    }
}

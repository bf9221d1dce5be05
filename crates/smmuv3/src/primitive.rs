//! The atomics and fences that everything here is built from: those of `core`, or, where `--cfg loom` is given, those of the model
//! checker loom, so that it explores this code and no copy of it.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// Stands between two accesses that are both `SeqCst` for the order that this alone gives them: loom takes such accesses for `AcqRel` ones, and needs a fence
/// there.
#[inline]
pub(crate) fn between_sequential_accesses() {
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}

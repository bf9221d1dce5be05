//! An owned piece of DMA memory.

use crate::primitive::Ordering::Relaxed;
use crate::primitive::{AtomicBool, AtomicU64};
use core::fmt;

use super::{PhysAddr, Platform};

/// DMA memory that is given back when dropped.
///
/// Whoever drops it has first made sure that no SMMU reaches it any more, or calls [`keep_forever`](Self::keep_forever).
///
/// # Invariants
/// `addr`, `size` and `align` are those of one successful `dma_alloc`, and lie in the platform's window.
pub(crate) struct DmaBox<P: Platform> {
    platform: P,
    addr: PhysAddr,
    size: usize,
    align: usize,
    keep: AtomicBool,
}

impl<P: Platform> DmaBox<P> {
    /// `size` zeroed bytes, rounded up to 64, at a multiple of `align` (a power of two, at least 64). `None`: no memory.
    pub(crate) fn new(platform: &P, size: usize, align: usize) -> Option<Self> {
        Self::filled(platform, size, align, |words| words.iter().for_each(|word| word.store(0, Relaxed)))
    }

    /// The same, but not zeroed: `fill` writes every word.
    pub(crate) fn filled(platform: &P, size: usize, align: usize, fill: impl FnOnce(&[AtomicU64])) -> Option<Self> {
        let size = size.checked_next_multiple_of(64)?;
        let align = align.max(64);
        let addr = platform.dma_alloc(size, align)?;
        // A port whose allocator leaves its window or ignores `align` has no usable memory: give it back unused.
        match platform.window().words(addr, size / 8) {
            Some(words) if addr.0.is_multiple_of(align as u64) => {
                fill(words);
                platform.clean(words);
                Some(DmaBox { platform: platform.clone(), addr, size, align, keep: AtomicBool::new(false) })
            }
            _ => {
                platform.dma_free(addr, size, align);
                None
            }
        }
    }

    /// Gives up ownership: the memory stays allocated until `dma_free` with the size and alignment it was made with.
    pub(crate) fn into_raw(self) -> PhysAddr {
        // Not forgotten: with it would go a handle of the platform, which then never ends.
        self.keep_forever();
        self.addr
    }

    /// Sees to it that the memory is never given back: an SMMU may still reach it.
    pub(crate) fn keep_forever(&self) {
        self.keep.store(true, Relaxed);
    }

    /// Whether [`keep_forever`](Self::keep_forever) was called.
    pub(crate) fn is_kept(&self) -> bool {
        self.keep.load(Relaxed)
    }

    /// Where the devices see it.
    pub(crate) fn addr(&self) -> PhysAddr {
        self.addr
    }

    /// The memory. Never empty for a box that [`new`](Self::new) made with `size > 0`.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        self.platform.window().words(self.addr, self.size / 8).unwrap_or(&[])
    }
}

impl<P: Platform> Drop for DmaBox<P> {
    fn drop(&mut self) {
        if !self.is_kept() {
            self.platform.dma_free(self.addr, self.size, self.align);
        }
    }
}

impl<P: Platform> fmt::Debug for DmaBox<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBox({} + {:#x} bytes)", self.addr, self.size)
    }
}

//! The window: one linear relation between device addresses and the CPU's view of the same memory.
//!
//! Tables point to tables by device address, so the driver must get from such an address to the words behind
//! it. A window makes that one bounds check and one addition, and is the only place where an address turns
//! into memory. Structures of the SMMU are all 64-bit words that hardware reads (and queues that it writes) at
//! any time, so memory is only ever seen as [`AtomicU64`].

use crate::primitive::AtomicU64;
use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;

use super::PhysAddr;

#[cfg(not(target_endian = "little"))]
compile_error!("the SMMU's structures are little endian, and so must the CPU be");

/// Device-addressable memory in which the device address and the CPU address differ by a constant.
///
/// A kernel with a linear map of RAM describes all of RAM with one window; a model or a QEMU describes
/// the guest's RAM; firmware describes a static pool.
///
/// # Invariants
/// - `words` points to `len` words that stay valid for as long as `self`, and are aligned to 8 bytes.
/// - Those of them that the driver was given by `Platform::dma_alloc` are accessed by others only atomically.
pub struct DmaWindow {
    base: PhysAddr,
    words: NonNull<AtomicU64>,
    len: usize,
    /// Keeps the memory of [`from_words`](Self::from_words) alive.
    _owner: Option<Arc<[AtomicU64]>>,
}

// SAFETY: a window is a shared view of atomics, which threads may share and hand on (invariants above).
unsafe impl Send for DmaWindow {}
// SAFETY: as for `Send`.
unsafe impl Sync for DmaWindow {}

impl DmaWindow {
    /// A window onto `words`, the first of which the devices see at `base`.
    ///
    /// `base` is a multiple of 8. Safe, because whoever else holds the words can use them only atomically.
    pub fn from_words(words: Arc<[AtomicU64]>, base: PhysAddr) -> Self {
        // INVARIANT: the `Arc` is kept in the window, and a slice is valid and aligned.
        DmaWindow { base, words: NonNull::from(&*words).cast(), len: words.len(), _owner: Some(words) }
    }

    /// A window onto `len` 64-bit words at `words`, the first of which the devices see at `base`.
    ///
    /// # Safety
    /// For as long as the window lives:
    /// - each part of `words .. words + len` that `Platform::dma_alloc` hands out is memory that may be read and
    ///   written there, from that moment until `Platform::dma_free` takes it back;
    /// - during that time, nobody but the driver and the devices accesses that part, except atomically.
    ///
    /// `words` is aligned to 8 bytes and the whole range lies within the address space. Parts that are never handed out may
    /// be anything, holes included.
    pub const unsafe fn from_raw_parts(words: NonNull<AtomicU64>, len: usize, base: PhysAddr) -> Self {
        DmaWindow { base, words, len, _owner: None }
    }

    /// The device address of the first byte.
    pub fn base(&self) -> PhysAddr {
        self.base
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.len as u64 * 8
    }

    /// The word at device address `addr`, as [`words`](Self::words).
    #[inline]
    pub(crate) fn word(&self, addr: PhysAddr) -> Option<&AtomicU64> {
        self.words(addr, 1)?.first()
    }

    /// The `count` words at device address `addr`, `count` not being 0; `None` if they are not wholly inside, or misaligned.
    ///
    /// Callers ask only for what `dma_alloc` gave and `dma_free` has not had back.
    #[inline]
    pub(crate) fn words(&self, addr: PhysAddr, count: usize) -> Option<&[AtomicU64]> {
        self.pieces(count)?.at(addr)
    }

    /// For walks: all that [`words`](Self::words) gives for one `count`. `None` if the window is smaller than that, or `count` is 0.
    #[inline]
    pub(crate) fn pieces(&self, count: usize) -> Option<Pieces<'_>> {
        // INVARIANT: a piece that begins at one of the `starts` ends in the window.
        let starts = self.len.checked_sub(count.checked_sub(1)?)?;
        Some(Pieces { base: self.base.0, words: self.words, starts: starts as u64, count, _window: PhantomData })
    }
}

/// All pieces of one length in a window.
///
/// # Invariants
/// `starts + count - 1` is the length of the window. `words` and `base` are the window's.
#[derive(Clone, Copy)]
pub(crate) struct Pieces<'a> {
    base: u64,
    words: NonNull<AtomicU64>,
    /// How many words of the window a piece can begin with.
    starts: u64,
    count: usize,
    _window: PhantomData<&'a DmaWindow>,
}

impl<'a> Pieces<'a> {
    /// The piece at device address `addr`, as [`DmaWindow::words`].
    #[inline]
    pub(crate) fn at(&self, addr: PhysAddr) -> Option<&'a [AtomicU64]> {
        // What is below the base, or misaligned, becomes a number beyond every length.
        let first = addr.0.wrapping_sub(self.base).rotate_right(3);
        if first >= self.starts {
            return None;
        }
        // SAFETY: `first` is less than `starts`, so the result stays in the window (invariants).
        let start = unsafe { self.words.as_ptr().add(first as usize) };
        // SAFETY: `count` words from `start` lie in the window (invariants); being handed out, they are valid and shared only as
        // atomics (both invariants of the window); the lifetime is that of a borrow of the window.
        Some(unsafe { core::slice::from_raw_parts(start, self.count) })
    }
}

impl fmt::Debug for DmaWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaWindow({} + {:#x} bytes)", self.base, self.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::Ordering::Relaxed;

    #[test]
    fn only_aligned_words_inside_the_window_are_reachable() {
        let words: Arc<[AtomicU64]> = (0..16).map(AtomicU64::new).collect();
        let window = DmaWindow::from_words(words, PhysAddr(0x1000));
        let at = |addr, count| window.words(PhysAddr(addr), count).map(|w| w.len());
        assert_eq!(at(0x1000, 16), Some(16));
        assert_eq!(at(0x1078, 1), Some(1));
        for (addr, count) in [
            (0x1080, 0),
            (0x1080, 1),
            (0x1078, 2),
            (0xff8, 1),
            (0x1004, 1),
            (0x1000, 17),
            (u64::MAX, 1),
            (0x1000, usize::MAX),
        ] {
            assert_eq!(at(addr, count), None, "{count} words at {addr:#x}");
        }
        let word = |addr| window.word(PhysAddr(addr)).map(|word| word.load(Relaxed));
        assert_eq!([0x1000, 0x1018, 0x1078].map(word), [Some(0), Some(3), Some(15)]);
        for addr in [0xff8, 0x1004, 0x1079, 0x1080, 0, u64::MAX, u64::MAX - 7] {
            assert_eq!(word(addr), None, "the word at {addr:#x}");
        }
        assert_eq!(window.words(PhysAddr(0x1018), 1).unwrap()[0].load(Relaxed), 3);
    }
    #[test]
    fn a_window_onto_raw_words_reaches_just_those() {
        let words: [AtomicU64; 4] = Default::default();
        let first = NonNull::from(&words).cast();
        // SAFETY: the words outlive the window, and are only ever seen as atomics.
        let window = unsafe { DmaWindow::from_raw_parts(first, words.len(), PhysAddr(0x1000)) };
        window.words(PhysAddr(0x1008), 3).unwrap()[2].store(7, Relaxed);
        assert_eq!(words.map(AtomicU64::into_inner), [0, 0, 0, 7]);
    }
}

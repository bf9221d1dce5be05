//! What the host gives to the driver: registers, DMA memory, barriers, a clock.
//!
//! A port implements two small traits, [`Mmio`] for the registers of one SMMU and [`Platform`] for the
//! rest, and describes its DMA memory with one [`DmaWindow`]. Three ports stand behind them in this project:
//! the software model, a QEMU driven from the host, and bare metal. Both traits are safe to implement: the one
//! promise that memory safety rests on is made where a window is built, in [`DmaWindow::from_raw_parts`].
//!
//! A [`Platform`] value is a *handle*: it is cloned freely, and all clones are the same platform.

mod dma;
mod window;

pub(crate) use dma::DmaBox;
pub use window::DmaWindow;

use crate::primitive::AtomicU64;
use core::fmt;

/// An address on the bus behind the SMMU: what translation tables and queue base registers contain.
///
/// It is what the specification calls a PA (physical address). It need not be the address at which the CPU
/// sees the same byte; [`DmaWindow`] relates the two.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PhysAddr(pub u64);

/// An address as a device emits it, before translation: a VA at stage 1, an IPA at stage 2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Iova(pub u64);

macro_rules! hex_fmt {
    ($($t:ident),*) => {$(
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($t), "({:#x})"), self.0)
            }
        }
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    )*};
}
hex_fmt!(PhysAddr, Iova);

/// The registers of one SMMU: page 0 at offset 0, page 1 at offset `0x1_0000`, and where [`size`](Self::size) reaches
/// them, Command queue control pages at the offsets that `SMMU_CMDQ_CONTROL_PAGE_BASE<n>` gives (IHI 0070 §6.1, §6.3.49).
///
/// # What the implementer ensures
/// - An access is one single-copy atomic access of the stated width, little endian, to Device memory.
/// - Accesses of one thread reach the SMMU in program order, and a write is ordered after everything that
///   [`Platform::write_barrier`] ordered before it.
/// - A device that is gone reads as all ones. Nothing panics.
///
/// # What the caller ensures
/// - `offset` is a multiple of the width and below [`size`](Self::size).
pub trait Mmio: Send + Sync {
    /// Bytes of registers that can be reached, at least `0x2_0000`. Enhanced Command queues beyond are not used.
    fn size(&self) -> usize {
        0x2_0000
    }
    /// Reads the 32-bit register at `offset` bytes.
    fn read32(&self, offset: usize) -> u32;
    /// Writes the 32-bit register at `offset` bytes.
    fn write32(&self, offset: usize, value: u32);
    /// Reads the 64-bit register at `offset` bytes.
    fn read64(&self, offset: usize) -> u64;
    /// Writes the 64-bit register at `offset` bytes.
    fn write64(&self, offset: usize, value: u64);
}

/// Everything else that the driver needs of its host.
///
/// # What the implementer ensures
/// - The methods may be called from any thread and at the same time; none sleeps, none panics.
/// - The SMMUs reach DMA memory coherently with the CPU (`SMMU_IDR0.COHACC` = 1), or there is [`CACHE_MAINTENANCE`](Self::CACHE_MAINTENANCE).
///
/// # What the caller ensures
/// - Memory goes back through [`dma_free`](Self::dma_free) once, with the numbers it was asked for with, and
///   only when no SMMU can reach it any more.
pub trait Platform: Clone + Send + Sync + 'static {
    /// How this host reaches the registers of an SMMU.
    type Mmio: Mmio;
    /// The lock behind the driver's few mutexes. Every call that may speak to an SMMU may take one for a short time: attach and detach, taking events and
    /// errors, and unmap where the SMMU has refused a command. Where interrupt handlers make such calls, the lock must mask interrupts, and so must
    /// [`without_interrupts`](Self::without_interrupts). Attach and detach also wait, and are not for interrupt handlers at all.
    type RawMutex: lock_api::RawMutex + Send + Sync;
    /// Read sections and grace periods: the kernel's own, or [`ShardedRcu`](crate::rcu::ShardedRcu). Each `Iommu` makes one.
    type Rcu: crate::rcu::Rcu;

    /// Whether [`clean`](Self::clean) and [`discard`](Self::discard) are there. Without them, an SMMU that does not look into the CPU's caches
    /// (`SMMU_IDR0.COHACC` = 0) is refused. With them, all that the driver writes for SMMUs is cleaned, whatever the SMMUs are like.
    const CACHE_MAINTENANCE: bool = false;

    /// The window that all DMA memory lies in. Always the same one.
    fn window(&self) -> &DmaWindow;

    /// Gives `size` bytes at a device address that is a multiple of `align`, or `None` where there are none.
    ///
    /// `size` is a multiple of 64, `align` a power of two of at least 64; the contents may be anything. The
    /// memory lies wholly in [`window`](Self::window). With [`CACHE_MAINTENANCE`](Self::CACHE_MAINTENANCE) it shares no cache line with anything
    /// else.
    fn dma_alloc(&self, size: usize, align: usize) -> Option<PhysAddr>;

    /// Takes back what [`dma_alloc`](Self::dma_alloc) gave.
    fn dma_free(&self, addr: PhysAddr, size: usize, align: usize);

    /// Orders every earlier access of this CPU before every later one, as the SMMU and the devices see them.
    ///
    /// On AArch64 a `DMB SY`; a `DMB ISH` (what a Rust fence is) does not reach a device outside the inner
    /// shareable domain.
    fn full_barrier(&self);

    /// Orders every earlier write of this CPU before every later one, MMIO included, as the SMMU sees them.
    ///
    /// On AArch64 a `DMB ST` of the full system where only memory follows, a `DSB ST` where MMIO does: an
    /// implementation uses the stronger.
    fn write_barrier(&self);

    /// Orders every earlier read of this CPU, MMIO included, before every later access.
    ///
    /// On AArch64 a `DMB LD` of the full system. Reads of a queue come after the read of its index register.
    fn read_barrier(&self);

    /// Writes `words`, a part of DMA memory, back from the CPU's caches. When it returns, an SMMU that reads memory alone sees them as they are
    /// now, or newer.
    ///
    /// On AArch64 a `DC CVAC` for each cache line, and a `DSB SY`. Lines may be shared with other words, and written by other CPUs.
    #[inline]
    fn clean(&self, words: &[AtomicU64]) {
        let _ = words;
    }

    /// Sees to it that the next read of `words`, a part of the event queue, finds what an SMMU has written to memory. The CPU has written nothing to these
    /// cache lines that was not cleaned.
    ///
    /// Comes after every earlier access, also to registers. On AArch64 a `DSB SY`, a `DC IVAC` for each cache line, and another.
    #[inline]
    fn discard(&self, words: &[AtomicU64]) {
        let _ = words;
    }

    /// Nanoseconds since some fixed moment; never goes back.
    fn now_ns(&self) -> u64;

    /// One turn of a waiting loop: a pause or yield of the CPU. Returns soon.
    fn relax(&self);

    /// Waits a short time, at most some 100 µs, for an event that an SMMU sends (`SMMU_IDR0.SEV`), or that another CPU does. May return
    /// at any time.
    ///
    /// On AArch64 a `WFE`, while the timer's event stream is on. The default is [`relax`](Self::relax).
    #[inline]
    fn wait_for_event(&self) {
        self.relax();
    }

    /// Waits a short time, at most some 100 µs, for an SMMU to write to `word`, which was `value`. May return at any time.
    ///
    /// On AArch64 an `LDXR` of the word and, if it is `value`, a `WFE`: the write ends the reservation, which is an event. The timer's event
    /// stream is on. The default is [`relax`](Self::relax).
    #[inline]
    fn wait_while(&self, word: &AtomicU64, value: u64) {
        let _ = (word, value);
        self.relax();
    }

    /// Runs `f`, while no interrupt handler that calls this driver runs on this CPU, and returns what it returns. Not nested.
    ///
    /// `f` is short and does not wait: it writes at most 65 commands and rings the doorbell of a command queue. A handler that came in between would
    /// wait in vain for its own commands, which stand behind those of the thread that it interrupted. A kernel that can be preempted does
    /// well to prevent that here too: all who come later wait for a thread that is taken off its CPU inside.
    ///
    /// The default just calls `f`. It is right where no interrupt handler unmaps, or submits anything else to an SMMU; taking global errors of one with
    /// Enhanced Command queues does.
    #[inline]
    fn without_interrupts<R>(&self, f: impl FnOnce() -> R) -> R {
        f()
    }

    /// Turns ATS on in the PCIe function that issues `sid` behind the SMMU with index `smmu`, with a smallest
    /// translation unit of `4096 << stu` bytes. Returns whether it is on now.
    ///
    /// Called under the attach mutex. The default has no PCIe devices.
    fn ats_enable(&self, smmu: u8, sid: u32, stu: u8) -> bool {
        let _ = (smmu, sid, stu);
        false
    }

    /// Turns ATS off again. When it returns, the function issues no translation requests and no translated accesses any more.
    fn ats_disable(&self, smmu: u8, sid: u32) {
        let _ = (smmu, sid);
    }

    /// A small number that tells CPUs apart, to spread counters. Any answer is correct, and the caller may
    /// have moved to another CPU by the time it has it; good answers are fast.
    fn cpu_hint(&self) -> usize;
}

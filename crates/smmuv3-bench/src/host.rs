//! A host that costs as little as a host may: memory, an allocator, barriers that are fences, which is what they cost where the SMMU is coherent with the
//! CPU.

use std::cell::Cell;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, AtomicUsize, fence};
use std::time::Instant;

use smmuv3::platform::{DmaWindow, Mmio, PhysAddr, Platform};
use smmuv3::rcu::ShardedRcu;
use spin::mutex::SpinMutex;

const PAGE: usize = 4096;
const GIB: usize = 1 << 30;

/// A lean host whose registers are `M`. A handle: clones are the same host.
pub struct Host<M = NoRegisters>(Arc<Inner>, PhantomData<fn() -> M>);

struct Inner {
    window: DmaWindow,
    memory: SpinMutex<Memory>,
    start: Instant,
    /// There are more threads than CPUs.
    crowded: bool,
}

/// What was not given out yet, and pages that came back. Pieces larger than a page are not given out again.
struct Memory {
    next: u64,
    end: u64,
    pages: Vec<PhysAddr>,
}

impl<M> Host<M> {
    /// A host with `pages` pages of 4 KiB.
    pub fn new(pages: usize) -> Self {
        Host::with(pages, false)
    }

    /// The same, on which more threads run than there are CPUs.
    pub fn crowded(pages: usize) -> Self {
        Host::with(pages, true)
    }

    fn with(pages: usize, crowded: bool) -> Self {
        // One more, as the first need not begin at a multiple of its size.
        let words: Arc<[AtomicU64]> = (0..(pages + 1) * PAGE / 8).map(|_| AtomicU64::new(0)).collect();
        // An address is a multiple of what it is for the CPU, too: it is cache lines that threads contend for.
        let base = (words.as_ptr().addr() % GIB) as u64;
        let memory = Memory { next: base, end: base + 8 * words.len() as u64, pages: Vec::with_capacity(pages) };
        let window = DmaWindow::from_words(words, PhysAddr(base));
        Host(Arc::new(Inner { window, memory: SpinMutex::new(memory), start: Instant::now(), crowded }), PhantomData)
    }
}

impl<M> Clone for Host<M> {
    fn clone(&self) -> Self {
        Host(self.0.clone(), PhantomData)
    }
}

impl<M: Mmio + 'static> Platform for Host<M> {
    type Mmio = M;
    type RawMutex = SpinMutex<()>;
    type Rcu = ShardedRcu<Self::RawMutex>;

    fn window(&self) -> &DmaWindow {
        &self.0.window
    }

    fn dma_alloc(&self, size: usize, align: usize) -> Option<PhysAddr> {
        let mut memory = self.0.memory.lock();
        if (size, align) == (PAGE, PAGE)
            && let Some(page) = memory.pages.pop()
        {
            return Some(page);
        }
        let at = memory.next.next_multiple_of(align as u64);
        let end = at + size as u64;
        (end <= memory.end).then(|| {
            memory.next = end;
            PhysAddr(at)
        })
    }

    fn dma_free(&self, addr: PhysAddr, size: usize, align: usize) {
        if (size, align) == (PAGE, PAGE) {
            self.0.memory.lock().pages.push(addr);
        }
    }

    fn full_barrier(&self) {
        fence(SeqCst);
    }

    fn write_barrier(&self) {
        fence(Release);
    }

    fn read_barrier(&self) {
        fence(Acquire);
    }

    fn now_ns(&self) -> u64 {
        self.0.start.elapsed().as_nanos() as u64
    }

    fn relax(&self) {
        if self.0.crowded {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }

    /// Threads are numbered as they come: the number stands for a CPU.
    fn cpu_hint(&self) -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static NUMBER: Cell<Option<NonZeroUsize>> = const { Cell::new(None) };
        }
        let number = NUMBER.get().unwrap_or_else(|| {
            let number = NonZeroUsize::MIN.saturating_add(NEXT.fetch_add(1, Relaxed));
            NUMBER.set(Some(number));
            number
        });
        number.get()
    }
}

/// The registers of an SMMU that is not there.
pub struct NoRegisters;

impl Mmio for NoRegisters {
    fn read32(&self, _: usize) -> u32 {
        u32::MAX
    }
    fn write32(&self, _: usize, _: u32) {}
    fn read64(&self, _: usize) -> u64 {
        u64::MAX
    }
    fn write64(&self, _: usize, _: u64) {}
}

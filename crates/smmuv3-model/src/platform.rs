//! The model as the driver's [`Platform`].

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicUsize, fence};
use std::time::Instant;

use smmuv3::platform::{DmaWindow, PhysAddr, Platform};

use crate::memory::Memory;
use crate::smmu::Smmu;

/// The host side of a [`Model`](crate::Model). A handle: clones are the same platform.
#[derive(Clone)]
pub struct ModelPlatform(Arc<Inner>);

struct Inner {
    memory: Arc<Memory>,
    window: DmaWindow,
    start: Instant,
}

impl ModelPlatform {
    pub(crate) fn new(memory: Arc<Memory>) -> Self {
        let window = DmaWindow::from_words(memory.words(), PhysAddr(memory.base()));
        ModelPlatform(Arc::new(Inner { memory, window, start: Instant::now() }))
    }
}

/// Threads are numbered as they come: the number stands for a CPU.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, Relaxed);
    }
    NUMBER.with(|number| *number)
}

impl Platform for ModelPlatform {
    type Mmio = ModelMmio;
    type RawMutex = spin::mutex::SpinMutex<()>;

    fn window(&self) -> &DmaWindow {
        &self.0.window
    }

    fn dma_alloc(&self, size: usize, align: usize) -> Option<PhysAddr> {
        self.0.memory.alloc_driver(size, align)
    }

    fn dma_free(&self, addr: PhysAddr, size: usize, align: usize) {
        self.0.memory.free_driver(addr, size, align);
    }

    fn full_barrier(&self) {
        fence(SeqCst);
    }

    fn write_barrier(&self) {
        fence(SeqCst);
    }

    fn read_barrier(&self) {
        fence(SeqCst);
    }

    fn now_ns(&self) -> u64 {
        self.0.start.elapsed().as_nanos() as u64
    }

    fn relax(&self) {
        std::thread::yield_now();
    }

    fn cpu_hint(&self) -> usize {
        thread_number()
    }
}

/// The registers of one SMMU of the model.
#[derive(Clone)]
pub struct ModelMmio(pub(crate) Arc<Smmu>);

impl smmuv3::platform::Mmio for ModelMmio {
    fn read32(&self, offset: usize) -> u32 {
        self.0.with(|unit| unit.read32(offset))
    }

    fn write32(&self, offset: usize, value: u32) {
        self.0.with(|unit| unit.write32(offset, value));
    }

    fn read64(&self, offset: usize) -> u64 {
        self.0.with(|unit| unit.read64(offset))
    }

    fn write64(&self, offset: usize, value: u64) {
        self.0.with(|unit| unit.write64(offset, value));
    }
}

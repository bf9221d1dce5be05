//! The model as the driver's [`Platform`].

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, AtomicUsize, fence};

use smmuv3::platform::{DmaWindow, PhysAddr, Platform};

use crate::latency::Clock;
use crate::memory::Memory;
use crate::oracle::Oracle;
use crate::smmu::Smmu;

/// The host side of a [`Model`](crate::Model). A handle: clones are the same platform.
#[derive(Clone)]
pub struct ModelPlatform(Arc<Inner>);

struct Inner {
    memory: Arc<Memory>,
    oracle: Arc<Oracle>,
    smmus: Vec<Arc<Smmu>>,
    window: DmaWindow,
    clock: Arc<Clock>,
}

impl ModelPlatform {
    pub(crate) fn new(memory: Arc<Memory>, oracle: Arc<Oracle>, clock: Arc<Clock>, smmus: Vec<Arc<Smmu>>) -> Self {
        let window = DmaWindow::from_words(memory.words(), PhysAddr(memory.base()));
        ModelPlatform(Arc::new(Inner { memory, oracle, smmus, window, clock }))
    }

    fn smmu(&self, index: u8) -> Option<&Smmu> {
        let smmu = self.0.smmus.get(usize::from(index));
        if smmu.is_none() {
            self.0.oracle.violation(format!("ATS is set up behind SMMU {index}, which is not there"));
        }
        smmu.map(|smmu| &**smmu)
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
    type Rcu = smmuv3::rcu::ShardedRcu<Self::RawMutex>;

    const CACHE_MAINTENANCE: bool = true;

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
        self.0.memory.evict_some();
        fence(SeqCst);
    }

    fn write_barrier(&self) {
        self.0.memory.evict_some();
        fence(SeqCst);
    }

    fn read_barrier(&self) {
        fence(SeqCst);
    }

    fn clean(&self, words: &[AtomicU64]) {
        self.0.memory.evict_some();
        self.0.memory.clean(words);
    }

    fn discard(&self, words: &[AtomicU64]) {
        self.0.memory.discard(words);
    }

    fn now_ns(&self) -> u64 {
        self.0.clock.now()
    }

    fn relax(&self) {
        std::thread::yield_now();
    }

    /// The SMMUs have no time of their own, and whoever waits does not look at them.
    fn wait_while(&self, _: &AtomicU64, _: u64) {
        self.0.smmus.iter().for_each(|smmu| smmu.attend());
        self.relax();
    }

    /// Whether the function has ATS is for [`Model::set_ats`](crate::Model::set_ats) to say.
    fn ats_enable(&self, smmu: u8, sid: u32, stu: u8) -> bool {
        self.smmu(smmu).is_some_and(|smmu| smmu.with(|unit| unit.ats_enable(sid, stu)))
    }

    /// The ATC keeps what it has, for the time after ATS is turned on again.
    fn ats_disable(&self, smmu: u8, sid: u32) {
        if let Some(smmu) = self.smmu(smmu) {
            smmu.with(|unit| unit.ats_disable(sid));
        }
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
        // Whoever waits for an SMMU does not keep it from its work.
        self.0.glance(offset).unwrap_or_else(|| self.0.with(|unit| unit.read32(offset)))
    }

    fn size(&self) -> usize {
        self.0.size()
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

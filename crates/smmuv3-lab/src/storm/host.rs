//! The model as the driver's host, with points at which devices and other threads break in.

use std::sync::atomic::AtomicU64;

use smmuv3::platform::{DmaWindow, Mmio, PhysAddr, Platform};
use smmuv3_model::{Model, ModelMmio, ModelPlatform};

use super::context;

/// The model's platform with points.
#[derive(Clone)]
pub(super) struct Host(ModelPlatform);

/// The model's registers with points.
pub(super) struct Registers(ModelMmio);

impl Host {
    pub(super) fn new(model: &Model) -> Self {
        Host(model.platform())
    }
}

impl Registers {
    pub(super) fn new(model: &Model, smmu: usize) -> Self {
        Registers(model.mmio(smmu))
    }
}

/// What a thread does that waits for a lock of the driver.
pub(super) struct Waiting;

impl spin::RelaxStrategy for Waiting {
    fn relax() {
        context::wait();
    }
}

impl Platform for Host {
    type Mmio = Registers;
    type RawMutex = spin::mutex::SpinMutex<(), Waiting>;
    type Rcu = smmuv3::rcu::ShardedRcu<Self::RawMutex>;

    const CACHE_MAINTENANCE: bool = true;

    fn window(&self) -> &DmaWindow {
        self.0.window()
    }
    fn clean(&self, words: &[AtomicU64]) {
        context::point();
        self.0.clean(words);
        context::point();
    }
    fn discard(&self, words: &[AtomicU64]) {
        self.0.discard(words);
    }
    fn dma_alloc(&self, size: usize, align: usize) -> Option<PhysAddr> {
        let memory = self.0.dma_alloc(size, align);
        context::point();
        memory
    }
    fn dma_free(&self, addr: PhysAddr, size: usize, align: usize) {
        self.0.dma_free(addr, size, align);
        context::point();
    }
    fn full_barrier(&self) {
        self.0.full_barrier();
        context::point();
    }
    fn write_barrier(&self) {
        self.0.write_barrier();
        context::point();
    }
    fn read_barrier(&self) {
        self.0.read_barrier();
        context::point();
    }
    fn now_ns(&self) -> u64 {
        context::now_ns().unwrap_or_else(|| self.0.now_ns())
    }
    fn relax(&self) {
        context::wait();
    }
    fn wait_while(&self, word: &AtomicU64, value: u64) {
        self.0.wait_while(word, value);
        context::wait();
    }
    fn ats_enable(&self, smmu: u8, sid: u32, stu: u8) -> bool {
        context::point();
        let on = self.0.ats_enable(smmu, sid, stu);
        context::point();
        on
    }
    fn ats_disable(&self, smmu: u8, sid: u32) {
        context::point();
        self.0.ats_disable(smmu, sid);
        context::point();
    }
    fn cpu_hint(&self) -> usize {
        context::thread().unwrap_or_else(|| self.0.cpu_hint())
    }
}

impl Mmio for Registers {
    fn size(&self) -> usize {
        self.0.size()
    }
    fn read32(&self, offset: usize) -> u32 {
        let value = self.0.read32(offset);
        context::point();
        value
    }
    fn write32(&self, offset: usize, value: u32) {
        context::point();
        self.0.write32(offset, value);
        context::point();
    }
    fn read64(&self, offset: usize) -> u64 {
        self.0.read64(offset)
    }
    fn write64(&self, offset: usize, value: u64) {
        self.0.write64(offset, value);
    }
}

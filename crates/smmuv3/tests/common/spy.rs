//! The model's platform with hooks: what a test may see, change or interrupt.
#![allow(dead_code, reason = "each test file uses a part of it")]

use smmuv3::arch::regs::{QUEUE_BASE_ADDR, offset};
use smmuv3::platform::{DmaWindow, Mmio, PhysAddr, Platform};
use smmuv3::{Iommu, SmmuHandle, SmmuOptions};
use smmuv3_model::{Model, ModelMmio, ModelPlatform};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// What arrives as an interrupt at the next full barrier, once.
pub type Irq = Arc<dyn Fn() + Send + Sync>;

/// Registers that let a test look on.
pub struct Spy {
    inner: ModelMmio,
    /// Runs before each write of 32 bits.
    on_write: Box<dyn Fn(usize, u32) + Send + Sync>,
    /// Runs after each read of 32 bits.
    on_read: Box<dyn Fn(usize) + Send + Sync>,
    /// Reads give all ones, and writes go nowhere.
    gone: Arc<AtomicBool>,
}

impl Spy {
    pub fn new(model: &Model) -> Spy {
        Spy { inner: model.mmio(0), on_write: Box::new(|_, _| {}), on_read: Box::new(|_| {}), gone: Arc::default() }
    }

    pub fn on_write(mut self, hook: impl Fn(usize, u32) + Send + Sync + 'static) -> Spy {
        self.on_write = Box::new(hook);
        self
    }

    pub fn on_read(mut self, hook: impl Fn(usize) + Send + Sync + 'static) -> Spy {
        self.on_read = Box::new(hook);
        self
    }

    pub fn gone(mut self, gone: Arc<AtomicBool>) -> Spy {
        self.gone = gone;
        self
    }
}

impl Mmio for Spy {
    fn read32(&self, offset: usize) -> u32 {
        if self.gone.load(Ordering::SeqCst) {
            return u32::MAX;
        }
        let value = self.inner.read32(offset);
        (self.on_read)(offset);
        value
    }
    fn write32(&self, offset: usize, value: u32) {
        (self.on_write)(offset, value);
        if !self.gone.load(Ordering::SeqCst) {
            self.inner.write32(offset, value);
        }
    }
    fn read64(&self, offset: usize) -> u64 {
        self.inner.read64(offset)
    }
    fn write64(&self, offset: usize, value: u64) {
        self.inner.write64(offset, value);
    }
}

#[derive(Clone)]
pub struct SpyPlatform {
    inner: ModelPlatform,
    irq: Arc<Mutex<Option<Irq>>>,
}

thread_local!(static IN_IRQ: Cell<bool> = const { Cell::new(false) });

impl Platform for SpyPlatform {
    type Mmio = Spy;
    type RawMutex = <ModelPlatform as Platform>::RawMutex;
    fn window(&self) -> &DmaWindow {
        self.inner.window()
    }
    fn dma_alloc(&self, size: usize, align: usize) -> Option<PhysAddr> {
        self.inner.dma_alloc(size, align)
    }
    fn dma_free(&self, addr: PhysAddr, size: usize, align: usize) {
        self.inner.dma_free(addr, size, align);
    }
    fn full_barrier(&self) {
        self.inner.full_barrier();
        let irq = if IN_IRQ.get() { None } else { self.irq.lock().unwrap().take() };
        if let Some(irq) = irq {
            IN_IRQ.set(true);
            irq();
            IN_IRQ.set(false);
        }
    }
    fn write_barrier(&self) {
        self.inner.write_barrier();
    }
    fn read_barrier(&self) {
        self.inner.read_barrier();
    }
    fn now_ns(&self) -> u64 {
        self.inner.now_ns()
    }
    fn relax(&self) {
        self.inner.relax();
    }
    fn cpu_hint(&self) -> usize {
        self.inner.cpu_hint()
    }
    fn ats_enable(&self, smmu: u8, sid: u32, stu: u8) -> bool {
        self.inner.ats_enable(smmu, sid, stu)
    }
    fn ats_disable(&self, smmu: u8, sid: u32) {
        self.inner.ats_disable(smmu, sid);
    }
}

/// An `Iommu` over the model whose next full barrier runs what is in `irq`.
pub fn interruptible(model: &Model, irq: Arc<Mutex<Option<Irq>>>) -> Iommu<SpyPlatform> {
    Iommu::new(SpyPlatform { inner: model.platform(), irq }).unwrap()
}

/// An `Iommu` over the model, and registers with a hook for writes.
pub fn spy(model: &Model, on_write: impl Fn(usize, u32) + Send + Sync + 'static) -> (Iommu<SpyPlatform>, Spy) {
    (interruptible(model, Arc::default()), Spy::new(model).on_write(on_write))
}

/// Overwrites the command in front of the CMD_SYNC that PROD announces with one that the SMMU refuses.
pub fn damage_last_command(model: &Model, prod: u32) {
    let base = model.mmio(0).read64(offset::CMDQ_BASE);
    let (queue, mask) = (base & QUEUE_BASE_ADDR, (1u64 << (base & 31)) - 1);
    let slot = u64::from(prod).wrapping_sub(2) & mask;
    model.write_u64(PhysAddr(queue + 16 * slot), 0xff);
}

/// An `Iommu` with an SMMU: the command before the CMD_SYNC is damaged at the announcement whose number, counted from now on, is put into
/// what comes third.
pub fn damaging(model: &Model) -> (Iommu<SpyPlatform>, SmmuHandle<SpyPlatform>, Arc<AtomicU32>) {
    let armed = Arc::new(AtomicU32::new(0));
    let (ram, arm) = (model.clone(), armed.clone());
    let (iommu, mmio) = spy(model, move |offset, prod| {
        if offset == offset::CMDQ_PROD && arm.load(Ordering::SeqCst) > 0 && arm.fetch_sub(1, Ordering::SeqCst) == 1 {
            damage_last_command(&ram, prod);
        }
    });
    let options = SmmuOptions { timeout_ns: 250_000_000, ..SmmuOptions::default() };
    let smmu = iommu.add_smmu(mmio, options).unwrap();
    (iommu, smmu, armed)
}

//! The model's platform with hooks: what a test may see, change or interrupt.
#![allow(dead_code, reason = "each test file uses a part of it")]

use smmuv3::arch::regs::{QUEUE_BASE_ADDR, offset};
use smmuv3::platform::{DmaWindow, Mmio, PhysAddr, Platform};
use smmuv3::rcu::Rcu;
use smmuv3::{Iommu, SmmuHandle, SmmuOptions};
use smmuv3_model::{Model, ModelMmio, ModelPlatform};
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What arrives as an interrupt at the next full barrier, once.
pub type Irq = Arc<dyn Fn() + Send + Sync>;

thread_local!(
    /// Calls of this thread that have left the driver for its host.
    static OUTSIDE: Cell<u32> = const { Cell::new(0) };
);

/// Whether this thread runs the driver's own code, and not that of the model or the test below it.
pub fn in_driver() -> bool {
    OUTSIDE.get() == 0
}

/// From the driver to its host, and back when dropped.
struct Outside;

impl Outside {
    fn enter() -> Outside {
        OUTSIDE.set(OUTSIDE.get() + 1);
        Outside
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        OUTSIDE.set(OUTSIDE.get() - 1);
    }
}

/// What goes wrong with the hardware, counted in steps: accesses to registers, and ATS turned on in a function.
#[derive(Clone, Copy, Default)]
pub enum Mishap {
    /// Nothing.
    #[default]
    None,
    /// From this step on registers read as all ones, and writes go nowhere.
    GoneFrom(u64),
    /// At this step: if it is a doorbell, the command before the CMD_SYNC is one that the SMMU refuses; if it turns ATS on, it does not.
    RefusedAt(u64),
}

/// How many steps there were, and what happens at which.
#[derive(Clone, Default)]
pub struct Steps(Arc<(AtomicU64, Mutex<Mishap>)>);

impl Steps {
    /// Counts from 0 again.
    pub fn arm(&self, mishap: Mishap) {
        *self.0.1.lock().unwrap() = mishap;
        self.0.0.store(0, Ordering::SeqCst);
    }

    /// The steps since then.
    pub fn count(&self) -> u64 {
        self.0.0.load(Ordering::SeqCst)
    }

    /// (gone, refused)
    fn step(&self) -> (bool, bool) {
        let step = self.0.0.fetch_add(1, Ordering::SeqCst);
        match *self.0.1.lock().unwrap() {
            Mishap::None => (false, false),
            Mishap::GoneFrom(first) => (step >= first, false),
            Mishap::RefusedAt(this) => (false, step == this),
        }
    }
}

/// Registers that let a test look on.
pub struct Spy {
    model: Model,
    inner: ModelMmio,
    steps: Steps,
    /// Runs before each write of 32 bits.
    on_write: Box<dyn Fn(usize, u32) + Send + Sync>,
    /// Runs after each read of 32 bits.
    on_read: Box<dyn Fn(usize) + Send + Sync>,
    /// What a read of 32 bits gives instead of what the register holds.
    answers: Box<dyn Fn(usize, u32) -> u32 + Send + Sync>,
    /// Bytes of registers, if not all of them.
    size: Option<usize>,
    /// Reads give all ones, and writes go nowhere.
    gone: Arc<AtomicBool>,
}

impl Spy {
    pub fn new(model: &Model) -> Spy {
        Spy::of(model, 0)
    }

    /// The registers of one of several SMMUs.
    pub fn of(model: &Model, smmu: usize) -> Spy {
        Spy {
            model: model.clone(),
            inner: model.mmio(smmu),
            steps: Steps::default(),
            on_write: Box::new(|_, _| {}),
            on_read: Box::new(|_| {}),
            answers: Box::new(|_, value| value),
            size: None,
            gone: Arc::default(),
        }
    }

    pub fn steps(mut self, steps: Steps) -> Spy {
        self.steps = steps;
        self
    }

    pub fn on_write(mut self, hook: impl Fn(usize, u32) + Send + Sync + 'static) -> Spy {
        self.on_write = Box::new(hook);
        self
    }

    pub fn on_read(mut self, hook: impl Fn(usize) + Send + Sync + 'static) -> Spy {
        self.on_read = Box::new(hook);
        self
    }

    pub fn answers(mut self, hook: impl Fn(usize, u32) -> u32 + Send + Sync + 'static) -> Spy {
        self.answers = Box::new(hook);
        self
    }

    pub fn size(mut self, size: usize) -> Spy {
        self.size = Some(size);
        self
    }

    pub fn gone(mut self, gone: Arc<AtomicBool>) -> Spy {
        self.gone = gone;
        self
    }
}

impl Mmio for Spy {
    fn size(&self) -> usize {
        self.size.unwrap_or(self.inner.size())
    }
    fn read32(&self, offset: usize) -> u32 {
        let _outside = Outside::enter();
        let (gone, _) = self.steps.step();
        if gone || self.gone.load(Ordering::SeqCst) {
            return u32::MAX;
        }
        let value = self.inner.read32(offset);
        (self.on_read)(offset);
        (self.answers)(offset, value)
    }
    fn write32(&self, offset: usize, value: u32) {
        let _outside = Outside::enter();
        let (gone, refused) = self.steps.step();
        (self.on_write)(offset, value);
        if refused && offset == offset::CMDQ_PROD {
            damage_last_command(&self.model, value);
        }
        if !gone && !self.gone.load(Ordering::SeqCst) {
            self.inner.write32(offset, value);
        }
    }
    fn read64(&self, offset: usize) -> u64 {
        let _outside = Outside::enter();
        if self.steps.step().0 { u64::MAX } else { self.inner.read64(offset) }
    }
    fn write64(&self, offset: usize, value: u64) {
        let _outside = Outside::enter();
        if !self.steps.step().0 {
            self.inner.write64(offset, value);
        }
    }
}

/// `R`: the read sections of the host.
pub struct SpyPlatform<R = <ModelPlatform as Platform>::Rcu> {
    inner: ModelPlatform,
    irq: Arc<Mutex<Option<Irq>>>,
    steps: Steps,
    /// Whether DMA memory is to be had now.
    memory: fn() -> bool,
    /// How far from it DMA memory is said to be.
    skew: u64,
    /// A clock of its own, in nanoseconds, which goes on by a tenth of a millisecond in each turn of a waiting loop.
    clock: Option<Arc<AtomicU64>>,
    rcu: PhantomData<fn() -> R>,
}

impl<R> Clone for SpyPlatform<R> {
    fn clone(&self) -> Self {
        let SpyPlatform { inner, irq, steps, memory, skew, clock, rcu } = self;
        let (inner, irq, steps, clock) = (inner.clone(), irq.clone(), steps.clone(), clock.clone());
        SpyPlatform { inner, irq, steps, memory: *memory, skew: *skew, clock, rcu: *rcu }
    }
}

impl<R> SpyPlatform<R> {
    pub fn new(model: &Model) -> Self {
        let (irq, steps) = (Arc::default(), Steps::default());
        SpyPlatform { inner: model.platform(), irq, steps, memory: || true, skew: 0, clock: None, rcu: PhantomData }
    }

    /// Time passes only for those who wait: no deadline depends on how busy the machine is.
    pub fn own_clock(mut self) -> Self {
        self.clock = Some(Arc::default());
        self
    }

    pub fn steps(mut self, steps: Steps) -> Self {
        self.steps = steps;
        self
    }

    pub fn skew(mut self, skew: u64) -> Self {
        self.skew = skew;
        self
    }

    pub fn memory(mut self, memory: fn() -> bool) -> Self {
        self.memory = memory;
        self
    }
}

thread_local!(static IN_IRQ: Cell<bool> = const { Cell::new(false) });

impl<R: Rcu> Platform for SpyPlatform<R> {
    type Mmio = Spy;
    type RawMutex = <ModelPlatform as Platform>::RawMutex;
    type Rcu = R;
    fn window(&self) -> &DmaWindow {
        self.inner.window()
    }
    fn dma_alloc(&self, size: usize, align: usize) -> Option<PhysAddr> {
        if !(self.memory)() {
            return None;
        }
        let _outside = Outside::enter();
        self.inner.dma_alloc(size, align).map(|addr| PhysAddr(addr.0 + self.skew))
    }
    fn dma_free(&self, addr: PhysAddr, size: usize, align: usize) {
        let _outside = Outside::enter();
        self.inner.dma_free(PhysAddr(addr.0 - self.skew), size, align);
    }
    fn full_barrier(&self) {
        let _outside = Outside::enter();
        self.inner.full_barrier();
        let irq = if IN_IRQ.get() { None } else { self.irq.lock().unwrap().take() };
        if let Some(irq) = irq {
            IN_IRQ.set(true);
            irq();
            IN_IRQ.set(false);
        }
    }
    fn write_barrier(&self) {
        let _outside = Outside::enter();
        self.inner.write_barrier();
    }
    fn read_barrier(&self) {
        let _outside = Outside::enter();
        self.inner.read_barrier();
    }
    fn now_ns(&self) -> u64 {
        self.clock.as_ref().map_or_else(|| self.inner.now_ns(), |clock| clock.load(Ordering::SeqCst))
    }
    fn relax(&self) {
        match &self.clock {
            Some(clock) => drop(clock.fetch_add(100_000, Ordering::SeqCst)),
            None => self.inner.relax(),
        }
    }
    fn wait_while(&self, word: &AtomicU64, value: u64) {
        self.inner.wait_while(word, value);
        self.relax();
    }
    fn ats_enable(&self, smmu: u8, sid: u32, stu: u8) -> bool {
        let _outside = Outside::enter();
        let (gone, refused) = self.steps.step();
        !gone && !refused && self.inner.ats_enable(smmu, sid, stu)
    }
    fn ats_disable(&self, smmu: u8, sid: u32) {
        let _outside = Outside::enter();
        self.inner.ats_disable(smmu, sid);
    }
    fn cpu_hint(&self) -> usize {
        self.inner.cpu_hint()
    }
}

/// An `Iommu` over the model whose next full barrier runs what is in `irq`.
pub fn interruptible(model: &Model, irq: Arc<Mutex<Option<Irq>>>) -> Iommu<SpyPlatform> {
    Iommu::new(SpyPlatform { irq, ..SpyPlatform::new(model) }).unwrap()
}

thread_local!(static ON_ENTRY: RefCell<Option<Irq>> = const { RefCell::new(None) });

/// Runs `irq` when this thread has entered the next read section of a [`HookedRcu`].
pub fn on_entry(irq: impl Fn() + Send + Sync + 'static) {
    ON_ENTRY.set(Some(Arc::new(irq)));
}

/// Read sections with a hook at their beginning.
#[derive(Default)]
pub struct HookedRcu(<ModelPlatform as Platform>::Rcu);

// SAFETY: those of another implementation.
unsafe impl Rcu for HookedRcu {
    type Guard<'a> = <<ModelPlatform as Platform>::Rcu as Rcu>::Guard<'a>;
    fn enter<P: Platform>(&self, platform: &P) -> Self::Guard<'_> {
        let guard = self.0.enter(platform);
        if let Some(irq) = ON_ENTRY.take() {
            irq();
        }
        guard
    }
    fn synchronize<P: Platform>(&self, platform: &P) {
        self.0.synchronize(platform);
    }
    fn try_synchronize<P: Platform>(&self, platform: &P) -> bool {
        self.0.try_synchronize(platform)
    }
}

/// An `Iommu` over the model, and registers with a hook for writes.
pub fn spy(model: &Model, on_write: impl Fn(usize, u32) + Send + Sync + 'static) -> (Iommu<SpyPlatform>, Spy) {
    (interruptible(model, Arc::default()), Spy::new(model).on_write(on_write))
}

/// The opcode of the command in front of the CMD_SYNC that PROD announces.
pub fn last_opcode(model: &Model, prod: u32) -> u64 {
    model.read_u64(last_command(model, prod)).unwrap() & 0xff
}

/// Overwrites the command in front of the CMD_SYNC that PROD announces with one that the SMMU refuses.
pub fn damage_last_command(model: &Model, prod: u32) {
    model.write_u64(last_command(model, prod), 0xff);
}

fn last_command(model: &Model, prod: u32) -> PhysAddr {
    let base = model.mmio(0).read64(offset::CMDQ_BASE);
    let (queue, mask) = (base & QUEUE_BASE_ADDR, (1u64 << (base & 31)) - 1);
    let slot = u64::from(prod).wrapping_sub(2) & mask;
    PhysAddr(queue + 16 * slot)
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

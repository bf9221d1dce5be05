//! The laziest legal SMMUv3: a software model with memory, devices and an oracle, to prove a driver right.
//!
//! A test only proves something if its hardware does the least that the specification (Arm IHI 0070) promises. This
//! SMMU caches all that it may for as long as it may, and prefetches the rest; an invalidation takes effect only when a
//! CMD_SYNC after it completes, and reaches exactly what was asked for; writes that were translated arrive as late as
//! that; registers and caches hold garbage at reset; updates take effect only when they were polled for. What a lenient
//! SMMU lets pass is noted as a *violation*. [`Laziness`] has a switch for each freedom that is taken. [`Latency`] makes
//! commands take time.
//!
//! The oracle owns the pages of memory. A page that is freed is poisoned, and each later access of a device to it is
//! counted as *stale DMA*, with the history that led there.
//!
//! ```
//! use smmuv3::platform::{Iova, Mmio, Platform};
//! use smmuv3_model::{Model, ModelConfig};
//!
//! let model = Model::new(ModelConfig::default());
//! let platform = model.platform(); // for the driver
//! let registers = model.mmio(0); // for the driver
//! assert_eq!(registers.read32(0x20), 0); // CR0
//!
//! let page = model.alloc_data(1).unwrap();
//! let device = model.device(0, 0x18);
//! device.write_u64(Iova(page.addr().0), 7).unwrap(); // SMMUEN is 0 and GBPA lets all pass
//! assert_eq!(model.read_u64(page.addr()), Some(7));
//! model.report().assert_clean();
//! # let _ = platform;
//! ```
//!
//! Not modelled: stalls, PRI, split-stage ATS, two security states, VMSAv8-32, 52-bit addresses, hardware update of flags,
//! hierarchical permissions, contiguous hints, `STE.CONT` (so `F_CFG_CONFLICT` is never raised), MPAM. Reads are never
//! late.

#![forbid(unsafe_code)]

mod atc;
mod ats;
mod command;
mod config;
mod device;
mod ecmdq;
mod fault;
mod latency;
mod laziness;
mod memory;
mod oracle;
mod platform;
mod posted;
mod queue;
mod regs;
mod rng;
mod setup;
mod smmu;
mod speculation;
mod tlb;
mod walk;

pub use atc::{AtsAnswers, AtsBehaviour};
pub use device::{Device, DeviceStats, DeviceThread, Targets, Traffic};
pub use fault::DmaError;
pub use latency::Latency;
pub use laziness::{Freedom, Laziness};
pub use memory::POISON;
pub use oracle::{Report, SmmuReport, StaleAccess};
pub use platform::{ModelMmio, ModelPlatform};
pub use setup::{Ecmdqs, ModelConfig, ModelSmmuConfig};
pub use smmu::{Irq, Sabotage};

use std::sync::Arc;

use smmuv3::arch::regs::CmdqError;
use smmuv3::arch::{Command, Features};
use smmuv3::platform::PhysAddr;

use latency::Clock;
use memory::Memory;
use oracle::Oracle;
use smmu::Smmu;

/// A machine: memory, SMMUs, devices, and the oracle. A handle: clones are the same machine.
#[derive(Clone)]
pub struct Model(Arc<Machine>);

struct Machine {
    oracle: Arc<Oracle>,
    memory: Arc<Memory>,
    clock: Arc<Clock>,
    platform: ModelPlatform,
    smmus: Vec<Arc<Smmu>>,
}

/// Pages that a device may access until they are freed.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct DataPages {
    addr: PhysAddr,
    pages: usize,
}

impl DataPages {
    /// Where the first page is.
    pub fn addr(&self) -> PhysAddr {
        self.addr
    }

    /// How many pages of 4096 bytes.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// How many bytes.
    pub fn size(&self) -> u64 {
        self.pages as u64 * memory::PAGE
    }
}

impl Model {
    /// Builds a machine. Panics on a configuration that makes no sense: the test is wrong.
    pub fn new(config: ModelConfig) -> Self {
        assert!((1..=16).contains(&config.smmus.len()), "1 to 16 SMMUs");
        let oracle = Arc::new(Oracle::default());
        let caches = config.smmus.iter().any(|smmu| !smmu.coherent);
        let memory = Arc::new(Memory::new(config.ram_size, config.ram_base, caches, oracle.clone()));
        let clock = Arc::new(Clock::new());
        let smmu = |(index, smmu): (usize, &ModelSmmuConfig)| {
            Arc::new(Smmu::new(index, smmu, config.seed, memory.clone(), oracle.clone(), clock.clone()))
        };
        let smmus: Vec<_> = config.smmus.iter().enumerate().map(smmu).collect();
        let platform = ModelPlatform::new(memory.clone(), oracle.clone(), clock.clone(), smmus.clone());
        Model(Arc::new(Machine { oracle, memory, clock, platform, smmus }))
    }

    /// What the driver runs on.
    pub fn platform(&self) -> ModelPlatform {
        self.0.platform.clone()
    }

    /// How many SMMUs there are.
    pub fn smmus(&self) -> usize {
        self.0.smmus.len()
    }

    /// The registers of an SMMU.
    pub fn mmio(&self, smmu: usize) -> ModelMmio {
        ModelMmio(self.0.smmus[smmu].clone())
    }

    /// What an SMMU can do.
    pub fn features(&self, smmu: usize) -> Features {
        self.0.smmus[smmu].with(|unit| unit.features)
    }

    /// The device with this StreamID behind an SMMU.
    pub fn device(&self, smmu: usize, sid: u32) -> Device {
        Device::new(self.0.smmus[smmu].clone(), sid)
    }

    // --- memory ---

    /// Pages for devices to access.
    pub fn alloc_data(&self, pages: usize) -> Option<DataPages> {
        self.alloc_data_aligned(pages, 4096)
    }

    /// Pages for devices to access, at a multiple of `align` bytes.
    pub fn alloc_data_aligned(&self, pages: usize, align: usize) -> Option<DataPages> {
        let addr = PhysAddr(self.0.memory.alloc_data(pages, align)?);
        Some(DataPages { addr, pages })
    }

    /// Takes pages back: from now on, a device's access to them is stale DMA. They are poisoned.
    pub fn free_data(&self, data: DataPages) {
        self.0.memory.free_data(data.addr.0, data.pages);
    }

    /// Reads the word at `addr`, a multiple of 8, as the CPU does. `None` outside RAM.
    pub fn read_u64(&self, addr: PhysAddr) -> Option<u64> {
        self.0.memory.read_u64(addr.0)
    }

    /// Writes the word at `addr`, a multiple of 8, as the CPU does, and cleans it; false outside RAM.
    pub fn write_u64(&self, addr: PhysAddr, value: u64) -> bool {
        self.0.memory.write_and_clean(addr.0 & !7, &value.to_le_bytes())
    }

    /// Reads bytes as the CPU does; false if they are not all in RAM.
    pub fn read_bytes(&self, addr: PhysAddr, buf: &mut [u8]) -> bool {
        self.0.memory.read(addr.0, buf)
    }

    /// Writes bytes as the CPU does, and cleans them; false if they are not all in RAM.
    pub fn write_bytes(&self, addr: PhysAddr, buf: &[u8]) -> bool {
        self.0.memory.write_and_clean(addr.0, buf)
    }

    /// Pages that the driver holds now: 0 once it has given back all.
    pub fn driver_pages(&self) -> usize {
        self.0.memory.driver_pages()
    }

    /// Data pages given out now.
    pub fn data_pages(&self) -> usize {
        self.0.memory.data_pages()
    }

    /// Allocations that the driver asked for so far, successful or not: to fail each of them in turn.
    pub fn driver_allocs(&self) -> u64 {
        self.0.memory.driver_requests()
    }

    /// The driver's next `n` allocations succeed (if there is memory), and those after them fail.
    pub fn fail_allocs_after(&self, n: u64) {
        self.0.memory.limit_driver_allocs(n);
    }

    /// All allocations of the driver fail, or (`false`) none does any more.
    pub fn fail_all_allocs(&self, fail: bool) {
        self.0.memory.limit_driver_allocs(if fail { 0 } else { u64::MAX });
    }

    // --- time ---

    /// Stops the clock: [`Latency`] and the driver's waits depend on it. At first it is the host's.
    pub fn stop_clock(&self) {
        self.0.clock.stop();
    }

    /// Moves on a clock that was stopped. Panics if it was not.
    pub fn advance_clock(&self, ns: u64) {
        self.0.clock.advance(ns);
    }

    // --- what happened ---

    /// What happened so far.
    pub fn report(&self) -> Report {
        self.0.oracle.report(self.0.smmus.iter().map(|smmu| smmu.with(|unit| unit.report())).collect())
    }

    /// Sets all counts of the report to zero and forgets violations and histories.
    pub fn clear_report(&self) {
        self.0.oracle.clear();
        self.0.smmus.iter().for_each(|smmu| smmu.with(|unit| unit.clear_counts()));
    }

    /// The commands that an SMMU consumed since the last call, in order: the last 4096 of them.
    pub fn take_commands(&self, smmu: usize) -> Vec<Command> {
        self.0.smmus[smmu].with(|unit| unit.take_log())
    }

    /// The error that an SMMU's Command queue stands still with.
    pub fn cmdq_error(&self, smmu: usize) -> Option<CmdqError> {
        self.0.smmus[smmu].with(|unit| unit.cmdq_error())
    }

    // --- misbehaviour ---

    /// How the PCIe function with this StreamID behaves with ATS from now on. At first all have ATS and are of the
    /// [default](AtsBehaviour::default) kind.
    pub fn set_ats(&self, smmu: usize, sid: u32, behaviour: AtsBehaviour) {
        self.0.smmus[smmu].with(|unit| unit.function(sid).behaviour = behaviour);
    }

    /// Whether ATS is on in a function.
    pub fn ats_enabled(&self, smmu: usize, sid: u32) -> bool {
        self.0.smmus[smmu].with(|unit| unit.function(sid).enabled)
    }

    /// A function-level reset: ATS is off, the ATC is empty. An ATC_INV that is under way is not answered any more.
    pub fn reset_function(&self, smmu: usize, sid: u32) {
        self.0.smmus[smmu].with(|unit| unit.reset_function(sid));
    }

    /// From now on the SMMU ignores a step of the driver, as if the driver had left it out.
    pub fn sabotage(&self, smmu: usize, what: Sabotage) {
        self.0.smmus[smmu].with(|unit| unit.sabotage.insert(what));
    }

    /// The SMMU ignores nothing any more.
    pub fn end_sabotage(&self, smmu: usize) {
        self.0.smmus[smmu].with(|unit| unit.sabotage.clear());
    }

    /// The SMMU consumes no commands any more, or (`false`) does again.
    pub fn set_dead(&self, smmu: usize, dead: bool) {
        self.0.smmus[smmu].with(|unit| {
            unit.dead = dead;
            unit.look();
        });
    }

    /// The SMMU consumes at most so many commands each time that the driver looks (writes CMDQ_PROD or GERRORN, reads
    /// CMDQ_CONS or GERROR) or a device accesses something. A driver that waits without looking, for a message in
    /// memory, depends on device traffic then. `None`, as at first: all there are.
    pub fn set_commands_per_look(&self, smmu: usize, commands: Option<u32>) {
        self.0.smmus[smmu].with(|unit| unit.commands_per_look = commands);
    }

    /// Sets what is called for the interrupts of an SMMU: those that `IRQ_CTRL` enables, on the thread whose access
    /// led to them, when no lock of the model is held.
    pub fn set_irq_hook(&self, smmu: usize, hook: impl Fn(Irq) + Send + Sync + 'static) {
        self.0.smmus[smmu].set_hook(Some(Arc::new(hook)));
    }

    /// Nothing is called for interrupts any more.
    pub fn clear_irq_hook(&self, smmu: usize) {
        self.0.smmus[smmu].set_hook(None);
    }
}

//! Models for the checker loom, which runs the driver's own code through every interleaving, and every value that a load may
//! return under the memory model of the language, up to the bounds that each model states:
//!
//! ```sh
//! RUSTFLAGS="--cfg loom" cargo test -p smmuv3 --lib --release --target-dir target/loom loom_tests
//! ```
//!
//! The SMMU is a thread of the model. Where hardware orders a table walk behind the read of the entry above it by the dependency of addresses, the model
//! has an Acquire load: that the dependency is enough under Arm's memory model is what `verify/litmus` shows. Barriers of the platform
//! are fences here: Acquire for `DMB LD`, SeqCst for `DMB SY` and also for `DMB ST`. The language's model is weaker than Arm's, where all observers agree on
//! the order of stores: with a Release fence for `DMB ST` it would allow what Arm forbids.
//!
//! For each barrier and step of these protocols, `verify/mutants.toml` has the variant without it, in which loom finds the failure.

extern crate std;

mod arrays;
mod commands;
mod grace;
mod owners;
mod tables;

use alloc::string::ToString;
use alloc::sync::Arc;
use core::cell::Cell;
use loom::sync::{Mutex, MutexGuard, Notify};
use std::boxed::Box;
use std::cell::UnsafeCell;
use std::sync::OnceLock;
use std::vec::Vec;

use crate::arch::RawCommand;
use crate::arch::regs::{CmdqCons, Gerror, offset};
use crate::platform::{DmaWindow, Mmio, PhysAddr, Platform};
use crate::primitive::{AtomicU32, AtomicU64, Ordering, fence};
use crate::rcu::ShardedRcu;

const BASE: u64 = 0x4000_0000;
/// What freed memory is full of.
const FREED: u64 = 0xdead_dead_dead_dead;

/// Explores `model`: all interleavings with at most `preemptions` preemptions, or all (`None`).
fn explore(preemptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 20_000;
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = count.clone();
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let name = std::thread::current().name().unwrap_or_default().to_string();
    let bound = preemptions.map_or("to exhaustion".into(), |bound| std::format!("up to {bound} preemptions"));
    std::println!("{name}: {} executions, {bound}", count.load(Ordering::Relaxed));
}

loom::thread_local!(static CPU: Cell<usize> = Cell::new(0));

/// From now on this thread runs on that CPU.
fn run_on(cpu: usize) {
    CPU.with(|current| current.set(cpu));
}

/// A platform with some words of memory, which are given out once.
#[derive(Clone)]
struct LoomPlatform(Arc<Inner>);

struct Inner {
    window: DmaWindow,
    words: Arc<[AtomicU64]>,
    given: std::sync::Mutex<usize>,
    /// `DMB ST` orders stores and nothing else.
    weak: bool,
    /// The event registers of the CPUs.
    events: [Notify; 2],
}

impl LoomPlatform {
    fn new(words: usize) -> Self {
        LoomPlatform::with(words, false)
    }

    /// Barriers for writes order only writes of the thread that passes them, for models in which the same thread plays the SMMU.
    fn weak(words: usize) -> Self {
        LoomPlatform::with(words, true)
    }

    fn with(words: usize, weak: bool) -> Self {
        let words: Arc<[AtomicU64]> = (0..words).map(|_| AtomicU64::new(0)).collect();
        let window = DmaWindow::from_words(words.clone(), PhysAddr(BASE));
        LoomPlatform(Arc::new(Inner {
            window,
            words,
            given: std::sync::Mutex::new(0),
            weak,
            events: [Notify::new(), Notify::new()],
        }))
    }

    /// The words of memory, as the SMMU sees them.
    fn words(&self) -> &[AtomicU64] {
        &self.0.words
    }

    /// The word at a device address.
    fn word(&self, addr: u64) -> &AtomicU64 {
        &self.0.words[(addr - BASE) as usize / 8]
    }

    /// The SMMU: tells that a CMD_SYNC has completed, in the way that it asks for.
    fn signal(&self, RawCommand([word, addr]): RawCommand) {
        match word >> 12 & 0b11 {
            1 => self.word(addr).store(word >> 32, Ordering::Relaxed),
            2 => self.0.events.iter().for_each(Notify::notify),
            _ => {}
        }
    }
}

impl Platform for LoomPlatform {
    type Mmio = Registers;
    type RawMutex = LoomMutex;
    type Rcu = ShardedRcu<LoomMutex>;

    fn window(&self) -> &DmaWindow {
        &self.0.window
    }
    fn dma_alloc(&self, size: usize, align: usize) -> Option<PhysAddr> {
        let mut given = self.0.given.lock().unwrap();
        let at = given.next_multiple_of(align);
        *given = at + size;
        (*given <= self.0.words.len() * 8).then_some(PhysAddr(BASE + at as u64))
    }
    fn dma_free(&self, addr: PhysAddr, size: usize, _: usize) {
        let first = (addr.0 - BASE) as usize / 8;
        self.0.words[first..first + size / 8].iter().for_each(|word| word.store(FREED, Ordering::Relaxed));
    }
    fn full_barrier(&self) {
        fence(Ordering::SeqCst);
    }
    fn write_barrier(&self) {
        fence(if self.0.weak { Ordering::Release } else { Ordering::SeqCst });
    }
    fn read_barrier(&self) {
        fence(Ordering::Acquire);
    }
    fn now_ns(&self) -> u64 {
        0
    }
    fn relax(&self) {
        loom::thread::yield_now();
    }
    fn wait_for_event(&self) {
        self.0.events[CPU.with(Cell::get)].wait();
    }
    fn cpu_hint(&self) -> usize {
        CPU.with(Cell::get)
    }
}

/// The registers of a command queue. MMIO orders no memory by itself; what a CPU reads of one device, it reads in order, which is why those that are
/// read are one atomic here.
#[derive(Default)]
struct Registers {
    prod: AtomicU32,
    /// `CMDQ_CONS` in the low half, above it `CMDQ_ERR` of `GERROR` and of `GERRORN`.
    read: AtomicU64,
    /// They are those of an Enhanced Command queue: `prod` has ERRACK beside the index, and the low half of `read` ERR.
    enhanced: bool,
    /// Called at the doorbell. If there is such a thing, the SMMU is no thread: it has consumed everything when the doorbell has rung.
    /// It gives the CMD_SYNCs that were among it.
    consume: Option<(LoomPlatform, Consume)>,
}

type Consume = Box<dyn Fn(u32) -> Vec<RawCommand> + Send + Sync>;

/// Where the registers of an Enhanced Command queue start.
const ECMDQ: usize = 0x4_0000;
const ECMDQ_PROD: usize = ECMDQ + offset::ECMDQ_PROD;
const ECMDQ_CONS: usize = ECMDQ + offset::ECMDQ_CONS;
/// ERR, and ERRACK.
const ERR_BIT: u32 = 1 << 23;
const GERROR_BIT: u64 = 1 << 32;
const GERRORN_BIT: u64 = 1 << 33;

impl Registers {
    /// The SMMU: has consumed everything up to `cons`, an index with its wrap bit.
    fn consumed(&self, cons: u32) {
        let now = self.read.load(Ordering::Relaxed);
        let index = u64::from(CmdqCons::new_with_raw_value(now as u32).rd().value());
        self.read.fetch_xor(index ^ u64::from(cons), Ordering::Relaxed);
    }

    /// The SMMU: stops with an error. The `ERR` of an earlier one is overwritten.
    fn stop(&self) {
        self.read.fetch_or(1 << 24, Ordering::Relaxed);
        self.read.fetch_xor(if self.enhanced { ERR_BIT.into() } else { GERROR_BIT }, Ordering::Relaxed);
    }

    /// Whether it stands still with an error that was not acknowledged.
    fn stopped(&self) -> bool {
        let now = self.read.load(Ordering::Relaxed);
        if self.enhanced {
            return (now as u32 ^ self.prod.load(Ordering::Relaxed)) & ERR_BIT != 0;
        }
        (now & GERROR_BIT != 0) != (now & GERRORN_BIT != 0)
    }
}

impl Mmio for Registers {
    fn read32(&self, offset: usize) -> u32 {
        let now = self.read.load(Ordering::Relaxed);
        match offset {
            offset::CMDQ_CONS | ECMDQ_CONS => now as u32,
            offset::GERROR => u32::from(now & GERROR_BIT != 0),
            offset::GERRORN => u32::from(now & GERRORN_BIT != 0),
            _ => 0,
        }
    }
    fn write32(&self, offset: usize, value: u32) {
        match offset {
            offset::CMDQ_PROD | ECMDQ_PROD => {
                self.prod.store(value, Ordering::Relaxed);
                if let Some((platform, consume)) = &self.consume {
                    let syncs = consume(value);
                    self.consumed(value);
                    syncs.into_iter().for_each(|sync| platform.signal(sync));
                }
            }
            offset::GERRORN => {
                let now = u32::from(self.read.load(Ordering::Relaxed) & GERRORN_BIT != 0);
                let flipped = (now ^ value) & Gerror::CMDQ_ERR.bits();
                self.read.fetch_xor(u64::from(flipped) * GERRORN_BIT, Ordering::Relaxed);
            }
            _ => {}
        }
    }
    fn read64(&self, _: usize) -> u64 {
        0
    }
    fn write64(&self, _: usize, _: u64) {}
}

/// Loom's mutex behind the interface of the platform's lock.
struct LoomMutex {
    mutex: OnceLock<Mutex<()>>,
    /// Written by the holder only.
    held: UnsafeCell<Option<MutexGuard<'static, ()>>>,
}

// SAFETY: `held` is touched only by the holder of `mutex`; loom runs its threads one at a time.
unsafe impl Send for LoomMutex {}
// SAFETY: as for `Send`.
unsafe impl Sync for LoomMutex {}

impl LoomMutex {
    fn keep(&self, guard: MutexGuard<'_, ()>) {
        // SAFETY: the guard is dropped by `unlock`, before the mutex is; its lifetime is no more than a promise of that.
        let guard = unsafe { core::mem::transmute::<MutexGuard<'_, ()>, MutexGuard<'static, ()>>(guard) };
        // SAFETY: this thread holds the mutex.
        unsafe { *self.held.get() = Some(guard) };
    }

    fn mutex(&self) -> &Mutex<()> {
        self.mutex.get_or_init(Mutex::default)
    }
}

// SAFETY: exclusion is that of loom's mutex.
unsafe impl lock_api::RawMutex for LoomMutex {
    #[allow(clippy::declare_interior_mutable_const, reason = "the trait wants a constant")]
    const INIT: Self = LoomMutex { mutex: OnceLock::new(), held: UnsafeCell::new(None) };
    type GuardMarker = lock_api::GuardSend;

    fn lock(&self) {
        self.keep(self.mutex().lock().unwrap());
    }
    fn try_lock(&self) -> bool {
        self.mutex().try_lock().map(|guard| self.keep(guard)).is_ok()
    }
    unsafe fn unlock(&self) {
        // SAFETY: this thread holds the mutex.
        drop(unsafe { (*self.held.get()).take() });
    }
}

/// A value that loom watches: that it is used by one thread while another destroys it is a failure.
struct Watched(loom::cell::UnsafeCell<Vec<u32>>);

impl Watched {
    fn new() -> Self {
        Watched(loom::cell::UnsafeCell::new(std::vec![7]))
    }

    fn use_it(&self) {
        // SAFETY: loom checks that nobody destroys it meanwhile.
        self.0.with(|value| assert_eq!(unsafe { (*value).first() }, Some(&7)));
    }

    fn destroy(&self) {
        // SAFETY: loom checks that nobody uses it meanwhile.
        self.0.with_mut(|value| unsafe { (*value).clear() });
    }
}

// SAFETY: what loom is there to check.
unsafe impl Send for Watched {}
// SAFETY: what loom is there to check.
unsafe impl Sync for Watched {}

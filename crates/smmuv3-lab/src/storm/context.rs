//! What happens at a point: a barrier, a register access, an allocation, a wait of the driver. Devices access what the operation under way
//! is about, and another thread may run.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::{Duration, Instant};

use smmuv3::platform::Iova;
use smmuv3_model::{Device, DmaError};

use super::rng::{Rng, derive};
use super::turns::Turns;

/// An operation that passes more points than this will not end, where threads take turns.
const MAX_POINTS: u64 = 3_000_000;
/// Nor will one that takes as long as this, where they don't. It is looked at once in so many points.
const MAX_TIME: Duration = Duration::from_secs(120);
const POINTS_PER_LOOK: u64 = 1 << 16;

/// Addresses that are remembered as unmapped.
const RECENT: usize = 4;

/// A device and one of its contexts: 0 is its traffic without a PASID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub device: usize,
    pub context: usize,
}

/// The devices' side of the machine.
pub(super) struct Bus {
    /// Each device, without and with its PASIDs.
    pub devices: Vec<Vec<Device>>,
    /// All addresses that may be mapped at some time.
    pub iovas: Vec<Iova>,
    /// Some of those that are being unmapped, or were last.
    recent: [AtomicU64; RECENT],
    next_recent: AtomicUsize,
}

impl Bus {
    pub(super) fn new(devices: Vec<Vec<Device>>, iovas: Vec<Iova>) -> Self {
        let first = iovas.first().map_or(0, |iova| iova.0);
        let recent = std::array::from_fn(|_| AtomicU64::new(first));
        Bus { devices, iovas, recent, next_recent: AtomicUsize::new(0) }
    }

    /// This address is being unmapped.
    pub(super) fn unmapping(&self, iova: Iova) {
        self.recent[self.next_recent.fetch_add(1, Relaxed) % RECENT].store(iova.0, Relaxed);
    }

    /// An address that may be mapped: half of the time one of those that were unmapped last.
    pub(super) fn some_iova(&self, rng: &mut Rng) -> Iova {
        match rng.one_in(2) {
            true => Iova(self.recent[rng.below(RECENT)].load(Relaxed)),
            false => rng.pick(&self.iovas),
        }
    }

    /// One access of eight bytes: a read or a write, with or without ATS.
    pub(super) fn access(&self, rng: &mut Rng, target: Target, iova: Iova) -> Result<(), DmaError> {
        let device = &self.devices[target.device][target.context];
        let result = match rng.below(4) {
            0 => device.read_u64(iova).map(drop),
            1 => device.write_u64(iova, rng.next()),
            2 => device.ats_read_u64(iova).map(drop),
            _ => device.ats_write_u64(iova, rng.next()),
        };
        match result {
            Err(DmaError::AtsOff) => device.write_u64(iova, rng.next()),
            result => result,
        }
    }

    /// Some device accesses something: mostly what is in focus.
    fn access_some(&self, rng: &mut Rng, focus: &Focus) {
        let target = match focus.targets.is_empty() || rng.one_in(4) {
            true => Target { device: rng.below(self.devices.len()), context: rng.below(self.devices[0].len()) },
            false => rng.pick(&focus.targets),
        };
        let everywhere = focus.iovas.is_empty() || rng.one_in(8);
        let iova = if everywhere { self.some_iova(rng) } else { rng.pick(&focus.iovas) };
        // Whether it is mapped is for the oracle to say.
        let _ = self.access(rng, target, iova);
    }
}

/// What the operation under way is about.
#[derive(Default)]
pub(super) struct Focus {
    pub targets: Vec<Target>,
    pub iovas: Vec<Iova>,
}

/// A storming thread.
struct Context {
    thread: usize,
    /// `None`: threads run as they like.
    turns: Option<Arc<Turns>>,
    bus: Arc<Bus>,
    /// What happens at a point follows from the seed of the operation and the number of the point alone: so the same happens in a
    /// history that was made shorter.
    seed: u64,
    focus: Focus,
    /// Devices access something at one point in so many; 0 is never.
    access_one_in: usize,
    /// Another thread runs at one point in so many; 0 is never.
    switch_one_in: usize,
    /// Where the driver waits, another thread runs at one look in so many. Some of its waits end without anything having happened.
    wait_one_in: u64,
    points: u64,
    waits: u64,
    begun: Instant,
}

thread_local! {
    static CONTEXT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

/// This thread storms from now on, until it ends.
pub(super) fn enter(thread: usize, turns: Option<Arc<Turns>>, bus: Arc<Bus>) {
    let context = Context {
        thread,
        turns,
        bus,
        seed: 0,
        focus: Focus::default(),
        access_one_in: 0,
        switch_one_in: 0,
        wait_one_in: 1,
        points: 0,
        waits: 0,
        begun: Instant::now(),
    };
    CONTEXT.set(Some(context));
}

/// An operation begins. With seed 0 nothing happens at its points.
pub(super) fn begin(seed: u64) {
    with(|context| {
        context.seed = seed;
        (context.access_one_in, context.switch_one_in, context.wait_one_in) = (0, 0, 1);
        (context.points, context.waits, context.begun) = (0, 0, Instant::now());
        if seed != 0 {
            let mut rng = Rng::new(seed);
            context.access_one_in = rng.pick(&[1, 2, 4]);
            // Some are interrupted early, some late, some never.
            context.switch_one_in = rng.pick(&[0, 3, 10, 30]);
            context.wait_one_in = rng.pick(&[1, 10, 300]);
            if context.turns.is_none() {
                context.access_one_in *= 4;
            }
        }
    });
}

/// Runs a part of an operation that is about `focus`.
pub(super) fn focused<R>(focus: Focus, part: impl FnOnce() -> R) -> R {
    with(|context| context.focus = focus);
    let result = part();
    with(|context| context.focus = Focus::default());
    result
}

/// The number of this thread.
pub(super) fn thread() -> Option<usize> {
    with(|context| context.thread)
}

/// The time, where threads take turns.
pub(super) fn now_ns() -> Option<u64> {
    with(|context| context.turns.as_ref().map(|turns| turns.now_ns())).flatten()
}

/// A point where the driver does not wait.
pub(super) fn point() {
    with(|context| {
        context.points += 1;
        context.check_end();
        let key = derive(context.seed, context.points);
        let rng = &mut Rng::new(key);
        let switches = context.switch_one_in > 0 && rng.one_in(context.switch_one_in);
        if context.access_one_in > 0 && rng.one_in(context.access_one_in) {
            (0..1 + rng.below(3)).for_each(|_| context.bus.access_some(rng, &context.focus));
        }
        if switches {
            context.let_others_run(key);
        }
    });
}

/// The driver waits: for an SMMU, or for another thread.
pub(super) fn wait() {
    let known = with(|context| {
        context.waits += 1;
        context.check_end();
        if context.turns.is_none() || context.waits.is_multiple_of(context.wait_one_in) {
            context.let_others_run(derive(!context.seed, context.waits));
        }
    });
    if known.is_none() {
        std::thread::yield_now();
    }
}

impl Context {
    fn check_end(&self) {
        let points = self.points + self.waits;
        let too_long = match self.turns {
            Some(_) => points >= MAX_POINTS,
            None => points.is_multiple_of(POINTS_PER_LOOK) && self.begun.elapsed() >= MAX_TIME,
        };
        assert!(!too_long || std::thread::panicking(), "the operation does not end");
    }

    fn let_others_run(&self, key: u64) {
        match &self.turns {
            Some(turns) => turns.yield_to_any(self.thread, key),
            None => std::thread::yield_now(),
        }
    }
}

/// Does nothing on threads that do not storm, and while one is being taken down.
fn with<R>(f: impl FnOnce(&mut Context) -> R) -> Option<R> {
    CONTEXT.try_with(|context| context.try_borrow_mut().ok()?.as_mut().map(f)).ok().flatten()
}

//! What happens at a point: a barrier, a register access, an allocation, a wait of the driver. Devices access what the operation under way
//! is about, and another thread may run.

use std::cell::RefCell;
use std::sync::Arc;

use smmuv3::platform::Iova;
use smmuv3_model::{Device, DmaError};

use super::rng::Rng;
use super::turns::Turns;

/// An operation that passes more points than this will not end.
const MAX_POINTS: u64 = 3_000_000;

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
}

impl Bus {
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
        let iova = rng.pick(if everywhere { &self.iovas } else { &focus.iovas });
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
    rng: Rng,
    focus: Focus,
    /// Devices access something at one point in so many; 0 is never.
    access_one_in: usize,
    /// Another thread runs at one point in so many; 0 is never.
    switch_one_in: usize,
    points: u64,
}

thread_local! {
    static CONTEXT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

/// This thread storms from now on, until it ends.
pub(super) fn enter(thread: usize, turns: Option<Arc<Turns>>, bus: Arc<Bus>) {
    let rng = Rng::new(0);
    let context =
        Context { thread, turns, bus, rng, focus: Focus::default(), access_one_in: 0, switch_one_in: 0, points: 0 };
    CONTEXT.set(Some(context));
}

/// An operation begins. With seed 0 nothing happens at its points.
pub(super) fn begin(seed: u64) {
    with(|context| {
        context.rng = Rng::new(seed);
        (context.access_one_in, context.switch_one_in, context.points) = (0, 0, 0);
        if seed != 0 {
            context.access_one_in = context.rng.pick(&[1, 2, 4]);
            // Some are interrupted early, some late, some never.
            context.switch_one_in = context.rng.pick(&[0, 3, 10, 30]);
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
        context.count();
        let Context { rng, focus, bus, .. } = context;
        if context.access_one_in > 0 && rng.one_in(context.access_one_in) {
            (0..1 + rng.below(3)).for_each(|_| bus.access_some(rng, focus));
        }
        if context.switch_one_in > 0 && rng.one_in(context.switch_one_in) {
            context.let_others_run();
        }
    });
}

/// The driver waits: for an SMMU, or for another thread.
pub(super) fn wait() {
    let known = with(|context| {
        context.count();
        context.let_others_run();
    });
    if known.is_none() {
        std::thread::yield_now();
    }
}

impl Context {
    fn count(&mut self) {
        self.points += 1;
        assert!(self.points < MAX_POINTS || std::thread::panicking(), "the operation does not end");
    }

    fn let_others_run(&mut self) {
        match &self.turns {
            Some(turns) => turns.yield_to_any(self.thread, &mut self.rng),
            None => std::thread::yield_now(),
        }
    }
}

/// Does nothing on threads that do not storm, and while one is being taken down.
fn with<R>(f: impl FnOnce(&mut Context) -> R) -> Option<R> {
    CONTEXT.try_with(|context| context.try_borrow_mut().ok()?.as_mut().map(f)).ok().flatten()
}

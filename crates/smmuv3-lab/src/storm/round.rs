//! A round: operations on a fresh machine. Either threads take turns, and the round can be run again; or they run as they like.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use smmuv3_model::{DeviceThread, Targets, Traffic};

use super::context;
use super::lock;
use super::machine::Machine;
use super::op::Step;
use super::rng::{Rng, derive};
use super::tally::Tally;
use super::turns::Turns;
use super::world::World;

/// How often a parallel round is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Steps of each thread of a parallel round that are kept.
const KEPT_STEPS: usize = 600;
/// Devices of a parallel round that never stop.
const ROGUES: usize = 2;

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// A device reached a page that was free.
    StaleDma,
    /// An SMMU read a table or a structure in a page that was free.
    StaleWalk,
    /// A device reached what is another's, or what was taken from it and is in use elsewhere.
    Reached,
    /// The model saw what no correct driver does.
    Violation,
    /// A panic, or an operation that does not end.
    Panic,
    /// Something was left when all was over.
    Leak,
    /// Anything else that should not be.
    Surprise,
}

/// What went wrong in a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Failure {
    pub kind: Kind,
    /// The first case.
    pub what: String,
}

/// How a round went.
pub(super) struct Outcome {
    pub failure: Option<Failure>,
    pub tally: Tally,
    pub seen: smmuv3_model::Report,
    /// The steps that were begun. Of a parallel round the last of each thread.
    pub steps: Vec<Step>,
    /// The same in the order in which they began, where that is known.
    pub in_order: Vec<Step>,
}

/// A stable name for threads whose panics are the round's to tell.
const THREAD_NAME: &str = "storm";

/// Panics of storming threads are told as failures, not on standard error.
pub(super) fn catch_panics() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() == Some(THREAD_NAME) || LAST_PANIC.with_borrow(Option::is_some) {
            LAST_PANIC.set(Some(info.to_string().replace('\n', " ")));
        } else {
            others(info);
        }
    }));
}

thread_local! {
    /// The text of the last panic on this thread; `Some` from the beginning where panics are caught.
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `f`, and gives the text of its panic.
fn caught<R>(f: impl FnOnce() -> R) -> Result<R, Failure> {
    let before = LAST_PANIC.replace(Some(String::new()));
    let result = catch_unwind(AssertUnwindSafe(f));
    let what = LAST_PANIC.replace(before).unwrap_or_default();
    result.map_err(|_| Failure { kind: Kind::Panic, what })
}

/// What is wrong so far.
fn judge(seen: &smmuv3_model::Report, tally: &Tally) -> Option<Failure> {
    let of = |kind, what: Option<String>| Some(Failure { kind, what: what.unwrap_or_default() });
    let history = |pick: fn(&smmuv3_model::StaleAccess) -> bool| {
        seen.histories.iter().find(|case| pick(case)).map(|case| case.to_string())
    };
    if seen.stale_dma > 0 {
        // Walks stand there with what the SMMU accessed.
        let dma = history(|case| case.history.last().is_some_and(|line| line.contains("the device accessed it")));
        return of(Kind::StaleDma, dma);
    }
    if seen.stale_walks > 0 {
        return of(Kind::StaleWalk, history(|_| true));
    }
    if seen.violation_count > 0 {
        return of(Kind::Violation, seen.violations.first().cloned());
    }
    lock(&tally.failures).first().cloned()
}

/// The history of a round whose threads take turns.
pub(super) fn random_steps(machine: &Machine) -> Vec<Step> {
    let mut rng = Rng::new(derive(machine.seed, 3000));
    let threads = 1 + rng.below(4);
    let count = rng.pick(&[150, 400, 1000]);
    (0..count)
        .map(|_| {
            let thread = rng.below(threads);
            Step::random(&mut rng, machine, thread)
        })
        .collect()
}

/// Runs a history. An error is a refusal of the driver to set up the machine.
pub(super) fn replay(machine: &Machine, steps: &[Step]) -> Result<Outcome, String> {
    let world = match caught(|| World::new(machine, false)) {
        Ok(world) => world?,
        Err(panic) => return Err(panic.what),
    };
    let threads = steps.iter().map(|step| step.thread + 1).max().unwrap_or(1);
    let turns = Arc::new(Turns::new(steps.iter().map(|step| step.thread).collect(), threads));
    let mut failure = None;
    std::thread::scope(|scope| {
        let run = |thread| {
            let (world, turns) = (&world, &turns);
            let take_part = move || caught(|| take_turns(world, turns, steps, thread)).err();
            std::thread::Builder::new().name(THREAD_NAME.into()).spawn_scoped(scope, take_part)
        };
        let running: Vec<_> = (0..threads).map(run).collect();
        for thread in running {
            let panic = match thread {
                Ok(thread) => thread.join().ok().flatten(),
                Err(error) => Some(Failure { kind: Kind::Surprise, what: format!("no thread: {error}") }),
            };
            failure = failure.take().or(panic);
        }
    });
    let mut order = turns.order();
    let of = |order: &[usize]| order.iter().map(|&step| steps[step].clone()).collect();
    let in_order = of(&order);
    order.sort_unstable();
    let begun = of(&order);
    Ok(Outcome { in_order, ..finish(world, failure, begun) })
}

/// Gives the turn to others when the thread ends, however it does.
struct Leave<'a>(&'a Turns, usize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
        self.0.leave(self.1);
    }
}

fn take_turns(world: &World, turns: &Arc<Turns>, steps: &[Step], me: usize) {
    context::enter(me, Some(turns.clone()), world.bus.clone());
    turns.wait(me);
    let _leave = Leave(turns, me);
    for (index, step) in steps.iter().enumerate().filter(|(_, step)| step.thread == me) {
        if !turns.begin(index) {
            return;
        }
        context::begin(step.seed);
        world.carry_out(step);
        if judge(&world.model.report(), &world.tally).is_some() {
            turns.stop();
        }
        turns.end(me);
    }
}

/// Takes the machine down, unless something went wrong before.
fn finish(world: World, failure: Option<Failure>, steps: Vec<Step>) -> Outcome {
    let seen = world.model.report();
    if let Some(failure) = failure.or_else(|| judge(&seen, &world.tally)) {
        let mut world = world;
        let tally = std::mem::take(&mut world.tally);
        // Broken machines may fall apart.
        let _ = caught(|| drop(world));
        return Outcome { failure: Some(failure), tally, seen, steps, in_order: Vec::new() };
    }
    match caught(|| world.close()) {
        Err(failure) => Outcome { failure: Some(failure), tally: Tally::default(), seen, steps, in_order: Vec::new() },
        Ok((tally, seen)) => Outcome { failure: judge(&seen, &tally), tally, seen, steps, in_order: Vec::new() },
    }
}

/// Runs threads that storm for a time, with devices that never stop. `look` is called now and then.
pub(super) fn parallel(
    machine: &Machine,
    threads: usize,
    time: Duration,
    mut look: impl FnMut(),
) -> Result<Outcome, String> {
    let world = match caught(|| World::new(machine, true)) {
        Ok(world) => world?,
        Err(panic) => return Err(panic.what),
    };
    let targets = Targets::new();
    world.bus.iovas.iter().for_each(|&iova| targets.add(iova));
    let rogues: Vec<_> = (0..ROGUES.min(machine.devices))
        .map(|device| {
            let seed = derive(machine.seed, 4000 + device as u64);
            let hardware = world.bus.devices[device][0].clone();
            DeviceThread::start_with(hardware, targets.clone(), seed, Traffic::Mixed)
        })
        .collect();
    let stop = AtomicBool::new(false);
    let mut failure = None;
    let mut steps = Vec::new();
    std::thread::scope(|scope| {
        let run = |thread| {
            let (world, stop) = (&world, &stop);
            let take_part = move || caught(|| storm(world, stop, thread));
            std::thread::Builder::new().name(THREAD_NAME.into()).spawn_scoped(scope, take_part)
        };
        let mut running: Vec<_> = (0..threads).map(run).collect();
        let end = Instant::now() + time;
        while Instant::now() < end && !stop.load(Relaxed) {
            std::thread::sleep(LOOK.min(end.saturating_duration_since(Instant::now())));
            look();
            if judge(&world.model.report(), &world.tally).is_some() {
                break;
            }
        }
        stop.store(true, Relaxed);
        for thread in running.drain(..) {
            match thread.map(|thread| thread.join()) {
                Ok(Ok(Ok(kept))) => steps.extend(kept),
                Ok(Ok(Err(panic))) => failure = failure.take().or(Some(panic)),
                Ok(Err(_)) => {}
                Err(error) => {
                    failure = Some(Failure { kind: Kind::Surprise, what: format!("no thread: {error}") });
                }
            }
        }
    });
    drop(rogues);
    Ok(finish(world, failure, steps))
}

/// Storms until told to stop. Returns the last steps.
fn storm(world: &World, stop: &AtomicBool, me: usize) -> VecDeque<Step> {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            // Also if it panics.
            self.0.store(true, Relaxed);
        }
    }
    let _stop = Stop(stop);
    context::enter(me, None, world.bus.clone());
    let mut rng = Rng::new(derive(world.machine.seed, 5000 + me as u64));
    let mut kept = VecDeque::with_capacity(KEPT_STEPS);
    while !stop.load(Relaxed) {
        let step = Step::random(&mut rng, &world.machine, me);
        context::begin(step.seed);
        world.carry_out(&step);
        if kept.len() == KEPT_STEPS {
            kept.pop_front();
        }
        kept.push_back(step);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storm::machine::lazy_names;

    /// What was counted: whatever is not the same again would show in one of these.
    fn counts(outcome: &Outcome) -> String {
        let Outcome { tally, seen, .. } = outcome;
        let mut seen = seen.clone();
        seen.smmus.clear();
        format!("{seen:?} {:?} {:?} {:?}", tally.expected, tally.unmaps, outcome.failure)
    }

    #[test]
    fn threads_that_take_turns_do_the_same_again() {
        for seed in 0..4 {
            let machine = Machine {
                seed,
                luck: seed,
                ram_mib: 12,
                smmus: 2,
                devices: 6,
                domains: 4,
                guests: 2,
                laziness: lazy_names("all").unwrap(),
                sabotage: None,
            };
            let steps = random_steps(&machine);
            let runs = [0; 2].map(|_| replay(&machine, &steps).unwrap());
            assert_eq!(runs[0].failure, None);
            assert!(runs[0].in_order == runs[1].in_order, "they took turns in another order");
            assert_eq!(counts(&runs[0]), counts(&runs[1]));
            assert!(runs[0].seen.dma_checked > 0 && runs[0].tally.expected.load(Relaxed) > 0);
        }
    }
}

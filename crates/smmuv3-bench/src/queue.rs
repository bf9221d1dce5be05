//! The command queue beside two that are simpler: one without any synchronisation, and one under a ticket lock. All have the same commands and the same
//! barriers, and the same SMMU that does nothing but consume.

mod plain;
mod smmu;

use std::hint::spin_loop;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread;
use std::time::{Duration, Instant};

use smmuv3::arch::RawCommand;
use smmuv3::internals::Queue;
use smmuv3::platform::Mmio;

use crate::host::Host;
use crate::{Bound, Effort, Figure, in_turns};
use plain::{Locked, Plain};
use smmu::{AtOnce, Enhanced, Late};

const PART: &str = "queue";
/// Memory enough for two queues.
const PAGES: usize = 8;
/// Commands in a queue: `2^LOG2`.
const LOG2: u8 = 8;
/// A wait that lasts longer fails.
const TIMEOUT_NS: u64 = 1_000_000_000;
/// Commands in a large submission, beside its CMD_SYNC.
const BATCH: usize = 64;
/// Calls between two looks at the clock.
const CALLS: u32 = 16;
/// What a CMD_SYNC takes on an SMMU with latency.
const ROUND_TRIP_NS: u64 = 2_000;

/// All figures of the command queue.
pub fn figures(effort: Effort) -> Vec<Figure> {
    [alone(effort), together(effort), apart(effort), beside_batches(effort), with_round_trips(effort), crowded(effort)]
        .concat()
}

/// So many times TLBI_NH_ASID.
fn tlbis(count: usize) -> impl Iterator<Item = RawCommand> {
    (0..count).map(|asid| RawCommand([0x11 | (asid as u64) << 48, 0]))
}

/// A queue of the driver, and one step of a producer of it: a submission of so many TLBIs, and the wait for it.
struct Ours<M: Mmio + 'static> {
    queue: Queue<Host<M>>,
    smmu: M,
}

impl<M: Mmio + 'static> Ours<M> {
    fn new(host: &Host<M>, smmu: M) -> Self {
        Ours { queue: Queue::new(host, LOG2, TIMEOUT_NS).expect("there is memory"), smmu }
    }

    /// False: not in time.
    fn step(&self, count: usize) -> bool {
        self.queue.submit(&self.smmu, tlbis(count)).and_then(|ticket| self.queue.wait(&self.smmu, ticket)).is_ok()
    }
}

impl Ours<Enhanced> {
    fn enhanced(host: &Host<Enhanced>) -> Self {
        Ours { queue: Queue::enhanced(0, host, LOG2, TIMEOUT_NS).expect("there is memory"), smmu: Enhanced::default() }
    }
}

/// The same of a queue under a lock.
struct Its {
    queue: Locked<Host<AtOnce>>,
    smmu: AtOnce,
}

impl Its {
    fn step(&self, count: usize) -> bool {
        self.queue.submit(&self.smmu, tlbis(count)).is_some_and(|end| self.queue.wait(&self.smmu, end))
    }
}

/// One producer, beside one that need not expect another.
fn alone(effort: Effort) -> Vec<Figure> {
    let host = Host::new(PAGES);
    let ours = Ours::new(&host, AtOnce::default());
    let (mut plain, smmu) = (Plain::new(&host, LOG2, TIMEOUT_NS).expect("there is memory"), AtOnce::default());
    let mut plain_step = || plain.submit(&smmu, tlbis(1)).is_some_and(|end| plain.wait(&smmu, end));
    let [ours, its] = in_turns(effort, [&mut || assert!(ours.step(1)), &mut || assert!(plain_step())]);
    vec![
        Figure::new(PART, "a TLBI and a CMD_SYNC, one producer", ours, "ns"),
        Figure::new(PART, "the same without synchronisation", its, "ns"),
        Figure::new(PART, "one producer, to one without synchronisation", ours / its, "×").bounded(Bound::AtMost(3.0)),
    ]
}

/// Two producers, beside two that share a ticket lock.
fn together(effort: Effort) -> Vec<Figure> {
    let host = Host::new(PAGES);
    let ours = Ours::new(&host, AtOnce::default());
    let its = Its { queue: Locked::new(&host, LOG2, TIMEOUT_NS).expect("there is memory"), smmu: AtOnce::default() };
    let step = || assert!(ours.step(1));
    let locked_step = || assert!(its.step(1));
    let [ours, its] = races(effort, [[&step, &step], [&locked_step, &locked_step]]);
    vec![
        Figure::new(PART, "a TLBI and a CMD_SYNC, two producers", 1.0 / total(&ours), "ns"),
        Figure::new(PART, "the same under a ticket lock", 1.0 / total(&its), "ns"),
        Figure::new(PART, "throughput of two producers, to a ticket lock", total(&ours) / total(&its), "×")
            .bounded(Bound::AtLeast(1.5)),
        slower_share("share of the slower of two producers", &ours),
    ]
}

/// Two producers, each with an Enhanced Command queue of his own, beside one.
fn apart(effort: Effort) -> Vec<Figure> {
    let host = Host::new(PAGES);
    let queues = [(); 2].map(|()| Ours::enhanced(&host));
    let [first, second] = [0, 1].map(|n| {
        let queue = &queues[n];
        move || assert!(queue.step(1))
    });
    let [one] = races(effort, [[&first]]);
    let [two] = races(effort, [[&first, &second]]);
    let name = "throughput of two producers, each on an Enhanced queue of his own, to one";
    vec![Figure::new(PART, name, total(&two) / total(&one), "×").bounded(Bound::AtLeast(1.7))]
}

/// A producer of small submissions beside one of large ones, which take longer to make: without latency that is most of the difference.
fn beside_batches(effort: Effort) -> Vec<Figure> {
    let host = Host::new(PAGES);
    let at_once = Ours::new(&host, AtOnce::default());
    let (small, large) = (|| assert!(at_once.step(1)), || assert!(at_once.step(BATCH)));
    let [without_latency] = races(effort, [[&small, &large]]);
    let host = Host::new(PAGES);
    let late = Ours::new(&host, Late::new(LOG2, ROUND_TRIP_NS));
    let (small, large) = (|| assert!(late.step(1)), || assert!(late.step(BATCH)));
    let [with_latency] = races(effort, [[&small, &large]]);
    let without_latency = slower_share("share of the slower beside batches", &without_latency);
    vec![
        Figure { bound: None, ..without_latency },
        slower_share("share of the slower beside batches, 2 µs for a CMD_SYNC", &with_latency),
    ]
}

/// An SMMU that takes its time, as all do.
fn with_round_trips(effort: Effort) -> Vec<Figure> {
    let host = Host::new(PAGES);
    let ours = Ours::new(&host, Late::new(LOG2, ROUND_TRIP_NS));
    let step = || assert!(ours.step(1));
    let [one] = races(effort, [[&step]]);
    let [two] = races(effort, [[&step, &step]]);
    vec![
        Figure::new(PART, "throughput of two producers, to one, 2 µs for a CMD_SYNC", total(&two) / total(&one), "×")
            .bounded(Bound::AtLeast(1.8)),
    ]
}

/// Producers of batches that together are more than the queue can hold.
fn crowded(effort: Effort) -> Vec<Figure> {
    let host = Host::crowded(PAGES);
    let ours = Ours::new(&host, Late::new(LOG2, ROUND_TRIP_NS));
    let in_time = || ours.step(BATCH);
    let stalled = AtomicUsize::new(0);
    let step = || {
        if !in_time() {
            stalled.fetch_add(1, Relaxed);
        }
    };
    let [_] = races(effort, [[&step; 6].map(|step| step as _)]);
    vec![
        Figure::new(PART, "waits that timed out, six producers on a full queue", stalled.into_inner() as f64, "waits")
            .bounded(Bound::AtMost(0.0)),
    ]
}

/// Calls for each nanosecond that each producer of each team makes, in rounds in which the teams have their turns. Rounds that the machine has disturbed
/// are tried again, for a while.
fn races<const N: usize, const T: usize>(effort: Effort, teams: [[&(dyn Fn() + Sync); N]; T]) -> [Vec<[f64; N]>; T] {
    // Short, because a round in which others want the CPUs does not count.
    let time = effort.round / 10;
    let mut rounds = [(); T].map(|()| Vec::new());
    for _ in 0..effort.rounds {
        for (team, rounds) in teams.iter().zip(&mut rounds) {
            let mut tries = (0..3 * effort.rounds).map(|_| race(time, team));
            let (rates, _) = tries.find(|(_, disturbed)| !disturbed).unwrap_or_else(|| race(time, team));
            rounds.push(rates);
        }
    }
    rounds
}

/// Lets producers run beside each other, and tells whether one of them was kept from running.
fn race<const N: usize>(time: Duration, producers: &[&(dyn Fn() + Sync); N]) -> ([f64; N], bool) {
    /// Longer than a few calls take.
    const DISTURBED: Duration = Duration::from_micros(100);
    let (ready, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let run = |produce: &(dyn Fn() + Sync)| {
        ready.fetch_add(1, Relaxed);
        while ready.load(Relaxed) < N {
            spin_loop();
        }
        let begin = Instant::now();
        let (mut calls, mut last, mut disturbed) = (0.0, begin, false);
        while !stop.load(Relaxed) {
            (0..CALLS).for_each(|_| produce());
            calls += f64::from(CALLS);
            let now = Instant::now();
            disturbed |= now - last > DISTURBED;
            last = now;
            if now - begin > time {
                stop.store(true, Relaxed);
            }
        }
        (calls / (last - begin).as_nanos().max(1) as f64, disturbed || calls == 0.0)
    };
    let results = thread::scope(|scope| {
        let threads = producers.map(|produce| scope.spawn(|| run(produce)));
        threads.map(|thread| thread.join().expect("no wait failed"))
    });
    (results.map(|(rate, _)| rate), results.iter().any(|(_, disturbed)| *disturbed))
}

/// The number in the middle.
fn median(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.into_iter().collect();
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// What all do together.
fn total<const N: usize>(rounds: &[[f64; N]]) -> f64 {
    median(rounds.iter().map(|rates| rates.iter().sum()))
}

/// What the slower of two does of what both do, in submissions.
fn slower_share(name: &str, rounds: &[[f64; 2]]) -> Figure {
    let share = median(rounds.iter().map(|[a, b]| 100.0 * a.min(*b) / (a + b)));
    Figure::new(PART, name, share, "%").bounded(Bound::AtLeast(40.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use smmuv3::arch::regs::{EcmdqProd, offset};

    #[test]
    fn each_queue_puts_every_command_before_the_smmu() {
        let host = Host::new(PAGES);
        let ours = Ours::new(&host, AtOnce::default());
        let its = Its { queue: Locked::new(&host, LOG2, TIMEOUT_NS).unwrap(), smmu: AtOnce::default() };
        let late = Ours::new(&Host::new(PAGES), Late::new(LOG2, 1));
        for count in [1, BATCH] {
            assert!(ours.step(count) && its.step(count) && late.step(count));
        }
        let (commands, syncs) = (1 + BATCH as u32, 2);
        let enhanced = Ours::enhanced(&Host::new(PAGES));
        assert!(enhanced.step(1) && enhanced.step(BATCH));
        let prod = EcmdqProd::new_with_raw_value(commands + syncs).with_en(true);
        assert_eq!(enhanced.smmu.read32(offset::ECMDQ_CONS), prod.raw_value());
        for prod in [
            ours.smmu.read32(offset::CMDQ_CONS),
            its.smmu.read32(offset::CMDQ_CONS),
            late.smmu.read32(offset::CMDQ_CONS),
        ] {
            assert_eq!(prod, commands + syncs);
        }
    }

    #[test]
    fn an_smmu_with_latency_is_waited_for() {
        let ours = Ours::new(&Host::new(PAGES), Late::new(LOG2, ROUND_TRIP_NS));
        let start = Instant::now();
        (0..10).for_each(|_| assert!(ours.step(1)));
        assert!(start.elapsed().as_nanos() as u64 >= 10 * ROUND_TRIP_NS);
    }

    #[test]
    fn every_figure_is_a_number() {
        let figures = figures(Effort::SMOKE);
        assert_eq!(figures.len(), 12);
        assert!(figures.iter().all(|figure| figure.value.is_finite()), "{figures:?}");
    }
}

//! The command queue: several producers, an SMMU that consumes.
//!
//! Threads that wait do so in turns that loom explores without end if there are three of them: where the SMMU is a thread, one producer waits at a time, and where more wait, whoever rings the doorbell plays the SMMU.

extern crate std;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use loom::thread;

use super::{ECMDQ, LoomPlatform, Registers, Watched, explore, run_on};
use crate::arch::regs::CmdqError;
use crate::arch::{Command, RawCommand};
use crate::primitive::{AtomicBool, Ordering, fence};
use crate::queue::{CommandQueue, Completion, QueueError, QueueOptions, Submission, Ticket};

/// A queue, its registers, and what the commands are about.
struct World {
    platform: LoomPlatform,
    registers: Registers,
    queue: CommandQueue<LoomPlatform>,
    log2: u8,
    /// The SMMU need not wait for more commands.
    finished: AtomicBool,
    /// Each is destroyed by the SMMU when it carries out the command for it, and used by its producer before and after.
    done: [Watched; 3],
}

fn options(log2: u8) -> QueueOptions {
    QueueOptions { log2, timeout_ns: u64::MAX, completion: Completion::Register }
}

impl World {
    fn new(log2: u8) -> Arc<Self> {
        World::of(log2, false, Completion::Register)
    }

    /// The queue may be an Enhanced Command queue, and its CMD_SYNCs tell of themselves.
    fn of(log2: u8, enhanced: bool, completion: Completion) -> Arc<Self> {
        let platform = LoomPlatform::new((2 << log2).max(8) + 8);
        let options = QueueOptions { completion, ..options(log2) };
        let queue = if enhanced {
            CommandQueue::enhanced(ECMDQ, &platform, options)
        } else {
            CommandQueue::new(&platform, options)
        };
        let (queue, registers) = (queue.unwrap(), Registers { enhanced, ..Registers::default() });
        let finished = AtomicBool::new(false);
        let done = [Watched::new(), Watched::new(), Watched::new()];
        Arc::new(World { platform, registers, queue, log2, finished, done })
    }

    /// A producer sends commands for each of `numbers` in one submission.
    fn submit(&self, numbers: &[usize]) -> Ticket {
        let tlbi = |&number: &usize| Command::TlbiNhAsid { vmid: 0, asid: number as u16 };
        let fill = |queue: &mut Submission<'_, _>| numbers.iter().map(tlbi).for_each(|command| queue.push(command));
        self.queue.submit(&self.registers, fill).unwrap()
    }

    /// Waits until they were carried out: what they were about may be used for something else.
    fn wait(&self, numbers: &[usize], ticket: Ticket) {
        self.queue.wait(&self.registers, ticket).unwrap();
        numbers.iter().for_each(|&number| self.done[number].destroy());
    }

    /// The SMMU: consumes what is announced until so many CMD_SYNCs were among it, and refuses the first command with the number `refused`. Returns the
    /// numbers of the others.
    fn consume(&self, mut syncs: u32, mut refused: Option<usize>) -> Vec<usize> {
        let (mask, wrap) = ((1u32 << self.log2) - 1, (2u32 << self.log2) - 1);
        let mut cons = 0;
        let mut seen = Vec::new();
        while syncs > 0 && !self.finished.load(Ordering::Relaxed) {
            let prod = self.registers.prod.load(Ordering::Relaxed) & wrap;
            if prod == cons {
                thread::yield_now();
                continue;
            }
            // An SMMU reads the queue after PROD.
            fence(Ordering::Acquire);
            let mut signal = None;
            while cons != prod {
                let slot = 2 * (cons & mask) as usize;
                let word = self.platform.words()[slot].load(Ordering::Relaxed);
                let number = (word >> 48) as usize;
                match word & 0xff {
                    0x46 => {
                        syncs -= 1;
                        signal = Some(RawCommand([word, self.platform.words()[slot + 1].load(Ordering::Relaxed)]));
                    }
                    0x11 => {
                        if refused == Some(number) {
                            refused = None;
                            fence(Ordering::Release);
                            self.registers.consumed(cons);
                            self.registers.stop();
                            while self.registers.stopped() {
                                thread::yield_now();
                            }
                            // It reads the command again.
                            fence(Ordering::Acquire);
                            continue;
                        }
                        self.done[number].use_it();
                        seen.push(number);
                    }
                    other => panic!("opcode {other:#x} in slot {slot}"),
                }
                cons = (cons + 1) & wrap;
            }
            // What the commands did comes before they are consumed.
            fence(Ordering::Release);
            self.registers.consumed(cons);
            // And that comes before the signal. That of the last CMD_SYNC stands for those before it.
            fence(Ordering::Release);
            if let Some(sync) = signal {
                self.platform.signal(sync);
            }
        }
        seen
    }
}

/// Each of `producers` is a thread that sends these commands. When they are gone, what they have left to those who wait is announced. The SMMU consumes
/// `meanwhile`, or then.
fn check(log2: u8, preemptions: Option<usize>, meanwhile: bool, producers: &'static [&'static [usize]]) {
    explore(preemptions, move || {
        let world = World::new(log2);
        let produce = |numbers: &&'static [usize]| {
            let (world, numbers) = (world.clone(), *numbers);
            thread::spawn(move || (numbers, world.submit(numbers)))
        };
        let threads: Vec<_> = producers.iter().map(produce).collect();
        let smmu = world.clone();
        let consume = move || smmu.consume(producers.len() as u32, None);
        let (smmu, consume) = if meanwhile { (Some(thread::spawn(consume)), None) } else { (None, Some(consume)) };
        let tickets: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        world.queue.announce_rest(&world.registers);
        let seen = smmu.map(|smmu| smmu.join().unwrap()).or_else(|| consume.map(|consume| consume())).unwrap();
        for (numbers, ticket) in tickets {
            let ours: Vec<usize> = seen.iter().copied().filter(|number| numbers.contains(number)).collect();
            assert_eq!(ours, numbers, "each command once, and in order");
            world.wait(numbers, ticket);
        }
    });
}

#[test]
fn commands_of_two_producers_are_carried_out_once_each() {
    check(2, Some(2), true, &[&[0], &[1]]);
}

/// More commands than the queue has places, and an odd number, so that the queue wraps in the middle of a submission.
#[test]
fn a_submission_may_be_larger_than_the_queue() {
    explore(None, || {
        let world = World::new(1);
        let producer = thread::spawn({
            let world = world.clone();
            move || world.wait(&[0, 1, 2], world.submit(&[0, 1, 2]))
        });
        assert_eq!(world.consume(1, None), [0, 1, 2]);
        producer.join().unwrap();
    });
}

#[test]
fn three_producers_share_a_queue() {
    check(3, Some(2), false, &[&[0], &[1], &[2]]);
}

/// A command is carried out and the next refused. `ERR` has the value of an earlier error from the beginning, so that whoever looks may find the error only
/// when it looks again.
#[test]
fn a_refused_command_is_told_to_its_owner_alone_and_no_other_is_lost() {
    check_refused(false);
}

#[test]
fn the_same_of_an_enhanced_queue() {
    check_refused(true);
}

fn check_refused(enhanced: bool) {
    explore(Some(2), move || {
        let world = World::of(2, enhanced, Completion::Register);
        world.registers.read.store(1 << 24, Ordering::Relaxed);
        let producer = thread::spawn({
            let world = world.clone();
            move || {
                let [other, refused] = [0, 1].map(|number| world.submit(&[number]));
                world.wait(&[0], other);
                let result = world.queue.wait(&world.registers, refused);
                assert_eq!(result, Err(QueueError::Refused(CmdqError::Illegal)));
            }
        });
        // The one that was refused is a CMD_SYNC then, and an acknowledgement in PROD brings another.
        assert_eq!(world.consume(3 + u32::from(enhanced), Some(1)), [0]);
        producer.join().unwrap();
    });
}
/// Several wait, for room and for their commands. Every producer's marks are found by the one that rings, with the commands behind them.
fn check_without_smmu(
    log2: u8,
    preemptions: Option<usize>,
    completion: Completion,
    producers: &'static [&'static [usize]],
) {
    explore(preemptions, move || {
        let platform = LoomPlatform::weak((2 << log2).max(8) + 8);
        let queue = CommandQueue::new(&platform, QueueOptions { completion, ..options(log2) }).unwrap();
        let seen = Arc::new(std::sync::Mutex::new((0, Vec::new())));
        let consume = {
            let (platform, seen) = (platform.clone(), seen.clone());
            move |prod: u32| {
                let (cons, numbers) = &mut *seen.lock().unwrap();
                let mut signals = Vec::new();
                while *cons != prod {
                    let slot = 2 * (*cons & ((1 << log2) - 1)) as usize;
                    let word = platform.words()[slot].load(Ordering::Relaxed);
                    match word & 0xff {
                        0x46 => signals.push(RawCommand([word, platform.words()[slot + 1].load(Ordering::Relaxed)])),
                        0x11 => numbers.push((word >> 48) as usize),
                        other => panic!("opcode {other:#x} in slot {slot}"),
                    }
                    *cons = (*cons + 1) & ((2 << log2) - 1);
                }
                signals
            }
        };
        let registers = Registers { consume: Some((platform.clone(), Box::new(consume))), ..Registers::default() };
        let world = Arc::new((queue, registers));
        let produce = |(cpu, numbers): (usize, &&'static [usize])| {
            let (world, numbers) = (world.clone(), *numbers);
            thread::spawn(move || {
                run_on(cpu);
                let (queue, registers) = &*world;
                let tlbi = |&number: &usize| Command::TlbiNhAsid { vmid: 0, asid: number as u16 };
                let ticket =
                    queue.submit(registers, |queue| numbers.iter().map(tlbi).for_each(|command| queue.push(command)));
                queue.wait(registers, ticket.unwrap()).unwrap();
                numbers
            })
        };
        let threads: Vec<_> = producers.iter().enumerate().map(produce).collect();
        for thread in threads {
            let numbers = thread.join().unwrap();
            let (_, seen) = &*seen.lock().unwrap();
            let ours: Vec<usize> = seen.iter().copied().filter(|number| numbers.contains(number)).collect();
            assert_eq!(ours, numbers, "each command once, and in order");
        }
    });
}

#[test]
fn who_rings_the_doorbell_finds_the_commands_of_others_written() {
    check_without_smmu(3, Some(3), Completion::Register, &[&[0], &[1]]);
}

/// Each submission fills the queue, so that the second waits for room.
#[test]
fn two_producers_take_turns_on_the_smallest_queue() {
    check_without_smmu(1, Some(3), Completion::Register, &[&[0], &[1]]);
}

/// One submission is larger than the queue, and the other comes between its parts.
#[test]
fn a_large_and_a_small_submission_share_the_smallest_queue() {
    check_without_smmu(1, Some(1), Completion::Register, &[&[0, 1], &[2]]);
}

///     a thread that looks          the producer
///     CONS: 0
///                                  waits for room, puts the next command where the first was
///     what is consumed: 2
///     takes the index 0 for the position 4
///                                  takes that for the end of its command
#[test]
fn a_look_that_takes_long_confirms_nothing_that_is_not_done() {
    explore(Some(3), || {
        let world = World::new(1);
        let onlooker = world.clone();
        let onlooker = thread::spawn(move || {
            onlooker.queue.look(&onlooker.registers, 0, 0);
        });
        let producer = world.clone();
        let producer = thread::spawn(move || {
            let _first = producer.submit(&[0]);
            let ticket = producer.submit(&[1]);
            producer.wait(&[1], ticket);
        });
        assert_eq!(world.consume(2, None), [0, 1]);
        onlooker.join().unwrap();
        producer.join().unwrap();
    });
}

/// A thread that learns from another's look that its commands are done.
#[test]
fn what_another_has_seen_of_the_smmu_counts_for_those_who_hear_of_it() {
    explore(Some(3), || {
        let world = World::new(2);
        let onlooker = world.clone();
        let onlooker = thread::spawn(move || {
            onlooker.queue.look(&onlooker.registers, 0, 0);
        });
        let producer = world.clone();
        let producer = thread::spawn(move || {
            let ticket = producer.submit(&[0]);
            producer.wait(&[0], ticket);
        });
        world.consume(1, None);
        onlooker.join().unwrap();
        producer.join().unwrap();
    });
}

/// Another may have replaced the command that was refused: its owner knows it when the queue has gone on.
#[test]
fn the_owner_of_a_refused_command_is_told() {
    explore(Some(2), || {
        let world = World::new(2);
        let other = world.clone();
        let other = thread::spawn(move || other.queue.with_gerror_owned(&other.registers, || ()));
        let owner = world.clone();
        let owner = thread::spawn(move || {
            let ticket = owner.submit(&[0]);
            let result = owner.queue.wait(&owner.registers, ticket);
            assert_eq!(result, Err(QueueError::Refused(CmdqError::Illegal)));
        });
        assert_eq!(world.consume(2, Some(0)), []);
        other.join().unwrap();
        owner.join().unwrap();
    });
}

/// ERRACK and the index share a register: neither takes the other back.
///
///     owner of the refused command  another producer
///                                   reserves
///     ERRACK
///                                   the doorbell
#[test]
fn an_acknowledgement_and_a_doorbell_do_not_take_each_other_back() {
    explore(Some(1), move || {
        let world = World::of(3, true, Completion::Register);
        let other = world.clone();
        let other = thread::spawn(move || {
            let _ticket = other.submit(&[1]);
        });
        let owner = world.clone();
        let owner = thread::spawn(move || {
            let ticket = owner.submit(&[0]);
            let result = owner.queue.wait(&owner.registers, ticket);
            assert_eq!(result, Err(QueueError::Refused(CmdqError::Illegal)));
            owner.finished.store(true, Ordering::Relaxed);
        });
        let seen = world.consume(u32::MAX, Some(0));
        assert!([&[][..], &[1]].contains(&&*seen), "{seen:?}");
        assert!(!world.registers.stopped());
        other.join().unwrap();
        owner.join().unwrap();
    });
}

/// The SMMU says that it has completed a CMD_SYNC: what was before that in its queue is done, whatever CONS reads.
#[test]
fn a_message_tells_that_commands_are_done() {
    check_signal(Completion::Message);
}

/// The CPU sleeps until an event comes, and no clock wakes it up.
#[test]
fn who_sleeps_for_an_event_is_woken_up() {
    check_signal(Completion::Event);
}

fn check_signal(completion: Completion) {
    explore(None, move || {
        let world = World::of(2, false, completion);
        let producer = world.clone();
        let producer = thread::spawn(move || producer.wait(&[0], producer.submit(&[0])));
        world.consume(1, None);
        producer.join().unwrap();
    });
    // One may have to announce the commands of the other, who sleeps.
    check_without_smmu(3, Some(3), completion, &[&[0], &[1]]);
}

//! The command queue: several producers, an SMMU that consumes.

use alloc::sync::Arc;
use alloc::vec::Vec;
use loom::thread;

use super::{LoomPlatform, Registers, Watched, explore};
use crate::arch::Command;
use crate::arch::regs::CmdqError;
use crate::primitive::{Ordering, fence};
use crate::queue::{CommandQueue, QueueError, Submission, Ticket};

/// A queue, its registers, and what the commands are about.
struct World {
    platform: LoomPlatform,
    registers: Registers,
    queue: CommandQueue<LoomPlatform>,
    log2: u8,
    /// Each is destroyed by the SMMU when it carries out the command for it, and used by its producer before and after.
    done: [Watched; 3],
}

impl World {
    fn new(log2: u8) -> Arc<Self> {
        let platform = LoomPlatform::new((2 << log2).max(8));
        let queue = CommandQueue::new(&platform, log2, u64::MAX).unwrap();
        let done = [Watched::new(), Watched::new(), Watched::new()];
        Arc::new(World { platform, registers: Registers::default(), queue, log2, done })
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
        while syncs > 0 {
            let prod = self.registers.prod.load(Ordering::Relaxed);
            if prod == cons {
                thread::yield_now();
                continue;
            }
            // An SMMU reads the queue after PROD.
            fence(Ordering::Acquire);
            while cons != prod {
                let slot = 2 * (cons & mask) as usize;
                let word = self.platform.words()[slot].load(Ordering::Relaxed);
                match word & 0xff {
                    0x46 => syncs -= 1,
                    0x11 => {
                        let number = (word >> 48) as usize;
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
        }
        seen
    }
}

/// Each of `producers` is a thread that sends these commands, and waits for them if it `waits`; the SMMU is another.
fn check(log2: u8, preemptions: Option<usize>, waits: bool, producers: &'static [&'static [usize]]) {
    explore(preemptions, move || {
        let world = World::new(log2);
        let produce = |numbers: &&'static [usize]| {
            let (world, numbers) = (world.clone(), *numbers);
            thread::spawn(move || {
                let ticket = world.submit(numbers);
                if waits {
                    world.wait(numbers, ticket);
                }
                (numbers, ticket)
            })
        };
        let threads: Vec<_> = producers.iter().map(produce).collect();
        let seen = world.consume(producers.len() as u32, None);
        for thread in threads {
            let (numbers, ticket) = thread.join().unwrap();
            let ours: Vec<usize> = seen.iter().copied().filter(|number| numbers.contains(number)).collect();
            assert_eq!(ours, numbers, "each command once, and in order");
            if !waits {
                world.wait(numbers, ticket);
            }
        }
    });
}

#[test]
fn commands_of_two_producers_are_carried_out_once_each() {
    check(2, Some(3), false, &[&[0], &[1]]);
}

/// Each submission fills the queue, so that the second waits for space, and writes where the first had been; and both wait for their own.
#[test]
fn two_producers_take_turns_on_the_smallest_queue() {
    check(1, Some(2), true, &[&[0], &[1]]);
}

/// More commands than the queue has places, and an odd number, so that the queue wraps in the middle of a submission.
#[test]
fn a_submission_may_be_larger_than_the_queue() {
    check(1, None, true, &[&[0, 1, 2]]);
}

#[test]
fn three_producers_share_a_queue() {
    check(3, Some(1), false, &[&[0], &[1], &[2]]);
}

/// A command is carried out and the next refused. `ERR` has the value of an earlier error from the beginning, so that whoever looks may find the error only
/// when it looks again.
#[test]
fn a_refused_command_is_told_to_its_owner_alone_and_no_other_is_lost() {
    explore(Some(2), || {
        let world = World::new(2);
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
        // The one that was refused is a CMD_SYNC then.
        assert_eq!(world.consume(3, Some(1)), [0]);
        producer.join().unwrap();
    });
}

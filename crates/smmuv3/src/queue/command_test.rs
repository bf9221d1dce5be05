extern crate std;

use super::*;
use crate::arch::SyncSignal;
use crate::queue::ring::Stretch;
use crate::testing::{Consumer, ECMDQ, TestMmio, TestPlatform};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::vec::Vec;

const SYNC_OPCODE: u64 = 0x46;
const ATC_INV: u64 = 0x40;
const SECOND: u64 = 1_000_000_000;

fn options(log2: u8, timeout_ns: u64, completion: Completion) -> QueueOptions {
    QueueOptions { log2, timeout_ns, completion }
}

fn queue(log2: u8, timeout_ns: u64, consumer: Consumer) -> (TestPlatform, CommandQueue<TestPlatform>, TestMmio) {
    let platform = TestPlatform::new(8);
    let queue = CommandQueue::new(&platform, options(log2, timeout_ns, Completion::Register)).unwrap();
    let mmio = TestMmio::new(&platform, consumer);
    (platform, queue, mmio)
}

fn enhanced(log2: u8, consumer: Consumer) -> (CommandQueue<TestPlatform>, TestMmio) {
    let platform = TestPlatform::new(8);
    let queue = CommandQueue::enhanced(ECMDQ, &platform, options(log2, 0, Completion::Register)).unwrap();
    (queue, TestMmio::new(&platform, consumer))
}

/// An SMMU whose Enhanced Command queue stops at the command at `position`.
fn stop_enhanced(mmio: &TestMmio, position: u32, reason: u32) {
    mmio.become_(Consumer::ByHand);
    let errack = mmio.prod.load(Relaxed) & ERRACK;
    mmio.cons.store(position | EN | (errack ^ ERRACK) | reason << 24, Relaxed);
}

impl CommandQueue<TestPlatform> {
    /// So many TLBIs, and a CMD_SYNC.
    fn submit_some(&self, mmio: &TestMmio, count: usize) -> Result<Ticket, QueueError> {
        self.submit(mmio, |queue| (0..count).for_each(|_| queue.push(Command::TlbiNsnhAll)))
    }

    /// What stands in the queue now.
    fn opcodes(&self) -> Vec<u64> {
        self.entries.words().iter().step_by(2).map(|word| word.load(Relaxed) & 0xff).collect()
    }
}

#[test]
fn commands_are_visible_before_the_doorbell_rings() {
    let (platform, queue, mmio) = queue(3, 0, Consumer::Eager);
    platform.record_epochs();
    let ticket = queue.submit_some(&mmio, 1).unwrap();
    assert_eq!((ticket.start, ticket.end, mmio.prod.load(Relaxed)), (0, 2, 2));
    assert_eq!(queue.opcodes()[..2], [0x30, SYNC_OPCODE]);
}

#[test]
fn an_smmu_that_is_gone_fills_no_queue_twice_and_fails_in_time() {
    let (_, queue, mmio) = queue(1, 0, Consumer::Gone);
    let ticket = queue.submit_some(&mmio, 1).unwrap();
    assert_eq!(queue.submit_some(&mmio, 1), Err(QueueError::Timeout));
    assert_eq!(queue.wait(&mmio, ticket), Err(QueueError::Timeout));
    assert_eq!((queue.ring.announced(), queue.ring.consumed(), queue.ring.room()), (2, 0, 0));
}

#[test]
fn who_finds_the_queue_full_and_another_having_waited_in_vain_does_not_wait() {
    let (platform, queue, mmio) = queue(1, 1_000_000, Consumer::Gone);
    let filled = queue.submit_some(&mmio, 1).unwrap();
    assert_eq!(queue.submit_some(&mmio, 1), Err(QueueError::Timeout));
    let turns = platform.relaxed();
    assert!(turns > 0, "the first waits");
    assert_eq!(queue.submit_some(&mmio, 1), Err(QueueError::Timeout));
    assert_eq!(platform.relaxed(), turns, "the second does not");
    // The SMMU goes on, and stands still again: that is another matter.
    mmio.become_(Consumer::Eager);
    queue.wait(&mmio, filled).unwrap();
    let _filled = queue.submit_some(&mmio, 1).unwrap();
    mmio.become_(Consumer::ByHand);
    assert_eq!(queue.submit_some(&mmio, 1), Err(QueueError::Timeout));
    assert!(platform.relaxed() > turns, "who comes now waits");
}

#[test]
fn all_ones_are_no_progress_wherever_the_queue_stands() {
    for log2 in 1..=4 {
        for position in 0..4 << log2 {
            let (_, queue, mmio) = queue(log2, 0, Consumer::Eager);
            (0..position).for_each(|_| queue.wait(&mmio, queue.submit_some(&mmio, 0).unwrap()).unwrap());
            assert_eq!(queue.ring.announced(), position);
            mmio.become_(Consumer::Gone);
            let ticket = queue.submit_some(&mmio, 1).unwrap();
            assert_eq!(queue.wait(&mmio, ticket), Err(QueueError::Timeout), "{position} of 2^{log2}");
        }
    }
}

#[test]
fn an_index_that_the_smmu_cannot_have_is_no_progress() {
    let (_, queue, mmio) = queue(2, 0, Consumer::Eager);
    queue.wait(&mmio, queue.submit_some(&mmio, 0).unwrap()).unwrap();
    mmio.become_(Consumer::ByHand);
    let ticket = queue.submit_some(&mmio, 1).unwrap();
    for index in [0, 4, 5, 7] {
        mmio.cons.store(index, Relaxed);
        assert_eq!(queue.wait(&mmio, ticket), Err(QueueError::Timeout), "CONS = {index}");
    }
    mmio.cons.store(3, Relaxed);
    queue.wait(&mmio, ticket).unwrap();
}

/// A thread reads what is consumed, sleeps while the SMMU goes round twice, and reads CONS.
#[test]
fn an_index_that_is_read_much_later_than_its_base_confirms_nothing_that_is_not_done() {
    let ring = Ring::new(2).unwrap();
    let put = || ring.announce(ring.reserve(1).unwrap(), |_| {});
    for consumed in 0..30 {
        put();
        for base in 0..=consumed {
            let seen = ring.position(base, ring.index(consumed), 0).unwrap();
            assert!(seen <= consumed && (consumed - seen).is_multiple_of(8), "{base}, {consumed}: {seen}");
        }
        ring.consumed_up_to(consumed + 1);
    }
}

#[test]
fn a_submission_that_is_larger_than_the_queue_is_carried_out_in_order() {
    for log2 in 1..=6 {
        let (_, queue, mmio) = queue(log2, SECOND, Consumer::Eager);
        let ticket = queue.submit_some(&mmio, 100).unwrap();
        assert_eq!((ticket.start, ticket.end), (0, 101), "one after the other, and one CMD_SYNC");
        queue.wait(&mmio, ticket).unwrap();
    }
}

/// A CMD_SYNC reports any ATC_INV before it that was not answered, whosever it was.
#[test]
fn between_an_atc_inv_and_the_cmd_sync_behind_it_there_is_no_place_for_another_s() {
    let atc_inv = Command::AtcInv { sid: 1, ssid: None, global: false, addr: 0, size: 52 };
    for (log2, count, expected) in [(1, 1, 2), (1, 3, 6), (3, 7, 8), (3, 8, 10), (7, 70, 72)] {
        let (_, queue, mmio) = queue(log2, SECOND, Consumer::Eager);
        let stretch = queue.stretch();
        // Pushed one by one, so that each stretch is looked at as it goes in.
        let ticket = queue
            .submit(&mmio, |queue| {
                for _ in 0..count {
                    queue.push(atc_inv);
                    let prod = queue.queue.ring.announced();
                    let last = queue.queue.opcodes()[queue.queue.ring.place(prod.wrapping_sub(1))];
                    assert!(prod == 0 || last == SYNC_OPCODE, "a stretch ends in {last:#x}");
                }
            })
            .unwrap();
        assert_eq!(ticket.end, expected, "{count} in stretches of {stretch}");
        assert!(queue.opcodes().contains(&ATC_INV));
    }
}

#[test]
fn who_comes_later_waits_behind_those_who_wait_until_there_is_room_for_anybody() {
    let (platform, queue, mmio) = queue(2, 0, Consumer::ByHand);
    let _filled = queue.submit_some(&mmio, 3).unwrap();
    // Somebody waits for room for three commands or four.
    let turn = queue.turns.draw();
    for cons in 0..=3 {
        mmio.cons.store(cons, Relaxed);
        assert_eq!(queue.submit_some(&mmio, 0), Err(QueueError::Timeout), "{cons} places are free");
    }
    // He sleeps, however much room there is.
    mmio.cons.store(4, Relaxed);
    queue.stuck.store(u64::MAX, Relaxed);
    let queue = CommandQueue { timeout_ns: 60 * SECOND, ..queue };
    let turns = platform.relaxed();
    let ticket = queue.submit_some(&mmio, 0).unwrap();
    assert_eq!((ticket.end, platform.relaxed() - turns), (5, PATIENCE as usize - 1));
    assert!(queue.turns.is_up(turn + 1) && !queue.turns.waiting(), "he holds up nobody else");
    let _at_once = queue.submit_some(&mmio, 0).unwrap();
    assert_eq!(platform.relaxed() - turns, PATIENCE as usize - 1);
}

#[test]
fn who_waits_for_room_looks_for_himself_how_far_the_smmu_has_come() {
    let (platform, queue, mmio) = queue(1, SECOND, Consumer::ByHand);
    let mmio = Arc::new(mmio);
    let _filled = queue.submit_some(&mmio, 1).unwrap();
    // Nobody waits for what fills the queue, and the SMMU does not consume it at once.
    let smmu = mmio.clone();
    platform.interrupt_after(12, move || smmu.become_(Consumer::Eager));
    let _ticket = queue.submit_some(&mmio, 1).unwrap();
    assert!(platform.relaxed() > 1);
}

#[test]
fn a_waiter_leaves_only_when_there_is_room_enough_for_it() {
    for (log2, count) in [(1, 1), (2, 2), (3, 5)] {
        let (_, queue, mmio) = queue(log2, 0, Consumer::ByHand);
        let size = 1 << log2;
        let _filled = queue.submit_some(&mmio, size - 1).unwrap();
        let needed = count as u32 + 1;
        for free in 0..needed {
            mmio.cons.store(free, Relaxed);
            assert_eq!(queue.submit_some(&mmio, count), Err(QueueError::Timeout), "{free} of {needed} places are free");
            assert_eq!(mmio.prod.load(Relaxed), size as u32, "nothing was put in");
        }
        mmio.cons.store(needed, Relaxed);
        let _ticket = queue.submit_some(&mmio, count).unwrap();
    }
}

/// A thread is paused at each step of a look at CONS, and another needs room, and waits for its commands, again and again.
#[test]
fn a_paused_sharer_does_not_keep_others_from_seeing_the_consumer_index() {
    for steps in 0..4 {
        let (platform, queue, mmio) = queue(8, SECOND, Consumer::Eager);
        let world = Arc::new((queue, mmio));
        // Nobody has looked since the queue was filled.
        let (queue, mmio) = &*world;
        let _filled = [(); 4].map(|()| queue.submit_some(mmio, 63).unwrap());
        assert_eq!(queue.ring.consumed(), 0);
        let inside = world.clone();
        platform.interrupt_after(steps, move || {
            let (queue, mmio) = &*inside;
            for _ in 0..20 {
                queue.wait(mmio, queue.submit_some(mmio, 63).unwrap()).unwrap();
            }
        });
        queue.look(mmio, 0, 0);
        queue.look(mmio, 0, 0);
        assert!(!platform.awaits_interrupt());
        assert_eq!(platform.relaxed(), 0, "nobody had to wait");
        assert_eq!(queue.ring.consumed(), 24 * 64);
    }
}

/// Another producer's commands, behind the CMD_SYNC, go in with the same doorbell.
#[test]
fn a_sync_is_polled_at_the_slot_it_was_reserved_at() {
    let (_, queue, mmio) = queue(3, 0, Consumer::ByHand);
    let [first, second] = [0, 1].map(|_| {
        let stretch = queue.ring.reserve(2).unwrap();
        queue.write(stretch.start, &[SYNC, SYNC]);
        stretch
    });
    queue.ring.mark(second);
    queue.ring.announce(first, |prod| queue.ring_doorbell(&mmio, prod));
    assert_eq!(mmio.prod.load(Relaxed), 4, "one doorbell for both");
    let wait = |stretch: Stretch| queue.wait(&mmio, Ticket { start: stretch.start, end: stretch.end });
    for (cons, first_done, second_done) in [(1, false, false), (2, true, false), (3, true, false), (4, true, true)] {
        mmio.cons.store(cons, Relaxed);
        assert_eq!((wait(first).is_ok(), wait(second).is_ok()), (first_done, second_done), "CONS = {cons}");
    }
}

#[test]
fn a_timeout_counts_down_where_nothing_is_consumed() {
    let (platform, queue, mmio) = queue(1, 1_000_000, Consumer::ByHand);
    let ticket = queue.submit_some(&mmio, 1).unwrap();
    let start = platform.now_ns();
    assert_eq!(queue.wait(&mmio, ticket), Err(QueueError::Timeout));
    assert_eq!(queue.submit_some(&mmio, 1), Err(QueueError::Timeout));
    assert!(platform.now_ns() - start >= 2_000_000, "both waited that long");
}

/// An error interrupt comes at each step of a wait for room, and of one for completion: it would wait for ever for a lock that they hold.
#[test]
fn no_wait_sleeps_or_holds_a_lock() {
    for steps in 0..60 {
        let (platform, queue, mmio) = queue(1, 0, Consumer::ByHand);
        let world = Arc::new((queue, mmio));
        let (queue, mmio) = &*world;
        let filled = queue.submit_some(mmio, 1).unwrap();
        let inside = world.clone();
        platform.interrupt_after(steps, move || inside.0.with_gerror_owned(&inside.1, || ()));
        for _ in 0..2 {
            assert_eq!(queue.submit_some(mmio, 1), Err(QueueError::Timeout));
            assert_eq!(queue.wait(mmio, filled), Err(QueueError::Timeout));
        }
        if platform.awaits_interrupt() {
            assert!(steps > 10, "only {steps} steps");
            return;
        }
    }
}

/// The two columns that [`Ring::announce`] names: a producer is ahead of his turn, and the other does not see his mark.
#[test]
fn what_is_left_unannounced_is_announced_by_those_who_wait() {
    let (_, queue, mmio) = queue(3, SECOND, Consumer::Eager);
    let put = || {
        let stretch = queue.ring.reserve(1).unwrap();
        queue.write(stretch.start, &[SYNC]);
        stretch
    };
    for _ in 0..20 {
        let (first, second) = (put(), put());
        queue.ring.mark(first);
        queue.ring.mark(second);
        queue.wait(&mmio, Ticket { start: second.start, end: second.end }).unwrap();
        assert_eq!(queue.ring.announced(), second.end);
    }
    // What fills the queue is announced by who waits for room.
    while let Some(stretch) = queue.ring.reserve(1) {
        queue.ring.mark(stretch);
    }
    let _ticket = queue.submit_some(&mmio, 0).unwrap();
}

/// One is paused between its doorbell and the word about it, and the SMMU has gone round the ring meanwhile.
#[test]
fn a_mark_of_another_lap_announces_nothing() {
    let ring = Ring::new(2).unwrap();
    let first = ring.reserve(4).unwrap();
    ring.consumed_up_to(4);
    ring.mark(ring.reserve(3).unwrap());
    assert!(!ring.has_rest());
    ring.announce_rest(|prod| panic!("announced up to {prod}"));
    ring.announce(first, |prod| assert_eq!(prod, 7));
    assert_eq!(ring.announced(), 7);
    // Nor does the mark, which nobody took, when its lap is over.
    ring.consumed_up_to(7);
    let next = ring.reserve(4).unwrap();
    assert!(!ring.has_rest());
    ring.announce(next, |prod| assert_eq!(prod, 11));
}

#[test]
fn many_threads_on_the_smallest_queue_all_get_on() {
    let (_, queue, mmio) = queue(1, 120 * SECOND, Consumer::Eager);
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        for thread in 0..6 {
            let (queue, mmio, done) = (&queue, &mmio, &done);
            scope.spawn(move || {
                for round in 0..200 {
                    let ticket = queue.submit_some(mmio, (round + thread) % 5).unwrap();
                    queue.wait(mmio, ticket).unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(done.into_inner(), 6 * 200);
    assert_eq!(queue.ring.announced(), queue.ring.consumed());
}

/// A submission in an interrupt handler, which comes at each step of another submission.
#[test]
fn an_interrupt_handler_s_commands_do_not_wait_for_the_thread_that_it_interrupted() {
    for log2 in [1, 3] {
        let mut steps = 0;
        loop {
            let (platform, queue, mmio) = queue(log2, SECOND, Consumer::Eager);
            let world = Arc::new((queue, mmio));
            let inside = world.clone();
            platform.interrupt_after(steps, move || {
                let (queue, mmio) = &*inside;
                let ticket = queue.submit_some(mmio, 1).expect("there is room in time");
                assert_eq!(queue.wait(mmio, ticket), Ok(()), "after {steps} steps");
            });
            let (queue, mmio) = &*world;
            for _ in 0..3 {
                queue.wait(mmio, queue.submit_some(mmio, 1).unwrap()).unwrap();
            }
            if platform.awaits_interrupt() {
                assert!(steps > 10, "only {steps} steps");
                break;
            }
            steps += 1;
        }
    }
}

/// An SMMU that stops at the command at `position`.
fn stop(mmio: &TestMmio, position: u32, code: u32) {
    mmio.become_(Consumer::ByHand);
    mmio.cons.store(position | code << 24, Relaxed);
    mmio.gerror.fetch_xor(Gerror::CMDQ_ERR.bits(), Relaxed);
}

#[test]
fn each_queue_error_costs_exactly_the_refused_command() {
    for (code, error) in [(1, CmdqError::Illegal), (2, CmdqError::Abort), (3, CmdqError::AtcInvSync)] {
        let (_, queue, mmio) = queue(4, 0, Consumer::ByHand);
        let tickets = [1, 2, 1].map(|count| queue.submit_some(&mmio, count).unwrap());
        // Another error is active, and stays for who asks for it.
        mmio.gerror.fetch_xor(Gerror::SFM_ERR.bits(), Relaxed);
        stop(&mmio, 3, code);
        assert_eq!(queue.wait(&mmio, tickets[0]), Ok(()), "what stands before it was carried out");
        assert_eq!(queue.wait(&mmio, tickets[2]), Err(QueueError::Timeout), "what stands behind it was not");
        assert_eq!(queue.opcodes()[..7], [0x30, SYNC_OPCODE, 0x30, SYNC_OPCODE, SYNC_OPCODE, 0x30, SYNC_OPCODE]);
        assert_eq!(mmio.gerrorn.load(Relaxed), Gerror::CMDQ_ERR.bits(), "acknowledged, and nothing else");
        // Looking again changes nothing, though ERR keeps its value.
        assert_eq!(queue.wait(&mmio, tickets[2]), Err(QueueError::Timeout));
        assert_eq!(mmio.gerrorn.load(Relaxed), Gerror::CMDQ_ERR.bits());
        mmio.become_(Consumer::Eager);
        assert_eq!(queue.wait(&mmio, tickets[1]), Err(QueueError::Refused(error)));
        assert_eq!(queue.wait(&mmio, tickets[2]), Ok(()));
        assert_eq!(queue.wait(&mmio, tickets[1]), Ok(()), "told once");
        let errors = queue.with_gerror_owned(&mmio, || mmio.gerror.load(Relaxed) ^ mmio.gerrorn.load(Relaxed));
        assert_eq!(errors, Gerror::SFM_ERR.bits());
    }
}

#[test]
fn of_more_failures_than_can_be_remembered_none_is_taken_for_success() {
    const COUNT: usize = MAX_FAILURES + 8;
    let (_, queue, mmio) = queue(7, 0, Consumer::ByHand);
    let tickets = [(); COUNT].map(|()| queue.submit_some(&mmio, 1).unwrap());
    for ticket in tickets {
        stop(&mmio, queue.ring.index(ticket.start), 1);
        queue.look(&mmio, 0, 0);
    }
    mmio.become_(Consumer::Eager);
    let results = tickets.map(|ticket| queue.wait(&mmio, ticket));
    let forgotten = Err(QueueError::Refused(CmdqError::Unknown(0)));
    assert_eq!(results[..8], [forgotten; 8]);
    assert_eq!(results[8..], [Err(QueueError::Refused(CmdqError::Illegal)); MAX_FAILURES]);
    queue.wait(&mmio, queue.submit_some(&mmio, 1).unwrap()).unwrap();
}

/// A large submission goes in by stretches, with others' commands between them.
#[test]
fn a_command_between_the_stretches_of_another_submission_fails_for_its_owner_alone() {
    let (_, queue, mmio) = queue(1, 0, Consumer::Eager);
    let mut inner = None;
    let outer = queue
        .submit(&mmio, |large| {
            (0..3).for_each(|_| large.push(Command::TlbiNsnhAll));
            inner = Some(queue.submit_some(&mmio, 1).unwrap());
            stop(&mmio, queue.ring.index(inner.unwrap().start), 1);
            queue.look(&mmio, 0, 0);
            mmio.become_(Consumer::Eager);
            (0..3).for_each(|_| large.push(Command::TlbiNsnhAll));
        })
        .unwrap();
    let inner = inner.unwrap();
    assert!(outer.start < inner.start && inner.end < outer.end);
    assert_eq!(queue.wait(&mmio, outer), Ok(()));
    assert_eq!(queue.wait(&mmio, inner), Err(QueueError::Refused(CmdqError::Illegal)));
    // And the other way round: a later stretch of the large one.
    let outer = queue
        .submit(&mmio, |large| {
            (0..5).for_each(|_| large.push(Command::TlbiNsnhAll));
            stop(&mmio, queue.ring.index(queue.ring.announced() - 2), 1);
            queue.look(&mmio, 0, 0);
            mmio.become_(Consumer::Eager);
        })
        .unwrap();
    assert_eq!(queue.wait(&mmio, outer), Err(QueueError::Refused(CmdqError::Illegal)));
}

#[test]
fn a_queue_that_one_error_stopped_is_acknowledged_once_by_many() {
    let (_, queue, mmio) = queue(4, SECOND / 10, Consumer::ByHand);
    let ticket = queue.submit_some(&mmio, 1).unwrap();
    stop(&mmio, 0, 1);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| queue.look(&mmio, 0, 0));
        }
    });
    assert_eq!(mmio.gerror.load(Relaxed), mmio.gerrorn.load(Relaxed));
    assert_eq!(queue.failures.lock().list.len(), 1);
    assert_eq!(queue.wait(&mmio, ticket), Err(QueueError::Refused(CmdqError::Illegal)));
}

#[test]
fn each_error_of_an_enhanced_queue_costs_exactly_the_refused_command() {
    let (queue, mmio) = enhanced(4, Consumer::ByHand);
    let mut errack = 0;
    for (reason, error) in [(1, CmdqError::Illegal), (2, CmdqError::Abort), (3, CmdqError::AtcInvSync)] {
        let tickets = [1, 2, 1].map(|count| queue.submit_some(&mmio, count).unwrap());
        let end = queue.ring.index(tickets[2].end);
        assert_eq!(mmio.prod.load(Relaxed), end | EN | errack);
        mmio.cons.store(queue.ring.index(tickets[0].end) | EN | errack, Relaxed);
        assert_eq!(queue.wait(&mmio, tickets[0]), Ok(()));
        stop_enhanced(&mmio, queue.ring.index(tickets[1].start), reason);
        assert_eq!(queue.wait(&mmio, tickets[2]), Err(QueueError::Timeout));
        errack ^= ERRACK;
        let place = queue.ring.place(tickets[1].start);
        assert_eq!(queue.opcodes()[place], SYNC_OPCODE);
        // A CMD_SYNC more brings the acknowledgement.
        let acknowledged = queue.ring.index(tickets[2].end + 1) | EN | errack;
        assert_eq!(mmio.prod.load(Relaxed), acknowledged);
        assert_eq!(queue.wait(&mmio, tickets[2]), Err(QueueError::Timeout));
        assert_eq!(mmio.prod.load(Relaxed), acknowledged, "acknowledged once");
        mmio.become_(Consumer::Eager);
        assert_eq!(queue.wait(&mmio, tickets[1]), Err(QueueError::Refused(error)));
        assert_eq!(queue.wait(&mmio, tickets[2]), Ok(()));
        assert_eq!(queue.wait(&mmio, tickets[1]), Ok(()), "told once");
        mmio.become_(Consumer::ByHand);
    }
}

#[test]
fn an_enhanced_queue_that_is_full_goes_on() {
    let (queue, mmio) = enhanced(1, Consumer::Eager);
    for _ in 0..3 {
        let ticket = queue.submit_some(&mmio, 1).unwrap();
        let errack = mmio.prod.load(Relaxed) & ERRACK;
        stop_enhanced(&mmio, queue.ring.index(ticket.start), 1);
        assert_eq!(queue.submit_some(&mmio, 1), Err(QueueError::Timeout));
        assert_eq!(mmio.prod.load(Relaxed), queue.ring.index(ticket.end) | EN | (errack ^ ERRACK));
        mmio.become_(Consumer::Eager);
        assert_eq!(queue.wait(&mmio, ticket), Err(QueueError::Refused(CmdqError::Illegal)));
        queue.wait(&mmio, queue.submit_some(&mmio, 1).unwrap()).unwrap();
    }
}

/// It is the turn of one who has reserved the last of the room: what he writes to PROD must not take the acknowledgement back, nor that what he writes.
///
///     producer                  whoever finds the error
///     reserves
///                               ERRACK
///     the doorbell
#[test]
fn an_error_of_an_enhanced_queue_is_not_acknowledged_in_the_middle_of_another_s_doorbell() {
    let (queue, mmio) = enhanced(2, Consumer::Eager);
    let refused = queue.submit_some(&mmio, 1).unwrap();
    let last = queue.ring.reserve(2).unwrap();
    stop_enhanced(&mmio, 0, 1);
    let prod = mmio.prod.load(Relaxed);
    for _ in 0..3 {
        queue.look(&mmio, 0, 0);
        assert_eq!((mmio.prod.load(Relaxed), queue.failures.lock().list.len()), (prod, 1));
    }
    assert_eq!(queue.opcodes()[0], SYNC_OPCODE);
    queue.write(last.start, &[SYNC, SYNC]);
    queue.ring.announce(last, |prod| queue.ring_doorbell(&mmio, prod));
    assert_eq!(mmio.prod.load(Relaxed), 4 | EN);
    queue.look(&mmio, 0, 0);
    assert_eq!(mmio.prod.load(Relaxed), 4 | EN | ERRACK);
    mmio.become_(Consumer::Eager);
    assert_eq!(queue.wait(&mmio, refused), Err(QueueError::Refused(CmdqError::Illegal)));
}

/// The same where there is room: the acknowledgement comes with a doorbell behind his.
#[test]
fn an_error_of_an_enhanced_queue_is_acknowledged_in_turn() {
    let (queue, mmio) = enhanced(3, Consumer::Eager);
    let refused = queue.submit_some(&mmio, 1).unwrap();
    let next = queue.ring.reserve(1).unwrap();
    stop_enhanced(&mmio, 0, 1);
    let prod = mmio.prod.load(Relaxed);
    queue.look(&mmio, 0, 0);
    assert_eq!(mmio.prod.load(Relaxed), prod);
    queue.write(next.start, &[SYNC]);
    queue.ring.announce(next, |prod| queue.ring_doorbell(&mmio, prod));
    assert_eq!(mmio.prod.load(Relaxed), 4 | EN | ERRACK);
    mmio.become_(Consumer::Eager);
    assert_eq!(queue.wait(&mmio, refused), Err(QueueError::Refused(CmdqError::Illegal)));
}

#[test]
fn an_enhanced_queue_that_is_gone_is_not_set_going() {
    let (queue, mmio) = enhanced(2, Consumer::Gone);
    let ticket = queue.submit_some(&mmio, 1).unwrap();
    assert_eq!(queue.wait(&mmio, ticket), Err(QueueError::Timeout));
    queue.recover(&mmio);
    assert_eq!((queue.failures.lock().list.len(), mmio.prod.load(Relaxed)), (0, 2 | EN));
}

/// A queue whose CMD_SYNCs write messages, when a test says so.
fn with_messages(timeout_ns: u64) -> (TestPlatform, CommandQueue<TestPlatform>, TestMmio) {
    let platform = TestPlatform::new(8);
    let queue = CommandQueue::new(&platform, options(3, timeout_ns, Completion::Message)).unwrap();
    let mmio = TestMmio::new(&platform, Consumer::ByHand);
    (platform, queue, mmio)
}

impl CommandQueue<TestPlatform> {
    fn memory_of_messages(&self) -> &DmaBox<TestPlatform> {
        let Signal::Message { memory, .. } = &self.signal else { panic!("no messages") };
        memory
    }

    /// The message of a CMD_SYNC before a position arrives.
    fn tell(&self, position: u64) {
        self.memory_of_messages().words()[0].store(u64::from(position as u32), Relaxed);
    }
}

#[test]
fn the_cmd_sync_at_the_end_of_a_submission_asks_for_the_signal_that_there_is() {
    let encode = |signal| Command::Sync(signal).encode().0;
    for completion in [Completion::Message, Completion::Event, Completion::Register] {
        let platform = TestPlatform::new(8);
        let queue = CommandQueue::new(&platform, options(3, 0, completion)).unwrap();
        let mmio = TestMmio::new(&platform, Consumer::Eager);
        queue.ring.skip_to(0x1_ffff_fff8);
        let _ticket = queue.submit(&mmio, |queue| {
            queue.push(Command::TlbiNsnhAll);
            queue.push(Command::Sync(SyncSignal::None));
            queue.push(Command::TlbiNsnhAll);
        });
        let commands: Vec<_> = queue.entries.words().iter().map(|word| word.load(Relaxed)).collect();
        let expected = match completion {
            Completion::Message => SyncSignal::Msi { addr: queue.memory_of_messages().addr().0, data: 0xffff_fffc },
            Completion::Event => SyncSignal::Sev,
            Completion::Register => SyncSignal::None,
        };
        assert_eq!(commands[2..4], encode(SyncSignal::None), "in the middle");
        assert_eq!(commands[6..8], encode(expected), "at the end");
    }
}

#[test]
fn a_message_is_enough_and_no_register_is_read() {
    let (_, queue, mmio) = with_messages(0);
    // The numbers in messages repeat.
    for position in [0, 6, (1 << 32) - 2, (1 << 32) - 1, 1 << 32, (1 << 33) - 8] {
        queue.ring.skip_to(position);
        queue.tell(position);
        let [first, second] = [(); 2].map(|()| queue.submit_some(&mmio, 1).unwrap());
        mmio.become_(Consumer::Gone);
        assert_eq!(queue.wait(&mmio, first), Err(QueueError::Timeout), "{position:#x}: before");
        queue.tell(second.end);
        let reads = mmio.reads();
        assert_eq!(queue.wait(&mmio, first), Ok(()), "{position:#x}: by the message of another");
        assert_eq!(queue.wait(&mmio, second), Ok(()), "{position:#x}: by its own");
        assert_eq!(mmio.reads(), reads);
    }
}

#[test]
fn who_hears_of_a_message_tells_the_others_of_much_progress() {
    let (_, queue, mmio) = with_messages(0);
    let tickets = [(); 4].map(|()| queue.submit_some(&mmio, 1).unwrap());
    queue.tell(8);
    queue.wait(&mmio, tickets[0]).unwrap();
    assert_eq!(queue.ring.room(), 8);
}

#[test]
fn a_message_that_no_cmd_sync_can_have_sent_is_no_progress() {
    let (_, queue, mmio) = with_messages(0);
    let ticket = queue.submit_some(&mmio, 1).unwrap();
    for position in [1, 3, 9, 1 << 30, u64::MAX] {
        queue.tell(position);
        assert_eq!(queue.wait(&mmio, ticket), Err(QueueError::Timeout), "{position:#x}");
    }
}

#[test]
fn where_messages_are_lost_the_register_tells() {
    let (_, queue, mmio) = with_messages(SECOND);
    mmio.become_(Consumer::Eager);
    queue.wait(&mmio, queue.submit_some(&mmio, 1).unwrap()).unwrap();
    assert!(queue.signal.is_message(), "it may be late");
    // After a while they are not waited for any more, and when their numbers come again, they are not believed.
    queue.ring.skip_to(1 << 24);
    queue.wait(&mmio, queue.submit_some(&mmio, 1).unwrap()).unwrap();
    assert!(!queue.signal.is_message());
    queue.ring.skip_to((1 << 32) - 2);
    let ticket = queue.submit_some(&mmio, 1).unwrap();
    assert_eq!(ticket.end, 1 << 32);
    assert!(!queue.is_consumed(&mmio, ticket.end, false));
}

/// A thread that finds nothing after a few looks lets the CPU sleep, once all is announced that the SMMU has to consume.
#[test]
fn who_waits_for_a_signal_sleeps() {
    for completion in [Completion::Message, Completion::Event, Completion::Register] {
        let platform = TestPlatform::new(8);
        let queue = CommandQueue::new(&platform, options(3, 0, completion)).unwrap();
        let mmio = TestMmio::new(&platform, Consumer::ByHand);
        let ticket = queue.submit_some(&mmio, 1).unwrap();
        let pause = |end, soon| {
            let slept = platform.slept();
            queue.signal.pause(&platform, end, soon);
            platform.slept() - slept
        };
        let sleeps = [pause(ticket.end, true), pause(ticket.end, false)];
        match completion {
            Completion::Message => {
                assert_eq!(sleeps, [0, 1]);
                queue.tell(ticket.end);
                assert_eq!(pause(ticket.end, false), 0, "the message is there");
            }
            Completion::Event => assert_eq!(sleeps, [1, 1]),
            Completion::Register => assert_eq!(sleeps, [0, 0]),
        }
    }
}

#[test]
fn a_message_that_may_still_come_finds_its_memory() {
    for (told, pages) in [(2, 0), (0, 1)] {
        let (platform, queue, mmio) = with_messages(0);
        let ticket = queue.submit_some(&mmio, 1).unwrap();
        mmio.cons.store(2, Relaxed);
        queue.wait(&mmio, ticket).unwrap();
        queue.tell(told);
        queue.end();
        drop(queue);
        assert_eq!(platform.live_pages(), pages, "the last message was for {told}");
    }
}

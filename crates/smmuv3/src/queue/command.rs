//! The command queue.
//!
//! Producers take a lock, write their commands, ring the doorbell and get a [`Ticket`]; they wait for it without the lock
//! held. Positions are counted in 64 bits and never wrap; index and wrap bit are their low bits.
//!
//! A command that the SMMU refuses stops the queue (§7.1). Whoever looks next replaces it with a CMD_SYNC that does nothing, remembers its
//! position, and lets the queue go on; the owner of the ticket that covers the position gets the error. No other command is lost.

use crate::primitive::Ordering::Relaxed;
use arrayvec::ArrayVec;
use lock_api::Mutex;

use super::Deadline;
use crate::arch::regs::{self, CmdqCons, CmdqError, Gerror, offset};
use crate::arch::{Command, RawCommand, SyncSignal};
use crate::platform::{DmaBox, Mmio, Platform};

const ENTRY_SIZE: usize = 16;
/// What registers of an SMMU that is gone read as. `CMDQ_CONS` has bits that are always 0, so it is no state of a queue.
const GONE: u32 = u32::MAX;
/// Refused commands that are remembered until their owner asks.
const MAX_FAILURES: usize = 32;

/// Why commands were not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The SMMU refused a command; those around it were carried out.
    #[error("the SMMU refused a command: {0}")]
    Refused(CmdqError),
    /// The SMMU did not consume the commands in time. It may still do so.
    #[error("the SMMU did not complete its commands in time")]
    Timeout,
}

/// A submission: its commands stand at these positions of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "commands have no effect that can be relied on before they were waited for"]
pub(crate) struct Ticket {
    start: u64,
    end: u64,
}

/// # Invariants
/// - `cons <= prod <= cons + size`; positions below `prod` were written and announced to the SMMU.
struct State {
    prod: u64,
    cons: u64,
    failures: ArrayVec<(u64, CmdqError), MAX_FAILURES>,
    /// The last to wait for space waited in vain, and the SMMU has consumed nothing since: nobody else waits for space.
    stuck: bool,
    /// Failures below this position are no longer remembered: who submitted anything below it is told that it failed.
    forgotten: u64,
}

pub(crate) struct CommandQueue<P: Platform> {
    platform: P,
    entries: DmaBox<P>,
    log2: u8,
    timeout_ns: u64,
    state: Mutex<P::RawMutex, State>,
}

/// A submission in the making; holds the queue's lock.
pub(crate) struct Submission<'a, P: Platform> {
    queue: &'a CommandQueue<P>,
    mmio: &'a P::Mmio,
    state: &'a mut State,
    /// For all the waiting of this submission together.
    deadline: Option<Deadline>,
    result: Result<(), QueueError>,
}

impl<P: Platform> Submission<'_, P> {
    /// Adds a command. Once space did not come in time, nothing is added any more and the submission fails.
    pub(crate) fn push(&mut self, command: Command) {
        self.push_raw(command.encode());
    }

    /// Adds a command that is encoded already.
    pub(crate) fn push_raw(&mut self, command: RawCommand) {
        if self.result.is_err() {
            return;
        }
        let queue = self.queue;
        if self.state.prod - self.state.cons == queue.size() {
            // What fills the queue must be announced before waiting for its consumption.
            queue.announce(self.mmio, self.state);
            let timeout_ns = if self.state.stuck { 0 } else { queue.timeout_ns };
            let deadline = self.deadline.get_or_insert_with(|| Deadline::after(&queue.platform, timeout_ns));
            if !deadline.wait(&queue.platform, || {
                queue.refresh(self.mmio, self.state);
                self.state.prod - self.state.cons < queue.size()
            }) {
                self.state.stuck = true;
                self.result = Err(QueueError::Timeout);
                return;
            }
        }
        queue.write(self.state.prod, command);
        self.state.prod += 1;
    }
}

impl<P: Platform> Extend<RawCommand> for Submission<'_, P> {
    fn extend<T: IntoIterator<Item = RawCommand>>(&mut self, commands: T) {
        commands.into_iter().for_each(|command| self.push_raw(command));
    }
}

impl<P: Platform> CommandQueue<P> {
    /// A queue of `2^log2` commands. `None`: no memory.
    pub(crate) fn new(platform: &P, log2: u8, timeout_ns: u64) -> Option<Self> {
        let size = ENTRY_SIZE << log2;
        Some(CommandQueue {
            platform: platform.clone(),
            entries: DmaBox::new(platform, size, size)?,
            log2,
            timeout_ns,
            state: Mutex::new(State { prod: 0, cons: 0, failures: ArrayVec::new(), stuck: false, forgotten: 0 }),
        })
    }

    /// The value of `SMMU_CMDQ_BASE`. PROD and CONS start at 0.
    pub(crate) fn base(&self) -> u64 {
        self.entries.addr().0 & regs::QUEUE_BASE_ADDR | regs::QUEUE_BASE_ALLOC | u64::from(self.log2)
    }

    /// The SMMU may still read the queue: its memory is never given back.
    pub(crate) fn keep_forever(&self) {
        self.entries.keep_forever();
    }

    /// Hands the commands that `fill` pushes to the SMMU, in this order, and a CMD_SYNC behind them. No order is promised between
    /// submissions of different threads. Waits for space if the queue is full.
    pub(crate) fn submit(
        &self,
        mmio: &P::Mmio,
        fill: impl FnOnce(&mut Submission<'_, P>),
    ) -> Result<Ticket, QueueError> {
        let mut state = self.state.lock();
        let start = state.prod;
        let mut submission = Submission { queue: self, mmio, state: &mut state, deadline: None, result: Ok(()) };
        fill(&mut submission);
        submission.push(Command::Sync(SyncSignal::None));
        let result = submission.result;
        self.announce(mmio, &state);
        result.map(|()| Ticket { start, end: state.prod })
    }

    /// Waits until the SMMU has consumed all of a submission, which its CMD_SYNC makes mean: carried out.
    pub(crate) fn wait(&self, mmio: &P::Mmio, ticket: Ticket) -> Result<(), QueueError> {
        let deadline = Deadline::after(&self.platform, self.timeout_ns);
        let done = deadline.wait(&self.platform, || {
            // Another may have seen it first: its barrier is passed on with the lock. litmus: completion-told
            let mut state = self.state.lock();
            if state.cons < ticket.end {
                self.refresh(mmio, &mut state);
            }
            state.cons >= ticket.end
        });
        // Of several refused commands of a submission the first is told; all are forgotten.
        let mut state = self.state.lock();
        let mut failure = None;
        state.failures.retain(|(position, error)| {
            let ours = (ticket.start..ticket.end).contains(position);
            if ours {
                failure.get_or_insert(*error);
            }
            !ours
        });
        if ticket.start < state.forgotten {
            failure.get_or_insert(CmdqError::Unknown(0));
        }
        match (done, failure) {
            (_, Some(error)) => Err(QueueError::Refused(error)),
            (false, None) => Err(QueueError::Timeout),
            (true, None) => Ok(()),
        }
    }

    /// Runs `f` while no one else acknowledges global errors. `CMDQ_ERR` is this queue's own to acknowledge.
    pub(crate) fn with_gerror_owned<R>(&self, mmio: &P::Mmio, f: impl FnOnce() -> R) -> R {
        let mut state = self.state.lock();
        self.refresh(mmio, &mut state);
        f()
    }

    fn write(&self, position: u64, command: RawCommand) {
        let slot = (position as usize & ((1 << self.log2) - 1)) * 2;
        for (word, value) in self.entries.words().iter().skip(slot).zip(command.0) {
            word.store(value, Relaxed);
        }
    }

    /// Tells the SMMU of everything that was written.
    fn announce(&self, mmio: &P::Mmio, state: &State) {
        // The commands, and whatever memory they are about, come before the doorbell. litmus: doorbell, doorbell-data
        self.platform.write_barrier();
        mmio.write32(offset::CMDQ_PROD, (state.prod & self.mask()) as u32);
    }

    fn size(&self) -> u64 {
        1 << self.log2
    }

    /// Index and wrap bit.
    fn mask(&self) -> u64 {
        (2 << self.log2) - 1
    }

    /// Looks how far the SMMU has come, and sets it going again where a command stopped it.
    fn refresh(&self, mmio: &P::Mmio, state: &mut State) {
        let raw = mmio.read32(offset::CMDQ_CONS);
        if raw == GONE {
            return;
        }
        let cons = CmdqCons::new_with_raw_value(raw);
        // Distance between PROD and CONS. What cannot be is taken for no progress.
        let pending = state.prod.wrapping_sub(u64::from(cons.rd().value())) & self.mask();
        if pending <= state.prod - state.cons {
            state.stuck &= state.cons == state.prod - pending;
            state.cons = state.prod - pending;
            // What the SMMU did before comes before what the caller does next. litmus: completion-store, completion-load
            self.platform.read_barrier();
        }
        if CmdqError::from(cons.err()) == CmdqError::None {
            return;
        }
        // ERR keeps its value after the error is over: GERROR tells whether it is now.
        let gerror = Gerror::from_bits_retain(mmio.read32(offset::GERROR));
        let gerrorn = Gerror::from_bits_retain(mmio.read32(offset::GERRORN));
        if !(gerror ^ gerrorn).contains(Gerror::CMDQ_ERR) || state.cons == state.prod {
            return;
        }
        // Read again: the error may be younger than the first read. And nothing of an SMMU that went away meanwhile counts.
        let raw = mmio.read32(offset::CMDQ_CONS);
        if [raw, gerror.bits(), gerrorn.bits()].contains(&GONE) {
            return;
        }
        let cons = CmdqCons::new_with_raw_value(raw);
        let pending = state.prod.wrapping_sub(u64::from(cons.rd().value())) & self.mask();
        if pending == 0 || pending > state.prod - state.cons {
            return;
        }
        state.cons = state.prod - pending;
        // As above: the SMMU has carried out what stands before the command that stopped it.
        self.platform.read_barrier();
        if state.failures.is_full() {
            let (position, _) = state.failures.remove(0);
            state.forgotten = state.forgotten.max(position + 1);
        }
        state.failures.push((state.cons, CmdqError::from(cons.err())));
        self.write(state.cons, Command::Sync(SyncSignal::None).encode());
        // litmus: doorbell
        self.platform.write_barrier();
        mmio.write32(offset::GERRORN, (gerrorn ^ Gerror::CMDQ_ERR).bits());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NoMmio, TestPlatform};

    #[test]
    fn commands_are_visible_before_the_doorbell_rings() {
        let platform = TestPlatform::new(8);
        let queue = CommandQueue::new(&platform, 3, 0).unwrap();
        let mmio = NoMmio(Some(platform.clone()));
        platform.record_epochs();
        let ticket = queue.submit(&mmio, |queue| queue.push(Command::TlbiNsnhAll)).unwrap();
        assert_eq!((ticket.start, ticket.end), (0, 2));
        let base = queue.base() & regs::QUEUE_BASE_ADDR;
        assert_eq!(platform.read(base) & 0xff, 0x30);
        assert_eq!(platform.read(base + 16) & 0xff, 0x46);
    }

    #[test]
    fn an_smmu_that_is_gone_fills_no_queue_twice_and_fails_in_time() {
        let platform = TestPlatform::new(8);
        let queue = CommandQueue::new(&platform, 1, 0).unwrap();
        let mmio = NoMmio(None);
        let all = |count| queue.submit(&mmio, |queue| (0..count).for_each(|_| queue.push(Command::TlbiNsnhAll)));
        let ticket = all(1).unwrap();
        assert_eq!(all(1), Err(QueueError::Timeout));
        assert_eq!(queue.wait(&mmio, ticket), Err(QueueError::Timeout));
        let state = queue.state.lock();
        assert_eq!((state.prod, state.cons, state.stuck), (2, 0, true));
    }

    #[test]
    fn who_finds_the_queue_full_and_another_having_waited_in_vain_does_not_wait() {
        let platform = TestPlatform::new(8);
        let queue = CommandQueue::new(&platform, 1, 1_000_000).unwrap();
        let mmio = NoMmio(None);
        let one = || queue.submit(&mmio, |queue| queue.push(Command::TlbiNsnhAll));
        let _filled = one().unwrap();
        assert_eq!(one(), Err(QueueError::Timeout));
        let turns = platform.relaxed();
        assert!(turns > 0, "the first waits");
        assert_eq!(one(), Err(QueueError::Timeout));
        assert_eq!(platform.relaxed(), turns, "the second does not");
    }

    #[test]
    fn all_ones_are_no_progress_wherever_the_queue_stands() {
        for log2 in 1..=4 {
            for position in 0..4 << log2 {
                let platform = TestPlatform::new(8);
                let queue = CommandQueue::new(&platform, log2, 0).unwrap();
                {
                    let mut state = queue.state.lock();
                    (state.prod, state.cons) = (position, position);
                }
                let mmio = NoMmio(None);
                let ticket = queue.submit(&mmio, |queue| queue.push(Command::TlbiNsnhAll)).unwrap();
                assert_eq!(queue.wait(&mmio, ticket), Err(QueueError::Timeout), "{position} of 2^{log2}");
            }
        }
    }
}

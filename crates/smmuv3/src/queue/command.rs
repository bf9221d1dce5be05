//! Command queues: the SMMU's own, and Enhanced Command queues, of which it may have many (IHI 0070 §3.5.6).
//!
//! Producers take no lock: they reserve places in the queue, write their commands, and ring the doorbell, or leave that to another whose turn comes
//! before ([`Ring`]). They get a [`Ticket`] and wait for it each for himself. Whoever finds the queue full looks himself how far the SMMU has come, and holds
//! nothing while he waits. Every wait ends in time.
//!
//! A thread that sleeps, or an interrupt handler that stays, between a reservation and its doorbell holds up all that was reserved after it: that
//! stretch runs in [`Platform::without_interrupts`], and nothing in it waits.
//!
//! A command that the SMMU refuses stops the queue (§7.1). Whoever looks next replaces it with a CMD_SYNC that does nothing, remembers whose it
//! was, and lets the queue go on; the owner gets the error. No other command is lost. Only this takes a lock.
//!
//! The SMMU's own queue goes on when `GERRORN` acknowledges `CMDQ_ERR`. An Enhanced Command queue goes on when `ERRACK` follows `ERR`, which stands in the
//! register that is its doorbell: `ERRACK` is written by him whose turn it is to ring, and by him who has seen that it can be nobody's turn.

use arbitrary_int::u7;
use arrayvec::ArrayVec;
use lock_api::Mutex;

use super::ring::{Ring, Turns};
use super::signal::Signal;
use super::{Completion, Deadline};
use crate::arch::regs::{self, CmdqCons, CmdqError, EcmdqCons, EcmdqProd, Gerror, offset};
use crate::arch::{Command, RawCommand, op};
use crate::platform::{DmaBox, Mmio, Platform};
use crate::primitive::Ordering::Relaxed;
use crate::primitive::{AtomicU32, AtomicU64};
use crossbeam_utils::CachePadded;

const ENTRY_SIZE: usize = 16;
/// A CMD_SYNC without a signal.
pub(super) const SYNC: RawCommand = RawCommand([op::SYNC as u64, 0]);
/// What registers of an SMMU that is gone read as. `CMDQ_CONS` has bits that are always 0, so it is no state of a queue.
const GONE: u32 = u32::MAX;
/// Refused commands that are remembered until their owner asks.
const MAX_FAILURES: usize = 32;
/// The commands that go into the queue together, at most: 64 and a CMD_SYNC. It bounds what others wait for behind them, and a stack frame (1 KB).
const STRETCH: usize = 65;
/// So often one who waits for a message looks for it before he lets the CPU wait, and each time before he looks at CONS.
const SOON: u64 = 8;
/// How often one who waits for room sees room for anybody, and nobody before him take it, before he overtakes them.
const PATIENCE: u32 = 8;

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

/// A submission: its commands stand at positions from `start` to `end`, with others' between them if they were too many for one stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "commands have no effect that can be relied on before they were waited for"]
pub(crate) struct Ticket {
    start: u64,
    end: u64,
}

/// The registers of a queue, and how it tells of an error.
struct Registers {
    base: usize,
    prod: usize,
    cons: usize,
    /// What stands in PROD beside the index: EN and ERRACK of an Enhanced Command queue. Changed by the holder of `failures`.
    control: AtomicU32,
    /// The bits of CONS that differ from `control` if there may be an error.
    error: u32,
}

/// EN and ERRACK, where there are such.
const EN: u32 = EcmdqProd::ZERO.with_en(true).raw_value();
const ERRACK: u32 = EcmdqProd::ZERO.with_errack(true).raw_value();

impl Registers {
    /// Those of the SMMU's own queue. ERR keeps its value after the error is over.
    fn own() -> Self {
        let error = CmdqCons::ZERO.with_err(u7::new(0x7f)).raw_value();
        let (base, prod, cons) = (offset::CMDQ_BASE, offset::CMDQ_PROD, offset::CMDQ_CONS);
        Registers { base, prod, cons, control: AtomicU32::new(0), error }
    }

    /// Those of an Enhanced Command queue that start at an offset. ERR stands where ERRACK does, and differs from it while there is an error.
    fn enhanced(at: usize) -> Self {
        let (base, prod, cons) = (at + offset::ECMDQ_BASE, at + offset::ECMDQ_PROD, at + offset::ECMDQ_CONS);
        Registers { base, prod, cons, control: AtomicU32::new(EN), error: ERRACK }
    }

    fn is_enhanced(&self) -> bool {
        self.error == ERRACK
    }

    /// Whether there may be an error, by what CONS reads.
    #[inline]
    fn error_in(&self, cons: u32) -> bool {
        (cons ^ self.control.load(Relaxed)) & self.error != 0
    }
}

/// Refused commands that nobody has asked for.
#[derive(Default)]
struct Failures {
    /// Owner and error.
    list: ArrayVec<(u64, CmdqError), MAX_FAILURES>,
    /// Failures of owners below this are no longer remembered: each of them is told that a command failed.
    forgotten: u64,
    /// Where an Enhanced Command queue stands still with a command that is replaced.
    replaced: Option<u64>,
}

/// What a command queue is made with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueOptions {
    /// It has `2^log2` places, at least two.
    pub(crate) log2: u8,
    /// Every wait ends after so long.
    pub(crate) timeout_ns: u64,
    /// One that the SMMU offers.
    pub(crate) completion: Completion,
}

pub(crate) struct CommandQueue<P: Platform> {
    platform: P,
    registers: Registers,
    entries: DmaBox<P>,
    signal: Signal<P>,
    timeout_ns: u64,
    ring: Ring,
    turns: CachePadded<Turns>,
    /// Where the SMMU stood while somebody waited for room in vain: as long as it stands there, nobody else waits.
    stuck: AtomicU64,
    /// Only owners below this can have failed. Changed by the holder of `failures`.
    suspects: AtomicU64,
    /// Whoever sets a stopped queue going, or acknowledges global errors, holds this.
    failures: Mutex<P::RawMutex, Failures>,
}

/// A submission in the making.
pub(crate) struct Submission<'a, P: Platform> {
    queue: &'a CommandQueue<P>,
    mmio: &'a P::Mmio,
    /// What is not yet in the queue.
    commands: ArrayVec<RawCommand, STRETCH>,
    /// There is an ATC_INV among `commands`, and no CMD_SYNC behind it.
    atc_inv: bool,
    /// The position of the first command that is in the queue; `u64::MAX` as long as there is none.
    start: u64,
    /// For all the waiting of this submission together.
    deadline: Option<Deadline>,
    failed: bool,
}

impl<P: Platform> Submission<'_, P> {
    /// Adds a command. Once room did not come in time, nothing is added any more and the submission fails.
    #[inline]
    pub(crate) fn push(&mut self, command: Command) {
        self.push_raw(command.encode());
    }

    /// Adds a command that is encoded already.
    #[inline]
    pub(crate) fn push_raw(&mut self, command: RawCommand) {
        let opcode = command.0[0] as u8;
        // An ATC_INV that is not answered is reported by the next CMD_SYNC, whosever that is (§4.7.3):
        // its own must follow before another's can.
        let sync_to_come = opcode != op::SYNC && (self.atc_inv || opcode == op::ATC_INV);
        if self.commands.len() + 1 + usize::from(sync_to_come) > self.queue.stretch() {
            let _ = self.flush(true);
        }
        // There is room: what was there is in the queue now, or the submission has failed.
        let _ = self.commands.try_push(command);
        self.atc_inv = sync_to_come;
    }

    /// Puts what there is into the queue, if there is room in time, and returns the position behind it. More commands follow if it `is_part` of the
    /// submission.
    #[inline]
    fn flush(&mut self, is_part: bool) -> Option<u64> {
        if self.atc_inv {
            let _ = self.commands.try_push(SYNC);
            self.atc_inv = false;
        }
        let start = if self.failed { None } else { self.queue.put(self, is_part) };
        let end = start.map(|start| start + self.commands.len() as u64);
        self.start = self.start.min(start.unwrap_or(u64::MAX));
        self.failed = start.is_none();
        self.commands.clear();
        end
    }
}

impl<P: Platform> Extend<RawCommand> for Submission<'_, P> {
    #[inline]
    fn extend<T: IntoIterator<Item = RawCommand>>(&mut self, commands: T) {
        commands.into_iter().for_each(|command| self.push_raw(command));
    }
}

impl<P: Platform> CommandQueue<P> {
    /// The SMMU's own queue. `None`: no memory.
    pub(crate) fn new(platform: &P, options: QueueOptions) -> Option<Self> {
        CommandQueue::with(Registers::own(), platform, options)
    }

    /// An Enhanced Command queue whose registers start at offset `at`, and which is off. `None`: no memory.
    pub(crate) fn enhanced(at: usize, platform: &P, options: QueueOptions) -> Option<Self> {
        CommandQueue::with(Registers::enhanced(at), platform, options)
    }

    fn with(registers: Registers, platform: &P, options: QueueOptions) -> Option<Self> {
        let QueueOptions { log2, timeout_ns, completion } = options;
        let size = ENTRY_SIZE << log2;
        Some(CommandQueue {
            platform: platform.clone(),
            registers,
            entries: DmaBox::new(platform, size, size)?,
            signal: Signal::new(platform, completion)?,
            timeout_ns,
            ring: Ring::new(log2)?,
            turns: CachePadded::default(),
            stuck: AtomicU64::new(u64::MAX),
            suspects: AtomicU64::new(0),
            failures: Mutex::new(Failures::default()),
        })
    }

    /// The value of `SMMU_CMDQ_BASE` or `SMMU_ECMDQ_BASE<n>`. PROD and CONS start at 0.
    pub(crate) fn base(&self) -> u64 {
        let log2 = u64::from(self.ring.size().trailing_zeros());
        self.entries.addr().0 & regs::QUEUE_BASE_ADDR | regs::QUEUE_BASE_ALLOC | log2
    }

    /// Enables an Enhanced Command queue, which is off (§3.5.6). False: the SMMU has not confirmed it in time, and may do so later.
    pub(crate) fn enable(&self, mmio: &P::Mmio) -> bool {
        let Registers { base, cons, .. } = self.registers;
        mmio.write64(base, self.base());
        // ERR, which ERRACK must be equal to, and both indexes.
        mmio.write32(cons, 0);
        self.ring_doorbell(mmio, 0);
        Deadline::after(&self.platform, self.timeout_ns).wait(&self.platform, || {
            let raw = mmio.read32(cons);
            raw != GONE && EcmdqCons::new_with_raw_value(raw).enack()
        })
    }

    /// The SMMU may still read the queue: its memory is never given back.
    pub(crate) fn keep_forever(&self) {
        self.entries.keep_forever();
        self.signal.keep_forever();
    }

    /// The SMMU does not read the queue any more. A message that is still on its way finds its memory.
    pub(crate) fn end(&self) {
        self.signal.end(self.ring.announced());
    }

    /// Hands the commands that `fill` pushes to the SMMU, in this order, and a CMD_SYNC behind them. No order is promised between
    /// submissions of different threads. Waits for room if the queue is full.
    #[inline]
    pub(crate) fn submit(
        &self,
        mmio: &P::Mmio,
        fill: impl FnOnce(&mut Submission<'_, P>),
    ) -> Result<Ticket, QueueError> {
        let mut submission = Submission {
            queue: self,
            mmio,
            commands: ArrayVec::new(),
            atc_inv: false,
            start: u64::MAX,
            deadline: None,
            failed: false,
        };
        fill(&mut submission);
        submission.push_raw(SYNC);
        let end = submission.flush(false).ok_or(QueueError::Timeout)?;
        Ok(Ticket { start: submission.start, end })
    }

    /// Waits until the SMMU has consumed all of a submission, which its CMD_SYNC makes mean: carried out.
    #[inline]
    pub(crate) fn wait(&self, mmio: &P::Mmio, ticket: Ticket) -> Result<(), QueueError> {
        let end = ticket.end;
        let done = self.is_consumed(mmio, end, !self.signal.is_message()) || self.wait_long(mmio, end);
        // Where the queue has gone on behind a failure, this is known to be above its owner. litmus: refused
        let failure = if ticket.start < self.suspects.load(Relaxed) { self.take_failure(ticket) } else { None };
        match (done, failure) {
            (_, Some(error)) => Err(QueueError::Refused(error)),
            (false, None) => Err(QueueError::Timeout),
            (true, None) => Ok(()),
        }
    }

    /// Whether everything before `end` is known to be consumed, as CONS says or without a look at it.
    #[inline]
    fn is_consumed(&self, mmio: &P::Mmio, end: u64, look: bool) -> bool {
        let news = self.ring.size() / 8;
        let known = self.ring.consumed() >= end || self.is_told(end, news);
        let done = known || look && self.look(mmio, news, end) >= end;
        if !done {
            self.announce_rest(mmio);
        }
        done
    }

    /// Whether a message says so.
    #[inline]
    fn is_told(&self, end: u64, news: u64) -> bool {
        let Some(told) = self.signal.told(end) else { return false };
        // What the SMMU did before comes before what is done next. litmus: completion-store, completion-load
        self.platform.read_barrier();
        // What cannot be is taken for no progress.
        let possible = self.ring.is_reserved(told, end);
        if possible && told > self.ring.consumed() + news {
            self.ring.consumed_up_to(told);
        }
        possible
    }

    fn wait_long(&self, mmio: &P::Mmio, end: u64) -> bool {
        // A message makes it needless to look at CONS, unless there is an error.
        let look = |turn: u64| !self.signal.is_message() || turn > 0 && turn.is_multiple_of(SOON);
        let pause = |turn| {
            if self.ring.announced() < end {
                // Whoever announces it sends no event.
                self.platform.relax();
            } else {
                self.signal.pause(&self.platform, end, turn < SOON);
            }
        };
        let deadline = Deadline::after(&self.platform, self.timeout_ns);
        pause(0);
        deadline.wait_with(&self.platform, |turn| self.is_consumed(mmio, end, look(turn)), pause)
            || self.is_consumed(mmio, end, true)
    }

    /// Of several refused commands of a submission the first; all are forgotten.
    #[cold]
    fn take_failure(&self, ticket: Ticket) -> Option<CmdqError> {
        let mut failures = self.failures.lock();
        let mut failure = None;
        failures.list.retain(|(owner, error)| {
            let ours = self.owns(ticket, *owner);
            if ours {
                failure.get_or_insert(*error);
            }
            !ours
        });
        if ticket.start < failures.forgotten {
            failure.get_or_insert(CmdqError::Unknown(0));
        }
        failure
    }

    /// Whether a command is of this submission, by its [`owner`](Ring::owner).
    fn owns(&self, Ticket { start, end }: Ticket, owner: u64) -> bool {
        let in_one_stretch = end - start <= self.stretch() as u64;
        if in_one_stretch { (start..end).contains(&owner) } else { owner == start }
    }

    /// Runs `f` while no one else acknowledges global errors. `CMDQ_ERR` is this queue's own to acknowledge.
    pub(crate) fn with_gerror_owned<R>(&self, mmio: &P::Mmio, f: impl FnOnce() -> R) -> R {
        let mut failures = self.failures.lock();
        self.set_going(mmio, &mut failures);
        f()
    }

    /// The most commands that go into the queue together.
    #[inline]
    fn stretch(&self) -> usize {
        STRETCH.min(self.ring.size() as usize)
    }

    /// Puts what there is of a submission into the queue, as soon as there is room, and returns the position of the first command. `None`: there was
    /// no room in time.
    #[inline]
    fn put(&self, submission: &mut Submission<'_, P>, is_part: bool) -> Option<u64> {
        let Submission { mmio, commands, start: owner, deadline, .. } = submission;
        let scattered = is_part || *owner != u64::MAX;
        let mut try_put = || {
            self.platform.without_interrupts(|| {
                let stretch = self.ring.reserve(commands.len() as u64)?;
                if !is_part && let (Some(last), Some(sync)) = (commands.last_mut(), self.signal.sync(stretch.end)) {
                    *last = sync;
                }
                self.write(stretch.start, commands);
                if scattered {
                    self.ring.set_owner(stretch, stretch.start.min(*owner));
                }
                self.ring.announce(stretch, |prod| self.ring_doorbell(mmio, prod));
                Some(stretch.start)
            })
        };
        // Who comes later waits behind those who wait.
        if self.turns.waiting() {
            return self.put_in_turn(mmio, deadline, try_put);
        }
        try_put().or_else(|| self.put_in_turn(mmio, deadline, try_put))
    }

    /// The queue was full: tries again until there is room, in turn with the others who wait.
    #[cold]
    fn put_in_turn(
        &self,
        mmio: &P::Mmio,
        deadline: &mut Option<Deadline>,
        mut try_put: impl FnMut() -> Option<u64>,
    ) -> Option<u64> {
        let stood_at = self.look(mmio, 0, 0);
        let timeout_ns = if self.stuck.load(Relaxed) == stood_at { 0 } else { self.timeout_ns };
        let deadline = deadline.get_or_insert_with(|| Deadline::after(&self.platform, timeout_ns));
        let turn = self.turns.draw();
        let mut passed_over = 0;
        let mut start = None;
        deadline.wait(&self.platform, || {
            // Nobody else is relied on for that.
            self.look(mmio, 0, 0);
            self.announce_rest(mmio);
            if !self.turns.is_up(turn) {
                let room_for_anybody = self.ring.room() >= self.stretch() as u64;
                passed_over = if room_for_anybody { passed_over + 1 } else { 0 };
                if passed_over < PATIENCE {
                    return false;
                }
            }
            start = try_put();
            start.is_some()
        });
        // Who gives up before his turn leaves a gap, which those behind him overtake.
        if start.is_some() || self.turns.is_up(turn) {
            self.turns.pass(turn);
        }
        if start.is_none() && self.ring.consumed() == stood_at {
            self.stuck.store(stood_at, Relaxed);
        }
        start
    }

    /// Writes commands to their places.
    #[inline]
    fn write(&self, start: u64, commands: &[RawCommand]) {
        let entries = self.entries.words();
        for (position, command) in (start..).zip(commands) {
            let at = 2 * self.ring.place(position);
            if let Some(entry) = entries.get(at..at + 2) {
                entry.iter().zip(command.0).for_each(|(word, value)| word.store(value, Relaxed));
            }
        }
        if P::CACHE_MAINTENANCE {
            let all = 2 * self.ring.size() as usize;
            let first = 2 * self.ring.place(start);
            let end = first + 2 * commands.len();
            // Behind the end of the queue it goes on at its beginning.
            for part in [first..end.min(all), 0..end.saturating_sub(all)] {
                if let Some(part) = entries.get(part).filter(|part| !part.is_empty()) {
                    self.platform.clean(part);
                }
            }
        }
    }

    /// Tells the SMMU of everything before a position.
    #[inline]
    fn ring_doorbell(&self, mmio: &P::Mmio, prod: u64) {
        // The commands, of whatever producer, and whatever memory they are about, come before the doorbell.
        // litmus: doorbell, doorbell-data, gathered
        self.platform.write_barrier();
        // Behind the turn that was taken: who rang before has seen no later ERRACK.
        let control = self.registers.control.load(Relaxed);
        mmio.write32(self.registers.prod, self.ring.index(prod) | control);
    }

    /// Announces what others have left to those who wait.
    pub(crate) fn announce_rest(&self, mmio: &P::Mmio) {
        if self.ring.has_rest() {
            self.platform.without_interrupts(|| self.ring.announce_rest(|prod| self.ring_doorbell(mmio, prod)));
        }
    }

    /// Looks how far the SMMU has come, and sets it going again where a command stopped it. Returns a position that it has reached. Others are told if it is more than
    /// `news` beyond what they know: they all read that, so it changes rarely where it need not.
    #[inline]
    pub(crate) fn look(&self, mmio: &P::Mmio, news: u64, reserved: u64) -> u64 {
        // Before CONS: it may be that this thread sleeps now, and the SMMU goes round and round.
        let base = self.ring.consumed();
        let raw = mmio.read32(self.registers.cons);
        if raw == GONE {
            return base;
        }
        let cons = CmdqCons::new_with_raw_value(raw);
        // What the SMMU did before comes before what is done next. litmus: completion-store, completion-load
        self.platform.read_barrier();
        // What cannot be is taken for no progress.
        let Some(position) = self.ring.position(base, cons.rd().value(), reserved) else {
            return base;
        };
        if position > base + news {
            self.ring.consumed_up_to(position);
        }
        self.signal.compare(position);
        // Where nothing is pending, an error is over.
        if self.registers.error_in(raw) && !self.ring.ends_at(position) {
            self.recover(mmio);
        }
        position
    }

    /// Sets the queue going again, if a command has stopped it.
    #[cold]
    pub(crate) fn recover(&self, mmio: &P::Mmio) {
        // The lock is for those who find an error, and not for all who see what an old one has left in CONS.
        if self.registers.is_enhanced() || stopped(mmio).is_some() {
            self.set_going(mmio, &mut self.failures.lock());
        }
    }

    /// Replaces the command that stopped the queue, if one did.
    #[cold]
    fn set_going(&self, mmio: &P::Mmio, failures: &mut Failures) {
        let enhanced = self.registers.is_enhanced();
        let gerrorn = if enhanced { None } else { stopped(mmio) };
        // Only who holds the lock sets the SMMU going, so it stands still from here on. But nothing of one that went away counts.
        let raw = mmio.read32(self.registers.cons);
        let has_stopped = if enhanced { self.registers.error_in(raw) } else { gerrorn.is_some() };
        if raw == GONE || !has_stopped {
            return;
        }
        let cons = CmdqCons::new_with_raw_value(raw);
        // As in `look`: the SMMU has carried out what stands before the command that stopped it.
        self.platform.read_barrier();
        // The base is read behind CONS here, as CONS stands still: who reserved the place where it stands knew that the lap before was consumed,
        // and so it is known here. The position is right, and not one of a lap before.
        let Some(position) = self.ring.position(self.ring.consumed(), cons.rd().value(), 0) else {
            return;
        };
        if self.ring.ends_at(position) {
            return;
        }
        self.ring.consumed_up_to(position);
        if failures.replaced != Some(position) {
            let error = match gerrorn {
                Some(_) => cons.err().into(),
                None => EcmdqCons::new_with_raw_value(raw).err_reason().into(),
            };
            self.replace(position, error, failures);
        }
        // The failure is known, and the command replaced, before the queue goes on. litmus: doorbell, refused
        self.platform.write_barrier();
        match gerrorn {
            Some(gerrorn) => mmio.write32(offset::GERRORN, (gerrorn ^ Gerror::CMDQ_ERR).bits()),
            None => failures.replaced = (!self.acknowledge(mmio, position)).then_some(position),
        }
    }

    /// Puts a CMD_SYNC in the place of a command that was refused, and remembers whose it was.
    fn replace(&self, position: u64, error: CmdqError, failures: &mut Failures) {
        let owner = self.ring.owner(position);
        if failures.list.is_full() {
            let (oldest, _) = failures.list.remove(0);
            failures.forgotten = failures.forgotten.max(oldest + 1);
        }
        failures.list.push((owner, error));
        self.suspects.store(self.suspects.load(Relaxed).max(owner + 1), Relaxed);
        self.write(position, &[SYNC]);
    }

    /// Makes ERRACK of an Enhanced Command queue, which stands still at `position`, equal to ERR. False: others are about to ring the doorbell, and
    /// whoever looks next tries again.
    fn acknowledge(&self, mmio: &P::Mmio, position: u64) -> bool {
        let flip = || {
            self.registers.control.fetch_xor(ERRACK, Relaxed);
        };
        self.platform.without_interrupts(|| {
            if let Some(stretch) = self.ring.reserve(1) {
                // The doorbell for this has the new ERRACK, whoever rings it, or one before it has.
                flip();
                self.write(stretch.start, &[SYNC]);
                self.ring.announce(stretch, |prod| self.ring_doorbell(mmio, prod));
                return true;
            }
            // All that there is room for is announced: it is nobody's turn before the queue goes on.
            let end = position + self.ring.size();
            let full = self.ring.announced() == end;
            if full {
                flip();
                self.ring_doorbell(mmio, end);
            }
            full
        })
    }
}

/// GERRORN, if a command has stopped the queue and nobody has acknowledged it yet.
fn stopped<M: Mmio>(mmio: &M) -> Option<Gerror> {
    let gerror = Gerror::from_bits_retain(mmio.read32(offset::GERROR));
    let gerrorn = Gerror::from_bits_retain(mmio.read32(offset::GERRORN));
    let there = ![gerror.bits(), gerrorn.bits()].contains(&GONE);
    (there && (gerror ^ gerrorn).contains(Gerror::CMDQ_ERR)).then_some(gerrorn)
}

#[cfg(test)]
#[path = "command_test.rs"]
mod tests;

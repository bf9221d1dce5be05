//! The command queue on its own.

use crate::arch::RawCommand;
use crate::platform::{DmaBox, Platform};
use crate::primitive::AtomicU64;
use crate::queue::{CommandQueue, Completion, QueueError, QueueOptions};

/// A command queue without the rest of an SMMU.
pub struct Queue<P: Platform>(CommandQueue<P>);

/// What was submitted, and can be waited for.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Ticket(crate::queue::Ticket);

impl<P: Platform> Queue<P> {
    /// A queue of `2^log2` commands, at least two, whose waits end after `timeout_ns`. `None`: no memory.
    pub fn new(platform: &P, log2: u8, timeout_ns: u64) -> Option<Self> {
        CommandQueue::new(platform, options(log2, timeout_ns)).map(Queue)
    }

    /// An Enhanced Command queue whose registers start at offset `at`.
    pub fn enhanced(at: usize, platform: &P, log2: u8, timeout_ns: u64) -> Option<Self> {
        CommandQueue::enhanced(at, platform, options(log2, timeout_ns)).map(Queue)
    }

    /// Hands commands to the SMMU, and a CMD_SYNC behind them.
    #[inline]
    pub fn submit(&self, mmio: &P::Mmio, commands: impl IntoIterator<Item = RawCommand>) -> Result<Ticket, QueueError> {
        self.0.submit(mmio, |queue| queue.extend(commands)).map(Ticket)
    }

    /// Waits until the SMMU has carried them out.
    #[inline]
    pub fn wait(&self, mmio: &P::Mmio, ticket: Ticket) -> Result<(), QueueError> {
        self.0.wait(mmio, ticket.0)
    }
}

fn options(log2: u8, timeout_ns: u64) -> QueueOptions {
    QueueOptions { log2, timeout_ns, completion: Completion::Register }
}

/// The memory of another queue.
pub struct Entries<P: Platform>(DmaBox<P>);

impl<P: Platform> Entries<P> {
    /// Memory for `2^log2` commands. `None`: there is none.
    pub fn new(platform: &P, log2: u8) -> Option<Self> {
        DmaBox::new(platform, 16 << log2, 16 << log2).map(Entries)
    }

    /// Two words for each command.
    #[inline]
    pub fn words(&self) -> &[AtomicU64] {
        self.0.words()
    }
}

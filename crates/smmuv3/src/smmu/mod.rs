//! One SMMU: probe, reset, its queues and tables, faults.

mod enhanced;
mod faults;
mod fleet;
mod reset;

pub use faults::GlobalErrors;
pub use fleet::RemoveSmmuError;
pub(crate) use fleet::{Fleet, MAX_SMMUS};
pub use reset::Unsupported;

use crate::primitive::{AtomicBool, AtomicUsize};
use allocator_api2::vec::Vec;
use core::fmt;
use lock_api::Mutex;

use crate::arch::{Command, Features, Ste};
#[cfg(doc)]
use crate::platform::Mmio;
use crate::platform::{PhysAddr, Platform};
use crate::queue::{self, CommandQueue, Completion, EventQueue, QueueError, Submission};
use crate::table::{self, StreamTable};
use crate::tags::Tags;

/// The number by which an `Iommu` knows an SMMU: 0 to 63, in the order of adding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SmmuId(pub(crate) u8);

impl SmmuId {
    /// The number.
    pub const fn index(self) -> u8 {
        self.0
    }
}

impl fmt::Debug for SmmuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SMMU {}", self.0)
    }
}

impl fmt::Display for SmmuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SMMU {}", self.0)
    }
}

/// How an SMMU is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SmmuOptions {
    /// log2 of the entries of the command queue (16 bytes each), 1 to 16; capped by what the SMMU has. Default 8.
    pub cmdq_log2: u8,
    /// log2 of the entries of the event queue (32 bytes each), 1 to 16; capped by what the SMMU has. Default 7.
    pub eventq_log2: u8,
    /// Raise the wired interrupts for events and global errors. Default off: the host polls.
    pub interrupts: bool,
    /// Enhanced Command queues that are used at most, where the SMMU has some (§3.5.6) and [`Mmio::size`] reaches them; each has the size of the command
    /// queue. CPUs are spread over them by [`Platform::cpu_hint`]. Where one cannot be enabled, there are fewer, and with none the command
    /// queue serves all, which is no failure. Default 16; 0 uses none.
    pub ecmdqs: u8,
    /// How a CMD_SYNC tells that it has completed. Default [`Completion::Message`], the quickest way; the SMMU may offer only a later one.
    pub completion: Completion,
    /// How long to wait for the SMMU to do anything, in nanoseconds. Default one second.
    pub timeout_ns: u64,
}

impl Default for SmmuOptions {
    fn default() -> Self {
        SmmuOptions {
            cmdq_log2: 8,
            eventq_log2: 7,
            interrupts: false,
            ecmdqs: 16,
            completion: Completion::default(),
            timeout_ns: 1_000_000_000,
        }
    }
}

/// Why an SMMU cannot be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddSmmuError {
    /// The driver can't serve this SMMU.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// An option is out of its range.
    #[error("{name} = {value}: must be 1 to 16")]
    BadOption {
        /// The option.
        name: &'static str,
        /// Its value.
        value: u8,
    },
    /// 64 SMMUs are there already.
    #[error("there are 64 SMMUs already")]
    TooMany,
    /// No memory for queues or tables.
    #[error("out of memory")]
    NoMemory,
    /// The SMMU did not take a register write in time.
    #[error("the SMMU did not acknowledge {register} = {value:#x} in time")]
    NotAcknowledged {
        /// The register.
        register: &'static str,
        /// What was written.
        value: u32,
    },
    /// The first commands failed.
    #[error("the SMMU did not carry out its first commands: {0}")]
    Commands(#[from] QueueError),
}

/// A submission to one of an SMMU's queues.
#[derive(Debug, Clone, Copy)]
#[must_use = "commands have no effect that can be relied on before they were waited for"]
pub(crate) struct Ticket {
    /// The number of the queue; `None` is the SMMU's own.
    queue: Option<u8>,
    ticket: queue::Ticket,
}

/// One SMMU that was reset and translates.
pub(crate) struct Smmu<P: Platform> {
    pub(crate) id: SmmuId,
    pub(crate) features: Features,
    pub(crate) mmio: P::Mmio,
    pub(crate) streams: Mutex<P::RawMutex, StreamTable<P>>,
    pub(crate) asids: Mutex<P::RawMutex, Tags>,
    pub(crate) vmids: Mutex<P::RawMutex, Tags>,
    /// The smallest translation unit of devices with ATS, `4096 << ats_stu` bytes: that of the smallest granule (§3.9.1).
    pub(crate) ats_stu: u8,
    /// Devices behind it, the broken ones among them, and vSMMUs on it.
    pub(crate) users: AtomicUsize,
    /// Its registers are not touched any more. Checked under the lock of the event queue.
    removed: AtomicBool,
    /// The SMMU's own queue.
    commands: CommandQueue<P>,
    /// The queues that are used instead, if there are any.
    enhanced: Vec<CommandQueue<P>>,
    events: Mutex<P::RawMutex, EventQueue<P>>,
    platform: P,
    timeout_ns: u64,
}

impl<P: Platform> Smmu<P> {
    /// Submits the commands that `fill` pushes, and a CMD_SYNC. They have no order with other submissions that were not waited for: those may be in another
    /// queue.
    pub(crate) fn submit(&self, fill: impl FnOnce(&mut Submission<'_, P>)) -> Result<Ticket, QueueError> {
        let queue = self.queue_of_this_cpu();
        Ok(Ticket { queue, ticket: self.queue(queue).submit(&self.mmio, fill)? })
    }

    #[inline]
    fn queue_of_this_cpu(&self) -> Option<u8> {
        // There are at most 255.
        self.platform.cpu_hint().checked_rem(self.enhanced.len()).map(|queue| queue as u8)
    }

    #[inline]
    fn queue(&self, queue: Option<u8>) -> &CommandQueue<P> {
        queue.and_then(|queue| self.enhanced.get(usize::from(queue))).unwrap_or(&self.commands)
    }

    /// Waits for a submission.
    pub(crate) fn wait(&self, ticket: Ticket) -> Result<(), QueueError> {
        self.queue(ticket.queue).wait(&self.mmio, ticket.ticket)
    }

    /// Makes the STE of a stream abort, and waits until the SMMU has seen it. Memory may say so already while the SMMU has not seen it:
    /// it is told in any case.
    pub(crate) fn abort_stream(&self, sid: u32) -> Result<(), QueueError> {
        let streams = self.streams.lock();
        if let Some(words) = streams.ste(sid) {
            // The words first, all of them, even if the SMMU does not answer in between.
            let sync = || self.run([Command::CfgiSte { sid, leaf: true }]);
            let _ = table::write(&self.platform, words, Ste::Abort.encode(), sync);
            let _ = table::write(&self.platform, words, Ste::Abort.encode(), || Ok::<(), ()>(()));
            sync()?;
        }
        Ok(())
    }

    /// Submits commands and a CMD_SYNC, and waits for it.
    pub(crate) fn run(&self, commands: impl IntoIterator<Item = Command>) -> Result<(), QueueError> {
        self.wait(self.submit(|queue| commands.into_iter().for_each(|command| queue.push(command)))?)
    }
}

/// Whether an address has no bits above the SMMU's output size.
pub(crate) fn reachable(features: &Features, addr: PhysAddr, size: u64) -> bool {
    addr.0.checked_add(size - 1).is_some_and(|last| last >> features.used_oas().bits() == 0)
}

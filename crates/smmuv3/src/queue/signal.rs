//! How a CMD_SYNC tells that it has completed (IHI 0070 §4.7.3).

use crate::arch::{Command, Features, RawCommand, SyncSignal};
use crate::platform::{DmaBox, Platform};
use crate::primitive::AtomicBool;
use crate::primitive::Ordering::Relaxed;

/// How a CMD_SYNC tells that it has completed (IHI 0070 §4.7.3), from the quickest way on. What an SMMU does not offer falls to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Completion {
    /// It writes a word of memory, which costs less to look at than a register (`IDR0.MSI`, `COHACC`). A CPU that [`Platform::wait_while`] puts to sleep wakes up when
    /// it is written. Where messages are lost, registers tell.
    #[default]
    Message,
    /// It sends an event to the CPUs, which [`Platform::wait_for_event`] may sleep for (`IDR0.SEV`).
    Event,
    /// Its consumption is seen in a register.
    Register,
}

impl Completion {
    /// This way, or the next that the SMMU offers.
    pub(crate) fn offered(self, features: &Features) -> Self {
        match self {
            Completion::Message if features.msi && features.coherent => Completion::Message,
            Completion::Message | Completion::Event if features.sev => Completion::Event,
            _ => Completion::Register,
        }
    }
}

/// A message is lost for sure where it is more than so many commands behind what was consumed. No submission is as long, and the numbers in messages
/// repeat after many more.
const LOST: i32 = 1 << 24;

/// The same for one queue.
pub(super) enum Signal<P: Platform> {
    None,
    Event,
    Message {
        /// The low half of the first word is the low half of the position behind the last CMD_SYNC that has told of itself: CMD_SYNCs complete in order, and each when the
        /// messages of those before are visible.
        memory: DmaBox<P>,
        /// Messages do not arrive, and mean nothing any more.
        lost: AtomicBool,
    },
}

impl<P: Platform> Signal<P> {
    /// `None`: no memory.
    pub(super) fn new(platform: &P, completion: Completion) -> Option<Self> {
        Some(match completion {
            Completion::Message => {
                Signal::Message { memory: DmaBox::new(platform, 8, 8)?, lost: AtomicBool::new(false) }
            }
            Completion::Event => Signal::Event,
            Completion::Register => Signal::None,
        })
    }

    /// The CMD_SYNC that ends a submission at a position. `None`: one that says nothing.
    #[inline]
    pub(super) fn sync(&self, end: u64) -> Option<RawCommand> {
        let signal = match self {
            Signal::None => return None,
            Signal::Event => SyncSignal::Sev,
            Signal::Message { memory, .. } => SyncSignal::Msi { addr: memory.addr().0, data: end as u32 },
        };
        Some(Command::Sync(signal).encode())
    }

    /// Whether messages tell.
    #[inline]
    pub(super) fn is_message(&self) -> bool {
        matches!(self, Signal::Message { lost, .. } if !lost.load(Relaxed))
    }

    /// What stands in the word that messages are written to.
    #[inline]
    fn message(&self) -> Option<u64> {
        let Signal::Message { memory, lost } = self else { return None };
        if lost.load(Relaxed) { None } else { memory.words().first().map(|word| word.load(Relaxed)) }
    }

    /// The position that the last message tells of, if it is `end` or behind. It is one that the SMMU has passed, or one that it cannot have reached.
    #[inline]
    pub(super) fn told(&self, end: u64) -> Option<u64> {
        let ahead = (self.message()? as u32).wrapping_sub(end as u32);
        (ahead as i32 >= 0).then(|| end + u64::from(ahead))
    }

    /// The SMMU was seen at a position.
    pub(super) fn compare(&self, position: u64) {
        if let (Signal::Message { lost, .. }, Some(message)) = (self, self.message())
            && (position as u32).wrapping_sub(message as u32) as i32 > LOST
        {
            lost.store(true, Relaxed);
        }
    }

    /// One turn of waiting for the CMD_SYNC before `end`, which the SMMU knows of.
    pub(super) fn pause(&self, platform: &P, end: u64, soon: bool) {
        match self {
            Signal::Event => platform.wait_for_event(),
            Signal::Message { memory, .. } if !soon && self.is_message() => {
                // What is there now is not what is waited for.
                if let (Some(word), Some(message)) = (memory.words().first(), self.message())
                    && self.told(end).is_none()
                {
                    platform.wait_while(word, message);
                }
            }
            _ => platform.relax(),
        }
    }

    /// The SMMU may send messages for ever: their memory is never given back.
    pub(super) fn keep_forever(&self) {
        if let Signal::Message { memory, .. } = self {
            memory.keep_forever();
        }
    }

    /// The queue, which ends at a position, is off. If a message may still come, its memory is never given back.
    pub(super) fn end(&self, position: u64) {
        if let Signal::Message { memory, .. } = self
            && memory.words().first().is_none_or(|word| word.load(Relaxed) as u32 != position as u32)
        {
            memory.keep_forever();
        }
    }
}

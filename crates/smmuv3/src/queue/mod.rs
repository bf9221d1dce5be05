//! The queues between CPU and SMMU: commands out, events in (IHI 0070 §3.5).
//!
//! A queue is an array of `2^log2` entries and two indices, PROD and CONS, each with a wrap bit above it: equal indices mean empty
//! if the wrap bits are equal, full if they differ.

mod command;
mod event;
mod ring;
mod signal;

pub use command::QueueError;
pub(crate) use command::{CommandQueue, QueueOptions, Submission, Ticket};
pub(crate) use event::EventQueue;
pub use event::EventsTaken;
pub use signal::Completion;

use crate::platform::Platform;

/// Gives up after a time: every wait in the driver has one.
pub(crate) struct Deadline {
    end_ns: u64,
    /// At least so many looks: the time may pass while this thread is not running.
    looks: u64,
}

impl Deadline {
    pub(crate) fn after<P: Platform>(platform: &P, timeout_ns: u64) -> Self {
        let looks = if timeout_ns == 0 { 1 } else { 16 };
        Deadline { end_ns: platform.now_ns().saturating_add(timeout_ns), looks }
    }

    pub(crate) fn passed<P: Platform>(&self, platform: &P) -> bool {
        platform.now_ns() >= self.end_ns
    }

    /// Waits until `done`; false if the time passed before, and so many looks.
    pub(crate) fn wait<P: Platform>(&self, platform: &P, mut done: impl FnMut() -> bool) -> bool {
        self.wait_with(platform, |_| done(), |_| platform.relax())
    }

    /// The same with another kind of pause. Both are given the number of the turn.
    pub(crate) fn wait_with<P: Platform>(
        &self,
        platform: &P,
        mut done: impl FnMut(u64) -> bool,
        pause: impl Fn(u64),
    ) -> bool {
        let mut turn = 0;
        while !done(turn) {
            turn += 1;
            if turn >= self.looks && self.passed(platform) {
                return false;
            }
            pause(turn);
        }
        true
    }
}

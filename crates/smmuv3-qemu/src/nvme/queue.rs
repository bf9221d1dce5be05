//! A pair of queues in guest RAM: commands go in at the tail of one, completions come out at the head of the other.
//!
//! No registers here: the caller rings the doorbells.

use smmuv3::platform::{Iova, PhysAddr};

use super::{Buffer, PAGE};
use crate::error::QemuError;
use crate::platform::QemuPlatform;

/// Entries in each queue: as many commands of 64 bytes as fit into a page.
pub(super) const DEPTH: u16 = 64;
const COMMAND_SIZE: u64 = 64;
const COMPLETION_SIZE: u64 = 16;

/// A command on its way to the queue.
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub(super) name: &'static str,
    dwords: [u32; 16],
}

impl Command {
    pub(super) fn new(name: &'static str, opcode: u8) -> Command {
        let mut dwords = [0; 16];
        dwords[0] = opcode.into();
        Command { name, dwords }
    }

    /// Sets NSID.
    pub(super) fn namespace(self, nsid: u32) -> Command {
        self.dword(1, nsid)
    }

    /// Sets PRP1 and PRP2.
    pub(super) fn data(self, prp1: u64, prp2: u64) -> Command {
        self.dword(6, prp1 as u32).dword(7, (prp1 >> 32) as u32).dword(8, prp2 as u32).dword(9, (prp2 >> 32) as u32)
    }

    /// Sets one of the 16 double words.
    pub(super) fn dword(mut self, index: usize, value: u32) -> Command {
        self.dwords[index] = value;
        self
    }

    fn to_bytes(&self, id: u16) -> Vec<u8> {
        let mut dwords = self.dwords;
        dwords[0] |= u32::from(id) << 16;
        dwords.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Completion {
    /// Status code type.
    pub(super) sct: u8,
    /// Status code.
    pub(super) sc: u8,
}

/// One queue of commands and the queue of their completions, for one command at a time.
///
/// # Invariants
/// `tail` and `head` are below [`DEPTH`].
#[derive(Debug)]
pub(super) struct QueuePair {
    id: u16,
    submission: Buffer,
    completion: Buffer,
    /// Where the next command goes.
    tail: u16,
    /// Where the next completion will be.
    head: u16,
    /// The phase bit of a completion that is new.
    phase: bool,
    /// The identifier of the command that is, or was last, on its way.
    command_id: u16,
}

impl QueuePair {
    /// Empty queues with the number `id`; both buffers hold at least a page.
    pub(super) fn new(
        platform: &QemuPlatform,
        id: u16,
        submission: Buffer,
        completion: Buffer,
    ) -> Result<QueuePair, QemuError> {
        platform.write_bytes(submission.phys, &[0; PAGE])?;
        platform.write_bytes(completion.phys, &[0; PAGE])?;
        Ok(QueuePair { id, submission, completion, tail: 0, head: 0, phase: true, command_id: 0 })
    }

    pub(super) fn id(&self) -> u16 {
        self.id
    }

    pub(super) fn submission_iova(&self) -> Iova {
        self.submission.iova
    }

    pub(super) fn completion_iova(&self) -> Iova {
        self.completion.iova
    }

    /// Puts `command` into the queue. Returns the new tail, for the doorbell.
    pub(super) fn submit(&mut self, platform: &QemuPlatform, command: &Command) -> Result<u16, QemuError> {
        self.command_id = self.command_id.wrapping_add(1);
        let slot = PhysAddr(self.submission.phys.0 + u64::from(self.tail) * COMMAND_SIZE);
        platform.write_bytes(slot, &command.to_bytes(self.command_id))?;
        self.tail = (self.tail + 1) % DEPTH;
        Ok(self.tail)
    }

    /// The completion of the last command, if it is there, and the new head, for the doorbell.
    pub(super) fn poll(&mut self, platform: &QemuPlatform) -> Result<Option<(Completion, u16)>, QemuError> {
        let slot = PhysAddr(self.completion.phys.0 + u64::from(self.head) * COMPLETION_SIZE);
        // The last word holds the phase bit and everything that is needed: one load sees all of it or nothing.
        let mut word = [0; 8];
        platform.read_bytes(PhysAddr(slot.0 + 8), &mut word)?;
        let word = u64::from_le_bytes(word);
        let (id, status) = ((word >> 32) as u16, (word >> 48) as u16);
        if (status & 1 != 0) != self.phase {
            return Ok(None);
        }
        self.head = (self.head + 1) % DEPTH;
        self.phase ^= self.head == 0;
        if id != self.command_id {
            return Ok(None);
        }
        let completion = Completion { sct: (status >> 9 & 7) as u8, sc: (status >> 1) as u8 };
        Ok(Some((completion, self.head)))
    }
}

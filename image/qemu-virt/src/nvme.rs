//! A small driver for NVMe: a pair of queues for each CPU, a command at a time in each (NVM Express base specification 1.4).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use smmuv3::arch::Prot;
use smmuv3::platform::{Iova, Mmio, Platform};

use crate::cpu;
use crate::dma::Space;
use crate::lock::Mutex;
use crate::memory::{PAGE, leak_pages};
use crate::platform::{Registers, Virt};

// Controller registers (§3.1).
const CAP: usize = 0x00;
const INTMS: usize = 0x0c;
const CC: usize = 0x14;
const CSTS: usize = 0x1c;
const AQA: usize = 0x24;
const ASQ: usize = 0x28;
const ACQ: usize = 0x30;
const DOORBELLS: usize = 0x1000;

/// CC: enabled, NVM command set, 4 KiB pages, submission entries of 2^6 bytes, completion entries of 2^4.
const CC_ENABLE: u32 = 1 | 6 << 16 | 4 << 20;
const CSTS_RDY: u32 = 1 << 0;
const CSTS_CFS: u32 = 1 << 1;

const CREATE_SUBMISSION: u32 = 0x01;
const GET_LOG_PAGE: u32 = 0x02;
const CREATE_COMPLETION: u32 = 0x05;
const WRITE: u32 = 0x01;
const READ: u32 = 0x02;

const NAMESPACE: u32 = 1;
const BLOCK: u64 = 512;
/// Entries in a queue: as many commands of 64 bytes as fit into a page.
const DEPTH: usize = PAGE / 64;
const PATIENCE_NS: u64 = 10_000_000_000;

/// A command as it stands in the queue, but for its identifier.
type Command = [u32; 16];

/// The controller's status for a command that failed: status code in bits 7:0, type in 10:8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u16);

/// A controller with a namespace of blocks of 512 bytes.
pub struct Nvme {
    registers: Registers,
    /// Bytes from one doorbell to the next.
    stride: usize,
    platform: Virt,
    space: Arc<Space>,
    /// Queue 0 is for administration, queue `n + 1` that of CPU `n`.
    queues: Vec<Mutex<Queue>>,
}

/// A pair of queues, and room for a list of pages. All three are mapped for as long as the machine runs.
///
/// # Invariants
/// `tail` and `head` are below [`DEPTH`].
struct Queue {
    number: usize,
    /// 64-bit words: eight to a command.
    submission: Shared,
    /// Two to a completion.
    completion: Shared,
    list: Shared,
    tail: usize,
    head: usize,
    /// The phase bit of a completion that is new.
    phase: bool,
    /// The identifier of the command that is on its way.
    command: u16,
}

/// A page that the device uses at the same time.
struct Shared {
    words: &'static [AtomicU64],
    iova: Iova,
}

impl Shared {
    fn new(space: &Space, prot: Prot) -> Self {
        let page = leak_pages(1);
        let iova = space.map(page, prot);
        let words: NonNull<AtomicU64> = page.cast();
        // SAFETY: a zeroed page that is nobody else's, for ever; the device sees it at any time, hence atomics.
        let words = unsafe { core::slice::from_raw_parts(words.as_ptr(), PAGE / 8) };
        Shared { words, iova }
    }
}

impl Nvme {
    /// The controller behind `registers`, which is attached to the domain of `space`, with a pair of queues for each of `cpus` CPUs.
    pub fn new(registers: Registers, platform: Virt, space: &Arc<Space>, cpus: usize) -> Self {
        let stride = 4 << (registers.read64(CAP) >> 32 & 0xf);
        let queue = |number| {
            Mutex::new(Queue {
                number,
                submission: Shared::new(space, Prot::READ),
                completion: Shared::new(space, Prot::READ | Prot::WRITE),
                list: Shared::new(space, Prot::READ),
                tail: 0,
                head: 0,
                phase: true,
                command: 0,
            })
        };
        let queues = (0..=cpus).map(queue).collect();
        Nvme { registers, stride, platform, space: space.clone(), queues }
    }

    /// Resets the controller, in whatever state it is, and lets it run. No command is on its way.
    pub fn start(&self) {
        self.registers.write32(CC, 0);
        wait("the controller's reset", || (self.registers.read32(CSTS) & CSTS_RDY == 0).then_some(()));
        for queue in &self.queues {
            let mut queue = queue.lock();
            queue.completion.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
            (queue.tail, queue.head, queue.phase) = (0, 0, true);
        }
        let last = DEPTH as u32 - 1;
        let (asq, acq) = self.queues[0].lock().addresses();
        self.platform.write_barrier();
        self.registers.write32(INTMS, u32::MAX);
        self.registers.write32(AQA, last << 16 | last);
        self.registers.write64(ASQ, asq.0);
        self.registers.write64(ACQ, acq.0);
        self.registers.write32(CC, CC_ENABLE);
        wait("the controller's start", || {
            let status = self.registers.read32(CSTS);
            assert!(status & CSTS_CFS == 0, "the controller does not start");
            (status & CSTS_RDY != 0).then_some(())
        });
        for (number, queue) in (0..).zip(&self.queues).skip(1) {
            const CONTIGUOUS: u32 = 1;
            let (submission, completion) = queue.lock().addresses();
            let completion = command(CREATE_COMPLETION, completion, Iova(0), [last << 16 | number, CONTIGUOUS, 0]);
            self.execute(0, completion, 1).expect("a completion queue");
            let submission =
                command(CREATE_SUBMISSION, submission, Iova(0), [last << 16 | number, number << 16 | CONTIGUOUS, 0]);
            self.execute(0, submission, 1).expect("a submission queue");
        }
    }

    /// Reads what stands at `offset` bytes of the disk. `buffer` is whole pages.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) {
        let iova = self.space.map(NonNull::from(&mut *buffer), Prot::READ | Prot::WRITE);
        let result = self.transfer(READ, offset, iova, buffer.len());
        self.space.unmap(iova, buffer.len());
        result.expect("a read");
    }

    /// Writes `buffer`, whole pages, to `offset` bytes of the disk.
    pub fn write(&self, offset: u64, buffer: &[u8]) {
        let iova = self.space.map(NonNull::from(buffer), Prot::READ);
        let result = self.transfer(WRITE, offset, iova, buffer.len());
        self.space.unmap(iova, buffer.len());
        result.expect("a write");
    }

    /// Has the controller write the first four bytes of its health log to an address of the domain, whatever is mapped there.
    pub fn write_log(&self, iova: Iova) -> Result<(), Status> {
        const HEALTH: u32 = 2;
        const ALL_NAMESPACES: u32 = u32::MAX;
        // The length is in words of four bytes, less one: 0.
        let mut command = command(GET_LOG_PAGE, iova, Iova(0), [HEALTH, 0, 0]);
        command[1] = ALL_NAMESPACES;
        self.execute(0, command, 1)
    }

    fn transfer(&self, opcode: u32, offset: u64, iova: Iova, len: usize) -> Result<(), Status> {
        assert!(iova.0.is_multiple_of(PAGE as u64) && len.is_multiple_of(PAGE) && len > 0, "whole pages");
        let block = offset / BLOCK;
        let last = (len as u64 / BLOCK - 1) as u32;
        let blocks = [block as u32, (block >> 32) as u32, last];
        let mut command = command(opcode, iova, Iova(iova.0 + PAGE as u64), blocks);
        command[1] = NAMESPACE;
        self.execute(cpu::index() + 1, command, len / PAGE)
    }

    /// Has the controller do `command`, of which PRP1 and PRP2 are set for `pages` consecutive pages, two at most, and waits for its end.
    fn execute(&self, queue: usize, command: Command, pages: usize) -> Result<(), Status> {
        let doorbell = DOORBELLS + 2 * queue * self.stride;
        let tail = self.queues[queue].lock().submit(command, pages);
        // The command and the data come before the doorbell.
        self.platform.write_barrier();
        self.registers.write32(doorbell, tail as u32);
        let (status, head) = wait("a command", || self.queues[queue].lock().poll());
        // The completion comes before the data that it is about.
        self.platform.read_barrier();
        self.registers.write32(doorbell + self.stride, head as u32);
        if status == Status(0) { Ok(()) } else { Err(status) }
    }
}

impl Queue {
    fn addresses(&self) -> (Iova, Iova) {
        (self.submission.iova, self.completion.iova)
    }

    /// Puts a command into the queue. Returns the new tail.
    fn submit(&mut self, mut command: Command, pages: usize) -> usize {
        self.command = self.command.wrapping_add(1);
        command[0] |= u32::from(self.command) << 16;
        if pages == 1 {
            (command[8], command[9]) = (0, 0);
        } else if pages > 2 {
            // PRP2 is no longer the second page, but where all but the first are listed (§4.3).
            let second = u64::from(command[9]) << 32 | u64::from(command[8]);
            let addresses = (0..pages as u64 - 1).map(|page| second + page * PAGE as u64);
            self.list.words.iter().zip(addresses).for_each(|(word, address)| word.store(address, Ordering::Relaxed));
            (command[8], command[9]) = (self.list.iova.0 as u32, (self.list.iova.0 >> 32) as u32);
        }
        let slot = &self.submission.words[self.tail * 8..][..8];
        for (word, pair) in slot.iter().zip(command.chunks_exact(2)) {
            word.store(u64::from(pair[1]) << 32 | u64::from(pair[0]), Ordering::Relaxed);
        }
        self.tail = (self.tail + 1) % DEPTH;
        self.tail
    }

    /// The end of the last command, if it has come, and the new head.
    fn poll(&mut self) -> Option<(Status, usize)> {
        // The second word holds the phase bit and all that is needed: one load sees all of it or nothing.
        let word = self.completion.words[self.head * 2 + 1].load(Ordering::Relaxed);
        let (id, status) = ((word >> 32) as u16, (word >> 48) as u16);
        if (status & 1 != 0) != self.phase {
            return None;
        }
        assert_eq!(id, self.command, "queue {} completes another command", self.number);
        self.head = (self.head + 1) % DEPTH;
        self.phase ^= self.head == 0;
        Some((Status(status >> 1 & 0x7ff), self.head))
    }
}

fn command(opcode: u32, prp1: Iova, prp2: Iova, dwords_10: [u32; 3]) -> Command {
    let mut command = [0; 16];
    command[0] = opcode;
    (command[6], command[7]) = (prp1.0 as u32, (prp1.0 >> 32) as u32);
    (command[8], command[9]) = (prp2.0 as u32, (prp2.0 >> 32) as u32);
    command[10..13].copy_from_slice(&dwords_10);
    command
}

/// Waits until `look` finds something.
fn wait<R>(what: &str, mut look: impl FnMut() -> Option<R>) -> R {
    let end_ns = cpu::now_ns() + PATIENCE_NS;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(cpu::now_ns() < end_ns, "{what} takes too long");
        cpu::nap();
    }
}

//! The controller's registers, and how commands get through them. Nothing here knows of blocks.

use std::thread;
use std::time::{Duration, Instant};

use super::error::NvmeError;
use super::identify::{self, NvmeInfo};
use super::queue::{Command, DEPTH, QueuePair};
use super::{Buffer, NSID, PAGE};
use crate::pci::Function;
use crate::platform::{QemuMmio, QemuPlatform};

// Controller registers in BAR0.
const CAP: usize = 0x00;
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

/// Mass storage, non-volatile memory, NVM Express.
const CLASS: u32 = 0x01_0802;
/// How long a command, or a change of state, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The registers, and how they are used.
#[derive(Debug)]
pub(super) struct Controller {
    pub(super) platform: QemuPlatform,
    registers: QemuMmio,
    /// Bytes from one doorbell to the next.
    doorbell_stride: usize,
    /// The command whose failure made the queues unusable.
    out_of_use: Option<&'static str>,
}

impl Controller {
    /// Takes `function`, and checks that it is a controller for these queues. Changes nothing.
    pub(super) fn new(platform: &QemuPlatform, function: &Function) -> Result<Controller, NvmeError> {
        let not_nvme =
            |reason| NvmeError::NotNvme { function: function.bdf.to_string(), class: function.class, reason };
        if function.class != CLASS {
            return Err(not_nvme("wrong class"));
        }
        let bar = function.bars[0].ok_or_else(|| not_nvme("no BAR0"))?;
        let registers = platform.registers(bar.addr);
        let cap = registers.try_read64(CAP)?;
        if cap & 0xffff < u64::from(DEPTH - 1) {
            return Err(not_nvme("its queues are too short"));
        }
        if cap >> 48 & 0xf != 0 {
            return Err(not_nvme("it has no pages of 4 KiB"));
        }
        Ok(Controller {
            platform: platform.clone(),
            registers,
            doorbell_stride: 4 << (cap >> 32 & 0xf),
            out_of_use: None,
        })
    }

    /// Resets it. Afterwards it uses no memory.
    pub(super) fn disable(&mut self) -> Result<(), NvmeError> {
        self.registers.try_write32(CC, 0)?;
        let mut pause = Pause::new("its reset");
        while self.registers.try_read32(CSTS)? & CSTS_RDY != 0 {
            pause.turn()?;
        }
        Ok(())
    }

    /// Lets it run, with `admin` as its admin queues.
    pub(super) fn enable(&mut self, admin: &QueuePair) -> Result<(), NvmeError> {
        let last = u32::from(DEPTH - 1);
        self.registers.try_write32(AQA, last << 16 | last)?;
        self.registers.try_write64(ASQ, admin.submission_iova().0)?;
        self.registers.try_write64(ACQ, admin.completion_iova().0)?;
        self.registers.try_write32(CC, CC_ENABLE)?;
        let mut pause = Pause::new("its start");
        loop {
            let status = self.registers.try_read32(CSTS)?;
            if status & CSTS_CFS != 0 {
                return Err(NvmeError::Fatal { during: "its start" });
            }
            if status & CSTS_RDY != 0 {
                return Ok(());
            }
            pause.turn()?;
        }
    }

    /// Asks it for what it is. The answers pass through `scratch`.
    pub(super) fn identify(&mut self, admin: &mut QueuePair, scratch: Buffer) -> Result<NvmeInfo, NvmeError> {
        // CNS tells what is to be identified.
        let command = Command::new("Identify Controller", 0x06).dword(10, 1);
        let controller = self.identify_data(admin, scratch, command)?;
        let command = Command::new("Identify Namespace", 0x06).dword(10, 0).namespace(NSID);
        let namespace = self.identify_data(admin, scratch, command)?;
        Ok(identify::parse(&controller, &namespace))
    }

    fn identify_data(
        &mut self,
        admin: &mut QueuePair,
        scratch: Buffer,
        command: Command,
    ) -> Result<[u8; PAGE], NvmeError> {
        let name = command.name;
        let mut data = [0; PAGE];
        self.platform.write_bytes(scratch.phys, &data)?;
        self.execute(admin, command.data(scratch.iova.0, 0))?;
        self.platform.read_bytes(scratch.phys, &mut data)?;
        // A controller that does not notice a refused transfer, as QEMU's, leaves the zeros.
        if data == [0; PAGE] {
            return Err(NvmeError::NoData { command: name, iova: scratch.iova });
        }
        Ok(data)
    }

    /// Makes `io` known to it.
    pub(super) fn create_io_queues(&mut self, admin: &mut QueuePair, io: &QueuePair) -> Result<(), NvmeError> {
        let id = u32::from(io.id());
        let id_and_size = u32::from(DEPTH - 1) << 16 | id;
        const CONTIGUOUS: u32 = 1;
        let command = Command::new("Create I/O Completion Queue", 0x05)
            .data(io.completion_iova().0, 0)
            .dword(10, id_and_size)
            .dword(11, CONTIGUOUS);
        self.execute(admin, command)?;
        let command = Command::new("Create I/O Submission Queue", 0x01)
            .data(io.submission_iova().0, 0)
            .dword(10, id_and_size)
            .dword(11, id << 16 | CONTIGUOUS);
        self.execute(admin, command)
    }

    /// Has the controller do `command`, and waits for the end.
    pub(super) fn execute(&mut self, queue: &mut QueuePair, command: Command) -> Result<(), NvmeError> {
        if let Some(name) = self.out_of_use {
            return Err(NvmeError::OutOfUse(name));
        }
        let result = self.execute_once(queue, command);
        if let Err(NvmeError::Timeout { during, .. } | NvmeError::Fatal { during }) = result {
            self.out_of_use = Some(during);
        }
        result
    }

    fn execute_once(&mut self, queue: &mut QueuePair, command: Command) -> Result<(), NvmeError> {
        let tail = queue.submit(&self.platform, &command)?;
        let doorbell = DOORBELLS + 2 * usize::from(queue.id()) * self.doorbell_stride;
        self.registers.try_write32(doorbell, tail.into())?;

        let mut pause = Pause::new(command.name);
        let (completion, head) = loop {
            if let Some(found) = queue.poll(&self.platform)? {
                break found;
            }
            // Without its queues the controller can complete nothing.
            if self.registers.try_read32(CSTS)? & CSTS_CFS != 0 {
                return Err(NvmeError::Fatal { during: command.name });
            }
            pause.turn()?;
        };
        self.registers.try_write32(doorbell + self.doorbell_stride, head.into())?;
        match (completion.sct, completion.sc) {
            (0, 0) => Ok(()),
            (sct, sc) => Err(NvmeError::Command { command: command.name, sct, sc }),
        }
    }
}

/// A wait with an end: first with short pauses, then with longer ones.
struct Pause {
    during: &'static str,
    start: Instant,
}

impl Pause {
    fn new(during: &'static str) -> Pause {
        Pause { during, start: Instant::now() }
    }

    fn turn(&mut self) -> Result<(), NvmeError> {
        let waited = self.start.elapsed();
        if waited >= PATIENCE {
            return Err(NvmeError::Timeout { during: self.during, after: PATIENCE });
        }
        if waited < Duration::from_millis(1) {
            thread::yield_now();
        } else {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

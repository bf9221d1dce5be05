//! A small NVMe driver: one I/O queue pair, one command at a time, everything polled.
//!
//! It owns no memory. The caller provides every page that the controller touches, with the address that the
//! controller uses for it (an [`Iova`]) and the one behind it (a [`PhysAddr`]); so it is the caller who decides what
//! the SMMU lets through. Field names are those of the NVM Express base specification 1.4.

mod controller;
mod error;
mod identify;
mod prp;
mod queue;

pub use error::NvmeError;
pub use identify::NvmeInfo;

use smmuv3::platform::{Iova, PhysAddr};

use crate::pci::Function;
use crate::platform::QemuPlatform;
use controller::Controller;
use queue::{Command, QueuePair};

/// The controller's page size in bytes, as set up here: that of every buffer and of each page of a transfer.
const PAGE: usize = 0x1000;

/// The namespace that is used.
const NSID: u32 = 1;

/// Memory for the controller: one page of 4096 bytes, at a multiple of 4096 in both address spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where the controller sees it.
    pub iova: Iova,
    /// Where it is in guest RAM.
    pub phys: PhysAddr,
    /// Bytes, at least 4096.
    pub len: usize,
}

/// The memory that the controller needs for itself, from [`Nvme::start`] until [`Nvme::stop`] succeeded.
///
/// It reads all of them, and writes all but the submission queues.
#[derive(Clone, Copy, Debug)]
pub struct NvmeMemory {
    /// Commands that manage the controller.
    pub admin_submission: Buffer,
    /// Their completions.
    pub admin_completion: Buffer,
    /// Reads, writes and flushes.
    pub io_submission: Buffer,
    /// Their completions.
    pub io_completion: Buffer,
    /// Identify data at the start (written), then the PRP lists of long transfers (read).
    pub scratch: Buffer,
}

/// A running NVMe controller with one I/O queue pair.
#[derive(Debug)]
pub struct Nvme {
    controller: Controller,
    io: QueuePair,
    scratch: Buffer,
    info: NvmeInfo,
    stream_id: u32,
}

impl Nvme {
    /// Resets the controller `function`, identifies it and its first namespace, and creates the I/O queues.
    ///
    /// # Errors
    /// [`NvmeError::NotNvme`] and [`NvmeError::Memory`] before anything was touched. After any other error the
    /// controller may still use `memory`, until the next `start` has reset it, or the machine ends.
    pub fn start(platform: &QemuPlatform, function: &Function, memory: NvmeMemory) -> Result<Nvme, NvmeError> {
        let NvmeMemory { admin_submission, admin_completion, io_submission, io_completion, scratch } = memory;
        check_buffer("the admin submission queue", admin_submission)?;
        check_buffer("the admin completion queue", admin_completion)?;
        check_buffer("the I/O submission queue", io_submission)?;
        check_buffer("the I/O completion queue", io_completion)?;
        check_buffer("the scratch page", scratch)?;

        let mut controller = Controller::new(platform, function)?;
        controller.disable()?;
        let mut admin = QueuePair::new(platform, 0, admin_submission, admin_completion)?;
        controller.enable(&admin)?;
        let info = controller.identify(&mut admin, scratch)?;
        let io = QueuePair::new(platform, 1, io_submission, io_completion)?;
        controller.create_io_queues(&mut admin, &io)?;
        Ok(Nvme { controller, io, scratch, info, stream_id: function.stream_id() })
    }

    /// What the controller says of itself.
    pub fn info(&self) -> &NvmeInfo {
        &self.info
    }

    /// The StreamID of its DMA at the SMMU.
    pub fn stream_id(&self) -> u32 {
        self.stream_id
    }

    /// Reads `blocks` blocks from block `lba` on into `pages`, each the address of 4096 bytes.
    ///
    /// `Ok` does not prove that the data arrived: QEMU 10.0 does not notice when the SMMU refuses to let data pass
    /// (of a refused queue or PRP list it does). The caller looks at the data, or at the SMMU's events.
    ///
    /// # Errors
    /// - [`NvmeError::Length`] and [`NvmeError::Pages`]: nothing was asked of the controller;
    /// - [`NvmeError::Command`]: the controller refused the command, or could not complete it; part of the data may
    ///   have been moved;
    /// - [`NvmeError::Timeout`] and [`NvmeError::Fatal`]: the controller may still use all pages, until it was stopped
    ///   or started anew;
    /// - [`NvmeError::OutOfUse`] after one of these two.
    pub fn read(&mut self, lba: u64, blocks: u32, pages: &[Iova]) -> Result<(), NvmeError> {
        self.transfer(Command::new("Read", 0x02), lba, blocks, pages)
    }

    /// Writes `blocks` blocks from block `lba` on from `pages`, each the address of 4096 bytes.
    ///
    /// `Ok` does not prove that the data came from `pages`: where the SMMU refused, QEMU 10.0 writes zeros.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&mut self, lba: u64, blocks: u32, pages: &[Iova]) -> Result<(), NvmeError> {
        self.transfer(Command::new("Write", 0x01), lba, blocks, pages)
    }

    /// Makes everything written so far outlast a loss of power.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn flush(&mut self) -> Result<(), NvmeError> {
        let command = Command::new("Flush", 0x00).namespace(NSID);
        self.controller.execute(&mut self.io, command)
    }

    /// Stops the controller. Afterwards it uses no memory.
    ///
    /// # Errors
    /// [`NvmeError::Timeout`] and [`NvmeError::Qemu`]: it may still use its memory.
    pub fn stop(mut self) -> Result<(), NvmeError> {
        self.controller.disable()
    }

    fn transfer(&mut self, command: Command, lba: u64, blocks: u32, pages: &[Iova]) -> Result<(), NvmeError> {
        // At most 2^32 blocks of at most 2^31 bytes.
        let bytes = u64::from(blocks) * self.info.block_size as u64;
        let limit = self.info.max_transfer.min(0x1_0000 * self.info.block_size);
        if bytes == 0 || bytes > limit as u64 {
            return Err(NvmeError::Length { bytes, limit });
        }
        let needed = (bytes as usize).div_ceil(PAGE);
        let misaligned = pages.iter().copied().find(|page| !page.0.is_multiple_of(PAGE as u64));
        if pages.len() != needed || misaligned.is_some() {
            return Err(NvmeError::Pages { bytes, needed, given: pages.len(), misaligned });
        }
        let prps = prp::encode(pages, self.scratch.iova);
        self.controller.platform.write_bytes(self.scratch.phys, &prps.list)?;
        let command = command
            .namespace(NSID)
            .data(prps.prp1, prps.prp2)
            .dword(10, lba as u32)
            .dword(11, (lba >> 32) as u32)
            .dword(12, blocks - 1);
        self.controller.execute(&mut self.io, command)
    }
}

fn check_buffer(name: &'static str, buffer: Buffer) -> Result<(), NvmeError> {
    let Buffer { iova, phys, len } = buffer;
    let aligned = (iova.0 | phys.0).is_multiple_of(PAGE as u64);
    if aligned && len >= PAGE {
        return Ok(());
    }
    Err(NvmeError::Memory { buffer: name, len, iova, phys })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_aligned_pages_are_taken_as_buffers() {
        let good = Buffer { iova: Iova(0x1000), phys: PhysAddr(0x2000), len: 0x1000 };
        check_buffer("the queue", good).unwrap();
        for bad in [
            Buffer { len: 0xfff, ..good },
            Buffer { iova: Iova(0x1008), ..good },
            Buffer { phys: PhysAddr(0x2800), ..good },
        ] {
            assert!(check_buffer("the queue", bad).is_err(), "{bad:?}");
        }
    }
}

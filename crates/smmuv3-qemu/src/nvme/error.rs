//! What can go wrong with an NVMe controller.

use std::time::Duration;

use smmuv3::platform::{Iova, PhysAddr};
use thiserror::Error;

use crate::error::QemuError;

/// Why the controller did not do what it was told.
#[derive(Clone, Debug, Error)]
pub enum NvmeError {
    /// The registers or the memory could not be reached.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// The function is something else.
    #[error("{function} is no NVMe controller (class {class:#08x}) that this driver can use: {reason}")]
    NotNvme {
        /// The function.
        function: String,
        /// Its class.
        class: u32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A buffer is too small or misaligned.
    #[error("{buffer} needs 0x1000 bytes at multiples of 0x1000, not {len:#x} at iova {iova}, phys {phys}")]
    Memory {
        /// What it was meant for.
        buffer: &'static str,
        /// Its size in bytes.
        len: usize,
        /// Its address for the controller.
        iova: Iova,
        /// Its address in guest RAM.
        phys: PhysAddr,
    },
    /// The controller completed a command with an error. `sct` 0, `sc` 4 is a Data Transfer Error: the controller
    /// noticed that it could not reach the data or the PRP list.
    #[error("{command} ended with status code type {sct:#x}, status code {sc:#04x}")]
    Command {
        /// The name of the command.
        command: &'static str,
        /// Status code type.
        sct: u8,
        /// Status code.
        sc: u8,
    },
    /// The controller completed a command that asks for data, but the data did not come.
    #[error("{command} ended well, but its data did not arrive at iova {iova}")]
    NoData {
        /// The name of the command.
        command: &'static str,
        /// Where the data was to go.
        iova: Iova,
    },
    /// The controller stopped with a fatal status (`CSTS.CFS`): it could not reach its queues.
    #[error("the controller stopped with a fatal status during {during}")]
    Fatal {
        /// What was being done.
        during: &'static str,
    },
    /// The controller took too long.
    #[error("the controller did not finish {during} within {after:?}")]
    Timeout {
        /// What was being done.
        during: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// An earlier command failed in a way that leaves the queues unusable: stop the controller and start it again.
    #[error("the controller is out of use since an earlier {0:?} failed")]
    OutOfUse(&'static str),
    /// A transfer of no block, or longer than the controller takes.
    #[error("{bytes:#x} bytes in one transfer; there must be some, and at most {limit:#x}")]
    Length {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes possible.
        limit: usize,
    },
    /// A transfer with the wrong number of pages, or a page that does not start at a multiple of 4096.
    #[error(
        "{bytes:#x} bytes need {needed} pages at multiples of 0x1000; there are {given}, misaligned: {misaligned:?}"
    )]
    Pages {
        /// Bytes to transfer.
        bytes: u64,
        /// Pages needed.
        needed: usize,
        /// Pages given.
        given: usize,
        /// The first misaligned page.
        misaligned: Option<Iova>,
    },
}

//! What can go wrong with QEMU itself. Every error prints as one line.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use smmuv3::platform::PhysAddr;
use thiserror::Error;

use crate::find::Version;
use crate::pci::Bdf;

/// Why QEMU could not be found, started, talked to or used.
#[derive(Clone, Debug, Error)]
pub enum QemuError {
    /// There is no QEMU on this machine.
    #[error(
        "no `qemu-system-aarch64` on PATH: install QEMU 9.2 or newer \
         (on Debian 12: qemu-system-arm from bookworm-backports), or name the program in SMMUV3_QEMU"
    )]
    NotFound,
    /// There is one, but it has no nested SMMUv3.
    #[error(
        "{} is QEMU {found}, which is too old: install QEMU 9.2 or newer \
         (on Debian 12: qemu-system-arm from bookworm-backports)",
        path.display()
    )]
    TooOld {
        /// The program.
        path: PathBuf,
        /// Its version.
        found: Version,
    },
    /// The program does not behave like a QEMU.
    #[error("cannot use {} as QEMU: {reason}", path.display())]
    Unusable {
        /// The program.
        path: PathBuf,
        /// What it did.
        reason: String,
    },
    /// A [`MachineConfig`](crate::MachineConfig) that no machine can be made of.
    #[error("bad machine configuration: {0}")]
    Config(String),
    /// A file, process or socket operation of this host failed.
    #[error("cannot {what}: {error}")]
    Io {
        /// The operation.
        what: String,
        /// The host's answer.
        error: Arc<io::Error>,
    },
    /// QEMU did not connect to its socket in time.
    #[error("QEMU did not connect to its qtest socket within {0:?}")]
    NoConnection(Duration),
    /// QEMU ended.
    #[error("QEMU ended ({status}) and said: {stderr}")]
    Exited {
        /// How.
        status: ExitStatus,
        /// The end of what it printed on standard error.
        stderr: String,
    },
    /// QEMU closed the qtest socket, or it broke.
    #[error("QEMU closed the qtest socket at `{request}`")]
    Closed {
        /// The request that found it closed.
        request: String,
    },
    /// QEMU let a request wait too long.
    #[error("QEMU did not answer `{request}` within {after:?}")]
    NoAnswer {
        /// The request.
        request: String,
        /// How long it waited.
        after: Duration,
    },
    /// QEMU answered that it cannot do that.
    #[error("QEMU refused `{request}`: {answer}")]
    Refused {
        /// The request.
        request: String,
        /// The answer.
        answer: String,
    },
    /// QEMU's answer makes no sense, so nothing after it on the socket can be trusted.
    #[error("QEMU answered `{request}` with `{answer}`")]
    Malformed {
        /// The request.
        request: String,
        /// The answer.
        answer: String,
    },
    /// A CPU access outside guest RAM.
    #[error("{len:#x} bytes at {addr} are not in guest RAM ({base} + {size:#x})")]
    OutsideRam {
        /// Where it was to start.
        addr: PhysAddr,
        /// How many bytes it was to move.
        len: usize,
        /// Where guest RAM starts.
        base: PhysAddr,
        /// The size of guest RAM in bytes.
        size: u64,
    },
    /// A `dma_free` of memory that was not allocated.
    #[error("dma_free of {size:#x} bytes at {addr}, which were not allocated")]
    BadFree {
        /// The address that was to be freed.
        addr: PhysAddr,
        /// The size in bytes that was given.
        size: usize,
    },
    /// A BAR found no place.
    #[error("BAR{bar} of {bdf} needs {size:#x} bytes, more than the PCI memory window has left")]
    NoBarSpace {
        /// The PCI function.
        bdf: Bdf,
        /// Which BAR.
        bar: usize,
        /// Its size in bytes.
        size: u64,
    },
    /// No bus number is left for the bus behind a bridge.
    #[error("no bus number is left for the bus behind bridge {0}")]
    NoBusNumber(Bdf),
    /// What is behind a bridge found no place.
    #[error("the PCI memory window has nothing left for what is behind bridge {0}")]
    NoBridgeSpace(Bdf),
    /// The machine has no such device.
    #[error("the machine has no {0}")]
    NoDevice(String),
}

impl QemuError {
    /// The error of an operation on this host; `what` completes "cannot".
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> QemuError {
        let what = what.into();
        move |error| QemuError::Io { what, error: Arc::new(error) }
    }

    /// Whether this machine simply has no QEMU that would do, so that a test may be left out.
    pub fn is_missing(&self) -> bool {
        matches!(self, QemuError::NotFound | QemuError::TooOld { .. })
    }
}

//! QEMU's teaching device `edu`: a buffer of 4 KiB and a DMA engine that fills and empties it.
//!
//! The engine moves the data at the *end* of about 100 ms of the machine's virtual time. So a transfer can be
//! started, its page unmapped, and then watched: whether it still reaches the page.

use std::thread;
use std::time::{Duration, Instant};

use smmuv3::platform::Iova;
use thiserror::Error;

use crate::error::QemuError;
use crate::pci::Function;
use crate::platform::{QemuMmio, QemuPlatform};

// Registers in BAR0, from QEMU's docs/specs/edu.rst.
const IDENTIFICATION: usize = 0x00;
const LIVENESS: usize = 0x04;
const DMA_SOURCE: usize = 0x80;
const DMA_DESTINATION: usize = 0x88;
const DMA_COUNT: usize = 0x90;
const DMA_COMMAND: usize = 0x98;

// DMA_COMMAND bits.
const START: u64 = 1 << 0;
const FROM_DEVICE: u64 = 1 << 1;

/// Where the engine sees the device's own buffer.
const BUFFER: u64 = 0x4_0000;
/// How long a transfer may take: a hundred times what it should.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why an edu did not do what it was told.
#[derive(Clone, Debug, Error)]
pub enum EduError {
    /// The registers could not be reached.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// The function is something else.
    #[error("{function} is no edu: {register} reads {value:#x}")]
    NotEdu {
        /// The function.
        function: String,
        /// The register that told.
        register: &'static str,
        /// What was in it.
        value: u32,
    },
    /// The transfer does not fit into the device's buffer.
    #[error("{len:#x} bytes at offset {offset:#x} do not fit into edu's buffer of 0x1000 bytes, or are none")]
    Range {
        /// Bytes.
        len: usize,
        /// Where in the buffer.
        offset: usize,
    },
    /// Another transfer is running; the device would ignore a new one.
    #[error("edu is still busy with another transfer")]
    Busy,
    /// The transfer did not end in time. The machine's virtual clock may be standing still.
    #[error("edu's transfer did not end within {0:?}")]
    Timeout(Duration),
}

/// One edu device.
#[derive(Debug)]
pub struct Edu {
    registers: QemuMmio,
    stream_id: u32,
    smmu: u8,
}

impl Edu {
    /// The size of the device's buffer in bytes, and so of the longest transfer.
    pub const BUFFER_SIZE: usize = 0x1000;

    /// Takes `function`, and checks that it is an edu and alive.
    ///
    /// # Errors
    /// [`EduError::NotEdu`] and [`EduError::Qemu`].
    pub fn new(platform: &QemuPlatform, function: &Function) -> Result<Edu, EduError> {
        let not_edu = |register, value| EduError::NotEdu { function: function.bdf.to_string(), register, value };
        let bar = function.bars[0].ok_or_else(|| not_edu("BAR0", 0))?;
        let registers = platform.registers(bar.addr);
        let id = registers.try_read32(IDENTIFICATION)?;
        // The upper half is the version of the device.
        if id & 0xffff != 0x00ed {
            return Err(not_edu("the identification register", id));
        }
        let probe = 0x1234_5678;
        registers.try_write32(LIVENESS, probe)?;
        let answer = registers.try_read32(LIVENESS)?;
        if answer != !probe {
            return Err(not_edu("the liveness register", answer));
        }
        Ok(Edu { registers, stream_id: function.stream_id(), smmu: function.smmu })
    }

    /// The StreamID of its DMA at its SMMU.
    pub fn stream_id(&self) -> u32 {
        self.stream_id
    }

    /// The SMMU that its DMA goes through: the number for [`Machine::smmu_at`](crate::Machine::smmu_at).
    pub fn smmu(&self) -> u8 {
        self.smmu
    }

    /// Copies `len` bytes at `iova` into the device's buffer at `offset`, and waits for the end.
    ///
    /// A transfer that the SMMU refuses is no error: the device does not notice, and its buffer holds whatever it
    /// likes (zeros, in QEMU 10.0). The caller looks at the data, or at the SMMU's events.
    ///
    /// # Errors
    /// As [`start_copy_in`](Self::start_copy_in) and [`wait`](Self::wait).
    pub fn copy_in(&mut self, iova: Iova, len: usize, offset: usize) -> Result<(), EduError> {
        self.start_copy_in(iova, len, offset)?;
        self.wait()
    }

    /// Copies `len` bytes of the device's buffer at `offset` to `iova`, and waits for the end.
    ///
    /// A transfer that the SMMU refuses is no error: the device does not notice. The caller looks at the data, or at
    /// the SMMU's events.
    ///
    /// # Errors
    /// As [`start_copy_out`](Self::start_copy_out) and [`wait`](Self::wait).
    pub fn copy_out(&mut self, iova: Iova, len: usize, offset: usize) -> Result<(), EduError> {
        self.start_copy_out(iova, len, offset)?;
        self.wait()
    }

    /// Starts what [`copy_in`](Self::copy_in) does. The data moves about 100 ms later.
    ///
    /// # Errors
    /// [`EduError::Range`], [`EduError::Busy`] and [`EduError::Qemu`].
    pub fn start_copy_in(&mut self, iova: Iova, len: usize, offset: usize) -> Result<(), EduError> {
        let buffer = buffer_address(len, offset)?;
        self.start(iova.0, buffer, len, 0)
    }

    /// Starts what [`copy_out`](Self::copy_out) does. The data moves about 100 ms later.
    ///
    /// # Errors
    /// [`EduError::Range`], [`EduError::Busy`] and [`EduError::Qemu`].
    pub fn start_copy_out(&mut self, iova: Iova, len: usize, offset: usize) -> Result<(), EduError> {
        let buffer = buffer_address(len, offset)?;
        self.start(buffer, iova.0, len, FROM_DEVICE)
    }

    /// Waits until no transfer is running.
    ///
    /// # Errors
    /// [`EduError::Timeout`] after 10 s, and [`EduError::Qemu`].
    pub fn wait(&mut self) -> Result<(), EduError> {
        let deadline = Instant::now() + PATIENCE;
        while self.is_busy()? {
            if Instant::now() >= deadline {
                return Err(EduError::Timeout(PATIENCE));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn start(&mut self, source: u64, destination: u64, len: usize, direction: u64) -> Result<(), EduError> {
        if self.is_busy()? {
            return Err(EduError::Busy);
        }
        self.registers.try_write64(DMA_SOURCE, source)?;
        self.registers.try_write64(DMA_DESTINATION, destination)?;
        self.registers.try_write64(DMA_COUNT, len as u64)?;
        self.registers.try_write64(DMA_COMMAND, START | direction)?;
        Ok(())
    }

    fn is_busy(&self) -> Result<bool, EduError> {
        Ok(self.registers.try_read64(DMA_COMMAND)? & START != 0)
    }
}

/// The engine's address of `offset`. QEMU aborts at a transfer beyond the buffer, so none may get through.
fn buffer_address(len: usize, offset: usize) -> Result<u64, EduError> {
    let end = offset.checked_add(len);
    if len == 0 || end.is_none_or(|end| end > Edu::BUFFER_SIZE) {
        return Err(EduError::Range { len, offset });
    }
    Ok(BUFFER + offset as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_transfers_inside_the_buffer_are_started() {
        assert_eq!(buffer_address(0x1000, 0).unwrap(), 0x4_0000);
        assert_eq!(buffer_address(1, 0xfff).unwrap(), 0x4_0fff);
        for (len, offset) in [(0, 0), (0x1001, 0), (1, 0x1000), (2, 0xfff), (usize::MAX, 1)] {
            assert!(matches!(buffer_address(len, offset), Err(EduError::Range { .. })));
        }
    }
}

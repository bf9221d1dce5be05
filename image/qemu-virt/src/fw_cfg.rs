//! QEMU's firmware configuration device: files that QEMU has for the firmware, such as the ACPI tables.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use smmuv3::platform::{Mmio, Platform};

use crate::platform::{Registers, Virt};

/// The register that takes the address of a [`Request`], with its bytes swapped.
const DMA: usize = 16;
/// The file that lists the others.
const DIRECTORY: u16 = 0x19;

const ERROR: u32 = 1 << 0;
const READ: u32 = 1 << 1;
const SELECT: u32 = 1 << 3;

/// What the device is to do; big-endian. It is behind no SMMU: the addresses are physical.
#[repr(C, align(16))]
struct Request {
    control: u32,
    length: u32,
    address: u64,
}

/// The device.
pub struct FwCfg {
    /// Its registers.
    pub registers: Registers,
    /// The host.
    pub platform: Virt,
}

impl FwCfg {
    /// The contents of a file, if it is there.
    pub fn file(&self, name: &str) -> Option<Vec<u8>> {
        const COUNT: usize = 4;
        const ENTRY: usize = 64;
        let be32 = |bytes: &[u8]| bytes.iter().fold(0, |number, &byte| number << 8 | usize::from(byte));
        let count = be32(&self.read(DIRECTORY, COUNT));
        let directory = self.read(DIRECTORY, COUNT + count * ENTRY);
        // Size, selector, two reserved bytes, and the name, filled up with zeros.
        let entry = directory[COUNT..].chunks_exact(ENTRY).find(|entry| {
            let end = entry[8..].iter().position(|&byte| byte == 0).unwrap_or(ENTRY - 8);
            &entry[8..8 + end] == name.as_bytes()
        })?;
        Some(self.read(be32(&entry[4..6]) as u16, be32(&entry[..4])))
    }

    /// ACPI's table with this signature.
    ///
    /// QEMU leaves it to the firmware to lay the tables out, to fill in pointers from one to another, and to sum each up. Of that, a table without pointers, such as
    /// the IORT, takes the sum alone.
    pub fn acpi_table(&self, signature: &[u8; 4]) -> Option<Vec<u8>> {
        const LENGTH: Range<usize> = 4..8;
        const CHECKSUM: usize = 9;
        let tables = self.file("etc/acpi/tables")?;
        let mut rest = &tables[..];
        // Each begins with its signature and its length; behind the last there are zeros.
        while let Some(&[a, b, c, d]) = rest.get(LENGTH) {
            let length = u32::from_le_bytes([a, b, c, d]) as usize;
            let (table, others) = rest.split_at_checked(length).filter(|_| length > CHECKSUM)?;
            if table.starts_with(signature) {
                let mut table = table.to_vec();
                table[CHECKSUM] = 0;
                table[CHECKSUM] = table.iter().fold(0u8, |sum, &byte| sum.wrapping_sub(byte));
                return Some(table);
            }
            rest = others;
        }
        None
    }

    fn read(&self, selector: u16, length: usize) -> Vec<u8> {
        let mut bytes = vec![0u8; length];
        let control = u32::from(selector) << 16 | SELECT | READ;
        let address = bytes.as_mut_ptr().expose_provenance() as u64;
        let mut request =
            Request { control: control.to_be(), length: (length as u32).to_be(), address: address.to_be() };
        let request = &raw mut request;
        self.platform.write_barrier();
        self.registers.write64(DMA, (request.expose_provenance() as u64).to_be());
        loop {
            // `control` comes first.
            // SAFETY: the request is alive; the device writes to it at any time.
            let control = u32::from_be(unsafe { request.cast::<u32>().read_volatile() });
            assert!(control & ERROR == 0, "the firmware configuration device has no item {selector:#x}");
            if control == 0 {
                break;
            }
        }
        self.platform.read_barrier();
        bytes
    }
}

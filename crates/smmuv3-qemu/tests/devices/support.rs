//! What the tests share.

use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use smmuv3::platform::{Iova, PhysAddr, Platform};
use smmuv3_qemu::{Buffer, Machine, MachineConfig, Nvme, NvmeMemory, Qemu, QemuError, QemuPlatform};

pub(crate) use crate::harness::TestResult;

/// Bytes.
pub(crate) const PAGE: usize = 0x1000;

/// A machine with two edu and an NVMe.
pub(crate) fn start(qemu: &Qemu) -> Result<Machine, QemuError> {
    Machine::start(qemu, MachineConfig::default())
}

/// `count` pages of DMA memory, scattered: no two neighbours in the list are neighbours in memory.
pub(crate) fn pages(platform: &QemuPlatform, count: usize) -> Result<Vec<PhysAddr>, Failed> {
    (0..2 * count).map(|_| platform.dma_alloc(PAGE, PAGE).ok_or("no DMA memory".into())).step_by(2).collect()
}

/// The address under which a device sees `page` while the SMMU is disabled.
pub(crate) fn bypass(page: PhysAddr) -> Iova {
    Iova(page.0)
}

/// `len` bytes that differ from one another, from one `seed` to another, and from zeros.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The `len` bytes of guest RAM at `addr`.
pub(crate) fn read(platform: &QemuPlatform, addr: PhysAddr, len: usize) -> Result<Vec<u8>, QemuError> {
    let mut bytes = vec![0; len];
    platform.read_bytes(addr, &mut bytes)?;
    Ok(bytes)
}

/// Whether the disabled SMMU lets everything pass, or nothing.
pub(crate) fn set_abort(machine: &Machine, abort: bool) -> TestResult {
    const GBPA: usize = 0x44;
    const UPDATE: u32 = 1 << 31;
    const ABORT: u32 = 1 << 20;
    let smmu = machine.smmu();
    let value = smmu.try_read32(GBPA)? & !ABORT;
    smmu.try_write32(GBPA, value | UPDATE | if abort { ABORT } else { 0 })?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while smmu.try_read32(GBPA)? & UPDATE != 0 {
        if Instant::now() >= deadline {
            return Err("GBPA.Update does not end".into());
        }
    }
    Ok(())
}

/// Memory for an NVMe controller that sees physical address `p` at `iova(p)`.
pub(crate) fn nvme_memory(platform: &QemuPlatform, iova: impl Fn(PhysAddr) -> Iova) -> Result<NvmeMemory, Failed> {
    let pages = pages(platform, 5)?;
    let buffer = |index: usize| Buffer { iova: iova(pages[index]), phys: pages[index], len: PAGE };
    Ok(NvmeMemory {
        admin_submission: buffer(0),
        admin_completion: buffer(1),
        io_submission: buffer(2),
        io_completion: buffer(3),
        scratch: buffer(4),
    })
}

/// The machine's NVMe controller, while the SMMU is disabled.
pub(crate) fn start_nvme(machine: &Machine) -> Result<Nvme, Failed> {
    let memory = nvme_memory(machine.platform(), bypass)?;
    Ok(Nvme::start(machine.platform(), machine.nvme()?, memory)?)
}

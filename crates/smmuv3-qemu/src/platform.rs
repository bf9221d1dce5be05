//! QEMU as a host for the driver: its `Platform` and its `Mmio`.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicUsize, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Instant;

use smmuv3::platform::{DmaWindow, Mmio, PhysAddr, Platform};
use spin::RelaxStrategy;
use spin::mutex::SpinMutex;

use crate::error::QemuError;
use crate::pages::Pages;
use crate::qtest::Qtest;
use crate::ram::Ram;

/// A handle to a running QEMU. All clones are the same platform, and stay usable, if useless, after QEMU's end.
#[derive(Clone)]
pub struct QemuPlatform {
    shared: Arc<Shared>,
}

struct Shared {
    qtest: Qtest,
    ram: Ram,
    pages: Mutex<Pages>,
    /// The first wrong `dma_free`.
    bad_free: OnceLock<QemuError>,
    start: Instant,
}

impl QemuPlatform {
    /// `ram` from `pool` to its end is what [`Platform::dma_alloc`] gives out.
    pub(crate) fn new(qtest: Qtest, ram: Ram, pool: PhysAddr) -> QemuPlatform {
        let end = ram.window().base().0 + ram.window().size();
        QemuPlatform {
            shared: Arc::new(Shared {
                qtest,
                ram,
                pages: Mutex::new(Pages::new(pool.0, end)),
                bad_free: OnceLock::new(),
                start: Instant::now(),
            }),
        }
    }

    /// The connection to QEMU.
    pub fn qtest(&self) -> &Qtest {
        &self.shared.qtest
    }

    /// The registers of a device, from the guest physical address `base` on.
    pub fn registers(&self, base: u64) -> QemuMmio {
        QemuMmio { platform: self.clone(), base }
    }

    /// Copies the bytes of guest RAM at `addr` into `out`, after everything that this thread did before.
    ///
    /// # Errors
    /// [`QemuError::OutsideRam`]: nothing was copied.
    pub fn read_bytes(&self, addr: PhysAddr, out: &mut [u8]) -> Result<(), QemuError> {
        // Orders the read of a flag (a completion's phase bit, a register) before the reads of what it guards.
        fence(SeqCst);
        self.shared.ram.read(addr, out)
    }

    /// Copies `data` to `addr` in guest RAM, before everything that this thread does after.
    ///
    /// # Errors
    /// [`QemuError::OutsideRam`]: nothing was copied.
    pub fn write_bytes(&self, addr: PhysAddr, data: &[u8]) -> Result<(), QemuError> {
        let result = self.shared.ram.write(addr, data);
        // Orders the data before the doorbell or start bit that makes a device read it.
        fence(SeqCst);
        result
    }

    /// How many bytes of DMA memory are given out, in whole pages of 4096.
    pub fn dma_bytes_in_use(&self) -> u64 {
        self.pages().used()
    }

    /// The first thing that went wrong where the driver's traits have no way to say so: a register access that
    /// failed, or a wrong `dma_free`.
    pub fn error(&self) -> Option<QemuError> {
        self.qtest().error().or_else(|| self.shared.bad_free.get().cloned())
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.shared.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for QemuPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QemuPlatform({:?})", self.shared.ram.window())
    }
}

/// Waiting for a lock by giving the CPU to others: its holder may be waiting for QEMU, which needs it.
#[derive(Clone, Copy, Debug)]
pub struct YieldNow;

impl RelaxStrategy for YieldNow {
    fn relax() {
        thread::yield_now();
    }
}

impl Platform for QemuPlatform {
    type Mmio = QemuMmio;
    type RawMutex = SpinMutex<(), YieldNow>;
    type Rcu = smmuv3::rcu::ShardedRcu<Self::RawMutex>;

    fn window(&self) -> &DmaWindow {
        self.shared.ram.window()
    }

    fn dma_alloc(&self, size: usize, align: usize) -> Option<PhysAddr> {
        self.pages().alloc(size as u64, align as u64).map(PhysAddr)
    }

    /// A range that is not allocated is left alone, and [`QemuPlatform::error`] tells of it.
    fn dma_free(&self, addr: PhysAddr, size: usize, _align: usize) {
        let result = self.pages().free(addr.0, size as u64);
        if result.is_err() {
            self.shared.bad_free.get_or_init(|| QemuError::BadFree { addr, size });
        }
    }

    // QEMU's devices are threads of the same host, so the barriers between threads are those that count.
    fn full_barrier(&self) {
        fence(SeqCst);
    }

    fn write_barrier(&self) {
        fence(SeqCst);
    }

    fn read_barrier(&self) {
        fence(SeqCst);
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.shared.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn relax(&self) {
        thread::yield_now();
    }

    /// Threads stand for CPUs: a thread keeps its number, wherever it runs.
    fn cpu_hint(&self) -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static MINE: Cell<Option<usize>> = const { Cell::new(None) });
        // A thread that is ending may have lost its number; any answer is correct.
        MINE.try_with(|mine| {
            mine.get().unwrap_or_else(|| {
                let number = NEXT.fetch_add(1, SeqCst);
                mine.set(Some(number));
                number
            })
        })
        .unwrap_or(0)
    }
}

/// The registers of one device of a QEMU.
///
/// As [`Mmio`], a device that is gone reads as all ones and ignores writes, and [`QemuPlatform::error`] tells why.
/// The `try_` methods say so at once.
#[derive(Clone, Debug)]
pub struct QemuMmio {
    platform: QemuPlatform,
    base: u64,
}

impl QemuMmio {
    /// The guest physical address of the first register.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Reads the 32-bit register at `offset` bytes. Errors: those of [`Qtest`].
    pub fn try_read32(&self, offset: usize) -> Result<u32, QemuError> {
        self.platform.qtest().read32(self.address(offset))
    }

    /// Writes the 32-bit register at `offset` bytes. Errors: those of [`Qtest`].
    pub fn try_write32(&self, offset: usize, value: u32) -> Result<(), QemuError> {
        self.platform.qtest().write32(self.address(offset), value)
    }

    /// Reads the 64-bit register at `offset` bytes. Errors: those of [`Qtest`].
    pub fn try_read64(&self, offset: usize) -> Result<u64, QemuError> {
        self.platform.qtest().read64(self.address(offset))
    }

    /// Writes the 64-bit register at `offset` bytes. Errors: those of [`Qtest`].
    pub fn try_write64(&self, offset: usize, value: u64) -> Result<(), QemuError> {
        self.platform.qtest().write64(self.address(offset), value)
    }

    fn address(&self, offset: usize) -> u64 {
        self.base.wrapping_add(offset as u64)
    }
}

impl Mmio for QemuMmio {
    fn read32(&self, offset: usize) -> u32 {
        self.try_read32(offset).unwrap_or(u32::MAX)
    }

    fn write32(&self, offset: usize, value: u32) {
        // The connection remembers the error.
        self.try_write32(offset, value).ok();
    }

    fn read64(&self, offset: usize) -> u64 {
        self.try_read64(offset).unwrap_or(u64::MAX)
    }

    fn write64(&self, offset: usize, value: u64) {
        // The connection remembers the error.
        self.try_write64(offset, value).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// A platform whose QEMU is gone.
    fn dead() -> QemuPlatform {
        let (near, _) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x4000).unwrap();
        let ram = Ram::map(&file, PhysAddr(0x1000)).unwrap();
        QemuPlatform::new(Qtest::new(near).unwrap(), ram, PhysAddr(0x2000))
    }

    #[test]
    fn a_dead_qemu_reads_as_all_ones_and_the_reason_is_kept() {
        let platform = dead();
        let registers = platform.registers(0x905_0000);
        assert!(platform.error().is_none());
        assert_eq!(registers.read32(0), u32::MAX);
        assert_eq!(registers.read64(0x80), u64::MAX);
        registers.write32(0x20, 1);
        registers.write64(0x80, 1);
        assert_eq!(platform.error().unwrap().to_string(), "QEMU closed the qtest socket at `readl 0x9050000`");
    }

    #[test]
    fn dma_memory_comes_from_the_pool_and_a_wrong_free_is_told() {
        let platform = dead();
        let addr = platform.dma_alloc(64, 64).unwrap();
        assert_eq!(addr, PhysAddr(0x2000));
        assert_eq!(platform.dma_bytes_in_use(), 0x1000);
        assert_eq!(platform.dma_alloc(0x3000, 64), None);
        platform.dma_free(addr, 64, 64);
        assert!(platform.error().is_none());
        platform.dma_free(addr, 64, 64);
        assert_eq!(platform.error().unwrap().to_string(), "dma_free of 0x40 bytes at 0x2000, which were not allocated");
    }

    #[test]
    fn threads_have_numbers_of_their_own() {
        let platform = dead();
        let mine = platform.cpu_hint();
        assert_eq!(platform.cpu_hint(), mine);
        let other = thread::spawn(move || platform.cpu_hint()).join().unwrap();
        assert_ne!(other, mine);
    }
}

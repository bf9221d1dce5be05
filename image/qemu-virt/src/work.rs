//! The work: every CPU reads, checks, writes and reads again, on both disks, until all of both is done.

use alloc::alloc::{alloc_zeroed, handle_alloc_error};
use core::alloc::Layout;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use spin::Once;
use virtio_drivers::device::blk::{BlkReq, BlkResp, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::pci::PciTransport;

use crate::cpu::MAX_CPUS;
use crate::lock::Mutex;
use crate::memory::PAGE;
use crate::nvme::Nvme;
use crate::virtio::{DomainHal, Translated};
use crate::{cpu, pattern, println};

/// Bytes of a disk.
pub const DISK: u64 = 64 << 20;
/// Bytes of a transfer.
const CHUNK: usize = 64 << 10;

/// The number of virtio device that the disk is.
pub const BLK: usize = 0;
/// The driver of the virtio disk.
pub type Blk = VirtIOBlk<DomainHal<BLK>, Translated<PciTransport>>;

/// Two disks, and how far everybody is.
pub struct Work {
    nvme: &'static Nvme,
    blk: Mutex<Blk>,
    next: AtomicU64,
    finished: AtomicUsize,
    verified: [AtomicU64; 2],
    /// The same bytes, by the CPU that verified them.
    verified_by: [AtomicU64; MAX_CPUS],
}

static WORK: Once<Work> = Once::new();

/// The numbers of the disks, by which their contents differ.
const NVME: usize = 0;
const VIRTIO: usize = 1;

impl Work {
    /// Readies the work. Both disks are as the runner made them.
    pub fn init(nvme: &'static Nvme, blk: Blk) -> &'static Work {
        assert_eq!(blk.capacity() * SECTOR_SIZE as u64, DISK, "the virtio disk has another size");
        WORK.call_once(|| Work {
            nvme,
            blk: Mutex::new(blk),
            next: AtomicU64::new(0),
            finished: AtomicUsize::new(0),
            verified: Default::default(),
            verified_by: Default::default(),
        })
    }

    /// Waits until so many CPUs are through.
    pub fn wait(&self, cpus: usize) {
        // Acquire: partner of the Release in `run`.
        while self.finished.load(Ordering::Acquire) < cpus {
            cpu::nap();
        }
    }

    /// Bytes that came from the NVMe and from the virtio disk and were what they should be.
    pub fn verified(&self) -> [u64; 2] {
        [NVME, VIRTIO].map(|disk| self.verified[disk].load(Ordering::Relaxed))
    }

    /// Bytes that the least busy of so many CPUs has verified.
    pub fn least_verified(&self, cpus: usize) -> u64 {
        self.verified_by[..cpus].iter().map(|verified| verified.load(Ordering::Relaxed)).min().unwrap_or(0)
    }

    fn chunk(&self, offset: u64, buffer: &mut [u8]) {
        for disk in [NVME, VIRTIO] {
            self.read(disk, offset, buffer);
            self.check(disk, false, offset, buffer);
            pattern::fill(disk as u64, true, offset, buffer);
            self.write(disk, offset, buffer);
            self.read(disk, offset, buffer);
            self.check(disk, true, offset, buffer);
        }
    }

    fn check(&self, disk: usize, after: bool, offset: u64, buffer: &[u8]) {
        if let Some(at) = pattern::first_difference(disk as u64, after, offset, buffer) {
            panic!("disk {disk}: wrong data at {at:#x}");
        }
        for verified in [&self.verified[disk], &self.verified_by[cpu::index()]] {
            verified.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        }
    }

    fn read(&self, disk: usize, offset: u64, buffer: &mut [u8]) {
        // What stands there now must not be taken for what was read.
        buffer.fill(0);
        if disk == NVME {
            return self.nvme.read(offset, buffer);
        }
        let (mut request, mut response) = (BlkReq::default(), BlkResp::default());
        let sector = offset as usize / SECTOR_SIZE;
        // SAFETY: all three stay where they are, and are not touched, until the completion below.
        let token = unsafe { self.blk.lock().read_blocks_nb(sector, &mut request, buffer, &mut response) };
        let mut blk = self.completion(token.expect("room in the queue"));
        // SAFETY: these are the three of above, and the token is that of their request.
        let result = unsafe { blk.1.complete_read_blocks(blk.0, &request, buffer, &mut response) };
        result.expect("a read of the virtio disk");
    }

    fn write(&self, disk: usize, offset: u64, buffer: &[u8]) {
        if disk == NVME {
            return self.nvme.write(offset, buffer);
        }
        let (mut request, mut response) = (BlkReq::default(), BlkResp::default());
        let sector = offset as usize / SECTOR_SIZE;
        // SAFETY: as in `read`.
        let token = unsafe { self.blk.lock().write_blocks_nb(sector, &mut request, buffer, &mut response) };
        let mut blk = self.completion(token.expect("room in the queue"));
        // SAFETY: as in `read`.
        let result = unsafe { blk.1.complete_write_blocks(blk.0, &request, buffer, &mut response) };
        result.expect("a write to the virtio disk");
    }

    /// Waits until the request with this token is the next to be completed.
    fn completion(&self, token: u16) -> (u16, lock_api::MutexGuard<'_, crate::lock::RawLock, Blk>) {
        loop {
            let mut blk = self.blk.lock();
            if blk.peek_used() == Some(token) {
                return (token, blk);
            }
            drop(blk);
            cpu::nap();
        }
    }
}

/// Works until nothing is left. Every CPU runs this.
pub fn run() {
    let work = WORK.get().expect("`init` was called");
    let layout = Layout::from_size_align(CHUNK, PAGE).expect("a sane size");
    // SAFETY: the size is not 0.
    let buffer = unsafe { alloc_zeroed(layout) };
    if buffer.is_null() {
        handle_alloc_error(layout);
    }
    // SAFETY: zeroed bytes, for ever this CPU's.
    let buffer = unsafe { core::slice::from_raw_parts_mut(buffer, CHUNK) };
    loop {
        let offset = work.next.fetch_add(1, Ordering::Relaxed) * CHUNK as u64;
        if offset >= DISK {
            break;
        }
        work.chunk(offset, buffer);
        if (offset + CHUNK as u64).is_multiple_of(DISK / 4) {
            println!("{} MiB of each disk are done", (offset + CHUNK as u64) >> 20);
        }
    }
    // Release: partner of the Acquire in `wait`.
    work.finished.fetch_add(1, Ordering::Release);
}

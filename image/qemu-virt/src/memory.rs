//! Memory: the page table that is there from the first instruction on, and the heap.
//!
//! Everything is mapped where it is, which is why a pointer's address is also a physical address, here and in the driver's window.

use core::alloc::Layout;
use core::ops::Range;
use core::ptr::{self, NonNull};

use aarch64_paging::descriptor::El1Attributes;
use aarch64_paging::mair::{Mair, MairAttribute, NormalMemory};
use aarch64_rt::{InitialPagetable, initial_pagetable};
use alloc::alloc::{alloc_zeroed, handle_alloc_error};
use talc::TalcLock;
use talc::source::Manual;

use crate::lock::RawLock;

/// The page size of everything here: CPU, SMMU and devices.
pub const PAGE: usize = 4096;

const GIB: usize = 1 << 30;

/// Neither EL1 (PXN) nor EL2 (whose only XN is at the place of UXN) fetches instructions from registers, not even speculatively.
const DEVICE: El1Attributes = El1Attributes::VALID
    .union(El1Attributes::ATTRIBUTE_INDEX_0)
    .union(El1Attributes::ACCESSED)
    .union(El1Attributes::PXN)
    .union(El1Attributes::UXN);

const NORMAL: El1Attributes = El1Attributes::VALID
    .union(El1Attributes::ATTRIBUTE_INDEX_1)
    .union(El1Attributes::INNER_SHAREABLE)
    .union(El1Attributes::ACCESSED);

/// Index 0 is for registers, index 1 for RAM. The SMMU's tables and queues have the attributes of index 1, too: else the CPU and it would not see the
/// same.
const MAIR: Mair = Mair::EMPTY.with_attribute(0, MairAttribute::DEVICE_NGNRE).with_attribute(
    1,
    MairAttribute::normal(
        NormalMemory::WriteBackNonTransientReadWriteAllocate,
        NormalMemory::WriteBackNonTransientReadWriteAllocate,
    ),
);

// Blocks of 1 GiB, of the machine's own map: devices, RAM, and the configuration space of PCIe. One table serves EL1 and EL2, and all CPUs.
initial_pagetable!(
    {
        const PCIE: usize = 256;
        let mut blocks = [0; 512];
        blocks[0] = DEVICE.bits();
        blocks[1] = NORMAL.bits() | GIB;
        blocks[PCIE] = DEVICE.bits() | (PCIE * GIB);
        InitialPagetable(blocks)
    },
    MAIR.0
);

/// RAM that the page table maps.
const MAPPED: Range<usize> = GIB..2 * GIB;

#[global_allocator]
static HEAP: TalcLock<RawLock, Manual> = TalcLock::new(Manual);

unsafe extern "C" {
    /// The linker script's name for the first address behind image and stacks.
    static dma_region: u8;
}

/// Gives what is left of `ram` to the heap. To be called once.
pub fn init(ram: &Range<usize>) {
    assert!(MAPPED.start <= ram.start && ram.end <= MAPPED.end, "RAM at {ram:#x?} is not mapped");
    let start = (&raw const dma_region).addr();
    assert!(ram.contains(&start));
    // SAFETY: from the end of the image to the end of RAM is nobody's.
    let claimed = unsafe { HEAP.lock().claim(ptr::with_exposed_provenance_mut(start), ram.end - start) };
    claimed.expect("RAM for a heap");
}

/// Bytes of the heap that are in use.
pub fn heap_bytes() -> usize {
    HEAP.lock().counters().allocated_bytes
}

/// Whole pages, zeroed, that are never given back: what devices may use for as long as the machine runs.
pub fn leak_pages(count: usize) -> NonNull<[u8]> {
    let layout = Layout::from_size_align(count * PAGE, PAGE).expect("a sane number of pages");
    assert!(count > 0);
    // SAFETY: the size is not 0.
    let pages = unsafe { alloc_zeroed(layout) };
    let pages = NonNull::new(pages).unwrap_or_else(|| handle_alloc_error(layout));
    NonNull::slice_from_raw_parts(pages, layout.size())
}

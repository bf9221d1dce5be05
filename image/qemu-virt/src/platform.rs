//! The driver's port to bare metal: what a kernel has to write. It is all in this file, but for the lock ([`crate::lock`]).
//!
//! [`Virt`] is for the case that most kernels have: all of RAM is mapped at an address that differs from the physical one by a constant (here by
//! nothing), so that one window spans it; DMA memory comes from the kernel's heap.

use alloc::alloc::{alloc, dealloc};
use alloc::boxed::Box;
use core::alloc::Layout;
use core::arch::asm;
use core::ops::Range;
use core::ptr::{self, NonNull};
use core::sync::atomic::AtomicU64;

use smmuv3::platform::{DmaWindow, Mmio, PhysAddr, Platform};
use smmuv3::rcu::ShardedRcu;

use crate::cpu::{self, Maintenance};
use crate::lock::RawLock;

/// The host that the driver runs on. A handle: two words would do as well as one.
#[derive(Clone, Copy)]
pub struct Virt {
    window: &'static DmaWindow,
}

impl Virt {
    /// `ram` is all of RAM, mapped where it is as normal, write-back, inner shareable memory.
    pub fn new(ram: Range<usize>) -> Self {
        let words = NonNull::new(ptr::with_exposed_provenance_mut(ram.start)).expect("RAM begins above 0");
        // SAFETY: `dma_alloc` gives out memory of the heap, which lies in RAM and is mapped for ever, and nobody but who asked for it uses it
        // until `dma_free`.
        let window = unsafe { DmaWindow::from_raw_parts(words, ram.len() / 8, PhysAddr(ram.start as u64)) };
        Virt { window: Box::leak(Box::new(window)) }
    }
}

impl Platform for Virt {
    type Mmio = Registers;
    // The handlers of the SMMU's interrupts take events and errors, under locks that unmapping threads take, too.
    type RawMutex = RawLock;
    type Rcu = ShardedRcu<RawLock>;
    // The SMMUs of this machine are coherent. It costs little, and shows how it is done.
    const CACHE_MAINTENANCE: bool = true;

    fn window(&self) -> &DmaWindow {
        self.window
    }

    fn dma_alloc(&self, size: usize, align: usize) -> Option<PhysAddr> {
        let layout = lines(size, align).filter(|layout| layout.size() > 0)?;
        // SAFETY: the size is not 0.
        let memory = unsafe { alloc(layout) };
        // Exposed: the driver comes back to it through the window.
        (!memory.is_null()).then(|| PhysAddr(memory.expose_provenance() as u64))
    }

    fn dma_free(&self, addr: PhysAddr, size: usize, align: usize) {
        let memory = ptr::with_exposed_provenance_mut(addr.0 as usize);
        if let Some(layout) = lines(size, align) {
            // SAFETY: the driver gives back what `dma_alloc` gave, once, and with the same numbers.
            unsafe { dealloc(memory, layout) };
        }
    }

    // None of the barriers is `nomem`: the compiler, too, has to keep memory accesses on their side. All are of the full system (SY, ST, LD): the SMMU
    // and the devices need not be in the CPUs' inner shareable domain.

    fn full_barrier(&self) {
        // SAFETY: orders accesses.
        unsafe { asm!("dmb sy", options(nostack, preserves_flags)) };
    }

    fn write_barrier(&self) {
        // DSB and not DMB: a doorbell may follow, and the writes are to be complete when it rings.
        // SAFETY: orders accesses.
        unsafe { asm!("dsb st", options(nostack, preserves_flags)) };
    }

    fn read_barrier(&self) {
        // SAFETY: orders accesses.
        unsafe { asm!("dmb ld", options(nostack, preserves_flags)) };
    }

    fn now_ns(&self) -> u64 {
        cpu::now_ns()
    }

    fn relax(&self) {
        // An ISB on AArch64, some ten cycles. No WFE: the driver looks at a register of the SMMU, and nothing would wake this CPU when it
        // changes. Waiting for a lock is different: see `crate::lock`.
        core::hint::spin_loop();
    }

    fn wait_for_event(&self) {
        cpu::wait_for_event();
    }

    fn wait_while(&self, word: &AtomicU64, value: u64) {
        cpu::wait_while(word, value);
    }

    fn clean(&self, words: &[AtomicU64]) {
        cpu::maintain(bytes(words), Maintenance::Clean);
    }

    fn discard(&self, words: &[AtomicU64]) {
        cpu::maintain(bytes(words), Maintenance::Invalidate);
    }

    fn without_interrupts<R>(&self, f: impl FnOnce() -> R) -> R {
        // No handler here submits anything to an SMMU, so that the default would do. Those of a kernel unmap.
        cpu::mask_interrupts();
        let result = f();
        cpu::unmask_interrupts();
        result
    }

    fn cpu_hint(&self) -> usize {
        cpu::index()
    }
}

/// Whole cache lines.
fn lines(size: usize, align: usize) -> Option<Layout> {
    Some(Layout::from_size_align(size, align.max(cpu::longest_line())).ok()?.pad_to_align())
}

fn bytes(words: &[AtomicU64]) -> Range<usize> {
    let Range { start, end } = words.as_ptr_range();
    start.addr()..end.addr()
}

/// The registers of an SMMU, or of any other device, from an address on.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    base: usize,
}

impl Registers {
    /// # Safety
    /// At `base` are the registers of a device, mapped as Device memory for ever; every offset that is given to the methods lies in them.
    pub unsafe fn new(base: usize) -> Self {
        Registers { base }
    }
}

/// Single loads and stores, written out: of a volatile access the compiler may make an instruction with writeback, which hypervisors can't emulate. None is
/// `nomem`, so that the compiler moves no access to memory across; the hardware is told by the driver's barriers.
impl Mmio for Registers {
    fn read32(&self, offset: usize) -> u32 {
        let address = self.base + offset;
        let value: u32;
        // SAFETY: a register is read (`new`).
        unsafe {
            asm!("ldr {value:w}, [{address}]", address = in(reg) address, value = out(reg) value, options(nostack, preserves_flags))
        };
        value
    }

    fn write32(&self, offset: usize, value: u32) {
        let address = self.base + offset;
        // SAFETY: a register is written (`new`).
        unsafe {
            asm!("str {value:w}, [{address}]", address = in(reg) address, value = in(reg) value, options(nostack, preserves_flags))
        };
    }

    fn read64(&self, offset: usize) -> u64 {
        let address = self.base + offset;
        let value: u64;
        // SAFETY: a register is read (`new`).
        unsafe {
            asm!("ldr {value}, [{address}]", address = in(reg) address, value = out(reg) value, options(nostack, preserves_flags))
        };
        value
    }

    fn write64(&self, offset: usize, value: u64) {
        let address = self.base + offset;
        // SAFETY: a register is written (`new`).
        unsafe {
            asm!("str {value}, [{address}]", address = in(reg) address, value = in(reg) value, options(nostack, preserves_flags))
        };
    }
}

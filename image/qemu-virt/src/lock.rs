//! The lock behind every mutex here: it spins, and its holder is not interrupted.
//!
//! Interrupt handlers take the same locks as everybody else. Were the holder interrupted by one of them on its own CPU, the handler would wait
//! for ever for the code that it interrupted.

use core::arch::asm;
use core::sync::atomic::{AtomicU8, Ordering};

use crate::cpu;

/// A value behind a [`RawLock`].
pub type Mutex<T> = lock_api::Mutex<RawLock, T>;

/// A spin lock that masks interrupts on the CPU that holds it.
pub struct RawLock {
    /// 0 or 1.
    taken: AtomicU8,
}

impl RawLock {
    fn take(&self) -> bool {
        // Acquire: what the last holder did comes before what this one does. Partner: the Release in `unlock`.
        self.taken.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Sleeps until the lock looks free.
    #[cold]
    fn wait(&self) {
        // The load is exclusive so that the store of `unlock` wakes this CPU; SEVL makes the first WFE return at once.
        // SAFETY: reads the lock. The address is that of a byte.
        unsafe {
            asm!(
                "sevl",
                "2: wfe",
                "ldaxrb {value:w}, [{lock}]",
                "cbnz {value:w}, 2b",
                "clrex",
                lock = in(reg) self.taken.as_ptr(),
                value = out(reg) _,
                options(nostack, preserves_flags),
            );
        }
    }
}

// SAFETY: whoever finds 0 and makes it 1 has the lock, and only `unlock` makes it 0 again.
unsafe impl lock_api::RawMutex for RawLock {
    #[allow(clippy::declare_interior_mutable_const, reason = "this is how the trait makes new locks")]
    const INIT: Self = RawLock { taken: AtomicU8::new(0) };
    /// Interrupts are masked on the CPU that took it: it is to let go of it, too.
    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        cpu::mask_interrupts();
        while !self.take() {
            self.wait();
        }
    }

    fn try_lock(&self) -> bool {
        cpu::mask_interrupts();
        let taken = self.take();
        if !taken {
            cpu::unmask_interrupts();
        }
        taken
    }

    unsafe fn unlock(&self) {
        // Release: partner of the Acquire in `take`.
        self.taken.store(0, Ordering::Release);
        cpu::unmask_interrupts();
    }
}

//! One CPU: its number, its interrupts, its clock, and how the others are started.

use core::arch::asm;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use aarch64_rt::Stack;
use smccc::psci;
use smccc::{Hvc, Smc};

use crate::gic;
use crate::machine::Conduit;

/// So many CPUs are used at most.
pub const MAX_CPUS: usize = 8;

/// Pages of 4 KiB in the stack of a CPU that is not the first.
const STACK_PAGES: usize = 32;

#[unsafe(link_section = ".stack.secondary")]
static mut STACKS: [Stack<STACK_PAGES>; MAX_CPUS] = [const { Stack::new() }; MAX_CPUS];

/// What each CPU knows of its interrupts. Only the CPU itself uses its own, so that `Relaxed` is enough.
struct Masking {
    /// How many [`mask_interrupts`] have no [`unmask_interrupts`] yet.
    depth: AtomicU32,
    /// Interrupts were not masked before the outermost of them.
    were_on: AtomicBool,
}

static MASKING: [Masking; MAX_CPUS] =
    [const { Masking { depth: AtomicU32::new(0), were_on: AtomicBool::new(false) } }; MAX_CPUS];

/// Counter ticks per second.
static FREQUENCY: AtomicU64 = AtomicU64::new(1);

/// Readies the CPU that calls it, and gives it its number. Interrupts are and stay masked.
pub fn init(index: usize) {
    assert!(index < MAX_CPUS);
    // SAFETY: this register means nothing to hardware, and this module alone uses it.
    unsafe { asm!("msr tpidr_el1, {}", in(reg) index, options(nomem, nostack, preserves_flags)) };
    if exception_level() == 2 {
        // Interrupts come to EL2 (IMO, FMO, AMO), and the counter of EL2 is that of all CPUs (no offset).
        const HCR_IMO_FMO_AMO_RW: u64 = 1 << 4 | 1 << 3 | 1 << 5 | 1 << 31;
        // SAFETY: nothing runs at EL1, and no interrupt is taken before one is unmasked.
        unsafe { asm!("msr hcr_el2, {}", "msr cntvoff_el2, xzr", "isb", in(reg) HCR_IMO_FMO_AMO_RW, options(nostack)) };
    }
    let frequency: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) frequency, options(nomem, nostack, preserves_flags)) };
    FREQUENCY.store(frequency, Ordering::Relaxed);
    enable_event_stream(frequency);
}

/// Has the timer send this CPU an event at least every 100 µs, so that no WFE lasts longer.
fn enable_event_stream(frequency: u64) {
    const EVENT_STREAM: u64 = 1 << 2;
    const LONGEST_HZ: u64 = 10_000;
    // An event comes when this bit of the counter becomes 1: every 2^(bit + 1) ticks.
    let bit = (frequency / LONGEST_HZ).max(2).ilog2() as u64 - 1;
    let stream = bit.min(15) << 4 | EVENT_STREAM;
    if exception_level() == 2 {
        // SAFETY: nobody else uses the event stream. The other bits are about EL1 and EL0, where nothing runs.
        unsafe { asm!("msr cnthctl_el2, {}", "isb", in(reg) stream, options(nostack, preserves_flags)) };
    } else {
        // SAFETY: as above.
        unsafe { asm!("msr cntkctl_el1, {}", "isb", in(reg) stream, options(nostack, preserves_flags)) };
    }
}

/// Sleeps until an event comes: of another CPU or a device, or the timer's.
#[inline]
pub fn wait_for_event() {
    // SAFETY: waits.
    unsafe { asm!("wfe", options(nostack, preserves_flags)) };
}

/// Sleeps, if `word` is `value`, until somebody writes to it, or another event comes.
#[inline]
pub fn wait_while(word: &AtomicU64, value: u64) {
    // The exclusive load makes a reservation; that somebody else writes ends it, which is an event.
    // SAFETY: reads a word that is there, and waits.
    unsafe {
        asm!(
            "ldxr {now}, [{word}]",
            "cmp {now}, {value}",
            "b.ne 2f",
            "wfe",
            "2:",
            word = in(reg) word.as_ptr(),
            value = in(reg) value,
            now = out(reg) _,
            options(nostack),
        );
    }
}

/// What to do with cache lines.
#[derive(Clone, Copy)]
pub enum Maintenance {
    /// Write them back (DC CVAC).
    Clean,
    /// Forget them (DC IVAC).
    Invalidate,
}

/// `CTR_EL0`, about caches.
fn ctr() -> usize {
    let ctr;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
    ctr
}

/// Bytes that nothing else may share with what is maintained: the longest line of all caches (`CWG`; 0 is 2 KiB).
pub fn longest_line() -> usize {
    match ctr() >> 24 & 0xf {
        0 => 2048,
        log2 => 4 << log2,
    }
}

/// Does it with all lines of `bytes`, to the point of coherency.
pub fn maintain(bytes: Range<usize>, how: Maintenance) {
    let line = 4 << (ctr() >> 16 & 0xf);
    if let Maintenance::Invalidate = how {
        // Behind the read of the register that tells of what is there.
        // SAFETY: orders accesses.
        unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
    }
    for address in (bytes.start & !(line - 1)..bytes.end).step_by(line) {
        match how {
            // SAFETY: what CPUs see stays as it is.
            Maintenance::Clean => unsafe { asm!("dc cvac, {}", in(reg) address, options(nostack, preserves_flags)) },
            // SAFETY: no CPU has written what is forgotten (`Platform::discard`).
            Maintenance::Invalidate => unsafe {
                asm!("dc ivac, {}", in(reg) address, options(nostack, preserves_flags))
            },
        }
    }
    // SAFETY: orders accesses, and waits for the maintenance.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}

/// The number of this CPU, from 0.
#[inline]
pub fn index() -> usize {
    let index;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, tpidr_el1", out(reg) index, options(nomem, nostack, preserves_flags)) };
    index
}

/// 1 or 2.
pub fn exception_level() -> u64 {
    let level: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, CurrentEL", out(reg) level, options(nomem, nostack, preserves_flags)) };
    level >> 2 & 3
}

/// The affinity of this CPU, by which PSCI and GIC know it.
pub fn affinity() -> u64 {
    const AFFINITY: u64 = 0xff_00ff_ffff;
    let mpidr: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, mpidr_el1", out(reg) mpidr, options(nomem, nostack, preserves_flags)) };
    mpidr & AFFINITY
}

/// Nanoseconds since the machine was switched on, the same on all CPUs.
pub fn now_ns() -> u64 {
    const NS: u64 = 1_000_000_000;
    let ticks: u64;
    // The barrier keeps the counter from being read before what stands before.
    // SAFETY: reads a register.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) ticks, options(nostack, preserves_flags)) };
    let frequency = FREQUENCY.load(Ordering::Relaxed);
    ticks / frequency * NS + ticks % frequency * NS / frequency
}

/// Masks interrupts on this CPU until as many [`unmask_interrupts`] have come.
#[inline]
pub fn mask_interrupts() {
    const DAIF_I: u64 = 1 << 7;
    let daif: u64;
    // Nothing that must stay masked may be moved out by the compiler: no `nomem`.
    // SAFETY: masks interrupts.
    unsafe { asm!("mrs {}, daif", "msr daifset, #2", out(reg) daif, options(nostack, preserves_flags)) };
    let mine = &MASKING[index()];
    let depth = mine.depth.load(Ordering::Relaxed);
    if depth == 0 {
        mine.were_on.store(daif & DAIF_I == 0, Ordering::Relaxed);
    }
    mine.depth.store(depth + 1, Ordering::Relaxed);
}

/// Undoes one [`mask_interrupts`] of this CPU. The last gives back what was before the first.
///
/// Counting serves locks that are not let go of in the reverse order of being taken.
#[inline]
pub fn unmask_interrupts() {
    let mine = &MASKING[index()];
    let depth = mine.depth.load(Ordering::Relaxed) - 1;
    mine.depth.store(depth, Ordering::Relaxed);
    if depth == 0 && mine.were_on.load(Ordering::Relaxed) {
        enable_interrupts();
    }
}

/// Takes interrupts on this CPU from now on.
pub fn enable_interrupts() {
    // SAFETY: the vector table and the handlers behind it are there from the first instruction on.
    unsafe { asm!("msr daifclr, #2", options(nostack, preserves_flags)) };
}

/// Sleeps until an interrupt is pending, the timer's at the latest: a turn of a loop that waits for a device.
pub fn nap() {
    const NAP_HZ: u64 = 20_000;
    let ticks = FREQUENCY.load(Ordering::Relaxed).div_ceil(NAP_HZ);
    // WFI returns for a masked interrupt, too. It is not taken before the timer is off again: so the timer's never is.
    mask_interrupts();
    // SAFETY: waits. Nobody else uses the timer of this CPU.
    unsafe {
        asm!(
            "msr cntv_tval_el0, {ticks}",
            "msr cntv_ctl_el0, {on}",
            "isb",
            "dsb sy",
            "wfi",
            "msr cntv_ctl_el0, xzr",
            "isb",
            ticks = in(reg) ticks,
            on = in(reg) 1u64,
            options(nostack, preserves_flags),
        );
    }
    unmask_interrupts();
}

/// Starts the CPU with this affinity, which runs `body` with the number `index`, and sleeps when it is done.
pub fn start(conduit: Conduit, affinity: u64, index: usize, body: fn()) {
    let run = move || {
        init(index);
        gic::init_cpu();
        body();
        sleep()
    };
    assert!((1..MAX_CPUS).contains(&index));
    let stack = (&raw mut STACKS).cast::<Stack<STACK_PAGES>>().wrapping_add(index);
    let started = match conduit {
        // SAFETY: each index is given once, so that the stack is one CPU's alone; all CPUs have the same page table.
        Conduit::Hvc => unsafe { aarch64_rt::start_core::<Hvc, _, STACK_PAGES>(affinity, stack, run) },
        // SAFETY: as above.
        Conduit::Smc => unsafe { aarch64_rt::start_core::<Smc, _, STACK_PAGES>(affinity, stack, run) },
    };
    started.expect("PSCI CPU_ON");
}

/// Switches the machine off.
pub fn power_off(conduit: Conduit) -> ! {
    let _ = match conduit {
        Conduit::Hvc => psci::system_off::<Hvc>(),
        Conduit::Smc => psci::system_off::<Smc>(),
    };
    sleep()
}

/// Never wakes.
pub fn sleep() -> ! {
    loop {
        // SAFETY: waits.
        unsafe { asm!("msr daifset, #2", "wfi", options(nomem, nostack, preserves_flags)) };
    }
}

//! Interrupts: the GICv3, and the way from the exception vector to a handler.

use core::arch::naked_asm;
use core::ptr::{self, NonNull};

use aarch64_rt::{ExceptionHandlers, RegisterStateRef, exception_handlers};
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicCpuInterface, GicV3};
use arm_gic::{IntId, InterruptGroup, Trigger, UniqueMmioPointer};

use smmuv3_discovery::{self as discovery, Interrupt};
use spin::Once;

use crate::lock::Mutex;
use crate::machine::Machine;
use crate::{cpu, faults};

static TIMER: Once<IntId> = Once::new();
static GIC: Mutex<Option<GicV3<'static>>> = Mutex::new(None);

/// Sets the GIC up, and the first CPU's part of it.
pub fn init(machine: &Machine) {
    if cpu::exception_level() == 2 {
        GicCpuInterface::enable_system_register_el2(true);
    }
    let gicd = NonNull::new(ptr::with_exposed_provenance_mut::<Gicd>(machine.gicd)).expect("a distributor");
    let gicr = NonNull::new(ptr::with_exposed_provenance_mut::<GicrSgi>(machine.gicr)).expect("a redistributor");
    // SAFETY: the device tree has the registers there, they are mapped, and nobody else uses them.
    let gicd = unsafe { UniqueMmioPointer::new(gicd) };
    // SAFETY: as above; there is a redistributor for each CPU.
    let mut gic = unsafe { GicV3::new(gicd, gicr, machine.cpus.len()) }.expect("a GICv3");
    gic.setup(0);
    *GIC.lock() = Some(gic);
    TIMER.call_once(|| IntId::ppi(machine.timer));
    init_cpu();
}

/// Readies this CPU's part, and lets the timer wake it.
pub fn init_cpu() {
    if cpu::exception_level() == 2 {
        GicCpuInterface::enable_system_register_el2(true);
    }
    let mut gic = GIC.lock();
    let gic = gic.as_mut().expect("the GIC is set up");
    gic.init_cpu(cpu::index());
    GicCpuInterface::enable_group1(true);
    GicCpuInterface::set_priority_mask(0xff);
    let timer = *TIMER.get().expect("the GIC is set up");
    gic.enable_interrupt(timer, Some(cpu::index()), true).expect("a private interrupt");
}

/// Lets a shared interrupt come to this CPU.
pub fn enable(interrupt: &Interrupt) {
    let id = IntId::try_from(interrupt.intid()).expect("an interrupt");
    let trigger = match interrupt.trigger {
        discovery::Trigger::EdgeRising | discovery::Trigger::EdgeFalling => Trigger::Edge,
        discovery::Trigger::LevelHigh | discovery::Trigger::LevelLow => Trigger::Level,
    };
    let mut gic = GIC.lock();
    let gic = gic.as_mut().expect("the GIC is set up");
    gic.set_trigger(id, None, trigger).expect("a shared interrupt");
    gic.distributor().set_routing(id, Some(cpu::affinity())).expect("a shared interrupt");
    gic.enable_interrupt(id, None, true).expect("a shared interrupt");
}

exception_handlers!(Exceptions);

struct Exceptions;

impl ExceptionHandlers for Exceptions {
    /// The vector saves the general registers alone; but Rust uses the vector registers as it likes, also to copy a structure. So this saves them, too.
    #[unsafe(naked)]
    extern "C" fn irq_current(_: RegisterStateRef<'_>) {
        naked_asm!(
            "stp x29, x30, [sp, #-32]!",
            "mov x29, sp",
            "mrs x0, fpcr",
            "mrs x1, fpsr",
            "stp x0, x1, [sp, #16]",
            "stp q0, q1, [sp, #-32]!",
            "stp q2, q3, [sp, #-32]!",
            "stp q4, q5, [sp, #-32]!",
            "stp q6, q7, [sp, #-32]!",
            "stp q8, q9, [sp, #-32]!",
            "stp q10, q11, [sp, #-32]!",
            "stp q12, q13, [sp, #-32]!",
            "stp q14, q15, [sp, #-32]!",
            "stp q16, q17, [sp, #-32]!",
            "stp q18, q19, [sp, #-32]!",
            "stp q20, q21, [sp, #-32]!",
            "stp q22, q23, [sp, #-32]!",
            "stp q24, q25, [sp, #-32]!",
            "stp q26, q27, [sp, #-32]!",
            "stp q28, q29, [sp, #-32]!",
            "stp q30, q31, [sp, #-32]!",
            "bl {handle}",
            "ldp q30, q31, [sp], #32",
            "ldp q28, q29, [sp], #32",
            "ldp q26, q27, [sp], #32",
            "ldp q24, q25, [sp], #32",
            "ldp q22, q23, [sp], #32",
            "ldp q20, q21, [sp], #32",
            "ldp q18, q19, [sp], #32",
            "ldp q16, q17, [sp], #32",
            "ldp q14, q15, [sp], #32",
            "ldp q12, q13, [sp], #32",
            "ldp q10, q11, [sp], #32",
            "ldp q8, q9, [sp], #32",
            "ldp q6, q7, [sp], #32",
            "ldp q4, q5, [sp], #32",
            "ldp q2, q3, [sp], #32",
            "ldp q0, q1, [sp], #32",
            "ldp x0, x1, [sp, #16]",
            "msr fpcr, x0",
            "msr fpsr, x1",
            "ldp x29, x30, [sp], #32",
            "ret",
            handle = sym handle,
        )
    }

    extern "C" fn sync_current(state: RegisterStateRef<'_>) {
        panic!("synchronous exception at {:#x}", state.elr);
    }
}

extern "C" fn handle() {
    while GicCpuInterface::handle_interrupt(InterruptGroup::Group1, |id| {
        // The other that is enabled is the timer's, which is for nobody.
        if !id.is_private() {
            faults::interrupt(id.raw_value());
        }
    }) {}
}

//! The serial console, and how the image ends.

use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, Ordering};

use arm_pl011_uart::{DataBits, LineConfig, PL011Registers, Parity, StopBits, Uart, UniqueMmioPointer};
use spin::Once;

use crate::cpu;
use crate::lock::Mutex;
use crate::machine::Conduit;

const BAUD: u32 = 115_200;
/// The UART's clock in Hz, as `virt` has it.
const CLOCK: u32 = 24_000_000;

static UART: Mutex<Option<Uart<'static>>> = Mutex::new(None);
static CONDUIT: Once<Conduit> = Once::new();

/// Opens the console at the PL011 whose registers are at `base`.
pub fn init(base: usize, conduit: Conduit) {
    let registers = NonNull::new(ptr::with_exposed_provenance_mut::<PL011Registers>(base)).expect("a UART");
    // SAFETY: the device tree has the registers there, they are mapped, and nobody else uses them.
    let registers = unsafe { UniqueMmioPointer::new(registers) };
    let mut uart = Uart::new(registers);
    let line = LineConfig { data_bits: DataBits::Bits8, parity: Parity::None, stop_bits: StopBits::One };
    uart.enable(line, BAUD, CLOCK).expect("a possible speed");
    *UART.lock() = Some(uart);
    CONDUIT.call_once(|| conduit);
}

/// Writes a line to the console, whole.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => { $crate::console::write_line(format_args!($($argument)*)) };
}

#[doc(hidden)]
pub fn write_line(line: fmt::Arguments<'_>) {
    if let Some(uart) = &mut *UART.lock() {
        // It takes everything.
        let _ = writeln!(
            uart,
            "[{}.{:03}] cpu{}: {line}",
            cpu::now_ns() / 1_000_000_000,
            cpu::now_ns() / 1_000_000 % 1000,
            cpu::index()
        );
    }
}

/// Tells the verdict, for whoever reads the console, and switches the machine off.
pub fn finish(pass: bool) -> ! {
    if let Some(uart) = &mut *UART.lock() {
        // It takes everything.
        let _ = writeln!(uart, "verdict: {}", if pass { "pass" } else { "fail" });
        while uart.is_busy() {}
    }
    match CONDUIT.get() {
        Some(&conduit) => cpu::power_off(conduit),
        None => cpu::sleep(),
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    static PANICKING: AtomicBool = AtomicBool::new(false);
    if PANICKING.swap(true, Ordering::Relaxed) {
        // Another CPU has said so already, or this one while it said so.
        cpu::sleep();
    }
    println!("{info}");
    finish(false)
}

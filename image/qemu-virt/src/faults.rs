//! What the SMMUs report by interrupt, and whether that was expected.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayVec;
use smmuv3::arch::regs::{self, Cr0, Gerror, offset};
use smmuv3::arch::{Class, Event, FaultStage, Prot, TranslationFault};
use smmuv3::platform::{Iova, Mmio};
use smmuv3::{Device, SmmuHandle};
use spin::Once;

use crate::dma::Space;
use crate::lock::Mutex;
use crate::machine::SmmuNode;
use crate::memory::{PAGE, leak_pages};
use crate::nvme::Nvme;
use crate::platform::{Registers, Virt};
use crate::{cpu, gic, println};

/// Events that are remembered until somebody asks.
const MOST: usize = 64;
const PATIENCE_NS: u64 = 5_000_000_000;

static WATCHED: Once<Vec<(SmmuHandle<Virt>, SmmuNode)>> = Once::new();

/// What was reported and nobody has asked for.
static REPORTED: Mutex<Reported> = Mutex::new(Reported::new());

struct Reported {
    /// The SMMU's number with each.
    events: ArrayVec<(u8, Event), MOST>,
    /// Events for which there was no room, here or in an SMMU's queue.
    lost: usize,
    errors: ArrayVec<(u8, Gerror), MOST>,
}

impl Reported {
    const fn new() -> Self {
        Reported { events: ArrayVec::new_const(), lost: 0, errors: ArrayVec::new_const() }
    }
}

/// Takes the interrupts of these SMMUs, on this CPU.
pub fn watch(smmus: Vec<(SmmuHandle<Virt>, SmmuNode)>) {
    for (_, node) in WATCHED.call_once(|| smmus) {
        gic::enable_edge(node.events);
        gic::enable_edge(node.errors);
    }
}

/// The handler. Runs with interrupts masked, on the CPU that called [`watch`].
pub fn interrupt(number: u32) {
    let watched = WATCHED.get().expect("interrupts come after `watch`");
    for (smmu, node) in watched {
        let index = smmu.id().index();
        if node.events == number {
            let mut reported = REPORTED.lock();
            let taken = smmu.take_events(|event| {
                println!("{}: interrupt {number}: {event}", smmu.id());
                reported.lost += usize::from(reported.events.try_push((index, event)).is_err());
            });
            reported.lost += usize::from(taken.overflow);
        }
        if node.errors == number {
            let errors = smmu.take_global_errors();
            println!("{}: interrupt {number}: global errors: {errors}", smmu.id());
            // Of the command queue's errors the driver tells whoever waits for the command.
            let errors = errors.0;
            let mut reported = REPORTED.lock();
            if !errors.is_empty() && reported.errors.try_push((index, errors)).is_err() {
                reported.lost += 1;
            }
        }
    }
}

/// How much was reported that nobody expected.
pub fn unexpected() -> usize {
    let reported = REPORTED.lock();
    reported.events.len() + reported.errors.len() + reported.lost
}

/// A device whose driver is made to do what it must not, with all that it takes to do so.
pub struct Culprit<'a> {
    /// Its driver.
    pub nvme: &'a Nvme,
    /// It, as the SMMU's driver knows it.
    pub device: &'a Device<Virt>,
    /// Its addresses.
    pub space: &'a Space,
    /// The registers of the SMMU that it is behind.
    pub registers: Registers,
    /// What the disk begins with.
    pub contents: &'a [u8; PAGE],
}

impl Culprit<'_> {
    /// Has the device write four bytes twice: while their page is mapped, and after it was unmapped. The first time they must arrive, the second time not, which
    /// is reported by interrupt.
    pub fn use_after_unmap(&self) {
        const POISON: u32 = 0xaaaa_aaaa;
        let page = leak_pages(1);
        // SAFETY: the beginning of a zeroed page that is nobody else's, and that the device, too, uses only as a word.
        let word = unsafe { page.cast::<AtomicU32>().as_ref() };
        word.store(POISON, Ordering::Relaxed);
        let iova = self.space.map(page, Prot::READ | Prot::WRITE);
        self.nvme.write_log(iova).expect("a write to a mapped page");
        assert_ne!(word.swap(POISON, Ordering::Relaxed), POISON, "nothing came");

        self.space.unmap(iova, PAGE);
        let result = self.nvme.write_log(iova);
        assert_eq!(word.load(Ordering::Relaxed), POISON, "the device reached a page that was unmapped");
        self.expect_fault(iova);
        println!("a write to {iova}, which was unmapped, did not arrive; the device says {result:?}");
    }

    /// Blocks the device, lets it in again, and sees that it works as before.
    pub fn reattach(&self) {
        self.device.detach().expect("a detach");
        // A blocked device raises no events, and reaches not even its own queues: so its driver begins anew.
        self.device.attach(self.space.domain()).expect("an attach");
        self.nvme.start();
        let mut page = Page([0; PAGE]);
        self.nvme.read(0, &mut page.0);
        assert!(page.0 == *self.contents, "the device does not work after it was attached again");
        println!("the device works again after detach and attach");
    }

    /// Makes the SMMU fail to write an event, which it reports as a global error by interrupt; then lets it go on.
    ///
    /// Behind the driver's back the event queue is moved to an address where there is no memory, and back. Nothing else that a healthy driver and
    /// machine do brings a global error about.
    pub fn lose_an_event(&self) {
        // Beyond all RAM and all devices of `virt`.
        const NOWHERE: u64 = 0x30_0000_0000;
        let (prod, cons) = (self.registers.read32(offset::EVENTQ_PROD), self.registers.read32(offset::EVENTQ_CONS));
        let base = self.registers.read64(offset::EVENTQ_BASE);
        self.move_event_queue(base & !regs::QUEUE_BASE_ADDR | NOWHERE, 0, 0);
        let stale = self.stale_address();
        let _ = self.nvme.write_log(stale);
        let smmu = self.device.smmu().index();
        let error = wait("global error", |reported| {
            let found = reported.errors.iter().position(|&(from, _)| from == smmu)?;
            Some(reported.errors.swap_remove(found).1)
        });
        assert_eq!(error, Gerror::EVENTQ_ABT_ERR);
        let active = self.registers.read32(offset::GERROR) ^ self.registers.read32(offset::GERRORN);
        assert_eq!(active, 0, "the error was not acknowledged");
        println!("an event that could not be written: global error {error:?}");

        self.move_event_queue(base, prod, cons);
        let _ = self.nvme.write_log(stale);
        self.expect_fault(stale);
        println!("the event queue works again");
    }

    /// An address that was mapped, and is not any more.
    fn stale_address(&self) -> Iova {
        let iova = self.space.map(leak_pages(1), Prot::READ | Prot::WRITE);
        self.space.unmap(iova, PAGE);
        iova
    }

    /// The base register may be written while the queue is off (IHI 0070 §6.3.32).
    fn move_event_queue(&self, base: u64, prod: u32, cons: u32) {
        let cr0 = Cr0::new_with_raw_value(self.registers.read32(offset::CR0));
        let set = |cr0: Cr0| {
            self.registers.write32(offset::CR0, cr0.raw_value());
            wait("acknowledgement of CR0", |_| {
                (self.registers.read32(offset::CR0ACK) == cr0.raw_value()).then_some(())
            });
        };
        set(cr0.with_eventqen(false));
        self.registers.write64(offset::EVENTQ_BASE, base);
        self.registers.write32(offset::EVENTQ_PROD, prod);
        self.registers.write32(offset::EVENTQ_CONS, cons);
        set(cr0);
    }

    /// Waits for the report of the device's write to the unmapped address `iova`, and forgets it. What else is reported counts as unexpected.
    fn expect_fault(&self, iova: Iova) {
        let smmu = self.device.smmu().index();
        wait("fault", |reported| {
            let found = reported.events.iter().position(|&(from, event)| match event {
                Event::FTranslation(stream, TranslationFault { access, class: Class::In, stage, input, .. }) => {
                    let ours = from == smmu && self.device.streams() == [stream.sid] && stream.ssid.is_none();
                    ours && input == iova && !access.rnw && stage == FaultStage::S1
                }
                _ => false,
            })?;
            reported.events.remove(found);
            Some(())
        });
    }
}

/// Whole pages can be the target of a transfer.
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Waits until `look` finds something in what was reported.
fn wait<R>(what: &str, mut look: impl FnMut(&mut Reported) -> Option<R>) -> R {
    let end_ns = cpu::now_ns() + PATIENCE_NS;
    loop {
        if let Some(found) = look(&mut REPORTED.lock()) {
            return found;
        }
        assert!(cpu::now_ns() < end_ns, "no {what} came");
        cpu::nap();
    }
}

//! What the SMMUs report by interrupt, and whether that was expected.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayVec;
use smmuv3::arch::regs::{self, Cr0, Gerror, offset};
use smmuv3::arch::{Class, Event, FaultStage, Prot, TranslationFault};
use smmuv3::platform::{Iova, Mmio};
use smmuv3::{Device, SmmuHandle};
use smmuv3_discovery::{Interrupt, Interrupts};
use spin::Once;

use crate::dma::Space;
use crate::lock::Mutex;
use crate::memory::{PAGE, leak_pages};
use crate::nvme::{Nvme, Status};
use crate::platform::{Registers, Virt};
use crate::sabotage::{self, Sabotage};
use crate::{cpu, gic, println};

/// So many SMMUs are watched at most.
const MOST_SMMUS: usize = 4;
/// Events that are remembered until somebody asks.
const MOST: usize = 64;
const PATIENCE_NS: u64 = 5_000_000_000;

// What is counted of an SMMU.
const FAULT: usize = 0;
const ERROR: usize = 1;

static WATCHED: Once<Vec<(SmmuHandle<Virt>, Interrupts)>> = Once::new();

/// What was reported and nobody has asked for.
static REPORTED: Mutex<Reported> = Mutex::new(Reported::new());

struct Reported {
    /// The SMMU's number with each.
    events: ArrayVec<(u8, Event), MOST>,
    /// Events for which there was no room, here or in an SMMU's queue.
    lost: usize,
    errors: ArrayVec<(u8, Gerror), MOST>,
    /// Faults and errors of each SMMU that were expected.
    expected: [[usize; 2]; MOST_SMMUS],
}

impl Reported {
    const fn new() -> Self {
        Reported {
            events: ArrayVec::new_const(),
            lost: 0,
            errors: ArrayVec::new_const(),
            expected: [[0; 2]; MOST_SMMUS],
        }
    }
}

/// Takes the interrupts of these SMMUs, on this CPU.
pub fn watch(smmus: Vec<(SmmuHandle<Virt>, Interrupts)>) {
    for (smmu, interrupts) in WATCHED.call_once(|| smmus) {
        let wired = [interrupts.event, interrupts.gerror].map(|wire| wire.expect("an SMMU's interrupts are wired"));
        println!("{}: interrupts {} for events, {} for global errors", smmu.id(), wired[0].intid(), wired[1].intid());
        for (wire, deaf) in wired.iter().zip([Sabotage::DeafToEvents, Sabotage::DeafToErrors]) {
            if !sabotage::is(deaf) {
                gic::enable(wire);
            }
        }
    }
}

/// The handler. Runs with interrupts masked, on the CPU that called [`watch`].
pub fn interrupt(intid: u32) {
    let is = |wire: Option<Interrupt>| wire.is_some_and(|wire| wire.intid() == intid);
    for (smmu, interrupts) in WATCHED.get().expect("interrupts come after `watch`") {
        let number = smmu.id().index();
        if is(interrupts.event) {
            let mut reported = REPORTED.lock();
            let taken = smmu.take_events(|event| {
                println!("{}: interrupt {intid}: {event}", smmu.id());
                reported.lost += usize::from(reported.events.try_push((number, event)).is_err());
            });
            reported.lost += usize::from(taken.overflow);
        }
        if is(interrupts.gerror) {
            // Of a refused command, whoever waits for it is told: it is not among these.
            let errors = smmu.take_global_errors();
            println!("{}: interrupt {intid}: global errors: {errors}", smmu.id());
            let mut reported = REPORTED.lock();
            if !errors.is_empty() && reported.errors.try_push((number, errors.0)).is_err() {
                reported.lost += 1;
            }
        }
    }
}

/// What was reported.
pub struct Tally {
    /// Translation faults, each as expected: of the SMMU that had the fewest.
    pub faults: usize,
    /// Global errors, each as expected: of the SMMU that had the fewest.
    pub errors: usize,
    /// Whatever nobody expected.
    pub unexpected: usize,
}

/// Counts what was reported until now.
pub fn tally() -> Tally {
    let reported = REPORTED.lock();
    let smmus = WATCHED.get().map_or(0, Vec::len);
    let fewest = |kind: usize| reported.expected[..smmus].iter().map(|expected| expected[kind]).min().unwrap_or(0);
    let (faults, errors) = (fewest(FAULT), fewest(ERROR));
    Tally { faults, errors, unexpected: reported.events.len() + reported.errors.len() + reported.lost }
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
}

/// A page that devices write their four bytes to.
struct Target {
    word: &'static AtomicU32,
    iova: Iova,
}

impl Target {
    const POISON: u32 = 0xaaaa_aaaa;

    fn new(space: &Space) -> Self {
        let page = leak_pages(1);
        // SAFETY: the beginning of a zeroed page that is nobody else's, and that the devices, too, use only as a word.
        let word = unsafe { page.cast::<AtomicU32>().as_ref() };
        Target { word, iova: space.map(page, Prot::READ | Prot::WRITE) }
    }

    /// Has the device write, and tells whether that arrived, and what the device says of it.
    fn is_reached_by(&self, culprit: &Culprit<'_>) -> (bool, Result<(), Status>) {
        self.word.store(Self::POISON, Ordering::Relaxed);
        let result = culprit.nvme.write_log(self.iova);
        (self.word.load(Ordering::Relaxed) != Self::POISON, result)
    }
}

/// Has each device write to the same page of `space`: while it is mapped, and after it was unmapped, once for all. The first time the write must arrive, the
/// second time not, which each device's SMMU reports by interrupt.
pub fn use_after_unmap(culprits: &[Culprit<'_>], space: &Space) {
    let target = Target::new(space);
    for culprit in culprits {
        assert_eq!(target.is_reached_by(culprit), (true, Ok(())), "a write to a mapped page");
    }
    if !sabotage::is(Sabotage::StillMapped) {
        space.unmap(target.iova, PAGE);
    }
    for culprit in culprits {
        let (arrived, result) = target.is_reached_by(culprit);
        assert!(!arrived, "a device reached a page that was unmapped");
        culprit.expect_fault(target.iova);
        println!("a write to {}, which was unmapped, did not arrive; the device says {result:?}", target.iova);
    }
}

impl Culprit<'_> {
    /// Blocks the device, lets it in again, and sees that it works as before.
    pub fn reattach(&self) {
        self.device.detach().expect("a detach");
        // A blocked device raises no events, and reaches not even its own queues: so its driver begins anew.
        self.device.attach(self.space.domain()).expect("an attach");
        self.nvme.start();
        let target = Target::new(self.space);
        assert_eq!(target.is_reached_by(self), (true, Ok(())), "a write after the device was attached again");
        self.space.unmap(target.iova, PAGE);
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
            reported.expected[usize::from(smmu)][ERROR] += 1;
            Some(reported.errors.remove(found).1)
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
        let Target { iova, .. } = Target::new(self.space);
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
            reported.expected[usize::from(smmu)][FAULT] += 1;
            Some(())
        });
    }
}

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

//! Device transactions, how they end, and the event records for those that end badly (§7.3).

use std::fmt;

use smmuv3::arch::{Access, Class, Event, FaultStage, Fetch, Ipa, Stream, TranslationFault};
use smmuv3::platform::{Iova, PhysAddr};

/// One transaction of a device, within one page. Devices make unprivileged data accesses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub sid: u32,
    pub ssid: Option<u32>,
    pub iova: u64,
    pub write: bool,
    /// It uses ATS: an ATS Translation Request, or what the function does for the sake of one.
    pub ats: bool,
    /// A prefetch that does not look for what is cached of its translation.
    pub afresh: bool,
}

/// Why a device's access did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmaError {
    /// The SMMU terminated it with an abort. The device does not learn why; a test may look: the event that the SMMU
    /// recorded (or would have, had it not been told to be silent or lost the event).
    Aborted(Option<Event>),
    /// The SMMU let it pass, but there is no memory at that address.
    NoMemory(PhysAddr),
    /// ATS is off in the function: it issued nothing.
    AtsOff,
    /// The translation request was answered, without the right to do this (§3.9.1.2: Success, R or W is 0).
    AtsDenied,
    /// The translation request was answered with Unsupported Request. The event that the SMMU recorded, if one.
    AtsUnsupported(Option<Event>),
    /// The translation request was answered with Completer Abort. The event that an ordinary transaction would have led
    /// to; the SMMU did not record it.
    AtsCompleterAbort(Option<Event>),
}

impl fmt::Display for DmaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DmaError::Aborted(Some(event)) => write!(f, "aborted: {event}"),
            DmaError::Aborted(None) => write!(f, "aborted"),
            DmaError::NoMemory(pa) => write!(f, "no memory at {pa}"),
            DmaError::AtsOff => f.write_str("ATS is off"),
            DmaError::AtsDenied => f.write_str("the translation request was answered without the right to do this"),
            DmaError::AtsUnsupported(Some(event)) => write!(f, "translation request unsupported: {event}"),
            DmaError::AtsUnsupported(None) => f.write_str("translation request unsupported"),
            DmaError::AtsCompleterAbort(Some(event)) => write!(f, "translation request aborted: {event}"),
            DmaError::AtsCompleterAbort(None) => f.write_str("translation request aborted"),
        }
    }
}

impl std::error::Error for DmaError {}

/// A transaction that the SMMU terminates.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub event: Option<Event>,
    /// The event is recorded.
    pub record: bool,
    /// Terminated as a success: reads give zero, writes vanish (`CD.A` = 0).
    pub quiet: bool,
}

/// Which of the four faults that a descriptor (or its absence) can cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    Translation,
    AddrSize,
    AccessFlag,
    Permission,
}

impl Request {
    pub(crate) fn stream(&self) -> Stream {
        Stream { sid: self.sid, ssid: self.ssid }
    }

    fn access(&self) -> Access {
        Access { rnw: !self.write, ind: false, pnu: false }
    }

    /// A fault with an event that is always recorded.
    pub(crate) fn config_fault(&self, event: Event) -> Fault {
        Fault { event: Some(event), record: true, quiet: false }
    }

    /// Stage 1 is done wrong.
    pub(crate) fn stage1_fault(&self, cause: Cause) -> Event {
        self.translation_event(cause, Class::In, FaultStage::S1)
    }

    /// Stage 2 is done wrong, on the way to what `class` says.
    pub(crate) fn stage2_fault(&self, cause: Cause, class: Class, ipa: u64) -> Event {
        self.translation_event(cause, class, FaultStage::S2 { ipa: Ipa(ipa & !0xfff), nsipa: false })
    }

    fn translation_event(&self, cause: Cause, class: Class, stage: FaultStage) -> Event {
        let stream = self.stream();
        let fault = TranslationFault { stall: None, access: self.access(), class, stage, input: Iova(self.iova) };
        match cause {
            Cause::Translation => Event::FTranslation(stream, fault),
            Cause::AddrSize => Event::FAddrSize(stream, fault),
            Cause::AccessFlag => Event::FAccess(stream, fault),
            // The SMMU only ever reads descriptors.
            Cause::Permission => Event::FPermission { stream, fault, ttrnw: class == Class::Tt, other: 0 },
        }
    }

    /// Several TLB entries for an address (§7.3.17); `class`: it is an input of stage 2.
    pub(crate) fn tlb_conflict(&self, class: Option<Class>, input: u64) -> Event {
        let stage = match class {
            None => FaultStage::S1,
            Some(_) => FaultStage::S2 { ipa: Ipa(input & !0xfff), nsipa: false },
        };
        Event::FTlbConflict { stream: self.stream(), access: self.access(), stage, input: Iova(self.iova), reason: 0 }
    }

    /// A descriptor could not be read.
    pub(crate) fn walk_abort(&self, s2: bool, class: Class, addr: u64) -> Fault {
        self.config_fault(Event::FWalkEabt {
            stream: self.stream(),
            access: self.access(),
            class,
            s2,
            input: Iova(self.iova),
            fetch: fetch(addr),
        })
    }
}

/// The fetch of the structure at `addr` found no memory.
pub(crate) fn fetch(addr: u64) -> Fetch {
    Fetch { addr: PhysAddr(addr & 0x00ff_ffff_ffff_fff8), gpcf: false, reason: 0 }
}

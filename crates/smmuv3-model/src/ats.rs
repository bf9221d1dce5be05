//! ATS (§3.9): translation requests, translated accesses, and the invalidation of ATCs.
//!
//! Laziness, all of it permitted by §3.9.1 and §4.5.1:
//! - an ATC is filled from the TLB, doomed entries included; unasked, too, and with pieces of what it was told;
//! - translated writes that were posted may be on their way until the CMD_SYNC after an ATC_INV;
//! - a function asks again for what an ATC_INV took from it, as soon as it is gone: an ATC_INV that comes before the
//!   completion of the TLBI (none, or no CMD_SYNC between) only replaces the old translation by the old translation;
//! - translated accesses are checked against the STE as it is cached, if at all;
//! - when an ATC_INV is not answered in time, the CMD_SYNC completes nothing, and all outstanding ATC_INVs may be lost.

use smmuv3::arch::regs::CmdqError;
use smmuv3::arch::{Eats, Event, Granule, Rights, Ste, Stream};
use smmuv3::platform::Iova;

use crate::atc::{AtcEntry, AtcScope, AtsAnswers, Function};
use crate::fault::{DmaError, Fault, Request};
use crate::smmu::{Transfer, Unit};
use crate::tlb::Doomed;
use crate::walk::{Output, Source};

/// An ATC_INV that no CMD_SYNC has completed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outstanding {
    /// Where it was consumed.
    queue: usize,
    sid: u32,
    /// CMD_SYNCs that it will fail: 0 if it was answered.
    timeouts: u32,
}

impl Unit {
    pub(crate) fn function(&mut self, sid: u32) -> &mut Function {
        self.functions.entry(sid).or_default()
    }

    // --- the host's side ---

    /// Writes the ATS Control register of a function.
    pub(crate) fn ats_enable(&mut self, sid: u32, stu: u8) -> bool {
        if !self.features.ats {
            self.violation(format!("ATS is turned on in StreamID {sid:#x}, behind an SMMU without ATS"));
            return false;
        }
        // STU is the smallest granule, the same for all functions of an SMMU (§3.9.1).
        let granules = [Granule::K4, Granule::K16, Granule::K64];
        let smallest = granules.into_iter().find(|&granule| self.features.granule(granule));
        let right = smallest.map_or(0, |granule| granule.shift() as u8 - 12);
        if stu != right {
            self.violation(format!(
                "the STU of StreamID {sid:#x} is set to {stu}; the smallest granule makes it {right}"
            ));
        }
        if !self.regs.cr0ack.smmuen() {
            self.violation(format!("ATS is turned on in StreamID {sid:#x} while SMMUEN is 0"));
        }
        let function = self.function(sid);
        if !function.behaviour.has_ats {
            return false;
        }
        (function.enabled, function.stu) = (true, stu);
        true
    }

    /// Writes 0 to the ATS Control register of a function. Its ATC keeps what it has.
    pub(crate) fn ats_disable(&mut self, sid: u32) {
        let function = self.function(sid);
        function.enabled = false;
        if self.outstanding.iter().any(|invalidation| invalidation.sid == sid) {
            self.violation(format!("ATS is turned off in StreamID {sid:#x}, which has an ATC_INV without CMD_SYNC"));
            if self.function(sid).behaviour.answers == AtsAnswers::OnlyWhileEnabled {
                self.fall_silent(sid);
            }
        }
    }

    /// A function-level reset. Whoever resets a function waits for what it has posted.
    pub(crate) fn reset_function(&mut self, sid: u32) {
        self.push_posted(sid);
        self.function(sid).reset();
        if self.function(sid).behaviour.answers != AtsAnswers::Always {
            self.fall_silent(sid);
        }
    }

    /// What the function was asked to invalidate, it will not answer.
    fn fall_silent(&mut self, sid: u32) {
        let function = self.function(sid);
        function.pardon(None);
        let timeouts = function.behaviour.timeouts.max(1);
        for invalidation in self.outstanding.iter_mut().filter(|invalidation| invalidation.sid == sid) {
            invalidation.timeouts = timeouts;
        }
    }

    /// `SMMUEN` became 0: all ATS should have been off before (§3.9.1).
    pub(crate) fn check_ats_is_off(&self) {
        let mut on: Vec<u32> =
            self.functions.iter().filter(|(_, function)| function.enabled).map(|(&sid, _)| sid).collect();
        on.sort_unstable();
        if !on.is_empty() {
            self.violation(format!("SMMUEN is cleared while ATS is on in StreamIDs {on:#x?}"));
        }
    }

    // --- the function's side ---

    /// An access of a function that uses ATS for it, within one page.
    pub(crate) fn ats_access(&mut self, request: &Request, transfer: Transfer<'_>) -> Result<(), DmaError> {
        let function = self.function(request.sid);
        if !function.enabled {
            return Err(DmaError::AtsOff);
        }
        let cached = function.lookup(request.ssid, request.iova).copied();
        let entry = match cached.filter(|entry| entry.allows(request.write)) {
            Some(entry) => entry,
            // A miss, or not the right to do this: asking once more may bring it.
            None => {
                let entry = self.ats_request(request, true)?;
                entry.allows(request.write).then_some(entry).ok_or(DmaError::AtsDenied)?
            }
        };
        let pa = entry.translate(request.iova);
        if let Err(fault) = self.check_translated(request, pa) {
            return self.terminate(&fault, transfer);
        }
        self.translated += 1;
        let output = Output { pa, prot: entry.prot, chunk: entry.shift, source: Source::Atc(entry) };
        self.finish(request, &output, transfer)
    }

    /// An ATS Translation Request (§3.9.1.2) and what its completion puts into the ATC. `record`: its one event, too.
    pub(crate) fn ats_request(&mut self, request: &Request, record: bool) -> Result<AtcEntry, DmaError> {
        self.ats_requests += 1;
        let request = Request { ats: true, ..*request };
        let found = match self.regs.cr0ack.smmuen() {
            true => self.find_ste(&request).map_err(|fault| DmaError::AtsCompleterAbort(fault.event))?,
            false => return Err(self.bad_request(&request, record)),
        };
        match found.entry.ste {
            Err(_) | Ok(Ste::Invalid) => {
                return Err(DmaError::AtsCompleterAbort(Some(Event::CBadSte(request.stream()))));
            }
            Ok(Ste::Abort) => return Err(DmaError::AtsUnsupported(None)),
            Ok(Ste::Bypass | Ste::Translate { eats: Eats::Off, .. }) => return Err(self.bad_request(&request, record)),
            Ok(Ste::Translate { eats: Eats::Full | Eats::Split, .. }) => {}
        }
        let output = self.translate_with(&request, &found).map_err(|fault| match fault.event {
            // No rights, and no event: §3.9.1.2.
            None
            | Some(Event::FTranslation(..) | Event::FAddrSize(..) | Event::FAccess(..) | Event::FPermission { .. }) => {
                DmaError::AtsDenied
            }
            // Not recorded either: that needs CR2.REC_CFG_ATS, and this SMMU has no IDR0.ATSRECERR.
            event => DmaError::AtsCompleterAbort(event),
        })?;
        if output.prot.is_empty() {
            // Cached nowhere: the next access asks again.
            return Err(DmaError::AtsDenied);
        }
        let shift = self.atc_shift(request.sid, output.chunk);
        let entry = AtcEntry {
            ssid: request.ssid,
            iova: request.iova,
            pa: output.pa >> shift << shift,
            shift,
            prot: output.prot,
            filled: self.memory.tick(),
            from: match output.source {
                Source::Tlb(hit) => Some(hit),
                _ => None,
            },
            doomed: Doomed::NO,
        };
        self.function(request.sid).insert(entry);
        Ok(entry)
    }

    /// What a function keeps of `2^chunk` bytes that it was told of: all, or a piece.
    fn atc_shift(&mut self, sid: u32, chunk: u8) -> u8 {
        let smallest = 12 + self.function(sid).stu;
        match self.laziness.atc_pieces && chunk > smallest && self.rng.one_in(2) {
            true => smallest + self.rng.below(u64::from(chunk - smallest)).min(4) as u8,
            false => chunk,
        }
    }

    /// Unsupported Request, with F_BAD_ATS_TREQ (§7.3.6).
    fn bad_request(&mut self, request: &Request, record: bool) -> DmaError {
        let event = Event::FBadAtsTreq {
            stream: request.stream(),
            input: Iova(request.iova & !0xfff),
            rights: Rights { read: true, write: request.write, execute: false },
            privileged: false,
            span: 1,
        };
        if record {
            self.record(&event);
        }
        DmaError::AtsUnsupported(Some(event))
    }

    /// Whether a translated access may pass (§3.9.1.3). It arrives without a PASID: there is no `IDR3.PASIDTT`.
    fn check_translated(&mut self, request: &Request, pa: u64) -> Result<(), Fault> {
        let request = Request { ssid: None, ..*request };
        let forbidden = Fault {
            event: Some(Event::FTranslForbidden {
                stream: Stream { sid: request.sid, ssid: None },
                rnw: !request.write,
                input: Iova(pa),
            }),
            record: true,
            quiet: false,
        };
        let silent = |event| Fault { event, record: false, quiet: false };
        if !self.regs.cr0ack.smmuen() {
            return Err(forbidden);
        }
        if self.regs.cr0ack.atschk() {
            let found = self.find_ste(&request).map_err(|fault| silent(fault.event))?;
            match found.entry.ste {
                Err(_) | Ok(Ste::Invalid) => return Err(silent(Some(Event::CBadSte(request.stream())))),
                Ok(Ste::Abort) => return Err(silent(None)),
                Ok(Ste::Bypass | Ste::Translate { eats: Eats::Off, .. }) => return Err(forbidden),
                Ok(Ste::Translate { eats: Eats::Full | Eats::Split, .. }) => {}
            }
        }
        // §3.9.1.1
        if pa >> self.features.oas.bits() != 0 { Err(silent(None)) } else { Ok(()) }
    }

    // --- the command ---

    /// CMD_ATC_INV (§4.5.1), on an SMMU that is on, for a StreamID that it has.
    pub(crate) fn atc_inv(&mut self, sid: u32, ssid: Option<u32>, global: bool, addr: u64, size: u8) {
        match size {
            52.. => self.atc_everything += 1,
            size => self.atc_pages += 1 << size,
        }
        let function = self.function(sid);
        let (enabled, stu, behaviour) = (function.enabled, function.stu, function.behaviour);
        if !enabled {
            self.atc_to_disabled += 1;
            self.violation(format!("ATC_INV for StreamID {sid:#x}, whose ATS is off"));
        }
        let answered = match behaviour.answers {
            AtsAnswers::Always => true,
            AtsAnswers::Never => false,
            AtsAnswers::OnlyWhileEnabled => enabled,
        };
        self.outstanding.push(Outstanding {
            queue: self.queue,
            sid,
            timeouts: if answered { 0 } else { behaviour.timeouts.max(1) },
        });
        // What follows, a function may answer with Unsupported Request: done, and nothing invalidated (§3.9.1.5).
        if size < stu {
            self.violation(format!(
                "ATC_INV for StreamID {sid:#x} of 4096 << {size} bytes, less than its STU (<< {stu})"
            ));
            return;
        }
        if let Some(ssid) = ssid.filter(|ssid| ssid >> self.features.ssid_bits != 0) {
            self.violation(format!("ATC_INV for StreamID {sid:#x} and SubstreamID {ssid:#x}, which is out of range"));
            return;
        }
        if !answered {
            return;
        }
        let scope = AtcScope::new(ssid, global && behaviour.global_invalidate, addr, size);
        let queue = self.queue;
        if self.function(sid).doom(queue, &scope) {
            self.doomed_atcs.push((queue, sid));
        }
        self.posted_due_to_atc_inv(sid, &scope);
        if self.acts_early() {
            self.remove_doomed_from_atcs();
        }
    }

    /// A CMD_SYNC: all outstanding ATC_INVs of its queue are complete, or it is an error (§3.9.1.4, §4.7.3).
    ///
    /// Comes before the completion of TLB and configuration invalidations: a function that asks again gets what is
    /// stale.
    pub(crate) fn sync_atcs(&mut self) -> Result<(), CmdqError> {
        let queue = self.queue;
        if self.outstanding.iter().all(|invalidation| invalidation.queue != queue || invalidation.timeouts == 0) {
            self.outstanding.retain(|invalidation| invalidation.queue != queue);
            self.remove_doomed_from_atcs();
            return Ok(());
        }
        self.atc_timeouts += 1;
        let loses_all = self.laziness.atc_timeout_loses_all;
        self.outstanding.retain_mut(|invalidation| match invalidation.timeouts {
            _ if invalidation.queue != queue => true,
            0 => !loses_all,
            _ => {
                invalidation.timeouts -= 1;
                invalidation.timeouts > 0
            }
        });
        if loses_all {
            self.functions.values_mut().for_each(|function| function.pardon(Some(queue)));
        }
        Err(CmdqError::AtcInvSync)
    }

    fn remove_doomed_from_atcs(&mut self) {
        if self.doomed_atcs.is_empty() {
            return;
        }
        let queue = self.queue;
        let mut doomed: Vec<_> = self.doomed_atcs.extract_if(.., |(of, _)| *of == queue).collect();
        doomed.sort_unstable();
        doomed.dedup();
        for (_, sid) in doomed {
            let gone = self.function(sid).take_doomed(queue);
            if !self.function(sid).enabled || !self.laziness.atc_refill {
                continue;
            }
            for entry in gone {
                let request =
                    Request { sid, ssid: entry.ssid, iova: entry.iova, write: true, ats: true, afresh: false };
                // Whatever comes back: nobody waits for it.
                let _ = self.ats_request(&request, false);
            }
        }
    }
}

//! Posted writes: translated already, and on their way to memory.
//!
//! An invalidation is complete only when the transactions that used what it targets have reached memory (§3.21.1,
//! §3.21.3; for an ATC_INV §3.9.1), and the CMD_SYNC waits for that (§4.7.3). Until then nothing hurries them. The
//! writes of one function stay in order, and its other accesses push them before themselves, as PCIe has it.
//!
//! Nothing makes writes complete that an SMMU let pass while it was off: those are the devices' own business (§6.3.14).
//! They are not held back here. That SMMUEN becomes 0 makes nothing complete either (§6.3.9).

use crate::atc::AtcScope;
use crate::config::Cfgi;
use crate::fault::{DmaError, Request};
use crate::smmu::{Transfer, Unit};
use crate::tlb::{Doomed, Regime, Scope, Tag};
use crate::walk::{Output, Source};

/// Writes that are on their way at most, behind one SMMU.
const MOST: usize = 64;

/// A posted write within one page.
#[derive(Debug)]
pub(crate) struct Posted {
    request: Request,
    output: Output,
    data: Vec<u8>,
    issued: u64,
    /// The STE was looked at.
    checked: bool,
    /// Targeted by an invalidation: the next CMD_SYNC of its queue waits for it.
    due: Doomed,
}

impl Unit {
    /// Holds a posted write back, or lets it reach memory at once.
    pub(crate) fn post(&mut self, request: &Request, output: &Output, data: &[u8]) -> Result<(), DmaError> {
        let translated = matches!(output.source, Source::Atc(_));
        let late = match output.source {
            Source::Atc(_) => self.laziness.late_translated_writes,
            Source::Tlb(_) | Source::Bypass => self.laziness.late_writes,
            Source::Disabled => false,
        };
        if !late || self.rng.one_in(4) {
            self.push_posted(request.sid);
            return self.touch(request, output, Transfer::Write(data), None);
        }
        if self.posted.len() == MOST {
            self.perform(0);
        }
        let checked = !translated || self.regs.cr0ack.atschk();
        // What is targeted by an invalidation already.
        let index = (!translated).then(|| request.ssid.unwrap_or(0));
        let due = match output.source {
            Source::Atc(entry) => entry.doomed,
            Source::Tlb(hit) => hit.origin.doomed,
            Source::Bypass | Source::Disabled => Doomed::NO,
        };
        let due = if checked { due | self.configs.dooms(request.sid, index) } else { due };
        let issued = self.memory.tick();
        self.posted.push(Posted { request: *request, output: *output, data: data.to_vec(), issued, checked, due });
        Ok(())
    }

    /// What a function has posted reaches memory.
    pub(crate) fn push_posted(&mut self, sid: u32) {
        while let Some(index) = self.posted.iter().rposition(|posted| posted.request.sid == sid) {
            self.perform(index);
        }
    }

    /// Time goes on: now and then one arrives.
    pub(crate) fn some_posted_arrive(&mut self) {
        if !self.posted.is_empty() && self.rng.one_in(16) {
            let index = self.rng.below(self.posted.len() as u64) as usize;
            self.perform(index);
        }
    }

    /// A CMD_SYNC of `queue`: those that have to, arrive.
    pub(crate) fn due_posted_arrive(&mut self, queue: usize) {
        while let Some(index) = self.posted.iter().rposition(|posted| posted.due.by(queue)) {
            self.perform(index);
        }
    }

    /// One arrives, and before it those that the same function posted earlier.
    fn perform(&mut self, index: usize) {
        let sid = self.posted[index].request.sid;
        let mut index = index + 1;
        let mut at = 0;
        while at < index {
            if self.posted[at].request.sid != sid {
                at += 1;
                continue;
            }
            let Posted { request, output, data, issued, .. } = self.posted.remove(at);
            index -= 1;
            // Nobody is told.
            let _ = self.touch(&request, &output, Transfer::Write(&data), Some(issued));
        }
    }

    // --- what becomes due ---

    pub(crate) fn posted_due_to_tlbi(&mut self, scope: &Scope) {
        let combined = self.laziness.nested_entries;
        for posted in &mut self.posted {
            let Source::Tlb(hit) = posted.output.source else { continue };
            // Where stage 2 has entries of its own only, a translation used them, too.
            let stage2 = Tag { regime: Regime::Stage2, asid: 0, global: None, ..hit.tag };
            let reached = scope.reaches_leaf(&hit.tag, &hit.origin) || !combined && scope.reaches_tag(&stage2);
            posted.due |= Doomed::by_if(self.queue, reached);
        }
    }

    pub(crate) fn posted_due_to_cfgi(&mut self, cfgi: &Cfgi) {
        for posted in &mut self.posted {
            let Request { sid, ssid, .. } = posted.request;
            let translated = matches!(posted.output.source, Source::Atc(_));
            let reached = match *cfgi {
                Cfgi::Stes { first, last, .. } => posted.checked && (first..=last).contains(&sid),
                Cfgi::Cd { sid: of, ssid: index, .. } => !translated && of == sid && index == ssid.unwrap_or(0),
                Cfgi::Cds { sid: of } => !translated && of == sid,
            };
            posted.due |= Doomed::by_if(self.queue, reached);
        }
    }

    pub(crate) fn posted_due_to_atc_inv(&mut self, sid: u32, scope: &AtcScope) {
        for posted in &mut self.posted {
            let Source::Atc(entry) = &posted.output.source else { continue };
            let reached = posted.request.sid == sid && scope.reaches(entry);
            posted.due |= Doomed::by_if(self.queue, reached);
        }
    }
}

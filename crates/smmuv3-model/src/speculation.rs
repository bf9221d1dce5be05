//! What the SMMU does unasked: prefetches (§3.21.1, §3.21.3), and those of the functions behind it (§3.9.1).
//!
//! It fetches what valid configuration leads to, and nothing else: STEs within the stream table, CDs within the table of a valid
//! STE, descriptors on the way from a valid CD or STE to an address. Whatever comes of it is cached as if a transaction
//! had asked for it; no event ever does. Nothing happens while SMMUEN is 0.
//!
//! Where to look is guessed from where transactions went, and from StreamIDs whose STE has just been invalidated.

use smmuv3::arch::{Stages, Ste};

use crate::fault::Request;
use crate::smmu::Unit;

/// Transactions that guesses start from.
const RECENT: usize = 16;

impl Unit {
    /// Takes note of a transaction.
    pub(crate) fn remember(&mut self, request: &Request) {
        if self.recent.len() < RECENT {
            self.recent.push(*request);
        } else if self.rng.one_in(8) {
            let index = self.rng.below(RECENT as u64) as usize;
            self.recent[index] = *request;
        }
    }

    /// A stream whose configuration has changed.
    pub(crate) fn remember_stream(&mut self, sid: u32) {
        let iova = self.guess().map_or(0, |recent| recent.iova);
        self.remember(&Request { sid, ssid: None, iova, write: false, ats: false, afresh: false });
    }

    fn guess(&mut self) -> Option<Request> {
        let count = self.recent.len() as u64;
        (count > 0).then(|| self.recent[self.rng.below(count) as usize])
    }

    /// Prefetches something, or not.
    pub(crate) fn speculate(&mut self) {
        if !self.regs.cr0ack.smmuen() {
            return;
        }
        let Some(guess) = self.guess() else { return };
        match self.rng.below(3) {
            0 if self.laziness.prefetch_configs => self.prefetch_config(guess),
            1 if self.laziness.prefetch_translations => self.prefetch_translation(guess),
            2 if self.laziness.atc_prefetch => self.prefetch_to_atc(guess),
            _ => {}
        }
    }

    /// The STE of the stream or of a neighbour, and one of its CDs.
    fn prefetch_config(&mut self, guess: Request) {
        let bit = 1 << self.rng.below(u64::from(self.features.sid_bits.max(1)));
        let sid = if self.rng.one_in(2) { guess.sid } else { guess.sid ^ bit };
        let request = Request { sid, ssid: None, ats: false, afresh: true, ..guess };
        let Ok(found) = self.find_ste(&request) else { return };
        let Ok(Ste::Translate { vmid, stages, .. }) = found.entry.ste else { return };
        let (s1, s2) = match stages {
            Stages::S1(s1) => (s1, None),
            Stages::Nested(s1, s2) => (s1, Some(found.stage2(vmid, s2))),
            Stages::S2(_) => return,
        };
        let index = self.rng.below(1 << s1.cd_max.min(4)) as u32;
        let _ = self.find_cd(&request, &found, &s1, s2.as_ref(), index);
    }

    fn prefetch_translation(&mut self, guess: Request) {
        let request = Request { iova: self.near(guess.iova), ats: false, afresh: self.rng.one_in(2), ..guess };
        let _ = self.translate(&request);
    }

    fn prefetch_to_atc(&mut self, guess: Request) {
        if self.functions.get(&guess.sid).is_some_and(|function| function.enabled) {
            let request = Request { iova: self.near(guess.iova), write: self.rng.one_in(2), ..guess };
            let _ = self.ats_request(&request, false);
        }
    }

    /// An address nearby, in the same table or in another, or the same.
    fn near(&mut self, iova: u64) -> u64 {
        match self.rng.below(2) {
            0 => iova ^ self.rng.below(8) << 12,
            _ => iova ^ 1 << (12 + self.rng.below(28)),
        }
    }
}

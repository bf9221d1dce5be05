//! A PCIe function as ATS sees it: whether ATS is on, its address translation cache, and how it behaves.
//!
//! The ATC never forgets by itself: an entry stays until an ATC_INV names it (PCIe base specification, chapter 10). An
//! entry belongs to the PASID that asked for it, or to none. An ATC_INV that was consumed but not synchronised makes
//! entries *doomed*, as in the TLB: they still serve accesses, and the CMD_SYNC removes them.

use std::fmt;

use smmuv3::arch::Prot;

use crate::tlb::{Doomed, Map, TlbHit};

/// How a PCIe function behaves with ATS. For [`Model::set_ats`](crate::Model::set_ats).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtsBehaviour {
    /// It has the ATS capability. If not, `ats_enable` gives false.
    pub has_ats: bool,
    /// When it answers an ATC_INV.
    pub answers: AtsAnswers,
    /// CMD_SYNCs that one ATC_INV fails which it does not answer: at least 1. `u32::MAX` is as good as for ever.
    pub timeouts: u32,
    /// It has the "Global Invalidate Supported" capability: an ATC_INV with SSV and G reaches the entries of all PASIDs.
    /// If not, it takes no notice of G.
    pub global_invalidate: bool,
}

impl Default for AtsBehaviour {
    /// The dangerous kind: it answers only while ATS is on.
    fn default() -> Self {
        AtsBehaviour { has_ats: true, answers: AtsAnswers::OnlyWhileEnabled, timeouts: 1, global_invalidate: false }
    }
}

/// When a PCIe function answers an ATC_INV. Where it doesn't, the next CMD_SYNC fails with CERROR_ATC_INV_SYNC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AtsAnswers {
    /// Always; it also invalidates while ATS is off.
    Always,
    /// Never.
    Never,
    /// While ATS is on. An invalidation that is under way when ATS is turned off is not answered any more.
    #[default]
    OnlyWhileEnabled,
}

/// An entry of an ATC: `2^shift` bytes from a multiple of that.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AtcEntry {
    pub ssid: Option<u32>,
    /// The address that was asked for: what the function asks for again when the entry is gone.
    pub iova: u64,
    /// Where the first byte of the span is.
    pub pa: u64,
    pub shift: u8,
    pub prot: Prot,
    /// When it was filled.
    pub filled: u64,
    /// The TLB entry that the answer came from; `None` where no stage translates.
    pub from: Option<TlbHit>,
    /// Invalidated, but not synchronised yet.
    pub doomed: Doomed,
}

impl AtcEntry {
    pub(crate) fn base(&self) -> u64 {
        self.iova >> self.shift << self.shift
    }

    pub(crate) fn allows(&self, write: bool) -> bool {
        self.prot.contains(if write { Prot::WRITE } else { Prot::READ })
    }

    pub(crate) fn translate(&self, iova: u64) -> u64 {
        self.pa | iova & ((1 << self.shift) - 1)
    }
}

impl fmt::Display for AtcEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = if self.from.is_some() { "from it" } else { "by a bypass" };
        write!(f, "tick {}: the ATC entry (", self.filled)?;
        if let Some(ssid) = self.ssid {
            write!(f, "PASID {ssid:#x}, ")?;
        }
        let doomed = if self.doomed.any() { ", invalidated but not synchronised" } else { "" };
        write!(f, "{:#x} + {:#x} to {:#x}{doomed}) was filled {from}", self.base(), 1u64 << self.shift, self.pa)
    }
}

/// What an ATC_INV reaches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AtcScope {
    /// `None` is everybody's.
    pub ssid: Option<u32>,
    /// All PASIDs (but not the entries without one).
    pub global: bool,
    pub first: u64,
    pub last: u64,
}

impl AtcScope {
    /// The span is aligned by the SMMU (§4.5.1); from 52 on it is everything.
    pub(crate) fn new(ssid: Option<u32>, global: bool, addr: u64, size: u8) -> Self {
        let below = 1u64.checked_shl(12 + u32::from(size)).map_or(u64::MAX, |span| span - 1);
        AtcScope { ssid, global, first: addr & !below, last: addr | below }
    }

    pub(crate) fn reaches(&self, entry: &AtcEntry) -> bool {
        // Without a PASID, an invalidation reaches the entries of every PASID as well (PCIe, PASID prefix in Invalidate Requests).
        let whose = self.ssid.is_none() || entry.ssid == self.ssid || self.global && entry.ssid.is_some();
        let end = entry.base() | ((1 << entry.shift) - 1);
        whose && entry.base() <= self.last && end >= self.first
    }
}

/// A PCIe function.
#[derive(Debug, Default)]
pub(crate) struct Function {
    pub behaviour: AtsBehaviour,
    /// The Enable bit of its ATS Control register.
    pub enabled: bool,
    /// Its smallest translation unit: `4096 << stu` bytes.
    pub stu: u8,
    entries: Map<(Option<u32>, u8, u64), AtcEntry>,
    /// The sizes (as shifts) of which there are entries.
    shifts: u64,
}

impl Function {
    /// The smallest entry for `iova`.
    pub(crate) fn lookup(&self, ssid: Option<u32>, iova: u64) -> Option<&AtcEntry> {
        (12..64)
            .filter(|shift| self.shifts >> shift & 1 != 0)
            .find_map(|shift| self.entries.get(&(ssid, shift, iova >> shift)))
    }

    pub(crate) fn insert(&mut self, entry: AtcEntry) {
        self.shifts |= 1 << entry.shift;
        self.entries.insert((entry.ssid, entry.shift, entry.iova >> entry.shift), entry);
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Marks what `scope` reaches, for a command of `queue`. Whether there is any.
    pub(crate) fn doom(&mut self, queue: usize, scope: &AtcScope) -> bool {
        let reached = self.entries.values_mut().filter(|entry| scope.reaches(entry));
        reached.map(|entry| entry.doomed |= Doomed::by_if(queue, true)).count() > 0
    }

    /// Nothing is doomed any more by the queue, or (`None`) by any: the invalidations came to nothing.
    pub(crate) fn pardon(&mut self, queue: Option<usize>) {
        self.entries.values_mut().for_each(|entry| match queue {
            Some(queue) => entry.doomed.forget(queue),
            None => entry.doomed = Doomed::NO,
        });
    }

    /// Removes what the queue has doomed, and gives it in order of address.
    pub(crate) fn take_doomed(&mut self, queue: usize) -> Vec<AtcEntry> {
        let mut gone: Vec<_> = self.entries.values().filter(|entry| entry.doomed.by(queue)).copied().collect();
        self.entries.retain(|_, entry| !entry.doomed.by(queue));
        gone.sort_unstable_by_key(|entry| (entry.ssid, entry.iova));
        gone
    }

    /// A function-level reset: ATS is off, the ATC empty.
    pub(crate) fn reset(&mut self) {
        *self = Function { behaviour: self.behaviour, ..Function::default() };
    }
}

//! Map and unmap, and the invalidation that unmap owes: from the array and a range to commands, to all SMMUs at once, waited
//! for once.
//!
//! The promise is kept by order. An unmapping thread changes descriptors, passes a full barrier (A), enters a read
//! section, loads the array, and invalidates what it lists. An attaching thread publishes the array that lists the new device, passes
//! a write barrier (B), and lets the SMMU walk the tables. Either the unmapper sees the new array, or the SMMU's
//! first walk sees the new descriptors.

mod commands;
mod gather;
mod range;
mod spans;

pub(crate) use commands::{Change, flush_tag, push_commands};
pub(crate) use gather::Gathered;
pub use gather::{DeferLimits, Deferred, Gather, NotDeferred};
pub(crate) use spans::Span;

use crate::primitive::Ordering;
use arrayvec::ArrayVec;

use crate::arch::regs::CmdqError;
use crate::arch::{Granule, Prot};
use crate::domain::{Paging, PagingDomain};
use crate::invs::{InvArray, Invs, Key, Kind, Run};
use crate::pgtable::{MapCause, MapFailure, Unmapped};
use crate::platform::{Iova, PhysAddr, Platform};
use crate::queue::{QueueError, Submission};
use crate::rcu::Reader;
use crate::shared::Shared;
use crate::smmu::{Fleet, MAX_SMMUS, Smmu, SmmuId, Ticket};

/// Why a range can't be mapped or unmapped, whatever is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRange {
    /// No bytes.
    #[error("the length is 0")]
    Empty,
    /// An address or the length is not a multiple of the granule.
    #[error("{value:#x} is not a multiple of the {granule} granule")]
    Misaligned {
        /// The address or length.
        value: u64,
        /// The granule.
        granule: Granule,
    },
    /// The range does not lie in the domain's input range.
    #[error("{iova} + {len:#x} is beyond the domain's {bits} input address bits")]
    Input {
        /// First IOVA.
        iova: Iova,
        /// Bytes.
        len: u64,
        /// Input bits.
        bits: u8,
    },
    /// The target does not lie in the domain's output range.
    #[error("{paddr} + {len:#x} is beyond the domain's {bits} output address bits")]
    Output {
        /// First target address.
        paddr: PhysAddr,
        /// Bytes.
        len: u64,
        /// Output bits.
        bits: u8,
    },
}

/// An SMMU did not carry out an invalidation: devices behind it may still reach what was unmapped, unless a device was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{smmu}{}: invalidation failed: {cause}", Device(*sid))]
pub struct InvalidateError {
    /// The SMMU; if there are several, the first.
    pub smmu: SmmuId,
    /// The StreamID of a device that did not answer an ATC_INV. Its STE aborts now, so it reaches nothing, until it is attached again.
    pub sid: Option<u32>,
    /// What went wrong.
    pub cause: QueueError,
}

/// For the error's text.
struct Device(Option<u32>);

impl core::fmt::Display for Device {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            Some(sid) => write!(f, ", StreamID {sid:#x} (cut off)"),
            None => Ok(()),
        }
    }
}

/// Why nothing was mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The range is bad.
    #[error(transparent)]
    BadRange(#[from] BadRange),
    /// Neither reading nor writing is allowed.
    #[error("a mapping must be readable or writable")]
    NoAccess,
    /// Something is mapped there already.
    #[error("{0} is mapped already")]
    AlreadyMapped(Iova),
    /// No memory for a translation table.
    #[error("out of memory for the translation table of {0}")]
    NoMemory(Iova),
    /// The mapping failed half way, and taking the first half back failed too: devices may still reach it.
    #[error("taking a failed mapping back: {0}")]
    NotTakenBack(#[from] InvalidateError),
}

/// Why something is still mapped, or may still be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnmapError {
    /// The range is bad. Nothing was changed.
    #[error(transparent)]
    BadRange(#[from] BadRange),
    /// The range covers a part of a block, which can only be unmapped whole. Nothing was changed.
    #[error("the range covers only a part of the block of {size:#x} bytes at {iova}")]
    PartOfBlock {
        /// Where the block begins.
        iova: Iova,
        /// Its size in bytes.
        size: u64,
    },
    /// It is unmapped, and no device can reach it any more; but a device that did not answer an ATC_INV was cut off for that: its STE
    /// aborts until it is attached again.
    #[error("{source} ({bytes:#x} bytes are unmapped)")]
    CutOff {
        /// Bytes that were unmapped.
        bytes: u64,
        /// Which SMMU and device.
        source: InvalidateError,
    },
    /// It is unmapped, but an SMMU did not carry out the invalidation: **the pages must not be used for anything else.**
    #[error("{source} ({bytes:#x} bytes are unmapped but may still be reached)")]
    StillReachable {
        /// Bytes that were unmapped.
        bytes: u64,
        /// Which SMMU, and why.
        source: InvalidateError,
    },
}

/// What an unmap did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnmapReport {
    /// Bytes that were mapped and are no longer.
    pub bytes: u64,
    /// Rounds of waiting for hardware: 0 where no device is attached, else 1.
    pub wait_rounds: u32,
}

impl<P: Platform> PagingDomain<P> {
    /// Lets attached devices reach `len` bytes at `paddr` through `iova`. All or nothing.
    ///
    /// All three are multiples of the granule. When it returns, devices can use the mapping. Callers keep apart what they map: of two that map a page at the
    /// same moment both may be told that it is theirs, and one that fails may take the other's back.
    pub fn map(&self, iova: Iova, paddr: PhysAddr, len: u64, prot: Prot) -> Result<(), MapError> {
        let domain = &*self.0;
        domain.check_range(iova, len)?;
        domain.check_target(paddr, len)?;
        if !prot.intersects(Prot::READ | Prot::WRITE) {
            return Err(MapError::NoAccess);
        }
        let section = domain.fleet.rcu.enter();
        let result = domain.table.map(iova, paddr, len, prot);
        drop(section);
        // The descriptors come before whatever the caller does to set a device going. litmus: map-go
        domain.fleet.platform.write_barrier();
        match result {
            Ok(()) => Ok(()),
            Err(failure) => Err(domain.take_back(iova, failure)),
        }
    }

    /// Takes `len` bytes at `iova` away from all devices; holes are passed over. **When it returns `Ok`, no device can reach
    /// them any more.**
    ///
    /// Both are multiples of the granule. Takes no lock of the domain; with no device attached it waits for nothing. After an error it
    /// may be called again for the same range, and again makes sure of all of it.
    pub fn unmap(&self, iova: Iova, len: u64) -> Result<UnmapReport, UnmapError> {
        self.0.check_range(iova, len)?;
        self.0.unmap(iova, len)
    }

    /// The address that `iova` is mapped to.
    pub fn iova_to_phys(&self, iova: Iova) -> Option<PhysAddr> {
        let _section = self.0.fleet.rcu.enter();
        self.0.table.lookup(iova)
    }
}

impl<P: Platform> Paging<P> {
    #[inline]
    fn check_range(&self, iova: Iova, len: u64) -> Result<(), BadRange> {
        if self.table.takes(iova, len) { Ok(()) } else { Err(self.bad_range(iova, len)) }
    }

    #[inline]
    fn check_target(&self, paddr: PhysAddr, len: u64) -> Result<(), BadRange> {
        if self.table.reaches(paddr, len) { Ok(()) } else { Err(self.bad_target(paddr, len)) }
    }

    #[cold]
    fn bad_range(&self, iova: Iova, len: u64) -> BadRange {
        if len == 0 {
            return BadRange::Empty;
        }
        let bits = self.table.shape().input_bits();
        self.misaligned([iova.0, len]).unwrap_or(BadRange::Input { iova, len, bits })
    }

    #[cold]
    fn bad_target(&self, paddr: PhysAddr, len: u64) -> BadRange {
        let bits = self.table.shape().output_size().bits();
        self.misaligned([paddr.0, len]).unwrap_or(BadRange::Output { paddr, len, bits })
    }

    fn misaligned(&self, values: [u64; 2]) -> Option<BadRange> {
        let granule = self.table.shape().granule();
        let value = values.into_iter().find(|value| value & (granule.size() - 1) != 0)?;
        Some(BadRange::Misaligned { value, granule })
    }

    /// Takes the first part of a mapping back that failed behind it.
    #[cold]
    fn take_back(&self, iova: Iova, failure: MapFailure) -> MapError {
        let done = failure.at.0 - iova.0;
        if done > 0
            && let Err(error) = self.unmap(iova, done)
        {
            return match error {
                UnmapError::StillReachable { source, .. } | UnmapError::CutOff { source, .. } => {
                    MapError::NotTakenBack(source)
                }
                UnmapError::BadRange(bad) => bad.into(),
                // Another thread mapped a block over the same addresses.
                UnmapError::PartOfBlock { iova, .. } => MapError::AlreadyMapped(iova),
            };
        }
        match failure.cause {
            MapCause::Mapped => MapError::AlreadyMapped(failure.at),
            MapCause::NoMemory => MapError::NoMemory(failure.at),
        }
    }

    #[inline]
    fn unmap(&self, iova: Iova, len: u64) -> Result<UnmapReport, UnmapError> {
        // This section keeps the tables that are walked here, and the array that is loaded after the descriptors changed.
        let section = self.invs.enter();
        let found = self.table.unmap(iova, len).map_err(|(iova, size)| UnmapError::PartOfBlock { iova, size })?;
        let Some(array) = listed(&self.fleet, &section) else {
            drop(section);
            self.table.retire(found.tables, &self.fleet.rcu);
            return Ok(UnmapReport { bytes: found.bytes, wait_rounds: 0 });
        };
        let mut gathered = Gathered::default();
        let result = self.invalidate_one(array, iova, len, found, &mut gathered);
        drop(section);
        self.conclude(&mut gathered, result)
    }

    #[inline(never)]
    fn invalidate_one(
        &self,
        array: &InvArray,
        iova: Iova,
        len: u64,
        found: Unmapped,
        gathered: &mut Gathered,
    ) -> Result<u32, InvalidateError> {
        self.gather_one(iova, len, found, gathered);
        self.invalidate_gathered(array, gathered)
    }

    /// Takes a range out of the table, and returns the bytes that were mapped. Until [`settle`](Self::settle), devices may reach them.
    pub(crate) fn take(&self, iova: Iova, len: u64, gathered: &mut Gathered) -> Result<u64, UnmapError> {
        // The section keeps the tables that are walked. What is taken out of them is the caller's.
        let section = self.fleet.rcu.enter();
        let found = self.table.unmap(iova, len).map_err(|(iova, size)| UnmapError::PartOfBlock { iova, size })?;
        drop(section);
        let bytes = found.bytes;
        self.gather_one(iova, len, found, gathered);
        Ok(bytes)
    }

    /// Notes what was found in a range.
    fn gather_one(&self, iova: Iova, len: u64, found: Unmapped, gathered: &mut Gathered) {
        // Also where this call found nothing: another may have cleared the descriptors and not have completed its invalidation, or
        // its invalidation may have failed. It may have taken out tables, too, so only a call that found everything knows what was there.
        let leaf = found.tables.is_empty() && found.bytes == len;
        let stride = if leaf { found.smallest_leaf } else { self.table.shape().granule().size() };
        gathered.spans.add(Span { first: iova.0, last: iova.0 + (len - 1), stride, leaf });
        gathered.bytes += found.bytes;
        self.table.join(&mut gathered.tables, found.tables);
    }

    /// Invalidates what was gathered. **When it returns `Ok`, no device can reach it any more**, and nothing is gathered.
    fn settle(&self, gathered: &mut Gathered) -> Result<UnmapReport, UnmapError> {
        if gathered.spans.as_slice().is_empty() {
            return Ok(UnmapReport::default());
        }
        let section = self.invs.enter();
        let array = listed(&self.fleet, &section);
        let result = array.map_or(Ok(0), |array| self.invalidate_gathered(array, gathered));
        drop(section);
        self.conclude(gathered, result)
    }

    /// Carries out everything that the array lists after what was gathered. Returns the rounds of waiting.
    fn invalidate_gathered(&self, array: &InvArray, gathered: &mut Gathered) -> Result<u32, InvalidateError> {
        let shape = self.table.shape();
        let granule = shape.granule();
        if self.in_doubt.load(Ordering::Relaxed) {
            // An invalidation has failed: pages may be cached where a block was found.
            gathered.spans.forget_leaves(granule.size());
        }
        let change = match gathered.spans.as_slice() {
            [Span { first: 0, last, .. }] if last + 1 == shape.input_end() => Change::Everything,
            spans => Change::Spans { granule, cover: self.cover, spans },
        };
        carry_out(&self.fleet, array, &change)
    }

    /// What became of what was gathered, after its invalidation and outside of its read section.
    fn conclude(
        &self,
        gathered: &mut Gathered,
        result: Result<u32, InvalidateError>,
    ) -> Result<UnmapReport, UnmapError> {
        let bytes = gathered.bytes;
        if let Err(source @ InvalidateError { sid: None, .. }) = result {
            // The tables are not freed: an SMMU may still walk them.
            self.in_doubt.store(true, Ordering::Relaxed);
            return Err(UnmapError::StillReachable { bytes, source });
        }
        let Gathered { tables, .. } = core::mem::take(gathered);
        self.table.retire(tables, &self.fleet.rcu);
        match result {
            Ok(wait_rounds) => Ok(UnmapReport { bytes, wait_rounds }),
            Err(source) => Err(UnmapError::CutOff { bytes, source }),
        }
    }
}

/// Carries out everything that an array lists after `change`. Returns the rounds of waiting.
pub(crate) fn invalidate<P: Platform>(
    fleet: &Fleet<P>,
    invs: &Invs<P>,
    change: &Change<'_>,
) -> Result<u32, InvalidateError> {
    let section = invs.enter();
    listed(fleet, &section).map_or(Ok(0), |array| carry_out(fleet, array, change))
}

/// The array as it is after a change of the descriptors, if anything is listed in it.
#[inline]
fn listed<'a, P: Platform>(fleet: &Fleet<P>, section: &'a Reader<'_, InvArray, P>) -> Option<&'a InvArray> {
    // Loading passes barrier (A): the change of the descriptors comes before.
    let array = section.load();
    if array.is_empty() {
        nothing_listed(fleet);
        return None;
    }
    Some(array)
}

/// The last device may just have been detached: what it did before comes before what the caller does next, as behind a CMD_SYNC.
#[inline]
fn nothing_listed<P: Platform>(fleet: &Fleet<P>) {
    // litmus: detached
    fleet.platform.read_barrier();
}

#[inline(never)]
fn carry_out<P: Platform>(fleet: &Fleet<P>, array: &InvArray, change: &Change<'_>) -> Result<u32, InvalidateError> {
    let mut runs = array.runs().peekable();
    // Whoever is listed is found here. litmus: fleet-member
    let members = fleet.load();
    let mut result = Ok(());
    let mut tickets: ArrayVec<(&Shared<Smmu<P>>, Ticket), MAX_SMMUS> = ArrayVec::new();
    while let Some(index) = runs.peek().map(|run: &Run<'_>| run.smmu()) {
        let group = core::iter::from_fn(|| runs.next_if(|run| run.smmu() == index));
        // Entries are made with the index of a member, and members stay while devices are attached.
        let Some(smmu) = members.get(index) else {
            group.for_each(drop);
            continue;
        };
        let push = |queue: &mut Submission<'_, P>| push_commands(group, change, &smmu.features, smmu.ats_stu, queue);
        match smmu.submit(push) {
            Ok(ticket) => {
                let _ = tickets.try_push((smmu, ticket));
            }
            Err(cause) => result = worse(result, Err(InvalidateError { smmu: smmu.id, sid: None, cause })),
        }
    }
    if tickets.is_empty() && result.is_ok() {
        // What was listed has become trash meanwhile.
        nothing_listed(fleet);
        return Ok(0);
    }
    // Everything is under way everywhere; now wait for all of it.
    for (smmu, ticket) in tickets {
        if let Err(cause) = smmu.wait(ticket) {
            let outcome = match cause {
                QueueError::Refused(CmdqError::AtcInvSync) => {
                    let keys = array.live().map(|(key, _)| key).filter(|key| key.smmu() == smmu.id.index());
                    cut_off(smmu, keys, cause)
                }
                _ => Err(InvalidateError { smmu: smmu.id, sid: None, cause }),
            };
            result = worse(result, outcome);
        }
    }
    result.map(|()| 1)
}

/// Of two outcomes the one that leaves more reachable: a device that was cut off reaches nothing.
fn worse(a: Result<(), InvalidateError>, b: Result<(), InvalidateError>) -> Result<(), InvalidateError> {
    match (a, b) {
        (Ok(()), other) => other,
        (Err(InvalidateError { sid: Some(_), .. }), Err(other @ InvalidateError { sid: None, .. })) => Err(other),
        (first, _) => first,
    }
}

/// A device did not answer an ATC_INV: asks each again, for everything, and makes the STEs of those that do not answer abort, so that
/// no translated access of theirs passes any more. `Ok` if all answered now.
///
/// The TLB invalidations before it are complete, by the CMD_SYNC that stands in for the one that failed.
#[cold]
fn cut_off<P: Platform>(
    smmu: &Smmu<P>,
    keys: impl Iterator<Item = Key>,
    cause: QueueError,
) -> Result<(), InvalidateError> {
    let mut result = Ok(());
    for key in keys.filter(|key| matches!(key.kind(), Kind::Ats | Kind::AtsFull)) {
        let sid = key.id();
        if smmu.run([commands::flush_atc(key)]).is_err() {
            let sid = match smmu.abort_stream(sid) {
                Ok(()) => Some(sid),
                // Not even that: the device may still reach everything.
                Err(_) => None,
            };
            result = worse(result, Err(InvalidateError { smmu: smmu.id, sid, cause }));
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Stage;
    use crate::domain::Geometry;
    use crate::testing::TestPlatform;

    #[test]
    fn an_unmap_that_finds_nothing_to_send_is_ordered_behind_the_detach_that_it_found() {
        let platform = TestPlatform::new(64);
        let fleet = Shared::try_new(Fleet::new(platform.clone()).unwrap()).unwrap();
        let domain = PagingDomain::new(&fleet, Stage::S1, Geometry::default()).unwrap();
        domain.map(Iova(0x1000), PhysAddr(0x1000), 0x1000, Prot::READ).unwrap();
        let before = platform.read_barriers();
        assert_eq!(domain.unmap(Iova(0x1000), 0x1000).unwrap().wait_rounds, 0);
        assert!(platform.read_barriers() > before);
    }

    #[test]
    fn so_is_one_that_meets_the_detach_in_its_walk() {
        let platform = TestPlatform::new(64);
        let fleet = Fleet::new(platform.clone()).unwrap();
        let before = platform.read_barriers();
        assert_eq!(carry_out(&fleet, &InvArray::empty(), &Change::Everything), Ok(0));
        assert!(platform.read_barriers() > before);
    }
}

//! Devices, and the domain of a device's own: that of traffic without a PASID.

use crate::primitive::{AtomicBool, Ordering};
use allocator_api2::vec::Vec;
use arrayvec::ArrayVec;
use core::fmt;
use lock_api::Mutex;

use super::{AttachError, Unconfirmed};
use crate::arch::{Shape, Stage, Ste};
use crate::domain::{Nested, NestedDomain, Owner, Paging, PagingDomain, find_tag};
use crate::invalidate::flush_tag;
use crate::invs::{Key, Kind, Merged};
use crate::platform::Platform;
use crate::queue::QueueError;
use crate::shared::Shared;
use crate::smmu::{Fleet, Smmu, SmmuId};
use crate::table::CdTable;

/// StreamIDs that a device can have.
pub(crate) const MAX_STREAMS: usize = 16;
/// What a device contributes at most: a VMID with its stage 1 clear, and an ATC for each stream.
const MAX_KEYS: usize = MAX_STREAMS + 2;

/// The entries of one attachment.
pub(super) type Keys = ArrayVec<Key, MAX_KEYS>;

/// A device behind an SMMU. Blocked until it is attached; dropping it detaches it and gives its StreamIDs back, unless it is broken.
pub struct Device<P: Platform>(pub(crate) Shared<DeviceInner<P>>);

pub(crate) struct DeviceInner<P: Platform> {
    pub(super) fleet: Shared<Fleet<P>>,
    pub(crate) smmu: Shared<Smmu<P>>,
    /// Sorted, each claimed in the stream table.
    pub(crate) sids: ArrayVec<u32, MAX_STREAMS>,
    pub(super) pasid_bits: u8,
    pub(super) ats_capable: bool,
    /// ATS is on in the device. Changed under the attach mutex; who looks at it in a read section may send ATC_INV until it leaves it.
    pub(crate) ats_on: AtomicBool,
    /// The device was dropped, and its StreamIDs may be somebody else's.
    gone: AtomicBool,
    pub(super) state: Mutex<P::RawMutex, State<P>>,
}

/// Changed only under the attach mutex.
pub(super) struct State<P: Platform> {
    /// The device's own CD table, where the SMMU has stage 1.
    pub(super) cds: Option<CdTable<P>>,
    pub(super) rid: Rid<P>,
    pub(super) rid_keys: Keys,
    /// Sorted by PASID.
    pub(super) pasids: Vec<PasidBinding<P>>,
    pub(super) broken: Option<Unconfirmed>,
}

/// What traffic without a PASID is attached to.
pub(super) enum Rid<P: Platform> {
    Blocked,
    Identity,
    Paging(Shared<Paging<P>>),
    Nested(Shared<Nested<P>>),
}

/// What a PASID is attached to.
pub(super) struct PasidBinding<P: Platform> {
    pub(super) pasid: u32,
    pub(super) owner: Owner<P>,
    pub(super) keys: Keys,
}

/// A merged array that is ready to be published, with the entries that it has more.
pub(super) struct Prepared {
    pub(super) keys: Keys,
    merged: Merged,
}

impl Prepared {
    pub(super) fn tag(&self) -> u16 {
        self.keys.first().map_or(0, |key| key.id() as u16)
    }
}

impl<P: Platform> Rid<P> {
    /// Whose array the device's entries stand in.
    pub(super) fn owner(&self) -> Option<Owner<P>> {
        match self {
            Rid::Blocked | Rid::Identity => None,
            Rid::Paging(domain) => Some(Owner::Paging(domain.clone())),
            Rid::Nested(nested) => Some(Owner::Paging(nested.vsmmu.parent.clone())),
        }
    }

    pub(super) fn is_stage1(&self) -> bool {
        matches!(self, Rid::Paging(domain) if domain.table.shape().stage() == Stage::S1)
    }

    /// PASIDs can be attached beside it.
    pub(super) fn allows_pasids(&self) -> bool {
        matches!(self, Rid::Blocked | Rid::Identity) || self.is_stage1()
    }
}

impl<P: Platform> Device<P> {
    /// The SMMU that the device is behind.
    pub fn smmu(&self) -> SmmuId {
        self.0.smmu.id
    }

    /// The device's StreamIDs, in order.
    pub fn streams(&self) -> &[u32] {
        &self.0.sids
    }

    /// Whether ATS is on in the device.
    pub fn ats(&self) -> bool {
        self.0.ats_on.load(Ordering::Acquire)
    }

    /// Attaches the device to a domain: its accesses without a PASID are translated by the domain's table.
    pub fn attach(&self, domain: &PagingDomain<P>) -> Result<(), AttachError> {
        self.0.attach_rid(Rid::Paging(domain.0.clone()))
    }

    /// Attaches the device to a guest's stage 1 over the stage 2 of its vSMMU's parent.
    pub fn attach_nested(&self, domain: &NestedDomain<P>) -> Result<(), AttachError> {
        self.0.attach_rid(Rid::Nested(domain.0.clone()))
    }

    /// Lets the device's accesses without a PASID pass untranslated. Allocates nothing.
    pub fn attach_identity(&self) -> Result<(), Unconfirmed> {
        self.0.state.lock().check()?;
        self.0.leave_to(Rid::Identity)
    }

    /// Detaches the device: every access without a PASID is aborted. Needs no memory.
    ///
    /// An error says that the SMMU did not confirm it: the device may still reach the domain's pages. It may be called again. A broken device stays
    /// broken, but once this returns `Ok` it reaches nothing.
    pub fn detach(&self) -> Result<(), Unconfirmed> {
        self.0.leave_to(Rid::Blocked)
    }
}

impl<P: Platform> DeviceInner<P> {
    /// A blocked device. Its StreamIDs are claimed, their STEs abort.
    pub(crate) fn new(
        fleet: Shared<Fleet<P>>,
        smmu: Shared<Smmu<P>>,
        sids: ArrayVec<u32, MAX_STREAMS>,
        cds: Option<CdTable<P>>,
        pasid_bits: u8,
        ats_capable: bool,
    ) -> Self {
        let state = State { cds, rid: Rid::Blocked, rid_keys: Keys::new(), pasids: Vec::new(), broken: None };
        DeviceInner {
            fleet,
            smmu,
            sids,
            pasid_bits,
            ats_capable,
            ats_on: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    fn attach_rid(&self, to: Rid<P>) -> Result<(), AttachError> {
        let _turn = self.fleet.attach.lock();
        let mut state = self.state.lock();
        state.check()?;
        match &to {
            Rid::Paging(domain) => check_compatible(&self.fleet, &self.smmu, domain)?,
            Rid::Nested(nested) if !nested.vsmmu.smmu.same(&self.smmu) => {
                return Err(AttachError::OtherSmmu { device: self.smmu.id, vsmmu: nested.vsmmu.smmu.id });
            }
            _ => {}
        }
        if !to.allows_pasids() && !state.pasids.is_empty() {
            return Err(AttachError::PasidsInUse(state.pasids.len()));
        }
        let Some(owner) = to.owner() else { return Ok(()) };
        let was_on = self.ats_on.load(Ordering::Relaxed);
        // A device that changes over leaves nothing behind but its PASIDs.
        let pasids = !state.pasids.is_empty();
        let ats = self.decide_ats(&to, pasids, !pasids);
        let prepared = match &to {
            Rid::Nested(nested) => self.prepare_nested(nested, ats),
            _ => self.prepare(&owner, None, ats),
        };
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                if ats && !was_on {
                    self.turn_ats_off();
                }
                return Err(error);
            }
        };
        let tag = prepared.tag();
        let keys = self.publish(&owner, prepared, ats);

        let written = self.write_rid(&state, &to, tag, ats, pasids);
        // What the device remembers of where it was must go before that domain forgets the device.
        let settled = written.and_then(|()| if ats && was_on { self.flush_atc(None) } else { Ok(()) });
        self.change_over(&mut state, settled, to, keys, was_on && !ats)?;
        Ok(())
    }

    pub(super) fn leave_to(&self, to: Rid<P>) -> Result<(), Unconfirmed> {
        let _turn = self.fleet.attach.lock();
        let mut state = self.state.lock();
        if let Some(unconfirmed) = state.broken {
            // All that can be done for a broken device is to block it, and that is tried each time.
            return self.abort_streams().map_err(|cause| Unconfirmed { cause, ..unconfirmed });
        }
        let was_on = self.ats_on.load(Ordering::Relaxed);
        let pasids = !state.pasids.is_empty();
        let ats = was_on && self.wants_ats(&to, pasids);
        let written = self.write_rid(&state, &to, 0, ats, pasids);
        let settled = written.and_then(|()| if ats { self.flush_atc(None) } else { Ok(()) });
        self.change_over(&mut state, settled, to, Keys::new(), was_on && !ats)
    }

    /// From the point where the SMMU has confirmed the change, or not, to the end.
    fn change_over(
        &self,
        state: &mut State<P>,
        confirmed: Result<(), QueueError>,
        to: Rid<P>,
        keys: Keys,
        ats_off: bool,
    ) -> Result<(), Unconfirmed> {
        if let Err(cause) = confirmed {
            // Entries with a guest's VMID may stay in the TLB: nobody may get it after the vSMMU.
            for rid in [&state.rid, &to] {
                if let Rid::Nested(nested) = rid {
                    nested.vsmmu.dirty.store(true, Ordering::Relaxed);
                }
            }
            return Err(self.give_up(state, cause, to.owner()));
        }
        let old = core::mem::replace(&mut state.rid, to);
        let old_keys = core::mem::replace(&mut state.rid_keys, keys);
        let vsmmu = match &old {
            Rid::Nested(nested) => Some(&*nested.vsmmu),
            _ => None,
        };
        if let Some(owner) = old.owner() {
            owner.invs().leave(&old_keys, |key| match vsmmu {
                // The VMID stays the vSMMU's; it must only be clean.
                Some(vsmmu) => {
                    if self.smmu.run([flush_tag(key)]).is_err() {
                        vsmmu.dirty.store(true, Ordering::Relaxed);
                        owner.keep_forever();
                    }
                }
                None => self.flush_and_free(&owner, key),
            });
        }
        self.grace(&old_keys);
        if let Some(owner) = old.owner() {
            owner.invs().reclaim();
        }
        if ats_off {
            self.turn_ats_off();
        }
        Ok(())
    }

    /// Waits until nobody sends ATC_INV because of `keys` any more.
    pub(super) fn grace(&self, keys: &[Key]) {
        if keys.iter().any(|key| matches!(key.kind(), Kind::Ats | Kind::AtsFull)) {
            self.fleet.rcu.synchronize();
        }
    }

    /// The hardware did not confirm a change: nothing is given back, neither of what the device is attached to nor of what it should have been,
    /// and the device is broken.
    pub(super) fn give_up(&self, state: &mut State<P>, cause: QueueError, to: Option<Owner<P>>) -> Unconfirmed {
        let sid = self.sids.first().copied().unwrap_or(0);
        let unconfirmed = Unconfirmed { smmu: self.smmu.id, sid, cause };
        // An SMMU that comes back to life shall find the device blocked. Whether it has seen it, nobody can know now.
        let _ = self.abort_streams();
        state.rid.owner().into_iter().chain(to).for_each(|owner| owner.keep_forever());
        state.pasids.iter().for_each(|binding| binding.owner.keep_forever());
        state.broken = Some(unconfirmed);
        unconfirmed
    }

    /// Takes the domain's tag on this SMMU, or a new one, and merges the entries of an attachment into its array.
    pub(super) fn prepare(&self, owner: &Owner<P>, pasid: Option<u32>, ats: bool) -> Result<Prepared, AttachError> {
        let smmu = self.smmu.id.index();
        let (kind, stage, tags) = match owner {
            Owner::Paging(domain) if domain.table.shape().stage() == Stage::S2 => {
                (Kind::S2Vmid, Stage::S2, &self.smmu.vmids)
            }
            _ => (Kind::S1Asid, Stage::S1, &self.smmu.asids),
        };
        let found = find_tag(owner.invs(), kind, smmu);
        let tag = match found {
            Some(key) => key,
            None => {
                let tag = tags.lock().take().ok_or(AttachError::NoTag { smmu: self.smmu.id, stage })?;
                Key::new(smmu, kind, tag.into(), 0)
            }
        };
        let mut keys = Keys::from_iter([tag]);
        if ats {
            keys.extend(self.sids.iter().map(|&sid| Key::new(smmu, Kind::Ats, sid, pasid.unwrap_or(0))));
        }
        let prepared = self.merge(owner, keys);
        if prepared.is_err() && found.is_none() {
            tags.lock().give_back(tag.id() as u16);
        }
        prepared
    }

    /// The same for a guest's domain, whose VMID is its vSMMU's.
    fn prepare_nested(&self, nested: &Nested<P>, ats: bool) -> Result<Prepared, AttachError> {
        let (smmu, vmid) = (self.smmu.id.index(), nested.vsmmu.vmid.into());
        let mut keys =
            Keys::from_iter([Key::new(smmu, Kind::S2Vmid, vmid, 0), Key::new(smmu, Kind::S2VmidS1Clear, vmid, 0)]);
        if ats {
            keys.extend(self.sids.iter().map(|&sid| Key::new(smmu, Kind::AtsFull, sid, 0)));
        }
        self.merge(&Owner::Paging(nested.vsmmu.parent.clone()), keys)
    }

    fn merge(&self, owner: &Owner<P>, keys: Keys) -> Result<Prepared, AttachError> {
        let merged = owner.invs().merge(&keys).map_err(|_| AttachError::NoMemory)?;
        Ok(Prepared { keys, merged })
    }

    /// Publishes what was prepared.
    ///
    /// Between publishing entries for an ATC and letting the device fill it, everybody who is still working with the old array must be through.
    /// Without ATS the order of publication and the first walk is enough. But a device that joins others under a tag need not walk: its translation
    /// request may hit a TLB entry that a thread with the old array is about to invalidate. Nobody would tell the device's ATC.
    pub(super) fn publish(&self, owner: &Owner<P>, prepared: Prepared, ats: bool) -> Keys {
        owner.invs().publish(prepared.merged);
        if ats {
            // litmus: ats-grace
            self.fleet.rcu.synchronize();
        }
        owner.invs().reclaim();
        prepared.keys
    }

    /// The tag rule: a tag that stands in no array is clean before it is given out again.
    pub(super) fn flush_and_free(&self, owner: &Owner<P>, key: Key) {
        let tags = if key.kind() == Kind::S1Asid { &self.smmu.asids } else { &self.smmu.vmids };
        match self.smmu.run([flush_tag(key)]) {
            Ok(()) => tags.lock().give_back(key.id() as u16),
            // No stream uses the tag, which the SMMU has confirmed; but walks under it may be cached, so neither it nor the tables
            // are ever used again.
            Err(_) => owner.keep_forever(),
        }
    }
}

/// Whether an SMMU can serve a domain.
pub(crate) fn check_compatible<P: Platform>(
    fleet: &Shared<Fleet<P>>,
    smmu: &Smmu<P>,
    domain: &Paging<P>,
) -> Result<(), AttachError> {
    if !domain.fleet.same(fleet) {
        return Err(AttachError::OtherIommu);
    }
    check_shape(smmu, domain.table.shape())
}

/// Whether an SMMU can walk tables of this shape.
pub(super) fn check_shape<P: Platform>(smmu: &Smmu<P>, shape: &Shape) -> Result<(), AttachError> {
    let features = &smmu.features;
    let (has_stage, stage) = match shape.stage() {
        Stage::S1 => (features.stage1, "stage 1 (IDR0.S1P)"),
        Stage::S2 => (features.stage2, "stage 2 (IDR0.S2P)"),
    };
    let oas = features.used_oas().bits();
    // The granules that the SMMU has, added up: 4, 16, 64.
    let granules = features.granules.iter().zip([4, 16, 64]).map(|(has, size)| u64::from(*has) * size).sum();
    for (fits, feature, needs, has) in [
        (has_stage, stage, 1, 0),
        (features.granule(shape.granule()), "granule in KiB (IDR5.GRAN)", shape.granule().size() >> 10, granules),
        (
            shape.output_size().bits() <= oas,
            "output address bits (IDR5.OAS)",
            shape.output_size().bits().into(),
            oas.into(),
        ),
    ] {
        if !fits {
            return Err(AttachError::Incompatible { smmu: smmu.id, feature, needs, has });
        }
    }
    Ok(())
}

impl<P: Platform> State<P> {
    pub(super) fn check(&self) -> Result<(), Unconfirmed> {
        self.broken.map_or(Ok(()), Err)
    }
}

impl<P: Platform> Drop for Device<P> {
    fn drop(&mut self) {
        let device = &*self.0;
        // A device that breaks here is blocked as a whole by the second step.
        let _ = device.detach_all_pasids();
        let blocked = device.leave_to(Rid::Blocked).is_ok();
        let _turn = device.fleet.attach.lock();
        // Of a broken device there are entries in the arrays. They must not come to mean another device, or another SMMU.
        let whole = blocked && device.state.lock().check().is_ok();
        let gone = whole && device.write_stes(Ste::Invalid).is_ok();
        device.gone.store(true, Ordering::Release);
        // Guests' commands look at `gone` inside a read section.
        device.fleet.rcu.synchronize();
        if gone {
            let mut streams = device.smmu.streams.lock();
            device.sids.iter().for_each(|&sid| streams.release(sid));
            device.smmu.users.fetch_sub(1, Ordering::Relaxed);
        }
        if !blocked {
            // The SMMU may still read it.
            core::mem::forget(device.state.lock().cds.take());
        }
    }
}

impl<P: Platform> fmt::Debug for Device<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}, StreamIDs {:#x?})", self.0.smmu.id, self.0.sids.as_slice())
    }
}

//! PASIDs: domains beside the device's own, and the release of a table that somebody else owned.

use crate::primitive::Ordering;

use super::device::{Device, DeviceInner, PasidBinding, Rid, State, check_compatible, check_shape};
use super::write::stage1_cd;
use super::{AttachError, Unconfirmed};
use crate::arch::{Cd, MAIR, RawCd, Stage};
use crate::domain::{Owner, PagingDomain, Sva, SvaDomain};
use crate::invalidate::{Change, InvalidateError, Span, invalidate};
use crate::platform::{Iova, Platform};
use crate::shared::Shared;

/// What a PASID can be attached to: a stage 1 [`PagingDomain`] or an [`SvaDomain`].
#[derive(Debug, Clone)]
pub enum PasidDomain<P: Platform> {
    /// A table of the driver's own.
    Paging(PagingDomain<P>),
    /// Somebody else's table.
    Sva(SvaDomain<P>),
}

impl<P: Platform> From<&PagingDomain<P>> for PasidDomain<P> {
    fn from(domain: &PagingDomain<P>) -> Self {
        PasidDomain::Paging(domain.clone())
    }
}

impl<P: Platform> From<&SvaDomain<P>> for PasidDomain<P> {
    fn from(domain: &SvaDomain<P>) -> Self {
        PasidDomain::Sva(domain.clone())
    }
}

impl<P: Platform> Device<P> {
    /// Attaches a PASID (SubstreamID), 1 to 2^bits - 1 of the device's PASID bits, beside the device's own domain, which is a stage 1 domain, identity
    /// or blocked.
    pub fn attach_pasid(&self, pasid: u32, domain: impl Into<PasidDomain<P>>) -> Result<(), AttachError> {
        DeviceInner::attach_pasid(&self.0, pasid, &domain.into())
    }

    /// Detaches a PASID: every access with it is aborted. Does nothing if it is not attached. Needs no memory.
    ///
    /// An error says that the SMMU did not confirm it: the device may still reach the domain's pages.
    pub fn detach_pasid(&self, pasid: u32) -> Result<(), Unconfirmed> {
        self.0.detach_pasid(pasid)
    }
}

impl<P: Platform> DeviceInner<P> {
    fn attach_pasid(this: &Shared<Self>, pasid: u32, domain: &PasidDomain<P>) -> Result<(), AttachError> {
        // `release` of an SVA domain must find the device.
        let self_ = &**this;
        let _turn = self_.fleet.attach.lock();
        let mut guard = self_.state.lock();
        let state = &mut *guard;
        state.check()?;
        if pasid == 0 || u64::from(pasid) >> self_.pasid_bits != 0 {
            return Err(AttachError::PasidRange { pasid, bits: self_.pasid_bits });
        }
        if !state.rid.allows_pasids() {
            return Err(AttachError::NoPasids);
        }
        let Err(place) = state.pasids.binary_search_by_key(&pasid, |binding| binding.pasid) else {
            return Err(AttachError::PasidInUse(pasid));
        };
        let (owner, shape, root, mair) = match domain {
            PasidDomain::Paging(domain) => {
                check_compatible(&self_.fleet, &self_.smmu, &domain.0)?;
                if domain.stage() != Stage::S1 {
                    return Err(AttachError::NotStage1);
                }
                let table = &domain.0.table;
                (Owner::Paging(domain.0.clone()), *table.shape(), table.root(), MAIR)
            }
            PasidDomain::Sva(domain) => {
                let sva = &domain.0;
                if !sva.fleet.same(&self_.fleet) {
                    return Err(AttachError::OtherIommu);
                }
                check_shape(&self_.smmu, &sva.shape)?;
                if !self_.smmu.features.coherent {
                    // A CPU's process tables are not cleaned.
                    let feature = "coherent accesses (IDR0.COHACC)";
                    return Err(AttachError::Incompatible { smmu: self_.smmu.id, feature, needs: 1, has: 0 });
                }
                if domain.is_released() {
                    return Err(AttachError::Released);
                }
                (Owner::Sva(sva.clone()), sva.shape, sva.table.root, sva.table.mair)
            }
        };
        state.pasids.try_reserve(1).map_err(|_| AttachError::NoMemory)?;
        if let Owner::Sva(sva) = &owner {
            sva.users.lock().try_reserve(1).map_err(|_| AttachError::NoMemory)?;
        }
        state.cds.as_mut().and_then(|cds| cds.reserve(pasid)).ok_or(AttachError::NoMemory)?;

        let was_on = self_.ats_on.load(Ordering::Relaxed);
        let alone = state.pasids.is_empty() && state.rid.owner().is_none();
        let ats = self_.decide_ats(&state.rid, true, alone);
        let prepared = match self_.prepare(&owner, Some(pasid), ats) {
            Ok(prepared) => prepared,
            Err(error) => {
                if ats && !was_on {
                    self_.turn_ats_off();
                }
                return Err(error);
            }
        };
        let tag = prepared.tag();
        let keys = self_.publish(&owner, prepared, ats);
        if let Owner::Sva(sva) = &owner {
            // Within what was reserved: only holders of the attach mutex add.
            sva.users.lock().extend([this.clone()]);
        }

        let cd = stage1_cd(&shape, root, mair, tag).encode();
        let written = self_.write_cd(state, pasid, cd, false).and_then(|()| match state.rid {
            // The STE pointed to no CDs so far, or did not allow ATS.
            Rid::Identity | Rid::Blocked => self_.write_rid(state, &state.rid, 0, ats, true),
            Rid::Paging(_) | Rid::Nested(_) => Ok(()),
        });
        state.pasids.insert(place, PasidBinding { pasid, owner, keys });
        written.map_err(|cause| self_.give_up(state, cause, None).into())
    }

    fn detach_pasid(&self, pasid: u32) -> Result<(), Unconfirmed> {
        let _turn = self.fleet.attach.lock();
        let mut guard = self.state.lock();
        let state = &mut *guard;
        state.check()?;
        let Ok(place) = state.pasids.binary_search_by_key(&pasid, |binding| binding.pasid) else {
            return Ok(());
        };
        let was_on = self.ats_on.load(Ordering::Relaxed);
        let others = state.pasids.len() > 1;
        let ats = was_on && self.wants_ats(&state.rid, others);
        let written = self
            .write_cd(state, pasid, RawCd::default(), true)
            .and_then(|()| match state.rid {
                Rid::Identity | Rid::Blocked if !others => self.write_rid(state, &state.rid, 0, ats, false),
                _ => Ok(()),
            })
            .and_then(|()| if ats { self.flush_atc(Some(pasid)) } else { Ok(()) });
        if let Err(cause) = written {
            return Err(self.give_up(state, cause, None));
        }
        let PasidBinding { owner, keys, .. } = state.pasids.remove(place);
        if let Owner::Sva(sva) = &owner {
            let mut users = sva.users.lock();
            if let Some(place) = users.iter().position(|user| core::ptr::eq(&**user, self)) {
                users.swap_remove(place);
            }
        }
        owner.invs().leave(&keys, |key| self.flush_and_free(&owner, key));
        self.grace(&keys);
        owner.invs().reclaim();
        if was_on && !ats {
            self.turn_ats_off();
        }
        Ok(())
    }

    /// Lets the PASIDs that are attached to a domain fault without a record, for good.
    fn silence(&self, sva: &Shared<Sva<P>>) -> Result<(), Unconfirmed> {
        let mut guard = self.state.lock();
        let state: &mut State<P> = &mut guard;
        state.check()?;
        let owner = Owner::Sva(sva.clone());
        let ours = |binding: &&PasidBinding<P>| binding.owner.same(&owner);
        let written = state.pasids.iter().filter(ours).try_for_each(|binding| {
            let asid = binding.keys.first().map_or(0, |key| key.id() as u16);
            let cd = stage1_cd(&sva.shape, sva.table.root, sva.table.mair, asid);
            self.write_cd(state, binding.pasid, Cd { ttb0: None, record: false, ..cd }.encode(), true)
        });
        written.map_err(|cause| self.give_up(state, cause, None))
    }

    pub(super) fn detach_all_pasids(&self) -> Result<(), Unconfirmed> {
        loop {
            let last = self.state.lock().pasids.last().map(|binding| binding.pasid);
            match last {
                Some(pasid) => self.detach_pasid(pasid)?,
                None => return Ok(()),
            }
        }
    }
}

/// Why a released table may still be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// An SMMU did not take a device's changed CD.
    #[error(transparent)]
    Configuration(Unconfirmed),
    /// An SMMU did not forget what it had cached.
    #[error(transparent)]
    Invalidation(InvalidateError),
}

impl<P: Platform> SvaDomain<P> {
    /// Makes all devices forget `len` bytes from `iova` on. To be called after the table changed, before pages that it no longer maps are used for anything
    /// else. When it returns `Ok`, no device uses what was there before.
    ///
    /// `leaf` says that no table was taken out. Both numbers are multiples of the granule; a `len` of 0 is everything.
    pub fn invalidate(&self, iova: Iova, len: u64, leaf: bool) -> Result<(), InvalidateError> {
        let sva = &*self.0;
        let granule = sva.shape.granule();
        let first = iova.0 & !(granule.size() - 1);
        let last = len.checked_sub(1).map(|more| iova.0.saturating_add(more));
        let spans = last.map(|last| [Span { first, last: last | (granule.size() - 1), stride: granule.size(), leaf }]);
        let change = match &spans {
            Some(spans @ [span]) if span.last < sva.shape.input_end() => {
                Change::Spans { granule, cover: sva.table.geometry.cover, spans }
            }
            _ => Change::Everything,
        };
        invalidate(&sva.fleet, &sva.invs, &change).map(|_| ())
    }

    /// The table is about to go: lets every PASID that is attached to the domain fault, silently, and makes all devices forget what was in it. The
    /// PASIDs stay attached, harmlessly, until they are detached.
    ///
    /// When it returns `Ok`, no SMMU and no device uses the table any more.
    pub fn release(&self) -> Result<(), ReleaseError> {
        let sva = &*self.0;
        let _turn = sva.fleet.attach.lock();
        sva.released.store(true, Ordering::Release);
        let mut result = Ok(());
        for device in sva.users.lock().iter() {
            result = result.and(device.silence(&self.0).map_err(ReleaseError::Configuration));
        }
        let invalidated = invalidate(&sva.fleet, &sva.invs, &Change::Everything);
        result.and(invalidated.map(|_| ()).map_err(ReleaseError::Invalidation))
    }
}

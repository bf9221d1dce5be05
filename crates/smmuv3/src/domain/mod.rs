//! Domains: what a device's addresses mean.
//!
//! | domain | whose table | what it owes for a device |
//! |---|---|---|
//! | [`PagingDomain`] | its own, stage 1 or 2 | the tag on the device's SMMU; with ATS, the device's ATC |
//! | [`SvaDomain`] | somebody else's stage 1, for a PASID | the same |
//! | [`NestedDomain`] | a guest's stage 1 over a stage 2 domain | the vSMMU's VMID, its stage 1 entries; with ATS, the whole ATC. Owed by the stage 2 domain |
//!
//! Devices that are attached to no domain are *blocked* (every access is aborted) or *identity* (accesses pass untranslated); neither
//! needs an object.

mod nested;
mod paging;
mod sva;
mod vsmmu;

pub(crate) use nested::{GuestSte, Nested, stage2_of};
pub use nested::{GuestSteError, NestedDomain};
pub(crate) use paging::Paging;
pub use paging::{Cover, DomainError, Geometry, PagingDomain};
pub(crate) use sva::Sva;
pub use sva::{SvaDomain, SvaTable};
pub(crate) use vsmmu::VSmmuInner;
pub use vsmmu::{GuestCommandError, GuestCommandFault, MapStreamError, VSmmu, VSmmuError};

use arrayvec::ArrayVec;

use crate::invs::{Invs, Key, Kind};
use crate::platform::Platform;
use crate::shared::Shared;

/// An entry of a domain's invalidation array, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owed {
    /// What is owed to which SMMU.
    pub key: Key,
    /// How many attachments need it.
    pub users: u32,
}

/// A domain that has an invalidation array.
pub(crate) enum Owner<P: Platform> {
    Paging(Shared<Paging<P>>),
    Sva(Shared<Sva<P>>),
}

impl<P: Platform> Owner<P> {
    pub(crate) fn invs(&self) -> &Invs<P> {
        match self {
            Owner::Paging(domain) => &domain.invs,
            Owner::Sva(domain) => &domain.invs,
        }
    }

    /// An SMMU may still walk the domain's tables: they are never freed.
    pub(crate) fn keep_forever(&self) {
        match self {
            Owner::Paging(domain) => domain.table.keep_forever(),
            // The table is not the driver's to free.
            Owner::Sva(_) => {}
        }
    }

    pub(crate) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Owner::Paging(a), Owner::Paging(b)) => a.same(b),
            (Owner::Sva(a), Owner::Sva(b)) => a.same(b),
            _ => false,
        }
    }
}

impl<P: Platform> Clone for Owner<P> {
    fn clone(&self) -> Self {
        match self {
            Owner::Paging(domain) => Owner::Paging(domain.clone()),
            Owner::Sva(domain) => Owner::Sva(domain.clone()),
        }
    }
}

/// A domain's own tag on an SMMU, if it has one there: the array is what knows.
///
/// A VMID that comes with a stage 1 clear belongs to a vSMMU, not to the domain.
pub(crate) fn find_tag<P: Platform>(invs: &Invs<P>, kind: Kind, smmu: u8) -> Option<Key> {
    let array = invs.load();
    let of_vsmmu = |key: Key| {
        let clear = Key::new(smmu, Kind::S2VmidS1Clear, key.id(), 0);
        kind == Kind::S2Vmid && array.live().any(|(key, _)| key == clear)
    };
    let mut own =
        array.live().map(|(key, _)| key).filter(|&key| key.smmu() == smmu && key.kind() == kind && !of_vsmmu(key));
    own.next()
}

/// Calls `each` for every entry that has a user, in order, outside of any read section.
pub(crate) fn for_each_owed<P: Platform>(invs: &Invs<P>, mut each: impl FnMut(Owed)) {
    let mut last = None;
    loop {
        let some: ArrayVec<Owed, 16> = invs
            .load()
            .live()
            .filter(|(key, _)| last < Some(*key))
            .map(|(key, users)| Owed { key, users })
            .take(16)
            .collect();
        last = match some.last() {
            Some(owed) => Some(owed.key),
            None => return,
        };
        some.into_iter().for_each(&mut each);
    }
}

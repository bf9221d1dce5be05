//! The invalidation array, its walk, and the read section around it.

use crate::arch::{Features, Granule, RawCommand};
use crate::domain::Cover;
use crate::invalidate::{Change, Span, push_commands};
use crate::invs::{InvArray, Invs, Key};
use crate::platform::Platform;
use crate::rcu::Sections;
use crate::shared::Shared;

/// An array that is not published.
pub struct Array(InvArray);

impl Array {
    /// Without entries.
    pub fn empty() -> Self {
        Array(InvArray::empty())
    }

    /// One user more for each of `add`, which is sorted. `None`: no memory.
    pub fn merge(&self, add: &[Key]) -> Option<Self> {
        self.0.merge(add).ok().map(Array)
    }

    /// One user less for each of `remove`, which is sorted. Returns how many lost their last; `None` if one had none.
    pub fn unref(&self, remove: &[Key]) -> Option<usize> {
        let mut gone = 0;
        self.0.unref(remove, |_| gone += 1).ok().map(|()| gone)
    }

    /// Without trash. `None`: there is none, or no memory.
    pub fn purge(&self) -> Option<Self> {
        self.0.purge().ok().flatten().map(Array)
    }

    /// Entries that have a user.
    pub fn live(&self) -> usize {
        self.0.live().count()
    }

    /// Bytes of all entries.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// Adds the commands for one page at `iova`. All entries are of one SMMU.
    pub fn walk(&self, iova: u64, granule: Granule, features: &Features, queue: &mut impl Extend<RawCommand>) {
        let spans = [Span { first: iova, last: iova + (granule.size() - 1), stride: granule.size(), leaf: true }];
        push_commands(self.0.runs(), &Change::Spans { granule, cover: Cover::Few, spans: &spans }, features, 0, queue);
    }
}

/// The array of a domain, published for readers.
pub struct DomainArray<P: Platform>(Invs<P>);

impl<P: Platform> DomainArray<P> {
    /// Without entries. `None`: no memory.
    pub fn new(platform: &P) -> Option<Self> {
        let sections = Shared::try_new(Sections::new(platform.clone())).ok()?;
        Invs::try_new(sections).ok().map(DomainArray)
    }

    /// What an attach does to it. False: no memory.
    pub fn attach(&self, keys: &[Key]) -> bool {
        let Ok(merged) = self.0.merge(keys) else { return false };
        self.0.publish(merged);
        self.0.reclaim();
        true
    }

    /// What a detach does to it.
    pub fn detach(&self, keys: &[Key]) {
        self.0.leave(keys, |_| {});
        self.0.reclaim();
    }

    /// Enters a read section as `unmap` does, calls `inside` with the number of entries that it finds, and leaves.
    pub fn read(&self, inside: impl FnOnce(usize)) {
        inside(self.0.load().counts().0);
    }
}

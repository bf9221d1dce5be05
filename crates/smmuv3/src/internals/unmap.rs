//! The parts of an unmap, to put together otherwise.

use crate::arch::RawCommand;
use crate::domain::{Cover, PagingDomain};
use crate::invalidate::{Change, Gathered, Span, UnmapError, push_commands};
use crate::invs::{Key, Run};
use crate::iommu::SmmuHandle;
use crate::platform::{Iova, Platform};
use crate::queue::QueueError;
use crate::shared::Shared;
use crate::smmu::{Smmu, Ticket};

/// The command queue of an SMMU.
pub struct Port<P: Platform>(Shared<Smmu<P>>);

/// Commands that were submitted, with a CMD_SYNC behind them.
#[must_use]
pub struct Submitted(Ticket);

impl<P: Platform> Port<P> {
    /// That of this SMMU.
    pub fn of(smmu: &SmmuHandle<P>) -> Self {
        Port(smmu.0.clone())
    }

    /// The number by which the SMMU stands in arrays.
    pub fn index(&self) -> u8 {
        self.0.id.index()
    }

    /// Submits commands and a CMD_SYNC.
    pub fn submit(&self, commands: impl IntoIterator<Item = RawCommand>) -> Result<Submitted, QueueError> {
        self.0.submit(|queue| queue.extend(commands)).map(Submitted)
    }

    /// Waits for that.
    pub fn wait(&self, submitted: Submitted) -> Result<(), QueueError> {
        self.0.wait(submitted.0)
    }
}

/// Adds the commands that entries of one SMMU and one kind owe for the pages `first ..= last`, of which only leaves changed.
pub fn commands<P: Platform>(
    domain: &PagingDomain<P>,
    port: &Port<P>,
    keys: &[Key],
    (first, last): (u64, u64),
    commands: &mut impl Extend<RawCommand>,
) {
    let granule = domain.granule();
    let spans = [Span { first, last, stride: granule.size(), leaf: true }];
    let change = Change::Spans { granule, cover: Cover::Few, spans: &spans };
    push_commands(Run::of(keys).into_iter(), &change, &port.0.features, port.0.ats_stu, commands);
}

/// What was taken out of a domain's table, and is to be invalidated.
#[must_use]
pub struct Taken(Gathered);

impl Taken {
    /// Takes a range out of a domain's table.
    pub fn of<P: Platform>(domain: &PagingDomain<P>, iova: Iova, len: u64) -> Result<Self, UnmapError> {
        let mut gathered = Gathered::default();
        domain.0.take(iova, len, &mut gathered)?;
        Ok(Taken(gathered))
    }

    /// It is invalidated: frees what it was.
    pub fn retire<P: Platform>(self, domain: &PagingDomain<P>) {
        domain.0.table.retire(self.0.tables, &domain.0.fleet.rcu);
    }
}

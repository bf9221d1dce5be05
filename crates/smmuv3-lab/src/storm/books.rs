//! What the storm knows: which page is mapped where, and which device is attached to what.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use smmuv3::arch::Prot;
use smmuv3::platform::Iova;
use smmuv3::{Device, DeviceConfig, PagingDomain};
use smmuv3_model::DataPages;

use super::host::Host;
use super::op::{PAGES, PASIDS, REGION_PAGES, REGIONS};

pub(super) const PAGE: u64 = 0x1000;
pub(super) const RW: Prot = Prot::READ.union(Prot::WRITE);
/// Bytes of a region, and pages.
pub(super) const REGION: u64 = 2 << 20;
pub(super) const REGION_LEN: usize = (REGION / PAGE) as usize;
/// What a device can be attached with: nothing, or one of its PASIDs.
pub(super) const CONTEXTS: usize = 1 + PASIDS;

/// The address of a page that is mapped by itself. Half of them lie below 2 MiB.
pub(super) fn page_at(page: usize) -> Iova {
    Iova(REGION - (PAGES as u64 / 2) * PAGE + page as u64 * PAGE)
}

/// The address of a region.
pub(super) fn region_at(region: usize) -> Iova {
    Iova((2 + region as u64) * REGION)
}

/// The address of a page in a region that is mapped by itself.
pub(super) fn region_page_at(region: usize, page: usize) -> Iova {
    Iova(region_at(region).0 + REGION_PAGES[page] * PAGE)
}

/// All addresses of a region that devices try.
pub(super) fn region_iovas(region: usize) -> Vec<Iova> {
    (0..REGION_PAGES.len()).map(|page| region_page_at(region, page)).collect()
}

/// All addresses.
pub(super) fn iovas() -> Vec<Iova> {
    (0..PAGES).map(page_at).chain((0..REGIONS).flat_map(region_iovas)).collect()
}

/// What is mapped at a place, for the one thread that has locked it.
pub(super) type Slot = Mutex<Option<DataPages>>;

/// A domain, and what is mapped in it.
pub(super) struct Area {
    pub domain: Mutex<Named>,
    pub pages: [Slot; PAGES],
    pub regions: [RegionSlots; REGIONS],
}

/// A domain, with a number that no other domain of the round has.
#[derive(Clone)]
pub(super) struct Named {
    pub domain: PagingDomain<Host>,
    pub id: u64,
}

#[derive(Default)]
pub(super) struct RegionSlots {
    /// What is mapped in all of it.
    pub whole: Slot,
    pub pages: [Slot; REGION_PAGES.len()],
}

/// A device and its place in the machine.
pub(super) struct Seat {
    pub smmu: usize,
    pub config: DeviceConfig,
    /// PASIDs, by context; that of context 0 is none.
    pub pasids: [u32; CONTEXTS],
    /// For the one thread that attaches it.
    pub handle: Mutex<Option<Device<Host>>>,
    /// Odd while it is being attached.
    version: AtomicU64,
    /// The ids of the domains that the contexts are attached to: nested ones to the parent. 0 is none.
    contexts: [AtomicU64; CONTEXTS],
}

impl Seat {
    pub(super) fn new(smmu: usize, config: DeviceConfig, pasids: [u32; CONTEXTS], device: Device<Host>) -> Self {
        Seat {
            smmu,
            config,
            pasids,
            handle: Mutex::new(Some(device)),
            version: AtomicU64::new(0),
            contexts: Default::default(),
        }
    }

    /// Runs what changes the attachment of a context. It returns what the context is attached to then, or `None`: to what it was.
    pub(super) fn change(&self, context: usize, change: impl FnOnce() -> Option<u64>) {
        self.version.fetch_add(1, SeqCst);
        if let Some(id) = change() {
            self.contexts[context].store(id, SeqCst);
        }
        self.version.fetch_add(1, SeqCst);
    }

    /// No context is attached to anything.
    pub(super) fn forget(&self) {
        self.contexts.iter().for_each(|context| context.store(0, SeqCst));
    }

    /// What a context is attached to.
    pub(super) fn attached(&self, context: usize) -> u64 {
        self.contexts[context].load(SeqCst)
    }

    /// Whether a context was attached to `id` all the time that `access` took; then what that gave.
    pub(super) fn while_attached<R>(&self, context: usize, id: u64, access: impl FnOnce() -> R) -> Option<R> {
        let version = self.version.load(SeqCst);
        let attached = version.is_multiple_of(2) && self.attached(context) == id;
        let result = access();
        (attached && self.version.load(SeqCst) == version).then_some(result)
    }
}

//! The heap says no: each allocation in turn, and all of them.

mod common;

use common::*;
use smmuv3::arch::{RawSte, Stage};
use smmuv3::platform::Iova;
use smmuv3::{AttachError, DeviceConfig, Iommu};
use smmuv3_model::{Model, ModelConfig};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local!(
    /// Allocations that this thread may still make; `None` is any number.
    static BUDGET: Cell<Option<u32>> = const { Cell::new(None) };
    /// A size that is refused, and how often it was.
    static REFUSED: Cell<(usize, u32)> = const { Cell::new((0, 0)) }
);

struct Stingy;

// SAFETY: everything is passed on to `System` as it came, or refused, which an allocator may do.
unsafe impl GlobalAlloc for Stingy {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, times) = REFUSED.get();
        if layout.size() == size {
            REFUSED.set((size, times + 1));
            return std::ptr::null_mut();
        }
        let allowed = BUDGET.with(|budget| match budget.get() {
            None => true,
            Some(left) => {
                budget.set(Some(left.saturating_sub(1)));
                left > 0
            }
        });
        // SAFETY: the caller's promise about `layout` is passed on.
        if allowed { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System`, and the caller's promise about both is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static HEAP: Stingy = Stingy;

/// Runs `action` with a heap that grants `budget` allocations.
fn with_budget<R>(budget: u32, action: impl FnOnce() -> R) -> R {
    BUDGET.set(Some(budget));
    let result = action();
    BUDGET.set(None);
    result
}

/// The model's own bookkeeping allocates on the thread that rings the doorbell, so only calls that reach no hardware can be run out of
/// memory here; those are all calls up to the point where hardware is touched.
#[test]
fn an_attach_without_memory_for_the_array_leaves_no_trace() {
    let rig = Rig::new();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    for budget in 0..2 {
        assert_eq!(with_budget(budget, || device.attach(&domain)), Err(AttachError::NoMemory));
        domain.owed(|owed| panic!("{owed:?}"));
    }
    device.attach(&domain).unwrap();
    let mut tag = None;
    domain.owed(|owed| tag = Some(owed.key.id()));
    assert_eq!(tag, Some(3), "the tags of the failed attempts went back, and come round again late");
    assert!(use_and_unmap(&rig, &domain, SID, Iova(0x1000)));
    rig.model.report().assert_clean();
}

#[test]
fn objects_without_memory_are_errors() {
    let model = Model::new(ModelConfig::default());
    assert!(with_budget(0, || Iommu::new(model.platform())).is_err());
    assert!((1..4).any(|budget| with_budget(budget, || Iommu::new(model.platform())).is_ok()));
    let rig = Rig::new();
    let parent = rig.domain(Stage::S2);
    assert!(with_budget(0, || rig.iommu.vsmmu(&rig.smmu, &parent)).is_err());
    let vsmmu = rig.iommu.vsmmu(&rig.smmu, &parent).unwrap();
    assert!(with_budget(0, || vsmmu.nested_domain(&RawSte::default())).is_err());
    let device = rig.add(SID);
    assert!(with_budget(0, || vsmmu.map_stream(1, &device)).is_err());
    assert!(with_budget(0, || rig.iommu.add_device(&rig.smmu, DeviceConfig::stream(5).pasid_bits(8))).is_err());
    drop(rig.add(5));
    rig.model.report().assert_clean();
}

#[test]
fn detaching_allocates_nothing_of_its_own() {
    // The model allocates for what it is told (logs, caches); so the same is done twice, and with a heap that is counted, not empty: a detach asks
    // for no more than the commands it sends.
    let rig = Rig::new();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    let spent = |action: &dyn Fn()| {
        BUDGET.set(Some(u32::MAX));
        action();
        let left = BUDGET.get().unwrap_or_default();
        BUDGET.set(None);
        u32::MAX - left
    };
    // Warm: the model's logs and maps have grown.
    for _ in 0..2_000 {
        device.attach(&domain).unwrap();
        device.detach().unwrap();
    }
    let mut least = u32::MAX;
    for _ in 0..50 {
        device.attach(&domain).unwrap();
        least = least.min(spent(&|| device.detach().unwrap()));
        device.attach(&domain).unwrap();
        least = least.min(spent(&|| device.attach_identity().unwrap()));
    }
    assert_eq!(least, 0, "a detach allocates");
}

#[test]
fn a_purge_that_gets_no_memory_leaves_the_trash_and_the_detach_as_they_should_be() {
    let rig = Rig::new();
    let domain = rig.domain(Stage::S1);
    let with_streams = |first: u32, count: u32| {
        let config = (1..count).fold(DeviceConfig::stream(first), |config, n| config.and_stream(first + n)).ats();
        rig.iommu.add_device(&rig.smmu, config).unwrap()
    };
    let (many, few) = (with_streams(0x10, 16), with_streams(0x40, 6));
    few.attach(&domain).unwrap();
    let owed = || {
        let mut all = Vec::new();
        domain.owed(|owed| all.push((owed.key.id(), owed.users)));
        all
    };
    let before = owed();
    assert_eq!(before.len(), 7);
    many.attach(&domain).unwrap();
    assert_eq!(owed().len(), 23);
    // 16 of 23 entries become trash: worth a purge, to 7 entries of 16 bytes, which are not to be had.
    REFUSED.set((7 * 16, 0));
    let result = many.detach();
    let (_, refused) = REFUSED.replace((0, 0));
    result.unwrap();
    assert!(refused > 0, "no purge was tried");
    assert_eq!(owed(), before);
    rig.model.take_commands(0);
    domain.map(Iova(0), smmuv3::platform::PhysAddr(0x8000_0000), PAGE, RW).unwrap();
    domain.unmap(Iova(0), PAGE).unwrap();
    let commands = rig.model.take_commands(0);
    assert_eq!(commands.iter().filter(|command| command.mnemonic() == "ATC_INV").count(), 6, "{commands:?}");
    // The next attach drops the trash.
    many.attach(&domain).unwrap();
    assert_eq!(owed().len(), 23);
    rig.model.report().assert_clean();
}

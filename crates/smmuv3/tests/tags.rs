//! Few tags, and attaching that fails half way: none is lost, none is given out twice.

mod common;

use common::*;
use smmuv3::arch::Stage;
use smmuv3::{AttachError, Device, DeviceConfig};
use smmuv3_model::{ModelConfig, ModelPlatform, ModelSmmuConfig};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local!(static EMPTY: Cell<bool> = const { Cell::new(false) });

/// The system's heap, which is empty for a thread that says so.
struct Heap;

// SAFETY: everything is passed on to `System` as it came, or refused, which an allocator may do.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is passed on.
        if EMPTY.get() { std::ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System`, and the caller's promise about both is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static HEAP: Heap = Heap;

/// An SMMU with 255 ASIDs, and two devices.
fn small(ats: bool) -> (Rig, [Device<ModelPlatform>; 2]) {
    let config = ModelSmmuConfig { asid16: false, ..ModelSmmuConfig::default() };
    let rig = Rig::with(ModelConfig::with_smmu(config));
    let devices = [SID, OTHER].map(|sid| {
        let config = DeviceConfig::stream(sid).pasid_bits(9);
        let config = if ats { config.ats() } else { config };
        rig.iommu.add_device(&rig.smmu, config).unwrap()
    });
    (rig, devices)
}

fn attach_without_memory(device: &Device<ModelPlatform>, domain: &Domain) {
    EMPTY.set(true);
    let result = device.attach(domain);
    EMPTY.set(false);
    assert_eq!(result, Err(AttachError::NoMemory));
}

/// Attaches as many PASIDs as there are tags, each to a domain of its own.
fn take_all(rig: &Rig, device: &Device<ModelPlatform>) -> Vec<u32> {
    let mut tags = Vec::new();
    for pasid in 1.. {
        let domain = rig.domain(Stage::S1);
        match device.attach_pasid(pasid, &domain) {
            Ok(()) => domain.owed(|owed| tags.push(owed.key.id())),
            Err(AttachError::NoTag { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    tags.sort_unstable();
    tags
}

#[test]
fn an_attach_that_fails_gives_its_new_tag_back() {
    let (rig, [device, _]) = small(false);
    for _ in 0..300 {
        attach_without_memory(&device, &rig.domain(Stage::S1));
    }
    assert!(take_all(&rig, &device).into_iter().eq(1..=255));
}

#[test]
fn an_attach_that_fails_does_not_give_away_the_tag_that_others_use() {
    let (rig, [first, second]) = small(false);
    let domain = rig.domain(Stage::S1);
    first.attach(&domain).unwrap();
    attach_without_memory(&second, &domain);
    assert!(take_all(&rig, &second).into_iter().eq(2..=255), "1 is the domain's");
}

#[test]
fn an_attach_that_fails_leaves_ats_off_where_it_was_off() {
    let (rig, [first, second]) = small(true);
    take_all(&rig, &first);
    for pasid in [false, true] {
        let domain = rig.domain(Stage::S1);
        let result = if pasid { second.attach_pasid(1, &domain) } else { second.attach(&domain) };
        assert!(matches!(result, Err(AttachError::NoTag { .. })));
        assert!(!second.ats() && !rig.model.ats_enabled(0, OTHER));
    }
    rig.model.report().assert_clean();
}

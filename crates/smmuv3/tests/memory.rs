//! The heap says no, and so does the hardware: at each step in turn, and at all of them.

mod common;
#[path = "common/spy.rs"]
mod spy;

use common::*;
use smmuv3::arch::{RawSte, Stage};
use smmuv3::platform::{Iova, PhysAddr};
use smmuv3::{AttachError, DeviceConfig, Iommu, NestedDomain, SmmuHandle, SmmuOptions, SvaTable, VSmmu};
use smmuv3_model::{Model, ModelConfig, ModelSmmuConfig};
use spy::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local!(
    /// Allocations that the driver may still make on this thread.
    static BUDGET: Cell<u32> = const { Cell::new(u32::MAX) };
    /// A size that is refused, and how often it was.
    static REFUSED: Cell<(usize, u32)> = const { Cell::new((0, 0)) };
);

/// Whether the driver gets memory, of the heap or for DMA, once more. The host below it always does.
fn granted() -> bool {
    let left = BUDGET.get();
    if left != u32::MAX && in_driver() {
        BUDGET.set(left.saturating_sub(1));
        return left > 0;
    }
    true
}

struct Stingy;

// SAFETY: everything is passed on to `System` as it came, or refused, which an allocator may do.
unsafe impl GlobalAlloc for Stingy {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, times) = REFUSED.get();
        if layout.size() == size {
            REFUSED.set((size, times + 1));
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise about `layout` is passed on.
        if granted() { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System`, and the caller's promise about both is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static HEAP: Stingy = Stingy;

/// Runs `action` while the driver gets memory only `budget` times.
fn with_budget<R>(budget: u32, action: impl FnOnce() -> R) -> R {
    BUDGET.set(budget);
    let result = action();
    BUDGET.set(u32::MAX);
    result
}

type Device = smmuv3::Device<SpyPlatform>;
type Domain = smmuv3::PagingDomain<SpyPlatform>;

const IOVA: Iova = Iova(0x4000_1000);
const PASID: u32 = 5;

/// A machine with few tags, and domains of all kinds in which [`IOVA`] is mapped.
struct World {
    model: Model,
    steps: Steps,
    iommu: Iommu<SpyPlatform>,
    smmu: SmmuHandle<SpyPlatform>,
    s1: [Domain; 2],
    s2: [Domain; 2],
    vsmmu: VSmmu<SpyPlatform>,
    nested: NestedDomain<SpyPlatform>,
}

/// Where a device, or its PASID, can go.
#[derive(Debug, Clone, Copy, PartialEq)]
enum To {
    Blocked,
    Identity,
    S1(usize),
    S2,
    Nested,
    Pasid,
}

impl To {
    /// What a device finds there.
    fn value(self) -> Option<u64> {
        match self {
            To::S1(0) => Some(1),
            To::S1(_) | To::Pasid => Some(2),
            To::S2 => Some(3),
            To::Nested => Some(4),
            To::Blocked | To::Identity => None,
        }
    }
}

impl World {
    fn new() -> World {
        let steps = Steps::default();
        let config = ModelSmmuConfig { asid16: false, vmid16: false, ..ModelSmmuConfig::default() };
        // Little memory: what a broken device may still reach is never given back, here neither.
        let model = Model::new(ModelConfig { ram_size: 1 << 20, ..ModelConfig::with_smmu(config) });
        let platform = SpyPlatform::new(&model).steps(steps.clone()).memory(granted).own_clock();
        let iommu = Iommu::new(platform).unwrap();
        let options = SmmuOptions { timeout_ns: 1_000_000, ..SmmuOptions::default() };
        let smmu = iommu.add_smmu(Spy::new(&model).steps(steps.clone()), options).unwrap();
        let domain = |stage, value| {
            let domain = iommu.paging_domain(stage, Default::default()).unwrap();
            let page = model.alloc_data(1).unwrap();
            model.write_u64(page.addr(), value);
            domain.map(IOVA, page.addr(), PAGE, RW).unwrap();
            domain
        };
        let s1 = [domain(Stage::S1, 1), domain(Stage::S1, 2)];
        let s2 = [domain(Stage::S2, 3), domain(Stage::S2, 4)];
        let vsmmu = iommu.vsmmu(&smmu, &s2[1]).unwrap();
        // A guest that bypasses its own stage.
        let nested = vsmmu.nested_domain(&RawSte([0b1001, 0, 0, 0, 0, 0, 0, 0])).unwrap();
        World { model, steps, iommu, smmu, s1, s2, vsmmu, nested }
    }

    fn device(&self, ats: bool) -> Device {
        let config = DeviceConfig::stream(SID).and_stream(OTHER).pasid_bits(10);
        self.iommu.add_device(&self.smmu, if ats { config.ats() } else { config }).unwrap()
    }

    fn go(&self, device: &Device, to: To) -> Result<(), AttachError> {
        match to {
            To::Blocked => device.detach().map_err(AttachError::from),
            To::Identity => device.attach_identity().map_err(AttachError::from),
            To::S1(n) => device.attach(&self.s1[n]),
            To::S2 => device.attach(&self.s2[0]),
            To::Nested => device.attach_nested(&self.nested),
            To::Pasid => device.attach_pasid(PASID, &self.s1[1]),
        }
    }

    /// All that anybody can see of where a device is: arrays, ATS, and what its accesses find.
    fn trace(&self, device: &Device) -> String {
        let mut owed = Vec::new();
        for domain in self.s1.iter().chain(&self.s2) {
            domain.owed(|entry| owed.push(entry));
        }
        let ats = [SID, OTHER].map(|sid| self.model.ats_enabled(0, sid));
        let hw = self.model.device(0, OTHER);
        let found = [hw.read_u64(IOVA).ok(), hw.with_ssid(PASID).read_u64(IOVA).ok()];
        format!("{owed:?}, ATS {} {ats:?}, DMA {found:?}", device.ats())
    }

    /// Nothing went wrong but what was done to the SMMU.
    fn assert_clean_but_for(&self, tolerated: &str) {
        let report = self.model.report();
        assert_eq!((report.stale_dma, report.stale_walks), (0, 0));
        let others = report.violations.iter().filter(|violation| !violation.contains(tolerated));
        assert_eq!(others.collect::<Vec<_>>(), Vec::<&String>::new());
    }

    /// Nothing is owed, and nobody reaches anything.
    fn assert_empty(&self) {
        for domain in self.s1.iter().chain(&self.s2) {
            domain.owed(|entry| panic!("{entry:?} is still owed"));
        }
        assert!(self.model.device(0, SID).read_u64(IOVA).is_err());
        self.model.report().assert_clean();
    }
}

/// From where to where an attachment can go that may be refused.
fn moves() -> impl Iterator<Item = (bool, To, To)> {
    let from = [To::Blocked, To::Identity, To::S1(0), To::S2, To::Nested];
    let to = [To::S1(0), To::S1(1), To::S2, To::Nested, To::Pasid];
    let all = from.into_iter().flat_map(move |from| to.into_iter().map(move |to| (from, to)));
    all.filter(|(from, to)| !(matches!(from, To::S2 | To::Nested) && *to == To::Pasid))
        .flat_map(|(from, to)| [(false, from, to), (true, from, to)])
}

#[test]
fn an_attach_that_gets_no_memory_at_any_allocation_leaves_no_trace() {
    let world = World::new();
    for (ats, from, to) in moves() {
        let device = world.device(ats);
        world.go(&device, from).unwrap();
        let before = world.trace(&device);
        let mut refused = 0;
        let mut allowed = 0;
        loop {
            // More often than there are tags: a tag that a failed attempt keeps is missed.
            let attempts = if allowed == 0 { 300 } else { 1 };
            let results: Vec<_> =
                (0..attempts).map(|_| with_budget(allowed, || world.go(&device, to))).take(attempts).collect();
            if results == [Ok(())] {
                break;
            }
            assert!(
                results.iter().all(|result| *result == Err(AttachError::NoMemory)),
                "{from:?} to {to:?}: {results:?}"
            );
            assert_eq!(world.trace(&device), before, "{from:?} to {to:?}, ATS {ats}, {allowed} allocations");
            refused += 1;
            allowed += 1;
        }
        assert!(refused >= 2, "an array takes two allocations");
        drop(device);
        world.assert_empty();
    }
}

#[test]
fn detaching_blocking_and_unmapping_need_no_memory_at_all() {
    let world = World::new();
    let from = [To::S1(0), To::S2, To::Nested, To::Identity, To::Blocked];
    for (ats, from) in from.into_iter().flat_map(|from| [(false, from), (true, from)]) {
        for pasids in [false, true] {
            let device = world.device(ats);
            world.go(&device, from).unwrap();
            if pasids && world.go(&device, To::Pasid).is_err() {
                continue;
            }
            let _ = world.model.device(0, SID).ats_read_u64(IOVA);
            with_budget(0, || {
                world.s1[0].unmap(IOVA, PAGE).unwrap();
                device.detach().unwrap();
                if pasids {
                    device.attach_identity().unwrap();
                    device.detach_pasid(PASID).unwrap();
                }
                device.detach().unwrap();
            });
            world.assert_empty();
            let page = world.model.alloc_data(1).unwrap();
            world.s1[0].map(IOVA, page.addr(), PAGE, RW).unwrap();
            // A drop detaches, too.
            world.go(&device, from).unwrap();
            with_budget(0, || drop(device));
            world.assert_empty();
        }
    }
    // A table of somebody else is released without memory.
    let root = world.model.alloc_data(1).unwrap();
    (0..512).for_each(|word| assert!(world.model.write_u64(PhysAddr(root.addr().0 + 8 * word), 0)));
    let table = SvaTable { root: root.addr(), geometry: Default::default(), mair: 0xff };
    let sva = world.iommu.sva_domain(table).unwrap();
    let device = world.device(true);
    device.attach_pasid(PASID, &sva).unwrap();
    with_budget(0, || {
        sva.release().unwrap();
        device.detach_pasid(PASID).unwrap();
    });
    with_budget(0, || drop((device, sva)));
    let World { iommu, smmu, s1, s2, vsmmu, nested, model, .. } = world;
    with_budget(0, || drop((nested, vsmmu, s1, s2)));
    iommu.remove_smmu(&smmu).unwrap();
    with_budget(0, || drop((smmu, iommu)));
    assert_eq!(model.driver_pages(), 0);
}

#[test]
fn hardware_that_goes_away_at_any_step_of_an_attach_gives_nothing_away() {
    let (mut steps, mut broken) = (0, 0);
    for (ats, from, to) in moves() {
        let mut step = 0;
        loop {
            let world = World::new();
            let device = world.device(ats);
            world.go(&device, from).unwrap();
            world.steps.arm(Mishap::GoneFrom(step));
            let result = world.go(&device, to);
            let over = world.steps.count() <= step;
            world.steps.arm(Mishap::None);
            let what = format!("{from:?} to {to:?}, ATS {ats}, gone from step {step}: {result:?}");
            match result {
                // It has confirmed the change, at least; what it did not is the flush of tags, which are lost then.
                Ok(()) => {
                    let hw = world.model.device(0, SID);
                    let found = if to == To::Pasid { hw.with_ssid(PASID).read_u64(IOVA) } else { hw.read_u64(IOVA) };
                    assert_eq!(found.ok(), to.value(), "{what}");
                    device.detach().expect(&what);
                    assert!(world.model.device(0, SID).read_u64(IOVA).is_err(), "{what}");
                }
                Err(AttachError::Hardware(_)) => {
                    // Published, and the device is broken: until it is blocked, whatever it may reach cannot be unmapped as if nothing had been.
                    broken += 1;
                    assert!(device.attach(&world.s1[0]).is_err(), "{what}");
                    device.detach().expect(&what);
                    let hw = world.model.device(0, SID);
                    assert!(hw.read_u64(IOVA).is_err() && hw.with_ssid(PASID).read_u64(IOVA).is_err(), "{what}");
                }
                Err(error) => panic!("{what}: {error}"),
            }
            // An SMMU that comes back carries out what still stood in its queue; the device's ATS may be off by then.
            world.assert_clean_but_for("whose ATS is off");
            steps += 1;
            if over {
                break;
            }
            step += 1;
        }
    }
    println!("{steps} runs, {broken} broken devices");
    assert!(broken > 100);
}

#[test]
fn a_step_that_the_hardware_refuses_breaks_one_device_at_most() {
    let (mut without_ats, mut broken) = (0, 0);
    for (ats, from, to) in moves() {
        let mut step = 0;
        loop {
            let world = World::new();
            let device = world.device(ats);
            world.go(&device, from).unwrap();
            world.steps.arm(Mishap::RefusedAt(step));
            let result = world.go(&device, to);
            let over = world.steps.count() <= step;
            world.steps.arm(Mishap::None);
            let what = format!("{from:?} to {to:?}, ATS {ats}, step {step} refused: {result:?}");
            let enabled = [SID, OTHER].map(|sid| world.model.ats_enabled(0, sid));
            assert_eq!(enabled, [device.ats(); 2], "ATS is on in all streams of the device or in none: {what}");
            match result {
                Ok(()) => {
                    // ATS is a favour: a function that does not want it works without, and is owed nothing for it.
                    let mut atcs = 0;
                    for domain in world.s1.iter().chain(&world.s2) {
                        domain.owed(|owed| {
                            atcs += u32::from(matches!(owed.key.kind(), smmuv3::Kind::Ats | smmuv3::Kind::AtsFull))
                        });
                    }
                    assert_eq!(atcs > 0, device.ats(), "{what}");
                    without_ats += u32::from(ats && !device.ats());
                    device.detach().expect(&what);
                    if to == To::Pasid {
                        device.detach_pasid(PASID).expect(&what);
                    }
                    drop(device);
                    world.assert_clean_but_for("opcode 0xff");
                }
                Err(AttachError::Hardware(_)) => {
                    broken += 1;
                    device.detach().expect(&what);
                    assert!(world.model.device(0, SID).read_u64(IOVA).is_err(), "{what}");
                    world.assert_clean_but_for("opcode 0xff");
                }
                Err(error) => panic!("{what}: {error}"),
            }
            if over {
                break;
            }
            step += 1;
        }
    }
    println!("{without_ats} attachments without ATS, {broken} broken devices");
    assert!(without_ats > 10 && broken > 10);
}

#[test]
fn an_smmu_or_device_that_cannot_be_added_for_whatever_reason_can_be_added_later() {
    // Hardware that fails at each step, then memory that fails at each allocation.
    for mishap in [Mishap::GoneFrom, Mishap::RefusedAt] {
        let mut failed = 0;
        for step in 0.. {
            let world = World::new();
            let before = world.trace(&world.device(false));
            world.steps.arm(mishap(step));
            let config = DeviceConfig::stream(SID).and_stream(0x900).pasid_bits(10);
            let result = world.iommu.add_device(&world.smmu, config);
            let over = world.steps.count() <= step;
            world.steps.arm(Mishap::None);
            failed += u32::from(result.is_err());
            drop(result);
            assert_eq!(world.trace(&world.device(false)), before, "step {step}");
            world.assert_clean_but_for("opcode 0xff");
            if over {
                break;
            }
        }
        assert!(failed > 2, "{failed}");
        let mut failed = 0;
        for step in 0.. {
            let (model, steps) = (Model::new(ModelConfig::default()), Steps::default());
            let iommu = Iommu::new(<SpyPlatform>::new(&model).steps(steps.clone()).own_clock()).unwrap();
            let add = || iommu.add_smmu(Spy::new(&model).steps(steps.clone()), SmmuOptions::default());
            steps.arm(mishap(step));
            let result = add();
            let over = steps.count() <= step;
            steps.arm(Mishap::None);
            if result.is_err() {
                failed += 1;
                add().expect("the second time it works");
            }
            let report = model.report();
            assert_eq!((report.stale_dma, report.stale_walks), (0, 0), "step {step}");
            if over {
                break;
            }
        }
        assert!(failed > 0);
    }
    let world = World::new();
    let before = world.trace(&world.device(false));
    // A second-level stream table stays.
    let pages = world.model.driver_pages();
    let config = DeviceConfig::stream(SID).and_stream(OTHER).pasid_bits(10);
    let refused = (0..)
        .take_while(|&allowed| with_budget(allowed, || world.iommu.add_device(&world.smmu, config.clone())).is_err())
        .count();
    assert!(refused >= 2, "{refused}");
    assert_eq!(world.trace(&world.device(false)), before);
    assert_eq!(world.model.driver_pages(), pages);
    world.model.report().assert_clean();
    let refused = (0..)
        .take_while(|&allowed| {
            let model = Model::new(ModelConfig::default());
            let iommu = Iommu::new(<SpyPlatform>::new(&model).memory(granted)).unwrap();
            let mmio = Spy::new(&model);
            let result = with_budget(allowed, || iommu.add_smmu(mmio, SmmuOptions::default()));
            let failed = result.is_err();
            drop((result, iommu));
            assert_eq!(model.driver_pages(), 0, "{allowed} allocations");
            model.report().assert_clean();
            failed
        })
        .count();
    assert!(refused >= 8, "{refused}");
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
fn a_purge_that_gets_no_memory_leaves_the_trash_and_the_detach_as_they_should_be() {
    // 16 of 23 entries become trash: worth a purge. The 7 that stay have keys of 8 bytes, and two counts of 4 bytes, which are not to be had.
    for refused in [7 * 8, 7 * 4] {
        purge_without(refused);
    }
}

fn purge_without(size: usize) {
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
    REFUSED.set((size, 0));
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

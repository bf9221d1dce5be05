//! A kernel brings its own read sections and grace periods.

mod common;
#[path = "common/spy.rs"]
mod spy;

use common::*;
use smmuv3::arch::Stage;
use smmuv3::platform::{Iova, Platform};
use smmuv3::rcu::Rcu;
use smmuv3::{DeviceConfig, Iommu};
use smmuv3_model::{Model, ModelConfig};
use spy::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// The simplest there is: one count of readers, and a grace period is a moment without any.
#[derive(Default)]
struct KernelRcu {
    readers: AtomicU64,
}

/// Sections that were entered, and grace periods, by all of them.
static ENTERED: AtomicU64 = AtomicU64::new(0);
static WAITED: AtomicU64 = AtomicU64::new(0);

struct Reader<'a>(&'a AtomicU64);

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

// SAFETY: all operations on the one counter are sequentially consistent and each is a read-modify-write or orders like one, so a grace period, which has
// seen it at 0, comes after every section that was entered before, and before every later one.
unsafe impl Rcu for KernelRcu {
    type Guard<'a> = Reader<'a>;
    fn enter<P: Platform>(&self, _: &P) -> Reader<'_> {
        ENTERED.fetch_add(1, Ordering::Relaxed);
        self.readers.fetch_add(1, Ordering::SeqCst);
        Reader(&self.readers)
    }
    fn synchronize<P: Platform>(&self, platform: &P) {
        WAITED.fetch_add(1, Ordering::Relaxed);
        while self.readers.fetch_add(0, Ordering::SeqCst) != 0 {
            platform.relax();
        }
    }
    fn try_synchronize<P: Platform>(&self, _: &P) -> bool {
        self.readers.fetch_add(0, Ordering::SeqCst) == 0
    }
}

#[test]
fn the_driver_uses_the_read_sections_of_its_kernel() {
    let model = Model::new(ModelConfig::default());
    let iommu = Iommu::new(SpyPlatform::<KernelRcu>::new(&model)).unwrap();
    let smmu = iommu.add_smmu(Spy::new(&model), quick()).unwrap();
    let device = iommu.add_device(&smmu, DeviceConfig::stream(SID).ats()).unwrap();
    let domains = [Stage::S1, Stage::S2].map(|stage| iommu.paging_domain(stage, Default::default()).unwrap());
    let hw = model.device(0, SID);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for domain in &domains {
            let (model, stop) = (&model, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for n in 0..4 {
                        let page = model.alloc_data(1).unwrap();
                        domain.map(Iova(n * PAGE), page.addr(), PAGE, RW).unwrap();
                        thread::yield_now();
                        domain.unmap(Iova(n * PAGE), PAGE).unwrap();
                        model.free_data(page);
                    }
                }
            });
        }
        for round in 0..200 {
            device.attach(&domains[round % 2]).unwrap();
            for n in 0..4 {
                let _ = hw.write_u64(Iova(n * PAGE), 1);
                let _ = hw.ats_write_u64(Iova(n * PAGE), 1);
            }
            if round % 7 == 0 {
                device.detach().unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(device);
    let (entered, waited) = (ENTERED.load(Ordering::Relaxed), WAITED.load(Ordering::Relaxed));
    assert!(entered > 1000 && waited > 200, "{entered} sections, {waited} grace periods");
    drop((domains, smmu, iommu));
    assert_eq!(model.driver_pages(), 0);
    model.report().assert_clean();
}

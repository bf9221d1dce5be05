//! Everything at once, at random: many SMMUs, devices, domains and threads; and nothing is left at the end.
//!
//! Two seconds by default; `SMMUV3_STORM_SECONDS` makes it longer.

mod common;

use common::*;
use smmuv3::arch::Stage;
use smmuv3::platform::Iova;
use smmuv3::{DeviceConfig, Iommu, SmmuOptions};
use smmuv3_model::{DeviceThread, Model, ModelConfig, ModelSmmuConfig, Targets, Traffic};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SMMUS: usize = 8;
const DEVICES: usize = 64;
const DOMAINS: usize = 16;
const THREADS: u64 = 4;
/// Devices whose hardware runs on a thread of its own; the others are driven by the storming threads.
const ROGUES: usize = 2;
const IOVAS: u64 = 64;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

#[test]
fn a_storm_over_many_smmus_reaches_no_freed_page_and_leaves_nothing_behind() {
    let seconds = std::env::var("SMMUV3_STORM_SECONDS").ok().and_then(|value| value.parse().ok()).unwrap_or(2);
    let end = Instant::now() + Duration::from_secs(seconds);
    let model = Model::new(ModelConfig {
        // A few that are different: no range invalidation, short tags, no ATS.
        smmus: (0..SMMUS)
            .map(|n| ModelSmmuConfig {
                range_inv: n % 3 != 1,
                asid16: n % 4 != 2,
                ats: n % 4 != 3,
                ..ModelSmmuConfig::default()
            })
            .collect(),
        seed: 42,
        ..ModelConfig::default()
    });
    let iommu = Iommu::new(model.platform()).unwrap();
    let options = SmmuOptions { eventq_log2: 10, ..SmmuOptions::default() };
    let smmus: Vec<_> = (0..SMMUS).map(|n| iommu.add_smmu(model.mmio(n), options).unwrap()).collect();
    let empty = model.driver_pages();
    let (rounds, unmaps) = (AtomicU64::new(0), AtomicU64::new(0));
    let accesses: u64 = {
        let devices: Vec<_> = (0..DEVICES)
            .map(|n| {
                let config = DeviceConfig::stream(0x100 + n as u32).pasid_bits(4);
                iommu.add_device(&smmus[n % SMMUS], if n % 2 == 0 { config.ats() } else { config }).unwrap()
            })
            .collect();
        let stage = |n: usize| if n % 4 == 3 { Stage::S2 } else { Stage::S1 };
        let domains: Vec<Domain> =
            (0..DOMAINS).map(|n| iommu.paging_domain(stage(n), Default::default()).unwrap()).collect();
        // What is mapped where: one owner for each IOVA of each domain at a time.
        let slots: Vec<Vec<Mutex<()>>> = (0..DOMAINS).map(|_| (0..IOVAS).map(|_| Mutex::new(())).collect()).collect();
        let targets = Targets::new();
        (0..IOVAS).for_each(|n| targets.add(Iova(n * PAGE)));
        let rogues: Vec<_> = (0..ROGUES)
            .map(|n| {
                let device = model.device(n % SMMUS, 0x100 + n as u32);
                DeviceThread::start_with(device, targets.clone(), n as u64 + 1, Traffic::Mixed)
            })
            .collect();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (model, devices, domains, slots, smmus) = (&model, &devices, &domains, &slots, &smmus);
                let (rounds, unmaps) = (&rounds, &unmaps);
                scope.spawn(move || {
                    let mut rng = Rng(0x9e37_79b9_7f4a_7c15 ^ (thread + 1));
                    while Instant::now() < end {
                        rounds.fetch_add(1, Ordering::Relaxed);
                        let n = rng.below(DOMAINS as u64) as usize;
                        let device = &devices[rng.below(DEVICES as u64) as usize];
                        match rng.below(16) {
                            0 => device.attach_identity().unwrap(),
                            1 => device.detach().unwrap(),
                            2 | 3 => {
                                // Refused where PASIDs are in use and the domain is stage 2.
                                let _ = device.attach(&domains[n]);
                            }
                            4 => {
                                let _ = device.attach_pasid(1 + rng.below(3) as u32, &domains[n]);
                            }
                            5 => device.detach_pasid(1 + rng.below(3) as u32).unwrap(),
                            6 => {
                                let _ = smmus[rng.below(SMMUS as u64) as usize].take_events(|_| {});
                            }
                            _ => {
                                let at = rng.below(IOVAS - 2);
                                let Ok(_owner) = slots[n][at as usize].try_lock() else { continue };
                                let Ok(_next) = slots[n][at as usize + 1].try_lock() else { continue };
                                let Some(pages) = model.alloc_data(2) else { continue };
                                let iova = Iova(at * PAGE);
                                domains[n].map(iova, pages.addr(), 2 * PAGE, RW).unwrap();
                                for _ in 0..16 {
                                    let index = rng.below(DEVICES as u64) as usize;
                                    let mut hw = model.device(index % SMMUS, 0x100 + index as u32);
                                    if rng.below(3) == 0 {
                                        hw = hw.with_ssid(1 + rng.below(3) as u32);
                                    }
                                    let to = Iova(iova.0 + rng.below(2) * PAGE);
                                    let _ =
                                        if rng.below(2) == 0 { hw.ats_write_u64(to, 1) } else { hw.write_u64(to, 1) };
                                }
                                assert_eq!(domains[n].unmap(iova, 2 * PAGE).unwrap().bytes, 2 * PAGE);
                                unmaps.fetch_add(1, Ordering::Relaxed);
                                model.free_data(pages);
                            }
                        }
                    }
                });
            }
        });
        let accesses = rogues.into_iter().map(|thread| thread.stop().accesses).sum();
        devices.iter().for_each(|device| device.detach().unwrap());
        drop(devices);
        domains.iter().for_each(|domain| domain.owed(|owed| panic!("{owed:?} is still owed")));
        accesses
    };
    let report = model.report();
    println!(
        "{seconds} s: {} rounds, {} unmaps, {} rogue accesses, {} checked, {} stale",
        rounds.load(Ordering::Relaxed),
        unmaps.load(Ordering::Relaxed),
        accesses,
        report.dma_checked,
        report.stale_dma
    );
    report.assert_clean();
    assert_eq!(report.atc_to_disabled, 0);
    // Devices, domains, arrays and tables are gone; second-level stream tables stay, one for each SMMU here.
    assert_eq!(model.driver_pages(), empty + 4 * SMMUS);
    assert_eq!(model.data_pages(), 0);
    // And all tags are free: as many domains as there are tags can be attached on the SMMU with the fewest.
    let device = iommu.add_device(&smmus[2], DeviceConfig::stream(7)).unwrap();
    let more = (0..254u32).map(|n| iommu.add_device(&smmus[2], DeviceConfig::stream(0x400 + n)).unwrap());
    let attached: Vec<_> = std::iter::once(device)
        .chain(more)
        .map(|device| {
            let domain = iommu.paging_domain(Stage::S1, Default::default()).unwrap();
            device.attach(&domain).unwrap();
            (device, domain)
        })
        .collect();
    assert_eq!(attached.len(), 255);
    drop((attached, smmus, iommu));
    assert_eq!(model.driver_pages(), 0);
    model.report().assert_clean();
}

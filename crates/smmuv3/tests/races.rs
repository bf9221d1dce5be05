//! Many threads at once: the promise holds whatever else happens at the same moment.

mod common;

use common::*;
use smmuv3::arch::Stage;
use smmuv3::platform::Iova;
use smmuv3_model::{DeviceThread, ModelConfig, Targets};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// One thread maps, unmaps and frees pages; two devices access whatever is or was mapped, all the time.
///
/// unmapping thread              device
/// clear descriptor              walk, fill TLB
/// barrier, TLBI, SYNC, wait     hit the TLB
/// free the page                 access the page: too late, or stale
#[test]
fn devices_that_never_stop_reach_no_freed_page() {
    for stage in [Stage::S1, Stage::S2] {
        let rig = Rig::with(ModelConfig { seed: 7, ..ModelConfig::default() });
        let domain = rig.domain(stage);
        let devices = [rig.add(SID), rig.add(OTHER)];
        devices.iter().for_each(|device| device.attach(&domain).unwrap());
        let targets = Targets::new();
        (0..16).for_each(|n| targets.add(Iova(n * PAGE)));
        let threads = [SID, OTHER].map(|sid| DeviceThread::start(rig.device(sid), targets.clone(), sid.into()));
        thread::scope(|scope| {
            for mapper in 0..2u64 {
                let (rig, domain) = (&rig, &domain);
                scope.spawn(move || {
                    for round in 0..15_000u64 {
                        let iova = Iova((round % 8 * 2 + mapper) * PAGE);
                        let page = rig.page();
                        domain.map(iova, page.addr(), PAGE, RW).unwrap();
                        if round % 3 == 0 {
                            thread::yield_now();
                        }
                        assert_eq!(domain.unmap(iova, PAGE).unwrap().bytes, PAGE);
                        rig.model.free_data(page);
                        if round % 64 == 0 {
                            rig.events();
                        }
                    }
                });
            }
        });
        let accesses: u64 = threads.into_iter().map(|thread| thread.stop()).map(|stats| stats.accesses).sum();
        assert!(accesses > 0);
        rig.model.report().assert_clean();
    }
}

/// A device changes domains while their pages come and go. Whoever unmaps sees either the array with the device in it, or a device
/// that walks the new descriptors.
///
/// unmapping thread              attaching thread
/// clear descriptor              publish the array
/// barrier (A)                   barrier (B)
/// load the array                write STE and CD
#[test]
fn attaching_and_detaching_meanwhile_loses_no_invalidation() {
    let rig = Rig::with(ModelConfig { seed: 11, ..ModelConfig::default() });
    let domains = [rig.domain(Stage::S1), rig.domain(Stage::S2), rig.domain(Stage::S1)];
    let device = rig.add(SID);
    let targets = Targets::new();
    (0..8).for_each(|n| targets.add(Iova(n * PAGE)));
    let dma = DeviceThread::start(rig.device(SID), targets, 3);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for (number, domain) in domains.iter().enumerate() {
            let (rig, stop) = (&rig, &stop);
            scope.spawn(move || {
                let mut round = number as u64;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let iova = Iova(round % 8 * PAGE);
                    let page = rig.page();
                    domain.map(iova, page.addr(), PAGE, RW).unwrap();
                    thread::yield_now();
                    domain.unmap(iova, PAGE).unwrap();
                    rig.model.free_data(page);
                }
            });
        }
        for round in 0..5_000 {
            match round % 7 {
                6 => device.detach().unwrap(),
                other => device.attach(&domains[other % 3]).unwrap(),
            }
            rig.events();
        }
        device.detach().unwrap();
        stop.store(true, Ordering::Relaxed);
    });
    dma.stop();
    domains.iter().for_each(|domain| domain.owed(|owed| panic!("{owed:?} is still owed")));
    rig.model.report().assert_clean();
}

/// Two threads attach different devices to the same domain again and again: counts of users stay right.
#[test]
fn two_attachers_of_one_domain_count_their_users_right() {
    let rig = Rig::new();
    let domain = rig.domain(Stage::S1);
    thread::scope(|scope| {
        for sid in [SID, OTHER] {
            let (rig, domain) = (&rig, &domain);
            scope.spawn(move || {
                let device = rig.add(sid);
                for _ in 0..1_000 {
                    device.attach(domain).unwrap();
                    device.attach(domain).unwrap();
                    device.detach().unwrap();
                }
            });
        }
    });
    domain.owed(|owed| panic!("{owed:?} is still owed"));
    rig.model.report().assert_clean();
}

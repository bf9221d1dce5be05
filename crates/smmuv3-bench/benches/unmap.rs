//! Criterion's statistics of the driver's paths, on the model without latency: `cargo bench -p smmuv3-bench`.

#![allow(missing_docs, reason = "criterion's macros make functions")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use smmuv3::platform::Iova;
use smmuv3_bench::machine::{Layout, Machine, PAGE};
use smmuv3_model::Latency;

const AT: Iova = Iova(1 << 30);
/// Keeps the table under `AT`.
const BESIDE: Iova = Iova(AT.0 + PAGE);

fn machine(smmus: usize, ats_devices: usize) -> Machine {
    let machine = Machine::new(Layout { smmus, ats_devices, latency: Latency::NONE });
    machine.map(BESIDE);
    machine
}

fn map_and_unmap(c: &mut Criterion) {
    let mut group = c.benchmark_group("map and unmap a page");
    for (smmus, ats_devices) in [(1, 0), (1, 1), (1, 64), (8, 1)] {
        let machine = machine(smmus, ats_devices);
        let name = format!("{smmus} SMMUs, {ats_devices} ATS devices each");
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| {
                machine.map(AT);
                machine.domain.unmap(AT, PAGE)
            });
        });
    }
    let detached = machine(1, 0);
    detached.devices.iter().for_each(|device| device.detach().unwrap());
    group.bench_function("no device", |b| {
        b.iter(|| {
            detached.map(AT);
            detached.domain.unmap(AT, PAGE)
        });
    });
}

fn look_up(c: &mut Criterion) {
    let machine = machine(1, 0);
    c.bench_function("iova to phys", |b| b.iter(|| machine.domain.iova_to_phys(black_box(BESIDE))));
}

fn attach(c: &mut Criterion) {
    let machine = machine(1, 64);
    let device = machine.devices.last().expect("there are devices");
    c.bench_function("detach and attach beside 64 ATS devices", |b| {
        b.iter(|| {
            device.detach().unwrap();
            device.attach(&machine.domain).unwrap();
        });
    });
}

criterion_group!(benches, map_and_unmap, look_up, attach);
criterion_main!(benches);

//! Unmaps of a page, beside other ways to do them: how long, how many waits, how many commands.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use smmuv3::DeferLimits;
use smmuv3::arch::{Command, Prot};
use smmuv3::platform::Iova;
use smmuv3_model::Latency;

use crate::baseline::{DeviceList, LockedArray, Ours, Scheme};
use crate::machine::{Layout, Machine, PAGE, Traffic};
use crate::{Bound, Curve, Effort, Figure, Results, in_turns};

const PART: &str = "unmap";
const SCHEMES: [&str; 3] = ["this driver", "list under a spinlock", "array with a lock in it"];

/// Where a page is mapped and unmapped, by thread.
fn iova(thread: usize) -> Iova {
    Iova((thread as u64 + 1) << 30)
}

/// A table for each thread, which stays.
fn warm(machine: &Machine, threads: usize) {
    (0..threads).for_each(|thread| machine.map(Iova(iova(thread).0 + PAGE)));
}

/// Nanoseconds for mapping and unmapping a page, for each scheme.
fn times(machine: &Machine, effort: Effort) -> [f64; 3] {
    warm(machine, 1);
    let (ours, list, array) = (Ours(&machine.domain), DeviceList::new(machine), LockedArray::new(machine));
    let once = |scheme: &dyn Scheme| {
        machine.map(iova(0));
        scheme.unmap(iova(0), PAGE);
    };
    in_turns(effort, [&mut || once(&ours), &mut || once(&list), &mut || once(&array)])
}

/// What one unmap does to the command queues: its doorbells and waits, and the number of commands.
fn traffic(machine: &Machine, scheme: &dyn Scheme) -> (Traffic, usize) {
    let smmus = 0..machine.smmus.len();
    machine.map(iova(0));
    smmus.clone().for_each(|smmu| drop(machine.model.take_commands(smmu)));
    Traffic::take();
    scheme.unmap(iova(0), PAGE);
    (Traffic::take(), smmus.map(|smmu| machine.model.take_commands(smmu).len()).sum())
}

/// Against the number of SMMUs, each with a device with ATS.
pub fn against_smmus(effort: Effort) -> Results {
    let mut results = Results::default();
    let mut series = SCHEMES.map(|name| (name, Vec::new()));
    for smmus in [1, 2, 4, 8, 16] {
        let machine = Machine::new(Layout { smmus, ats_devices: 1, latency: Latency::SLOW });
        let (ours, list, array) = (Ours(&machine.domain), DeviceList::new(&machine), LockedArray::new(&machine));
        let schemes: [&dyn Scheme; 3] = [&ours, &list, &array];
        for (scheme, name) in schemes.into_iter().zip(SCHEMES) {
            let (traffic, commands) = traffic(&machine, scheme);
            let figure =
                |what, value| Figure::new(PART, format!("{smmus} SMMUs with ATS, {name}: {what}"), value, "per unmap");
            let waits = figure("rounds of waiting", traffic.waits as f64);
            let own = name == SCHEMES[0];
            results.figures.push(if own { waits.bounded(Bound::AtMost(1.0)) } else { waits });
            results.figures.push(figure("commands", commands as f64));
        }
        let times = times(&machine, effort);
        for (series, time) in series.iter_mut().zip(times) {
            series.1.push((smmus as f64, time / 1000.0));
        }
        let [ours, list, array] = times;
        let ratio =
            |other: &str, ratio| Figure::new(PART, format!("{smmus} SMMUs with ATS: time / {other}"), ratio, "×");
        results.figures.push(ratio(SCHEMES[1], ours / list));
        let against_array = ratio(SCHEMES[2], ours / array);
        results.figures.push(match smmus {
            8 => against_array.bounded(Bound::AtMost(1.0 / 6.0)),
            _ => against_array,
        });
    }
    let title = "map and unmap of a page against the number of SMMUs, each with one ATS device";
    results.curves.push(Curve { title, x: "SMMUs", y: "µs", series: series.into() });
    results
}

/// Against the number of devices with ATS behind one SMMU.
pub fn against_devices(effort: Effort) -> Results {
    let mut results = Results::default();
    let mut series = SCHEMES.map(|name| (name, Vec::new()));
    for ats_devices in [0, 1, 8, 64, 512] {
        let machine = Machine::new(Layout { smmus: 1, ats_devices, latency: Latency::SLOW });
        let times = times(&machine, effort);
        for (series, time) in series.iter_mut().zip(times) {
            series.1.push((ats_devices as f64, time / 1000.0));
        }
        let [ours, list, array] = times;
        for (other, time) in [(SCHEMES[1], list), (SCHEMES[2], array)] {
            results.figures.push(Figure::new(
                PART,
                format!("{ats_devices} ATS devices: time / {other}"),
                ours / time,
                "×",
            ));
        }
    }
    let title = "map and unmap of a page against the number of ATS devices behind one SMMU";
    results.curves.push(Curve { title, x: "ATS devices", y: "µs", series: series.into() });
    results
}

/// Unmaps per second of so many threads together, each with pages of its own.
fn throughput(machine: &Machine, scheme: &dyn Scheme, threads: usize, effort: Effort) -> f64 {
    let start = Barrier::new(threads);
    let counts: Vec<f64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    let (began, mut count) = (Instant::now(), 0);
                    while began.elapsed() < effort.round {
                        machine.map(iova(thread));
                        scheme.unmap(iova(thread), PAGE);
                        count += 1;
                    }
                    f64::from(count) / began.elapsed().as_secs_f64()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics")).collect()
    });
    counts.into_iter().sum()
}

/// Against the number of threads, on four SMMUs with four ATS devices each.
pub fn against_threads(effort: Effort) -> Results {
    let machine = Machine::new(Layout { smmus: 4, ats_devices: 4, latency: Latency::SLOW });
    let (ours, list, array) = (Ours(&machine.domain), DeviceList::new(&machine), LockedArray::new(&machine));
    let schemes: [&dyn Scheme; 3] = [&ours, &list, &array];
    let mut series = SCHEMES.map(|name| (name, Vec::new()));
    warm(&machine, 4);
    for threads in [1, 2, 4] {
        let mut best = [0f64; 3];
        for _ in 0..effort.rounds {
            for (best, scheme) in best.iter_mut().zip(schemes) {
                *best = best.max(throughput(&machine, scheme, threads, effort));
            }
        }
        for (series, best) in series.iter_mut().zip(best) {
            series.1.push((threads as f64, best / 1000.0));
        }
    }
    let figures = series.iter().map(|(name, points)| {
        Figure::new(PART, format!("two threads / one thread, {name}"), points[1].1 / points[0].1, "× throughput")
    });
    let figures = figures.collect();
    let title = "unmaps of all threads together, four SMMUs with four ATS devices each";
    let curve = Curve { title, x: "threads", y: "thousand unmaps per second", series: series.into() };
    Results { figures, curves: vec![curve] }
}

/// Unmaps one by one, gathered, and deferred.
pub fn gathered(effort: Effort) -> Results {
    const BATCH: u64 = 32;
    let machine = Machine::new(Layout { smmus: 2, ats_devices: 1, latency: Latency::SLOW });
    let domain = &*machine.domain;
    // Neighbours, as the fragments of one buffer are.
    let at = |n: u64| Iova(iova(0).0 + n * PAGE);
    warm(&machine, 1);
    machine.domain.unmap(Iova(iova(0).0 + PAGE), PAGE).unwrap();
    let map = || (0..BATCH).for_each(|n| machine.map(at(n)));
    let limits = DeferLimits { count: 256, age_ns: u64::MAX };
    let mut later = domain.deferred(limits, |owner: u64| assert!(black_box(owner) < BATCH)).unwrap();
    let times = in_turns(
        effort,
        [
            &mut || {
                map();
                (0..BATCH).for_each(|n| assert_eq!(domain.unmap(at(n), PAGE).unwrap().bytes, PAGE));
            },
            &mut || {
                map();
                let mut gather = domain.gather();
                (0..BATCH).for_each(|n| assert_eq!(gather.unmap(at(n), PAGE).unwrap(), PAGE));
                gather.flush().unwrap();
            },
            &mut || {
                map();
                (0..BATCH).for_each(|n| assert_eq!(later.unmap(at(n), PAGE, n).unwrap(), PAGE));
            },
        ],
    );
    let figure = |name: &str, ns: f64| Figure::new(PART, name, ns / BATCH as f64, "ns per page mapped and unmapped");
    let [strict, gathered, deferred] = times;
    Results {
        figures: vec![
            figure("32 pages one by one", strict),
            figure("32 pages gathered", gathered),
            figure("32 pages deferred, 256 at a time", deferred),
            Figure::new(PART, "gathered / one by one", gathered / strict, "×"),
            Figure::new(PART, "deferred / one by one", deferred / strict, "×"),
        ],
        curves: Vec::new(),
    }
}

/// Attaching and detaching one more device, against the size of the array.
pub fn attach(effort: Effort) -> Results {
    let mut points = Vec::new();
    for ats_devices in [0, 8, 64, 512] {
        let machine = Machine::new(Layout { smmus: 1, ats_devices, latency: Latency::NONE });
        let device = machine.devices.last().expect("a device without ATS");
        let [time] = in_turns(
            effort,
            [&mut || {
                device.detach().unwrap();
                device.attach(&machine.domain).unwrap();
            }],
        );
        points.push((ats_devices as f64, time / 1000.0));
    }
    let figures = points.iter().map(|&(devices, time)| {
        Figure::new(
            PART,
            format!("detach and attach beside {devices} ATS devices, hardware without latency"),
            time,
            "µs",
        )
    });
    let figures = figures.collect();
    let title = "detach and attach of a device against the ATS devices in the same domain";
    let curve = Curve { title, x: "ATS devices", y: "µs", series: vec![("this driver", points)] };
    Results { figures, curves: vec![curve] }
}

/// ATC pages that are invalidated for one that is asked for: this driver, and one aligned span for the whole range.
pub fn atc_pages() -> Results {
    let machine = Machine::new(Layout { smmus: 1, ats_devices: 1, latency: Latency::NONE });
    let (mut asked, mut ours, mut one_span, mut worst) = (0u64, 0u64, 0u64, 0f64);
    // Starts that are not random but all different: multiples of an odd number, modulo the IOVA space.
    for n in 1..=2000u64 {
        let pages = 1 + n * 7 % 200;
        let first = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % ((1 << 27) - pages);
        let (iova, len) = (Iova(first * PAGE), pages * PAGE);
        machine.domain.map(Iova(first * PAGE), machine.target, PAGE, Prot::READ).unwrap();
        machine.model.take_commands(0);
        machine.domain.unmap(iova, len).unwrap();
        let mut covered = BTreeSet::new();
        let mut sum = 0;
        for command in machine.model.take_commands(0) {
            if let Command::AtcInv { addr, size, .. } = command {
                sum += 1u64 << size;
                covered.extend(
                    (addr / PAGE..(addr / PAGE) + (1 << size)).filter(|page| (first..first + pages).contains(page)),
                );
            }
        }
        assert_eq!(covered.len() as u64, pages, "everything that was asked for is covered");
        asked += pages;
        ours += sum;
        worst = worst.max(sum as f64 / pages as f64);
        let last = first + pages - 1;
        one_span += 1 << (64 - (first ^ last).leading_zeros());
    }
    let figure = |name: &str, value: f64| Figure::new(PART, name, value, "ATC pages per page asked for");
    Results {
        figures: vec![
            figure("2000 ranges of 1 to 200 pages, this driver", ours as f64 / asked as f64)
                .bounded(Bound::AtMost(2.0)),
            figure("the worst of them", worst).bounded(Bound::AtMost(2.0)),
            figure("2000 ranges of 1 to 200 pages, one span for each", one_span as f64 / asked as f64),
        ],
        curves: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheme_does_the_same_work_and_the_others_wait_more_often() {
        for smmus in [1, 3] {
            let machine = Machine::new(Layout { smmus, ats_devices: 2, latency: Latency::NONE });
            warm(&machine, 1);
            let (ours, list, array) = (Ours(&machine.domain), DeviceList::new(&machine), LockedArray::new(&machine));
            let waits = [&ours as &dyn Scheme, &list, &array].map(|scheme| {
                let (traffic, commands) = traffic(&machine, scheme);
                assert_eq!(commands, smmus * (1 + 1 + 2 + 1), "TLBI, CMD_SYNC, two ATC_INVs, CMD_SYNC");
                assert_eq!(machine.domain.iova_to_phys(iova(0)), None);
                traffic.waits as usize
            });
            assert_eq!(waits, [1, 2 * smmus, 2 * smmus]);
        }
    }

    #[test]
    fn everything_can_be_measured() {
        let effort = Effort::SMOKE;
        for results in [against_threads(effort), gathered(effort), attach(effort), atc_pages()] {
            assert!(!results.figures.is_empty());
            assert!(results.figures.iter().all(|figure| figure.value.is_finite() && figure.value > 0.0));
        }
    }
}

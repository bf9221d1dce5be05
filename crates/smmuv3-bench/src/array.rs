//! The invalidation array: what attach and detach do to it, and its way to commands, beside copying as many bytes.

use std::hint::black_box;
use std::time::Duration;

use smmuv3::arch::regs::{Aidr, Idr0, Idr1, Idr3, Idr5};
use smmuv3::arch::{Features, Granule, IdRegs, RawCommand};
use smmuv3::internals::{Array, DomainArray};
use smmuv3::{Key, Kind};
use smmuv3_model::{Model, ModelConfig};

use crate::{Bound, Effort, Figure, in_turns, nanos_each};

/// Devices with ATS behind one SMMU, in one domain.
const ATCS: u32 = 512;
const PAGE: u64 = 0x5000;

/// An ASID and `atcs` ATCs. StreamIDs are even.
fn keys(atcs: u32) -> Vec<Key> {
    let atcs = (0..atcs).map(|number| Key::new(0, Kind::Ats, 2 * number, 0));
    [Key::new(0, Kind::S1Asid, 7, 0)].into_iter().chain(atcs).collect()
}

fn array(atcs: u32) -> Array {
    Array::empty().merge(&keys(atcs)).expect("memory")
}

/// Two keys that stand in no array of [`keys`].
fn newcomers(atcs: u32) -> [Key; 2] {
    [atcs / 3, 2 * atcs / 3].map(|number| Key::new(0, Kind::Ats, 2 * number + 1, 0))
}

fn features() -> Features {
    Features::from(IdRegs {
        idr0: Idr0::new_with_raw_value(0x0d44_101b),
        idr1: Idr1::new_with_raw_value(0x0273_0010),
        idr3: Idr3::new_with_raw_value(0x1414),
        idr5: Idr5::new_with_raw_value(0x74),
        aidr: Aidr::new_with_raw_value(1),
    })
}

/// The commands of a walk for one page, into a buffer.
fn walk(array: &Array, features: &Features, buffer: &mut Vec<RawCommand>) {
    buffer.clear();
    array.walk(PAGE, Granule::K4, features, buffer);
}

/// Nanoseconds to take two entries out of a full array, until half of them are out: the least over all rounds, in turns with copying `bytes` as
/// often. Arrays are made anew outside of the time.
fn unref_pairs(effort: Effort, bytes: &[u8], into: &mut [u8]) -> [f64; 2] {
    let pairs: Vec<[Key; 2]> =
        (0..ATCS / 4).map(|at| [at, at + ATCS / 2].map(|n| Key::new(0, Kind::Ats, 2 * n, 0))).collect();
    let calls = pairs.len() as u32;
    let mut best = [f64::INFINITY; 2];
    for _ in 0..effort.rounds {
        let array = array(ATCS);
        let mut left = pairs.iter();
        let unref = nanos_each(calls, || {
            let gone = left.next().and_then(|pair| array.unref(black_box(pair)));
            assert_eq!(gone, Some(2));
        });
        let copy = nanos_each(calls, || black_box(&mut *into).copy_from_slice(black_box(bytes)));
        best = [best[0].min(unref), best[1].min(copy)];
    }
    best
}

/// The figures of this part.
pub fn figures(effort: Effort) -> Vec<Figure> {
    // All calls are short, and short rounds find the moments in which nothing else runs.
    let round = effort.round.min(Duration::from_micros(200));
    let rounds = effort.round.as_nanos().div_ceil(round.as_nanos().max(1)) as usize * effort.rounds;
    let effort = Effort { rounds, round };
    let mut figures = Vec::new();
    let mut against = |name: &str, ns: f64, copy: f64, most: f64| {
        let figure = |value, unit| Figure::new("array", name, value, unit);
        figures.push(figure(ns, "ns"));
        figures.push(figure(ns / copy, "× memcpy").bounded(Bound::AtMost(most)));
    };
    let full = array(ATCS);
    let trashed = array(ATCS);
    trashed.unref(&[Key::new(0, Kind::Ats, ATCS, 0)]).expect("it is there");
    let features = features();
    let mut commands = Vec::new();
    walk(&full, &features, &mut commands);
    let newcomers = newcomers(ATCS);
    let (from, mut into) = (vec![1u8; full.bytes()], vec![0u8; full.bytes()]);
    let (words, mut copied) = (commands.clone(), commands.clone());

    let [merge, purge, copy, walked, copy_commands] = in_turns(
        effort,
        [
            &mut || drop(black_box(full.merge(black_box(&newcomers)))),
            &mut || drop(black_box(trashed.purge())),
            &mut || black_box(&mut into[..]).copy_from_slice(black_box(&from)),
            &mut || walk(black_box(&full), &features, black_box(&mut commands)),
            &mut || black_box(&mut copied[..]).copy_from_slice(black_box(&words)),
        ],
    );
    let [unref, copy_meanwhile] = unref_pairs(effort, &from, &mut into);
    against("merge 2 entries into 513", merge, copy, 6.0);
    against("purge 1 of 513 entries", purge, copy, 3.0);
    against("unref 2 of 513 entries", unref, copy_meanwhile, 1.0);
    against("walk 513 entries for one page", walked, copy_commands, 10.0);
    figures.push(Figure::new("array", format!("memcpy of the array, {} bytes", from.len()), copy, "ns"));
    figures.push(Figure::new("array", "a command of the walk", walked / words.len() as f64, "ns"));
    figures.extend([0, 4, 32, 128, ATCS].map(|atcs| attach_and_detach(effort, atcs)));
    figures
}

/// What a device with two StreamIDs costs the array of a domain that `atcs` others are attached to.
fn attach_and_detach(effort: Effort, atcs: u32) -> Figure {
    let model = Model::new(ModelConfig::default());
    let domain = DomainArray::new(&model.platform()).expect("memory");
    assert!(domain.attach(&keys(atcs)));
    let newcomers = newcomers(atcs.max(3));
    let [ns] = in_turns(
        effort,
        [&mut || {
            assert!(domain.attach(&newcomers));
            domain.detach(&newcomers);
        }],
    );
    Figure::new("array", format!("attach and detach 2 entries beside {}", atcs + 1), ns, "ns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_done() {
        let array = array(ATCS);
        assert_eq!((array.live(), array.bytes()), (513, 513 * 16));
        let merged = array.merge(&newcomers(ATCS)).unwrap();
        assert_eq!(merged.live(), 515);
        assert_eq!(merged.unref(&newcomers(ATCS)), Some(2));
        assert_eq!(merged.purge().map(|array| array.live()), Some(513));
        let mut commands = Vec::new();
        walk(&array, &features(), &mut commands);
        assert_eq!(commands.len(), 514, "a TLBI, a CMD_SYNC, and an ATC_INV for each");
        assert_eq!((commands[513].0[0] >> 32, commands[513].0[1]), (2 * 511, PAGE));
        let figures = figures(Effort::SMOKE);
        assert!(figures.iter().all(|figure| figure.value > 0.0 && figure.value.is_finite()));
        assert_eq!(figures.iter().filter(|figure| figure.bound.is_some()).count(), 4);
    }
}

//! The array against a multiset of keys, step by step. For the tests and for the fuzzer.

extern crate std;

use super::super::entry::Kind;
use super::*;
use std::collections::BTreeMap;
use std::vec::Vec;

/// A step. Keys may be in any order.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Merge(Vec<Key>),
    /// Removes keys that are there, picked by number, and some that may not be.
    Unref {
        present: Vec<usize>,
        other: Vec<Key>,
    },
    Purge,
}

/// Panics at the first step after which the two differ.
pub(crate) fn run(ops: impl IntoIterator<Item = Op>) {
    let mut array = InvArray::empty();
    let mut model = Multiset::new();
    ops.into_iter().for_each(|op| apply(&mut array, &mut model, op));
}

/// The steps that bytes stand for: a byte for each step and one for each of its keys.
pub(crate) fn steps(input: &[u8]) -> Vec<Op> {
    let mut bytes = input.iter().copied();
    let mut steps = Vec::new();
    while let Some(step) = bytes.next() {
        let count = usize::from(step >> 3 & 7);
        steps.push(match step & 7 {
            0..=2 => Op::Merge(bytes.by_ref().take(count).map(key).collect()),
            3..=6 => Op::Unref {
                present: bytes.by_ref().take(count).map(usize::from).collect(),
                other: bytes.by_ref().take((step >> 6 & 1).into()).map(key).collect(),
            },
            _ => Op::Purge,
        });
    }
    steps
}

/// Few different keys, so that they meet.
fn key(byte: u8) -> Key {
    let kinds = [Kind::S1Asid, Kind::S2Vmid, Kind::S2VmidS1Clear, Kind::Ats, Kind::AtsFull];
    let byte = u32::from(byte);
    Key::new((byte % 3) as u8, kinds[(byte / 3 % 5) as usize], byte / 15 % 3, byte / 45 % 2)
}

type Multiset = BTreeMap<Key, u32>;

/// Every invariant of the array, and that it holds the same as the multiset.
fn check(array: &InvArray, model: &Multiset) {
    let live: Vec<_> = array.live().collect();
    let expected: Vec<_> = model.iter().map(|(key, users)| (*key, *users)).collect();
    assert_eq!(live, expected);
    let (len, trash) = array.counts();
    let all = array.keys.len();
    assert!(array.keys.is_sorted_by(|a, b| a < b));
    assert_eq!((array.users.len(), array.left.len()), (all, all));
    assert_eq!(trash, (0..len).filter(|at| array.users_now(*at) == 0).count());
    assert_eq!(len - trash, live.len());
    assert!(len == 0 || array.users_now(len - 1) > 0, "trash at the end");
    assert!((len..all).all(|at| array.users_now(at) == 0));
    let changed = array.changed.load(Ordering::Relaxed);
    let left = |at: usize| array.left[at].load(Ordering::Relaxed) > 0;
    assert!((0..all).all(|at| !left(at) || changed >> (at >> array.block_log2()) & 1 == 1), "an unmarked change");
    // The runs hold the same, each of one SMMU and one kind.
    let mut walked = Vec::new();
    for run in array.runs() {
        let before = walked.len();
        run.extend(&mut walked, |key| key);
        assert!(walked.len() > before, "an empty run");
        assert!(walked[before..].iter().all(|key| (key.smmu(), key.kind()) == (run.smmu(), run.kind())));
    }
    assert!(walked.iter().eq(live.iter().map(|(key, _)| key)));
    assert!(array.runs().is_sorted_by(|a, b| (a.smmu(), a.kind()) < (b.smmu(), b.kind())), "a run in two pieces");
}

fn apply(array: &mut InvArray, model: &mut Multiset, op: Op) {
    match op {
        Op::Merge(mut add) => {
            add.sort();
            let before: Vec<_> = array.live().collect();
            let merged = array.merge(&add).unwrap();
            assert!(array.live().eq(before), "merge changed its base");
            assert_eq!(merged.counts(), (merged.keys.len(), 0), "merge kept trash");
            *array = merged;
            add.into_iter().for_each(|key| *model.entry(key).or_default() += 1);
        }
        Op::Unref { present, other } => {
            let all: Vec<Key> =
                model.iter().flat_map(|(key, users)| std::iter::repeat_n(*key, *users as usize)).collect();
            let mut picked: Vec<usize> =
                present.iter().filter(|_| !all.is_empty()).map(|number| number % all.len()).collect();
            picked.sort();
            picked.dedup();
            let mut remove: Vec<Key> = picked.into_iter().map(|index| all[index]).chain(other).collect();
            remove.sort();
            let mut missing = Vec::new();
            let mut last = Vec::new();
            for &key in &remove {
                match model.get_mut(&key) {
                    None => missing.push(key),
                    Some(1) => {
                        model.remove(&key);
                        last.push(key);
                    }
                    Some(users) => *users -= 1,
                }
            }
            let mut called = Vec::new();
            let result = array.unref(&remove, |key| called.push(key));
            assert_eq!(called, last);
            assert_eq!(result.err().map(|NotPresent(key)| key), missing.first().copied());
        }
        Op::Purge => match array.purge().unwrap() {
            None => assert_eq!(array.counts().1, 0),
            Some(purged) => {
                assert!(array.counts().1 > 0);
                assert_eq!(purged.counts().1, 0);
                *array = purged;
            }
        },
    }
    check(array, model);
}

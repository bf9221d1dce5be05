//! The array against a multiset of keys.

extern crate std;

use super::super::entry::Kind;
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn key() -> impl Strategy<Value = Key> {
    // Few different keys, so that they meet.
    let kind = prop_oneof![
        Just(Kind::S1Asid),
        Just(Kind::S2Vmid),
        Just(Kind::S2VmidS1Clear),
        Just(Kind::Ats),
        Just(Kind::AtsFull)
    ];
    (0..3u8, kind, 0..3u32, 0..2u32).prop_map(|(smmu, kind, id, ssid)| Key::new(smmu, kind, id, ssid))
}

#[derive(Debug, Clone)]
enum Op {
    Merge(std::vec::Vec<Key>),
    /// Removes keys that are there, picked by number, and some that may not be.
    Unref {
        present: std::vec::Vec<prop::sample::Index>,
        other: std::vec::Vec<Key>,
    },
    Purge,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => vec(key(), 0..6).prop_map(Op::Merge),
        4 => (vec(any::<prop::sample::Index>(), 0..6), vec(key(), 0..2))
            .prop_map(|(present, other)| Op::Unref { present, other }),
        1 => Just(Op::Purge),
    ]
}

type Multiset = BTreeMap<Key, u32>;

/// Every invariant of the array, and that it holds the same as the multiset.
fn check(array: &InvArray, model: &Multiset) {
    let live: std::vec::Vec<_> = array.live().collect();
    let expected: std::vec::Vec<_> = model.iter().map(|(key, users)| (*key, *users)).collect();
    assert_eq!(live, expected);
    let (len, trash) = array.counts();
    assert!(array.entries.is_sorted_by(|a, b| a.key < b.key));
    assert_eq!(trash, array.entries[..len].iter().filter(|entry| entry.users() == 0).count());
    assert_eq!(len - trash, live.len());
    assert!(len == 0 || array.entries[len - 1].users() > 0, "trash at the end");
    assert!(array.entries[len..].iter().all(|entry| entry.users() == 0));
}

fn apply(array: &mut InvArray, model: &mut Multiset, op: Op) {
    match op {
        Op::Merge(mut add) => {
            add.sort();
            let before: std::vec::Vec<_> = array.live().collect();
            let merged = array.merge(&add).unwrap();
            assert!(array.live().eq(before), "merge changed its base");
            assert_eq!(merged.counts(), (merged.entries.len(), 0), "merge kept trash");
            *array = merged;
            add.into_iter().for_each(|key| *model.entry(key).or_default() += 1);
        }
        Op::Unref { present, other } => {
            let all: std::vec::Vec<Key> =
                model.iter().flat_map(|(key, users)| std::iter::repeat_n(*key, *users as usize)).collect();
            let mut picked: std::vec::Vec<usize> =
                present.iter().filter(|_| !all.is_empty()).map(|index| index.index(all.len())).collect();
            picked.sort();
            picked.dedup();
            let mut remove: std::vec::Vec<Key> = picked.into_iter().map(|index| all[index]).chain(other).collect();
            remove.sort();
            let mut missing = std::vec::Vec::new();
            let mut last = std::vec::Vec::new();
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
            let mut called = std::vec::Vec::new();
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_of_merges_unrefs_and_purges_agrees_with_a_multiset(ops in vec(op(), 1..24)) {
        let mut array = InvArray::empty();
        let mut model = Multiset::new();
        for op in ops {
            apply(&mut array, &mut model, op);
        }
    }
}

fn asid(id: u32) -> Key {
    Key::new(0, Kind::S1Asid, id, 0)
}

#[test]
fn removing_what_is_not_there_is_reported_and_counters_stay() {
    let array = InvArray::empty().merge(&[asid(1), asid(3)]).unwrap();
    let absent = |key| array.unref(&[key], |_| panic!("nothing was removed"));
    assert_eq!(absent(asid(0)), Err(NotPresent(asid(0))));
    assert_eq!(absent(asid(2)), Err(NotPresent(asid(2))));
    assert_eq!(absent(asid(4)), Err(NotPresent(asid(4))));
    assert!(array.live().eq([(asid(1), 1), (asid(3), 1)]));
    // Already trash: in the middle of the array, and cut off its end.
    array.unref(&[asid(1)], |_| {}).unwrap();
    assert_eq!(absent(asid(1)), Err(NotPresent(asid(1))));
    array.unref(&[asid(3)], |_| {}).unwrap();
    assert_eq!(absent(asid(3)), Err(NotPresent(asid(3))));
    assert_eq!(array.counts(), (0, 0));
    // What is there goes even where something else is missing.
    let array = InvArray::empty().merge(&[asid(5)]).unwrap();
    assert_eq!(array.unref(&[asid(4), asid(5)], |_| {}), Err(NotPresent(asid(4))));
    assert_eq!(array.live().count(), 0);
}

#[test]
fn trash_is_skipped_wherever_it_stands() {
    for trash in 0u32..32 {
        let keys: std::vec::Vec<Key> = (0..5).map(asid).collect();
        let array = InvArray::empty().merge(&keys).unwrap();
        let (gone, left): (std::vec::Vec<Key>, std::vec::Vec<Key>) =
            keys.iter().partition(|key| trash >> key.id() & 1 == 1);
        array.unref(&gone, |_| {}).unwrap();
        assert!(array.live().map(|(key, _)| key).eq(left.iter().copied()), "trash {trash:#b}");
        let merged = array.merge(&[asid(2)]).unwrap();
        assert_eq!(merged.counts().1, 0);
        assert_eq!(merged.live().count(), if left.contains(&asid(2)) { left.len() } else { left.len() + 1 });
    }
}

#[test]
fn a_domain_attached_twice_and_detached_once_still_owes_its_invalidations() {
    let once = InvArray::empty().merge(&[asid(7)]).unwrap();
    let twice = once.merge(&[asid(7)]).unwrap();
    assert!(twice.live().eq([(asid(7), 2)]));
    twice.unref(&[asid(7)], |_| panic!("one user is left")).unwrap();
    assert!(twice.live().eq([(asid(7), 1)]));
}

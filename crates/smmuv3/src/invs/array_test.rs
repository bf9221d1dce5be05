//! The array against a multiset of keys.

extern crate std;

use super::super::entry::Kind;
use super::model::{Op, run, steps};
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

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

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => vec(key(), 0..6).prop_map(Op::Merge),
        4 => (vec(any::<usize>(), 0..6), vec(key(), 0..2))
            .prop_map(|(present, other)| Op::Unref { present, other }),
        1 => Just(Op::Purge),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_of_merges_unrefs_and_purges_agrees_with_a_multiset(ops in vec(op(), 1..24)) {
        run(ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    /// Arrays whose entries share marks of change, block by block.
    #[test]
    fn large_arrays_agree_with_a_multiset_too(
        ids in prop::collection::btree_set(0..1500u32, 1..700),
        ops in vec(
            prop_oneof![
                2 => vec((0..1500u32).prop_map(|id| Key::new(0, Kind::Ats, id, 0)), 0..4).prop_map(Op::Merge),
                6 => vec(any::<usize>(), 0..4).prop_map(|present| Op::Unref { present, other: std::vec![] }),
                1 => vec(any::<usize>(), 0..400).prop_map(|present| Op::Unref { present, other: std::vec![] }),
                2 => Just(Op::Purge),
            ],
            1..12,
        ),
    ) {
        let all = ids.into_iter().map(|id| Key::new(0, Kind::Ats, id, 0)).collect();
        run([Op::Merge(all)].into_iter().chain(ops));
    }
}

/// Seeds of the fuzzer: see [`super::model::steps`].
#[test]
fn the_fuzzer_s_seeds_agree_with_a_multiset() {
    let seeds: [&[u8]; 5] = [
        // Three keys, the middle one goes, the others, and nothing is left.
        &[0x18, 0, 15, 30, 0x0b, 1, 0x13, 0, 0, 7],
        // The same key twice, removed one at a time.
        &[0x10, 7, 7, 0x0b, 0, 0x0b, 0, 7],
        // Something that is not there, before and behind what is.
        &[0x10, 40, 44, 0x43, 0, 0x43, 89, 0x4b, 1, 41],
        // Trash in the middle, merged away.
        &[0x28, 1, 2, 3, 4, 5, 0x13, 1, 3, 0x08, 2, 7],
        // Trash in the middle, purged.
        &[0x28, 9, 19, 29, 39, 49, 0x1b, 0, 2, 3, 7, 0x3b, 0, 1, 2, 3, 4, 5, 6, 7],
    ];
    for seed in seeds {
        let steps = steps(seed);
        assert!(steps.iter().any(|op| matches!(op, Op::Unref { .. })) && steps.len() >= 3, "{steps:?}");
        run(steps);
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

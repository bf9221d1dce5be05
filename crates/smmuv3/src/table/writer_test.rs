//! The entry writer, replayed: at every moment the SMMU may fetch, it must see the old entry, the new one, or V = 0.

extern crate std;

use super::*;
use crate::arch::*;
use crate::platform::PhysAddr;
use std::string::String;
use std::vec::Vec;

/// The entry restricted to what the SMMU looks at.
fn seen<E: Entry>(entry: E) -> [u64; 8] {
    let (words, used): ([u64; 8], _) = (entry.into(), entry.used());
    core::array::from_fn(|word| words[word] & used[word])
}

/// Plays all fetches that are possible during `steps`: each changed word of a step old or new. Returns whether some saw V = 0 although
/// neither end has it.
fn replay<E: Entry>(current: E, target: E, name: &str) -> bool {
    let mut before: [u64; 8] = current.into();
    let mut broke = false;
    let (old, new) = (seen(current), seen(target));
    let invalid = |seen: [u64; 8]| seen[0] & E::VALID == 0;
    for step in plan(current, target) {
        let words: Vec<usize> = (0..8).filter(|word| step.changed >> word & 1 == 1).collect();
        assert!(!words.is_empty(), "{name}: an empty step");
        for subset in 0..1u32 << words.len() {
            let mut fetched = before;
            for (bit, &word) in words.iter().enumerate() {
                if subset >> bit & 1 == 1 {
                    fetched[word] = step.entry[word];
                }
            }
            let fetched = seen(E::from(fetched));
            let legal = fetched == old || fetched == new || invalid(fetched);
            assert!(legal, "{name}: a torn entry is visible: {fetched:x?}");
            broke |= invalid(fetched) && !invalid(old) && !invalid(new);
        }
        before = step.entry;
    }
    assert_eq!(before, target.into(), "{name}: the steps do not end at the target");
    broke
}

fn s1(context_ptr: u64, default_substream: DefaultSubstream, cd_max: u8) -> SteStage1 {
    SteStage1 {
        context_ptr: PhysAddr(context_ptr),
        cd_max,
        format: if cd_max > 6 { CdFormat::TwoLevel4K } else { CdFormat::Linear },
        default_substream,
        world: StreamWorld::El1,
        stall_disabled: false,
    }
}

fn s2(ttb: u64) -> SteStage2 {
    SteStage2 {
        t0sz: 24,
        sl0: 1,
        granule: Granule::K4,
        output_size: AddrSize::B48,
        ttb: PhysAddr(ttb),
        record: true,
        stall: false,
        protected_walk: false,
    }
}

/// Every configuration that the driver writes, with and without ATS where there is translation, and two of a kind.
fn stes() -> Vec<(String, RawSte)> {
    use DefaultSubstream::*;
    let mut all: Vec<(String, Ste)> =
        [("invalid", Ste::Invalid), ("abort", Ste::Abort), ("bypass", Ste::Bypass)].map(|(n, s)| (n.into(), s)).into();
    for eats in [Eats::Off, Eats::Full] {
        for (name, vmid, stages) in [
            ("s1", 0, Stages::S1(s1(0x1000, Substream0, 0))),
            ("s1 elsewhere", 0, Stages::S1(s1(0x2000, Substream0, 0))),
            ("s1 with substreams", 0, Stages::S1(s1(0x1000, Substream0, 10))),
            ("s1 bypass, substreams translate", 0, Stages::S1(s1(0x1000, Bypass, 10))),
            ("s1 terminate, substreams translate", 0, Stages::S1(s1(0x1000, Terminate, 10))),
            ("s2", 5, Stages::S2(s2(0x8000))),
            ("s2 other", 6, Stages::S2(s2(0x9000))),
            ("nested", 7, Stages::Nested(s1(0x3000, Substream0, 4), s2(0xa000))),
        ] {
            all.push((std::format!("{name} {eats:?}"), Ste::Translate { vmid, eats, stages }));
        }
    }
    all.into_iter().map(|(name, ste)| (name, ste.encode())).collect()
}

#[test]
fn every_fetch_during_every_change_of_an_ste_sees_old_new_or_invalid() {
    let all = stes();
    for (from_name, from) in &all {
        for (to_name, to) in &all {
            replay(*from, *to, &std::format!("{from_name} -> {to_name}"));
        }
    }
}

#[test]
fn leftovers_of_earlier_entries_do_no_harm() {
    // Entries in memory whose ignored bits are not zero.
    for (from_name, from) in &stes() {
        for (to_name, to) in &stes() {
            let used = from.used();
            let dirty = RawSte(core::array::from_fn(|word| from.0[word] | !used[word] & 0xa5a5_5a5a_c3c3_3c3c));
            replay(dirty, *to, &std::format!("dirty {from_name} -> {to_name}"));
        }
    }
}

#[test]
fn changes_that_the_architecture_lets_be_hitless_are() {
    let all = stes();
    let ste = |name: &str| all.iter().find(|(n, _)| n == name).map(|(_, ste)| *ste).unwrap();
    for (from, to) in [
        ("abort", "bypass"),
        ("abort", "s1 Off"),
        ("abort", "s2 Off"),
        ("abort", "nested Full"),
        ("bypass", "s1 Off"),
        ("bypass", "s1 bypass, substreams translate Off"),
        ("bypass", "s2 Off"),
        ("s1 Off", "s1 elsewhere Off"),
        ("s1 Off", "s1 Full"),
        ("s2 Off", "s2 Full"),
        ("s1 with substreams Off", "s1 bypass, substreams translate Off"),
        ("s1 with substreams Off", "s1 terminate, substreams translate Off"),
        ("s1 Full", "abort"),
        ("s2 Full", "abort"),
        ("s1 with substreams Off", "abort"),
    ] {
        assert!(!replay(ste(from), ste(to), from), "{from} -> {to} went through V = 0");
        assert!(!replay(ste(to), ste(from), to), "{to} -> {from} went through V = 0");
    }
    // Both words 0 (the configuration) and 2 (the VMID) matter to both.
    assert!(replay(ste("s1 Off"), ste("s2 Off"), "s1 -> s2"));
}

#[test]
fn every_fetch_during_every_change_of_a_cd_sees_old_new_or_invalid() {
    let cd = |asid, ttb0: Option<u64>| {
        Cd {
            t0sz: 16,
            granule: Granule::K4,
            output_size: AddrSize::B48,
            ttb0: ttb0.map(PhysAddr),
            asid,
            private_asid: true,
            mair: MAIR,
            record: true,
            stall: false,
            abort: true,
        }
        .encode()
    };
    let all = [
        RawCd::default(),
        cd(1, Some(0x1000)),
        cd(1, Some(0x2000)),
        cd(2, Some(0x1000)),
        cd(2, Some(0x3000)),
        cd(2, None),
    ];
    for from in all {
        for to in all {
            replay(from, to, "cd");
        }
    }
    // One word differs: hitless. ASID and table differ: there is no hitless way.
    assert!(!replay(cd(1, Some(0x1000)), cd(1, Some(0x2000)), "same ASID, other table"));
    assert!(!replay(RawCd::default(), cd(1, Some(0x1000)), "from invalid"));
    assert!(!replay(cd(1, Some(0x1000)), RawCd::default(), "to invalid"));
    assert!(replay(cd(1, Some(0x1000)), cd(2, Some(0x3000)), "other ASID, other table"));
}

#[test]
fn an_entry_that_is_right_already_is_not_touched() {
    for (_, ste) in stes() {
        assert!(plan(ste, ste).is_empty());
    }
}

#[test]
fn a_step_left_out_shows_a_torn_entry() {
    // The replay can fail: writing all words at once, as if the SMMU fetched atomically, is seen.
    let (from, to) = (stes()[3].1, stes()[8].1);
    let mixed = RawSte(core::array::from_fn(|word| if word == 0 { to.0[word] } else { from.0[word] }));
    assert!(seen(mixed) != seen(from) && seen(mixed) != seen(to) && mixed.0[0] & 1 == 1);
}

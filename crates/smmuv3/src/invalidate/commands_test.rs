//! The exact commands of each kind of entry, for one page, for 2 MiB, for everything.

extern crate std;

use super::*;
use crate::arch::regs::{Aidr, Idr0, Idr1, Idr3, Idr5};
use crate::arch::{IdRegs, TlbiRange};
use crate::invalidate::spans::MAX_SPANS;
use crate::invs::InvArray;
use proptest::prelude::*;
use std::vec::Vec;

fn features(ril: bool) -> Features {
    Features::from(IdRegs {
        idr0: Idr0::new_with_raw_value(0x0d44_101b),
        idr1: Idr1::new_with_raw_value(0x0273_0010),
        idr3: Idr3::new_with_raw_value(0x1014).with_ril(ril),
        idr5: Idr5::new_with_raw_value(0x74),
        aidr: Aidr::new_with_raw_value(1),
    })
}

fn pages(first: u64, count: u64, leaf: bool) -> Change<'static> {
    spans(&[Span { first, last: first + count * 0x1000 - 1, stride: 0x1000, leaf }])
}

fn spans(spans: &[Span]) -> Change<'static> {
    Change::Spans { granule: Granule::K4, cover: Cover::Few, spans: spans.to_vec().leak() }
}

fn raw(array: &InvArray, change: Change<'_>, ril: bool, stu: u8) -> Vec<RawCommand> {
    let mut all = Vec::new();
    push_commands(array.runs(), &change, &features(ril), stu, &mut all);
    all
}

fn commands(keys: &[Key], change: Change<'_>, ril: bool) -> Vec<Command> {
    let array = InvArray::empty().merge(keys).unwrap();
    raw(&array, change, ril, 0).iter().map(|command| command.decode().unwrap()).collect()
}

const SYNC: Command = Command::Sync(SyncSignal::None);
const ASID: Key = Key::new(0, Kind::S1Asid, 7, 0);
const VMID: Key = Key::new(0, Kind::S2Vmid, 9, 0);

fn addr(addr: u64, leaf: bool, range: Option<(u8, u8)>) -> TlbiAddr {
    let range = range.map(|(num, scale)| TlbiRange { granule: Granule::K4, num, scale, ttl: 0 });
    TlbiAddr { addr, leaf, range }
}

#[test]
fn one_page_is_one_command_without_a_range() {
    let page = pages(0x5000, 1, true);
    assert_eq!(commands(&[ASID], page, true), [Command::TlbiNhVa { vmid: 0, asid: 7, addr: addr(0x5000, true, None) }]);
    assert_eq!(commands(&[VMID], page, true), [Command::TlbiS2Ipa { vmid: 9, addr: addr(0x5000, true, None) }]);
}

#[test]
fn two_mebibytes_are_one_command_with_a_range() {
    let change = pages(0x20_0000, 512, false);
    let expected = addr(0x20_0000, false, Some((31, 4)));
    assert_eq!(commands(&[ASID], change, true), [Command::TlbiNhVa { vmid: 0, asid: 7, addr: expected }]);
    assert_eq!(commands(&[VMID], change, true), [Command::TlbiS2Ipa { vmid: 9, addr: expected }]);
}

#[test]
fn everything_is_one_command_for_the_tag() {
    assert_eq!(commands(&[ASID], Change::Everything, true), [Command::TlbiNhAsid { vmid: 0, asid: 7 }]);
    assert_eq!(commands(&[VMID], Change::Everything, true), [Command::TlbiS12Vmall { vmid: 9 }]);
}

#[test]
fn without_range_invalidation_pages_go_one_by_one_up_to_a_limit_and_then_the_tag() {
    let three = commands(&[ASID], pages(0x5000, 3, true), false);
    let single = |at| Command::TlbiNhVa { vmid: 0, asid: 7, addr: addr(at, true, None) };
    assert_eq!(three, [single(0x5000), single(0x6000), single(0x7000)]);
    assert_eq!(commands(&[VMID], pages(0, 64, true), false).len(), 64);
    assert_eq!(commands(&[VMID], pages(0, 65, true), false), [Command::TlbiS12Vmall { vmid: 9 }]);
    // Four blocks of 2 MiB are four commands.
    let blocks = spans(&[Span { first: 0, last: 0x7f_ffff, stride: 0x20_0000, leaf: true }]);
    assert_eq!(commands(&[ASID], blocks, false).len(), 4);
}

#[test]
fn a_sync_stands_between_kinds_that_must_not_overtake_each_other() {
    let clear = Key::new(0, Kind::S2VmidS1Clear, 9, 0);
    let ats = Key::new(0, Kind::Ats, 0x18, 0);
    let pasid = Key::new(0, Kind::Ats, 0x18, 5);
    let full = Key::new(0, Kind::AtsFull, 0x20, 0);
    let tlbi = Command::TlbiS2Ipa { vmid: 9, addr: addr(0x5000, true, None) };
    let atc = |sid, ssid, addr, size| Command::AtcInv { sid, ssid, global: false, addr, size };
    assert_eq!(
        commands(&[VMID, clear, ats, pasid, full], pages(0x5000, 1, true), true),
        [
            tlbi,
            SYNC,
            Command::TlbiNhAll { vmid: 9 },
            SYNC,
            atc(0x18, None, 0x5000, 0),
            atc(0x18, Some(5), 0x5000, 0),
            atc(0x20, None, 0, 52)
        ]
    );
    assert_eq!(
        commands(&[VMID, clear, full], Change::Everything, true),
        [Command::TlbiS12Vmall { vmid: 9 }, SYNC, atc(0x20, None, 0, 52)],
        "the whole flush of the VMID clears its stage 1 too"
    );
    assert_eq!(commands(&[ats], pages(0x5000, 1, true), true).len(), 1, "no sync in front of the first");
}

#[test]
fn several_ranges_are_invalidated_kind_by_kind() {
    let ats = Key::new(0, Kind::Ats, 0x18, 0);
    let page = |first| Span { first, last: first + 0xfff, stride: 0x1000, leaf: true };
    let two = spans(&[page(0x5000), page(0x9000)]);
    let tlbi = |at| Command::TlbiNhVa { vmid: 0, asid: 7, addr: addr(at, true, None) };
    let atc = |addr| Command::AtcInv { sid: 0x18, ssid: None, global: false, addr, size: 0 };
    for ril in [false, true] {
        assert_eq!(
            commands(&[ASID, ats], two, ril),
            [tlbi(0x5000), tlbi(0x9000), SYNC, atc(0x5000), atc(0x9000)],
            "one CMD_SYNC for all of a kind"
        );
    }
    // The limit is one for all of them.
    let many = |first| Span { first, last: first + 40 * 0x1000 - 1, stride: 0x1000, leaf: true };
    assert_eq!(commands(&[VMID], spans(&[many(0), many(0x10_0000)]), false), [Command::TlbiS12Vmall { vmid: 9 }]);
}

/// Also with an entry for the stage 1 of a guest, which knows no ranges.
#[test]
fn no_kind_and_no_size_needs_more_commands_than_the_limit() {
    let kinds = [Kind::S1Asid, Kind::S2Vmid, Kind::S2VmidS1Clear, Kind::Ats, Kind::AtsFull];
    let all = kinds.map(|kind| Key::new(0, kind, 1, 0));
    for log2 in 0..=36 {
        let range = |first| Span { first, last: first + (0x1000 << log2) - 1, stride: 0x1000, leaf: true };
        for (ril, cover) in [(false, Cover::Few), (true, Cover::Few), (false, Cover::Exact), (true, Cover::Exact)] {
            for spans in [[range(0)].as_slice(), &[range(0x7000)], &[range(0x7000); MAX_SPANS]] {
                let count =
                    |keys: &[Key]| commands(keys, Change::Spans { granule: Granule::K4, cover, spans }, ril).len();
                // Two for each bit of the length of each range.
                let atc_invs = if cover == Cover::Few { 2 } else { 2 * (log2 + 1) } * spans.len();
                for key in all {
                    let most = if key.kind() == Kind::Ats { atc_invs } else { MAX_TLBIS };
                    assert!((1..=most).contains(&count(&[key])), "{key:?} {ril} {cover:?} {spans:x?}");
                }
                // And of all together, with a CMD_SYNC after the TLBIs and after the clear.
                assert_eq!(count(&all), all.iter().map(|key| count(&[*key])).sum::<usize>() + 2);
            }
        }
    }
    assert_eq!(commands(&all, Change::Everything, true).len(), 5);
}

/// The commands of one entry, in their typed form.
fn typed(key: Key, change: &Change<'_>, ril: bool, stu: u8) -> Vec<Command> {
    let tag = key.id() as u16;
    let tlbi = |addr| match key.kind() {
        Kind::S1Asid => Command::TlbiNhVa { vmid: 0, asid: tag, addr },
        _ => Command::TlbiS2Ipa { vmid: tag, addr },
    };
    let whole = match key.kind() {
        Kind::S1Asid => Command::TlbiNhAsid { vmid: 0, asid: tag },
        _ => Command::TlbiS12Vmall { vmid: tag },
    };
    let ssid = (key.ssid() != 0).then_some(key.ssid());
    let atc = |(addr, size)| Command::AtcInv { sid: key.id(), ssid, global: false, addr, size };
    match (key.kind(), *change) {
        (Kind::S1Asid | Kind::S2Vmid, Change::Everything) => [whole].into(),
        (Kind::S1Asid | Kind::S2Vmid, Change::Spans { granule, cover, spans }) => {
            let of_span = |span: &Span| tlbi_cover(span, granule, cover, ril).take(MAX_TLBIS + 1);
            let addrs: Vec<TlbiAddr> = spans.iter().flat_map(of_span).collect();
            if addrs.len() > MAX_TLBIS { [whole].into() } else { addrs.into_iter().map(tlbi).collect() }
        }
        (Kind::S2VmidS1Clear, Change::Everything) => [].into(),
        (Kind::S2VmidS1Clear, _) => [Command::TlbiNhAll { vmid: tag }].into(),
        (Kind::Ats, Change::Spans { cover, spans, .. }) => {
            spans.iter().flat_map(|span| atc_cover(span.first, span.last, stu, cover)).map(atc).collect()
        }
        (Kind::Ats, Change::Everything) | (Kind::AtsFull, _) => [atc((0, ATC_INV_ALL))].into(),
    }
}

fn any_key() -> impl Strategy<Value = Key> {
    const KINDS: [Kind; 5] = [Kind::S1Asid, Kind::S2Vmid, Kind::S2VmidS1Clear, Kind::Ats, Kind::AtsFull];
    let id = prop_oneof![0..4u32, any::<u32>()];
    let ssid = prop_oneof![Just(0), 0..4u32, 0..1u32 << 20];
    (prop::sample::select(&KINDS[..]), id, ssid).prop_map(|(kind, id, ssid)| match kind {
        Kind::Ats => Key::new(0, kind, id, ssid),
        Kind::AtsFull => Key::new(0, kind, id, 0),
        _ => Key::new(0, kind, id & 0xffff, 0),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_words_are_those_of_the_typed_commands_kind_by_kind(
        keys in prop::collection::btree_set(any_key(), 1..40),
        trash in any::<u64>(),
        granule in prop::sample::select(&[Granule::K4, Granule::K16, Granule::K64][..]),
        spans in prop::collection::vec((any::<u64>(), any::<u64>(), 0..64u32, 0..20u32, any::<bool>()), 0..5),
        ril in any::<bool>(),
        cover in prop::sample::select(&[Cover::Few, Cover::Exact][..]),
        stu in 0..5u8,
    ) {
        let keys: Vec<Key> = keys.into_iter().collect();
        let array = InvArray::empty().merge(&keys).unwrap();
        // Most arrays have no trash.
        let is_trash = |at: usize| trash & 3 == 0 && trash >> (at % 64) & 1 == 1;
        let (mut live, mut gone) = (Vec::new(), Vec::new());
        keys.iter().enumerate().for_each(|(at, key)| if is_trash(at) { gone.push(*key) } else { live.push(*key) });
        array.unref(&gone, |_| {}).unwrap();
        let spans: Vec<Span> = spans.into_iter().map(|(first, len, shift, stride, leaf)| {
            let first = first & !(granule.size() - 1);
            let last = first.saturating_add(len >> shift) | (granule.size() - 1);
            Span { first, last, stride: granule.size() << stride, leaf }
        }).collect();
        let change = if spans.is_empty() { Change::Everything } else { Change::Spans { granule, cover, spans: &spans } };
        // In one section all orders do the same.
        let sync = SYNC.encode();
        let section = |commands: &[RawCommand]| {
            let mut words: Vec<[u64; 2]> = commands.iter().map(|command| command.0).collect();
            words.sort();
            words
        };
        let sections: Vec<_> = raw(&array, change, ril, stu).split(|command| *command == sync).map(section).collect();
        let phases: [&[Kind]; 3] = [&[Kind::S1Asid, Kind::S2Vmid], &[Kind::S2VmidS1Clear], &[Kind::Ats, Kind::AtsFull]];
        let mut expected: Vec<_> = phases.iter().map(|kinds| {
            let all = live.iter().filter(|key| kinds.contains(&key.kind()));
            section(&all.flat_map(|key| typed(*key, &change, ril, stu)).map(|command| command.encode()).collect::<Vec<_>>())
        }).filter(|section| !section.is_empty()).collect();
        if expected.is_empty() {
            expected.push(Vec::new());
        }
        prop_assert_eq!(sections, expected);
    }
}

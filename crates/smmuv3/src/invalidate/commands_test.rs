//! The exact commands of each kind of entry, for one page, for 2 MiB, for everything.

extern crate std;

use super::*;
use crate::arch::regs::{Aidr, Idr0, Idr1, Idr3, Idr5};
use crate::arch::{IdRegs, TlbiRange};
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
    Change::Spans { granule: Granule::K4, spans: spans.to_vec().leak() }
}

fn commands(keys: &[Key], change: Change<'_>, ril: bool) -> Vec<Command> {
    assert!(keys.is_sorted());
    let mut all = Vec::new();
    push_commands(keys.iter().copied(), &change, &features(ril), 0, |command| all.push(command));
    all
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

#[test]
fn no_kind_and_no_size_needs_more_commands_than_the_limit() {
    let kinds = [Kind::S1Asid, Kind::S2Vmid, Kind::S2VmidS1Clear, Kind::Ats, Kind::AtsFull];
    for kind in kinds {
        for log2 in 0..=36 {
            for ril in [false, true] {
                for change in [pages(0, 1 << log2, true), pages(0x7000, 1 << log2, false), Change::Everything] {
                    let count = commands(&[Key::new(0, kind, 1, 0)], change, ril).len() as u64;
                    assert!(count <= MAX_SINGLE, "{kind:?} {change:?}: {count} commands");
                }
            }
        }
    }
}

//! What covers reach, how much more than was asked for, and with how many commands; over all ranges.

extern crate std;

use super::*;
use crate::arch::Command;
use proptest::prelude::*;
use std::vec::Vec;

const GRANULES: [Granule; 3] = [Granule::K4, Granule::K16, Granule::K64];

/// Ranges of addresses of `bits` bits: short and long ones, at both ends, across boundaries, aligned or not.
fn range(bits: u32) -> impl Strategy<Value = (u64, u64)> {
    let top = u64::MAX >> (64 - bits);
    let near = move |(a, shift, len): (u64, u32, u64)| {
        let boundary = (a & top) >> shift << shift;
        (boundary.saturating_sub(len >> 1), boundary.saturating_add(len >> 2).min(top))
    };
    let len = (any::<u64>(), 0..64u32).prop_map(|(len, shift)| len >> shift);
    prop_oneof![
        4 => (any::<u64>(), any::<u64>()).prop_map(move |(a, b)| ((a & top).min(b & top), (a & top).max(b & top))),
        4 => (any::<u64>(), 12..bits, 0..1u64 << 24).prop_map(near),
        4 => (any::<u64>(), len.clone()).prop_map(move |(a, len)| (a & top, (a & top).saturating_add(len).min(top))),
        1 => len.clone().prop_map(move |len| (top - len.min(top), top)),
        1 => len.prop_map(move |len| (0, len.min(top))),
        1 => Just((0, top)),
        1 => Just((top, top)),
    ]
}

fn span(first: u64, last: u64, stride: u64) -> Span {
    Span { first, last, stride, leaf: true }
}

/// What a TLBI reaches: the first and the last address. Checks that it is legal (§4.4.1.1).
fn reached(at: TlbiAddr, granule: Granule) -> (u64, u64) {
    assert_eq!(at.addr & (granule.size() - 1), 0, "bits below the granule: unpredictable");
    let granules = match at.range {
        None => 1,
        Some(range) => {
            assert_eq!((range.granule, range.ttl), (granule, 0));
            assert!(range.num <= 31 && u32::from(range.scale) <= MAX_SCALE);
            // Also with 16 KiB, where TTL 1 counts as 0.
            assert!((range.num, range.scale) != (0, 0), "CERROR_ILL");
            (u64::from(range.num) + 1) << range.scale
        }
    };
    let command = Command::TlbiNhVa { vmid: 0, asid: 1, addr: at };
    assert_eq!(command.encode().decode(), Ok(command), "what is meant has no place in the command");
    let last = u128::from(at.addr) + (u128::from(granules) << granule.shift()) - 1;
    (at.addr, last.min(u64::MAX.into()) as u64)
}

/// The TLBIs for a range, one behind the other without a gap, as the granules asked for and covered; and how many there are.
fn cover(first: u64, last: u64, granule: Granule, cover: Cover) -> (u64, u64, usize) {
    let all: Vec<(u64, u64)> =
        tlbi_cover(&span(first, last, 0), granule, cover, true).map(|at| reached(at, granule)).collect();
    let (start, end) = (first >> granule.shift(), last >> granule.shift());
    assert_eq!(all[0].0 >> granule.shift(), start, "it begins where the range begins");
    assert!(all.windows(2).all(|pair| pair[0].1.checked_add(1) == Some(pair[1].0)), "a gap or an overlap: {all:x?}");
    let reached = all[all.len() - 1].1 >> granule.shift();
    assert!(reached >= end, "too short");
    (end - start + 1, reached - start + 1, all.len())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_tlbi_covers_what_was_asked_and_less_than_a_sixteenth_more(
        (first, last) in range(48), granule in prop::sample::select(&GRANULES[..]),
    ) {
        let (asked, covered, commands) = cover(first, last, granule, Cover::Few);
        prop_assert_eq!(commands, 1);
        prop_assert!((covered - asked) * 16 < asked);
    }

    #[test]
    fn exact_tlbis_cover_nothing_but_the_range_with_five_bits_of_its_length_each(
        (first, last) in range(48), granule in prop::sample::select(&GRANULES[..]),
    ) {
        let (asked, covered, commands) = cover(first, last, granule, Cover::Exact);
        prop_assert_eq!(covered, asked);
        let bits = 64 - (asked - 1).leading_zeros();
        prop_assert!(commands as u32 <= bits.div_ceil(5).max(1), "{} for {} granules", commands, asked);
    }

    #[test]
    fn fifty_two_bits_are_covered_with_the_scales_of_forty_eight(
        (first, last) in range(52), granule in prop::sample::select(&GRANULES[..]), exact in any::<bool>(),
    ) {
        let policy = if exact { Cover::Exact } else { Cover::Few };
        let (asked, covered, commands) = cover(first, last, granule, policy);
        let most = if exact { asked } else { asked + (asked - 1) / 16 };
        prop_assert!(covered <= most);
        // 2^36 granules for each, and what is left.
        let rest = if exact { 8 } else { 1 };
        prop_assert!(commands as u64 <= (asked >> 36) + rest);
    }

    #[test]
    fn without_range_invalidation_every_leaf_has_its_tlbi(
        (first, last) in range(48), granule in prop::sample::select(&GRANULES[..]), leaf in 0..20u32,
    ) {
        let stride = granule.size() << leaf;
        let all = tlbi_cover(&span(first, last, stride), granule, Cover::Few, false).take(100);
        let mut end = first & !(stride - 1);
        for at in all {
            prop_assert_eq!((at.addr, at.range), (end, None));
            prop_assert!(at.addr <= last);
            end = at.addr.saturating_add(stride);
        }
        prop_assert!(end > last || (end - first) / stride >= 99);
    }

    #[test]
    fn two_atc_spans_cover_what_was_asked_and_less_than_as_much_again(
        (first, last) in range(64), stu in prop_oneof![Just(0u8), 0..10u8],
    ) {
        let (asked, covered, commands) = atc(first, last, stu, Cover::Few);
        prop_assert!(commands <= 2 && covered < 2 * asked);
    }

    #[test]
    fn exact_atc_spans_cover_nothing_but_the_range_with_two_for_each_bit_of_its_length(
        (first, last) in range(64), stu in prop_oneof![Just(0u8), 0..10u8],
    ) {
        let (asked, covered, commands) = atc(first, last, stu, Cover::Exact);
        prop_assert_eq!(covered, asked);
        prop_assert!(commands as u32 <= (2 * asked.ilog2()).max(1), "{} for {} units", commands, asked);
    }
}

/// The ATC_INVs for a range, without gap or overlap, as units asked for and covered; and how many there are.
fn atc(first: u64, last: u64, stu: u8, policy: Cover) -> (u128, u128, usize) {
    let unit = 12 + u32::from(stu);
    let (first_unit, last_unit) = (u128::from(first >> unit), u128::from(last >> unit));
    let spans: Vec<(u128, u128)> = atc_cover(first, last, stu, policy)
        .map(|(addr, size)| {
            assert!((stu..=52).contains(&size) && u128::from(addr) % (4096u128 << size) == 0, "aligned to its size");
            let command = Command::AtcInv { sid: 1, ssid: None, global: false, addr, size };
            assert_eq!(command.encode().decode(), Ok(command));
            let unit = u128::from(addr >> unit);
            (unit, unit + (1u128 << (size - stu)))
        })
        .collect();
    let (start, end) = (spans[0].0, spans[spans.len() - 1].1);
    assert!(spans.windows(2).all(|pair| pair[0].1 == pair[1].0), "a gap or an overlap: {spans:x?}");
    assert!(start <= first_unit && end > last_unit);
    (last_unit - first_unit + 1, end - start, spans.len())
}

#[test]
fn a_length_that_is_no_multiple_of_the_granule_ends() {
    for granule in GRANULES {
        for len in [1, 0xfff, 0x1001, 0x1_0001, 0x20_0001, granule.size() + 1, (1 << 48) - 1] {
            for first in [0, 0x1000, 0x1_0800, 0xffff_ffff_0001 - len.min(1 << 47)] {
                let last = first + (len - 1);
                for policy in [Cover::Few, Cover::Exact] {
                    assert!(cover(first, last, granule, policy).2 <= 10);
                    assert!(atc(first, last, 0, policy).2 <= 2 * 36);
                }
                let singles = tlbi_cover(&span(first, last, 1 << 30), granule, Cover::Few, false).count() as u64;
                assert_eq!(singles, (last >> 30) - (first >> 30) + 1);
            }
        }
    }
}

#[test]
fn the_largest_scale_covers_the_whole_address_space() {
    // 2^36 granules of 4 KiB are 48 bits.
    let whole: Vec<_> = tlbi_cover(&span(0, (1 << 48) - 1, 0), Granule::K4, Cover::Few, true).collect();
    let range = TlbiRange { granule: Granule::K4, num: 31, scale: 31, ttl: 0 };
    assert_eq!(whole, [TlbiAddr { addr: 0, leaf: true, range: Some(range) }]);
    for granule in GRANULES {
        for policy in [Cover::Few, Cover::Exact] {
            assert_eq!(
                cover(0, (1 << 48) - 1, granule, policy),
                (1 << (48 - granule.shift()), 1 << (48 - granule.shift()), 1)
            );
            // One granule more than the largest scale has room for.
            let room = 1u64 << 36;
            let (asked, covered, commands) = cover(0, ((room + 1) << granule.shift()) - 1, granule, policy);
            assert_eq!((asked, covered, commands), (room + 1, room + 1, 2));
        }
    }
}

#[test]
fn no_tlbi_claims_to_know_the_level_of_what_it_invalidates() {
    // A hint that is wrong lets the SMMU ignore the command (§4.4.1.1): blocks of any size may have been there.
    for granule in GRANULES {
        for stride in [granule.size(), granule.size() << (granule.shift() - 3)] {
            for policy in [Cover::Few, Cover::Exact] {
                for ranges in [false, true] {
                    let all = tlbi_cover(&span(0, 4 * stride - 1, stride), granule, policy, ranges);
                    assert!(all.into_iter().all(|at| at.range.is_none_or(|range| range.ttl == 0)));
                }
            }
        }
    }
}

#[test]
fn address_bits_below_the_granule_are_never_set() {
    for granule in GRANULES {
        for first in [0x1000, 0x3000, 0x4000, 0xf000, 0x1_2345, (1 << 48) - 1] {
            for len in [1, 0x1000, 0x1_0000, 0x123_4567] {
                for (policy, ranges) in [(Cover::Few, false), (Cover::Few, true), (Cover::Exact, true)] {
                    for at in tlbi_cover(&span(first, first + len - 1, 0x1000), granule, policy, ranges) {
                        assert_eq!(at.addr % granule.size(), 0, "{granule} {first:#x} {len:#x}");
                    }
                }
            }
        }
    }
}

#[test]
fn two_pages_across_a_high_boundary_do_not_flush_the_whole_atc() {
    let boundary = 1u64 << 47;
    for policy in [Cover::Few, Cover::Exact] {
        let all = |first, last| atc_cover(first, last, 0, policy).collect::<Vec<_>>();
        assert_eq!(all(boundary - 0x1000, boundary + 0xfff), [(boundary - 0x1000, 0), (boundary, 0)]);
        assert_eq!(all(0, u64::MAX), [(0, 52)]);
        assert_eq!(all(0x3000, 0x3fff), [(0x3000, 0)]);
    }
}

//! Covering a range of addresses with few invalidation commands.

use crate::arch::{Granule, TlbiRange};

/// log2 of the page that ATC_INV counts in.
const ATC_PAGE: u32 = 12;

/// The smallest range of one TLBI command that covers `granules` of them, 1 to 2^36; `None` for one granule, which needs no range.
///
/// It covers less than 1/16 too much (IHI 0070 §4.4.1: `(NUM + 1) << SCALE` granules).
pub(super) fn tlbi_cover(granules: u64, granule: Granule) -> Option<TlbiRange> {
    // NUM + 1 is at most 32: the scale is what is left of the length above five bits, plus one if rounding up overflows them.
    let bits = 64 - (granules.max(1) - 1).leading_zeros();
    let scale = bits.saturating_sub(5);
    let num = (granules.max(1) - 1) >> scale;
    if scale == 0 && num == 0 {
        return None;
    }
    Some(TlbiRange { granule, num: num as u8, scale: scale as u8, ttl: 0 })
}

/// One or two aligned power-of-two spans, as (address, Size) of ATC_INV, that cover `first ..= last`. Together less than twice
/// the pages of it, where a page is the smallest translation unit, `4096 << stu` bytes.
///
/// A single span would grow without bound where a short range straddles a highly aligned address; so the range is split there.
pub(super) fn atc_cover(first: u64, last: u64, stu: u8) -> [Option<(u64, u8)>; 2] {
    let unit = ATC_PAGE + u32::from(stu.min(40));
    let (first, last) = (first >> unit, last.max(first) >> unit);
    let pages = last - first + 1;
    // log2 of the smallest aligned span that contains both ends.
    let whole = 64 - (first ^ last).leading_zeros();
    let span = |page: u64, log2: u32| Some((page >> log2 << log2 << unit, (log2 + unit - ATC_PAGE) as u8));
    if 1u64 << whole < 2 * pages {
        return [span(first, whole), None];
    }
    // `middle` is the highest aligned page inside: the left part ends just below it, the right part begins at it.
    let middle = last >> (whole - 1) << (whole - 1);
    let log2 = |pages: u64| 64 - (pages - 1).leading_zeros();
    [span(first, log2(middle - first)), span(middle, log2(last - middle + 1))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_tlbi_range_covers_what_was_asked_and_less_than_a_sixteenth_more(
            granules in prop_oneof![1..200u64, 1..=1u64 << 36, (0..=36u32).prop_map(|log2| 1u64 << log2)],
        ) {
            match tlbi_cover(granules, Granule::K4) {
                None => prop_assert_eq!(granules, 1),
                Some(range) => {
                    let covered = (u64::from(range.num) + 1) << range.scale;
                    prop_assert!(covered >= granules);
                    prop_assert!((covered - granules) * 16 < granules);
                    prop_assert!(range.num <= 31 && range.scale <= 31);
                    prop_assert!((range.num, range.scale) != (0, 0), "CERROR_ILL");
                }
            }
        }

        #[test]
        fn two_atc_spans_cover_what_was_asked_and_less_than_as_much_again(
            a in any::<u64>(), b in any::<u64>(), near in any::<bool>(), shift in 12..64u32, stu in prop_oneof![Just(0u8), 0..10u8],
        ) {
            let b = if near { (a >> shift << shift).saturating_add(b >> 44) } else { b };
            let (first, last) = (a.min(b), a.max(b));
            let unit = 12 + u32::from(stu);
            let (first_page, last_page) = (first >> unit, last >> unit);
            let spans: std::vec::Vec<(u128, u128)> = atc_cover(first, last, stu).into_iter().flatten().map(|(addr, size)| {
                assert!((stu..=52).contains(&size) && u128::from(addr) % (4096u128 << size) == 0, "aligned to its size");
                let page = u128::from(addr >> unit);
                (page, page + (1u128 << (size - stu)))
            }).collect();
            let start = spans.iter().map(|span| span.0).min().unwrap();
            let end = spans.iter().map(|span| span.1).max().unwrap();
            let total: u128 = spans.iter().map(|span| span.1 - span.0).sum();
            prop_assert!(start <= first_page.into() && end > last_page.into());
            prop_assert_eq!(total, end - start, "a gap or an overlap");
            prop_assert!(total < 2 * (u128::from(last_page - first_page) + 1));
        }
    }

    extern crate std;

    #[test]
    fn two_pages_across_a_high_boundary_do_not_flush_the_whole_atc() {
        let boundary = 1u64 << 47;
        assert_eq!(
            atc_cover(boundary - 0x1000, boundary + 0xfff, 0),
            [Some((boundary - 0x1000, 0)), Some((boundary, 0))]
        );
        assert_eq!(atc_cover(0, u64::MAX, 0), [Some((0, 52)), None]);
        assert_eq!(atc_cover(0x3000, 0x3fff, 0), [Some((0x3000, 0)), None]);
    }
}

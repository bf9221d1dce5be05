//! Covering a range of addresses with invalidation commands.

use super::spans::Span;
use crate::arch::{Granule, TlbiAddr, TlbiRange};
use crate::domain::Cover;

/// log2 of the page that ATC_INV counts in.
const ATC_PAGE: u32 = 12;
/// The largest `SCALE` (IHI 0070 §4.4.1.1; 39 where `IDR5.DS` is used, which it is not here).
const MAX_SCALE: u32 = 31;

/// The TLBIs by address for a span, with `IDR3.RIL` (`ranges`) or, one for each leaf, without.
///
/// Addresses are multiples of the granule: with bits below it set, what a range covers is unpredictable (§4.4.1.1). `TTL` stays 0, any level. `unmap`
/// knows the smallest leaf that was there, not whether all were of its level, and of a wrong hint the specification says that the SMMU need not do
/// anything.
pub(super) fn tlbi_cover(
    span: &Span,
    granule: Granule,
    cover: Cover,
    ranges: bool,
) -> impl Iterator<Item = TlbiAddr> + use<> {
    let Span { first, last, stride, leaf } = *span;
    let aligned = first & !(granule.size() - 1);
    let granules = ((last - aligned) >> granule.shift()) + 1;
    let ranged = TlbiRanges { next: aligned, left: granules, granule, cover, leaf };
    let stride = stride.max(granule.size());
    let singles = (first & !(stride - 1)..=last).step_by(stride as usize);
    let singles = singles.map(move |addr| TlbiAddr { addr, leaf, range: None });
    ranges.then_some(ranged).into_iter().flatten().chain((!ranges).then_some(singles).into_iter().flatten())
}

/// Ranges of `(NUM + 1) << SCALE` granules each (§4.4.1.1).
struct TlbiRanges {
    next: u64,
    /// Granules from there on.
    left: u64,
    granule: Granule,
    cover: Cover,
    leaf: bool,
}

impl Iterator for TlbiRanges {
    type Item = TlbiAddr;

    fn next(&mut self) -> Option<TlbiAddr> {
        let more = self.left.checked_sub(1)?;
        // NUM + 1 is at most 32: the scale is what is left of the length above five bits.
        let scale = (64 - more.leading_zeros()).saturating_sub(5).min(MAX_SCALE);
        let num = match self.cover {
            Cover::Few => more >> scale,
            Cover::Exact => (self.left >> scale) - 1,
        };
        // More than the largest range covers goes on behind it.
        let num = num.min(31);
        // NUM, SCALE and TTL must not all be 0: one granule needs no range.
        let range = TlbiRange { granule: self.granule, num: num as u8, scale: scale as u8, ttl: 0 };
        let at = TlbiAddr { addr: self.next, leaf: self.leaf, range: ((num, scale) != (0, 0)).then_some(range) };
        let covered = (num + 1) << scale;
        self.next = self.next.wrapping_add(covered << self.granule.shift());
        self.left = self.left.saturating_sub(covered);
        Some(at)
    }
}

/// Aligned power-of-two spans, as (address, Size) of ATC_INV, that cover `first ..= last`. Addresses count in smallest translation units,
/// `4096 << stu` bytes.
pub(super) fn atc_cover(first: u64, last: u64, stu: u8, cover: Cover) -> impl Iterator<Item = (u64, u8)> {
    let unit = ATC_PAGE + u32::from(stu.min(40));
    let (first, last) = (first >> unit, last.max(first) >> unit);
    let (few, exact) = match cover {
        Cover::Few => (few_spans(first, last), None),
        Cover::Exact => ([None, None], Some(exact_spans(first, last))),
    };
    let spans = few.into_iter().flatten().chain(exact.into_iter().flatten());
    spans.map(move |(place, log2)| (place << unit, (log2 + unit - ATC_PAGE) as u8))
}

/// One or two spans, as (first unit, log2 of units), with together less than twice the units asked for.
///
/// A single one would grow without bound where a short range straddles a highly aligned address; so the range is split there.
fn few_spans(first: u64, last: u64) -> [Option<(u64, u32)>; 2] {
    // log2 of the smallest aligned span that contains both ends.
    let whole = 64 - (first ^ last).leading_zeros();
    let span = |place: u64, log2: u32| Some((place >> log2 << log2, log2));
    if 1u64 << whole < 2 * (last - first + 1) {
        return [span(first, whole), None];
    }
    // `middle` is the highest aligned unit inside: the left part ends just below it, the right part begins at it.
    let middle = last >> (whole - 1) << (whole - 1);
    let log2 = |units: u64| 64 - (units - 1).leading_zeros();
    [span(first, log2(middle - first)), span(middle, log2(last - middle + 1))]
}

/// The fewest spans, as (first unit, log2 of units), that cover nothing else: each as large as its place and what is left allow.
fn exact_spans(first: u64, last: u64) -> impl Iterator<Item = (u64, u32)> {
    let mut next = first;
    core::iter::from_fn(move || {
        let left = (last + 1).checked_sub(next).filter(|left| *left > 0)?;
        let log2 = next.trailing_zeros().min(left.ilog2());
        let span = (next, log2);
        next += 1 << log2;
        Some(span)
    })
}

#[cfg(test)]
#[path = "range_test.rs"]
mod tests;

//! The ranges of one invalidation: few, sorted, without overlap.

use arrayvec::ArrayVec;

/// Ranges that one invalidation keeps apart.
pub(crate) const MAX_SPANS: usize = 8;

/// Descriptors that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// The first byte; a multiple of the granule.
    pub(crate) first: u64,
    /// The last byte.
    pub(crate) last: u64,
    /// The smallest leaf that was there: without range invalidation, one command for each of them.
    pub(crate) stride: u64,
    /// Only leaves changed; tables stay where they are, and walk caches are right.
    pub(crate) leaf: bool,
}

impl Span {
    /// The smallest span that has both.
    fn with(self, other: Span) -> Span {
        Span {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            stride: self.stride.min(other.stride),
            leaf: self.leaf && other.leaf,
        }
    }

    /// The bytes between this and a later one; 0 where they touch or overlap.
    fn gap(self, later: Span) -> u64 {
        later.first.saturating_sub(self.last).saturating_sub(1)
    }
}

/// # Invariants
/// Sorted; between two neighbours there is a gap. At most [`MAX_SPANS`]: there is room for one more while it is added.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spans(ArrayVec<Span, { MAX_SPANS + 1 }>);

impl Spans {
    pub(crate) fn as_slice(&self) -> &[Span] {
        &self.0
    }

    /// Nothing is known of what was there.
    pub(crate) fn forget_leaves(&mut self, granule_size: u64) {
        for span in &mut self.0 {
            (span.stride, span.leaf) = (granule_size, false);
        }
    }

    /// Adds a span. Spans that touch become one; where there would be too many, so do the two with the smallest gap between them.
    pub(crate) fn add(&mut self, mut span: Span) {
        // Those that touch it stand side by side.
        let at = self.0.iter().take_while(|have| have.last < span.first && have.gap(span) > 0).count();
        while let Some(&have) = self.0.get(at).filter(|have| span.gap(**have) == 0) {
            span = span.with(have);
            self.0.remove(at);
        }
        let _ = self.0.try_insert(at, span);
        if self.0.len() > MAX_SPANS {
            self.join_closest();
        }
    }

    #[cold]
    fn join_closest(&mut self) {
        let gaps = self.0.windows(2).map(|pair| pair[0].gap(pair[1])).enumerate();
        if let Some((left, _)) = gaps.min_by_key(|(_, gap)| *gap) {
            let right = self.0.remove(left + 1);
            self.0[left] = self.0[left].with(right);
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn span(first: u64, pages: u64) -> Span {
        Span { first: first << 12, last: ((first + pages) << 12) - 1, stride: 0x1000, leaf: true }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn all_that_was_added_is_covered_by_few_spans_with_gaps_between_them(
            added in prop::collection::vec((prop_oneof![0..40u64, 0..1u64 << 51], 1..20u64, any::<bool>(), 12..22u32), 1..20),
        ) {
            let mut spans = Spans::default();
            let added: Vec<Span> = added.into_iter().map(|(first, pages, leaf, stride)| {
                Span { leaf, stride: 1 << stride, ..span(first, pages) }
            }).collect();
            added.iter().for_each(|&span| spans.add(span));
            for one in &added {
                let over = spans.as_slice().iter().find(|over| over.first <= one.first && over.last >= one.last).unwrap();
                prop_assert!(over.stride <= one.stride && (one.leaf || !over.leaf));
            }
            prop_assert!(spans.as_slice().windows(2).all(|pair| pair[0].last + 1 < pair[1].first));
            // As long as there never were too many, nothing else is covered.
            let exact = |added: &[Span]| {
                let mut added = added.to_vec();
                added.sort_by_key(|span| span.first);
                let mut exact: Vec<(u64, u64)> = Vec::new();
                for span in added {
                    match exact.last_mut() {
                        Some(last) if span.first <= last.1 + 1 => last.1 = last.1.max(span.last),
                        _ => exact.push((span.first, span.last)),
                    }
                }
                exact
            };
            prop_assert!(spans.as_slice().len() <= MAX_SPANS);
            if (0..=added.len()).all(|many| exact(&added[..many]).len() <= MAX_SPANS) {
                let have: Vec<(u64, u64)> = spans.as_slice().iter().map(|span| (span.first, span.last)).collect();
                prop_assert_eq!(have, exact(&added));
            }
        }
    }

    #[test]
    fn where_there_are_too_many_the_smallest_gap_is_closed() {
        let places = [0, 100, 200, 300, 400, 500, 600, 700];
        for (new, joined) in [(704, (700, 5)), (203, (200, 4)), (900, (0, 0))] {
            let mut spans = Spans::default();
            places.iter().for_each(|&place| spans.add(span(place, 1)));
            spans.add(span(new, 1));
            assert_eq!(spans.as_slice().len(), MAX_SPANS);
            match joined {
                (0, 0) => assert_eq!(spans.as_slice()[0], span(0, 101), "two old ones"),
                (first, pages) => assert!(spans.as_slice().contains(&span(first, pages)), "{spans:?}"),
            }
        }
    }

    #[test]
    fn the_last_byte_of_all_addresses_is_no_gap() {
        let mut spans = Spans::default();
        let top = Span { first: !0xfff, last: u64::MAX, stride: 0x1000, leaf: true };
        spans.add(top);
        spans.add(top);
        assert_eq!(spans.as_slice(), [top]);
    }
}

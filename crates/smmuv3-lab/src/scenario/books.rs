//! Which buffers are mapped where: so that a buffer is freed, and poisoned, as soon as nothing maps it any more.

use std::collections::BTreeMap;

use crate::session::PAGE;

/// An address in a domain's table.
type Place<'f> = (&'f str, u64);

/// What the steps have mapped, by the names in the file.
#[derive(Default)]
pub(super) struct Books<'f> {
    mapped: BTreeMap<Place<'f>, &'f str>,
    /// Taken from an SVA domain's table, and its owner has not told the driver yet.
    cleared: Vec<(Place<'f>, &'f str)>,
    /// Mappings of each buffer, the cleared ones included.
    count: BTreeMap<&'f str, usize>,
}

impl<'f> Books<'f> {
    /// The buffer is mapped from `iova` on.
    pub(super) fn map(&mut self, domain: &'f str, iova: u64, pages: usize, buffer: &'f str) {
        *self.count.entry(buffer).or_default() += pages;
        for place in places(domain, iova, pages) {
            if let Some(old) = self.mapped.insert(place, buffer) {
                self.cleared.push((place, old));
            }
        }
    }

    /// How many pages are mapped from `iova` on, one after the other, of the buffer that is mapped there.
    pub(super) fn pages_at(&self, domain: &'f str, iova: u64) -> usize {
        let first = self.mapped.get(&(domain, iova));
        let same = |place: &Place<'f>| first.is_some() && self.mapped.get(place) == first;
        places(domain, iova, usize::MAX).take_while(same).count()
    }

    /// Takes mappings out of the books. Their buffers stay counted until [`drop_mappings`](Self::drop_mappings).
    pub(super) fn take(&mut self, domain: &'f str, iova: u64, pages: usize) -> Vec<&'f str> {
        places(domain, iova, pages).filter_map(|place| self.mapped.remove(&place)).collect()
    }

    /// The owner of a table has taken mappings out.
    pub(super) fn clear(&mut self, domain: &'f str, iova: u64, pages: usize) {
        for place in places(domain, iova, pages) {
            if let Some(buffer) = self.mapped.remove(&place) {
                self.cleared.push((place, buffer));
            }
        }
    }

    /// The driver was told of a range, or (`None`) of everything: what was cleared there.
    pub(super) fn take_cleared(&mut self, domain: &'f str, range: Option<(u64, usize)>) -> Vec<&'f str> {
        let covered = |(name, iova): Place<'f>| {
            let inside = |(first, pages): (u64, usize)| iova >= first && iova < first + (pages * PAGE) as u64;
            name == domain && range.is_none_or(inside)
        };
        let mut taken = Vec::new();
        self.cleared.retain(|(place, buffer)| {
            let go = covered(*place);
            taken.extend(go.then_some(*buffer));
            !go
        });
        taken
    }

    /// A table is gone: all that was mapped by it.
    pub(super) fn take_all(&mut self, domain: &'f str) -> Vec<&'f str> {
        let mut taken = self.take_cleared(domain, None);
        self.mapped.retain(|(name, _), buffer| {
            let go = *name == domain;
            taken.extend(go.then_some(*buffer));
            !go
        });
        taken
    }

    /// No device can reach these mappings any more. Returns the buffers that have none left.
    pub(super) fn drop_mappings(&mut self, gone: Vec<&'f str>) -> Vec<&'f str> {
        let mut free = Vec::new();
        for buffer in gone {
            if let Some(count) = self.count.get_mut(buffer) {
                *count -= 1;
                if *count == 0 {
                    self.count.remove(buffer);
                    free.push(buffer);
                }
            }
        }
        free
    }
}

fn places<'f>(domain: &'f str, iova: u64, pages: usize) -> impl Iterator<Item = Place<'f>> {
    (0..pages).map(move |page| (domain, iova.wrapping_add((page * PAGE) as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_free_when_its_last_mapping_is_gone() {
        let mut books = Books::default();
        books.map("one", 0x1000, 2, "a");
        books.map("two", 0x8000, 2, "a");
        assert_eq!(books.pages_at("one", 0x1000), 2);
        assert_eq!(books.pages_at("one", 0x3000), 0);
        let gone = books.take("one", 0x1000, 2);
        assert!(books.drop_mappings(gone).is_empty());
        let gone = books.take("two", 0x9000, 5);
        assert!(books.drop_mappings(gone).is_empty());
        let gone = books.take("two", 0x8000, 1);
        assert_eq!(books.drop_mappings(gone), ["a"]);
    }

    #[test]
    fn what_an_owner_clears_counts_until_the_driver_was_told() {
        let mut books = Books::default();
        books.map("process", 0x1000, 1, "a");
        // Another buffer in its place.
        books.map("process", 0x1000, 1, "b");
        books.clear("process", 0x1000, 1);
        assert!(books.take_cleared("process", Some((0x2000, 1))).is_empty());
        let gone = books.take_cleared("process", Some((0x1000, 1)));
        assert_eq!(books.drop_mappings(gone), ["a", "b"]);
    }
}

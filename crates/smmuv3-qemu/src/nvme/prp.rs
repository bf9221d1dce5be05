//! PRPs: how a command names the pages of its data (NVM Express base specification 1.4, §4.3).

use smmuv3::platform::Iova;

use super::PAGE;

/// Entries in a list of one page.
const LIST: usize = PAGE / 8;
/// The most pages that one command can name: one directly, the others in the list.
pub(super) const LONGEST: usize = 1 + LIST;

/// The two words of a command, and the list that the second may point to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Prps {
    pub(super) prp1: u64,
    pub(super) prp2: u64,
    /// What must be at the address of the list.
    pub(super) list: Vec<u8>,
}

/// Names `pages`, at most [`LONGEST`]. `list` is where the controller will see the list.
pub(super) fn encode(pages: &[Iova], list: Iova) -> Prps {
    let prp1 = pages.first().map_or(0, |page| page.0);
    match pages.get(1..).unwrap_or(&[]) {
        [] => Prps { prp1, prp2: 0, list: Vec::new() },
        [second] => Prps { prp1, prp2: second.0, list: Vec::new() },
        rest => Prps { prp1, prp2: list.0, list: rest.iter().flat_map(|page| page.0.to_le_bytes()).collect() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_and_two_pages_need_no_list() {
        let list = Iova(0x9000);
        let prps = encode(&[Iova(0x1000)], list);
        assert_eq!((prps.prp1, prps.prp2, prps.list), (0x1000, 0, vec![]));
        let prps = encode(&[Iova(0x1000), Iova(0x2000)], list);
        assert_eq!((prps.prp1, prps.prp2, prps.list), (0x1000, 0x2000, vec![]));
    }

    #[test]
    fn from_three_pages_on_the_second_word_points_to_a_list() {
        let prps = encode(&[Iova(0x1000), Iova(0x2000), Iova(0x3000)], Iova(0x9000));
        assert_eq!((prps.prp1, prps.prp2), (0x1000, 0x9000));
        assert_eq!(prps.list, [0x2000u64.to_le_bytes(), 0x3000u64.to_le_bytes()].concat());
        let most = vec![Iova(0x1000); LONGEST];
        assert_eq!(encode(&most, Iova(0x9000)).list.len(), PAGE);
    }
}

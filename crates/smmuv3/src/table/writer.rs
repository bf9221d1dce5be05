//! The hitless entry writer: from what an STE or CD is to what it shall be, in steps that the SMMU may watch.
//!
//! The SMMU reads an entry as eight 64-bit words, in any order, at any time; only a single word changes atomically
//! (IHI 0070 §3.21.3). It ignores many bits, depending on others: a bypass STE's table pointers, everything of an
//! entry with `V` = 0. So an entry is changed in up to three steps, each followed by a configuration invalidation and a CMD_SYNC:
//!
//! 1. fill in the bits of the target that the SMMU ignores now: it still behaves as the old entry;
//! 2. change the one word that still differs in bits that the target uses: at once it behaves as the new entry;
//! 3. bring the bits that nothing uses any more to the target.
//!
//! If more than one word would have to change in step 2, there is no such way, and the entry goes through `V` = 0.

use arrayvec::ArrayVec;

use crate::arch::{RawCd, RawSte};

/// An STE or CD, as words of which the SMMU uses some.
pub(crate) trait Entry: Copy + Into<[u64; 8]> + From<[u64; 8]> {
    /// `V` in word 0. An entry without it uses nothing but this bit.
    const VALID: u64;
    /// The bits that the SMMU looks at, given the others.
    fn used(&self) -> [u64; 8];
}

macro_rules! entry {
    ($raw:ident, $valid:expr) => {
        impl Entry for $raw {
            const VALID: u64 = $valid;
            fn used(&self) -> [u64; 8] {
                $raw::used(self)
            }
        }
        impl From<[u64; 8]> for $raw {
            fn from(words: [u64; 8]) -> Self {
                $raw(words)
            }
        }
        impl From<$raw> for [u64; 8] {
            fn from(raw: $raw) -> Self {
                raw.0
            }
        }
    };
}
entry!(RawSte, 1);
entry!(RawCd, 1 << 31);

/// The entry after a step, and which words the step changes (bit *n* is word *n*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) entry: [u64; 8],
    pub(crate) changed: u8,
}

/// The steps from `current` to `target`; none if they are equal.
///
/// During a step the SMMU may see any mixture of old and new words; between steps it is synchronised.
pub(crate) fn plan<E: Entry>(current: E, target: E) -> ArrayVec<Step, 3> {
    let now_used = current.used();
    let then_used = target.used();
    let (now, then): ([u64; 8], [u64; 8]) = (current.into(), target.into());

    let mut steps = ArrayVec::new();
    let mut entry = now;
    let mut step = |next: [u64; 8]| {
        let changed = (0..8).filter(|&word| next[word] != entry[word]).fold(0, |mask, word| mask | 1 << word);
        entry = next;
        if changed != 0 {
            // At most three calls on each path below.
            let _ = steps.try_push(Step { entry, changed });
        }
    };

    let filled: [u64; 8] = core::array::from_fn(|word| {
        now[word] & (now_used[word] | !then_used[word]) | then[word] & then_used[word] & !now_used[word]
    });
    let mut critical = (0..8).filter(|&word| (filled[word] ^ then[word]) & then_used[word] != 0);
    match (critical.next(), critical.next()) {
        (None, _) => step(then),
        (Some(word), None) => {
            step(filled);
            let mut switched = filled;
            switched[word] = then[word];
            step(switched);
            step(then);
        }
        (Some(_), Some(_)) => {
            let mut invalid = now;
            invalid[0] &= !E::VALID;
            step(invalid);
            let mut prepared = then;
            prepared[0] = invalid[0];
            step(prepared);
            step(then);
        }
    }
    steps
}

#[cfg(test)]
#[path = "writer_test.rs"]
mod tests;

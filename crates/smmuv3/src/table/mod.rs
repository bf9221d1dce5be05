//! Stream tables and CD tables in memory, and the writer that changes one entry under the SMMU's eyes.

mod cd;
mod stream;
mod writer;

pub(crate) use cd::CdTable;
pub(crate) use stream::StreamTable;
pub use stream::StreamTableError;
pub(crate) use writer::{Entry, Step, plan};

use crate::primitive::AtomicU64;
use crate::primitive::Ordering::Relaxed;

use crate::platform::Platform;

/// Brings the entry at `words` (the eight words of an STE or CD) to `target`, step by step.
///
/// After each step `sync` makes the SMMU forget what it cached of the entry and waits until it has; if that fails, writing stops
/// there. Returns the steps taken. The caller is the only writer.
pub(crate) fn write<E: Entry, P: Platform, Error>(
    platform: &P,
    words: &[AtomicU64; 8],
    target: E,
    mut sync: impl FnMut() -> Result<(), Error>,
) -> Result<usize, Error> {
    let current = E::from(core::array::from_fn(|index| words[index].load(Relaxed)));
    let steps = plan(current, target);
    for Step { entry, changed } in &steps {
        // What the new words point to (tables, and the published array: barrier (B)) comes before them.
        // litmus: publication
        platform.write_barrier();
        for (index, word) in words.iter().enumerate().filter(|(index, _)| changed & (1 << index) != 0) {
            word.store(entry[index], Relaxed);
        }
        platform.clean(words);
        // The words come before the command that makes the SMMU read them. litmus: doorbell-data
        platform.write_barrier();
        // litmus: entry-steps
        sync()?;
    }
    Ok(steps.len())
}

/// The eight words at `index` in an array of STEs or CDs; `None` past its end.
pub(crate) fn entry_at(words: &[AtomicU64], index: usize) -> Option<&[AtomicU64; 8]> {
    let start = index.checked_mul(8)?;
    words.get(start..start.checked_add(8)?)?.try_into().ok()
}

#[cfg(test)]
#[path = "table_test.rs"]
mod tests;

//! The invalidation array: what a domain owes after any change of its translation tables.
//!
//! A [`Key`] says "this SMMU, this kind, this id must be invalidated". A domain's [`InvArray`] holds them sorted, and
//! counts for each how many attachments need it. Unmapping threads walk the published array in a read section;
//! attaching threads, one at a time, [merge](InvArray::merge) into a new array and publish it, or
//! [unref](InvArray::unref) in place.

mod array;
mod cell;
mod entry;

#[cfg(fuzzing)]
pub(crate) use array::model;
pub(crate) use array::{InvArray, NotPresent, Run};
pub(crate) use cell::{Invs, Merged};
pub use entry::{Key, Kind};

//! What the benchmarks measure one by one, and what they build other schemes from. No part of the interface: anything here may change.

mod array;
mod queue;
mod unmap;

pub use array::{Array, DomainArray};
pub use queue::{Entries, Queue, Ticket};
pub use unmap::{Port, Submitted, Taken, commands};

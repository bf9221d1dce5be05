//! What the benchmarks measure one by one, and what they build other schemes from. No part of the interface: anything here may change.

mod unmap;

pub use unmap::{Port, Submitted, Taken, commands};

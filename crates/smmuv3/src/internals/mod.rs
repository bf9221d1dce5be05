//! What the benchmarks measure one by one, and what they build other schemes from. No part of the interface: anything here may change.

pub mod queue;

//! placeholder
#![no_std]
extern crate alloc;
pub mod arch;
mod invs;
mod pgtable;
pub mod platform;
mod rcu;
mod shared;
#[cfg(test)]
mod testing;

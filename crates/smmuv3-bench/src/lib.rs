//! What the driver costs, beside other ways to do the same work, on the same queues and the same model.
//!
//! Every module measures one part and returns [`Figure`]s. A time alone says little on a machine that others use, too: what is
//! compared is a ratio of two times that were taken in turns, in one run ([`in_turns`]), or a number of instructions.

pub mod array;
pub mod baseline;
mod figure;
pub mod host;
pub mod instructions;
pub mod machine;
pub mod queue;
pub mod section;
pub mod table;
mod timing;
pub mod unmap;

pub use figure::{Bound, Curve, Figure, Results};
pub use timing::{Effort, in_turns, nanos_each};

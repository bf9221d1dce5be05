//! records, translation table descriptors. No state, no allocation, no access to hardware.
//!
//! Structures come in pairs: a `Raw…` type that is just the words in memory, and a typed one in which nothing
//! meaningless can be said. `encode` goes one way, `decode` the other, and `decode` names what is illegal.
//!
//! Bit numbers stand here as they do in the Arm SMMU architecture specification, IHI 0070, one struct for each 64-bit
//! word: word *n* of a structure holds its bits `64n + 63 : 64n`.

pub mod regs;

mod cd;
mod cmd;
mod desc;
mod event;
mod features;
mod geometry;
mod ste;

pub use cd::{BadCd, Cd, L1Cd, RawCd};
pub(crate) use cmd::op;
pub use cmd::{ATC_INV_ALL, Command, IllegalCommand, RawCommand, SyncSignal, TlbiAddr, TlbiRange};
pub use desc::{Desc, DescKind, MAIR, Prot, Stage};
pub use event::{Access, Class, Event, FaultStage, Fetch, Ipa, RawEvent, Rights, Stream, TranslationFault};
pub use features::{AddrSize, Features, Granule, IdRegs, StallModel};
pub use geometry::{BadShape, Shape};
pub use ste::{
    BadSte, CdFormat, DefaultSubstream, Eats, L1Std, RawSte, Stages, Ste, SteStage1, SteStage2, StreamWorld,
};

/// Non-secure StreamIDs have at most 32 bits, SubstreamIDs (PCIe: PASIDs) at most 20.
pub const SSID_MAX_BITS: u8 = 20;

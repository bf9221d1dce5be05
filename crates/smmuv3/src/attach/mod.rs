//! Attaching devices and PASIDs to domains: the one sequence behind all of it.
//!
//! 1. Decide ATS, and turn it on in the device if it goes on: while the STE says no, the device gets no translation. It does not go on while
//!    anybody stays attached who was attached without it.
//! 2. Merge the device's entries into the new domain's array. Everything that may fail for want of memory happens up to here, and leaves no trace.
//! 3. Publish the merged array: from now on both domains invalidate for the device. With ATS, a grace period: the device's ATC must not be filled
//!    from a TLB entry that a thread with the old array is still invalidating.
//! 4. Write CD and STE, CFGI, SYNC: the device changes over.
//! 5. Settle the ATC. If ATS stays on, what the device remembers of the old domain is flushed.
//! 6. Unref the device's entries from the old domain's array. Where that was the last user of a tag, the tag is flushed before
//!    it can be given out again.
//! 7. A grace period, after which nobody is still sending ATC_INV for the old domain. If ATS goes off, only now: a last flush, and ATS
//!    is turned off in the device. No ATC_INV ever reaches a function whose ATS is off, which may never answer.
//! 8. Drop trash if there is much of it, and free superseded arrays.
//!
//! Detaching has no steps 1 to 3, and what is left cannot fail for memory. What can always fail is hardware. Then nothing is given back: the
//! entries stay in the arrays, the domains' tables are never freed, the tags never reused, and the device is *broken*.

mod ats;
mod device;
mod error;
mod pasid;
mod write;

pub use device::Device;
pub(crate) use device::{DeviceInner, MAX_STREAMS, check_compatible};
pub use error::{AttachError, Unconfirmed};
pub use pasid::{PasidDomain, ReleaseError};

//! Attaching a device: the one sequence behind attach, identity and detach.
//!
//! 1. Merge the device's entry into the new domain's array. Everything that may fail for want of memory happens here, and leaves no trace.
//! 2. Publish the merged array: from now on both domains invalidate for the device.
//! 3. Write CD and STE, CFGI, SYNC: the device changes over.
//! 4. Unref the device's entry from the old domain's array. Where that was the last user of a tag, the tag is flushed before
//!    it can be given out again.
//! 5. Drop trash if there is much of it, and free superseded arrays after a grace period.
//!
//! Detaching has no step 1 or 2, and what is left cannot fail for memory. What can always fail is hardware. Then nothing is given back: the
//! entries stay in the arrays, the domains' tables are never freed, the tags never reused, and the device is *broken*.

use allocator_api2::boxed::Box;
use arrayvec::ArrayVec;
use core::fmt;
use lock_api::Mutex;

use crate::arch::{
    Cd, Command, DefaultSubstream, Eats, MAIR, RawCd, Stage, Stages, StallModel, Ste, SteStage1, SteStage2, StreamWorld,
};
use crate::domain::{Paging, PagingDomain};
use crate::invalidate::flush_tag;
use crate::invs::{InvArray, Key, NotPresent};
use crate::platform::Platform;
use crate::queue::QueueError;
use crate::rcu::Retired;
use crate::shared::Shared;
use crate::smmu::{Fleet, Smmu, SmmuId};
use crate::table::{self, CdTable};

/// StreamIDs that a device can have.
pub(crate) const MAX_STREAMS: usize = 16;

/// Why a device was not attached. Unless it says otherwise, it is attached to what it was attached to before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The domain needs something that the device's SMMU does not have.
    #[error("{smmu} can't serve the domain: {feature}: the domain needs {needs}, the SMMU has {has}")]
    Incompatible {
        /// The SMMU.
        smmu: SmmuId,
        /// The feature.
        feature: &'static str,
        /// What the domain needs.
        needs: u64,
        /// What the SMMU has.
        has: u64,
    },
    /// The domain belongs to another `Iommu`.
    #[error("the domain belongs to another Iommu than the device")]
    OtherIommu,
    /// All ASIDs or VMIDs of the SMMU are in use.
    #[error("{smmu}: all tags for {stage} domains are in use")]
    NoTag {
        /// The SMMU.
        smmu: SmmuId,
        /// Stage 1 domains need an ASID, stage 2 domains a VMID.
        stage: Stage,
    },
    /// No memory for the invalidation array.
    #[error("out of memory")]
    NoMemory,
    /// The SMMU did not carry out what was asked of it.
    #[error(transparent)]
    Hardware(#[from] Unconfirmed),
}

/// The SMMU did not confirm a change of a device's configuration: **the device may still reach what it could reach before.**
///
/// The device is broken: it can be attached to nothing any more, and the memory of the domains concerned is never freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{smmu}, StreamID {sid:#x}: the change of configuration was not confirmed: {cause}")]
pub struct Unconfirmed {
    /// The SMMU.
    pub smmu: SmmuId,
    /// The device's first StreamID.
    pub sid: u32,
    /// What went wrong.
    pub cause: QueueError,
}

/// A device behind an SMMU. Blocked until it is attached; dropping it detaches it and gives its StreamIDs back.
pub struct Device<P: Platform> {
    fleet: Shared<Fleet<P>>,
    smmu: Shared<Smmu<P>>,
    /// Sorted, each claimed in the stream table.
    sids: ArrayVec<u32, MAX_STREAMS>,
    state: Mutex<P::RawMutex, State<P>>,
}

struct State<P: Platform> {
    /// The device's own CD table, where the SMMU has stage 1.
    cds: Option<CdTable<P>>,
    attached: Attached<P>,
    broken: Option<Unconfirmed>,
}

/// What a device is attached to.
enum Attached<P: Platform> {
    Blocked,
    Identity,
    /// The domain, with the key that stands for this device in its array.
    Paging(Shared<Paging<P>>, Key),
}

impl<P: Platform> Device<P> {
    /// A blocked device. Its StreamIDs are claimed, their STEs abort.
    pub(crate) fn new(
        fleet: Shared<Fleet<P>>,
        smmu: Shared<Smmu<P>>,
        sids: ArrayVec<u32, MAX_STREAMS>,
        cds: Option<CdTable<P>>,
    ) -> Self {
        let state = State { cds, attached: Attached::Blocked, broken: None };
        Device { fleet, smmu, sids, state: Mutex::new(state) }
    }

    /// The SMMU that the device is behind.
    pub fn smmu(&self) -> SmmuId {
        self.smmu.id
    }

    /// The device's StreamIDs, in order.
    pub fn streams(&self) -> &[u32] {
        &self.sids
    }

    /// Attaches the device to a domain: its accesses are translated by the domain's table.
    pub fn attach(&self, domain: &PagingDomain<P>) -> Result<(), AttachError> {
        let _turn = self.fleet.attach.lock();
        let mut state = self.state.lock();
        state.check()?;
        let domain = &domain.0;
        self.check_compatible(domain)?;

        let smmu = &self.smmu;
        let tags = match domain.table.shape().stage() {
            Stage::S1 => &smmu.asids,
            Stage::S2 => &smmu.vmids,
        };
        let found = domain.tag(smmu.id.index());
        let key = match found {
            Some(key) => key,
            None => {
                let stage = domain.table.shape().stage();
                let tag = tags.lock().take().ok_or(AttachError::NoTag { smmu: smmu.id, stage })?;
                Key::new(smmu.id.index(), domain.tag_kind(), tag.into(), 0)
            }
        };
        let merged = domain.invs.load().merge(&[key]).and_then(Box::try_new);
        let Ok(merged) = merged else {
            if found.is_none() {
                tags.lock().give_back(key.id() as u16);
            }
            return Err(AttachError::NoMemory);
        };
        let superseded = domain.invs.publish(merged);

        let written = self.write_paging(&state, domain, key);
        self.change_over(&mut state, written, Attached::Paging(domain.clone(), key), Some(superseded))?;
        Ok(())
    }

    /// Lets the device's accesses pass untranslated. Allocates nothing.
    pub fn attach_identity(&self) -> Result<(), Unconfirmed> {
        self.leave_to(Ste::Bypass, Attached::Identity)
    }

    /// Detaches the device: every access is aborted. Needs no memory, and happens whatever is returned.
    ///
    /// An error says that the SMMU did not confirm it: the device may still reach the domain's pages.
    pub fn detach(&self) -> Result<(), Unconfirmed> {
        self.leave_to(Ste::Abort, Attached::Blocked)
    }

    fn leave_to(&self, ste: Ste, to: Attached<P>) -> Result<(), Unconfirmed> {
        let _turn = self.fleet.attach.lock();
        let mut state = self.state.lock();
        state.check()?;
        let written = self.write_stes(ste).and_then(|()| match state.attached {
            // Nothing reaches the CD any more; it must not point to tables that are freed one day.
            Attached::Paging(..) => self.write_cd(&state, RawCd::default()),
            _ => Ok(()),
        });
        self.change_over(&mut state, written, to, None)
    }

    /// Steps 4 and 5, or what is left to do if step 3 failed.
    fn change_over(
        &self,
        state: &mut State<P>,
        written: Result<(), QueueError>,
        to: Attached<P>,
        superseded: Option<Retired<InvArray>>,
    ) -> Result<(), Unconfirmed> {
        if let Err(cause) = written {
            let unconfirmed = Unconfirmed { smmu: self.smmu.id, sid: self.sids[0], cause };
            // An SMMU that comes back to life shall find the device blocked. Whether it has seen it, nobody can know now.
            let _ = self.write_stes(Ste::Abort);
            for attached in [&state.attached, &to] {
                if let Attached::Paging(domain, _) = attached {
                    domain.table.keep_forever();
                }
            }
            state.broken = Some(unconfirmed);
            Retired::free(&self.fleet.rcu, [superseded]);
            return Err(unconfirmed);
        }
        let purged = match core::mem::replace(&mut state.attached, to) {
            Attached::Paging(old, key) => self.leave(&old, key),
            Attached::Blocked | Attached::Identity => None,
        };
        Retired::free(&self.fleet.rcu, [superseded, purged]);
        Ok(())
    }

    /// Takes one user of `key` from the array of a domain that the device has left. Returns the array's old version if it was purged.
    fn leave(&self, domain: &Paging<P>, key: Key) -> Option<Retired<InvArray>> {
        let array = domain.invs.load();
        let result = array.unref(&[key], |key| self.flush_and_free(domain, key));
        // The entry was merged when the device was attached.
        debug_assert_eq!(result, Ok::<(), NotPresent>(()));
        let (len, trash) = array.counts();
        let purged = if trash * 2 > len { array.purge().ok().flatten() } else { None };
        drop(array);
        // Without memory the trash simply stays.
        let purged = Box::try_new(purged?).ok()?;
        Some(domain.invs.publish(purged))
    }

    /// The tag rule: a tag that stands in no array is clean before it is given out again.
    fn flush_and_free(&self, domain: &Paging<P>, key: Key) {
        let tags = match domain.table.shape().stage() {
            Stage::S1 => &self.smmu.asids,
            Stage::S2 => &self.smmu.vmids,
        };
        match self.smmu.run([flush_tag(key)]) {
            Ok(()) => tags.lock().give_back(key.id() as u16),
            // No stream uses the tag, which the SMMU has confirmed; but walks under it may be cached, so neither it nor the tables
            // are ever used again.
            Err(_) => domain.table.keep_forever(),
        }
    }

    fn check_compatible(&self, domain: &Paging<P>) -> Result<(), AttachError> {
        if !domain.fleet.same(&self.fleet) {
            return Err(AttachError::OtherIommu);
        }
        let features = &self.smmu.features;
        let shape = domain.table.shape();
        let has_stage = match shape.stage() {
            Stage::S1 => features.stage1,
            Stage::S2 => features.stage2,
        };
        let stage = match shape.stage() {
            Stage::S1 => "stage 1 (IDR0.S1P)",
            Stage::S2 => "stage 2 (IDR0.S2P)",
        };
        let oas = features.used_oas().bits();
        for (fits, feature, needs, has) in [
            (has_stage, stage, 1, 0),
            (
                features.granule(shape.granule()),
                "granule in KiB (IDR5.GRAN)",
                shape.granule().size() >> 10,
                // Those the SMMU has, added up: 4, 16, 64.
                features.granules.iter().zip([4, 16, 64]).map(|(has, size)| u64::from(*has) * size).sum(),
            ),
            (
                shape.output_size().bits() <= oas,
                "output address bits (IDR5.OAS)",
                shape.output_size().bits().into(),
                oas.into(),
            ),
        ] {
            if !fits {
                return Err(AttachError::Incompatible { smmu: self.smmu.id, feature, needs, has });
            }
        }
        Ok(())
    }

    fn write_paging(&self, state: &State<P>, domain: &Paging<P>, key: Key) -> Result<(), QueueError> {
        let shape = domain.table.shape();
        let tag = key.id() as u16;
        let was_stage1 = matches!(&state.attached, Attached::Paging(old, _) if old.table.shape().stage() == Stage::S1);
        match shape.stage() {
            Stage::S1 => {
                let Some(cds) = &state.cds else { return Ok(()) };
                let (context_ptr, format, cd_max) = cds.pointer();
                let cd = Cd {
                    t0sz: shape.t0sz(),
                    granule: shape.granule(),
                    output_size: shape.output_size(),
                    ttb0: Some(domain.table.root()),
                    asid: tag,
                    private_asid: true,
                    mair: MAIR,
                    record: true,
                    stall: false,
                    abort: true,
                };
                // If the STE points here already, this is the change; if not, the next line is.
                self.write_cd(state, cd.encode())?;
                self.write_stes(Ste::Translate {
                    vmid: 0,
                    eats: Eats::Off,
                    stages: Stages::S1(SteStage1 {
                        context_ptr,
                        cd_max,
                        format,
                        default_substream: DefaultSubstream::Substream0,
                        world: StreamWorld::El1,
                        stall_disabled: self.smmu.features.stall_model == StallModel::Both,
                    }),
                })
            }
            Stage::S2 => {
                self.write_stes(Ste::Translate {
                    vmid: tag,
                    eats: Eats::Off,
                    stages: Stages::S2(SteStage2 {
                        t0sz: shape.t0sz(),
                        sl0: shape.sl0(),
                        granule: shape.granule(),
                        output_size: shape.output_size(),
                        ttb: domain.table.root(),
                        record: true,
                        stall: false,
                        protected_walk: true,
                    }),
                })?;
                if was_stage1 { self.write_cd(state, RawCd::default()) } else { Ok(()) }
            }
        }
    }

    /// Brings the STEs of all the device's streams to `ste`.
    fn write_stes(&self, ste: Ste) -> Result<(), QueueError> {
        let streams = self.smmu.streams.lock();
        for &sid in &self.sids {
            if let Some(words) = streams.ste(sid) {
                let sync = || self.smmu.run([Command::CfgiSte { sid, leaf: true }]);
                table::write(&self.fleet.platform, words, ste.encode(), sync)?;
            }
        }
        Ok(())
    }

    /// Brings the CD of traffic without a SubstreamID to `cd`.
    fn write_cd(&self, state: &State<P>, cd: RawCd) -> Result<(), QueueError> {
        let Some(words) = state.cds.as_ref().and_then(|cds| cds.cd(0)) else { return Ok(()) };
        let sync = || self.smmu.run(self.sids.iter().map(|&sid| Command::CfgiCd { sid, ssid: 0, leaf: true }));
        table::write(&self.fleet.platform, words, cd, sync)?;
        Ok(())
    }
}

impl<P: Platform> State<P> {
    fn check(&self) -> Result<(), Unconfirmed> {
        self.broken.map_or(Ok(()), Err)
    }
}

impl<P: Platform> Drop for Device<P> {
    fn drop(&mut self) {
        let gone = self.detach().is_ok() && {
            let _turn = self.fleet.attach.lock();
            self.write_stes(Ste::Invalid).is_ok()
        };
        if gone {
            let mut streams = self.smmu.streams.lock();
            self.sids.iter().for_each(|&sid| streams.release(sid));
        } else if let Some(cds) = self.state.get_mut().cds.take() {
            // The SMMU may still read it; its StreamIDs stay claimed.
            core::mem::forget(cds);
        }
    }
}

impl<P: Platform> fmt::Debug for Device<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}, StreamIDs {:#x?})", self.smmu.id, self.sids.as_slice())
    }
}

//! A guest's SMMU: it owns a VMID on one SMMU, and carries out the guest's invalidation commands.
//!
//! A guest's command is read into its typed form, checked against a list, and written anew with the vSMMU's VMID and the host's StreamIDs: nothing
//! that the guest wrote reaches the host's queue as it was.

use crate::primitive::{AtomicBool, Ordering};

use allocator_api2::vec::Vec;
use lock_api::Mutex;

use super::{GuestSte, GuestSteError, Nested, NestedDomain, Paging, PagingDomain};
use crate::arch::{Command, Granule, IllegalCommand, RawCommand, RawSte, Stage, SyncSignal, TlbiAddr};
use crate::attach::{Device, DeviceInner};
use crate::platform::Platform;
use crate::queue::QueueError;
use crate::shared::Shared;
use crate::smmu::{Fleet, Smmu, SmmuId};

/// A guest's view of one SMMU. Cheap to clone; all clones are the same.
pub struct VSmmu<P: Platform>(pub(crate) Shared<VSmmuInner<P>>);

pub(crate) struct VSmmuInner<P: Platform> {
    fleet: Shared<Fleet<P>>,
    pub(crate) smmu: Shared<Smmu<P>>,
    pub(crate) parent: Shared<Paging<P>>,
    pub(crate) vmid: u16,
    /// A flush of the VMID failed: it is flushed before each use, and never given out again.
    pub(crate) dirty: AtomicBool,
    /// The guest's StreamIDs.
    streams: Mutex<P::RawMutex, Streams<P>>,
}

/// Guest StreamIDs, sorted, and the devices that they mean.
type Streams<P> = Vec<(u32, Shared<DeviceInner<P>>)>;

/// Why there is no such vSMMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VSmmuError {
    /// The parent is not a stage 2 domain.
    #[error("the parent of a vSMMU must be a stage 2 domain")]
    NotStage2,
    /// The SMMU was removed, or belongs to another `Iommu`.
    #[error("{0} is not one of this Iommu's")]
    NotThere(SmmuId),
    /// The SMMU lacks stage 1 or stage 2.
    #[error("{0} does not have both stages of translation")]
    NoNesting(SmmuId),
    /// The SMMU can't serve the parent domain.
    #[error(transparent)]
    Incompatible(#[from] crate::attach::AttachError),
    /// All VMIDs of the SMMU are in use.
    #[error("{0}: all VMIDs are in use")]
    NoVmid(SmmuId),
    /// No memory.
    #[error("out of memory")]
    NoMemory,
}

/// Why a guest's StreamID was not mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MapStreamError {
    /// The guest's StreamID has a device already.
    #[error("guest StreamID {0:#x} is in use")]
    InUse(u32),
    /// The device is behind another SMMU.
    #[error("the device is behind {device}, the vSMMU on {vsmmu}")]
    OtherSmmu {
        /// The device's SMMU.
        device: SmmuId,
        /// The vSMMU's.
        vsmmu: SmmuId,
    },
    /// No memory.
    #[error("out of memory")]
    NoMemory,
}

/// Why a guest's batch stopped. The commands before were carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("command {index} of the guest: {cause}")]
pub struct GuestCommandError {
    /// The first command that was not carried out. With [`GuestCommandFault::Hardware`], those before may not have been either.
    pub index: usize,
    /// Why.
    pub cause: GuestCommandFault,
}

/// What is wrong with a guest's command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuestCommandFault {
    /// It is illegal on any SMMU.
    #[error(transparent)]
    Illegal(IllegalCommand),
    /// A guest may not issue it.
    #[error("CMD_{0} is not a guest's to issue")]
    Forbidden(&'static str),
    /// The SMMU would refuse it, or a field has more bits than the SMMU has.
    #[error("{0} is not supported by this SMMU")]
    Unsupported(&'static str),
    /// No device has this StreamID in the guest.
    #[error("no device has guest StreamID {0:#x}")]
    NoStream(u32),
    /// The host's SMMU did not carry the batch out.
    #[error(transparent)]
    Hardware(QueueError),
}

impl<P: Platform> VSmmu<P> {
    pub(crate) fn new(
        fleet: &Shared<Fleet<P>>,
        smmu: &Shared<Smmu<P>>,
        parent: &PagingDomain<P>,
    ) -> Result<Self, VSmmuError> {
        if parent.stage() != Stage::S2 {
            return Err(VSmmuError::NotStage2);
        }
        if !smmu.features.stage1 || !smmu.features.stage2 {
            return Err(VSmmuError::NoNesting(smmu.id));
        }
        let _turn = fleet.attach.lock();
        if !fleet.has(smmu) {
            return Err(VSmmuError::NotThere(smmu.id));
        }
        crate::attach::check_compatible(fleet, smmu, &parent.0)?;
        let vmid = smmu.vmids.lock().take().ok_or(VSmmuError::NoVmid(smmu.id))?;
        smmu.users.fetch_add(1, Ordering::Relaxed);
        let inner = VSmmuInner {
            fleet: fleet.clone(),
            smmu: smmu.clone(),
            parent: parent.0.clone(),
            vmid,
            dirty: AtomicBool::new(false),
            streams: Mutex::new(Vec::new()),
        };
        // If this fails, the drop of `inner` gives the VMID back.
        Shared::try_new(inner).map(VSmmu).map_err(|_| VSmmuError::NoMemory)
    }

    /// The VMID that the guest's translations are tagged with.
    pub fn vmid(&self) -> u16 {
        self.0.vmid
    }

    /// Tells the vSMMU which device the guest knows under `guest_sid`. Commands of the guest for that StreamID reach this device's
    /// StreamIDs, as long as the device exists.
    pub fn map_stream(&self, guest_sid: u32, device: &Device<P>) -> Result<(), MapStreamError> {
        let device = &device.0;
        if !device.smmu.same(&self.0.smmu) {
            return Err(MapStreamError::OtherSmmu { device: device.smmu.id, vsmmu: self.0.smmu.id });
        }
        let mut streams = self.0.streams.lock();
        streams.retain(|(_, device)| !device.is_gone());
        match streams.binary_search_by_key(&guest_sid, |(sid, _)| *sid) {
            Ok(_) => Err(MapStreamError::InUse(guest_sid)),
            Err(place) => {
                streams.try_reserve(1).map_err(|_| MapStreamError::NoMemory)?;
                streams.insert(place, (guest_sid, device.clone()));
                Ok(())
            }
        }
    }

    /// Forgets a guest's StreamID. Returns whether there was one.
    pub fn unmap_stream(&self, guest_sid: u32) -> bool {
        let mut streams = self.0.streams.lock();
        let found = streams.binary_search_by_key(&guest_sid, |(sid, _)| *sid);
        found.is_ok_and(|place| {
            streams.remove(place);
            true
        })
    }

    /// A domain from a guest's STE, for the device that the guest wrote it for.
    ///
    /// The guest may set V, Config (abort, bypass, stage 1), S1Fmt, S1ContextPtr, S1CDMax, S1DSS, S1CIR, S1COR, S1CSH, S1STALLD and
    /// EATS (off, full); everything else must be 0. An STE that is not valid aborts.
    pub fn nested_domain(&self, guest: &RawSte) -> Result<NestedDomain<P>, GuestSteError> {
        let ste = GuestSte::new(guest, &self.0.smmu.features, self.0.parent.table.shape().input_bits())?;
        let nested = Nested { vsmmu: self.0.clone(), ste };
        Ok(NestedDomain(Shared::try_new(nested).map_err(|_| GuestSteError::NoMemory)?))
    }

    /// Carries out a guest's invalidation commands, in order, and returns when they are complete.
    ///
    /// Allowed are TLBI_NH_ALL, TLBI_NH_ASID, TLBI_NH_VA, TLBI_NH_VAA, TLBI_NSNH_ALL, ATC_INV, CFGI_CD, CFGI_CD_ALL and CMD_SYNC without a signal.
    /// They reach this vSMMU's VMID and the StreamIDs mapped into it, and nothing else.
    pub fn invalidate(&self, commands: &[RawCommand]) -> Result<(), GuestCommandError> {
        // A guest has no more commands than this in the queue at a time.
        const BATCH: usize = 32;
        for (batch, start) in commands.chunks(BATCH).zip((0..).step_by(BATCH)) {
            self.0.invalidate_some(batch, start)?;
        }
        Ok(())
    }
}

impl<P: Platform> VSmmuInner<P> {
    fn invalidate_some(&self, commands: &[RawCommand], start: usize) -> Result<(), GuestCommandError> {
        // A device whose ATS goes off, or which goes altogether, waits for this section to end: what was checked in it stays true.
        let _section = self.fleet.rcu.enter();
        let mut stopped = Ok(());
        let submitted = self.smmu.submit(|queue| {
            for (index, raw) in commands.iter().enumerate() {
                if let Err(cause) = self.translate(raw, |command| queue.push(command)) {
                    stopped = Err(GuestCommandError { index: start + index, cause });
                    return;
                }
            }
        });
        let hardware = |cause| GuestCommandError { index: start, cause: GuestCommandFault::Hardware(cause) };
        submitted.and_then(|ticket| self.smmu.wait(ticket)).map_err(hardware)?;
        stopped
    }

    /// Pushes what a guest's command means to the host.
    fn translate(&self, raw: &RawCommand, mut push: impl FnMut(Command)) -> Result<(), GuestCommandFault> {
        let vmid = self.vmid;
        let command = raw.decode().map_err(GuestCommandFault::Illegal)?;
        match command {
            Command::TlbiNhAll { .. } | Command::TlbiNsnhAll => push(Command::TlbiNhAll { vmid }),
            Command::TlbiNhAsid { asid, .. } => push(Command::TlbiNhAsid { vmid, asid: self.asid(asid)? }),
            Command::TlbiNhVa { asid, addr, .. } => {
                push(Command::TlbiNhVa { vmid, asid: self.asid(asid)?, addr: self.addr(addr)? });
            }
            Command::TlbiNhVaa { addr, .. } => push(Command::TlbiNhVaa { vmid, addr: self.addr(addr)? }),
            Command::CfgiCd { sid, ssid, leaf } => {
                let ssid = self.ssid(ssid)?;
                self.streams_of(sid, |device| {
                    device.sids.iter().for_each(|&sid| push(Command::CfgiCd { sid, ssid, leaf }));
                })?;
            }
            Command::CfgiCdAll { sid } => {
                self.streams_of(sid, |device| device.sids.iter().for_each(|&sid| push(Command::CfgiCdAll { sid })))?;
            }
            Command::AtcInv { sid, ssid, global, addr, size } => {
                if !self.smmu.features.ats {
                    return Err(GuestCommandFault::Unsupported("ATS"));
                }
                let ssid = ssid.map(|ssid| self.ssid(ssid)).transpose()?;
                let global = global && ssid.is_some();
                let size = size.max(self.smmu.ats_stu);
                self.streams_of(sid, |device| {
                    // A function whose ATS is off has nothing to forget, and may never answer.
                    if device.ats_on.load(Ordering::Acquire) {
                        let of = |&sid: &u32| Command::AtcInv { sid, ssid, global, addr, size };
                        device.sids.iter().map(of).for_each(&mut push);
                    }
                })?;
            }
            Command::Sync(SyncSignal::None) => push(Command::Sync(SyncSignal::None)),
            Command::Sync(_) => return Err(GuestCommandFault::Forbidden("SYNC with a signal")),
            other => return Err(GuestCommandFault::Forbidden(other.mnemonic())),
        }
        Ok(())
    }

    fn streams_of(&self, guest_sid: u32, each: impl FnOnce(&DeviceInner<P>)) -> Result<(), GuestCommandFault> {
        let streams = self.streams.lock();
        let place = streams.binary_search_by_key(&guest_sid, |(sid, _)| *sid);
        match place.ok().and_then(|place| streams.get(place)) {
            Some((_, device)) if !device.is_gone() => {
                each(device);
                Ok(())
            }
            _ => Err(GuestCommandFault::NoStream(guest_sid)),
        }
    }

    fn asid(&self, asid: u16) -> Result<u16, GuestCommandFault> {
        match u32::from(asid) >> self.smmu.features.asid_bits {
            0 => Ok(asid),
            _ => Err(GuestCommandFault::Unsupported("a 16-bit ASID")),
        }
    }

    fn ssid(&self, ssid: u32) -> Result<u32, GuestCommandFault> {
        match ssid >> self.smmu.features.ssid_bits {
            0 => Ok(ssid),
            _ => Err(GuestCommandFault::Unsupported("a SubstreamID of this size")),
        }
    }

    fn addr(&self, addr: TlbiAddr) -> Result<TlbiAddr, GuestCommandFault> {
        let features = &self.smmu.features;
        if let Some(range) = addr.range {
            if !features.range_inv {
                return Err(GuestCommandFault::Unsupported("range invalidation"));
            }
            if !features.granule(range.granule) {
                return Err(GuestCommandFault::Unsupported("the granule of the range"));
            }
            if range.scale > 31 || (range.ttl == 1 && range.granule == Granule::K16) {
                return Err(GuestCommandFault::Unsupported("SCALE or TTL of the range"));
            }
            // The address is aligned to the leaves that TTL names, or at least to the granule (§4.4.1.1).
            let shift = range.granule.shift();
            let levels_up = if range.ttl == 0 { 0 } else { 3 - u32::from(range.ttl) };
            if addr.addr & ((1 << (shift + levels_up * (shift - 3))) - 1) != 0 {
                return Err(GuestCommandFault::Unsupported("an address that TG and TTL do not allow"));
            }
        }
        Ok(addr)
    }
}

impl<P: Platform> Drop for VSmmuInner<P> {
    fn drop(&mut self) {
        // No device is attached through this vSMMU any more; the last one's detach flushed the VMID.
        self.smmu.users.fetch_sub(1, Ordering::Relaxed);
        if !self.dirty.load(Ordering::Relaxed) {
            self.smmu.vmids.lock().give_back(self.vmid);
        }
    }
}

impl<P: Platform> Clone for VSmmu<P> {
    fn clone(&self) -> Self {
        VSmmu(self.0.clone())
    }
}

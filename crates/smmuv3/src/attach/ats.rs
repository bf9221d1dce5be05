//! Turning ATS on and off in a device, in the order that keeps its ATC honest.

use crate::primitive::Ordering;

use crate::arch::{ATC_INV_ALL, Command};
use crate::domain::GuestSte;
use crate::platform::Platform;
use crate::queue::QueueError;

use super::device::{DeviceInner, Rid};

impl<P: Platform> DeviceInner<P> {
    /// Whether ATS shall be on. Never with an STE that lets the device bypass or that aborts: those refuse translation requests.
    pub(super) fn wants_ats(&self, rid: &Rid<P>, pasids: bool) -> bool {
        let useful = match rid {
            Rid::Paging(_) => true,
            Rid::Nested(nested) => matches!(nested.ste, GuestSte::Translate { ats: true, .. }),
            Rid::Identity | Rid::Blocked => pasids,
        };
        self.ats_capable && self.smmu.features.ats && useful
    }

    /// Whether ATS is on for a device that shall be at `rid`; turns it on if it was off. `alone` tells that nobody stays attached who was attached
    /// while it was off, and so has no entry for the device's ATC.
    pub(super) fn decide_ats(&self, rid: &Rid<P>, pasids: bool, alone: bool) -> bool {
        self.wants_ats(rid, pasids) && (self.ats_on.load(Ordering::Relaxed) || alone && self.turn_ats_on())
    }

    /// Turns ATS on in the device, whose STEs do not allow it yet, and makes its ATC forget what it may remember from before. Returns whether
    /// it is on.
    fn turn_ats_on(&self) -> bool {
        let (platform, smmu) = (&self.fleet.platform, self.smmu.id.index());
        let on = self.sids.iter().all(|&sid| platform.ats_enable(smmu, sid, self.smmu.ats_stu));
        if on && self.flush_atc(None).is_ok() {
            self.ats_on.store(true, Ordering::Release);
            return true;
        }
        self.sids.iter().for_each(|&sid| platform.ats_disable(smmu, sid));
        false
    }

    /// Turns ATS off in the device. Its STEs do not allow it any more, it stands in no array, and a grace period has passed since.
    pub(super) fn turn_ats_off(&self) {
        // Guests' ATC_INVs look at this inside a read section.
        self.ats_on.store(false, Ordering::Release);
        self.fleet.rcu.synchronize();
        // A device that does not answer is turned off all the same: the STE stops its translated accesses.
        let _ = self.flush_atc(None);
        self.sids.iter().for_each(|&sid| self.fleet.platform.ats_disable(self.smmu.id.index(), sid));
    }

    /// Makes the device forget all translations with the given PASID. Without one it forgets those of all PASIDs too: an invalidation request without
    /// PASID prefix reaches every entry of the ATC.
    pub(super) fn flush_atc(&self, ssid: Option<u32>) -> Result<(), QueueError> {
        let command = |&sid: &u32| Command::AtcInv { sid, ssid, global: false, addr: 0, size: ATC_INV_ALL };
        self.smmu.run(self.sids.iter().map(command))
    }
}

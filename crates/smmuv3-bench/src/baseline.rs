//! Two other ways to invalidate, as they are in use, over the same tables, commands, queues and model.
//!
//! - [`DeviceList`]: the domain has a list of its devices under a spinlock. An unmap invalidates the tag on one SMMU after the other and waits for each, then
//!   takes the lock, walks the list, and waits for the ATC_INVs of each SMMU.
//! - [`LockedArray`]: the domain has a sorted array like this driver's, and in it a reader-writer lock that is taken while there are devices with ATS. The
//!   walk waits wherever the SMMU changes, and wherever one kind of invalidation must come before the next.

use std::sync::RwLock;
use std::sync::atomic::{Ordering, fence};

use smmuv3::arch::RawCommand;
use smmuv3::internals::{Port, Taken, commands};
use smmuv3::platform::Iova;
use smmuv3::{Key, Kind, PagingDomain};

use crate::machine::{Host, Machine};

/// Something that takes a range of a domain away from all devices.
pub trait Scheme: Sync {
    /// Unmaps, and returns when no device can reach the range.
    fn unmap(&self, iova: Iova, len: u64);
}

/// This driver.
pub struct Ours<'a>(pub &'a PagingDomain<Host>);

impl Scheme for Ours<'_> {
    fn unmap(&self, iova: Iova, len: u64) {
        self.0.unmap(iova, len).unwrap();
    }
}

/// What a machine's domain owes, and to whom.
struct Owing<'a> {
    domain: &'a PagingDomain<Host>,
    ports: Vec<Port<Host>>,
}

impl<'a> Owing<'a> {
    fn of(machine: &'a Machine) -> (Self, Vec<Key>) {
        let mut keys = Vec::new();
        machine.domain.owed(|owed| keys.push(owed.key));
        (Owing { domain: &machine.domain, ports: machine.smmus.iter().map(Port::of).collect() }, keys)
    }

    fn port(&self, smmu: u8) -> &Port<Host> {
        self.ports.iter().find(|port| port.index() == smmu).expect("an SMMU of the machine")
    }

    /// Submits commands to an SMMU, and waits for them.
    fn carry_out(&self, smmu: u8, batch: Vec<RawCommand>) {
        let port = self.port(smmu);
        port.wait(port.submit(batch).unwrap()).unwrap();
    }
}

fn has_ats(key: &Key) -> bool {
    matches!(key.kind(), Kind::Ats | Kind::AtsFull)
}

/// A list of devices under a spinlock.
pub struct DeviceList<'a> {
    owing: Owing<'a>,
    tags: Vec<Key>,
    devices: spin::Mutex<Vec<Key>>,
}

impl<'a> DeviceList<'a> {
    /// For the machine's domain.
    pub fn new(machine: &'a Machine) -> Self {
        let (owing, keys) = Owing::of(machine);
        let (devices, tags) = keys.into_iter().partition(has_ats);
        DeviceList { owing, tags, devices: spin::Mutex::new(devices) }
    }
}

impl Scheme for DeviceList<'_> {
    fn unmap(&self, iova: Iova, len: u64) {
        let taken = Taken::of(self.owing.domain, iova, len).unwrap();
        let range = (iova.0, iova.0 + len - 1);
        for &tag in &self.tags {
            let mut batch = Vec::with_capacity(64);
            commands(self.owing.domain, self.owing.port(tag.smmu()), &[tag], range, &mut batch);
            self.owing.carry_out(tag.smmu(), batch);
        }
        fence(Ordering::SeqCst);
        let mut batches: Vec<(u8, Vec<RawCommand>)> = Vec::new();
        for &device in self.devices.lock().iter() {
            if batches.last().is_none_or(|(smmu, _)| *smmu != device.smmu()) {
                batches.push((device.smmu(), Vec::with_capacity(64)));
            }
            let (smmu, batch) = batches.last_mut().expect("pushed above");
            commands(self.owing.domain, self.owing.port(*smmu), &[device], range, batch);
        }
        for (smmu, batch) in batches {
            self.owing.carry_out(smmu, batch);
        }
        taken.retire(self.owing.domain);
    }
}

/// A sorted array with a reader-writer lock in it.
pub struct LockedArray<'a> {
    owing: Owing<'a>,
    array: RwLock<Vec<Key>>,
}

impl<'a> LockedArray<'a> {
    /// For the machine's domain.
    pub fn new(machine: &'a Machine) -> Self {
        let (owing, keys) = Owing::of(machine);
        LockedArray { owing, array: RwLock::new(keys) }
    }
}

impl Scheme for LockedArray<'_> {
    fn unmap(&self, iova: Iova, len: u64) {
        let taken = Taken::of(self.owing.domain, iova, len).unwrap();
        let range = (iova.0, iova.0 + len - 1);
        fence(Ordering::SeqCst);
        let array = self.array.read().unwrap();
        for run in array.chunk_by(|a, b| a.smmu() == b.smmu() && has_ats(a) == has_ats(b)) {
            let (smmu, mut batch) = (run[0].smmu(), Vec::with_capacity(64));
            let port = self.owing.port(smmu);
            run.iter().for_each(|&key| commands(self.owing.domain, port, &[key], range, &mut batch));
            self.owing.carry_out(smmu, batch);
        }
        drop(array);
        taken.retire(self.owing.domain);
    }
}

//! Carries out the operations.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use smmuv3::arch::{ATC_INV_ALL, Command, SyncSignal, TlbiAddr};
use smmuv3::platform::Iova;
use smmuv3::{
    AttachError, DeferLimits, Device, GuestCommandFault, MapError, PagingDomain, Unconfirmed, UnmapError, UnmapReport,
    VSmmuError,
};
use smmuv3_model::DataPages;

use super::books::{
    Area, CONTEXTS, Named, PAGE, REGION, REGION_LEN, RW, Seat, Slot, page_at, region_at, region_iovas, region_page_at,
};
use super::context::{self, Focus, Target};
use super::guest::Virtual;
use super::host::Host;
use super::lock;
use super::op::{GuestCommands, Op, REGION_PAGES, Step, Way};
use super::rng::{Rng, derive};
use super::round::Kind;
use super::world::World;

/// A place that this thread works on.
type Held<'a> = MutexGuard<'a, Option<DataPages>>;

/// An IOVA and a number of bytes.
type Range = (Iova, u64);

/// One past the last IOVA of a domain with the default geometry.
const INPUT_END: u64 = 1 << 39;

fn hold(slot: &Slot) -> Option<Held<'_>> {
    slot.try_lock().ok()
}

impl World {
    /// Carries out one step.
    pub(super) fn carry_out(&self, step: &Step) {
        self.tally.operations.fetch_add(1, Relaxed);
        // Not the numbers that the points draw.
        let rng = &mut Rng::new(derive(step.seed, 1));
        match step.op {
            Op::Map { domain, first, count } => self.map(&self.areas[domain], first, count),
            Op::Unmap { domain, first, count, way } => self.unmap_pages(&self.areas[domain], first, count, way),
            Op::MapRegion { domain, region, block } => self.map_region(&self.areas[domain], region, block),
            Op::MapPage { domain, region, page } => self.map_page(&self.areas[domain], region, page),
            Op::UnmapRegion { domain, region, way } => self.unmap_region(&self.areas[domain], region, way),
            Op::UnmapAll { domain } => self.unmap_all(domain, false),
            Op::Renew { domain } => self.unmap_all(domain, true),
            Op::Attach { device, domain } => self.attach(device, domain),
            Op::Identity { device } => {
                let identity = |device: &Device<Host>| device.attach_identity();
                self.leave(device, 0, "attach_identity", identity, rng);
            }
            Op::Detach { device } => {
                self.leave(device, 0, "detach", |device| device.detach(), rng);
            }
            Op::AttachPasid { device, pasid, domain } => self.attach_pasid(device, pasid, domain),
            Op::DetachPasid { device, pasid } => {
                let number = self.seats[device].pasids[pasid];
                self.leave(device, pasid, "detach_pasid", |device| device.detach_pasid(number), rng);
            }
            Op::AttachNested { device, guest } => self.attach_nested(device, guest),
            Op::Replug { device } => self.replug(device, rng),
            Op::Guest { guest, commands } => self.guest(guest, commands, rng),
            Op::NewGuest { guest } => self.new_guest(guest),
            Op::Dma { device, accesses } => {
                for _ in 0..accesses {
                    let target = Target { device, context: rng.below(CONTEXTS) };
                    let iova = self.bus.some_iova(rng);
                    // Whether it is mapped is for the oracle to say.
                    let _ = self.bus.access(rng, target, iova);
                }
            }
            Op::TakeEvents { smmu } => {
                let _ = self.smmus[smmu].take_events(drop);
                let errors = self.smmus[smmu].take_global_errors();
                if !errors.is_empty() {
                    self.surprise("take_global_errors", &errors);
                }
            }
        }
    }

    fn surprise(&self, what: &str, error: &dyn std::fmt::Display) {
        self.tally.surprise(format!("{what}: {error}"));
    }

    // --- map ---

    fn map(&self, area: &Area, first: usize, count: usize) {
        let mut held: Vec<(usize, Held<'_>)> =
            (first..first + count).filter_map(|page| Some((page, hold(&area.pages[page])?))).collect();
        held.retain(|(_, slot)| slot.is_none());
        let named = lock(&area.domain).clone();
        let fresh = held.iter().map_while(|(page, _)| Some((*page, self.model.alloc_data(1)?)));
        let fresh: Vec<(usize, DataPages)> = fresh.collect();
        let iovas: Vec<Iova> = fresh.iter().map(|(page, _)| page_at(*page)).collect();
        let focus = Focus { targets: self.attached_to(named.id), iovas: iovas.clone() };
        let mapped = context::focused(focus, || {
            // Neighbours in both address spaces are mapped with one call.
            let next =
                |a: &(usize, DataPages), b: &(usize, DataPages)| a.0 + 1 == b.0 && a.1.addr().0 + PAGE == b.1.addr().0;
            fresh.chunk_by(next).all(|run| {
                let (page, data) = &run[0];
                self.map_at(&named, page_at(*page), data.addr(), run.len() as u64 * PAGE)
            })
        });
        if mapped {
            for ((_, slot), (_, data)) in held.iter_mut().zip(fresh) {
                **slot = Some(data);
            }
            self.expect_reached(&named, &iovas);
        } else {
            // Some of them may be mapped.
            for ((page, mut slot), (_, data)) in held.into_iter().zip(fresh) {
                *slot = Some(data);
                self.unmap(&named, &[(page_at(page), PAGE)], Way::AtOnce, &mut [slot], &[page_at(page)], false);
            }
        }
    }

    /// False if there was no memory for a table.
    fn map_at(&self, named: &Named, iova: Iova, at: smmuv3::platform::PhysAddr, len: u64) -> bool {
        match named.domain.map(iova, at, len, RW) {
            Ok(()) => true,
            Err(MapError::NoMemory(_)) => false,
            Err(error) => {
                self.surprise("map", &error);
                false
            }
        }
    }

    fn map_region(&self, area: &Area, region: usize, with_block: bool) {
        let slots = &area.regions[region];
        let Some(mut whole) = hold(&slots.whole).filter(|slot| slot.is_none()) else { return };
        let pages: Vec<_> = slots.pages.iter().filter_map(hold).filter(|slot| slot.is_none()).collect();
        if pages.len() < slots.pages.len() {
            return;
        }
        let named = lock(&area.domain).clone();
        let align = if with_block { REGION } else { PAGE };
        let Some(data) = self.model.alloc_data_aligned(REGION_LEN, align as usize) else { return };
        let iovas = region_iovas(region);
        let focus = Focus { targets: self.attached_to(named.id), iovas: iovas.clone() };
        let mapped = context::focused(focus, || self.map_at(&named, region_at(region), data.addr(), REGION));
        *whole = Some(data);
        if mapped {
            self.expect_reached(&named, &iovas);
        } else {
            self.unmap(&named, &[(region_at(region), REGION)], Way::AtOnce, &mut [whole], &iovas, false);
        }
    }

    fn map_page(&self, area: &Area, region: usize, page: usize) {
        let slots = &area.regions[region];
        let Some(mut slot) = hold(&slots.pages[page]).filter(|slot| slot.is_none()) else { return };
        // Who maps the whole region holds all pages, so none comes now.
        if hold(&slots.whole).is_none_or(|whole| whole.is_some()) {
            return;
        }
        let named = lock(&area.domain).clone();
        let Some(data) = self.model.alloc_data(1) else { return };
        let iova = region_page_at(region, page);
        let focus = Focus { targets: self.attached_to(named.id), iovas: vec![iova] };
        let mapped = context::focused(focus, || self.map_at(&named, iova, data.addr(), PAGE));
        *slot = Some(data);
        if !mapped {
            self.unmap(&named, &[(iova, PAGE)], Way::AtOnce, &mut [slot], &[iova], false);
        }
    }

    /// Devices that are attached reach what is mapped there. The caller holds the places.
    fn expect_reached(&self, named: &Named, iovas: &[Iova]) {
        for target in self.attached_to(named.id) {
            for &iova in iovas {
                let hardware = &self.bus.devices[target.device][target.context];
                let seat = &self.seats[target.device];
                let access = || hardware.write_u64(iova, 1);
                if let Some(Err(error)) = seat.while_attached(target.context, named.id, access) {
                    self.tally
                        .surprise(format!("device {} does not reach {iova}, which is mapped: {error}", target.device));
                }
            }
        }
    }

    // --- unmap ---

    fn unmap_pages(&self, area: &Area, first: usize, count: usize, way: Way) {
        let mut held: Vec<_> = area.pages[first..first + count].iter().filter_map(hold).collect();
        if held.len() < count {
            return;
        }
        let named = lock(&area.domain).clone();
        let iovas: Vec<Iova> = (first..first + count).map(page_at).collect();
        let ranges = match way {
            Way::AtOnce => vec![(page_at(first), count as u64 * PAGE)],
            Way::Gathered | Way::Deferred => iovas.iter().rev().map(|&iova| (iova, PAGE)).collect(),
        };
        self.unmap(&named, &ranges, way, &mut held, &iovas, true);
    }

    /// Unmaps the region, also pages that another thread is just mapping: theirs may be gone then, but is not freed.
    fn unmap_region(&self, area: &Area, region: usize, way: Way) {
        let slots = &area.regions[region];
        let Some(whole) = hold(&slots.whole) else { return };
        let mut held = vec![whole];
        let mut iovas = Vec::new();
        for (page, slot) in slots.pages.iter().enumerate() {
            if let Some(slot) = hold(slot) {
                held.push(slot);
                iovas.push(region_page_at(region, page));
            }
        }
        let named = lock(&area.domain).clone();
        self.unmap(&named, &[(region_at(region), REGION)], way, &mut held, &iovas, false);
    }

    /// Unmaps everything. With `renew` a new domain takes the place of the old one, which lives for as long as devices are attached to it.
    fn unmap_all(&self, place: usize, renew: bool) {
        // A guest's own tables are mapped in its parent.
        if self.machine.is_parent(place) {
            return;
        }
        let area = &self.areas[place];
        let regions = area.regions.iter().flat_map(|region| region.pages.iter().chain([&region.whole]));
        let slots: Vec<_> = area.pages.iter().chain(regions).collect();
        let mut held: Vec<_> = slots.iter().filter_map(|slot| hold(slot)).collect();
        if held.len() < slots.len() {
            return;
        }
        let named = lock(&area.domain).clone();
        self.unmap(&named, &[(Iova(0), INPUT_END)], Way::AtOnce, &mut held, &self.bus.iovas, false);
        if renew && let Ok(new) = self.domain(place) {
            let old = std::mem::replace(&mut *lock(&area.domain), new);
            let focus = Focus { targets: self.attached_to(old.id), iovas: self.bus.iovas.clone() };
            context::focused(focus, || drop((named, old)));
        }
    }

    /// Unmaps ranges and frees what is mapped in the places that are held, which is then out of reach at `iovas`. `all`: it is all that is
    /// mapped there.
    fn unmap(&self, named: &Named, ranges: &[Range], way: Way, held: &mut [Held<'_>], iovas: &[Iova], all: bool) {
        let bytes: u64 = held.iter().filter_map(|slot| slot.as_ref()).map(DataPages::size).sum();
        let mut atcs = 0;
        named.domain.owed(|owed| atcs += u64::from(owed.key.kind() == smmuv3::Kind::Ats));
        let focus = Focus { targets: self.attached_to(named.id), iovas: iovas.to_vec() };
        iovas.first().into_iter().chain(iovas.last()).for_each(|&iova| self.bus.unmapping(iova));
        let start = Instant::now();
        let result = context::focused(focus, || unmapped(&named.domain, ranges, way));
        let time = start.elapsed();
        let report = match result {
            Ok(report) => report,
            // The pages are never freed.
            Err(error) => return self.surprise("unmap", &error),
        };
        held.iter_mut().filter_map(|slot| slot.take()).for_each(|pages| self.model.free_data(pages));
        if all && report.bytes != bytes {
            self.tally.surprise(format!("unmap found {:#x} bytes, {bytes:#x} were mapped", report.bytes));
        }
        self.expect_refused(named, iovas);
        let tally = &self.tally;
        tally.unmaps.fetch_add(1, Relaxed);
        tally.wait_rounds.fetch_add(report.wait_rounds.into(), Relaxed);
        tally.invalidations.fetch_add((report.wait_rounds > 0).into(), Relaxed);
        let len: u64 = ranges.iter().map(|(_, len)| len).sum();
        if len < INPUT_END {
            tally.atc_pages.fetch_add(atcs * len / PAGE, Relaxed);
        }
        if self.timed {
            lock(&tally.unmap_times).push(time);
        }
    }

    /// Devices that are attached do not reach what was there. The caller holds the places.
    fn expect_refused(&self, named: &Named, iovas: &[Iova]) {
        let mut rng = Rng::new(iovas.first().map_or(0, |iova| iova.0));
        for target in self.attached_to(named.id) {
            for &iova in iovas {
                let access = || self.bus.access(&mut rng, target, iova);
                self.refused(target, iova, self.seats[target.device].while_attached(target.context, named.id, access));
            }
        }
    }

    /// What came of an access that should be refused; `None` if it may pass after all.
    fn refused(&self, target: Target, iova: Iova, result: Option<Result<(), smmuv3_model::DmaError>>) {
        let Some(result) = result else { return };
        self.tally.expected.fetch_add(1, Relaxed);
        match result {
            Err(_) => drop(self.tally.refused.fetch_add(1, Relaxed)),
            Ok(()) => {
                let what = format!("device {} reaches {iova} although it was taken from it", target.device);
                self.tally.failed(Kind::Reached, what);
            }
        }
    }

    // --- attach ---

    /// Changes what a context of a device is attached to, unless another thread does so now. What `change` returns is as in [`Seat::change`].
    fn change(&self, device: usize, context: usize, id: u64, change: impl FnOnce(&Device<Host>) -> Option<u64>) {
        let seat = &self.seats[device];
        let Ok(handle) = seat.handle.try_lock() else { return };
        let Some(handle) = handle.as_ref() else { return };
        let mut targets = vec![Target { device, context }; 3];
        targets.extend((0..CONTEXTS).map(|context| Target { device, context }));
        targets.extend(self.attached_to(id));
        let focus = Focus { targets, iovas: Vec::new() };
        seat.change(context, || context::focused(focus, || change(handle)));
    }

    fn attached(&self, what: &str, result: Result<(), AttachError>, id: u64) -> Option<u64> {
        match result {
            Ok(()) => Some(id),
            Err(
                AttachError::NoTag { .. }
                | AttachError::NoMemory
                | AttachError::PasidsInUse(_)
                | AttachError::PasidInUse(_)
                | AttachError::NoPasids
                | AttachError::NotStage1,
            ) => None,
            Err(error) => {
                self.surprise(what, &error);
                Some(0)
            }
        }
    }

    fn attach(&self, device: usize, domain: usize) {
        let named = lock(&self.areas[domain].domain).clone();
        self.change(device, 0, named.id, |device| self.attached("attach", device.attach(&named.domain), named.id));
    }

    fn attach_pasid(&self, device: usize, pasid: usize, domain: usize) {
        let named = lock(&self.areas[domain].domain).clone();
        let number = self.seats[device].pasids[pasid];
        self.change(device, pasid, named.id, |device| {
            self.attached("attach_pasid", device.attach_pasid(number, &named.domain), named.id)
        });
    }

    fn attach_nested(&self, device: usize, guest: usize) {
        let guest = &self.guests[guest];
        if guest.smmu != self.seats[device].smmu {
            return;
        }
        let now = lock(&guest.now).clone();
        let parent = lock(&self.areas[guest.parent].domain).id;
        self.change(device, 0, parent, |device| {
            self.attached("attach_nested", device.attach_nested(&now.domain), parent)
        });
    }

    /// Takes a context from its domain; then it reaches nothing.
    fn leave(
        &self,
        device: usize,
        context: usize,
        what: &str,
        leave: impl FnOnce(&Device<Host>) -> Result<(), Unconfirmed>,
        rng: &mut Rng,
    ) {
        let id = self.seats[device].attached(context);
        self.change(device, context, id, |device| {
            if let Err(error) = leave(device) {
                self.surprise(what, &error);
            }
            Some(0)
        });
        let target = Target { device, context };
        for _ in 0..4 {
            let iova = rng.pick(&self.bus.iovas);
            let access = || self.bus.access(rng, target, iova);
            let seat: &Seat = &self.seats[device];
            self.refused(target, iova, seat.while_attached(context, 0, access));
        }
    }

    fn replug(&self, device: usize, rng: &mut Rng) {
        let seat = &self.seats[device];
        let Ok(mut handle) = seat.handle.try_lock() else { return };
        let early = rng.one_in(2);
        let guests = self.guests.iter().filter(|guest| guest.smmu == seat.smmu);
        let forget = || {
            guests.clone().for_each(|guest| {
                let now = lock(&guest.now).clone();
                now.vsmmu.unmap_stream(device as u32);
            });
        };
        let targets = (0..CONTEXTS).map(|context| Target { device, context }).collect();
        let focus = Focus { targets, iovas: Vec::new() };
        seat.change(0, || {
            context::focused(focus, || {
                if early {
                    forget();
                }
                drop(handle.take());
                if !early {
                    forget();
                }
                seat.forget();
                match self.iommu.add_device(&self.smmus[seat.smmu], seat.config.clone()) {
                    Ok(new) => {
                        for guest in guests.clone() {
                            let now = lock(&guest.now).clone();
                            // In use: the vSMMU is newer than the device was dropped.
                            let _ = now.vsmmu.map_stream(device as u32, &new);
                        }
                        *handle = Some(new);
                    }
                    Err(error) => self.surprise("add_device", &error),
                }
            });
            Some(0)
        });
    }

    // --- guests ---

    fn new_guest(&self, guest: usize) {
        let guest = &self.guests[guest];
        let targets = self.attached_to(lock(&self.areas[guest.parent].domain).id);
        context::focused(Focus { targets, iovas: Vec::new() }, || {
            let vsmmu = match self.vsmmu(guest.smmu, guest.parent) {
                Ok(vsmmu) => vsmmu,
                Err(VSmmuError::NoVmid(_) | VSmmuError::NoMemory) => return,
                Err(error) => return self.surprise("vsmmu", &error),
            };
            match Virtual::new(vsmmu, guest.ste()) {
                Ok(new) => {
                    let old = std::mem::replace(&mut *lock(&guest.now), new);
                    drop(old);
                }
                Err(error) => self.tally.surprise(error),
            }
        });
    }

    fn guest(&self, guest: usize, commands: GuestCommands, rng: &mut Rng) {
        let guest = &self.guests[guest];
        let on_smmu = (0..self.seats.len()).filter(|&device| self.seats[device].smmu == guest.smmu);
        let devices: Vec<usize> = on_smmu.collect();
        if devices.is_empty() {
            return;
        }
        let sid = rng.pick(&devices) as u32;
        let iova = rng.pick(&self.bus.iovas);
        let asid = guest.asid;
        let command = match commands {
            GuestCommands::ByAddress => {
                let addr = TlbiAddr { addr: iova.0, leaf: rng.one_in(2), range: None };
                Command::TlbiNhVa { vmid: 0, asid, addr }
            }
            GuestCommands::ByAsid => Command::TlbiNhAsid { vmid: 0, asid },
            GuestCommands::Everything => Command::TlbiNsnhAll,
            GuestCommands::Atc if !self.smmus[guest.smmu].features().ats => return,
            GuestCommands::Atc => {
                let size = rng.pick(&[0, ATC_INV_ALL]);
                Command::AtcInv { sid, ssid: None, global: false, addr: if size == 0 { iova.0 } else { 0 }, size }
            }
            GuestCommands::Contexts => Command::CfgiCdAll { sid },
        };
        let now = lock(&guest.now).clone();
        let targets = self.attached_to(lock(&self.areas[guest.parent].domain).id);
        let sync = Command::Sync(SyncSignal::None);
        let result = context::focused(Focus { targets, iovas: Vec::new() }, || {
            now.vsmmu.invalidate(&[command.encode(), sync.encode()])
        });
        match result {
            Ok(()) => {}
            // The device is just being dropped, or was when the vSMMU was made.
            Err(error) if matches!(error.cause, GuestCommandFault::NoStream(_)) => {}
            Err(error) => self.surprise("a guest's commands", &error),
        }
    }
}

impl Area {
    /// What is still mapped.
    pub(super) fn into_pages(self) -> impl Iterator<Item = DataPages> {
        let regions = self.regions.into_iter().flat_map(|region| region.pages.into_iter().chain([region.whole]));
        self.pages.into_iter().chain(regions).filter_map(|slot| slot.into_inner().ok().flatten())
    }
}

// A region has as many places as it has pages that are mapped one by one.
const _: () = assert!(REGION_PAGES.len() <= REGION_LEN);

fn unmapped(domain: &PagingDomain<Host>, ranges: &[Range], way: Way) -> Result<UnmapReport, UnmapError> {
    match way {
        Way::AtOnce => ranges.iter().try_fold(UnmapReport::default(), |_, &(iova, len)| domain.unmap(iova, len)),
        Way::Gathered => {
            let mut gather = domain.gather();
            ranges.iter().try_for_each(|&(iova, len)| gather.unmap(iova, len).map(|_| ()))?;
            gather.flush()
        }
        Way::Deferred => {
            let limits = DeferLimits { count: ranges.len(), age_ns: u64::MAX };
            let mut later = domain.deferred(limits, |()| ()).expect("this host does not run out of memory");
            ranges
                .iter()
                .try_for_each(|&(iova, len)| later.unmap(iova, len, ()).map(|_| ()).map_err(|not| not.cause))?;
            later.flush()
        }
    }
}

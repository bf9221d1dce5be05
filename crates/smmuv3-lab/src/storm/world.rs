//! The machine of a round, set up, and taken down again with a look at what is left.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use smmuv3::arch::{MAIR, Stage};
use smmuv3::platform::Iova;
use smmuv3::{AttachError, Device, DeviceConfig, Geometry, Iommu, SmmuHandle, SvaTable, VSmmu, VSmmuError};
use smmuv3_model::{DataPages, Model};

use super::books::{Area, CONTEXTS, Named, Seat, iovas};
use super::context::{Bus, Target};
use super::guest::Guest;
use super::host::{Host, Registers};
use super::machine::{Machine, sabotage};
use super::rng::Rng;
use super::round::Kind;
use super::tally::Tally;

const FIRST_SID: u32 = 0x100;
/// The StreamID of the device that keeps ASIDs from others.
const BALLAST_SID: u32 = 0x80;
/// Tags that are left where there are 8 bits of them: so they come round again soon.
const SPARE_TAGS: usize = 6;
const PASID_BITS: u8 = 8;

pub(super) struct World {
    pub machine: Machine,
    pub model: Model,
    pub bus: Arc<Bus>,
    pub tally: Tally,
    pub smmus: Vec<SmmuHandle<Host>>,
    pub seats: Vec<Seat>,
    pub areas: Vec<Area>,
    pub guests: Vec<Guest>,
    pub iommu: Iommu<Host>,
    /// Unmaps are timed.
    pub timed: bool,
    ballast: Vec<Ballast>,
    table: DataPages,
    next_id: AtomicU64,
}

/// Keeps most tags of an SMMU busy.
struct Ballast {
    smmu: usize,
    asids: Option<Device<Host>>,
    /// PASIDs of that device that are attached.
    pasids: u32,
    vmids: Vec<VSmmu<Host>>,
    vmids_are_few: bool,
}

fn text(what: &str) -> impl Fn(&dyn std::fmt::Display) -> String {
    move |error| format!("{what}: {error}")
}

impl World {
    /// Builds the machine. An error is a refusal of the driver.
    pub(super) fn new(machine: &Machine, timed: bool) -> Result<World, String> {
        let model = Model::new(machine.config()?);
        let iommu = Iommu::new(Host::new(&model)).map_err(|error| error.to_string())?;
        let mut smmus = Vec::new();
        for index in 0..machine.smmus {
            let options = machine.options(index);
            let added = iommu.add_smmu(Registers::new(&model, index), options);
            smmus.push(added.map_err(|error| text("add_smmu")(&error))?);
        }
        let mut world = World {
            machine: machine.clone(),
            bus: Arc::new(Bus::new(Vec::new(), iovas())),
            tally: Tally::default(),
            smmus,
            seats: Vec::new(),
            areas: Vec::new(),
            guests: Vec::new(),
            iommu,
            timed,
            ballast: Vec::new(),
            table: model.alloc_data(1).ok_or("no memory")?,
            model,
            next_id: AtomicU64::new(1),
        };
        world.add_ballast()?;
        for domain in 0..machine.domains {
            let named = Mutex::new(world.domain(domain)?);
            world.areas.push(Area { domain: named, pages: Default::default(), regions: Default::default() });
        }
        world.add_devices()?;
        for index in 0..machine.real_guests() {
            let guest = world.add_guest(index)?;
            world.guests.push(guest);
        }
        for smmu in 0..machine.smmus {
            world.model.set_commands_per_look(smmu, machine.commands_per_look(smmu));
            if let Some(name) = &machine.sabotage {
                world.model.sabotage(smmu, sabotage(name)?);
            }
        }
        Ok(world)
    }

    /// A new domain of the kind that stands at a place.
    pub(super) fn domain(&self, place: usize) -> Result<Named, String> {
        let stage = if self.machine.is_stage2(place) { Stage::S2 } else { Stage::S1 };
        let domain = self.iommu.paging_domain(stage, Geometry::default());
        let domain = domain.map_err(|error| text("paging_domain")(&error))?;
        Ok(Named { domain, id: self.next_id.fetch_add(1, Relaxed) })
    }

    /// A new vSMMU for a guest, with all devices of its SMMU that nobody works on.
    pub(super) fn vsmmu(&self, smmu: usize, parent: usize) -> Result<VSmmu<Host>, VSmmuError> {
        let domain = super::lock(&self.areas[parent].domain).domain.clone();
        let vsmmu = self.iommu.vsmmu(&self.smmus[smmu], &domain)?;
        for (index, seat) in self.seats.iter().enumerate().filter(|(_, seat)| seat.smmu == smmu) {
            if let Some(device) = seat.handle.try_lock().ok().as_deref().and_then(Option::as_ref)
                && let Err(error) = vsmmu.map_stream(index as u32, device)
            {
                self.tally.surprise(format!("map_stream: {error}"));
            }
        }
        Ok(vsmmu)
    }

    fn add_devices(&mut self) -> Result<(), String> {
        let mut devices = Vec::new();
        for index in 0..self.machine.devices {
            let (smmu, sid) = (index % self.machine.smmus, FIRST_SID + index as u32);
            // Some need a second level in their CD table.
            let (bits, last) = if index % 3 == 0 { (PASID_BITS, 70) } else { (2, 3) };
            let config = DeviceConfig::stream(sid).pasid_bits(bits);
            let config = if index % 4 == 1 { config } else { config.ats() };
            let added = self.iommu.add_device(&self.smmus[smmu], config.clone());
            let device = added.map_err(|error| text("add_device")(&error))?;
            let pasids: [u32; CONTEXTS] = [0, 1, 2, last];
            let hardware = self.model.device(smmu, sid);
            let with = |&pasid: &u32| if pasid == 0 { hardware.clone() } else { hardware.with_ssid(pasid) };
            devices.push(pasids.iter().map(with).collect());
            self.seats.push(Seat::new(smmu, config, pasids, device));
        }
        self.bus = Arc::new(Bus::new(devices, iovas()));
        Ok(())
    }

    fn add_guest(&self, index: usize) -> Result<Guest, String> {
        let smmu = index % self.machine.smmus;
        let parent = self.machine.parent(index).ok_or("there is no stage 2 domain")?;
        let domain = super::lock(&self.areas[parent].domain).domain.clone();
        let make = || self.vsmmu(smmu, parent).map_err(|error| text("vsmmu")(&error));
        Guest::new(&self.model, index, (smmu, parent), &domain, make)
    }

    /// The contexts of devices that are attached to a domain.
    pub(super) fn attached_to(&self, id: u64) -> Vec<Target> {
        let all = self.seats.iter().enumerate();
        all.flat_map(|(device, seat)| {
            let contexts = (0..CONTEXTS).filter(move |&context| seat.attached(context) == id);
            contexts.map(move |context| Target { device, context })
        })
        .collect()
    }

    // --- tags ---

    /// Where tags have 8 bits, takes all but a few.
    fn add_ballast(&mut self) -> Result<(), String> {
        let parent = self.iommu.paging_domain(Stage::S2, Geometry::default());
        let parent = parent.map_err(|error| text("paging_domain")(&error))?;
        for (smmu, handle) in self.smmus.iter().enumerate() {
            let features = *handle.features();
            let mut ballast =
                Ballast { smmu, asids: None, pasids: 0, vmids: Vec::new(), vmids_are_few: features.vmid_bits == 8 };
            // They are taken by tables for SVA, which needs coherent accesses.
            if features.asid_bits == 8 && features.coherent {
                let config = DeviceConfig::stream(BALLAST_SID).pasid_bits(PASID_BITS);
                let device = self.iommu.add_device(handle, config).map_err(|error| text("add_device")(&error))?;
                ballast.asids = Some(device);
                for _ in 0..255 - SPARE_TAGS {
                    self.take_asid(&mut ballast).map_err(|error| text("a tag")(&error))?;
                }
            }
            if ballast.vmids_are_few {
                for _ in 0..255 - SPARE_TAGS {
                    ballast.vmids.push(self.iommu.vsmmu(handle, &parent).map_err(|error| text("a tag")(&error))?);
                }
            }
            self.ballast.push(ballast);
        }
        Ok(())
    }

    fn take_asid(&self, ballast: &mut Ballast) -> Result<(), AttachError> {
        let Some(device) = &ballast.asids else { return Ok(()) };
        // No device uses these PASIDs, so nobody walks the table.
        let table = SvaTable { root: self.table.addr(), geometry: Geometry::default(), mair: MAIR };
        let domain = self.iommu.sva_domain(table).map_err(|_| AttachError::NoMemory)?;
        ballast.pasids += 1;
        device.attach_pasid(ballast.pasids, &domain)
    }

    /// With no other device attached, exactly the spare tags are free.
    fn check_tags(&mut self) {
        let mut all = std::mem::take(&mut self.ballast);
        for ballast in &mut all {
            if ballast.asids.is_some() {
                let free = (0..=SPARE_TAGS).take_while(|_| self.take_asid(ballast).is_ok()).count();
                self.check_free(ballast.smmu, "ASIDs", free);
            }
            if ballast.vmids_are_few
                && let Ok(parent) = self.iommu.paging_domain(Stage::S2, Geometry::default())
            {
                let handle = &self.smmus[ballast.smmu];
                let more = (0..=SPARE_TAGS).map_while(|_| self.iommu.vsmmu(handle, &parent).ok());
                let free = more.collect::<Vec<_>>().len();
                self.check_free(ballast.smmu, "VMIDs", free);
            }
        }
    }

    fn check_free(&self, smmu: usize, what: &str, free: usize) {
        if free != SPARE_TAGS {
            self.left(format!("SMMU {smmu} has {free} {what} left for {SPARE_TAGS} that nobody uses"));
        }
    }

    // --- the end ---

    fn left(&self, what: String) {
        self.tally.failed(Kind::Leak, what);
    }

    /// Takes everything down. Returns what was counted and what the model saw.
    pub(super) fn close(mut self) -> (Tally, smmuv3_model::Report) {
        let mut rng = Rng::new(self.machine.seed);
        // Guests first or devices first.
        let guests = std::mem::take(&mut self.guests);
        let memory: Vec<DataPages> = match rng.one_in(2) {
            true => guests.into_iter().map(Guest::into_memory).collect(),
            false => {
                self.seats.clear();
                guests.into_iter().map(Guest::into_memory).collect()
            }
        };
        self.seats.clear();
        self.all_are_refused(&mut rng);
        for (place, area) in self.areas.iter().enumerate() {
            let named = super::lock(&area.domain).clone();
            named.domain.owed(|owed| self.left(format!("domain {place} owes {owed:?} with no device left")));
        }
        // What is still mapped may go, for nobody is attached.
        let all = memory.into_iter().chain(self.areas.drain(..).flat_map(|area| area.into_pages()));
        all.for_each(|pages| self.model.free_data(pages));
        self.all_are_refused(&mut rng);
        self.check_tags();
        let World { model, tally, smmus, iommu, table, .. } = self;
        drop((smmus, iommu));
        model.free_data(table);
        for (what, pages) in [("the driver", model.driver_pages()), ("data", model.data_pages())] {
            if pages > 0 {
                tally.failed(Kind::Leak, format!("{pages} pages of {what} are never freed"));
            }
        }
        (tally, model.report())
    }

    /// No device is there for the driver any more: nothing reaches anything.
    fn all_are_refused(&self, rng: &mut Rng) {
        for (device, contexts) in self.bus.devices.iter().enumerate() {
            for context in 0..contexts.len() {
                let iova: Iova = rng.pick(&self.bus.iovas);
                self.tally.expected.fetch_add(1, Relaxed);
                match self.bus.access(rng, Target { device, context }, iova) {
                    Err(_) => drop(self.tally.refused.fetch_add(1, Relaxed)),
                    Ok(()) => {
                        self.tally.failed(Kind::Reached, format!("device {device} reaches {iova} although it is gone"))
                    }
                }
            }
        }
    }
}

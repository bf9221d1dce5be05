//! The machine that a file describes, set up: SMMUs, devices, domains, guests.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use smmuv3::arch::{AddrSize, Cd, MAIR, Prot, RawSte};
use smmuv3::platform::PhysAddr;
use smmuv3::{
    DeviceConfig, Geometry, Iommu, NestedDomain, PagingDomain, SmmuHandle, SmmuOptions, SvaDomain, SvaTable, VSmmu,
};
use toml::Spanned;

use super::books::Books;
use super::check::GUEST_INPUT_BITS;
use super::file::{Domain, DomainKind, File, GuestSte, Name, Nested};
use super::foreign::{Foreign, GuestSpace};
use super::hardware::Hardware;
use super::source::{Problem, Source};
use super::table::{Memory, Table};
use crate::report::Report;

/// Room for the events of an access that QEMU refuses, and of threads.
const EVENTQ_LOG2: u8 = 12;
/// The size of intermediate addresses in the tables that the runner makes for guests.
const GUEST_OUTPUT: AddrSize = AddrSize::from_code(4);

// A guest's STE (§5.2): V, Config, EATS.
const STE_ABORT: u64 = 0b0001;
const STE_BYPASS: u64 = 0b1001;
const STE_STAGE1: u64 = 0b1011;
const STE_EATS_FULL: u64 = 0b01 << 28;

/// A scenario's machine.
pub(super) struct Rig<'f, H: Hardware> {
    pub source: &'f Source,
    pub file: &'f File,
    pub hardware: &'f H,
    pub iommu: Iommu<H::Platform>,
    /// `None` once it is removed.
    pub smmus: Vec<Option<SmmuHandle<H::Platform>>>,
    pub devices: BTreeMap<&'f str, Device<'f, H>>,
    pub paging: BTreeMap<&'f str, PagingDomain<H::Platform>>,
    pub sva: BTreeMap<&'f str, Process<'f, H>>,
    pub vsmmus: BTreeMap<&'f str, VSmmu<H::Platform>>,
    pub nested: BTreeMap<&'f str, Guest<'f, H>>,
    /// Where buffers are that are allocated now.
    pub buffers: Mutex<BTreeMap<&'f str, PhysAddr>>,
    pub books: Mutex<Books<'f>>,
    pub tally: Mutex<Tally>,
    pub seed: u64,
    /// Patterns made so far: each is another.
    pub patterns: AtomicU64,
}

/// What was counted.
#[derive(Default)]
pub(super) struct Tally {
    pub report: Report,
    pub unmap_ns: Vec<u64>,
}

pub(super) struct Device<'f, H: Hardware> {
    /// Its index in the file.
    pub smmu: usize,
    /// As the file has them.
    pub sids: &'f [u32],
    /// `None` once it is removed.
    pub handle: Option<smmuv3::Device<H::Platform>>,
}

/// An SVA domain, with its table.
pub(super) struct Process<'f, H: Hardware> {
    pub domain: SvaDomain<H::Platform>,
    pub table: Mutex<(Table, Foreign<'f, H>)>,
}

/// A nested domain, with the guest's table if its STE has one.
pub(super) struct Guest<'f, H: Hardware> {
    pub domain: NestedDomain<H::Platform>,
    pub table: Mutex<Option<(Table, Foreign<'f, H>)>>,
}

impl<'f, H: Hardware> Rig<'f, H> {
    /// Sets up what `file` describes. What the driver refuses is told with the place where the file asks for it.
    pub(super) fn new(
        source: &'f Source,
        file: &'f File,
        hardware: &'f H,
        registers: Vec<<H::Platform as smmuv3::platform::Platform>::Mmio>,
        seed: u64,
    ) -> Result<Self, Problem> {
        let iommu = Iommu::new(hardware.platform()).map_err(|error| Problem::new(0, error))?;
        let options = SmmuOptions { eventq_log2: EVENTQ_LOG2, ..SmmuOptions::default() };
        let mut smmus = Vec::new();
        for (smmu, registers) in file.smmu.iter().zip(registers) {
            smmus.push(Some(iommu.add_smmu(registers, options).map_err(refused("SMMU", &smmu.name))?));
        }
        let report = Report {
            backend: H::NAME,
            scenario: file.name.clone(),
            seed,
            smmus: file.smmu.len() as u32,
            devices: file.device.len() as u32,
            ..Report::default()
        };
        let mut rig = Rig {
            source,
            file,
            hardware,
            iommu,
            smmus,
            devices: BTreeMap::new(),
            paging: BTreeMap::new(),
            sva: BTreeMap::new(),
            vsmmus: BTreeMap::new(),
            nested: BTreeMap::new(),
            buffers: Mutex::default(),
            books: Mutex::default(),
            tally: Mutex::new(Tally { report, unmap_ns: Vec::new() }),
            seed,
            patterns: AtomicU64::new(0),
        };
        for device in &file.device {
            rig.add_device(device).map_err(refused("device", &device.name))?;
        }
        for domain in &file.domain {
            rig.add_domain(domain).map_err(refused("domain", &domain.name))?;
        }
        for vsmmu in &file.vsmmu {
            rig.add_vsmmu(vsmmu).map_err(refused("vSMMU", &vsmmu.name))?;
        }
        for nested in &file.nested {
            rig.add_nested(nested).map_err(refused("domain", &nested.name))?;
        }
        Ok(rig)
    }

    fn smmu(&self, name: Option<&Name>) -> Result<(usize, SmmuHandle<H::Platform>), String> {
        let index = self.file.smmu_index(name);
        let handle = self.smmus.get(index).cloned().flatten();
        Ok((index, handle.ok_or("there is no such SMMU")?))
    }

    fn add_device(&mut self, device: &'f super::file::Device) -> Result<(), String> {
        let (smmu, handle) = self.smmu(device.smmu.as_ref())?;
        let sids = device.sids.get_ref();
        let mut streams = sids.iter().map(|&sid| self.hardware.sid(smmu, sid));
        let first = DeviceConfig::stream(streams.next().ok_or("it has no StreamID")?);
        let config = streams.fold(first, DeviceConfig::and_stream).pasid_bits(device.pasid_bits);
        let config = if device.ats { config.ats() } else { config };
        let handle = self.iommu.add_device(&handle, config).map_err(text)?;
        self.devices.insert(device.name.get_ref(), Device { smmu, sids, handle: Some(handle) });
        Ok(())
    }

    fn add_domain(&mut self, domain: &'f Domain) -> Result<(), String> {
        let name = domain.name.get_ref();
        let geometry = domain.geometry();
        if domain.kind != DomainKind::Sva {
            let paging = self.iommu.paging_domain(domain.stage(), geometry).map_err(text)?;
            self.paging.insert(name, paging);
            return Ok(());
        }
        let mut memory = Foreign { hardware: self.hardware, guest: None, pages: Vec::new() };
        let table = Table::new(geometry.input_bits, &mut memory)?;
        let root = PhysAddr(table.root());
        let sva = self.iommu.sva_domain(SvaTable { root, geometry, mair: MAIR }).map_err(text)?;
        self.sva.insert(name, Process { domain: sva, table: Mutex::new((table, memory)) });
        Ok(())
    }

    fn parent(&self, name: &Name) -> Result<&PagingDomain<H::Platform>, String> {
        Ok(self.paging.get(name.get_ref().as_str()).ok_or("there is no such parent")?)
    }

    fn add_vsmmu(&mut self, vsmmu: &'f super::file::VSmmu) -> Result<(), String> {
        let (_, smmu) = self.smmu(vsmmu.smmu.as_ref())?;
        let made = self.iommu.vsmmu(&smmu, self.parent(&vsmmu.parent)?).map_err(text)?;
        for stream in &vsmmu.streams {
            let device = self.devices.get(stream.device.get_ref().as_str());
            let handle = device.and_then(|device| device.handle.as_ref()).ok_or("there is no such device")?;
            made.map_stream(stream.sid, handle).map_err(text)?;
        }
        self.vsmmus.insert(vsmmu.name.get_ref(), made);
        Ok(())
    }

    fn add_nested(&mut self, nested: &'f Nested) -> Result<(), String> {
        let vsmmu = self.vsmmus.get(nested.vsmmu.get_ref().as_str()).ok_or("there is no such vSMMU")?;
        let parent = self.file.vsmmu.iter().find(|vsmmu| vsmmu.name.get_ref() == nested.vsmmu.get_ref());
        let parent = self.parent(&parent.ok_or("there is no such vSMMU")?.parent)?.clone();
        let mut ste = RawSte::default();
        let mut guest_table = None;
        match nested.ste.get_ref() {
            GuestSte::Abort => ste.0[0] = STE_ABORT,
            GuestSte::Bypass => ste.0[0] = STE_BYPASS,
            GuestSte::Stage1 => {
                let guest = Some(GuestSpace { parent, next: *nested.tables.get_ref() });
                let mut memory = Foreign { hardware: self.hardware, guest, pages: Vec::new() };
                let (context, table) = guest_stage1(nested, &mut memory)?;
                ste.0[0] = STE_STAGE1 | context;
                ste.0[1] = if nested.ats { STE_EATS_FULL } else { 0 };
                guest_table = Some((table, memory));
            }
        }
        let domain = vsmmu.nested_domain(&ste).map_err(text)?;
        self.nested.insert(nested.name.get_ref(), Guest { domain, table: Mutex::new(guest_table) });
        Ok(())
    }
}

/// Writes a guest's CD and table. Returns where the guest sees the CD, and the table.
fn guest_stage1<H: Hardware>(nested: &Nested, memory: &mut Foreign<'_, H>) -> Result<(u64, Table), String> {
    let context = memory.table_page()?;
    let mut table = Table::new(GUEST_INPUT_BITS, memory)?;
    let geometry = Geometry { input_bits: GUEST_INPUT_BITS, output_size: GUEST_OUTPUT, ..Geometry::default() };
    let cd = Cd {
        t0sz: 64 - geometry.input_bits,
        granule: geometry.granule,
        output_size: geometry.output_size,
        ttb0: Some(PhysAddr(table.root())),
        asid: nested.asid,
        private_asid: true,
        mair: MAIR,
        record: true,
        stall: false,
        abort: true,
    };
    for (word, at) in cd.encode().0.into_iter().zip((context.at.0..).step_by(8)) {
        memory.write_word(PhysAddr(at), word)?;
    }
    for mapping in &nested.mappings {
        let target = (*mapping.ipa.get_ref(), Prot::from(mapping.access));
        table.set(*mapping.iova.get_ref(), Some(target), memory)?;
    }
    Ok((context.seen, table))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A refusal of the driver, at the place of what it refused.
fn refused<E: std::fmt::Display>(what: &str, name: &Spanned<String>) -> impl FnOnce(E) -> Problem {
    move |error| Problem::new(name.span().start, format!("{what} {:?}: {error}", name.get_ref()))
}

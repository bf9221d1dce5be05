//! QEMU as a scenario's hardware: one SMMU, and an `edu` for each of up to two devices.
//!
//! An `edu` has a buffer of its own that only its DMA fills and empties. So every access that should work is a round trip: the device
//! reads what the memory holds, the memory is wiped, and the device writes it back.
//!
//! QEMU has no oracle. Freed pages are kept, filled with a pattern; a page that changes was reached too late.

use std::collections::HashMap;
use std::sync::Mutex;

use smmuv3::platform::{Iova, PhysAddr, Platform};
use smmuv3_qemu::{Edu, Machine, MachineConfig, Qemu, QemuPlatform};
use toml::Spanned;

use super::check::SILENT;
use super::file::{AccessRights, DomainKind, File};
use super::hardware::{Access, Hardware, Outcome};
use super::lock;
use super::source::Problem;
use super::step::{Action, Dma, Op, Step};
use crate::report::Report;
use crate::session::{PAGE, Result};
use crate::tap::{Reader, Tap, Tapped};

/// What there is of the machine's edu devices.
const EDUS: usize = 2;
/// `edu` drops the address bits above.
const EDU_ADDRESS_BITS: u32 = 28;
/// What freed pages are filled with.
const NOBODYS: u8 = 0xdb;
/// Of an access that should be refused. QEMU records an event for every 4 bytes.
const ATTEMPT: usize = 8;

pub(super) struct OnQemu {
    machine: Machine,
    ram: QemuPlatform,
    edus: Vec<Mutex<Edu>>,
    sids: Vec<u32>,
    tap: Option<Tap>,
    commands: Reader,
    sizes: Mutex<HashMap<PhysAddr, usize>>,
    freed: Mutex<Freed>,
}

#[derive(Default)]
struct Freed {
    pages: Vec<PhysAddr>,
    changed: u64,
    last: String,
}

/// Refuses a file that needs what QEMU, or its edu, does not have.
pub(super) fn check(file: &File) -> std::result::Result<(), Problem> {
    let needs = |at: usize, what: &str| {
        let text = format!("scenario {:?} needs {what}, which the QEMU backend does not have", file.name);
        Err(Problem::new(at, text))
    };
    if let Some(second) = file.smmu.get(1) {
        return needs(second.name.span().start, "more than one SMMU");
    }
    if let Some(smmu) = file.smmu.iter().find(|smmu| !smmu.is_plain()) {
        return needs(smmu.name.span().start, "an SMMU with chosen features");
    }
    if let Some(third) = file.device.get(EDUS) {
        return needs(third.name.span().start, "more than two devices");
    }
    for device in &file.device {
        let at = device.name.span().start;
        for (asked, what) in [
            (device.ats, "ATS"),
            (device.pasid_bits > 0, "PASIDs"),
            (device.sids.get_ref().len() > 1, "a device with two StreamIDs"),
        ] {
            if asked {
                return needs(at, what);
            }
        }
    }
    if let Some(vsmmu) = file.vsmmu.first() {
        return needs(vsmmu.name.span().start, "a vSMMU");
    }
    if let Some(sva) = file.domain.iter().find(|domain| domain.kind == DomainKind::Sva) {
        return needs(sva.name.span().start, "PASIDs");
    }
    if let Some(threads) = file.threads.first() {
        return needs(threads.group.span().start, "threads");
    }
    file.steps.iter().try_for_each(|step| match lacking(step.get_ref(), file) {
        Some(what) => needs(step.span().start, what),
        None => Ok(()),
    })
}

/// What a step needs that an edu does not have.
fn lacking(step: &Step, file: &File) -> Option<&'static str> {
    match &step.action {
        Action::Map(map) if map.access != AccessRights::Rw => Some("a device that tells what it has read"),
        Action::Dma(Dma { op: Op::Read, fault: Some(fault), .. }) if fault.get_ref() == SILENT => {
            Some("a device that tells what it has read")
        }
        Action::Dma(dma) if dma.iova.is_none() => Some("DMA to addresses of more than 28 bits"),
        Action::Dma(dma) => {
            let pages =
                |name: &Spanned<String>| file.buffer.iter().find(|buffer| buffer.name.get_ref() == name.get_ref());
            let pages = dma.buffer.as_ref().and_then(pages).map_or(1, |buffer| *buffer.pages.get_ref());
            let end = dma.iova.unwrap_or(0).saturating_add((pages * PAGE) as u64);
            (end >> EDU_ADDRESS_BITS != 0).then_some("DMA to addresses of more than 28 bits")
        }
        _ => None,
    }
}

impl OnQemu {
    pub(super) fn new(qemu: &Qemu) -> Result<Self> {
        let machine = Machine::start(qemu, MachineConfig::default())?;
        println!("QEMU {} at {}", qemu.version(), qemu.path().display());
        let ram = machine.platform().clone();
        let (tap, commands) = Tap::new(machine.smmu(), ram.clone());
        let edus = (0..EDUS as u8).map(|index| machine.edu(index)).collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(OnQemu {
            ram,
            sids: edus.iter().map(Edu::stream_id).collect(),
            edus: edus.into_iter().map(Mutex::new).collect(),
            tap: Some(tap),
            commands,
            sizes: Mutex::default(),
            freed: Mutex::default(),
            machine,
        })
    }

    /// Looks at all freed pages.
    fn look(&self) -> Result<()> {
        let mut freed = lock(&self.freed);
        let Freed { pages, changed, last } = &mut *freed;
        for &page in pages.iter() {
            let mut bytes = [0; PAGE];
            self.ram.read_bytes(page, &mut bytes)?;
            if bytes != [NOBODYS; PAGE] {
                *changed += 1;
                *last = format!("the page at {page} was written after it was freed");
                self.ram.write_bytes(page, &[NOBODYS; PAGE])?;
            }
        }
        Ok(())
    }
}

impl Hardware for OnQemu {
    type Platform = Tapped;

    const NAME: &'static str = "qemu";

    fn platform(&self) -> Tapped {
        Tapped(self.ram.clone())
    }

    fn mmio(&mut self, _smmu: usize) -> Tap {
        self.tap.take().unwrap_or_else(|| Tap::new(self.machine.smmu(), self.ram.clone()).0)
    }

    fn sid(&self, device: usize, _sid: u32) -> u32 {
        self.sids[device]
    }

    fn alloc(&self, pages: usize, align: usize) -> Option<PhysAddr> {
        let at = self.ram.dma_alloc(pages * PAGE, align)?;
        lock(&self.sizes).insert(at, pages);
        Some(at)
    }

    fn free(&self, at: PhysAddr) {
        let pages = lock(&self.sizes).remove(&at).unwrap_or(0);
        for page in (0..pages).map(|page| PhysAddr(at.0 + (page * PAGE) as u64)) {
            // Memory that was read and written before.
            let _ = self.ram.write_bytes(page, &[NOBODYS; PAGE]);
            lock(&self.freed).pages.push(page);
        }
    }

    fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()> {
        Ok(self.ram.write_bytes(at, data)?)
    }

    fn read(&self, at: PhysAddr, data: &mut [u8]) -> Result<()> {
        Ok(self.ram.read_bytes(at, data)?)
    }

    fn transfer(&self, access: &Access, at: PhysAddr, data: &mut [u8]) -> Result<Outcome> {
        let mut edu = lock(&self.edus[access.device]);
        for (number, piece) in data.chunks_mut(Edu::BUFFER_SIZE).enumerate() {
            let offset = (number * Edu::BUFFER_SIZE) as u64;
            let (at, iova) = (PhysAddr(at.0 + offset), Iova(access.iova.0 + offset));
            if access.op == Op::Write {
                self.ram.write_bytes(at, piece)?;
            }
            edu.copy_in(iova, piece.len(), 0)?;
            self.ram.write_bytes(at, &vec![0; piece.len()])?;
            edu.copy_out(iova, piece.len(), 0)?;
            if access.op == Op::Read {
                self.ram.read_bytes(at, piece)?;
            }
        }
        self.look()?;
        Ok(Outcome::Unknown)
    }

    fn attempt(&self, access: &Access) -> Result<Outcome> {
        let mut edu = lock(&self.edus[access.device]);
        match access.op {
            Op::Read => edu.copy_in(access.iova, ATTEMPT, 0)?,
            Op::Write => edu.copy_out(access.iova, ATTEMPT, 0)?,
        }
        self.look()?;
        Ok(Outcome::Unknown)
    }

    fn trouble(&self) -> (u64, String) {
        let freed = lock(&self.freed);
        (freed.changed, freed.last.clone())
    }

    fn finish(&self, report: &mut Report) -> Result<()> {
        self.look()?;
        report.stale_dma = lock(&self.freed).changed;
        report.commands = self.commands.counts();
        report.syncs = report.commands.get("SYNC").copied().unwrap_or(0);
        self.machine.error().map_or(Ok(()), |error| Err(error.into()))
    }
}

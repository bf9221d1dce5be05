//! QEMU as a scenario's hardware: one or two SMMUs, and an `edu` for each StreamID.
//!
//! An `edu` has a buffer of its own that only its DMA fills and empties. So every access that should work is a round trip: the device
//! reads what the memory holds, the memory is wiped, and the device writes it back.
//!
//! QEMU has no oracle. Freed pages are kept, filled with a pattern; a page that changes was reached too late.

mod lacks;

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use smmuv3::platform::{Iova, PhysAddr, Platform};
use smmuv3_qemu::{Edu, Machine, MachineConfig, Qemu, QemuMmio, QemuPlatform};

use super::file::File;
use super::hardware::{Access, Hardware, Outcome};
use super::lock;
use super::step::Op;
use crate::report::Report;
use crate::session::{PAGE, Result};
use crate::tap::{Reader, Tap, Tapped};

pub(super) use lacks::{check, check_version};

/// What freed pages are filled with.
const NOBODYS: u8 = 0xdb;
/// Bytes of an access that should be refused. QEMU records an event for every 4.
const ATTEMPT: usize = 8;

/// The number of the `edu` that stands for a StreamID of the file at the SMMU with an index in the file.
type Edus = BTreeMap<(usize, u32), usize>;

pub(super) struct OnQemu {
    machine: Machine,
    ram: QemuPlatform,
    smmus: Vec<QemuMmio>,
    /// Of those, what was given to the driver.
    commands: Vec<Reader>,
    /// By SMMU, and StreamID there.
    edus: BTreeMap<(usize, u32), Mutex<Edu>>,
    /// The StreamIDs at the SMMUs, by SMMU and StreamID in the file.
    sids: BTreeMap<(usize, u32), u32>,
    sizes: Mutex<HashMap<PhysAddr, usize>>,
    freed: Mutex<Freed>,
}

#[derive(Default)]
struct Freed {
    pages: Vec<PhysAddr>,
    changed: u64,
    last: String,
}

impl OnQemu {
    /// Starts a machine for a file that passed [`check`] and [`check_version`].
    pub(super) fn new(qemu: &Qemu, file: &File) -> Result<Self> {
        let places = lacks::edus(file);
        let (smmus, count) = (file.smmu.len() as u8, places.values().max().map_or(0, |most| most + 1) as u8);
        let machine = Machine::start(qemu, MachineConfig { smmus, edus: count, ..MachineConfig::default() })?;
        println!("QEMU {} at {}", qemu.version(), qemu.path().display());
        let (mut edus, mut sids) = (BTreeMap::new(), BTreeMap::new());
        for ((smmu, sid), number) in places {
            let edu = machine.edu(number as u8)?;
            sids.insert((smmu, sid), edu.stream_id());
            edus.insert((smmu, edu.stream_id()), Mutex::new(edu));
        }
        Ok(OnQemu {
            ram: machine.platform().clone(),
            smmus: (0..smmus).map(|index| machine.smmu_at(index)).collect::<std::result::Result<_, _>>()?,
            commands: Vec::new(),
            edus,
            sids,
            sizes: Mutex::default(),
            freed: Mutex::default(),
            machine,
        })
    }

    fn edu(&self, access: &Access) -> Result<&Mutex<Edu>> {
        Ok(self.edus.get(&(access.smmu, access.sid)).ok_or("there is no edu with this StreamID")?)
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

    fn mmio(&mut self, smmu: usize) -> Tap {
        let (tap, commands) = Tap::new(self.smmus[smmu].clone(), self.ram.clone());
        self.commands.push(commands);
        tap
    }

    fn sid(&self, smmu: usize, sid: u32) -> u32 {
        self.sids.get(&(smmu, sid)).copied().unwrap_or(sid)
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
        let mut edu = lock(self.edu(access)?);
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
        let mut edu = lock(self.edu(access)?);
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
        for (name, count) in self.commands.iter().flat_map(Reader::counts) {
            *report.commands.entry(name).or_default() += count;
        }
        report.syncs = report.commands.get("SYNC").copied().unwrap_or(0);
        self.machine.error().map_or(Ok(()), |error| Err(error.into()))
    }
}

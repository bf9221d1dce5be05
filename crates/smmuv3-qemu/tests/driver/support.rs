//! What the tests share.

use libtest_mimic::Failed;
use smmuv3::arch::regs::{QUEUE_BASE_ADDR, offset};
use smmuv3::arch::{Command, Event, FaultStage, Prot, RawCommand, Stage};
use smmuv3::platform::{Iova, PhysAddr, Platform};
use smmuv3::{Device, DeviceConfig, Geometry, Iommu, Kind, PagingDomain, SmmuHandle, SmmuOptions};
use smmuv3_qemu::{Edu, Machine, MachineConfig, Qemu, QemuPlatform};

pub(crate) use crate::harness::TestResult;

pub(crate) const PAGE: u64 = 0x1000;
/// Bytes of one transfer: refused, it makes few enough events.
pub(crate) const LEN: usize = 64;
pub(crate) const RW: Prot = Prot::READ.union(Prot::WRITE);

pub(crate) type Domain = PagingDomain<QemuPlatform>;

/// A machine with two `edu`, and the driver on all of its SMMUs.
pub(crate) struct Rig {
    pub(crate) iommu: Iommu<QemuPlatform>,
    pub(crate) smmus: Vec<SmmuHandle<QemuPlatform>>,
    pub(crate) machine: Machine,
}

/// An `edu`, as its own driver and as the SMMU's driver sees it.
pub(crate) struct Dma {
    pub(crate) edu: Edu,
    pub(crate) device: Device<QemuPlatform>,
}

impl Rig {
    pub(crate) fn new(qemu: &Qemu, smmus: u8) -> Result<Rig, Failed> {
        let machine = Machine::start(qemu, MachineConfig { smmus, ..MachineConfig::default() })?;
        let iommu = Iommu::new(machine.platform().clone())?;
        let smmus = (0..smmus)
            .map(|index| Ok(iommu.add_smmu(machine.smmu_at(index)?, SmmuOptions::default())?))
            .collect::<Result<_, Failed>>()?;
        Ok(Rig { iommu, smmus, machine })
    }

    pub(crate) fn ram(&self) -> &QemuPlatform {
        self.machine.platform()
    }

    /// The `edu` with the number `index`, blocked.
    pub(crate) fn dma(&self, index: u8) -> Result<Dma, Failed> {
        let edu = self.machine.edu(index)?;
        let smmu = &self.smmus[usize::from(edu.smmu())];
        let device = self.iommu.add_device(smmu, DeviceConfig::stream(edu.stream_id()))?;
        Ok(Dma { edu, device })
    }

    pub(crate) fn domain(&self, stage: Stage) -> Result<Domain, Failed> {
        Ok(self.iommu.paging_domain(stage, Geometry::default())?)
    }

    /// A page of `size` bytes at a multiple of `size`, which begins with the pattern of `seed`.
    pub(crate) fn page(&self, size: u64, seed: u64) -> Result<PhysAddr, Failed> {
        let page = self.ram().dma_alloc(size as usize, size as usize).ok_or("no DMA memory")?;
        self.fill(page, seed)?;
        Ok(page)
    }

    /// Writes the pattern of `seed` to `addr`.
    pub(crate) fn fill(&self, addr: PhysAddr, seed: u64) -> TestResult {
        Ok(self.ram().write_bytes(addr, &pattern(seed))?)
    }

    /// Fails unless the pattern of `seed` is at `addr`.
    #[track_caller]
    pub(crate) fn expect(&self, addr: PhysAddr, seed: u64) {
        let mut bytes = vec![0; LEN];
        self.ram().read_bytes(addr, &mut bytes).expect("the address is in guest RAM");
        assert!(bytes == pattern(seed), "not the pattern {seed} at {addr}: {bytes:02x?}");
    }

    /// The events that the SMMU with the number `smmu` has recorded since the last call.
    pub(crate) fn events(&self, smmu: usize) -> Vec<Event> {
        let mut events = Vec::new();
        let _ = self.smmus[smmu].take_events(|event| events.push(event));
        events
    }

    /// Fails unless there are events, and each says that `dma` was refused `iova` for want of a translation at `stage`.
    /// At stage 2, `ipa` is the address that was not mapped.
    #[track_caller]
    pub(crate) fn expect_refused(&self, dma: &Dma, iova: Iova, stage: Stage, ipa: u64) {
        let events = self.events(usize::from(dma.edu.smmu()));
        assert!(!events.is_empty(), "no event tells of {iova}");
        for event in events {
            let Event::FTranslation(stream, fault) = event else { panic!("{event}") };
            assert_eq!(stream.sid, dma.edu.stream_id(), "{event}");
            assert!((iova.0..iova.0 + LEN as u64).contains(&fault.input.0), "{event}, not {iova}");
            match fault.stage {
                FaultStage::S1 => assert_eq!(stage, Stage::S1, "{event}"),
                FaultStage::S2 { ipa: found, .. } => assert_eq!((stage, ipa), (Stage::S2, found.0), "{event}"),
            }
        }
    }

    /// Fails if an SMMU has recorded anything.
    #[track_caller]
    pub(crate) fn expect_quiet(&self) {
        for (index, smmu) in self.smmus.iter().enumerate() {
            let events = self.events(index);
            assert!(events.is_empty(), "{}: {}", smmu.id(), events[0]);
            let errors = smmu.take_global_errors();
            assert!(errors.is_empty(), "{}: {errors}", smmu.id());
        }
        assert!(self.machine.error().is_none(), "{:?}", self.machine.error());
    }

    /// Where the next command for the SMMU with the number `smmu` will stand.
    pub(crate) fn next_command(&self, smmu: u8) -> Result<u32, Failed> {
        Ok(self.machine.smmu_at(smmu)?.try_read32(offset::CMDQ_PROD)?)
    }

    /// The commands from `first` on that the SMMU with the number `smmu` was given, as they stand in its queue.
    pub(crate) fn commands(&self, smmu: u8, first: u32) -> Result<Vec<Command>, Failed> {
        let base = self.machine.smmu_at(smmu)?.try_read64(offset::CMDQ_BASE)?;
        let mask = (2u32 << (base & 31)) - 1;
        let next = self.next_command(smmu)?;
        let mut commands = Vec::new();
        let mut at = first;
        while at != next {
            let mut bytes = [0; 16];
            let place = u64::from(at & (mask >> 1)) * 16;
            self.ram().read_bytes(PhysAddr((base & QUEUE_BASE_ADDR) + place), &mut bytes)?;
            let (low, high) = bytes.split_at(8);
            let raw = RawCommand([u64::from_le_bytes(low.try_into()?), u64::from_le_bytes(high.try_into()?)]);
            commands.push(raw.decode()?);
            at = (at + 1) & mask;
        }
        Ok(commands)
    }
}

/// What `domain` owes.
pub(crate) fn owed(domain: &Domain) -> Vec<Kind> {
    let mut kinds = Vec::new();
    domain.owed(|owed| kinds.push(owed.key.kind()));
    kinds
}

/// [`LEN`] bytes that differ from one another, and from one `seed` to another.
fn pattern(seed: u64) -> Vec<u8> {
    (0..LEN as u64).map(|index| (seed.wrapping_mul(0x4f) ^ index.wrapping_mul(0x1d).wrapping_add(1)) as u8).collect()
}

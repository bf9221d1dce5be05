//! A driver made of bare hands: registers, queues, structures and tables, one step at a time, nothing automatic.
#![allow(dead_code)] // each test file uses its part

use smmuv3::arch::regs::{CmdqCons, Cr0, Gbpa, offset};
use smmuv3::arch::{
    AddrSize, Cd, CdFormat, Command, DefaultSubstream, Desc, Eats, Event, Granule, L1Std, MAIR, Prot, RawCd, RawEvent,
    RawSte, Shape, Stage, Stages, Ste, SteStage1, SteStage2, StreamWorld, SyncSignal, TlbiAddr, TlbiRange,
};
use smmuv3::platform::{Iova, Mmio, PhysAddr, Platform};
use smmuv3_model::{DataPages, Device, Laziness, Model, ModelConfig, ModelMmio, ModelPlatform, ModelSmmuConfig};

pub const RW: Prot = Prot::READ.union(Prot::WRITE);
pub const CMDQ_LOG2: u32 = 4;
pub const EVENTQ_LOG2: u32 = 2;
pub const SID: u32 = 0x18;

pub struct Rig {
    pub model: Model,
    pub platform: ModelPlatform,
    pub mmio: ModelMmio,
    pub cmdq: PhysAddr,
    pub eventq: PhysAddr,
    pub stes: PhysAddr,
}

/// A translation table.
#[derive(Clone, Copy)]
pub struct Table {
    pub root: PhysAddr,
    pub shape: Shape,
}

/// The laziest SMMU that leaves nothing to chance.
pub fn exact() -> ModelSmmuConfig {
    let laziness = Laziness {
        early_invalidations: false,
        prefetch_configs: false,
        prefetch_translations: false,
        split_entries: false,
        atc_prefetch: false,
        atc_pieces: false,
        ..Laziness::all()
    };
    ModelSmmuConfig { laziness, ..ModelSmmuConfig::default() }
}

pub fn small(config: ModelSmmuConfig) -> ModelConfig {
    ModelConfig { ram_size: 16 << 20, ..ModelConfig::with_smmu(config) }
}

impl Rig {
    /// A machine with an SMMU that is initialised and on, with a linear stream table of 64 entries.
    pub fn new() -> Rig {
        Rig::with(exact())
    }

    pub fn with(config: ModelSmmuConfig) -> Rig {
        let rig = Rig::off(config);
        rig.queues_on();
        rig.invalidate_everything();
        rig.smmu_on();
        rig
    }

    /// The same with everything still off.
    pub fn off(config: ModelSmmuConfig) -> Rig {
        let model = Model::new(small(config));
        let (platform, mmio) = (model.platform(), model.mmio(0));
        let alloc = |size: usize| {
            let addr = platform.dma_alloc(size, size).unwrap();
            (0..size as u64 / 8).for_each(|i| assert!(model.write_u64(PhysAddr(addr.0 + i * 8), 0)));
            addr
        };
        let (cmdq, eventq, stes) = (alloc(16 << CMDQ_LOG2), alloc(32 << EVENTQ_LOG2), alloc(64 << 6));
        Rig { model, platform, mmio, cmdq, eventq, stes }
    }

    pub fn cr0(&self, change: impl FnOnce(Cr0) -> Cr0) {
        let old = Cr0::new_with_raw_value(self.mmio.read32(offset::CR0));
        let new = change(old).raw_value();
        self.mmio.write32(offset::CR0, new);
        while self.mmio.read32(offset::CR0ACK) != new {}
    }

    pub fn queues_on(&self) {
        self.mmio.write64(offset::CMDQ_BASE, self.cmdq.0 | u64::from(CMDQ_LOG2));
        self.mmio.write32(offset::CMDQ_PROD, 0);
        self.mmio.write32(offset::CMDQ_CONS, 0);
        self.mmio.write64(offset::EVENTQ_BASE, self.eventq.0 | u64::from(EVENTQ_LOG2));
        self.mmio.write32(offset::EVENTQ_PROD, 0);
        self.mmio.write32(offset::EVENTQ_CONS, 0);
        self.mmio.write64(offset::GERROR_IRQ_CFG0, 0);
        self.mmio.write64(offset::EVENTQ_IRQ_CFG0, 0);
        self.cr0(|cr0| cr0.with_cmdqen(true).with_eventqen(true));
    }

    pub fn invalidate_everything(&self) {
        self.cmd(Command::CfgiSteRange { sid: 0, range: 31 });
        self.cmd(Command::TlbiNsnhAll);
        if self.model.features(0).hyp {
            self.cmd(Command::TlbiEl2All);
        }
        self.sync();
    }

    pub fn smmu_on(&self) {
        self.mmio.write64(offset::STRTAB_BASE, self.stes.0);
        self.mmio.write32(offset::STRTAB_BASE_CFG, 6);
        self.mmio.write32(offset::CR2, 0b10); // RECINVSID
        self.cr0(|cr0| cr0.with_smmuen(true));
    }

    pub fn gbpa_abort(&self, abort: bool) {
        let value = Gbpa::default().with_abort(abort).with_update(true);
        self.mmio.write32(offset::GBPA, value.raw_value());
        while Gbpa::new_with_raw_value(self.mmio.read32(offset::GBPA)).update() {}
    }

    // --- queues ---

    /// Writes a command and moves PROD.
    pub fn cmd(&self, command: Command) {
        self.raw_cmd(command.encode().0);
    }

    pub fn raw_cmd(&self, words: [u64; 2]) {
        let prod = self.mmio.read32(offset::CMDQ_PROD);
        let slot = self.cmdq.0 + u64::from(prod & ((1 << CMDQ_LOG2) - 1)) * 16;
        assert!(self.model.write_u64(PhysAddr(slot), words[0]) && self.model.write_u64(PhysAddr(slot + 8), words[1]));
        self.mmio.write32(offset::CMDQ_PROD, (prod + 1) & ((2 << CMDQ_LOG2) - 1));
    }

    pub fn cons(&self) -> CmdqCons {
        CmdqCons::new_with_raw_value(self.mmio.read32(offset::CMDQ_CONS))
    }

    pub fn sync(&self) {
        self.cmd(Command::Sync(SyncSignal::None));
        assert_eq!(self.cons().rd().value(), self.mmio.read32(offset::CMDQ_PROD), "the SYNC is consumed");
    }

    pub fn cmd_sync(&self, command: Command) {
        self.cmd(command);
        self.sync();
    }

    /// Takes one event from the queue.
    pub fn event(&self) -> Option<Event> {
        let prod = self.mmio.read32(offset::EVENTQ_PROD);
        let cons = self.mmio.read32(offset::EVENTQ_CONS);
        let mask = (2 << EVENTQ_LOG2) - 1;
        if (prod ^ cons) & mask == 0 {
            return None;
        }
        let slot = self.eventq.0 + u64::from(cons & (mask >> 1)) * 32;
        let words = [0, 8, 16, 24].map(|i| self.model.read_u64(PhysAddr(slot + i)).unwrap());
        self.mmio.write32(offset::EVENTQ_CONS, cons & !mask | (cons + 1) & mask);
        Some(RawEvent(words).decode())
    }

    // --- structures ---

    /// Zeroed memory of the driver.
    pub fn alloc(&self, size: usize) -> PhysAddr {
        let addr = self.platform.dma_alloc(size, size.next_power_of_two()).expect("there is memory");
        (0..size as u64 / 8).for_each(|i| self.word(addr.0 + i * 8, 0));
        addr
    }

    pub fn word(&self, addr: u64, value: u64) {
        assert!(self.model.write_u64(PhysAddr(addr), value));
    }

    pub fn words(&self, addr: u64, words: [u64; 8]) {
        // V comes last.
        (0..8).rev().for_each(|i| self.word(addr + i as u64 * 8, words[i]));
    }

    pub fn ste(&self, sid: u32, ste: Ste) {
        let RawSte(words) = ste.encode();
        self.words(self.stes.0 + u64::from(sid) * 64, words);
    }

    pub fn table(&self, stage: Stage, granule: Granule, bits: u8) -> Table {
        let shape = Shape::new(stage, granule, bits, AddrSize::B48).unwrap();
        Table { root: self.alloc(shape.start_size()), shape }
    }

    /// Maps one page (level 3) or block.
    pub fn map(&self, table: &Table, iova: u64, pa: PhysAddr, level: u8, prot: Prot) {
        self.set(table, iova, level, Desc::leaf(pa, level, table.shape.stage(), prot));
    }

    /// Writes the descriptor for `iova` at `level`, and those above where there are none.
    pub fn set(&self, table: &Table, iova: u64, level: u8, desc: Desc) {
        self.word(self.slot(table, iova, level).0, desc.0);
    }

    /// Where the descriptor for `iova` at `level` is; makes the tables above it where there are none.
    pub fn slot(&self, table: &Table, iova: u64, level: u8) -> PhysAddr {
        let shape = table.shape;
        let mut at = table.root.0;
        for upper in shape.start_level()..level {
            let slot = at + shape.index(iova, upper) as u64 * 8;
            let word = self.model.read_u64(PhysAddr(slot)).unwrap();
            at = match word & 1 {
                0 => {
                    let next = self.alloc(shape.granule().size() as usize);
                    self.word(slot, Desc::table(next).0);
                    next.0
                }
                _ => word & 0xffff_ffff_f000,
            };
        }
        PhysAddr(at + shape.index(iova, level) as u64 * 8)
    }

    pub fn unmap(&self, table: &Table, iova: u64, level: u8) {
        self.set(table, iova, level, Desc::INVALID);
    }

    // --- whole set-ups ---

    /// Attaches `sid` to a stage 1 table; gives the address of the CD.
    pub fn attach_s1(&self, sid: u32, table: &Table, asid: u16, vmid: u16) -> PhysAddr {
        let cd = self.alloc(64);
        self.words(cd.0, cd_of(table, asid).encode().0);
        self.ste(sid, s1_ste(cd, vmid, StreamWorld::El1));
        self.cmd_sync(Command::CfgiSte { sid, leaf: true });
        cd
    }

    pub fn attach_s2(&self, sid: u32, table: &Table, vmid: u16) {
        self.ste(sid, s2_ste(table, vmid));
        self.cmd_sync(Command::CfgiSte { sid, leaf: true });
    }

    /// Attaches `sid` with full ATS to stages whose tags are `vmid` and what the CD says, and turns ATS on.
    pub fn attach_ats(&self, sid: u32, vmid: u16, stages: Stages) {
        self.ste(sid, Ste::Translate { vmid, eats: Eats::Full, stages });
        self.cmd_sync(Command::CfgiSte { sid, leaf: true });
        assert!(self.platform.ats_enable(0, sid, 0));
    }

    /// The stage 1 half of an STE with one CD for `table`.
    pub fn one_cd(&self, table: &Table, asid: u16) -> SteStage1 {
        let cd = self.alloc(64);
        self.words(cd.0, raw_cd(table, asid).0);
        stage1(cd, StreamWorld::El1)
    }

    pub fn atschk(&self, on: bool) {
        self.cr0(|cr0| cr0.with_atschk(on));
    }

    /// Maps RAM at its own addresses in a stage 2 table, for the structures of stage 1.
    pub fn map_ram(&self, s2: &Table) {
        for addr in (0x8000_0000..0x8100_0000u64).step_by(2 << 20) {
            self.map(s2, addr, PhysAddr(addr), 2, RW);
        }
    }

    pub fn device(&self) -> Device {
        self.model.device(0, SID)
    }

    /// Frees data while a device may still reach it, and tells how many stale accesses one read makes then.
    pub fn stale_reads(&self, data: DataPages, iova: u64) -> u64 {
        self.model.free_data(data);
        let before = self.model.report().stale_dma;
        let _ = self.device().read_u64(Iova(iova));
        self.model.report().stale_dma - before
    }

    /// Two-level stream table, 64 entries below, all of 16 bits; gives the first level.
    pub fn two_level(&self) -> PhysAddr {
        let l1 = self.alloc(8 << 10);
        self.cr0(|cr0| cr0.with_smmuen(false));
        self.word(l1.0, L1Std::pointing_to(self.stes, 6).raw_value());
        self.mmio.write64(offset::STRTAB_BASE, l1.0);
        self.mmio.write32(offset::STRTAB_BASE_CFG, 1 << 16 | 6 << 6 | 16);
        self.cr0(|cr0| cr0.with_smmuen(true));
        l1
    }
}

pub fn cd_of(table: &Table, asid: u16) -> Cd {
    Cd {
        t0sz: table.shape.t0sz(),
        granule: table.shape.granule(),
        output_size: AddrSize::B48,
        ttb0: Some(table.root),
        asid,
        private_asid: true,
        mair: MAIR,
        record: true,
        stall: false,
        abort: true,
    }
}

pub fn raw_cd(table: &Table, asid: u16) -> RawCd {
    cd_of(table, asid).encode()
}

pub fn stage1(context_ptr: PhysAddr, world: StreamWorld) -> SteStage1 {
    SteStage1 {
        context_ptr,
        cd_max: 0,
        format: CdFormat::Linear,
        default_substream: DefaultSubstream::Substream0,
        world,
        stall_disabled: false,
    }
}

pub fn stage2(table: &Table) -> SteStage2 {
    SteStage2 {
        t0sz: table.shape.t0sz(),
        sl0: table.shape.sl0(),
        granule: table.shape.granule(),
        output_size: AddrSize::B48,
        ttb: table.root,
        record: true,
        stall: false,
        protected_walk: true,
    }
}

pub fn s1_ste(cd: PhysAddr, vmid: u16, world: StreamWorld) -> Ste {
    Ste::Translate { vmid, eats: Eats::Off, stages: Stages::S1(stage1(cd, world)) }
}

pub fn s2_ste(table: &Table, vmid: u16) -> Ste {
    Ste::Translate { vmid, eats: Eats::Off, stages: Stages::S2(stage2(table)) }
}

pub fn one(addr: u64, leaf: bool) -> TlbiAddr {
    TlbiAddr { addr, leaf, range: None }
}

/// `pages` of `granule`, which is `(num + 1) << scale`, with a TTL hint.
pub fn range(addr: u64, granule: Granule, num: u8, scale: u8, ttl: u8) -> TlbiAddr {
    TlbiAddr { addr, leaf: true, range: Some(TlbiRange { granule, num, scale, ttl }) }
}

//! The registers: reset values, guards, acknowledgements (§6.2, §6.3).
//!
//! What the specification calls UNKNOWN at reset is garbage here. A write that a guard forbids is ignored (the only
//! behaviour that SMMUv3.2 allows) and noted as a violation, as is everything else that no correct driver does.

use smmuv3::arch::regs::{
    CmdqError, Cr0, Cr2, EVENTQ_OVERFLOW, Gbpa, Gerror, IrqCtrl, QUEUE_BASE_ADDR, STRTAB_BASE_ADDR, StrtabBaseCfg,
    offset,
};

use crate::queue::{CMDQ, CommandQueue, Ring};
use crate::rng::Rng;
use crate::smmu::Unit;

const IDR4: usize = 0x10;
const AGBPA: usize = 0x48;
const GERROR_IRQ_CFG1: usize = 0x70;
const GERROR_IRQ_CFG2: usize = 0x74;
const EVENTQ_IRQ_CFG1: usize = 0xb8;
const EVENTQ_IRQ_CFG2: usize = 0xbc;
const PRIQ_IRQ_CFG0: usize = 0xd0;
const PRIQ_IRQ_CFG1: usize = 0xd8;
const PRIQ_IRQ_CFG2: usize = 0xdc;
const PRIQ_PROD: usize = 0x1_00c8;
const PRIQ_CONS: usize = 0x1_00cc;

/// Bits 63 and 61:56 of base registers; and 0 of `ADDR`'s neighbours below, where there are any.
const BASE_RESERVED: u64 = 1 << 63 | 0x3f << 56;

/// Polls until a late acknowledgement.
const LATE_ACK: u32 = 3;

/// All registers that hold something.
pub(crate) struct Regs {
    pub cr0: Cr0,
    pub cr0ack: Cr0,
    cr0_polls: u32,
    cr1: u32,
    pub cr2: Cr2,
    /// What governs transactions.
    pub gbpa: Gbpa,
    /// What was written last, and the polls until it takes effect.
    gbpa_next: Gbpa,
    gbpa_polls: u32,
    irq: IrqCtrl,
    pub irq_ack: IrqCtrl,
    irq_polls: u32,
    pub gerror: u32,
    pub gerrorn: u32,
    strtab_base: u64,
    strtab_cfg: u32,
    /// The Command queue, and the Enhanced ones.
    pub queues: Vec<CommandQueue>,
    pub eventq_base: u64,
    pub eventq_prod: u32,
    pub eventq_cons: u32,
    /// Address and data.
    pub gerror_irq_cfg: [u64; 2],
    /// Address and data.
    pub eventq_irq_cfg: [u64; 2],
    /// `PRIQ_BASE`, `PROD`, `CONS`, `IRQ_CFG0` to 2: storage only.
    priq: [u64; 6],
    irq_attrs: [u32; 2],
}

/// The stream table as its two registers describe it.
pub(crate) struct StreamTable {
    pub base: u64,
    /// log2 of the StreamIDs.
    pub log2: u32,
    /// StreamID bits of the second level; `None` is linear.
    pub split: Option<u8>,
}

impl Regs {
    pub(crate) fn at_reset(rng: &mut Rng, queues: usize) -> Self {
        let gbpa = Gbpa::new_with_raw_value(1 << 12);
        Regs {
            cr0: Cr0::default(),
            cr0ack: Cr0::default(),
            cr0_polls: 0,
            cr1: rng.next() as u32 & 0xfff,
            cr2: Cr2::new_with_raw_value(rng.next() as u32 & 0b111),
            gbpa,
            gbpa_next: gbpa,
            gbpa_polls: 0,
            irq: IrqCtrl::default(),
            irq_ack: IrqCtrl::default(),
            irq_polls: 0,
            gerror: 0,
            gerrorn: 0,
            strtab_base: rng.next() & STRTAB_BASE_ADDR,
            strtab_cfg: rng.next() as u32 & 0x3_07ff,
            queues: (0..queues).map(|queue| CommandQueue::at_reset(rng, queue != CMDQ)).collect(),
            eventq_base: rng.next() & (QUEUE_BASE_ADDR | 31),
            eventq_prod: rng.next() as u32 & (EVENTQ_OVERFLOW | 0xf_ffff),
            eventq_cons: rng.next() as u32 & (EVENTQ_OVERFLOW | 0xf_ffff),
            gerror_irq_cfg: [rng.next() & 0x00ff_ffff_ffff_fffc, rng.next() as u32 as u64],
            eventq_irq_cfg: [rng.next() & 0x00ff_ffff_ffff_fffc, rng.next() as u32 as u64],
            priq: [0; 6].map(|_| rng.next()),
            irq_attrs: [0; 2],
        }
    }
}

impl Unit {
    /// The stream table, with the sizes capped and the base aligned as the SMMU does it (§6.3.24, §6.3.25).
    pub(crate) fn stream_table(&self) -> StreamTable {
        let cfg = StrtabBaseCfg::new_with_raw_value(self.regs.strtab_cfg);
        let log2 = u32::from(cfg.log2size().value().min(self.features.sid_bits));
        let split = match cfg.split().value() {
            split @ (8 | 10) => split,
            _ => 6,
        };
        let split = (cfg.fmt().value() == 1 && self.features.st_two_level).then_some(split);
        let size = match split {
            None => 64u64 << log2,
            Some(split) => (8u64 << log2.saturating_sub(split.into())).max(64),
        };
        StreamTable { base: self.regs.strtab_base & STRTAB_BASE_ADDR & !(size - 1), log2, split }
    }

    fn check_stream_table(&self) {
        let cfg = StrtabBaseCfg::new_with_raw_value(self.regs.strtab_cfg);
        let table = self.stream_table();
        if table.base != self.regs.strtab_base & STRTAB_BASE_ADDR {
            self.violation(format!("STRTAB_BASE {:#x} is not aligned to the table's size", self.regs.strtab_base));
        }
        if cfg.log2size().value() > self.features.sid_bits {
            self.violation(format!("STRTAB_BASE_CFG.LOG2SIZE {} is more than IDR1.SIDSIZE", cfg.log2size().value()));
        }
        if cfg.fmt().value() != table.split.is_some().into() {
            self.violation(format!("STRTAB_BASE_CFG.FMT {} is not there", cfg.fmt().value()));
        }
        if table.split.is_some_and(|split| split != cfg.split().value()) {
            self.violation(format!("STRTAB_BASE_CFG.SPLIT {} is reserved", cfg.split().value()));
        }
        if self.memory.page(table.base).is_none() {
            self.violation(format!("STRTAB_BASE {:#x} is not in RAM", table.base));
        }
    }

    fn check_queue(&self, name: &str, base: u64, ring: &Ring, max_log2: u8) {
        if (base & 31) as u8 > max_log2 {
            self.violation(format!(
                "BASE.LOG2SIZE of {name} is {}, which is more than IDR1 allows ({max_log2})",
                base & 31
            ));
        }
        if ring.addr(0) != base & QUEUE_BASE_ADDR {
            self.violation(format!("BASE of {name} {base:#x} is not aligned to the queue's size"));
        }
    }

    /// Writes the base of a Command queue.
    pub(crate) fn set_queue_base(&mut self, queue: usize, value: u64) {
        self.regs.queues[queue].base = value & !BASE_RESERVED;
        self.check_queue(&name(queue), value, &self.ring(queue), self.features.cmdq_log2);
    }

    pub(crate) fn check_base(&self, name: &str, value: u64) {
        if value & BASE_RESERVED != 0 {
            self.violation(format!("{name} = {value:#x} has reserved bits set"));
        }
        if (value & STRTAB_BASE_ADDR) >> self.features.oas.bits() != 0 {
            self.violation(format!("{name} = {value:#x} is beyond the output address size"));
        }
    }

    /// Whether a register guarded by these bits of CR0 may be written now.
    fn unguarded(&self, name: &str, guard: Cr0) -> bool {
        let on = (self.regs.cr0.raw_value() | self.regs.cr0ack.raw_value()) & guard.raw_value() != 0;
        if on {
            self.violation(format!("{name} is written while what it configures is enabled"));
        }
        !on
    }

    pub(crate) fn bad_access(&self, kind: &str, offset: usize) {
        self.violation(format!("{kind} at offset {offset:#x}"));
    }

    pub(crate) fn read64(&mut self, at: usize) -> u64 {
        match at {
            offset::STRTAB_BASE => self.regs.strtab_base,
            offset::CMDQ_BASE => self.regs.queues[CMDQ].base,
            offset::EVENTQ_BASE => self.regs.eventq_base,
            offset::GERROR_IRQ_CFG0 => self.regs.gerror_irq_cfg[0],
            offset::EVENTQ_IRQ_CFG0 => self.regs.eventq_irq_cfg[0],
            offset::PRIQ_BASE if self.features.pri => self.regs.priq[0],
            PRIQ_IRQ_CFG0 if self.features.pri => self.regs.priq[3],
            _ => self.read_ecmdq64(at).unwrap_or_else(|| {
                self.bad_access("64-bit read", at);
                0
            }),
        }
    }

    pub(crate) fn write64(&mut self, at: usize, value: u64) {
        match at {
            offset::STRTAB_BASE => {
                self.check_base("STRTAB_BASE", value);
                if self.unguarded("STRTAB_BASE", Cr0::default().with_smmuen(true)) {
                    self.regs.strtab_base = value & (STRTAB_BASE_ADDR | 1 << 62);
                }
            }
            offset::CMDQ_BASE => {
                self.check_base("CMDQ_BASE", value);
                if self.unguarded("CMDQ_BASE", Cr0::default().with_cmdqen(true)) {
                    self.set_queue_base(CMDQ, value);
                }
            }
            offset::EVENTQ_BASE => {
                self.check_base("EVENTQ_BASE", value);
                if self.unguarded("EVENTQ_BASE", Cr0::default().with_eventqen(true)) {
                    self.regs.eventq_base = value & !BASE_RESERVED;
                    self.check_queue("EVENTQ", value, &self.eventq(), self.features.eventq_log2);
                }
            }
            offset::GERROR_IRQ_CFG0 => {
                if !self.regs.irq_ack.gerror_irqen() {
                    self.regs.gerror_irq_cfg[0] = value;
                } else {
                    self.violation("GERROR_IRQ_CFG0 is written while its interrupt is enabled".into());
                }
            }
            offset::EVENTQ_IRQ_CFG0 => {
                if !self.regs.irq_ack.eventq_irqen() {
                    self.regs.eventq_irq_cfg[0] = value;
                } else {
                    self.violation("EVENTQ_IRQ_CFG0 is written while its interrupt is enabled".into());
                }
            }
            offset::PRIQ_BASE if self.features.pri => self.regs.priq[0] = value,
            PRIQ_IRQ_CFG0 if self.features.pri => self.regs.priq[3] = value,
            _ => self.write_ecmdq64(at, value),
        }
    }

    pub(crate) fn read32(&mut self, at: usize) -> u32 {
        match at {
            offset::IDR0 => self.ids.idr0.raw_value(),
            offset::IDR1 => self.ids.idr1.raw_value(),
            offset::IDR2 | IDR4 | offset::IIDR | offset::STATUSR | AGBPA => 0,
            offset::IDR3 => self.ids.idr3.raw_value(),
            offset::IDR6 => self.ecmdqs.map_or(0, |ecmdqs| ecmdqs.idr6().raw_value()),
            offset::IDR5 => self.ids.idr5.raw_value(),
            offset::AIDR => self.ids.aidr.raw_value(),
            offset::CR0 => self.regs.cr0.raw_value(),
            offset::CR0ACK => {
                if self.regs.cr0ack != self.regs.cr0 && count_down(&mut self.regs.cr0_polls) {
                    self.update_cr0();
                }
                self.regs.cr0ack.raw_value()
            }
            offset::CR1 => self.regs.cr1,
            offset::CR2 => self.regs.cr2.raw_value(),
            offset::GBPA => {
                if self.regs.gbpa_next.update() && count_down(&mut self.regs.gbpa_polls) {
                    self.regs.gbpa_next = self.regs.gbpa_next.with_update(false);
                    self.regs.gbpa = self.regs.gbpa_next;
                }
                self.regs.gbpa_next.raw_value()
            }
            offset::IRQ_CTRL => self.regs.irq.raw_value(),
            offset::IRQ_CTRLACK => {
                if self.regs.irq_ack != self.regs.irq && count_down(&mut self.regs.irq_polls) {
                    self.regs.irq_ack = self.regs.irq;
                }
                self.regs.irq_ack.raw_value()
            }
            offset::GERROR => {
                self.look();
                self.regs.gerror
            }
            offset::GERRORN => self.regs.gerrorn,
            offset::STRTAB_BASE_CFG => self.regs.strtab_cfg,
            offset::CMDQ_PROD => self.regs.queues[CMDQ].prod,
            offset::CMDQ_CONS => {
                self.look_at(CMDQ);
                self.regs.queues[CMDQ].cons_register()
            }
            offset::EVENTQ_PROD => self.regs.eventq_prod,
            offset::EVENTQ_CONS => self.regs.eventq_cons,
            GERROR_IRQ_CFG1 => self.regs.gerror_irq_cfg[1] as u32,
            EVENTQ_IRQ_CFG1 => self.regs.eventq_irq_cfg[1] as u32,
            GERROR_IRQ_CFG2 => self.regs.irq_attrs[0],
            EVENTQ_IRQ_CFG2 => self.regs.irq_attrs[1],
            PRIQ_PROD | PRIQ_CONS | PRIQ_IRQ_CFG1 | PRIQ_IRQ_CFG2 if self.features.pri => {
                self.regs.priq[priq_slot(at)] as u32
            }
            _ => self.read_ecmdq32(at).unwrap_or_else(|| {
                self.bad_access("32-bit read", at);
                0
            }),
        }
    }

    pub(crate) fn write32(&mut self, at: usize, value: u32) {
        let on = |f: fn(Cr0) -> Cr0| f(Cr0::default());
        match at {
            offset::CR0 => self.write_cr0(value),
            offset::CR1 => {
                let tables = (self.regs.cr1 ^ value) & 0xfc0 != 0;
                let queues = (self.regs.cr1 ^ value) & 0x3f != 0;
                let tables_ok = !tables || self.unguarded("CR1.TABLE_*", on(|cr0| cr0.with_smmuen(true)));
                let all = on(|cr0| cr0.with_cmdqen(true).with_eventqen(true).with_priqen(true));
                let queues_ok = || self.ecmdqs_are_off("CR1.QUEUE_*") && self.unguarded("CR1.QUEUE_*", all);
                if tables_ok && (!queues || queues_ok()) {
                    self.regs.cr1 = value & 0xfff;
                }
            }
            offset::CR2 => {
                if self.unguarded("CR2", on(|cr0| cr0.with_smmuen(true))) {
                    self.regs.cr2 = Cr2::new_with_raw_value(value & 0b111);
                }
            }
            offset::GBPA => {
                let next = Gbpa::new_with_raw_value(value);
                if !next.update() || self.regs.gbpa_next.update() {
                    self.violation(format!("GBPA = {value:#x}: without UPDATE, or during an update"));
                } else {
                    self.regs.gbpa_next = next;
                    self.regs.gbpa_polls = self.late_ack();
                }
            }
            offset::IRQ_CTRL => {
                let known = if self.features.pri { 0b111 } else { 0b101 };
                if value & !known != 0 {
                    self.violation(format!("IRQ_CTRL = {value:#x} has reserved bits set"));
                }
                self.regs.irq = IrqCtrl::new_with_raw_value(value & known);
                self.regs.irq_polls = self.late_ack();
            }
            offset::GERRORN => {
                let active = self.regs.gerror ^ self.regs.gerrorn;
                if (value ^ self.regs.gerrorn) & !active != 0 {
                    self.violation(format!("GERRORN = {value:#x} toggles errors that are not active"));
                }
                self.regs.gerrorn = value & Gerror::all().bits();
                // What was waiting for the acknowledgement goes on by itself (§7.1).
                self.look();
            }
            offset::STRTAB_BASE_CFG => {
                if self.unguarded("STRTAB_BASE_CFG", on(|cr0| cr0.with_smmuen(true))) {
                    self.regs.strtab_cfg = value & 0x3_07ff;
                }
            }
            offset::CMDQ_PROD => {
                self.catch_up(CMDQ);
                let (on, error) = (self.regs.cr0ack.cmdqen(), self.error_active(Gerror::CMDQ_ERR));
                self.write_queue_prod(CMDQ, value, on, error);
            }
            offset::CMDQ_CONS => {
                if self.unguarded("CMDQ_CONS", on(|cr0| cr0.with_cmdqen(true))) {
                    self.regs.queues[CMDQ].cons = value & 0xf_ffff;
                    self.regs.queues[CMDQ].err = (value >> 24 & 0x7f) as u8;
                }
            }
            offset::EVENTQ_PROD => {
                if self.unguarded("EVENTQ_PROD", on(|cr0| cr0.with_eventqen(true))) {
                    self.regs.eventq_prod = value & (EVENTQ_OVERFLOW | 0xf_ffff);
                }
            }
            offset::EVENTQ_CONS => {
                let ring = self.eventq();
                let (prod, old) = (self.regs.eventq_prod, self.regs.eventq_cons);
                if self.regs.cr0ack.eventqen() && ring.distance(old, value) > ring.distance(old, prod) {
                    self.violation(format!("EVENTQ_CONS = {value:#x} goes beyond PROD {prod:#x} (it was {old:#x})"));
                }
                self.regs.eventq_cons = value & (EVENTQ_OVERFLOW | 0xf_ffff);
            }
            GERROR_IRQ_CFG1 => self.regs.gerror_irq_cfg[1] = value.into(),
            EVENTQ_IRQ_CFG1 => self.regs.eventq_irq_cfg[1] = value.into(),
            GERROR_IRQ_CFG2 => self.regs.irq_attrs[0] = value,
            EVENTQ_IRQ_CFG2 => self.regs.irq_attrs[1] = value,
            PRIQ_PROD | PRIQ_CONS | PRIQ_IRQ_CFG1 | PRIQ_IRQ_CFG2 if self.features.pri => {
                self.regs.priq[priq_slot(at)] = value.into();
            }
            _ => self.write_ecmdq32(at, value),
        }
    }

    fn write_cr0(&mut self, value: u32) {
        let known = 0b1101 | if self.features.pri { 0b10 } else { 0 } | if self.features.ats { 0b1_0000 } else { 0 };
        if value & !known != 0 {
            self.violation(format!("CR0 = {value:#x} has reserved bits set"));
        }
        let next = Cr0::new_with_raw_value(value & known);
        // A field whose last update is not acknowledged yet is left alone (§6.3.9).
        let (cr0, ack) = (self.regs.cr0.raw_value(), self.regs.cr0ack.raw_value());
        if (next.raw_value() ^ cr0) & (cr0 ^ ack) != 0 {
            self.violation(format!(
                "CR0 = {value:#x} changes fields of {cr0:#x} that CR0ACK {ack:#x} does not show yet"
            ));
        }
        if next.smmuen() && !self.regs.cr0.smmuen() {
            self.check_stream_table();
        }
        self.regs.cr0 = next;
        self.regs.cr0_polls = self.late_ack();
    }

    fn update_cr0(&mut self) {
        if self.regs.cr0ack.smmuen() && !self.regs.cr0.smmuen() {
            self.check_ats_is_off();
        }
        self.regs.cr0ack = self.regs.cr0;
        if !self.regs.cr0ack.cmdqen() {
            self.regs.queues[CMDQ].lost = false;
        }
        self.look();
    }

    /// PROD moves on by the commands that were added, at most to where the queue is full. While an error is active it
    /// may also move back, at most to CONS (§7.1).
    pub(crate) fn write_queue_prod(&mut self, queue: usize, value: u32, enabled: bool, error: bool) {
        let ring = self.ring(queue);
        if value & !ring.mask() != 0 {
            self.violation(format!("PROD of {} = {value:#x} has bits above the wrap bit", name(queue)));
        }
        let CommandQueue { cons, prod: old, .. } = self.regs.queues[queue];
        let used = ring.distance(cons, value);
        let back = ring.distance(cons, value) < ring.distance(cons, old);
        if enabled && (used > ring.size() || back && !error) {
            let name = name(queue);
            self.violation(format!("PROD of {name} = {value:#x}, with CONS at {cons:#x} and PROD at {old:#x} before"));
            self.regs.queues[queue].lost = true;
        }
        self.regs.queues[queue].prod = value & 0xf_ffff;
        self.look_at(queue);
    }

    /// Polls that still give the old value.
    pub(crate) fn late_ack(&self) -> u32 {
        if self.laziness.late_acks { LATE_ACK } else { 0 }
    }

    /// The error that stopped the Command queue, if one did.
    pub(crate) fn cmdq_error(&self) -> Option<CmdqError> {
        let error = match self.regs.queues[CMDQ].err {
            1 => CmdqError::Illegal,
            2 => CmdqError::Abort,
            3 => CmdqError::AtcInvSync,
            other => CmdqError::Unknown(other),
        };
        self.error_active(Gerror::CMDQ_ERR).then_some(error)
    }
}

/// What a Command queue is called.
pub(crate) fn name(queue: usize) -> String {
    if queue == CMDQ { "CMDQ".into() } else { format!("ECMDQ {}", queue - 1) }
}

/// One poll less to go: true once there is none left.
pub(crate) fn count_down(polls: &mut u32) -> bool {
    let done = *polls == 0;
    *polls = polls.saturating_sub(1);
    done
}

fn priq_slot(at: usize) -> usize {
    match at {
        PRIQ_PROD => 1,
        PRIQ_CONS => 2,
        PRIQ_IRQ_CFG1 => 4,
        _ => 5,
    }
}

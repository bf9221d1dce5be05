//! Enhanced Command queues: where they are, the hand-shake, errors, and what a CMD_SYNC in one of them covers.

mod common;

use std::sync::{Arc, Mutex};

use common::*;
use smmuv3::arch::regs::{CmdqControlPageBase, CmdqError, EcmdqCons, EcmdqProd, Gerror, Idr1, Idr6, IrqCtrl, offset};
use smmuv3::arch::{Command, Granule, Stage, Stages, Ste, SyncSignal, TlbiAddr};
use smmuv3::platform::{Iova, Mmio, PhysAddr, Platform};
use smmuv3_model::{AtsAnswers, AtsBehaviour, Ecmdqs, Irq, Latency, ModelSmmuConfig};

const LOG2: u32 = 3;
const MASK: u32 = (2 << LOG2) - 1;
const SYNC: Command = Command::Sync(SyncSignal::None);
const TLBI: Command = Command::TlbiNhVa { vmid: 0, asid: 1, addr: TlbiAddr { addr: 0x1000, leaf: true, range: None } };

/// Two pages of two queues.
fn config() -> ModelSmmuConfig {
    ModelSmmuConfig { ecmdqs: Some(Ecmdqs { log2_pages: 1, log2_queues: 1 }), ..exact() }
}

/// One of the queues, by bare hands.
struct Queue<'a> {
    rig: &'a Rig,
    /// Offset of its registers.
    at: usize,
    ring: PhysAddr,
}

/// Finds all queues as a driver does.
fn offsets(rig: &Rig) -> Vec<usize> {
    let idr6 = Idr6::new_with_raw_value(rig.mmio.read32(offset::IDR6));
    let page = |n| CmdqControlPageBase::new_with_raw_value(rig.mmio.read64(offset::cmdq_control_page_base(n)));
    let queues = |n| (0..idr6.queues_per_page()).map(move |queue| page(n).offset() as usize + idr6.queue(queue));
    (0..idr6.pages()).flat_map(queues).collect()
}

impl<'a> Queue<'a> {
    fn new(rig: &'a Rig, n: usize) -> Queue<'a> {
        let queue = Queue { rig, at: offsets(rig)[n], ring: rig.alloc(16 << LOG2) };
        rig.mmio.write64(queue.at + offset::ECMDQ_BASE, queue.ring.0 | u64::from(LOG2));
        rig.mmio.write32(queue.at + offset::ECMDQ_PROD, 0);
        rig.mmio.write32(queue.at + offset::ECMDQ_CONS, 0);
        queue
    }

    /// A queue that is enabled.
    fn on(rig: &'a Rig, n: usize) -> Queue<'a> {
        let queue = Queue::new(rig, n);
        queue.enable(true);
        queue
    }

    fn prod(&self) -> EcmdqProd {
        EcmdqProd::new_with_raw_value(self.rig.mmio.read32(self.at + offset::ECMDQ_PROD))
    }

    fn cons(&self) -> EcmdqCons {
        EcmdqCons::new_with_raw_value(self.rig.mmio.read32(self.at + offset::ECMDQ_CONS))
    }

    fn write_prod(&self, prod: EcmdqProd) {
        self.rig.mmio.write32(self.at + offset::ECMDQ_PROD, prod.raw_value());
    }

    fn enable(&self, on: bool) {
        self.write_prod(self.prod().with_en(on));
        let polls = (0..100).take_while(|_| self.cons().enack() != on).count();
        assert!(polls < 100, "ENACK follows EN");
    }

    fn cmd(&self, command: Command) {
        self.raw_cmd(command.encode().0);
    }

    fn raw_cmd(&self, words: [u64; 2]) {
        let prod = self.prod();
        self.put(prod.wr().value(), words);
        self.write_prod(EcmdqProd::new_with_raw_value(prod.raw_value() & !MASK | (prod.raw_value() + 1) & MASK));
    }

    fn put(&self, at: u32, words: [u64; 2]) {
        let slot = self.ring.0 + u64::from(at & (MASK >> 1)) * 16;
        self.rig.word(slot, words[0]);
        self.rig.word(slot + 8, words[1]);
    }

    fn waiting(&self) -> u32 {
        (self.prod().raw_value() - self.cons().rd().value()) & MASK
    }

    /// The error that the queue stands still with.
    fn error(&self) -> Option<CmdqError> {
        let cons = self.cons();
        (cons.err() != self.prod().errack()).then(|| cons.err_reason().into())
    }

    /// Puts a CMD_SYNC in the place of the command that stopped the queue, and lets it go on.
    fn recover(&self) {
        let cons = self.cons();
        self.put(cons.rd().value(), SYNC.encode().0);
        self.write_prod(self.prod().with_errack(cons.err()));
    }
}

fn gerror(rig: &Rig) -> Gerror {
    Gerror::from_bits_retain(rig.mmio.read32(offset::GERROR) ^ rig.mmio.read32(offset::GERRORN))
}

fn violations(rig: &Rig) -> u64 {
    let count = rig.model.report().violation_count;
    rig.model.clear_report();
    count
}

#[test]
fn the_id_registers_lead_to_all_queues() {
    for (log2_pages, log2_queues) in [(0, 0), (1, 1), (0, 5), (3, 2)] {
        let rig = Rig::with(ModelSmmuConfig { ecmdqs: Some(Ecmdqs { log2_pages, log2_queues }), ..exact() });
        assert!(Idr1::new_with_raw_value(rig.mmio.read32(offset::IDR1)).ecmdq());
        let all = offsets(&rig);
        assert_eq!(all.len(), 1 << (log2_pages + log2_queues));
        let apart = 0x1_0000 >> log2_queues;
        assert!(all.windows(2).all(|pair| pair[1] - pair[0] == apart), "{all:x?}");
        assert_eq!(rig.mmio.size(), all[all.len() - 1] + apart);
        for page in 0..1 << log2_pages {
            let base = CmdqControlPageBase::new_with_raw_value(rig.mmio.read64(offset::cmdq_control_page_base(page)));
            assert!(base.cmdq_control_page_preset() && base.cmdqgs().value() == 1);
            assert_eq!(rig.mmio.read32(offset::cmdq_control_page_cfg(page)), 1);
            assert_eq!(rig.mmio.read32(offset::cmdq_control_page_status(page)), 1);
        }
        // Each is a queue by itself.
        for (n, &at) in all.iter().enumerate() {
            rig.mmio.write64(at + offset::ECMDQ_BASE, 0x1000 * n as u64 + 0x8000_0000);
        }
        for (n, &at) in all.iter().enumerate() {
            assert_eq!(rig.mmio.read64(at + offset::ECMDQ_BASE), 0x1000 * n as u64 + 0x8000_0000);
        }
        rig.model.report().assert_clean();
        rig.mmio.read64(offset::cmdq_control_page_base(1 << log2_pages));
        rig.mmio.read32(all[0] + 4);
        assert_eq!(violations(&rig), 2);
    }
    let rig = Rig::new();
    assert!(!Idr1::new_with_raw_value(rig.mmio.read32(offset::IDR1)).ecmdq());
    assert_eq!((rig.mmio.read32(offset::IDR6), rig.mmio.size()), (0, 0x2_0000));
    rig.model.report().assert_clean();
}

#[test]
fn commands_go_round_a_queue_and_each_queue_has_its_own_positions() {
    let rig = Rig::with(config());
    let (first, last) = (Queue::on(&rig, 0), Queue::on(&rig, 3));
    rig.model.take_commands(0);
    let sent: Vec<_> = (0..50).map(|sid| Command::CfgiSte { sid, leaf: true }).collect();
    sent[..20].iter().for_each(|&command| first.cmd(command));
    sent[20..].iter().for_each(|&command| last.cmd(command));
    assert_eq!(rig.model.take_commands(0), sent);
    assert_eq!((first.cons().rd().value(), last.cons().rd().value()), (20 & MASK, 30 & MASK));
    assert_eq!((rig.model.report().smmus[0].ecmdq_commands, rig.model.report().commands["CFGI_STE"]), (50, 50));
    rig.model.report().assert_clean();
}

#[test]
fn a_queue_is_enabled_when_enack_says_so_and_then_guards_its_registers() {
    let rig = Rig::with(config());
    let queue = Queue::new(&rig, 1);
    // WR may come with EN: what is there is consumed once the queue is enabled.
    queue.put(0, TLBI.encode().0);
    rig.model.take_commands(0);
    queue.write_prod(EcmdqProd::default().with_en(true).with_wr(1u8.into()));
    assert!(!queue.cons().enack() && queue.waiting() == 1);
    let before = queue.prod();
    queue.write_prod(before.with_wr(2u8.into()));
    assert_eq!(
        (queue.prod().raw_value(), violations(&rig)),
        (before.raw_value(), 1),
        "read-only during the hand-shake"
    );
    while !queue.cons().enack() {}
    assert_eq!((queue.waiting(), rig.model.take_commands(0)), (0, vec![TLBI]));
    let base = rig.mmio.read64(queue.at + offset::ECMDQ_BASE);
    rig.mmio.write64(queue.at + offset::ECMDQ_BASE, 0);
    rig.mmio.write32(queue.at + offset::ECMDQ_CONS, 0);
    rig.cr0(|cr0| cr0.with_cmdqen(false).with_eventqen(false));
    let cr1 = rig.mmio.read32(offset::CR1);
    rig.mmio.write32(offset::CR1, cr1 ^ 1);
    assert_eq!((rig.mmio.read32(offset::CR1), violations(&rig)), (cr1, 3));
    assert_eq!((rig.mmio.read64(queue.at + offset::ECMDQ_BASE), queue.cons().rd().value()), (base, 1));
    queue.enable(false);
    rig.mmio.write64(queue.at + offset::ECMDQ_BASE, queue.ring.0);
    rig.mmio.write32(queue.at + offset::ECMDQ_CONS, 0);
    rig.mmio.write32(offset::CR1, cr1 ^ 1);
    assert_eq!(rig.mmio.read32(offset::CR1), cr1 ^ 1);
    assert_eq!((rig.mmio.read64(queue.at + offset::ECMDQ_BASE), queue.cons().rd().value()), (queue.ring.0, 0));
    assert_eq!(violations(&rig), 0);
}

#[test]
fn a_disabled_queue_consumes_nothing_and_goes_on_where_it_stood() {
    let rig = Rig::with(config());
    let queue = Queue::on(&rig, 0);
    queue.cmd(TLBI);
    queue.enable(false);
    queue.cmd(TLBI);
    assert_eq!((queue.waiting(), queue.cons().rd().value()), (1, 1));
    queue.enable(true);
    assert_eq!((queue.waiting(), queue.cons().rd().value()), (0, 2));
    // CMDQEN and SMMUEN are not asked.
    rig.cr0(|cr0| cr0.with_smmuen(false));
    rig.cr0(|cr0| cr0.with_cmdqen(false));
    queue.cmd(TLBI);
    assert_eq!(queue.waiting(), 0);
    rig.model.report().assert_clean();
}

#[test]
fn an_error_stops_its_queue_alone_until_errack_follows_err() {
    let rig = Rig::with(config());
    let (bad, good) = (Queue::on(&rig, 0), Queue::on(&rig, 1));
    bad.cmd(TLBI);
    bad.raw_cmd([0xff, 0]);
    bad.cmd(Command::TlbiEl2All);
    assert_eq!(
        (bad.cons().rd().value(), bad.error()),
        (1, Some(CmdqError::Illegal)),
        "RD stays at the illegal command"
    );
    assert!(bad.cons().err());
    assert_eq!((gerror(&rig), rig.model.cmdq_error(0)), (Gerror::CMDQP_ERR, None));
    good.cmd(SYNC);
    rig.sync();
    assert_eq!((good.waiting(), good.error()), (0, None));
    // GERRORN acknowledges the interrupt, not the error.
    rig.mmio.write32(offset::GERRORN, rig.mmio.read32(offset::GERROR));
    assert_eq!((gerror(&rig), bad.waiting()), (Gerror::empty(), 2));
    rig.model.take_commands(0);
    bad.recover();
    assert_eq!((bad.waiting(), bad.error(), rig.model.take_commands(0)), (0, None, vec![SYNC, Command::TlbiEl2All]));
    // The next error toggles ERR back.
    bad.raw_cmd([0xff, 0]);
    assert_eq!((bad.cons().err(), bad.error()), (false, Some(CmdqError::Illegal)));
    assert_eq!(gerror(&rig), Gerror::CMDQP_ERR);
    // While it is told of one, GERROR tells of no other.
    good.raw_cmd([0xff, 0]);
    assert_eq!((good.error(), gerror(&rig)), (Some(CmdqError::Illegal), Gerror::CMDQP_ERR));
    bad.recover();
    good.recover();
    assert_eq!((bad.waiting(), good.waiting(), gerror(&rig)), (0, 0, Gerror::CMDQP_ERR));
    assert_eq!(violations(&rig), 3, "the illegal commands");
}

#[test]
fn an_error_of_the_command_queue_does_not_stop_the_others() {
    let rig = Rig::with(config());
    let queue = Queue::on(&rig, 0);
    rig.raw_cmd([0xff, 0]);
    queue.cmd(SYNC);
    assert_eq!((queue.waiting(), gerror(&rig)), (0, Gerror::CMDQ_ERR));
}

#[test]
fn a_queue_outside_memory_aborts() {
    let rig = Rig::with(config());
    let queue = Queue::new(&rig, 0);
    rig.mmio.write64(queue.at + offset::ECMDQ_BASE, 0x1000 | u64::from(LOG2));
    queue.enable(true);
    queue.write_prod(queue.prod().with_wr(1u8.into()));
    assert_eq!((queue.cons().rd().value(), queue.error()), (0, Some(CmdqError::Abort)));
}

#[test]
fn a_stopped_queue_can_be_disabled_with_its_error() {
    let rig = Rig::with(config());
    let queue = Queue::on(&rig, 0);
    queue.raw_cmd([0xff, 0]);
    queue.enable(false);
    assert_eq!((queue.error(), queue.waiting()), (Some(CmdqError::Illegal), 1));
    queue.write_prod(queue.prod().with_wr(0u8.into()).with_errack(true));
    queue.enable(true);
    queue.cmd(SYNC);
    assert_eq!((queue.error(), queue.waiting()), (None, 0));
    assert_eq!(violations(&rig), 1, "the illegal command");
}

#[test]
fn an_errack_without_an_error_stops_the_queue_until_it_is_disabled() {
    let rig = Rig::with(config());
    let queue = Queue::on(&rig, 0);
    queue.write_prod(queue.prod().with_errack(true));
    queue.cmd(SYNC);
    assert_eq!((violations(&rig), queue.waiting()), (1, 1));
    queue.write_prod(queue.prod().with_errack(false));
    assert_eq!(queue.waiting(), 1);
    queue.enable(false);
    queue.enable(true);
    assert_eq!((violations(&rig), queue.waiting()), (0, 0));
    // Nor may a queue be enabled so.
    queue.enable(false);
    queue.write_prod(queue.prod().with_errack(true));
    queue.enable(true);
    queue.cmd(SYNC);
    assert_eq!((violations(&rig), queue.waiting()), (1, 1));
}

#[test]
fn what_stands_behind_an_error_may_be_taken_back() {
    let rig = Rig::with(config());
    let queue = Queue::on(&rig, 0);
    queue.raw_cmd([0xff, 0]);
    queue.cmd(TLBI);
    assert_eq!((queue.waiting(), violations(&rig)), (2, 1));
    queue.write_prod(queue.prod().with_wr(0u8.into()).with_errack(true));
    queue.cmd(SYNC);
    assert_eq!((queue.waiting(), queue.error(), violations(&rig)), (0, None, 0));
}

#[test]
fn prod_may_not_jump() {
    let rig = Rig::with(config());
    let queue = Queue::on(&rig, 0);
    queue.write_prod(queue.prod().with_wr(9u8.into()));
    assert_eq!((violations(&rig), queue.cons().rd().value()), (1, 0));
}

/// Another stream, with ASID 2, that the other queues are busy with.
const OTHER: u32 = SID + 1;

/// Whether a device reaches its page at 0x1000 no more, which is unmapped and `before` is done: after a command for it in one queue, after a CMD_SYNC in the Command
/// queue, in a third queue, in its own.
fn unreachable_after(
    before: &[Command],
    reach: impl Fn(&Rig) -> bool,
    command: impl Fn(u32, u16) -> Command,
) -> [bool; 4] {
    let rig = Rig::with(config());
    let (own, third) = (Queue::on(&rig, 0), Queue::on(&rig, 2));
    for (sid, asid) in [(SID, 1), (OTHER, 2)] {
        let table = rig.table(Stage::S1, Granule::K4, 48);
        let data = rig.model.alloc_data(1).unwrap();
        rig.map(&table, 0x1000, data.addr(), 3, RW);
        rig.attach_ats(sid, 0, Stages::S1(rig.one_cd(&table, asid)));
        let device = rig.model.device(0, sid);
        assert!(device.read_u64(Iova(0x1000)).is_ok() && device.ats_read_u64(Iova(0x1000)).is_ok());
        rig.unmap(&table, 0x1000, 3);
        rig.ste(sid, Ste::Abort);
    }
    before.iter().for_each(|&command| rig.cmd_sync(command));
    let unreachable = || !reach(&rig);
    own.cmd(command(SID, 1));
    let asked = unreachable();
    rig.cmd_sync(command(OTHER, 2));
    let cmdq = unreachable();
    third.cmd(command(OTHER, 2));
    third.cmd(SYNC);
    let others = unreachable();
    own.cmd(SYNC);
    assert_eq!((own.waiting(), third.waiting()), (0, 0));
    rig.model.report().assert_clean();
    [asked, cmdq, others, unreachable()]
}

#[test]
fn a_sync_completes_the_tlbis_of_its_own_queue() {
    let reach = |rig: &Rig| rig.device().read_u64(Iova(0x1000)).is_ok();
    let tlbi = |_, asid| Command::TlbiNhAsid { vmid: 0, asid };
    assert_eq!(unreachable_after(&[], reach, tlbi), [false, false, false, true]);
}

#[test]
fn a_sync_completes_the_cfgis_of_its_own_queue() {
    let reach = |rig: &Rig| rig.device().read_u64(Iova(0x1000)).is_ok();
    let cfgi = |sid, _| Command::CfgiSte { sid, leaf: true };
    assert_eq!(unreachable_after(&[], reach, cfgi), [false, false, false, true]);
}

#[test]
fn a_sync_completes_the_atc_invs_of_its_own_queue() {
    // A function asks again for what an ATC_INV takes from it.
    let reach = |rig: &Rig| rig.device().ats_read_u64(Iova(0x1000)).is_ok();
    let inv = |sid, _| Command::AtcInv { sid, ssid: None, global: false, addr: 0x1000, size: 0 };
    assert_eq!(unreachable_after(&[Command::TlbiNhAll { vmid: 0 }], reach, inv), [false, false, false, true]);
}

#[test]
fn two_queues_take_what_each_was_asked_for_from_one_function() {
    let rig = Rig::with(config());
    let (first, second) = (Queue::on(&rig, 0), Queue::on(&rig, 1));
    let table = rig.table(Stage::S1, Granule::K4, 48);
    let data = rig.model.alloc_data(1).unwrap();
    let pages = [0x1000, 0x2000];
    pages.iter().for_each(|&page| rig.map(&table, page, data.addr(), 3, RW));
    rig.attach_ats(SID, 0, Stages::S1(rig.one_cd(&table, 1)));
    let reached = || pages.map(|page| rig.device().ats_read_u64(Iova(page)).is_ok());
    assert_eq!(reached(), [true, true]);
    pages.iter().for_each(|&page| rig.unmap(&table, page, 3));
    rig.cmd_sync(Command::TlbiNhAll { vmid: 0 });
    let inv = |addr| Command::AtcInv { sid: SID, ssid: None, global: false, addr, size: 0 };
    first.cmd(inv(pages[0]));
    second.cmd(inv(pages[1]));
    second.cmd(SYNC);
    assert_eq!(reached(), [true, false]);
    first.cmd(SYNC);
    assert_eq!(reached(), [false, false]);
    rig.model.report().assert_clean();
}

#[test]
fn a_sync_waits_for_the_writes_that_its_own_queue_invalidates() {
    let rig = Rig::with(config());
    let (own, other) = (Queue::on(&rig, 0), Queue::on(&rig, 1));
    let table = rig.table(Stage::S1, Granule::K4, 48);
    let data = rig.model.alloc_data(1).unwrap();
    rig.map(&table, 0x1000, data.addr(), 3, RW);
    let sids = 0..8;
    for sid in sids.clone() {
        rig.attach_s1(sid, &table, 1, 0);
        rig.model.device(0, sid).post(Iova(0x1000 + 8 * u64::from(sid)), &1u64.to_le_bytes()).unwrap();
    }
    let arrived = || {
        let word = |sid: u32| rig.model.read_u64(PhysAddr(data.addr().0 + 8 * u64::from(sid)));
        sids.clone().filter(|&sid| word(sid) == Some(1)).count()
    };
    own.cmd(TLBI);
    other.cmd(SYNC);
    rig.sync();
    assert!(arrived() < 8, "some are on their way still");
    own.cmd(SYNC);
    assert_eq!(arrived(), 8);
    rig.model.report().assert_clean();
}

#[test]
fn an_atc_inv_that_is_not_answered_fails_the_sync_of_its_own_queue_and_spoils_no_other() {
    let rig = Rig::with(config());
    let (bad, good, late) = (Queue::on(&rig, 0), Queue::on(&rig, 1), Queue::on(&rig, 2));
    let table = rig.table(Stage::S1, Granule::K4, 48);
    let data = rig.model.alloc_data(1).unwrap();
    rig.map(&table, 0x1000, data.addr(), 3, RW);
    rig.attach_ats(SID, 0, Stages::S1(rig.one_cd(&table, 1)));
    rig.device().ats_read_u64(Iova(0x1000)).unwrap();
    rig.unmap(&table, 0x1000, 3);
    rig.cmd_sync(Command::TlbiNhAll { vmid: 0 });
    for sid in 1..=2 {
        assert!(rig.platform.ats_enable(0, sid, 0));
        rig.model.set_ats(0, sid, AtsBehaviour { answers: AtsAnswers::Never, ..AtsBehaviour::default() });
    }
    let inv = |sid| Command::AtcInv { sid, ssid: None, global: false, addr: 0, size: 52 };
    bad.cmd(inv(1));
    late.cmd(inv(2));
    good.cmd(inv(SID));
    rig.sync();
    bad.cmd(SYNC);
    assert_eq!((bad.error(), bad.waiting()), (Some(CmdqError::AtcInvSync), 1));
    assert!(rig.device().ats_read_u64(Iova(0x1000)).is_ok());
    good.cmd(SYNC);
    assert_eq!((good.error(), good.waiting()), (None, 0));
    assert!(rig.device().ats_read_u64(Iova(0x1000)).is_err());
    late.cmd(SYNC);
    assert_eq!((late.error(), late.waiting()), (Some(CmdqError::AtcInvSync), 1));
    bad.recover();
    late.recover();
    assert_eq!((bad.waiting(), late.waiting()), (0, 0));
    rig.model.report().assert_clean();
}

#[test]
fn a_sync_writes_its_message_and_an_error_interrupts() {
    let rig = Rig::with(config());
    let queue = Queue::on(&rig, 0);
    let page = rig.alloc(4096);
    queue.cmd(Command::Sync(SyncSignal::Msi { addr: page.0, data: 7 }));
    assert_eq!(rig.model.read_u64(page), Some(7));
    queue.cmd(Command::Sync(SyncSignal::Msi { addr: 0x1000, data: 7 }));
    assert_eq!(gerror(&rig), Gerror::MSI_CMDQ_ABT_ERR);
    let seen = Arc::new(Mutex::new(vec![]));
    let log = seen.clone();
    rig.model.set_irq_hook(0, move |irq| log.lock().unwrap().push(irq));
    let enable = IrqCtrl::default().with_gerror_irqen(true).raw_value();
    rig.mmio.write32(offset::IRQ_CTRL, enable);
    while rig.mmio.read32(offset::IRQ_CTRLACK) != enable {}
    queue.raw_cmd([0xff, 0]);
    assert_eq!(*seen.lock().unwrap(), [Irq::Gerror]);
    rig.model.clear_irq_hook(0);
}

#[test]
fn a_dead_smmu_consumes_from_no_queue() {
    let rig = Rig::with(config());
    let queue = Queue::on(&rig, 0);
    rig.model.set_dead(0, true);
    queue.cmd(SYNC);
    assert_eq!(queue.waiting(), 1);
    rig.model.set_dead(0, false);
    assert_eq!(queue.waiting(), 0);
}

#[test]
fn queues_take_their_time_side_by_side() {
    let latency = Latency { tlbi_ns: 500, sync_ns: 2_000, ..Latency::NONE };
    let rig = Rig::off(ModelSmmuConfig { latency, ..config() });
    rig.model.stop_clock();
    let queues: Vec<_> = (0..4).map(|n| Queue::on(&rig, n)).collect();
    queues[0].cmd(TLBI);
    queues.iter().for_each(|queue| queue.cmd(SYNC));
    let waiting = [1_999, 1, 499, 1].map(|ns| {
        rig.model.advance_clock(ns);
        queues.iter().map(|queue| queue.waiting()).collect::<Vec<_>>()
    });
    assert_eq!(waiting, [[1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]);
    // An idle one starts at its doorbell, whether its end was seen or not, and an error at its acknowledgement.
    let queue = &queues[3];
    queue.cmd(SYNC);
    rig.model.advance_clock(1_000_000);
    queue.cmd(SYNC);
    let waiting = [1_999, 1].map(|ns| {
        rig.model.advance_clock(ns);
        queue.waiting()
    });
    assert_eq!(waiting, [1, 0]);
    // An idle one can be disabled, and enabled again.
    queue.enable(false);
    queue.enable(true);
    queue.raw_cmd([0xff, 0]);
    assert_eq!(queue.error(), Some(CmdqError::Illegal));
    rig.model.advance_clock(1_000_000);
    queue.recover();
    let waiting = [1_999, 1].map(|ns| {
        rig.model.advance_clock(ns);
        queue.waiting()
    });
    assert_eq!(waiting, [1, 0]);
}

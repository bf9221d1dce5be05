//! The Command and Event queues: order, errors, recovery, overflow, interrupts.

mod common;

use std::sync::{Arc, Mutex};

use common::*;
use smmuv3::arch::regs::{CmdqError, EVENTQ_OVERFLOW, Gerror, IrqCtrl, offset};
use smmuv3::arch::{
    Access, AddrSize, Cd, Class, Command, Desc, Eats, Event, FaultStage, Granule, Ipa, Prot, Stage, Stages, Ste,
    Stream, StreamWorld, SyncSignal, TlbiAddr, TranslationFault,
};
use smmuv3::platform::{Iova, Mmio, PhysAddr, Platform};
use smmuv3_model::{DmaError, Irq, Model, ModelConfig, ModelSmmuConfig};

fn gerror(rig: &Rig) -> Gerror {
    Gerror::from_bits_retain(rig.mmio.read32(offset::GERROR) ^ rig.mmio.read32(offset::GERRORN))
}

fn acknowledge(rig: &Rig) {
    rig.mmio.write32(offset::GERRORN, rig.mmio.read32(offset::GERROR));
}

#[test]
fn commands_are_consumed_in_order_round_the_ring_and_logged() {
    let rig = Rig::new();
    rig.model.take_commands(0);
    let sent: Vec<_> = (0..100).map(|sid| Command::CfgiSte { sid, leaf: sid % 2 == 0 }).collect();
    sent.iter().for_each(|&command| rig.cmd(command));
    assert_eq!(rig.model.take_commands(0), sent);
    assert_eq!(rig.model.report().commands["CFGI_STE"], 100);
    rig.model.report().assert_clean();
}

#[test]
fn an_illegal_command_stops_the_queue_until_it_is_replaced_and_acknowledged() {
    let rig = Rig::new();
    rig.model.take_commands(0);
    let at = rig.mmio.read32(offset::CMDQ_PROD);
    rig.cmd(Command::TlbiNsnhAll);
    rig.raw_cmd([0xff, 0]);
    rig.cmd(Command::TlbiEl2All);
    assert_eq!(rig.cons().rd().value(), at + 1, "CONS stays at the illegal command");
    assert_eq!(CmdqError::from(rig.cons().err()), CmdqError::Illegal);
    assert_eq!(gerror(&rig), Gerror::CMDQ_ERR);
    assert_eq!(rig.model.cmdq_error(0), Some(CmdqError::Illegal));
    assert_eq!(rig.model.take_commands(0), [Command::TlbiNsnhAll]);
    // The driver puts a CMD_SYNC in its place. It need not write PROD again.
    let slot = PhysAddr(rig.cmdq.0 + u64::from(at + 1) * 16);
    let sync = Command::Sync(SyncSignal::None);
    rig.word(slot.0, sync.encode().0[0]);
    acknowledge(&rig);
    assert_eq!(rig.cons().rd().value(), at + 3);
    assert_eq!(rig.model.take_commands(0), [sync, Command::TlbiEl2All]);
    assert_eq!((gerror(&rig), rig.model.cmdq_error(0)), (Gerror::empty(), None));
    assert_eq!(rig.model.report().violation_count, 1);
}

#[test]
fn commands_for_what_the_smmu_does_not_have_are_illegal() {
    let one = TlbiAddr { addr: 0x1000, leaf: true, range: None };
    let s1 = [
        Command::TlbiNhAll { vmid: 0 },
        Command::TlbiNhVa { vmid: 0, asid: 0, addr: one },
        Command::CfgiCd { sid: 0, ssid: 0, leaf: true },
        Command::CfgiCdAll { sid: 0 },
    ];
    let s2 = [Command::TlbiS2Ipa { vmid: 0, addr: one }, Command::TlbiS12Vmall { vmid: 0 }];
    let el2 = [Command::TlbiEl2All, Command::TlbiEl2Asid { asid: 0 }];
    let ats = [Command::AtcInv { sid: 0, ssid: None, global: false, addr: 0, size: 0 }];
    let stall = [Command::StallTerm { sid: 0 }, Command::Resume { sid: 0, stag: 0, retry: true, abort: false }];
    let pri = [Command::PriResp { sid: 0, ssid: None, prg_index: 0, resp: 0 }];
    let none = ModelSmmuConfig::default;
    let cases: [(ModelSmmuConfig, &[Command]); 6] = [
        (ModelSmmuConfig { stage1: false, hyp: false, ..none() }, &s1),
        (ModelSmmuConfig { stage2: false, ..none() }, &s2),
        (ModelSmmuConfig { hyp: false, ..none() }, &el2),
        (ModelSmmuConfig { ats: false, ..none() }, &ats),
        (none(), &stall),
        (none(), &pri),
    ];
    for (config, commands) in cases {
        for &command in commands {
            let rig = Rig::with(config.clone());
            rig.cmd(command);
            assert_eq!(rig.model.cmdq_error(0), Some(CmdqError::Illegal), "{command:?}");
        }
    }
    let rig = Rig::new();
    assert!(rig.platform.ats_enable(0, 0, 0));
    s1.iter().chain(&s2).chain(&el2).chain(&ats).for_each(|&command| rig.cmd(command));
    rig.model.report().assert_clean();
    // NUM, SCALE and TTL all zero; and TTL 1, which counts as zero with 16 KiB pages.
    for (granule, ttl) in [(Granule::K4, 0), (Granule::K16, 1)] {
        let rig = Rig::new();
        rig.cmd(Command::TlbiNhVaa { vmid: 0, addr: range(0, granule, 0, 0, ttl) });
        assert_eq!(rig.model.cmdq_error(0), Some(CmdqError::Illegal), "{granule}");
    }
}

#[test]
fn range_fields_mean_nothing_without_range_invalidation() {
    let rig = Rig::with(ModelSmmuConfig { range_inv: false, ..exact() });
    rig.model.take_commands(0);
    rig.cmd(Command::TlbiNhVaa { vmid: 0, addr: range(0x1000, Granule::K4, 5, 3, 3) });
    assert_eq!(rig.model.take_commands(0), [Command::TlbiNhVaa { vmid: 0, addr: one(0x1000, true) }]);
    assert_eq!(rig.model.report().violation_count, 1);
}

#[test]
fn ids_that_are_too_wide_have_no_effect() {
    let rig = Rig::with(ModelSmmuConfig { asid16: false, vmid16: false, ..exact() });
    let table = rig.table(Stage::S1, Granule::K4, 48);
    let data = rig.model.alloc_data(1).unwrap();
    rig.map(&table, 0x1000, data.addr(), 3, RW);
    rig.attach_s1(SID, &table, 5, 0);
    rig.device().read_u64(Iova(0x1000)).unwrap();
    rig.unmap(&table, 0x1000, 3);
    rig.cmd_sync(Command::TlbiNhAsid { vmid: 0, asid: 0x105 });
    rig.cmd_sync(Command::TlbiNhAll { vmid: 0x100 });
    rig.cmd_sync(Command::CfgiSte { sid: 0x1_0000 | SID, leaf: true });
    assert_eq!(rig.model.report().violation_count, 3);
    assert!(rig.device().read_u64(Iova(0x1000)).is_ok());
}

#[test]
fn a_queue_outside_memory_aborts() {
    let rig = Rig::off(exact());
    rig.mmio.write64(offset::CMDQ_BASE, 0x1000 | 4);
    rig.mmio.write32(offset::CMDQ_PROD, 0);
    rig.mmio.write32(offset::CMDQ_CONS, 0);
    rig.mmio.write64(offset::EVENTQ_BASE, 0x2000 | 2);
    rig.mmio.write32(offset::EVENTQ_PROD, 0);
    rig.mmio.write32(offset::EVENTQ_CONS, 0);
    rig.cr0(|cr0| cr0.with_cmdqen(true).with_eventqen(true));
    rig.mmio.write32(offset::CMDQ_PROD, 1);
    assert_eq!((rig.cons().rd().value(), CmdqError::from(rig.cons().err())), (0, CmdqError::Abort));
    rig.smmu_on();
    let _ = rig.model.device(0, 0xffff).read_u64(Iova(0));
    assert_eq!(gerror(&rig), Gerror::CMDQ_ERR | Gerror::EVENTQ_ABT_ERR);
    assert_eq!(rig.mmio.read32(offset::EVENTQ_PROD), 0, "PROD does not move");
    assert_eq!(rig.model.report().smmus[0].events_lost, 1);
}

#[test]
fn a_sync_writes_its_message_and_one_that_cannot_is_a_global_error() {
    let rig = Rig::new();
    let page = rig.alloc(4096);
    rig.word(page.0, 0x1111_1111_1111_1111);
    rig.cmd(Command::Sync(SyncSignal::Msi { addr: page.0 + 4, data: 0xabcd }));
    assert_eq!(rig.model.read_u64(page), Some(0xabcd_1111_1111));
    rig.cmd(Command::Sync(SyncSignal::Sev));
    rig.cmd(Command::Sync(SyncSignal::Msi { addr: 0, data: 1 }));
    assert_eq!(gerror(&rig), Gerror::empty());
    rig.cmd(Command::Sync(SyncSignal::Msi { addr: 0x1000, data: 1 }));
    assert_eq!(gerror(&rig), Gerror::MSI_CMDQ_ABT_ERR);
    rig.sync();
    rig.model.report().assert_clean();
}

#[test]
fn a_slow_smmu_consumes_a_few_commands_each_look_and_a_dead_one_none() {
    let rig = Rig::new();
    let start = rig.cons().rd().value();
    rig.model.set_commands_per_look(0, Some(2));
    rig.model.set_dead(0, true);
    (0..7).for_each(|_| rig.cmd(Command::TlbiNsnhAll));
    assert_eq!(rig.cons().rd().value(), start);
    rig.model.set_dead(0, false);
    let seen: Vec<_> = (0..4).map(|_| rig.cons().rd().value() - start).collect();
    assert_eq!(seen, [4, 6, 7, 7]);
    rig.model.set_dead(0, true);
    rig.cmd(Command::TlbiNsnhAll);
    assert_eq!(rig.cons().rd().value() - start, 7);
}

#[test]
fn prod_may_not_jump_and_a_queue_that_is_lost_stays_so_until_it_is_disabled() {
    let rig = Rig::new();
    let cons = rig.cons().rd().value();
    rig.mmio.write32(offset::CMDQ_PROD, (cons + (1 << CMDQ_LOG2) + 1) & ((2 << CMDQ_LOG2) - 1));
    assert_eq!(rig.model.report().violation_count, 1);
    assert_eq!(rig.cons().rd().value(), cons);
    rig.cr0(|cr0| cr0.with_cmdqen(false));
    rig.mmio.write32(offset::CMDQ_PROD, 0);
    rig.mmio.write32(offset::CMDQ_CONS, 0);
    rig.cr0(|cr0| cr0.with_cmdqen(true));
    rig.sync();
}

#[test]
fn events_beyond_the_last_slot_are_lost_and_the_overflow_flag_says_so() {
    let rig = Rig::new();
    let fault = |sid: u32| assert!(rig.model.device(0, sid).read_u64(Iova(0)).is_err());
    (0..4).for_each(|i| fault(0x1000 + i));
    let overflow = || (rig.mmio.read32(offset::EVENTQ_PROD) ^ rig.mmio.read32(offset::EVENTQ_CONS)) & EVENTQ_OVERFLOW;
    assert_eq!(overflow(), 0, "full is not overflown");
    (4..6).for_each(|i| fault(0x1000 + i));
    assert_ne!(overflow(), 0);
    let sids: Vec<_> = std::iter::from_fn(|| rig.event()).map(|event| event.stream().unwrap().sid).collect();
    assert_eq!(sids, [0x1000, 0x1001, 0x1002, 0x1003]);
    let report = rig.model.report();
    assert_eq!((report.faults, report.smmus[0].events, report.smmus[0].events_lost), (6, 4, 2));
    // Acknowledged, the flag can tell of the next overflow; the queue goes on in either case.
    fault(0x2000);
    assert!(rig.event().is_some());
    rig.mmio.write32(offset::EVENTQ_CONS, rig.mmio.read32(offset::EVENTQ_CONS) ^ EVENTQ_OVERFLOW);
    assert_eq!(overflow(), 0);
    (0..5).for_each(|i| fault(0x3000 + i));
    assert_ne!(overflow(), 0);
    rig.model.report().assert_clean();
}

#[test]
fn events_say_who_did_what_where_and_what_is_wrong() {
    let rig = Rig::new();
    let stream = Stream { sid: SID, ssid: None };
    let attempt = |iova: u64, write: bool| {
        let result = match write {
            true => rig.device().write_u64(Iova(iova), 0),
            false => rig.device().read_u64(Iova(iova)).map(drop),
        };
        let event = rig.event();
        assert_eq!(result, Err(DmaError::Aborted(event)), "what the device got is what was recorded");
        event.unwrap()
    };
    let fault = |write: bool, iova: u64, class, stage| TranslationFault {
        stall: None,
        access: Access { rnw: !write, ind: false, pnu: false },
        class,
        stage,
        input: Iova(iova),
    };
    assert_eq!(attempt(0x1000, false), Event::CBadSte(stream));

    let data = rig.model.alloc_data(1).unwrap();
    let s1 = rig.table(Stage::S1, Granule::K4, 39);
    let leaf = Desc::leaf(data.addr(), 3, Stage::S1, Prot::READ);
    rig.set(&s1, 0x1000, 3, leaf);
    rig.set(&s1, 0x2000, 3, Desc(leaf.0 & !(1 << 10)));
    rig.set(&s1, 0x3000, 3, Desc::leaf(PhysAddr(1 << 40), 3, Stage::S1, RW));
    rig.set(&s1, 1 << 30, 1, Desc::table(PhysAddr(0x7000)));
    let cd = rig.alloc(64);
    let typed = Cd { output_size: AddrSize::from_code(1), ..cd_of(&s1, 1) };
    // AFFD off: the access flag counts.
    let mut raw = typed.encode().0;
    raw[0] &= !(1 << 35);
    rig.words(cd.0, raw);
    rig.ste(SID, s1_ste(cd, 0, StreamWorld::El1));
    rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
    let s1_fault = |write, iova| fault(write, iova, Class::In, FaultStage::S1);
    assert_eq!(attempt(0x5008, true), Event::FTranslation(stream, s1_fault(true, 0x5008)));
    assert_eq!(attempt(1 << 39, false), Event::FTranslation(stream, s1_fault(false, 1 << 39)));
    assert_eq!(attempt(0x2000, false), Event::FAccess(stream, s1_fault(false, 0x2000)));
    assert_eq!(attempt(0x3000, false), Event::FAddrSize(stream, s1_fault(false, 0x3000)));
    let permission = Event::FPermission { stream, fault: s1_fault(true, 0x1010), ttrnw: false, other: 0 };
    assert_eq!(attempt(0x1010, true), permission);
    match attempt(1 << 30, false) {
        Event::FWalkEabt { class: Class::Tt, s2: false, fetch, .. } => assert_eq!(fetch.addr, PhysAddr(0x7000)),
        other => panic!("{other}"),
    }

    // Nested, with holes in stage 2: the CD, the table and the page in turn.
    let s2 = rig.table(Stage::S2, Granule::K4, 40);
    let stages = Stages::Nested(stage1(cd, StreamWorld::El1), stage2(&s2));
    rig.ste(SID, Ste::Translate { vmid: 2, eats: Eats::Off, stages });
    rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
    let s2_fault = |class, ipa: u64| {
        let stage = FaultStage::S2 { ipa: Ipa(ipa & !0xfff), nsipa: false };
        Event::FTranslation(stream, fault(false, 0x1010, class, stage))
    };
    let hole = |addr: u64, prot| rig.map(&s2, addr & !0xfff, PhysAddr(addr & !0xfff), 3, prot);
    assert_eq!(attempt(0x1010, false), s2_fault(Class::Cd, cd.0));
    hole(cd.0, RW);
    assert_eq!(attempt(0x1010, false), s2_fault(Class::Tt, s1.root.0));
    for level in 1..=3 {
        hole(rig.slot(&s1, 0x1000, level).0, RW);
    }
    assert_eq!(attempt(0x1010, false), s2_fault(Class::In, data.addr().0));
    hole(data.addr().0, RW);
    assert!(rig.device().read_u64(Iova(0x1010)).is_ok());
    assert_eq!(rig.event(), None);
}

#[test]
fn faults_that_the_cd_keeps_silent_are_not_recorded() {
    let rig = Rig::new();
    let table = rig.table(Stage::S1, Granule::K4, 48);
    let cd = rig.alloc(64);
    rig.words(cd.0, Cd { record: false, ..cd_of(&table, 1) }.encode().0);
    rig.ste(SID, s1_ste(cd, 0, StreamWorld::El1));
    rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
    assert!(matches!(rig.device().read_u64(Iova(0)), Err(DmaError::Aborted(Some(_)))));
    assert_eq!(rig.event(), None);
}

#[test]
fn transactions_that_end_quietly_read_zero_and_write_nothing() {
    let rig = Rig::with(ModelSmmuConfig { abort_only: false, ..exact() });
    let table = rig.table(Stage::S1, Granule::K4, 48);
    let cd = rig.alloc(64);
    rig.words(cd.0, Cd { abort: false, ..cd_of(&table, 1) }.encode().0);
    rig.ste(SID, s1_ste(cd, 0, StreamWorld::El1));
    rig.cmd_sync(Command::CfgiSte { sid: SID, leaf: true });
    assert_eq!(rig.device().read_u64(Iova(0)), Ok(0));
    assert_eq!(rig.device().write_u64(Iova(0), 1), Ok(()));
    assert!(rig.event().is_some() && rig.event().is_some());
}

#[test]
fn bad_stream_ids_are_recorded_only_if_asked_for() {
    let rig = Rig::new();
    rig.cr0(|cr0| cr0.with_smmuen(false));
    rig.mmio.write32(offset::CR2, 0);
    rig.cr0(|cr0| cr0.with_smmuen(true));
    assert!(rig.model.device(0, 64).read_u64(Iova(0)).is_err());
    assert_eq!(rig.event(), None);
}

#[test]
fn an_interrupt_comes_when_the_event_queue_stops_being_empty_and_for_a_new_error() {
    let rig = Rig::new();
    let seen = Arc::new(Mutex::new(vec![]));
    let (log, mmio) = (seen.clone(), rig.mmio.clone());
    rig.model.set_irq_hook(0, move |irq| {
        // No lock is held: the handler may read registers.
        mmio.read32(offset::EVENTQ_PROD);
        log.lock().unwrap().push(irq);
    });
    let fault = || assert!(rig.device().read_u64(Iova(0)).is_err());
    fault();
    assert!(rig.event().is_some() && seen.lock().unwrap().is_empty(), "not enabled");
    let enable = IrqCtrl::default().with_eventq_irqen(true).with_gerror_irqen(true);
    rig.mmio.write32(offset::IRQ_CTRL, enable.raw_value());
    while rig.mmio.read32(offset::IRQ_CTRLACK) != enable.raw_value() {}
    fault();
    fault();
    rig.raw_cmd([0xff, 0]);
    assert_eq!(*seen.lock().unwrap(), [Irq::EventQueue, Irq::Gerror], "the second event finds the queue not empty");
    rig.model.clear_irq_hook(0);
}

#[test]
fn several_smmus_keep_their_queues_and_caches_apart() {
    let config = ModelConfig { smmus: vec![exact(); 16], ..small(exact()) };
    let model = Model::new(config);
    assert_eq!(model.smmus(), 16);
    for smmu in 0..16 {
        assert_eq!(model.mmio(smmu).read32(offset::CR0), 0);
    }
    model.mmio(3).write32(offset::CR0, 0b1000);
    assert_eq!((model.mmio(3).read32(offset::CR0), model.mmio(4).read32(offset::CR0)), (0b1000, 0));
}

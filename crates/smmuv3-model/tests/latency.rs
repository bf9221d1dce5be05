//! How long commands take, with a clock that moves only when it is told to.

mod common;

use common::*;
use smmuv3::arch::regs::{CmdqError, offset};
use smmuv3::arch::{Command, Granule, Stage, SyncSignal};
use smmuv3::platform::{Iova, Mmio, PhysAddr, Platform};
use smmuv3_model::{Latency, Model, ModelConfig, ModelSmmuConfig};

const LATENCY: Latency = Latency { command_ns: 10, cfgi_ns: 200, tlbi_ns: 300, atc_inv_ns: 4_000, sync_ns: 2_000 };
const SYNC: Command = Command::Sync(SyncSignal::None);

fn config() -> ModelSmmuConfig {
    ModelSmmuConfig { latency: LATENCY, ..exact() }
}

/// An SMMU that is on and has nothing to do, at a moment that stands still.
fn rig() -> Rig {
    let rig = Rig::off(config());
    rig.model.stop_clock();
    rig.queues_on();
    [Command::CfgiSteRange { sid: 0, range: 31 }, Command::TlbiNsnhAll, Command::TlbiEl2All, SYNC]
        .into_iter()
        .for_each(|command| rig.cmd(command));
    rig.model.advance_clock(1_000_000);
    rig.smmu_on();
    assert_eq!(waiting(&rig), 0);
    rig
}

/// Commands that are not consumed.
fn waiting(rig: &Rig) -> u32 {
    (rig.mmio.read32(offset::CMDQ_PROD) - rig.cons().rd().value()) & ((2 << CMDQ_LOG2) - 1)
}

/// Writes commands to the queue and PROD once; gives what is left of them after each of `steps` ns.
fn submit<const N: usize>(rig: &Rig, commands: &[Command], steps: [u64; N]) -> [u32; N] {
    let prod = rig.mmio.read32(offset::CMDQ_PROD);
    for (command, at) in commands.iter().zip(prod..) {
        let slot = rig.cmdq.0 + u64::from(at & ((1 << CMDQ_LOG2) - 1)) * 16;
        let [w0, w1] = command.encode().0;
        assert!(rig.model.write_u64(PhysAddr(slot), w0) && rig.model.write_u64(PhysAddr(slot + 8), w1));
    }
    rig.mmio.write32(offset::CMDQ_PROD, (prod + commands.len() as u32) & ((2 << CMDQ_LOG2) - 1));
    steps.map(|ns| {
        rig.model.advance_clock(ns);
        waiting(rig)
    })
}

#[test]
fn a_sync_alone_takes_its_round_trip_from_the_doorbell() {
    let rig = rig();
    assert_eq!(submit(&rig, &[SYNC], [0, 1_999, 1, 10_000]), [1, 1, 0, 0]);
    rig.model.report().assert_clean();
}

#[test]
fn commands_follow_each_other_and_a_sync_waits_for_what_they_ask_for() {
    let rig = rig();
    let commands = [Command::TlbiNsnhAll, Command::TlbiEl2All, SYNC];
    assert_eq!(submit(&rig, &commands, [9, 1, 9, 1, 2_299, 1]), [3, 2, 2, 1, 1, 0]);
    let commands = [Command::CfgiSte { sid: SID, leaf: true }, SYNC];
    assert_eq!(submit(&rig, &commands, [10, 2_199, 1]), [1, 1, 0]);
}

#[test]
fn functions_answer_side_by_side() {
    let rig = rig();
    let inv = |sid| Command::AtcInv { sid, ssid: None, global: false, addr: 0, size: 0 };
    (1..=4).for_each(|sid| assert!(rig.platform.ats_enable(0, sid, 0)));
    let commands = [inv(1), inv(2), inv(3), inv(4), Command::TlbiNsnhAll, SYNC];
    assert_eq!(submit(&rig, &commands, [50, 3_990 + 1_999, 1]), [1, 1, 0]);
    rig.model.report().assert_clean();
}

#[test]
fn what_comes_after_a_sync_begins_when_it_is_complete() {
    let rig = rig();
    let commands = [Command::TlbiNsnhAll, SYNC, Command::TlbiEl2All, SYNC];
    assert_eq!(submit(&rig, &commands, [10 + 300 + 1_999, 1, 9, 1, 2_299, 1]), [3, 2, 2, 1, 1, 0]);
}

#[test]
fn a_look_that_comes_late_finds_all_done_that_was_due() {
    let rig = rig();
    let commands = [Command::TlbiNsnhAll, SYNC, Command::TlbiEl2All, SYNC];
    assert_eq!(submit(&rig, &commands, [2 * 2_310 - 1, 1]), [1, 0]);
}

#[test]
fn an_idle_queue_starts_at_the_doorbell_whether_or_not_its_end_was_seen() {
    let rig = rig();
    assert_eq!(submit(&rig, &[SYNC], []), [0; 0]);
    rig.model.advance_clock(1_000_000);
    assert_eq!(submit(&rig, &[SYNC], [1_999, 1]), [1, 0]);
}

#[test]
fn more_commands_in_a_busy_queue_neither_hurry_nor_delay_those_before() {
    let rig = rig();
    assert_eq!(submit(&rig, &[SYNC], [1_000]), [1]);
    assert_eq!(submit(&rig, &[SYNC], [999, 1, 1_999, 1]), [2, 1, 1, 0]);
}

#[test]
fn an_error_shows_when_its_command_is_due_and_the_rest_goes_on_from_the_acknowledgement() {
    let rig = rig();
    let at = rig.mmio.read32(offset::CMDQ_PROD);
    rig.raw_cmd([0xff, 0]);
    rig.cmd(SYNC);
    rig.model.advance_clock(9);
    assert_eq!(rig.mmio.read32(offset::GERROR), rig.mmio.read32(offset::GERRORN));
    rig.model.advance_clock(1);
    assert_eq!((rig.cons().rd().value(), CmdqError::from(rig.cons().err())), (at, CmdqError::Illegal));
    rig.model.advance_clock(1_000_000);
    assert_eq!(waiting(&rig), 2);
    rig.word(rig.cmdq.0 + u64::from(at) * 16, SYNC.encode().0[0]);
    rig.mmio.write32(offset::GERRORN, rig.mmio.read32(offset::GERROR));
    let left = [1_999, 1, 1_999, 1].map(|ns| {
        rig.model.advance_clock(ns);
        waiting(&rig)
    });
    assert_eq!(left, [2, 1, 1, 0]);
}

#[test]
fn a_dead_smmu_that_comes_back_starts_then() {
    let rig = rig();
    rig.model.set_dead(0, true);
    assert_eq!(submit(&rig, &[SYNC], [1_000_000]), [1]);
    rig.model.set_dead(0, false);
    let left = [1_999, 1].map(|ns| {
        rig.model.advance_clock(ns);
        waiting(&rig)
    });
    assert_eq!(left, [1, 0]);
}

#[test]
fn a_device_uses_what_is_cached_until_the_sync_is_due() {
    let rig = rig();
    let table = rig.table(Stage::S1, Granule::K4, 48);
    let data = rig.model.alloc_data(1).unwrap();
    rig.map(&table, 0x1000, data.addr(), 3, RW);
    let cd = rig.alloc(64);
    rig.words(cd.0, raw_cd(&table, 1).0);
    rig.ste(SID, s1_ste(cd, 0, smmuv3::arch::StreamWorld::El1));
    submit(&rig, &[Command::CfgiSte { sid: SID, leaf: true }, SYNC], [10_000]);
    assert!(rig.device().read_u64(Iova(0x1000)).is_ok());
    rig.unmap(&table, 0x1000, 3);
    let tlbi = Command::TlbiNhVa { vmid: 0, asid: 1, addr: one(0x1000, true) };
    submit(&rig, &[tlbi, SYNC], [10 + 300 + 1_999]);
    assert!(rig.device().read_u64(Iova(0x1000)).is_ok());
    rig.model.advance_clock(1);
    // Nobody has read CONS: the device itself lets time go on.
    assert!(rig.device().read_u64(Iova(0x1000)).is_err());
    rig.model.report().assert_clean();
}

#[test]
fn sixteen_smmus_wait_together() {
    let model = Model::new(ModelConfig { smmus: vec![config(); 16], ..small(config()) });
    model.stop_clock();
    let queue = model.platform().dma_alloc(4096, 4096).unwrap();
    assert!(model.write_u64(queue, SYNC.encode().0[0]) && model.write_u64(PhysAddr(queue.0 + 8), 0));
    for smmu in 0..16 {
        let mmio = model.mmio(smmu);
        mmio.write64(offset::CMDQ_BASE, queue.0 | 8);
        mmio.write32(offset::CMDQ_PROD, 0);
        mmio.write32(offset::CMDQ_CONS, 0);
        mmio.write32(offset::CR0, 0b1000);
        while mmio.read32(offset::CR0ACK) != 0b1000 {}
        mmio.write32(offset::CMDQ_PROD, 1);
    }
    let done = || (0..16).filter(|&smmu| model.mmio(smmu).read32(offset::CMDQ_CONS) & 0xf_ffff == 1).count();
    model.advance_clock(1_999);
    assert_eq!(done(), 0);
    model.advance_clock(1);
    assert_eq!(done(), 16);
}

#[test]
fn the_platform_shows_the_same_time() {
    let model = Model::new(small(config()));
    model.stop_clock();
    let before = model.platform().now_ns();
    model.advance_clock(77);
    assert_eq!(model.platform().now_ns(), before + 77);
}

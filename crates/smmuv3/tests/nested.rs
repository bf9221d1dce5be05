//! Guests: a guest's stage 1 over the stage 2 of its vSMMU's parent, and the guest's own commands.

mod common;

use common::*;
use smmuv3::arch::{
    AddrSize, Cd, Command, Desc, Granule, MAIR, RawCommand, RawSte, Shape, Stage, SyncSignal, TlbiAddr, TlbiRange,
};
use smmuv3::platform::{Iova, PhysAddr};
use smmuv3::{Geometry, GuestCommandFault, GuestSteError, Kind, MapStreamError, UnmapError, VSmmu, VSmmuError};
use smmuv3_model::{AtsAnswers, AtsBehaviour, DataPages, ModelConfig, ModelPlatform, ModelSmmuConfig, Sabotage};

/// Where the guest's memory begins in its own eyes (IPA).
const GUEST: u64 = 0x4000_0000;
/// The guest's StreamID for the device.
const GUEST_SID: u32 = 3;

fn owed(domain: &Domain) -> Vec<(Kind, u32, u32)> {
    let mut all = Vec::new();
    domain.owed(|owed| all.push((owed.key.kind(), owed.key.id(), owed.users)));
    all
}

/// A guest with a little memory: a CD, a stage 1 table that maps 0x1000 to its last page, and that page.
struct Guest {
    memory: Vec<DataPages>,
    vsmmu: VSmmu<ModelPlatform>,
    asid: u16,
}

const PAGES: u64 = 5;

impl Guest {
    fn new(rig: &Rig, parent: &Domain, asid: u16) -> Guest {
        let memory: Vec<_> = (0..PAGES).map(|_| rig.page()).collect();
        let vsmmu = rig.iommu.vsmmu(&rig.smmu, parent).unwrap();
        let guest = Guest { memory, vsmmu, asid };
        for (page, ipa) in guest.memory.iter().zip((GUEST..).step_by(PAGE as usize)) {
            (0..512).for_each(|word| assert!(rig.model.write_u64(PhysAddr(page.addr().0 + 8 * word), 0)));
            parent.map(Iova(ipa), page.addr(), PAGE, RW).unwrap();
        }
        let shape = Shape::new(Stage::S1, Granule::K4, 39, AddrSize::from_code(2)).unwrap();
        let cd = Cd {
            t0sz: shape.t0sz(),
            granule: Granule::K4,
            output_size: AddrSize::from_code(2),
            ttb0: Some(PhysAddr(GUEST + PAGE)),
            asid,
            private_asid: true,
            mair: MAIR,
            record: true,
            stall: false,
            abort: true,
        };
        for (word, value) in (0..).zip(cd.encode().0) {
            guest.set(rig, 0, word, value);
        }
        guest.set(rig, 1, 0, Desc::table(PhysAddr(GUEST + 2 * PAGE)).0);
        guest.set(rig, 2, 0, Desc::table(PhysAddr(GUEST + 3 * PAGE)).0);
        guest.map(rig, GUEST + 4 * PAGE);
        guest
    }

    /// Writes a word of the guest's memory.
    fn set(&self, rig: &Rig, page: usize, word: u64, value: u64) {
        assert!(rig.model.write_u64(PhysAddr(self.memory[page].addr().0 + 8 * word), value));
    }

    /// What the guest's address 0x1000 maps to.
    fn map(&self, rig: &Rig, ipa: u64) {
        self.set(rig, 3, 1, Desc::leaf(PhysAddr(ipa), 3, Stage::S1, RW).0);
    }

    fn unmap(&self, rig: &Rig) {
        self.set(rig, 3, 1, 0);
    }

    fn tlbi(&self) -> Command {
        let addr = TlbiAddr { addr: 0x1000, leaf: true, range: None };
        // The guest thinks that it has VMID 0, or tries any other.
        Command::TlbiNhVa { vmid: 77, asid: self.asid, addr }
    }
}

/// A guest's STE: V, Config = stage 1, one CD at the guest's first page.
fn stage1() -> RawSte {
    RawSte([GUEST | 0b101 << 1 | 1, 0, 0, 0, 0, 0, 0, 0])
}

#[test]
fn a_guest_s_device_is_translated_twice_and_both_kinds_of_unmap_hold() {
    let rig = Rig::new();
    let (device, parent) = (rig.add(SID), rig.domain(Stage::S2));
    let guest = Guest::new(&rig, &parent, 9);
    guest.vsmmu.map_stream(GUEST_SID, &device).unwrap();
    device.attach_nested(&guest.vsmmu.nested_domain(&stage1()).unwrap()).unwrap();
    let vmid = u32::from(guest.vsmmu.vmid());
    assert_eq!(owed(&parent), [(Kind::S2Vmid, vmid, 1), (Kind::S2VmidS1Clear, vmid, 1)]);

    let hw = rig.device(SID);
    hw.write_u64(Iova(0x1000), 1).unwrap();
    assert_eq!(rig.model.read_u64(guest.memory[4].addr()), Some(1));
    // The guest unmaps.
    guest.unmap(&rig);
    assert!(hw.write_u64(Iova(0x1000), 2).is_ok(), "the TLB has it still");
    guest.vsmmu.invalidate(&[guest.tlbi().encode()]).unwrap();
    assert!(hw.write_u64(Iova(0x1000), 3).is_err());
    // The host takes the page away from under the guest.
    guest.map(&rig, GUEST + 4 * PAGE);
    hw.write_u64(Iova(0x1000), 4).unwrap();
    rig.take_commands(0);
    parent.unmap(Iova(GUEST + 4 * PAGE), PAGE).unwrap();
    let names: Vec<_> = rig.take_commands(0).iter().map(|command| command.mnemonic()).collect();
    assert_eq!(names, ["TLBI_S2_IPA", "SYNC", "TLBI_NH_ALL", "SYNC"]);
    let Guest { mut memory, vsmmu, .. } = guest;
    rig.model.free_data(memory.pop().unwrap());
    assert!(hw.write_u64(Iova(0x1000), 5).is_err());
    device.detach().unwrap();
    assert_eq!(owed(&parent), []);
    drop(vsmmu);
    rig.model.report().assert_clean();
}

/// The new entry of both stages is younger than the page's new use; the old one of stage 2, which it is made of, is not.
#[test]
fn without_the_tlbi_of_stage_2_the_model_finds_stale_dma_in_a_page_that_was_given_out_again() {
    let rig = Rig::new();
    let (device, parent) = (rig.add(SID), rig.domain(Stage::S2));
    let mut guest = Guest::new(&rig, &parent, 9);
    device.attach_nested(&guest.vsmmu.nested_domain(&stage1()).unwrap()).unwrap();
    rig.device(SID).write_u64(Iova(0x1000), 1).unwrap();
    rig.model.sabotage(0, Sabotage::IgnoreTlbiByAddress);
    parent.unmap(Iova(GUEST + 4 * PAGE), PAGE).unwrap();
    let page = guest.memory.pop().unwrap();
    let addr = page.addr();
    rig.model.free_data(page);
    let others: Vec<_> =
        std::iter::from_fn(|| rig.model.alloc_data(1)).take_while(|page| page.addr() != addr).collect();
    assert!(rig.device(SID).write_u64(Iova(0x1000), 2).is_ok());
    assert_eq!(rig.model.report().stale_dma, 1);
    drop(others);
}

#[test]
fn without_the_clear_of_stage_1_the_model_finds_stale_dma() {
    let rig = Rig::new();
    let (device, parent) = (rig.add(SID), rig.domain(Stage::S2));
    let mut guest = Guest::new(&rig, &parent, 9);
    device.attach_nested(&guest.vsmmu.nested_domain(&stage1()).unwrap()).unwrap();
    rig.device(SID).write_u64(Iova(0x1000), 1).unwrap();
    rig.model.sabotage(0, Sabotage::IgnoreTlbiByTag);
    parent.unmap(Iova(GUEST + 4 * PAGE), PAGE).unwrap();
    rig.model.free_data(guest.memory.pop().unwrap());
    let _ = rig.device(SID).write_u64(Iova(0x1000), 2);
    assert_eq!(rig.model.report().stale_dma, 1);
}

#[test]
fn a_parent_attached_as_itself_owes_what_a_plain_domain_does_also_beside_a_vsmmu() {
    let rig = Rig::new();
    let (plain, nested, parent) = (rig.add(OTHER), rig.add(SID), rig.domain(Stage::S2));
    let guest = Guest::new(&rig, &parent, 1);
    let vmid = u32::from(guest.vsmmu.vmid());
    let domain = guest.vsmmu.nested_domain(&stage1()).unwrap();
    // Whichever comes first.
    for nested_first in [true, false] {
        if nested_first {
            nested.attach_nested(&domain).unwrap();
        }
        plain.attach(&parent).unwrap();
        if !nested_first {
            nested.attach_nested(&domain).unwrap();
        }
        let all = owed(&parent);
        let own: Vec<_> = all.iter().filter(|(kind, id, _)| *kind == Kind::S2Vmid && *id != vmid).collect();
        assert_eq!((all.len(), own.len()), (3, 1), "{all:?}");
        assert!(all.contains(&(Kind::S2VmidS1Clear, vmid, 1)));
        // A second device in the same way: one user more, no entry more.
        let second = rig.add(0x77);
        second.attach(&parent).unwrap();
        assert_eq!(owed(&parent).len(), 3);
        assert!(owed(&parent).iter().any(|(_, id, users)| *id != vmid && *users == 2));
        drop(second);
        let page = rig.page();
        parent.map(Iova(0x8000_0000), page.addr(), PAGE, RW).unwrap();
        rig.device(OTHER).write_u64(Iova(0x8000_0000), 1).unwrap();
        rig.device(SID).write_u64(Iova(0x1000), 1).unwrap();
        parent.unmap(Iova(0x8000_0000), PAGE).unwrap();
        rig.model.free_data(page);
        assert!(rig.device(OTHER).write_u64(Iova(0x8000_0000), 1).is_err());
        plain.detach().unwrap();
        assert_eq!(owed(&parent), [(Kind::S2Vmid, vmid, 1), (Kind::S2VmidS1Clear, vmid, 1)]);
        rig.device(SID).write_u64(Iova(0x1000), 2).unwrap();
        nested.detach().unwrap();
        assert_eq!(owed(&parent), []);
    }
    rig.model.report().assert_clean();
}

#[test]
fn guests_on_one_parent_have_vmids_of_their_own_and_cannot_touch_each_other() {
    let rig = Rig::new();
    let (first, second, parent) = (rig.add(SID), rig.add(OTHER), rig.domain(Stage::S2));
    let guest = Guest::new(&rig, &parent, 9);
    let other = rig.iommu.vsmmu(&rig.smmu, &parent).unwrap();
    assert_ne!(guest.vsmmu.vmid(), other.vmid());
    first.attach_nested(&guest.vsmmu.nested_domain(&stage1()).unwrap()).unwrap();
    second.attach_nested(&other.nested_domain(&stage1()).unwrap()).unwrap();
    guest.vsmmu.map_stream(GUEST_SID, &first).unwrap();
    other.map_stream(GUEST_SID, &second).unwrap();
    rig.device(SID).write_u64(Iova(0x1000), 1).unwrap();
    rig.device(OTHER).write_u64(Iova(0x1000), 2).unwrap();
    guest.unmap(&rig);
    // The second guest's commands, whatever VMID they name, leave the first guest's entries alone.
    let vmid = guest.vsmmu.vmid();
    let all = [
        Command::TlbiNhAll { vmid },
        Command::TlbiNhAsid { vmid, asid: 9 },
        Command::TlbiNhVaa { vmid, addr: TlbiAddr { addr: 0x1000, leaf: false, range: None } },
        Command::TlbiNsnhAll,
        Command::CfgiCdAll { sid: GUEST_SID },
        Command::CfgiCd { sid: GUEST_SID, ssid: 0, leaf: true },
        Command::Sync(SyncSignal::None),
    ];
    rig.take_commands(0);
    other.invalidate(&all.map(|command| command.encode())).unwrap();
    let vmid = other.vmid();
    let range = TlbiAddr { addr: 0x1000, leaf: false, range: None };
    let sync = Command::Sync(SyncSignal::None);
    assert_eq!(
        rig.take_commands(0),
        [
            Command::TlbiNhAll { vmid },
            Command::TlbiNhAsid { vmid, asid: 9 },
            Command::TlbiNhVaa { vmid, addr: range },
            Command::TlbiNhAll { vmid },
            Command::CfgiCdAll { sid: OTHER },
            Command::CfgiCd { sid: OTHER, ssid: 0, leaf: true },
            sync,
            sync
        ]
    );
    assert!(rig.device(SID).write_u64(Iova(0x1000), 3).is_ok(), "the first guest's TLB entry was touched");
    assert!(rig.device(OTHER).write_u64(Iova(0x1000), 4).is_err());
    rig.model.report().assert_clean();
}

#[test]
fn commands_that_are_not_a_guest_s_stop_the_batch_at_their_index() {
    let rig = Rig::new();
    let (device, parent) = (rig.add(SID), rig.domain(Stage::S2));
    let guest = Guest::new(&rig, &parent, 9);
    guest.vsmmu.map_stream(GUEST_SID, &device).unwrap();
    let good = guest.tlbi();
    let stop = |command: RawCommand| {
        let batch = [good.encode(), good.encode(), command, good.encode()];
        rig.take_commands(0);
        let error = guest.vsmmu.invalidate(&batch).unwrap_err();
        assert_eq!(error.index, 2, "{error}");
        assert_eq!(rig.take_commands(0).len(), 3, "those before were carried out, with a CMD_SYNC");
        error.cause
    };
    for command in [
        Command::CfgiSte { sid: GUEST_SID, leaf: true },
        Command::CfgiSteRange { sid: 0, range: 31 },
        Command::TlbiEl2All,
        Command::TlbiEl2Asid { asid: 1 },
        Command::TlbiS12Vmall { vmid: 1 },
        Command::TlbiS2Ipa { vmid: 1, addr: TlbiAddr { addr: 0, leaf: false, range: None } },
        Command::PrefetchConfig { sid: GUEST_SID, ssid: None },
        Command::Resume { sid: GUEST_SID, stag: 1, retry: true, abort: false },
        Command::StallTerm { sid: GUEST_SID },
        Command::PriResp { sid: GUEST_SID, ssid: None, prg_index: 0, resp: 0 },
        Command::Sync(SyncSignal::Msi { addr: 0x8000_0000, data: 1 }),
        Command::Sync(SyncSignal::Sev),
    ] {
        assert!(matches!(stop(command.encode()), GuestCommandFault::Forbidden(_)), "{command:?}");
    }
    assert_eq!(stop(Command::CfgiCdAll { sid: 4 }.encode()), GuestCommandFault::NoStream(4));
    assert!(matches!(stop(RawCommand([0xff, 0])), GuestCommandFault::Illegal(_)));
    let range = TlbiRange { granule: Granule::K4, num: 1, scale: 40, ttl: 0 };
    let addr = TlbiAddr { addr: 0, leaf: false, range: Some(range) };
    let fault = stop(Command::TlbiNhVaa { vmid: 0, addr }.encode());
    assert!(matches!(fault, GuestCommandFault::Unsupported(_)), "{fault}");
    let text = guest.vsmmu.invalidate(&[Command::TlbiEl2All.encode()]).unwrap_err().to_string();
    assert_eq!(text, "command 0 of the guest: CMD_TLBI_EL2_ALL is not a guest's to issue");
    // Longer than one batch: the index counts from the start.
    let mut long = vec![good.encode(); 100];
    long[77] = RawCommand([0xff, 0]);
    assert_eq!(guest.vsmmu.invalidate(&long).unwrap_err().index, 77);
    rig.model.report().assert_clean();
}

#[test]
fn fields_that_this_smmu_does_not_have_are_refused_in_a_guest_s_commands() {
    let config = ModelSmmuConfig { asid16: false, range_inv: false, ssid_bits: 4, ats: false, ..Default::default() };
    let rig = Rig::with(ModelConfig::with_smmu(config));
    let (device, parent) = (rig.add(SID), rig.domain(Stage::S2));
    let vsmmu = rig.iommu.vsmmu(&rig.smmu, &parent).unwrap();
    vsmmu.map_stream(GUEST_SID, &device).unwrap();
    let range = Some(TlbiRange { granule: Granule::K4, num: 1, scale: 0, ttl: 0 });
    for command in [
        Command::TlbiNhAsid { vmid: 0, asid: 0x100 },
        Command::TlbiNhVaa { vmid: 0, addr: TlbiAddr { addr: 0, leaf: false, range } },
        Command::CfgiCd { sid: GUEST_SID, ssid: 0x10, leaf: true },
        Command::AtcInv { sid: GUEST_SID, ssid: None, global: false, addr: 0, size: 0 },
    ] {
        let error = vsmmu.invalidate(&[command.encode()]).unwrap_err();
        assert!(matches!(error.cause, GuestCommandFault::Unsupported(_)), "{error}");
    }
    rig.model.report().assert_clean();
}

#[test]
fn a_guest_may_write_what_is_allowed_into_its_ste_and_nothing_else() {
    let rig = Rig::new();
    let parent = rig.domain(Stage::S2);
    let vsmmu = rig.iommu.vsmmu(&rig.smmu, &parent).unwrap();
    let check = |ste| vsmmu.nested_domain(&ste).map(|_| ());
    let with = |word: usize, bits| {
        let mut ste = stage1();
        ste.0[word] |= bits;
        check(ste)
    };
    assert_eq!(check(stage1()), Ok(()));
    assert_eq!(check(RawSte::default()), Ok(()), "V = 0 aborts");
    assert_eq!(check(RawSte([1, 0, 0, 0, 0, 0, 0, 0])), Ok(()), "abort");
    assert_eq!(check(RawSte([0b1001, 0, 0, 0, 0, 0, 0, 0])), Ok(()), "bypass");
    assert_eq!(with(0, 8 << 59), Ok(()), "S1CDMax");
    assert_eq!(with(1, 0b01 | 0xfc | 0b01 << 28), Ok(()), "S1DSS, cacheability, full ATS");
    assert_eq!(with(0, 0b010 << 1), Err(GuestSteError::Config(0b111)));
    assert_eq!(check(RawSte([0b1101, 0, 0, 0, 0, 0, 0, 0])), Err(GuestSteError::Config(0b110)));
    assert_eq!(with(1, 0b10 << 28), Err(GuestSteError::Eats(2)));
    assert_eq!(with(0, 1 << 39), Err(GuestSteError::Pointer { pointer: GUEST | 1 << 39, bits: 39 }));
    assert!(matches!(with(0, 21 << 59), Err(GuestSteError::Illegal(_))), "more substreams than the SMMU has");
    // Every other bit of the 512, one at a time.
    let allowed = [0xf8ff_ffff_ffff_ffff_u64, 0x3800_00ff, 0, 0, 0, 0, 0, 0];
    for (word, allowed) in allowed.iter().enumerate() {
        for bit in (0..64).filter(|bit| allowed >> bit & 1 == 0) {
            assert_eq!(with(word, 1 << bit), Err(GuestSteError::Forbidden { word: word as u8, bits: 1 << bit }));
        }
    }
}

#[test]
fn a_guest_s_abort_and_bypass_are_the_device_s_and_bypass_still_has_stage_2() {
    let rig = Rig::new();
    let (device, parent) = (rig.add(SID), rig.domain(Stage::S2));
    let guest = Guest::new(&rig, &parent, 9);
    let nested = |ste: [u64; 2]| guest.vsmmu.nested_domain(&RawSte([ste[0], ste[1], 0, 0, 0, 0, 0, 0])).unwrap();
    device.attach_nested(&nested([0b1001, 0])).unwrap();
    rig.device(SID).write_u64(Iova(GUEST + 4 * PAGE), 5).unwrap();
    assert_eq!(rig.model.read_u64(guest.memory[4].addr()), Some(5));
    assert!(rig.device(SID).write_u64(Iova(guest.memory[4].addr().0), 6).is_err());
    device.attach_nested(&nested([0, 0])).unwrap();
    assert!(rig.device(SID).write_u64(Iova(GUEST + 4 * PAGE), 7).is_err());
    device.attach_nested(&guest.vsmmu.nested_domain(&stage1()).unwrap()).unwrap();
    rig.device(SID).write_u64(Iova(0x1000), 8).unwrap();
    device.detach().unwrap();
    rig.model.report().assert_clean();
}

#[test]
fn vsmmus_give_their_vmid_back_clean_and_streams_belong_to_living_devices() {
    let rig = Rig::with(ModelConfig::with_smmu(ModelSmmuConfig { vmid16: false, ..Default::default() }));
    let (s1, parent) = (rig.domain(Stage::S1), rig.domain(Stage::S2));
    assert_eq!(rig.iommu.vsmmu(&rig.smmu, &s1).err(), Some(VSmmuError::NotStage2));
    let device = rig.add(SID);
    // Round and round the 255 VMIDs, each with a guest that leaves its translations behind.
    for asid in 0..300 {
        let guest = Guest::new(&rig, &parent, asid % 200);
        device.attach_nested(&guest.vsmmu.nested_domain(&stage1()).unwrap()).unwrap();
        rig.device(SID).write_u64(Iova(0x1000), 1).unwrap();
        device.detach().unwrap();
        parent.unmap(Iova(GUEST), PAGES * PAGE).unwrap();
        guest.memory.into_iter().for_each(|page| rig.model.free_data(page));
    }
    let all: Vec<_> = (0..255).map(|_| rig.iommu.vsmmu(&rig.smmu, &parent).unwrap()).collect();
    assert_eq!(rig.iommu.vsmmu(&rig.smmu, &parent).err(), Some(VSmmuError::NoVmid(rig.smmu.id())));
    let vsmmu = &all[0];
    vsmmu.map_stream(1, &device).unwrap();
    assert_eq!(vsmmu.map_stream(1, &device), Err(MapStreamError::InUse(1)));
    let command = [Command::CfgiCdAll { sid: 1 }.encode()];
    vsmmu.invalidate(&command).unwrap();
    // The device goes; its StreamID is another's. The guest must not reach it.
    drop(device);
    let _other = rig.add(SID);
    rig.take_commands(0);
    assert_eq!(vsmmu.invalidate(&command).unwrap_err().cause, GuestCommandFault::NoStream(1));
    assert!(rig.take_commands(0).iter().all(|command| matches!(command, Command::Sync(_))));
    assert!(vsmmu.unmap_stream(1));
    assert!(!vsmmu.unmap_stream(1));
    rig.model.report().assert_clean();
}

#[test]
fn a_guest_s_atc_is_flushed_whole_when_the_host_unmaps_and_by_the_guest_s_own_command() {
    let rig = Rig::new();
    let parent = rig.domain(Stage::S2);
    let device = rig.iommu.add_device(&rig.smmu, smmuv3::DeviceConfig::stream(SID).ats()).unwrap();
    let mut guest = Guest::new(&rig, &parent, 9);
    let vmid = u32::from(guest.vsmmu.vmid());
    guest.vsmmu.map_stream(GUEST_SID, &device).unwrap();
    let mut ste = stage1();
    let without = guest.vsmmu.nested_domain(&ste).unwrap();
    ste.0[1] |= 1 << 28;
    let with = guest.vsmmu.nested_domain(&ste).unwrap();
    // The guest decides about ATS; the array follows.
    device.attach_nested(&without).unwrap();
    assert!(!device.ats());
    device.attach_nested(&with).unwrap();
    assert!(device.ats());
    let entries = [(Kind::S2Vmid, vmid, 1), (Kind::S2VmidS1Clear, vmid, 1), (Kind::AtsFull, SID, 1)];
    assert_eq!(owed(&parent), entries);
    let hw = rig.device(SID);
    let atc_inv = Command::AtcInv { sid: GUEST_SID, ssid: None, global: false, addr: 0x1000, size: 0 };
    let sync = Command::Sync(SyncSignal::None);
    // The guest unmaps.
    hw.ats_write_u64(Iova(0x1000), 1).unwrap();
    guest.unmap(&rig);
    guest.vsmmu.invalidate(&[guest.tlbi().encode(), sync.encode(), atc_inv.encode()]).unwrap();
    assert!(hw.ats_write_u64(Iova(0x1000), 2).is_err());
    // The host unmaps.
    guest.map(&rig, GUEST + 4 * PAGE);
    hw.ats_write_u64(Iova(0x1000), 3).unwrap();
    rig.take_commands(0);
    parent.unmap(Iova(GUEST + 4 * PAGE), PAGE).unwrap();
    let names: Vec<_> = rig.take_commands(0).iter().map(|command| command.mnemonic()).collect();
    assert_eq!(names, ["TLBI_S2_IPA", "SYNC", "TLBI_NH_ALL", "SYNC", "ATC_INV", "SYNC"]);
    rig.model.free_data(guest.memory.pop().unwrap());
    assert!(hw.ats_write_u64(Iova(0x1000), 4).is_err());
    // With ATS off, the guest's ATC_INV goes nowhere: the function might never answer.
    device.attach_nested(&without).unwrap();
    rig.take_commands(0);
    guest.vsmmu.invalidate(&[atc_inv.encode()]).unwrap();
    assert_eq!(rig.take_commands(0), [sync]);
    device.detach().unwrap();
    assert_eq!(owed(&parent), []);
    rig.model.report().assert_clean();
}

#[test]
fn without_the_order_of_stage_2_stage_1_and_atc_the_model_finds_stale_dma() {
    // A CMD_SYNC between the kinds that completes nothing: the old translation is fetched again.
    let rig = Rig::late();
    let parent = rig.domain(Stage::S2);
    let device = rig.iommu.add_device(&rig.smmu, smmuv3::DeviceConfig::stream(SID).ats()).unwrap();
    let mut guest = Guest::new(&rig, &parent, 9);
    let mut ste = stage1();
    ste.0[1] |= 1 << 28;
    device.attach_nested(&guest.vsmmu.nested_domain(&ste).unwrap()).unwrap();
    rig.device(SID).ats_write_u64(Iova(0x1000), 1).unwrap();
    rig.model.sabotage(0, Sabotage::IgnoreInnerSync);
    parent.unmap(Iova(GUEST + 4 * PAGE), PAGE).unwrap();
    rig.model.free_data(guest.memory.pop().unwrap());
    let _ = rig.device(SID).ats_write_u64(Iova(0x1000), 2);
    let _ = rig.device(SID).write_u64(Iova(0x1000), 2);
    assert!(rig.model.report().stale_dma > 0);
}

#[test]
fn a_vmid_under_which_a_device_broke_is_never_given_out_again() {
    let rig = Rig::with(ModelConfig::with_smmu(ModelSmmuConfig { vmid16: false, ..Default::default() }));
    let (device, parent) = (rig.add(SID), rig.domain(Stage::S2));
    let guest = Guest::new(&rig, &parent, 9);
    let vmid = guest.vsmmu.vmid();
    device.attach_nested(&guest.vsmmu.nested_domain(&stage1()).unwrap()).unwrap();
    rig.device(SID).write_u64(Iova(0x1000), 1).unwrap();
    rig.model.set_dead(0, true);
    device.detach().unwrap_err();
    rig.model.set_dead(0, false);
    // The SMMU is back: the device can be blocked, but what the TLB holds under its VMID nobody has flushed.
    device.detach().unwrap();
    assert!(rig.device(SID).write_u64(Iova(0x1000), 2).is_err());
    drop((device, guest.vsmmu));
    let all: Vec<_> = (0..254).map(|_| rig.iommu.vsmmu(&rig.smmu, &parent).unwrap()).collect();
    assert!(all.iter().all(|vsmmu| vsmmu.vmid() != vmid));
    assert!(rig.iommu.vsmmu(&rig.smmu, &parent).is_err());
}

#[test]
fn a_guest_s_device_that_does_not_answer_is_cut_off_before_the_host_s_unmap_returns() {
    let rig = Rig::new();
    let parent = rig.domain(Stage::S2);
    let device = rig.iommu.add_device(&rig.smmu, smmuv3::DeviceConfig::stream(SID).ats()).unwrap();
    let mut guest = Guest::new(&rig, &parent, 9);
    let mut ste = stage1();
    ste.0[1] |= 1 << 28;
    device.attach_nested(&guest.vsmmu.nested_domain(&ste).unwrap()).unwrap();
    rig.device(SID).ats_write_u64(Iova(0x1000), 1).unwrap();
    let behaviour = AtsBehaviour { answers: AtsAnswers::Never, ..AtsBehaviour::default() };
    rig.model.set_ats(0, SID, behaviour);
    let error = parent.unmap(Iova(GUEST + 4 * PAGE), PAGE).unwrap_err();
    assert!(matches!(error, UnmapError::CutOff { source, .. } if source.sid == Some(SID)), "{error}");
    rig.model.free_data(guest.memory.pop().unwrap());
    assert!(rig.device(SID).ats_write_u64(Iova(0x1000), 2).is_err());
    assert_eq!(rig.model.report().stale_dma, 0);
}

#[test]
fn a_guest_s_atc_invalidation_is_never_smaller_than_the_smallest_translation_unit() {
    let config = ModelSmmuConfig { granules: [false, false, true], ..Default::default() };
    let rig = Rig::with(ModelConfig::with_smmu(config));
    let geometry = Geometry { granule: Granule::K64, ..Geometry::default() };
    let parent = rig.iommu.paging_domain(Stage::S2, geometry).unwrap();
    let device = rig.iommu.add_device(&rig.smmu, smmuv3::DeviceConfig::stream(SID).ats()).unwrap();
    let vsmmu = rig.iommu.vsmmu(&rig.smmu, &parent).unwrap();
    vsmmu.map_stream(GUEST_SID, &device).unwrap();
    let mut ste = stage1();
    ste.0[1] |= 1 << 28;
    device.attach_nested(&vsmmu.nested_domain(&ste).unwrap()).unwrap();
    rig.take_commands(0);
    let command = Command::AtcInv { sid: GUEST_SID, ssid: None, global: false, addr: 0x1_0000, size: 0 };
    vsmmu.invalidate(&[command.encode()]).unwrap();
    let sent = Command::AtcInv { sid: SID, ssid: None, global: false, addr: 0x1_0000, size: 4 };
    assert_eq!(rig.take_commands(0)[0], sent);
    rig.model.report().assert_clean();
}

#[test]
fn a_guest_s_streamid_is_free_again_when_its_device_is_gone() {
    let rig = Rig::new();
    let vsmmu = rig.iommu.vsmmu(&rig.smmu, &rig.domain(Stage::S2)).unwrap();
    for _ in 0..2 {
        let device = rig.add(SID);
        vsmmu.map_stream(GUEST_SID, &device).unwrap();
        vsmmu.invalidate(&[Command::CfgiCdAll { sid: GUEST_SID }.encode()]).unwrap();
    }
}

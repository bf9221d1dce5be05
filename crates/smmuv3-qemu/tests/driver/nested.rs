//! A guest's stage 1 over the stage 2 of its vSMMU's parent.

use libtest_mimic::Failed;
use smmuv3::arch::{AddrSize, Cd, Command, Desc, Event, Granule, MAIR, RawSte, Shape, Stage, TlbiAddr};
use smmuv3::platform::{Iova, PhysAddr};
use smmuv3::{Kind, VSmmu};
use smmuv3_qemu::{Qemu, QemuPlatform};

use crate::support::{Dma, Domain, LEN, PAGE, RW, Rig, TestResult, owed};

/// Where the guest's memory begins in its own eyes (IPA). There is nothing at this physical address.
const GUEST: u64 = 0x12_3400_0000;
/// The guest's StreamID for the device.
const GUEST_SID: u32 = 3;
const ASID: u16 = 9;

// The pages of the guest's memory: its CD, its tables, and two for DMA.
const CD: usize = 0;
const LEVEL_1: usize = 1;
const LEVEL_2: usize = 2;
const LEVEL_3: usize = 3;
const FIRST: usize = 4;
const SECOND: usize = 5;
const PAGES: usize = 6;

/// Where the guest maps its pages for DMA (VA).
const FIRST_AT: Iova = Iova(0x1000);
const SECOND_AT: Iova = Iova(0x2000);

/// A guest with a little memory, and a table that maps two pages of it.
struct Guest<'a> {
    rig: &'a Rig,
    memory: Vec<PhysAddr>,
    vsmmu: VSmmu<QemuPlatform>,
}

/// The guest's address (IPA) of one of its pages.
fn ipa(page: usize) -> u64 {
    GUEST + page as u64 * PAGE
}

impl<'a> Guest<'a> {
    fn new(rig: &'a Rig, parent: &Domain) -> Result<Guest<'a>, Failed> {
        let vsmmu = rig.iommu.vsmmu(&rig.smmus[0], parent)?;
        let mut memory = Vec::new();
        for page in 0..PAGES {
            // Nobody's page between two of the guest's.
            rig.page(PAGE, 0)?;
            let addr = rig.page(PAGE, 0)?;
            rig.ram().write_bytes(addr, &[0; PAGE as usize])?;
            parent.map(Iova(ipa(page)), addr, PAGE, RW)?;
            memory.push(addr);
        }
        let guest = Guest { rig, memory, vsmmu };
        guest.write_cd()?;
        guest.set(LEVEL_1, 0, Desc::table(PhysAddr(ipa(LEVEL_2))).0)?;
        guest.set(LEVEL_2, 0, Desc::table(PhysAddr(ipa(LEVEL_3))).0)?;
        guest.map(FIRST_AT, FIRST)?;
        guest.map(SECOND_AT, SECOND)?;
        Ok(guest)
    }

    fn write_cd(&self) -> TestResult {
        let output_size = AddrSize::from_code(2);
        let shape = Shape::new(Stage::S1, Granule::K4, 39, output_size)?;
        let cd = Cd {
            t0sz: shape.t0sz(),
            granule: Granule::K4,
            output_size,
            ttb0: Some(PhysAddr(ipa(LEVEL_1))),
            asid: ASID,
            private_asid: true,
            mair: MAIR,
            record: true,
            stall: false,
            abort: true,
        };
        (0..).zip(cd.encode().0).try_for_each(|(word, value)| self.set(CD, word, value))
    }

    /// Attaches `dma` to what the guest's STE says: stage 1, with one CD.
    fn attach(&self, dma: &Dma) -> TestResult {
        self.vsmmu.map_stream(GUEST_SID, &dma.device)?;
        let ste = RawSte([ipa(CD) | 0b101 << 1 | 1, 0, 0, 0, 0, 0, 0, 0]);
        Ok(dma.device.attach_nested(&self.vsmmu.nested_domain(&ste)?)?)
    }

    /// Writes a word of the guest's memory.
    fn set(&self, page: usize, word: u64, value: u64) -> TestResult {
        let addr = PhysAddr(self.memory[page].0 + 8 * word);
        Ok(self.rig.ram().write_bytes(addr, &value.to_le_bytes())?)
    }

    /// Maps `at`, below 2 MiB, to one of the guest's pages.
    fn map(&self, at: Iova, page: usize) -> TestResult {
        self.set(LEVEL_3, at.0 / PAGE, Desc::leaf(PhysAddr(ipa(page)), 3, Stage::S1, RW).0)
    }

    fn unmap(&self, at: Iova) -> TestResult {
        self.set(LEVEL_3, at.0 / PAGE, 0)
    }

    fn issue(&self, command: Command) -> TestResult {
        Ok(self.vsmmu.invalidate(&[command.encode()])?)
    }

    /// The guest thinks that it has VMID 0.
    fn tlbi(&self, at: Iova) -> TestResult {
        let addr = TlbiAddr { addr: at.0, leaf: true, range: None };
        self.issue(Command::TlbiNhVa { vmid: 0, asid: ASID, addr })
    }
}

pub(crate) fn a_device_is_translated_twice_and_both_kinds_of_unmap_hold(qemu: &Qemu) -> TestResult {
    let rig = Rig::new(qemu, 1)?;
    let parent = rig.domain(Stage::S2)?;
    let mut dma = rig.dma(0)?;
    let guest = Guest::new(&rig, &parent)?;
    guest.attach(&dma)?;
    let (first, second) = (guest.memory[FIRST], guest.memory[SECOND]);

    // Both ways.
    rig.fill(first, 1)?;
    dma.edu.copy_in(FIRST_AT, LEN, 0)?;
    dma.edu.copy_out(SECOND_AT, LEN, 0)?;
    rig.expect(second, 1);
    rig.expect_quiet();

    // The guest unmaps. Until it says so, the SMMU may go on using what it remembers; QEMU's does.
    guest.unmap(FIRST_AT)?;
    rig.fill(first, 2)?;
    dma.edu.copy_out(FIRST_AT, LEN, 0)?;
    rig.expect(first, 1);
    guest.tlbi(FIRST_AT)?;
    rig.fill(first, 2)?;
    dma.edu.copy_out(FIRST_AT, LEN, 0)?;
    rig.expect(first, 2);
    rig.expect_refused(&dma, FIRST_AT, Stage::S1, 0);

    // The host takes a page away from under the guest, which the SMMU has just translated.
    dma.edu.copy_out(SECOND_AT, LEN, 0)?;
    rig.expect_quiet();
    rig.fill(second, 3)?;
    parent.unmap(Iova(ipa(SECOND)), PAGE)?;
    dma.edu.copy_out(SECOND_AT, LEN, 0)?;
    rig.expect(second, 3);
    rig.expect_refused(&dma, SECOND_AT, Stage::S2, ipa(SECOND));

    dma.device.detach()?;
    assert_eq!(owed(&parent), []);
    rig.expect_quiet();
    Ok(())
}

pub(crate) fn a_guest_s_own_configuration_commands_reach_its_device(qemu: &Qemu) -> TestResult {
    let rig = Rig::new(qemu, 1)?;
    let parent = rig.domain(Stage::S2)?;
    let mut dma = rig.dma(0)?;
    let guest = Guest::new(&rig, &parent)?;
    guest.attach(&dma)?;
    let first = guest.memory[FIRST];
    rig.fill(first, 1)?;
    dma.edu.copy_in(FIRST_AT, LEN, 0)?;

    // The guest takes its CD away. Its StreamID is not the host's.
    guest.set(CD, 0, 0)?;
    guest.issue(Command::CfgiCd { sid: GUEST_SID, ssid: 0, leaf: true })?;
    rig.fill(first, 2)?;
    dma.edu.copy_out(FIRST_AT, LEN, 0)?;
    rig.expect(first, 2);
    let events = rig.events(0);
    assert!(!events.is_empty());
    for event in events {
        assert!(matches!(event, Event::CBadCd(stream) if stream.sid == dma.edu.stream_id()), "{event}");
    }

    // And puts it back.
    guest.write_cd()?;
    guest.issue(Command::CfgiCdAll { sid: GUEST_SID })?;
    dma.edu.copy_out(FIRST_AT, LEN, 0)?;
    rig.expect(first, 1);
    rig.expect_quiet();
    Ok(())
}

pub(crate) fn a_guest_s_device_and_one_on_the_parent_itself_at_the_same_time(qemu: &Qemu) -> TestResult {
    let rig = Rig::new(qemu, 1)?;
    let parent = rig.domain(Stage::S2)?;
    let (mut nested, mut plain) = (rig.dma(0)?, rig.dma(1)?);
    let guest = Guest::new(&rig, &parent)?;
    guest.attach(&nested)?;
    plain.device.attach(&parent)?;
    assert_eq!(owed(&parent), [Kind::S2Vmid, Kind::S2Vmid, Kind::S2VmidS1Clear]);
    let (first, second) = (guest.memory[FIRST], guest.memory[SECOND]);
    let plain_at = |page| Iova(ipa(page));

    // The same pages, through one stage and through two, both ways.
    rig.fill(first, 1)?;
    rig.fill(second, 2)?;
    nested.edu.start_copy_in(FIRST_AT, LEN, 0)?;
    plain.edu.start_copy_in(plain_at(SECOND), LEN, 0)?;
    nested.edu.wait()?;
    plain.edu.wait()?;
    nested.edu.start_copy_out(SECOND_AT, LEN, 0)?;
    plain.edu.start_copy_out(plain_at(FIRST), LEN, 0)?;
    nested.edu.wait()?;
    plain.edu.wait()?;
    rig.expect(second, 1);
    rig.expect(first, 2);
    rig.expect_quiet();

    // The host unmaps both pages: one after the other, while neither device, then while both are at work.
    rig.fill(first, 3)?;
    parent.unmap(plain_at(FIRST), PAGE)?;
    nested.edu.copy_out(FIRST_AT, LEN, 0)?;
    rig.expect_refused(&nested, FIRST_AT, Stage::S2, ipa(FIRST));
    plain.edu.copy_out(plain_at(FIRST), LEN, 0)?;
    rig.expect_refused(&plain, plain_at(FIRST), Stage::S2, ipa(FIRST));
    rig.expect(first, 3);
    nested.edu.start_copy_out(SECOND_AT, LEN, 0)?;
    plain.edu.start_copy_out(plain_at(SECOND), LEN, 0)?;
    parent.unmap(plain_at(SECOND), PAGE)?;
    // Where this host was so slow that a transfer was over before, it did no harm.
    rig.fill(second, 4)?;
    nested.edu.wait()?;
    plain.edu.wait()?;
    rig.expect(second, 4);
    rig.events(0);

    // The guest's device goes; the other stays.
    nested.device.detach()?;
    assert_eq!(owed(&parent), [Kind::S2Vmid]);
    parent.map(plain_at(FIRST), first, PAGE, RW)?;
    plain.edu.copy_out(plain_at(FIRST), LEN, 0)?;
    rig.expect(first, 2);
    rig.expect_quiet();
    Ok(())
}

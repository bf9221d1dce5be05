//! What each kind of domain owes for a device: the exact entries of its array as devices come and go, and the exact commands of an unmap of
//! one page, of 2 MiB, and of everything.

mod common;

use common::*;
use smmuv3::arch::{AddrSize, Command, Granule, MAIR, RawSte, Stage, SyncSignal, TlbiAddr, TlbiRange};
use smmuv3::platform::Iova;
use smmuv3::{Device, DeviceConfig, Geometry, Kind, NestedDomain, SvaDomain, SvaTable, VSmmu};
use smmuv3_model::ModelPlatform;

type Entries = Vec<(Kind, u32, u32, u32)>;

const SYNC: Command = Command::Sync(SyncSignal::None);

fn add(rig: &Rig, sid: u32, ats: bool) -> Device<ModelPlatform> {
    let config = DeviceConfig::stream(sid).pasid_bits(8);
    rig.iommu.add_device(&rig.smmu, if ats { config.ats() } else { config }).unwrap()
}

fn owed(domain: &Domain) -> Entries {
    let mut all = Vec::new();
    domain.owed(|owed| all.push((owed.key.kind(), owed.key.id(), owed.key.ssid(), owed.users)));
    all
}

/// The commands of an unmap of one page, of 2 MiB, and of everything.
fn unmaps(rig: &Rig, domain: &Domain) -> [Vec<Command>; 3] {
    let pages = rig.model.alloc_data_aligned(512, 2 << 20).unwrap();
    let commands =
        [(0x1000, PAGE, PAGE), (0x20_0000, 2 << 20, 2 << 20), (0, PAGE, 1 << 39)].map(|(iova, mapped, len)| {
            domain.map(Iova(iova), pages.addr(), mapped, RW).unwrap();
            rig.take_commands(0);
            domain.unmap(Iova(iova), len).unwrap();
            rig.take_commands(0)
        });
    rig.model.free_data(pages);
    commands
}

fn page() -> TlbiAddr {
    TlbiAddr { addr: 0x1000, leaf: true, range: None }
}

/// 2 MiB that were one block: (31 + 1) << 4 pages.
fn two_mebibytes() -> TlbiAddr {
    let range = TlbiRange { granule: Granule::K4, num: 31, scale: 4, ttl: 0 };
    TlbiAddr { addr: 0x20_0000, leaf: true, range: Some(range) }
}

fn atc(sid: u32, addr: u64, size: u8) -> Command {
    Command::AtcInv { sid, ssid: None, global: false, addr, size }
}

/// Attaches two devices one after the other, detaches one, then the other, and checks the array each time: `expected` gives it for
/// the devices that are attached.
fn come_and_go(
    devices: &[Device<ModelPlatform>; 2],
    attach: impl Fn(&Device<ModelPlatform>),
    now: impl Fn() -> Entries,
    expected: impl Fn(&[u32]) -> Entries,
    attached: impl FnOnce(),
) {
    assert_eq!(now(), []);
    attach(&devices[0]);
    assert_eq!(now(), expected(&[SID]));
    attach(&devices[1]);
    assert_eq!(now(), expected(&[SID, OTHER]));
    attached();
    devices[0].detach().unwrap();
    assert_eq!(now(), expected(&[OTHER]));
    devices[1].detach().unwrap();
    assert_eq!(now(), []);
}

#[test]
fn identity_and_blocked_devices_owe_nothing() {
    let rig = Rig::new();
    let (device, domain) = (add(&rig, SID, true), rig.domain(Stage::S1));
    device.attach_identity().unwrap();
    device.detach().unwrap();
    assert_eq!(owed(&domain), []);
    assert_eq!(unmaps(&rig, &domain), [vec![], vec![], vec![]]);
}

#[test]
fn paging_domains_owe_one_tag_per_smmu_and_with_ats_the_atc_of_each_stream() {
    for stage in [Stage::S1, Stage::S2] {
        for ats in [false, true] {
            let rig = Rig::new();
            let (devices, domain) = ([add(&rig, SID, ats), add(&rig, OTHER, ats)], rig.domain(stage));
            let kind = if stage == Stage::S1 { Kind::S1Asid } else { Kind::S2Vmid };
            let expected = |sids: &[u32]| {
                let tag = (kind, 1, 0, sids.len() as u32);
                let atcs = sids.iter().filter(|_| ats).map(|sid| (Kind::Ats, *sid, 0, 1));
                std::iter::once(tag).chain(atcs).collect()
            };
            let by_address = |addr| match stage {
                Stage::S1 => Command::TlbiNhVa { vmid: 0, asid: 1, addr },
                Stage::S2 => Command::TlbiS2Ipa { vmid: 1, addr },
            };
            let all = match stage {
                Stage::S1 => Command::TlbiNhAsid { vmid: 0, asid: 1 },
                Stage::S2 => Command::TlbiS12Vmall { vmid: 1 },
            };
            let with_atc = |tlbi, addr, size| match ats {
                false => vec![tlbi, SYNC],
                true => vec![tlbi, SYNC, atc(SID, addr, size), atc(OTHER, addr, size), SYNC],
            };
            come_and_go(
                &devices,
                |device| device.attach(&domain).unwrap(),
                || owed(&domain),
                expected,
                || {
                    let expected = [
                        with_atc(by_address(page()), 0x1000, 0),
                        with_atc(by_address(two_mebibytes()), 0x20_0000, 9),
                        with_atc(all, 0, 52),
                    ];
                    assert_eq!(unmaps(&rig, &domain), expected, "{stage}, ATS {ats}");
                },
            );
            rig.model.report().assert_clean();
        }
    }
}

/// A guest's domain that does nothing: stage 1 with a CD that is not valid is enough for the array.
fn nested(vsmmu: &VSmmu<ModelPlatform>, ats: bool) -> NestedDomain<ModelPlatform> {
    vsmmu.nested_domain(&RawSte([0x4000_0000 | 0b1011, u64::from(ats) << 28, 0, 0, 0, 0, 0, 0])).unwrap()
}

#[test]
fn a_nest_parent_owes_for_itself_what_a_plain_domain_does_and_for_a_vsmmu_its_vmid_with_the_clear() {
    for ats in [false, true] {
        let rig = Rig::new();
        let (devices, parent) = ([add(&rig, SID, ats), add(&rig, OTHER, ats)], rig.domain(Stage::S2));
        let vsmmu = rig.iommu.vsmmu(&rig.smmu, &parent).unwrap();
        let vmid = vsmmu.vmid();
        let domain = nested(&vsmmu, ats);
        // As itself, while the vSMMU exists: a VMID of its own, and no clear.
        let own = vmid + 1;
        let expected = |sids: &[u32]| {
            let tag = (Kind::S2Vmid, own.into(), 0, sids.len() as u32);
            let atcs = sids.iter().filter(|_| ats).map(|sid| (Kind::Ats, *sid, 0, 1));
            std::iter::once(tag).chain(atcs).collect()
        };
        come_and_go(
            &devices,
            |device| device.attach(&parent).unwrap(),
            || owed(&parent),
            expected,
            || {
                assert_eq!(unmaps(&rig, &parent)[0][..2], [Command::TlbiS2Ipa { vmid: own, addr: page() }, SYNC]);
            },
        );
        // Through the vSMMU.
        let expected = |sids: &[u32]| {
            let users = sids.len() as u32;
            let mut all = vec![(Kind::S2Vmid, vmid.into(), 0, users), (Kind::S2VmidS1Clear, vmid.into(), 0, users)];
            all.extend(sids.iter().filter(|_| ats).map(|sid| (Kind::AtsFull, *sid, 0, 1)));
            all
        };
        come_and_go(
            &devices,
            |device| device.attach_nested(&domain).unwrap(),
            || owed(&parent),
            expected,
            || {
                let by_address =
                    |addr| vec![Command::TlbiS2Ipa { vmid, addr }, SYNC, Command::TlbiNhAll { vmid }, SYNC];
                let with_atc = |commands: Vec<Command>| match ats {
                    false => commands,
                    true => [commands, vec![atc(SID, 0, 52), atc(OTHER, 0, 52), SYNC]].concat(),
                };
                let expected = [
                    with_atc(by_address(page())),
                    with_atc(by_address(two_mebibytes())),
                    with_atc(vec![Command::TlbiS12Vmall { vmid }, SYNC]),
                ];
                assert_eq!(unmaps(&rig, &parent), expected, "ATS {ats}");
            },
        );
        rig.model.report().assert_clean();
    }
}

#[test]
fn an_sva_domain_owes_one_asid_per_smmu_and_the_atc_of_each_pasid() {
    for ats in [false, true] {
        let rig = Rig::new();
        let devices = [add(&rig, SID, ats), add(&rig, OTHER, ats)];
        let root = rig.page();
        (0..512).for_each(|word| assert!(rig.model.write_u64(smmuv3::platform::PhysAddr(root.addr().0 + 8 * word), 0)));
        let geometry = Geometry { output_size: AddrSize::B48, ..Geometry::default() };
        let sva = rig.iommu.sva_domain(SvaTable { root: root.addr(), geometry, mair: MAIR }).unwrap();
        let now = |sva: &SvaDomain<ModelPlatform>| {
            let mut all = Vec::new();
            sva.owed(|owed| all.push((owed.key.kind(), owed.key.id(), owed.key.ssid(), owed.users)));
            all
        };
        let expected = |bindings: &[(u32, u32)]| {
            let tag = (Kind::S1Asid, 1, 0, bindings.len() as u32);
            let atcs = bindings.iter().filter(|_| ats).map(|(sid, pasid)| (Kind::Ats, *sid, *pasid, 1));
            std::iter::once(tag).chain(atcs).collect::<Entries>()
        };
        devices[0].attach_pasid(5, &sva).unwrap();
        assert_eq!(now(&sva), expected(&[(SID, 5)]));
        devices[0].attach_pasid(6, &sva).unwrap();
        devices[1].attach_pasid(5, &sva).unwrap();
        assert_eq!(now(&sva), expected(&[(SID, 5), (SID, 6), (OTHER, 5)]));
        let commands = |iova, len| {
            rig.take_commands(0);
            sva.invalidate(Iova(iova), len, true).unwrap();
            rig.take_commands(0)
        };
        let with_atc = |tlbi, addr, size| match ats {
            false => vec![tlbi, SYNC],
            true => {
                let atc = |sid, pasid| Command::AtcInv { sid, ssid: Some(pasid), global: false, addr, size };
                vec![tlbi, SYNC, atc(SID, 5), atc(SID, 6), atc(OTHER, 5), SYNC]
            }
        };
        let by_address = |addr| Command::TlbiNhVa { vmid: 0, asid: 1, addr };
        assert_eq!(commands(0x1000, PAGE), with_atc(by_address(page()), 0x1000, 0));
        assert_eq!(commands(0x20_0000, 2 << 20), with_atc(by_address(two_mebibytes()), 0x20_0000, 9));
        assert_eq!(commands(0, 0), with_atc(Command::TlbiNhAsid { vmid: 0, asid: 1 }, 0, 52));
        devices[0].detach_pasid(5).unwrap();
        assert_eq!(now(&sva), expected(&[(SID, 6), (OTHER, 5)]));
        drop(devices);
        assert_eq!(now(&sva), []);
        rig.model.report().assert_clean();
    }
}

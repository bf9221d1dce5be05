//! Attaching, detaching, and what happens when a step of it cannot be made.

mod common;

use common::*;
use smmuv3::arch::{AddrSize, Granule, Stage};
use smmuv3::platform::{Iova, PhysAddr};
use smmuv3::{
    AddDeviceError, AttachError, BadRange, DeviceConfig, Geometry, Iommu, Kind, MapError, StreamTableError, UnmapError,
};
use smmuv3_model::{Model, ModelConfig, ModelSmmuConfig};

fn owed(domain: &Domain) -> Vec<(Kind, u32, u32)> {
    let mut all = Vec::new();
    domain.owed(|owed| all.push((owed.key.kind(), owed.key.id(), owed.users)));
    all
}

#[test]
fn every_geometry_translates_pages_and_blocks() {
    for stage in [Stage::S1, Stage::S2] {
        for granule in [Granule::K4, Granule::K16, Granule::K64] {
            for input_bits in 39..=48 {
                let rig = Rig::with(ModelConfig { ram_size: 16 << 20, ..ModelConfig::default() });
                let geometry = Geometry { granule, input_bits, output_size: AddrSize::B48, ..Geometry::default() };
                let domain = rig.iommu.paging_domain(stage, geometry).unwrap();
                let device = rig.add(SID);
                device.attach(&domain).unwrap();
                let size = granule.size();
                let data = rig.model.alloc_data_aligned((size / PAGE) as usize, size as usize).unwrap();
                // The first and the last page of the input range, and one in between.
                for iova in [0, (1 << input_bits) - size, 0x5a5a_5a5a_0000 & ((1 << input_bits) - 1) & !(size - 1)] {
                    let what = format!("{stage}, {granule}, {input_bits} bits, {iova:#x}");
                    domain.map(Iova(iova), data.addr(), size, RW).unwrap();
                    let last = Iova(iova + size - 8);
                    rig.device(SID).write_u64(last, iova | 1).expect(&what);
                    let at = PhysAddr(data.addr().0 + size - 8);
                    assert_eq!(rig.model.read_u64(at), Some(iova | 1), "{what}");
                    assert_eq!(domain.iova_to_phys(last), Some(at), "{what}");
                    domain.unmap(Iova(iova), size).unwrap();
                    assert!(rig.device(SID).write_u64(last, 2).is_err(), "{what}");
                }
                rig.model.free_data(data);
                rig.model.report().assert_clean();
            }
        }
    }
}

#[test]
fn a_device_moves_between_all_kinds_of_domain_and_sees_only_the_one_it_is_in() {
    let rig = Rig::new();
    let device = rig.add(SID);
    let domains = [rig.domain(Stage::S1), rig.domain(Stage::S2), rig.domain(Stage::S1), rig.domain(Stage::S2)];
    let pages: Vec<_> = domains.iter().map(|_| rig.page()).collect();
    for (domain, page) in domains.iter().zip(&pages) {
        domain.map(Iova(0x4000), page.addr(), PAGE, RW).unwrap();
    }
    let identity = rig.page();
    // Each transition once: 0 to 3 are the domains, 4 identity, 5 blocked.
    let mut value = 0;
    for from in 0..6 {
        for to in 0..6 {
            for state in [from, to] {
                value += 1;
                match state {
                    4 => {
                        device.attach_identity().unwrap();
                        rig.device(SID).write_u64(Iova(identity.addr().0), value).unwrap();
                        assert_eq!(rig.model.read_u64(identity.addr()), Some(value));
                    }
                    5 => {
                        device.detach().unwrap();
                        assert!(rig.device(SID).write_u64(Iova(0x4000), value).is_err());
                    }
                    n => {
                        device.attach(&domains[n]).unwrap();
                        rig.device(SID).write_u64(Iova(0x4000), value).unwrap();
                        assert_eq!(rig.model.read_u64(pages[n].addr()), Some(value), "{from} -> {to}");
                    }
                }
                let attached: Vec<usize> = (0..4).filter(|n| !owed(&domains[*n]).is_empty()).collect();
                assert_eq!(attached, if state < 4 { vec![state] } else { vec![] });
            }
        }
    }
    assert_eq!(rig.events(), [], "blocked devices are silent");
    device.detach().unwrap();
    rig.model.report().assert_clean();
}

#[test]
fn a_domain_owes_one_entry_per_smmu_however_many_devices_use_it() {
    for (stage, kind) in [(Stage::S1, Kind::S1Asid), (Stage::S2, Kind::S2Vmid)] {
        let rig = Rig::new();
        let domain = rig.domain(stage);
        let (first, second) = (rig.add(SID), rig.add(OTHER));
        assert_eq!(owed(&domain), []);
        first.attach(&domain).unwrap();
        assert_eq!(owed(&domain), [(kind, 1, 1)]);
        second.attach(&domain).unwrap();
        assert_eq!(owed(&domain), [(kind, 1, 2)]);
        // Attaching where one is already attached changes nothing.
        second.attach(&domain).unwrap();
        assert_eq!(owed(&domain), [(kind, 1, 2)]);
        first.detach().unwrap();
        assert_eq!(owed(&domain), [(kind, 1, 1)]);
        assert!(use_and_unmap(&rig, &domain, OTHER, Iova(0)));
        first.detach().unwrap();
        assert_eq!(owed(&domain), [(kind, 1, 1)], "detaching twice is detaching once");
        second.detach().unwrap();
        assert_eq!(owed(&domain), []);
        rig.model.report().assert_clean();
    }
}

#[test]
fn all_streams_of_a_device_are_attached_together() {
    let rig = Rig::new();
    let config = DeviceConfig::stream(0x300).and_stream(0x18).and_stream(0x19);
    let device = rig.iommu.add_device(&rig.smmu, config).unwrap();
    assert_eq!(device.streams(), [0x18, 0x19, 0x300]);
    let domain = rig.domain(Stage::S1);
    device.attach(&domain).unwrap();
    for sid in [0x18, 0x19, 0x300] {
        assert!(use_and_unmap(&rig, &domain, sid, Iova(0)));
    }
    assert_eq!(owed(&domain), [(Kind::S1Asid, 1, 1)]);
    rig.model.report().assert_clean();
}

#[test]
fn devices_with_pasids_use_their_cd_table_linear_or_two_level() {
    for (cd_two_level, pasid_bits) in [(true, 16), (true, 6), (true, 7), (false, 10)] {
        let rig = Rig::with(ModelConfig::with_smmu(ModelSmmuConfig { cd_two_level, ..ModelSmmuConfig::default() }));
        let config = DeviceConfig::stream(SID).pasid_bits(pasid_bits);
        let device = rig.iommu.add_device(&rig.smmu, config).unwrap();
        let domain = rig.domain(Stage::S1);
        device.attach(&domain).unwrap();
        assert!(use_and_unmap(&rig, &domain, SID, Iova(0)));
        rig.events();
        // A PASID that nothing is attached to: no CD, or one that is not valid.
        assert!(rig.device(SID).with_ssid(9).read_u64(Iova(0)).is_err());
        let names: Vec<_> = rig.events().iter().map(|event| event.name()).collect();
        assert_eq!(names, ["C_BAD_CD"]);
        device.detach().unwrap();
        drop(device);
        rig.model.report().assert_clean();
    }
    let rig = Rig::new();
    let config = DeviceConfig::stream(SID).pasid_bits(21);
    let error = rig.iommu.add_device(&rig.smmu, config).unwrap_err();
    assert_eq!(error.to_string(), "SMMU 0 has 20 SubstreamID bits, the device needs 21");
}

#[test]
fn duplicate_streamids_are_refused_on_one_device_and_on_two() {
    let rig = Rig::new();
    let device = rig.add(SID);
    let add = |config| rig.iommu.add_device(&rig.smmu, config).unwrap_err();
    assert_eq!(add(DeviceConfig::stream(5).and_stream(5)), AddDeviceError::Duplicate(5));
    let in_use = AddDeviceError::Stream { smmu: rig.smmu.id(), cause: StreamTableError::InUse(SID) };
    assert_eq!(add(DeviceConfig::stream(7).and_stream(SID)), in_use);
    assert_eq!(in_use.to_string(), "SMMU 0: StreamID 0x18 is in use");
    // Nothing is left of the device that was refused, and the other works.
    drop(rig.add(7));
    let domain = rig.domain(Stage::S1);
    device.attach(&domain).unwrap();
    assert!(use_and_unmap(&rig, &domain, SID, Iova(0)));
    // Its StreamID is free again once it is gone.
    drop(device);
    rig.add(SID).attach(&domain).unwrap();
    let beyond = add(DeviceConfig::stream(1 << 16));
    assert_eq!(beyond.to_string(), "SMMU 0: StreamID 0x10000 is beyond the 16 bits of the stream table");
    let many = (1..20).fold(DeviceConfig::stream(0x100), |config, n| config.and_stream(0x100 + n));
    assert_eq!(add(many), AddDeviceError::TooManyStreams);
    rig.model.report().assert_clean();
}

#[test]
fn streams_that_belong_to_no_device_are_aborted_and_heard_of() {
    let rig = Rig::new();
    let _device = rig.add(SID);
    // Near a known stream: an STE that is not valid. Far from any: no STE. Beyond the table.
    for (sid, event) in [(SID + 1, "C_BAD_STE"), (0x4000, "C_BAD_STREAMID"), (0xff_ffff, "C_BAD_STREAMID")] {
        assert!(rig.device(sid).write_u64(Iova(0x1000), 1).is_err());
        let names: Vec<_> = rig.events().iter().map(|event| event.name()).collect();
        assert_eq!(names, [event], "StreamID {sid:#x}");
    }
    rig.model.report().assert_clean();
}

#[test]
fn a_domain_that_an_smmu_cannot_serve_is_refused_by_the_name_of_the_feature() {
    let config = ModelSmmuConfig {
        stage2: false,
        granules: [true, false, true],
        oas: AddrSize::from_code(2),
        ..ModelSmmuConfig::default()
    };
    let rig = Rig::with(ModelConfig::with_smmu(config));
    let device = rig.add(SID);
    let refused = |stage, granule, output| {
        let geometry = Geometry { granule, output_size: AddrSize::from_code(output), ..Geometry::default() };
        let domain = rig.iommu.paging_domain(stage, geometry).unwrap();
        let error = device.attach(&domain).unwrap_err();
        assert_eq!(owed(&domain), []);
        error.to_string()
    };
    for (message, expected) in [
        (refused(Stage::S2, Granule::K4, 2), "stage 2 (IDR0.S2P): the domain needs 1, the SMMU has 0"),
        (refused(Stage::S1, Granule::K16, 2), "granule in KiB (IDR5.GRAN): the domain needs 16, the SMMU has 68"),
        (refused(Stage::S1, Granule::K4, 4), "output address bits (IDR5.OAS): the domain needs 44, the SMMU has 40"),
    ] {
        assert_eq!(message, format!("SMMU 0 can't serve the domain: {expected}"));
    }
    let other = Rig::new();
    assert_eq!(device.attach(&other.domain(Stage::S1)), Err(AttachError::OtherIommu));
    rig.model.report().assert_clean();
}

#[test]
fn when_all_tags_are_in_use_attach_says_so_and_changes_nothing() {
    let rig = Rig::with(ModelConfig::with_smmu(ModelSmmuConfig { asid16: false, ..ModelSmmuConfig::default() }));
    let devices: Vec<_> = (0..256).map(|sid| rig.add(sid)).collect();
    let domains: Vec<_> = (0..256).map(|_| rig.domain(Stage::S1)).collect();
    for n in 0..255 {
        devices[n].attach(&domains[n]).unwrap();
    }
    let none = AttachError::NoTag { smmu: rig.smmu.id(), stage: Stage::S1 };
    assert_eq!(devices[255].attach(&domains[255]), Err(none));
    assert_eq!(owed(&domains[255]), []);
    // A domain that has a tag needs no other; a tag that is given back serves the next.
    devices[255].attach(&domains[0]).unwrap();
    devices[7].detach().unwrap();
    devices[255].attach(&domains[255]).unwrap();
    assert_eq!(owed(&domains[255]), [(Kind::S1Asid, 8, 1)]);
    assert!(use_and_unmap(&rig, &domains[255], 255, Iova(0)));
    rig.model.report().assert_clean();
}

#[test]
fn an_allocation_that_fails_anywhere_leaves_no_trace() {
    // Everything from the first object to the first mapping, with the n-th DMA allocation refused.
    let mut complete = 0;
    for n in 0.. {
        let model = Model::new(ModelConfig { ram_size: 16 << 20, ..ModelConfig::default() });
        let page = model.alloc_data(1).unwrap();
        model.fail_allocs_after(n);
        let attempt = || -> Result<(), Box<dyn std::error::Error>> {
            let iommu = Iommu::new(model.platform())?;
            let smmu = iommu.add_smmu(model.mmio(0), quick())?;
            let device = iommu.add_device(&smmu, DeviceConfig::stream(SID).and_stream(0x900).pasid_bits(8))?;
            let domain = iommu.paging_domain(Stage::S1, Geometry::default())?;
            device.attach(&domain)?;
            let mapped = domain.map(Iova(0x1f_f000), page.addr(), PAGE, RW).and_then(|()| {
                domain.map(Iova(0x3f_f000), page.addr(), PAGE, RW)?;
                domain.map(Iova(0x5f_f000), page.addr(), PAGE, RW)
            });
            if mapped.is_err() {
                // Detaching needs no memory.
                device.detach()?;
                device.attach_identity()?;
            }
            mapped?;
            Ok(())
        };
        let result = attempt();
        assert_eq!(model.driver_pages(), 0, "allocation {n} refused: {result:?}");
        model.report().assert_clean();
        match result {
            Ok(()) => {
                complete = n;
                break;
            }
            Err(error) => assert!(error.to_string().contains("out of memory"), "{error}"),
        }
    }
    // Queues, stream table, CD table, STEs, page tables: more than a few allocations were refused in turn.
    assert!(complete > 8, "{complete}");
}

#[test]
fn a_mapping_that_fails_half_way_is_taken_back() {
    let rig = Rig::new();
    let (device, domain) = (rig.add(SID), rig.domain(Stage::S1));
    device.attach(&domain).unwrap();
    let pages = rig.model.alloc_data(3).unwrap();
    domain.map(Iova(0x20_1000), pages.addr(), PAGE, RW).unwrap();
    // The second page is taken; the first is not mapped either in the end.
    let error = domain.map(Iova(0x20_0000), pages.addr(), 3 * PAGE, RW);
    assert_eq!(error, Err(MapError::AlreadyMapped(Iova(0x20_1000))));
    assert_eq!(domain.iova_to_phys(Iova(0x20_0000)), None);
    assert!(rig.device(SID).read_u64(Iova(0x20_0000)).is_err());
    assert!(rig.device(SID).read_u64(Iova(0x20_1000)).is_ok(), "what was there is still there");
    // The table for the second half is refused.
    rig.model.fail_all_allocs(true);
    let error = domain.map(Iova(0x3f_f000), pages.addr(), 2 * PAGE, RW);
    rig.model.fail_all_allocs(false);
    assert_eq!(error, Err(MapError::NoMemory(Iova(0x3f_f000).max(Iova(0x40_0000)))));
    assert_eq!(domain.iova_to_phys(Iova(0x3f_f000)), None);
    rig.model.report().assert_clean();
}

#[test]
fn bad_ranges_are_refused_by_what_is_wrong_with_them() {
    let rig = Rig::new();
    let domain = rig.domain(Stage::S1);
    let map = |iova, paddr, len| domain.map(Iova(iova), PhysAddr(paddr), len, RW).unwrap_err();
    let bad = |error| match error {
        MapError::BadRange(bad) => bad,
        other => panic!("{other}"),
    };
    let misaligned = |value| BadRange::Misaligned { value, granule: Granule::K4 };
    assert_eq!(bad(map(0, 0, 0)), BadRange::Empty);
    assert_eq!(bad(map(0x800, 0, 0x1000)), misaligned(0x800));
    assert_eq!(bad(map(0, 0x800, 0x1000)), misaligned(0x800));
    assert_eq!(bad(map(0, 0, 0x1_0001)), misaligned(0x1_0001));
    assert_eq!(bad(map(1 << 39, 0, 0x1000)), BadRange::Input { iova: Iova(1 << 39), len: 0x1000, bits: 39 });
    let top = !0xfff;
    assert_eq!(bad(map(top, 0, 0x1000)), BadRange::Input { iova: Iova(top), len: 0x1000, bits: 39 });
    assert_eq!(bad(map(0x1000, 0, top)), BadRange::Input { iova: Iova(0x1000), len: top, bits: 39 });
    let output = BadRange::Output { paddr: PhysAddr(1 << 44), len: 0x1000, bits: 44 };
    assert_eq!(bad(map(0, 1 << 44, 0x1000)), output);
    assert_eq!(domain.map(Iova(0), PhysAddr(0), 0x1000, smmuv3::arch::Prot::EXEC), Err(MapError::NoAccess));
    assert_eq!(domain.unmap(Iova(0x1000), 0), Err(UnmapError::BadRange(BadRange::Empty)));
    assert_eq!(domain.unmap(Iova(0x1000), 0x1_0001), Err(UnmapError::BadRange(misaligned(0x1_0001))));
    // The last page of the range is fine; so is everything at once.
    domain.map(Iova((1 << 39) - 0x1000), PhysAddr((1 << 44) - 0x1000), 0x1000, RW).unwrap();
    assert_eq!(domain.unmap(Iova(0), 1 << 39).unwrap().bytes, 0x1000);
    // A part of a block.
    domain.map(Iova(0x20_0000), PhysAddr(0x20_0000), 0x20_0000, RW).unwrap();
    let part = UnmapError::PartOfBlock { iova: Iova(0x20_0000), size: 0x20_0000 };
    assert_eq!(domain.unmap(Iova(0x20_1000), 0x1000), Err(part));
    assert_eq!(domain.iova_to_phys(Iova(0x20_1000)), Some(PhysAddr(0x20_1000)));
}

#[test]
fn permissions_are_kept() {
    use smmuv3::arch::Prot;
    for stage in [Stage::S1, Stage::S2] {
        let rig = Rig::new();
        let (device, domain) = (rig.add(SID), rig.domain(stage));
        device.attach(&domain).unwrap();
        let page = rig.page();
        domain.map(Iova(0x1000), page.addr(), PAGE, Prot::READ).unwrap();
        domain.map(Iova(0x2000), page.addr(), PAGE, Prot::WRITE).unwrap();
        let hw = rig.device(SID);
        assert!(hw.read_u64(Iova(0x1000)).is_ok() && hw.write_u64(Iova(0x1000), 1).is_err());
        assert!(hw.write_u64(Iova(0x2000), 1).is_ok());
        // Stage 1 cannot express write-only.
        assert_eq!(hw.read_u64(Iova(0x2000)).is_ok(), stage == Stage::S1);
        assert!(rig.events().iter().all(|event| event.name() == "F_PERMISSION"));
        rig.model.report().assert_clean();
    }
}

#[test]
fn everything_is_given_back_at_the_end() {
    let rig = Rig::new();
    let before = rig.model.driver_pages();
    {
        let (device, s1, s2) = (rig.add(SID), rig.domain(Stage::S1), rig.domain(Stage::S2));
        for domain in [&s1, &s2] {
            device.attach(domain).unwrap();
            domain.map(Iova(0x20_0000), PhysAddr(0x20_0000), 0x40_1000, RW).unwrap();
        }
        // The domain outlives its handle while a device is attached to it.
        drop(s2);
        assert!(rig.device(SID).read_u64(Iova(0x20_0000)).is_err_and(|error| error.to_string().contains("no memory")));
    }
    // The second-level stream table stays for the next device nearby: 256 STEs.
    assert_eq!(rig.model.driver_pages(), before + 4);
    let model = rig.model.clone();
    drop(rig);
    assert_eq!(model.driver_pages(), 0);
    model.report().assert_clean();
}

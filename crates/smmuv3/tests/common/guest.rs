//! A hostile guest: what its bytes, taken for a stream table entry and for commands, may do. For the fuzzer and for the tests.

use smmuv3::arch::{Command, RawCommand, RawSte, Stage};
use smmuv3::platform::{Iova, PhysAddr};
use smmuv3::{Device, DeviceConfig, Iommu, PagingDomain, SmmuHandle, SmmuOptions, VSmmu};
use smmuv3_model::{Model, ModelConfig, ModelPlatform};

/// The device that the guest has, and one that it has not.
const SID: u32 = 0x18;
const OTHER: u32 = 0x20;
const GUEST_SID: u32 = 3;

pub struct Arena {
    model: Model,
    device: Device<ModelPlatform>,
    vsmmu: VSmmu<ModelPlatform>,
    // Alive, and not the guest's.
    _other: (Device<ModelPlatform>, VSmmu<ModelPlatform>, PagingDomain<ModelPlatform>, SmmuHandle<ModelPlatform>),
}

impl Arena {
    pub fn new() -> Arena {
        let model = Model::new(ModelConfig { ram_size: 16 << 20, ..ModelConfig::default() });
        let iommu = Iommu::new(model.platform()).expect("memory");
        let smmu = iommu.add_smmu(model.mmio(0), SmmuOptions::default()).expect("an SMMU");
        let add = |sid| {
            let config = DeviceConfig::stream(sid).pasid_bits(8).ats();
            iommu.add_device(&smmu, config).expect("a device")
        };
        let (device, other) = (add(SID), add(OTHER));
        let parent = iommu.paging_domain(Stage::S2, Default::default()).expect("memory");
        let page = model.alloc_data(1).expect("memory");
        parent.map(Iova(0x4000_0000), page.addr(), 0x1000, crate::RW).expect("a mapping");
        let vsmmu = iommu.vsmmu(&smmu, &parent).expect("a VMID");
        let theirs = iommu.vsmmu(&smmu, &parent).expect("a VMID");
        vsmmu.map_stream(GUEST_SID, &device).expect("memory");
        theirs.map_stream(GUEST_SID, &other).expect("memory");
        other.attach(&parent).expect("attached");
        model.take_commands(0);
        Arena { model, device, vsmmu, _other: (other, theirs, parent, smmu) }
    }

    /// The first 64 bytes are the guest's STE, the others its commands, 16 bytes each. Panics if anything reaches the SMMU that carries another
    /// VMID or StreamID than the guest's, or that the SMMU takes for illegal.
    pub fn run(&self, input: &[u8]) {
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        let (ste, commands) = input.split_at(input.len().min(64));
        let mut words = [0; 8];
        words.iter_mut().zip(ste.chunks(8)).for_each(|(to, from)| *to = word(from));
        if let Ok(nested) = self.vsmmu.nested_domain(&RawSte(words)) {
            self.device.attach_nested(&nested).expect("an STE that was accepted is attached");
            // The device looks at whatever it points to.
            for iova in [0, 0x1000, 0x4000_0000] {
                let _ = self.model.device(0, SID).read_u64(Iova(iova));
                let _ = self.model.device(0, SID).with_ssid(1).ats_read_u64(Iova(iova));
            }
        }
        let raw = commands.chunks(16).map(|bytes| {
            let (low, high) = bytes.split_at(bytes.len().min(8));
            RawCommand([word(low), word(high)])
        });
        let _ = self.vsmmu.invalidate(&raw.collect::<Vec<_>>());
        let vmid = self.vsmmu.vmid();
        for command in self.model.take_commands(0) {
            let ours = match command {
                Command::CfgiSte { sid, .. }
                | Command::CfgiCd { sid, .. }
                | Command::CfgiCdAll { sid }
                | Command::AtcInv { sid, .. } => sid == SID,
                Command::TlbiNhAll { vmid: tag }
                | Command::TlbiNhAsid { vmid: tag, .. }
                | Command::TlbiNhVa { vmid: tag, .. }
                | Command::TlbiNhVaa { vmid: tag, .. }
                | Command::TlbiS12Vmall { vmid: tag } => tag == vmid,
                Command::Sync(_) => true,
                _ => false,
            };
            assert!(ours, "the guest with VMID {vmid} reached beyond itself: {command:?}");
        }
        let report = self.model.report();
        assert_eq!((report.stale_dma, report.violation_count), (0, 0), "{:?}", report.violations);
    }
}

impl Default for Arena {
    fn default() -> Self {
        Arena::new()
    }
}

/// Inputs to begin with: each kind of STE, each command that a guest may send, and those that it may not.
pub fn seeds() -> Vec<Vec<u8>> {
    use smmuv3::arch::{Granule, SyncSignal, TlbiAddr, TlbiRange};
    let bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let stes = [
        [0, 0],
        [1, 0],
        [0b1001, 0],
        [0x4000_0000 | 0b1011, 0],
        [0x4000_0000 | 0b1011 | 4 << 59, 1 << 28 | 2],
        [0x4000_0000 | 0b1011 | 8 << 59 | 1 << 4, 1],
        [0b1111, 0],
        [u64::MAX, u64::MAX],
    ];
    let range = Some(TlbiRange { granule: Granule::K4, num: 3, scale: 2, ttl: 0 });
    let (single, many) = (TlbiAddr { addr: 0x1000, leaf: true, range: None }, TlbiAddr { addr: 0, leaf: false, range });
    let commands = [
        Command::TlbiNhAll { vmid: 7 },
        Command::TlbiNsnhAll,
        Command::TlbiNhAsid { vmid: 7, asid: 9 },
        Command::TlbiNhVa { vmid: 7, asid: 9, addr: single },
        Command::TlbiNhVaa { vmid: 7, addr: many },
        Command::CfgiCd { sid: GUEST_SID, ssid: 1, leaf: true },
        Command::CfgiCdAll { sid: GUEST_SID },
        Command::AtcInv { sid: GUEST_SID, ssid: Some(1), global: false, addr: 0x1000, size: 3 },
        Command::Sync(SyncSignal::None),
        Command::CfgiSte { sid: OTHER, leaf: true },
        Command::TlbiEl2All,
        Command::TlbiS12Vmall { vmid: 1 },
        Command::AtcInv { sid: OTHER, ssid: None, global: true, addr: 0, size: 52 },
        Command::Sync(SyncSignal::Msi { addr: PhysAddr(0x8000_0000).0, data: 1 }),
    ]
    .map(|command| command.encode().0);
    let mut seeds: Vec<_> = stes
        .iter()
        .map(|ste| {
            let mut seed = bytes(&[ste[0], ste[1], 0, 0, 0, 0, 0, 0]);
            commands[..9].iter().for_each(|command| seed.extend(bytes(command)));
            seed
        })
        .collect();
    seeds.extend(commands.iter().map(|command| [bytes(&[0; 8]), bytes(command)].concat()));
    seeds
}

//! A machine of the model with one domain over all its SMMUs, on which each scheme unmaps.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use smmuv3::arch::regs::offset;
use smmuv3::arch::{Prot, Stage};
use smmuv3::platform::{DmaWindow, Iova, Mmio, PhysAddr, Platform};
use smmuv3::{Completion, Device, DeviceConfig, Geometry, Iommu, PagingDomain, SmmuHandle, SmmuOptions};
use smmuv3_model::{Latency, Laziness, Model, ModelConfig, ModelMmio, ModelPlatform, ModelSmmuConfig};

/// The page that is mapped and unmapped, in bytes.
pub const PAGE: u64 = 4096;

/// The model's platform with cheap barriers: the host's are enough for hardware that runs on the thread that asks for it.
#[derive(Clone)]
pub struct Host(ModelPlatform);

/// The model's registers, with a count of doorbells and of rounds of waiting.
pub struct Registers(ModelMmio);

/// What this thread did with command queues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Writes of PROD.
    pub doorbells: u64,
    /// Rounds of waiting: how often the thread came to read CONS after it had last written PROD.
    pub waits: u64,
    has_rung: bool,
}

thread_local! {
    static TRAFFIC: Cell<Traffic> = const { Cell::new(Traffic { doorbells: 0, waits: 0, has_rung: false }) };
}

impl Traffic {
    /// What this thread did since it last asked.
    pub fn take() -> Traffic {
        TRAFFIC.take()
    }
}

impl Mmio for Registers {
    fn read32(&self, offset: usize) -> u32 {
        if offset == offset::CMDQ_CONS {
            let traffic = TRAFFIC.get();
            if traffic.has_rung {
                TRAFFIC.set(Traffic { waits: traffic.waits + 1, has_rung: false, ..traffic });
            }
        }
        self.0.read32(offset)
    }
    fn write32(&self, offset: usize, value: u32) {
        if offset == offset::CMDQ_PROD {
            let traffic = TRAFFIC.get();
            TRAFFIC.set(Traffic { doorbells: traffic.doorbells + 1, has_rung: true, ..traffic });
        }
        self.0.write32(offset, value);
    }
    fn read64(&self, offset: usize) -> u64 {
        self.0.read64(offset)
    }
    fn write64(&self, offset: usize, value: u64) {
        self.0.write64(offset, value);
    }
}

impl Platform for Host {
    type Mmio = Registers;
    type RawMutex = <ModelPlatform as Platform>::RawMutex;
    type Rcu = <ModelPlatform as Platform>::Rcu;

    fn window(&self) -> &DmaWindow {
        self.0.window()
    }
    fn dma_alloc(&self, size: usize, align: usize) -> Option<PhysAddr> {
        self.0.dma_alloc(size, align)
    }
    fn dma_free(&self, addr: PhysAddr, size: usize, align: usize) {
        self.0.dma_free(addr, size, align);
    }
    fn full_barrier(&self) {
        fence(Ordering::SeqCst);
    }
    fn write_barrier(&self) {
        fence(Ordering::Release);
    }
    fn read_barrier(&self) {
        fence(Ordering::Acquire);
    }
    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }
    fn relax(&self) {
        std::hint::spin_loop();
    }
    fn ats_enable(&self, smmu: u8, sid: u32, stu: u8) -> bool {
        self.0.ats_enable(smmu, sid, stu)
    }
    fn ats_disable(&self, smmu: u8, sid: u32) {
        self.0.ats_disable(smmu, sid);
    }
    fn cpu_hint(&self) -> usize {
        self.0.cpu_hint()
    }
}

/// What stands in a [`Machine`].
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// SMMUs.
    pub smmus: usize,
    /// Devices with ATS behind each of them.
    pub ats_devices: usize,
    /// What waiting costs.
    pub latency: Latency,
}

/// A stage 1 domain that spans some SMMUs, and their devices. Behind each SMMU there is a device without ATS too.
pub struct Machine {
    /// The hardware.
    pub model: Model,
    /// The root.
    pub iommu: Iommu<Host>,
    /// Its SMMUs.
    pub smmus: Vec<SmmuHandle<Host>>,
    /// All devices, attached to `domain`.
    pub devices: Vec<Device<Host>>,
    /// The domain.
    pub domain: Arc<PagingDomain<Host>>,
    /// Where all is mapped to.
    pub target: PhysAddr,
}

impl Machine {
    /// Sets all up. Panics where the driver refuses.
    pub fn new(layout: Layout) -> Machine {
        let smmu =
            ModelSmmuConfig { laziness: Laziness::none(), latency: layout.latency, ..ModelSmmuConfig::default() };
        let model =
            Model::new(ModelConfig { smmus: vec![smmu; layout.smmus], ram_size: 256 << 20, ..ModelConfig::default() });
        let iommu = Iommu::new(Host(model.platform())).unwrap();
        // A look at a register of the model costs no more than one at memory.
        let options = SmmuOptions { cmdq_log2: 11, completion: Completion::Register, ..SmmuOptions::default() };
        let add_smmu = |index| iommu.add_smmu(Registers(model.mmio(index)), options).unwrap();
        let smmus: Vec<_> = (0..layout.smmus).map(add_smmu).collect();
        let domain = iommu.paging_domain(Stage::S1, Geometry::default()).unwrap();
        let mut devices = Vec::new();
        for smmu in &smmus {
            let with_ats = (1..=layout.ats_devices as u32).map(|sid| DeviceConfig::stream(sid).ats());
            for config in with_ats.chain([DeviceConfig::stream(0)]) {
                let device = iommu.add_device(smmu, config).unwrap();
                device.attach(&domain).unwrap();
                devices.push(device);
            }
        }
        let target = model.alloc_data(1).unwrap().addr();
        Machine { model, iommu, smmus, devices, domain: Arc::new(domain), target }
    }

    /// Maps a page.
    pub fn map(&self, iova: Iova) {
        self.domain.map(iova, self.target, PAGE, Prot::READ | Prot::WRITE).unwrap();
    }
}

//! A platform around QEMU's that counts the commands the SMMU is given, by reading the queue at each doorbell.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use smmuv3::arch::RawCommand;
use smmuv3::arch::regs::{QUEUE_BASE_ADDR, offset};
use smmuv3::platform::{DmaWindow, Mmio, PhysAddr, Platform};
use smmuv3_qemu::{QemuMmio, QemuPlatform};

/// Commands by mnemonic.
pub(crate) type Counts = BTreeMap<String, u64>;

/// QEMU's platform, with taps for registers.
#[derive(Clone)]
pub(crate) struct Tapped(pub(crate) QemuPlatform);

/// QEMU's registers, with a look at every command on its way.
pub(crate) struct Tap {
    mmio: QemuMmio,
    ram: QemuPlatform,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    base: u64,
    log2: u32,
    prod: u32,
    counts: Counts,
}

/// Where to read what a tap has counted.
pub(crate) struct Reader(Arc<Mutex<State>>);

impl Tap {
    pub(crate) fn new(mmio: QemuMmio, ram: QemuPlatform) -> (Self, Reader) {
        let state = Arc::new(Mutex::new(State::default()));
        (Tap { mmio, ram, state: state.clone() }, Reader(state))
    }
}

impl Reader {
    pub(crate) fn counts(&self) -> Counts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).counts.clone()
    }
}

impl State {
    /// Counts the commands from the last index to `prod`.
    fn advance(&mut self, ram: &QemuPlatform, prod: u32) {
        let mask = (2u32 << self.log2) - 1;
        while self.prod != prod & mask {
            let slot = u64::from(self.prod & (mask >> 1));
            let mut bytes = [0; 16];
            let read = ram.read_bytes(PhysAddr(self.base + 16 * slot), &mut bytes);
            let (low, high) = bytes.split_at(8);
            let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            let name = match (read, RawCommand([word(low), word(high)]).decode()) {
                (Ok(()), Ok(command)) => command.mnemonic(),
                _ => "unreadable",
            };
            *self.counts.entry(name.to_owned()).or_default() += 1;
            self.prod = (self.prod + 1) & mask;
        }
    }
}

impl Mmio for Tap {
    fn size(&self) -> usize {
        self.mmio.size()
    }
    fn read32(&self, offset: usize) -> u32 {
        self.mmio.read32(offset)
    }
    fn write32(&self, offset: usize, value: u32) {
        if offset == offset::CMDQ_PROD {
            self.state.lock().unwrap_or_else(PoisonError::into_inner).advance(&self.ram, value);
        }
        self.mmio.write32(offset, value);
    }
    fn read64(&self, offset: usize) -> u64 {
        self.mmio.read64(offset)
    }
    fn write64(&self, offset: usize, value: u64) {
        if offset == offset::CMDQ_BASE {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            (state.base, state.log2, state.prod) = (value & QUEUE_BASE_ADDR, (value & 31) as u32, 0);
        }
        self.mmio.write64(offset, value);
    }
}

impl Platform for Tapped {
    type Mmio = Tap;
    type RawMutex = <QemuPlatform as Platform>::RawMutex;
    type Rcu = <QemuPlatform as Platform>::Rcu;

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
        self.0.full_barrier();
    }
    fn write_barrier(&self) {
        self.0.write_barrier();
    }
    fn read_barrier(&self) {
        self.0.read_barrier();
    }
    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }
    fn relax(&self) {
        self.0.relax();
    }
    fn wait_for_event(&self) {
        self.0.wait_for_event();
    }
    fn wait_while(&self, word: &AtomicU64, value: u64) {
        self.0.wait_while(word, value);
    }
    fn cpu_hint(&self) -> usize {
        self.0.cpu_hint()
    }
}

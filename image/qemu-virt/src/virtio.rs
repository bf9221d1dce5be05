//! What the drivers of the crate `virtio-drivers` need to work behind an SMMU: a `Hal` whose addresses are those of a domain, and a
//! transport that tells the device to use them.

use alloc::alloc::{alloc_zeroed, dealloc, handle_alloc_error};
use alloc::sync::Arc;
use core::alloc::Layout;
use core::ptr::{self, NonNull};

use smmuv3::arch::Prot;
use smmuv3::platform::Iova;
use spin::Once;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::dma::Space;
use crate::memory::PAGE;

/// The addresses of virtio device number `N`. The trait's methods have no `self`, so a device's addresses are found by its type.
pub struct DomainHal<const N: usize>;

static SPACES: [Once<Arc<Space>>; 2] = [const { Once::new() }; 2];

impl<const N: usize> DomainHal<N> {
    /// Says which addresses device number `N` uses. To be called once, and before any driver uses the type.
    pub fn init(space: &Arc<Space>) {
        SPACES[N].call_once(|| space.clone());
    }

    fn space() -> &'static Space {
        SPACES[N].get().expect("`init` was called")
    }
}

/// Stage 1 has no mappings that can be written and not read.
fn prot(direction: BufferDirection) -> Prot {
    match direction {
        BufferDirection::DriverToDevice => Prot::READ,
        BufferDirection::DeviceToDriver | BufferDirection::Both => Prot::READ | Prot::WRITE,
    }
}

// SAFETY: `dma_alloc` gives zeroed pages of the heap that are nobody else's; the addresses of registers are those that they are mapped at.
unsafe impl<const N: usize> Hal for DomainHal<N> {
    fn dma_alloc(pages: usize, direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let layout = layout(pages);
        // SAFETY: a queue has a page at least.
        let memory = unsafe { alloc_zeroed(layout) };
        let memory = NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout));
        let iova = Self::space().map(NonNull::slice_from_raw_parts(memory, layout.size()), prot(direction));
        (iova.0, memory)
    }

    unsafe fn dma_dealloc(iova: PhysAddr, memory: NonNull<u8>, pages: usize) -> i32 {
        let layout = layout(pages);
        // First the device, then the memory.
        Self::space().unmap(Iova(iova), layout.size());
        // SAFETY: the caller gives back what `dma_alloc` gave.
        unsafe { dealloc(memory.as_ptr(), layout) };
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _size: usize) -> NonNull<u8> {
        NonNull::new(ptr::with_exposed_provenance_mut(address as usize)).expect("a BAR")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        Self::space().map(buffer, prot(direction)).0
    }

    unsafe fn unshare(iova: PhysAddr, buffer: NonNull<[u8]>, _direction: BufferDirection) {
        Self::space().unmap(Iova(iova), buffer.len());
    }
}

fn layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE, PAGE).expect("a sane number of pages")
}

/// A transport that also negotiates VIRTIO_F_ACCESS_PLATFORM, as the crate's drivers do not: "my addresses are those of the platform's IOMMU" (virtio 1.2, §6).
/// Without it a device may take addresses for physical ones.
pub struct Translated<T>(pub T);

impl<T: Transport> Transport for Translated<T> {
    fn write_driver_features(&mut self, driver_features: u64) {
        const ACCESS_PLATFORM: u64 = 1 << 33;
        let offered = self.0.read_device_features();
        assert!(offered & ACCESS_PLATFORM != 0, "the device does not go through the SMMU: it needs iommu_platform=on");
        self.0.write_driver_features(driver_features | ACCESS_PLATFORM);
    }

    fn device_type(&self) -> DeviceType {
        self.0.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.0.read_device_features()
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.max_queue_size(queue)
    }

    fn notify(&mut self, queue: u16) {
        self.0.notify(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        self.0.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.0.set_status(status);
    }

    fn set_guest_page_size(&mut self, size: u32) {
        self.0.set_guest_page_size(size);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.0.requires_legacy_layout()
    }

    fn queue_set(&mut self, queue: u16, size: u32, descriptors: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        self.0.queue_set(queue, size, descriptors, driver, device);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.0.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.0.ack_interrupt()
    }

    fn read_config_generation(&self) -> u32 {
        self.0.read_config_generation()
    }

    fn read_config_space<V: zerocopy::FromBytes + zerocopy::IntoBytes>(
        &self,
        offset: usize,
    ) -> virtio_drivers::Result<V> {
        self.0.read_config_space(offset)
    }

    fn write_config_space<V: zerocopy::IntoBytes + zerocopy::Immutable>(
        &mut self,
        offset: usize,
        value: V,
    ) -> virtio_drivers::Result<()> {
        self.0.write_config_space(offset, value)
    }
}

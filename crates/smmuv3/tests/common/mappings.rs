//! Any sequence of map, unmap, attach and detach, against a list of what is mapped: the domain and a device that reads agree with it after each
//! step. For the fuzzer and for the tests.

use smmuv3::arch::{AddrSize, Granule, Prot, Stage};
use smmuv3::platform::{Iova, PhysAddr};
use smmuv3::{
    Cover, Device, DeviceConfig, Geometry, Iommu, MapError, PagingDomain, SmmuHandle, SmmuOptions, UnmapError,
};
use smmuv3_model::{DmaError, Model, ModelConfig, ModelPlatform};

/// An input is four bytes for the domain, and then steps of six bytes.
pub const UNIT: usize = 6;
const STEPS: usize = 24;

const SID: u32 = 0x18;
/// Targets lie above all memory: whether the model finds any there does not matter, only which address it comes to.
const TARGETS: u64 = 1 << 40;

pub struct Arena {
    model: Model,
    iommu: Iommu<ModelPlatform>,
    smmu: SmmuHandle<ModelPlatform>,
    device: Device<ModelPlatform>,
}

/// Pages that are mapped to pages that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    first: u64,
    end: u64,
    target: u64,
    prot: Prot,
}

struct Run<'a> {
    arena: &'a Arena,
    domain: PagingDomain<ModelPlatform>,
    size: u64,
    /// The number of pages of the input range.
    pages: u64,
    extents: Vec<Extent>,
    attached: bool,
    mapped: usize,
}

impl Arena {
    pub fn new() -> Arena {
        let model = Model::new(ModelConfig { ram_size: 32 << 20, ..ModelConfig::default() });
        let iommu = Iommu::new(model.platform()).expect("memory");
        let smmu = iommu.add_smmu(model.mmio(0), SmmuOptions::default()).expect("an SMMU");
        let device = iommu.add_device(&smmu, DeviceConfig::stream(SID)).expect("a device");
        Arena { model, iommu, smmu, device }
    }

    /// Panics at the first step after which something is not as the list says. Returns how often something was mapped.
    pub fn run(&self, input: &[u8]) -> usize {
        let Some((&[stage, granule, bits, seed], steps)) = input.split_first_chunk() else { return 0 };
        let stage = [Stage::S1, Stage::S2][usize::from(stage) % 2];
        let granule = [Granule::K4, Granule::K16, Granule::K64][usize::from(granule) % 3];
        let input_bits = 39 + bits % 10;
        let before = self.model.driver_pages();
        let cover = if seed & 2 == 2 { Cover::Exact } else { Cover::Few };
        let geometry = Geometry { granule, input_bits, output_size: AddrSize::B48, cover };
        let domain = self.iommu.paging_domain(stage, geometry).expect("memory");
        let pages = 1 << (u32::from(input_bits) - granule.shift());
        let mut run =
            Run { arena: self, domain, size: granule.size(), pages, extents: Vec::new(), attached: false, mapped: 0 };
        if seed & 1 == 1 {
            run.attach();
        }
        for step in steps.chunks_exact(UNIT).take(STEPS) {
            run.step(step.try_into().expect("of that length"));
        }
        let mapped = run.mapped;
        self.device.detach().expect("a detach");
        drop(run);
        let _ = self.smmu.take_events(|_| {});
        assert_eq!(self.model.driver_pages(), before, "table memory leaked");
        self.model.report().assert_clean();
        mapped
    }
}

impl Default for Arena {
    fn default() -> Self {
        Arena::new()
    }
}

impl Run<'_> {
    fn step(&mut self, [what, place, near, span, target, amount]: [u8; UNIT]) {
        let page = self.page(place, near);
        let table = self.table();
        // Page by page, a whole block of level 1 takes too long.
        let blocks = span % 8 == 6 && page.is_multiple_of(table);
        let pages = if blocks { table * table } else { self.span(span, amount) }.min(self.pages - page);
        // Aligned as the pages are, or not.
        let offset = if blocks { 0 } else { u64::from(target & 0xf) };
        let target = TARGETS / self.size + u64::from(target >> 4) * table + offset + page % table;
        match what % 8 {
            0 | 1 => self.map(page, pages, target, what),
            2 | 3 => self.unmap(page, pages),
            4 => self.attach(),
            5 => {
                self.arena.device.detach().expect("a detach");
                self.attached = false;
            }
            6 => {
                self.arena.model.fail_allocs_after((what >> 3 & 3).into());
                self.map(page, pages, target, what);
                self.arena.model.fail_all_allocs(false);
            }
            _ => self.bad_range(page, pages, what >> 3),
        }
        let last = page + pages - 1;
        for probe in [page.saturating_sub(1), page, page + pages / 2, last, (last + 1).min(self.pages - 1)] {
            self.probe(probe, what >> 7 == 1);
        }
    }

    /// Entries of a table.
    fn table(&self) -> u64 {
        self.size / 8
    }

    /// A page near a place where tables and blocks begin, or near an end of the input range.
    fn page(&self, place: u8, near: u8) -> u64 {
        let last = self.pages - 1;
        let (table, near) = (self.table(), u64::from(near % 16));
        let places = [0, table, 2 * table, (table * table).min(last / 2), (2 * table * table).min(last / 2), last];
        let place: u64 = places[usize::from(place) % places.len()];
        if near < 8 { (place + near).min(last) } else { place.saturating_sub(near - 8) }
    }

    fn span(&self, span: u8, amount: u8) -> u64 {
        let (table, amount) = (self.table(), u64::from(amount));
        match span % 8 {
            0..=2 => 1 + amount % 16,
            3 => table,
            4 => 2 * table,
            5 => table - 8 + amount % 16,
            _ => 1 + amount * 4,
        }
    }

    fn at(&self, page: u64) -> Option<&Extent> {
        self.extents.iter().find(|extent| (extent.first..extent.end).contains(&page))
    }

    fn map(&mut self, first: u64, pages: u64, target: u64, what: u8) {
        let end = first + pages;
        let prot = [Prot::READ, Prot::WRITE, Prot::READ | Prot::WRITE][usize::from(what >> 5) % 3];
        let clash = self.extents.iter().filter(|extent| extent.first < end && first < extent.end);
        let clash = clash.map(|extent| extent.first.max(first)).min();
        let to = PhysAddr(target * self.size);
        match (self.domain.map(Iova(first * self.size), to, pages * self.size, prot), clash) {
            (Ok(()), None) => {
                self.extents.push(Extent { first, end, target, prot });
                self.mapped += 1;
            }
            (Err(MapError::AlreadyMapped(at)), Some(clash)) => {
                // Or where the block begins that would cover it.
                assert!(at.0 / self.size <= clash && at.0 / self.size >= first, "{at} is reported, {clash:#x} clashes");
            }
            // Then nothing is mapped, as `probe` will see.
            (Err(MapError::NoMemory(_)), _) => {}
            (result, clash) => panic!("map {first:#x}..{end:#x}: {result:?}, with a clash at {clash:x?}"),
        }
    }

    fn unmap(&mut self, first: u64, pages: u64) {
        let end = first + pages;
        match self.domain.unmap(Iova(first * self.size), pages * self.size) {
            Ok(report) => {
                let mut gone = 0;
                let left = self.extents.iter().flat_map(|&extent| {
                    let (from, to) = (extent.first.clamp(first, end), extent.end.clamp(first, end));
                    gone += to - from;
                    let before = Extent { end: extent.end.min(first), ..extent };
                    let skipped = extent.first.max(end) - extent.first;
                    let after = Extent { first: extent.first + skipped, target: extent.target + skipped, ..extent };
                    [before, after].into_iter().filter(|part| part.first < part.end)
                });
                self.extents = left.collect();
                assert_eq!(report.bytes, gone * self.size, "unmap {first:#x}..{end:#x}");
                assert_eq!(report.wait_rounds, u32::from(self.attached));
            }
            Err(UnmapError::PartOfBlock { iova, size }) => {
                let (block, block_end) = (iova.0 / self.size, (iova.0 + size) / self.size);
                assert!(size > self.size && iova.0 & (size - 1) == 0, "{iova}, {size:#x}");
                assert!((block < first || block_end > end) && block < end && first < block_end);
                let extent = self.at(block).expect("it is mapped");
                assert!(extent.end >= block_end, "{iova}, {size:#x}: {extent:x?}");
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// What is no range of the domain is refused, and changes nothing.
    fn bad_range(&self, page: u64, pages: u64, what: u8) {
        let (iova, len) = (page * self.size, pages * self.size);
        let (iova, len) = match what % 4 {
            0 => (iova + 8, len),
            1 => (iova, len - 1),
            2 => (iova, 0),
            _ => (iova, (self.pages - page + 1) * self.size),
        };
        assert!(matches!(self.domain.unmap(Iova(iova), len), Err(UnmapError::BadRange(_))));
        assert!(matches!(self.domain.map(Iova(iova), PhysAddr(0), len, Prot::READ), Err(MapError::BadRange(_))));
        let end = PhysAddr((1 << 48) - (pages - 1) * self.size);
        let beyond = self.domain.map(Iova(page * self.size), end, pages * self.size, Prot::READ);
        assert!(matches!(beyond, Err(MapError::BadRange(_))), "{beyond:?}");
    }

    fn attach(&mut self) {
        self.arena.device.attach(&self.domain).expect("an attach");
        self.attached = true;
    }

    /// What the domain says of a page, and what a device comes to.
    fn probe(&self, page: u64, write: bool) {
        let iova = Iova(page * self.size + 8);
        let extent = self.at(page);
        let target = extent.map(|extent| PhysAddr((extent.target + page - extent.first) * self.size + 8));
        assert_eq!(self.domain.iova_to_phys(iova), target, "page {page:#x}");
        let device = self.arena.model.device(0, SID);
        let result = if write { device.write_u64(iova, 1) } else { device.read_u64(iova).map(drop) };
        let may = |extent: &Extent| match (write, self.domain.stage()) {
            (true, _) => extent.prot.contains(Prot::WRITE),
            (false, Stage::S1) => true,
            (false, Stage::S2) => extent.prot.contains(Prot::READ),
        };
        match target.filter(|_| self.attached && extent.is_some_and(may)) {
            Some(target) => assert_eq!(result, Err(DmaError::NoMemory(target)), "page {page:#x}"),
            None => assert!(matches!(result, Err(DmaError::Aborted(_))), "page {page:#x}: {result:?}"),
        }
    }
}

/// Inputs to begin with: pages and blocks, mapped and unmapped whole and in part, with a device and without, out of memory and out of range.
pub fn seeds() -> Vec<Vec<u8>> {
    let steps: [&[[u8; UNIT]]; 5] = [
        // A page, seen, and gone.
        &[[0x40, 1, 0, 0, 0, 0], [7, 1, 0, 0, 0, 0], [2, 1, 0, 0, 0, 0]],
        // A table of pages, a hole in it, and again over it.
        &[[0x41, 1, 0, 3, 1, 0], [4, 0, 0, 0, 0, 0], [2, 1, 3, 0, 0, 0], [0, 1, 0, 3, 1, 0], [2, 0, 0, 4, 0, 0]],
        // Blocks; a part of one cannot go.
        &[[0x40, 1, 0, 4, 0x20, 0], [2, 1, 1, 0, 0, 0], [4, 0, 0, 0, 0, 0], [3, 0, 0, 6, 0, 0], [5, 0, 0, 0, 0, 0]],
        // A block of level 1 and the end of the range.
        &[[0x40, 3, 0, 6, 0, 0], [0xa1, 5, 9, 0, 3, 7], [0x8f, 5, 0, 0, 0, 0], [3, 5, 9, 0, 0, 7], [2, 3, 0, 6, 0, 0]],
        // Without memory half way, and with.
        &[
            [0x46, 1, 9, 0, 0, 4],
            [0x4e, 1, 9, 0, 0, 4],
            [0x40, 1, 9, 0, 0, 4],
            [0x16, 4, 9, 7, 5, 9],
            [2, 1, 9, 0, 0, 9],
        ],
    ];
    let kinds = [[0, 0, 0, 0], [1, 0, 1, 1], [0, 1, 8, 1], [1, 2, 3, 1], [0, 2, 9, 0], [1, 0, 9, 1]];
    let all = kinds.iter().flat_map(|kind| steps.iter().map(move |steps| [&kind[..], steps.as_flattened()].concat()));
    all.collect()
}

//! Guests: a vSMMU with a stage 1 that maps the addresses of the storm to themselves.

use std::sync::Mutex;

use smmuv3::arch::{AddrSize, Cd, Desc, Granule, MAIR, Prot, RawSte, Shape, Stage};
use smmuv3::platform::{Iova, PhysAddr};
use smmuv3::{NestedDomain, PagingDomain, VSmmu};
use smmuv3_model::{DataPages, Model};

use super::books::{PAGE, RW};
use super::host::Host;

/// Where the guest's tables are in its own eyes (IPA). Each guest of a parent has other pages there.
const TABLES: u64 = 0x4000_0000;
/// CD, levels 1 and 2, and two of level 3.
const TABLE_PAGES: usize = 5;
/// What the first guest's stage 1 maps: 4 MiB with pages, and 4 MiB with blocks behind.
const BLOCK: u64 = 2 << 20;
const INPUT_BITS: u8 = 39;
const OUTPUT: AddrSize = AddrSize::from_code(2);

pub(super) struct Guest {
    pub smmu: usize,
    /// The parent domain.
    pub parent: usize,
    pub asid: u16,
    pub now: Mutex<Virtual>,
    ste: RawSte,
    memory: DataPages,
}

/// What is made anew now and then. Clones are the same.
#[derive(Clone)]
pub(super) struct Virtual {
    pub vsmmu: VSmmu<Host>,
    pub domain: NestedDomain<Host>,
}

impl Virtual {
    pub(super) fn new(vsmmu: VSmmu<Host>, ste: &RawSte) -> Result<Self, String> {
        let domain = vsmmu.nested_domain(ste).map_err(|error| format!("nested domain: {error}"))?;
        Ok(Virtual { vsmmu, domain })
    }
}

impl Guest {
    /// Writes the guest's tables, and maps them in its parent.
    pub(super) fn new(
        model: &Model,
        index: usize,
        (smmu, parent): (usize, usize),
        domain: &PagingDomain<Host>,
        make: impl FnOnce() -> Result<VSmmu<Host>, String>,
    ) -> Result<Guest, String> {
        let memory = model.alloc_data(TABLE_PAGES).ok_or("no memory for a guest's tables")?;
        let asid = index as u16 + 1;
        let seen = TABLES + (index * TABLE_PAGES) as u64 * PAGE;
        let page = |index: usize| seen + index as u64 * PAGE;
        let set = |page: usize, word: u64, value| {
            model.write_u64(PhysAddr(memory.addr().0 + page as u64 * PAGE + 8 * word), value);
        };
        (0..TABLE_PAGES).for_each(|page| (0..PAGE / 8).for_each(|word| set(page, word, 0)));
        let shape = Shape::new(Stage::S1, Granule::K4, INPUT_BITS, OUTPUT).map_err(|error| error.to_string())?;
        let cd = Cd {
            t0sz: shape.t0sz(),
            granule: Granule::K4,
            output_size: OUTPUT,
            ttb0: Some(PhysAddr(page(1))),
            asid,
            private_asid: true,
            mair: MAIR,
            record: true,
            stall: false,
            abort: true,
        };
        cd.encode().0.into_iter().zip(0..).for_each(|(value, word)| set(0, word, value));
        set(1, 0, Desc::table(PhysAddr(page(2))).0);
        for (word, table) in [(0, 3), (1, 4)] {
            set(2, word, Desc::table(PhysAddr(page(table))).0);
            for entry in 0..PAGE / 8 {
                set(table, entry, Desc::leaf(PhysAddr(word * BLOCK + entry * PAGE), 3, Stage::S1, RW).0);
            }
        }
        for word in 2..4 {
            set(2, word, Desc::leaf(PhysAddr(word * BLOCK), 2, Stage::S1, RW).0);
        }
        domain
            .map(Iova(seen), memory.addr(), memory.size(), Prot::READ | Prot::WRITE)
            .map_err(|error| format!("a guest's tables: {error}"))?;
        let vsmmu = make()?;
        // V, Config = stage 1, S1ContextPtr; EATS = full, which has no effect without ATS (IHI 0070 §5.2).
        let eats = if model.features(smmu).ats { 1 << 28 } else { 0 };
        let ste = RawSte([page(0) | 0b101 << 1 | 1, eats, 0, 0, 0, 0, 0, 0]);
        let now = Mutex::new(Virtual::new(vsmmu, &ste)?);
        Ok(Guest { smmu, parent, asid, now, ste, memory })
    }

    /// The guest's STE.
    pub(super) fn ste(&self) -> &RawSte {
        &self.ste
    }

    /// The guest is over.
    pub(super) fn into_memory(self) -> DataPages {
        self.memory
    }
}

//! Stream table and CD tables: how a StreamID and a SubstreamID find their STE and CD, and the cache of what was
//! found (§3.21.3, §5.1 to §5.4).
//!
//! Laziness, all of it permitted by §3.21.3 and §4.3:
//! - every structure that was fetched is cached, valid or not, until a command names it: L1STD, STE, L1CD, CD;
//! - each is cached by itself; the cached STE goes on to be used if the L1STD above it changes;
//! - CDs belong to the StreamID that fetched them (§4.3.3);
//! - an STE or CD is read as eight words of 64 bits in random order, so a torn update is seen;
//! - a fetch that finds no memory is not cached;
//! - all that is reachable may be fetched unasked.
//!
//! As in the TLB, an invalidation dooms, and the next CMD_SYNC removes.

use smmuv3::arch::{
    BadCd, BadSte, Cd, CdFormat, Class, Event, L1Cd, L1Std, RawCd, RawSte, Ste, SteStage1, StreamWorld,
};
use smmuv3::platform::PhysAddr;

use crate::fault::{Fault, Request, fetch};
use crate::smmu::Unit;
use crate::tlb::{Doomed, Map};
use crate::walk::Stage2;

/// What a configuration invalidation reaches.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cfgi {
    /// STEs, and all that was found through them; with `leaf` false the L1STDs above too.
    Stes { first: u32, last: u32, leaf: bool },
    /// One CD; with `leaf` false the L1CD above too.
    Cd { sid: u32, ssid: u32, leaf: bool },
    /// All CDs and L1CDs of a stream.
    Cds { sid: u32 },
}

#[derive(Debug, Clone, Copy)]
struct Cached<T> {
    value: T,
    doomed: Doomed,
}

/// A cached STE.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CachedSte {
    pub ste: Result<Ste, BadSte>,
    /// `S2AFFD`
    pub s2_affd: bool,
}

/// A cached CD.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CachedCd {
    pub cd: Result<Cd, BadCd>,
    /// `AFFD`
    pub affd: bool,
}

/// Cached configuration structures.
#[derive(Default)]
pub(crate) struct ConfigCache {
    /// By the first StreamID and the number of StreamID bits below.
    l1stds: Map<(u32, u8), Cached<u64>>,
    stes: Map<u32, Cached<CachedSte>>,
    /// By StreamID, index, and the number of SubstreamID bits below.
    l1cds: Map<(u32, u32, u8), Cached<u64>>,
    cds: Map<(u32, u32), Cached<CachedCd>>,
    doomed: Doomed,
}

impl ConfigCache {
    /// Dooms what `cfgi` of `queue` reaches, or removes it at once.
    pub(crate) fn invalidate(&mut self, queue: usize, cfgi: &Cfgi, now: bool) {
        self.doomed |= Doomed::by_if(queue, !now);
        let doom = |entry: &mut Doomed, reached: bool| {
            *entry |= Doomed::by_if(queue, reached && !now);
            !(reached && now)
        };
        match *cfgi {
            Cfgi::Stes { first, last, leaf } => {
                let range = first..=last;
                self.l1stds.retain(|&(sid, bits), entry| {
                    let end = sid | ((1u64 << bits) - 1) as u32;
                    doom(&mut entry.doomed, !leaf && sid <= last && end >= first)
                });
                self.stes.retain(|sid, entry| doom(&mut entry.doomed, range.contains(sid)));
                self.l1cds.retain(|(sid, ..), entry| doom(&mut entry.doomed, range.contains(sid)));
                self.cds.retain(|(sid, _), entry| doom(&mut entry.doomed, range.contains(sid)));
            }
            Cfgi::Cd { sid, ssid, leaf } => {
                self.cds.retain(|&key, entry| doom(&mut entry.doomed, key == (sid, ssid)));
                self.l1cds.retain(|&(of, index, bits), entry| {
                    doom(&mut entry.doomed, !leaf && of == sid && index == ssid >> bits)
                });
            }
            Cfgi::Cds { sid } => {
                self.l1cds.retain(|&(of, ..), entry| doom(&mut entry.doomed, of == sid));
                self.cds.retain(|&(of, _), entry| doom(&mut entry.doomed, of == sid));
            }
        }
    }

    /// What targets the STE of a transaction, or the CD if it has one.
    pub(crate) fn dooms(&self, sid: u32, index: Option<u32>) -> Doomed {
        let ste = self.stes.get(&sid).map_or(Doomed::NO, |ste| ste.doomed);
        let cd = index.and_then(|index| self.cds.get(&(sid, index)));
        ste | cd.map_or(Doomed::NO, |cd| cd.doomed)
    }

    /// Removes what the queue has doomed.
    pub(crate) fn purge(&mut self, queue: usize) {
        if self.doomed.by(queue) {
            self.doomed.forget(queue);
            self.l1stds.retain(|_, entry| !entry.doomed.by(queue));
            self.stes.retain(|_, entry| !entry.doomed.by(queue));
            self.l1cds.retain(|_, entry| !entry.doomed.by(queue));
            self.cds.retain(|_, entry| !entry.doomed.by(queue));
        }
    }
}

/// An STE as the walk uses it.
pub(crate) struct FoundSte {
    pub entry: CachedSte,
    /// Targeted by an invalidation that is not complete: what is found through it is targeted too.
    doomed: Doomed,
}

impl Unit {
    /// Reads an STE or CD: eight single-copy atomic loads, in any order. `None`: there is no memory.
    fn fetch_structure(&mut self, addr: u64, request: &Request, what: &'static str) -> Option<[u64; 8]> {
        let mut words = [0; 8];
        let order = if self.laziness.any_word_order { self.rng.order_of_8() } else { [0, 1, 2, 3, 4, 5, 6, 7] };
        for i in order {
            words[i] = self.fetch(addr + 8 * i as u64, Some(request), what)?;
            if self.rng.one_in(if request.afresh { 128 } else { 8 }) {
                // Let a writer that is in the middle of an update go on. Not as often for prefetches: all others wait.
                std::thread::yield_now();
            }
        }
        Some(words)
    }

    /// Whether a structure that was fetched is cached.
    fn keeps(&self, valid: bool) -> bool {
        self.laziness.config_cache && (valid || self.laziness.invalid_config_cache)
    }

    fn outside(&self, what: &str, addr: u64) {
        self.violation(format!("{what} at {addr:#x}, where there is no memory"));
    }

    /// The STE of a transaction (§5.1, §7.3.3).
    pub(crate) fn find_ste(&mut self, request: &Request) -> Result<FoundSte, Fault> {
        let sid = request.sid;
        let bad_sid =
            Fault { record: self.regs.cr2.recinvsid(), ..request.config_fault(Event::CBadStreamid(request.stream())) };
        let table = self.stream_table();
        if u64::from(sid) >> table.log2 != 0 {
            return Err(bad_sid);
        }
        if let Some(entry) = self.configs.stes.get(&sid) {
            return Ok(FoundSte { entry: entry.value, doomed: entry.doomed });
        }
        let mut doomed = Doomed::NO;
        let addr = match table.split {
            None => table.base + u64::from(sid) * 64,
            Some(split) => {
                let index = sid >> split;
                let key = (index << split, split);
                let std = match self.configs.l1stds.get(&key) {
                    Some(entry) => {
                        doomed = entry.doomed;
                        entry.value
                    }
                    None => {
                        let addr = table.base + u64::from(index) * 8;
                        let Some(value) = self.fetch(addr, Some(request), "L1STD") else {
                            self.outside("L1STD", addr);
                            return Err(request.config_fault(Event::FSteFetch(request.stream(), fetch(addr))));
                        };
                        let valid = L1Std::new_with_raw_value(value).target(split).is_some();
                        if self.keeps(valid) {
                            self.configs.l1stds.insert(key, Cached { value, doomed: Doomed::NO });
                        }
                        value
                    }
                };
                let Some((l2, log2)) = L1Std::new_with_raw_value(std).target(split) else { return Err(bad_sid) };
                let below = sid & ((1 << split) - 1);
                if below >> log2 != 0 {
                    return Err(bad_sid);
                }
                // The SMMU aligns the array to its size (§5.1).
                let aligned = l2.0 & !((64 << log2) - 1);
                if aligned != l2.0 {
                    self.violation(format!("L1STD of StreamID {sid:#x} points to {l2}, not aligned to its size"));
                }
                aligned + u64::from(below) * 64
            }
        };
        let Some(words) = self.fetch_structure(addr, request, "STE") else {
            self.outside("STE", addr);
            return Err(request.config_fault(Event::FSteFetch(request.stream(), fetch(addr))));
        };
        let entry = self.decode_ste(RawSte(words));
        if self.keeps(!matches!(entry.ste, Err(_) | Ok(Ste::Invalid))) {
            self.configs.stes.insert(sid, Cached { value: entry, doomed });
            self.configs.doomed |= doomed;
        }
        Ok(FoundSte { entry, doomed })
    }

    fn decode_ste(&self, raw: RawSte) -> CachedSte {
        CachedSte { ste: raw.decode(&self.features), s2_affd: raw.0[2] >> 53 & 1 != 0 }
    }

    /// The CD at `index` of the stream's table (§5.3, §5.4). With stage 2, all addresses on the way are IPAs.
    pub(crate) fn find_cd(
        &mut self,
        request: &Request,
        ste: &FoundSte,
        s1: &SteStage1,
        s2: Option<&Stage2>,
        index: u32,
    ) -> Result<CachedCd, Fault> {
        let sid = request.sid;
        if let Some(entry) = self.configs.cds.get(&(sid, index)) {
            return Ok(entry.value);
        }
        let mut doomed = ste.doomed;
        let table = s1.context_ptr.0;
        let (leaf_bits, size) = match s1.format {
            CdFormat::Linear => (None, 64u64 << s1.cd_max),
            CdFormat::TwoLevel4K => (Some(6), (8 << s1.cd_max.saturating_sub(6)).max(64)),
            CdFormat::TwoLevel64K => (Some(10), (8 << s1.cd_max.saturating_sub(10)).max(64)),
        };
        if table & (size - 1) != 0 {
            self.violation(format!("S1ContextPtr of StreamID {sid:#x} is {table:#x}, not aligned to {size:#x}"));
        }
        let table = table & !(size - 1);
        let addr = match leaf_bits {
            None => table + u64::from(index) * 64,
            Some(bits) => {
                let key = (sid, index >> bits, bits);
                let l1 = match self.configs.l1cds.get(&key) {
                    Some(entry) => {
                        doomed |= entry.doomed;
                        entry.value
                    }
                    None => {
                        let addr = self.cd_address(request, s2, table + u64::from(index >> bits) * 8)?;
                        let Some(value) = self.fetch(addr, Some(request), "L1CD") else {
                            self.outside("L1CD", addr);
                            return Err(request.config_fault(Event::FCdFetch(request.stream(), fetch(addr))));
                        };
                        if self.keeps(L1Cd::new_with_raw_value(value).target().is_some()) {
                            self.configs.l1cds.insert(key, Cached { value, doomed });
                            self.configs.doomed |= doomed;
                        }
                        value
                    }
                };
                let bad = Event::CBadSubstreamid { sid, ssid: index };
                let target = L1Cd::new_with_raw_value(l1).target();
                let Some(PhysAddr(leaf)) = target.filter(|at| at.0 >> self.features.oas.bits() == 0) else {
                    return Err(request.config_fault(bad));
                };
                let mask = (64u64 << bits) - 1;
                if leaf & mask != 0 {
                    self.violation(format!("L1CD of StreamID {sid:#x} points to {leaf:#x}, not aligned to {mask:#x}"));
                }
                (leaf & !mask) + u64::from(index & ((1 << bits) - 1)) * 64
            }
        };
        let addr = self.cd_address(request, s2, addr)?;
        let Some(words) = self.fetch_structure(addr, request, "CD") else {
            self.outside("CD", addr);
            return Err(request.config_fault(Event::FCdFetch(request.stream(), fetch(addr))));
        };
        let raw = RawCd(words);
        let value = CachedCd { cd: raw.decode(&self.features), affd: raw.0[0] >> 35 & 1 != 0 };
        if self.keeps(value.cd.is_ok()) {
            self.configs.cds.insert((sid, index), Cached { value, doomed });
            self.configs.doomed |= doomed;
        }
        Ok(value)
    }

    /// Where a CD or L1CD really is.
    fn cd_address(&mut self, request: &Request, s2: Option<&Stage2>, addr: u64) -> Result<u64, Fault> {
        match s2 {
            None => Ok(addr),
            Some(s2) => Ok(self.stage2(request, s2, addr, Class::Cd)?.pa),
        }
    }

    /// What a configuration cache may hold when it has just got power: STEs that let streams pass, or send them
    /// anywhere.
    pub(crate) fn fill_configs_with_junk(&mut self) {
        for sid in 0..1024u32.min(1 << self.features.sid_bits.min(10)) {
            let ste = match self.rng.below(3) {
                0 => Ste::Bypass,
                1 => Ste::Abort,
                _ => Ste::Translate {
                    vmid: 0,
                    eats: Default::default(),
                    stages: smmuv3::arch::Stages::S1(SteStage1 {
                        context_ptr: PhysAddr(self.some_page()),
                        cd_max: 0,
                        format: CdFormat::Linear,
                        default_substream: Default::default(),
                        world: StreamWorld::El1,
                        stall_disabled: false,
                    }),
                },
            };
            let value = self.decode_ste(ste.encode());
            self.configs.stes.insert(sid, Cached { value, doomed: Doomed::NO });
        }
    }
}

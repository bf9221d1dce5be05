//! Translation: what becomes of a transaction (chapters 3.4, 5 and 15; walks as in the A-profile architecture, D8).
//!
//! Stage 1, stage 2, or both one after the other. A walk asks the TLB first and starts at the deepest thing that is
//! cached. Only valid descriptors without an access-flag or address-size fault are cached.

use smmuv3::arch::{
    Cd, Class, DefaultSubstream, Desc, DescKind, Event, Granule, Prot, Stage, Stages, Ste, SteStage1, SteStage2,
    StreamWorld,
};

use crate::atc::AtcEntry;
use crate::config::FoundSte;
use crate::fault::{Cause, Fault, Request};
use crate::smmu::Unit;
use crate::tlb::{Doomed, Leaf, Origin, Regime, Table, Tag, TlbHit};

/// Stage 2 of a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stage2 {
    ste: SteStage2,
    affd: bool,
    tag: Tag,
}

/// Where a transaction goes, and why.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub pa: u64,
    /// What all stages together permit: `READ`, `WRITE`. An ordinary transaction has been checked already.
    pub prot: Prot,
    /// Bits of address that what was found translates.
    pub chunk: u8,
    pub source: Source,
}

/// What sent a transaction where it goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    /// `GBPA`: the SMMU is off.
    Disabled,
    /// The STE, or `S1DSS`.
    Bypass,
    /// A TLB entry.
    Tlb(TlbHit),
    /// An entry of the function's ATC.
    Atc(AtcEntry),
}

/// What stage 2 says of an IPA.
pub(crate) struct Stage2Output {
    pub pa: u64,
    leaf: Leaf,
}

const RW: Prot = Prot::READ.union(Prot::WRITE);

/// log2 of the bytes that one entry at `level` maps.
fn level_shift(granule: Granule, level: u8) -> u32 {
    granule.shift() + (3 - u32::from(level)) * (granule.shift() - 3)
}

/// The offset of the entry for `input` in its table; in a start table (or several) all the upper bits count.
fn entry_offset(input: u64, granule: Granule, level: u8, start: bool) -> u64 {
    let index = input >> level_shift(granule, level);
    let mask = if start { u64::MAX } else { granule.size() / 8 - 1 };
    (index & mask) * 8
}

fn origin(input: u64, granule: Granule, level: u8, filled: u64, doomed: Doomed) -> Origin {
    let shift = level_shift(granule, level);
    Origin { granule, level, base: input >> shift << shift, shift: shift as u8, filled, doomed }
}

/// Where a walk stands.
struct Walk {
    granule: Granule,
    level: u8,
    table: u64,
    /// With both stages, the PA of the table, if what led here knows.
    table_pa: Option<u64>,
    /// What led here.
    via: Option<Table>,
    start: bool,
    doomed: Doomed,
}

impl Walk {
    /// At the table that a walk-cache entry leads to.
    fn from(via: Table) -> Walk {
        let Table { origin, next, next_pa } = via;
        let (level, doomed) = (origin.level + 1, origin.doomed);
        let granule = origin.granule;
        Walk { granule, level, table: next, table_pa: next_pa, via: Some(via), start: false, doomed }
    }

    /// At the table that an STE or CD leads to.
    fn start(granule: Granule, level: u8, table: u64) -> Walk {
        Walk { granule, level, table, table_pa: None, via: None, start: true, doomed: Doomed::NO }
    }
}

impl FoundSte {
    /// Stage 2 as the STE has it.
    pub(crate) fn stage2(&self, vmid: u16, ste: SteStage2) -> Stage2 {
        let tag = Tag { regime: Regime::Stage2, vmid, asid: 0, global: None };
        Stage2 { ste, affd: self.entry.s2_affd, tag }
    }
}

impl Unit {
    /// Translates a transaction.
    pub(crate) fn translate(&mut self, request: &Request) -> Result<Output, Fault> {
        if !self.regs.cr0ack.smmuen() {
            return match self.regs.gbpa.abort() {
                true => Err(Fault { event: None, record: false, quiet: false }),
                false => Ok(Output { pa: request.iova, prot: RW, chunk: 12, source: Source::Disabled }),
            };
        }
        let found = self.find_ste(request)?;
        self.translate_with(request, &found)
    }

    /// Translates what an STE was found for.
    pub(crate) fn translate_with(&mut self, request: &Request, found: &FoundSte) -> Result<Output, Fault> {
        let no_substreams = |request: &Request| match request.ssid {
            Some(ssid) => Err(request.config_fault(Event::CBadSubstreamid { sid: request.sid, ssid })),
            None => Ok(()),
        };
        let (vmid, stages) = match found.entry.ste {
            Err(_) | Ok(Ste::Invalid) => return Err(request.config_fault(Event::CBadSte(request.stream()))),
            Ok(Ste::Abort) => return Err(Fault { event: None, record: false, quiet: false }),
            Ok(Ste::Bypass) => {
                no_substreams(request)?;
                return self.bypass(request);
            }
            Ok(Ste::Translate { vmid, stages, .. }) => (vmid, stages),
        };
        let (s1, s2) = match stages {
            Stages::S2(s2) => {
                no_substreams(request)?;
                return self.stage2_only(request, &found.stage2(vmid, s2));
            }
            Stages::S1(s1) => (s1, None),
            Stages::Nested(s1, s2) => (s1, Some(found.stage2(vmid, s2))),
        };
        let Some(index) = self.substream(request, &s1)? else {
            return match s2 {
                None => self.bypass(request),
                Some(s2) => self.stage2_only(request, &s2),
            };
        };
        let cached = self.find_cd(request, found, &s1, s2.as_ref(), index)?;
        let Ok(cd) = cached.cd else { return Err(request.config_fault(Event::CBadCd(request.stream()))) };
        let tag = match (s1.world, self.regs.cr2.e2h()) {
            (StreamWorld::El1, _) => Tag { regime: Regime::El1, vmid, asid: cd.asid, global: None },
            (StreamWorld::El2, true) => Tag { regime: Regime::El2E2h, vmid: 0, asid: cd.asid, global: None },
            (StreamWorld::El2, false) => Tag { regime: Regime::El2, vmid: 0, asid: 0, global: None },
        };
        self.stage1(request, &cd, cached.affd, tag, s2.as_ref())
    }

    /// The CD that a transaction uses, or `None` if it bypasses stage 1 (§5.2, S1CDMax and S1DSS).
    fn substream(&self, request: &Request, s1: &SteStage1) -> Result<Option<u32>, Fault> {
        let disabled = || Err(request.config_fault(Event::FStreamDisabled(request.stream())));
        match (request.ssid, s1.cd_max) {
            (None, 0) => Ok(Some(0)),
            (Some(ssid), 0) => Err(request.config_fault(Event::CBadSubstreamid { sid: request.sid, ssid })),
            (Some(ssid), max) if ssid >> max != 0 => {
                Err(request.config_fault(Event::CBadSubstreamid { sid: request.sid, ssid }))
            }
            (Some(0), _) if s1.default_substream == DefaultSubstream::Substream0 => disabled(),
            (Some(ssid), _) => Ok(Some(ssid)),
            (None, _) => match s1.default_substream {
                DefaultSubstream::Terminate => disabled(),
                DefaultSubstream::Bypass => Ok(None),
                DefaultSubstream::Substream0 => Ok(Some(0)),
            },
        }
    }

    /// No stage translates; the address must be one that the SMMU can give out (§3.4).
    fn bypass(&self, request: &Request) -> Result<Output, Fault> {
        if request.iova >> self.features.oas.bits() != 0 {
            return Err(request.config_fault(request.stage1_fault(Cause::AddrSize)));
        }
        // The span that it holds for is all there is (§13.6.4).
        let chunk = self.features.oas.bits();
        Ok(Output { pa: request.iova, prot: RW, chunk, source: Source::Bypass })
    }

    fn stage2_only(&mut self, request: &Request, s2: &Stage2) -> Result<Output, Fault> {
        if request.iova >> self.features.oas.bits() != 0 {
            return Err(request.config_fault(request.stage1_fault(Cause::AddrSize)));
        }
        let out = self.stage2(request, s2, request.iova, Class::In)?;
        let source = Source::Tlb(TlbHit { tag: s2.tag, origin: out.leaf.origin, junk: out.leaf.junk });
        Ok(Output { pa: out.pa, prot: out.leaf.prot & RW, chunk: out.leaf.chunk, source })
    }

    fn stage1(
        &mut self,
        request: &Request,
        cd: &Cd,
        affd: bool,
        tag: Tag,
        s2: Option<&Stage2>,
    ) -> Result<Output, Fault> {
        let va = request.iova;
        let fault = |cause| Fault {
            event: Some(request.stage1_fault(cause)),
            record: cd.record,
            quiet: !cd.abort && !self.features.abort_only,
        };
        let (translation, addr_size) = (fault(Cause::Translation), fault(Cause::AddrSize));
        let (access_flag, permission) = (fault(Cause::AccessFlag), fault(Cause::Permission));
        let input_bits = 64 - u32::from(cd.t0sz);
        if va >> input_bits != 0 {
            return Err(translation);
        }
        if let Some(leaf) = self.cached_leaf(request, tag, cd.private_asid, va, None)? {
            let granted = granted1(tag, leaf.prot);
            allowed(request, granted).then_some(()).ok_or(permission)?;
            if let Some(s2) = s2 {
                let ipa = leaf.ipa | va & ((1 << leaf.chunk) - 1);
                self.allowed2(request, s2, leaf.prot2, Class::In, ipa)?;
            }
            let pa = leaf.pa | va & ((1 << leaf.chunk) - 1);
            let source = Source::Tlb(TlbHit { tag, origin: leaf.origin, junk: leaf.junk });
            return Ok(Output { pa, prot: granted & leaf.prot2, chunk: leaf.chunk, source });
        }
        let mut walk = match self.cached_table(request, tag, va) {
            Some(table) => Walk::from(table),
            None => {
                let per_level = cd.granule.shift() - 3;
                let levels = (input_bits - cd.granule.shift()).div_ceil(per_level) as u8;
                let table = cd.ttb0.ok_or(translation)?.0;
                Walk::start(cd.granule, 4 - levels, table)
            }
        };
        self.walks += 1;
        let fits = |addr: u64| addr >> cd.output_size.bits().min(48) == 0;
        loop {
            let offset = entry_offset(va, walk.granule, walk.level, walk.start);
            let at = match s2 {
                None => walk.table + offset,
                Some(s2) => self.table_at(request, s2, tag, &walk, offset)?,
            };
            let word = self.fetch(at, Some(request), "stage 1 descriptor");
            let desc = Desc(word.ok_or_else(|| request.walk_abort(false, Class::Tt, at))?);
            let filled = self.memory.tick();
            let mut origin = origin(va, walk.granule, walk.level, filled, walk.doomed);
            match desc.kind(walk.level, walk.granule) {
                DescKind::Invalid => return Err(translation),
                DescKind::Table(next) => {
                    fits(next.0).then_some(()).ok_or(addr_size)?;
                    let table = Table { origin, next: next.0, next_pa: None };
                    self.keep_table(tag, table);
                    walk = Walk::from(table);
                }
                DescKind::Leaf(addr) => {
                    let mut chunk = origin.shift;
                    let mut pa = addr.0 >> chunk << chunk;
                    fits(pa).then_some(()).ok_or(addr_size)?;
                    if !affd && !desc.access_flag() {
                        return Err(access_flag);
                    }
                    let prot = desc.prot(Stage::S1);
                    let mut prot2 = RW;
                    let (mut middle, mut nested) = (0, None);
                    let granted = granted1(tag, prot);
                    let allowed = allowed(request, granted);
                    if let Some(s2) = s2 {
                        // A stage 1 fault comes before what stage 2 would say (§7.3.22).
                        allowed.then_some(()).ok_or(permission)?;
                        let ipa = pa | va & ((1 << chunk) - 1);
                        let out = self.stage2(request, s2, ipa, Class::In)?;
                        chunk = chunk.min(out.leaf.chunk);
                        pa = out.pa >> chunk << chunk;
                        prot2 = out.leaf.prot;
                        middle = ipa >> chunk << chunk;
                        nested = Some((request.sid, request.ssid));
                        // Which page it leads to was read in stage 2, before or after.
                        origin.filled = out.leaf.origin.filled;
                        // One command that reaches both stages completes for this entry, too.
                        let stale = &out.leaf.origin;
                        if !self.laziness.nested_entries {
                            origin.doomed |= stale.doomed;
                        } else if stale.doomed.any() {
                            origin.doomed |= self.tlb.pending_on_both(tag, &origin, s2.tag, stale);
                        }
                    }
                    let has_asid = tag.regime != Regime::El2;
                    let global = self.laziness.global_entries && has_asid && !desc.not_global();
                    let tag = if global { tag.global(cd.private_asid) } else { tag };
                    let leaf = Leaf { origin, pa, prot, prot2, ipa: middle, nested, chunk, junk: false };
                    if !self.never_cached(desc, walk.level) {
                        self.keep_leaf(tag, va, leaf);
                    }
                    allowed.then_some(()).ok_or(permission)?;
                    let pa = pa | va & ((1 << chunk) - 1);
                    let source = Source::Tlb(TlbHit { tag, origin, junk: false });
                    return Ok(Output { pa, prot: granted & prot2, chunk, source });
                }
            }
        }
    }

    /// What the TLB has for an address. `class`: of an access that stage 2 translates.
    fn cached_leaf(
        &mut self,
        request: &Request,
        tag: Tag,
        aset: bool,
        input: u64,
        class: Option<Class>,
    ) -> Result<Option<Leaf>, Fault> {
        if request.afresh {
            return Ok(None);
        }
        if !self.laziness.tlb_conflicts || !self.rng.one_in(8) {
            return Ok(self.tlb.leaf(tag, aset, input).copied());
        }
        let Some((first, other)) = self.tlb.conflict(tag, aset, input) else {
            return Ok(self.tlb.leaf(tag, aset, input).copied());
        };
        // Only the size is different: level 2 support for that has no conflicts (§3.21.1.3).
        let harmless = self.features.bbm_level == 2 && first.pa_of(input) == other.pa_of(input);
        // What a guest does with its tables is not the driver's fault.
        if !harmless && first.nested.is_none() {
            self.violation(format!(
                "two entries for {input:#x} without break-before-make: {}; {}",
                TlbHit { tag, origin: first.origin, junk: first.junk },
                TlbHit { tag, origin: other.origin, junk: other.junk }
            ));
        }
        match self.rng.below(if self.features.bbm_level == 2 { 2 } else { 3 }) {
            0 => Ok(Some(first)),
            1 => Ok(Some(other)),
            _ => Err(request.config_fault(request.tlb_conflict(class, input))),
        }
    }

    /// Level 1 support for changes of size: a block with nT is not cached (§3.21.1.2).
    fn never_cached(&self, desc: Desc, level: u8) -> bool {
        self.features.bbm_level == 1 && level < 3 && desc.0 >> 16 & 1 != 0
    }

    fn keep_leaf(&mut self, tag: Tag, input: u64, mut leaf: Leaf) {
        if !self.laziness.tlb || leaf.nested.is_some() && !self.laziness.nested_entries {
            return;
        }
        let smallest = leaf.origin.granule.shift() as u8;
        if self.laziness.split_entries && leaf.chunk > smallest && self.rng.one_in(2) {
            let piece = (smallest + 4 * self.rng.below(2) as u8).min(leaf.chunk);
            let offset = (input & ((1 << leaf.chunk) - 1)) >> piece << piece;
            leaf = Leaf { pa: leaf.pa | offset, ipa: leaf.ipa | offset, chunk: piece, ..leaf };
        }
        self.tlb.insert_leaf(tag, input, leaf);
    }

    fn keep_table(&mut self, tag: Tag, table: Table) {
        if self.laziness.walk_cache {
            self.tlb.insert_table(tag, table);
        }
    }

    /// Where a walk may start. Half of the time, what is doomed counts as lost already.
    fn cached_table(&mut self, request: &Request, tag: Tag, input: u64) -> Option<Table> {
        if request.afresh {
            return None;
        }
        let fresh = self.tlb.any_doomed() && self.rng.one_in(2);
        self.tlb.table(tag, input, fresh).copied()
    }

    /// Where a stage 1 descriptor is that stage 2 translates the way to.
    fn table_at(&mut self, request: &Request, s2: &Stage2, tag: Tag, walk: &Walk, offset: u64) -> Result<u64, Fault> {
        if let Some(table) = walk.table_pa {
            return Ok(table + offset);
        }
        let out = self.stage2(request, s2, walk.table + offset, Class::Tt)?;
        let whole = u32::from(out.leaf.chunk) >= walk.granule.shift();
        if let Some(via) = walk.via.filter(|_| self.laziness.nested_walk_cache && whole) {
            // One command that reaches both stages completes for this entry, too.
            let mut origin = via.origin;
            let stale = &out.leaf.origin;
            if stale.doomed.any() {
                origin.doomed |= self.tlb.pending_on_both(tag, &origin, s2.tag, stale);
            }
            self.keep_table(tag, Table { origin, next_pa: Some(out.pa - offset), ..via });
        }
        Ok(out.pa)
    }

    /// Whether stage 2 lets an access pass that is made for `class`.
    fn allowed2(&self, request: &Request, s2: &Stage2, prot: Prot, class: Class, ipa: u64) -> Result<(), Fault> {
        if request.ats && class == Class::In {
            // The completion says what is permitted.
            return Ok(());
        }
        let write = request.write && class == Class::In;
        let allowed = prot.contains(if write { Prot::WRITE } else { Prot::READ })
            // S2PTW: tables in Device memory.
            && !(class != Class::In && s2.ste.protected_walk && prot.contains(Prot::DEVICE));
        match allowed {
            true => Ok(()),
            false => Err(stage2_fault(request, s2, Cause::Permission, class, ipa)),
        }
    }

    /// Translates an IPA for the transaction itself, for a stage 1 descriptor or for a CD.
    pub(crate) fn stage2(
        &mut self,
        request: &Request,
        s2: &Stage2,
        ipa: u64,
        class: Class,
    ) -> Result<Stage2Output, Fault> {
        let fault = |cause| stage2_fault(request, s2, cause, class, ipa);
        let input_bits = 64 - u32::from(s2.ste.t0sz);
        if ipa >> input_bits != 0 {
            return Err(fault(Cause::Translation));
        }
        if let Some(leaf) = self.cached_leaf(request, s2.tag, false, ipa, Some(class))? {
            self.allowed2(request, s2, leaf.prot, class, ipa)?;
            return Ok(Stage2Output { pa: leaf.pa | ipa & ((1 << leaf.chunk) - 1), leaf });
        }
        let mut walk = match self.cached_table(request, s2.tag, ipa) {
            Some(table) => Walk::from(table),
            None => {
                let granule = s2.ste.granule;
                let level = if granule == Granule::K4 { 2 } else { 3 } - s2.ste.sl0;
                Walk::start(granule, level, s2.ste.ttb.0)
            }
        };
        self.walks += 1;
        let fits = |addr: u64| addr >> s2.ste.output_size.bits().min(48) == 0;
        loop {
            let at = walk.table + entry_offset(ipa, walk.granule, walk.level, walk.start);
            let word = self.fetch(at, Some(request), "stage 2 descriptor");
            let desc = Desc(word.ok_or_else(|| request.walk_abort(true, class, at))?);
            let filled = self.memory.tick();
            let origin = origin(ipa, walk.granule, walk.level, filled, walk.doomed);
            match desc.kind(walk.level, walk.granule) {
                DescKind::Invalid => return Err(fault(Cause::Translation)),
                DescKind::Table(next) => {
                    fits(next.0).then_some(()).ok_or(fault(Cause::AddrSize))?;
                    let table = Table { origin, next: next.0, next_pa: None };
                    self.keep_table(s2.tag, table);
                    walk = Walk::from(table);
                }
                DescKind::Leaf(addr) => {
                    let chunk = origin.shift;
                    let pa = addr.0 >> chunk << chunk;
                    fits(pa).then_some(()).ok_or(fault(Cause::AddrSize))?;
                    if !s2.affd && !desc.access_flag() {
                        return Err(fault(Cause::AccessFlag));
                    }
                    let prot = desc.prot(Stage::S2);
                    let leaf = Leaf { origin, pa, prot, prot2: prot, ipa: 0, nested: None, chunk, junk: false };
                    if !self.never_cached(desc, walk.level) {
                        self.keep_leaf(s2.tag, ipa, leaf);
                    }
                    self.allowed2(request, s2, prot, class, ipa)?;
                    return Ok(Stage2Output { pa: pa | ipa & ((1 << chunk) - 1), leaf });
                }
            }
        }
    }
}

/// What stage 1 permits to an unprivileged access.
fn granted1(tag: Tag, prot: Prot) -> Prot {
    // The EL2 regime has one privilege level only: AP[1] does not matter there.
    let privileged = prot.contains(Prot::PRIVILEGED) && tag.regime != Regime::El2;
    if privileged { Prot::empty() } else { prot & RW }
}

/// Whether stage 1 lets a request pass. A translation request goes on if it may get anything (§3.9.1.2).
fn allowed(request: &Request, granted: Prot) -> bool {
    match request.ats {
        true => !granted.is_empty(),
        false => granted.contains(if request.write { Prot::WRITE } else { Prot::READ }),
    }
}

/// A stage 2 fault: recorded if `S2R`, always an abort.
fn stage2_fault(request: &Request, s2: &Stage2, cause: Cause, class: Class, ipa: u64) -> Fault {
    Fault { event: Some(request.stage2_fault(cause, class, ipa)), record: s2.ste.record, quiet: false }
}

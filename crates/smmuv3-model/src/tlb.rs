//! The TLB: leaf entries and walk-cache entries, for ever, until a command names them.
//!
//! Tags are those of §3.17: the translation regime; for EL1 the VMID (where there is stage 2); the ASID where the
//! regime has one and the entry is not global; the ASET of global entries (§3.17.1). Stage 2 entries have a VMID.
//!
//! Laziness, all of it permitted by §3.21.1 and §4.4, each with its switch in [`Laziness`](crate::Laziness):
//! - nothing is evicted before the TLB is full;
//! - table descriptors of every level are cached as walk-cache entries, and a walk starts at the deepest of them;
//! - a block may be cached as smaller pieces, each with what the descriptor said of the whole;
//! - entries of all sizes stand side by side, also those that a missing break-before-make left (§3.20.1);
//! - with both stages, a leaf entry combines them (VA to PA), so that an invalidation of stage 2 by IPA does not
//!   reach it (§4.4.3.1); one that was invalidated is made again at once from what stage 2 is cached as (a prefetch);
//! - entries are not tagged with the granule or with the table they came from: whoever has the tags, hits.
//!
//! An invalidation that was consumed but not synchronised makes its targets *doomed*: they still translate, and what
//! is derived from a doomed walk-cache entry is doomed too (§3.21.1, walks that use entries targeted by the
//! invalidation). The CMD_SYNC removes what is doomed. Entries that were filled after the command was consumed, from
//! memory as it was then, stay. As every cache may lose an entry at any time, a walk passes over a doomed walk-cache
//! entry half of the time.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::{BitOr, BitOrAssign};

use smmuv3::arch::{Granule, Prot, TlbiAddr};

use crate::rng::Rng;

/// A translation regime, or stage 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Regime {
    El1,
    El2,
    El2E2h,
    Stage2,
}

/// The Command queues, one bit each, with a command that targets an entry and that they have not synchronised: a CMD_SYNC
/// completes what came before it in its own queue, and no more (§3.5.6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Doomed(u64);

impl Doomed {
    pub(crate) const NO: Doomed = Doomed(0);

    /// By a command of this queue, if `yes`.
    pub(crate) fn by_if(queue: usize, yes: bool) -> Self {
        Doomed(u64::from(yes) << queue)
    }

    pub(crate) fn by(self, queue: usize) -> bool {
        self.0 >> queue & 1 != 0
    }

    pub(crate) fn any(self) -> bool {
        self.0 != 0
    }

    pub(crate) fn forget(&mut self, queue: usize) {
        self.0 &= !(1 << queue);
    }
}

impl BitOr for Doomed {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Doomed(self.0 | other.0)
    }
}

impl BitOrAssign for Doomed {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

/// What an entry is tagged with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tag {
    pub regime: Regime,
    /// 0 where the regime or the SMMU has no VMID.
    pub vmid: u16,
    /// 0 where the entry is global or the regime has no ASID.
    pub asid: u16,
    /// Matches all ASIDs of the same ASET.
    pub global: Option<bool>,
}

impl Tag {
    pub(crate) fn global(self, aset: bool) -> Tag {
        Tag { asid: 0, global: Some(aset), ..self }
    }
}

/// Where an entry came from: what its invalidation is matched against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub granule: Granule,
    /// The level of the descriptor.
    pub level: u8,
    /// The input addresses that the descriptor covers: from `base`, `2^shift` bytes.
    pub base: u64,
    pub shift: u8,
    /// When it was filled.
    pub filled: u64,
    /// Invalidated, but not synchronised yet.
    pub doomed: Doomed,
}

/// A leaf entry as others speak of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TlbHit {
    pub tag: Tag,
    pub origin: Origin,
    /// It was there at reset.
    pub junk: bool,
}

impl fmt::Display for TlbHit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = &self.origin;
        write!(
            f,
            "tick {}: the TLB entry ({}; {} granule, level {}, {:#x} + {:#x}{}) {}",
            origin.filled,
            self.tag,
            origin.granule,
            origin.level,
            origin.base,
            1u64 << origin.shift,
            if origin.doomed.any() { ", invalidated but not synchronised" } else { "" },
            if self.junk { "was in the TLB at reset" } else { "was filled" },
        )
    }
}

/// A leaf entry: `2^chunk` bytes from the input address of its key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leaf {
    pub origin: Origin,
    pub pa: u64,
    pub prot: Prot,
    /// What stage 2 permits, in an entry of both stages.
    pub prot2: Prot,
    /// In an entry of both stages, the IPA between.
    pub ipa: u64,
    /// Of an entry of both stages, the stream that it was made for: StreamID and SubstreamID.
    pub nested: Option<(u32, Option<u32>)>,
    /// Bits of address that the entry translates: those of the smaller of both stages' leaves.
    pub chunk: u8,
    /// Memory never said so: the entry was there at reset.
    pub junk: bool,
}

impl Leaf {
    /// Where an address in its span goes.
    pub(crate) fn pa_of(&self, input: u64) -> u64 {
        self.pa | input & ((1 << self.chunk) - 1)
    }
}

/// A walk-cache entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    pub origin: Origin,
    /// The next level's table: a PA, or with both stages an IPA.
    pub next: u64,
    /// With both stages, where that table is, if the entry knows.
    pub next_pa: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    tag: Tag,
    shift: u8,
    page: u64,
}

/// A fast hash without secrets: keys are small, and runs must be repeatable.
#[derive(Default)]
pub(crate) struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }
    fn write_u16(&mut self, value: u16) {
        self.write_u64(value.into());
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

/// A map with [`Mix`].
pub(crate) type Map<K, V> = HashMap<K, V, BuildHasherDefault<Mix>>;

/// Which ASIDs an invalidation reaches.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asids {
    /// All, and global entries.
    All,
    /// This one, not global entries.
    NonGlobal(u16),
    /// This one, and global entries.
    OrGlobal(u16),
}

/// What an invalidation reaches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope {
    pub regimes: &'static [Regime],
    /// `None`: all.
    pub vmid: Option<u16>,
    pub asids: Asids,
    /// `None`: all.
    pub addr: Option<TlbiAddr>,
    /// `Leaf`, TG and TTL spare what they may.
    pub exact: bool,
}

impl Scope {
    pub(crate) fn reaches_tag(&self, tag: &Tag) -> bool {
        self.regimes.contains(&tag.regime)
            && self.vmid.is_none_or(|vmid| vmid == tag.vmid)
            && match self.asids {
                Asids::All => true,
                Asids::NonGlobal(asid) => tag.global.is_none() && tag.asid == asid,
                Asids::OrGlobal(asid) => tag.global.is_some() || tag.asid == asid,
            }
    }

    pub(crate) fn reaches_leaf(&self, tag: &Tag, origin: &Origin) -> bool {
        self.reaches_tag(tag) && self.reaches_origin(origin, true)
    }

    /// Address, TG and TTL (§4.4.1.1); `leaf`: of a leaf entry, rather than of a walk-cache entry.
    fn reaches_origin(&self, origin: &Origin, leaf: bool) -> bool {
        let Some(addr) = self.addr else { return true };
        if self.exact && !leaf && addr.leaf {
            return false;
        }
        let first = origin.base;
        let last = origin.base | ((1 << origin.shift) - 1);
        let Some(range) = addr.range else {
            return (first..=last).contains(&addr.addr);
        };
        if self.exact && range.granule != origin.granule {
            return false;
        }
        // A hint of level 1 has no meaning for 16 KiB pages, and counts as none.
        let none = !self.exact || range.granule == Granule::K16 && range.ttl == 1;
        let ttl = if none { 0 } else { range.ttl };
        let level = match (ttl, leaf) {
            (0, _) => true,
            (ttl, true) => origin.level == ttl,
            (ttl, false) => origin.level < ttl,
        };
        let pages = u128::from(range.num) + 1;
        let end = u128::from(addr.addr) + (pages << range.scale << range.granule.shift());
        level && u128::from(first) < end && last >= addr.addr
    }
}

/// All cached translations of an SMMU.
pub(crate) struct Tlb {
    /// What was consumed and is not synchronised, and from which queue.
    pending: Vec<(usize, Scope)>,
    leaves: Map<Key, Leaf>,
    tables: Map<Key, Table>,
    /// The sizes (as shifts) of which there are entries, to know which to probe.
    leaf_shifts: u64,
    table_shifts: u64,
    any_global: bool,
    doomed: Doomed,
    capacity: usize,
}

fn bits(mut set: u64) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let bit = set.trailing_zeros() as u8;
        set &= set.wrapping_sub(1);
        (bit < 64).then_some(bit)
    })
}

impl Tlb {
    pub(crate) fn new(capacity: usize) -> Self {
        Tlb {
            pending: Vec::new(),
            leaves: Map::default(),
            tables: Map::default(),
            leaf_shifts: 0,
            table_shifts: 0,
            any_global: false,
            doomed: Doomed::NO,
            capacity: capacity.max(1),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.leaves.len() + self.tables.len()
    }

    /// The leaf entries for `input`, the smallest first; `aset` selects among the global ones.
    fn leaves(&self, tag: Tag, aset: bool, input: u64) -> impl Iterator<Item = (&Key, &Leaf)> {
        let global = self.any_global.then(|| tag.global(aset));
        bits(self.leaf_shifts).flat_map(move |shift| {
            let tags = [Some(tag), global].into_iter().flatten();
            tags.filter_map(move |tag| self.leaves.get_key_value(&Key { tag, shift, page: input >> shift }))
        })
    }

    /// The smallest of them.
    pub(crate) fn leaf(&self, tag: Tag, aset: bool, input: u64) -> Option<&Leaf> {
        bits(self.leaf_shifts).find_map(|shift| {
            let page = input >> shift;
            self.leaves.get(&Key { tag, shift, page }).or_else(|| {
                let global = self.any_global.then(|| tag.global(aset))?;
                self.leaves.get(&Key { tag: global, shift, page })
            })
        })
    }

    /// Two leaf entries for `input` that cannot be of one descriptor: the sizes differ, or where they lead, or for whom.
    pub(crate) fn conflict(&self, tag: Tag, aset: bool, input: u64) -> Option<(Leaf, Leaf)> {
        let mut leaves = self.leaves(tag, aset, input);
        let (key, first) = leaves.next()?;
        let differs = |(other_key, other): &(&Key, &Leaf)| {
            other.origin.shift != first.origin.shift
                || other.pa_of(input) != first.pa_of(input)
                || other_key.tag.global != key.tag.global
        };
        leaves.find(differs).map(|(_, other)| (*first, *other))
    }

    /// The deepest walk-cache entry for `input`; with `fresh`, of those that are not doomed.
    pub(crate) fn table(&self, tag: Tag, input: u64, fresh: bool) -> Option<&Table> {
        bits(self.table_shifts).find_map(|shift| {
            let table = self.tables.get(&Key { tag, shift, page: input >> shift })?;
            (!fresh || !table.origin.doomed.any()).then_some(table)
        })
    }

    /// Whether a command was consumed that may not be synchronised.
    pub(crate) fn any_doomed(&self) -> bool {
        self.doomed.any()
    }

    pub(crate) fn insert_leaf(&mut self, tag: Tag, input: u64, leaf: Leaf) {
        self.make_room();
        self.leaf_shifts |= 1 << leaf.chunk;
        self.any_global |= tag.global.is_some();
        self.doomed |= leaf.origin.doomed;
        self.leaves.insert(Key { tag, shift: leaf.chunk, page: input >> leaf.chunk }, leaf);
    }

    pub(crate) fn insert_table(&mut self, tag: Tag, table: Table) {
        self.make_room();
        let shift = table.origin.shift;
        self.table_shifts |= 1 << shift;
        self.doomed |= table.origin.doomed;
        self.tables.insert(Key { tag, shift, page: table.origin.base >> shift }, table);
    }

    fn make_room(&mut self) {
        if self.len() < self.capacity {
            return;
        }
        // The first in the order of the hash: as good as random, and repeatable.
        let victim = self.leaves.keys().next().copied();
        match victim {
            Some(key) => drop(self.leaves.remove(&key)),
            None => self.tables.clear(),
        }
    }

    /// Marks what `scope` reaches, for a command of `queue`; it still translates until [`purge`](Self::purge).
    pub(crate) fn doom(&mut self, queue: usize, scope: &Scope) {
        let doomed = Doomed::by_if(queue, true);
        let mut any = false;
        for (key, leaf) in &mut self.leaves {
            if scope.reaches_leaf(&key.tag, &leaf.origin) {
                leaf.origin.doomed |= doomed;
                any = true;
            }
        }
        for (key, table) in &mut self.tables {
            if scope.reaches_tag(&key.tag) && scope.reaches_origin(&table.origin, false) {
                table.origin.doomed |= doomed;
                any = true;
            }
        }
        if any {
            self.doomed |= doomed;
            self.pending.push((queue, *scope));
        }
    }

    /// The queues of single commands that are not synchronised and reach the leaf entries of both origins.
    pub(crate) fn pending_on_both(&self, tag: Tag, origin: &Origin, tag2: Tag, origin2: &Origin) -> Doomed {
        self.pending.iter().fold(Doomed::NO, |doomed, (queue, scope)| {
            let both = scope.reaches_leaf(&tag, origin) && scope.reaches_leaf(&tag2, origin2);
            doomed | Doomed::by_if(*queue, both)
        })
    }

    /// Removes the entries of both stages that `queue` has doomed, where stage 2 by itself is still cached; gives what they translated:
    /// StreamID, SubstreamID, address. What is doomed at stage 2 stays.
    ///
    /// Nothing orders these commands among themselves (§4.7.3): the first stage may be first.
    pub(crate) fn take_nested(&mut self, queue: usize) -> Vec<(u32, Option<u32>, u64)> {
        if !self.doomed.by(queue) {
            return Vec::new();
        }
        let again = |(key, leaf): (&Key, &Leaf)| {
            let (sid, ssid) = leaf.nested.filter(|_| leaf.origin.doomed.by(queue))?;
            let tag2 = Tag { regime: Regime::Stage2, asid: 0, global: None, ..key.tag };
            self.leaf(tag2, false, leaf.ipa)?;
            Some((sid, ssid, key.page << key.shift))
        };
        let mut taken: Vec<_> = self.leaves.iter().filter_map(again).collect();
        if !taken.is_empty() {
            self.leaves.retain(|key, leaf| !leaf.origin.doomed.by(queue) || key.tag.regime == Regime::Stage2);
            self.tables.retain(|key, table| !table.origin.doomed.by(queue) || key.tag.regime == Regime::Stage2);
            taken.sort_unstable();
        }
        taken
    }

    /// No invalidation of the queue is pending, and what they reached stays.
    pub(crate) fn forget_pending(&mut self, queue: usize) {
        self.pending.retain(|(of, _)| *of != queue);
    }

    /// Removes what `scope` reaches, at once.
    pub(crate) fn remove(&mut self, scope: &Scope) {
        self.leaves.retain(|key, leaf| !scope.reaches_leaf(&key.tag, &leaf.origin));
        self.tables.retain(|key, table| !(scope.reaches_tag(&key.tag) && scope.reaches_origin(&table.origin, false)));
    }

    /// Removes what the queue has doomed.
    pub(crate) fn purge(&mut self, queue: usize) {
        self.forget_pending(queue);
        if self.doomed.by(queue) {
            self.doomed.forget(queue);
            self.leaves.retain(|_, leaf| !leaf.origin.doomed.by(queue));
            self.tables.retain(|_, table| !table.origin.doomed.by(queue));
            self.leaf_shifts = self.leaves.keys().fold(0, |set, key| set | 1 << key.shift);
            self.table_shifts = self.tables.keys().fold(0, |set, key| set | 1 << key.shift);
        }
    }

    /// What a TLB may hold when it has just got power: translations of low addresses for the first tags, to anywhere.
    ///
    /// `page` gives some page of RAM.
    pub(crate) fn fill_with_junk(&mut self, rng: &mut Rng, mut page: impl FnMut(&mut Rng) -> u64) {
        let tags = [(Regime::El1, 4, 32), (Regime::El2, 1, 1), (Regime::El2E2h, 1, 32), (Regime::Stage2, 32, 1)];
        for (regime, vmids, asids) in tags {
            for (vmid, asid) in (0..vmids).flat_map(|vmid| (0..asids).map(move |asid| (vmid, asid))) {
                let tag = Tag { regime, vmid, asid, global: None };
                let origin =
                    |granule, level, shift| Origin { granule, level, base: 0, shift, filled: 0, doomed: Doomed::NO };
                let table = Table { origin: origin(Granule::K16, 0, 47), next: page(rng), next_pa: None };
                self.insert_table(tag, table);
                if rng.one_in(2) {
                    let prot = Prot::READ | Prot::WRITE;
                    let origin = origin(Granule::K4, 1, 30);
                    let leaf =
                        Leaf { origin, pa: page(rng), prot, prot2: prot, ipa: 0, nested: None, chunk: 30, junk: true };
                    self.insert_leaf(tag, 0, leaf);
                }
            }
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, VMID {:#x}", self.regime, self.vmid)?;
        match self.global {
            Some(aset) => write!(f, ", global (ASET {})", u8::from(aset)),
            None if self.regime == Regime::Stage2 => Ok(()),
            None => write!(f, ", ASID {:#x}", self.asid),
        }
    }
}

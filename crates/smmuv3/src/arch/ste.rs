//! Stream table entries and level-1 stream table descriptors (IHI 0070 §5.1, §5.2).
//!
//! [`RawSte`] is the 64 bytes in memory. [`Ste`] is what the driver means by them: [`Ste::encode`] writes them,
//! [`RawSte::decode`] reads them as an SMMU with given [`Features`] would, and names what makes an entry illegal.

use arbitrary_int::{u2, u3, u5, u6, u50, u52};
use bitbybit::bitfield;
use core::fmt;

use super::features::{AddrSize, Features, Granule, StallModel};
use crate::platform::PhysAddr;

/// STE bits 63:0.
#[bitfield(u64, debug, default = 0)]
struct Word0 {
    #[bit(0, rw)]
    v: bool,
    #[bits(1..=3, rw)]
    config: u3,
    #[bits(4..=5, rw)]
    s1fmt: u2,
    #[bits(6..=55, rw)]
    s1contextptr: u50,
    #[bits(59..=63, rw)]
    s1cdmax: u5,
}

/// STE bits 127:64.
#[bitfield(u64, debug, default = 0)]
struct Word1 {
    #[bits(0..=1, rw)]
    s1dss: u2,
    #[bits(2..=3, rw)]
    s1cir: u2,
    #[bits(4..=5, rw)]
    s1cor: u2,
    #[bits(6..=7, rw)]
    s1csh: u2,
    #[bit(25, rw)]
    s2fwb: bool,
    #[bit(27, rw)]
    s1stalld: bool,
    #[bits(28..=29, rw)]
    eats: u2,
    #[bits(30..=31, rw)]
    strw: u2,
    #[bits(44..=45, rw)]
    shcfg: u2,
}

/// STE bits 191:128.
#[bitfield(u64, debug, default = 0)]
struct Word2 {
    #[bits(0..=15, rw)]
    s2vmid: u16,
    #[bits(32..=37, rw)]
    s2t0sz: u6,
    #[bits(38..=39, rw)]
    s2sl0: u2,
    #[bits(40..=41, rw)]
    s2ir0: u2,
    #[bits(42..=43, rw)]
    s2or0: u2,
    #[bits(44..=45, rw)]
    s2sh0: u2,
    #[bits(46..=47, rw)]
    s2tg: u2,
    #[bits(48..=50, rw)]
    s2ps: u3,
    #[bit(51, rw)]
    s2aa64: bool,
    #[bit(52, rw)]
    s2endi: bool,
    #[bit(53, rw)]
    s2affd: bool,
    #[bit(54, rw)]
    s2ptw: bool,
    #[bit(55, rw)]
    s2hd: bool,
    #[bit(56, rw)]
    s2ha: bool,
    #[bit(57, rw)]
    s2s: bool,
    #[bit(58, rw)]
    s2r: bool,
}

/// STE bits 255:192.
#[bitfield(u64, debug, default = 0)]
struct Word3 {
    #[bits(4..=55, rw)]
    s2ttb: u52,
}

/// `STE.EATS`: what ATS requests of the stream may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Eats {
    /// ATS requests fail.
    #[default]
    Off,
    /// Full ATS: requests are answered with the result of all enabled stages.
    Full,
    /// Split-stage ATS: requests are answered with the result of stage 1.
    Split,
}

/// `STE.S1DSS`: traffic without a SubstreamID, where substreams are enabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DefaultSubstream {
    /// It is terminated.
    Terminate,
    /// It bypasses stage 1.
    Bypass,
    /// It uses the CD of substream 0.
    #[default]
    Substream0,
}

/// `STE.S1Fmt`: the shape of the CD table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CdFormat {
    /// One array of CDs.
    #[default]
    Linear,
    /// Two levels, leaves of 4 KiB (64 CDs).
    TwoLevel4K,
    /// Two levels, leaves of 64 KiB (1024 CDs).
    TwoLevel64K,
}

/// `STE.STRW`: the translation regime of a stage-1-only stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StreamWorld {
    /// NS-EL1, TLB entries tagged with VMID and ASID.
    #[default]
    El1,
    /// NS-EL2, or NS-EL2-E2H where `CR2.E2H`.
    El2,
}

/// The stage 1 half of an STE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SteStage1 {
    /// `S1ContextPtr`, a multiple of 64: the CD, the CD table or its first level.
    pub context_ptr: PhysAddr,
    /// `S1CDMax`: log2 of the number of CDs.
    pub cd_max: u8,
    /// `S1Fmt`
    pub format: CdFormat,
    /// `S1DSS`
    pub default_substream: DefaultSubstream,
    /// `STRW`
    pub world: StreamWorld,
    /// `S1STALLD`: CDs cannot ask for stalls.
    pub stall_disabled: bool,
}

/// The stage 2 half of an STE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SteStage2 {
    /// `S2T0SZ`: 64 minus the IPA bits.
    pub t0sz: u8,
    /// `S2SL0`: the start level as the granule codes it.
    pub sl0: u8,
    /// `S2TG`
    pub granule: Granule,
    /// `S2PS`
    pub output_size: AddrSize,
    /// `S2TTB`: the translation table.
    pub ttb: PhysAddr,
    /// `S2R`: record faults.
    pub record: bool,
    /// `S2S`: stall on faults.
    pub stall: bool,
    /// `S2PTW`: stage 1 tables may not lie in Device memory.
    pub protected_walk: bool,
}

/// Which stages translate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stages {
    /// Stage 1 only.
    S1(SteStage1),
    /// Stage 2 only.
    S2(SteStage2),
    /// Both.
    Nested(SteStage1, SteStage2),
}

/// A stream table entry that an SMMU accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ste {
    /// `V` = 0: every transaction is aborted and `C_BAD_STE` recorded.
    Invalid,
    /// Every transaction is aborted, nothing is recorded.
    Abort,
    /// Transactions pass untranslated.
    Bypass,
    /// Transactions are translated.
    Translate {
        /// `S2VMID`; also the tag of stage-1 entries, where the SMMU has stage 2.
        vmid: u16,
        /// `EATS`
        eats: Eats,
        /// Which stages, and how.
        stages: Stages,
    },
}

/// The 64 bytes of an STE as eight little-endian words.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct RawSte(pub [u64; 8]);

/// Why an STE is illegal: the SMMU aborts the transaction and records `C_BAD_STE` (§5.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSte {
    /// A stage is enabled that the SMMU does not have.
    #[error("Config enables stage {0}, which this SMMU does not have")]
    Stage(u8),
    /// The named field has a value that is illegal on this SMMU or with the rest of the entry.
    #[error("{field} = {value:#x} is illegal here")]
    Field {
        /// The field's name in the specification.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

fn bad<T>(field: &'static str, value: u64) -> Result<T, BadSte> {
    Err(BadSte::Field { field, value })
}

/// `S2TG`: 0 is 4 KiB, 1 is 64 KiB, 2 is 16 KiB. `CD.TG0` is coded alike.
pub(super) const fn tg_code(granule: Granule) -> u2 {
    match granule {
        Granule::K4 => u2::new(0),
        Granule::K64 => u2::new(1),
        Granule::K16 => u2::new(2),
    }
}

pub(super) const fn tg_decode(code: u2) -> Option<Granule> {
    match code.value() {
        0 => Some(Granule::K4),
        1 => Some(Granule::K64),
        2 => Some(Granule::K16),
        _ => None,
    }
}

/// Whether an address has no bit at or above `size`.
pub(super) fn in_range(addr: u64, size: AddrSize) -> bool {
    addr >> size.bits().min(48) == 0
}

/// Whether a stage 2 walk with this `S2T0SZ` and `S2SL0` is consistent: the start level resolves the whole input, with at most 16
/// concatenated tables, and is not a level too early (A-profile architecture, "Controlling address translation stages").
fn stage2_walk_is_consistent(t0sz: u8, sl0: u8, granule: Granule) -> bool {
    let bits = 64 - t0sz as u32;
    let start = match (granule, sl0) {
        (Granule::K4, 0..=2) => 2 - sl0,
        (Granule::K16 | Granule::K64, 0..=2) => 3 - sl0,
        _ => return false,
    } as u32;
    let per_level = granule.shift() - 3;
    // Input bits that the levels below the start level resolve.
    let below = granule.shift() + (3 - start) * per_level;
    bits > below && bits <= below + per_level + 4
}

impl Ste {
    /// Whether the stream's ATS requests are answered and its translated accesses pass.
    pub const fn allows_ats(&self) -> bool {
        matches!(self, Ste::Translate { eats: Eats::Full | Eats::Split, .. })
    }

    /// The 64 bytes. Bits of a value that are wider than its field are dropped.
    pub fn encode(&self) -> RawSte {
        let mut raw = RawSte::default();
        let (config, translate) = match *self {
            Ste::Invalid => return raw,
            Ste::Abort => (0b000, None),
            Ste::Bypass => (0b100, None),
            Ste::Translate { vmid, eats, stages } => match stages {
                Stages::S1(s1) => (0b101, Some((vmid, eats, Some(s1), None))),
                Stages::S2(s2) => (0b110, Some((vmid, eats, None, Some(s2)))),
                Stages::Nested(s1, s2) => (0b111, Some((vmid, eats, Some(s1), Some(s2)))),
            },
        };
        let mut w0 = Word0::default().with_v(true).with_config(u3::extract_u8(config, 0));
        // Incoming shareability everywhere: one value less that differs between entries.
        let mut w1 = Word1::default().with_shcfg(u2::new(1));
        let mut w2 = Word2::default();
        let mut w3 = Word3::default();
        if let Some((vmid, eats, s1, s2)) = translate {
            w1 = w1.with_eats(u2::new(eats as u8));
            w2 = w2.with_s2vmid(vmid);
            if let Some(s1) = s1 {
                w0 = w0
                    .with_s1fmt(u2::new(s1.format as u8))
                    .with_s1contextptr(u50::extract_u64(s1.context_ptr.0, 6))
                    .with_s1cdmax(u5::extract_u8(s1.cd_max, 0));
                // CDs are read through write-back, inner shareable caches.
                w1 = w1
                    .with_s1dss(u2::new(s1.default_substream as u8))
                    .with_s1cir(u2::new(1))
                    .with_s1cor(u2::new(1))
                    .with_s1csh(u2::new(3))
                    .with_s1stalld(s1.stall_disabled)
                    .with_strw(u2::new(match s1.world {
                        StreamWorld::El1 => 0,
                        StreamWorld::El2 => 2,
                    }));
            }
            if let Some(s2) = s2 {
                w2 = w2
                    .with_s2t0sz(u6::extract_u8(s2.t0sz, 0))
                    .with_s2sl0(u2::extract_u8(s2.sl0, 0))
                    .with_s2ir0(u2::new(1))
                    .with_s2or0(u2::new(1))
                    .with_s2sh0(u2::new(3))
                    .with_s2tg(tg_code(s2.granule))
                    .with_s2ps(u3::extract_u8(s2.output_size.code(), 0))
                    .with_s2aa64(true)
                    .with_s2affd(true)
                    .with_s2ptw(s2.protected_walk)
                    .with_s2s(s2.stall)
                    .with_s2r(s2.record);
                w3 = w3.with_s2ttb(u52::extract_u64(s2.ttb.0, 4));
            }
        }
        raw.0[..4].copy_from_slice(&[w0.raw_value(), w1.raw_value(), w2.raw_value(), w3.raw_value()]);
        raw
    }
}

impl RawSte {
    /// The same, for an SMMU that reads CDs and tables past the CPU's caches (`IDR0.COHACC` = 0): non-cacheable and outer shareable.
    pub fn uncached(mut self) -> Self {
        let config = Word0::new_with_raw_value(self.0[0]).config().value();
        let (none, outer) = (u2::new(0), u2::new(2));
        if config & 0b101 == 0b101 {
            let w1 = Word1::new_with_raw_value(self.0[1]);
            self.0[1] = w1.with_s1cir(none).with_s1cor(none).with_s1csh(outer).raw_value();
        }
        if config & 0b110 == 0b110 {
            let w2 = Word2::new_with_raw_value(self.0[2]);
            self.0[2] = w2.with_s2ir0(none).with_s2or0(none).with_s2sh0(outer).raw_value();
        }
        self
    }

    /// The entry as an SMMU with these features takes it, following the checks of §5.2.2.
    ///
    /// Fields that the configuration ignores are not looked at. Only little-endian VMSAv8-64 stage 2 tables without hardware
    /// flag updates are understood; anything else in the place of those is named as illegal.
    pub fn decode(&self, features: &Features) -> Result<Ste, BadSte> {
        let w0 = Word0::new_with_raw_value(self.0[0]);
        let w2 = Word2::new_with_raw_value(self.0[2]);
        if !w0.v() {
            return Ok(Ste::Invalid);
        }
        let config = w0.config().value();
        if config & 0b100 == 0 {
            return Ok(Ste::Abort);
        }
        let (s1_enabled, s2_enabled) = (config & 1 != 0, config & 2 != 0);
        if s1_enabled && !features.stage1 {
            return Err(BadSte::Stage(1));
        }
        if s2_enabled && !features.stage2 {
            return Err(BadSte::Stage(2));
        }
        if !s1_enabled && !s2_enabled {
            return Ok(Ste::Bypass);
        }
        let eats = self.decode_eats(features, s1_enabled, s2_enabled)?;
        let s1 = if s1_enabled { Some(self.decode_stage1(features, s2_enabled)?) } else { None };
        let s2 = if s2_enabled { Some(self.decode_stage2(features)?) } else { None };
        let el1 = s1.is_none_or(|s1| s1.world == StreamWorld::El1);
        let vmid = if features.stage2 && el1 { w2.s2vmid() } else { 0 };
        if u32::from(vmid) >> features.vmid_bits != 0 {
            return bad("S2VMID", vmid.into());
        }
        let stages = match (s1, s2) {
            (Some(s1), Some(s2)) => Stages::Nested(s1, s2),
            (Some(s1), None) => Stages::S1(s1),
            (None, Some(s2)) => Stages::S2(s2),
            (None, None) => return Ok(Ste::Bypass),
        };
        Ok(Ste::Translate { vmid, eats, stages })
    }

    fn decode_eats(&self, features: &Features, s1: bool, s2: bool) -> Result<Eats, BadSte> {
        let w1 = Word1::new_with_raw_value(self.0[1]);
        let s2s = s2 && Word2::new_with_raw_value(self.0[2]).s2s();
        let eats = w1.eats().value();
        if !features.ats {
            return Ok(Eats::Off);
        }
        match eats {
            1 if s2s => bad("EATS", 1),
            1 => Ok(Eats::Full),
            2 if !(s1 && s2) || s2s || !features.split_stage_ats => bad("EATS", 2),
            2 => Ok(Eats::Split),
            _ => Ok(Eats::Off), // 3 needs DPT; without it, it behaves as 0
        }
    }

    fn decode_stage1(&self, features: &Features, s2_enabled: bool) -> Result<SteStage1, BadSte> {
        let w0 = Word0::new_with_raw_value(self.0[0]);
        let w1 = Word1::new_with_raw_value(self.0[1]);
        let world = match w1.strw().value() {
            _ if s2_enabled || !features.hyp => StreamWorld::El1,
            0 => StreamWorld::El1,
            2 => StreamWorld::El2,
            strw => return bad("STRW", strw.into()),
        };
        if w1.s1stalld() && features.stall_model != StallModel::Both {
            return bad("S1STALLD", 1);
        }
        let cd_max = if features.ssid_bits == 0 { 0 } else { w0.s1cdmax().value() };
        if cd_max > features.ssid_bits {
            return bad("S1CDMax", cd_max.into());
        }
        let format = match w0.s1fmt().value() {
            _ if cd_max == 0 => CdFormat::Linear,
            fmt @ (1 | 2) if !features.cd_two_level => return bad("S1Fmt", fmt.into()),
            1 => CdFormat::TwoLevel4K,
            2 => CdFormat::TwoLevel64K,
            _ => CdFormat::Linear,
        };
        let context_ptr = w0.s1contextptr().value() << 6;
        if !in_range(context_ptr, features.oas) {
            return bad("S1ContextPtr", context_ptr);
        }
        let default_substream = match w1.s1dss().value() {
            _ if cd_max == 0 => DefaultSubstream::Substream0,
            1 => DefaultSubstream::Bypass,
            2 => DefaultSubstream::Substream0,
            _ => DefaultSubstream::Terminate,
        };
        Ok(SteStage1 {
            context_ptr: PhysAddr(context_ptr),
            cd_max,
            format,
            default_substream,
            world,
            stall_disabled: w1.s1stalld(),
        })
    }

    fn decode_stage2(&self, features: &Features) -> Result<SteStage2, BadSte> {
        let w2 = Word2::new_with_raw_value(self.0[2]);
        let w3 = Word3::new_with_raw_value(self.0[3]);
        match (w2.s2s(), features.stall_model) {
            (true, StallModel::Terminate) => return bad("S2S", 1),
            (false, StallModel::Forced) => return bad("S2S", 0),
            _ => {}
        }
        if !w2.s2aa64() {
            return bad("S2AA64", 0);
        }
        if w2.s2endi() {
            return bad("S2ENDI", 1);
        }
        if w2.s2ha() {
            return bad("S2HA", 1);
        }
        if w2.s2hd() {
            return bad("S2HD", 1);
        }
        let granule = match tg_decode(w2.s2tg()) {
            Some(granule) if features.granule(granule) => granule,
            _ => return bad("S2TG", w2.s2tg().value().into()),
        };
        let output_size = AddrSize::from_code(w2.s2ps().value()).min(features.oas);
        let ttb = w3.s2ttb().value() << 4;
        if !in_range(ttb, output_size) {
            return bad("S2TTB", ttb);
        }
        let t0sz = w2.s2t0sz().value();
        if t0sz > 39 || t0sz < 16.max(64 - features.oas.bits()) {
            return bad("S2T0SZ", t0sz.into());
        }
        let sl0 = w2.s2sl0().value();
        if !stage2_walk_is_consistent(t0sz, sl0, granule) {
            return bad("S2SL0", sl0.into());
        }
        Ok(SteStage2 {
            t0sz,
            sl0,
            granule,
            output_size,
            ttb: PhysAddr(ttb),
            record: w2.s2r(),
            stall: w2.s2s(),
            protected_walk: w2.s2ptw(),
        })
    }

    /// The bits of each word that an SMMU looks at to handle traffic, given what the entry says it is.
    ///
    /// Two entries that agree in these bits behave alike; the entry writer rests on that. Conservative: attribute
    /// overrides count as used wherever some SMMU may look at them.
    pub fn used(&self) -> [u64; 8] {
        let w0 = Word0::new_with_raw_value(self.0[0]);
        let mut used = [0; 8];
        used[0] = V;
        if !w0.v() {
            return used;
        }
        used[0] |= CONFIG;
        let config = w0.config().value();
        if config & 0b100 == 0 {
            return used;
        }
        used[1] |= ATTRIBUTES;
        if config & 0b011 != 0 {
            used[1] |= EATS;
            used[2] |= S2VMID;
        }
        if config & 0b001 != 0 {
            used[0] |= S1_WORD0;
            used[1] |= S1_WORD1;
        }
        if config & 0b010 != 0 {
            used[1] |= S2_WORD1;
            used[2] |= S2_WORD2;
            used[3] |= S2_WORD3;
        }
        used
    }
}

const V: u64 = 1;
const CONFIG: u64 = 0b1110;
/// DRE, CONT, DCP, PPAR, MEV; MemAttr, MTCFG, ALLOCCFG, SHCFG, NSCFG, PRIVCFG, INSTCFG
const ATTRIBUTES: u64 = 0xff << 12 | 0xf_ffff << 32;
const EATS: u64 = 0b11 << 28;
const S2VMID: u64 = 0xffff;
/// S1Fmt, S1ContextPtr, S1CDMax
const S1_WORD0: u64 = 0b11 << 4 | (u64::MAX >> 14) << 6 | 0x1f << 59;
/// S1DSS, S1CIR, S1COR, S1CSH, S1STALLD, STRW
const S1_WORD1: u64 = 0xff | 1 << 27 | 0b11 << 30;
/// S2FWB
const S2_WORD1: u64 = 1 << 25;
/// S2T0SZ to S2R
const S2_WORD2: u64 = (u64::MAX >> 37) << 32;
/// S2TTB
const S2_WORD3: u64 = (u64::MAX >> 12) << 4;

impl fmt::Debug for RawSte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawSte({:#018x?})", &self.0[..4])
    }
}

/// A level-1 stream table descriptor (§5.1): where `2^(span - 1)` STEs lie.
#[bitfield(u64, debug, default = 0)]
#[derive(PartialEq, Eq)]
pub struct L1Std {
    /// 0: no STEs here. 1 to 11: `2^(span - 1)` of them. More: reserved, as 0.
    #[bits(0..=4, rw)]
    span: u5,
    /// Address bits 55:6 of the second-level array.
    #[bits(6..=55, rw)]
    l2ptr: u50,
}

impl L1Std {
    /// A descriptor of `2^split` STEs at `addr`.
    pub fn pointing_to(addr: PhysAddr, split: u8) -> Self {
        L1Std::default().with_span(u5::extract_u8(split + 1, 0)).with_l2ptr(u50::extract_u64(addr.0, 6))
    }

    /// The second-level array and log2 of its length; `None` where there is none.
    pub fn target(self, split: u8) -> Option<(PhysAddr, u8)> {
        let span = self.span().value();
        if span == 0 || span > 11 || span > split + 1 {
            return None;
        }
        // The array is aligned to its size; lower bits are taken as 0.
        let log2 = span - 1;
        Some((PhysAddr(self.l2ptr().value() >> log2 << log2 << 6), log2))
    }
}

#[cfg(test)]
#[path = "ste_test.rs"]
mod tests;

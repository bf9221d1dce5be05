//! Context descriptors and level-1 CD table descriptors (IHI 0070 §5.3, §5.4).
//!
//! [`RawCd`] is the 64 bytes in memory, [`Cd`] what the driver means by them.

use arbitrary_int::{u2, u3, u6, u44, u52};
use bitbybit::bitfield;
use core::fmt;

use super::features::{AddrSize, Features, Granule, StallModel};
use super::ste::{in_range, tg_code, tg_decode};
use crate::platform::PhysAddr;

/// CD bits 63:0.
#[bitfield(u64, debug, default = 0)]
struct Word0 {
    #[bits(0..=5, rw)]
    t0sz: u6,
    #[bits(6..=7, rw)]
    tg0: u2,
    #[bits(8..=9, rw)]
    ir0: u2,
    #[bits(10..=11, rw)]
    or0: u2,
    #[bits(12..=13, rw)]
    sh0: u2,
    #[bit(14, rw)]
    epd0: bool,
    #[bit(15, rw)]
    endi: bool,
    #[bit(30, rw)]
    epd1: bool,
    #[bit(31, rw)]
    v: bool,
    #[bits(32..=34, rw)]
    ips: u3,
    #[bit(35, rw)]
    affd: bool,
    #[bit(41, rw)]
    aa64: bool,
    #[bit(42, rw)]
    hd: bool,
    #[bit(43, rw)]
    ha: bool,
    #[bit(44, rw)]
    s: bool,
    #[bit(45, rw)]
    r: bool,
    #[bit(46, rw)]
    a: bool,
    #[bit(47, rw)]
    aset: bool,
    #[bits(48..=63, rw)]
    asid: u16,
}

/// CD bits 127:64.
#[bitfield(u64, debug, default = 0)]
struct Word1 {
    #[bits(4..=55, rw)]
    ttb0: u52,
}

/// A context descriptor that an SMMU accepts: one translation table, for addresses from 0 up (`TTB0`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cd {
    /// `T0SZ`: 64 minus the VA bits.
    pub t0sz: u8,
    /// `TG0`
    pub granule: Granule,
    /// `IPS`: the size of the addresses that stage 1 gives.
    pub output_size: AddrSize,
    /// `TTB0`: the translation table; `None` disables walks (`EPD0`).
    pub ttb0: Option<PhysAddr>,
    /// `ASID`
    pub asid: u16,
    /// `ASET`: broadcast TLB invalidations by ASID do not reach this context's entries.
    pub private_asid: bool,
    /// `MAIR`: eight memory attributes, one a byte.
    pub mair: u64,
    /// `R`: record faults.
    pub record: bool,
    /// `S`: stall on faults.
    pub stall: bool,
    /// `A`: abort faulting transactions; otherwise reads give 0 and writes vanish.
    pub abort: bool,
}

/// The 64 bytes of a CD as eight little-endian words.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct RawCd(pub [u64; 8]);

/// Why a CD is illegal: the SMMU aborts the transaction and records `C_BAD_CD` (§5.4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadCd {
    /// `V` is 0.
    #[error("V = 0")]
    Invalid,
    /// The named field has a value that is illegal on this SMMU or with the rest of the descriptor.
    #[error("{field} = {value:#x} is illegal here")]
    Field {
        /// The field's name in the specification.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

fn bad<T>(field: &'static str, value: u64) -> Result<T, BadCd> {
    Err(BadCd::Field { field, value })
}

impl Cd {
    /// The 64 bytes. Bits of a value that are wider than its field are dropped.
    pub fn encode(&self) -> RawCd {
        let w0 = Word0::default()
            .with_v(true)
            .with_aa64(true)
            .with_t0sz(u6::extract_u8(self.t0sz, 0))
            .with_tg0(tg_code(self.granule))
            // Tables are read through write-back, inner shareable caches.
            .with_ir0(u2::new(1))
            .with_or0(u2::new(1))
            .with_sh0(u2::new(3))
            .with_epd0(self.ttb0.is_none())
            .with_epd1(true)
            .with_ips(u3::extract_u8(self.output_size.code(), 0))
            .with_affd(true)
            .with_asid(self.asid)
            .with_aset(self.private_asid)
            .with_s(self.stall)
            .with_r(self.record)
            .with_a(self.abort);
        let w1 = Word1::default().with_ttb0(u52::extract_u64(self.ttb0.unwrap_or_default().0, 4));
        let mut raw = RawCd::default();
        raw.0[0] = w0.raw_value();
        raw.0[1] = w1.raw_value();
        raw.0[3] = self.mair;
        raw
    }
}

impl RawCd {
    /// The same, for an SMMU that reads tables past the CPU's caches (`IDR0.COHACC` = 0): non-cacheable and outer shareable.
    pub fn uncached(mut self) -> Self {
        let w0 = Word0::new_with_raw_value(self.0[0]);
        if w0.v() {
            self.0[0] = w0.with_ir0(u2::new(0)).with_or0(u2::new(0)).with_sh0(u2::new(2)).raw_value();
        }
        self
    }
}

impl RawCd {
    /// The descriptor as an SMMU with these features takes it (§5.4.2).
    ///
    /// Only little-endian VMSAv8-64 tables for low addresses, without hardware flag updates, are understood; anything
    /// else in the place of those is named as illegal.
    pub fn decode(&self, features: &Features) -> Result<Cd, BadCd> {
        let w0 = Word0::new_with_raw_value(self.0[0]);
        let w1 = Word1::new_with_raw_value(self.0[1]);
        if !w0.v() {
            return Err(BadCd::Invalid);
        }
        if !w0.aa64() {
            return bad("AA64", 0);
        }
        if w0.endi() && !w0.epd0() {
            return bad("ENDI", 1);
        }
        if !w0.epd1() {
            return bad("EPD1", 0);
        }
        if w0.ha() {
            return bad("HA", 1);
        }
        if w0.hd() {
            return bad("HD", 1);
        }
        match (w0.s(), features.stall_model) {
            (true, StallModel::Terminate) => return bad("S", 1),
            (false, StallModel::Forced) => return bad("S", 0),
            _ => {}
        }
        if !w0.a() && features.abort_only {
            return bad("A", 0);
        }
        if u32::from(w0.asid()) >> features.asid_bits != 0 {
            return bad("ASID", w0.asid().into());
        }
        let output_size = AddrSize::from_code(w0.ips().value()).min(features.oas);
        let granule = tg_decode(w0.tg0());
        let ttb0 = if w0.epd0() {
            None
        } else {
            if !granule.is_some_and(|granule| features.granule(granule)) {
                return bad("TG0", w0.tg0().value().into());
            }
            if !(16..=39).contains(&w0.t0sz().value()) {
                return bad("T0SZ", w0.t0sz().value().into());
            }
            let ttb0 = w1.ttb0().value() << 4;
            if !in_range(ttb0, output_size) {
                return bad("TTB0", ttb0);
            }
            Some(PhysAddr(ttb0))
        };
        Ok(Cd {
            t0sz: w0.t0sz().value(),
            granule: granule.unwrap_or(Granule::K4),
            output_size,
            ttb0,
            asid: w0.asid(),
            private_asid: w0.aset(),
            mair: self.0[3],
            record: w0.r(),
            stall: w0.s(),
            abort: w0.a(),
        })
    }

    /// The bits of each word that an SMMU looks at, given what the descriptor says it is. See [`super::RawSte::used`].
    pub fn used(&self) -> [u64; 8] {
        let w0 = Word0::new_with_raw_value(self.0[0]);
        if !w0.v() {
            return [1 << 31, 0, 0, 0, 0, 0, 0, 0];
        }
        let mut used = [u64::MAX; 8];
        if w0.epd0() {
            // No walk begins: where the table would be does not matter.
            used[1] &= !TTB0;
        }
        used
    }
}

/// TTB0, in word 1
const TTB0: u64 = (u64::MAX >> 12) << 4;

impl fmt::Debug for RawCd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawCd({:#018x?})", &self.0[..4])
    }
}

/// A level-1 CD table descriptor (§5.3): where a leaf table of CDs lies.
#[bitfield(u64, debug, default = 0)]
#[derive(PartialEq, Eq)]
pub struct L1Cd {
    /// `L2Ptr` is valid.
    #[bit(0, rw)]
    v: bool,
    /// Address bits 55:12 of the leaf table.
    #[bits(12..=55, rw)]
    l2ptr: u44,
}

impl L1Cd {
    /// A descriptor of a leaf table at `addr`.
    pub fn pointing_to(addr: PhysAddr) -> Self {
        L1Cd::default().with_v(true).with_l2ptr(u44::extract_u64(addr.0, 12))
    }

    /// The leaf table, if there is one.
    pub fn target(self) -> Option<PhysAddr> {
        self.v().then(|| PhysAddr(self.l2ptr().value() << 12))
    }
}

#[cfg(test)]
#[path = "cd_test.rs"]
mod tests;

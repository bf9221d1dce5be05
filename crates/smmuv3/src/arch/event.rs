//! Event records: what the SMMU writes into the Event queue (§7.3).
//!
//! A record is 32 bytes. [`RawEvent`] is those bytes, [`Event`] is their checked, typed form: one variant per
//! record of the specification, named as the specification names it. A driver decodes, a software model encodes.
//!
//! Two things are not in the typed form, because they mean nothing: bits that the specification reserves, and
//! fields that say nothing in the given record (SubstreamID without SSV, STAG without Stall, IPA and NSIPA of a
//! stage 1 fault). Who wants them still has the [`RawEvent`].
//!
//! Bit numbers in comments count through the whole record, as in the specification: bits 63:0 are word 0,
//! 127:64 word 1, 191:128 word 2, 255:192 word 3.

use arbitrary_int::{traits::Integer, u2, u4, u20};
use core::fmt;

use crate::platform::{Iova, PhysAddr};

/// One record as it stands in the queue: four little-endian words, word 0 first (§7.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RawEvent(pub [u64; 4]);

/// An intermediate physical address: what stage 1 gives and stage 2 takes.
///
/// Records hold bits 55:12 of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ipa(pub u64);

/// Who issued the transaction (§7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    /// StreamID.
    pub sid: u32,
    /// SubstreamID (20 bits), where the transaction came with one.
    pub ssid: Option<u32>,
}

/// How the transaction accessed memory (§7.3). In all records but `F_UUT`, `ind` and `pnu` are the values after
/// the overrides of the STE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// RnW: read, not write.
    pub rnw: bool,
    /// InD: instruction, not data. Clear where `rnw` is clear.
    pub ind: bool,
    /// PnU: privileged, not unprivileged.
    pub pnu: bool,
}

/// CLASS: which operation of the SMMU faulted (§7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// CD: the fetch of a CD.
    Cd,
    /// TT: the fetch of a stage 1 translation table descriptor.
    Tt,
    /// IN: the input address of the stage.
    In,
    /// The encoding `0b11`, which the specification reserves.
    Reserved,
}

/// S2 and what depends on it: the stage at which a transaction faulted (§7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultStage {
    /// Stage 1. The record has no valid IPA.
    S1,
    /// Stage 2.
    S2 {
        /// The page of the address that stage 2 could not translate (bits 55:12). With [`Class::Cd`] it is that
        /// of the CD, with [`Class::Tt`] that of the stage 1 descriptor.
        ipa: Ipa,
        /// NSIPA: the IPA is in the Non-secure space. Only ever set in the Secure Event queue.
        nsipa: bool,
    },
}

/// What `F_TRANSLATION`, `F_ADDR_SIZE`, `F_ACCESS` and `F_PERMISSION` have in common (§7.3.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TranslationFault {
    /// STAG, where Stall is set: the transaction waits, and StreamID and this tag name it to `CMD_RESUME`.
    pub stall: Option<u16>,
    /// The access that the device made.
    pub access: Access,
    /// The operation that faulted.
    pub class: Class,
    /// The stage that faulted.
    pub stage: FaultStage,
    /// The address that the device sent.
    pub input: Iova,
}

/// A fetch of a structure that ended in an external abort (§7.3.4, §7.3.10, §7.3.12, §7.3.20).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fetch {
    /// FetchAddr, bits 55:3: the structure that could not be read.
    pub addr: PhysAddr,
    /// GPCF: a granule protection check denied the fetch (§3.25.3).
    pub gpcf: bool,
    /// The cause, IMPLEMENTATION DEFINED.
    pub reason: u16,
}

/// A set of access rights that a device asks for (§7.3.6, §7.3.19).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rights {
    /// Read.
    pub read: bool,
    /// Write.
    pub write: bool,
    /// Execute.
    pub execute: bool,
}

/// An event record, checked and typed (§7.3).
///
/// # Invariants
/// A value is *valid* if its numbers fit into the record: an `ssid` has at most 20 bits, a fetch address is a
/// multiple of 8 below 2^56, an IPA one of 4096 below 2^56, the `input` of `F_BAD_ATS_TREQ` and `E_PAGE_REQUEST`
/// one of 4096, a `span` as its field says, and [`ImpdefEvent`](Self::ImpdefEvent) and [`Unknown`](Self::Unknown)
/// have in `code` what bits 7:0 of `raw` say. [`RawEvent::decode`] gives only valid values, and they survive
/// [`encode`](Self::encode). Of others, `encode` drops the bits that have no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// `F_UUT` 0x01: unsupported upstream transaction (§7.3.2).
    FUut {
        /// Who issued it.
        stream: Stream,
        /// The access, before any override of the STE.
        access: Access,
        /// The address that the device sent.
        input: Iova,
        /// The cause, IMPLEMENTATION DEFINED.
        reason: u16,
    },
    /// `C_BAD_STREAMID` 0x02: StreamID beyond the stream table (§7.3.3).
    CBadStreamid(Stream),
    /// `F_STE_FETCH` 0x03: the fetch of the STE aborted (§7.3.4).
    FSteFetch(Stream, Fetch),
    /// `C_BAD_STE` 0x04: the STE is invalid (§7.3.5).
    CBadSte(Stream),
    /// `F_BAD_ATS_TREQ` 0x05: an ATS Translation Request that the configuration does not allow (§7.3.6).
    FBadAtsTreq {
        /// Who issued the request.
        stream: Stream,
        /// The page asked for (bits 63:12).
        input: Iova,
        /// R, W, X: the rights asked for, before any override of the STE.
        rights: Rights,
        /// P: asked for as privileged.
        privileged: bool,
        /// Number of smallest translation units (STU) asked for, 0 to 15.
        span: u8,
    },
    /// `F_STREAM_DISABLED` 0x06: the STE permits no transactions without SubstreamID, or none with SubstreamID 0
    /// (§7.3.7).
    FStreamDisabled(Stream),
    /// `F_TRANSL_FORBIDDEN` 0x07: an ATS Translated transaction that may not bypass the SMMU (§7.3.8).
    FTranslForbidden {
        /// Who issued the transaction.
        stream: Stream,
        /// RnW: read, not write.
        rnw: bool,
        /// The address that the device sent.
        input: Iova,
    },
    /// `C_BAD_SUBSTREAMID` 0x08: SubstreamID not configured (§7.3.9). The only record without SSV: its
    /// SubstreamID is always valid.
    CBadSubstreamid {
        /// StreamID.
        sid: u32,
        /// SubstreamID (20 bits).
        ssid: u32,
    },
    /// `F_CD_FETCH` 0x09: the fetch of the CD aborted (§7.3.10).
    FCdFetch(Stream, Fetch),
    /// `C_BAD_CD` 0x0A: the CD is invalid (§7.3.11).
    CBadCd(Stream),
    /// `F_WALK_EABT` 0x0B: the fetch or update of a translation table descriptor aborted (§7.3.12).
    FWalkEabt {
        /// Who issued the transaction.
        stream: Stream,
        /// The access that the device made, not the one that aborted.
        access: Access,
        /// What the walk was for. A stage 1 walk reports [`Class::Tt`].
        class: Class,
        /// S2: the descriptor is one of stage 2, not of stage 1.
        s2: bool,
        /// The address that the device sent.
        input: Iova,
        /// The fetch of the descriptor.
        fetch: Fetch,
    },
    /// `F_TRANSLATION` 0x10: no valid translation (§7.3.13).
    FTranslation(Stream, TranslationFault),
    /// `F_ADDR_SIZE` 0x11: an output address out of range (§7.3.14).
    FAddrSize(Stream, TranslationFault),
    /// `F_ACCESS` 0x12: access flag clear (§7.3.15).
    FAccess(Stream, TranslationFault),
    /// `F_PERMISSION` 0x13: permission denied (§7.3.16).
    FPermission {
        /// Who issued the transaction.
        stream: Stream,
        /// The fault.
        fault: TranslationFault,
        /// TTRnW: the SMMU read the stage 1 descriptor, not wrote it. Valid with [`Class::Tt`] only.
        ttrnw: bool,
        /// The rest of word 1 (bits 127:64), in place: all its bits outside the fields above. Zero before
        /// SMMUv3.4, which puts the flags Overlay, AssuredOnly and DirtyBit somewhere among them.
        other: u64,
    },
    /// `F_TLB_CONFLICT` 0x20: more than one TLB entry for an address (§7.3.17).
    FTlbConflict {
        /// Who issued the transaction.
        stream: Stream,
        /// The access that the device made.
        access: Access,
        /// The stage that faulted.
        stage: FaultStage,
        /// The address that the device sent; the conflict may be on another one.
        input: Iova,
        /// The cause, IMPLEMENTATION DEFINED.
        reason: u32,
    },
    /// `F_CFG_CONFLICT` 0x21: more than one configuration cache entry for a stream (§7.3.18).
    FCfgConflict {
        /// Who issued the transaction.
        stream: Stream,
        /// The cause, IMPLEMENTATION DEFINED.
        reason: u32,
    },
    /// `E_PAGE_REQUEST` 0x24: a hint that a device will soon access some pages (§7.3.19). Nothing needs to be
    /// done about it.
    EPageRequest {
        /// Who gives the hint.
        stream: Stream,
        /// The first page (bits 63:12).
        input: Iova,
        /// How many pages of 4 KiB.
        span: u8,
        /// pR, pW, pX: what privileged accesses will need.
        privileged: Rights,
        /// uR, uW, uX: what unprivileged accesses will need.
        unprivileged: Rights,
    },
    /// `F_VMS_FETCH` 0x25: the fetch of the VMS aborted (§7.3.20).
    FVmsFetch(Stream, Fetch),
    /// `IMPDEF_EVENTn` 0xE0 to 0xEF: IMPLEMENTATION DEFINED (§7.3.21). Not fatal.
    ImpdefEvent {
        /// The event number.
        code: u8,
        /// The whole record.
        raw: RawEvent,
    },
    /// An event number that the specification reserves. Not fatal (§7.3).
    Unknown {
        /// The event number.
        code: u8,
        /// The whole record.
        raw: RawEvent,
    },
}

impl RawEvent {
    /// The event number, bits 7:0.
    pub fn code(&self) -> u8 {
        Word0::new_with_raw_value(self.0[0]).code()
    }

    /// Reads the record. Never fails: what is not known is [`Event::Unknown`].
    pub fn decode(&self) -> Event {
        let [w0, w1, w2, w3] = self.0;
        let (w0, w1) = (Word0::new_with_raw_value(w0), Word1::new_with_raw_value(w1));
        let stream = w0.stream();
        let input = Iova(w2);
        let page = Iova(w2 & INPUT_PAGE);
        let fetch = Fetch { addr: PhysAddr(w3 & FETCH_ADDR), gpcf: w1.gpcf(), reason: w1.reason() };
        let fault = TranslationFault {
            stall: w1.stall().then(|| w1.stag()),
            access: w1.access(),
            class: Class::from_bits(w1.class()),
            stage: w1.stage(w3),
            input,
        };
        match w0.code() {
            F_UUT => Event::FUut { stream, access: w1.access(), input, reason: w1.reason() },
            C_BAD_STREAMID => Event::CBadStreamid(stream),
            F_STE_FETCH => Event::FSteFetch(stream, fetch),
            C_BAD_STE => Event::CBadSte(stream),
            F_BAD_ATS_TREQ => Event::FBadAtsTreq {
                stream,
                input: page,
                rights: Rights { read: w1.treq_r(), write: w1.treq_w(), execute: w1.treq_x() },
                privileged: w1.treq_p(),
                span: w1.treq_span().into(),
            },
            F_STREAM_DISABLED => Event::FStreamDisabled(stream),
            F_TRANSL_FORBIDDEN => Event::FTranslForbidden { stream, rnw: w1.rnw(), input },
            C_BAD_SUBSTREAMID => Event::CBadSubstreamid { sid: stream.sid, ssid: w0.substream_id().into() },
            F_CD_FETCH => Event::FCdFetch(stream, fetch),
            C_BAD_CD => Event::CBadCd(stream),
            F_WALK_EABT => {
                let class = Class::from_bits(w1.class());
                Event::FWalkEabt { stream, access: w1.access(), class, s2: w1.s2(), input, fetch }
            }
            F_TRANSLATION => Event::FTranslation(stream, fault),
            F_ADDR_SIZE => Event::FAddrSize(stream, fault),
            F_ACCESS => Event::FAccess(stream, fault),
            F_PERMISSION => {
                let other = w1.raw_value() & !PERMISSION_FIELDS;
                Event::FPermission { stream, fault, ttrnw: w1.ttrnw(), other }
            }
            F_TLB_CONFLICT => {
                let (access, stage, reason) = (w1.access(), w1.stage(w3), w1.conflict_reason());
                Event::FTlbConflict { stream, access, stage, input, reason }
            }
            F_CFG_CONFLICT => Event::FCfgConflict { stream, reason: w1.conflict_reason() },
            E_PAGE_REQUEST => Event::EPageRequest {
                stream,
                input: page,
                span: w1.page_span(),
                privileged: Rights { read: w1.page_pr(), write: w1.page_pw(), execute: w1.page_px() },
                unprivileged: Rights { read: w1.page_ur(), write: w1.page_uw(), execute: w1.page_ux() },
            },
            F_VMS_FETCH => Event::FVmsFetch(stream, fetch),
            code @ 0xE0..=0xEF => Event::ImpdefEvent { code, raw: *self },
            code => Event::Unknown { code, raw: *self },
        }
    }
}

impl Event {
    /// Writes the record. Reserved bits and fields that say nothing in the record become zero.
    pub fn encode(&self) -> RawEvent {
        let zero = Word1::DEFAULT;
        let mut w0 = Word0::of(self.code(), self.stream());
        let (w1, w2, w3) = match *self {
            Event::FUut { access, input, reason, .. } => (zero.with_access(access).with_reason(reason), input.0, 0),
            Event::CBadStreamid(_) | Event::CBadSte(_) | Event::FStreamDisabled(_) | Event::CBadCd(_) => (zero, 0, 0),
            Event::FSteFetch(_, fetch) | Event::FCdFetch(_, fetch) | Event::FVmsFetch(_, fetch) => {
                (zero.with_fetch(fetch), 0, fetch.addr.0 & FETCH_ADDR)
            }
            Event::FBadAtsTreq { input, rights, privileged, span, .. } => {
                let w1 = zero.with_treq_r(rights.read).with_treq_w(rights.write).with_treq_x(rights.execute);
                let w1 = w1.with_treq_p(privileged).with_treq_span(u4::masked_new(span));
                (w1, input.0 & INPUT_PAGE, 0)
            }
            Event::FTranslForbidden { rnw, input, .. } => (zero.with_rnw(rnw), input.0, 0),
            Event::CBadSubstreamid { .. } => {
                w0 = w0.with_ssv(false); // the one record in which that bit is reserved
                (zero, 0, 0)
            }
            Event::FWalkEabt { access, class, s2, input, fetch, .. } => {
                let w1 = zero.with_access(access).with_class(class.to_bits()).with_s2(s2).with_fetch(fetch);
                (w1, input.0, fetch.addr.0 & FETCH_ADDR)
            }
            Event::FTranslation(_, fault) | Event::FAddrSize(_, fault) | Event::FAccess(_, fault) => {
                (zero.with_fault(fault), fault.input.0, fault.stage.ipa_word())
            }
            Event::FPermission { fault, ttrnw, other, .. } => {
                let w1 = zero.with_fault(fault).with_ttrnw(ttrnw).raw_value() | other & !PERMISSION_FIELDS;
                (Word1::new_with_raw_value(w1), fault.input.0, fault.stage.ipa_word())
            }
            Event::FTlbConflict { access, stage, input, reason, .. } => {
                (zero.with_access(access).with_stage(stage).with_conflict_reason(reason), input.0, stage.ipa_word())
            }
            Event::FCfgConflict { reason, .. } => (zero.with_conflict_reason(reason), 0, 0),
            Event::EPageRequest { input, span, privileged: p, unprivileged: u, .. } => {
                let w1 = zero.with_page_pr(p.read).with_page_pw(p.write).with_page_px(p.execute);
                let w1 = w1.with_page_ur(u.read).with_page_uw(u.write).with_page_ux(u.execute);
                (w1.with_page_span(span), input.0 & INPUT_PAGE, 0)
            }
            Event::ImpdefEvent { raw, .. } | Event::Unknown { raw, .. } => return raw,
        };
        RawEvent([w0.raw_value(), w1.raw_value(), w2, w3])
    }

    /// The event number.
    pub fn code(&self) -> u8 {
        self.id().0
    }

    /// The specification's name of the event: `"F_TRANSLATION"`. All of 0xE0 to 0xEF are `"IMPDEF_EVENT"`, numbers
    /// that the specification reserves are `"UNKNOWN"`.
    pub fn name(&self) -> &'static str {
        self.id().1
    }

    /// Who issued the transaction. Of [`ImpdefEvent`](Self::ImpdefEvent) and [`Unknown`](Self::Unknown) one cannot
    /// say.
    pub fn stream(&self) -> Option<Stream> {
        match *self {
            Event::FUut { stream, .. }
            | Event::CBadStreamid(stream)
            | Event::FSteFetch(stream, _)
            | Event::CBadSte(stream)
            | Event::FBadAtsTreq { stream, .. }
            | Event::FStreamDisabled(stream)
            | Event::FTranslForbidden { stream, .. }
            | Event::FCdFetch(stream, _)
            | Event::CBadCd(stream)
            | Event::FWalkEabt { stream, .. }
            | Event::FTranslation(stream, _)
            | Event::FAddrSize(stream, _)
            | Event::FAccess(stream, _)
            | Event::FPermission { stream, .. }
            | Event::FTlbConflict { stream, .. }
            | Event::FCfgConflict { stream, .. }
            | Event::EPageRequest { stream, .. }
            | Event::FVmsFetch(stream, _) => Some(stream),
            Event::CBadSubstreamid { sid, ssid } => Some(Stream { sid, ssid: Some(ssid) }),
            Event::ImpdefEvent { .. } | Event::Unknown { .. } => None,
        }
    }

    /// The address that the device sent, in records that have one.
    pub fn input_address(&self) -> Option<Iova> {
        match *self {
            Event::FUut { input, .. }
            | Event::FBadAtsTreq { input, .. }
            | Event::FTranslForbidden { input, .. }
            | Event::FWalkEabt { input, .. }
            | Event::FTlbConflict { input, .. }
            | Event::EPageRequest { input, .. } => Some(input),
            _ => self.translation_fault().map(|fault| fault.input),
        }
    }

    /// The fault, if this is `F_TRANSLATION`, `F_ADDR_SIZE`, `F_ACCESS` or `F_PERMISSION`.
    pub fn translation_fault(&self) -> Option<&TranslationFault> {
        match self {
            Event::FTranslation(_, fault)
            | Event::FAddrSize(_, fault)
            | Event::FAccess(_, fault)
            | Event::FPermission { fault, .. } => Some(fault),
            _ => None,
        }
    }

    /// The tag (STAG) of the transaction, if it is stalled: it waits for a `CMD_RESUME` with its StreamID and
    /// this tag, or for a `CMD_STALL_TERM`.
    pub fn stall_tag(&self) -> Option<u16> {
        self.translation_fault()?.stall
    }

    /// Whether the transaction is stalled. One that is not was terminated (§7.3.21); `E_PAGE_REQUEST` is of none.
    pub fn is_stalled(&self) -> bool {
        self.stall_tag().is_some()
    }

    fn id(&self) -> (u8, &'static str) {
        match self {
            Event::FUut { .. } => (F_UUT, "F_UUT"),
            Event::CBadStreamid(_) => (C_BAD_STREAMID, "C_BAD_STREAMID"),
            Event::FSteFetch(..) => (F_STE_FETCH, "F_STE_FETCH"),
            Event::CBadSte(_) => (C_BAD_STE, "C_BAD_STE"),
            Event::FBadAtsTreq { .. } => (F_BAD_ATS_TREQ, "F_BAD_ATS_TREQ"),
            Event::FStreamDisabled(_) => (F_STREAM_DISABLED, "F_STREAM_DISABLED"),
            Event::FTranslForbidden { .. } => (F_TRANSL_FORBIDDEN, "F_TRANSL_FORBIDDEN"),
            Event::CBadSubstreamid { .. } => (C_BAD_SUBSTREAMID, "C_BAD_SUBSTREAMID"),
            Event::FCdFetch(..) => (F_CD_FETCH, "F_CD_FETCH"),
            Event::CBadCd(_) => (C_BAD_CD, "C_BAD_CD"),
            Event::FWalkEabt { .. } => (F_WALK_EABT, "F_WALK_EABT"),
            Event::FTranslation(..) => (F_TRANSLATION, "F_TRANSLATION"),
            Event::FAddrSize(..) => (F_ADDR_SIZE, "F_ADDR_SIZE"),
            Event::FAccess(..) => (F_ACCESS, "F_ACCESS"),
            Event::FPermission { .. } => (F_PERMISSION, "F_PERMISSION"),
            Event::FTlbConflict { .. } => (F_TLB_CONFLICT, "F_TLB_CONFLICT"),
            Event::FCfgConflict { .. } => (F_CFG_CONFLICT, "F_CFG_CONFLICT"),
            Event::EPageRequest { .. } => (E_PAGE_REQUEST, "E_PAGE_REQUEST"),
            Event::FVmsFetch(..) => (F_VMS_FETCH, "F_VMS_FETCH"),
            Event::ImpdefEvent { code, .. } => (*code, "IMPDEF_EVENT"),
            Event::Unknown { code, .. } => (*code, "UNKNOWN"),
        }
    }
}

// Event numbers.
const F_UUT: u8 = 0x01;
const C_BAD_STREAMID: u8 = 0x02;
const F_STE_FETCH: u8 = 0x03;
const C_BAD_STE: u8 = 0x04;
const F_BAD_ATS_TREQ: u8 = 0x05;
const F_STREAM_DISABLED: u8 = 0x06;
const F_TRANSL_FORBIDDEN: u8 = 0x07;
const C_BAD_SUBSTREAMID: u8 = 0x08;
const F_CD_FETCH: u8 = 0x09;
const C_BAD_CD: u8 = 0x0A;
const F_WALK_EABT: u8 = 0x0B;
const F_TRANSLATION: u8 = 0x10;
const F_ADDR_SIZE: u8 = 0x11;
const F_ACCESS: u8 = 0x12;
const F_PERMISSION: u8 = 0x13;
const F_TLB_CONFLICT: u8 = 0x20;
const F_CFG_CONFLICT: u8 = 0x21;
const E_PAGE_REQUEST: u8 = 0x24;
const F_VMS_FETCH: u8 = 0x25;

// Addresses stand in words 2 and 3 with every bit in its own place, so a mask is all their layout.

/// Bits 191:140: InputAddr[63:12].
const INPUT_PAGE: u64 = !0xFFF;
/// Bits 247:195: FetchAddr[55:3].
const FETCH_ADDR: u64 = 0x00FF_FFFF_FFFF_FFF8;
/// Bits 247:204: IPA[55:12].
const IPA_PAGE: u64 = 0x00FF_FFFF_FFFF_F000;
/// The bits of word 1 that `F_PERMISSION` has fields for.
const PERMISSION_FIELDS: u64 = 0x0000_13CE_8000_FFFF;

use word::{Word0, Word1};
mod word {
    #![allow(unreachable_pub, reason = "the macro makes what it generates pub")]

    use arbitrary_int::{u2, u4, u20};
    use bitbybit::bitfield;

    /// Bits 63:0, the same in every record; without `ssv` in `C_BAD_SUBSTREAMID`.
    #[bitfield(u64, default = 0)]
    pub(super) struct Word0 {
        #[bits(0..=7, rw)]
        code: u8,
        #[bit(11, rw)]
        ssv: bool,
        #[bits(12..=31, rw)]
        substream_id: u20,
        #[bits(32..=63, rw)]
        stream_id: u32,
    }

    /// Bits 127:64, the fields of all records, which overlap.
    #[bitfield(u64, default = 0)]
    pub(super) struct Word1 {
        // What the device did and what faulted
        #[bit(33, rw)]
        pnu: bool,
        #[bit(34, rw)]
        ind: bool,
        #[bit(35, rw)]
        rnw: bool,
        #[bit(38, rw)]
        nsipa: bool,
        #[bit(39, rw)]
        s2: bool,
        #[bits(40..=41, rw)]
        class: u2,
        // F_TRANSLATION, F_ADDR_SIZE, F_ACCESS, F_PERMISSION
        #[bits(0..=15, rw)]
        stag: u16,
        #[bit(31, rw)]
        stall: bool,
        // F_PERMISSION
        #[bit(44, rw)]
        ttrnw: bool,
        // F_UUT, F_STE_FETCH, F_CD_FETCH, F_VMS_FETCH, F_WALK_EABT; GPCF not in the first
        #[bits(0..=15, rw)]
        reason: u16,
        #[bit(16, rw)]
        gpcf: bool,
        // F_TLB_CONFLICT, F_CFG_CONFLICT
        #[bits(0..=31, rw)]
        conflict_reason: u32,
        // F_BAD_ATS_TREQ
        #[bits(0..=3, rw)]
        treq_span: u4,
        #[bit(28, rw)]
        treq_p: bool,
        #[bit(29, rw)]
        treq_x: bool,
        #[bit(30, rw)]
        treq_w: bool,
        #[bit(31, rw)]
        treq_r: bool,
        // E_PAGE_REQUEST
        #[bit(33, rw)]
        page_ux: bool,
        #[bit(34, rw)]
        page_uw: bool,
        #[bit(35, rw)]
        page_ur: bool,
        #[bit(37, rw)]
        page_px: bool,
        #[bit(38, rw)]
        page_pw: bool,
        #[bit(39, rw)]
        page_pr: bool,
        #[bits(44..=51, rw)]
        page_span: u8,
    }
}

impl Word0 {
    fn of(code: u8, stream: Option<Stream>) -> Self {
        let Stream { sid, ssid } = stream.unwrap_or(Stream { sid: 0, ssid: None });
        let w0 = Self::DEFAULT.with_code(code).with_stream_id(sid).with_ssv(ssid.is_some());
        w0.with_substream_id(u20::masked_new(ssid.unwrap_or(0)))
    }

    fn stream(self) -> Stream {
        Stream { sid: self.stream_id(), ssid: self.ssv().then(|| self.substream_id().into()) }
    }
}

impl Word1 {
    fn with_access(self, access: Access) -> Self {
        self.with_rnw(access.rnw).with_ind(access.ind).with_pnu(access.pnu)
    }

    fn access(self) -> Access {
        Access { rnw: self.rnw(), ind: self.ind(), pnu: self.pnu() }
    }

    fn with_stage(self, stage: FaultStage) -> Self {
        match stage {
            FaultStage::S1 => self,
            FaultStage::S2 { nsipa, .. } => self.with_s2(true).with_nsipa(nsipa),
        }
    }

    fn stage(self, w3: u64) -> FaultStage {
        if self.s2() { FaultStage::S2 { ipa: Ipa(w3 & IPA_PAGE), nsipa: self.nsipa() } } else { FaultStage::S1 }
    }

    fn with_fault(self, fault: TranslationFault) -> Self {
        let w1 = self.with_access(fault.access).with_class(fault.class.to_bits()).with_stage(fault.stage);
        w1.with_stall(fault.stall.is_some()).with_stag(fault.stall.unwrap_or(0))
    }

    fn with_fetch(self, fetch: Fetch) -> Self {
        self.with_reason(fetch.reason).with_gpcf(fetch.gpcf)
    }
}

impl FaultStage {
    /// Word 3 of a record with an IPA.
    fn ipa_word(&self) -> u64 {
        match self {
            FaultStage::S1 => 0,
            FaultStage::S2 { ipa, .. } => ipa.0 & IPA_PAGE,
        }
    }

    fn number(&self) -> &'static str {
        match self {
            FaultStage::S1 => "stage 1",
            FaultStage::S2 { .. } => "stage 2",
        }
    }
}

impl Class {
    fn from_bits(bits: u2) -> Self {
        match bits.value() {
            0 => Class::Cd,
            1 => Class::Tt,
            2 => Class::In,
            _ => Class::Reserved,
        }
    }

    fn to_bits(self) -> u2 {
        u2::masked_new(match self {
            Class::Cd => 0u8,
            Class::Tt => 1,
            Class::In => 2,
            Class::Reserved => 3,
        })
    }
}

/// One line: the name, the stream, and what the record says, addresses in hexadecimal.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Event::ImpdefEvent { code, raw } | Event::Unknown { code, raw } => return write!(f, " {code:#04x}: {raw}"),
            _ => f.write_str(":")?,
        }
        if let Some(stream) = self.stream() {
            write!(f, " {stream}")?;
        }
        match self {
            Event::FUut { access, input, reason, .. } => {
                write!(f, ", {} {input} ({access}), reason {reason:#x}", direction(access.rnw))
            }
            Event::FSteFetch(_, fetch) | Event::FCdFetch(_, fetch) | Event::FVmsFetch(_, fetch) => {
                write!(f, ", {fetch}")
            }
            Event::FBadAtsTreq { input, rights, privileged, span, .. } => {
                write!(f, ", translation request from {input}, span {span}, {} {rights}", privilege(*privileged))
            }
            Event::FTranslForbidden { rnw, input, .. } => write!(f, ", translated {} {input}", direction(*rnw)),
            Event::FWalkEabt { access, class, s2, input, fetch, .. } => {
                let stage = if *s2 { 2 } else { 1 };
                write!(f, ", {} {input} (stage {stage}, {access}), class {class}, {fetch}", direction(access.rnw))
            }
            Event::FTranslation(_, fault) | Event::FAddrSize(_, fault) | Event::FAccess(_, fault) => {
                write!(f, ", {fault}")
            }
            Event::FPermission { fault, ttrnw, other, .. } => {
                write!(f, ", {fault}")?;
                if fault.class == Class::Tt {
                    write!(f, ", descriptor {}", if *ttrnw { "read" } else { "write" })?;
                }
                if *other != 0 {
                    write!(f, ", other bits of word 1 {other:#x}")?;
                }
                Ok(())
            }
            Event::FTlbConflict { access, stage, input, reason, .. } => {
                write!(f, ", {} {input} ({}, {access})", direction(access.rnw), stage.number())?;
                write!(f, "{stage}, reason {reason:#x}")
            }
            Event::FCfgConflict { reason, .. } => write!(f, ", reason {reason:#x}"),
            Event::EPageRequest { input, span, privileged, unprivileged, .. } => {
                let kib = u32::from(*span) * 4;
                write!(f, ", {kib} KiB from {input}, privileged {privileged}, unprivileged {unprivileged}")
            }
            Event::CBadStreamid(_)
            | Event::CBadSte(_)
            | Event::FStreamDisabled(_)
            | Event::CBadSubstreamid { .. }
            | Event::CBadCd(_)
            | Event::ImpdefEvent { .. }
            | Event::Unknown { .. } => Ok(()),
        }
    }
}

fn direction(rnw: bool) -> &'static str {
    if rnw { "read from" } else { "write to" }
}

fn privilege(pnu: bool) -> &'static str {
    if pnu { "privileged" } else { "unprivileged" }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamID {:#x}", self.sid)?;
        match self.ssid {
            Some(ssid) => write!(f, ", SubstreamID {ssid:#x}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", privilege(self.pnu), if self.ind { "instruction" } else { "data" })
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Cd => "CD",
            Class::Tt => "TT",
            Class::In => "IN",
            Class::Reserved => "reserved",
        })
    }
}

/// The IPA, where there is one, with a comma before it.
impl fmt::Display for FaultStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FaultStage::S1 => Ok(()),
            FaultStage::S2 { ipa, nsipa: false } => write!(f, ", IPA {ipa}"),
            FaultStage::S2 { ipa, nsipa: true } => write!(f, ", Non-secure IPA {ipa}"),
        }
    }
}

impl fmt::Display for TranslationFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stall, access, class, stage, input } = self;
        let direction = direction(access.rnw);
        write!(f, "{direction} {input} ({}, {access}), class {class}{stage}", stage.number())?;
        match stall {
            Some(stag) => write!(f, ", stalled with tag {stag:#x}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fetch of {} aborted", self.addr)?;
        if self.gpcf {
            f.write_str(" by a granule protection check")?;
        }
        write!(f, ", reason {:#x}", self.reason)
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |set, letter| if set { letter } else { '-' };
        write!(f, "{}{}{}", letter(self.read, 'r'), letter(self.write, 'w'), letter(self.execute, 'x'))
    }
}

impl fmt::Display for Ipa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Ipa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ipa({:#x})", self.0)
    }
}

/// The four words, word 0 first.
impl fmt::Display for RawEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [w0, w1, w2, w3] = self.0;
        write!(f, "{w0:#018x} {w1:#018x} {w2:#018x} {w3:#018x}")
    }
}

impl fmt::Debug for RawEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawEvent({self})")
    }
}

#[cfg(test)]
#[path = "event_test.rs"]
mod tests;

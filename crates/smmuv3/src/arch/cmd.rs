//! Commands (IHI 0070 chapter 4): [`RawCommand`] is the 16 bytes of the queue, [`Command`] the typed form.
//!
//! [`Command::encode`] writes, [`RawCommand::decode`] reads and refuses what the specification calls illegal whatever
//! the SMMU's features are. What is illegal only on some SMMUs is for who knows the features (the hardware, the model).

use arbitrary_int::{u2, u4, u5, u6, u20, u52};
use bitbybit::bitfield;
use core::fmt;

use super::features::Granule;

/// The first word of a command: the opcode and the fields of all forms, which overlap.
#[bitfield(u64, debug, default = 0)]
struct Word0 {
    #[bits(0..=7, rw)]
    opcode: u8,
    #[bit(9, rw)]
    global: bool,
    #[bit(10, rw)]
    ssec: bool,
    #[bit(11, rw)]
    ssv: bool,
    #[bits(12..=31, rw)]
    ssid: u20,
    #[bits(12..=16, rw)]
    num: u5,
    #[bits(20..=25, rw)]
    scale: u6,
    #[bits(32..=47, rw)]
    vmid: u16,
    #[bits(48..=63, rw)]
    asid: u16,
    #[bits(32..=63, rw)]
    sid: u32,
    // CMD_SYNC
    #[bits(12..=13, rw)]
    cs: u2,
    #[bits(22..=23, rw)]
    msh: u2,
    #[bits(24..=27, rw)]
    msi_attr: u4,
    #[bits(32..=63, rw)]
    msi_data: u32,
    // CMD_RESUME
    #[bit(12, rw)]
    action: bool,
    #[bit(13, rw)]
    abort: bool,
}

/// The second word of a command.
#[bitfield(u64, debug, default = 0)]
struct Word1 {
    #[bit(0, rw)]
    leaf: bool,
    #[bits(8..=9, rw)]
    ttl: u2,
    #[bits(10..=11, rw)]
    tg: u2,
    #[bits(12..=63, rw)]
    address: u52,
    // CMD_CFGI_STE_RANGE
    #[bits(0..=4, rw)]
    range: u5,
    // CMD_ATC_INV
    #[bits(0..=5, rw)]
    size: u6,
    // CMD_RESUME
    #[bits(0..=15, rw)]
    stag: u16,
    // CMD_PRI_RESP
    #[bits(0..=8, rw)]
    prg_index: arbitrary_int::u9,
    #[bits(12..=13, rw)]
    resp: u2,
}

/// The range of a TLBI by address, with `IDR3.RIL` (§4.4.1): `(num + 1) << scale` granules from the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlbiRange {
    /// The granule of the entries to invalidate (`TG`).
    pub granule: Granule,
    /// 0 to 31.
    pub num: u8,
    /// 0 to 63; the specification allows up to 31 (39 with 52-bit addresses).
    pub scale: u8,
    /// The level that the leaf entries are at, 1 to 3, or 0 where it isn't known (`TTL`).
    pub ttl: u8,
}

/// What a TLBI by address covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlbiAddr {
    /// The address, a multiple of 4096; bits 11:0 are not encoded.
    pub addr: u64,
    /// Only last-level entries, not walk caches.
    pub leaf: bool,
    /// A range; `None` (`TG` = 0) is the one entry that contains the address.
    pub range: Option<TlbiRange>,
}

/// `Size` of an ATC_INV for the whole address space; the largest that is defined (§4.5.1).
pub const ATC_INV_ALL: u8 = 52;

/// How a CMD_SYNC tells that it is complete (§4.7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncSignal {
    /// By consumption only: watch `CMDQ_CONS`.
    None,
    /// `data` is written to `addr` (needs `IDR0.MSI`). `addr` is a multiple of 4; 0 sends nothing.
    Msi {
        /// Where to write.
        addr: u64,
        /// What to write.
        data: u32,
    },
    /// A WFE wake-up event (needs `IDR0.SEV`).
    Sev,
}

/// A command in its typed form. Names and fields are the specification's, without the `CMD_`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // vmid, asid, sid, ssid, leaf: the specification's field names
pub enum Command {
    /// Prefetch the configuration of a stream (§4.2.1).
    PrefetchConfig { sid: u32, ssid: Option<u32> },
    /// Forget an STE; with `leaf` false also the L1STD above it (§4.3.1).
    CfgiSte { sid: u32, leaf: bool },
    /// Forget `2^(range + 1)` STEs around `sid`; a range of 31 is all (§4.3.2, §4.3.6).
    CfgiSteRange { sid: u32, range: u8 },
    /// Forget a CD; with `leaf` false also the L1CD above it (§4.3.3).
    CfgiCd { sid: u32, ssid: u32, leaf: bool },
    /// Forget all CDs of a stream (§4.3.4).
    CfgiCdAll { sid: u32 },
    /// Stage 1 EL1 entries by VMID (§4.4.2.1).
    TlbiNhAll { vmid: u16 },
    /// Stage 1 EL1 entries by VMID and ASID, not global ones (§4.4.2.2).
    TlbiNhAsid { vmid: u16, asid: u16 },
    /// Stage 1 EL1 entries by VMID and address, any ASID (§4.4.2.3).
    TlbiNhVaa { vmid: u16, addr: TlbiAddr },
    /// Stage 1 EL1 entries by VMID, ASID and address (§4.4.2.4).
    TlbiNhVa { vmid: u16, asid: u16, addr: TlbiAddr },
    /// All EL2 entries (§4.4.2.7).
    TlbiEl2All,
    /// EL2 entries by ASID and address (§4.4.2.8).
    TlbiEl2Va { asid: u16, addr: TlbiAddr },
    /// EL2 entries by ASID (§4.4.2.10).
    TlbiEl2Asid { asid: u16 },
    /// Stage 2 entries by VMID and IPA (§4.4.3.1).
    TlbiS2Ipa { vmid: u16, addr: TlbiAddr },
    /// Everything of a VMID, both stages (§4.4.3.2).
    TlbiS12Vmall { vmid: u16 },
    /// Everything but EL2 (§4.4.4.1).
    TlbiNsnhAll,
    /// Invalidate `4096 << size` bytes in a device's ATC; a size of 52 is everything (§4.5.1).
    AtcInv { sid: u32, ssid: Option<u32>, global: bool, addr: u64, size: u8 },
    /// Answer a page request group (§4.5.2): `resp` is 0 failure, 1 invalid request, 2 success.
    PriResp { sid: u32, ssid: Option<u32>, prg_index: u16, resp: u8 },
    /// Let a stalled transaction go on: `retry`, or terminate it with or without `abort` (§4.7.1).
    Resume { sid: u32, stag: u16, retry: bool, abort: bool },
    /// Terminate all stalled transactions of a stream (§4.7.2).
    StallTerm { sid: u32 },
    /// Complete everything before it (§4.7.3).
    Sync(SyncSignal),
}

/// Opcodes (§4.1.1).
pub(crate) mod op {
    pub(super) const PREFETCH_CONFIG: u8 = 0x01;
    pub(super) const CFGI_STE: u8 = 0x03;
    pub(super) const CFGI_STE_RANGE: u8 = 0x04;
    pub(super) const CFGI_CD: u8 = 0x05;
    pub(super) const CFGI_CD_ALL: u8 = 0x06;
    pub(super) const TLBI_NH_ALL: u8 = 0x10;
    pub(super) const TLBI_NH_ASID: u8 = 0x11;
    pub(super) const TLBI_NH_VA: u8 = 0x12;
    pub(super) const TLBI_NH_VAA: u8 = 0x13;
    pub(super) const TLBI_EL2_ALL: u8 = 0x20;
    pub(super) const TLBI_EL2_ASID: u8 = 0x21;
    pub(super) const TLBI_EL2_VA: u8 = 0x22;
    pub(super) const TLBI_S12_VMALL: u8 = 0x28;
    pub(super) const TLBI_S2_IPA: u8 = 0x2a;
    pub(super) const TLBI_NSNH_ALL: u8 = 0x30;
    pub(crate) const ATC_INV: u8 = 0x40;
    pub(super) const PRI_RESP: u8 = 0x41;
    pub(super) const RESUME: u8 = 0x44;
    pub(super) const STALL_TERM: u8 = 0x45;
    pub(crate) const SYNC: u8 = 0x46;
}

/// The 16 bytes of a command as two little-endian words.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RawCommand(pub [u64; 2]);

/// Why 16 bytes are no command that the architecture defines for a Non-secure queue: CERROR_ILL (§4.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IllegalCommand {
    /// No opcode that this crate knows; most of those are illegal on a Non-secure Command queue.
    #[error("opcode {0:#04x} is unknown")]
    Opcode(u8),
    /// `SSec` is 1, which only a Secure queue may have.
    #[error("opcode {0:#04x}: SSec is set on a Non-secure queue")]
    SecureStream(u8),
    /// `TG` is not 0, and `NUM`, `SCALE` and `TTL` are all 0 (§4.4.1.1).
    #[error("TLBI range with NUM, SCALE and TTL all zero")]
    EmptyRange,
    /// A reserved value in the named field.
    #[error("opcode {opcode:#04x}: reserved value {value} in {field}")]
    Reserved {
        /// The opcode.
        opcode: u8,
        /// The field's name.
        field: &'static str,
        /// The field's value.
        value: u8,
    },
}

impl Command {
    /// The 16 bytes for the queue. Address bits 11:0 have no place in a command and are dropped; so are bits of `num`,
    /// `scale`, `ssid` and the like above the width of their field.
    #[inline]
    pub fn encode(&self) -> RawCommand {
        let w = |opcode| Word0::default().with_opcode(opcode);
        let stream = |opcode, sid| w(opcode).with_sid(sid);
        let with_ssid = |word: Word0, ssid: Option<u32>| match ssid {
            Some(ssid) => word.with_ssv(true).with_ssid(u20::extract_u32(ssid, 0)),
            None => word,
        };
        let tlbi = |word: Word0, at: &TlbiAddr| {
            let word1 = Word1::default().with_leaf(at.leaf).with_address(u52::extract_u64(at.addr, 12));
            match at.range {
                None => (word, word1),
                Some(range) => (
                    word.with_num(u5::extract_u8(range.num, 0)).with_scale(u6::extract_u8(range.scale, 0)),
                    word1.with_ttl(u2::extract_u8(range.ttl, 0)).with_tg(tg_code(range.granule)),
                ),
            }
        };
        let none = Word1::default();
        let (word0, word1) = match *self {
            Command::PrefetchConfig { sid, ssid } => (with_ssid(stream(op::PREFETCH_CONFIG, sid), ssid), none),
            Command::CfgiSte { sid, leaf } => (stream(op::CFGI_STE, sid), none.with_leaf(leaf)),
            Command::CfgiSteRange { sid, range } => {
                (stream(op::CFGI_STE_RANGE, sid), none.with_range(u5::extract_u8(range, 0)))
            }
            Command::CfgiCd { sid, ssid, leaf } => {
                (stream(op::CFGI_CD, sid).with_ssid(u20::extract_u32(ssid, 0)), none.with_leaf(leaf))
            }
            Command::CfgiCdAll { sid } => (stream(op::CFGI_CD_ALL, sid), none),
            Command::TlbiNhAll { vmid } => (w(op::TLBI_NH_ALL).with_vmid(vmid), none),
            Command::TlbiNhAsid { vmid, asid } => (w(op::TLBI_NH_ASID).with_vmid(vmid).with_asid(asid), none),
            Command::TlbiNhVaa { vmid, ref addr } => tlbi(w(op::TLBI_NH_VAA).with_vmid(vmid), addr),
            Command::TlbiNhVa { vmid, asid, ref addr } => tlbi(w(op::TLBI_NH_VA).with_vmid(vmid).with_asid(asid), addr),
            Command::TlbiEl2All => (w(op::TLBI_EL2_ALL), none),
            Command::TlbiEl2Va { asid, ref addr } => tlbi(w(op::TLBI_EL2_VA).with_asid(asid), addr),
            Command::TlbiEl2Asid { asid } => (w(op::TLBI_EL2_ASID).with_asid(asid), none),
            Command::TlbiS2Ipa { vmid, ref addr } => tlbi(w(op::TLBI_S2_IPA).with_vmid(vmid), addr),
            Command::TlbiS12Vmall { vmid } => (w(op::TLBI_S12_VMALL).with_vmid(vmid), none),
            Command::TlbiNsnhAll => (w(op::TLBI_NSNH_ALL), none),
            Command::AtcInv { sid, ssid, global, addr, size } => (
                with_ssid(stream(op::ATC_INV, sid), ssid).with_global(global),
                none.with_size(u6::extract_u8(size, 0)).with_address(u52::extract_u64(addr, 12)),
            ),
            Command::PriResp { sid, ssid, prg_index, resp } => (
                with_ssid(stream(op::PRI_RESP, sid), ssid),
                none.with_prg_index(arbitrary_int::u9::extract_u16(prg_index, 0)).with_resp(u2::extract_u8(resp, 0)),
            ),
            Command::Resume { sid, stag, retry, abort } => {
                (stream(op::RESUME, sid).with_action(retry).with_abort(abort), none.with_stag(stag))
            }
            Command::StallTerm { sid } => (stream(op::STALL_TERM, sid), none),
            Command::Sync(signal) => match signal {
                SyncSignal::None => (w(op::SYNC), none),
                SyncSignal::Sev => (w(op::SYNC).with_cs(u2::new(2)), none),
                // Inner shareable, write-back: the message lands in the coherent memory that the CPU polls.
                SyncSignal::Msi { addr, data } => {
                    let word = w(op::SYNC).with_cs(u2::new(1)).with_msh(u2::new(3)).with_msi_attr(u4::new(15));
                    (word.with_msi_data(data), Word1::new_with_raw_value(addr & MSI_ADDRESS))
                }
            },
        };
        RawCommand([word0.raw_value(), word1.raw_value()])
    }

    /// The specification's name, without the `CMD_`: what reports count by.
    pub const fn mnemonic(&self) -> &'static str {
        match self {
            Command::PrefetchConfig { .. } => "PREFETCH_CONFIG",
            Command::CfgiSte { .. } => "CFGI_STE",
            Command::CfgiSteRange { range: 31, .. } => "CFGI_ALL",
            Command::CfgiSteRange { .. } => "CFGI_STE_RANGE",
            Command::CfgiCd { .. } => "CFGI_CD",
            Command::CfgiCdAll { .. } => "CFGI_CD_ALL",
            Command::TlbiNhAll { .. } => "TLBI_NH_ALL",
            Command::TlbiNhAsid { .. } => "TLBI_NH_ASID",
            Command::TlbiNhVaa { .. } => "TLBI_NH_VAA",
            Command::TlbiNhVa { .. } => "TLBI_NH_VA",
            Command::TlbiEl2All => "TLBI_EL2_ALL",
            Command::TlbiEl2Va { .. } => "TLBI_EL2_VA",
            Command::TlbiEl2Asid { .. } => "TLBI_EL2_ASID",
            Command::TlbiS2Ipa { .. } => "TLBI_S2_IPA",
            Command::TlbiS12Vmall { .. } => "TLBI_S12_VMALL",
            Command::TlbiNsnhAll => "TLBI_NSNH_ALL",
            Command::AtcInv { .. } => "ATC_INV",
            Command::PriResp { .. } => "PRI_RESP",
            Command::Resume { .. } => "RESUME",
            Command::StallTerm { .. } => "STALL_TERM",
            Command::Sync(_) => "SYNC",
        }
    }
}

/// The address bits of a CMD_SYNC's message: word-aligned, 56 bits (§4.7.3).
const MSI_ADDRESS: u64 = 0x00ff_ffff_ffff_fffc;

/// `TG` of a TLBI: 1 is 4 KiB, 2 is 16 KiB, 3 is 64 KiB (§4.4.1.1).
fn tg_code(granule: Granule) -> u2 {
    match granule {
        Granule::K4 => u2::new(1),
        Granule::K16 => u2::new(2),
        Granule::K64 => u2::new(3),
    }
}

impl RawCommand {
    /// The typed form. Reserved bits are ignored, as hardware does; what §4 calls illegal is an error.
    pub fn decode(&self) -> Result<Command, IllegalCommand> {
        let word0 = Word0::new_with_raw_value(self.0[0]);
        let word1 = Word1::new_with_raw_value(self.0[1]);
        let opcode = word0.opcode();
        let sid = word0.sid();
        let ssid = word0.ssv().then(|| word0.ssid().value());
        let vmid = word0.vmid();
        let asid = word0.asid();
        let leaf = word1.leaf();
        let address = word1.address().value() << 12;
        let addr = || {
            let granule = match word1.tg().value() {
                0 => return Ok(TlbiAddr { addr: address, leaf, range: None }),
                1 => Granule::K4,
                2 => Granule::K16,
                _ => Granule::K64,
            };
            let range =
                TlbiRange { granule, num: word0.num().value(), scale: word0.scale().value(), ttl: word1.ttl().value() };
            // With 16 KiB pages TTL 1 counts as 0: there are no leaves at level 1.
            let no_ttl = range.ttl == 0 || (range.ttl == 1 && granule == Granule::K16);
            if range.num == 0 && range.scale == 0 && no_ttl {
                return Err(IllegalCommand::EmptyRange);
            }
            Ok(TlbiAddr { addr: address, leaf, range: Some(range) })
        };
        let non_secure = |command| if word0.ssec() { Err(IllegalCommand::SecureStream(opcode)) } else { Ok(command) };
        Ok(match opcode {
            op::PREFETCH_CONFIG => non_secure(Command::PrefetchConfig { sid, ssid })?,
            op::CFGI_STE => non_secure(Command::CfgiSte { sid, leaf })?,
            op::CFGI_STE_RANGE => non_secure(Command::CfgiSteRange { sid, range: word1.range().value() })?,
            op::CFGI_CD => non_secure(Command::CfgiCd { sid, ssid: word0.ssid().value(), leaf })?,
            op::CFGI_CD_ALL => non_secure(Command::CfgiCdAll { sid })?,
            op::TLBI_NH_ALL => Command::TlbiNhAll { vmid },
            op::TLBI_NH_ASID => Command::TlbiNhAsid { vmid, asid },
            op::TLBI_NH_VAA => Command::TlbiNhVaa { vmid, addr: addr()? },
            op::TLBI_NH_VA => Command::TlbiNhVa { vmid, asid, addr: addr()? },
            op::TLBI_EL2_ALL => Command::TlbiEl2All,
            op::TLBI_EL2_VA => Command::TlbiEl2Va { asid, addr: addr()? },
            op::TLBI_EL2_ASID => Command::TlbiEl2Asid { asid },
            op::TLBI_S2_IPA => {
                // Unlike a VA, an IPA has bits 55:12 only (§4.4.3.1).
                let at = addr()?;
                Command::TlbiS2Ipa { vmid, addr: TlbiAddr { addr: at.addr & ((1 << 56) - 1), ..at } }
            }
            op::TLBI_S12_VMALL => Command::TlbiS12Vmall { vmid },
            op::TLBI_NSNH_ALL => Command::TlbiNsnhAll,
            op::ATC_INV => {
                let size = word1.size().value();
                if size > ATC_INV_ALL {
                    return Err(IllegalCommand::Reserved { opcode, field: "Size", value: size });
                }
                Command::AtcInv { sid, ssid, global: word0.global(), addr: address, size }
            }
            op::PRI_RESP => {
                let resp = word1.resp().value();
                if resp == 3 {
                    return Err(IllegalCommand::Reserved { opcode, field: "Resp", value: resp });
                }
                Command::PriResp { sid, ssid, prg_index: word1.prg_index().value(), resp }
            }
            op::RESUME => {
                non_secure(Command::Resume { sid, stag: word1.stag(), retry: word0.action(), abort: word0.abort() })?
            }
            op::STALL_TERM => non_secure(Command::StallTerm { sid })?,
            op::SYNC => Command::Sync(match word0.cs().value() {
                0 => SyncSignal::None,
                1 => SyncSignal::Msi { addr: self.0[1] & MSI_ADDRESS, data: word0.msi_data() },
                2 => SyncSignal::Sev,
                cs => return Err(IllegalCommand::Reserved { opcode, field: "CS", value: cs }),
            }),
            _ => return Err(IllegalCommand::Opcode(opcode)),
        })
    }
}

impl fmt::Debug for RawCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawCommand([{:#018x}, {:#018x}])", self.0[0], self.0[1])
    }
}

#[cfg(test)]
#[path = "cmd_test.rs"]
mod tests;

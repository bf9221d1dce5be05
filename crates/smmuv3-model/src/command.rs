//! What each command does (chapter 4): is it legal here, what does it reach, and when.

use std::collections::BTreeMap;

use smmuv3::arch::regs::{CmdqError, Gerror};
use smmuv3::arch::{Command, Granule, RawCommand, StallModel, SyncSignal, TlbiAddr};

use crate::config::Cfgi;
use crate::fault::Request;
use crate::queue::CMDQ;
use crate::smmu::{COMMAND_LOG, Sabotage, Unit};
use crate::tlb::{Asids, Regime, Scope};

/// `NUM` and `SCALE` of a TLBI by address, word 0.
const RANGE_WORD0: u64 = 0x1f << 12 | 0x3f << 20;
/// `TTL` and `TG`, word 1.
const RANGE_WORD1: u64 = 0xf << 8;
/// `SCALE[5]`, which is there with 52-bit addresses only.
const SCALE_BIT5: u64 = 1 << 25;

/// Commands consumed: mnemonic and number, by opcode.
pub(crate) struct CommandCounts([(&'static str, u64); 256]);

impl CommandCounts {
    pub(crate) fn none() -> Self {
        CommandCounts([("", 0); 256])
    }

    fn count(&mut self, raw: &RawCommand, command: &Command) {
        let (mnemonic, count) = &mut self.0[usize::from(raw.0[0] as u8)];
        *mnemonic = command.mnemonic();
        *count += 1;
    }

    pub(crate) fn by_mnemonic(&self) -> BTreeMap<&'static str, u64> {
        self.0.iter().filter(|(_, count)| *count > 0).copied().collect()
    }
}

const EL1: &[Regime] = &[Regime::El1];
const EL2: &[Regime] = &[Regime::El2];
const EL2_E2H: &[Regime] = &[Regime::El2E2h];
const EL2_BOTH: &[Regime] = &[Regime::El2, Regime::El2E2h];
const STAGE2: &[Regime] = &[Regime::Stage2];
const EL1_AND_STAGE2: &[Regime] = &[Regime::El1, Regime::Stage2];

impl Unit {
    /// Consumes one command, or says why not.
    pub(crate) fn execute(&mut self, mut raw: RawCommand) -> Result<Command, CmdqError> {
        let command = self.legal(&mut raw).map_err(|why| {
            self.violation(format!("illegal command {raw:?}: {why}"));
            CmdqError::Illegal
        })?;
        if let Command::Sync(_) = command {
            self.complete()?;
        }
        self.commands.count(&raw, &command);
        self.ecmdq_commands += u64::from(self.queue != CMDQ);
        if self.log.len() == COMMAND_LOG {
            self.log.pop_front();
        }
        self.log.push_back(raw);
        self.carry_out(command);
        if self.rng.one_in(8) {
            self.speculate();
        }
        Ok(command)
    }

    /// The command, if it is legal here. Takes out what is reserved.
    fn legal(&self, raw: &mut RawCommand) -> Result<Command, String> {
        let opcode = raw.0[0] as u8;
        if matches!(opcode, 0x12 | 0x13 | 0x22 | 0x23 | 0x2a) {
            // Fields that mean nothing here are reserved, and reserved fields are ignored (§4.1.5).
            let ranged = self.features.range_inv && raw.0[1] & 0b11 << 10 != 0;
            let reserved = if ranged { [SCALE_BIT5, 0] } else { [RANGE_WORD0, RANGE_WORD1] };
            if raw.0[0] & reserved[0] | raw.0[1] & reserved[1] != 0 {
                self.violation(format!("reserved range fields are set: {raw:?}"));
                raw.0[0] &= !reserved[0];
                raw.0[1] &= !reserved[1];
            }
        }
        let command = raw.decode().map_err(|illegal| illegal.to_string())?;
        let needs = |has: bool, what: &str| if has { Ok(()) } else { Err(format!("this SMMU has no {what}")) };
        let features = &self.features;
        match command {
            Command::CfgiCd { .. } | Command::CfgiCdAll { .. } => needs(features.stage1, "stage 1")?,
            Command::TlbiNhAll { .. } | Command::TlbiNhAsid { .. } => needs(features.stage1, "stage 1")?,
            Command::TlbiNhVaa { .. } | Command::TlbiNhVa { .. } => needs(features.stage1, "stage 1")?,
            Command::TlbiEl2All | Command::TlbiEl2Va { .. } | Command::TlbiEl2Asid { .. } => {
                needs(features.stage1, "stage 1")?;
                needs(features.hyp, "EL2")?;
            }
            Command::TlbiS2Ipa { .. } | Command::TlbiS12Vmall { .. } => needs(features.stage2, "stage 2")?,
            Command::AtcInv { .. } => needs(features.ats, "ATS")?,
            Command::PriResp { .. } => needs(features.pri, "PRI")?,
            Command::Resume { .. } | Command::StallTerm { .. } => {
                needs(features.stall_model != StallModel::Terminate, "stall model")?;
            }
            _ => {}
        }
        if let Some(range) = address_of(&command).and_then(|addr| addr.range) {
            // TTL 1 counts as 0 with 16 KiB pages, and all three zero is reserved (§4.4.1.1).
            if range.granule == Granule::K16 && (range.num, range.scale, range.ttl) == (0, 0, 1) {
                return Err("TLBI range with NUM and SCALE zero and TTL 1, which 16 KiB pages do not have".into());
            }
        }
        Ok(command)
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            // Prefetches may do nothing.
            Command::PrefetchConfig { .. } => {}
            Command::CfgiSte { sid, leaf } => {
                if self.sid_fits(sid, &command) {
                    self.cfgi(Cfgi::Stes { first: sid, last: sid, leaf });
                    self.remember_stream(sid);
                }
            }
            Command::CfgiSteRange { range: 31, .. } => {
                self.cfgi(Cfgi::Stes { first: 0, last: u32::MAX, leaf: false });
            }
            Command::CfgiSteRange { sid, range } => {
                let span = (2u32 << range) - 1;
                self.cfgi(Cfgi::Stes { first: sid & !span, last: sid | span, leaf: false });
            }
            Command::CfgiCd { sid, ssid, leaf } => {
                if ssid >> self.features.ssid_bits != 0 {
                    self.violation(format!("{command:?}: no such SubstreamID"));
                } else if self.sid_fits(sid, &command) {
                    self.cfgi(Cfgi::Cd { sid, ssid, leaf });
                }
            }
            Command::CfgiCdAll { sid } => {
                if self.sid_fits(sid, &command) {
                    self.cfgi(Cfgi::Cds { sid });
                }
            }
            Command::TlbiNhAll { vmid } => self.tlbi(command, EL1, Some(vmid), Asids::All, None),
            Command::TlbiNhAsid { vmid, asid } => self.tlbi(command, EL1, Some(vmid), Asids::NonGlobal(asid), None),
            Command::TlbiNhVaa { vmid, addr } => self.tlbi(command, EL1, Some(vmid), Asids::All, Some(addr)),
            Command::TlbiNhVa { vmid, asid, addr } => {
                self.tlbi(command, EL1, Some(vmid), Asids::OrGlobal(asid), Some(addr));
            }
            Command::TlbiEl2All => self.tlbi(command, EL2_BOTH, None, Asids::All, None),
            // CR2.E2H says which of the two regimes is meant (§4.4.2.8).
            Command::TlbiEl2Va { asid, addr } if self.regs.cr2.e2h() => {
                self.tlbi(command, EL2_E2H, None, Asids::OrGlobal(asid), Some(addr));
            }
            Command::TlbiEl2Va { addr, .. } => self.tlbi(command, EL2, None, Asids::All, Some(addr)),
            Command::TlbiEl2Asid { asid } => self.tlbi(command, EL2_E2H, None, Asids::NonGlobal(asid), None),
            Command::TlbiS2Ipa { vmid, addr } => self.tlbi(command, STAGE2, Some(vmid), Asids::All, Some(addr)),
            Command::TlbiS12Vmall { vmid } => self.tlbi(command, EL1_AND_STAGE2, Some(vmid), Asids::All, None),
            Command::TlbiNsnhAll => self.tlbi(command, EL1_AND_STAGE2, None, Asids::All, None),
            Command::AtcInv { sid, ssid, global, addr, size } => {
                // Ignored while translation is off (§4.5.1).
                if self.regs.cr0ack.smmuen() && self.sid_fits(sid, &command) && !self.sabotaged(Sabotage::IgnoreAtcInv)
                {
                    self.atc_inv(sid, ssid, global, addr, size);
                }
            }
            // No page requests and no stalls yet: nothing to answer.
            Command::PriResp { .. } | Command::Resume { .. } | Command::StallTerm { .. } => {}
            Command::Sync(signal) => self.sync(signal),
        }
    }

    /// A StreamID out of range: the command may have no effect (§4.1.7).
    fn sid_fits(&self, sid: u32, command: &Command) -> bool {
        let fits = u64::from(sid) >> self.features.sid_bits == 0;
        if !fits {
            self.violation(format!("{command:?}: no such StreamID"));
        }
        fits
    }

    fn cfgi(&mut self, cfgi: Cfgi) {
        if self.sabotaged(Sabotage::IgnoreCfgi) {
            return;
        }
        self.posted_due_to_cfgi(&cfgi);
        let now = self.acts_early();
        self.configs.invalidate(self.queue, &cfgi, now);
    }

    /// Whether an invalidation takes effect now, rather than when a CMD_SYNC completes.
    pub(crate) fn acts_early(&mut self) -> bool {
        !self.laziness.late_invalidations || self.laziness.early_invalidations && self.rng.one_in(2)
    }

    fn tlbi(
        &mut self,
        command: Command,
        regimes: &'static [Regime],
        vmid: Option<u16>,
        asids: Asids,
        addr: Option<TlbiAddr>,
    ) {
        if let Some(problem) = self.tlbi_problem(vmid, asids, addr) {
            // What the specification calls UNPREDICTABLE, or not required to have an effect, has none.
            self.violation(format!("{command:?}: {problem}"));
            return;
        }
        let mut addr = addr;
        if let Some(addr) = &mut addr {
            addr.leaf |= self.sabotaged(Sabotage::TreatTlbiAsLeaf);
        }
        let ignored = if addr.is_some() { Sabotage::IgnoreTlbiByAddress } else { Sabotage::IgnoreTlbiByTag };
        let s1_clear = matches!(command, Command::TlbiNhAll { .. }) && self.sabotaged(Sabotage::IgnoreNhAll);
        if self.sabotaged(ignored) || s1_clear {
            return;
        }
        let scope = Scope { regimes, vmid, asids, addr, exact: self.laziness.exact_hints };
        self.posted_due_to_tlbi(&scope);
        match self.acts_early() {
            true => self.tlb.remove(&scope),
            false => self.tlb.doom(self.queue, &scope),
        }
    }

    fn tlbi_problem(&self, vmid: Option<u16>, asids: Asids, addr: Option<TlbiAddr>) -> Option<String> {
        // §4.4: bits above the implemented width; §4.4.2: VMIDs without stage 2.
        let vmid_bits = if self.features.stage2 { self.features.vmid_bits } else { 0 };
        if let Some(vmid) = vmid.filter(|&vmid| u32::from(vmid) >> vmid_bits != 0) {
            return Some(format!("VMID {vmid:#x} on an SMMU with {vmid_bits} VMID bits"));
        }
        if let Asids::NonGlobal(asid) | Asids::OrGlobal(asid) = asids
            && u32::from(asid) >> self.features.asid_bits != 0
        {
            return Some(format!("ASID {asid:#x} on an SMMU with {} ASID bits", self.features.asid_bits));
        }
        // §4.4.1.1: with a range, the address is aligned to what TTL and TG say.
        let addr = addr?;
        let range = addr.range?;
        let aligned = match (range.granule, range.ttl) {
            (Granule::K4, 1) => 30,
            (Granule::K4, 2) => 21,
            (Granule::K16, 2) => 25,
            (Granule::K64, 1) => 42,
            (Granule::K64, 2) => 29,
            (granule, _) => granule.shift(),
        };
        (addr.addr & ((1 << aligned) - 1) != 0).then(|| format!("address not aligned to {aligned} bits"))
    }

    /// Completes what is before a CMD_SYNC in its queue. On an error nothing is complete (§4.7.3).
    fn complete(&mut self) -> Result<(), CmdqError> {
        if self.sabotaged(Sabotage::IgnoreSync) {
            self.tlb.forget_pending(self.queue);
            return Ok(());
        }
        if self.sabotaged(Sabotage::IgnoreInnerSync) && self.inner_sync() {
            return Ok(());
        }
        self.sync_atcs()?;
        self.due_posted_arrive(self.queue);
        let refill = if self.laziness.nested_refill { self.tlb.take_nested(self.queue) } else { Vec::new() };
        for (sid, ssid, iova) in refill {
            // A prefetch, which raises no event.
            let _ = self.translate(&Request { sid, ssid, iova, write: false, ats: false, afresh: false });
        }
        self.tlb.purge(self.queue);
        self.configs.purge(self.queue);
        Ok(())
    }

    /// Whether the command after this one is ATC_INV or TLBI_NH_ALL.
    fn inner_sync(&self) -> bool {
        let (ring, queue) = (self.ring(self.queue), &self.regs.queues[self.queue]);
        let next = ring.next(queue.cons & ring.mask());
        let word = (next != queue.prod & ring.mask()).then(|| self.own_read(ring.addr(next))).flatten();
        word.is_some_and(|word| matches!(word as u8, 0x40 | 0x10))
    }

    fn sync(&mut self, signal: SyncSignal) {
        self.syncs += 1;
        match signal {
            SyncSignal::Msi { .. } if self.sabotaged(Sabotage::LoseMessages) => {}
            SyncSignal::Msi { addr, data } if self.features.msi => {
                self.send_msi(addr, data.into(), Gerror::MSI_CMDQ_ABT_ERR);
            }
            SyncSignal::Msi { .. } => self.violation("CMD_SYNC asks for a message from an SMMU without MSI".into()),
            SyncSignal::Sev if !self.features.sev => {
                self.violation("CMD_SYNC asks for an event from an SMMU that sends none".into());
            }
            SyncSignal::None | SyncSignal::Sev => {}
        }
    }
}

/// The address of a TLBI by address.
fn address_of(command: &Command) -> Option<TlbiAddr> {
    match *command {
        Command::TlbiNhVaa { addr, .. }
        | Command::TlbiNhVa { addr, .. }
        | Command::TlbiEl2Va { addr, .. }
        | Command::TlbiS2Ipa { addr, .. } => Some(addr),
        _ => None,
    }
}

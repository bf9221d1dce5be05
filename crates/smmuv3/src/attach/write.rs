//! What a device's STEs and CDs shall be, and bringing them there.

use crate::primitive::AtomicU64;
use crate::primitive::Ordering::Relaxed;

use crate::arch::{
    ATC_INV_ALL, Cd, Command, DefaultSubstream, Eats, MAIR, RawCd, RawSte, Shape, Stage, Stages, StallModel, Ste,
    SteStage1, StreamWorld,
};
use crate::domain::stage2_of;
use crate::platform::{PhysAddr, Platform};
use crate::queue::QueueError;
use crate::table;

use super::device::{DeviceInner, Rid, State};

/// The CD of a stage 1 table.
pub(super) fn stage1_cd(shape: &Shape, root: PhysAddr, mair: u64, asid: u16) -> Cd {
    Cd {
        t0sz: shape.t0sz(),
        granule: shape.granule(),
        output_size: shape.output_size(),
        ttb0: Some(root),
        asid,
        private_asid: true,
        mair,
        record: true,
        stall: false,
        abort: true,
    }
}

impl<P: Platform> DeviceInner<P> {
    /// Brings the device's own configuration to `rid`, whose tag is `tag`; `pasids` tells whether PASIDs are in use.
    pub(super) fn write_rid(
        &self,
        state: &State<P>,
        rid: &Rid<P>,
        tag: u16,
        ats: bool,
        pasids: bool,
    ) -> Result<(), QueueError> {
        let eats = if ats { Eats::Full } else { Eats::Off };
        match rid {
            // If the STE points to the CD already, writing the CD is the change; if not, the STE is.
            Rid::Paging(domain) if domain.table.shape().stage() == Stage::S1 => {
                let cd = stage1_cd(domain.table.shape(), domain.table.root(), MAIR, tag);
                self.write_cd(state, 0, cd.encode(), true)?;
                return self.write_stes(self.stage1_ste(state, DefaultSubstream::Substream0, eats));
            }
            Rid::Paging(domain) => {
                let stages = Stages::S2(stage2_of(domain));
                self.write_stes(Ste::Translate { vmid: tag, eats, stages })?;
            }
            Rid::Nested(nested) => {
                let vsmmu = &nested.vsmmu;
                if vsmmu.dirty.load(Relaxed) {
                    // While the VMID stood in no array, nobody invalidated what a failed flush had left.
                    self.smmu.run([Command::TlbiS12Vmall { vmid: vsmmu.vmid }])?;
                }
                self.write_stes(nested.ste(ats))?;
            }
            Rid::Identity if pasids => {
                self.write_stes(self.stage1_ste(state, DefaultSubstream::Bypass, eats))?;
            }
            Rid::Blocked if pasids => {
                self.write_stes(self.stage1_ste(state, DefaultSubstream::Terminate, eats))?;
            }
            Rid::Identity => self.write_stes(Ste::Bypass)?,
            Rid::Blocked => self.write_stes(Ste::Abort)?,
        }
        // Nothing reaches the CD any more; it must not point to tables that are freed one day.
        if state.rid.is_stage1() { self.write_cd(state, 0, RawCd::default(), true) } else { Ok(()) }
    }

    fn stage1_ste(&self, state: &State<P>, default_substream: DefaultSubstream, eats: Eats) -> Ste {
        // Only devices behind an SMMU with stage 1 come here, and those have a CD table.
        let Some(cds) = &state.cds else { return Ste::Abort };
        let (context_ptr, format, cd_max) = cds.pointer();
        let s1 = SteStage1 {
            context_ptr,
            cd_max,
            format,
            default_substream,
            world: StreamWorld::El1,
            stall_disabled: self.smmu.features.stall_model == StallModel::Both,
        };
        Ste::Translate { vmid: 0, eats, stages: Stages::S1(s1) }
    }

    /// Brings the STEs of all the device's streams to `ste`: of all, also where it fails for some. The first error is returned.
    pub(super) fn write_stes(&self, ste: Ste) -> Result<(), QueueError> {
        let streams = self.smmu.streams.lock();
        let mut result = Ok(());
        for &sid in &self.sids {
            if let Some(words) = streams.ste(sid) {
                let sync = || self.smmu.run([Command::CfgiSte { sid, leaf: true }]);
                let forgotten = if ste.allows_ats() { self.forget_before(sid, words) } else { Ok(()) };
                let raw = if self.smmu.features.coherent { ste.encode() } else { ste.encode().uncached() };
                let write = || table::write(&self.fleet.platform, words, raw, sync).map(|_| ());
                result = result.and(forgotten.and_then(|()| write()));
            }
        }
        result
    }

    /// Makes a stream's ATC forget everything, if the STE at `words` does not let it be used now. It may do so because the stream was cut off
    /// for not answering an ATC_INV; what it remembers of that must be gone before it is let in again.
    fn forget_before(&self, sid: u32, words: &[AtomicU64; 8]) -> Result<(), QueueError> {
        let now = RawSte(core::array::from_fn(|index| words[index].load(Relaxed)));
        if now.decode(&self.smmu.features).is_ok_and(|ste| ste.allows_ats()) {
            return Ok(());
        }
        self.smmu.run([Command::AtcInv { sid, ssid: None, global: false, addr: 0, size: ATC_INV_ALL }])
    }

    /// Makes all the device's streams abort, whatever their STEs say and whatever the SMMU has seen of them.
    pub(super) fn abort_streams(&self) -> Result<(), QueueError> {
        let mut result = Ok(());
        for &sid in &self.sids {
            result = result.and(self.smmu.abort_stream(sid));
        }
        result
    }

    /// Brings the CD of `ssid` to `cd`. `leaf` is false where the level 1 descriptor above it may be new.
    pub(super) fn write_cd(&self, state: &State<P>, ssid: u32, cd: RawCd, leaf: bool) -> Result<(), QueueError> {
        let Some(words) = state.cds.as_ref().and_then(|cds| cds.cd(ssid)) else { return Ok(()) };
        let sync = || self.smmu.run(self.sids.iter().map(|&sid| Command::CfgiCd { sid, ssid, leaf }));
        let cd = if self.smmu.features.coherent { cd } else { cd.uncached() };
        table::write(&self.fleet.platform, words, cd, sync)?;
        Ok(())
    }
}

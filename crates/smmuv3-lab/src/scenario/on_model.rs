//! The software model as a scenario's hardware.

use std::collections::HashMap;
use std::sync::Mutex;

use smmuv3::platform::PhysAddr;
use smmuv3_model::{DataPages, Device, DmaError, Model, ModelConfig, ModelMmio, ModelPlatform};

use super::file::File;
use super::hardware::{Access, Hardware, Outcome, Refusal};
use super::lock;
use super::step::Op;
use crate::report::Report;
use crate::session::Result;

pub(super) struct OnModel {
    model: Model,
    pages: Mutex<HashMap<PhysAddr, DataPages>>,
}

impl OnModel {
    pub(super) fn new(file: &File, seed: u64) -> Self {
        let smmus = file.smmu.iter().map(|smmu| smmu.config()).collect();
        let model = Model::new(ModelConfig { seed, smmus, ..ModelConfig::default() });
        for (index, smmu) in file.smmu.iter().enumerate() {
            smmu.sabotage.iter().for_each(|what| model.sabotage(index, (*what).into()));
        }
        OnModel { model, pages: Mutex::default() }
    }

    fn device(&self, access: &Access) -> Device {
        let device = self.model.device(access.smmu, access.sid);
        access.pasid.map_or(device.clone(), |pasid| device.with_ssid(pasid))
    }

    fn dma(&self, access: &Access, data: &mut [u8]) -> Outcome {
        let device = self.device(access);
        let result = match (access.op, access.ats) {
            (Op::Read, false) => device.read(access.iova, data),
            (Op::Write, false) => device.write(access.iova, data),
            (Op::Read, true) => device.ats_read(access.iova, data),
            (Op::Write, true) => device.ats_write(access.iova, data),
        };
        match result {
            Ok(()) => Outcome::Done,
            Err(DmaError::Aborted(event)) => Outcome::Refused(Refusal::Aborted, event),
            Err(DmaError::NoMemory(_)) => Outcome::Refused(Refusal::Aborted, None),
            Err(DmaError::AtsOff) => Outcome::Refused(Refusal::AtsOff, None),
            Err(DmaError::AtsDenied) => Outcome::Refused(Refusal::AtsDenied, None),
            Err(DmaError::AtsUnsupported(event)) => Outcome::Refused(Refusal::AtsUnsupported, event),
            // The event that comes with it is not recorded.
            Err(DmaError::AtsCompleterAbort(_)) => Outcome::Refused(Refusal::AtsAborted, None),
        }
    }
}

impl Hardware for OnModel {
    type Platform = ModelPlatform;

    const NAME: &'static str = "model";

    fn platform(&self) -> ModelPlatform {
        self.model.platform()
    }

    fn mmio(&mut self, smmu: usize) -> ModelMmio {
        self.model.mmio(smmu)
    }

    fn sid(&self, _smmu: usize, sid: u32) -> u32 {
        sid
    }

    fn alloc(&self, pages: usize, align: usize) -> Option<PhysAddr> {
        let data = self.model.alloc_data_aligned(pages, align)?;
        let at = data.addr();
        lock(&self.pages).insert(at, data);
        Some(at)
    }

    fn free(&self, at: PhysAddr) {
        if let Some(data) = lock(&self.pages).remove(&at) {
            self.model.free_data(data);
        }
    }

    fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()> {
        if self.model.write_bytes(at, data) { Ok(()) } else { Err(format!("no memory at {at}").into()) }
    }

    fn read(&self, at: PhysAddr, data: &mut [u8]) -> Result<()> {
        if self.model.read_bytes(at, data) { Ok(()) } else { Err(format!("no memory at {at}").into()) }
    }

    fn transfer(&self, access: &Access, _at: PhysAddr, data: &mut [u8]) -> Result<Outcome> {
        Ok(self.dma(access, data))
    }

    fn attempt(&self, access: &Access) -> Result<Outcome> {
        Ok(self.dma(access, &mut [0x5a; 8]))
    }

    fn trouble(&self) -> (u64, String) {
        let report = self.model.report();
        let stale = report.stale_dma + report.stale_walks;
        let what = if stale > 0 {
            let case = report.histories.last().map(|case| case.to_string()).unwrap_or_default();
            format!("stale access: {}", case.lines().next().unwrap_or_default())
        } else {
            report.violations.last().cloned().unwrap_or_default()
        };
        (stale + report.violation_count, what)
    }

    fn finish(&self, report: &mut Report) -> Result<()> {
        let seen = self.model.report();
        report.stale_dma = seen.stale_dma + seen.stale_walks;
        report.commands = seen.commands.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        report.syncs = seen.syncs;
        report.atc_pages_invalidated = seen.atc_pages;
        report.surprises.extend(seen.violations);
        report.surprises.extend(seen.histories.iter().map(|case| case.to_string()));
        Ok(())
    }
}

//! The step `dma`: an access that works and whose contents are compared, or one that is refused as it should be.

use std::sync::atomic::Ordering;

use smmuv3::arch::Event;
use smmuv3::platform::Iova;

use super::check::{ATS_ABORTED, ATS_DENIED, ATS_OFF, ATS_UNSUPPORTED, MAYBE, SILENT};
use super::hardware::{Access, Hardware, Outcome, Refusal};
use super::lock;
use super::rig::Rig;
use super::run::Done;
use super::step::{Dma, Op};
use crate::session::{PAGE, pattern};

/// What a refused access leaves beside an event.
const NO_EVENT: [(&str, Refusal); 5] = [
    (SILENT, Refusal::Aborted),
    (ATS_OFF, Refusal::AtsOff),
    (ATS_DENIED, Refusal::AtsDenied),
    (ATS_UNSUPPORTED, Refusal::AtsUnsupported),
    (ATS_ABORTED, Refusal::AtsAborted),
];

impl<'f, H: Hardware> Rig<'f, H> {
    /// `alone`: no other step runs at the same moment, so that every event belongs to this one.
    pub(super) fn dma(&self, device: &str, dma: &'f Dma, alone: bool) -> Done {
        let device = self.devices.get(device).ok_or("there is no such device")?;
        let first = device.sids.first().copied().unwrap_or(0);
        let sid = dma.sid.as_ref().map_or(first, |sid| *sid.get_ref());
        let iova = match (dma.iova, &dma.buffer) {
            (Some(iova), _) => iova,
            (None, Some(buffer)) => self.buffer(buffer.get_ref())?.0.0,
            (None, None) => 0,
        };
        let access = Access {
            smmu: device.smmu,
            sid: self.hardware.sid(device.smmu, sid),
            pasid: dma.pasid,
            ats: dma.ats,
            op: dma.op,
            iova: Iova(iova),
        };
        match (&dma.fault, &dma.buffer) {
            (Some(fault), buffer) => {
                let buffer = buffer.as_ref().map(|buffer| buffer.get_ref().as_str());
                self.refused(&access, fault.get_ref(), buffer.filter(|_| alone), alone)
            }
            (None, Some(buffer)) => self.works(&access, buffer.get_ref(), alone),
            (None, None) => Ok(()),
        }
    }

    fn works(&self, access: &Access, buffer: &'f str, alone: bool) -> Done {
        let (at, pages) = self.buffer(buffer)?;
        let expected = self.pattern(pages * PAGE);
        let mut data = expected.clone();
        if access.op == Op::Read {
            data.fill(0);
            self.hardware.write(at, &expected).map_err(|error| error.to_string())?;
        }
        let outcome = self.hardware.transfer(access, at, &mut data).map_err(|error| error.to_string())?;
        if alone {
            self.no_events()?;
        }
        match outcome {
            Outcome::Refused(refusal, None) => return Err(format!("it was refused ({refusal:?}), expected to work")),
            Outcome::Refused(_, Some(event)) => return Err(format!("it was refused ({event}), expected to work")),
            Outcome::Done | Outcome::Unknown => {}
        }
        if access.op == Op::Write {
            self.hardware.read(at, &mut data).map_err(|error| error.to_string())?;
        }
        if data != expected {
            return Err(match access.op {
                Op::Read => format!("the device read something else than buffer {buffer:?} contains"),
                Op::Write => format!("buffer {buffer:?} contains something else than the device wrote"),
            });
        }
        lock(&self.tally).report.dma_checked += pages as u64;
        Ok(())
    }

    /// If a buffer is named that is allocated, it must not change.
    fn refused(&self, access: &Access, fault: &str, buffer: Option<&str>, alone: bool) -> Done {
        let live = buffer.and_then(|name| lock(&self.buffers).get(name).copied());
        let untouched = self.pattern(PAGE);
        if let Some(at) = live {
            self.hardware.write(at, &untouched).map_err(|error| error.to_string())?;
        }
        let outcome = self.hardware.attempt(access).map_err(|error| error.to_string())?;
        if fault == SILENT && live.is_none() && matches!(outcome, Outcome::Unknown) {
            return Err("nothing shows how it ended, expected a buffer that is allocated".into());
        }
        if fault == MAYBE {
            if alone {
                self.take_events()?;
            }
            return Ok(());
        }
        lock(&self.tally).report.faults_expected += 1;
        if let Some(at) = live {
            let mut now = vec![0; PAGE];
            self.hardware.read(at, &mut now).map_err(|error| error.to_string())?;
            if now != untouched {
                return Err(format!("the device wrote to the buffer, expected {fault}"));
            }
        }
        check_outcome(&outcome, fault)?;
        if alone {
            let events = self.take_events()?;
            let event_expected = !NO_EVENT.iter().any(|(name, _)| *name == fault);
            let matching = |(smmu, event): &(usize, Event)| {
                event_expected && *smmu == access.smmu && event.name() == fault && is_of(event, access)
            };
            if let Some((smmu, event)) = events.iter().find(|event| !matching(event)) {
                return Err(format!("SMMU {smmu} recorded {event}, expected {fault}"));
            }
            if event_expected && events.is_empty() {
                return Err(format!("no event was recorded, expected {fault}"));
            }
            if let (Some((_, event)), true) = (events.first(), alone) {
                println!("    {event}");
            }
        }
        lock(&self.tally).report.faults_seen += 1;
        Ok(())
    }

    fn pattern(&self, len: usize) -> Vec<u8> {
        pattern(self.seed, self.patterns.fetch_add(1, Ordering::Relaxed), len)
    }
}

/// Whether the device was refused as expected.
fn check_outcome(outcome: &Outcome, fault: &str) -> Done {
    let (refusal, event) = match outcome {
        Outcome::Done => return Err(format!("it worked, expected {fault}")),
        Outcome::Unknown => return Ok(()),
        Outcome::Refused(refusal, event) => (refusal, event),
    };
    let fits = match NO_EVENT.iter().find(|(name, _)| *name == fault) {
        Some((_, expected)) => refusal == expected,
        None => event.is_some_and(|event| event.name() == fault),
    };
    match (fits, event) {
        (true, _) => Ok(()),
        (false, None) => Err(format!("it was refused without an event ({refusal:?}), expected {fault}")),
        (false, Some(event)) => Err(format!("it was refused ({event}), expected {fault}")),
    }
}

/// Whether an event tells of an access: StreamID, SubstreamID and page, as far as the event has them.
fn is_of(event: &Event, access: &Access) -> bool {
    // A translated access arrives with the physical address, and without a PASID.
    let translated = matches!(event, Event::FTranslForbidden { .. });
    let page = |iova: Iova| iova.0 / PAGE as u64;
    event.stream().is_none_or(|stream| stream.sid == access.sid && (translated || stream.ssid == access.pasid))
        && (translated || event.input_address().is_none_or(|input| page(input) == page(access.iova)))
}

//! What runs on all backends share: unmaps that are timed, faults that are expected.

use std::collections::BTreeSet;
use std::error::Error;
use std::time::Instant;

use smmuv3::arch::Event;
use smmuv3::platform::{Iova, Platform};
use smmuv3::{PagingDomain, SmmuHandle};

use crate::report::{Latency, Report};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

pub(crate) const PAGE: usize = 0x1000;

/// A run in progress.
pub(crate) struct Session<P: Platform> {
    pub(crate) smmu: SmmuHandle<P>,
    pub(crate) report: Report,
    unmap_ns: Vec<u64>,
}

impl<P: Platform> Session<P> {
    pub(crate) fn new(smmu: SmmuHandle<P>, backend: &'static str, seed: u64, devices: u32) -> Self {
        let report =
            Report { backend, scenario: "quick start".to_owned(), seed, smmus: 1, devices, ..Report::default() };
        Session { smmu, report, unmap_ns: Vec::new() }
    }

    /// Unmaps, and notes how long it took.
    pub(crate) fn unmap(&mut self, domain: &PagingDomain<P>, iova: Iova, pages: usize) -> Result<()> {
        let bytes = (pages * PAGE) as u64;
        let start = Instant::now();
        let done = domain.unmap(iova, bytes)?;
        self.unmap_ns.push(start.elapsed().as_nanos() as u64);
        self.report.wait_rounds += u64::from(done.wait_rounds);
        self.report.invalidations += u64::from(done.wait_rounds > 0);
        if done.bytes != bytes {
            self.surprise(format!("unmap of {bytes:#x} bytes at {iova} found {:#x} mapped", done.bytes));
        }
        Ok(())
    }

    /// Runs `action`, in which each of `expected` (StreamID and page) must fault, and nothing else. Returns the first event.
    ///
    /// An SMMU may record several events for one access (QEMU: one for every 4 bytes); a page counts once.
    pub(crate) fn provoke(
        &mut self,
        expected: &[(u32, Iova)],
        action: impl FnOnce() -> Result<()>,
    ) -> Result<Option<Event>> {
        self.drain("before an expected fault");
        action()?;
        let mut missing: BTreeSet<(u32, u64)> = expected.iter().map(|(sid, page)| (*sid, page.0)).collect();
        let mut first = None;
        let mut surprises = Vec::new();
        let taken = self.smmu.take_events(|event| {
            let page = event.input_address().map(|iova| iova.0 & !(PAGE as u64 - 1));
            let key = event.stream().map(|stream| stream.sid).zip(page);
            let expected = matches!(event, Event::FTranslation(..))
                && key.is_some_and(|(sid, page)| expected.contains(&(sid, Iova(page))));
            if expected {
                missing.remove(&key.unwrap_or_default());
                first.get_or_insert(event);
            } else {
                surprises.push(format!("unexpected event: {event}"));
            }
        });
        if taken.overflow {
            surprises.push("the event queue overflowed".into());
        }
        self.report.surprises.extend(surprises);
        self.report.faults_expected += expected.len() as u64;
        self.report.faults_seen += (expected.len() - missing.len()) as u64;
        Ok(first)
    }

    /// Whatever is in the event queue now should not be.
    pub(crate) fn drain(&mut self, when: &str) {
        let mut surprises = Vec::new();
        let _ = self.smmu.take_events(|event| surprises.push(format!("unexpected event {when}: {event}")));
        let errors = self.smmu.take_global_errors();
        if !errors.is_empty() {
            surprises.push(format!("global error {when}: {errors}"));
        }
        self.report.surprises.extend(surprises);
    }

    pub(crate) fn surprise(&mut self, what: String) {
        self.report.surprises.push(what);
    }

    /// The report, once everything is over.
    pub(crate) fn finish(mut self) -> Report {
        self.drain("at the end");
        self.report.unmap_ns = Latency::of(self.unmap_ns);
        self.report
    }
}

/// Bytes that differ from page to page and from run to run.
pub(crate) fn pattern(seed: u64, page: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ page.wrapping_mul(0xd1b5_4a32_d192_ed03) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

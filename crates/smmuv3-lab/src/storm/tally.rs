//! What is counted in a round, and over all rounds.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::lock;
use super::round::{Failure, Kind};
use crate::report::{Latency, Report};

/// Failures of a round that are kept.
const MAX_FAILURES: usize = 16;

/// Counts of a round, for all its threads.
#[derive(Default)]
pub(super) struct Tally {
    pub operations: AtomicU64,
    pub unmaps: AtomicU64,
    pub invalidations: AtomicU64,
    pub wait_rounds: AtomicU64,
    pub atc_pages: AtomicU64,
    /// Accesses to what was just unmapped, by devices that were attached before, meanwhile and after.
    pub expected: AtomicU64,
    pub refused: AtomicU64,
    /// What was seen to be wrong, beside what the model saw.
    pub failures: Mutex<Vec<Failure>>,
    /// How long each unmap took, where that means something.
    pub unmap_times: Mutex<Vec<Duration>>,
}

impl Tally {
    pub(super) fn surprise(&self, what: String) {
        self.failed(Kind::Surprise, what);
    }

    pub(super) fn failed(&self, kind: Kind, what: String) {
        let mut failures = lock(&self.failures);
        if failures.len() < MAX_FAILURES {
            failures.push(Failure { kind, what });
        }
    }
}

/// The sum of all rounds.
pub(super) struct Totals {
    pub report: Report,
    pub replayable_rounds: u64,
    pub parallel_rounds: u64,
    pub operations: u64,
    pub unmaps: u64,
    unmap_ns: Histogram<u64>,
}

impl Totals {
    pub(super) fn new(report: Report) -> Result<Self, String> {
        let unmap_ns = Histogram::new(3).map_err(|error| error.to_string())?;
        Ok(Totals { report, replayable_rounds: 0, parallel_rounds: 0, operations: 0, unmaps: 0, unmap_ns })
    }

    /// Adds a round.
    pub(super) fn add(&mut self, tally: &Tally, seen: &smmuv3_model::Report) {
        let report = &mut self.report;
        report.dma_checked += seen.dma_checked;
        report.stale_dma += seen.stale_dma + seen.stale_walks;
        report.syncs += seen.syncs;
        report.atc_pages_invalidated += seen.atc_pages;
        for (&name, &count) in &seen.commands {
            *report.commands.entry(name.to_owned()).or_default() += count;
        }
        report.faults_expected += tally.expected.load(Relaxed);
        report.faults_seen += tally.refused.load(Relaxed);
        report.invalidations += tally.invalidations.load(Relaxed);
        report.wait_rounds += tally.wait_rounds.load(Relaxed);
        report.atc_pages_requested += tally.atc_pages.load(Relaxed);
        self.operations += tally.operations.load(Relaxed);
        self.unmaps += tally.unmaps.load(Relaxed);
        for time in lock(&tally.unmap_times).drain(..) {
            // It grows to hold what comes.
            let _ = self.unmap_ns.record(time.as_nanos() as u64);
        }
    }

    /// The report, with what a storm has more.
    pub(super) fn finish(mut self, more: More) -> StormReport {
        if !self.unmap_ns.is_empty() {
            let at = |quantile| self.unmap_ns.value_at_quantile(quantile);
            self.report.unmap_ns = Latency { p50: at(0.5), p99: at(0.99), max: self.unmap_ns.max() };
        }
        StormReport {
            report: self.report,
            domains: more.domains,
            threads: more.threads,
            seconds: more.seconds,
            laziness: more.laziness,
            replayable_rounds: self.replayable_rounds,
            parallel_rounds: self.parallel_rounds,
            operations: self.operations,
            unmaps: self.unmaps,
            timed_unmaps: self.unmap_ns.len(),
        }
    }
}

/// What a storm was asked to do.
pub(super) struct More {
    pub domains: usize,
    pub threads: usize,
    pub seconds: f64,
    pub laziness: Vec<String>,
}

/// The report of a storm.
#[derive(Serialize)]
pub(super) struct StormReport {
    #[serde(flatten)]
    pub report: Report,
    pub domains: usize,
    pub threads: usize,
    /// How long it took.
    pub seconds: f64,
    pub laziness: Vec<String>,
    pub replayable_rounds: u64,
    pub parallel_rounds: u64,
    pub operations: u64,
    pub unmaps: u64,
    /// Unmaps that stand behind `unmap_ns`: those of parallel rounds.
    pub timed_unmaps: u64,
}

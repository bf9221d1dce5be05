//! The oracle: what went wrong, how often, and the history of the first few cases.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use smmuv3::platform::PhysAddr;

use crate::memory::lock;

/// Cases of stale access that are kept with their history.
const HISTORIES: usize = 16;
/// Violations whose text is kept. All are counted.
const VIOLATIONS: usize = 256;

/// An access to a page that its owner had already taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleAccess {
    /// The SMMU.
    pub smmu: usize,
    /// The StreamID; `None` for accesses that the SMMU makes for itself.
    pub sid: Option<u32>,
    /// The SubstreamID.
    pub ssid: Option<u32>,
    /// The address that the device sent.
    pub iova: u64,
    /// Where the access went.
    pub pa: PhysAddr,
    /// A write.
    pub write: bool,
    /// What led there, oldest first.
    pub history: Vec<String>,
}

impl fmt::Display for StaleAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SMMU {}", self.smmu)?;
        if let Some(sid) = self.sid {
            write!(f, ", StreamID {sid:#x}")?;
        }
        if let Some(ssid) = self.ssid {
            write!(f, ", SubstreamID {ssid:#x}")?;
        }
        let kind = if self.write { "write" } else { "read" };
        write!(f, ": {kind} of {:#x} reached {}", self.iova, self.pa)?;
        for line in &self.history {
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}

/// What happened so far.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Device accesses (pieces of at most 4 KiB) that reached memory and were checked.
    pub dma_checked: u64,
    /// Those that touched a page which is not the device's any more. A failure.
    pub stale_dma: u64,
    /// Reads and writes of the SMMUs themselves (structures, tables, queues, messages) in free pages. A failure.
    pub stale_walks: u64,
    /// The first cases of either, with their history.
    pub histories: Vec<StaleAccess>,
    /// Faults: event records written or, where the queue was full or off, lost.
    pub faults: u64,
    /// Commands consumed, by mnemonic, over all SMMUs.
    pub commands: BTreeMap<&'static str, u64>,
    /// CMD_SYNCs completed, over all SMMUs.
    pub syncs: u64,
    /// Pages of 4 KiB that ATC_INV commands covered, those that covered everything not counted.
    pub atc_pages: u64,
    /// ATC_INV commands that covered everything.
    pub atc_everything: u64,
    /// ATC_INV commands for functions whose ATS was off. Each is a violation, too.
    pub atc_to_disabled: u64,
    /// CMD_SYNCs that failed because an ATC_INV was not answered.
    pub atc_timeouts: u64,
    /// ATS Translation Requests, those included that a function makes by itself when an ATC_INV took an entry.
    pub ats_requests: u64,
    /// Translated accesses that the SMMUs let pass. They are among `dma_checked`.
    pub translated: u64,
    /// Things that no correct driver does, the first 256 of them.
    pub violations: Vec<String>,
    /// All of them.
    pub violation_count: u64,
    /// Each SMMU by itself.
    pub smmus: Vec<SmmuReport>,
}

impl Report {
    /// No stale access, nothing that a correct driver would not do.
    pub fn is_clean(&self) -> bool {
        self.stale_dma == 0 && self.stale_walks == 0 && self.violation_count == 0
    }

    /// Panics with all that is known if the report is not clean.
    pub fn assert_clean(&self) {
        assert!(
            self.is_clean(),
            "stale_dma {}, stale_walks {}, violations {}\n{:#?}\n{}",
            self.stale_dma,
            self.stale_walks,
            self.violation_count,
            self.violations,
            self.histories.iter().map(|case| case.to_string()).collect::<Vec<_>>().join("\n")
        );
    }
}

/// What happened at one SMMU.
#[derive(Debug, Clone, Default)]
pub struct SmmuReport {
    /// Commands consumed, by mnemonic.
    pub commands: BTreeMap<&'static str, u64>,
    /// Those of them that came from Enhanced Command queues.
    pub ecmdq_commands: u64,
    /// CMD_SYNCs completed.
    pub syncs: u64,
    /// Event records written to the queue.
    pub events: u64,
    /// Event records lost: queue full, disabled or aborted.
    pub events_lost: u64,
    /// Translation table walks, complete or not.
    pub walks: u64,
    /// Entries in the TLB now, walk caches included.
    pub tlb_entries: usize,
    /// Pages of 4 KiB that ATC_INV commands covered, those that covered everything not counted.
    pub atc_pages: u64,
    /// ATC_INV commands that covered everything.
    pub atc_everything: u64,
    /// ATC_INV commands for functions whose ATS was off.
    pub atc_to_disabled: u64,
    /// CMD_SYNCs that failed because an ATC_INV was not answered.
    pub atc_timeouts: u64,
    /// ATS Translation Requests.
    pub ats_requests: u64,
    /// Translated accesses that the SMMU let pass.
    pub translated: u64,
    /// Entries in the ATCs of all functions behind the SMMU now.
    pub atc_entries: usize,
}

/// Counts what goes wrong.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    dma_checked: AtomicU64,
    stale_dma: AtomicU64,
    stale_walks: AtomicU64,
    violation_count: AtomicU64,
    histories: Mutex<Vec<StaleAccess>>,
    violations: Mutex<Vec<String>>,
}

impl Oracle {
    pub(crate) fn dma(&self) {
        self.dma_checked.fetch_add(1, Relaxed);
    }

    pub(crate) fn stale_dma(&self, case: impl FnOnce() -> StaleAccess) {
        self.stale_dma.fetch_add(1, Relaxed);
        self.keep(case);
    }

    pub(crate) fn stale_walk(&self, case: impl FnOnce() -> StaleAccess) {
        self.stale_walks.fetch_add(1, Relaxed);
        self.keep(case);
    }

    #[cold]
    fn keep(&self, case: impl FnOnce() -> StaleAccess) {
        let mut histories = lock(&self.histories);
        if histories.len() < HISTORIES {
            histories.push(case());
        }
    }

    #[cold]
    pub(crate) fn violation(&self, what: String) {
        self.violation_count.fetch_add(1, Relaxed);
        let mut violations = lock(&self.violations);
        if violations.len() < VIOLATIONS {
            violations.push(what);
        }
    }

    /// The report, with the part of each SMMU.
    pub(crate) fn report(&self, smmus: Vec<SmmuReport>) -> Report {
        let mut report = Report {
            dma_checked: self.dma_checked.load(Relaxed),
            stale_dma: self.stale_dma.load(Relaxed),
            stale_walks: self.stale_walks.load(Relaxed),
            histories: lock(&self.histories).clone(),
            violations: lock(&self.violations).clone(),
            violation_count: self.violation_count.load(Relaxed),
            ..Report::default()
        };
        for smmu in &smmus {
            report.faults += smmu.events + smmu.events_lost;
            report.syncs += smmu.syncs;
            report.atc_pages += smmu.atc_pages;
            report.atc_everything += smmu.atc_everything;
            report.atc_to_disabled += smmu.atc_to_disabled;
            report.atc_timeouts += smmu.atc_timeouts;
            report.ats_requests += smmu.ats_requests;
            report.translated += smmu.translated;
            for (&mnemonic, &count) in &smmu.commands {
                *report.commands.entry(mnemonic).or_default() += count;
            }
        }
        report.smmus = smmus;
        report
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        for counter in [&self.dma_checked, &self.stale_dma, &self.stale_walks, &self.violation_count] {
            counter.store(0, Relaxed);
        }
        lock(&self.histories).clear();
        lock(&self.violations).clear();
    }
}

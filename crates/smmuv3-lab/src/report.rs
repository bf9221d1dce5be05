//! The report of a run: one JSON object, and the same numbers as a table.

use std::collections::BTreeMap;

use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use serde::Serialize;

/// What a run did and found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// "model" or "qemu".
    pub backend: &'static str,
    pub scenario: String,
    pub seed: u64,
    pub smmus: u32,
    pub devices: u32,
    /// Pages that a device moved and that were then compared with what they should contain.
    pub dma_checked: u64,
    /// Accesses that reached a page after its unmap had returned.
    pub stale_dma: u64,
    /// Accesses to pages that the run provoked and that must fault.
    pub faults_expected: u64,
    /// Those of them for which the SMMU recorded the right event.
    pub faults_seen: u64,
    /// Unmaps that had something to invalidate.
    pub invalidations: u64,
    /// Commands that the SMMUs were given, by mnemonic.
    pub commands: BTreeMap<String, u64>,
    pub syncs: u64,
    /// Times that an unmap waited for hardware.
    pub wait_rounds: u64,
    pub atc_pages_requested: u64,
    pub atc_pages_invalidated: u64,
    /// How long unmaps took, in nanoseconds.
    pub unmap_ns: Latency,
    /// Everything that should not have happened.
    pub surprises: Vec<String>,
    /// The step of a scenario that went wrong. It is among the surprises.
    #[serde(skip)]
    pub wrong_step: Option<String>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Latency {
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

impl Latency {
    pub(crate) fn of(mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        let at = |per_cent: usize| samples.get((samples.len() * per_cent / 100).min(samples.len().saturating_sub(1)));
        Latency {
            p50: at(50).copied().unwrap_or(0),
            p99: at(99).copied().unwrap_or(0),
            max: samples.last().copied().unwrap_or(0),
        }
    }
}

impl Report {
    /// Why the run is not as it should be.
    pub(crate) fn verdict(&self) -> Result<(), String> {
        if let Some(step) = &self.wrong_step {
            return Err(step.clone());
        }
        if self.stale_dma > 0 {
            return Err(format!("{} accesses reached pages after their unmap had returned", self.stale_dma));
        }
        if let Some(first) = self.surprises.first() {
            return Err(format!("{first} (and {} more surprises)", self.surprises.len() - 1));
        }
        if self.faults_seen != self.faults_expected {
            return Err(format!("{} faults were expected, {} seen", self.faults_expected, self.faults_seen));
        }
        Ok(())
    }

    /// For runs that are meant to check DMA and faults.
    pub(crate) fn checked_something(mut self) -> Self {
        if self.faults_expected == 0 || self.dma_checked == 0 {
            self.surprises.push("the run checked nothing".to_owned());
        }
        self
    }

    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        let commands =
            self.commands.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join("\n");
        let micros = |ns: u64| format!("{:.1} µs", ns as f64 / 1000.0);
        let rows: [(&str, String); 12] = [
            ("backend", format!("{}, scenario {}, seed {}", self.backend, self.scenario, self.seed)),
            ("SMMUs, devices", format!("{}, {}", self.smmus, self.devices)),
            ("DMA checked", format!("{} pages", self.dma_checked)),
            ("stale DMA", self.stale_dma.to_string()),
            ("faults expected", self.faults_expected.to_string()),
            ("faults seen", self.faults_seen.to_string()),
            ("invalidations", self.invalidations.to_string()),
            ("wait rounds", self.wait_rounds.to_string()),
            ("commands", commands),
            (
                "ATC pages",
                format!("{} asked for, {} invalidated", self.atc_pages_requested, self.atc_pages_invalidated),
            ),
            (
                "unmap",
                format!(
                    "p50 {}, p99 {}, max {}",
                    micros(self.unmap_ns.p50),
                    micros(self.unmap_ns.p99),
                    micros(self.unmap_ns.max)
                ),
            ),
            ("surprises", self.surprises.len().to_string()),
        ];
        for (name, value) in rows {
            table.add_row([name.to_owned(), value]);
        }
        table
    }
}

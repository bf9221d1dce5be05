//! Histories in files: a machine, and the steps that make it fail.

use std::fmt::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::op::Step;
use super::round::Failure;

/// Threads that a history can have.
const MAX_THREADS: usize = 64;

/// What stands in a file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct History {
    pub machine: Machine,
    /// How it failed when it was written.
    pub failure: Failure,
    pub steps: Vec<Step>,
}

impl History {
    /// Reads a file. An error is one line.
    pub(super) fn read(path: &Path) -> Result<History, String> {
        let at = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {at}: {error}"))?;
        let history: History = serde_json::from_str(&text).map_err(|error| format!("{at}: {error}"))?;
        history.machine.check().map_err(|what| format!("{at}: {what}"))?;
        for (number, step) in (1..).zip(&history.steps) {
            if step.thread >= MAX_THREADS || !step.op.fits(&history.machine) {
                return Err(format!("{at}: the machine does not have what step {number} names: {step}"));
            }
        }
        Ok(history)
    }

    /// Writes a file, with one line for each step.
    pub(super) fn write(&self, path: &Path) -> Result<(), String> {
        let text = self.text().map_err(|error| error.to_string())?;
        std::fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
    }

    fn text(&self) -> Result<String, serde_json::Error> {
        let mut text = String::new();
        let machine = serde_json::to_string(&self.machine)?;
        let failure = serde_json::to_string(&self.failure)?;
        // Writing to a string does not fail.
        let _ = write!(text, "{{\n\"machine\": {machine},\n\"failure\": {failure},\n\"steps\": [");
        for (index, step) in self.steps.iter().enumerate() {
            let separator = if index == 0 { "\n" } else { ",\n" };
            let _ = write!(text, "{separator}{}", serde_json::to_string(step)?);
        }
        text.push_str("\n]\n}\n");
        Ok(text)
    }
}

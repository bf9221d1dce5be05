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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storm::round::{Kind, random_steps};

    #[test]
    fn a_history_comes_back_from_its_file_as_it_was_and_only_if_its_machine_can_run_it() {
        let machine = Machine {
            seed: u64::MAX,
            luck: 0,
            ram_mib: 12,
            smmus: 2,
            devices: 5,
            domains: 4,
            guests: 2,
            laziness: vec!["late_acks".to_owned()],
            sabotage: None,
        };
        let failure = Failure { kind: Kind::StaleDma, what: "two\nlines".to_owned() };
        let mut history = History { steps: random_steps(&machine), machine, failure };
        assert!(history.steps.iter().all(|step| step.op.fits(&history.machine)));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("history.json");
        history.write(&file).unwrap();
        assert_eq!(History::read(&file).as_ref(), Ok(&history));
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), history.steps.len() + 6);
        history.machine.devices = 1;
        history.machine.domains = 1;
        history.write(&file).unwrap();
        assert!(History::read(&file).unwrap_err().contains("does not have what step"));
        history.machine.smmus = 17;
        history.write(&file).unwrap();
        assert!(History::read(&file).unwrap_err().contains("smmus = 17, expected 1 to 16"));
    }
}

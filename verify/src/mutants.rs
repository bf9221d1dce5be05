//! Deliberate faults in the driver, and what must catch each.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

use serde::Deserialize;

use crate::check::{Check, Verdict};
use crate::copy::{Copy, Edit};
use crate::table::Row;

const FILE: &str = "verify/mutants.toml";

/// The content of `mutants.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutants {
    mutant: Vec<Mutant>,
}

/// A fault.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    /// What is wrong with the driver.
    fault: String,
    edits: Vec<Edit>,
    /// Each of these catches it.
    #[serde(default)]
    caught_by: Vec<Check>,
    /// Why nothing does. Then none of `not_caught_by` does, which is checked, too.
    survives: Option<String>,
    #[serde(default)]
    not_caught_by: Vec<Check>,
}

impl Mutants {
    pub fn read(root: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(root.join(FILE)).map_err(|error| format!("{FILE}: {error}"))?;
        let mutants: Mutants = toml::from_str(&text).map_err(|error| format!("{FILE}: {error}"))?;
        for mutant in &mutants.mutant {
            if mutant.caught_by.is_empty() == mutant.survives.is_none() {
                return Err(format!(
                    "{FILE}: {}: either something catches it, or it says why it survives",
                    mutant.name
                ));
            }
        }
        Ok(mutants)
    }

    /// The names of all mutants.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.mutant.iter().map(|mutant| &*mutant.name)
    }

    /// Runs the checks that `pick` wants: on the driver as it is, where they must pass, and on the mutants.
    pub fn run(&self, root: &Path, pick: impl Fn(&str, &Check) -> bool) -> Result<Vec<Row>, String> {
        let copy = Copy::of(root)?;
        let mut rows = Vec::new();
        let mut sound: HashMap<&Check, bool> = HashMap::new();
        for mutant in &self.mutant {
            let caught = mutant.caught_by.iter().map(|check| (check, Verdict::Failed));
            let not_caught = mutant.not_caught_by.iter().map(|check| (check, Verdict::Passed));
            for (check, expected) in caught.chain(not_caught).filter(|(check, _)| pick(&mutant.name, check)) {
                if !sound.contains_key(check) {
                    let run = check.run(&copy.path, root)?;
                    sound.insert(check, run.verdict == Verdict::Passed);
                    if run.verdict != Verdict::Passed {
                        eprintln!("{check} fails without any fault:\n{}", run.output);
                        rows.push(Row::new("mutant", "none", "passed", &run.verdict.to_string(), &check.to_string()));
                    }
                }
                let start = Instant::now();
                let _changed = copy.change(&mutant.edits).map_err(|error| format!("{}: {error}", mutant.name))?;
                let run = check.run(&copy.path, root)?;
                if run.verdict == Verdict::DoesNotBuild {
                    eprintln!("{}:\n{}", mutant.name, run.output);
                }
                eprintln!("{}: {check}: {} in {:.0?}", mutant.name, run.verdict, start.elapsed());
                let said = |verdict| if verdict == Verdict::Failed { "caught".into() } else { format!("{verdict}") };
                rows.push(Row::new("mutant", &mutant.name, &said(expected), &said(run.verdict), &check.to_string()));
            }
        }
        Ok(rows)
    }

    /// The table for readers.
    pub fn page(&self) -> String {
        let mut page = String::from(
            "# Mutants\n\nDeliberate faults in the driver, and the checks that catch each. Generated from `mutants.toml` by\n\
             `cargo verify mutants --write`; `cargo verify mutants` applies each fault to a copy of the sources and runs its checks.\n\n\
             | mutant | fault | caught by |\n|---|---|---|\n",
        );
        for mutant in &self.mutant {
            let by = match &mutant.survives {
                Some(why) => format!("nothing: {why}"),
                None => mutant.caught_by.iter().map(Check::to_string).collect::<Vec<_>>().join("; "),
            };
            let _ = writeln!(page, "| `{}` | {} | {by} |", mutant.name, mutant.fault);
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_mutants_is_what_the_list_of_mutants_says() {
        let root = crate::root();
        let page = std::fs::read_to_string(root.join("verify/mutants.md")).expect("verify/mutants.md");
        assert_eq!(page, Mutants::read(&root).expect("mutants.toml").page(), "run `cargo verify mutants --write`");
    }

    #[test]
    fn every_edit_of_a_mutant_fits_the_sources_and_changes_them() {
        let root = crate::root();
        for mutant in Mutants::read(&root).expect("mutants.toml").mutant {
            for Edit { file, find, replace } in &mutant.edits {
                let text = std::fs::read_to_string(root.join(file)).expect(file);
                assert_eq!(text.matches(find.as_str()).count(), 1, "{}: {file}: {find}", mutant.name);
                assert_ne!(find, replace, "{}", mutant.name);
            }
        }
    }
}
